"""Rows set aside by the first byte of their key's hash, in files once they are many: sorting by parts, in
bounded memory.

A part of a state of ten million keys is some megabytes. The files are scratch: not synced, removed with their
directory.
"""

from collections.abc import Iterator
from pathlib import Path

from node.errors import StoreError

PARTS = 256
SPILL_BYTES_MAX = 16 * 1024 * 1024
"""So much is held in memory before it goes to the files."""

_HEAD = 32 + 4 + 4


class Spill:
    """Rows (key hash, key, value), 256 parts of them by the hash's first byte."""

    def __init__(self, directory: Path, bytes_max: int = SPILL_BYTES_MAX) -> None:
        """`directory` exists and is ours."""
        self._directory = directory
        self._bytes_max = bytes_max
        self._buffers = [bytearray() for _ in range(PARTS)]
        self._held_bytes = 0

    def add(self, key_hash: bytes, key: bytes, value: bytes) -> bool:
        """The row is set aside; return whether `flush` is due."""
        buffer = self._buffers[key_hash[0]]
        buffer += key_hash + len(key).to_bytes(4, "big") + len(value).to_bytes(4, "big") + key + value
        self._held_bytes += _HEAD + len(key) + len(value)
        return self._held_bytes >= self._bytes_max

    def flush(self) -> Iterator[None]:
        """Nothing is held in memory any more; one step for each part. Raise StoreError."""
        for part, buffer in enumerate(self._buffers):
            if buffer:
                try:
                    with self._path(part).open("ab") as file:
                        file.write(buffer)
                except OSError as error:
                    raise StoreError("disk_failed", f"{self._path(part)}: {error.strerror}") from error
                buffer.clear()
            yield
        self._held_bytes = 0

    def rows(self, part: int) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Yield the part's rows as they were added, once: what lay of it in memory or on disk is gone then."""
        buffer = bytes(self._buffers[part])
        self._buffers[part].clear()
        path = self._path(part)
        try:
            data = (path.read_bytes() if path.exists() else b"") + buffer
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError("disk_failed", f"{path}: {error.strerror}") from error
        at = 0
        while at < len(data):
            key_at = at + _HEAD
            value_at = key_at + int.from_bytes(data[at + 32 : at + 36], "big")
            end = value_at + int.from_bytes(data[at + 36 : at + 40], "big")
            yield data[at : at + 32], data[key_at:value_at], data[value_at:end]
            at = end

    def _path(self, part: int) -> Path:
        return self._directory / f"part-{part:03d}"
