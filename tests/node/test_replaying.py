"""Blocks replayed while the one before is being written: order, outcomes, failures in the middle, and crashes."""

import asyncio
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from consensus.codec import encode
from consensus.effects import BlockStanding, Decide, VoteRecord
from consensus.messages import Vote, VoteKind, vote_bytes
from node.errors import InvalidBlock, StoreError
from node.executor import AheadView
from node.ledger import BlockBody, CertifiedBlock
from node.runtime import replaying
from node.signatures import verify
from node.state import ExecutedBlock, LedgerView
from node.store import Database, LevelDatabase
from node.sync import CatchUp, ReadyBlock
from node.wire import Blocks, FetchBlocks
from tests.crash.dying import DyingDatabase, PowerCut
from tests.crash.test_points import Through
from tests.node.ledger_world import decoded
from tests.node.replay_world import Decided, Replayer
from tests.node.signed_ledger import VOTING_KEYS
from tests.node.test_sync import until

LENGTH = 10
WAIT_S = 30.0


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decided]:
    made = Decided(tmp_path_factory.mktemp("decided") / "db", LENGTH)
    yield made
    made.ledger.close()


@pytest.fixture
def replayer(tmp_path: Path) -> Iterator[Replayer]:
    made = Replayer(tmp_path / "db")
    yield made
    made.close()


async def test_every_block_comes_to_the_heads_rows_and_order_of_the_chain_that_waited_for_the_disk(
    decided: Decided, replayer: Replayer
) -> None:
    assert any(item.scheduled for item in decided.executed), "scheduled calls fall due"
    assert any(item.requests_removed for item in decided.executed), "request ids are forgotten"
    await replayer.chain.replay(decided.giving(1, LENGTH))
    replayer.stands_whole_at(LENGTH)
    assert [replayer.store.head_at(height) for height in range(LENGTH + 1)] == decided.heads
    view, expected = replayer.store.snapshot(), decided.ledger.store.snapshot()
    assert decided.state(view) == decided.state(expected)
    assert dict(replayer.store.rows(b"q", b"r")) == dict(decided.ledger.store.rows(b"q", b"r"))


def test_a_view_ahead_of_the_disk_shows_what_the_disk_will_show(decided: Decided, replayer: Replayer) -> None:
    store, executor = replayer.store, replayer.executor
    base, at_work = store.snapshot(), []
    for height, executed in enumerate(decided.executed, 1):
        certificate = decided.blocks[height - 1].certificate
        checked = executor.check(executed.proposal, decoded(executed.body), standing=BlockStanding.DECIDED)
        at_work.append(checked)
        ahead = AheadView(base, at_work, certificate)
        executor.advance(checked, ahead)
        store.apply(checked, certificate, 0)
        true = store.snapshot()
        assert ahead.head == true.head
        assert list(ahead.scan(b"", b"\xff")) == list(true.scan(b"", b"\xff"))
        keys = {key for item in at_work for key in item.writes.after}
        assert all(ahead.get(key) == true.get(key) for key in [*sorted(keys), b"nothing"])
        names = {name for item in at_work for name in item.tree.buckets}
        assert all(ahead.bucket(name) == true.bucket(name) for name in [*sorted(names), "0123"])
        for limit in (1, 2, 100):
            for before_ms in (true.head.time_ms, true.head.time_ms + 10_000):
                assert ahead.requests_due(0, before_ms, limit) == true.requests_due(0, before_ms, limit)
        if height % 3 == 0:
            executor.settle(true)
            base, at_work = true, []


async def test_the_next_block_executes_while_the_last_one_is_written_and_no_more_are_begun(
    decided: Decided, tmp_path: Path
) -> None:
    written = threading.Event()

    class Held(Through):
        """The first block's write ends when the test lets it."""

        def write(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
            if replayers and replayers[0].store.head.height == 0:
                assert written.wait(WAIT_S)
            super().write(rows)

    replayers: list[Replayer] = []
    replayer = Replayer(tmp_path / "db", lambda path: Held(LevelDatabase(path)))
    replayers.append(replayer)
    taken: list[int] = []
    giving = decided.giving(1, LENGTH)
    advance = replayer.executor.advance

    def advanced(executed: ExecutedBlock, view: LedgerView, *, shown: bool = True) -> None:
        advance(executed, view, shown=shown)
        if executed.height == replaying.AHEAD_MAX:
            # All that may be begun was executed before the first write came to its end.
            assert replayer.store.head.height == 0
            written.set()

    replayer.executor.advance = advanced  # type: ignore[method-assign]

    async def take() -> ReadyBlock | None:
        ready = await giving()
        if ready is not None:
            taken.append(ready[0].body.header.height)
            assert taken[-1] - replayer.chain.head.height <= replaying.AHEAD_MAX
        return ready

    await replayer.chain.replay(take)
    assert taken == list(range(1, LENGTH + 1))
    replayer.stands_whole_at(LENGTH)
    replayer.close()


async def test_a_transaction_is_not_called_final_while_its_block_is_being_written(
    decided: Decided, replayer: Replayer
) -> None:
    """Admission stood on the executed blocks: "final" was answered for what the store did not know yet."""
    write, told = replayer.threads.write, list[int | None]()

    def admitted(executed: ExecutedBlock) -> int | None:
        return replayer.executor.admission(executed.transactions[0], executed.header.time_ms)

    async def asking(function: Callable[..., Any], *arguments: Any) -> Any:
        executed = arguments[0]
        assert replayer.executor.head.height >= executed.height
        told.append(admitted(executed))
        return await write(function, *arguments)

    replayer.threads.write = asking  # type: ignore[method-assign, assignment]
    await replayer.chain.replay(decided.giving(1, LENGTH))
    assert told == [None] * LENGTH
    assert admitted(decided.executed[-1]) == LENGTH


def forged(block: CertifiedBlock) -> CertifiedBlock:
    """The block with another state root, certified all the same."""
    header = msgspec.structs.replace(block.body.header, state_root=bytes(32))
    certificate = msgspec.structs.replace(block.certificate, digest=header.digest)
    return CertifiedBlock(BlockBody(header, block.body.transactions, ()), certificate)


async def test_a_block_that_differs_in_the_middle_stops_there_and_all_before_it_is_applied(
    decided: Decided, replayer: Replayer
) -> None:
    giving = decided.giving(1, LENGTH)

    async def take() -> ReadyBlock | None:
        ready = await giving()
        if ready is not None and ready[0].body.header.height == 5:
            return forged(ready[0]), ready[1]
        return ready

    with pytest.raises(InvalidBlock, match="state_differs"):
        await replayer.chain.replay(take)
    replayer.stands_whole_at(4)
    await replayer.chain.replay(decided.giving(5, LENGTH))
    replayer.stands_whole_at(LENGTH)
    assert replayer.store.head == decided.heads[LENGTH]


async def test_a_block_that_cannot_be_taken_stops_there_but_an_earlier_one_that_differs_counts_first(
    decided: Decided, replayer: Replayer
) -> None:
    def giving(first: int, differs: int) -> Callable[[], Any]:
        heights = iter(range(first, LENGTH + 1))

        async def take() -> ReadyBlock | None:
            height = next(heights)
            if height == first + 2:
                raise InvalidBlock("transaction_not_includable", "bad_signature")
            block, transactions = decided.ready(height)
            return (forged(block) if height == differs else block), transactions

        return take

    with pytest.raises(InvalidBlock, match="transaction_not_includable"):
        await replayer.chain.replay(giving(1, 0))
    replayer.stands_whole_at(2)
    with pytest.raises(InvalidBlock, match="state_differs"):
        await replayer.chain.replay(giving(3, 4))
    replayer.stands_whole_at(3)


async def test_the_next_height_starts_no_lower_than_a_view_voted_in_although_the_vote_came_late(
    decided: Decided, replayer: Replayer
) -> None:
    network = decided.ledger.network.network_id
    signature = VOTING_KEYS["bank-a"].sign(vote_bytes(network, VoteKind.COMMIT, 7, 2, bytes(32)))
    record = VoteRecord(Vote(VoteKind.COMMIT, 7, 2, bytes(32), 0, signature), False, None)
    giving = decided.giving(1, 3)

    async def take() -> ReadyBlock | None:
        ready = await giving()
        if ready is not None and ready[0].body.header.height == 3:
            # Block 2 was begun before.
            await replayer.threads.write(replayer.store.put_records, [record])
        return ready

    replayer.threads.write = in_order(replayer)  # type: ignore[method-assign]
    await replayer.chain.replay(take)
    assert [replayer.store.head_at(height).start_view for height in (1, 2, 3)] == [0, 7, 0]


def in_order(replayer: Replayer) -> Callable[..., Any]:
    """Block 2 is written after the vote at its height."""
    write, voted = replayer.threads.write, threading.Event()

    async def ordered(function: Callable[..., Any], *arguments: Any) -> Any:
        if function == replayer.store.put_records:
            result = await write(function, *arguments)
            voted.set()
            return result
        if arguments[0].height == 2:
            await replayer.threads.execute(lambda: voted.wait(WAIT_S))
        return await write(function, *arguments)

    return ordered


class Serving:
    """A link to one member that has every block."""

    connected = ("bank-b",)

    def __init__(self, decided: Decided) -> None:
        self._blocks = [encode(block) for block in decided.blocks]

    def send(self, peer: str, message: object) -> bool:
        return False

    async def request(self, peer: str, message: object, timeout_s: float) -> object:
        assert isinstance(message, FetchBlocks)
        return Blocks(0, tuple(self._blocks[message.first - 1 : message.last]), len(self._blocks), 1)


async def test_catch_up_that_is_to_rest_while_blocks_are_under_way_leaves_them_whole_and_goes_on(
    decided: Decided, tmp_path: Path
) -> None:
    goes_on = threading.Event()

    class Held(Through):
        """Blocks are written when the test lets them."""

        def write(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
            assert not replayers or goes_on.wait(WAIT_S)
            super().write(rows)

    replayers: list[Replayer] = []
    replayer = Replayer(tmp_path / "db", lambda path: Held(LevelDatabase(path)))
    replayers.append(replayer)
    failed: list[object] = []

    def fail(*told: object) -> None:
        failed.append(told)

    sync = CatchUp(
        Serving(decided), replayer.chain, decided.ledger.network.network_id, verify,
        lambda head: None, fail, fail, fail, fail,
    )  # fmt: skip
    sync.catch_up(LENGTH, ["bank-b"])
    await until(lambda: replayer.executor.head.height == replaying.AHEAD_MAX, WAIT_S)
    assert replayer.chain.head.height == 0
    sync.rest(True)
    for _ in range(20):
        await asyncio.sleep(0)
    assert sync.progress().running, "what has begun comes to its end"
    goes_on.set()
    await until(lambda: not sync.progress().running, WAIT_S)
    replayer.stands_whole_at(replaying.AHEAD_MAX)
    sync.rest(False)
    await until(lambda: replayer.chain.head.height == LENGTH and not sync.progress().running, WAIT_S)
    replayer.stands_whole_at(LENGTH)
    assert failed == []
    assert (sync.progress().blocks_total, sync.progress().transactions_total) == (LENGTH, 2 * LENGTH - 1)
    await sync.close()
    replayer.close()


async def test_a_disk_that_breaks_ends_it_at_the_last_durable_block(decided: Decided, tmp_path: Path) -> None:
    class Breaking(Through):
        """The fourth block finds no room; nothing is taken afterwards, as LevelDB does."""

        broken = False

        def write(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
            if self.broken or (replayers and replayers[0].store.head.height == 3):
                self.broken = True
                raise StoreError("disk_full", "no room")
            super().write(rows)

    replayers: list[Replayer] = []
    replayer = Replayer(tmp_path / "db", lambda path: Breaking(LevelDatabase(path)))
    replayers.append(replayer)
    with pytest.raises(StoreError, match="disk_full"):
        await replayer.chain.replay(decided.giving(1, LENGTH))
    assert replayer.applied == [1, 2, 3]
    assert replayer.store.head.height == replayer.chain.head.height == 3
    # The executor is ahead of the disk now: it must not be asked, or its answer would look like a divergence.
    certificate = decided.blocks[3].certificate
    with pytest.raises(StoreError, match="block 4 could not be written"):
        await replayer.chain.decide(Decide(4, certificate.digest, certificate, 0))
    replayer.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["before", "after", "cut", "zeros", "holes"])
async def test_a_crash_between_leaves_the_last_block_told_of_or_the_one_being_written(
    decided: Decided, tmp_path: Path, how: str
) -> None:
    chance = random.Random(how)
    directory, told, left, crashes = tmp_path / "0", 0, 3, 0
    while True:
        disks: list[DyingDatabase] = []

        def dying(path: Path, disks: list[DyingDatabase] = disks, left: int = left) -> Database:
            disks.append(DyingDatabase(path, left, how))
            return disks[0]

        try:
            # Opened by the executor: the root of all that is there is that of the head, or this raises.
            replayer = Replayer(directory, dying)
        except PowerCut:
            raise AssertionError("it dies later") from None
        height = replayer.store.head.height
        assert told <= height <= told + 1
        assert replayer.store.head == decided.heads[height]
        try:
            await replayer.chain.replay(decided.giving(height + 1, LENGTH))
        except PowerCut:
            told, crashes = max([height, *replayer.applied]), crashes + 1
            replayer.threads.close()
            directory = tmp_path / str(crashes)
            disks[0].crashed(chance, directory)
            left = chance.randint(1, 3)
            continue
        replayer.stands_whole_at(LENGTH)
        assert decided.state(replayer.store.snapshot()) == decided.state(decided.ledger.store.snapshot())
        replayer.close()
        break
    assert crashes >= 3
