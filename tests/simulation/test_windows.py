"""A primary that rests is skipped without a time-out, in every view and across restarts."""

from collections.abc import Callable
from typing import ClassVar

import pytest

from consensus.members import Members
from tests.simulation.machine import Machine
from tests.simulation.stage import Stage

RUNNING_US = 300_000
"""By then all machines run and hear a client's request."""


class PrimaryRests(Stage):
    """The primary's window begins, it is stopped, and nobody waits for it."""

    resting: ClassVar[tuple[int, ...]] = (0,)
    faults_end_ms: ClassVar[int] = 10_000

    def begins(self) -> None:
        """Who rests is stopped as soon as its window has begun everywhere."""
        for member in self.resting:
            self.after(RUNNING_US, None, self.windows.wish, self.machines[member].id, True)
        self.after(1_000_000, None, self._stop)

    def _stop(self) -> None:
        for member in self.resting:
            self.machines[member].crash()
        self.stopped_at = max(machine.disk.height for machine in self.machines)

    def ends(self) -> None:
        """Blocks went on in the first view, at every machine, and those that were stopped come back."""
        others = [machine for machine in self.machines if machine.member not in self.resting]
        for machine in others:
            late = machine.disk.chain[self.stopped_at :]
            views = {stored.certificate.view for stored in late}
            self.checks.require("a resting primary costs no view", views == {0}, machine.name, sorted(views))
            self.checks.require("blocks go on", len(late) >= 20, machine.name, len(late))
        for member in self.resting:
            self.machines[member].start()


class TwoRest(PrimaryRests):
    """Two of seven rest, the primary and its successor."""

    n: ClassVar[int] = 7
    resting: ClassVar[tuple[int, ...]] = (0, 1)


class RestingAndRotating(PrimaryRests):
    """Turns go round quickly: the resting member's is skipped each time."""

    rotation_heights: ClassVar[int] = 3


class RestingAndRestarted(PrimaryRests):
    """The others are restarted meanwhile, one after the other: who rests comes back with the head."""

    n: ClassVar[int] = 7

    def begins(self) -> None:
        """One restart after the other."""
        super().begins()
        for place, member in enumerate((2, 3, 4, 5, 6)):
            self.after(2_000_000 + 1_000_000 * place, None, self._restarted, self.machines[member])

    def _restarted(self, machine: Machine) -> None:
        machine.crash()
        machine.start()


class AllButOneRest(Stage):
    """More rest than a quorum can spare: nobody is skipped, and blocks go on."""

    def begins(self) -> None:
        """All windows begin in the same block or so."""
        for member in range(3):
            self.after(RUNNING_US, None, self.windows.wish, self.machines[member].id, True)

    def ends(self) -> None:
        """The primary of view 0 rests by its window, and proposes."""
        chain = self.machines[3].disk.chain
        everybody = self.machines[3].disk.resting == tuple(machine.id for machine in self.machines[:3])
        fine = everybody and len(chain) > 20 and all(stored.certificate.view == 0 for stored in chain)
        self.checks.require("nobody is skipped where too many rest", fine, len(chain))


class RestsAfterAFailure(PrimaryRests):
    """The next primary is dead besides, of seven: it costs one view and the resting one none."""

    n: ClassVar[int] = 7

    def ends(self) -> None:
        """m2 has the turn of m0, and is dead: the next view is m1's own."""
        chain = self.machines[4].disk.chain
        views = [stored.certificate.view for stored in chain[self.stopped_at + 1 :]]
        self.checks.require("one view for one dead member", len(views) > 5 and max(views) == 1, views)
        self.machines[0].start()
        self.machines[2].start()

    def _stop(self) -> None:
        super()._stop()
        self.machines[2].crash()


SCENES = (PrimaryRests, TwoRest, RestingAndRotating, RestingAndRestarted, AllButOneRest, RestsAfterAFailure)


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_scene_holds(scene: Callable[[int], Stage], seed: int) -> None:
    outcome = scene(seed).run()
    assert outcome.failure is None, outcome.failure


@pytest.mark.parametrize("scene", [PrimaryRests, TwoRest, RestingAndRotating])
def test_without_the_skip_it_costs_a_view(scene: Callable[[int], Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Members, "resting", lambda self, named: ())
    failure = scene(1).run().failure
    assert failure is not None
    assert failure.rule in ("a resting primary costs no view", "who rests has no turn")
