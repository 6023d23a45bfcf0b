"""The threads and clocks of a simulated node: work takes drawn times, and clocks are as wrong as a seed wants."""

import asyncio
from collections.abc import Callable, Generator, Sequence
from typing import Any, ParamSpec, TypeVar

from node.runtime.clock import Clock
from tests.simulation.nodes.loop import HANDOVER_US, Job, ProcessLoop
from tests.simulation.nodes.timeline import START_MS, Timeline

P = ParamSpec("P")
R = TypeVar("R")

Verify = Callable[[bytes, bytes, bytes], bool]

EXECUTE_US = (200, 4_000)
WRITE_US = (200, 3_000)
VERIFY_US = (50, 800)
BACKGROUND_US = 1_000
STEPS_PER_JOB = 20
STALL_US = (100_000, 400_000)
STALL_PERMILLE = 5
"""How often a sync takes as long as STALL_US: disks do that."""


class VirtualClock(Clock):
    """One machine's clocks: `offset_ms` is how wrong its wall clock is, `rate_ppm` how fast both run too fast."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self.offset_ms = 0
        self.rate_ppm = 0

    def now_ms(self) -> int:
        """Milliseconds since the simulation began, as this machine counts them."""
        now_us = self._timeline.now_us
        return (now_us + now_us * self.rate_ppm // 1_000_000) // 1000

    def time_ms(self) -> int:
        """Unix milliseconds, as this machine's wall clock shows them."""
        return START_MS + self.now_ms() + self.offset_ms


class Pace:
    """How many times slower than usual a machine works now."""

    def __init__(self) -> None:
        self.disk = 1
        self.processor = 1


class VirtualThreads:
    """One process's threads (node.runtime.threads.Threads): one job at a time executes, one writes."""

    def __init__(
        self,
        timeline: Timeline,
        loop: ProcessLoop,
        pace: Pace,
        verify: Verify,
        on_work: Callable[[str, tuple[Any, ...]], None],
    ) -> None:
        """`on_work` sees the name and the arguments of what is written or executed, when it is asked for."""
        self._on_work = on_work
        self._timeline = timeline
        self._loop = loop
        self._pace = pace
        self._verify = verify
        self._free_us = {"execute": 0, "write": 0}
        self._closed = False
        self._jobs: list[tuple[int, Job]] = []

    async def execute(self, function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        """What `function` returns, after all that was given before."""
        self._on_work(function.__name__, args)
        took_us = self._timeline.pick(*EXECUTE_US) * self._pace.processor
        result: R = await self._queue("execute", took_us, lambda: function(*args, **options))
        return result

    async def write(self, function: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        """What `function` returns, after all that was given before."""
        self._on_work(function.__name__, args)
        stalls = self._timeline.chance(STALL_PERMILLE)
        took_us = self._timeline.pick(*(STALL_US if stalls else WRITE_US)) * self._pace.disk
        result: R = await self._queue("write", took_us, lambda: function(*args, **options))
        return result

    async def verify(self, items: Sequence[tuple[bytes, bytes, bytes]]) -> list[bool]:
        """Whether each (key, message, signature) verifies."""
        if not items:
            return []
        took_us = self._timeline.pick(*VERIFY_US) * self._pace.processor
        verdicts: list[bool] = await self._loop.work(
            0, took_us, took_us + 1, lambda: [self._verify(*item) for item in items]
        ).future
        return verdicts

    async def background(self, steps: Generator[None, None, R]) -> R:
        """What `steps` returns, some of them a millisecond."""
        while True:
            job = self._loop.work(0, BACKGROUND_US, BACKGROUND_US + 1, lambda: _advance(steps, STEPS_PER_JOB))
            ended, result = await job.future
            if ended:
                return result  # type: ignore[no-any-return]

    def _queue(self, lane: str, took_us: int, function: Callable[[], R]) -> asyncio.Future[R]:
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        now_us = self._timeline.now_us
        begun_us = max(now_us, self._free_us[lane])
        self._free_us[lane] = done_us = begun_us + took_us
        known_us = done_us + self._timeline.pick(*HANDOVER_US)
        job = self._loop.work(begun_us - now_us, done_us - now_us, known_us - now_us, function)
        self._jobs = [(begun, other) for begun, other in self._jobs if not other.ended]
        self._jobs.append((begun_us, job))
        return job.future

    def close(self) -> None:
        """No further work is taken; what had begun has ended. The rest never begins."""
        self._closed = True
        for begun_us, job in self._jobs:
            if begun_us <= self._timeline.now_us:
                job.run()
            else:
                job.ended = True


def _advance(steps: Generator[None, None, Any], count: int) -> tuple[bool, Any]:
    """Take `count` steps; return whether that was all of them, and what they return then."""
    for _ in range(count):
        try:
            next(steps)
        except StopIteration as end:
            return True, end.value
    return False, None
