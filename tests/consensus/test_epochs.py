"""README 16: what was said before a recovery says nothing above it."""

import pytest

from consensus.amnesia import HEIGHT_MAX
from consensus.effects import (
    Accuse,
    CatchUp,
    CheckPayload,
    Decide,
    Head,
    Memory,
    PersistAbstention,
    PreparedRecord,
    Record,
    ViewChangeRecord,
    VoteRecord,
)
from consensus.epochs import EPOCH_VIEWS, next_epoch
from consensus.messages import Certificate, Decided, LatestVote, ViewChange, Vote, VoteKind

from .stage import Stage, digest_of, of, remembering, said

A, B, OLD = b"block a", b"block b", b"block of the other history"
RECOVERY = b"recovery block"
HEIGHT = 5
"""The recovery block's."""


def recovered(*records: Record, view: int = EPOCH_VIEWS) -> Stage:
    """Member 1 of four, which votes again; its head was decided in `view`."""
    stage = Stage(me=1)
    head = Head(HEIGHT, digest_of(RECOVERY), _proof(stage, RECOVERY, view, HEIGHT), view, stage.members)
    return Stage(me=1, head=head, memory=remembering(*records))


def confirm(stage: Stage) -> None:
    """Enough others have shown after the start that they have no vote of ours."""
    for peer in (0, 2):
        stage.receive(LatestVote(None), peer=peer)


def _proof(stage: Stage, payload: bytes, view: int, height: int) -> Certificate:
    return stage.certificate(VoteKind.COMMIT, payload, (0, 2, 3), view, height)


def test_the_first_view_of_the_next_epoch_is_above_all_of_this_one() -> None:
    """16"""
    assert [next_epoch(view) for view in (0, 7, EPOCH_VIEWS - 1, EPOCH_VIEWS, 2 * EPOCH_VIEWS - 1)] == [
        EPOCH_VIEWS,
        EPOCH_VIEWS,
        EPOCH_VIEWS,
        2 * EPOCH_VIEWS,
        2 * EPOCH_VIEWS,
    ]


@pytest.mark.parametrize("height", [HEIGHT + 1, HEIGHT + 9])
def test_an_old_vote_that_a_returning_member_shows_silences_no_recovered_one(height: int) -> None:
    """16.3: before its first vote since the start, and after it"""
    stage = recovered()
    old = stage.commit(1, OLD, view=7, height=height)
    effects = stage.receive(LatestVote(old), peer=2) + stage.receive(LatestVote(old), peer=3)
    effects += stage.follow(A, EPOCH_VIEWS, stage.head.certificate)
    assert said(Vote, effects) == [stage.prepare(1, A, EPOCH_VIEWS)]
    effects += stage.receive(LatestVote(old), peer=0)
    assert not of(PersistAbstention, effects)
    assert stage.replica.status().abstaining == ""


@pytest.mark.parametrize("view", [EPOCH_VIEWS, EPOCH_VIEWS + 1, 3 * EPOCH_VIEWS])
def test_a_vote_of_the_new_epoch_is_news_as_ever(view: int) -> None:
    """9.4, 16.3"""
    stage = recovered()
    effects = stage.receive(LatestVote(stage.prepare(1, A, view)), peer=2)
    assert of(PersistAbstention, effects) == [PersistAbstention(HEIGHT + 3)]
    voted = recovered()
    confirm(voted)
    voted.follow(A, EPOCH_VIEWS, voted.head.certificate)
    effects = voted.receive(LatestVote(voted.prepare(1, B, view, HEIGHT + 2)), peer=2)
    assert of(PersistAbstention, effects) == [PersistAbstention(HEIGHT_MAX)]


def test_below_the_recovery_every_vote_is_news() -> None:
    """9.4, 16.3: who has not applied it stands in the epoch in which it may have voted"""
    for view in (0, 7, EPOCH_VIEWS):
        stage = recovered(view=0)
        effects = stage.receive(LatestVote(stage.prepare(1, OLD, view)), peer=2)
        assert of(PersistAbstention, effects) == [PersistAbstention(HEIGHT + 3)]


def test_of_two_recoveries_the_votes_between_them_are_old_above_the_second() -> None:
    """16.3"""
    stage = recovered(view=2 * EPOCH_VIEWS)
    old = stage.commit(1, OLD, view=EPOCH_VIEWS + 3)
    assert not of(PersistAbstention, stage.receive(LatestVote(old), peer=2))


def test_the_certificate_of_an_older_epoch_decides_nothing() -> None:
    """16.1: the list may have become the former one again, and what that decided would close our height for ever"""
    stage = recovered()
    for height in (HEIGHT + 1, HEIGHT + 4):
        effects = stage.receive(Decided(_proof(stage, OLD, 7, height)), peer=2) + stage.pass_time(5_000)
        assert not of(CheckPayload, effects)
        assert not of(Decide, effects)
        assert not of(CatchUp, effects)
    assert stage.replica.status().catch_up_target is None
    assert said(Vote, stage.follow(A, EPOCH_VIEWS, stage.head.certificate))


def test_our_vote_in_a_certificate_of_an_older_epoch_is_no_news() -> None:
    """16.1, 16.3"""
    stage = recovered()
    proof = stage.certificate(VoteKind.COMMIT, OLD, (0, 1, 2), 7)
    assert not of(PersistAbstention, stage.receive(Decided(proof), peer=2))


def test_nobody_has_to_propose_again_what_was_prepared_in_an_older_epoch() -> None:
    """16.2: nobody could, and the view of every quorum with that one liar would be lost"""
    stage = recovered()
    view = EPOCH_VIEWS + 2
    lie = stage.ask(3, view, stage.prepared(OLD, 7))
    honest = [stage.ask(index, view) for index in (0, 2)]
    stage.receive(stage.new_view(view, honest[0], honest[1], lie))
    assert stage.replica.status().view == EPOCH_VIEWS
    assert not of(Accuse, stage.receive(lie))
    assert not stage.replica.status().askers
    own = stage.prepared(A, EPOCH_VIEWS)
    stage.receive(stage.new_view(view, honest[0], honest[1], stage.ask(3, view, own)))
    assert stage.replica.status().view == view


def test_records_of_an_older_epoch_are_those_of_another_history() -> None:
    """16.3: a ledger fetched again beside the records of a member that the others had lost"""
    before = recovered()
    prepared = before.prepared(OLD, 7)
    asked = before.ask(1, 9, prepared)
    stage = recovered(
        VoteRecord(before.prepare(1, OLD, 7), False, None),
        PreparedRecord(prepared),
        ViewChangeRecord(asked),
        VoteRecord(before.prepare(1, OLD, 7, HEIGHT + 8), False, None),
    )
    assert not of(PersistAbstention, stage.first_effects)
    assert not said(Vote, stage.first_effects) + said(ViewChange, stage.first_effects)
    confirm(stage)
    effects = stage.receive(*(stage.ask(index, EPOCH_VIEWS + 1) for index in (0, 2)))
    assert [message.prepared for message in said(ViewChange, effects)] == [None]


def test_records_of_this_epoch_are_remembered_below_its_recovery_too() -> None:
    """9.4, 16.3: a chain put back to before the recovery is older than the votes"""
    before = recovered()
    newer = VoteRecord(before.prepare(1, A, EPOCH_VIEWS, HEIGHT + 8), False, None)
    for view in (0, EPOCH_VIEWS):
        stage = recovered(newer, view=view)
        assert of(PersistAbstention, stage.first_effects) == [PersistAbstention(HEIGHT + 10)]


def test_a_promise_to_abstain_holds_in_every_epoch() -> None:
    """9.2, 16: it says up to which height, and nothing of views"""
    made = recovered()
    stage = Stage(me=1, head=made.head, memory=Memory(False, True, HEIGHT + 1, ()))
    assert not said(Vote, stage.follow(A, EPOCH_VIEWS, stage.head.certificate) + stage.pass_time(5_000))


def test_a_lost_memory_is_lost_above_a_recovery_too() -> None:
    """9.1, 16: or a member that starts twice would vote for two blocks in one slot"""
    made = recovered()
    for block in (A, B):
        stage = Stage(me=1, head=made.head, memory=Memory(False, False, 0, ()))
        effects = stage.pass_time(5_000) + stage.follow(block, EPOCH_VIEWS, made.head.certificate)
        assert not said(Vote, effects + stage.pass_time(5_000))
