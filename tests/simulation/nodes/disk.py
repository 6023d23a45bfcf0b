"""A simulated disk: an ordered map that forgets nothing that was synced, and everything else.

The node writes whole batches, each synced (node.store.database), so a crash comes before a batch or after it, and
a torn last batch is the same as none. What else can happen to a disk: it is full, it breaks, it is lost, an older
copy of it comes back.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator

from node.errors import StoreError

Rows = list[tuple[bytes, bytes | None]]


class PowerCut(BaseException):
    """The process ends here and now: nothing that it would have done after this happens."""


class Contents:
    """Keys and values, ascending."""

    __slots__ = ("keys", "values")

    def __init__(self, values: dict[bytes, bytes] | None = None, keys: list[bytes] | None = None) -> None:
        self.values: dict[bytes, bytes] = {} if values is None else values
        self.keys: list[bytes] = sorted(self.values) if keys is None else keys

    def copy(self) -> "Contents":
        """Another one with the same entries."""
        return Contents(dict(self.values), list(self.keys))

    def apply(self, rows: Rows) -> None:
        """All `rows` are put (None: deleted)."""
        for key, value in rows:
            if value is None:
                if self.values.pop(key, None) is not None:
                    del self.keys[bisect_left(self.keys, key)]
            else:
                if key not in self.values:
                    insort(self.keys, key)
                self.values[key] = value

    def get(self, key: bytes) -> bytes | None:
        """The value under `key`, or None."""
        return self.values.get(key)

    def scan(
        self, start: bytes, end: bytes, reverse: bool = False, ahead: int = 1
    ) -> Iterator[tuple[bytes, bytes]]:
        """The rows with start <= key < end, as they are when this is called."""
        keys = self.keys[bisect_left(self.keys, start) : bisect_left(self.keys, end)]
        return iter([(key, self.values[key]) for key in (reversed(keys) if reverse else keys)])


class Disk:
    """What lies on one member's disk, and what will go wrong with it.

    `on_write` sees each batch once it is durable. `full` and `broken` refuse writes; `fail_in` and `cut_in` count
    the writes until the disk is full, or until the power is cut: just before the batch or just after it.
    """

    def __init__(self, contents: Contents, on_write: Callable[[Rows], None], on_cut: Callable[[], None]) -> None:
        self._contents = contents
        self._shared = False
        self._on_write = on_write
        self._on_cut = on_cut
        self.full = False
        self.broken = False
        self.fail_in: int | None = None
        self.cut_in: tuple[int, bool] | None = None
        self.writes = 0

    @property
    def contents(self) -> Contents:
        """What lies there now; to be read, not kept."""
        return self._contents

    def copy(self) -> Contents:
        """What lies there now, for ever."""
        self._shared = True
        return self._contents

    def replace(self, contents: Contents) -> None:
        """Other `contents` lie there now, and nobody had them before."""
        self._contents = contents
        self._shared = True

    def refuse(self) -> StoreError | None:
        """Why the disk takes nothing now, or None."""
        if self.broken:
            return StoreError("disk_failed", "simulated: input/output error")
        if self.full:
            return StoreError("disk_full", "simulated: No space left on device")
        return None

    def write(self, rows: Rows) -> None:
        """All `rows` are durable; StoreError where the disk refuses, PowerCut where the process ends here."""
        if self.fail_in is not None:
            self.fail_in -= 1
            if self.fail_in <= 0:
                self.fail_in, self.full = None, True
        error = self.refuse()
        if error is not None:
            raise error
        after = False
        if self.cut_in is not None:
            left, after = self.cut_in
            self.cut_in = (left - 1, after) if left > 1 else None
            if self.cut_in is None and not after:
                self._cut()
        else:
            left = 0
        if self._shared:
            self._contents, self._shared = self._contents.copy(), False
        self._contents.apply(rows)
        self.writes += 1
        self._on_write(rows)
        if left == 1 and after:
            self._cut()

    def _cut(self) -> None:
        self._on_cut()
        raise PowerCut


class MemoryDatabase:
    """One process's open database on a `Disk` (node.store.Database); useless once that process is dead."""

    def __init__(self, disk: Disk) -> None:
        self._disk: Disk | None = disk
        self.synced_writes = 0
        self._failed: StoreError | None = disk.refuse()
        if self._failed is not None:
            raise self._failed

    def sever(self) -> None:
        """The process is dead: whatever it may still try changes nothing."""
        self._disk = None

    @property
    def refused(self) -> bool:
        """Whether the disk refused a write of this process."""
        return self._failed is not None

    def _open(self) -> Disk:
        if self._disk is None:
            raise StoreError("store_closed", "the database is closed")
        return self._disk

    def get(self, key: bytes) -> bytes | None:
        """The value under `key`, or None."""
        return self._open().contents.get(key)

    def scan(
        self, start: bytes, end: bytes, reverse: bool = False, ahead: int = 1
    ) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) for start <= key < end."""
        return self._open().contents.scan(start, end, reverse)

    def write(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        """All `rows` are durable, or none and StoreError; after a failure no write is taken."""
        if self._failed is not None:
            raise self._failed
        try:
            self._open().write(list(rows))
        except StoreError as error:
            self._failed = error
            raise
        self.synced_writes += 1

    def snapshot(self) -> Contents:
        """The database as it is now."""
        return self._open().copy()

    def size_bytes(self, start: bytes = b"", end: bytes = b"\xff") -> int:
        """About how many bytes lie there."""
        keys = self._open().contents.keys
        return 100 * (bisect_left(keys, end) - bisect_left(keys, start))

    def compact(self, start: bytes, end: bytes) -> None:
        """Nothing: what was removed takes no room here."""
        self._open()

    def close(self) -> None:
        """The place is free for another process."""
        self._disk = None
