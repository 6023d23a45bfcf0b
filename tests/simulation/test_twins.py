"""One key in two places, under enumerated leaders and partitions: agreement among the honest three, every time."""

import pytest

from tests.simulation.twins import ROUNDS, Round, TwinsWorld, TwoTwins, all_schedules, drawn, schedules


def test_one_schedule_stands_for_all_that_differ_in_names_only() -> None:
    single = list(schedules(1))
    assert len(single) < len(ROUNDS) // 4
    # Two of the honest are apart from the rest, and one of the honest leads: it is one of the two, or the third.
    pairs = (0b01100, 0b10100, 0b11000)
    assert sum(one.commits == 0 and one.leader != 0 and one.side in pairs for (one,) in single) == 2


@pytest.mark.slow
def test_schedules_of_two_rounds_drawn_at_even_distance() -> None:
    played = all_schedules(2)
    for number in range(0, len(played), len(played) // 200):
        failure = TwinsWorld(played[number], number).run().failure
        assert failure is None, f"scripts/simulate --twins {number}: {failure}"


@pytest.mark.slow
def test_schedules_of_four_rounds_drawn_at_random() -> None:
    for seed in range(150):
        failure = TwinsWorld(drawn(seed, 4), seed).run().failure
        assert failure is None, (seed, failure)


def test_a_schedule_with_two_doubled_keys_forks() -> None:
    """Both leaders of the first view live on both sides: each side has three of four keys."""
    both = (Round(leader=0, side=0b101010, commits=0),) * 2
    failure = TwoTwins(both, 0).run().failure
    assert failure is not None
    assert failure.rule == "agreement"
