"""A stopped node's database opened beside the store, to be damaged or looked at: values as they are read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plyvel

from node.store.packing import PACKED_KINDS, pack, unpack


class PlainRows:
    """The rows of one closed directory, whose values need not fit anything."""

    def __init__(self, path: Path | str) -> None:
        self.database = plyvel.DB(str(path), create_if_missing=True)

    def get(self, key: bytes) -> Any:
        """Return the value under `key` (bytes), or None."""
        value: bytes | None = self.database.get(key)
        return unpack(value) if value is not None and key[0] in PACKED_KINDS else value

    def put(self, key: bytes, value: bytes) -> None:
        """`value` lies under `key`."""
        self.database.put(key, pack(value) if key[0] in PACKED_KINDS else value)

    def delete(self, key: bytes) -> None:
        """Nothing lies under `key`."""
        self.database.delete(key)

    def keys(self, start: bytes = b"", end: bytes = b"\xff") -> Iterator[bytes]:
        """The keys start <= key < end, ascending."""
        return iter(list(self.database.iterator(start=start, stop=end, include_value=False)))

    def items(self) -> dict[bytes, bytes]:
        """All rows."""
        return {key: self.get(key) for key in self.keys()}

    def close(self) -> None:
        """Others may open the directory."""
        self.database.close()
