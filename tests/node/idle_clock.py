"""Time that passes only while nobody has anything to do: no wait costs a test time, and no slow machine spoils one.

A peer that is asked on a busy machine may need a second for what takes a millisecond elsewhere; with shortened
limits of real time it then counted as silent. Here the loop's clock stands still while anything is ready to run or
a thread works, and else jumps to the next moment that something waits for. So tests keep the product's own limits.
"""

import asyncio
import selectors
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeAlias, TypeVar

import pytest

Events: TypeAlias = list[tuple[selectors.SelectorKey, int]]
T = TypeVar("T")


class IdleClock:
    """Takes the place of a loop's clock, of its waiting, and of the way in which it hands work to threads."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: Executor) -> None:
        self._loop = loop
        self._threads = threads
        self._now_s = loop.time()
        self._working = 0
        self._selector: selectors.BaseSelector = loop._selector  # type: ignore[attr-defined]
        self._select: Callable[[float | None], Events] = self._selector.select

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """The loop goes by this clock until `patch` is undone."""
        patch.setattr(self._loop, "time", lambda: self._now_s)
        patch.setattr(self._selector, "select", self._waited)
        patch.setattr(self._loop, "run_in_executor", self._counted)

    def _waited(self, timeout_s: float | None = None) -> Events:
        if not timeout_s:
            return self._select(timeout_s)
        # A thread that ends wakes the loop.
        events = self._select(None if self._working else 0)
        if not events:
            self._now_s += timeout_s
        return events

    def _counted(self, executor: Executor | None, work: Callable[..., T], *given: object) -> asyncio.Future[T]:
        self._working += 1
        done = (executor or self._threads).submit(work, *given)
        result = asyncio.wrap_future(done, loop=self._loop)
        # Added after that of `result`, so called after it: whoever waits for the result is ready to run by then.
        done.add_done_callback(self._tell)
        return result

    def _tell(self, done: Future[T]) -> None:
        self._loop.call_soon_threadsafe(self._ended)

    def _ended(self) -> None:
        self._working -= 1


@pytest.fixture
async def idle_clock() -> AsyncIterator[None]:
    """The test goes by an idle clock."""
    with ThreadPoolExecutor(8) as threads, pytest.MonkeyPatch.context() as patch:
        IdleClock(asyncio.get_running_loop(), threads).install(patch)
        yield
