"""Controls: where the assumption is broken the checkers report a fork, and only there.

Two quorums of q members among n share at least 2q - n. A fork needs liars in all of these places, so it takes
2q - n of them, whatever their number f is that the network promises to tolerate:

    n      4  5  6  7  8  9 10 11 12 13
    f      1  1  1  2  2  2  3  3  3  4
    q      3  4  4  5  6  6  7  8  8  9
    2q - n 2  3  2  3  4  3  4  5  4  5

At n = 5, 8, 11, … (n = 3f + 2) the quorum is rounded up by a whole member: f + 1 liars can stall such a network
but not fork it; it takes f + 2.
"""

from collections.abc import Callable

import pytest

from consensus.members import Members, Validator
from tests.simulation.faults import Plan, draw_plan
from tests.simulation.world import Failure, World

SEEDS_MAX = 30
STEPS_EACH = 2_500
"""A fork comes early or in another seed: too many liars may stall the rest, and then a run is long and empty."""


def liars_that_fork(n: int) -> int:
    """How many liars it takes: as many as two quorums share at least."""
    members = Members(tuple(Validator(f"m{index}", bytes((index,)) * 32) for index in range(n)))
    return 2 * members.quorum - n


def with_faulty(n: int, *kinds: str) -> Callable[[World], Plan]:
    def plan(world: World) -> Plan:
        return draw_plan(world)._replace(n=n, faulty=kinds, request_every_us=100_000)

    return plan


def first_fork(n: int, *kinds: str) -> Failure | None:
    """The first broken rule in the first seeds, progress aside."""
    for seed in range(SEEDS_MAX):
        failure = World(seed, plan=with_faulty(n, *kinds)).run(STEPS_EACH).failure
        if failure is not None and failure.rule != "progress after healing":
            return failure
    return None


def test_more_than_f_liars_are_needed_and_f_plus_1_are_enough_except_after_a_multiple_of_three() -> None:
    for n in range(1, 41):
        f = (n - 1) // 3
        assert liars_that_fork(n) == f + (2 if n % 3 == 2 else 1)


@pytest.mark.parametrize("n", [4, 6, 7])
def test_f_plus_1_equivocators_fork_the_chain(n: int) -> None:
    failure = first_fork(n, *("equivocator",) * ((n - 1) // 3 + 1))
    assert failure is not None
    assert failure.rule == "agreement"


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 8])
def test_f_plus_1_equivocators_cannot_fork_five_or_eight_members(n: int) -> None:
    assert first_fork(n, *("equivocator",) * ((n - 1) // 3 + 1)) is None


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 8])
def test_f_plus_2_equivocators_fork_five_and_eight_members(n: int) -> None:
    failure = first_fork(n, *("equivocator",) * ((n - 1) // 3 + 2))
    assert failure is not None
    assert failure.rule == "agreement"


@pytest.mark.slow
def test_two_doubled_keys_among_four_members_fork_the_chain() -> None:
    failure = first_fork(4, "twin", "twin")
    assert failure is not None
    assert failure.rule == "agreement"
