"""What the runtime tells consensus: who decides the next height, who decided this one, what a block is worth."""

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from consensus.codec import decode, encode
from consensus.effects import Applied, BlockStanding, BuildPayload, CheckPayload, Decide, PayloadChecked
from consensus.members import Members, Validator
from consensus.messages import PAYLOAD_SIZE_MAX
from node.config import NO_RECOVERIES, Recoveries, Recovery
from node.errors import ConfigError
from node.ledger import CertifiedBlock, Proposal, Transaction
from node.runtime.chain import Chain
from node.runtime.clock import Clock
from node.runtime.threads import WorkerThreads
from node.state import ExecutedBlock
from node.store import StoreView
from tests.node.ledger_world import Ledger, LedgerClock, certificate, decoded, key_of, with_header


class VerifiedBodies:
    """Bodies whose signatures nobody has to verify; what waits, and the one proposal that the others have."""

    def __init__(self, proposal: Proposal | None = None, transactions: Sequence[Transaction] = ()) -> None:
        self._proposal = proposal
        self._transactions = list(transactions)

    async def verified(self, data: Sequence[bytes]) -> list[Transaction]:
        return [Transaction.decode(item) for item in data]

    async def payload(self, *asked: object) -> bytes | None:
        return None if self._proposal is None else encode(self._proposal)

    async def transactions(self, *asked: object) -> list[Transaction]:
        return self._transactions

    def candidates(self) -> list[Transaction]:
        return self._transactions


@pytest.fixture
def threads() -> Iterator[WorkerThreads]:
    pool = WorkerThreads(1)
    yield pool
    pool.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path)
    yield opened
    opened.close()


def started(
    ledger: Ledger,
    threads: WorkerThreads,
    recoveries: Recoveries = NO_RECOVERIES,
    others: VerifiedBodies | None = None,
    clock: Clock | None = None,
    left: list[int] | None = None,
    on_durable: Callable[[ExecutedBlock, StoreView], None] = lambda executed, view: None,
) -> Chain:
    """The chain of a node that has just started on the ledger's store; `left`: the room of its blocks, in calls."""
    bodies: Any = others or VerifiedBodies()

    def on_divergence(*told: object) -> None:
        raise AssertionError(told)

    async def room() -> None:
        return

    def on_applied(executed: ExecutedBlock, view: StoreView) -> None:
        if left is not None:
            left.append(chain.room(executed)[0])

    chain = Chain(
        ledger.store,
        ledger.executor,
        bodies,
        threads,
        clock or Clock(),
        "bank-a",
        2_000,
        on_durable,
        on_applied,
        on_divergence,
        room,
        recoveries,
    )
    return chain


async def test_the_head_names_the_list_that_decided_it_after_a_start_and_after_a_block(
    ledger: Ledger, threads: WorkerThreads
) -> None:
    first = ledger.store.head.members
    other = Members((*first.validators[:3], Validator("bank-e", key_of("bank-e", 8))))
    assert started(ledger, threads).head.decided_by == first

    change = ledger.build(ledger.transaction("bank-a"))
    assert change is not None
    ledger.decide(msgspec.structs.replace(change, members=other))
    chain = started(ledger, threads)
    assert (chain.head.height, chain.head.decided_by, chain.head.members) == (1, first, other)

    block = ledger.build(ledger.transaction("bank-a"))
    assert block is not None
    transactions = await chain.verified(block.body.transactions)
    blocks = iter([(CertifiedBlock(block.body, certificate(block)), transactions)])

    async def take() -> tuple[CertifiedBlock, Sequence[Transaction]] | None:
        return next(blocks, None)

    await chain.replay(take)
    head = chain.head
    # The state still names the first list: this block changes the members back.
    assert (head.height, head.decided_by, head.members) == (2, other, first)
    assert chain.head == head
    assert started(ledger, threads).head == head


async def test_a_block_that_the_former_members_decide_in_the_place_of_a_recovery_ends_the_node(
    ledger: Ledger, threads: WorkerThreads
) -> None:
    """It would stand still for ever without a word otherwise."""
    block = ledger.build(ledger.transaction("bank-a"))
    assert block is not None
    survivors = ledger.store.head.validators[:2]
    chain = started(ledger, threads, Recoveries((Recovery(1, bytes(32), b"", survivors, "lost", bytes(32)),)))
    with pytest.raises(ConfigError, match="the recovery 0000") as refused:
        await chain.decide(Decide(1, block.digest, certificate(block), 0))
    assert refused.value.code == "recovery_differs"
    assert (chain.head.height, ledger.store.head.height) == (0, 0)


async def test_who_waits_for_a_block_is_told_when_it_is_durable_and_what_comes_then_is_judged_by_it(
    ledger: Ledger, threads: WorkerThreads
) -> None:
    """Before, they waited for the executor too, which only the next block needs: two milliseconds of twenty."""
    executor, transaction = ledger.executor, ledger.transaction("bank-a")
    told: list[tuple[int, int, int | None, int, int]] = []

    def on_durable(executed: ExecutedBlock, view: StoreView) -> None:
        final = executor.admission(transaction, ledger.now_ms)
        heights = ledger.store.head.height, view.head.height
        told.append((*heights, final, executor.head.height, chain.head.height))

    block = ledger.executor.build(ledger.now_ms, "bank-a", [transaction])
    assert block is not None
    bodies = VerifiedBodies(block.proposal, [transaction])
    chain = started(ledger, threads, others=bodies, clock=LedgerClock(ledger), on_durable=on_durable)
    check = CheckPayload(1, 0, block.digest, None, BlockStanding.PROPOSED, False, "bank-a", ())
    assert (await chain.check(check)).valid
    assert isinstance(await chain.decide(Decide(1, block.digest, certificate(block), 0)), Applied)
    assert told == [(1, 1, 1, 0, 0)]
    assert chain.head.height == executor.head.height == 1


class SlowMachine(LedgerClock):
    """Whoever asks for the time has needed a tenth of a second since the last time."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger)
        self._passed_ms = 0

    def now_ms(self) -> int:
        self._passed_ms += 100
        return self._passed_ms


@pytest.mark.parametrize("waiting", [1, 3, 40])
async def test_a_slow_machine_builds_blocks_that_the_others_need_not_wait_for(
    ledger: Ledger, threads: WorkerThreads, waiting: int
) -> None:
    """Under load every primary took longer than the others' patience for its block, and was deposed for it."""
    items = [ledger.transaction("bank-a") for _ in range(waiting)]
    chain = started(ledger, threads, others=VerifiedBodies(transactions=items), clock=SlowMachine(ledger))
    built = await chain.build(BuildPayload(1, 0, ledger.store.head.digest, 0, False, False))
    assert built.payload is not None
    names = decode(built.payload, Proposal, size_max=PAYLOAD_SIZE_MAX).wire_ids
    # A quarter of the patience of two seconds: five times a tenth of a second. What waits is taken in its order.
    assert names == tuple(item.wire_id for item in items[: min(waiting, 5)])


async def test_a_block_that_took_long_holds_nothing_against_who_built_it(
    ledger: Ledger, threads: WorkerThreads
) -> None:
    """It may have been cut off for the time it took, with room for more: so honest primaries would be accused."""

    async def room_on(clock: Clock | None) -> int:
        items = [ledger.transaction("bank-a") for _ in range(4)]
        left: list[int] = []
        chain = started(ledger, threads, others=VerifiedBodies(transactions=items), clock=clock, left=left)
        await chain.build(BuildPayload(chain.head.height + 1, 0, chain.head.digest, 0, False, False))
        block = ledger.executor.build(ledger.now_ms, "bank-a", items)
        assert block is not None
        assert started(ledger, threads).room(block) == (0, 0), "nobody has measured it there"
        await chain.decide(Decide(block.height, block.digest, certificate(block), 0))
        assert chain.head.height == block.height
        return left[0]

    calls_max = ledger.executor.parameters.block_calls_max
    assert await room_on(LedgerClock(ledger)) == calls_max - 4
    assert await room_on(SlowMachine(ledger)) == 0


class Asked:
    """A block of the ledger that may be said to be another code's, and the questions about it."""

    def __init__(self, ledger: Ledger, threads: WorkerThreads, **fields: bytes) -> None:
        built = ledger.build(ledger.transaction("bank-a"))
        assert built is not None
        self.proposal = with_header(built.proposal, **fields)
        others = VerifiedBodies(self.proposal, decoded(built.body))
        self.chain = started(ledger, threads, others=others)

    async def check(self, standing: BlockStanding, payload: bytes | None = None) -> PayloadChecked:
        """The chain's answer; the payload is the proposal's own unless another one is given."""
        payload = encode(self.proposal) if payload is None else payload
        digest = self.proposal.header.digest
        return await self.chain.check(CheckPayload(1, 0, digest, payload, standing, False, "bank-a", ("bank-b",)))


async def test_other_code_executes_what_is_prepared_or_decided_and_nothing_before(
    ledger: Ledger, threads: WorkerThreads
) -> None:
    for standing in BlockStanding:
        answer = await Asked(ledger, threads, contracts_hash=bytes(32)).check(standing)
        assert answer.valid is (standing >= BlockStanding.PREPARED)
        assert ("contracts_differ" in answer.reason) is (standing == BlockStanding.VOTED)


async def test_a_primary_that_sends_garbage_ends_no_node(ledger: Ledger, threads: WorkerThreads) -> None:
    """Its refusal was in no catalogue of errors: an exception that nobody expected, and the process ended."""
    other = encode(with_header(Asked(ledger, threads).proposal, parent=bytes(32)))
    for garbage in (b"", b"garbage", other):
        answer = await Asked(ledger, threads).check(BlockStanding.PROPOSED, garbage)
        assert (answer.valid, "malformed_block" in answer.reason) == (False, True)


def altered(value: Any, chance: random.Random) -> Any:
    """Something else of the same kind, as a liar would write it."""
    if isinstance(value, list):
        return chance.choice([[], value * 2, value[:-1], [altered(item, chance) for item in value], [2**63]])
    if isinstance(value, int):
        return chance.choice([-1, 0, value + 1, 2**53, 2**63 - 1, 2**64 - 1])
    if isinstance(value, bytes):
        return chance.choice([b"", bytes(len(value)), value[:-1], value + b"x"])
    return chance.choice(["", "bank-b", "@governance", "\0", "x" * 300, None])


async def test_whatever_a_primary_sends_is_answered(ledger: Ledger, threads: WorkerThreads) -> None:
    genuine = encode(Asked(ledger, threads).proposal)
    chance, valid = random.Random(1), Counter[bool | None]()
    for _ in range(300):
        header, *_ = fields = msgspec.msgpack.decode(genuine)
        part = chance.choice([header, header, fields])
        place = chance.randrange(len(part))
        part[place] = altered(part[place], chance)
        sent = msgspec.msgpack.encode(fields)
        asked = Asked(ledger, threads)
        with contextlib.suppress(msgspec.ValidationError):
            asked.proposal = msgspec.msgpack.decode(sent, type=Proposal)
        valid[(await asked.check(chance.choice(list(BlockStanding)), sent)).valid] += 1
    assert valid.keys() == {True, False, None}


async def test_garbage_beside_a_vote_does_not_keep_the_decided_block_away(
    ledger: Ledger, threads: WorkerThreads
) -> None:
    """The member took itself for one that differs, and fetched the block again with all its transactions."""
    asked = Asked(ledger, threads)
    refused = await asked.check(BlockStanding.PREPARED, b"garbage")
    assert (refused.valid, "malformed_block" in refused.reason) == (False, True)
    answer = await asked.check(BlockStanding.DECIDED, b"garbage")
    assert (answer.valid, answer.payload) == (True, encode(asked.proposal))
