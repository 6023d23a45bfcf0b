"""Up to f liars of every kind harm nobody: every rule holds, and everybody else recovers in time."""

from collections.abc import Callable

import pytest

from tests.simulation.byzantine.roles import ROLES
from tests.simulation.faults import Plan, draw_plan
from tests.simulation.world import Outcome, World

PAIRS = (
    ("equivocator", "equivocator"),
    ("equivocator", "false view-changer"),
    ("turncoat", "garbler"),
    ("selective sender", "replayer"),
)
EQUIVOCATIONS = ("PrePrepare", "PREPARE", "COMMIT", "ViewChange", "NewView")


def _with(n: int, *roles: str) -> Callable[[World], Plan]:
    return lambda world: draw_plan(world)._replace(n=n, faulty=roles, request_every_us=150_000)


def _runs(seeds: range, n: int, *roles: str) -> list[Outcome]:
    outcomes = [World(seed, plan=_with(n, *roles)).run() for seed in seeds]
    for outcome in outcomes:
        assert outcome.failure is None, outcome.failure
    return outcomes


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_one_liar_among_four_harms_nobody(role: str) -> None:
    outcomes = _runs(range(12), 4, role)
    assert sum(count for outcome in outcomes for kind, count in outcome.faults.items() if kind == f"lie: {role}")


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.parametrize("n", [7, 8])
def test_two_liars_that_share_their_keys_harm_nobody(n: int, first: str, second: str) -> None:
    _runs(range(3), n, first, second)


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 6])
def test_one_turncoat_among_five_or_six_harms_nobody(n: int) -> None:
    _runs(range(8), n, "turncoat")


@pytest.mark.slow
def test_an_equivocator_contradicts_itself_in_every_kind_of_message() -> None:
    outcomes = _runs(range(30, 48), 4, "equivocator")
    told = {kind: sum(outcome.faults[f"equivocation by {kind}"] for outcome in outcomes) for kind in EQUIVOCATIONS}
    assert all(told.values()), told
    assert any(outcome.reached["equivocation proved"] for outcome in outcomes)
