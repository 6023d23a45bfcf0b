"""Makes a snapshot of a view of the store, in small steps, so that whoever runs it can let others work in between.

Invariant: a directory gets its final name only when every file in it is synced and the hashes computed from the
values themselves fold to the state root that the block's certificate covers. So a damaged state is never offered.

The state is read once, in key order, and its rows are set aside by the first byte of their keys' hashes
(spill.py); then part after part is sorted and cut into subtrees and chunks. Each step is well below a
millisecond of interpreter time: fifty rows, one subtree's folding, or work that lets go of the interpreter lock
(hashing, compressing, syncing).
"""

import hashlib
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path

from consensus.codec import encode
from node.errors import StoreError
from node.ledger import Header
from node.snapshot.chunks import COMPRESSION, content_head, row_bytes
from node.snapshot.folder import SnapshotFolder, snapshot_at, unfinished_at
from node.snapshot.manifest import (
    CHANGES_MAX,
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_TARGET,
    CHUNK_ROWS_MAX,
    FORMAT,
    ChunkEntry,
    Content,
    Manifest,
    MemberChange,
    level_of,
)
from node.snapshot.spill import PARTS, Spill
from node.state_tree import EMPTY, bucket_of, build_bucket, fold, root_over
from node.store import StoreView

ROWS_A_STEP = 50
COMPRESSED_A_STEP = 64 * 1024

Steps = Generator[None, None, None]


class SnapshotTooLarge(Exception):
    """A subtree holds more than a chunk may: no snapshot of this state can be made."""


def make_snapshot(
    view: StoreView, network: str, genesis_hash: bytes, tree_bits: int, root: Path
) -> Generator[None, None, SnapshotFolder]:
    """Return the finished snapshot of the view's head in `root`; every step but the last yields None.

    Raise StoreError for a full or failing disk and for a state that does not have its certified root,
    SnapshotTooLarge for one that does not fit the format. What was begun is removed then, as when the generator
    is closed.
    """
    folder = unfinished_at(root, view.head.height)
    folder.remove()
    folder.create()
    try:
        maker = _Maker(view, tree_bits, folder)
        yield from maker.gather()
        yield from maker.cut()
        if root_over(tree_bits, fold(b"".join(maker.hashes))) != view.head.state_root:
            raise StoreError(
                "corrupt_state_tree", f"the state's root differs from that of block {view.head.height}"
            )
        folder.write_manifest(encode(_manifest(maker, view, network, genesis_hash, tree_bits)))
        yield
        return folder.rename(snapshot_at(root, view.head.height).path)
    except BaseException:
        folder.remove()
        raise


def _manifest(maker: "_Maker", view: StoreView, network: str, genesis_hash: bytes, tree_bits: int) -> Manifest:
    head = view.head
    heights = [height for height in view.member_changes() if height < head.height]
    if len(heights) > CHANGES_MAX:
        raise SnapshotTooLarge(f"the members changed {len(heights)} times; {CHANGES_MAX} fit")
    before = [view.head_at(height) for height in heights]
    changes = [MemberChange(_header(view, record.height), record.validators) for record in before]
    certificates = [record.certificate for record in (*before, head) if record.certificate is not None]
    content = Content(
        format=FORMAT,
        network=network,
        genesis_hash=genesis_hash,
        header=_header(view, head.height),
        validators=head.validators,
        changes=tuple(changes),
        tree_bits=tree_bits,
        level=maker.level,
        subtrees=b"".join(maker.hashes),
        chunks=tuple(maker.chunks),
        keys=maker.keys,
    )
    return Manifest(content, tuple(certificates))


def _header(view: StoreView, height: int) -> Header:
    return view.header(height)


class _Maker:
    """One snapshot in the making: `gather`, then `cut`."""

    def __init__(self, view: StoreView, tree_bits: int, folder: SnapshotFolder) -> None:
        self._view = view
        self._tree_bits = tree_bits
        self._folder = folder
        self._spill = Spill(folder.path)
        self._chunk = _Chunk()
        self._subtree = _Chunk()
        self._pairs: dict[int, list[bytes]] = {}
        self.level = 0
        self.keys = 0
        self.hashes: list[bytes] = []
        self.chunks: list[ChunkEntry] = []

    def gather(self) -> Steps:
        """Every row of the state is set aside, and the level is known."""
        size_bytes = 0
        for key, value in self._view.scan(b"", b"\xff"):
            self.keys += 1
            size_bytes += len(key) + len(value)
            if self._spill.add(hashlib.sha256(key).digest(), key, value):
                yield from self._spill.flush()
            if self.keys % ROWS_A_STEP == 0:
                yield
        self.level = level_of(self._tree_bits, size_bytes)

    def cut(self) -> Steps:
        """Every chunk is on disk, and `hashes` and `chunks` tell of all of them."""
        done = 0
        for key_hash, key, value in self._sorted():
            if key_hash:
                number = int.from_bytes(key_hash[:4], "big") >> (32 - 4 * self.level)
                while len(self.hashes) < number:
                    yield from self._end_subtree()
                pair = key_hash + hashlib.sha256(value).digest()
                self._pairs.setdefault(bucket_of(key_hash, self._tree_bits), []).append(pair)
                self._subtree.add(row_bytes(key, value))
                done += 1
                if done % ROWS_A_STEP:
                    continue
            yield
        while len(self.hashes) < 16**self.level:
            yield from self._end_subtree()
        if self._chunk.subtrees:
            yield from self._end_chunk()

    def _sorted(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Yield all rows, ascending by key hash; an empty hash now and then, where nothing is at hand yet.

        A part is parted once more by the second byte: so no single sort is long.
        """
        for part in range(PARTS):
            small: list[list[tuple[bytes, bytes, bytes]]] = [[] for _ in range(PARTS)]
            for count, row in enumerate(self._spill.rows(part)):
                small[row[0][1]].append(row)
                if count % ROWS_A_STEP == 0:
                    yield b"", b"", b""
            for rows in small:
                rows.sort()
                yield from rows
                rows.clear()

    def _end_subtree(self) -> Steps:
        """The subtree in work is hashed and belongs to a chunk."""
        subtree, chunk = self._subtree, self._chunk
        if subtree.size_bytes > CHUNK_BYTES_MAX or subtree.rows > CHUNK_ROWS_MAX:
            raise SnapshotTooLarge(
                f"subtree {len(self.hashes)} holds {subtree.rows} keys in {subtree.size_bytes} bytes"
            )
        full = (
            chunk.size_bytes + subtree.size_bytes > CHUNK_BYTES_TARGET or chunk.rows + subtree.rows > CHUNK_ROWS_MAX
        )
        if chunk.subtrees and full:
            yield from self._end_chunk()
            chunk = self._chunk
        width = 16 ** (self._tree_bits // 4 - self.level)
        first = len(self.hashes) * width
        unused: dict[bytes, bytes | None] = {}
        leaves: list[bytes] = []
        for bucket in range(first, first + width):
            pairs = self._pairs.get(bucket)
            leaves.append(EMPTY if pairs is None else build_bucket(bucket, self._tree_bits, pairs, unused))
            if bucket % ROWS_A_STEP == 0:
                yield
        yield
        self.hashes.append(fold(b"".join(leaves)))
        self._pairs = {}
        chunk.take(subtree)
        self._subtree = _Chunk()
        yield

    def _end_chunk(self) -> Steps:
        """The chunk in work is on disk."""
        chunk, self._chunk = self._chunk, _Chunk()
        content = content_head(chunk.rows) + bytes(chunk.data)
        yield
        packing = zlib.compressobj(COMPRESSION)
        packed: list[bytes] = []
        for at in range(0, len(content), COMPRESSED_A_STEP):
            packed.append(packing.compress(memoryview(content)[at : at + COMPRESSED_A_STEP]))
            yield
        packed.append(packing.flush())
        self._folder.write_chunk(len(self.chunks), b"".join(packed))
        yield
        self.chunks.append(ChunkEntry(chunk.subtrees, len(content), hashlib.sha256(content).digest()))
        yield


class _Chunk:
    """Rows in the order of their key hashes, encoded: of a subtree, or of the chunk that it will belong to."""

    __slots__ = ("data", "rows", "subtrees")

    def __init__(self) -> None:
        self.data = bytearray()
        self.rows = 0
        self.subtrees = 0

    @property
    def size_bytes(self) -> int:
        """The size of the content, before compression."""
        return len(content_head(self.rows)) + len(self.data)

    def add(self, row: bytes) -> None:
        """The row is the last one."""
        self.data += row
        self.rows += 1

    def take(self, subtree: "_Chunk") -> None:
        """The subtree's rows are the last ones."""
        self.data += subtree.data
        self.rows += subtree.rows
        self.subtrees += 1
