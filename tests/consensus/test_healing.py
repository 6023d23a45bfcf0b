"""README 7: what heals."""

import msgspec

from consensus.effects import CatchUp, CheckPayload, Connected, Decide, Received, Send, Synced
from consensus.messages import (
    Decided,
    LatestVote,
    Message,
    NewView,
    PrePrepare,
    Status,
    ViewChange,
    Vote,
    VoteKind,
    status_bytes,
)

from .stage import NETWORK, Stage, of, said, sent

A, B = b"block a", b"block b"


def test_every_member_sends_its_status_each_interval() -> None:
    """7.1"""
    stage = Stage(me=1)
    assert len(said(Status, stage.first_effects)) == 1
    statuses = said(Status, stage.pass_time(2_000))
    assert len(statuses) == 4
    assert statuses[0] == stage.status(1, statuses[0].time_ms)


def test_a_status_counts_from_its_member_and_genuine_only() -> None:
    """7.1"""
    stage = Stage(me=1)
    genuine = stage.status(2, height=5)
    stage.receive(genuine, peer=3)
    stage.receive(msgspec.structs.replace(genuine, height=6))
    stage.give(Received("stranger", genuine))
    assert stage.replica.status().peers == ()
    stage.receive(genuine)
    [peer] = stage.replica.status().peers
    assert (peer.member, peer.height) == ("member-2", 5)


def test_a_status_of_another_height_counts_although_the_list_has_changed_there() -> None:
    """7.1: the places in the list may differ; who missed the change hears that it is behind all the same"""
    stage = Stage(me=1)
    for member in (2, 3):  # member 0 has left: their places are 1 and 2 now
        unsigned = msgspec.structs.replace(stage.status(member, height=7), member=member - 1)
        signature = stage.signer.sign_as(member)(status_bytes(NETWORK, unsigned))
        stage.receive(msgspec.structs.replace(unsigned, signature=signature), peer=member)
    assert [peer.member for peer in stage.replica.status().peers] == ["member-2", "member-3"]
    assert of(CatchUp, stage.pass_time(100)) == [CatchUp(6, ("member-2", "member-3"))]


def test_own_votes_are_sent_again_on_connect() -> None:
    """7.2"""
    stage = Stage(me=1)
    stage.follow(A)
    stage.receive(stage.prepare(2, A))
    effects = stage.give(Connected("member-3"))
    assert sent(Vote, effects, "member-3") == [stage.prepare(1, A), stage.commit(1, A)]
    assert sent(Status, effects, "member-3")


def test_the_own_proposal_is_sent_again_on_connect() -> None:
    """7.2"""
    stage = Stage(me=0)
    stage.work()
    stage.built(A)
    assert sent(PrePrepare, stage.give(Connected("member-3")), "member-3") == [stage.pre_prepare(A)]


def test_own_votes_are_sent_again_less_and_less_often() -> None:
    """7.2"""
    stage = Stage(me=1, base_timeout_ms=10**6, timeout_cap_ms=10**6)
    stage.follow(A)
    counts = [len(said(Vote, stage.pass_time(4_000))) for _ in range(4)]
    assert counts == [3, 1, 1, 1]


def test_the_own_proposal_is_sent_again_to_those_whose_prepare_is_missing() -> None:
    """7.2"""
    stage = Stage(me=0)
    stage.work()
    stage.built(A)
    stage.receive(stage.prepare(2, A))
    effects = stage.pass_time(1_000)
    assert sent(PrePrepare, effects, "member-1")
    assert sent(PrePrepare, effects, "member-3")
    assert not sent(PrePrepare, effects, "member-2")


def test_the_view_change_and_the_own_new_view_are_sent_again() -> None:
    """7.2"""
    stage = Stage(me=1)
    stage.work()
    stage.pass_time(2_200)
    assert said(ViewChange, stage.pass_time(1_000))
    stage.receive(stage.ask(2, 1), stage.ask(3, 1))
    assert sent(NewView, stage.give(Connected("member-0")), "member-0")
    assert said(NewView, stage.pass_time(1_000))


def test_who_speaks_about_a_decided_height_gets_its_certificate() -> None:
    """7.3"""
    stage = Stage(me=1)
    lagging = stage.status(3)
    stage.decide(A)
    effects = stage.receive(lagging)
    assert sent(Decided, effects, "member-3") == [Decided(stage.head.certificate)]  # type: ignore[arg-type]


def test_one_answer_per_peer_and_interval() -> None:
    """7.3"""
    stage = Stage(me=1)
    lagging = stage.status(3)
    old = stage.ask(2, 1)
    stage.decide(A)
    assert stage.receive(lagging)
    assert not stage.receive(lagging, lagging)
    assert stage.receive(old)
    stage.pass_time(500)
    assert stage.receive(lagging)


def test_votes_just_after_the_decision_are_no_lag() -> None:
    """7.3"""
    stage = Stage(me=1)
    late = stage.commit(3, A)
    stage.decide(A)
    assert not stage.receive(late)
    stage.pass_time(500)
    assert sent(Decided, stage.receive(late), "member-3")


def test_who_is_in_a_lower_view_gets_what_opened_ours() -> None:
    """7.3"""
    stage = Stage(me=0)
    opened = stage.open(1)
    stage.receive(opened)
    assert sent(NewView, stage.receive(stage.status(3)), "member-3") == [opened]


def test_who_is_in_a_lower_view_gets_the_certificate_that_opened_ours() -> None:
    """7.3"""
    stage = Stage(me=1)
    stage.receive(stage.open(2))
    stage.decide(A, view=2)
    effects = stage.receive(stage.status(3, view=0, head=stage.head.digest))
    assert sent(Decided, effects, "member-3") == [Decided(stage.head.certificate)]  # type: ignore[arg-type]


def test_a_certificate_of_the_height_decides_it_whatever_carries_it() -> None:
    """7.4"""
    for carry in range(4):
        stage = Stage(me=1)
        stage.follow(A)
        proof = stage.certificate(VoteKind.COMMIT, A, (0, 2, 3))
        asks = [stage.ask(index, 1, height=2, decided=proof) for index in (0, 2, 3)]
        proposal = stage.pre_prepare(B, 0, proof, height=2)
        carriers: list[Message] = [Decided(proof), asks[0], stage.new_view(1, *asks), proposal]
        [decide] = of(Decide, stage.receive(carriers[carry], peer=0))
        assert decide.certificate == proof


def test_a_forged_certificate_decides_nothing() -> None:
    """7.4"""
    stage = Stage(me=1)
    stage.follow(A)
    good = stage.certificate(VoteKind.COMMIT, A, (0, 2, 3))
    first, second, third = good.signatures
    forged = [
        stage.certificate(VoteKind.PREPARE, A, (0, 2, 3)),
        stage.certificate(VoteKind.COMMIT, A, (0, 2)),
        msgspec.structs.replace(good, view=1),
        msgspec.structs.replace(good, digest=b"x" * 32),
        msgspec.structs.replace(good, signatures=(first, second, second)),
        msgspec.structs.replace(good, signatures=(third, second, first)),
        msgspec.structs.replace(good, signatures=(first, second, (1, third[1]))),
        msgspec.structs.replace(good, signatures=(first, second, (9, third[1]))),
    ]
    for certificate in forged:
        assert not stage.receive(Decided(certificate), peer=2)


def test_one_peer_far_ahead_is_a_mere_word() -> None:
    """7.5, 7.6"""
    stage = Stage(me=1)
    for height in (50, 60, 70):
        stage.receive(stage.status(3, height=height), stage.prepare(3, A, height=height))
    assert not of(CatchUp, stage.pass_time(1_900))
    # 7.7: one block further, no more.
    assert {effect.target for effect in of(CatchUp, stage.pass_time(5_000))} == {1}
    assert stage.replica.status().catch_up_target is None


def test_whoever_speaks_about_later_heights_is_asked_in_turn_for_the_next_block() -> None:
    """7.7: two members that had missed a change of the list knew only one of the others (found by a seed)."""
    stage = Stage(me=1)
    later = stage.status(3, height=9)
    stage.give(Received("member-7", later), Received("member-5", later))
    assert not of(CatchUp, stage.pass_time(1_900))
    asked = of(CatchUp, stage.pass_time(10_000))
    assert asked[:2] == [CatchUp(1, ("member-7",)), CatchUp(1, ("member-5",))]
    assert len(asked) < 8
    stage.decide(A)
    assert not of(CatchUp, stage.pass_time(1_900))


def test_f_plus_1_members_ahead_are_followed() -> None:
    """7.5"""
    stage = Stage(me=1)
    stage.receive(stage.status(3, height=50), stage.status(2, height=40))
    [catch_up] = of(CatchUp, stage.pass_time(100))
    assert (catch_up.target, catch_up.peers) == (39, ("member-2", "member-3"))


def test_messages_beyond_the_next_height_of_f_plus_1_members_count_too() -> None:
    """7.5"""
    stage = Stage(me=1)
    stage.receive(stage.prepare(3, A, height=9), stage.ask(2, 1, height=8))
    [catch_up] = of(CatchUp, stage.pass_time(100))
    assert catch_up.target == 7


def test_a_genuine_certificate_ahead_is_followed_at_once() -> None:
    """7.5"""
    stage = Stage(me=1)
    proof = stage.certificate(VoteKind.COMMIT, A, (0, 2, 3), height=9)
    [catch_up] = of(CatchUp, stage.receive(Decided(proof), peer=2))
    assert (catch_up.target, catch_up.peers) == (9, ("member-2",))
    forged = msgspec.structs.replace(proof, height=99)
    assert not of(CatchUp, stage.receive(Decided(forged), peer=3))


def test_one_height_behind_is_normal_for_a_moment() -> None:
    """7.5"""
    stage = Stage(me=1)
    stage.receive(stage.status(2, height=2), stage.status(3, height=2))
    assert not of(CatchUp, stage.pass_time(400))
    assert of(CatchUp, stage.pass_time(300))


def test_one_height_behind_is_normal_for_longer_while_the_executor_has_the_block() -> None:
    """7.5"""
    stage = Stage(me=1)
    stage.receive(stage.pre_prepare(A), stage.status(2, height=2), stage.status(3, height=2))
    assert not of(CatchUp, stage.pass_time(1_900))
    assert of(CatchUp, stage.pass_time(300))


def test_catch_up_is_asked_for_again_with_back_off_until_the_head_moves() -> None:
    """7.5"""
    stage = Stage(me=1)
    stage.receive(stage.status(2, height=20), stage.status(3, height=20))
    assert len(of(CatchUp, stage.pass_time(4_000))) == 4
    assert len(of(CatchUp, stage.pass_time(4_000))) == 1
    proof = stage.certificate(VoteKind.COMMIT, A, (0, 2, 3), height=19)
    stage.give(Synced(msgspec.structs.replace(stage.head, height=19, digest=proof.digest, certificate=proof)))
    assert not of(CatchUp, stage.pass_time(10_000))


def test_a_decided_block_that_cannot_be_had_is_caught_up_with() -> None:
    """3.5, 7.5"""
    stage = Stage(me=1)
    effects = stage.receive(stage.commit(0, A), stage.commit(2, A), stage.commit(3, A))
    stage.checked(effects, valid=None)
    [catch_up] = of(CatchUp, stage.pass_time(700))
    assert (catch_up.target, catch_up.peers) == (1, ("member-0", "member-2", "member-3"))


def test_who_differs_from_a_decided_block_says_so_and_does_not_apply_it() -> None:
    """3.5"""
    stage = Stage(me=1)
    effects = stage.receive(stage.commit(0, A), stage.commit(2, A), stage.commit(3, A))
    effects = stage.checked(effects, valid=False) + stage.pass_time(1_000)
    assert not of(Decide, effects)
    assert not of(CheckPayload, effects)
    assert of(CatchUp, effects)
    assert stage.replica.status().refusal


def test_a_question_about_votes_is_answered_without_end_to_end_chatter() -> None:
    """9.3, 7.3"""
    stage = Stage(me=1)
    effects = stage.receive(LatestVote(None), peer=2)
    assert of(Send, effects) == [Send("member-2", LatestVote(None))]
    assert not stage.receive(LatestVote(None), LatestVote(None), peer=2)
