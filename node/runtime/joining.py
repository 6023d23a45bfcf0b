"""How this node comes up to the others: from a snapshot where that saves enough, else by executing every block.

Invariant: a full replay is never silent. Whoever wanted a snapshot and found none says so in the log, in `hansa
why` and in the metrics, with what each peer answered, and asks again while it replays. A node whose execution
diverged does not join: a snapshot would hide what has to be looked into. While chunks come at a rate that is worth
it (node/sync/snapshots.py sees to that) blocks are not fetched beside them: every one would be fetched and
executed for nothing. When the download is given up they are fetched again.

When a snapshot lies whole in the joining directory the node is started anew in this process, and takes it over
before anything else runs (node/snapshot/adoption.py).
"""

import asyncio
from collections.abc import Callable, Sequence

import structlog

from node.client.answers import JoinStatus
from node.config import NetworkConfig, NodeConfig, SyncSettings
from node.errors import HansaError, StoreError, Unavailable
from node.runtime.clock import Clock
from node.snapshot import SnapshotFolder
from node.store import Store
from node.sync.proof import Verify
from node.sync.snapshots import Links, SnapshotGathering, refusals

ASK_INTERVAL_MS = 60_000
"""While it replays because nobody offered a snapshot, a node asks again so often."""
LOOK_INTERVAL_S = 1.0
"""How often a download looks whether it may go on."""


class Joining:
    """Decides between snapshot and replay, and sees the snapshot home. Runs on the event loop."""

    def __init__(
        self,
        gathering: SnapshotGathering,
        folder: SnapshotFolder,
        settings: SyncSettings,
        clock: Clock,
        head_height: Callable[[], int],
        is_barred: Callable[[], bool],
        replay: Callable[[int, Sequence[str]], None],
        rest: Callable[[bool], None],
        set_condition: Callable[[str, str | None], None],
        on_whole: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """`is_barred()`: no snapshot may be joined from now. `replay(target, peers)` fetches blocks, `rest(True)`
        stops it until `rest(False)`.

        `on_whole`: a newer snapshot lies whole; the node is to be started anew.
        """
        self._gathering = gathering
        self._folder = folder
        self._settings = settings
        self._clock = clock
        self._head_height = head_height
        self._is_barred = is_barred
        self._replay = replay
        self._rest = rest
        self._set_condition = set_condition
        self._on_whole = on_whole
        self._on_failure = on_failure
        self._task: asyncio.Task[None] | None = None
        self._replaying = False
        self._counted = False
        self._whole = False
        self._wanted: tuple[int, Sequence[str]] = (0, ())
        self._ask_due_ms = clock.now_ms()
        self.replays = 0
        """How often this node replayed at least `join_blocks_min` blocks although it wanted a snapshot."""
        self._log = structlog.get_logger("joining")

    def catch_up(self, target: int, peers: Sequence[str]) -> None:
        """This node is on its way to `target`, or goes on with it, asking `peers` first where it replays."""
        self._wanted = (target, tuple(peers))
        if self._whole or (self._task is not None and not self._replaying):
            return
        head = self._head_height()
        if self._task is None and target - head >= self._settings.join_blocks_min and self._may_ask():
            self._start(head + self._settings.join_blocks_min)
        if self._task is None or self._replaying:
            self._replay(target, peers)

    def on_unservable(self, next_height: int, first_served: int) -> None:
        """Nobody serves the block `next_height` any more, only such from `first_served` on: a snapshot is
        needed."""
        if self._whole or self._task is not None:
            return
        if self._settings.join != "snapshot":
            self._log.error("nobody serves the next block, and node.toml allows no snapshot", height=next_height)
        elif not self._is_barred():
            self._start(max(next_height, first_served - 1))

    def on_caught_up(self) -> None:
        """The head is near the others' again: whether a snapshot was to be had matters no more."""
        if self._replaying and self._task is None:
            self._replaying = self._counted = False
            self._set_condition("no_snapshot", None)

    def status(self) -> JoinStatus | None:
        """How the snapshot is coming; None where none is wanted."""
        if self._task is None and not self._whole:
            return None
        found = self._gathering.progress()
        return JoinStatus(
            step="adopting" if self._whole else (found.step or "asking"),
            height=found.height,
            chunks=found.chunks,
            chunks_total=found.chunks_total,
            size_bytes=found.size_bytes,
            size_bytes_total=found.size_bytes_total,
            bytes_per_s=round(found.bytes_per_s),
            peers=found.peers,
            refused=found.refused,
        )

    async def close(self) -> None:
        """Nothing is fetched any more; what was kept stays for the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _may_ask(self) -> bool:
        wanted = self._settings.join == "snapshot" and not self._is_barred()
        return wanted and self._clock.now_ms() >= self._ask_due_ms

    def _start(self, height_min: int) -> None:
        self._task = asyncio.get_running_loop().create_task(self._join(height_min))
        self._task.add_done_callback(self._finished)

    async def _join(self, height_min: int) -> None:
        head = self._head_height()
        if not self._replaying:
            self._log.info("looking for a snapshot to join from", height=head, target=self._wanted[0])
            self._set_condition("joining", f"at height {head}, others at {self._wanted[0]}")
        problem = ""
        whole: bool | None = None
        try:
            whole = await self._gathered(height_min)
            if whole is None:
                whole, problem = False, "this node may not join now: its execution differs, or its disk is full"
        except (StoreError, Unavailable) as error:
            whole, problem = False, f"{error.code}: {error.message}"
        finally:
            self._set_condition("joining", None)
            self._ask_due_ms = self._clock.now_ms() + ASK_INTERVAL_MS
        height = self._gathering.progress().height
        if whole and height > self._head_height():
            self._whole = True
            self._set_condition("no_snapshot", None)
            self._log.info("the snapshot is whole: this node starts anew on it", height=height)
            self._on_whole()
            return
        # A download that came to its end left blocks at rest.
        self._rest(False)
        if whole:
            self._log.warning("the snapshot came too late: this node has passed it")
            await asyncio.to_thread(self._folder.remove)
            return
        self._say_no_snapshot(problem)

    async def _gathered(self, height_min: int) -> bool | None:
        """What `gather` says; None: this node may not join any more, and nothing is fetched."""
        gathering = asyncio.create_task(self._gathering.gather(height_min, self._on_fetching))
        try:
            while not gathering.done() and not self._is_barred():
                await asyncio.wait((gathering,), timeout=LOOK_INTERVAL_S)
            return None if self._is_barred() else gathering.result()
        finally:
            gathering.cancel()
            await asyncio.gather(gathering, return_exceptions=True)

    def _on_fetching(self, fetching: bool) -> None:
        """Blocks rest while chunks come, and whoever asks why no block is executed is told."""
        self._rest(fetching)
        if fetching:
            self._set_condition("joining", f"at height {self._head_height()}, others at {self._wanted[0]}")

    def _say_no_snapshot(self, problem: str) -> None:
        answers = refusals(self._gathering.progress())
        reason = problem or "; ".join(answers) or "no peer is connected"
        self._replaying = True
        height = self._head_height()
        # A few blocks behind a snapshot are no replay: then one was asked for because nobody served the next block.
        if not self._counted and self._wanted[0] - height >= self._settings.join_blocks_min:
            self.replays += 1
            self._counted = True
            self._log.warning(
                "no snapshot saves blocks: this node executes every one", height=height, reason=reason
            )
        self._set_condition("no_snapshot", reason[:300])

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            self._on_failure(error)
        elif not self._whole and self._wanted[0] > self._head_height():
            self._replay(*self._wanted)


def join_by(
    config: NodeConfig,
    network: NetworkConfig,
    links: Links,
    store: Store,
    verify: Verify,
    clock: Clock,
    report: Callable[[str, HansaError], None],
    require_room: Callable[[int, str], None],
    head_height: Callable[[], int],
    is_barred: Callable[[], bool],
    replay: Callable[[int, Sequence[str]], None],
    rest: Callable[[bool], None],
    set_condition: Callable[[str, str | None], None],
    on_whole: Callable[[], None],
    on_failure: Callable[[BaseException], None],
) -> Joining:
    """Return the joining of this node, whose blocks lie in `store`; the rest as in `Joining`."""
    folder, parameters = SnapshotFolder(config.joining_dir), network.parameters
    gathering = SnapshotGathering(
        links,
        folder,
        network.network_id,
        network.genesis_hash,
        store.head_at(0).members,
        parameters.state_tree_bits,
        parameters.snapshot_blocks,
        verify,
        store.snapshot,
        report,
        require_room,
        network.recoveries,
    )
    return Joining(
        gathering,
        folder,
        config.sync,
        clock,
        head_height,
        is_barred,
        replay,
        rest,
        set_condition,
        on_whole,
        on_failure,
    )
