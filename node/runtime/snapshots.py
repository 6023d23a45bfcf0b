"""This node's own snapshots: made in the background at governed heights, kept on disk, offered to others.

Its rows are read by a thread of its own, in small steps with pauses between them (threads.py), and cut into chunks
by a process of its own: no commit waits for them. What is read is the store as it was at that height. If it is
still at work when the next one is due, that one is left out.
"""

import asyncio
import contextlib
from collections.abc import Callable, Generator
from pathlib import Path

import structlog

from node.client.answers import JoinStatus
from node.config import NetworkConfig
from node.errors import HansaError, StoreError, Unavailable
from node.runtime.clock import Clock
from node.runtime.heap import give_back_free
from node.runtime.threads import Threads
from node.snapshot import (
    Cut,
    SnapshotFolder,
    SnapshotTooLarge,
    finished_heights,
    make_snapshot,
    read_manifest,
    remove_leftovers,
    remove_snapshot,
)
from node.snapshot.folder import snapshot_at
from node.store import StoreView


class Snapshots:
    """Makes, keeps and offers; node.sync's `Snapshots`. Runs on the event loop, but for `chunk`."""

    def __init__(
        self,
        root: Path,
        keep: int,
        network: NetworkConfig,
        threads: Threads,
        clock: Clock,
        disk_low: Callable[[], bool],
        cut: Cut,
    ) -> None:
        """They lie in `root`, the newest `keep` of them; with none to be kept none is made.

        While `disk_low()` none is: all members make theirs at the same height, and none may lose its vote by it.
        """
        self._root = root
        self._keep = keep
        self._network = network
        self._blocks = network.parameters.snapshot_blocks if keep else 0
        self._threads = threads
        self._clock = clock
        self._disk_low = disk_low
        self._cut = cut
        self._task: asyncio.Task[None] | None = None
        self._newest: tuple[int, bytes, bytes] | None = None
        self._newest_bytes = 0
        self._digests: dict[int, bytes] = {}
        self.making_height = 0
        """The height that one is being made of; 0: none is."""
        self.made = 0
        self.skipped = 0
        self.failed = 0
        self.last_ms = 0
        """How long the last one took."""
        self._log = structlog.get_logger("snapshots")

    @property
    def height(self) -> int:
        """The height of the newest one that is offered; 0: none is."""
        return 0 if self._newest is None else self._newest[0]

    @property
    def size_bytes(self) -> int:
        """How many bytes the newest one takes on disk."""
        return self._newest_bytes

    def start(self, view: StoreView) -> None:
        """What lies finished on disk is offered; one that is due at the head of `view` is being made."""
        try:
            remove_leftovers(self._root)
            self._settle()
        except StoreError as error:
            self._log.error("the snapshots cannot be read", reason=error.message, path=str(self._root))
        if self._is_due(view.head.height) and view.head.height not in self._digests:
            self._begin(view)

    def on_applied(self, view: StoreView, target: int) -> None:
        """The head is that of `view`, others have decided `target`: a snapshot is being made where one is due."""
        height = view.head.height
        if not self._is_due(height):
            return
        if self._disk_low():
            self._log.warning("no snapshot while the disk fills up", height=height)
        elif target >= height + self._blocks:
            self._log.info("no snapshot while catching up: a newer one will be due", height=height, target=target)
        elif self._task is not None:
            self.skipped += 1
            self._log.warning(
                "snapshot left out: one is being made still", height=height, making=self.making_height
            )
        else:
            self._begin(view)

    async def close(self) -> None:
        """None is being made any more; an unfinished one is removed at the next start at the latest."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # --- offering (node.sync.Snapshots) ----------------------------------------------------------------------

    def newest(self) -> tuple[int, bytes, bytes] | None:
        """Height, digest and encoded manifest of the newest snapshot, or None."""
        return self._newest

    def chunk(self, height: int, digest: bytes, index: int) -> bytes | None:
        """A chunk's file; None when that snapshot, or that chunk of it, is not here or cannot be read."""
        if self._digests.get(height) != digest:
            return None
        try:
            return snapshot_at(self._root, height).chunk(index)
        except StoreError as error:
            self._log.error("a chunk cannot be read", height=height, chunk=index, reason=error.message)
            return None

    # --- making ----------------------------------------------------------------------------------------------

    def _is_due(self, height: int) -> bool:
        return self._blocks > 0 and height > 0 and height % self._blocks == 0

    def _begin(self, view: StoreView) -> None:
        self.making_height = view.head.height
        self._task = asyncio.get_running_loop().create_task(self._make(view))

    async def _make(self, view: StoreView) -> None:
        """A failure here is told and costs nobody a block: the state itself is not touched."""
        height, started_ms = view.head.height, self._clock.now_ms()
        network = self._network
        steps = make_snapshot(
            view,
            network.network_id,
            network.genesis_hash,
            network.parameters.state_tree_bits,
            self._root,
            self._cut,
        )
        # The steps let go of it once its rows are read.
        del view
        try:
            folder = await self._threads.background(while_room(steps, self._disk_low))
            await asyncio.to_thread(self._settle)
            await asyncio.to_thread(give_back_free)
        except (HansaError, SnapshotTooLarge) as error:
            self.failed += 1
            self._log.error("no snapshot was made", height=height, reason=str(error))
        else:
            self.made += 1
            self.last_ms = self._clock.now_ms() - started_ms
            self._log.info(
                "snapshot made",
                height=height,
                took_ms=self.last_ms,
                size_bytes=folder.size_bytes(),
                kept=self._keep,
            )
        finally:
            self.making_height, self._task = 0, None

    def _settle(self) -> None:
        """The newest `keep` snapshots are offered, the others gone. One that cannot be read is not offered."""
        digests: dict[int, bytes] = {}
        newest: tuple[int, bytes, bytes] | None = None
        for height in reversed(finished_heights(self._root)):
            if len(digests) >= self._keep:
                remove_snapshot(self._root, height)
                continue
            data = snapshot_at(self._root, height).manifest_bytes()
            digest = self._digest_of(data, height)
            if digest is None:
                continue
            digests[height] = digest
            newest = newest or (height, digest, data)
        self._digests, self._newest = digests, newest
        self._newest_bytes = 0 if newest is None else snapshot_at(self._root, newest[0]).size_bytes()

    def _digest_of(self, data: bytes, height: int) -> bytes | None:
        try:
            content = read_manifest(data).content
        except HansaError as error:
            self._log.error("a snapshot is not offered", height=height, reason=error.message)
            return None
        here = (self._network.network_id, self._network.genesis_hash, height)
        return content.digest if (content.network, content.genesis_hash, content.height) == here else None


def while_room(
    steps: Generator[None, None, SnapshotFolder], disk_low: Callable[[], bool]
) -> Generator[None, None, SnapshotFolder]:
    """Return what `steps` returns; raise Unavailable, with nothing of it left, once the disk fills up."""
    with contextlib.closing(steps):
        while not disk_low():
            try:
                next(steps)
            except StopIteration as end:
                folder: SnapshotFolder = end.value
                return folder
            yield
    raise Unavailable("disk_low", "the disk fills up, and a snapshot can wait")


def keep_joined(joining: Path, root: Path, head_height: int, keep: int) -> None:
    """What this node has joined from lies among its own snapshots; what is left of an older download is gone.

    `head_height` is this node's: a download of a newer snapshot stays where it is. Raise StoreError.
    """
    folder = SnapshotFolder(joining)
    data = folder.manifest_bytes()
    if not data:
        return
    try:
        content = read_manifest(data).content
    except HansaError:
        folder.remove()
        return
    if content.height > head_height:
        return
    folder.remove_leftovers()
    whole = all(folder.chunk_path(index).exists() for index in range(len(content.chunks)))
    if whole and keep and content.height not in finished_heights(root):
        folder.rename(snapshot_at(root, content.height).path)
    else:
        folder.remove()


def add_gauges(
    gauge: Callable[[str, str, Callable[[], float]], None],
    snapshots: Snapshots,
    bytes_served: Callable[[], int],
    joining: Callable[[], JoinStatus | None],
    replays: Callable[[], int],
) -> None:
    """What Prometheus reads of snapshots: those made here, those served, and the one that this node joins from."""
    gauge("hansa_snapshot_height", "Height of the newest snapshot offered here, or 0", lambda: snapshots.height)
    gauge("hansa_snapshot_bytes", "Bytes on disk of the newest snapshot", lambda: snapshots.size_bytes)
    gauge("hansa_snapshot_making_height", "Height that one is being made of, or 0", lambda: snapshots.making_height)
    gauge("hansa_snapshot_last_ms", "How long the last one took to make", lambda: snapshots.last_ms)
    gauge("hansa_snapshots_made", "Snapshots made since the start", lambda: snapshots.made)
    gauge("hansa_snapshots_left_out", "Not made: one was being made still", lambda: snapshots.skipped)
    gauge("hansa_snapshots_failed", "Not made: disk, damage or size", lambda: snapshots.failed)
    gauge("hansa_snapshot_served_bytes", "Bytes of chunks sent to joining members", bytes_served)
    gauge("hansa_join_chunks", "Chunks at hand of the snapshot to join from", lambda: _of(joining(), "chunks"))
    gauge("hansa_join_chunks_total", "Chunks of it in all", lambda: _of(joining(), "chunks_total"))
    gauge("hansa_join_bytes", "Bytes at hand of it", lambda: _of(joining(), "size_bytes"))
    gauge("hansa_join_bytes_per_s", "Bytes of it that come in a second", lambda: _of(joining(), "bytes_per_s"))
    gauge("hansa_join_replays", "Times that no snapshot was to be had and every block is executed", replays)


def _of(status: JoinStatus | None, field: str) -> int:
    value: int = 0 if status is None else getattr(status, field)
    return value
