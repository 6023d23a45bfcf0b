"""The journal of accepted transactions: what was put is durable, and who puts at a time shares a sync.

Invariant: `put` returns only after a synced write that held all of its transactions; when that write failed, it
raises, for every one whose transactions were in it. Many small requests at a time would else queue up sync behind
sync, and this node's votes behind all of them: the disk takes one batch of many as fast as one of a single one.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from node.runtime.threads import Threads

Entry: TypeAlias = tuple[bytes, bytes]
"""A transaction's tx_id and its bytes."""


class _Put:
    """What one caller wants written, and why that failed."""

    __slots__ = ("entries", "failure")

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.failure: BaseException | None = None


class Journal:
    """Gathers what is put while the writing thread is busy. `put` belongs to the event loop."""

    def __init__(self, write: Callable[[Sequence[Entry]], None], threads: Threads) -> None:
        """`write` makes entries durable with one sync; it is called in the writing thread."""
        self._write = write
        self._threads = threads
        # Filled by the event loop, emptied by the writing thread: an end of a deque each.
        self._waiting: deque[_Put] = deque()

    async def put(self, entries: Sequence[Entry]) -> None:
        """`entries` survive a crash. Raise StoreError when the disk refused them."""
        put = _Put(entries)
        self._waiting.append(put)
        await self._threads.write(self._write_waiting, put)

    def _write_waiting(self, own: _Put) -> None:
        """In the writing thread, whose calls keep their order: `own` was written by now, if not by this call."""
        together: list[_Put] = []
        while self._waiting:
            together.append(self._waiting.popleft())
        if together:
            try:
                self._write([entry for put in together for entry in put.entries])
            except BaseException as error:
                for put in together:
                    put.failure = error
        if own.failure is not None:
            raise own.failure
