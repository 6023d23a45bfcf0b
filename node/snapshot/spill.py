"""Rows set aside by the first byte of their key's hash, in files once they are many: sorting by parts, in
bounded memory.

A part of a state of ten million keys is some megabytes. A larger one (keys can be made to share the first bytes of
their hashes) is set aside once more by the next byte, and so on: memory never depends on what the keys are. The
files are scratch: not synced, removed with their directory.
"""

from collections.abc import Iterator
from pathlib import Path

from node.errors import StoreError

PARTS = 256
SPILL_BYTES_MAX = 2 * 1024 * 1024
"""So much is held in memory before it goes to the files: what a node takes for it once stays in its heap."""
PART_BYTES_MAX = 64 * 1024 * 1024
"""A part of this size is sorted in memory."""
ROWS_A_STEP = 50

_HEAD = 32 + 4 + 4
_LAST_PLACE = 31

Row = tuple[bytes, bytes, bytes]
PAUSE: Row = (b"", b"", b"")


class Spill:
    """Rows (key hash, key, value), 256 parts of them by one byte of the hash."""

    def __init__(
        self, directory: Path, bytes_max: int = SPILL_BYTES_MAX, place: int = 0, name: str = "part"
    ) -> None:
        """`directory` exists and is ours. The hashes of all rows agree before byte `place`."""
        self._directory = directory
        self._bytes_max = bytes_max
        self._place = place
        self._name = name
        self._buffers = [bytearray() for _ in range(PARTS)]
        self._held_bytes = 0

    def add(self, key_hash: bytes, key: bytes, value: bytes) -> bool:
        """The row is set aside; return whether `flush` is due."""
        buffer = self._buffers[key_hash[self._place]]
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

    def sorted(self) -> Iterator[Row]:
        """Yield all rows, once, ascending by key hash; PAUSE now and then, where nothing is at hand yet.

        What lay of them in memory and on disk is gone then. Raise StoreError.
        """
        for part in range(PARTS):
            path, buffer = self._path(part), bytes(self._buffers[part])
            self._buffers[part].clear()
            try:
                size_bytes = path.stat().st_size if path.exists() else 0
                if size_bytes + len(buffer) > PART_BYTES_MAX and self._place < _LAST_PLACE:
                    yield from self._parted(part, path, buffer)
                else:
                    data = (path.read_bytes() if size_bytes else b"") + buffer
                    path.unlink(missing_ok=True)
                    yield from self._in_memory(data)
            except OSError as error:
                raise StoreError("disk_failed", f"{path}: {error.strerror}") from error

    def _parted(self, part: int, path: Path, buffer: bytes) -> Iterator[Row]:
        """The rows of a part that is too large for memory, set aside by the next byte first."""
        deeper = Spill(self._directory, self._bytes_max, self._place + 1, f"{self._name}-{part:03d}")
        with path.open("rb") as file:
            # The file ends with a whole row, and the buffer begins with one.
            while piece := file.read(_HEAD):
                key_size, value_size = int.from_bytes(piece[32:36], "big"), int.from_bytes(piece[36:], "big")
                data = file.read(key_size + value_size)
                if deeper.add(piece[:32], data[:key_size], data[key_size:]):
                    for _ in deeper.flush():
                        yield PAUSE
        path.unlink()
        for key_hash, key, value in _rows(buffer):
            deeper.add(key_hash, key, value)
        for _ in deeper.flush():
            yield PAUSE
        yield from deeper.sorted()

    def _in_memory(self, data: bytes) -> Iterator[Row]:
        """The rows of a part, parted once more by the next byte: so no single sort is long."""
        small: list[list[Row]] = [[] for _ in range(PARTS)]
        for count, row in enumerate(_rows(data)):
            small[row[0][min(self._place + 1, _LAST_PLACE)]].append(row)
            if count % ROWS_A_STEP == 0:
                yield PAUSE
        for rows in small:
            rows.sort()
            yield from rows
            rows.clear()

    def _path(self, part: int) -> Path:
        return self._directory / f"{self._name}-{part:03d}"


def _rows(data: bytes) -> Iterator[Row]:
    at = 0
    while at < len(data):
        key_at = at + _HEAD
        value_at = key_at + int.from_bytes(data[at + 32 : at + 36], "big")
        end = value_at + int.from_bytes(data[at + 36 : at + 40], "big")
        yield data[at : at + 32], data[key_at:value_at], data[value_at:end]
        at = end
