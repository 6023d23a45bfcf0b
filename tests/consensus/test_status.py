"""`status()` answers why it does not move and who is missing."""

import pytest

from consensus.effects import CatchUp, Effect, Head, Synced
from consensus.members import Members
from consensus.messages import Decided, VoteKind
from consensus.status import Phase

from .stage import TIME_MS, Stage, of

A = b"block a"


def test_nothing_waits() -> None:
    status = Stage(me=1).replica.status()
    assert (status.phase, status.missing, status.primary, status.next_event) == (
        Phase.IDLE,
        (),
        "member-0",
        "an empty block",
    )


def test_the_primary_has_not_proposed() -> None:
    stage = Stage(me=1)
    stage.work()
    stage.pass_time(500)
    status = stage.replica.status()
    assert (status.phase, status.missing) == (Phase.PROPOSAL, ("member-0",))
    assert status.next_event == "ask for view 1 with primary member-1"
    assert status.next_event_in_ms == 1_600


def test_the_builder_is_at_work() -> None:
    stage = Stage(me=0)
    stage.work()
    assert stage.replica.status().phase == Phase.BUILD


def test_the_executor_is_at_work() -> None:
    stage = Stage(me=1)
    stage.receive(stage.pre_prepare(A))
    assert stage.replica.status().phase == Phase.CHECK


def test_prepares_are_missing_by_name() -> None:
    stage = Stage(me=1)
    stage.follow(A)
    status = stage.replica.status()
    assert (status.phase, status.voted_prepare, status.missing) == (
        Phase.PREPARE,
        ("member-0", "member-1"),
        ("member-2", "member-3"),
    )


def test_commits_are_missing_by_name() -> None:
    stage = Stage(me=1)
    stage.follow(A)
    stage.receive(stage.prepare(2, A), stage.commit(2, A))
    status = stage.replica.status()
    assert (status.phase, status.voted_commit, status.missing, status.prepared_view) == (
        Phase.COMMIT,
        ("member-1", "member-2"),
        ("member-0", "member-3"),
        0,
    )


def test_a_decided_block_is_being_applied() -> None:
    stage = Stage(me=1)
    stage.follow(A)
    stage.receive(stage.prepare(2, A), *(stage.commit(index, A) for index in (0, 2)))
    assert stage.replica.status().phase == Phase.APPLY


def test_askers_are_missing_by_name_and_then_the_new_primary() -> None:
    stage = Stage(me=0)
    stage.work()
    stage.built(A)
    stage.receive(stage.ask(2, 1))
    stage.pass_time(2_500)
    status = stage.replica.status()
    assert (status.phase, status.asked, status.missing) == (Phase.VIEW_CHANGE, 1, ("member-1", "member-3"))
    assert status.askers == (("member-0", 1), ("member-2", 1))
    stage.receive(stage.ask(3, 1))
    assert stage.replica.status().missing == ("member-1",)


def test_others_are_ahead() -> None:
    stage = Stage(me=1)
    stage.receive(stage.status(2, height=9), stage.status(3, height=9))
    status = stage.replica.status()
    assert (status.phase, status.catch_up_target) == (Phase.CATCH_UP, 8)


@pytest.mark.parametrize("n", [4, 5, 6, 7])
def test_a_liar_that_speaks_about_far_heights_puts_nobody_behind(n: int) -> None:
    """7.7: f of them, in every kind of message, and the question that they cause is no reason to be not ready."""
    stage = Stage(n, me=1)
    for liar in range(2, 2 + stage.members.f):
        stage.receive(stage.status(liar, height=2**62), stage.prepare(liar, A, height=2**61))
        stage.receive(stage.ask(liar, 1, height=2**60), stage.ask(liar, 1, height=2))
        stage.receive(Decided(stage.certificate(VoteKind.COMMIT, A, (liar,), height=2**60)), peer=liar)
    effects: list[Effect] = []
    for _ in range(100):
        effects += stage.pass_time(100)
        status = stage.replica.status()
        assert (status.phase, status.catch_up_target) == (Phase.IDLE, None)
    assert 1 <= len(of(CatchUp, effects)) < 8
    assert {effect.target for effect in of(CatchUp, effects)} == {1}


def test_members_that_left_the_list_are_shown_no_more() -> None:
    stage = Stage(me=1)
    stage.receive(stage.status(2), stage.status(3))
    assert [peer.member for peer in stage.replica.status().peers] == ["member-2", "member-3"]
    members = Members(stage.members.validators[:3])
    stage.give(Synced(Head(1, b"h" * 32, None, 0, members)))
    assert [peer.member for peer in stage.replica.status().peers] == ["member-2"]


def test_clock_offsets_and_silence_of_peers_are_shown() -> None:
    stage = Stage(me=1)
    stage.receive(stage.status(2, TIME_MS + 1_234))
    stage.pass_time(300)
    [peer] = stage.replica.status().peers
    assert (peer.member, peer.clock_offset_ms, peer.heard_ms_ago) == ("member-2", 1_234, 300)


def test_an_observer_says_why_it_does_not_vote() -> None:
    status = Stage(me=None).replica.status()
    assert (status.member, status.abstaining) == (None, "an observer has no vote")


def test_a_snapshot_does_not_change_any_more() -> None:
    stage = Stage(me=1)
    status = stage.replica.status()
    with pytest.raises(AttributeError):
        status.height = 5  # type: ignore[misc]
    stage.decide(A)
    assert status.height == 1
    assert stage.head.certificate is not None
    assert stage.head.certificate.kind == VoteKind.COMMIT
