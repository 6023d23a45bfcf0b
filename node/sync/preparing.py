"""Decodes and verifies the transactions of the next blocks while earlier ones execute.

Why ahead: signatures are verified in another process; done in turn with execution, one core idles. Only blocks
whose certificate holds are prepared, so nobody can make this node verify what no quorum signed.

Memory: a block counts from when its preparation begins until it was applied or given up, so that what is decoded,
waits, executes and is written stays below AHEAD_BYTES_MAX, with one block of any size besides.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from node.ledger import Transaction
from node.sync.proof import Candidate

AHEAD_BLOCKS_MAX = 32
AHEAD_BYTES_MAX = 3 * 1024 * 1024
"""Decoded transactions take some ten times the memory of their bytes; one block is prepared whatever its size."""

_Verify = Callable[[Sequence[bytes]], Coroutine[Any, Any, list[Transaction]]]


class Preparing:
    """The transactions of blocks that are due soon, by block digest."""

    def __init__(self, verified: _Verify) -> None:
        """`verified(transactions)` returns them decoded, their signatures verified; raises InvalidBlock."""
        self._verified = verified
        self._tasks: dict[bytes, asyncio.Task[list[Transaction]]] = {}
        self._counted: dict[bytes, tuple[int, int]] = {}
        self.held_bytes = 0
        """Encoded size of the transactions of all blocks that count."""

    def work_ahead(self, candidates: Iterable[Candidate]) -> None:
        """The first of `candidates` (proven, ascending) are being prepared, as many as the bounds allow."""
        for candidate in candidates:
            if candidate.digest in self._counted:
                continue
            if len(self._counted) >= AHEAD_BLOCKS_MAX or not self.has_room(candidate):
                return
            self._begin(candidate)

    def has_room(self, candidate: Candidate) -> bool:
        """Whether the candidate counts already, or would do so within the bounds."""
        if candidate.digest in self._counted or not self._counted:
            return True
        return self.held_bytes + _size_bytes(candidate) <= AHEAD_BYTES_MAX

    async def take(self, candidate: Candidate) -> list[Transaction]:
        """The candidate's transactions; raise InvalidBlock for the first that is malformed or badly signed.

        It counts on, and is prepared even where the bounds leave no room.
        """
        if candidate.digest not in self._tasks:
            self._begin(candidate)
        return await self._tasks.pop(candidate.digest)

    def _begin(self, candidate: Candidate) -> None:
        size_bytes = _size_bytes(candidate)
        if candidate.digest not in self._counted:
            self._counted[candidate.digest] = (candidate.height, size_bytes)
            self.held_bytes += size_bytes
        work = self._verified(candidate.block.body.transactions)
        self._tasks[candidate.digest] = asyncio.ensure_future(work)

    def passed(self, height: int) -> None:
        """The head has reached `height`: no block up to it counts, or is being prepared, any more."""
        for digest, (prepared, _) in list(self._counted.items()):
            if prepared <= height:
                self.give_up(digest)

    def give_up(self, digest: bytes) -> None:
        """The block does not count, and is not being prepared, any more."""
        _, size_bytes = self._counted.pop(digest, (0, 0))
        self.held_bytes -= size_bytes
        task = self._tasks.pop(digest, None)
        if task is not None:
            task.cancel()

    async def clear(self) -> None:
        """Nothing counts or is being prepared any more."""
        tasks = list(self._tasks.values())
        for digest in list(self._counted):
            self.give_up(digest)
        await asyncio.gather(*tasks, return_exceptions=True)


def _size_bytes(candidate: Candidate) -> int:
    return sum(map(len, candidate.block.body.transactions))
