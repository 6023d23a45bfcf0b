"""A store judged as a whole: quickly, by its chain and roots, or wholly, by executing what can be executed."""

import contextlib
import itertools
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeAlias

from consensus.codec import encode
from node.config import NetworkConfig, NodeConfig
from node.errors import ConfigError, HansaError, StoreError
from node.ledger import CertifiedBlock, HeadRecord
from node.recovery import load_trusted
from node.signatures import verify
from node.store import LevelDatabase
from node.store.database import Reader, holds_database
from node.store.layout import (
    FORMAT,
    META_ADOPTING,
    META_FIRST,
    META_FORMAT,
    META_HEAD,
    META_NETWORK,
    ReceiptsRecord,
    number,
)
from node.store.reading import awaits_ledger, read_body, stored
from node.verification.chain import Chain
from node.verification.contents import Contents
from node.verification.own import Own
from node.verification.replay import OpenedBlock, Replay, genesis_head, open_block, undo_bytes
from node.verification.report import LedgerReport, Progress, require
from node.verification.state import History, State, open_tree
from node.wording import agreeing, blocks_from, counted

Depth: TypeAlias = Literal["quick", "rows", "whole"]
"""`quick`: headers, certificates, contents against their headers, the tree's root; neither indexes nor single
values. `rows`: every row, by hashes and signatures. `whole`: every row, and the blocks are executed again."""

OnProgress: TypeAlias = Callable[[int, int], None]
"""Told (done, total) heights; both count anew where a second pass begins."""

AHEAD_BLOCKS = 8
"""So many blocks are read ahead, so that their signatures are verified while the one before is executed."""


def verify_directory(
    node: NodeConfig,
    progress: OnProgress = lambda done, total: None,
    depth: Depth = "whole",
    anchors: Iterable[Path] = (),
) -> LedgerReport:
    """Return what the data directory of `node` holds; `progress` is told of every block.

    The recovery files at `anchors` are trusted besides those of the node. The replay needs as much room again
    beside the data directory, until it is done. Raise ConfigError when the directory holds no ledger of this
    network, or none yet, or a running node holds it.
    """
    network = load_trusted(node, anchors)
    if not holds_database(node.data_dir):
        raise ConfigError("data_dir_unusable", f"{node.data_dir} holds no ledger")
    try:
        database = LevelDatabase(node.data_dir)
    except StoreError as error:
        return Progress().report(error, depth == "quick")
    try:
        with tempfile.TemporaryDirectory(prefix="verify-", dir=node.data_dir.parent) as scratch:
            return verify_rows(database, network, Path(scratch), progress, depth)
    finally:
        database.close()


def verify_rows(
    rows: Reader, network: NetworkConfig, scratch: Path, on_progress: OnProgress, depth: Depth = "whole"
) -> LedgerReport:
    """Return what `rows`, those of a whole store, hold; `scratch` is an empty directory on a disk with room.

    Raise ConfigError for another network's rows, and where the ledger is still to be fetched (`ledger_not_here`).
    """
    progress = Progress()
    verification = _Verification(rows, network, on_progress, progress)
    try:
        verification.run(scratch, depth)
    except HansaError as error:
        if isinstance(error, ConfigError):
            raise
        return progress.report(error, depth == "quick")
    return progress.report(None, depth == "quick")


class _Verification:
    def __init__(self, rows: Reader, network: NetworkConfig, on_progress: OnProgress, progress: Progress) -> None:
        self._rows = rows
        self._network = network
        self._bits = network.parameters.state_tree_bits
        self._on_progress = on_progress
        self._progress = progress
        self._bare_below = self._whole_below = 0

    def run(self, scratch: Path, depth: Depth) -> None:
        """Everything is right, as far as `depth` tells; else raise the first error."""
        progress = self._progress
        head_height = self._open()
        chain = self._walk(head_height)
        head = self._head
        progress.where = "the state tree"
        if depth == "quick":
            open_tree(self._rows, self._bits, head)
            progress.notes.append("quick: nothing was executed; indexes and single values were not looked at")
            self._note_below(" and contents", chain)
            return
        State(self._rows, self._bits, progress).check(head)
        with contextlib.closing(Replay(scratch, self._network)) as replay:
            first = head_height + 1 if depth == "rows" else self._begin(replay, head)
            self._execute(replay, first, head_height)
            self._compare_state(replay, depth)
        Own(self._rows, self._network, verify, progress).check(head, chain.voting_keys)
        self._note_execution(depth, first, head_height, chain)

    def _open(self) -> int:
        """The markers say that this is a store of this network; return the height of its head."""
        rows, network = self._rows, self._network
        require(rows.get(META_FORMAT) is not None, "the store has no format marker", META_FORMAT)
        found = rows.get(META_FORMAT) or b""
        if found != FORMAT:
            raise ConfigError("data_format_unknown", f"the store has format {found[:16]!r}")
        if rows.get(META_NETWORK) != encode((network.network_id, network.genesis_hash)):
            raise ConfigError("data_of_another_network", f"it does not belong to network {network.network_id}")
        if awaits_ledger(rows):
            raise ConfigError("ledger_not_here", "there is no block to judge: the node joins at its next start")
        if rows.get(META_ADOPTING) is not None:
            # Half of the state is the old one: whatever were found wrong would not be damage.
            raise ConfigError(
                "ledger_not_here", "a snapshot is being taken over: the node goes on with it at its start"
            )
        data = rows.get(META_HEAD)
        require(data is not None and len(data) == 8, "the store holds no head", META_HEAD)
        first = rows.get(META_FIRST)
        require(first is None or len(first) == 8, "the first block that is here cannot be read", META_FIRST)
        self._progress.height = int.from_bytes(data or b"", "big")
        self._progress.first_block = 1 if first is None else int.from_bytes(first, "big")
        fits = 1 <= self._progress.first_block <= self._progress.height + 1
        require(fits, "the first block that is here lies above the head", META_FIRST)
        return self._progress.height

    def _walk(self, head_height: int) -> Chain:
        """The chain up to the head is proven."""
        progress = self._progress
        self._head = genesis_head(self._network)
        chain = Chain(self._rows, self._network, self._head, progress.first_block, verify, progress)
        for link in chain.links(head_height):
            self._head = link.head
            if link.body is not None:
                progress.blocks += 1
                progress.transactions += len(link.body.transactions)
            if link.height < progress.first_block:
                self._bare_below += link.body is None
                self._whole_below += link.body is not None
            self._on_progress(link.height, head_height)
        return chain

    def _begin(self, replay: Replay, head: HeadRecord) -> int:
        """`replay` stands where execution can begin; return the first height that it can execute."""
        first_block = self._progress.first_block
        if first_block == 1:
            replay.begin_at_genesis()
            return 1
        history = History(self._rows, self._bits, head, self._progress)
        while history.head.height >= first_block and history.back():
            pass
        self._progress.where = f"the state after block {history.head.height}"
        replay.begin_at(history.head, history.rows())
        return history.head.height + 1

    def _execute(self, replay: Replay, first: int, head_height: int) -> None:
        """Every body that is here has its receipts and indexes; from `first` on it does what the store says."""
        progress = self._progress
        progress.blocks = progress.transactions = 0
        contents = Contents(self._rows, progress)
        undo = self._undo_heights(head_height)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for head, opened in self._ahead(head_height, threads):
                progress.where = f"block {head.height}"
                opened.require_signatures()
                receipts = contents.check(opened.body, opened.transactions)
                if head.height >= first:
                    self._replay(replay, head, opened, receipts, undo)
                progress.blocks += 1
                progress.transactions += len(opened.transactions)
                self._on_progress(head.height, head_height)
        contents.finish()

    def _compare_state(self, replay: Replay, depth: Depth) -> None:
        """The state is what the replay comes to; without one, each undo record leads to the root before it."""
        progress = self._progress
        if depth == "rows":
            history = History(self._rows, self._bits, self._head, progress)
            while history.back():
                pass
            return
        progress.where = "the state"
        for letter, following in (b"s", b"t"), (b"t", b"u"), (b"q", b"r"):
            theirs = replay.store.rows(letter, following)
            for ours, right in itertools.zip_longest(self._rows.scan(letter, following), theirs):
                odd = (ours or right or (b"",))[0]
                require(ours == right, "a row of the state differs from what the blocks lead to", odd)

    def _replay(
        self, replay: Replay, head: HeadRecord, opened: OpenedBlock, receipts: ReceiptsRecord, undo: range
    ) -> None:
        """The block does what the store says of it."""
        height = number(head.height)
        executed = replay.execute(opened)
        found = ReceiptsRecord(executed.scheduled, executed.receipts)
        require(found == receipts, "the receipts differ from what the block does", b"r" + height)
        require(
            head.height not in undo or self._rows.get(b"u" + height) == undo_bytes(executed),
            "the undo record is not what the block replaced",
            b"u" + height,
        )
        assert head.certificate is not None
        applied = replay.apply(executed, CertifiedBlock(opened.body, head.certificate), head.start_view)
        require(head == applied, "the head record differs", b"h" + height)

    def _undo_heights(self, head_height: int) -> range:
        """The heights that an undo record is here for: an unbroken run that ends at the head, or none."""
        self._progress.where = "the undo records"
        first = last = 0
        for key, _ in self._rows.scan(b"u", b"v"):
            require(len(key) == 9, "an undo record has a key of another length", key)
            height = int.from_bytes(key[1:], "big")
            require(not first or height == last + 1, f"the undo record of block {last + 1} is missing", key)
            first, last = first or height, height
        if not first:
            return range(0)
        require(last == head_height, f"the last undo record is that of block {last}", b"u" + number(last))
        return range(first, last + 1)

    def _ahead(self, head_height: int, threads: ThreadPoolExecutor) -> Iterator[tuple[HeadRecord, OpenedBlock]]:
        """The blocks whose bodies are here, ascending, the signatures of the next ones under way."""
        waiting: deque[tuple[HeadRecord, OpenedBlock]] = deque()
        for height in range(1, head_height + 1):
            data = self._rows.get(b"h" + number(height))
            if data is None:
                continue
            head = stored(data, HeadRecord, f"head record of block {height}")
            body = read_body(self._rows, height, head.digest)
            if body is None:
                continue
            self._progress.where = f"block {height}"
            waiting.append((head, open_block(body, threads)))
            if len(waiting) > AHEAD_BLOCKS:
                yield waiting.popleft()
        yield from waiting

    def _note_execution(self, depth: Depth, first: int, head_height: int, chain: Chain) -> None:
        """The report says what was executed and what was only checked by hash."""
        progress = self._progress
        if depth == "rows":
            progress.notes.append("every row was judged by hashes and signatures; nothing was executed")
            self._note_below(", signatures, contents, receipts and indexes", chain)
            return
        if first == 1:
            progress.executed_from = 1 if head_height else None
            progress.notes.append("every block was executed again, from genesis on")
            return
        if first <= head_height:
            progress.executed_from = first
            were = agreeing(head_height - first + 1, "was", "were")
            progress.notes.append(
                f"{blocks_from(first, head_height)} {were} executed again, on the state after block {first - 1}, "
                "which undoing the later blocks leads to and the certified root of that block proves"
            )
        before = min(first, head_height + 1) - 1
        if before >= progress.first_block:
            were = agreeing(before - progress.first_block + 1, "was", "were")
            progress.notes.append(
                f"{blocks_from(progress.first_block, before)} {were} checked by header, certificate, signatures, "
                "contents, receipts and indexes, and not executed: the state to begin with is not kept"
            )
        self._note_below(", signatures, contents, receipts and indexes", chain)

    def _note_below(self, contents: str, chain: Chain) -> None:
        """The report says what was done below the first block kept; `contents`: what was checked of bodies."""
        notes, below = self._progress.notes, f"of the blocks below {self._progress.first_block}"
        if whole := self._whole_below:
            here = agreeing(whole, "is here whole, for it was", "are here whole, for they were")
            they_were = agreeing(whole, "it was", "they were")
            notes.append(
                f"{below}, {whole:,} {here} put back from an archive or {agreeing(whole, 'is', 'are')} held: "
                f"header, certificate{contents} were checked, and {they_were} not executed"
            )
        if bare := self._bare_below:
            here = agreeing(
                bare, "is here as a header alone, for it was", "are here as headers alone, for they were"
            )
            notes.append(f"{below}, {bare:,} {here} pruned: header and certificate were checked")
        if chain.gaps:
            notes.append(
                f"{counted(chain.gaps, 'header')} {agreeing(chain.gaps, 'is', 'are')} not here, for a snapshot was "
                "joined: the changes of members carry over"
            )
