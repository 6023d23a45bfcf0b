"""The threads beside the event loop: one executes, one writes, a few verify signatures.

One thread executes blocks, so that what builds, checks and applies never overlaps. One thread writes, so that
writes never overlap and a vote's sync does not wait behind an execution. libsodium and LevelDB let go of the
interpreter lock, so these threads do run beside the loop.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, Protocol, TypeVar

from node.keys import verify_many

P = ParamSpec("P")
R = TypeVar("R")

SIGNATURES_PER_JOB = 64


class Threads(Protocol):
    """Where work goes that must not hold up the event loop."""

    async def execute(self, function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        """Return what `function` returns; of these calls none overlap."""

    async def write(self, function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        """Return what `function` returns; of these calls none overlap, and they run in their order."""

    async def verify(self, items: Sequence[tuple[bytes, bytes, bytes]]) -> list[bool]:
        """Return for each (key, message, signature) whether it verifies."""

    def close(self) -> None:
        """Nothing runs any more; what had begun has ended."""


class WorkerThreads:
    """The node's worker threads; `close` waits for what runs."""

    def __init__(self, verify_threads: int) -> None:
        self._execution = ThreadPoolExecutor(1, thread_name_prefix="execute")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._verification = ThreadPoolExecutor(verify_threads, thread_name_prefix="verify")

    async def execute(self, function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        """Return what `function` returns, run in the one executing thread."""
        return await asyncio.get_running_loop().run_in_executor(self._execution, lambda: function(*args, **options))

    async def write(self, function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        """Return what `function` returns, run in the one writing thread."""
        return await asyncio.get_running_loop().run_in_executor(self._writing, lambda: function(*args, **options))

    async def verify(self, items: Sequence[tuple[bytes, bytes, bytes]]) -> list[bool]:
        """Return for each (key, message, signature) whether it verifies; chunks run side by side."""
        loop = asyncio.get_running_loop()
        jobs = [
            loop.run_in_executor(self._verification, verify_many, items[start : start + SIGNATURES_PER_JOB])
            for start in range(0, len(items), SIGNATURES_PER_JOB)
        ]
        return [verdict for verdicts in await asyncio.gather(*jobs) for verdict in verdicts]

    def close(self) -> None:
        """Nothing runs any more; what had begun has ended."""
        for pool in (self._verification, self._execution, self._writing):
            pool.shutdown(wait=True, cancel_futures=True)
