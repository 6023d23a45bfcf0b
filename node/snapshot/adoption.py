"""Puts a snapshot's state in the place of this node's own, so that a crash at any write is finished at the next
start.

Invariants. (1) Nothing of the old state is touched before every file of the snapshot was proven against the
certified state root, here and not only when it was fetched, and before the disk has room for the new one; from
then until the end the marker `madopting` stands, and no node runs on the data. (2) The head becomes the snapshot's
block in one batch, the last one, after the tree that was written was built up again and found to have the
certified root. (3) What this member promised is not touched: consensus records, markers of votes, abstention,
evidence, the journal of accepted transactions, and its older blocks stay as they are. A node without a memory of
its votes has none after it either, and abstains (consensus/README.md, section 9).
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias

import msgspec

from consensus.codec import encode
from consensus.effects import Record, VoteRecord
from consensus.members import Members
from node.config import NO_RECOVERIES, Recoveries
from node.errors import HansaError, InvalidFrame, StoreError
from node.ledger import HeadRecord, RequestRecord
from node.snapshot.chunks import open_chunk
from node.snapshot.folder import SnapshotFolder
from node.snapshot.judging import Verify, read_manifest, require_keys, require_own_past, verify_manifest
from node.snapshot.manifest import Content, Manifest
from node.state_tree import StateTree
from node.store import Database, StoreView
from node.store.layout import (
    META_ADOPTING,
    META_DIVERGED,
    META_FIRST,
    META_HEAD,
    META_HELD,
    location,
    number,
)
from node.store.reading import read_height, stored
from node.store.tree_rows import odd_branch, read_bucket, read_pairs, record_rows
from node.tree_records import branch_over

ROWS_A_BATCH = 5_000
ROW_BYTES = 256
"""What a row of the state brings along at most on average: its pair in the tree, a share of records, two
indexes."""
POSITION_UNKNOWN = 2**32 - 1
"""Where a transaction stood in its block: the state knows its height alone."""

_REPLACED = (b"s", b"t", b"d", b"q", b"u")
"""Kinds of rows that tell of the state and of its past; none of the old ones may outlive it."""

_Rows: TypeAlias = list[tuple[bytes, bytes | None]]
RequestOf: TypeAlias = Callable[[bytes, bytes], RequestRecord | None]
"""What a state's (key, value) says of a request id, or None where it is something else."""


class AdoptionRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How far the adoption of the snapshot `digest` has come: old rows gone, chunks written."""

    height: int
    digest: bytes
    cleared: bool
    chunks: int


class Adoption:
    """The adoption that is due on one data directory; `perform` does it, or what is left of it."""

    def __init__(
        self,
        database: Database,
        folder: SnapshotFolder,
        manifest: Manifest,
        record: AdoptionRecord,
        before: Members,
    ) -> None:
        """`before` are the validators that the height before the snapshot's names."""
        self._database = database
        self._folder = folder
        self._manifest = manifest
        self._record = record
        self._named_before = before

    @property
    def content(self) -> Content:
        """What is adopted."""
        return self._manifest.content

    def perform(
        self, request_of: RequestOf, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        """The snapshot's block is the head and its state is this node's; `progress` gets chunks done.

        Raise StoreError when the disk refuses or a file is damaged: it goes on where it was at the next start.
        """
        self._write([], self._record)
        if not self._record.cleared:
            for keys in _batches(self._old_rows()):
                self._database.write([(key, None) for key in keys])
            self._write([], msgspec.structs.replace(self._record, cleared=True))
        total = len(self.content.chunks)
        for index in range(self._record.chunks, total):
            progress(index, total)
            self._adopt_chunk(index, request_of)
        progress(total, total)
        self._join_parted()
        self._require_root()
        self._database.write(self._head_rows())

    def _write(self, rows: _Rows, record: AdoptionRecord) -> None:
        """The rows are durable, and how far it has come."""
        self._database.write([*rows, (META_ADOPTING, encode(record))])
        self._record = record

    def _old_rows(self) -> Iterator[bytes]:
        for kind in _REPLACED:
            for key, _ in self._database.scan(kind, bytes((kind[0] + 1,))):
                yield key

    def _adopt_chunk(self, index: int, request_of: RequestOf) -> None:
        """The chunk's values, buckets and indexes are written; the last batch says that it is done."""
        data = self._folder.chunk(index)
        try:
            if data is None:
                raise InvalidFrame("snapshot_corrupt", f"chunk {index} is missing")
            opened = open_chunk(data, self.content, index)
        except InvalidFrame as error:
            raise _incomplete(self._folder, error.message) from error
        done = msgspec.structs.replace(self._record, chunks=index + 1)
        rows: _Rows = []
        for key, value in opened.rows:
            rows.append((b"s" + key, value))
            request = request_of(key, value)
            if request is not None:
                rows.append((b"q" + number(request.expires_at_ms) + key, b""))
                if self._database.get(b"x" + request.tx_id) is None:
                    rows.append((b"x" + request.tx_id, location(request.height, POSITION_UNKNOWN)))
            if len(rows) >= ROWS_A_BATCH:
                self._database.write(rows)
                rows = []
        rows += record_rows(opened.buckets)
        self._write(rows, done)

    def _join_parted(self) -> None:
        """The records above the parts of buckets that lie in several chunks are there: from below upwards."""
        bits = self.content.tree_bits
        for node in reversed([node for node in self.content.parted if len(node) >= bits // 4]):
            children = [read_bucket(self._database, f"{node}{child:x}") for child in range(16)]
            self._write(record_rows({node: branch_over(children)}), self._record)

    def _require_root(self) -> None:
        """The tree as it lies on disk now has the certified root."""
        database = self._database
        tree = StateTree(
            self.content.tree_bits, partial(read_bucket, database), read_pairs(database), cache_bytes_max=0
        )
        if tree.root != self.content.header.state_root or odd_branch(database, self.content.tree_bits) is not None:
            raise _incomplete(self._folder, "the state written differs from the certified root")

    def _head_rows(self) -> _Rows:
        """The last batch: the blocks that lead here from genesis, and the head; the marker goes."""
        content, certificates = self.content, self._manifest.certificates
        rows: _Rows = []
        for change, certificate in zip(content.changes, certificates, strict=False):
            header, height = change.header, number(change.header.height)
            record = HeadRecord(
                header.height,
                header.digest,
                header.time_ms,
                header.state_root,
                certificate,
                certificate.view,
                change.validators,
            )
            rows += [(b"l" + height, b""), (b"k" + height, encode(header)), (b"h" + height, encode(record))]
        header, certificate, height = content.header, self._manifest.certificate, number(content.height)
        if content.validators != self._named_before.validators:
            rows.append((b"l" + height, b""))
        # As for every block that is fetched: the next height starts no lower than this member voted at this one.
        start_view = max([certificate.view, *self._voted_views(height)])
        head = HeadRecord(
            header.height,
            header.digest,
            header.time_ms,
            header.state_root,
            certificate,
            start_view,
            content.validators,
        )
        rows += [(b"k" + height, encode(header)), (b"h" + height, encode(head))]
        for key, _ in self._database.scan(b"w", b"w" + number(content.height + 1)):
            rows += [(key, None), (b"b" + key[1:], None)]
        rows += [(META_HEAD, height), (META_FIRST, number(content.height + 1))]
        # What was under legal hold is not complete across the gap.
        rows += [(META_DIVERGED, None), (META_HELD, None), (META_ADOPTING, None)]
        return rows

    def _voted_views(self, height: bytes) -> Iterable[int]:
        for _, value in self._database.scan(b"c" + height, b"c" + height + b"\xff"):
            record: Record = stored(value[8:], Record, "consensus record")  # type: ignore[arg-type]
            if isinstance(record, VoteRecord):
                yield record.vote.view


def pending_adoption(
    database: Database,
    joining: Path,
    network: str,
    genesis_hash: bytes,
    founders: Members,
    tree_bits: int,
    verify: Verify,
    require_room: Callable[[int, str], None] = lambda size_bytes, what: None,
    recoveries: Recoveries = NO_RECOVERIES,
) -> Adoption | None:
    """Return the adoption that is due: one that was begun, or that of a whole, proven, newer snapshot in `joining`.

    Genesis is applied in `database`. Raise StoreError("adoption_incomplete") for a begun one whose files are gone
    or damaged. What is not whole or not genuine, and not begun, is left as it is to whoever fetches it; for one
    that could begin now, what `require_room(bytes, what for)` raises.
    """
    folder = SnapshotFolder(joining)
    marker = database.get(META_ADOPTING)
    begun = None if marker is None else stored(marker, AdoptionRecord, "adoption marker")
    data = folder.manifest_bytes()
    if not data and begun is None:
        return None
    try:
        manifest = read_manifest(data)
        named_before = verify_manifest(manifest, network, genesis_hash, founders, tree_bits, verify, recoveries)
        if begun is None:
            require_own_past(manifest.content, StoreView(database))
    except HansaError as error:
        if begun is not None:
            raise _incomplete(folder, error.message) from error
        return None
    content = manifest.content
    if begun is not None:
        if (begun.height, begun.digest) != (content.height, content.digest):
            raise _incomplete(folder, f"another snapshot than that of height {begun.height} lies there")
        return Adoption(database, folder, manifest, begun, named_before)
    if content.height <= read_height(database) or database.get(META_DIVERGED) is not None:
        return None
    if not _is_proven(folder, content):
        return None
    require_room(adoption_bytes(content), f"taking over the snapshot of height {content.height}")
    record = AdoptionRecord(content.height, content.digest, cleared=False, chunks=0)
    return Adoption(database, folder, manifest, record, named_before)


def adoption_bytes(content: Content) -> int:
    """Return about how many bytes a data directory grows by while the state is taken over, before the database has
    given back those of the old one."""
    return content.size_bytes + ROW_BYTES * content.keys


def _is_proven(folder: SnapshotFolder, content: Content) -> bool:
    """Whether the chunks' files hold what the certified root leads to, and as many keys as the manifest names.

    Who fetched them proved it, but files may have been put there, and a manifest's own hashes of chunks are
    certified by nobody: the old state must not go for what turns out to be no state.
    """
    keys = 0
    try:
        for index in range(len(content.chunks)):
            data = folder.chunk(index)
            if data is None:
                return False
            keys += len(open_chunk(data, content, index).rows)
        require_keys(content, keys)
    except InvalidFrame:
        return False
    return True


def _batches(keys: Iterator[bytes]) -> Iterator[list[bytes]]:
    while batch := list(itertools.islice(keys, ROWS_A_BATCH)):
        yield batch


def _incomplete(folder: SnapshotFolder, why: str) -> StoreError:
    return StoreError("adoption_incomplete", f"{folder.path}: {why}", path=str(folder.path))
