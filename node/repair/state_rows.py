"""The state made right again: from its own values where they have the certified root, else by executing blocks.

Invariant: afterwards values, tree and request index have the root that the head's certificate covers, or the repair
fails. Undo records that do not lead back to a certified root are given up with all older ones: the history that can
be queried becomes shorter, and what is left of it is right.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from node.config import NetworkConfig
from node.errors import HansaError, StoreError
from node.executor.run import REQUESTS
from node.ledger import HeadRecord
from node.repair.report import Journal, unproven
from node.snapshot import finished_heights
from node.state_tree import StateTree
from node.store import Database, LevelDatabase
from node.store.layout import number
from node.store.reading import read_block, read_head
from node.store.tree_rows import read_bucket, staged_rows
from node.verification.replay import Replay, batches, open_block
from node.verification.report import Progress
from node.verification.state import History, State, request_row
from node.wording import agreeing, counted

KEYS_A_STEP = 20_000


class StateRows:
    """Mends one store's state, tree, request index and undo records, once the rows of its blocks are right."""

    def __init__(
        self,
        database: Database,
        network: NetworkConfig,
        journal: Journal,
        scratch_parent: Path,
        progress: Callable[[int, int], None],
    ) -> None:
        """A replay takes as much room again in `scratch_parent`, until it is done."""
        self._database = database
        self._network = network
        self._bits = network.parameters.state_tree_bits
        self._journal = journal
        self._scratch_parent = scratch_parent
        self._progress = progress

    def mend(self, head: HeadRecord, first_block: int, snapshots: Path) -> None:
        """Everything is right; raise StoreError("repair_impossible") where it cannot be made so here.

        The node's own snapshots lie in `snapshots`: one of them may be nearer than genesis, or all that there is.
        """
        if not self._is_right(head):
            if self._rebuild_tree(head):
                self._journal.say("the state tree and the request index were built again from the state's values")
            elif self._replay_from_snapshot(head, first_block, snapshots):
                pass
            elif first_block == 1:
                self._replay(head, Replay.begin_at_genesis)
                blocks = counted(head.height, "block")
                self._journal.say(f"the state was made again by executing {blocks} from genesis on")
            else:
                raise unproven(
                    "values of the state are damaged, and blocks before "
                    f"{first_block} are not here to execute them again: use --join"
                )
        self._mend_history(head)

    def _is_right(self, head: HeadRecord) -> bool:
        try:
            State(self._database, self._bits, Progress()).check(head)
        except HansaError:
            return False
        return True

    def _rebuild_tree(self, head: HeadRecord) -> bool:
        """Tree and request index are those of the values; False, and neither is touched, when their root is not."""
        database = self._database
        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="repair-", dir=self._scratch_parent))
            spill = stack.enter_context(contextlib.closing(LevelDatabase(Path(scratch))))
            tree = StateTree(self._bits, partial(read_bucket, spill))
            changes: dict[bytes, bytes | None] = {}
            try:
                for key, value in database.scan(b"s", b"t"):
                    changes[key[1:]] = value
                    if len(changes) >= KEYS_A_STEP:
                        _stage(tree, changes, spill)
                        changes = {}
                _stage(tree, changes, spill)
            except StoreError:
                return False
            if tree.root != head.state_root:
                return False
            for letter in (b"t", b"d"):
                self._replace(letter, spill.scan(letter, bytes((letter[0] + 1,))))
        requests = ((key, value) for key, value in database.scan(b"s" + REQUESTS, b"s" + REQUESTS + b"\xff"))
        self._replace(b"q", ((request_row(key[1:], value), b"") for key, value in requests))
        return True

    def _replay_from_snapshot(self, head: HeadRecord, first_block: int, snapshots: Path) -> bool:
        """Whether a snapshot that lies here led to the head's state, by executing the blocks after it."""
        heights = [height for height in finished_heights(snapshots) if first_block - 1 <= height <= head.height]
        for height in reversed(heights):
            try:
                self._replay(head, partial(_begin_at, snapshots / str(height), self._progress))
            except StoreError:
                # Damaged as well: the next older one may be whole.
                continue
            self._journal.say(
                f"the state was made again from the snapshot of height {height} and by executing "
                f"{counted(head.height - height, 'block')} after it"
            )
            return True
        return False

    def _replay(self, head: HeadRecord, begin: Callable[[Replay], None]) -> None:
        """State, tree, request index and undo records are those that executing every block leads to."""
        with (
            tempfile.TemporaryDirectory(prefix="repair-", dir=self._scratch_parent) as scratch,
            contextlib.closing(Replay(Path(scratch), self._network)) as replay,
            ThreadPoolExecutor(1) as threads,
        ):
            begin(replay)
            for height in range(replay.store.head.height + 1, head.height + 1):
                block = read_block(self._database, height)
                try:
                    executed = replay.execute(open_block(block.body, threads))
                except HansaError as error:
                    raise unproven(
                        f"this release executes block {height} otherwise than its members did: {error}"
                    ) from error
                replay.apply(executed, block, read_head(self._database, height).start_view)
                self._progress(height, head.height)
            for letter in (b"s", b"t", b"d", b"q", b"u"):
                self._replace(letter, replay.store.rows(letter, bytes((letter[0] + 1,))))

    def _mend_history(self, head: HeadRecord) -> None:
        """Every undo record that is here leads back to a certified root; they are an unbroken run to the head."""
        history = History(self._database, self._bits, head, Progress())
        with contextlib.suppress(HansaError):
            while history.back():
                pass
        lowest = history.head.height
        odd = [
            key
            for key, _ in self._database.scan(b"u", b"v")
            if len(key) != 9 or not lowest < int.from_bytes(key[1:], "big") <= head.height
        ]
        # Where undoing ended because it would have taken too much memory, older records are not known to be wrong.
        if odd and self._database.get(b"u" + number(lowest)) is not None and history.full:
            odd = [key for key in odd if len(key) != 9 or int.from_bytes(key[1:], "big") > head.height]
        for key in odd:
            self._database.write([(key, None)])
        if odd:
            gone = f"{counted(len(odd), 'undo record')} {agreeing(len(odd), 'was', 'were')} given up"
            self._journal.say(f"{gone}: history begins at block {lowest}")

    def _replace(self, letter: bytes, rows: Iterator[tuple[bytes, bytes]]) -> None:
        """The rows of the kind are exactly `rows`."""
        keys = ((key, b"") for key, _ in self._database.scan(letter, bytes((letter[0] + 1,))))
        for batch in batches(keys):
            self._database.write([(key, None) for key, _ in batch])
        for batch in batches(rows):
            self._database.write(batch)


def _begin_at(folder: Path, progress: Callable[[int, int], None], replay: Replay) -> None:
    replay.begin_at_snapshot(folder, progress)


def _stage(tree: StateTree, changes: Mapping[bytes, bytes | None], spill: Database) -> None:
    staged = tree.stage(changes)
    spill.write(staged_rows(staged))
    tree.commit(staged)
