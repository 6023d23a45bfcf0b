"""Blocks' bodies, receipts and undo records lie in the database compressed; whoever reads it sees plain values.

Why: they are most of what a node writes, and LevelDB writes each byte about three times over until it rests. They
say the same names again and again and shrink to a third or less (receipts to an eighth), which takes two fifths off
all that is written. LevelDB's own compression would do that at every compaction anew, block by block of 2 KB, also
to hashes that do not shrink.
"""

import threading

import zstandard

from node.errors import StoreError
from node.store.layout import RECORD_SIZE_MAX

PACKED_KINDS = b"bru"
"""The letters of the rows whose values are compressed (see layout.py)."""
_LEVEL = 1
"""The quickest of zstd's usual levels."""


class _Contexts(threading.local):
    """zstd's contexts serve one thread each, and making one takes longer than a small value does."""

    def __init__(self) -> None:
        self.compress = zstandard.ZstdCompressor(level=_LEVEL).compress
        self.decompress = zstandard.ZstdDecompressor().decompress


_contexts = _Contexts()


def pack(value: bytes) -> bytes:
    """Return what lies in the database for `value`: one zstd frame that tells its size."""
    return _contexts.compress(value)


def unpack(data: bytes) -> bytes:
    """Return the value that `pack` was given; StoreError for anything else, before it takes memory."""
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= RECORD_SIZE_MAX:
            raise StoreError("store_corrupt", f"a compressed row claims to hold {size} bytes")
        return _contexts.decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise StoreError("store_corrupt", f"a compressed row cannot be read: {error}") from error


def may_hold_packed(start: bytes, end: bytes) -> bool:
    """Whether rows of those kinds may have keys start <= key < end."""
    return any(start < bytes((kind + 1,)) and bytes((kind,)) < end for kind in PACKED_KINDS)
