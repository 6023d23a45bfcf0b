"""Threads that work off calls in the order in which they came, for an event loop that awaits what they return.

Why not concurrent.futures: a call there has two futures with their locks and their glue, and takes nearly twice the
processor time of this; a block takes a node through half a dozen calls one after the other.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

_Call: TypeAlias = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class Lane:
    """`threads` of them share one queue; with a single one, calls never overlap and keep their order."""

    def __init__(self, threads: int, name: str) -> None:
        """The threads begin with the first call."""
        self._count = threads
        self._name = name
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def call(self, function: Callable[[], Any]) -> "asyncio.Future[Any]":
        """Return the future of what `function` returns or raises; cancelled before its turn, it is never called.

        Raise RuntimeError once the lane is closed.
        """
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if len(self._threads) < self._count:
            self._start()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls.put((function, future))
        return future

    def close(self) -> None:
        """What had begun has ended, what had not is cancelled, and the threads are gone."""
        self._closed = True
        while True:
            try:
                waiting = self._calls.get_nowait()
            except queue.Empty:
                break
            if waiting is not None:
                waiting[1].cancel()
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _start(self) -> None:
        for number in range(len(self._threads), self._count):
            # Daemons: whoever fails before `close` must not hang; what that cuts off a crash may cut off too.
            thread = threading.Thread(target=self._work, name=f"{self._name}_{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, future = call
            if future.cancelled():
                del call, function, future
                continue
            result, error = None, None
            try:
                result = function()
            except BaseException as raised:
                error = raised
            try:
                future.get_loop().call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:
                # The loop is closed: nobody waits any more.
                continue
            finally:
                # Until the next call comes, nothing of this one may stay alive here.
                del call, function, future, result, error


def _settle(future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if future.done():  # cancelled meanwhile
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):
        future.set_exception(RuntimeError(f"StopIteration: {error}"))
    else:
        future.set_exception(error)
