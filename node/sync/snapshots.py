"""Gathers a snapshot from peers into a directory: found, judged, fetched chunk by chunk, each proven before it
is kept.

Nothing here trusts a peer. A manifest counts only with the chain of certificates from genesis to its state root, a
chunk only with the hashes that lead there; so one honest peer with the snapshot is enough, and a download that was
interrupted goes on with whoever offers the same. A peer that lies is put aside and named, one that is slow or gone
is left for a while, one that offers an older snapshot than others is not asked for it.

Invariant: no set of peers keeps a download going below BYTES_PER_S_MIN. Every byte that comes buys time, bounded
(patience.py); when the time is spent, those who have the snapshot are left for FAULT_ASIDE_S and the others asked
what they offer. So a download ends, whole or given up, within its size over BYTES_PER_S_MIN and one PATIENCE_S for
each peer. Whoever comes to have the same snapshot meanwhile is asked too.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol, TypeAlias

import msgspec
import structlog

from consensus.codec import encode
from consensus.members import Members
from node.config import NO_RECOVERIES, Recoveries
from node.errors import HansaError, InvalidFrame, StoreError, Unavailable
from node.snapshot import (
    Content,
    Manifest,
    SnapshotFolder,
    adoption_bytes,
    open_chunk,
    read_manifest,
    require_keys,
    require_own_past,
    verify_manifest,
)
from node.store import StoreView
from node.sync.ending import to_its_end
from node.sync.patience import Patience
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
"""So long nothing may come, or far too little, before the peers are asked anew what they offer."""
BYTES_PER_S_MIN = 64 * 1024
"""What all who have the snapshot send together must come to, before compression."""
SEEK_S = 30.0
"""So often the other peers are asked during a download whether they have the same snapshot by now."""
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
        require_room: Callable[[int, str], None],
        recoveries: Recoveries = NO_RECOVERIES,
    ) -> None:
        """`founders` decide height 1; at multiples of `governed_blocks` everybody makes a snapshot (0: at none).

        `verify` is pure and may be called from threads, `view()` of this node's own blocks too; `report` hears of
        liars. `require_room(bytes, what for)`, called in a thread, raises Unavailable where the disk has not got
        them.
        """
        self._links = links
        self._folder = folder
        self._judged_by = (network, genesis_hash, founders, tree_bits, verify, recoveries)
        self._governed_blocks = governed_blocks
        self._view = view
        self._report = report
        self._require_room = require_room
        self._loop: asyncio.AbstractEventLoop | None = None
        self._peers: dict[str, _Peer] = {}
        self._step: Step = ""
        self._content: Content | None = None
        self._missing: set[int] = set()
        self._keys: dict[int, int] = {}
        self._asked: Counter[int] = Counter()
        self._working: dict[str, asyncio.Task[None]] = {}
        self._fetched_bytes = 0
        self._started_s = 0.0
        self._patience = Patience(0.0, 0.0, BYTES_PER_S_MIN)
        self._log = structlog.get_logger("snapshots")

    async def gather(self, height_min: int, on_fetching: Callable[[bool], None] = lambda fetching: None) -> bool:
        """True: a whole, proven snapshot of at least `height_min` lies in the folder. False: nobody offers one, or
        nobody sends what was offered.

        `on_fetching` is told when chunks begin to be fetched, and when that is given up. Raise StoreError when the
        disk refuses, what `require_room` raises for every offer, before anything is written. When cancelled, what
        was kept stays for the next time.
        """
        self._loop = asyncio.get_running_loop()
        no_room: Unavailable | None = None
        try:
            for _ in range(LOOKS_MAX):
                offer = await self._look(height_min)
                if offer is None:
                    break
                try:
                    if await self._fetch(offer, on_fetching):
                        return True
                except Unavailable as error:
                    # How large it is its manifest says alone: a liar's must not keep this node from another one.
                    no_room = error
                    for peer in offer.peers:
                        self._leave(peer, error.message, ASIDE_S_MAX)
            if no_room is not None:
                raise no_room
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
        verify_manifest(manifest, *self._judged_by)
        require_own_past(manifest.content, self._view())
        return manifest

    # --- chunks ----------------------------------------------------------------------------------------------

    async def _fetch(self, offer: _Offer, on_fetching: Callable[[bool], None]) -> bool:
        """True: every chunk is kept. False: those who offered it are gone, put aside, silent, or far too slow."""
        content = offer.manifest.content
        self._content, self._missing = content, set(range(len(content.chunks)))
        self._keys = await self._prepare(offer)
        self._missing.difference_update(self._keys)
        self._step, self._fetched_bytes, self._started_s = "fetching", 0, self._now_s()
        # One chunk alone may take longer than the patience, and counts when it is whole.
        largest_s = max([chunk.size_bytes for chunk in content.chunks]) / BYTES_PER_S_MIN
        self._patience = Patience(self._started_s, PATIENCE_S + largest_s, BYTES_PER_S_MIN)
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
        on_fetching(True)
        seeking = asyncio.create_task(self._seek(offer, holders))
        try:
            while self._missing and holders and not self._patience.is_over(self._now_s()):
                connected = frozenset(self._links.connected)
                for peer in [peer for peer in holders if peer in connected and self._may_ask(peer)]:
                    if peer not in self._working:
                        self._working[peer] = asyncio.create_task(self._work(peer, offer, holders))
                await _first_of(self._working.values(), WATCH_S)
                for peer in [peer for peer, task in self._working.items() if task.done()]:
                    # What it raises is the disk's: fetching ends with it.
                    self._working.pop(peer).result()
                if seeking.done():
                    seeking.result()
            for peer in holders if self._missing else ():
                self._give_up(peer)
        finally:
            working, self._working = [seeking, *self._working.values()], {}
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
            if self._missing:
                on_fetching(False)
        return not self._missing and await self._is_counted(content, (*offer.peers, *holders), on_fetching)

    async def _is_counted(
        self, content: Content, peers: Iterable[str], on_fetching: Callable[[bool], None]
    ) -> bool:
        """Whether the chunks hold as many keys as the manifest says; else they are gone, and `peers` at fault: all
        who offer it, for the number is in the digest by which they do."""
        try:
            require_keys(content, sum(self._keys.values()))
        except InvalidFrame as error:
            for peer in peers:
                self._fault(peer, error)
            on_fetching(False)
            await to_its_end(asyncio.to_thread(self._folder.remove))
            return False
        return True

    async def _seek(self, offer: _Offer, holders: dict[str, None]) -> None:
        """Peers that have the snapshot by now become `holders`: each makes its own, and none at the same moment.

        Who offers a newer one may have this one still, and says so when it is asked for a chunk.
        """
        proven, asked = {offer.digest: offer.manifest}, set(holders)
        while True:
            await asyncio.sleep(SEEK_S)
            for peer in [peer for peer in self._links.connected if peer not in asked and self._may_ask(peer)]:
                if await self._offered(peer, offer.manifest.content.height, proven) is not None:
                    asked.add(peer)
                    holders[peer] = None
                    # Once a peer: who has just come must not be left for what the others did not send.
                    self._patience.renew(self._now_s())

    async def _prepare(self, offer: _Offer) -> dict[int, int]:
        """The folder is that of `offer`, and there is room; return which chunks are kept, and how many keys each
        holds.

        Chunks kept before are proven again, but for a snapshot that could not be taken over anyway. When cancelled,
        whatever thread changes the folder has ended: one left behind would drop what the next run has fetched.
        """
        content, folder = offer.manifest.content, self._folder
        taken_over_bytes, what = adoption_bytes(content), f"the snapshot of height {content.height}"
        kept = await asyncio.to_thread(self._kept)
        if kept is None or kept.content.digest != offer.digest:
            freed_bytes = await asyncio.to_thread(folder.size_bytes)
            await asyncio.to_thread(self._require_room, taken_over_bytes + content.size_bytes - freed_bytes, what)
            await to_its_end(asyncio.to_thread(lambda: folder.start(encode(offer.manifest))))
            return {}
        await asyncio.to_thread(self._require_room, taken_over_bytes, what)
        await to_its_end(asyncio.to_thread(folder.remove_leftovers))
        keys: dict[int, int] = {}
        for index in range(len(content.chunks)):
            # Chunk by chunk, so that whoever stops this node waits for one of them and not for all.
            count = await to_its_end(asyncio.to_thread(self._keys_kept, content, index))
            if count is not None:
                keys[index] = count
        missing_bytes = content.size_bytes - sum([content.chunks[index].size_bytes for index in keys])
        await asyncio.to_thread(self._require_room, taken_over_bytes + missing_bytes, what)
        return keys

    def _keys_kept(self, content: Content, index: int) -> int | None:
        """How many keys the kept chunk holds; None, and then it is not there, for none that proves itself."""
        data = self._folder.chunk(index)
        try:
            return None if data is None else len(open_chunk(data, content, index).rows)
        except InvalidFrame:
            self._folder.drop_chunk(index)
            return None

    async def _work(self, peer: str, offer: _Offer, holders: dict[str, None]) -> None:
        """`peer` is asked for one chunk after the other, until none is missing or it is of no more use."""
        content = offer.manifest.content
        while (index := self._next()) is not None:
            self._asked[index] += 1
            size_bytes = content.chunks[index].size_bytes
            try:
                question = FetchChunk(0, content.height, offer.digest, index)
                timeout_s = max(CHUNK_TIMEOUT_S, size_bytes / BYTES_PER_S_MIN)
                reply = await self._links.request(peer, question, timeout_s)
                if not isinstance(reply, Chunk):
                    raise InvalidFrame("snapshot_corrupt", "it answered a question for a chunk with something else")
                if reply.data is None:
                    self._note(peer, "does not have the snapshot any more")
                    del holders[peer]
                    return
                # When cancelled its thread ends first: it must not write into the next snapshot's folder.
                keys = await to_its_end(asyncio.to_thread(self._keep, reply.data, content, index))
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
                self._keys[index] = keys
                self._patience.came(size_bytes, self._now_s())
                self._fetched_bytes += size_bytes

    def _next(self) -> int | None:
        """The chunk to ask for: one that nobody is asked for, else one that a slower peer owes; None: none is
        left."""
        return min(self._missing, key=lambda index: (self._asked[index], index), default=None)

    def _keep(self, data: bytes, content: Content, index: int) -> int:
        """The chunk is proven and durable; return how many keys it holds. Two peers may have sent the same: the
        second write changes nothing."""
        keys = len(open_chunk(data, content, index).rows)
        self._folder.write_chunk(index, data)
        return keys

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
        """`peer` has a snapshot and does not send it: for a while others are asked, even for an older one."""
        known = self._peers.setdefault(peer, _Peer())
        slow = f"too slow: all who have it sent less than {BYTES_PER_S_MIN // 1024} KiB a second together"
        self._leave(peer, known.reason or slow, FAULT_ASIDE_S)

    def _leave(self, peer: str, reason: str, aside_s: float) -> None:
        """`peer` is not asked for so long."""
        known = self._peers.setdefault(peer, _Peer())
        known.reason, known.aside_until_s = reason, self._now_s() + aside_s

    def _fault(self, peer: str, error: HansaError) -> None:
        """`peer` sent what no honest node sends."""
        self._leave(peer, f"{error.code}: {error.message}", FAULT_ASIDE_S)
        self._report(peer, error)

    def _now_s(self) -> float:
        return 0.0 if self._loop is None else self._loop.time()


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
