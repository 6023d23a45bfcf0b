"""The repair of a stopped node's data directory: mended in a copy, judged, and only then put in its place.

Invariants. (1) Nothing in the data directory changes before the copy was judged right, row by row; the damaged one
is kept beside it. (2) Nothing enters the copy that is not proven by a certificate of this network's members. (3)
Own votes are never made up: when any may be missing, all are given up and the node abstains.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from consensus.codec import encode
from node.config import NetworkConfig, NodeConfig
from node.errors import ConfigError, HansaError, StoreError, Unavailable
from node.ledger import HeadRecord
from node.repair.ledger_rows import LedgerRows
from node.repair.own_rows import give_up_votes, mend_own, mend_promises
from node.repair.replacing import drop_stale, finish_replacing, replace
from node.repair.report import Journal, Outcome, RepairReport, unproven
from node.repair.sources import BlockSource
from node.repair.state_rows import StateRows
from node.store import Database, LevelDatabase, salvage
from node.store.copying import copy_files, held
from node.store.database import holds_database
from node.store.layout import (
    FORMAT,
    META_ADOPTING,
    META_FIRST,
    META_FORMAT,
    META_HEAD,
    META_NETWORK,
    META_NEVER_VOTED,
    META_VOTED,
    number,
)
from node.store.reading import awaits_ledger, read_head, stored
from node.verification import verify_rows
from node.wording import agreeing, counted

OnProgress = Callable[[str, int, int], None]
"""Told what is being done, and how much of how much."""

COPY = "data.repair"
HEADS_MISSING_MAX = 10_000
"""No more blocks than these are fetched only because the head is marked higher than the last head record."""
OWN_ROWS = (b"c", b"v", b"p", b"j", b"f", b"g")
OWN_MARKERS = (
    b"mnever_voted",
    b"mvoted",
    b"mabstain_until",
    b"mvoting_key",
    b"msilenced_keys",
    b"mrecovery",
    b"mendings",
)


class Repair:
    """The repair of one node's data directory."""

    def __init__(
        self, node: NodeConfig, network: NetworkConfig, sources: Sequence[BlockSource], on_progress: OnProgress
    ) -> None:
        """`sources` are asked in their order for what is missing."""
        self._node = node
        self._network = network
        self._sources = sources
        self._on_progress = on_progress
        self._journal = Journal()
        self._height = 0
        self._salvaged = False
        self._lost = False

    def run(self, *, join: bool = False) -> RepairReport:
        """Return what was done. With `join`, and only when something cannot be mended, the ledger is left to the
        network: blocks and state are fetched anew by the node, and what can be read of what it keeps besides them,
        its votes above all, goes on. A ledger that is whole, or can be mended, is kept with `join` too.

        Raise ConfigError when a node runs on the directory, when it is no ledger of this network, or when the node
        is to fetch its ledger anyway. A repair that was killed while it put its copy in place is finished first.
        """
        data, copy = self._node.data_dir, self._node.data_dir.parent / COPY
        finish_replacing(data)
        if not holds_database(data):
            raise ConfigError("data_dir_unusable", f"{data} holds no ledger; start the node, it fetches everything")
        with held(data):
            shutil.rmtree(copy, ignore_errors=True)
            drop_stale(data)
            try:
                copy_files(data, copy, "the copy in which the repair works")
                self._mend(copy, join)
                if not self._journal.sentences():
                    return RepairReport("nothing_wrong", self._height)
                kept = replace(data, copy)
            except (StoreError, Unavailable) as error:
                fetched, remedy = self._journal.fetched, error.entry.action
                return RepairReport("not_repaired", self._height, fetched=fetched, reason=str(error), remedy=remedy)
            finally:
                shutil.rmtree(copy, ignore_errors=True)
                drop_stale(data)
        did, journal = self._journal.sentences(), self._journal
        outcome: Outcome = "ledger_lost" if self._lost else "repaired"
        return RepairReport(outcome, self._height, did, journal.fetched, journal.abstains, str(kept))

    def _mend(self, copy: Path, join: bool) -> None:
        try:
            self._mend_rows(copy)
        except (StoreError, Unavailable) as error:
            if not join:
                raise
            self._start_over(copy, error)

    def _mend_rows(self, copy: Path) -> None:
        """The copy is right, all of it; StoreError when it cannot be made so."""
        with contextlib.closing(self._open(copy)) as database:
            mend_promises(database, self._node, self._network, self._journal)
            if self._salvaged:
                # Rows may be missing without a trace, votes among them.
                give_up_votes(database, self._journal, "consensus records may be among what was lost")
            if database.get(META_ADOPTING) is not None:
                raise unproven("a snapshot is being taken over: start the node, it goes on with that")
            self._claim(database)
            if awaits_ledger(database) and not self._journal.sentences():
                # What it remembers of its votes is whole; to call the missing head damage would give it up.
                raise ConfigError("ledger_not_here", "there is nothing to repair: the node joins at its next start")
            self._height = height = self._find_head(database)
            first = self._first_block(database, height)
            rows = LedgerRows(database, self._network, self._sources, self._journal, self._told("blocks"))
            head = rows.mend(height, first)
            if rows.head_was_damaged:
                give_up_votes(database, self._journal, "the record of the last block was damaged")
            parent = self._node.data_dir.parent
            state = StateRows(database, self._network, self._journal, parent, self._told("executing"))
            state.mend(head, first, self._node.snapshots_dir)
            mend_own(database, self._network, head, _voting_keys(database), self._journal)
            with tempfile.TemporaryDirectory(prefix="repair-", dir=parent) as scratch:
                report = verify_rows(database, self._network, Path(scratch), self._told("judging"), "rows")
            if not report.ok:
                raise unproven(f"after all that could be mended: {report.first_error}")

    def _open(self, copy: Path) -> Database:
        """The copy can be read from its first row to its last; what LevelDB lost is told."""
        lost: HansaError | None = None
        try:
            database = LevelDatabase(copy)
            try:
                _read_all(database)
            except StoreError:
                database.close()
                raise
            return database
        except StoreError as error:
            lost = error
        except ConfigError as error:
            lost = error
        salvage(copy)
        self._salvaged = True
        self._journal.say(f"files of the database were damaged ({lost.message}): what can be read was kept")
        return LevelDatabase(copy)

    def _claim(self, database: Database) -> None:
        """The copy is marked as this network's, unless it is marked as another's."""
        marker = encode((self._network.network_id, self._network.genesis_hash))
        for key, right, code in (
            (META_FORMAT, FORMAT, "data_format_unknown"),
            (META_NETWORK, marker, "data_of_another_network"),
        ):
            found = database.get(key)
            if found is None:
                # Its blocks tell whose it is: they are judged by this network's members.
                database.write([(key, right)])
                self._journal.say(f"the marker {key[1:].decode()} was missing and is there again")
            elif found != right:
                raise ConfigError(code, f"{self._node.data_dir}: the marker {key[1:].decode()} is another one")

    def _find_head(self, database: Database) -> int:
        """The height of the head: as it is marked, or the highest head record where mark and records disagree."""
        data = database.get(META_HEAD)
        marked = int.from_bytes(data, "big") if data is not None and len(data) == 8 else None
        damaged = marked is None
        readable = {height for key, value in database.scan(b"h", b"i") if (height := _head_height(key, value)) >= 0}
        highest = max(readable, default=0)
        if marked is not None and marked > highest:
            # The last head records are gone; their blocks come from the others again.
            self._require_near(marked, highest)
        elif marked is None or marked < highest:
            self._journal.say(f"the height of the head was damaged: it is {highest}, the last head record")
            give_up_votes(database, self._journal, "the height of the head was damaged")
            marked = highest
        if marked == 0 and (damaged or self._salvaged):
            # Whatever was damaged so, the votes are given up by now.
            self._lost = True
            self._journal.say(
                "the ledger that was here is lost: no block of it could be read. At its start the node fetches "
                "everything from the others"
            )
        strays = [
            key for key, _ in database.scan(b"h", b"i") if len(key) != 9 or int.from_bytes(key[1:], "big") > marked
        ]
        if strays:
            database.write([(key, None) for key in strays])
            removed = agreeing(len(strays), "was removed", "were removed")
            self._journal.say(f"{counted(len(strays), 'head record')} above the head {removed}")
        return marked

    def _require_near(self, marked: int, highest: int) -> None:
        if marked - highest > HEADS_MISSING_MAX:
            raise unproven(f"the head is marked as {marked}, and the last head record is {highest}")

    def _first_block(self, database: Database, height: int) -> int:
        data = database.get(META_FIRST)
        if data is None:
            return 1
        first = int.from_bytes(data, "big")
        if len(data) != 8 or not 1 <= first <= height + 1:
            raise unproven("the mark of the first block that is kept is damaged")
        return first

    def _start_over(self, copy: Path, error: HansaError) -> None:
        """The copy holds what the node keeps besides the ledger; the node fetches the ledger at its start."""
        own, readable = _read_own(copy)
        shutil.rmtree(copy)
        self._journal.say(f"the ledger could not be mended here ({error}): the node will fetch it from the others")
        self._journal.drop_counts()
        with contextlib.closing(LevelDatabase(copy)) as database:
            marker = encode((self._network.network_id, self._network.genesis_hash))
            database.write([(META_FORMAT, FORMAT), (META_NETWORK, marker), *own])
            mend_promises(database, self._node, self._network, self._journal)
            if not readable:
                give_up_votes(database, self._journal, "consensus records could not be read")
            elif not self._journal.abstains:
                self._say_what_is_kept(database)
        self._journal.abstains = True
        self._height = 0

    def _say_what_is_kept(self, database: Database) -> None:
        """The report says what the node still knows of its votes: the sentence is read off what was kept."""
        if database.get(META_NEVER_VOTED) is not None:
            self._journal.say("the node has never voted, and knows it: it votes when it has the ledger")
        elif database.get(META_VOTED) is not None or next(database.scan(b"c", b"d"), None) is not None:
            self._journal.say(
                "what it remembers of its votes is kept: it votes again when the ledger has passed them"
            )
        else:
            self._journal.say(
                "no record of its votes was here: the node abstains from voting until it has caught up with the"
                " others"
            )

    def _told(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self._on_progress(what, done, total)


def _read_own(copy: Path) -> tuple[list[tuple[bytes, bytes]], bool]:
    """What the node keeps besides the ledger, as far as it can be read; whether no vote can be missing in it."""
    own: list[tuple[bytes, bytes]] = []
    readable = False
    with contextlib.suppress(HansaError), contextlib.closing(LevelDatabase(copy)) as database:
        votes = True
        for letter in OWN_ROWS:
            try:
                own += list(database.scan(letter, bytes((letter[0] + 1,))))
            except StoreError:
                votes = votes and letter != b"c"
        for key in OWN_MARKERS:
            try:
                value = database.get(key)
            except StoreError:
                # Nobody knows which it was: what cannot be read of the others must not be lost with it.
                votes = False
                continue
            if value is not None:
                own.append((key, value))
        readable = votes
    return own, readable


def _head_height(key: bytes, value: bytes) -> int:
    """The height of a head record, or -1 for what is none."""
    try:
        head = stored(value, HeadRecord, "head record")
    except StoreError:
        return -1
    return head.height if key == b"h" + number(head.height) else -1


def _voting_keys(database: Database) -> dict[str, set[bytes]]:
    """Every key that a member has had, by its id; head records are right by now."""
    keys: dict[str, set[bytes]] = {}
    heights = [0, *(int.from_bytes(key[1:], "big") for key, _ in database.scan(b"l", b"m"))]
    for height in heights:
        head: HeadRecord = read_head(database, height)
        for validator in head.validators:
            keys.setdefault(validator.id, set()).add(validator.voting_key)
    return keys


def _read_all(database: Database) -> None:
    """Every row can be read; raise StoreError otherwise."""
    for _ in database.scan(b"", b"\xff" * 64):
        pass
