"""What this node forgets: old blocks go into archive files, then out of the store, then off the disk.

Invariants. (1) Nothing is removed before the archive that holds it was synced, read back and verified, unless the
operator wants none. (2) A block stays while a request id of its transactions is remembered: whoever sends one again
gets its receipt. (3) Everything happens in slices with rests between them; what writes does so in the one writing
thread, a batch of about a thousand rows at a time, so that a block's apply never waits long. (4) A crash at any
point leaves the archive unfinished (it is written anew), or blocks both archived and here (they go at the next
start); it never leaves a block in neither place. (5) What the archive's disk refuses stops the pruning, never the
node.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import structlog

from node.archive import ArchiveReader, ArchiveShelf, ArchiveWriter, archive_head, archived_block, verify_archive
from node.config import NetworkConfig
from node.config import Retention as Policy
from node.config.model import HISTORY_BLOCKS_MAX
from node.errors import HansaError, StoreError
from node.ledger import EXPIRY_AHEAD_MS_MAX, Body, SignedBody
from node.runtime.threads import Threads
from node.store import Store, StoreView
from node.store.pruning import Removal
from node.store.reading import stored

P = ParamSpec("P")
R = TypeVar("R")

CHECK_INTERVAL_S = 5.0
RETRY_INTERVAL_S = 60.0
"""After the archive's disk refused something."""
REST = 2.0
"""After a slice of work comes a rest of so many times its length, less when much waits."""
REST_BEHIND = 0.25
REST_S_MAX = 2.0
"""A slice that a paused machine made long is not slept off."""
BEHIND_STEPS = 4
KEPT_BLOCKS_MIN = 10
"""Below the head these stay in any case: peers that lag a little ask for them."""
ARCHIVE_BYTES_MAX = 64 * 1024 * 1024
"""A file that has reached this size ends, however few blocks it has."""
COMPACT_BYTES_MIN = 8 * 1024 * 1024
COMPACT_SHARE = 4
"""The disk gets its bytes back when those removed since the last time are a quarter of the whole: each then costs
four to be rewritten at most."""
_DAY_MS = 86_400_000


class Retention:
    """The node's pruning. `watch` runs until it is cancelled; `close` after that waits for its thread."""

    def __init__(self, policy: Policy, network: NetworkConfig, store: Store, threads: Threads) -> None:
        """Raise ConfigError when the archive's directory cannot be used."""
        self._policy = policy
        self._network = network
        self._store = store
        self._pruning = store.pruning()
        self._threads = threads
        self.shelf = None if policy.archive_dir is None else ArchiveShelf(policy.archive_dir)
        """Where its archive files lie."""
        if self.shelf is not None:
            self.shelf.prepare()
        self._worker: ThreadPoolExecutor | None = None
        self._stopped = threading.Event()
        self._awake_since = 0.0
        self._remembered_until_ms = 0
        self._rest = REST
        self._freed_bytes = 0
        self._freed_height = 0
        self.first_block = store.first_block
        """The first block kept whole."""
        self.pruned_bytes = 0
        """Taken out of the store since the start, before compaction."""
        self.pruned_blocks = 0
        """Since the start."""
        self.archived_height = 0 if self.shelf is None else self.shelf.last()
        """The last block in any archive file here; 0: none."""
        self.failure = ""
        """Why nothing is archived, and so nothing removed, at the moment; empty: all is well."""
        self._log = structlog.get_logger("retention")

    def add_gauges(self, gauge: Callable[[str, str, Callable[[], float]], None]) -> None:
        """What is kept, pruned and archived is among the node's metrics."""
        gauge("hansa_first_block", "The first block that is kept whole", lambda: self.first_block)
        gauge("hansa_pruned_blocks", "Blocks pruned since the start", lambda: self.pruned_blocks)
        gauge("hansa_pruned_bytes", "Bytes of rows pruned since the start", lambda: self.pruned_bytes)
        gauge("hansa_archived_height", "The last block in an archive file; 0: none", lambda: self.archived_height)
        gauge("hansa_archive_failing", "1 when no archive can be made", lambda: int(bool(self.failure)))

    async def watch(self) -> None:
        """What a crash left is finished; then old blocks go as they come of age. Raise what the store raises."""
        await self.begin()
        while self._policy.prunes:
            moved = await self.step()
            await self._compact()
            if not moved:
                await asyncio.sleep(RETRY_INTERVAL_S if self.failure else CHECK_INTERVAL_S)

    async def begin(self) -> None:
        """What a crash left is finished, and what is held or remembered less long than before has gone."""
        policy = self._policy
        unfinished = self._pruning.done < self._pruning.released
        if policy.prunes or policy.hold or unfinished or self._pruning.holds:
            await self._threads.write(self._pruning.hold, policy.hold)
            await self._remove(self._pruning.removals(held_too=True))
        if policy.history_blocks < HISTORY_BLOCKS_MAX:
            await self._remove(self._pruning.stale_history(policy.history_blocks))

    async def close(self) -> None:
        """Its thread has ended; a slice at work is finished, an archive at work abandoned."""
        self._stopped.set()
        if self._worker is not None:
            await asyncio.to_thread(self._worker.shutdown, wait=True, cancel_futures=True)

    async def step(self) -> bool:
        """Archive and remove the next run of blocks whose time has come; False when none goes.

        Then there is none, or `failure` says why no archive of it can be made. Raise StoreError when the store
        refuses a write.
        """
        due = self._due()
        if due is None:
            return False
        first, last = due
        try:
            until_ms = await self._work(self._remembered_until, first, last)
            if until_ms is not None:
                self._remembered_until_ms = until_ms
                return False
            if self.shelf is not None:
                last = await self._work(self._archive, self.shelf, first, last)
                self.archived_height = max(self.archived_height, last)
        except HansaError as error:
            self.failure = str(error)
            self._log.error("nothing is pruned: no archive can be made", first=first, reason=self.failure)
            return False
        self.failure = ""
        await self._threads.write(self._pruning.release, last)
        self.first_block = self._store.first_block
        await self._remove(self._pruning.removals())
        self._log.info(
            "pruned", first=first, last=last, first_block=self.first_block, archived=self.shelf is not None
        )
        return True

    def _due(self) -> tuple[int, int] | None:
        """The next run of blocks that the policy lets go; None: it is not as long as a step yet."""
        policy, head = self._policy, self._store.head
        run = self._pruning.next_run()
        if run is None or self._remembered_until_ms >= head.time_ms:
            return None
        first, last = run[0], min(run[0] + policy.step_blocks - 1, run[1])
        allowed = head.height - max(policy.blocks or 0, KEPT_BLOCKS_MIN)
        # What a snapshot left alone below itself is a run of its own, however short.
        if last > allowed or (last - first + 1 < policy.step_blocks and run[1] == head.height):
            return None
        if policy.days is not None and self._store.head_at(last).time_ms > head.time_ms - policy.days * _DAY_MS:
            return None
        self._rest = REST_BEHIND if allowed - first > BEHIND_STEPS * policy.step_blocks else REST
        return first, last

    # --- in the thread ---------------------------------------------------------------------------------------

    async def _work(self, function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        """Return what `function` returns, run in the retention's own thread."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="retention")

        def work() -> R:
            self._awake_since = time.monotonic()
            return function(*args, **options)

        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    def _remembered_until(self, first: int, last: int) -> int | None:
        """The time up to which a request id of the blocks is remembered; None: none is any more."""
        view = self._store.snapshot()
        now_ms, retention_ms = view.head.time_ms, self._network.parameters.retention_ms
        # The newest first: where anything is remembered it is most likely there.
        for height in range(last, first - 1, -1):
            if view.head_at(height).time_ms + EXPIRY_AHEAD_MS_MAX + retention_ms < now_ms:
                # No request of this block or of one before it can be.
                return None
            until_ms = max(_expiries(view, height), default=0) + retention_ms
            if until_ms >= now_ms:
                return until_ms
            self._pause()
        return None

    def _archive(self, shelf: ArchiveShelf, first: int, last: int) -> int:
        """Return the last height of a synced, verified archive that begins with block `first`."""
        view = self._store.snapshot()
        for item in shelf.files():
            # Written before a crash; if it is damaged it is written again.
            if item.first == first and item.last <= last:
                try:
                    return self._verified(view, shelf, first, item.last)
                except HansaError as error:
                    if error.code == "archive_refused":
                        # Whole, and not of this ledger: whoever wrote it may have its blocks nowhere else.
                        text = f"{item.path}: {error.message}. Each node needs an archive_dir of its own"
                        raise StoreError("archive_refused", text) from error
                    self._log.warning("an archive file is written again", file=str(item.path), reason=str(error))
        head = archive_head(view, self._network.network_id, self._network.genesis_hash, first)
        writer = ArchiveWriter(shelf.directory / "pruning", head)
        try:
            for height in range(first, last + 1):
                writer.add(archived_block(view, height))
                self._pause()
                if writer.size_bytes >= ARCHIVE_BYTES_MAX:
                    last = height
                    break
            writer.finish(shelf.path_of(first, last))
        except BaseException:
            writer.abandon()
            raise
        return self._verified(view, shelf, first, last)

    def _verified(self, view: StoreView, shelf: ArchiveShelf, first: int, last: int) -> int:
        """Return `last` when the archive on the shelf holds exactly these blocks of this ledger; or raise."""
        before = view.head_at(first - 1)
        with ArchiveReader(shelf.path_of(first, last)) as reader:
            proof = verify_archive(
                reader,
                self._network,
                before.members,
                lambda done, total: self._pause(),
                parent=before.digest,
                signatures=False,
            )
        if (proof.first, proof.last, proof.digest) != (first, last, view.head_at(last).digest):
            raise StoreError("archive_refused", f"{reader.path} does not hold the blocks {first} to {last}")
        return last

    def _pause(self) -> None:
        """Others have the interpreter and the disk for a while; raise _StoppedError when the node stops."""
        took_s = time.monotonic() - self._awake_since
        if self._stopped.wait(min(took_s * self._rest, REST_S_MAX)):
            raise _StoppedError
        self._awake_since = time.monotonic()

    # --- removing --------------------------------------------------------------------------------------------

    async def _remove(self, batches: Iterator[Removal]) -> None:
        """All `batches` are done."""
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            batch = await self._work(lambda: next(batches, None))
            if batch is None:
                return
            await self._threads.write(self._pruning.remove, batch)
            self.pruned_bytes += batch.size_bytes
            self.pruned_blocks += batch.blocks
            self._freed_bytes += batch.size_bytes
            self._freed_height = self._store.head.height
            await asyncio.sleep(min((loop.time() - started) * self._rest, REST_S_MAX))

    async def _compact(self) -> None:
        """The disk has its bytes back, once that is worth its while.

        Not before the head has moved on twice: whoever reads the store holds a view of it until the next block, and
        nothing that a view may still show can go.
        """
        size = self._store.size_bytes()
        enough = self._freed_bytes >= max(COMPACT_BYTES_MIN, size // COMPACT_SHARE)
        if not enough or self._store.head.height < self._freed_height + 2:
            return
        freed, self._freed_bytes = self._freed_bytes, 0
        loop = asyncio.get_running_loop()
        for part in await self._work(lambda: list(self._pruning.parts())):
            started = loop.time()
            await self._work(self._pruning.compact, part)
            await asyncio.sleep(min((loop.time() - started) * self._rest, REST_S_MAX))
        self._log.info("compacted", removed_bytes=freed, before_bytes=size, after_bytes=self._store.size_bytes())


class _StoppedError(Exception):
    """The node stops: what is under way is left."""


def _expiries(view: StoreView, height: int) -> Iterator[int]:
    """Yield when the transactions of the block expire."""
    for data in view.block(height).body.transactions:
        body = stored(stored(data, SignedBody, "transaction").body, Body, "transaction")
        yield body.expires_at_ms
