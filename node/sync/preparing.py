"""Decodes and verifies the transactions of the next blocks while earlier ones execute.

Why ahead: signatures are verified in threads without the interpreter lock, execution holds it; done in turn, one
core idles. Only blocks whose certificate holds are prepared, so nobody can make this node verify what no quorum
signed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from node.ledger import Transaction
from node.sync.proof import Candidate

AHEAD_BLOCKS_MAX = 8
AHEAD_BYTES_MAX = 1024 * 1024
"""Decoded transactions take some ten times the memory of their bytes; one block is prepared whatever its size."""

_Verify = Callable[[Sequence[bytes]], Awaitable[list[Transaction]]]


class Preparing:
    """The transactions of blocks that are due soon, by block digest."""

    def __init__(self, verified: _Verify) -> None:
        """`verified(transactions)` returns them decoded, their signatures verified; raises InvalidBlock."""
        self._verified = verified
        self._tasks: dict[bytes, tuple[asyncio.Task[list[Transaction]], int]] = {}

    def work_ahead(self, candidates: Iterable[Candidate]) -> None:
        """The first of `candidates` (proven, ascending) are being prepared, as many as the bounds allow."""
        for candidate in candidates:
            if len(self._tasks) >= AHEAD_BLOCKS_MAX:
                return
            if candidate.digest in self._tasks:
                continue
            size_bytes = sum(map(len, candidate.block.body.transactions))
            if self._tasks and size_bytes + sum(size for _, size in self._tasks.values()) > AHEAD_BYTES_MAX:
                return
            task = asyncio.get_running_loop().create_task(self._prepare(candidate))
            self._tasks[candidate.digest] = (task, size_bytes)

    async def _prepare(self, candidate: Candidate) -> list[Transaction]:
        return await self._verified(candidate.block.body.transactions)

    async def take(self, candidate: Candidate) -> list[Transaction]:
        """The candidate's transactions; raise InvalidBlock for the first that is malformed or badly signed."""
        self.work_ahead((candidate,))
        known = self._tasks.pop(candidate.digest, None)
        return await (self._prepare(candidate) if known is None else known[0])

    async def clear(self) -> None:
        """Nothing is prepared or being prepared."""
        tasks = [task for task, _ in self._tasks.values()]
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
