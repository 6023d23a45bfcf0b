"""README 5: view changes, new views, and what may be proposed in them."""

from consensus.effects import (
    BlockStanding,
    Broadcast,
    BuildPayload,
    CheckPayload,
    Head,
    NewViewRecord,
    Persist,
    ViewChangeRecord,
)
from consensus.messages import Decided, NewView, PrePrepare, ViewChange, Vote, VoteKind
from consensus.view_change import highest_prepared, jump_target

from .stage import Stage, digest_of, of, recorded, said, sent

A, B = b"block a", b"block b"


def impatient(stage: Stage) -> ViewChange:
    """The view change of a member whose patience has ended."""
    stage.work()
    [asked] = said(ViewChange, stage.pass_time(2_200))
    return asked


def test_a_view_change_carries_the_highest_prepared_certificate() -> None:
    """5.1"""
    stage = Stage(me=1)
    stage.follow(A)
    stage.receive(stage.prepare(2, A))
    asked = impatient(stage)
    assert (asked.height, asked.view, asked.decided) == (1, 1, None)
    assert asked.prepared == stage.prepared(A)


def test_a_view_change_carries_the_certificate_of_the_height_before() -> None:
    """5.1"""
    stage = Stage(me=1)
    stage.decide(A)
    assert impatient(stage).decided == stage.head.certificate


def test_a_view_change_is_recorded_before_it_is_sent() -> None:
    """8.1, 5.1"""
    stage = Stage(me=1)
    stage.work()
    effects = stage.pass_time(2_200)
    [asked] = said(ViewChange, effects)
    assert effects.index(Persist(ViewChangeRecord(asked))) < effects.index(Broadcast(asked))


def test_the_primary_opens_a_view_when_a_quorum_asks_for_exactly_it() -> None:
    """5.2"""
    stage = Stage(me=1)
    own = impatient(stage)
    assert not said(NewView, stage.receive(stage.ask(2, 1)))
    effects = stage.receive(stage.ask(3, 1))
    [opened] = said(NewView, effects)
    assert opened == stage.new_view(1, own, stage.ask(2, 1), stage.ask(3, 1))
    assert recorded(effects) == [NewViewRecord(opened)]


def test_asks_for_a_higher_view_do_not_open_a_lower_one() -> None:
    """5.2"""
    stage = Stage(n=7, me=1)
    impatient(stage)
    stage.receive(*(stage.ask(index, 1) for index in (2, 3, 4)))
    assert not said(NewView, stage.receive(stage.ask(5, 2), stage.ask(6, 2)))


def test_without_anything_prepared_the_new_primary_builds_afresh() -> None:
    """5.3"""
    stage = Stage(me=1)
    impatient(stage)
    [build] = of(BuildPayload, stage.receive(stage.ask(2, 1), stage.ask(3, 1)))
    assert (build.view, build.halvings) == (1, 1)
    [proposal] = said(PrePrepare, stage.built(A, view=1))
    assert proposal.parent is None


def test_an_idle_new_primary_proposes_later_in_its_view() -> None:
    """5.3"""
    stage = Stage(me=1)
    effects = stage.receive(stage.ask(2, 1), stage.ask(3, 1), stage.ask(0, 1))
    assert said(NewView, effects)
    assert not of(BuildPayload, effects)
    assert of(BuildPayload, stage.work())
    assert said(PrePrepare, stage.built(A, view=1))


def test_the_new_primary_proposes_the_prepared_block_again_with_its_digest() -> None:
    """5.3, 5.7"""
    stage = Stage(me=1)
    stage.follow(A)
    stage.receive(stage.prepare(2, A))
    stage.work()
    effects = stage.receive(stage.ask(2, 1), stage.ask(3, 1))
    [proposal] = said(PrePrepare, effects)
    assert (proposal.payload, proposal.vote.digest, proposal.vote.view) == (A, digest_of(A), 1)
    assert not of(BuildPayload, effects)


def test_the_new_primary_fetches_a_prepared_block_that_it_lacks() -> None:
    """5.7"""
    stage = Stage(me=1)
    prepared = stage.prepared(A, members=(0, 2, 3))
    effects = stage.receive(stage.ask(2, 1, prepared), stage.ask(3, 1))
    [check] = of(CheckPayload, effects)
    assert (check.payload, check.standing) == (None, BlockStanding.PREPARED)
    assert check.holders == ("member-0", "member-2", "member-3")
    assert not stage.built(B, view=1)
    [proposal] = said(PrePrepare, stage.checked(effects, payload=A))
    assert proposal.payload == A


def test_a_prepared_block_that_is_nowhere_yet_is_asked_for_again() -> None:
    """5.7, 3.6"""
    stage = Stage(me=1)
    prepared = stage.prepared(A, members=(0, 2, 3))
    effects = stage.receive(stage.ask(2, 1, prepared), stage.ask(3, 1))
    assert not stage.checked(effects, valid=None)
    again = stage.pass_time(600)
    assert said(PrePrepare, stage.checked(again, payload=A))


def test_the_highest_prepared_view_wins() -> None:
    """5.3"""
    stage = Stage(n=7, me=3)
    low = stage.prepared(A, 0, (0, 1, 2, 4, 5))
    high = stage.prepared(B, 1, (0, 1, 2, 4, 5))
    asks = [stage.ask(0, 2, low), stage.ask(1, 2, high), stage.ask(4, 2, None), stage.ask(5, 2, low)]
    assert highest_prepared(asks) == high
    assert highest_prepared([stage.ask(4, 2)]) is None


def test_a_backup_refuses_another_block_where_one_must_be_proposed_again() -> None:
    """5.3"""
    stage = Stage(me=0)
    stage.receive(stage.open(1, stage.prepared(A)))
    effects = stage.receive(stage.pre_prepare(B, 1))
    assert not of(CheckPayload, effects)
    assert [asked.view for asked in said(ViewChange, effects)] == [2]


def test_a_backup_votes_again_for_the_prepared_block_without_judging_its_age() -> None:
    """3.3, 5.3"""
    stage = Stage(me=0)
    stage.receive(stage.open(1, stage.prepared(A)))
    effects = stage.receive(stage.pre_prepare(A, 1))
    [check] = of(CheckPayload, effects)
    assert check.standing == BlockStanding.PREPARED
    assert check.allow_quarantine
    assert said(Vote, stage.checked(effects)) == [stage.prepare(0, A, 1)]


def test_a_block_that_was_found_good_is_not_executed_again() -> None:
    """5.3"""
    stage = Stage(me=2)
    stage.follow(A)
    stage.receive(stage.prepare(1, A))
    asks = [stage.ask(0, 1), stage.ask(1, 1, stage.prepared(A)), stage.ask(3, 1)]
    stage.receive(stage.new_view(1, *asks))
    effects = stage.receive(stage.pre_prepare(A, 1))
    assert not of(CheckPayload, effects)
    assert said(Vote, effects) == [stage.prepare(2, A, 1)]


def test_a_prepared_certificate_outside_the_quorum_gives_no_right_to_refuse() -> None:
    """5.4"""
    stage = Stage(me=0)
    stage.work()
    stage.built(A)
    stage.receive(stage.prepare(1, A), stage.prepare(2, A))
    assert stage.replica.status().prepared_view == 0
    stage.receive(stage.open(1))
    assert said(Vote, stage.follow(B, view=1)) == [stage.prepare(0, B, 1)]


def test_a_fresh_block_after_a_new_view_is_a_first_proposal() -> None:
    """3.3"""
    stage = Stage(me=0)
    stage.receive(stage.open(1))
    [check] = of(CheckPayload, stage.receive(stage.pre_prepare(A, 1)))
    assert check.standing == BlockStanding.PROPOSED


def test_a_proposal_without_new_view_needs_the_certificate_of_the_same_view() -> None:
    """5.5"""
    stage = Stage(me=1)
    stage.decide(A)
    other = stage.certificate(VoteKind.COMMIT, A, (0, 2, 3), view=4, height=1)
    assert not of(CheckPayload, stage.receive(stage.pre_prepare(B)))
    assert not of(CheckPayload, stage.receive(stage.pre_prepare(B, 0, other)))
    prepares = stage.certificate(VoteKind.PREPARE, A, (0, 2, 3), height=1)
    assert not of(CheckPayload, stage.receive(stage.pre_prepare(B, 0, prepares)))
    assert of(CheckPayload, stage.receive(stage.pre_prepare(B, 0, stage.head.certificate)))


def test_the_certificate_in_another_view_opens_that_view() -> None:
    """5.5"""
    stage = Stage(me=1)
    stage.decide(A)
    other = stage.certificate(VoteKind.COMMIT, A, (0, 2, 3), view=2, height=1)
    effects = stage.receive(stage.pre_prepare(B, 2, other))
    assert said(Vote, stage.checked(effects)) == [stage.prepare(1, B, 2)]


def test_a_forged_certificate_opens_nothing() -> None:
    """5.5"""
    stage = Stage(me=1)
    stage.decide(A)
    forged = stage.certificate(VoteKind.COMMIT, A, (0, 2, 3), view=2, height=2)
    few = stage.certificate(VoteKind.COMMIT, A, (0, 2), view=2, height=1)
    strange = stage.certificate(VoteKind.COMMIT, B, (0, 2, 3), view=2, height=1)
    for parent in (forged, few, strange, None):
        assert not of(CheckPayload, stage.receive(stage.pre_prepare(B, 2, parent)))
    assert stage.replica.status().view == 0


def test_who_has_voted_at_this_height_lets_no_certificate_open_a_view() -> None:
    """5.5"""
    stage = Stage(me=1)
    stage.decide(A)
    stage.follow(B, 0, stage.head.certificate)
    other = stage.certificate(VoteKind.COMMIT, A, (0, 2, 3), view=2, height=1)
    assert not of(CheckPayload, stage.receive(stage.pre_prepare(b"block c", 2, other)))
    stage.receive(stage.status(2, height=2), peer=2)
    stage.receive(stage.pre_prepare(b"block c", 2, other))
    assert stage.replica.status().view == 0


def test_the_certificate_alone_opens_its_view() -> None:
    """5.5"""
    stage = Stage(me=1)
    stage.decide(A)
    other = stage.certificate(VoteKind.COMMIT, A, (0, 2, 3), view=2, height=1)
    stage.receive(Decided(other), peer=2)
    assert stage.replica.status().view == 2


def test_a_primary_proposes_by_the_certificate_that_opened_its_view_and_shows_it_to_lower_views() -> None:
    """5.5, 7.3"""
    stage = Stage(me=1)
    stage.decide(A)
    other = stage.certificate(VoteKind.COMMIT, A, (0, 2, 3), view=1, height=1)
    stage.receive(Decided(other), peer=2)
    assert sent(Decided, stage.receive(stage.status(3, height=2)), "member-3") == [Decided(other)]
    stage.work()
    assert said(PrePrepare, stage.built(B, 1)) == [stage.pre_prepare(B, 1, other)]


def test_the_certificate_of_a_view_below_the_one_asked_for_opens_nothing() -> None:
    """5.5, 5.6"""
    stage = Stage(me=1)
    stage.decide(A)
    stage.receive(stage.ask(2, 3), stage.ask(3, 3))
    assert stage.replica.status().asked == 3
    stage.receive(Decided(stage.certificate(VoteKind.COMMIT, A, (0, 2, 3), view=2, height=1)), peer=2)
    assert stage.replica.status().view == 0


def test_who_asked_for_a_higher_view_does_not_open_a_lower_one() -> None:
    """5.6"""
    stage = Stage(me=0)
    stage.receive(stage.ask(2, 3), stage.ask(3, 3))
    asks = [stage.ask(index, 1) for index in (1, 2, 3)]
    stage.receive(stage.new_view(1, *asks))
    assert stage.replica.status().view == 0


def test_nobody_votes_below_the_view_it_asked_for() -> None:
    """2.4"""
    stage = Stage(me=1)
    effects = stage.receive(stage.pre_prepare(A))
    stage.receive(stage.ask(2, 1), stage.ask(3, 1, None))
    assert not said(Vote, stage.checked(effects))
    assert not said(Vote, stage.receive(stage.prepare(2, A), stage.prepare(3, A)))


def test_nobody_votes_below_the_view_it_voted_in() -> None:
    """2.4"""
    stage = Stage(me=0)
    stage.receive(stage.open(2))
    stage.follow(A, view=2)
    stage.receive(stage.open(1))
    assert not of(CheckPayload, stage.receive(stage.pre_prepare(B, 1)))


def test_a_new_view_is_refused_unless_all_of_it_holds() -> None:
    """5.2"""
    stage = Stage(me=0)
    ask = stage.ask
    prepared = stage.prepared(A)
    good = [ask(1, 1), ask(2, 1), ask(3, 1)]
    forged = ViewChange(1, 1, None, None, 3, b"x" * 64)
    bad = [
        stage.new_view(1, *good[:2]),
        stage.new_view(1, good[0], good[1], good[1]),
        stage.new_view(1, *reversed(good)),
        stage.new_view(1, good[0], good[1], ask(3, 2)),
        stage.new_view(1, good[0], good[1], forged),
        stage.new_view(1, *good, member=2),
        stage.new_view(1, good[0], good[1], ask(3, 1, stage.certificate(VoteKind.COMMIT, A, (0, 1, 2)))),
        stage.new_view(1, good[0], good[1], ask(3, 1, stage.prepared(A, 0, (0, 1)))),
        stage.new_view(1, good[0], good[1], ask(3, 1, stage.prepared(A, 1))),
        stage.new_view(1, good[0], good[1], ask(3, 1, prepared, decided=prepared)),
        NewView(1, 1, tuple(good), 1, b"x" * 64),
    ]
    for message in bad:
        assert not recorded(stage.receive(message))
        assert stage.replica.status().view == 0
    assert recorded(stage.receive(stage.new_view(1, *good))) == [NewViewRecord(stage.new_view(1, *good))]
    assert stage.replica.status().view == 1


def test_a_new_view_on_another_block_is_refused() -> None:
    """5.1"""
    stage = Stage(me=0)
    certificate = stage.certificate(VoteKind.COMMIT, A, (1, 2, 3))
    other = stage.certificate(VoteKind.COMMIT, B, (1, 2, 3))
    stage = Stage(me=0, head=Head(1, certificate.digest, certificate, 0, stage.members))
    asks = [stage.ask(index, 1, decided=other) for index in (1, 2, 3)]
    stage.receive(stage.new_view(1, *asks))
    assert stage.replica.status().view == 0


def test_a_proposal_that_comes_before_its_new_view_is_kept() -> None:
    """11.2"""
    stage = Stage(me=0)
    assert not of(CheckPayload, stage.receive(stage.pre_prepare(A, 1)))
    assert of(CheckPayload, stage.receive(stage.open(1)))


def test_a_required_block_that_came_with_bad_bytes_is_judged_again_in_the_next_view() -> None:
    """3.4: one primary's garbage beside a genuine vote kept this member from voting for the block ever after."""
    stage = Stage(me=0)
    stage.receive(stage.open(1, stage.prepared(A)))
    genuine = stage.pre_prepare(A, 1)
    stage.checked(stage.receive(PrePrepare(genuine.vote, b"garbage", None)), valid=False)
    stage.receive(stage.open(2, stage.prepared(A)))
    effects = stage.receive(stage.pre_prepare(A, 2))
    assert [check.payload for check in of(CheckPayload, effects)] == [A]
    assert said(Vote, stage.checked(effects)) == [stage.prepare(0, A, 2)]


def test_votes_that_come_before_their_new_view_count() -> None:
    """11.2"""
    stage = Stage(me=0)
    stage.receive(stage.prepare(2, A, 1), stage.prepare(3, A, 1), stage.pre_prepare(A, 1))
    votes = said(Vote, stage.checked(stage.receive(stage.open(1))))
    assert [vote.kind for vote in votes] == [VoteKind.PREPARE, VoteKind.COMMIT]


def test_the_limits_halve_and_quarantine_is_allowed_after_two_failed_views() -> None:
    """3.7"""
    stage = Stage(me=2)
    stage.receive(stage.ask(0, 2), stage.ask(1, 2))
    [build] = of(BuildPayload, stage.receive(stage.ask(3, 2)) + stage.work())
    assert (build.halvings, build.allow_quarantine) == (2, True)
    stage = Stage(me=0)
    stage.receive(stage.open(1))
    [check] = of(CheckPayload, stage.receive(stage.pre_prepare(A, 1)))
    assert not check.allow_quarantine
    stage.receive(stage.open(2))
    [check] = of(CheckPayload, stage.receive(stage.pre_prepare(B, 2)))
    assert check.allow_quarantine


def test_the_jump_goes_to_the_view_that_an_honest_member_asks_for() -> None:
    """6.6"""
    members = Stage(n=7).members
    assert jump_target([2**63 - 1, 2**63 - 1, 4, 3], members) == 4
    assert jump_target([9, 8], members) is None
    two = Stage(n=2).members
    assert jump_target([9], two) is None
    assert jump_target([9, 1], two) == 1
