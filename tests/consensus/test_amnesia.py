"""README 9 and 10: lost memory, a key alive twice, evidence."""

import msgspec

from consensus.amnesia import HEIGHT_MAX
from consensus.effects import (
    Accuse,
    Head,
    Memory,
    NewViewRecord,
    Persist,
    PersistAbstention,
    PreparedRecord,
    Synced,
    Tick,
    VoteRecord,
)
from consensus.members import Members, Validator
from consensus.messages import (
    Decided,
    LatestVote,
    NewView,
    NewViewEquivocation,
    Status,
    ViewChange,
    Vote,
    VoteEquivocation,
    VoteKind,
)

from .stage import TIME_MS, Stage, of, remembering, said

A, B = b"block a", b"block b"
LOST = Memory(never_voted=False, voted=False, abstain_until=0, records=())


def test_a_key_without_memory_signs_nothing() -> None:
    """9.1"""
    stage = Stage(me=1, memory=LOST)
    stage.work()
    effects = stage.follow(A) + stage.receive(stage.prepare(2, A), stage.prepare(3, A)) + stage.pass_time(5_000)
    effects += stage.receive(stage.ask(2, 1), stage.ask(3, 1), stage.ask(0, 1))
    assert not said(Vote, effects)
    assert not said(ViewChange, effects)
    assert not said(NewView, effects)
    assert said(Status, effects)
    assert "no record" in stage.replica.status().abstaining


def test_it_learns_the_height_of_a_quorum_of_others_and_abstains_two_more() -> None:
    """9.2"""
    stage = Stage(me=1, memory=LOST)
    assert not of(PersistAbstention, stage.receive(stage.status(0), stage.status(2)))
    effects = stage.receive(stage.status(3))
    assert of(PersistAbstention, effects) == [PersistAbstention(2)]
    for payload in (A, B):
        assert not said(Vote, stage.follow(payload, 0, stage.head.certificate))
        stage.decide(payload)
    assert said(Vote, stage.follow(b"block 3", 0, stage.head.certificate)) == [stage.prepare(1, b"block 3")]


def test_a_height_that_nobody_proves_does_not_count() -> None:
    """9.2"""
    stage = Stage(me=1, memory=LOST)
    stage.receive(stage.status(0), stage.status(2))
    assert not of(PersistAbstention, stage.receive(stage.status(3, height=2**60)))
    assert stage.replica.status().abstaining


def test_a_claim_counts_when_a_certificate_proves_it() -> None:
    """9.2"""
    stage = Stage(me=1, memory=LOST)
    stage.receive(stage.status(0), stage.status(2), stage.status(3, height=8))
    proof = stage.certificate(VoteKind.COMMIT, A, (0, 2, 3), height=7)
    assert of(PersistAbstention, stage.receive(Decided(proof), peer=3)) == [PersistAbstention(9)]


def test_claims_count_when_the_own_chain_has_caught_up_with_them() -> None:
    """9.2"""
    stage = Stage(me=1, memory=LOST)
    stage.receive(*(stage.status(index, height=10) for index in (0, 2, 3)))
    proof = stage.certificate(VoteKind.COMMIT, A, (0, 2, 3), height=9)
    effects = stage.give(Synced(Head(9, proof.digest, proof, 0, stage.members)))
    assert of(PersistAbstention, effects) == [PersistAbstention(11)]


def test_a_status_from_before_the_start_tells_nothing() -> None:
    """9.2"""
    stage = Stage(me=1, memory=LOST)
    assert not of(PersistAbstention, stage.receive(*(stage.status(index, TIME_MS - 1) for index in (0, 2, 3))))
    assert of(PersistAbstention, stage.receive(*(stage.status(index, TIME_MS) for index in (0, 2, 3))))


def test_a_clock_that_was_ahead_at_the_start_and_is_set_back_does_not_silence_for_as_long() -> None:
    """9.2: seed 2720 of the simulator, a wiped member that started with its clock an hour ahead"""
    stage = Stage(me=1, memory=LOST)
    hour_ms = 3_600_000
    now = TIME_MS - hour_ms
    assert not of(PersistAbstention, stage.receive(*(stage.status(index, now) for index in (0, 2, 3))))
    stage.give(Tick(stage.now_ms + 100, now))
    assert not of(PersistAbstention, stage.receive(*(stage.status(index, now - 1) for index in (0, 2, 3))))
    assert of(PersistAbstention, stage.receive(*(stage.status(index, now) for index in (0, 2, 3))))


def test_of_two_members_the_other_one_is_all_there_is() -> None:
    """9.2"""
    stage = Stage(n=2, me=1, memory=LOST)
    assert of(PersistAbstention, stage.receive(stage.status(0))) == [PersistAbstention(2)]


def test_a_lone_validator_without_memory_stays_silent() -> None:
    """9.2"""
    stage = Stage(n=1, me=0, memory=LOST)
    assert not of(PersistAbstention, stage.work() + stage.pass_time(10_000))
    assert stage.replica.status().abstaining


def test_the_promise_holds_after_a_restart() -> None:
    """9.2"""
    stage = Stage(me=1, memory=Memory(False, False, 1, ()))
    assert not said(Vote, stage.follow(A))
    stage.decide(A)
    assert said(Vote, stage.follow(B, 0, stage.head.certificate))


def test_a_marker_that_nothing_was_voted_lets_genesis_start() -> None:
    """9.1"""
    stage = Stage(me=1, memory=Memory(True, False, 0, ()))
    assert said(Vote, stage.follow(A))


def test_an_unknown_vote_of_ours_before_we_voted_means_a_lost_memory() -> None:
    """9.4"""
    stage = Stage(me=1, memory=Memory(False, True, 0, ()))
    effects = stage.receive(LatestVote(stage.prepare(1, A)), peer=2)
    assert of(PersistAbstention, effects) == [PersistAbstention(3)]
    assert not said(Vote, stage.follow(A) + stage.pass_time(5_000))
    assert "newer than its records" in stage.replica.status().abstaining
    stage.receive(*(stage.status(index, TIME_MS + stage.now_ms, height=5) for index in (0, 2, 3)))
    proof = stage.certificate(VoteKind.COMMIT, A, (0, 2, 3), height=4)
    effects = stage.give(Synced(Head(4, proof.digest, proof, 0, stage.members)))
    assert of(PersistAbstention, effects) == [PersistAbstention(6)]


def test_an_unknown_vote_of_ours_from_another_place_in_the_list_is_ours() -> None:
    """9.3, 9.4: the list may change before that height; whose vote it is, the key says."""
    stage = Stage(me=3, memory=Memory(False, True, 0, ()))
    vote = msgspec.structs.replace(stage.commit(3, A, height=9), member=2)
    assert of(PersistAbstention, stage.receive(LatestVote(vote), peer=1)) == [PersistAbstention(11)]


def test_the_vote_of_whoever_will_have_our_place_in_the_list_is_not_ours() -> None:
    """9.4"""
    stage = Stage(me=3, memory=Memory(False, True, 0, ()))
    vote = msgspec.structs.replace(stage.commit(2, A, height=9), member=3)
    assert not of(PersistAbstention, stage.receive(LatestVote(vote), peer=1))


def test_our_vote_inside_a_certificate_is_an_unknown_vote_too() -> None:
    """9.4"""
    stage = Stage(me=1, memory=Memory(False, True, 0, ()))
    proof = stage.certificate(VoteKind.COMMIT, A, (0, 1, 2))
    assert of(PersistAbstention, stage.receive(Decided(proof), peer=2))


def test_our_own_recorded_votes_are_no_news() -> None:
    """9.4"""
    stage = Stage(me=1)
    stage.follow(A)
    effects = stage.receive(LatestVote(stage.prepare(1, A)), peer=2) + stage.receive(stage.prepare(1, A), peer=3)
    assert not of(PersistAbstention, effects)
    assert stage.replica.status().abstaining == ""


def test_votes_of_decided_heights_are_no_news() -> None:
    """9.4"""
    stage = Stage(me=1)
    old = stage.commit(1, B)
    stage.decide(A)
    assert not of(PersistAbstention, stage.receive(LatestVote(old), peer=2))


def test_a_forged_vote_in_our_name_is_no_news() -> None:
    """9.4"""
    stage = Stage(me=1)
    forged = msgspec.structs.replace(stage.prepare(1, A), signature=b"x" * 64)
    stage.receive(LatestVote(forged), peer=2)
    assert stage.replica.status().abstaining == ""


def test_an_unknown_vote_of_ours_after_we_voted_means_another_process() -> None:
    """9.4, 9.5"""
    stage = Stage(me=1)
    stage.follow(A)
    effects = stage.receive(LatestVote(stage.prepare(1, A, view=2)), peer=2)
    assert of(PersistAbstention, effects) == [PersistAbstention(HEIGHT_MAX)]
    assert not said(Vote, stage.receive(stage.prepare(2, A), stage.prepare(3, A)))
    assert "another place" in stage.replica.status().abstaining


def test_two_different_votes_of_ours_stop_us_and_are_evidence() -> None:
    """9.5, 10.1"""
    stage = Stage(me=1)
    stage.follow(A)
    effects = stage.receive(stage.prepare(1, B), peer=3)
    assert of(PersistAbstention, effects) == [PersistAbstention(HEIGHT_MAX)]
    [accusation] = of(Accuse, effects)
    assert accusation == Accuse("member-1", VoteEquivocation(stage.prepare(1, A), stage.prepare(1, B)))


def test_the_stop_holds_after_a_restart() -> None:
    """9.5"""
    stage = Stage(me=1, memory=Memory(False, True, HEIGHT_MAX, ()))
    assert not said(Vote, stage.follow(A) + stage.pass_time(5_000))
    assert "rotate the key" in stage.replica.status().abstaining


def test_an_unknown_view_change_of_ours_is_an_unknown_statement() -> None:
    """9.4"""
    stage = Stage(me=1, memory=Memory(False, True, 0, ()))
    assert of(PersistAbstention, stage.receive(stage.ask(1, 5), peer=2))


def test_what_others_signed_is_no_memory() -> None:
    """9.7"""
    before = Stage(me=1)
    records = (NewViewRecord(before.open(2)), PreparedRecord(before.prepared(A)))
    stage = Stage(me=1, memory=Memory(False, False, 0, records))
    assert not said(Vote, stage.follow(A, view=2) + stage.pass_time(5_000))
    assert "no record" in stage.replica.status().abstaining


def test_a_chain_older_than_the_records_is_a_lost_memory() -> None:
    """9.4"""
    before = Stage(me=1)
    stage = Stage(me=1, memory=remembering(VoteRecord(before.prepare(1, A, height=5), False, None)))
    assert of(PersistAbstention, stage.first_effects) == [PersistAbstention(7)]


def test_a_listed_key_that_is_not_ours_silences_us() -> None:
    """9.6"""
    stage = Stage(me=1)
    first, second, third, fourth = stage.members.validators
    rotated = Members(
        (
            first,
            Validator(second.id, fourth.voting_key),
            third,
            Validator(fourth.id, second.voting_key),
        )
    )
    proof = stage.certificate(VoteKind.COMMIT, A, (0, 1, 2))
    stage.give(Synced(Head(1, proof.digest, proof, 0, rotated)))
    assert "another voting key" in stage.replica.status().abstaining


def test_two_votes_in_one_slot_are_evidence_once_and_counted_once() -> None:
    """10.1, 2.3"""
    stage = Stage(me=1)
    stage.follow(A)
    [accusation] = of(Accuse, stage.receive(stage.prepare(3, B), stage.prepare(3, A)))
    assert accusation == Accuse("member-3", VoteEquivocation(stage.prepare(3, B), stage.prepare(3, A)))
    effects = stage.receive(stage.prepare(3, A), stage.prepare(3, b"block c"))
    assert not of(Accuse, effects)
    assert not said(Vote, effects)


def test_two_proposals_of_one_view_are_evidence() -> None:
    """10.1"""
    stage = Stage(me=1)
    effects = stage.receive(stage.pre_prepare(A), stage.pre_prepare(B))
    [accusation] = of(Accuse, effects)
    assert accusation.member == "member-0"


def test_two_commits_in_one_slot_are_evidence() -> None:
    """10.1"""
    stage = Stage(me=1)
    assert of(Accuse, stage.receive(stage.commit(3, A), stage.commit(3, B)))


def test_votes_of_different_views_or_kinds_are_no_evidence() -> None:
    """10.1"""
    stage = Stage(me=1)
    effects = stage.receive(stage.prepare(3, A), stage.prepare(3, B, view=1), stage.commit(3, b"c"))
    assert not of(Accuse, effects)


def test_two_new_views_of_one_slot_are_evidence() -> None:
    """10.1"""
    stage = Stage(n=7, me=0)
    asks = [stage.ask(index, 1) for index in range(1, 7)]
    first, second = stage.new_view(1, *asks[:5]), stage.new_view(1, *asks[1:])
    assert not of(Accuse, stage.receive(first, first))
    [accusation] = of(Accuse, stage.receive(second, second))
    assert accusation == Accuse("member-1", NewViewEquivocation(first, second))


def test_a_forged_contradiction_is_no_evidence() -> None:
    """10.1"""
    stage = Stage(me=1)
    stage.receive(stage.prepare(3, A))
    forged = msgspec.structs.replace(stage.prepare(3, B), signature=b"x" * 64)
    assert not of(Accuse, stage.receive(forged))


def test_a_view_change_sent_again_is_no_evidence() -> None:
    """10.2"""
    stage = Stage(n=7, me=0)
    prepared = stage.prepared(A, 0, (0, 1, 2, 3, 4))
    effects = stage.receive(stage.ask(3, 1), stage.ask(3, 1), stage.ask(3, 1, prepared), stage.ask(3, 2, prepared))
    assert not of(Accuse, effects)
    assert stage.replica.status().askers == (("member-3", 2),)


def test_who_lost_its_memory_records_nothing_that_a_restart_could_take_for_one() -> None:
    """9.7"""
    stage = Stage(me=1, memory=LOST)
    effects = stage.receive(stage.new_view(2, *(stage.ask(index, 2) for index in (0, 2, 3))))
    assert stage.replica.status().view == 2
    assert not of(Persist, effects)


def test_without_markers_an_unknown_vote_of_ours_promises_nothing_before_a_quorum_was_heard() -> None:
    """9.7"""
    stage = Stage(me=1, memory=LOST)
    assert not of(PersistAbstention, stage.receive(LatestVote(stage.prepare(1, A, height=7)), peer=2))
    assert of(PersistAbstention, stage.receive(*(stage.status(index) for index in (0, 2, 3)))) == [
        PersistAbstention(9)
    ]
