"""The threads beside the event loop: one executes, one writes, and some have signatures verified.

One thread executes blocks, so that what builds, checks and applies never overlaps. One thread writes, so that
writes never overlap and a vote's sync does not wait behind an execution. LevelDB lets go of the interpreter lock,
so these threads do run beside the loop. Signatures are verified in processes (node/signatures/apart.py), and a
thread waits for each of those. One more thread does what nobody waits for, in small steps.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import ParamSpec, Protocol, TypeVar

import structlog

from node.errors import Unavailable
from node.runtime.lane import Lane
from node.signatures import Signed, verify_many
from node.signatures.apart import REST_S, VerifyingProcess

P = ParamSpec("P")
R = TypeVar("R")

SIGNATURES_PER_JOB_MIN = 64
"""Fewer are not shared out among processes: a hand-over costs about as much as one signature."""
SIGNATURES_PER_JOB_MAX = 1_024
"""More are jobs one after the other, so that what comes meanwhile has its turn: a request may bring 80,000."""
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

    async def verify(self, items: Sequence[Signed]) -> list[bool]:
        """Return for each (key, message, signature) whether it verifies."""

    async def background(self, steps: Generator[None, None, R]) -> R:
        """Return what `steps` returns, after all of it; it is closed when the threads are before it has ended.

        It runs in a thread of its own that rests after every step, so that votes and blocks hardly notice.
        """

    def close(self) -> None:
        """Nothing runs any more; what had begun has ended, but for what runs in the background: that is cut off."""


class WorkerThreads:
    """The node's worker threads; `close` waits for what runs."""

    def __init__(self, verify_processes: int) -> None:
        """Threads and processes begin when they are first needed."""
        self._execution = Lane(1, "execute")
        self._writing = Lane(1, "write")
        self._verification = Lane(verify_processes, "verify")
        # As many as the lane has threads: there is one for whoever asks.
        self._processes = [VerifyingProcess(_verified_here) for _ in range(verify_processes)]
        self._idle: queue.SimpleQueue[VerifyingProcess] = queue.SimpleQueue()
        for process in self._processes:
            self._idle.put(process)
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

    async def verify(self, items: Sequence[Signed]) -> list[bool]:
        """Return for each (key, message, signature) whether it verifies; large shares run side by side."""
        if len(items) <= SIGNATURES_AT_ONCE_MAX:
            return verify_many(items)
        jobs = max(1, min(len(self._processes), len(items) // SIGNATURES_PER_JOB_MIN))
        size = min(-(-len(items) // jobs), SIGNATURES_PER_JOB_MAX)
        verdicts: list[bool] = []
        for first in range(0, len(items), jobs * size):
            here = items[first : first + jobs * size]
            shares = [
                self._verification.call(partial(self._verify_apart, here[start : start + size]))
                for start in range(0, len(here), size)
            ]
            verdicts += [verdict for share in await asyncio.gather(*shares) for verdict in share]
        return verdicts

    def _verify_apart(self, items: Sequence[Signed]) -> list[bool]:
        process = self._idle.get()
        try:
            return process.verify_many(items)
        finally:
            self._idle.put(process)

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
        for process in self._processes:
            process.close()


def _verified_here(error: OSError) -> None:
    reason = f"the process that verifies them failed: {error}"
    text = "signatures are verified in the node itself for a while, which is slower"
    structlog.get_logger("signatures").warning(text, reason=reason, for_s=REST_S)
