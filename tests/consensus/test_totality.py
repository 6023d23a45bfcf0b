"""README 11: whatever peers say, a step returns, keeps within bounds and breaks no promise."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.effects import (
    Applied,
    Broadcast,
    Connected,
    Effect,
    Head,
    Input,
    PayloadBuilt,
    PayloadChecked,
    Received,
    Synced,
    Tick,
    WorkWaiting,
)
from consensus.messages import Message, PrePrepare, Vote, VoteKind
from consensus.status import ReplicaStatus

from .stage import GENESIS, TIME_MS, Stage, digest_of
from .strategies import DIGESTS, HEIGHTS, PAYLOADS, VIEWS, messages

PEERS = st.sampled_from(["member-0", "member-1", "member-2", "member-3", "stranger"])


def genuine(stage: Stage) -> st.SearchStrategy[Message]:
    """Correctly signed messages of others, in any order and in any contradiction."""
    payloads = st.sampled_from(PAYLOADS)
    others = st.sampled_from([1, 2, 3])
    views = st.integers(0, 2)
    prepared = st.none() | st.builds(
        lambda payload, view: stage.prepared(payload, view, (1, 2, 3)), payloads, views
    )
    return st.one_of(
        st.builds(stage.prepare, others, payloads, views, st.integers(1, 3)),
        st.builds(stage.commit, others, payloads, views, st.integers(1, 3)),
        st.builds(lambda payload, view: stage.pre_prepare(payload, view), payloads, views),
        st.builds(lambda member, view, shown: stage.ask(member, view, shown), others, st.integers(0, 3), prepared),
        st.builds(lambda view, shown: stage.open(view, *([shown] if shown else [])), st.integers(1, 3), prepared),
        st.builds(
            lambda member, height, view: stage.status(member, height=height, view=view), others, HEIGHTS, VIEWS
        ),
    )


def inputs(stage: Stage) -> st.SearchStrategy[Input]:
    """Any input: hostile and genuine messages, late and contradictory answers, jumping clocks."""
    certificates = st.builds(
        lambda payload, view, height: stage.certificate(VoteKind.COMMIT, payload, (1, 2, 3), view, height),
        st.sampled_from(PAYLOADS),
        st.integers(0, 2),
        st.integers(1, 4),
    )
    heads = certificates.map(
        lambda certificate: Head(
            certificate.height, certificate.digest, certificate, certificate.view, stage.members
        )
    )
    answers = st.sampled_from([True, True, True, False, None])
    return st.one_of(
        st.builds(Received, PEERS, messages()),
        st.builds(Received, PEERS, genuine(stage)),
        st.builds(Received, PEERS, genuine(stage)),
        st.builds(Tick, st.integers(1_000_000, 1_100_000), st.integers(TIME_MS, TIME_MS + 100_000)),
        st.builds(Connected, PEERS),
        st.builds(WorkWaiting, st.booleans(), st.integers(0, 100)),
        st.builds(PayloadBuilt, HEIGHTS, VIEWS, st.none() | DIGESTS, st.none() | st.sampled_from(PAYLOADS)),
        st.builds(
            lambda height, view, payload, valid: PayloadChecked(
                height, view, digest_of(payload), valid, payload, "reason"
            ),
            st.integers(1, 3),
            st.integers(0, 2),
            st.sampled_from(PAYLOADS),
            answers,
        ),
        heads.map(Applied),
        heads.map(Synced),
    )


# Messages are signed by the members 1 to 3 of four, also where the list has fewer: those are strangers' then.
AUTHOR = Stage(n=4, me=0)
INPUTS = inputs(AUTHOR)


def judge_promises(stage: Stage, effects: list[Effect], floor: dict[int, int], slots: dict[object, bytes]) -> None:
    """What is broadcast is signed once per slot and never below what was signed before (I1, I2)."""
    for effect in effects:
        if not isinstance(effect, Broadcast):
            continue
        message = effect.message
        vote = message.vote if isinstance(message, PrePrepare) else message
        if isinstance(vote, Vote) and vote.member == stage.me:
            slot = (vote.height, vote.view, vote.kind)
            if slots.setdefault(slot, vote.digest) != vote.digest:
                raise AssertionError(f"two votes in {slot}")
    for effect in effects:
        record = getattr(effect, "record", None)
        made = getattr(record, "vote", None) or getattr(record, "message", None)
        if made is not None and made.member == stage.me:
            assert made.view >= floor.get(made.height, 0)
            floor[made.height] = made.view


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(INPUTS, max_size=40), st.sampled_from([1, 2, 4, 4, 4]))
def test_no_input_makes_a_step_raise_or_break_a_promise(given_inputs: list[Input], n: int) -> None:
    """11.1, 2.4"""
    stage = Stage(n=n, me=0)
    floor: dict[int, int] = {}
    slots: dict[object, bytes] = {}
    for input_ in given_inputs:
        effects = stage.give(input_)
        judge_promises(stage, effects, floor, slots)
        assert isinstance(stage.replica.status(), ReplicaStatus)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(PEERS, messages()), max_size=30))
def test_unsigned_noise_changes_nothing_that_counts(noise: list[tuple[str, Message]]) -> None:
    """11.1, 2.2"""
    stage = Stage(me=1)
    before = stage.replica.status()
    for peer, message in noise:
        stage.give(Received(peer, message))
    after = stage.replica.status()
    for name in ("height", "view", "asked", "askers", "voted_prepare", "voted_commit", "abstaining", "peers"):
        assert getattr(after, name) == getattr(before, name)


def test_a_flood_of_views_keeps_one_vote_per_member_and_kind() -> None:
    """11.2"""
    stage = Stage(me=1)
    for view in range(1, 300):
        stage.receive(stage.prepare(3, b"a", view), stage.commit(3, b"a", view), stage.ask(3, view))
        stage.receive(stage.pre_prepare(b"a", 4 * view + 3))
    work = stage.replica._work
    assert len(work.book.slots(VoteKind.PREPARE)) == 1
    assert len(work.book.slots(VoteKind.COMMIT)) == 1
    assert len(work.asks) == 1
    assert len(work._ahead) == 1


def test_a_vote_of_a_lower_view_ahead_does_not_displace_a_higher_one() -> None:
    """11.2"""
    stage = Stage(me=1)
    stage.receive(stage.prepare(3, b"a", 5), stage.prepare(3, b"a", 4))
    assert stage.replica._work.book.slots(VoteKind.PREPARE) == [(5, digest_of(b"a"))]


def test_the_last_height_and_view_of_the_type_are_survived() -> None:
    """11.4"""
    stage = Stage(me=1)
    last = 2**63 - 1
    stage.receive(*(stage.status(index, height=last) for index in (2, 3)))
    stage.receive(stage.prepare(2, b"a", last), stage.ask(2, last), stage.prepare(3, b"a", 0, last))
    stage.pass_time(3_000)
    head = Head(
        last - 1, GENESIS, stage.certificate(VoteKind.COMMIT, b"a", (0, 2, 3), last - 1, last - 1), 0, stage.members
    )
    stage.give(Synced(msgspec.structs.replace(head, start_view=last - 1)))
    stage.work()
    stage.pass_time(3_000)
    assert stage.replica.status().height == last
