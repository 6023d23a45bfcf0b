"""What is over ends by the block's time, whatever call comes or fails to come; nobody fills the room of others."""

from typing import Any

import pytest

from contracts.governance import ENDED_MAX, HISTORY_MAX, OPEN_MAX, PAGE_MAX, Governance, Rules, Step, lasting_blocks
from contracts.membership import Membership
from contracts.metering import SCAN_ROW_COST
from contracts.testkit import World, reverts
from tests.contracts.test_governance import (
    DAY_MS,
    END_MS,
    TIDY_MS,
    decided,
    ended,
    key,
    node_keys,
    propose,
    ready,
    status,
    vote,
    voters,
    world_of,
)

OPERATIONS_MAX = 100_000
"""What a call may cost unless genesis says otherwise."""


@pytest.fixture
def world() -> World:
    return world_of(6)


def forget_schedule(world: World) -> None:
    """The scheduled calls were settled unexecuted, as a primary may do after two failed views."""
    world.due.clear()


def test_what_is_over_ends_with_any_call_to_it(world: World) -> None:
    number = propose(world, "remove_member", "bank-e")
    waiting = decided(world, "rotate_voting_key", "bank-b", "bank-b", voting_key=key(50))
    forget_schedule(world)
    world.advance(DAY_MS)
    assert (status(world, number), status(world, waiting)) == ("open", "waiting")
    vote(world, number, "bank-b", yes=False)
    assert world.query(Governance.proposal, proposal=number)["no"] == []
    assert (status(world, number), status(world, waiting)) == ("expired", "expired")
    # The node signs with its key in force again.
    assert node_keys(world, "bank-b") == (key(2),)


def test_readiness_after_the_end_brings_nothing_into_force(world: World) -> None:
    number = decided(world, "remove_member", "bank-f")
    ready(world, number, "bank-a", "bank-b", "bank-c")
    forget_schedule(world)
    world.advance(DAY_MS - 1)
    assert status(world, number) == "waiting"
    world.advance(1)
    ready(world, number, "bank-d")
    assert status(world, number) == "expired"
    assert "bank-f" in voters(world)


def test_what_is_over_takes_nobodys_room(world: World) -> None:
    for _ in range(8):
        propose(world, "remove_member", "bank-e")
    with reverts("too_many_open"):
        propose(world, "remove_member", "bank-e")
    forget_schedule(world)
    world.advance(DAY_MS)
    propose(world, "remove_member", "bank-e", expires_at_ms=END_MS + DAY_MS)
    assert len(world.query(Governance.pending)) == 1


def test_a_newcomer_that_did_not_come_in_time_has_no_part_in_it(world: World) -> None:
    newcomer: dict[str, Any] = {
        "member": "bank-n",
        "role": "validator",
        "address": "bank-n.example:7600",
        "voting_key": key(60),
        "tls_key": key(160),
        "keys": [key(201)],
        "threshold": 1,
        "expires_at_ms": END_MS,
    }
    number = world.as_("bank-a").call(Governance.propose_member, **newcomer)[0].data["proposal"]
    vote(world, number, "bank-b", "bank-c", "bank-d")
    ready(world, number, "bank-a", "bank-b", "bank-c", "bank-d", "bank-e")
    forget_schedule(world)
    world.advance(DAY_MS)
    ready(world, number, "bank-n")
    assert (status(world, number), "bank-n" in voters(world)) == ("expired", False)
    assert Membership.read_policy(world.state, "bank-n/node") is None


def test_what_has_ended_leaves_few_scheduled_calls(world: World) -> None:
    """Each proposal that ended at another minute left one, for up to 90 days."""
    for place in range(1, 91):
        number = propose(world, "remove_member", "bank-e", expires_at_ms=world.time_ms + 1 + place * 600_000)
        world.as_("bank-a").call(Governance.withdraw, proposal=number)
    # One for each hour of what is left of the day, and those on the way to the first end.
    assert len(world.due) == len({at_ms for at_ms, _, _ in world.due}) < 30


def test_however_many_end_at_once_no_call_costs_too_much(world: World) -> None:
    rows = [propose(world, "remove_member", "bank-e", by=name) for name in voters(world)[:5] for _ in range(8)]
    forget_schedule(world)
    world.advance(DAY_MS)
    change = {"kind": "remove_member", "member": "bank-e", "expires_at_ms": END_MS + DAY_MS}
    outcome = world.execute("bank-f", Governance.propose, change)
    assert outcome.code == "ok"
    assert {status(world, number) for number in rows} == {"expired"}
    # The dearest call reads all that are undecided and ends the most that one call ends.
    each = outcome.operations // len(rows)
    assert each * ENDED_MAX + OPEN_MAX * SCAN_ROW_COST * 4 < OPERATIONS_MAX // 2, outcome.operations


def test_an_end_that_is_tidied_up_in_parts_goes_on_in_the_next_second(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("contracts.governance.ENDED_MAX", 3)
    numbers = [propose(world, "remove_member", "bank-e") for _ in range(8)]
    world.advance(TIDY_MS)
    for _ in range(3):
        world.advance(1_000)
    assert {status(world, number) for number in numbers} == {"expired"}


def test_a_history_that_is_longer_than_an_answer_says_so_and_is_read_on(world: World) -> None:
    """It was cut at 500 lines, and nothing told that there were more."""
    number = propose(world, "remove_member", "bank-e")
    lines = HISTORY_MAX + PAGE_MAX + 20
    for place in range(2, lines):
        world.state.put(Governance.history.key((number, place)), Step(7, place, "bank-b", "no"))
    world.state.put(Governance.lines.key(number), lines)
    other = propose(world, "suspend_member", "bank-e")
    view = world.query(Governance.proposal, proposal=number)
    assert (len(view["history"]), view["history_lines"]) == (HISTORY_MAX, lines)
    rows = view["history"]
    for size in (PAGE_MAX, 20, 0):
        page = world.query(Governance.history_page, proposal=number, after=len(rows))
        assert len(page) == size
        rows += page
    assert [row["what"] for row in rows[:2]] == ["proposed", "yes"]
    assert [row["time_ms"] for row in rows[2:]] == list(range(2, lines))
    assert [row["what"] for row in world.query(Governance.history_page, proposal=other)] == ["proposed", "yes"]
    assert [row["number"] for row in world.query(Governance.pending, after=number)] == [other]


def test_who_has_no_vote_has_a_small_share_of_the_room(world: World) -> None:
    for number in range(2):
        propose(world, "rotate_tls_key", "watch", "watch", tls_key=key(70 + number))
    with reverts("too_many_open"):
        propose(world, "rotate_tls_key", "watch", "watch", tls_key=key(72))
    propose(world, "rotate_tls_key", "bank-b", "bank-b", tls_key=key(73))


@pytest.mark.parametrize("kind", ["rotate_tls_key", "rotate_voting_key"])
def test_nobody_shakes_off_its_removal_by_a_new_key(world: World, kind: str) -> None:
    removal = propose(world, "remove_member", "bank-b", "bank-a")
    vote(world, removal, "bank-c", "bank-d")
    name = kind.removeprefix("rotate_")
    rotation = decided(world, kind, "bank-b", "bank-b", **{name: key(60)})
    if name == "voting_key":
        ready(world, rotation, "bank-a", "bank-c", "bank-d")
    ready(world, rotation, "bank-b")
    assert status(world, rotation) == "effective"
    assert status(world, removal) == "open"
    vote(world, removal, "bank-e")
    ready(world, removal, "bank-a", "bank-c", "bank-d", "bank-e")
    assert status(world, removal) == "effective"
    row = world.query(Membership.member, member="bank-b")
    assert (row["standing"], row[name]) == ("removed", key(60))


def test_a_new_key_for_votes_goes_on_being_waited_for_beside_one_for_links(world: World) -> None:
    votes = decided(world, "rotate_voting_key", "bank-b", "bank-b", voting_key=key(60))
    links = decided(world, "rotate_tls_key", "bank-b", "bank-b", tls_key=key(160))
    ready(world, links, "bank-b")
    assert node_keys(world, "bank-b") == (key(60),)
    ready(world, votes, "bank-a", "bank-b", "bank-c", "bank-d")
    assert ended(world, votes) == ("effective", "")
    row = world.query(Membership.member, member="bank-b")
    assert (row["voting_key"], row["tls_key"]) == (key(60), key(160))


def test_who_comes_back_under_a_new_key_shows_with_that_one_that_it_runs(world: World) -> None:
    out = decided(world, "suspend_member", "bank-b")
    ready(world, out, "bank-a", "bank-c", "bank-d", "bank-e")
    back = decided(world, "resume_member", "bank-b")
    ready(world, back, "bank-b", "bank-a")
    rotation = decided(world, "rotate_voting_key", "bank-b", "bank-b", voting_key=key(60))
    ready(world, rotation, "bank-b")
    assert status(world, rotation) == "effective"
    ready(world, back, "bank-c", "bank-d", "bank-e")
    assert status(world, back) == "waiting"
    ready(world, back, "bank-b")
    assert status(world, back) == "effective"
    assert dict(Membership.read_validators(world.state))["bank-b"] == key(60)


def test_a_readiness_outlasts_the_words_of_all_others() -> None:
    """Each makes a block: with a short time they would say it again and again, and nothing else."""
    assert lasting_blocks(Rules(4, 20, ()), 4) == 20
    assert lasting_blocks(Rules(4, 20, ()), 100) == 400
    assert lasting_blocks(Rules(4, 1_000, ()), 100) == 1_000
