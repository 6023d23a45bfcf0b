"""README 2 and 3: votes, proposals, prepared, decided."""

from consensus.effects import (
    BlockStanding,
    Broadcast,
    BuildPayload,
    CheckPayload,
    Decide,
    PayloadChecked,
    Persist,
    PreparedRecord,
    VoteRecord,
)
from consensus.messages import PrePrepare, Vote, VoteKind

from .stage import Stage, digest_of, of, recorded, said

A, B = b"block a", b"block b"


def test_the_primary_builds_when_work_waits_and_proposes_what_was_built() -> None:
    """3.1"""
    stage = Stage(me=0)
    [build] = of(BuildPayload, stage.work())
    assert (build.height, build.view, build.parent) == (1, 0, stage.head.digest)
    [proposal] = said(PrePrepare, stage.built(A))
    assert proposal == stage.pre_prepare(A)


def test_the_primary_builds_nothing_while_nothing_waits() -> None:
    """3.1"""
    stage = Stage(me=0)
    assert not of(BuildPayload, stage.first_effects + stage.work(False) + stage.pass_time(1_000))


def test_one_block_is_built_at_a_time() -> None:
    """3.1"""
    stage = Stage(me=0)
    stage.work()
    assert not of(BuildPayload, stage.work() + stage.pass_time(1_000))


def test_a_backup_builds_nothing() -> None:
    """3.1"""
    assert not of(BuildPayload, Stage(me=1).work())


def test_a_late_answer_of_the_builder_is_dropped() -> None:
    """3.1, 4.5"""
    stage = Stage(me=0)
    stage.work()
    assert not stage.built(A, view=4)
    assert not stage.built(A, height=2)
    assert said(PrePrepare, stage.built(A))
    assert not stage.built(B)


def test_a_builder_that_found_nothing_is_not_asked_in_a_loop() -> None:
    """3.2"""
    stage = Stage(me=0)
    stage.work()
    assert not of(BuildPayload, stage.built(None))
    assert not of(BuildPayload, stage.pass_time(400))
    assert of(BuildPayload, stage.pass_time(200))


def test_work_announced_while_nothing_was_found_is_built() -> None:
    """3.2"""
    stage = Stage(me=0)
    stage.work()
    stage.work()
    assert of(BuildPayload, stage.built(None))


def test_an_empty_block_is_built_when_it_is_due() -> None:
    """3.1"""
    stage = Stage(me=0, empty_block_interval_ms=1_000)
    assert not of(BuildPayload, stage.pass_time(900))
    [build] = of(BuildPayload, stage.pass_time(200))
    assert build.allow_empty


def test_no_empty_block_is_due_when_the_interval_is_zero() -> None:
    """3.1"""
    stage = Stage(me=0, empty_block_interval_ms=0)
    assert not of(BuildPayload, stage.jump(10**9))


def test_a_backup_votes_only_for_what_it_executed() -> None:
    """3.3"""
    stage = Stage(me=1)
    effects = stage.receive(stage.pre_prepare(A))
    [check] = of(CheckPayload, effects)
    assert (check.payload, check.standing) == (A, BlockStanding.PROPOSED)
    assert (check.proposer, check.digest) == ("member-0", digest_of(A))
    assert not said(Vote, effects)
    assert said(Vote, stage.checked(effects)) == [stage.prepare(1, A)]


def test_an_invalid_first_proposal_accuses_its_primary_at_once() -> None:
    """3.6"""
    stage = Stage(me=1)
    effects = stage.checked(stage.receive(stage.pre_prepare(A)), valid=False)
    assert not said(Vote, effects)
    assert stage.replica.status().asked == 1


def test_what_is_not_available_is_asked_for_again_and_accuses_nobody_yet() -> None:
    """3.6"""
    stage = Stage(me=1)
    assert not stage.checked(stage.receive(stage.pre_prepare(A)), valid=None)
    again = stage.pass_time(600)
    [check] = of(CheckPayload, again)
    assert check.digest == digest_of(A)
    assert said(Vote, stage.checked(again))


def test_a_quorum_of_prepares_is_recorded_and_then_the_commit_is_voted() -> None:
    """3.4"""
    stage = Stage(me=1)
    stage.follow(A)
    effects = stage.receive(stage.prepare(2, A))
    assert said(Vote, effects) == [stage.commit(1, A)]
    assert [type(record) for record in recorded(effects)] == [PreparedRecord, VoteRecord]


def test_one_prepare_below_the_quorum_prepares_nothing() -> None:
    """3.4"""
    stage = Stage(n=7, me=1)
    stage.follow(A)
    assert not stage.receive(stage.prepare(2, A), stage.prepare(3, A))
    assert said(Vote, stage.receive(stage.prepare(4, A)))


def test_no_commit_is_voted_before_the_block_is_found_good() -> None:
    """3.4"""
    stage = Stage(me=1)
    effects = stage.receive(stage.pre_prepare(A), stage.prepare(2, A), stage.prepare(3, A))
    assert not said(Vote, effects)
    assert [vote.kind for vote in said(Vote, stage.checked(effects))] == [VoteKind.PREPARE, VoteKind.COMMIT]


def test_prepares_for_different_blocks_are_not_added_up() -> None:
    """2.1"""
    stage = Stage(me=1)
    stage.follow(A)
    assert not said(Vote, stage.receive(stage.prepare(2, B)))
    assert not said(Vote, stage.receive(stage.prepare(3, B)))


def test_prepares_of_another_view_are_not_added_up() -> None:
    """2.1"""
    stage = Stage(me=1)
    stage.follow(A)
    assert not said(Vote, stage.receive(stage.prepare(2, A, view=1), stage.prepare(3, A, view=1)))


def test_a_prepare_is_no_commit() -> None:
    """2.1"""
    stage = Stage(me=1)
    stage.follow(A)
    assert not of(Decide, stage.receive(stage.prepare(2, A), stage.prepare(3, A)))


def test_a_quorum_of_commits_decides() -> None:
    """3.5"""
    stage = Stage(me=1)
    stage.follow(A)
    effects = stage.receive(stage.prepare(2, A), stage.commit(0, A))
    assert not of(Decide, effects)
    [decide] = of(Decide, stage.receive(stage.commit(2, A)))
    assert (decide.height, decide.digest, decide.start_view) == (1, digest_of(A), 0)
    assert decide.certificate == stage.certificate(VoteKind.COMMIT, A, (0, 1, 2))


def test_the_decision_goes_out_once() -> None:
    """3.5"""
    stage = Stage(me=1)
    stage.follow(A)
    stage.receive(stage.prepare(2, A), stage.commit(0, A), stage.commit(2, A))
    assert not of(Decide, stage.receive(stage.commit(3, A)) + stage.pass_time(1_000))


def test_who_missed_the_proposal_fetches_the_decided_block_from_its_voters() -> None:
    """3.5"""
    stage = Stage(me=1)
    effects = stage.receive(stage.commit(0, A), stage.commit(2, A), stage.commit(3, A))
    [check] = of(CheckPayload, effects)
    assert (check.payload, check.standing) == (None, BlockStanding.DECIDED)
    assert check.holders == ("member-0", "member-2", "member-3")
    assert of(Decide, stage.checked(effects, payload=A))


def test_a_decided_block_is_not_refused_for_what_only_a_first_proposal_is() -> None:
    """3.5, 3.3"""
    stage = Stage(me=1)
    effects = stage.checked(stage.receive(stage.pre_prepare(A)), valid=False)
    effects = stage.receive(stage.commit(0, A), stage.commit(2, A), stage.commit(3, A))
    [check] = of(CheckPayload, effects)
    assert (check.payload, check.standing) == (A, BlockStanding.DECIDED)
    assert of(Decide, stage.checked(effects))


def test_a_block_that_other_code_made_is_executed_once_it_is_decided_and_nothing_is_signed() -> None:
    """3.5, 4.3"""
    stage = Stage(me=1)
    stage.checked(stage.receive(*(stage.prepare(index, A) for index in (0, 2, 3))), valid=False)
    stage.receive(stage.pre_prepare(A))
    effects = stage.receive(stage.commit(0, A), stage.commit(2, A), stage.commit(3, A))
    [check] = of(CheckPayload, effects)
    assert (check.payload, check.standing) == (A, BlockStanding.DECIDED)
    effects = stage.checked(effects)
    assert of(Decide, effects)
    assert not said(Vote, effects) + of(Persist, effects)


def test_a_prepared_block_that_was_refused_is_not_asked_for_again_and_again() -> None:
    """3.4: with other code, before the proposal came, its payload was fetched from the voters without end"""
    stage = Stage(me=1)
    effects = stage.receive(*(stage.prepare(index, A) for index in (0, 2, 3)))
    [check] = of(CheckPayload, effects)
    assert check.standing == BlockStanding.PREPARED
    effects = stage.checked(effects, valid=False) + stage.pass_time(400)
    effects += stage.receive(stage.pre_prepare(A), stage.commit(0, A))
    assert not of(CheckPayload, effects)


def test_a_verdict_on_a_first_proposal_does_not_count_against_the_decided_block() -> None:
    """3.5, 3.3"""
    stage = Stage(me=1)
    first = stage.receive(stage.pre_prepare(A))
    assert not stage.receive(stage.commit(0, A), stage.commit(2, A), stage.commit(3, A))
    effects = stage.checked(first, valid=False)
    [check] = of(CheckPayload, effects)
    assert check.standing == BlockStanding.DECIDED
    assert of(Decide, stage.checked(effects))


def test_a_forged_vote_is_not_counted() -> None:
    """2.2"""
    stage = Stage(me=1)
    stage.follow(A)
    genuine = stage.prepare(2, A)
    forged = Vote(genuine.kind, genuine.view, genuine.height, genuine.digest, 3, genuine.signature)
    assert not stage.receive(forged)
    assert "member-3" not in stage.replica.status().voted_prepare


def test_a_vote_is_verified_once_and_an_own_certificate_not_again() -> None:
    """2.2"""
    stage = Stage(me=1)
    start = stage.verified
    for _ in range(3):
        stage.receive(stage.pre_prepare(A), stage.prepare(2, A), stage.prepare(3, A))
    assert stage.verified - start == 3
    effects = stage.checked([CheckPayload(1, 0, digest_of(A), A, BlockStanding.PROPOSED, False, "member-0", ())])
    effects = stage.receive(stage.commit(0, A), stage.commit(2, A))
    assert stage.verified - start == 5
    stage.applied(effects)
    stage.receive(stage.pre_prepare(B, 0, stage.head.certificate))
    assert stage.verified - start == 6  # the vote; the parent says what our own certificate says


def test_a_proposal_is_taken_from_its_primary_itself_only() -> None:
    """2.5"""
    stage = Stage(me=1)
    swapped = PrePrepare(stage.prepare(0, A), b"another payload", None)
    assert not of(CheckPayload, stage.receive(swapped, peer=3))
    assert of(CheckPayload, stage.receive(stage.pre_prepare(A)))


def test_a_proposal_of_somebody_else_is_ignored() -> None:
    """3.1"""
    stage = Stage(me=1)
    assert not stage.receive(PrePrepare(stage.prepare(2, A), A, None))


def test_the_second_proposal_of_a_view_is_not_looked_at() -> None:
    """2.3"""
    stage = Stage(me=1)
    stage.receive(stage.pre_prepare(A))
    assert not of(CheckPayload, stage.receive(stage.pre_prepare(B)))


def test_one_member_alone_decides_by_itself() -> None:
    """1.1"""
    stage = Stage(n=1, me=0)
    stage.work()
    effects = stage.built(A)
    [decide] = of(Decide, effects)
    assert decide.digest == digest_of(A)
    assert of(BuildPayload, stage.applied(effects))


def test_two_members_need_both() -> None:
    """1.1"""
    stage = Stage(n=2, me=0)
    stage.work()
    assert not said(Vote, stage.built(A))
    assert said(Vote, stage.receive(stage.prepare(1, A))) == [stage.commit(0, A)]
    assert of(Decide, stage.receive(stage.commit(1, A)))


def test_an_observer_decides_and_signs_nothing() -> None:
    """3.5"""
    stage = Stage(me=None)
    effects = stage.follow(A)
    effects += stage.receive(*(stage.prepare(index, A) for index in range(4)))
    effects += stage.receive(*(stage.commit(index, A) for index in range(4)))
    effects += stage.pass_time(5_000)
    assert of(Decide, effects)
    assert not of(Broadcast, effects)
    assert not of(Persist, effects)


def test_an_answer_of_the_executor_that_nobody_waits_for_changes_nothing() -> None:
    """4.5"""
    stage = Stage(me=1)
    assert not stage.give(PayloadChecked(1, 0, digest_of(A), True, A, ""))
    stage.receive(stage.prepare(0, A), stage.prepare(2, A))
    assert not stage.give(PayloadChecked(2, 0, digest_of(A), True, A, ""))
