"""Gathers a snapshot from peers into a directory: found, judged, fetched chunk by chunk, each proven before it
is kept.

Nothing here trusts a peer. A manifest counts only with the chain of certificates from genesis to its state root, a
chunk only with the hashes that lead there; so one honest peer with the snapshot is enough, and a download that was
interrupted goes on with whoever offers the same. A peer that lies is put aside and named, one that is slow or gone
is left for a while, one that offers an older snapshot than others is not asked for it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import msgspec
import structlog

from consensus.codec import encode
from consensus.members import Members
from node.errors import HansaError, InvalidFrame, StoreError
from node.snapshot import (
    Content,
    Manifest,
    SnapshotFolder,
    open_chunk,
    read_manifest,
    require_own_past,
    verify_manifest,
)
from node.store import StoreView
from node.sync.proof import Verify
from node.wire import Chunk, FetchChunk, FetchSnapshot, SnapshotOffer

OFFER_TIMEOUT_S = 10.0
CHUNK_TIMEOUT_S = 30.0
OFFERS_AT_ONCE = 4
"""So many peers are asked for their newest snapshot at the same time: a manifest may have megabytes."""
ASIDE_S = 2.0
ASIDE_S_MAX = 60.0
FAULT_ASIDE_S = 600.0
PATIENCE_S = 60.0
"""So long no chunk may come before the peers are asked anew what they offer."""
WATCH_S = 0.25
LOOKS_MAX = 100
"""So often the peers are asked anew before it is given up: each time somebody was put aside or the offers
changed."""

Step: TypeAlias = Literal["", "asking", "fetching"]


class Links(Protocol):
    """The links to peers, as fetching uses them."""

    @property
    def connected(self) -> Iterable[str]:
        """The peers with a link now."""

    async def request(self, peer: str, message: FetchSnapshot | FetchChunk, timeout_s: float) -> object:
        """The peer's answer; raises HansaError when none comes in time."""


class GatherProgress(msgspec.Struct, frozen=True):
    """Where it stands. Bytes are those before compression; `bytes_per_s` is of this run, `peers` send now.

    `refused` says for each peer whose offer or chunk was not taken why not.
    """

    step: Step
    height: int
    chunks: int
    chunks_total: int
    size_bytes: int
    size_bytes_total: int
    bytes_per_s: float
    peers: tuple[str, ...]
    refused: dict[str, str]


class _Offer(msgspec.Struct, frozen=True):
    """A proven snapshot and who offers it."""

    manifest: Manifest
    digest: bytes
    peers: tuple[str, ...]


class _Peer(msgspec.Struct):
    """What is remembered of a peer: until when it is not asked, since how many failures, and why."""

    aside_until_s: float = float("-inf")
    failures: int = 0
    reason: str = ""


class SnapshotGathering:
    """Finds and fetches the newest snapshot that proves itself. Everything runs on the event loop."""

    def __init__(
        self,
        links: Links,
        folder: SnapshotFolder,
        network: str,
        genesis_hash: bytes,
        founders: Members,
        tree_bits: int,
        governed_blocks: int,
        verify: Verify,
        view: Callable[[], StoreView],
        report: Callable[[str, HansaError], None],
    ) -> None:
        """`founders` decide height 1; at multiples of `governed_blocks` everybody makes a snapshot (0: at none).

        `verify` is pure and may be called from threads, `view()` of this node's own blocks too; `report` hears of
        liars.
        """
        self._links = links
        self._folder = folder
        self._network = network
        self._genesis_hash = genesis_hash
        self._founders = founders
        self._tree_bits = tree_bits
        self._governed_blocks = governed_blocks
        self._verify = verify
        self._view = view
        self._report = report
        self._loop: asyncio.AbstractEventLoop | None = None
        self._peers: dict[str, _Peer] = {}
        self._step: Step = ""
        self._content: Content | None = None
        self._missing: set[int] = set()
        self._asked: Counter[int] = Counter()
        self._working: dict[str, asyncio.Task[None]] = {}
        self._fetched_bytes = 0
        self._started_s = 0.0
        self._came_s = 0.0
        self._log = structlog.get_logger("snapshots")

    async def gather(self, height_min: int) -> bool:
        """True: a whole, proven snapshot of at least `height_min` lies in the folder. False: nobody offers one.

        Raise StoreError when the disk refuses. When cancelled, what was kept stays for the next time.
        """
        self._loop = asyncio.get_running_loop()
        try:
            for _ in range(LOOKS_MAX):
                offer = await self._look(height_min)
                if offer is None:
                    return False
                if await self._fetch(offer):
                    return True
            return False
        finally:
            self._step = ""

    def progress(self) -> GatherProgress:
        """Where it stands now."""
        content, now_s = self._content, self._now_s()
        chunks = () if content is None else content.chunks
        left_bytes = sum([chunks[index].size_bytes for index in self._missing])
        total_bytes = 0 if content is None else content.size_bytes
        elapsed_s = now_s - self._started_s
        return GatherProgress(
            step=self._step,
            height=0 if content is None else content.height,
            chunks=len(chunks) - len(self._missing),
            chunks_total=len(chunks),
            size_bytes=total_bytes - left_bytes,
            size_bytes_total=total_bytes,
            bytes_per_s=self._fetched_bytes / elapsed_s if self._step == "fetching" and elapsed_s > 0 else 0.0,
            peers=tuple(sorted(self._working)),
            refused={name: peer.reason for name, peer in sorted(self._peers.items()) if peer.reason},
        )

    # --- offers ----------------------------------------------------------------------------------------------

    async def _look(self, height_min: int) -> _Offer | None:
        """The newest proven snapshot that anybody offers, with all who offer it; None: there is none to be had."""
        self._step, self._content, self._missing = "asking", None, set()
        proven: dict[bytes, Manifest] = {}
        kept = await asyncio.to_thread(self._kept)
        if kept is not None:
            proven[kept.content.digest] = kept
        offering: dict[str, bytes] = {}
        places = asyncio.Semaphore(OFFERS_AT_ONCE)

        async def ask(peer: str) -> None:
            async with places:
                digest = await self._offered(peer, height_min, proven)
                if digest is not None:
                    offering[peer] = digest

        await asyncio.gather(*[ask(peer) for peer in self._links.connected if self._may_ask(peer)])
        if not offering:
            return None
        newest = max(proven[digest].content.height for digest in offering.values())
        for peer, digest in offering.items():
            height = proven[digest].content.height
            if height < newest:
                self._note(peer, f"snapshot_stale: offers height {height}, others {newest}")
        counts = Counter(digest for digest in offering.values() if proven[digest].content.height == newest)
        # Of two snapshots of one height one has no honest maker: the one that more peers offer comes first.
        digest = min(counts, key=lambda digest: (-counts[digest], digest))
        peers = tuple(sorted(peer for peer, offered in offering.items() if offered == digest))
        return _Offer(proven[digest], digest, peers)

    def _kept(self) -> Manifest | None:
        """The manifest of an interrupted download, if it proves itself."""
        data = self._folder.manifest_bytes()
        try:
            return self._judged(data) if data else None
        except InvalidFrame as error:
            self._log.warning(
                "an unfinished download is dropped", reason=error.message, path=str(self._folder.path)
            )
            return None

    async def _offered(self, peer: str, height_min: int, proven: dict[bytes, Manifest]) -> bytes | None:
        """The digest of the snapshot that `peer` offers, its manifest in `proven`; None: nothing of use."""
        try:
            known = tuple(sorted(proven))
            reply = await self._links.request(peer, FetchSnapshot(0, known), OFFER_TIMEOUT_S)
            if not isinstance(reply, SnapshotOffer):
                raise InvalidFrame(
                    "snapshot_corrupt", "it answered a question for its snapshot with something else"
                )
            if reply.height == 0:
                self._note(peer, "offers no snapshot")
                return None
            if reply.height < height_min:
                text = f"offers height {reply.height}, which saves nothing: at least {height_min} is wanted"
                self._note(peer, f"snapshot_stale: {text}")
                return None
            manifest = proven.get(reply.digest)
            if manifest is None:
                if reply.manifest is None:
                    raise InvalidFrame("snapshot_corrupt", "it offers a snapshot without its manifest")
                manifest = await asyncio.to_thread(self._judged, reply.manifest)
                if manifest.content.digest != reply.digest:
                    raise InvalidFrame("snapshot_corrupt", "its manifest is that of another snapshot than it says")
            if manifest.content.height != reply.height:
                raise InvalidFrame("snapshot_corrupt", "its snapshot is of another height than it says")
            if self._governed_blocks and reply.height % self._governed_blocks:
                # Else one member could always offer the newest alone, and have it sent as slowly as it likes.
                self._note(peer, f"offers height {reply.height}, at which nobody else makes a snapshot")
                return None
        except InvalidFrame as error:
            self._fault(peer, error)
            return None
        except HansaError as error:
            self._put_aside(peer, error.message)
            return None
        proven.setdefault(reply.digest, manifest)
        self._note(peer, "")
        return reply.digest

    def _judged(self, data: bytes) -> Manifest:
        manifest = read_manifest(data)
        verify_manifest(manifest, self._network, self._genesis_hash, self._founders, self._tree_bits, self._verify)
        require_own_past(manifest.content, self._view())
        return manifest

    # --- chunks ----------------------------------------------------------------------------------------------

    async def _fetch(self, offer: _Offer) -> bool:
        """True: every chunk is kept. False: those who offered it are gone, put aside, or silent for long."""
        content = offer.manifest.content
        self._content, self._missing = content, set(range(len(content.chunks)))
        self._missing = await asyncio.to_thread(self._prepare, offer)
        self._step, self._fetched_bytes = "fetching", 0
        self._started_s = self._came_s = self._now_s()
        self._log.info(
            "fetching a snapshot",
            height=content.height,
            keys=content.keys,
            chunks=len(content.chunks),
            missing=len(self._missing),
            peers=offer.peers,
        )
        self._asked.clear()
        holders = dict.fromkeys(offer.peers)
        try:
            while self._missing and holders and self._now_s() - self._came_s < PATIENCE_S:
                connected = frozenset(self._links.connected)
                for peer in [peer for peer in holders if peer in connected and self._may_ask(peer)]:
                    if peer not in self._working:
                        self._working[peer] = asyncio.create_task(self._work(peer, offer, holders))
                await _first_of(self._working.values(), WATCH_S)
                for peer in [peer for peer, task in self._working.items() if task.done()]:
                    # What it raises is the disk's: fetching ends with it.
                    self._working.pop(peer).result()
            for peer in holders if self._missing else ():
                self._give_up(peer)
        finally:
            working, self._working = list(self._working.values()), {}
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
        return not self._missing

    def _prepare(self, offer: _Offer) -> set[int]:
        """The folder is that of `offer`; return which chunks are missing. Chunks kept before are proven again."""
        content, folder = offer.manifest.content, self._folder
        kept = self._kept()
        if kept is None or kept.content.digest != offer.digest:
            folder.remove()
            folder.create()
            folder.write_manifest(encode(offer.manifest))
        folder.remove_leftovers()
        missing: set[int] = set()
        for index in range(len(content.chunks)):
            data = folder.chunk(index)
            try:
                if data is not None:
                    open_chunk(data, content, index)
                    continue
            except InvalidFrame:
                folder.drop_chunk(index)
            missing.add(index)
        return missing

    async def _work(self, peer: str, offer: _Offer, holders: dict[str, None]) -> None:
        """`peer` is asked for one chunk after the other, until none is missing or it is of no more use."""
        while (index := self._next()) is not None:
            self._asked[index] += 1
            try:
                question = FetchChunk(0, offer.manifest.content.height, offer.digest, index)
                reply = await self._links.request(peer, question, CHUNK_TIMEOUT_S)
                if not isinstance(reply, Chunk):
                    raise InvalidFrame("snapshot_corrupt", "it answered a question for a chunk with something else")
                if reply.data is None:
                    self._note(peer, "does not have the snapshot any more")
                    del holders[peer]
                    return
                await _to_its_end(asyncio.to_thread(self._keep, reply.data, offer.manifest.content, index))
            except InvalidFrame as error:
                del holders[peer]
                self._fault(peer, error)
                return
            except StoreError:
                raise
            except HansaError as error:
                self._put_aside(peer, error.message)
                return
            finally:
                self._asked[index] -= 1
            self._peers.setdefault(peer, _Peer()).failures = 0
            if index in self._missing:
                self._missing.discard(index)
                self._came_s = self._now_s()
                self._fetched_bytes += offer.manifest.content.chunks[index].size_bytes

    def _next(self) -> int | None:
        """The chunk to ask for: one that nobody is asked for, else one that a slower peer owes; None: none is
        left."""
        return min(self._missing, key=lambda index: (self._asked[index], index), default=None)

    def _keep(self, data: bytes, content: Content, index: int) -> None:
        """The chunk is proven and durable. Two peers may have sent the same: the second write changes nothing."""
        open_chunk(data, content, index)
        self._folder.write_chunk(index, data)

    # --- peers -----------------------------------------------------------------------------------------------

    def _may_ask(self, peer: str) -> bool:
        return self._peers.setdefault(peer, _Peer()).aside_until_s <= self._now_s()

    def _note(self, peer: str, reason: str) -> None:
        self._peers.setdefault(peer, _Peer()).reason = reason

    def _put_aside(self, peer: str, reason: str) -> None:
        """`peer` is not asked for a while, longer with each failure since it last helped."""
        known = self._peers.setdefault(peer, _Peer())
        known.reason = reason
        known.aside_until_s = self._now_s() + min(ASIDE_S * 2**known.failures, ASIDE_S_MAX)
        known.failures = min(known.failures + 1, 8)
        self._log.info("peer put aside", peer=peer, reason=reason)

    def _give_up(self, peer: str) -> None:
        """`peer` offered a snapshot and did not send it: for a while others are asked, even for an older one."""
        known = self._peers.setdefault(peer, _Peer())
        known.reason = known.reason or f"sent no chunk for {PATIENCE_S:g} s"
        known.aside_until_s = self._now_s() + FAULT_ASIDE_S

    def _fault(self, peer: str, error: HansaError) -> None:
        """`peer` sent what no honest node sends."""
        known = self._peers.setdefault(peer, _Peer())
        known.reason = f"{error.code}: {error.message}"
        known.aside_until_s = self._now_s() + FAULT_ASIDE_S
        self._report(peer, error)

    def _now_s(self) -> float:
        return 0.0 if self._loop is None else self._loop.time()


async def _to_its_end(keeping: Coroutine[Any, Any, None]) -> None:
    """Await `keeping`; when cancelled, let its thread end first: it must not write into the next one's folder."""
    task = asyncio.ensure_future(keeping)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


async def _first_of(tasks: Iterable[asyncio.Task[None]], timeout_s: float) -> None:
    """One of `tasks` has ended, or the time is over."""
    waiting = list(tasks)
    if waiting:
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    else:
        await asyncio.sleep(timeout_s)


def refusals(progress: GatherProgress) -> Sequence[str]:
    """Why no offer was taken, one sentence for each peer."""
    return [f"{peer}: {reason}" for peer, reason in progress.refused.items()]
