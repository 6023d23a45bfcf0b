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
