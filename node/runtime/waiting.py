"""Who waits for transactions to become final: woken by blocks, all of one request together.

Invariant: a transaction that waits here is told of by the block that decides or ends it, or the wait times out.
What the block said of it is kept for the waiting, so that nothing is read back from the disk to answer them.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from consensus.codec import decode_own
from node.ledger import Receipt
from node.state import ExecutedBlock

Place: TypeAlias = tuple[int, Receipt]
"""The height of a block, and a transaction's receipt in it."""
RECEIPT_SIZE_MAX = 64 * 1024 * 1024


class Waiters:
    """The waits for fates, by transaction. Used on the event loop alone."""

    def __init__(self) -> None:
        self._waits: dict[bytes, list[_Wait]] = {}

    async def wait(self, tx_ids: Iterable[bytes], timeout_s: float) -> dict[bytes, Place]:
        """Return when all of `tx_ids` are final or ended, or after `timeout_s`: the places of the final ones."""
        wait = _Wait(dict.fromkeys(tx_ids))
        if not wait.open:
            return {}
        for tx_id in wait.open:
            self._waits.setdefault(tx_id, []).append(wait)
        try:
            await asyncio.wait((wait.ended,), timeout=timeout_s)
        finally:
            for tx_id in wait.open:
                waits = self._waits[tx_id]
                waits.remove(wait)
                if not waits:
                    del self._waits[tx_id]
        return wait.places

    def on_applied(self, executed: ExecutedBlock, ended: Sequence[bytes]) -> None:
        """The block's transactions are final, and those of `ended` (tx_ids) can never be."""
        if not self._waits:
            return
        for position, tx_id in enumerate(executed.tx_ids):
            waits = self._waits.pop(tx_id, None)
            if waits is None:
                continue
            # The executor has just encoded it: there is nothing to prove about its form.
            receipt = decode_own(executed.receipts[position], Receipt, size_max=RECEIPT_SIZE_MAX)
            for wait in waits:
                wait.places[tx_id] = (executed.height, receipt)
                wait.close(tx_id)
        for tx_id in ended:
            for wait in self._waits.pop(tx_id, ()):
                wait.close(tx_id)


class _Wait:
    """One request's wait: the transactions that are still open, and what blocks said of the others."""

    __slots__ = ("ended", "open", "places")

    def __init__(self, tx_ids: dict[bytes, None]) -> None:
        self.open = tx_ids
        self.places: dict[bytes, Place] = {}
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def close(self, tx_id: bytes) -> None:
        del self.open[tx_id]
        if not self.open and not self.ended.done():
            self.ended.set_result(None)
