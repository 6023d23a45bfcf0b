"""Gathering a snapshot from peers that lie, are slow, vanish, or offer what is old or another network's."""

import asyncio
import threading
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec
import pytest

from consensus.codec import encode
from node.errors import HansaError, Unavailable
from node.ledger import sha256
from node.signatures import verify
from node.snapshot import SnapshotFolder, read_manifest, verify_snapshot
from node.snapshot.chunks import COMPRESSION, OpenedChunk, open_chunk
from node.snapshot.manifest import ChunkEntry, Content
from node.sync import SnapshotServer, snapshots
from node.sync.snapshots import GatherProgress, SnapshotGathering
from node.wire import Chunk, FetchChunk, FetchSnapshot, SnapshotOffer
from tests.node.idle_clock import idle_clock
from tests.node.ledger_world import transfer
from tests.node.test_snapshot import SignedLedger, made, signed_network

__all__ = ["idle_clock"]

pytestmark = pytest.mark.usefixtures("idle_clock")

Question: TypeAlias = FetchSnapshot | FetchChunk
Serve: TypeAlias = Callable[[Question], Awaitable[object]]


class Offered:
    """A snapshot on disk, as an honest node offers it."""

    def __init__(self, folder: SnapshotFolder) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder.manifest_bytes())
        self.height, self.digest = self.manifest.content.height, self.manifest.content.digest

    def newest(self) -> tuple[int, bytes, bytes] | None:
        return self.height, self.digest, self.folder.manifest_bytes()

    def chunk(self, height: int, digest: bytes, index: int) -> bytes | None:
        return self.folder.chunk(index) if (height, digest) == (self.height, self.digest) else None


class Server:
    """A peer with a real SnapshotServer; its answers come back as replies."""

    def __init__(self, source: Offered) -> None:
        self.answers: asyncio.Queue[object] = asyncio.Queue()
        self.server = SnapshotServer(self, source, self._fail)

    def _fail(self, error: BaseException) -> None:
        raise error

    def send(self, peer: str, message: SnapshotOffer | Chunk) -> bool:
        self.answers.put_nowait(message)
        return True

    async def __call__(self, message: Question) -> object:
        self.server.on_question("joiner", message)
        return await self.answers.get()


class Links:
    """The joiner's links: a name to what answers."""

    def __init__(self, peers: dict[str, Serve]) -> None:
        self.peers = peers
        self.chunks: list[tuple[str, int]] = []

    @property
    def connected(self) -> Iterable[str]:
        return sorted(self.peers)

    async def request(self, peer: str, message: Question, timeout_s: float) -> object:
        if peer not in self.peers:
            raise Unavailable("peer_gone", f"{peer} is not connected")
        if isinstance(message, FetchChunk):
            self.chunks.append((peer, message.index))
        try:
            async with asyncio.timeout(timeout_s):
                return await self.peers[peer](message)
        except TimeoutError as error:
            raise Unavailable("peer_timeout", f"{peer} did not answer") from error


class Joiner:
    """The gathering under test, on a directory of its own."""

    def __init__(self, ledger: SignedLedger, path: Path, governed_blocks: int = 1, **peers: Serve) -> None:
        self.config = ledger.network
        self.links = Links(peers)
        self.folder = SnapshotFolder(path)
        self.reports: dict[str, str] = {}
        self.free_bytes = 10**12
        self.gathering = SnapshotGathering(
            self.links,
            self.folder,
            self.config.network_id,
            self.config.genesis_hash,
            self.config.validators,
            8,
            governed_blocks,
            verify,
            # It stands on genesis itself.
            lambda: ledger.store.snapshot().at(0),
            self._report,
            self._require_room,
        )

    def _report(self, peer: str, error: HansaError) -> None:
        self.reports[peer] = error.code

    def _require_room(self, needed_bytes: int, what: str) -> None:
        if needed_bytes > self.free_bytes:
            raise Unavailable("disk_low", f"{what} needs {needed_bytes}")

    async def gather(
        self, height_min: int = 1, on_fetching: Callable[[bool], None] = lambda fetching: None
    ) -> bool:
        async with asyncio.timeout(3_600):
            return await self.gathering.gather(height_min, on_fetching)

    @property
    def progress(self) -> GatherProgress:
        return self.gathering.progress()

    def whole(self) -> int:
        """The height of the snapshot in the folder, every byte of which proves itself."""
        config = self.config
        return verify_snapshot(
            self.folder, config.network_id, config.genesis_hash, config.validators, 8, verify
        ).height


class Made(NamedTuple):
    """A ledger with its snapshots of height 2 and of height 4."""

    ledger: SignedLedger
    old: Offered
    new: Offered


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """What the tests of this file read and never change."""
    path = tmp_path_factory.mktemp("snapshots")
    opened = SignedLedger(path / "data", signed_network())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("node.snapshot.cutting.CHUNK_BYTES_TARGET", 400)
        opened.open_accounts("A", "B", funds=1_000)
        opened.settle(opened.transaction("bank-a", transfer("A", "B", 10, 1)))
        old = Offered(made(opened, path / "old"))
        for number in (2, 3):
            opened.settle(opened.transaction("bank-a", transfer("A", "B", 10, number)))
        yield Made(opened, old, Offered(made(opened, path / "new")))
    opened.close()


@pytest.fixture
def ledger(everything: Made) -> SignedLedger:
    return everything.ledger


@pytest.fixture
def old(everything: Made) -> Offered:
    return everything.old


@pytest.fixture
def new(everything: Made) -> Offered:
    return everything.new


def answering(offered: Offered, chunk: Callable[[FetchChunk, bytes], object]) -> Serve:
    """An offer that is genuine; each chunk is what `chunk` makes of the right one."""

    async def serve(message: Question) -> object:
        if isinstance(message, FetchSnapshot):
            return SnapshotOffer(0, offered.height, offered.digest, offered.folder.manifest_bytes())
        data = offered.folder.chunk(message.index)
        assert data is not None
        return chunk(message, data)

    return serve


async def silent(message: Question) -> object:
    await asyncio.Event().wait()
    raise AssertionError("never answers")


async def test_several_peers_send_parts_of_one_snapshot(ledger: SignedLedger, new: Offered, tmp_path: Path) -> None:
    joiner = Joiner(ledger, tmp_path / "joining", a=Server(new), b=Server(new), c=Server(new))
    assert await joiner.gather()
    assert joiner.whole() == 4
    asked = {peer for peer, _ in joiner.links.chunks}
    assert asked == {"a", "b", "c"}
    progress = joiner.progress
    assert (progress.chunks, progress.height) == (progress.chunks_total, 4)
    assert progress.size_bytes == progress.size_bytes_total == new.manifest.content.size_bytes
    assert joiner.reports == {}


async def test_the_newest_is_taken_and_an_older_one_is_called_stale(
    ledger: SignedLedger, old: Offered, new: Offered, tmp_path: Path
) -> None:
    joiner = Joiner(ledger, tmp_path / "joining", a=Server(old), b=Server(new), c=Server(old))
    assert await joiner.gather()
    assert joiner.whole() == 4
    assert {peer for peer, _ in joiner.links.chunks} == {"b"}
    assert "snapshot_stale: offers height 2, others 4" in joiner.progress.refused["a"]


async def test_a_snapshot_below_what_is_wanted_is_stale_and_nothing_is_fetched(
    ledger: SignedLedger, old: Offered, tmp_path: Path
) -> None:
    joiner = Joiner(ledger, tmp_path / "joining", a=Server(old))
    assert not await joiner.gather(3)
    assert "snapshot_stale" in joiner.progress.refused["a"]
    assert joiner.links.chunks == []
    assert joiner.reports == {}


async def test_another_networks_snapshot_is_foreign_and_its_sender_is_named(
    ledger: SignedLedger, new: Offered, tmp_path: Path
) -> None:
    other = SignedLedger(tmp_path / "other", signed_network(block_calls_max=77))
    other.open_accounts("A")
    foreign = Offered(made(other, tmp_path / "foreign"))
    other.close()
    joiner = Joiner(ledger, tmp_path / "joining", a=Server(foreign), b=Server(new))
    assert await joiner.gather()
    assert joiner.whole() == 4
    assert joiner.reports == {"a": "snapshot_foreign"}
    assert "snapshot_foreign" in joiner.progress.refused["a"]


LIES: dict[str, Callable[[Offered], Serve]] = {
    "garbage": lambda new: answering(new, lambda asked, data: Chunk(0, b"garbage")),
    "torn": lambda new: answering(new, lambda asked, data: Chunk(0, data[:-1])),
    "swapped": lambda new: answering(
        new, lambda asked, data: Chunk(0, new.folder.chunk((asked.index + 1) % len(new.manifest.content.chunks)))
    ),
    "other message": lambda new: answering(new, lambda asked, data: SnapshotOffer(0, 0, bytes(32), None)),
}


@pytest.mark.parametrize("lie", LIES)
async def test_whoever_sends_wrong_chunks_is_put_aside_and_the_others_send_them(
    ledger: SignedLedger, new: Offered, tmp_path: Path, lie: str
) -> None:
    joiner = Joiner(ledger, tmp_path / "joining", a=LIES[lie](new), b=Server(new))
    assert await joiner.gather()
    assert joiner.whole() == 4
    assert joiner.reports == {"a": "snapshot_corrupt"}
    assert [peer for peer, _ in joiner.links.chunks].count("a") == 1


async def test_a_table_of_chunks_made_up_around_a_genuine_certificate_leads_nowhere(
    ledger: SignedLedger, new: Offered, tmp_path: Path
) -> None:
    """Two liars outnumber the honest one, and their manifest proves itself: only no chunk can fit it."""
    plain = b"\x91\x90"
    lying = msgspec.structs.replace(
        new.manifest,
        content=msgspec.structs.replace(
            new.manifest.content, chunks=(ChunkEntry(16**new.manifest.content.level, 2, sha256(plain)),)
        ),
    )

    async def serve(message: Question) -> object:
        if isinstance(message, FetchSnapshot):
            return SnapshotOffer(0, 4, lying.content.digest, encode(lying))
        return Chunk(0, zlib.compress(plain, COMPRESSION))

    joiner = Joiner(ledger, tmp_path / "joining", a=serve, b=serve, c=Server(new))
    assert await joiner.gather()
    assert joiner.whole() == 4
    assert joiner.reports == {"a": "snapshot_corrupt", "b": "snapshot_corrupt"}


BAD_OFFERS: dict[str, Callable[[Offered], object]] = {
    "unreadable": lambda new: SnapshotOffer(0, 4, new.digest, b"\xc1"),
    "other digest": lambda new: SnapshotOffer(0, 4, sha256(b"x"), new.folder.manifest_bytes()),
    "other height": lambda new: SnapshotOffer(0, 5, new.digest, new.folder.manifest_bytes()),
    "no manifest": lambda new: SnapshotOffer(0, 4, new.digest, None),
    "other message": lambda new: Chunk(0, None),
}


@pytest.mark.parametrize("bad", BAD_OFFERS)
async def test_a_bad_offer_is_refused_and_its_sender_named(
    ledger: SignedLedger, new: Offered, tmp_path: Path, bad: str
) -> None:
    async def serve(message: Question) -> object:
        return BAD_OFFERS[bad](new)

    joiner = Joiner(ledger, tmp_path / "joining", a=serve)
    assert not await joiner.gather()
    assert joiner.reports == {"a": "snapshot_corrupt"}


async def test_a_peer_that_is_slow_or_vanishes_holds_nobody_up(
    ledger: SignedLedger, new: Offered, tmp_path: Path
) -> None:
    joiner = Joiner(ledger, tmp_path / "joining")

    async def vanishing(message: Question) -> object:
        if isinstance(message, FetchSnapshot):
            return SnapshotOffer(0, 4, new.digest, new.folder.manifest_bytes())
        del joiner.links.peers["b"]
        raise Unavailable("peer_gone", "b went away")

    async def slow(message: Question) -> object:
        if isinstance(message, FetchSnapshot):
            return SnapshotOffer(0, 4, new.digest, new.folder.manifest_bytes())
        return await silent(message)

    joiner.links.peers.update(a=slow, b=vanishing, c=silent, d=Server(new))
    assert await joiner.gather()
    assert joiner.whole() == 4
    assert joiner.reports == {}


async def test_who_offers_the_newest_and_never_sends_it_is_left_for_an_older_one(
    ledger: SignedLedger, old: Offered, new: Offered, tmp_path: Path
) -> None:
    async def teasing(message: Question) -> object:
        if isinstance(message, FetchSnapshot):
            return SnapshotOffer(0, 4, new.digest, new.folder.manifest_bytes())
        return await silent(message)

    joiner = Joiner(ledger, tmp_path / "joining", a=teasing, b=Server(old))
    assert await joiner.gather()
    assert joiner.whole() == 2


async def test_who_removed_the_snapshot_meanwhile_is_asked_what_it_offers_now(
    ledger: SignedLedger, old: Offered, new: Offered, tmp_path: Path
) -> None:
    """It offers the old one at first, and when its chunks are asked for, has only the new one."""
    asked = 0

    async def moving(message: Question) -> object:
        nonlocal asked
        if isinstance(message, FetchSnapshot):
            asked += 1
            offered = old if asked == 1 else new
            return SnapshotOffer(0, offered.height, offered.digest, offered.folder.manifest_bytes())
        return Chunk(0, new.chunk(message.height, message.digest, message.index))

    joiner = Joiner(ledger, tmp_path / "joining", a=moving)
    assert await joiner.gather()
    assert joiner.whole() == 4


async def test_an_interrupted_download_goes_on_where_it_was(
    ledger: SignedLedger, new: Offered, tmp_path: Path
) -> None:
    total = len(new.manifest.content.chunks)
    assert total > 4
    stuck = asyncio.Event()

    async def sends_three(message: Question) -> object:
        if isinstance(message, FetchChunk) and message.index >= 3:
            stuck.set()
            return await silent(message)
        return await Server(new)(message)

    first = Joiner(ledger, tmp_path / "joining", a=sends_three)
    run = asyncio.create_task(first.gather())
    await stuck.wait()
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    kept = {index for index in range(total) if first.folder.chunk_path(index).exists()}
    assert kept == {0, 1, 2}
    # One of those kept has rotted meanwhile, and a file was torn.
    first.folder.chunk_path(1).write_bytes(b"rotten")
    (first.folder.path / "0005.chunk.1.unfinished").write_bytes(b"torn")
    second = Joiner(ledger, tmp_path / "joining", b=Server(new))
    assert await second.gather()
    assert second.whole() == 4
    assert {index for _, index in second.links.chunks} == set(range(total)) - {0, 2}
    assert not list(second.folder.path.glob("*.unfinished"))


async def half_a_download(ledger: SignedLedger, new: Offered, path: Path) -> Joiner:
    """A download was broken off when all chunks were there; the second of them has rotted since."""
    joiner = Joiner(ledger, path, a=Server(new))
    assert await joiner.gather()
    joiner.folder.chunk_path(1).write_bytes(b"rotten")
    return Joiner(ledger, path, a=Server(new))


async def test_a_download_cancelled_while_its_chunks_are_checked_leaves_no_thread_that_drops_others(
    ledger: SignedLedger, new: Offered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread went on, and dropped the chunk that the next run had fetched and proven in its place."""
    first = await half_a_download(ledger, new, tmp_path / "joining")
    loop, held, release = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    checked: list[int] = []

    def slowly(data: bytes, content: Content, index: int) -> OpenedChunk:
        checked.append(index)
        if data == b"rotten":
            loop.call_soon_threadsafe(held.set)
            assert release.wait(20)
        return open_chunk(data, content, index)

    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "open_chunk", slowly)
        run = asyncio.create_task(first.gather())
        await held.wait()
        run.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not run.done()
        release.set()
        await asyncio.wait((run,))
    assert run.cancelled()
    assert checked == [0, 1]
    second = Joiner(ledger, tmp_path / "joining", a=Server(new))
    assert await second.gather()
    assert second.whole() == 4
    assert [index for _, index in second.links.chunks] == [1]


async def test_a_download_cancelled_while_it_looks_for_room_ends_even_where_there_is_none(
    ledger: SignedLedger, new: Offered, tmp_path: Path
) -> None:
    joiner = Joiner(ledger, tmp_path / "joining", a=Server(new))
    loop, held, release = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def no_room(needed_bytes: int, what: str) -> None:
        loop.call_soon_threadsafe(held.set)
        assert release.wait(20)
        raise Unavailable("disk_low", "none")

    joiner.gathering._require_room = no_room
    run = asyncio.create_task(joiner.gather())
    await held.wait()
    run.cancel()
    release.set()
    await asyncio.wait((run,))
    assert run.cancelled()


async def test_an_unfinished_download_of_an_older_snapshot_is_dropped_for_a_newer(
    ledger: SignedLedger, old: Offered, new: Offered, tmp_path: Path
) -> None:
    joiner = Joiner(ledger, tmp_path / "joining", a=Server(old))
    assert await joiner.gather()
    newer = Joiner(ledger, tmp_path / "joining", a=Server(old), b=Server(new))
    assert await newer.gather()
    assert newer.whole() == 4


async def test_nobody_and_nothing_offered_is_no_snapshot(ledger: SignedLedger, tmp_path: Path) -> None:
    async def nothing(message: Question) -> object:
        return SnapshotOffer(0, 0, bytes(32), None)

    assert not await Joiner(ledger, tmp_path / "joining").gather()
    joiner = Joiner(ledger, tmp_path / "joining", a=nothing)
    assert not await joiner.gather()
    assert joiner.progress.refused == {"a": "offers no snapshot"}


async def test_the_server_drops_what_a_peer_asks_beyond_two_at_a_time(new: Offered) -> None:
    peer = Server(new)
    for index in range(50):
        peer.server.on_question("greedy", FetchChunk(index, 4, new.digest, 0))
    peer.server.on_question("other", FetchSnapshot(99, (new.digest,)))
    answers = [await peer.answers.get() for _ in range(3)]
    assert sum(isinstance(answer, Chunk) for answer in answers) == 2
    assert SnapshotOffer(99, 4, new.digest, None) in answers
    await peer.server.close()
    peer.server.on_question("late", FetchSnapshot(0, ()))
    assert peer.answers.empty()
