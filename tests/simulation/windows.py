"""Members that rest: their turns as primary are skipped from the height after a block that says so.

A wish travels as a request like any other. Seeds of one in three have windows, drawn apart from everything else, so
that the runs of the other seeds stay what they are. Often more rest at a time than a quorum can spare: then nobody
is skipped. Windows go on after healing: progress is due all the same.
"""

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.machine import Machine
    from tests.simulation.world import World


class Windows:
    """Who rests, by the requests that blocks have decided."""

    def __init__(self, world: "World") -> None:
        """Nobody rests."""
        self._world = world
        self._draw = random.Random(f"windows of {world.seed}").random
        self._wishes: dict[int, tuple[str, bool]] = {}

    def wish(self, member: str, rests: bool) -> None:
        """Ask for the member's window to begin or to end: it counts when a block has decided it."""
        self._wishes[self._world.request()] = (member, rests)

    def after(self, resting: tuple[str, ...], requests: Iterable[int]) -> tuple[str, ...]:
        """Who rests at the height after a block with `requests`, where `resting` did at its own."""
        for request in requests:
            member, rests = self._wishes.get(request, ("", False))
            if member and rests != (member in resting):
                left = tuple([name for name in resting if name != member])
                resting = tuple(sorted((*left, member))) if rests else left
        return resting

    def begin(self) -> None:
        """The windows of the plan, if it has any, come one after the other."""
        if self._world.plan.windows:
            self._world.after(self._some_us(2), None, self._next)

    def _some_us(self, timeouts: int) -> int:
        return int(self._draw() * timeouts * self._world.plan.base_timeout_ms * 1_000) + 1_000

    def _next(self) -> None:
        world = self._world
        if world.now_us >= world.plan.faults_end_us:
            return
        machine = world.machines[int(self._draw() * len(world.machines))]
        world.faults["window"] += 1
        self.wish(machine.id, True)
        if self._draw() < 0.5:
            # Stopped in its window, mostly after that has begun, and back before its end or after it.
            world.after(self._some_us(4), None, self._stop, machine)
        if self._draw() < 0.7:
            world.after(self._some_us(10), None, self.wish, machine.id, False)
        world.after(self._some_us(6), None, self._next)

    def _stop(self, machine: "Machine") -> None:
        world = self._world
        if machine.up and world.now_us < world.plan.faults_end_us:
            world.faults["stopped in its window"] += 1
            machine.crash()
            world.after(self._some_us(8), None, self._back, machine)

    def _back(self, machine: "Machine") -> None:
        if not machine.up:
            machine.start()
