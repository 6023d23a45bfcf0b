"""README 8: durable before sent, and the same again after a restart."""

from consensus.effects import (
    BlockStanding,
    Broadcast,
    BuildPayload,
    CheckPayload,
    Connected,
    Decide,
    Effect,
    Head,
    Memory,
    NewViewRecord,
    Persist,
    PreparedRecord,
    Record,
    ViewChangeRecord,
    VoteRecord,
)
from consensus.messages import LatestVote, NewView, PrePrepare, ViewChange, Vote, VoteKind

from .stage import Stage, of, recorded, remembering, said, sent

A, B = b"block a", b"block b"


def confirmed(stage: Stage) -> list[Effect]:
    """The others show that they hold nothing unknown."""
    return stage.receive(LatestVote(None), peer=2) + stage.receive(LatestVote(None), peer=3)


def assert_recorded_before_sent(effects: list[Effect]) -> None:
    """Every signed statement of ours is persisted before it is broadcast."""
    durable: list[object] = []
    for effect in effects:
        if isinstance(effect, Persist):
            record = effect.record
            durable.append(record.vote if isinstance(record, VoteRecord) else getattr(record, "message", None))
        elif isinstance(effect, Broadcast):
            message = effect.message.vote if isinstance(effect.message, PrePrepare) else effect.message
            if isinstance(message, Vote | ViewChange | NewView):
                assert message in durable


def test_everything_signed_is_recorded_before_it_is_sent() -> None:
    """8.1"""
    backup = Stage(me=1)
    effects = backup.follow(A) + backup.receive(backup.prepare(2, A)) + backup.pass_time(2_300)
    effects = [effect for effect in effects if not isinstance(effect, CheckPayload)]
    assert_recorded_before_sent(effects + backup.receive(backup.ask(2, 1), backup.ask(3, 1)))
    primary = Stage(me=0)
    primary.work()
    assert_recorded_before_sent(primary.built(A) + primary.receive(primary.prepare(1, A), primary.prepare(2, A)))


def test_a_proposal_is_recorded_with_its_right() -> None:
    """8.1"""
    stage = Stage(me=0)
    stage.work()
    [record] = recorded(stage.built(A))
    assert record == VoteRecord(stage.prepare(0, A), True, None)


def test_the_same_votes_are_sent_again_after_a_restart() -> None:
    """8.2"""
    before = Stage(me=1)
    prepare, commit = before.prepare(1, A), before.commit(1, A)
    memory = remembering(
        VoteRecord(prepare, False, None), PreparedRecord(before.prepared(A)), VoteRecord(commit, False, None)
    )
    stage = Stage(me=1, memory=memory)
    assert said(Vote, stage.first_effects) == [prepare, commit]


def test_the_own_proposal_is_sent_again_once_its_block_is_read_back() -> None:
    """8.2"""
    before = Stage(me=0)
    stage = Stage(me=0, memory=remembering(VoteRecord(before.prepare(0, A), True, None)))
    assert not said(PrePrepare, stage.first_effects)
    [check] = of(CheckPayload, stage.first_effects)
    assert (check.payload, check.standing) == (None, BlockStanding.VOTED)
    assert said(PrePrepare, stage.checked(stage.first_effects, payload=A)) == [before.pre_prepare(A)]


def test_a_view_change_and_a_new_view_are_sent_again_after_a_restart() -> None:
    """8.2"""
    before = Stage(me=1)
    asked = before.ask(1, 2)
    assert said(ViewChange, Stage(me=1, memory=remembering(ViewChangeRecord(asked))).first_effects) == [asked]
    opened = before.open(1)
    assert said(NewView, Stage(me=1, memory=remembering(NewViewRecord(opened))).first_effects) == [opened]


def test_no_second_vote_in_a_slot_after_a_restart() -> None:
    """8.3"""
    before = Stage(me=1)
    stage = Stage(me=1, memory=remembering(VoteRecord(before.prepare(1, A), False, None)))
    confirmed(stage)
    assert not said(Vote, stage.follow(B))


def test_no_second_proposal_in_a_view_after_a_restart() -> None:
    """8.3"""
    before = Stage(me=0)
    stage = Stage(me=0, memory=remembering(VoteRecord(before.prepare(0, A), True, None)))
    confirmed(stage)
    assert not of(BuildPayload, stage.work())


def test_no_vote_below_the_view_asked_for_before_the_restart() -> None:
    """8.3"""
    before = Stage(me=1)
    stage = Stage(me=1, memory=remembering(ViewChangeRecord(before.ask(1, 2))))
    confirmed(stage)
    assert not said(Vote, stage.follow(A))


def test_no_vote_below_the_view_voted_in_before_the_restart() -> None:
    """8.3"""
    before = Stage(me=0)
    records: list[Record] = [NewViewRecord(before.open(2)), VoteRecord(before.prepare(0, A, 2), False, None)]
    stage = Stage(me=0, memory=remembering(*records))
    confirmed(stage)
    stage.receive(stage.open(1))
    assert stage.replica.status().view == 2
    assert not said(Vote, stage.follow(B, view=1))


def test_the_prepared_block_is_shown_in_a_view_change_after_a_restart() -> None:
    """8.3"""
    before = Stage(me=1)
    stage = Stage(me=1, memory=remembering(PreparedRecord(before.prepared(A))))
    confirmed(stage)
    [asked] = said(ViewChange, stage.receive(stage.ask(2, 3), stage.ask(3, 3)))
    assert asked.prepared == before.prepared(A)


def test_the_block_that_a_new_view_demands_is_demanded_after_a_restart() -> None:
    """8.3"""
    before = Stage(me=0)
    opened = before.open(1, before.prepared(A))
    stage = Stage(me=0, memory=remembering(NewViewRecord(opened)))
    confirmed(stage)
    assert stage.replica.status().view == 1
    assert not of(CheckPayload, stage.receive(stage.pre_prepare(B, 1)))


def test_what_was_prepared_is_committed_after_a_restart_without_the_prepares() -> None:
    """8.4"""
    before = Stage(me=1)
    memory = remembering(VoteRecord(before.prepare(1, A), False, None), PreparedRecord(before.prepared(A)))
    stage = Stage(me=1, memory=memory)
    effects = confirmed(stage) + stage.checked(stage.first_effects, payload=A)
    assert said(Vote, effects) == [stage.commit(1, A)]


def test_a_block_voted_for_before_the_restart_is_decided_after_it() -> None:
    """8.4"""
    before = Stage(me=1)
    stage = Stage(me=1, memory=remembering(VoteRecord(before.prepare(1, A), False, None)))
    stage.checked(stage.first_effects, payload=A)
    assert of(Decide, stage.receive(stage.commit(0, A), stage.commit(2, A), stage.commit(3, A)))


def test_a_proposal_voted_for_before_the_restart_is_not_judged_by_the_clock_again() -> None:
    """3.3, 8.2: however long everybody was down, the primary's proposal that is sent again costs no view."""
    before = Stage(me=1)
    stage = Stage(me=1, memory=remembering(VoteRecord(before.prepare(1, A), False, None)))
    effects = stage.first_effects + stage.checked(stage.first_effects, payload=A) + confirmed(stage)
    effects += stage.receive(stage.pre_prepare(A))
    assert [check.standing for check in of(CheckPayload, effects)] == [BlockStanding.VOTED]
    assert not said(ViewChange, effects)


def test_what_was_voted_for_under_other_code_is_judged_again_once_a_quorum_has_prepared_it() -> None:
    """3.3, 3.4: everybody came back with another release, and the height was held up for good."""
    before = Stage(me=1)
    stage = Stage(me=1, memory=remembering(VoteRecord(before.prepare(1, A), False, None)))
    assert [check.standing for check in of(CheckPayload, stage.first_effects)] == [BlockStanding.VOTED]
    stage.checked(stage.first_effects, valid=False)
    confirmed(stage)
    effects = stage.receive(stage.prepare(0, A), stage.prepare(2, A))
    assert [check.standing for check in of(CheckPayload, effects)] == [BlockStanding.PREPARED]
    assert said(Vote, stage.checked(effects, payload=A)) == [before.commit(1, A)]


def test_what_a_quorum_prepares_while_it_is_refused_accuses_nobody_and_is_judged_again() -> None:
    """3.4, 3.6: back with another release, it asked for another view though its quorum could decide in this one."""
    before = Stage(me=1)
    stage = Stage(me=1, memory=remembering(VoteRecord(before.prepare(1, A), False, None)))
    confirmed(stage)
    stage.receive(stage.pre_prepare(A), stage.prepare(2, A))
    effects = stage.checked(stage.first_effects, valid=False)
    assert [check.standing for check in of(CheckPayload, effects)] == [BlockStanding.PREPARED]
    effects += stage.checked(effects, payload=A)
    assert not said(ViewChange, effects)
    assert said(Vote, effects) == [before.commit(1, A)]
    assert stage.replica.status().refusal == ""


def test_a_proposal_that_a_quorum_has_prepared_is_not_judged_by_the_clock() -> None:
    """3.3: the block was not to be had at the start, so the proposal is what brings it."""
    before = Stage(me=1)
    stage = Stage(me=1, memory=remembering(PreparedRecord(before.prepared(A, members=(0, 2, 3)))))
    stage.checked(stage.first_effects, valid=None)
    confirmed(stage)
    effects = stage.receive(stage.pre_prepare(A)) + stage.pass_time(600)
    assert [check.standing for check in of(CheckPayload, effects)] == [BlockStanding.PREPARED]


def test_records_of_decided_heights_are_ignored() -> None:
    """8.3"""
    before = Stage(me=1)
    certificate = before.certificate(VoteKind.COMMIT, A, (0, 1, 2))
    head = Head(1, certificate.digest, certificate, 0, before.members)
    stage = Stage(me=1, head=head, memory=remembering(VoteRecord(before.prepare(1, A), False, None)))
    assert not said(Vote, stage.first_effects)
    confirmed(stage)
    assert said(Vote, stage.follow(B, 0, certificate)) == [stage.prepare(1, B)]


def test_a_restarted_member_signs_nothing_new_until_the_others_have_spoken() -> None:
    """9.3"""
    stage = Stage(me=1, memory=Memory(False, True, 0, ()))
    assert not said(Vote, stage.follow(A))
    assert not said(Vote, stage.receive(LatestVote(None), peer=2))
    assert said(Vote, stage.receive(LatestVote(None), peer=3)) == [stage.prepare(1, A)]


def test_a_restarted_member_waits_no_longer_than_a_base_time_out() -> None:
    """9.3"""
    stage = Stage(me=1, memory=Memory(False, True, 0, ()))
    stage.follow(A)
    assert not said(Vote, stage.pass_time(1_900))
    assert said(Vote, stage.pass_time(200)) == [stage.prepare(1, A)]


def test_a_start_view_is_asked_for_when_the_wait_ends() -> None:
    """4.2, 9.3"""
    before = Stage(me=1)
    certificate = before.certificate(VoteKind.COMMIT, A, (0, 1, 2))
    head = Head(1, certificate.digest, certificate, 2, before.members)
    stage = Stage(me=1, head=head, memory=Memory(False, True, 0, ()))
    assert not said(ViewChange, stage.first_effects)
    assert [asked.view for asked in said(ViewChange, confirmed(stage))] == [2]
    stage = Stage(me=1, head=head, memory=Memory(False, True, 0, ()))
    assert 2 in [asked.view for asked in said(ViewChange, stage.pass_time(2_100))]


def test_a_second_new_view_of_one_view_is_never_signed() -> None:
    """2.4, 5.2, 8.3"""
    before = Stage(me=1)
    stage = Stage(me=1, memory=remembering(NewViewRecord(before.open(1))))
    confirmed(stage)
    asks = tuple(stage.ask(index, 1) for index in (0, 2, 3))
    assert stage.replica._work.pledge.open(1, asks) is None
    assert stage.replica._work.pledge.open(5, asks) is not None


def test_a_lone_validator_restarts_at_once() -> None:
    """9.3, 1.1"""
    before = Stage(n=1, me=0)
    stage = Stage(n=1, me=0, memory=remembering(VoteRecord(before.prepare(0, A), True, None)))
    effects = stage.checked(stage.first_effects, payload=A)
    assert of(Decide, effects)


def test_each_peer_is_shown_its_own_newest_vote_on_connect() -> None:
    """9.3"""
    stage = Stage(me=1)
    stage.receive(stage.pre_prepare(A), stage.prepare(2, A))
    effects = stage.give(Connected("member-2"), Connected("member-3"))
    shown = [message for peer in ("member-2", "member-3") for message in sent(LatestVote, effects, peer)]
    assert shown == [LatestVote(stage.prepare(2, A)), LatestVote(None)]


def test_the_head_certificate_is_remembered_as_its_signers_votes() -> None:
    """9.3"""
    before = Stage(me=1)
    certificate = before.certificate(VoteKind.COMMIT, A, (0, 1, 2))
    stage = Stage(me=1, head=Head(1, certificate.digest, certificate, 0, before.members))
    effects = stage.give(Connected("member-2"))
    shown = [message for peer in ("member-2", "member-3") for message in sent(LatestVote, effects, peer)]
    assert shown == [LatestVote(before.commit(2, A))]
