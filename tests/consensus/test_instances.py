"""README 9.8, 9.9, 10.3: one key in two processes is proven by the key itself; a caller that forbids signing."""

from consensus.amnesia import HEIGHT_MAX
from consensus.effects import Accuse, Connected, Effect, Head, PersistAbstention, Send, Synced, Withhold
from consensus.members import Members, Validator
from consensus.messages import (
    KnownInstance,
    LatestVote,
    Message,
    NewView,
    Presence,
    Status,
    TwoInstances,
    ViewChange,
    Vote,
    presence_bytes,
)

from .stage import FRESH, NETWORK, Stage, of, said, sent

OLD, NEW, OURS = b"o" * 16, b"n" * 16, b"m" * 16
A = b"block a"


def staged(me: int = 1) -> Stage:
    return Stage(me=me, instance=OURS)


def presence(
    stage: Stage, member: int, instance: bytes, met: bytes | None, *, place: int | None = None, version: int = 0
) -> Presence:
    """The word of a process of `member`, signed with its key of this version in a list that has it at `place`."""
    unsigned = Presence(instance, met, member if place is None else place, b"")
    signature = stage.signer.sign_as(member, version)(presence_bytes(NETWORK, unsigned))
    return Presence(instance, met, unsigned.member, signature)


def relist(stage: Stage, *validators: Validator) -> list[Effect]:
    """The next block changes the list."""
    stage.head = Head(stage.height, bytes((stage.height,)) * 32, None, 0, Members(validators))
    return stage.give(Synced(stage.head))


def to(peer: int, effects: list[Effect]) -> list[Message]:
    messages = [effect.message for effect in of(Send, effects) if effect.peer == f"member-{peer}"]
    return [message for message in messages if isinstance(message, KnownInstance | Presence)]


def test_who_connects_is_asked_and_answers_which_process_it_is() -> None:
    """9.8"""
    stage = staged()
    assert to(2, stage.give(Connected("member-2"))) == [KnownInstance(None)]
    assert to(2, stage.receive(KnownInstance(None), peer=2)) == [presence(stage, 1, OURS, None)]
    stage.now_ms += 100
    stage.jump(100)
    assert to(2, stage.receive(KnownInstance(OLD), peer=2)) == [presence(stage, 1, OURS, OLD)]


def test_a_peer_cannot_have_us_sign_without_end() -> None:
    """9.8, 11.2"""
    stage = staged()
    effects = stage.receive(*(KnownInstance(bytes([number]) * 16) for number in range(50)), peer=2)
    assert len(to(2, effects)) == 1


def test_a_restart_is_no_second_process() -> None:
    """9.8"""
    stage = staged()
    effects = stage.receive(presence(stage, 2, OLD, None))
    effects += stage.give(Connected("member-2"))
    assert to(2, effects) == [KnownInstance(OLD)]
    effects = stage.receive(presence(stage, 2, NEW, OLD), presence(stage, 2, NEW, None))
    assert not of(Accuse, effects)
    assert not to(2, effects)


def test_two_processes_that_met_one_another_are_proven_and_told() -> None:
    """9.8"""
    stage = staged()
    stage.receive(presence(stage, 2, OLD, None), presence(stage, 2, NEW, OLD))
    effects = stage.receive(presence(stage, 2, OLD, NEW))
    proof = TwoInstances(presence(stage, 2, NEW, OLD), presence(stage, 2, OLD, NEW))
    assert of(Accuse, effects) == [Accuse("member-2", proof)]
    assert to(2, effects) == [presence(stage, 2, NEW, OLD)]
    effects = stage.receive(presence(stage, 2, NEW, OLD))
    assert to(2, effects) == [presence(stage, 2, OLD, NEW)]
    assert not of(Accuse, effects)


def test_the_process_that_is_shown_another_one_stops_for_good() -> None:
    """9.5, 9.8"""
    stage = staged()
    stage.follow(A)
    shown = presence(stage, 1, NEW, OURS)
    effects = stage.receive(shown, peer=3)
    assert of(PersistAbstention, effects) == [PersistAbstention(HEIGHT_MAX)]
    assert of(Accuse, effects) == [Accuse("member-1", TwoInstances(presence(stage, 1, OURS, NEW), shown))]
    assert not said(Vote, stage.receive(stage.prepare(2, A), stage.prepare(3, A)))
    assert "another place" in stage.replica.status().abstaining


def test_our_own_earlier_process_is_no_second_one() -> None:
    """9.8"""
    stage = staged()
    effects = stage.receive(presence(stage, 1, OLD, None), presence(stage, 1, NEW, OLD), peer=3)
    effects += stage.receive(presence(stage, 1, OURS, OLD), presence(stage, 1, OURS, OURS), peer=3)
    assert not of(PersistAbstention, effects)
    assert not of(Accuse, effects)


def test_nobody_without_our_key_can_stop_us() -> None:
    """9.8"""
    stage = staged()
    stranger = presence(stage, 3, NEW, OURS)
    forged = Presence(NEW, OURS, 1, stranger.signature)
    effects = stage.receive(forged, peer=3)
    assert not of(PersistAbstention, effects)
    assert stage.replica.status().abstaining == ""


def test_nobody_speaks_for_another_members_process() -> None:
    """9.8"""
    stage = staged()
    stage.receive(presence(stage, 2, OLD, NEW), presence(stage, 2, NEW, OLD), peer=3)
    assert to(2, stage.give(Connected("member-2"))) == [KnownInstance(None)]


def test_what_is_kept_of_a_members_processes_is_bounded() -> None:
    """11.2"""
    stage = staged()
    for number in range(50):
        stage.receive(presence(stage, 2, bytes([number]) * 16, None))
    # The first ones are forgotten: they prove nothing any more.
    assert not to(2, stage.receive(presence(stage, 2, NEW, bytes(16))))
    assert to(2, stage.give(Connected("member-2"))) == [KnownInstance(NEW)]


def test_two_processes_are_proven_across_a_change_of_the_list() -> None:
    """9.8: the place in the list is no part of whose word it is."""
    stage = staged()
    stage.receive(presence(stage, 2, OLD, None), presence(stage, 2, NEW, OLD))
    relist(stage, stage.members.validators[2], stage.members.validators[1], stage.members.validators[3])
    earlier, later = presence(stage, 2, NEW, OLD), presence(stage, 2, OLD, NEW, place=0)
    effects = stage.receive(later, peer=2)
    assert of(Accuse, effects) == [Accuse("member-2", TwoInstances(earlier, later))]
    assert to(2, effects) == [earlier]


def test_the_process_that_is_shown_another_one_from_before_a_change_of_the_list_stops() -> None:
    """9.5, 9.8"""
    stage = staged()
    relist(stage, *stage.members.validators[1:])
    effects = stage.receive(presence(stage, 1, NEW, OURS, place=1), peer=3)
    assert of(PersistAbstention, effects) == [PersistAbstention(HEIGHT_MAX)]


def test_a_second_doubling_under_a_new_key_is_accused_again() -> None:
    """10.3"""
    stage = staged()
    effects = stage.receive(
        presence(stage, 2, OLD, None), presence(stage, 2, NEW, OLD), presence(stage, 2, OLD, NEW)
    )
    assert len(of(Accuse, effects)) == 1
    rotated = stage.signer.validator(2, 1)
    relist(stage, *stage.members.validators[:2], rotated, stage.members.validators[3])
    words = (presence(stage, 2, OLD, NEW, version=1), presence(stage, 2, NEW, OLD, version=1))
    assert len(of(Accuse, stage.receive(*words, *words))) == 1


def test_what_the_key_before_said_proves_nothing_about_the_new_one() -> None:
    """9.8"""
    stage = staged()
    stage.receive(presence(stage, 2, OLD, None), presence(stage, 2, NEW, OLD))
    rotated = stage.signer.validator(2, 1)
    relist(stage, *stage.members.validators[:2], rotated, stage.members.validators[3])
    effects = stage.receive(presence(stage, 2, OLD, NEW), presence(stage, 2, OLD, NEW, version=1))
    assert not of(Accuse, effects)
    assert not to(2, effects)


def test_the_process_with_the_key_before_cannot_stop_the_one_that_replaces_it() -> None:
    """9.5, 9.6, 9.8: whoever shows the old process the new one has its word; the list names the old key yet."""
    stage = staged()
    validators = list(stage.members.validators)
    validators[1] = stage.signer.validator(1, 1)  # what it signs with is another key than the list's
    relist(stage, *validators)
    effects = stage.receive(presence(stage, 1, NEW, OURS, version=1), peer=3)
    assert not of(PersistAbstention, effects)
    assert not of(Accuse, effects)


def test_who_joins_or_gets_a_new_key_is_met_at_once() -> None:
    """9.8: on the link that stands nobody could judge its word before."""
    stage = staged()
    rotated = stage.signer.validator(2, 1)
    effects = relist(stage, *stage.members.validators[:2], rotated, stage.members.validators[3])
    assert to(2, effects) == [KnownInstance(None)]
    assert not to(3, effects)


def test_who_becomes_a_member_says_which_process_it_is() -> None:
    """9.8"""
    stage = staged(me=1)
    me, rest = stage.members.validators[1], stage.members.validators[2:]
    assert not said(Presence, relist(stage, *rest))
    effects = relist(stage, me, *rest)
    assert said(Presence, effects) == [presence(stage, 1, OURS, None, place=0)]
    assert not said(Presence, relist(stage, *rest, me))


def test_an_observer_has_no_key_that_could_live_twice() -> None:
    """9.8"""
    stage = Stage(me=None, instance=OURS)
    assert not to(2, stage.receive(KnownInstance(OLD), peer=2))


def test_who_is_withheld_signs_no_vote_and_asks_for_no_view_but_sends_its_status() -> None:
    """9.9"""
    stage = Stage(me=1)
    stage.give(Withhold("its execution differs"))
    effects = stage.work() + stage.follow(A) + stage.receive(stage.prepare(2, A), stage.prepare(3, A))
    effects += stage.receive(stage.ask(2, 1), stage.ask(3, 1), stage.ask(0, 1)) + stage.pass_time(5_000)
    assert not said(Vote, effects)
    assert not said(ViewChange, effects)
    assert said(Status, effects)
    assert stage.replica.status().abstaining == "its execution differs"


def test_who_is_withheld_still_decides_with_the_others() -> None:
    """9.9"""
    stage = Stage(me=1)
    stage.give(Withhold("its code differs"))
    stage.decide(A)
    assert stage.replica.status().height == 2


def test_withheld_from_the_start_until_it_is_lifted() -> None:
    """9.9"""
    memory = FRESH.__class__(True, False, 0, (), "its execution differs")
    stage = Stage(me=1, memory=memory)
    assert not said(Vote, stage.follow(A))
    assert said(Vote, stage.give(Withhold(""))) == [stage.prepare(1, A)]


def test_lifting_it_brings_no_lost_memory_back() -> None:
    """9.9"""
    stage = Stage(me=1)
    stage.give(Withhold("its code differs"))
    stage.receive(LatestVote(stage.prepare(1, A, view=3)), peer=2)
    stage.give(Withhold(""))
    assert not said(Vote, stage.follow(A))
    assert "newer than its records" in stage.replica.status().abstaining


def test_one_vote_a_slot_also_across_a_time_withheld() -> None:
    """9.9, I1"""
    stage = Stage(me=1)
    assert said(Vote, stage.follow(A))
    stage.give(Withhold("its code differs"))
    effects = stage.give(Withhold("")) + stage.follow(b"block b")
    assert not said(Vote, effects)
    assert not sent(Vote, effects, "member-0")


def test_who_may_sign_again_follows_at_once_what_others_asked_for_meanwhile() -> None:
    """6.6, 9.9: they do not say it a second time, and view by view would take minutes."""
    stage = Stage(me=3)
    stage.give(Withhold("its code differs"))
    assert not said(ViewChange, stage.receive(stage.ask(1, 40), stage.ask(2, 40)))
    assert [message.view for message in said(ViewChange, stage.give(Withhold("")))] == [40]


def test_who_may_sign_again_opens_the_view_that_a_quorum_asked_it_for() -> None:
    """5.2, 9.9"""
    stage = Stage(me=1)
    stage.give(Withhold("its code differs"))
    assert not said(NewView, stage.receive(stage.ask(0, 1), stage.ask(2, 1), stage.ask(3, 1)))
    assert [message.view for message in said(NewView, stage.give(Withhold("")))] == [1]
