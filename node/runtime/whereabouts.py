"""Where that is which this node no longer has: the sentence that a reader gets instead of a pruned block."""

import asyncio

from node.archive import ArchiveShelf
from node.errors import NotFound
from node.store import Store


class Whereabouts:
    """Looks into the archive files for what the store has given up. Runs on the event loop."""

    def __init__(self, store: Store, shelf: ArchiveShelf | None) -> None:
        """`shelf`: where this node's archive files lie, if it makes any."""
        self._store = store
        self._shelf = shelf
        # Opening all files takes a while: one search at a time, however many ask.
        self._searching = asyncio.Lock()

    def block(self, height: int) -> NotFound:
        """Return the error that tells where the pruned block at `height` is."""
        return self._pruned(f"block {height}", height)

    def explained(self, error: NotFound) -> NotFound:
        """Return the error with the archive file in it that holds the block, where it is about a pruned one."""
        height = error.details.get("height")
        return self.block(height) if error.code == "block_pruned" and isinstance(height, int) else error

    def transaction(self, tx_id: bytes, height: int) -> NotFound:
        """Return the error that tells where a final transaction of the pruned block at `height` is."""
        return self._pruned(f"transaction {tx_id.hex()} is final, and its block {height}", height)

    async def unknown(self, tx_id: bytes) -> NotFound:
        """Return the error about a transaction that the store does not know: it may lie in an archive file."""
        first = self._store.first_block
        text = f"this node does not know {tx_id.hex()}"
        if first == 1:
            return NotFound("transaction_not_found", text)
        if self._shelf is not None:
            async with self._searching:
                place = await asyncio.to_thread(self._shelf.locate, tx_id)
            if place is not None:
                return self._pruned(f"transaction {tx_id.hex()} is final, and its block {place[0]}", place[0])
        text = f"{text}; of the blocks below {first} it keeps the headers alone"
        return NotFound("transaction_not_found", text, first=first)

    def _pruned(self, what: str, height: int) -> NotFound:
        first = self._store.first_block
        shelved = None if self._shelf is None else self._shelf.holding(height)
        place = "" if shelved is None else f"; it lies in {shelved.path.name}"
        return NotFound(
            "block_pruned",
            f"{what} was pruned here{place}; the first block kept is {first}",
            height=height,
            first=first,
            archive=None if shelved is None else shelved.path.name,
        )
