"""A chunk: the keys and values of some consecutive subtrees, compressed, and provable by themselves.

Before compression it is the canonical MessagePack array of one array of [key, value] rows, ascending by SHA-256
of the key: the order of the state tree. Whoever opens one takes no more memory and time than its limits say
before its content is known to have the hash that the certified state root leads to.
"""

import zlib
from collections.abc import Sequence
from hashlib import sha256

import msgspec

from consensus.codec import CodecError, decode, encode
from node.errors import InvalidFrame
from node.snapshot.manifest import CHUNK_BYTES_MAX, CHUNK_FILE_BYTES_MAX, CHUNK_ROWS_MAX, Content
from node.state_tree import build_subtree

COMPRESSION = 3
"""zlib's level: beyond it the time grows and the size hardly shrinks, for much of a state is hashes."""


class _Rows(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The content of a chunk."""

    rows: tuple[tuple[bytes, bytes], ...]


class OpenedChunk(msgspec.Struct, frozen=True):
    """What a chunk proved to hold: (state key, value) rows, and the records of the state tree's buckets by name."""

    rows: tuple[tuple[bytes, bytes], ...]
    buckets: dict[str, bytes | None]


def row_bytes(key: bytes, value: bytes) -> bytes:
    """Return one row as it stands in a chunk."""
    return encode((key, value))


def content_head(rows: int) -> bytes:
    """Return what stands before the first of `rows` rows."""
    if rows < 16:
        return bytes((0x91, 0x90 | rows))
    if rows < 2**16:
        return b"\x91\xdc" + rows.to_bytes(2, "big")
    return b"\x91\xdd" + rows.to_bytes(4, "big")


def open_chunk(data: bytes, content: Content, index: int) -> OpenedChunk:
    """Return what the chunk `index` of the snapshot `content` holds; `data` may come from a liar.

    Raise InvalidFrame("snapshot_corrupt") for bytes that are not exactly the state under that chunk's subtrees.
    """
    entry = content.chunks[index]
    plain = _decompressed(data, entry.size_bytes, index)
    if sha256(plain).digest() != entry.sha256:
        raise _corrupt(index, "is not the one that the manifest names")
    if _row_count(plain) > CHUNK_ROWS_MAX:
        raise _corrupt(index, f"claims more than {CHUNK_ROWS_MAX} rows, or begins otherwise than a chunk")
    try:
        rows = decode(plain, _Rows, size_max=CHUNK_BYTES_MAX).rows
    except CodecError as error:
        raise _corrupt(index, f"cannot be read: {error}") from error
    nodes, first = content.chunk_nodes(index), content.first_subtree(index)
    buckets: dict[str, bytes | None] = {}
    hashes = subtree_hashes(rows, content.tree_bits, nodes, buckets)
    if hashes is None:
        raise _corrupt(index, "holds keys out of order or of other subtrees")
    for number, found in enumerate(hashes, first):
        if found != content.subtree_hash(number):
            raise _corrupt(index, f"differs from the certified state in subtree {nodes[number - first]}")
    return OpenedChunk(rows, buckets)


def subtree_hashes(
    rows: Sequence[tuple[bytes, bytes]], tree_bits: int, nodes: Sequence[str], buckets: dict[str, bytes | None]
) -> list[bytes] | None:
    """Return the hashes of the subtrees `nodes`, which ascend, when exactly `rows` lie under them.

    The buckets' records are put into `buckets`. None: the rows do not ascend, or some lie elsewhere.
    """
    pairs: list[list[bytes]] = [[] for _ in nodes]
    last, at = b"", 0
    for key, value in rows:
        key_hash = sha256(key).digest()
        if key_hash <= last:
            return None
        last, digits = key_hash, key_hash.hex()
        while at < len(nodes) and not digits.startswith(nodes[at]):
            at += 1
        if at == len(nodes):
            return None
        pairs[at].append(key_hash + sha256(value).digest())
    return [build_subtree(node, tree_bits, below, buckets) for node, below in zip(nodes, pairs, strict=True)]


def _decompressed(data: bytes, size_bytes: int, index: int) -> bytes:
    """Return the content of that size; no more than one byte beyond it is ever unpacked."""
    if len(data) > CHUNK_FILE_BYTES_MAX:
        raise _corrupt(index, f"has {len(data)} bytes")
    unpacking = zlib.decompressobj()
    try:
        plain = unpacking.decompress(data, size_bytes + 1)
    except zlib.error as error:
        raise _corrupt(index, f"cannot be decompressed: {error}") from error
    if len(plain) != size_bytes or not unpacking.eof or unpacking.unused_data:
        raise _corrupt(index, f"does not unpack to exactly {size_bytes} bytes")
    return plain


def _row_count(plain: bytes) -> int:
    """How many rows the content claims to hold; more than any chunk may where it does not begin as one does.

    A beginning longer than it need be would be refused as well, but only after all rows behind it were made.
    """
    mark = plain[1] if plain[:1] == b"\x91" and len(plain) > 1 else 0
    if mark & 0xF0 == 0x90:
        return mark & 15
    if mark == 0xDC:
        return int.from_bytes(plain[2:4], "big")
    return int.from_bytes(plain[2:6], "big") if mark == 0xDD else CHUNK_ROWS_MAX + 1


def _corrupt(index: int, what: str) -> InvalidFrame:
    return InvalidFrame("snapshot_corrupt", f"chunk {index} {what}")
