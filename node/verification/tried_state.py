"""A state in memory over that of a past height: what blocks would do, applied nowhere."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from heapq import merge

from node.ledger import EventData, HeadRecord
from node.state import LedgerView


class TriedState:
    """A LedgerView (node.state) as far as executing blocks reads it. Request ids are never due here."""

    def __init__(self, base: LedgerView) -> None:
        """Show what `base` shows."""
        self._base = base
        self._head = base.head
        self._keys: list[bytes] = []
        self.changed: dict[bytes, bytes | None] = {}

    @property
    def head(self) -> HeadRecord:
        """The block after which this would be the state."""
        return self._head

    def apply(self, writes: Mapping[bytes, bytes | None], head: HeadRecord) -> None:
        """The values are `writes`, after the block `head`."""
        for key, value in writes.items():
            if key not in self.changed:
                insort(self._keys, key)
            self.changed[key] = value
        self._head = head

    def get(self, key: bytes) -> bytes | None:
        """Return the value's bytes under `key`, or None."""
        return self.changed[key] if key in self.changed else self._base.get(key)

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, bytes) for start <= key < end, ascending."""
        keys = self._keys[bisect_left(self._keys, start) : bisect_left(self._keys, end)]
        above = ((key, value) for key in keys if (value := self.changed[key]) is not None)
        below = ((key, value) for key, value in self._base.scan(start, end) if key not in self.changed)
        yield from merge(below, above)

    def bucket(self, name: str) -> bytes | None:
        """Raise ValueError: what is only tried has no state tree."""
        raise ValueError("what is only tried has no state tree")

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """Raise ValueError: what is only tried has no state tree."""
        raise ValueError("what is only tried has no state tree")

    def requests_due(self, from_ms: int, before_ms: int, limit: int) -> list[tuple[int, bytes]]:
        """Return nothing."""
        return []

    def events(self, topic: str, from_height: int, to_height: int, limit: int) -> list[tuple[int, EventData]]:
        """Return the events of the ledger as it is."""
        return self._base.events(topic, from_height, to_height, limit)
