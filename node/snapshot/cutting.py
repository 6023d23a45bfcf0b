"""Cuts rows that were set aside (spill.py) into subtrees and chunks, and writes the manifest that leads to them.

Invariant: a manifest is written only when every chunk is synced and the hashes computed from the values themselves
fold to the state root that the block's certificate covers. So a damaged state is never offered.

All it needs lies in the snapshot's directory: the rows, and the draft of the manifest. So it can be done by another
process than the node's (apart.py), and steps let others work where it is not. Part after part is sorted and cut. A
subtree that outgrows a chunk while its rows come is parted into its children (frontier.py), so that no more than a
chunk is held, whatever the keys are. Each step is well below a millisecond of interpreter time: fifty rows, one
subtree's folding, or work that lets go of the interpreter lock (hashing, compressing, syncing).
"""

import hashlib
import zlib
from collections.abc import Callable, Generator
from typing import TypeAlias

import msgspec

from consensus.codec import CodecError, decode, encode
from consensus.members import Validator
from consensus.messages import Certificate
from node.errors import StoreError
from node.ledger import Header
from node.snapshot.chunks import COMPRESSION, content_head, row_bytes
from node.snapshot.folder import SnapshotFolder
from node.snapshot.frontier import first_node, level_hashes, next_node, nodes_of
from node.snapshot.manifest import (
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_TARGET,
    CHUNK_ROWS_MAX,
    FORMAT,
    MANIFEST_BYTES_MAX,
    SPLITS_MAX,
    ChunkEntry,
    Content,
    Manifest,
    MemberChange,
)
from node.snapshot.spill import Spill
from node.state_tree import bucket_of, build_bucket, build_subtree, fold, root_over
from node.tree_records import PAIRS_MAX

ROWS_A_STEP = 50
COMPRESSED_A_STEP = 64 * 1024

Steps: TypeAlias = Generator[None, None, None]
Cut: TypeAlias = Callable[[SnapshotFolder], Steps]
"""Makes chunks and a manifest of what was set aside in a directory."""


class SnapshotTooLarge(Exception):
    """The format has no room for this ledger (manifest.py says what that takes): no snapshot of it can be made."""


class Draft(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a manifest says that the rows do not tell; its fields are those of `Content` and `Manifest`."""

    network: str
    genesis_hash: bytes
    header: Header
    validators: tuple[Validator, ...]
    changes: tuple[MemberChange, ...]
    tree_bits: int
    level: int
    keys: int
    certificates: tuple[Certificate, ...]


def cut(folder: SnapshotFolder) -> Steps:
    """`folder` holds every chunk and the manifest, durably, and nothing else.

    Before, it holds the rows and the draft. Raise StoreError for a full or failing disk and for a state that does
    not have its certified root, SnapshotTooLarge for one that does not fit the format.
    """
    draft = _draft(folder)
    cutter = _Cutter(folder, draft)
    yield from cutter.cut()
    hashes = level_hashes(b"".join(cutter.hashes), nodes_of(draft.level, cutter.parted), cutter.parted)
    if root_over(draft.tree_bits, fold(hashes)) != draft.header.state_root:
        raise StoreError("corrupt_state_tree", f"the state's root differs from that of block {draft.header.height}")
    folder.drop_draft()
    folder.write_manifest(_readable(encode(_manifest(draft, cutter))))
    yield


def _draft(folder: SnapshotFolder) -> Draft:
    try:
        return decode(folder.draft_bytes(), Draft, size_max=MANIFEST_BYTES_MAX)
    except CodecError as error:
        raise StoreError("snapshot_not_cut", f"{folder.path} holds nothing to be cut: {error}") from error


def _manifest(draft: Draft, cutter: "_Cutter") -> Manifest:
    content = Content(
        format=FORMAT,
        network=draft.network,
        genesis_hash=draft.genesis_hash,
        header=draft.header,
        validators=draft.validators,
        changes=draft.changes,
        tree_bits=draft.tree_bits,
        level=draft.level,
        parted=tuple(cutter.parted),
        subtrees=b"".join(cutter.hashes),
        chunks=tuple(cutter.chunks),
        keys=draft.keys,
    )
    return Manifest(content, draft.certificates)


def _readable(data: bytes) -> bytes:
    """Return the manifest as it is; raise SnapshotTooLarge when it exceeds what a reader takes."""
    try:
        decode(data, Manifest, size_max=MANIFEST_BYTES_MAX)
    except CodecError as error:
        raise SnapshotTooLarge(f"the manifest has {len(data)} bytes and cannot be offered: {error}") from error
    return data


class _Cutter:
    """One snapshot being cut: `hashes`, `parted` and `chunks` tell of what was."""

    def __init__(self, folder: SnapshotFolder, draft: Draft) -> None:
        self._folder = folder
        self._tree_bits = draft.tree_bits
        self._level = draft.level
        self._spill = Spill(folder.path)
        self._chunk = _Chunk()
        self._subtree = _Subtree()
        self._node = ""
        """The subtree in work."""
        self.hashes: list[bytes] = []
        self.parted: list[str] = []
        self.chunks: list[ChunkEntry] = []

    def cut(self) -> Steps:
        """Every chunk is on disk, and `hashes`, `parted` and `chunks` tell of all of them."""
        self._node, done = first_node(self._level), 0
        for key_hash, key, value in self._spill.sorted():
            if key_hash:
                digits = key_hash.hex()
                while not digits.startswith(self._node):
                    yield from self._end_subtree()
                self._subtree.add(key_hash + hashlib.sha256(value).digest(), row_bytes(key, value))
                while self._subtree.is_too_large:
                    yield from self._part()
                done += 1
                if done % ROWS_A_STEP:
                    continue
            yield
        while self._node:
            yield from self._end_subtree()
        if self._chunk.subtrees:
            yield from self._end_chunk()

    def _part(self) -> Steps:
        """The subtree in work holds more than a chunk may: its children are named in its place.

        Its rows go to them; the last row's child is in work now, and those before it are done.
        """
        subtree = self._subtree
        # A leaf fits always (manifest.py), so what outgrew a chunk has more keys than one.
        is_leaf = len(self._node) >= self._tree_bits // 4 and len(subtree.pairs) <= PAIRS_MAX
        if is_leaf or len(self.parted) == SPLITS_MAX:
            raise SnapshotTooLarge(
                f"subtree {self._node} holds {len(subtree.pairs)} keys in {subtree.size_bytes} bytes,"
                f" and {len(self.parted)} subtrees are parted already"
            )
        self.parted.append(self._node)
        self._node, self._subtree = self._node + "0", _Subtree()
        for count, (pair, row) in enumerate(zip(subtree.pairs, subtree.rows, strict=True)):
            digits = pair[:32].hex()
            while not digits.startswith(self._node):
                yield from self._end_subtree()
            self._subtree.add(pair, row)
            if count % ROWS_A_STEP == 0:
                yield

    def _end_subtree(self) -> Steps:
        """The subtree in work is hashed and belongs to a chunk; the next one is in work."""
        subtree, chunk = self._subtree, self._chunk
        full = (
            chunk.size_bytes + subtree.size_bytes > CHUNK_BYTES_TARGET
            or chunk.rows + len(subtree.pairs) > CHUNK_ROWS_MAX
        )
        if chunk.subtrees and full:
            yield from self._end_chunk()
            chunk = self._chunk
        yield from self._hash()
        chunk.take(subtree)
        self._node, self._subtree = next_node(self._node, self._level), _Subtree()
        yield

    def _hash(self) -> Steps:
        """The hash of the subtree in work is the last of `hashes`; a step for some of its buckets."""
        node, pairs, bits = self._node, self._subtree.pairs, self._tree_bits
        unused: dict[str, bytes | None] = {}
        depth = bits // 4
        if not pairs or len(node) >= depth:
            yield
            self.hashes.append(build_subtree(node, bits, pairs, unused))
            return
        grouped: dict[int, list[bytes]] = {}
        for pair in pairs:
            grouped.setdefault(bucket_of(pair, bits), []).append(pair)
        width = 16 ** (depth - len(node))
        leaves: list[bytes] = []
        for bucket in range(int(node, 16) * width, (int(node, 16) + 1) * width):
            leaves.append(build_bucket(bucket, bits, grouped.get(bucket, []), unused))
            if bucket % ROWS_A_STEP == 0:
                yield
        yield
        self.hashes.append(fold(b"".join(leaves)))

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


class _Subtree:
    """The rows of one subtree, encoded, with their pairs in the tree, in the order of their key hashes."""

    __slots__ = ("pairs", "rows", "size_rows")

    def __init__(self) -> None:
        self.pairs: list[bytes] = []
        self.rows: list[bytes] = []
        self.size_rows = 0

    @property
    def size_bytes(self) -> int:
        """The size of a chunk of these rows alone, before compression."""
        return len(content_head(len(self.rows))) + self.size_rows

    @property
    def is_too_large(self) -> bool:
        """Whether no chunk may hold it."""
        return len(self.rows) > CHUNK_ROWS_MAX or self.size_bytes > CHUNK_BYTES_MAX

    def add(self, pair: bytes, row: bytes) -> None:
        """The row is the last one."""
        self.pairs.append(pair)
        self.rows.append(row)
        self.size_rows += len(row)


class _Chunk:
    """The subtrees of the chunk in work."""

    __slots__ = ("data", "rows", "subtrees")

    def __init__(self) -> None:
        self.data = bytearray()
        self.rows = 0
        self.subtrees = 0

    @property
    def size_bytes(self) -> int:
        """The size of the content, before compression."""
        return len(content_head(self.rows)) + len(self.data)

    def take(self, subtree: _Subtree) -> None:
        """The subtree's rows are the last ones."""
        self.data += b"".join(subtree.rows)
        self.rows += len(subtree.rows)
        self.subtrees += 1
