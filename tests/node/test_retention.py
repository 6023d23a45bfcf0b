"""Old blocks go into archives and off the disk; nothing is lost at any crash, and nothing goes that is held.

More than 500 lines because every crash point and every hold is judged on the one chain that is built here.
"""

import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec
import pytest

from node.api.service import EventCursor, EventFilter
from node.archive import (
    ArchiveReader,
    ArchiveShelf,
    ArchiveSummary,
    ArchiveWriter,
    archive_head,
    archived_block,
    archived_blocks,
    verify_archive,
    write_archive,
)
from node.archive import shelf as shelf_module
from node.config import Retention as Policy
from node.config import dump_node, load_node
from node.errors import ConfigError, NotFound, StoreError
from node.ledger import Header
from node.runtime import retention as retention_module
from node.runtime.event_pages import event_page
from node.runtime.retention import Retention
from node.runtime.threads import WorkerThreads
from node.runtime.whereabouts import Whereabouts
from node.store import LevelDatabase, Store
from node.store.layout import number
from tests.node.archive_world import RETENTION_MS, ArchivedLedger, signed_network
from tests.node.ledger_world import HOUR_MS, transfer
from tests.simulation.nodes.disk import Contents, Disk, MemoryDatabase, PowerCut, Rows

P = ParamSpec("P")
R = TypeVar("R")

BLOCKS = 40


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty blocks: accounts and their money, a transfer in every block up to the thirtieth, then none."""
    path = tmp_path_factory.mktemp("filled") / "data"
    ledger = ArchivedLedger(path)
    ledger.open_accounts("C-1", "C-2", "C-3", funds=1_000)
    for height in range(2, 31):
        creditor = "C-3" if height == 7 else "C-2"
        ledger.settle(ledger.transaction("bank-a", transfer("C-1", creditor, height, height)))
    ledger.empty(BLOCKS - 30)
    ledger.close()
    return path


@pytest.fixture
def ledger(filled: Path, tmp_path: Path) -> Iterator[ArchivedLedger]:
    """A copy of the forty blocks."""
    shutil.copytree(filled, tmp_path / "data")
    ledger = ArchivedLedger(tmp_path / "data")
    yield ledger
    ledger.close()


class Straight:
    """Threads that do everything at once, in the caller's."""

    async def execute(self, function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        return function(*args, **options)

    async def write(self, function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        return function(*args, **options)

    async def verify(self, items: Sequence[tuple[bytes, bytes, bytes]]) -> list[bool]:
        return [True for _ in items]

    async def background(self, steps: Generator[None, None, R]) -> R:
        raise NotImplementedError

    def close(self) -> None:
        pass


def policy(tmp_path: Path, **changes: object) -> Policy:
    return msgspec.structs.replace(Policy(blocks=15, step_blocks=5, archive_dir=tmp_path / "archive"), **changes)


async def pruned(store: Store, settings: Policy, sweep_held: bool = True) -> Retention:
    """All that is due under the policy is archived and removed, as `watch` does it."""
    retention = Retention(settings, signed_network(), store, Straight())
    retention._rest = 0.0
    try:
        await retention.begin()
        while await retention.step():
            pass
    finally:
        await retention.close()
    return retention


def read_archives(directory: Path) -> set[int]:
    """The heights in all archive files, each verified."""
    heights: set[int] = set()
    for path in sorted(directory.glob("*.hansa")):
        with ArchiveReader(path) as reader:
            verify_archive(reader, signed_network())
            heights.update(range(reader.first, reader.last + 1))
    return heights


async def test_old_blocks_are_archived_and_gone_and_their_headers_stay(
    ledger: ArchivedLedger, tmp_path: Path
) -> None:
    store, before = ledger.store, ledger.store.snapshot()
    kept = [archived_block(before, height) for height in range(1, BLOCKS + 1)]
    retention = await pruned(store, policy(tmp_path))
    assert (store.first_block, retention.first_block) == (26, 26)
    assert (retention.pruned_blocks, retention.archived_height, retention.failure) == (25, 25, "")
    names = sorted(path.name for path in (tmp_path / "archive").iterdir())
    assert names == [f"blocks-{first:012d}-{first + 4:012d}.hansa" for first in range(1, 26, 5)]
    assert read_archives(tmp_path / "archive") == set(range(1, 26))
    parent = store.head_at(0).digest
    for height in range(1, BLOCKS + 1):
        item = kept[height - 1]
        header: Header = store.header(height)
        assert (header, header.parent) == (item.block.body.header, parent)
        parent = header.digest
        assert store.head_at(height).digest == parent
        if height >= 26:
            assert archived_block(store.snapshot(), height) == item
            continue
        for read in (store.block, store.receipts, store.snapshot().block):
            with pytest.raises(NotFound, match="block_pruned") as told:
                read(height)
            assert told.value.details["first"] == 26
        for data in item.receipts.receipts:
            assert store.locate(data[2:34]) is None
    with pytest.raises(
        NotFound, match=r"block_pruned: events under settlement/account/C-2 are here from block 26 on"
    ):
        store.events("settlement/account/C-2", 0, BLOCKS, 100)
    assert [height for height, _ in store.events("settlement/account/C-2", 26, BLOCKS, 100)] == [26, 27, 28, 29, 30]
    with pytest.raises(NotFound, match="block_not_found"):
        store.block(BLOCKS + 1)
    statement = {"account": "C-1", "from_height": 20, "to_height": BLOCKS}
    with pytest.raises(NotFound, match="block_pruned"):
        ledger.executor.queries.answer(store.snapshot(), "settlement", "statement", statement)
    rest = {**statement, "from_height": 26}
    whole = ledger.executor.queries.answer(store.snapshot(), "settlement", "statement", rest)
    assert [entry["height"] for entry in whole["entries"]] == [26, 27, 28, 29, 30]
    # The state, its past and a reopened store know nothing of it.
    assert ledger.balance("C-1", at=10) == 1_000 - sum(range(2, 11))
    ledger.close()
    again = ArchivedLedger(ledger.path, ledger.network)
    assert (again.store.first_block, again.balance("C-2")) == (26, 1_000 + sum(range(2, 31)) - 7)
    again.empty(1)
    again.close()


async def test_nothing_goes_that_the_policy_keeps(ledger: ArchivedLedger, tmp_path: Path) -> None:
    for settings in (
        Policy(),
        policy(tmp_path, blocks=BLOCKS - 4),
        policy(tmp_path, days=1),
        policy(tmp_path, blocks=None, days=1),
        policy(tmp_path, step_blocks=BLOCKS),
    ):
        await pruned(ledger.store, settings)
        assert ledger.store.first_block == 1
    assert read_archives(tmp_path / "archive") == set()
    await pruned(ledger.store, policy(tmp_path, blocks=BLOCKS - 5))
    assert ledger.store.first_block == 6


async def test_days_are_counted_in_the_ledger_s_own_time(ledger: ArchivedLedger, tmp_path: Path) -> None:
    ledger.now_ms += 24 * HOUR_MS - 20_000
    ledger.empty(1)
    await pruned(ledger.store, policy(tmp_path, blocks=None, days=1))
    # The newest block is a day younger than those of the first twenty seconds, of which whole steps go.
    assert ledger.store.first_block == 21


@pytest.mark.slow
async def test_a_block_stays_while_a_request_of_it_is_remembered(ledger: ArchivedLedger, tmp_path: Path) -> None:
    """Whoever sends the transaction again must get its receipt."""
    retention = Retention(policy(tmp_path, blocks=10), signed_network(), ledger.store, Straight())
    while await retention.step():
        pass
    await retention.close()
    # Block 30 is the last with a transaction; head 40 keeps 10 blocks.
    assert ledger.store.first_block == 31
    late = ledger.transaction("bank-a", expires_at_ms=ledger.now_ms + 30_000)
    ledger.settle(late)
    ledger.empty(20)
    await pruned(ledger.store, policy(tmp_path, blocks=10))
    assert ledger.store.first_block == 41
    assert ledger.store.locate(late.tx_id) == (41, 0)
    ledger.empty((30_000 + RETENTION_MS) // 1_000 - 21)
    await pruned(ledger.store, policy(tmp_path, blocks=10))
    assert ledger.store.locate(late.tx_id) == (41, 0)
    ledger.empty(2)
    await pruned(ledger.store, policy(tmp_path, blocks=10))
    assert ledger.store.locate(late.tx_id) is None


async def test_what_is_under_legal_hold_stays_with_its_queries(ledger: ArchivedLedger, tmp_path: Path) -> None:
    store = ledger.store
    [entry] = [height for height, _ in store.events("settlement/account/C-3", 2, BLOCKS, 10)]
    retention = await pruned(store, policy(tmp_path, hold=("C-3",)))
    assert entry == 7
    assert retention.pruned_blocks == 23
    # The opening of the account and its money, and the one transfer.
    for height in (1, 7):
        assert store.block(height).body.header.height == height
        assert store.locate(store.receipt(height, 0).tx_id) == (height, 0)
    assert [height for height, _ in store.events("settlement/account/C-3", 0, BLOCKS, 10)] == [1, 7]
    with pytest.raises(NotFound, match="block_pruned"):
        store.events("settlement/account/C-2", 0, BLOCKS, 10)
    # So does the events route; what nobody held it still refuses, rather than leave out what is gone.
    view, start, held = store.snapshot(), EventCursor(0, -1), EventFilter(None, "settlement/account/C-3")
    page = event_page(view, start, 10, held)
    assert ([event.height for event in page.events], page.complete) == ([1, 7], True)
    rest = event_page(view, EventCursor.parse(page.events[0].cursor), 10, held)
    assert rest.events == page.events[1:]
    for topic in (None, "settlement/account/C-2"):
        with pytest.raises(NotFound, match="block_pruned"):
            event_page(view, start, 10, EventFilter(None, topic))
    with pytest.raises(NotFound, match="block_pruned"):
        store.block(6)
    # Held blocks are in the archive too; a hold that is lifted lets them go.
    assert read_archives(tmp_path / "archive") == set(range(1, 26))
    await pruned(store, policy(tmp_path, hold=("C-3", "C-2")))
    assert store.block(7)
    with pytest.raises(NotFound, match=r"C-2 are here from block 26 on"):
        store.events("settlement/account/C-2", 0, BLOCKS, 10)
    await pruned(store, policy(tmp_path))
    for height in (1, 7):
        with pytest.raises(NotFound, match="block_pruned"):
            store.block(height)
    with pytest.raises(NotFound, match="block_pruned"):
        store.events("settlement/account/C-3", 0, BLOCKS, 10)


async def test_without_an_archive_blocks_go_only_by_explicit_wish(ledger: ArchivedLedger, tmp_path: Path) -> None:
    await pruned(ledger.store, Policy(blocks=15, step_blocks=5, archive=False))
    assert ledger.store.first_block == 26


async def test_an_archive_that_cannot_be_written_or_read_back_keeps_everything(
    ledger: ArchivedLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "archive"
    settings = policy(tmp_path)
    retention = Retention(settings, signed_network(), ledger.store, Straight())
    (directory / "pruning.partial").mkdir()
    assert await retention.step() is False
    assert "archive_failed" in retention.failure
    assert ledger.store.first_block == 1
    (directory / "pruning.partial").rmdir()

    written = ArchiveWriter.finish

    def damaging(self: ArchiveWriter, path: Path | None = None) -> ArchiveSummary:
        assert path
        summary = written(self, path)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        return summary

    monkeypatch.setattr(ArchiveWriter, "finish", damaging)
    assert await retention.step() is False
    assert "archive_damaged" in retention.failure
    assert ledger.store.first_block == 1
    monkeypatch.undo()
    # The damaged file is noticed, and written again.
    assert await retention.step() is True
    assert retention.failure == ""
    await retention.close()
    assert read_archives(directory) == set(range(1, 6))


async def test_an_archive_that_a_crash_left_whole_is_used(ledger: ArchivedLedger, tmp_path: Path) -> None:
    settings = policy(tmp_path)
    retention = Retention(settings, signed_network(), ledger.store, Straight())
    assert retention.shelf
    await retention._work(retention._archive, retention.shelf, 1, 5)
    [path] = (tmp_path / "archive").iterdir()
    written = path.stat().st_ino
    await retention.step()
    await retention.close()
    assert path.stat().st_ino == written
    assert ledger.store.first_block == 6


async def test_an_archive_of_another_network_in_the_same_directory_is_never_replaced(
    ledger: ArchivedLedger, tmp_path: Path
) -> None:
    """Its blocks may lie nowhere else: the node that wrote it has removed them."""
    other = ArchivedLedger(tmp_path / "other", signed_network("other"))
    other.empty(5)
    shelf = ArchiveShelf(tmp_path / "archive")
    shelf.prepare()
    view, config = other.store.snapshot(), other.network
    head = archive_head(view, config.network_id, config.genesis_hash, 1)
    path = shelf.path_of(1, 5)
    write_archive(path, config.network_id, config.genesis_hash, archived_blocks(view, 1, 5), head=head)
    other.close()
    before = path.read_bytes()
    retention = await pruned(ledger.store, policy(tmp_path))
    assert "archive_refused" in retention.failure
    assert str(path) in retention.failure
    assert path.read_bytes() == before
    assert ledger.store.first_block == 1


def test_a_new_archive_directory_is_durable_before_anything_lies_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(shelf_module, "sync_directory", synced.append)
    ArchiveShelf(tmp_path / "deep" / "archive").prepare()
    assert set(synced) == {tmp_path, tmp_path / "deep"}
    synced.clear()
    ArchiveShelf(tmp_path / "deep" / "archive").prepare()
    assert synced == []


# --- crashes -------------------------------------------------------------------------------------------------


def contents_of(path: Path) -> Contents:
    database = LevelDatabase(path)
    rows = dict(database.scan(b"", b"\xff"))
    database.close()
    return Contents(rows)


def nothing(rows: Rows | None = None) -> None:
    """Nobody looks at writes and power cuts."""


@pytest.mark.slow
async def test_a_crash_before_or_after_any_write_loses_nothing(ledger: ArchivedLedger, tmp_path: Path) -> None:
    """At each write of the store the power goes: every block is here or archived, and it all goes on to one end."""
    whole = {height: archived_block(ledger.store.snapshot(), height) for height in range(1, BLOCKS + 1)}
    settings = policy(tmp_path, hold=("C-3",))
    ledger.close()
    start = contents_of(ledger.path)
    network = signed_network()

    def opened(disk: Disk) -> Store:
        path = tmp_path / "memory"
        return Store(path, network.network_id, network.genesis_hash, open_database=lambda _: MemoryDatabase(disk))

    calm = Disk(start.copy(), nothing, nothing)
    await pruned(opened(calm), settings)
    writes, end = calm.writes, calm.contents.values
    assert writes >= 8
    for count in range(1, writes + 1):
        for after in (False, True):
            for path in (tmp_path / "archive").iterdir():
                path.unlink()
            disk = Disk(start.copy(), nothing, nothing)
            disk.cut_in = (count, after)
            with pytest.raises(PowerCut):
                await pruned(opened(disk), settings)
            store, archived = opened(disk), read_archives(tmp_path / "archive")
            for height, item in whole.items():
                if store.has_receipts(height):
                    assert archived_block(store.snapshot(), height) == item
                else:
                    assert height in archived
                    with pytest.raises(NotFound, match="block_pruned"):
                        store.block(height)
                assert store.header(height) == item.block.body.header
            await pruned(store, settings)
            assert disk.contents.values == end, (count, after)


@pytest.mark.slow
async def test_a_crash_while_the_archive_is_made_leaves_everything_here(
    ledger: ArchivedLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = archived_block(ledger.store.snapshot(), 3)
    for moment in ("add", "finish"):

        def cut(self: object, *_: object) -> None:
            raise PowerCut

        with monkeypatch.context() as patch:
            patch.setattr(ArchiveWriter, moment, cut)
            patch.setattr(ArchiveWriter, "abandon", lambda self: None)
            with pytest.raises(PowerCut):
                await pruned(ledger.store, policy(tmp_path))
        assert [path.name for path in (tmp_path / "archive").iterdir()] == ["pruning.partial"]
        assert ledger.store.first_block == 1
        assert archived_block(ledger.store.snapshot(), 3) == before
    await pruned(ledger.store, policy(tmp_path))
    assert read_archives(tmp_path / "archive") == set(range(1, 26))


async def test_a_disk_that_refuses_a_removal_stops_the_node_and_not_the_ledger(
    ledger: ArchivedLedger, tmp_path: Path
) -> None:
    ledger.close()
    disk = Disk(contents_of(ledger.path), nothing, nothing)
    network = signed_network()
    store = Store(tmp_path, network.network_id, network.genesis_hash, open_database=lambda _: MemoryDatabase(disk))
    disk.fail_in = 2
    with pytest.raises(StoreError, match="disk_full"):
        await pruned(store, policy(tmp_path))
    assert read_archives(tmp_path / "archive") == set(range(1, 6))


# --- what a snapshot leaves, and history ---------------------------------------------------------------------


async def test_what_an_adopted_snapshot_left_below_its_gap_is_archived_before_it_goes(
    ledger: ArchivedLedger, tmp_path: Path
) -> None:
    """A node that had 12 blocks and adopted the state of block 30: blocks 13 to 30 are nowhere here."""
    ledger.close()
    contents = contents_of(ledger.path)
    for height in range(13, 31):
        store_rows: Rows = [(b"r" + number(height), None)]
        if height < 30:
            store_rows.append((b"h" + number(height), None))
        contents.apply(store_rows)
    contents.apply([(b"mfirst", number(31))])
    network = signed_network()
    disk = Disk(contents, nothing, nothing)
    store = Store(tmp_path, network.network_id, network.genesis_hash, open_database=lambda _: MemoryDatabase(disk))
    assert store.pruning().next_run() == (1, 12)
    with pytest.raises(NotFound, match="block_pruned"):
        store.header(20)
    await pruned(store, policy(tmp_path, blocks=20, hold=("C-3",)))
    assert store.first_block == 31
    assert read_archives(tmp_path / "archive") == set(range(1, 13))
    assert store.pruning().next_run() == (31, BLOCKS)
    assert store.block(7).body.header.height == 7
    # Of the gap nobody knows what it held.
    with pytest.raises(NotFound, match="block_pruned"):
        store.events("settlement/account/C-3", 0, BLOCKS, 10)


async def test_a_shorter_history_is_forgotten_in_the_background(ledger: ArchivedLedger, tmp_path: Path) -> None:
    await pruned(ledger.store, Policy(history_blocks=10))
    view = ledger.store.snapshot()
    assert view.at(BLOCKS - 10).head.height == BLOCKS - 10
    with pytest.raises(NotFound, match="history_pruned"):
        view.at(BLOCKS - 11)
    assert ledger.store.first_block == 1


# --- the disk ------------------------------------------------------------------------------------------------


def disk_usage(path: Path) -> int:
    return sum(item.stat().st_blocks * 512 for item in path.rglob("*") if item.is_file())


@pytest.mark.slow
async def test_the_disk_gets_its_bytes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real LevelDB, measured with the file system's own numbers."""
    ledger = ArchivedLedger(tmp_path / "data")
    ledger.open_accounts("C-1", "C-2", funds=10**9)
    for block in range(60):
        ledger.settle(
            *[
                ledger.transaction("bank-a", transfer("C-1", "C-2", 1, 100 * block + place))
                for place in range(1, 61)
            ]
        )
    ledger.empty(20)
    store = ledger.store
    store.pruning().compact((b"", b"\xff"))
    before = disk_usage(ledger.path)
    monkeypatch.setattr(retention_module, "COMPACT_BYTES_MIN", 1)
    retention = Retention(policy(tmp_path, blocks=10, step_blocks=10), signed_network(), store, WorkerThreads(1))
    retention._rest = 0.0
    while await retention.step():
        pass
    assert (store.first_block, retention.pruned_blocks) == (71, 70)
    await retention._compact()
    assert disk_usage(ledger.path) >= before // 2, "while others hold views nothing may be compacted"
    ledger.empty(2)
    await retention._compact()
    after = disk_usage(ledger.path)
    await retention.close()
    assert after < before * 2 // 5, (before, after)
    print(f"{before} bytes before, {after} after, {disk_usage(tmp_path / 'archive')} in archives")
    ledger.close()


# --- where it went -------------------------------------------------------------------------------------------


async def test_who_asks_for_what_was_pruned_is_told_where_it_lies(ledger: ArchivedLedger, tmp_path: Path) -> None:
    store = ledger.store
    tx_id = store.receipt(8, 0).tx_id
    retention = await pruned(store, policy(tmp_path))
    whereabouts = Whereabouts(store, retention.shelf)
    error = whereabouts.block(8)
    assert (error.code, error.details["archive"]) == ("block_pruned", "blocks-000000000006-000000000010.hansa")
    found = await whereabouts.unknown(tx_id)
    assert (found.code, found.details["height"], found.details["first"]) == ("block_pruned", 8, 26)
    assert "its block 8 was pruned here; it lies in blocks-000000000006" in found.message
    assert found.message.endswith(f"; the first block kept is {found.details['first']}")
    assert "hansa archive query FILE --block HEIGHT" in found.entry.action
    # A page of events that begins among pruned blocks names the file like a question for the block itself.
    with pytest.raises(NotFound, match="block_pruned") as told:
        event_page(store.snapshot(), EventCursor.parse("0:-1"), 10, EventFilter(None, None))
    explained = whereabouts.explained(told.value)
    assert explained.details["archive"] == "blocks-000000000001-000000000005.hansa"
    assert "it lies in blocks-000000000001" in explained.message
    other = NotFound("block_not_found", "height 99 is not decided")
    assert whereabouts.explained(other) is other
    strange = await whereabouts.unknown(bytes(32))
    assert (strange.code, strange.details["first"]) == ("transaction_not_found", 26)
    assert "of the blocks below 26 it keeps the headers alone" in strange.message
    # A file that was damaged since is passed over.
    path = tmp_path / "archive" / "blocks-000000000006-000000000010.hansa"
    path.write_bytes(path.read_bytes()[:-1])
    assert (await whereabouts.unknown(tx_id)).code == "transaction_not_found"


async def test_archived_blocks_come_back_whole_and_only_those_of_this_ledger(
    ledger: ArchivedLedger, tmp_path: Path
) -> None:
    store, before = ledger.store, ledger.store.snapshot()
    await pruned(store, policy(tmp_path))
    pruning = store.pruning()
    with ArchiveReader(tmp_path / "archive" / "blocks-000000000006-000000000010.hansa") as reader:
        assert [pruning.restore(item.block, item.receipts) for item in reader.blocks()] == [True] * 5
        assert [pruning.restore(item.block, item.receipts) for item in reader.blocks()] == [False] * 5
        forged = reader.block(6)
    for height in range(6, 11):
        assert archived_block(store.snapshot(), height) == archived_block(before, height)
        assert store.locate(store.receipt(height, 0).tx_id) == (height, 0)
    # Pruning leaves them alone until they are given back.
    await pruned(store, policy(tmp_path))
    assert store.block(8)
    for removal in pruning.give_back(6, 10):
        pruning.remove(removal)
    with pytest.raises(NotFound, match="block_pruned"):
        store.block(8)
    other = msgspec.structs.replace(forged.block.body.header, proposer="bank-b")
    body = msgspec.structs.replace(forged.block.body, header=other)
    certificate = msgspec.structs.replace(forged.block.certificate, digest=other.digest)
    with pytest.raises(StoreError, match="archive_refused: block 6 is not the one of this ledger"):
        pruning.restore(msgspec.structs.replace(forged.block, body=body, certificate=certificate), forged.receipts)


async def test_events_of_archived_blocks_are_found_again_when_none_is_missing(
    ledger: ArchivedLedger, tmp_path: Path
) -> None:
    store, topic = ledger.store, "settlement/account/C-2"
    wanted = store.events(topic, 11, BLOCKS, 100)
    await pruned(store, policy(tmp_path))

    def put_back(first: int) -> None:
        with ArchiveReader(tmp_path / "archive" / f"blocks-{first:012d}-{first + 4:012d}.hansa") as reader:
            for item in reader.blocks():
                store.pruning().restore(item.block, item.receipts)

    put_back(21)
    put_back(11)
    # The blocks 16 to 20 are missing still.
    with pytest.raises(NotFound, match="from block 21 on"):
        store.events(topic, 11, BLOCKS, 100)
    assert store.events(topic, 21, BLOCKS, 100) == [row for row in wanted if row[0] >= 21]
    put_back(16)
    assert store.events(topic, 11, BLOCKS, 100) == wanted
    with pytest.raises(NotFound, match="from block 11 on"):
        store.events(topic, 10, BLOCKS, 100)


# --- configuration -------------------------------------------------------------------------------------------


def node_file(tmp_path: Path, retention: str) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(
        f'member = "bank-a"\nlisten = "127.0.0.1:7600"\napi = "127.0.0.1:7700"\n[retention]\n{retention}\n'
    )
    return path


def test_the_policy_is_read_and_keeps_everything_by_default(tmp_path: Path) -> None:
    assert load_node(node_file(tmp_path, "")).retention == Policy()
    assert not Policy().prunes
    text = 'blocks = 1000\ndays = 30\narchive_dir = "archive"\nhold = ["C-14730", "C-CLM-11"]\nhistory_blocks = 500'
    found = load_node(node_file(tmp_path, text)).retention
    written = tmp_path / "written.toml"
    written.write_text(dump_node(load_node(node_file(tmp_path, text))))
    assert load_node(written).retention == found
    assert found == Policy(1_000, 30, 500, 1_000, True, tmp_path / "archive", ("C-14730", "C-CLM-11"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("blocks = 1000", r"retention\.archive_dir is missing.*archive = false"),
        ('blocks = 5\narchive_dir = "a"', r"retention\.blocks is wrong"),
        ('days = 0\narchive_dir = "a"', r"retention\.days is wrong"),
        ("history_blocks = 20000", r"retention\.history_blocks is wrong"),
        ('blocks = 100\narchive = false\narchive_dir = "a"', r"retention\.archive is false although"),
        ('blocks = 100\narchive_dir = "data/archive"', r"retention\.archive_dir lies in data_dir"),
        ('blocks = 100\narchive_dir = "data"', r"retention\.archive_dir lies in data_dir"),
        ('hold = ["C-1", "C-1"]', r"retention\.hold\[1\] repeats 'C-1'"),
        ('hold = [""]', r"retention\.hold\[0\] '' is no account"),
        ('hold = "C-1"', r"retention\.hold is wrong"),
        ("block = 1000", r"retention\.block is not a known key; did you mean blocks"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=f"config_invalid: .*{wanted}"):
        load_node(node_file(tmp_path, text))


def test_an_archive_directory_that_cannot_be_used_is_told_at_the_start(
    ledger: ArchivedLedger, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="archive_unreadable"):
        Retention(Policy(blocks=10, archive_dir=tmp_path / "file"), signed_network(), ledger.store, Straight())
