"""A window is booked only where a quorum stays without one, and it is a plan for one member's turns alone."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.engine import EventRecord, Scheduled
from contracts.maintenance import (
    AHEAD_MS_MAX,
    WAKES_MAX,
    WINDOW_MS_MAX,
    WINDOWS_MAX,
    Maintenance,
    Window,
    require_quorum,
)
from contracts.membership import Membership
from contracts.sdk import Revert
from contracts.testkit import OPERATIONS_MAX, START_MS, CallFailed, World, reverts
from contracts.waking import DAY_MS, HOUR_MS, wake_ms, wakes_max
from tests.contracts.test_governance import decided, ready, voters, world_of


def at(hours: int) -> int:
    return START_MS + hours * HOUR_MS


@pytest.fixture
def world() -> World:
    return calendar_of(4)


def calendar_of(count: int) -> World:
    return world_of(count, contracts=(Maintenance,))


def book(world: World, member: str, start: int, end: int, **options: Any) -> int:
    events = world.as_(member).call(Maintenance.book, from_ms=at(start), until_ms=at(end), **options)
    number: int = events[-1].data["window"]
    return number


def resting(world: World) -> tuple[str, ...]:
    """Who is skipped on a head of this time."""
    return Maintenance.read_resting(world.state, world.time_ms)


def calendar(world: World) -> list[tuple[int, str, bool]]:
    return [(row["number"], row["member"], row["on"]) for row in world.query(Maintenance.calendar)]


def test_a_member_rests_from_the_beginning_of_its_window_to_its_end(world: World) -> None:
    number = book(world, "bank-b", 1, 3, reason="new disks")
    assert resting(world) == ()
    outcomes = world.advance(HOUR_MS)
    assert [event.name for outcome in outcomes for event in outcome.events] == ["Began"]
    assert resting(world) == ("bank-b",)
    assert calendar(world) == [(number, "bank-b", True)]
    world.time_ms = at(3) - 1
    assert resting(world) == ("bank-b",)
    outcomes = world.advance(1)
    assert [event.name for outcome in outcomes for event in outcome.events] == ["Ended"]
    assert (resting(world), calendar(world)) == ((), [])


def test_a_window_ends_by_its_time_where_nothing_tidies_up(world: World) -> None:
    book(world, "bank-b", 1, 3)
    world.due.clear()  # as if the call was settled unexecuted
    world.time_ms = at(3)
    assert (resting(world), calendar(world)) == ((), [])
    book(world, "bank-b", 4, 5)
    assert [row for _, row, _ in calendar(world)] == ["bank-b"]


def test_windows_that_would_break_the_quorum_are_refused_with_the_arithmetic(world: World) -> None:
    book(world, "bank-b", 2, 4)
    with pytest.raises(CallFailed) as refused:
        book(world, "bank-c", 1, 3)
    assert refused.value.outcome.code == "breaks_quorum"
    assert refused.value.outcome.detail == (
        f"at {at(2)} there would rest bank-c, bank-b: 2 of 4 validators are left, and a quorum is 3"
    )
    # Side by side they fit, and where the first was cancelled.
    book(world, "bank-c", 1, 2)
    book(world, "bank-c", 4, 5)
    world.as_("bank-b").call(Maintenance.cancel, window=1)
    book(world, "bank-c", 2, 4)


def test_what_counts_is_how_many_rest_at_one_moment(world: World) -> None:
    world = calendar_of(7)
    book(world, "bank-b", 1, 3)
    book(world, "bank-c", 3, 5)
    # Two others overlap with it, and never both at once.
    book(world, "bank-d", 1, 5)
    with reverts("breaks_quorum"):
        book(world, "bank-e", 2, 4)


def test_every_moment_of_a_window_is_looked_at() -> None:
    # By brute force, apart from the rule's own choice of moments.
    def window(member: str, start: int, end: int) -> Window:
        return Window(member, start, end, "", 1)

    beside = (window("b", 0, 4), window("c", 2, 6), window("d", 3, 5), window("e", 5, 9), window("f", 6, 7))
    for count in range(7, 12):
        quorum = (count + (count - 1) // 3) // 2 + 1
        for start in range(9):
            for end in range(start + 1, 10):
                wanted = window("a", start, end)
                near = tuple(row for row in beside if row.from_ms < end and start < row.until_ms)
                left = [
                    count - 1 - sum(row.from_ms <= moment < row.until_ms for row in beside)
                    for moment in range(start, end)
                ]
                if min(left) >= quorum:
                    require_quorum(wanted, near, count)
                else:
                    with pytest.raises(Revert, match="breaks_quorum"):
                        require_quorum(wanted, near, count)


def test_a_window_moves_and_one_that_began_only_at_its_end(world: World) -> None:
    number = book(world, "bank-b", 2, 3)
    book(world, "bank-c", 4, 5)
    with reverts("breaks_quorum"):
        world.as_("bank-b").call(Maintenance.move, window=number, from_ms=at(2), until_ms=at(5))
    world.as_("bank-b").call(Maintenance.move, window=number, from_ms=at(1), until_ms=at(3))
    world.advance(HOUR_MS)
    assert resting(world) == ("bank-b",)
    with reverts("window_begun"):
        world.as_("bank-b").call(Maintenance.move, window=number, from_ms=at(2), until_ms=at(3))
    world.as_("bank-b").call(Maintenance.move, window=number, from_ms=at(1), until_ms=at(4))
    # What was scheduled for the former times tells nothing of the window as it is.
    assert [outcome.events for outcome in world.advance(HOUR_MS)] == [()]
    world.advance(HOUR_MS)
    assert resting(world) == ("bank-b",)
    world.advance(HOUR_MS)
    assert resting(world) == ("bank-c",)


def test_a_beginning_that_has_passed_is_now(world: World) -> None:
    world.advance(2 * HOUR_MS)
    book(world, "bank-b", 1, 3)
    assert resting(world) == ("bank-b",)
    [row] = world.query(Maintenance.calendar)
    assert row["from_ms"] == world.time_ms


def test_moving_a_window_again_and_again_leaves_few_scheduled_calls_and_it_still_begins_in_time(
    world: World,
) -> None:
    """Each move left two, for up to 90 days."""
    number = book(world, "bank-b", 1, 2)
    for place in range(300):
        # Over all days, hours, minutes and seconds that a window may begin at.
        ahead_ms = (2_000, 100_000, HOUR_MS, AHEAD_MS_MAX)[place % 4] * (place + 1) // 300
        from_ms = world.time_ms + 1 + ahead_ms
        args = {"window": number, "from_ms": from_ms, "until_ms": from_ms + HOUR_MS + place}
        world.as_("bank-b").call(Maintenance.move, **args)
    assert len(world.due) == len({at_ms for at_ms, _, _ in world.due}) <= WAKES_MAX
    args = {"window": number, "from_ms": at(50) + 1, "until_ms": at(51) + 1}
    world.as_("bank-b").call(Maintenance.move, **args)
    told = [(world.time_ms, event.name) for event in runs_by_itself(world)]
    # At the moments themselves, rounded up to a second.
    assert told == [(at(50) + 1_000, "Began"), (at(51) + 1_000, "Ended")]
    assert (world.due, calendar(world)) == ([], [])


def runs_by_itself(world: World) -> Iterator[EventRecord]:
    """Blocks for scheduled calls alone, as on a quiet ledger, until none is left; what they tell."""
    while world.due:
        outcomes = world.advance(max(1, min(at_ms for at_ms, _, _ in world.due) - world.time_ms))
        yield from [event for outcome in outcomes for event in outcome.events]


def test_a_call_that_did_not_come_is_made_up_for_by_the_next(world: World) -> None:
    book(world, "bank-b", 30, 31)
    world.due.clear()  # as if it was settled unexecuted
    world.advance(29 * HOUR_MS)
    book(world, "bank-c", 32, 33)
    assert [event.name for event in runs_by_itself(world)] == ["Began", "Ended"] * 2
    assert list(Maintenance.wakes.scan_from(world.state, 9)) == []


@given(st.integers(0, 2**50), st.integers(1, AHEAD_MS_MAX))
def test_who_is_called_on_the_way_comes_in_time_after_four_calls_at_most(now_ms: int, ahead_ms: int) -> None:
    moment_ms, calls = now_ms + ahead_ms, 0
    while now_ms < moment_ms:
        calls, before_ms, now_ms = calls + 1, now_ms, wake_ms(moment_ms, now_ms)
        assert before_ms < now_ms < moment_ms + 1_000
    assert calls <= 4


def test_calls_that_wait_are_as_few_as_is_said() -> None:
    start_ms = START_MS // DAY_MS * DAY_MS
    waiting: set[int] = set()
    for now_ms in range(start_ms, start_ms + DAY_MS, 3_590_001):
        waiting = {at_ms for at_ms in waiting if at_ms > now_ms}
        for ahead_ms in (*range(1, HOUR_MS, 999), *range(HOUR_MS, AHEAD_MS_MAX, HOUR_MS)):
            waiting.add(wake_ms(now_ms + ahead_ms, now_ms))
        assert len(waiting) <= wakes_max(AHEAD_MS_MAX)


def test_a_calendar_that_is_over_at_once_is_cleared_within_a_calls_operations(world: World) -> None:
    for number in range(WINDOWS_MAX):
        row = Window(f"x{number}", START_MS + 1, at(1), "r" * 200, 1)
        world.state.put(Maintenance.windows.key(1_000 + number), row)
    for passed_ms, name in ((10, "Began"), (2 * HOUR_MS, "Ended")):
        world.due = [(world.time_ms, 0, Scheduled(world.time_ms, "maintenance", "tidy", {}))]
        [outcome] = world.advance(passed_ms)
        assert [event.name for event in outcome.events] == [name] * WINDOWS_MAX
        assert outcome.operations < OPERATIONS_MAX // 2, outcome.operations


@pytest.mark.parametrize(
    ("member", "start_ms", "end_ms", "code"),
    [
        ("watch", at(1), at(2), "not_a_validator"),
        ("bank-a/node", at(1), at(2), "not_a_validator"),
        ("bank-a", at(2), at(2), "window_over"),
        ("bank-a", at(-2), at(-1), "window_over"),
        ("bank-a", at(1), at(1) + WINDOW_MS_MAX + 1, "window_too_long"),
        ("bank-a", at(1) + AHEAD_MS_MAX, at(2) + AHEAD_MS_MAX, "window_too_far"),
    ],
)
def test_windows_are_bounded(world: World, member: str, start_ms: int, end_ms: int, code: str) -> None:
    with reverts(code):
        world.as_(member).call(Maintenance.book, from_ms=start_ms, until_ms=end_ms)
    book(world, "bank-b", 1, 1 + WINDOW_MS_MAX // HOUR_MS)


def test_a_member_has_four_windows_that_do_not_overlap_and_touches_no_others(world: World) -> None:
    for start in (1, 3, 5):
        book(world, "bank-b", start, start + 1)
    with reverts("windows_overlap"):
        world.as_("bank-b").call(Maintenance.book, from_ms=at(3) + 1, until_ms=at(5))
    book(world, "bank-b", 7, 8)
    with reverts("too_many_windows"):
        book(world, "bank-b", 9, 10)
    for method, options in ((Maintenance.cancel, {}), (Maintenance.move, {"from_ms": at(9), "until_ms": at(10)})):
        with reverts("not_authorized"):
            world.as_("bank-c").call(method, window=1, **options)
        with reverts("window_not_found"):
            world.as_("bank-b").call(method, window=9, **options)
    world.due.clear()
    world.time_ms = at(2)
    with reverts("window_over"):
        world.as_("bank-b").call(Maintenance.cancel, window=1)
    book(world, "bank-b", 9, 10)


def test_a_full_calendar_is_looked_through_within_a_calls_operations_and_takes_no_more() -> None:
    # 42 of 128 validators have four windows in a row each, and one more may rest beside them.
    world = calendar_of(4)
    names = [f"m{index}" for index in range(128)]
    beside = tuple(
        Window(name, at(place) + index, at(place + 1), "", 1)
        for place in range(4)
        for index, name in enumerate(names[:41])
    )
    require_quorum(Window("m100", at(0), at(4), "", 1), beside, 128)
    more = tuple(Window(name, at(1), at(2), "", 1) for name in names[41:43])
    with pytest.raises(Revert, match="85 of 128 validators are left, and a quorum is 86"):
        require_quorum(Window("m100", at(0), at(4), "", 1), (*beside, *more), 128)
    for number in range(WINDOWS_MAX - 1):
        world.state.put(Maintenance.windows.key(1_000 + number), Window(f"x{number}", at(1), at(9), "", 1))
    book(world, "bank-b", 3, 4)
    with reverts("too_many_windows"):
        book(world, "bank-c", 5, 6)


def test_a_window_stays_when_the_list_shrinks_and_only_validators_count(world: World) -> None:
    world = calendar_of(5)
    book(world, "bank-e", 1, 3)
    number = decided(world, "suspend_member", "bank-e")
    ready(world, number, "bank-a", "bank-b", "bank-c")
    assert voters(world) == ["bank-a", "bank-b", "bank-c", "bank-d"]
    # bank-e has no vote: another may rest at the same time.
    book(world, "bank-d", 1, 3)
    world.advance(HOUR_MS)
    assert resting(world) == ("bank-d", "bank-e")
    assert Membership.read_validators(world.state)[3][0] == "bank-d"
