"""What this node gives to `hansa backup`: pages of its blocks, and a snapshot of its head when it is asked for one.

The snapshot is made beside running commits, as those for joining members are, but lies in a directory of its own:
members that join compare snapshots of governed heights, and one of another height would only confuse them. One is
made at a time; the one before is removed, whether the backup has taken it or not. While the disk is low none is
begun, and one under way is given up: a backup can wait, a vote cannot.
"""

import asyncio
from pathlib import Path

import structlog

from node.backup.pages import make_page
from node.client.answers import BackupStatus
from node.config import NetworkConfig
from node.errors import HansaError, StoreError, Unavailable
from node.runtime.disk_space import DiskSpace
from node.runtime.snapshots import while_room
from node.runtime.threads import Threads
from node.snapshot import (
    Cut,
    SnapshotTooLarge,
    finished_heights,
    make_snapshot,
    remove_leftovers,
    remove_snapshot,
)
from node.store import Store


class BackingUp:
    """Implements node.api.Backups. Runs on the event loop."""

    def __init__(
        self, root: Path, network: NetworkConfig, store: Store, threads: Threads, disk: DiskSpace, cut: Cut
    ) -> None:
        """The snapshot for a backup lies in `root`."""
        self._root = root
        self._network = network
        self._store = store
        self._threads = threads
        self._disk = disk
        self._cut = cut
        self._task: asyncio.Task[None] | None = None
        self._making_height = 0
        self._failed = ""
        self._turn = asyncio.Lock()
        self._log = structlog.get_logger("backup")

    def status(self) -> BackupStatus:
        """What the node could be backed up with now."""
        try:
            heights = finished_heights(self._root)
        except StoreError as error:
            heights, self._failed = [], error.message
        return BackupStatus(
            height=self._store.head.height,
            first_block=self._store.first_block,
            snapshot_height=heights[-1] if heights else 0,
            making_height=self._making_height,
            failed=self._failed,
            size_bytes=self._store.size_bytes(),
        )

    def make_snapshot(self) -> BackupStatus:
        """A snapshot of the head is being made, or the one that is being made already goes on.

        Raise Unavailable("disk_low"), with nothing begun, where this disk has no room for it.
        """
        height = self._store.head.height
        if self._task is None and height > 0 and self.status().snapshot_height != height:
            if self._disk.low:
                raise Unavailable(
                    "disk_low", "the node's own disk fills up, and a backup's snapshot would fill it more"
                )
            # The rows set aside, and the chunks made of them.
            self._disk.require_room(
                2 * self._store.state_size_bytes(), "the snapshot for a backup, on the node's disk,"
            )
            self._making_height, self._failed = height, ""
            self._task = asyncio.get_running_loop().create_task(self._make())
        return self.status()

    async def blocks(self, first: int) -> bytes:
        """Some blocks from `first` on (node.backup.pages). Raise NotFound("block_pruned")."""
        network = self._network
        async with self._turn:
            view = self._store.snapshot()
            return await asyncio.to_thread(make_page, view, network.network_id, network.genesis_hash, first)

    async def close(self) -> None:
        """None is being made any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _make(self) -> None:
        view, network = self._store.snapshot(), self._network
        height, bits = view.head.height, network.parameters.state_tree_bits
        steps = make_snapshot(view, network.network_id, network.genesis_hash, bits, self._root, self._cut)
        # The steps let go of it once its rows are read.
        del view
        try:
            await asyncio.to_thread(self._clear)
            await self._threads.background(while_room(steps, lambda: self._disk.low))
            self._log.info("snapshot made for a backup", height=height)
        except (HansaError, SnapshotTooLarge) as error:
            self._failed = str(error)
            self._log.error("no snapshot was made for a backup", height=height, reason=str(error))
        finally:
            self._making_height, self._task = 0, None

    def _clear(self) -> None:
        remove_leftovers(self._root)
        for height in finished_heights(self._root):
            remove_snapshot(self._root, height)
