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
from functools import partial
from typing import ParamSpec, Protocol, TypeVar

from node.errors import Unavailable
from node.keys import verify_many
from node.runtime.lane import Lane

P = ParamSpec("P")
R = TypeVar("R")

SIGNATURES_PER_JOB_MIN = 64
"""Fewer are not shared out among threads: a hand-over costs about as much as one signature."""
SIGNATURES_AT_ONCE_MAX = 2
"""So few are verified where they are asked for: nobody gains by handing them over."""
BACKGROUND_REST = 19
"""The background thread works a twentieth of the time: members make a snapshot at the same height."""


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
        self._execution = Lane(1, "execute")
        self._writing = Lane(1, "write")
        self._verification = Lane(verify_threads, "verify")
        self._verify_threads = verify_threads
        self._background = Lane(1, "background")
        self._closing = threading.Event()

    async def execute(self, function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        """Return what `function` returns, run in the one executing thread."""
        result: R = await self._execution.call(partial(function, *args, **options))
        return result

    async def write(self, function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        """Return what `function` returns, run in the one writing thread."""
        result: R = await self._writing.call(partial(function, *args, **options))
        return result

    async def verify(self, items: Sequence[tuple[bytes, bytes, bytes]]) -> list[bool]:
        """Return for each (key, message, signature) whether it verifies; large shares run side by side."""
        if len(items) <= SIGNATURES_AT_ONCE_MAX:
            return verify_many(items)
        jobs = max(1, min(self._verify_threads, len(items) // SIGNATURES_PER_JOB_MIN))
        size = -(-len(items) // jobs)
        shares = [
            self._verification.call(partial(verify_many, items[start : start + size]))
            for start in range(0, len(items), size)
        ]
        return [verdict for share in await asyncio.gather(*shares) for verdict in share]

    async def background(self, steps: Generator[None, None, R]) -> R:
        """Return what `steps` returns, run in the one background thread; raise Unavailable when it was cut off."""
        result: R = await self._background.call(partial(self._run_gently, steps))
        return result

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
        for lane in (self._verification, self._background, self._execution, self._writing):
            lane.close()
