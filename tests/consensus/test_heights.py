"""README 4: from height to height."""

import msgspec

from consensus.effects import Applied, BuildPayload, CheckPayload, Decide, Head, PayloadChecked, Synced
from consensus.messages import Message, PrePrepare, ViewChange, Vote, VoteKind

from .stage import Stage, of, said

A, B = b"block a", b"block b"


def test_the_next_height_starts_in_the_view_of_the_certificate() -> None:
    """4.1"""
    stage = Stage(me=1)
    stage.receive(stage.open(2))
    stage.decide(A, view=2)
    status = stage.replica.status()
    assert (status.height, status.view, status.primary) == (2, 2, "member-2")


def test_the_start_view_is_the_highest_view_voted_in() -> None:
    """4.1"""
    stage = Stage(me=1)
    stage.follow(A)
    stage.receive(stage.open(2, stage.prepared(A, members=(0, 1, 2))))
    stage.follow(A, view=2)
    certificate = stage.certificate(VoteKind.COMMIT, A, (0, 2, 3), view=0)
    effects = stage.receive(stage.ask(3, 5, height=2, decided=certificate))
    [decide] = of(Decide, effects)
    assert (decide.certificate.view, decide.start_view) == (0, 2)


def test_a_view_only_asked_for_is_forgotten_at_the_next_height() -> None:
    """4.1"""
    stage = Stage(me=1)
    stage.work()
    stage.pass_time(2_200)
    assert stage.replica.status().asked == 1
    effects = stage.checked(stage.receive(stage.commit(0, A), stage.commit(2, A), stage.commit(3, A)), payload=A)
    stage.applied(effects)
    status = stage.replica.status()
    assert (status.height, status.view, status.asked) == (2, 0, None)


def test_a_start_view_above_the_certificate_is_asked_for_at_once() -> None:
    """4.2"""
    stage = Stage(me=1)
    certificate = stage.certificate(VoteKind.COMMIT, A, (0, 2, 3))
    effects = stage.give(Applied(Head(1, certificate.digest, certificate, 3, stage.members)))
    [asked] = said(ViewChange, effects)
    assert (asked.height, asked.view, asked.decided) == (2, 3, certificate)


def test_nothing_is_signed_at_a_decided_height() -> None:
    """4.3"""
    stage = Stage(me=1)
    effects = stage.receive(stage.pre_prepare(A))
    stage.receive(stage.commit(0, A), stage.commit(2, A), stage.commit(3, A))
    assert not said(Vote, stage.checked(effects))
    assert not said(ViewChange, stage.work() + stage.pass_time(10_000))
    assert not said(ViewChange, stage.receive(stage.ask(2, 1), stage.ask(3, 1)))


def test_messages_of_the_next_height_are_judged_after_this_one_is_applied() -> None:
    """4.4"""
    stage = Stage(me=1)
    stage.follow(A)
    stage.receive(stage.prepare(2, A), stage.commit(0, A))
    early: list[Message] = [
        stage.prepare(2, B, height=2),
        stage.prepare(3, B, height=2),
        stage.pre_prepare(B, 0, stage.certificate(VoteKind.COMMIT, A, (0, 2, 3)), height=2),
    ]
    effects = stage.receive(*early)
    assert not said(Vote, effects)
    [check] = of(CheckPayload, stage.applied(effects))
    assert check.height == 2
    voted = said(Vote, stage.give(PayloadChecked(2, 0, check.digest, True, B, "")))
    assert [vote.kind for vote in voted] == [VoteKind.PREPARE, VoteKind.COMMIT]


def test_an_early_proposal_is_judged_by_the_list_of_its_own_height() -> None:
    """4.4, 2.5: who proposes there may have another place in the list than here."""
    for peer, taken in ((3, True), (0, False)):
        stage = Stage(me=1)
        turned = type(stage.members)(stage.members.validators[3:] + stage.members.validators[:3])
        certificate = stage.certificate(VoteKind.COMMIT, A, (0, 2, 3))
        signed = stage.vote(VoteKind.PREPARE, 3, B, height=2)
        vote = msgspec.structs.replace(signed, member=0)
        stage.receive(PrePrepare(vote, B, certificate), peer=peer)
        effects = stage.give(Applied(Head(1, certificate.digest, certificate, 0, turned)))
        assert [check.height for check in of(CheckPayload, effects)] == ([2] if taken else [])


def test_a_held_message_is_displaced_by_its_own_sender_only() -> None:
    """4.4"""
    stage = Stage(me=1)
    stage.follow(A)
    stage.receive(stage.prepare(2, A), stage.commit(0, A))
    stage.receive(stage.prepare(2, B, height=2))
    forged = msgspec.structs.replace(stage.prepare(2, B, height=2), signature=b"x" * 64)
    stage.receive(forged, peer=3)
    stage.applied(stage.receive(stage.commit(2, A)))
    assert stage.replica.status().voted_prepare == ("member-2",)


def test_messages_far_ahead_are_not_kept() -> None:
    """4.4"""
    stage = Stage(me=1)
    stage.receive(stage.prepare(2, B, height=3))
    stage.decide(A)
    stage.decide(b"block 2")
    assert stage.replica.status().voted_prepare == ()


def test_an_old_head_changes_nothing() -> None:
    """4.5"""
    stage = Stage(me=1)
    stage.decide(A)
    old = stage.head
    stage.decide(B)
    assert not stage.give(Applied(old), Synced(old))
    assert stage.replica.status().height == 3


def test_catch_up_moves_over_many_heights() -> None:
    """4.5"""
    stage = Stage(me=1)
    certificate = stage.certificate(VoteKind.COMMIT, A, (0, 2, 3), height=9)
    stage.give(Synced(Head(9, certificate.digest, certificate, 0, stage.members)))
    assert stage.replica.status().height == 10


def test_members_change_with_the_head() -> None:
    """1.3"""
    stage = Stage(n=5, me=0)
    four = type(stage.members)(stage.members.validators[1:])
    certificate = stage.certificate(VoteKind.COMMIT, A, (0, 1, 2, 3))
    stage.give(Applied(Head(1, certificate.digest, certificate, 0, four)))
    status = stage.replica.status()
    assert (status.quorum, status.primary, status.abstaining) == (3, "member-1", "an observer has no vote")


def rested(me: int | None, *resting: int, n: int = 4, rotation_heights: int = 10_000) -> Stage:
    """Member `me` at height 2, where `resting` rest."""
    stage = Stage(n=n, me=me, rotation_heights=rotation_heights)
    certificate = stage.certificate(VoteKind.COMMIT, A, tuple(range(n)))
    names = tuple(stage.members.id(index) for index in resting)
    stage.head = Head(1, certificate.digest, certificate, 0, stage.members, None, names)
    stage.give(Applied(stage.head))
    return stage


def proposal_of(stage: Stage, member: int, view: int = 0) -> PrePrepare:
    return PrePrepare(stage.prepare(member, B, view), B, stage.head.certificate)


def test_the_turn_of_a_member_that_rests_is_anothers_in_every_view() -> None:
    """1.4"""
    stage = rested(1, 0)
    assert (stage.replica.status().primary, stage.replica.status().resting) == ("member-2", ("member-0",))
    assert not of(CheckPayload, stage.receive(proposal_of(stage, 0)))
    assert [check.proposer for check in of(CheckPayload, stage.receive(proposal_of(stage, 2)))] == ["member-2"]
    # In view 4 it would have been the resting member's turn again.
    stage = rested(1, 0)
    asks = [stage.ask(index, 4) for index in (1, 2, 3)]
    stage.receive(stage.ask(2, 4), stage.ask(3, 4))
    stage.receive(stage.new_view(4, *asks, member=0))
    assert stage.replica.status().view == 0
    stage.receive(stage.new_view(4, *asks, member=2))
    assert (stage.replica.status().view, stage.replica.status().primary) == (4, "member-2")


def test_who_rests_proposes_nothing_and_votes_as_ever() -> None:
    """1.4"""
    stage = rested(0, 0)
    assert not of(BuildPayload, stage.work())
    voted = said(Vote, stage.checked(stage.receive(proposal_of(stage, 2))))
    assert [vote.kind for vote in voted] == [VoteKind.PREPARE]
    substitute = rested(2, 0)
    assert of(BuildPayload, substitute.work())


def test_where_too_many_rest_nobody_is_skipped() -> None:
    """1.4"""
    stage = rested(1, 0, 2)
    assert (stage.replica.status().primary, stage.replica.status().resting) == ("member-0", ())
    assert of(CheckPayload, stage.receive(proposal_of(stage, 0)))


def test_who_rests_comes_with_the_head_at_a_start_too_and_goes_with_the_next() -> None:
    """1.4"""
    head = rested(1, 0).head
    stage = Stage(me=1, head=head)
    assert stage.replica.status().primary == "member-2"
    assert head.certificate is not None
    stage.give(Synced(msgspec.structs.replace(head, height=2, resting=())))
    assert stage.replica.status().primary == "member-0"


def test_the_builder_is_asked_for_the_next_height_while_work_waits() -> None:
    """3.1"""
    stage = Stage(me=0)
    stage.work()
    stage.built(A)
    stage.receive(stage.prepare(1, A), stage.prepare(2, A))
    effects = stage.applied(stage.receive(stage.commit(1, A), stage.commit(2, A)))
    [build] = of(BuildPayload, effects)
    assert build.height == 2
    [proposal] = said(PrePrepare, stage.built(B))
    assert proposal.parent == stage.head.certificate
