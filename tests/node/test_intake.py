"""The intake under pressure: what finds no room costs no signature, and what is known is never turned away."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from node.client.answers import Submission
from node.errors import HansaError
from node.gossip import Verdict
from node.ledger import KeySignature, Transaction
from node.mempool import Mempool
from node.runtime.bodies import Bodies
from node.runtime.intake import Intake
from node.runtime.threads import WorkerThreads
from tests.node.ledger_world import Ledger, LedgerClock
from tests.node.signed_ledger import certified, signed, signed_network

POOL = 4


class Counting(WorkerThreads):
    """Real threads that count signatures."""

    def __init__(self) -> None:
        super().__init__(1)
        self.verified = 0

    async def verify(self, items: Sequence[tuple[bytes, bytes, bytes]]) -> list[bool]:
        self.verified += len(items)
        return await super().verify(items)


class World:
    """A ledger with a mempool for POOL transactions, or another one, and an intake over it."""

    def __init__(self, path: Path, pool: Mempool | None = None) -> None:
        self.ledger = Ledger(path, signed_network())
        self.threads = Counting()
        self.pool = Mempool(POOL, 2**20) if pool is None else pool
        clock = LedgerClock(self.ledger)
        executor, store = self.ledger.executor, self.ledger.store
        bodies = Bodies(self.pool, executor, self.threads, clock, lambda peer, error: None)
        self.intake = Intake(
            self.pool, executor, bodies, store, self.threads, clock, lambda: None, lambda: None, 1_000
        )

    def new(self, sender: str) -> Transaction:
        return signed(self.ledger.transaction(sender))

    async def submit(self, *transactions: Transaction) -> list[str]:
        """What came of each: a status, or the code of an error."""
        outcomes = await self.intake.submit([item.data for item in transactions])
        return [item.status if isinstance(item, Submission) else code_of(item) for item in outcomes]

    def settle(self, *transactions: Transaction) -> None:
        executed = self.ledger.build(*transactions)
        assert executed is not None
        self.ledger.store.apply(executed, certified(executed), 0)
        self.ledger.executor.advance(executed, self.ledger.store.snapshot())

    def close(self) -> None:
        self.threads.close()
        self.ledger.store.close()


def code_of(error: HansaError) -> str:
    return error.code


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "data")
    yield made
    made.close()


async def test_what_finds_no_room_is_refused_before_its_signatures_are_verified(world: World) -> None:
    full = [world.new(bank) for bank in ("bank-a", "bank-b", "bank-c", "bank-d")]
    assert await world.submit(*full) == ["pending"] * 4
    verified = world.threads.verified
    late = world.new("bank-a")
    assert await world.submit(late, late) == ["queue_full"] * 2
    assert world.threads.verified == verified
    world.pool.applied(1, world.ledger.now_ms, full[:1], 0, 0)
    assert await world.submit(late) == ["pending"]


async def test_what_a_peer_has_promised_finds_room_where_clients_are_refused(world: World) -> None:
    """Every node was full of what its own clients sent, and lacked what the others put into their proposals."""
    banks = ("bank-a", "bank-b", "bank-c", "bank-d")
    assert await world.submit(*[world.new(bank) for bank in banks]) == ["pending"] * POOL
    assert await world.submit(world.new("bank-a")) == ["queue_full"]
    told = [world.new(bank).data for bank in banks[:2]]
    assert await world.intake.from_peer("bank-b", told) == [Verdict.ACCEPTED] * 2
    verified = world.threads.verified
    late = world.new("bank-c").data
    assert await world.intake.from_peer("bank-b", [late]) == [Verdict.LATER], "its peer may bring it again"
    assert world.threads.verified == verified
    assert await world.submit(world.new("bank-d")) == ["queue_full"], "what is promised elsewhere counts too"


async def test_one_request_counts_its_own_transactions(world: World) -> None:
    """Else a request of thousands would have all its signatures verified, to find room for a few of them."""
    outcomes = await world.submit(*[world.new("bank-a") for _ in range(6)])
    assert outcomes == ["pending"] * 2 + ["too_many_from_sender"] * 4
    assert world.threads.verified == 2
    others = [world.new("bank-b") for _ in range(5)]
    verdicts = await world.intake.from_peer("bank-b", [item.data for item in others])
    assert verdicts == [Verdict.ACCEPTED] * 3 + [Verdict.LATER] * 2
    assert world.threads.verified == 5


async def test_what_is_refused_takes_no_room_from_the_next_request(world: World) -> None:
    forged = [
        Transaction.assemble(item.body, [KeySignature(item.signatures[0].key, bytes(64))])
        for item in (world.new("bank-a") for _ in range(6))
    ]
    assert set(await world.submit(*forged)) == {"bad_signature", "too_many_from_sender"}
    assert await world.submit(world.new("bank-a"), world.new("bank-a")) == ["pending"] * 2


async def test_a_greedy_sender_is_refused_where_another_is_taken(world: World) -> None:
    outcomes = [(await world.submit(world.new("bank-a")))[0] for _ in range(3)]
    assert outcomes == ["pending", "pending", "too_many_from_sender"]
    assert await world.submit(world.new("bank-b")) == ["pending"]


async def test_a_full_pool_still_knows_what_is_final_and_what_waits(world: World) -> None:
    """Who asks again under one request id must learn what became of it, and not send another in its place."""
    done = world.new("bank-a")
    world.settle(done)
    waiting = [world.new(bank) for bank in ("bank-a", "bank-b", "bank-c", "bank-d")]
    await world.submit(*waiting)
    assert await world.submit(done, waiting[0]) == ["final", "pending"]
    other = signed(world.ledger.transaction("bank-a", request=done.body.request_id))
    assert await world.submit(other) == ["request_conflict"]


async def test_a_request_of_one_sender_that_finds_no_room_comes_again_as_a_whole(world: World) -> None:
    """Under overload most requests are such: what is behind their first transaction is not even decoded."""
    waiting = [world.new("bank-a") for _ in range(2)]
    late, garbage = world.new("bank-a"), world.new("bank-a").data[:-1]
    assert await world.submit(*waiting) == ["pending"] * 2
    verified = world.threads.verified
    outcomes = await world.intake.submit([late.data, garbage])
    assert [code_of(item) for item in outcomes if isinstance(item, HansaError)] == ["too_many_from_sender"] * 2
    assert world.threads.verified == verified


async def test_a_request_of_two_senders_who_both_find_no_room_comes_again_as_a_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to so many senders as are looked at: else a stranger's request would be decoded to be refused at sight."""
    waiting = [world.new(bank) for bank in ("bank-a", "bank-a", "bank-b")]
    assert await world.submit(*waiting) == ["pending"] * 3
    late = [world.new(bank).data for bank in ("bank-a", "bank-b")]
    garbage, crowded = late[1][:-1], "too_many_from_sender"
    for senders_max, last in ((2, crowded), (1, "malformed_transaction")):
        monkeypatch.setattr("node.runtime.intake.SENDERS_AT_SIGHT_MAX", senders_max)
        outcomes = await world.intake.submit([*late, garbage])
        assert [code_of(item) for item in outcomes if isinstance(item, HansaError)] == [crowded, crowded, last]


async def test_of_each_sender_the_first_is_looked_at_before_all_is_refused(world: World) -> None:
    done = world.new("bank-b")
    world.settle(done)
    waiting = [world.new(bank) for bank in ("bank-a", "bank-a", "bank-b")]
    assert await world.submit(*waiting) == ["pending"] * 3
    late, crowded = world.new("bank-a"), "too_many_from_sender"
    assert await world.submit(late, done) == [crowded, "final"]
    expired = signed(world.ledger.transaction("bank-b", expires_at_ms=world.ledger.now_ms - 1))
    assert await world.submit(late, expired) == [crowded, "expired"]
    key = waiting[2].signatures[0].key
    other = Transaction.assemble(waiting[2].body, [KeySignature(key, bytes(64))])
    assert await world.submit(late, other) == [crowded, "bad_signature"], "what waits under its name is at hand"


async def test_a_request_of_which_more_can_be_said_is_judged_one_by_one(world: World) -> None:
    waiting = [world.new("bank-a") for _ in range(2)]
    late, crowded = world.new("bank-a"), "too_many_from_sender"
    assert await world.submit(*waiting) == ["pending"] * 2
    assert await world.submit(waiting[0], late) == ["pending", crowded]
    assert await world.submit(late, waiting[0]) == [crowded, "pending"], "what is at hand is never turned away"
    assert await world.submit(late, late, world.new("bank-b")) == [crowded, crowded, "pending"]
    expired = signed(world.ledger.transaction("bank-a", expires_at_ms=world.ledger.now_ms - 1))
    assert await world.submit(expired, late) == ["expired", crowded], "it need not come again"
    other = Transaction.assemble(waiting[0].body, [KeySignature(bytes(32), bytes(64))])
    assert await world.submit(other, late) == ["bad_signature", crowded], "what waits under its name is at hand"


async def test_a_large_transaction_does_not_keep_the_small_ones_behind_it_out(tmp_path: Path) -> None:
    world = World(tmp_path / "data", Mempool(100, 8_000))
    while not world.pool.is_half_full:
        assert await world.submit(world.new("bank-a")) == await world.submit(world.new("bank-b")) == ["pending"]
    large = signed(world.ledger.transaction("bank-a", *[world.ledger.opening() for _ in range(40)]))
    assert await world.submit(large, world.new("bank-a")) == ["too_many_from_sender", "pending"]
    world.close()


async def test_what_was_accepted_is_never_crowded_out_of_the_journal(tmp_path: Path) -> None:
    """A node that starts with more accepted than its pool takes keeps all of it, and brings it in as room comes."""
    world = World(tmp_path / "data")
    accepted = [world.new("bank-a") for _ in range(POOL + 2)]
    world.ledger.store.put_pending([(item.tx_id, item.data) for item in accepted])
    assert await world.intake.restore() < len(accepted)
    assert all(world.ledger.store.is_pending(item.tx_id) for item in accepted)
    while world.pool.candidates(10):
        world.pool.applied(1, world.ledger.now_ms, world.pool.candidates(10), 0, 0)
        world.intake.readmit()
    assert all(world.pool.data(item.wire_id) is not None for item in accepted), "each had its turn"
    world.close()
