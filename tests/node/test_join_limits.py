"""What bounds a join: the rate at which chunks come, the room on the disk, and what else is fetched meanwhile."""

import asyncio
import zlib
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from consensus.codec import encode
from node.config import DiskSettings
from node.errors import Unavailable
from node.executor import request_of
from node.ledger import sha256
from node.snapshot import adoption_bytes, read_manifest
from node.snapshot.chunks import COMPRESSION
from node.snapshot.manifest import ChunkEntry
from node.store import LevelDatabase, Store
from node.store.layout import META_ADOPTING
from node.store.room import require_room, resume_bytes
from node.sync import snapshots
from node.sync.patience import Patience
from node.wire import Chunk, FetchChunk, FetchSnapshot, SnapshotOffer
from tests.node.idle_clock import idle_clock  # noqa: F401
from tests.node.test_snapshot import SignedLedger, due, ledger, made  # noqa: F401
from tests.node.test_snapshot_gathering import (
    Joiner,
    Made,
    Question,
    Server,
    answering,
    everything,  # noqa: F401
    silent,
)
from tests.node.test_sync import CHAIN, running, serving, until

# --- the rate ----------------------------------------------------------------------------------------------------


def test_patience_is_spent_by_trickling_and_never_by_what_comes_at_the_lowest_rate() -> None:
    patience = Patience(0.0, 60.0, 100.0)
    for second in range(1, 1000):
        patience.came(100, float(second))
        assert not patience.is_over(float(second))
    # What came quickly is not saved up: nothing more comes, and at most 60 s are in hand.
    patience.came(10**9, 1000.0)
    assert not patience.is_over(1059.9)
    assert patience.is_over(1060.0)
    patience.renew(1060.0)
    # A trickle at a tenth of the rate: 60 s are spent after 67, however often something comes.
    spent = next(second for second in range(1, 1000) if _trickled(patience, 1060.0 + second))
    assert 60 < spent < 70


def _trickled(patience: Patience, now_s: float) -> bool:
    patience.came(10, now_s)
    return patience.is_over(now_s)


@pytest.mark.usefixtures("idle_clock")
async def test_who_alone_has_the_newest_and_trickles_it_is_left_for_an_older_one(
    everything: Made,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each chunk came in time, so the join would have taken as long as the trickler liked."""
    monkeypatch.setattr(snapshots, "BYTES_PER_S_MIN", 10**9)

    async def trickling(message: Question) -> object:
        if isinstance(message, FetchChunk):
            # Somewhat less than what is waited for one chunk.
            await asyncio.sleep(0.75 * snapshots.CHUNK_TIMEOUT_S)
        return await answering(everything.new, lambda asked, data: Chunk(0, data))(message)

    joiner = Joiner(everything.ledger, tmp_path / "joining", a=trickling, b=Server(everything.old))
    told: list[bool] = []
    assert await joiner.gather(on_fetching=told.append)
    assert joiner.whole() == 2
    assert 1 < [peer for peer, _ in joiner.links.chunks].count("a") < len(everything.new.manifest.content.chunks)
    assert "too slow" in joiner.progress.refused["a"]
    assert joiner.reports == {}, "slowness is no lie"
    assert told == [True, False, True]


@pytest.mark.usefixtures("idle_clock")
async def test_who_comes_to_have_the_snapshot_during_a_download_sends_it_too(
    everything: Made,  # noqa: F811
    tmp_path: Path,
) -> None:
    new, ready = everything.new, False

    async def stuck(message: Question) -> object:
        nonlocal ready
        if isinstance(message, FetchChunk) and message.index >= 2:
            ready = True
            return await silent(message)
        return await answering(new, lambda asked, data: Chunk(0, data))(message)

    late = Server(new)

    async def later(message: Question) -> object:
        return await late(message) if ready else SnapshotOffer(0, 0, bytes(32), None)

    joiner = Joiner(everything.ledger, tmp_path / "joining", a=stuck, b=later)
    assert await joiner.gather()
    assert joiner.whole() == 4
    by_late = {index for peer, index in joiner.links.chunks if peer == "b"}
    assert by_late == set(range(2, len(new.manifest.content.chunks)))


# --- the disk ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("idle_clock")
async def test_a_snapshot_for_which_there_is_no_room_is_refused_before_anything_is_written(
    everything: Made,  # noqa: F811
    tmp_path: Path,
) -> None:
    content = everything.new.manifest.content
    joiner = Joiner(everything.ledger, tmp_path / "joining", a=Server(everything.new))
    joiner.free_bytes = content.size_bytes + adoption_bytes(content) - 1
    with pytest.raises(Unavailable, match="disk_low") as told:
        await joiner.gather()
    assert "height 4" in told.value.message
    assert not joiner.folder.path.exists()
    assert joiner.links.chunks == []
    again = Joiner(everything.ledger, tmp_path / "joining", a=Server(everything.new))
    again.free_bytes = joiner.free_bytes + 1
    assert await again.gather()
    # What has been fetched need not find room once more.
    whole = Joiner(everything.ledger, tmp_path / "joining", a=Server(everything.new))
    whole.free_bytes = adoption_bytes(content)
    assert await whole.gather()
    assert whole.links.chunks == []


@pytest.mark.usefixtures("idle_clock")
async def test_two_liars_whose_snapshot_fits_on_no_disk_do_not_keep_out_the_honest_one(
    everything: Made,  # noqa: F811
    tmp_path: Path,
) -> None:
    new = everything.new
    vast = msgspec.structs.replace(new.manifest, content=msgspec.structs.replace(new.manifest.content, keys=2**50))

    async def lying(message: Question) -> object:
        assert isinstance(message, FetchSnapshot)
        return SnapshotOffer(0, 4, vast.content.digest, encode(vast))

    joiner = Joiner(everything.ledger, tmp_path / "joining", a=lying, b=lying, c=Server(new))
    assert await joiner.gather()
    assert joiner.whole() == 4


def test_what_a_node_needs_to_go_on_is_not_for_a_snapshot() -> None:
    settings = DiskSettings(reserve_bytes=100_000_000, low_bytes=200_000_000)
    kept = resume_bytes(settings)
    assert kept == 125_000_000
    require_room(kept, kept + 5_000, 5_000, "it")
    require_room(kept, None, 10**15, "it")
    with pytest.raises(Unavailable, match="it needs about 5,001 bytes of disk; 125,005,000 are free"):
        require_room(kept, kept + 5_000, 5_001, "it")


class Counting(LevelDatabase):
    """Counts the bytes that are written."""

    written = 0

    def write(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        rows = list(rows)
        self.written += sum(len(key) + len(value or b"") for key, value in rows)
        super().write(rows)


def test_an_adoption_writes_no_more_than_what_it_asks_room_for_and_nothing_without_room(
    ledger: SignedLedger,  # noqa: F811
    tmp_path: Path,
) -> None:
    config = ledger.network
    folder = made(ledger, tmp_path / "snapshots")
    database = Counting(tmp_path / "joiner")
    store = Store(tmp_path / "joiner", config.network_id, config.genesis_hash, open_database=lambda _: database)
    store.initialise(ledger.executor.genesis(), never_voted=False)
    asked: list[int] = []

    def full(needed_bytes: int, what: str) -> None:
        asked.append(needed_bytes)
        raise Unavailable("disk_low", what)

    before = database.written
    with pytest.raises(Unavailable):
        due(database, folder.path, config, full)
    assert database.written == before
    assert database.get(META_ADOPTING) is None
    adoption = due(database, folder.path, config, lambda needed_bytes, what: asked.append(needed_bytes))
    assert adoption is not None
    adoption.perform(request_of)
    assert asked == [adoption_bytes(adoption.content)] * 2
    assert 0 < database.written - before <= asked[0]
    database.close()


def test_chunks_put_there_by_hand_under_a_table_that_names_them_cost_no_old_state(
    ledger: SignedLedger,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The table of chunks is certified by nobody: the old state went first, and then no chunk fitted the root."""
    config = ledger.network
    folder = made(ledger, tmp_path / "snapshots")
    manifest = read_manifest(folder.manifest_bytes())
    plain = b"\x91\x90"
    entry = ChunkEntry(16**manifest.content.level, len(plain), sha256(plain))
    content = msgspec.structs.replace(manifest.content, chunks=(entry,))
    folder.write_manifest(encode(msgspec.structs.replace(manifest, content=content)))
    folder.write_chunk(0, zlib.compress(plain, COMPRESSION))
    database = LevelDatabase(tmp_path / "joiner")
    store = Store(tmp_path / "joiner", config.network_id, config.genesis_hash, open_database=lambda _: database)
    store.initialise(ledger.executor.genesis(), never_voted=False)
    before = list(database.scan(b"", b"\xff" * 8))
    assert due(database, folder.path, config) is None
    assert list(database.scan(b"", b"\xff" * 8)) == before
    database.close()


# --- what else is fetched ----------------------------------------------------------------------------------------


async def test_blocks_rest_while_a_snapshot_comes_and_go_on_when_it_does_not() -> None:
    async with running() as node:
        node.net.peers["m1"] = serving(CHAIN)
        node.chain.gate.clear()
        node.sync.catch_up(80, ["m1"])
        await until(lambda: node.chain.at_gate and len(node.net.asked) == 2)
        node.sync.rest(True)
        node.chain.gate.set()
        await until(lambda: not node.sync.progress().running)
        # The block in hand was applied, and nothing else is fetched or applied, whoever asks for it.
        assert node.chain.head.height == 1
        asked = len(node.net.asked)
        node.sync.catch_up(80, ["m1"])
        assert not node.sync.progress().running
        node.sync.rest(False)
        await until(lambda: node.chain.head.height == 80)
        assert len(node.net.asked) > asked


async def test_a_rest_that_is_over_before_it_began_stops_nothing() -> None:
    async with running() as node:
        node.net.peers["m1"] = serving(CHAIN)
        node.sync.catch_up(80, ["m1"])
        await asyncio.sleep(0)
        node.sync.rest(True)
        node.sync.rest(False)
        await until(lambda: node.chain.head.height == 80)
        assert node.failures == []
