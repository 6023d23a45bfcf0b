"""Which release every process runs: one member has another one than the rest; everybody changes to a new one."""

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.machine import Machine
    from tests.simulation.world import World


class Releases:
    """What most run is agreed, and who runs another release signs nothing. All come to the same roots."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.newest = 0
        self.agreed = 0
        self._odd = 0

    def install(self, machine: "Machine", release: int) -> None:
        """The machine's next process runs `release`; one that runs ends for it."""
        ran = machine.up
        if ran:
            machine.crash()
        machine.release = release
        self._agree()
        if ran:
            machine.start()

    def _agree(self) -> None:
        world = self._world
        run_by = {machine.member: machine.release for machine in world.machines if machine.member < world.plan.n}
        most, count = Counter(run_by.values()).most_common(1)[0]
        if most != self.agreed and count >= world.members.quorum:
            self.agreed = most
            for machine in world.machines:
                world.after(0, machine, machine.judge_release)

    def install_odd(self, machine: "Machine") -> None:
        """The machine runs what nobody else does."""
        self._odd -= 1
        self.install(machine, self._odd)

    def mend(self, machine: "Machine") -> None:
        """The machine runs the newest release."""
        if machine.release != self.newest:
            self.install(machine, self.newest)
