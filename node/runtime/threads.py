"""The threads beside the event loop: one executes, one writes, a few verify signatures.

One thread executes blocks, so that what builds, checks and applies never overlaps. One thread writes, so that
writes never overlap and a vote's sync does not wait behind an execution. libsodium and LevelDB let go of the
interpreter lock, so these threads do run beside the loop. One more does what nobody waits for, in small steps.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, Protocol, TypeVar

from node.errors import Unavailable
from node.keys import verify_many

P = ParamSpec("P")
R = TypeVar("R")

SIGNATURES_PER_JOB = 64
BACKGROUND_REST = 9
"""The background thread works a tenth of the time."""


class Threads(Protocol):
    """Where work goes that must not hold up the event loop."""

    async def execute(self, function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        """Return what `function` returns; of these calls none overlap."""

    async def write(self, function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        """Return what `function` returns; of these calls none overlap, and they run in their order."""

    async def verify(self, items: Sequence[tuple[bytes, bytes, bytes]]) -> list[bool]:
        """Return for each (key, message, signature) whether it verifies."""

    async def background(self, steps: Generator[None, None, R]) -> R:
        """Return what `steps` returns, after all of it; it is closed when the threads are before it has ended.

        It runs in a thread of its own that rests after every step, so that votes and blocks hardly notice.
        """

    def close(self) -> None:
        """Nothing runs any more; what had begun has ended, but for what runs in the background: that is cut off."""


class WorkerThreads:
    """The node's worker threads; `close` waits for what runs."""

    def __init__(self, verify_threads: int) -> None:
        self._execution = ThreadPoolExecutor(1, thread_name_prefix="execute")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._verification = ThreadPoolExecutor(verify_threads, thread_name_prefix="verify")
        self._background = ThreadPoolExecutor(1, thread_name_prefix="background")
        self._closing = threading.Event()

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

    async def background(self, steps: Generator[None, None, R]) -> R:
        """Return what `steps` returns, run in the one background thread; raise Unavailable when it was cut off."""
        return await asyncio.get_running_loop().run_in_executor(self._background, self._run_gently, steps)

    def _run_gently(self, steps: Generator[None, None, R]) -> R:
        """After each step a pause: BACKGROUND_REST times as long as the step took.

        Why its priority is not lowered instead: a thread that the system puts off while it holds the interpreter
        lock would hold up the votes with it.
        """
        with contextlib.closing(steps):
            while True:
                started_s = time.perf_counter()
                try:
                    next(steps)
                except StopIteration as end:
                    result: R = end.value
                    return result
                if self._closing.wait(BACKGROUND_REST * (time.perf_counter() - started_s)):
                    raise Unavailable("store_closed", "the node stops")

    def close(self) -> None:
        """Nothing runs any more; what had begun has ended, but for what runs in the background: that is cut off."""
        self._closing.set()
        for pool in (self._verification, self._background, self._execution, self._writing):
            pool.shutdown(wait=True, cancel_futures=True)
