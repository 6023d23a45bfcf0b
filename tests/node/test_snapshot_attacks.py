"""What a lying peer, a full disk or a long absence must not do to a node that joins from a snapshot."""

import asyncio
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import structlog

from consensus.members import Validator
from node.config import SyncSettings
from node.errors import InvalidFrame, StoreError
from node.executor import request_of
from node.ledger import Transaction, sha256
from node.mempool import Mempool
from node.runtime.bodies import Bodies
from node.runtime.clock import Clock
from node.runtime.intake import Intake
from node.runtime.joining import Joining
from node.runtime.snapshots import Snapshots
from node.runtime.threads import WorkerThreads
from node.snapshot import (
    Manifest,
    SnapshotFolder,
    cut,
    open_chunk,
    read_manifest,
    require_own_past,
    spill,
)
from node.snapshot.manifest import CHUNK_BYTES_MAX, ChunkEntry, MemberChange
from node.sync.snapshots import GatherProgress
from node.wire import Chunk
from tests.node.ledger_world import HOUR_MS, transfer
from tests.node.test_snapshot import (
    SignedLedger,
    changed_members,
    due,
    judged_manifest,
    made,
    opened,
    signed_network,
)
from tests.node.test_snapshot_gathering import Joiner, Made, Server, answering, everything

__all__ = ["everything"]


@pytest.fixture
def ledger(tmp_path: Path) -> Generator[SignedLedger]:
    """Four blocks."""
    made_here = SignedLedger(tmp_path / "data", signed_network())
    made_here.open_accounts("A", "B", funds=1_000)
    for number in range(1, 4):
        made_here.settle(made_here.transaction("bank-a", transfer("A", "B", 10, number)))
    yield made_here
    made_here.close()


# --- liars -------------------------------------------------------------------------------------------------------


def test_a_chunk_that_begins_otherwise_is_refused_before_its_rows_are_made(
    ledger: SignedLedger, tmp_path: Path
) -> None:
    """24 KB became three million rows, in seconds in which no vote went out, before anybody saw what they are."""
    content = read_manifest(made(ledger, tmp_path / "snapshots").manifest_bytes()).content
    rows = (CHUNK_BYTES_MAX // 16) // 5
    plain = b"\xdc\x00\x01\xdd" + rows.to_bytes(4, "big") + b"\x92\xc4\x00\xc4\x00" * rows
    entry = ChunkEntry(16, len(plain), sha256(plain))
    lie = msgspec.structs.replace(content, chunks=(entry,))
    data = zlib.compress(plain, 9)
    tracemalloc.start()
    with pytest.raises(InvalidFrame, match="begins otherwise"):
        open_chunk(data, lie, 0)
    assert tracemalloc.get_traced_memory()[1] < 4 * len(plain)
    tracemalloc.stop()


def named(manifest: Manifest, *changes: MemberChange, certificates: tuple[Any, ...]) -> Manifest:
    """The manifest with other changes of members, and their certificates."""
    content = msgspec.structs.replace(manifest.content, changes=changes)
    return msgspec.structs.replace(manifest, content=content, certificates=(*certificates, manifest.certificate))


def test_a_block_that_changed_no_validators_is_no_change_of_members(ledger: SignedLedger, tmp_path: Path) -> None:
    """Whoever adopted it would call it one in its own snapshots and in every proof for an auditor."""
    manifest = read_manifest(made(ledger, tmp_path / "snapshots").manifest_bytes())
    genuine = ledger.store.head_at(2)
    assert genuine.certificate is not None
    change = MemberChange(ledger.store.header(2), genuine.validators)
    with pytest.raises(InvalidFrame, match=r"snapshot_corrupt.*block 2 changed no validators"):
        judged_manifest(named(manifest, change, certificates=(genuine.certificate,)), ledger)


def test_a_node_with_blocks_takes_no_snapshot_with_another_past_than_its_own(
    ledger: SignedLedger, tmp_path: Path
) -> None:
    """Blocks 5 and 6 changed the list and back again: from genesis alone nobody sees that they were left out."""
    changed_members(ledger)
    ledger.settle(ledger.transaction("bank-a", transfer("A", "B", 1, 9)))
    folder = made(ledger, tmp_path / "snapshots")
    manifest = read_manifest(folder.manifest_bytes())
    without = named(manifest, certificates=())
    judged_manifest(without, ledger)
    for height in (0, 4):
        require_own_past(without.content, ledger.store.snapshot().at(height))
    for height in (5, 6):
        view = ledger.store.snapshot().at(height)
        require_own_past(manifest.content, view)
        with pytest.raises(InvalidFrame, match="snapshot_foreign"):
            require_own_past(without.content, view)
    # What is asked of a peer's manifest is asked again before this node's state goes.
    forged = msgspec.structs.replace(manifest.content.changes[0], validators=(Validator("bank-a", bytes(32)),))
    with pytest.raises(InvalidFrame):
        judged_manifest(named(manifest, forged, certificates=manifest.certificates[:1]), ledger)


async def test_a_height_at_which_nobody_else_makes_one_is_not_taken(everything: Made, tmp_path: Path) -> None:
    """Any member could offer its own newest at every block, alone, and send it as slowly as it likes."""
    joiner = Joiner(everything.ledger, tmp_path / "joining", 3, a=Server(everything.new))
    assert not await joiner.gather()
    # A node that was restored from a backup offers such a one too: it is no liar.
    assert joiner.reports == {}
    assert "nobody else makes" in joiner.progress.refused["a"]


async def test_a_write_under_way_ends_before_the_next_download_begins(
    everything: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would put a chunk of the old snapshot in the place of a proven one of the new."""
    genuine, entered, leave = SnapshotFolder.write_chunk, threading.Event(), threading.Event()
    written: list[int] = []

    def slow(self: SnapshotFolder, index: int, data: bytes) -> None:
        entered.set()
        leave.wait(10)
        genuine(self, index, data)
        written.append(index)

    monkeypatch.setattr(SnapshotFolder, "write_chunk", slow)
    joiner = Joiner(everything.ledger, tmp_path / "joining", honest=Server(everything.new))
    gathering = asyncio.create_task(joiner.gather())
    assert await asyncio.to_thread(entered.wait, 10)
    # Nor does a second cancellation, which reached the write itself once.
    for _ in range(2):
        gathering.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.05, leave.set)
    await asyncio.gather(gathering, return_exceptions=True)
    assert written


# --- the disk ----------------------------------------------------------------------------------------------------


async def test_a_directory_that_somebody_removes_ends_the_download_and_not_the_node(
    everything: Made, tmp_path: Path
) -> None:
    folder = SnapshotFolder(tmp_path / "joining")

    def removing(message: Any, data: bytes) -> object:
        folder.remove()
        return Chunk(0, data)

    joiner = Joiner(everything.ledger, folder.path, honest=answering(everything.new, removing))
    with pytest.raises(StoreError, match="somebody removed it"):
        await joiner.gather()


async def test_a_disk_that_fills_up_ends_a_snapshot_and_leaves_nothing_of_it(
    ledger: SignedLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All members make theirs at the same height: what takes one below its reserve takes all of their votes."""
    monkeypatch.setattr("node.runtime.threads.BACKGROUND_REST", 0)
    monkeypatch.setattr(spill, "SPILL_BYTES_MAX", 100)
    config = msgspec.structs.replace(
        ledger.network, parameters=msgspec.structs.replace(ledger.network.parameters, snapshot_blocks=4)
    )
    root, asked = tmp_path / "snapshots", 0

    def disk_low() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    threads = WorkerThreads(1)
    snapshots = Snapshots(root, 2, config, threads, Clock(), disk_low, cut)
    with structlog.testing.capture_logs() as log:
        snapshots.on_applied(ledger.store.snapshot(), 0)
        assert snapshots._task is not None
        await snapshots._task
    assert "disk_low" in next(line["reason"] for line in log if line["event"] == "no snapshot was made")
    assert (snapshots.made, snapshots.failed, snapshots.height) == (0, 1, 0)
    assert list(root.iterdir()) == []
    threads.close()


class Gathering:
    """A download that ends when the test says so."""

    def __init__(self, height: int) -> None:
        self.height = height
        self.end: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.begun = asyncio.Event()
        self.cancelled = False

    async def gather(self, height_min: int, on_fetching: Callable[[bool], None]) -> bool:
        self.begun.set()
        on_fetching(True)
        try:
            whole = await self.end
        except asyncio.CancelledError:
            self.cancelled = True
            on_fetching(False)
            raise
        if not whole:
            on_fetching(False)
        return whole

    def progress(self) -> Any:
        return GatherProgress("", self.height, 1, 1, 1, 1, 0.0, (), {})


def joining(
    gathering: Any,
    folder: Path,
    is_barred: Callable[[], bool],
    replay: Callable[[], None],
    said: list[Any],
    rest: Callable[[bool], None] = lambda resting: None,
) -> Joining:
    return Joining(
        gathering,
        SnapshotFolder(folder),
        SyncSettings(join_blocks_min=1),
        Clock(),
        lambda: 0,
        is_barred,
        lambda target, peers: replay(),
        rest,
        lambda name, text: said.append((name, text)),
        lambda: said.append("whole"),
        lambda error: said.append(error),
    )


@pytest.mark.parametrize(("left", "replays"), [(9, 0), (10, 1)])
async def test_few_blocks_left_behind_a_snapshot_are_no_replay(left: int, replays: int, tmp_path: Path) -> None:
    """After a join that worked, the log and the metric told of a replay of every block."""
    gathering, said = Gathering(0), list[Any]()
    replayed = asyncio.Event()
    begun = Joining(
        cast(Any, gathering),
        SnapshotFolder(tmp_path / "joining"),
        SyncSettings(join_blocks_min=10),
        Clock(),
        lambda: 8,
        lambda: False,
        lambda target, peers: replayed.set(),
        lambda resting: None,
        lambda name, text: said.append((name, text)),
        lambda: said.append("whole"),
        lambda error: said.append(error),
    )
    begun.on_unservable(9, 12)
    begun.catch_up(8 + left, ())
    gathering.end.set_result(False)
    with structlog.testing.capture_logs() as log:
        async with asyncio.timeout(5):
            await replayed.wait()
    assert begun.replays == replays
    assert sum(line["event"].startswith("no snapshot saves blocks") for line in log) == replays
    assert any(item[0] == "no_snapshot" for item in said)


@pytest.mark.parametrize("whole", [False, True])
async def test_who_may_join_no_more_while_it_downloads_does_not(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its execution diverged, or its disk is full: neither may a snapshot hide, nor a download make worse."""
    # What is whole already is judged when the download ends, not by the look in between, which would cut it off.
    monkeypatch.setattr("node.runtime.joining.LOOK_INTERVAL_S", 60 if whole else 0.01)
    barred, said = [False], list[Any]()
    gathering = Gathering(4)
    replayed = asyncio.Event()
    rests = list[bool]()
    begun = joining(gathering, tmp_path / "joining", lambda: barred[0], replayed.set, said, rests.append)
    begun.catch_up(10, ())
    await gathering.begun.wait()
    assert rests == [True]
    barred[0] = True
    if whole:
        gathering.end.set_result(True)
    async with asyncio.timeout(5):
        await replayed.wait()
    assert gathering.cancelled is not whole
    assert not rests[-1], "blocks are fetched again"
    assert "whole" not in said
    assert any(item[0] == "no_snapshot" and "may not join" in item[1] for item in said if item[1])


# --- accepted transactions ---------------------------------------------------------------------------------------


async def test_a_snapshot_that_forgot_a_request_does_not_make_its_transaction_expired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was executed while this node was away for longer than the retention. Who is told `expired` pays again."""

    async def verdicts(self: Bodies, transactions: Any) -> list[bool]:
        return [True] * len(transactions)

    monkeypatch.setattr(Bodies, "verdicts", verdicts)
    config = signed_network(retention_ms=1_000)
    others = SignedLedger(tmp_path / "others", config)
    others.open_accounts("A", "B", funds=1_000)
    executed = others.transaction("bank-a", transfer("A", "B", 10, 1))
    # Within its retention at the snapshot's height the state would remember it: this one never was executed.
    expired = others.transaction("bank-a", transfer("A", "B", 10, 2), expires_at_ms=others.now_ms + HOUR_MS + 4_500)
    late = others.transaction("bank-a", transfer("A", "B", 10, 3), expires_at_ms=others.now_ms + 3 * HOUR_MS)
    away = SignedLedger(tmp_path / "away", config)
    away.store.put_pending([(item.tx_id, item.data) for item in (executed, expired, late)])
    away.close()
    others.settle(executed)
    others.settle(others.transaction("bank-a", transfer("A", "B", 1, 4)))
    others.now_ms += HOUR_MS
    for number in range(5, 8):
        others.settle(others.transaction("bank-a", transfer("A", "B", 1, number)))
    assert others.executor.view.head.time_ms > executed.body.expires_at_ms + 1_000
    folder = made(others, tmp_path / "snapshots")
    database, _ = opened(tmp_path / "away", config)
    adoption = due(database, folder.path, config)
    assert adoption is not None
    adoption.perform(request_of)
    database.close()
    away = SignedLedger(tmp_path / "away", config)
    assert await fates(away, executed, expired, late) == ["unknown", "expired", "pending"]
    others.close()
    away.close()


async def fates(ledger: SignedLedger, *transactions: Transaction) -> list[str]:
    """What the node says of journalled transactions after its start."""
    threads, clock, mempool = WorkerThreads(1), Clock(), Mempool(100, 2**20)
    monkey: Any = clock
    monkey.time_ms = lambda: ledger.store.head.time_ms
    bodies = Bodies(mempool, ledger.executor, threads, clock, lambda peer, error: None)
    intake = Intake(
        mempool, ledger.executor, bodies, ledger.store, threads, clock, lambda: None, lambda: None, 1_000
    )
    await intake.restore()
    found: list[str] = []
    for transaction in transactions:
        ending = ledger.store.ending(transaction.tx_id)
        waits = ledger.store.is_pending(transaction.tx_id)
        found.append(ending.status if ending else "pending" if waits else "unknown")
    threads.close()
    return found
