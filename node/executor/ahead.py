"""The state after blocks that were executed and are still being written, over the state that is on disk. Pure.

Invariant: it shows exactly what a view of the store will show once those blocks are applied, as far as executing
the next block reads it; so a block has the same outcome on either, and who executes need not wait for the disk.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from heapq import merge

from consensus.messages import Certificate
from node.ledger import EventData, HeadRecord
from node.state import ExecutedBlock, LedgerView


class AheadView:
    """A LedgerView (node.state) whose newest blocks are in memory alone."""

    def __init__(self, base: LedgerView, executed: Sequence[ExecutedBlock], certificate: Certificate) -> None:
        """`executed` follow the head of `base`, one after the other; `certificate` is that of the last of them.

        The head's `start_view` is the certificate's: only the store knows of views that this member voted in.
        """
        last = executed[-1]
        header = last.header
        self._head = HeadRecord(
            header.height,
            last.digest,
            header.time_ms,
            header.state_root,
            certificate,
            certificate.view,
            last.members.validators,
        )
        self._base = base
        self._newest_first = tuple(executed[::-1])
        self._writes = tuple([block.writes.after for block in self._newest_first])

    @property
    def head(self) -> HeadRecord:
        """The last of the executed blocks."""
        return self._head

    def get(self, key: bytes) -> bytes | None:
        """Return the value's bytes under `key`, or None."""
        for writes in self._writes:
            if key in writes:
                return writes[key]
        return self._base.get(key)

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, bytes) for start <= key < end, ascending."""
        pending: dict[bytes, bytes | None] = {}
        for writes in self._writes[::-1]:
            # A write set has its keys in order.
            keys = list(writes)
            for key in keys[bisect_left(keys, start) : bisect_left(keys, end)]:
                pending[key] = writes[key]
        below = ((key, value) for key, value in self._base.scan(start, end) if key not in pending)
        above = ((key, value) for key in sorted(pending) if (value := pending[key]) is not None)
        yield from merge(below, above)

    def bucket(self, name: str) -> bytes | None:
        """Return the state tree's record of the bucket `name`, or None."""
        for block in self._newest_first:
            if name in block.tree.buckets:
                return block.tree.buckets[name]
        return self._base.bucket(name)

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """A tree is built from the disk alone: raise ValueError."""
        raise ValueError("the tree of blocks that are being written is in memory already")

    def requests_due(self, from_ms: int, before_ms: int, limit: int) -> list[tuple[int, bytes]]:
        """Return up to `limit` (expires_at_ms, state key) of the requests that expire in that time, ascending."""
        added: set[tuple[int, bytes]] = set()
        removed: set[tuple[int, bytes]] = set()
        for block in self._newest_first[::-1]:
            for request in block.requests_added:
                if from_ms <= request[0] < before_ms:
                    added.add(request)
            removed.update(block.requests_removed)
        # As many more as may turn out to be gone.
        found = self._base.requests_due(from_ms, before_ms, limit + len(removed))
        return sorted((added | frozenset(found)) - removed)[:limit]

    def events(self, topic: str, from_height: int, to_height: int, limit: int) -> list[tuple[int, EventData]]:
        """What is final is asked of the store: raise ValueError."""
        raise ValueError("events of blocks that are being written are not to be asked for")
