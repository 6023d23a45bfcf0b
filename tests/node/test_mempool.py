"""The mempool: bounded, fair, and nothing leaves it without a reason."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from node import mempool
from node.errors import RejectedTransaction, Unavailable
from node.ledger import Body, Call, Ending, KeySignature, Transaction
from node.mempool import JUDGED_MAX, RETRY_AFTER_MS, VARIANTS_MAX, Added, Mempool

ROOM = (10_000, 2**21)


def transaction(
    request: str = "R-1",
    sender: str = "bank-a",
    expires_at_ms: int = 1_000,
    calls: int = 1,
    keys: tuple[int, ...] = (1,),
    note: str = "",
) -> Transaction:
    body = Body("net", sender, request, expires_at_ms, "each", (Call("c", "m", {"note": note}),) * calls)
    return Transaction.assemble(body, [KeySignature(bytes((key,)) * 32, bytes(64)) for key in keys])


def filled(*transactions: Transaction, limit: int = 100) -> Mempool:
    pool = Mempool(limit, 10**6)
    for item in transactions:
        assert pool.add(item, 0) is Added.NEW
    return pool


def test_a_transaction_waits_under_both_names_until_it_is_final() -> None:
    item = transaction()
    pool = filled(item)
    assert pool.add(item, 5) is Added.KNOWN
    assert pool.get(item.wire_id) is item
    assert pool.waiting(item.tx_id) is item
    assert pool.applied(1, 10, [item], *ROOM) == {}
    assert pool.get(item.wire_id) is None
    assert pool.data(item.wire_id) == item.data, "members that lag still fetch it"
    assert not pool.is_waiting(item.wire_id)
    assert pool.add(item, 20) is Added.FINAL
    assert (len(pool), pool.size_bytes) == (0, 0)


def test_signature_variants_of_one_transaction_are_joined() -> None:
    first, second = transaction(keys=(1, 3)), transaction(keys=(2,))
    both = transaction(keys=(1, 2, 3))
    pool = filled(first)
    assert pool.add(second, 0) is Added.MERGED
    assert [item.wire_id for item in pool.candidates(10)] == [both.wire_id]
    for variant in (first, second, both):
        assert pool.get(variant.wire_id) is not None, "a proposal may name any variant that was seen"
    assert pool.add(both, 0) is Added.KNOWN
    pool.applied(1, 10, [second], *ROOM)
    assert (len(pool), pool.size_bytes, pool.get(both.wire_id)) == (0, 0, None)


def test_a_variant_that_has_all_keys_and_more_becomes_the_best_itself() -> None:
    pool = filled(transaction(keys=(1,)))
    more = transaction(keys=(1, 2))
    assert pool.add(more, 0) is Added.MERGED
    assert pool.candidates(1) == [more]


def test_variants_are_bounded() -> None:
    pool = filled(transaction(keys=(1,)))
    for key in range(2, 40):
        pool.add(transaction(keys=(key,)), 0)
    assert pool.size_bytes <= (VARIANTS_MAX + 1) * len(transaction(keys=tuple(range(1, 10))).data)
    assert len(pool) == 1


def test_another_transaction_under_a_waiting_request_id_is_refused() -> None:
    pool = filled(transaction(note="first"))
    with pytest.raises(RejectedTransaction, match="request_conflict") as refused:
        pool.add(transaction(note="second"), 0)
    assert refused.value.details == {"tx_id": transaction(note="first").tx_id.hex()}
    assert pool.add(transaction(note="second", sender="bank-b"), 0) is Added.NEW


def test_what_lost_its_request_id_to_a_decided_block_is_dropped_with_the_reason() -> None:
    loser = transaction(note="loser")
    pool = filled(loser)
    ended = pool.applied(7, 10, [transaction(note="winner")], *ROOM)
    assert ended == {loser.tx_id: Ending("dropped", "request_conflict", 7)}
    assert pool.ending(loser.tx_id) == ended[loser.tx_id]
    assert not pool.candidates(10)


def test_only_a_decided_time_lets_transactions_expire() -> None:
    early, late = transaction("R-1", expires_at_ms=100), transaction("R-2", expires_at_ms=101)
    pool = filled(late, early)
    assert pool.applied(1, 99, [], *ROOM) == {}
    assert pool.applied(2, 100, [], *ROOM) == {early.tx_id: Ending("expired", "expired", 2)}
    assert pool.candidates(10) == [late]


def test_what_became_final_is_not_kept_until_it_would_have_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node under load grew by two hundred bytes a transaction, as long as clients let transactions live."""
    monkeypatch.setattr(mempool, "EXPIRIES_SPARE", 10)
    waits = [transaction(f"W-{number}", expires_at_ms=500 + number) for number in range(5)]
    pool = filled(*waits)
    for number in range(100):
        item = transaction(f"R-{number}", expires_at_ms=100_000)
        pool.add(item, 0)
        assert pool.applied(number, number, [item], *ROOM) == {}
        assert len(pool._expiries) <= 2 * len(pool) + 10
    for number, item in enumerate(waits):
        assert set(pool.applied(100 + number, 500 + number, [], *ROOM)) == {item.tx_id}
    assert not pool


def test_a_full_pool_refuses_and_forgets_nothing() -> None:
    pool = Mempool(4, 10**6)
    kept = [transaction("R-1", sender) for sender in ("bank-a", "bank-b", "bank-c", "bank-d")]
    for item in kept:
        pool.add(item, 0)
    with pytest.raises(Unavailable, match="queue_full") as caught:
        pool.add(transaction("R-9", "bank-e"), 0)
    assert caught.value.entry.retryable
    assert caught.value.details["retry_after_ms"] == RETRY_AFTER_MS
    assert sorted(item.wire_id for item in pool.candidates(10)) == sorted(item.wire_id for item in kept)


def test_bytes_are_bounded_too() -> None:
    pool = Mempool(100, 3 * len(transaction().data))
    assert pool.add(transaction("R-1"), 0) is Added.NEW
    with pytest.raises(Unavailable, match="too_many_from_sender"):
        pool.add(transaction("R-2"), 0)
    assert pool.add(transaction("R-2", "bank-b"), 0) is Added.NEW


def test_one_sender_cannot_fill_the_pool() -> None:
    pool = Mempool(10, 10**6)
    for number in range(5):
        pool.add(transaction(f"R-{number}"), 0)
    with pytest.raises(Unavailable, match="too_many_from_sender"):
        pool.add(transaction("R-9"), 0)
    assert pool.add(transaction("R-9", "bank-b"), 0) is Added.NEW


def test_what_waits_is_never_refused_for_want_of_room_with_other_signatures() -> None:
    """Once others came, a sender may hold more than its share. What it sent waits all the same."""
    pool = Mempool(10, 10**6)
    for number in range(5):
        pool.add(transaction(f"R-{number}"), 0)
    pool.add(transaction("R-9", "bank-b"), 0)
    assert pool.add(transaction("R-0", keys=(2,)), 0) is Added.KNOWN
    assert len(pool) == 6


@pytest.mark.parametrize("greedy", [1, 2, 4])
def test_greedy_senders_leave_room_for_whoever_comes(greedy: int) -> None:
    """Each sends far more than it may: n of them leave the (n + 1)-th part free, by count and by bytes."""
    size = len(transaction("R-000").data)
    for pool in (Mempool(100, 10**6), Mempool(10**6, 100 * size)):
        for number in range(100):
            for sender in range(greedy):
                with contextlib.suppress(Unavailable):
                    pool.add(transaction(f"R-{number:03}", f"bank-{sender}"), 0)
        assert len(pool) == greedy * (100 // (greedy + 1))
        refused = pool.refusal("bank-0", size)
        assert refused is not None
        assert (refused.code, refused.details["retry_after_ms"]) == ("too_many_from_sender", RETRY_AFTER_MS)
        for number in range(50 // (greedy + 1)):
            assert pool.add(transaction(f"R-{number:03}", "bank-9"), 0) is Added.NEW


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 400)), max_size=60), st.integers(0, 8))
def test_a_request_finds_the_room_that_the_pool_would_give_it(wanted: list[tuple[int, int]], waiting: int) -> None:
    """Counted into a room all at once, or added one after the other: the same are refused, for the same reason."""
    pool = Mempool(20, 4_000)
    items = [
        transaction(f"R-{number}", f"bank-{sender}", note="x" * size)
        for number, (sender, size) in enumerate(wanted)
    ]
    for item in items[:waiting]:
        with contextlib.suppress(Unavailable):
            pool.add(item, 0)
    room = pool.room()
    expected = [room.take(item.body.sender, len(item.data)) for item in items[waiting:]]
    for item, refused in zip(items[waiting:], expected, strict=True):
        if refused is None:
            assert pool.add(item, 0) is Added.NEW
        else:
            with pytest.raises(Unavailable) as met:
                pool.add(item, 0)
            assert met.value.code == refused.code


def test_candidates_are_fair_by_calls_and_oldest_first() -> None:
    pool = filled(
        *[transaction(f"A-{number}", "bank-a", calls=10) for number in range(3)],
        *[transaction(f"B-{number}", "bank-b", calls=1) for number in range(12)],
        transaction("C-0", "bank-c"),
    )
    order = [item.body.request_id for item in pool.candidates(16)]
    assert order[:3] == ["A-0", "B-0", "C-0"]
    assert order.index("A-1") == 12, "ten single calls of bank-b stand against one bundle of bank-a"
    assert [request for request in order if request[0] == "B"] == [f"B-{number}" for number in range(12)]
    assert order[:5] == [item.body.request_id for item in pool.candidates(5)]


def test_what_no_block_can_contain_is_no_work_and_no_candidate() -> None:
    stuck, good = transaction("R-1"), transaction("R-2")
    pool = filled(stuck, good)
    assert pool.work(lambda item: item is good).waiting
    assert pool.candidates(10) == [good]
    pool.applied(1, 10, [good], *ROOM)
    assert pool.candidates(10) == [stuck], "the next block may have changed what stood in its way"
    assert not pool.work(lambda item: False).waiting
    assert len(pool) == 1, "set aside, not forgotten"


def test_judging_is_bounded_and_goes_on_where_it_stopped() -> None:
    pool = filled(*[transaction(f"R-{number}") for number in range(JUDGED_MAX + 1)], limit=10_000)
    judged: list[str] = []

    def last_only(item: Transaction) -> bool:
        judged.append(item.body.request_id)
        return item.body.request_id == f"R-{JUDGED_MAX}"

    assert not pool.work(last_only).waiting
    assert len(judged) == JUDGED_MAX
    assert pool.work(last_only).waiting


def test_being_passed_over_is_counted_only_for_the_oldest_and_only_when_there_was_room() -> None:
    oldest = transaction("R-1", calls=5)
    pool = filled(oldest, transaction("R-2"))

    def passed_over(height: int, calls_free: int = 10, bytes_free: int = 10**6) -> int:
        assert pool.work(lambda item: True).waiting
        pool.applied(height, height, [], calls_free, bytes_free)
        return pool.work(lambda item: True).passed_over

    assert passed_over(1) == 0, "it may have come while that block was in the making"
    assert passed_over(2) == 1
    assert passed_over(3, calls_free=4) == 1
    assert passed_over(4, bytes_free=10) == 1
    assert passed_over(5) == 2
    pool.applied(6, 6, [oldest], *ROOM)
    assert pool.work(lambda item: True).passed_over == 0


def test_ids_for_repair_are_those_that_have_waited() -> None:
    pool = Mempool(10, 10**6)
    old, young = transaction("R-1"), transaction("R-2")
    pool.add(old, 0)
    pool.add(young, 90)
    assert pool.wire_ids(100, 50, 0, 10) == [old.wire_id]
    assert pool.wire_ids(100, 0, 0, 10) == [old.wire_id, young.wire_id]
    assert pool.wire_ids(100, 0, 0, 1) == [old.wire_id]
    assert pool.wire_ids(100, 0, 1, 1) == pool.wire_ids(100, 0, 1, 10) == [young.wire_id]
    assert pool.wire_ids(100, 50, 1, 10) == pool.wire_ids(100, 0, 2, 10) == []
    assert pool.tx_ids(1) == [young.tx_id]


def test_missing_is_what_does_not_wait() -> None:
    pool = Mempool(10, 10**6)
    here, final, other = transaction("R-1"), transaction("R-2"), transaction("R-3")
    for item in (here, final):
        pool.add(item, 0)
    pool.applied(1, 1, [final], *ROOM)
    assert pool.missing([other.wire_id, here.wire_id, final.wire_id]) == [other.wire_id, final.wire_id]


requests = st.sampled_from([f"R-{number}" for number in range(4)])
senders = st.sampled_from(["bank-a", "bank-b", "bank-c"])


class MempoolMachine(RuleBasedStateMachine):
    """Whatever comes in whatever order: the counts are true and the bounds hold."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Mempool(6, 1_500)
        self.height = 0
        self.fates: dict[bytes, str] = {}

    @rule(
        request=requests,
        sender=senders,
        note=st.sampled_from("xy"),
        expires=st.integers(1, 30),
        keys=st.sets(st.integers(1, 3), min_size=1).map(lambda keys: tuple(sorted(keys))),
    )
    def add(self, request: str, sender: str, note: str, expires: int, keys: tuple[int, ...]) -> None:
        item = transaction(request, sender, expires, 1, keys, note)
        try:
            if self.pool.add(item, self.height) is Added.NEW:
                self.fates[item.tx_id] = "pending"
        except (RejectedTransaction, Unavailable):
            pass

    @rule(count=st.integers(0, 3), time=st.integers(0, 3))
    def apply(self, count: int, time: int) -> None:
        self.height += 1
        block = self.pool.candidates(count)
        ended = self.pool.applied(self.height, self.height + time, block, *ROOM)
        for item in block:
            self.fates[item.tx_id] = "final"
        for tx_id in ended:
            self.fates[tx_id] = "ended"

    @invariant()
    def counts_are_true(self) -> None:
        waiting = [tx_id for tx_id, fate in self.fates.items() if fate == "pending"]
        found = self.pool.candidates(100)
        assert sorted(item.tx_id for item in found) == sorted(waiting)
        assert len(self.pool) == len(waiting) <= 6
        assert self.pool.size_bytes <= 1_500
        assert (self.pool.size_bytes > 0) == bool(waiting)
        for item in found:
            assert self.pool.get(item.wire_id) is item


TestMempool = MempoolMachine.TestCase
TestMempool.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
