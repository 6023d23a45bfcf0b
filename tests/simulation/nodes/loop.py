"""The event loop of one simulated process: asyncio as it is, over virtual time; it can be paused and killed.

Every process has its own loop, so a crash is the end of everything that it would still have done, between any two
callbacks. A callback takes no time; what takes time in a node goes through threads, timers or the network.
"""

import asyncio
import contextlib
from asyncio.events import Handle, TimerHandle
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any

from tests.simulation.nodes.timeline import Timeline

CLEARING_STEPS_MAX = 10_000
THREAD_US = (30, 1_500)
"""How long a job takes that is given to a thread of no particular pool."""
HANDOVER_US = (1, 100)
"""How long its outcome takes back to the event loop."""


class Job:
    """Work in a thread; `future` gets its outcome, `ended` says that it is done (or never will be)."""

    def __init__(self, future: asyncio.Future[Any], func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.future = future
        self.ended = False
        self._func = func
        self._args = args
        self._begun = False
        self._outcome: tuple[bool, Any] | None = None

    def begin(self) -> None:
        """The thread takes it, unless it was cancelled before."""
        self._begun = not self.future.cancelled()

    def run(self) -> None:
        """It is done, once, if it was begun."""
        if self.ended:
            return
        self.ended = True
        if not self._begun:
            return
        loop = asyncio._get_running_loop()
        asyncio._set_running_loop(None)  # a thread has none
        try:
            self._outcome = (True, self._func(*self._args))
        except Exception as error:
            self._outcome = (False, error)
        finally:
            asyncio._set_running_loop(loop)

    def tell(self) -> None:
        """Whoever waits for the outcome has it."""
        if self.future.done() or self._outcome is None:
            return
        good, value = self._outcome
        if good:
            self.future.set_result(value)
        else:
            self.future.set_exception(value)


def _close(coroutine: Coroutine[object, object, object]) -> None:
    """The coroutine has ended: it had not begun, or it waits in its last steps for what never comes any more."""
    for _ in range(CLEARING_STEPS_MAX):
        try:
            coroutine.close()
        except RuntimeError:
            # It awaits something else now, in the next of its `finally` clauses (or has failed, and is closed
            # then).
            continue
        except (Exception, asyncio.CancelledError):
            # What a dead process fails by is nobody's concern.
            return
        return


class ProcessLoop(asyncio.AbstractEventLoop):
    """Runs the tasks of one process. Only what nodes use is there: no sockets, no signals, no subprocesses."""

    def __init__(self, timeline: Timeline, on_error: Callable[[str], None]) -> None:
        """`on_error` is told of exceptions that nobody caught."""
        self._timeline = timeline
        self._on_error = on_error
        self._ready: deque[Handle] = deque()
        self._turning = False
        self.alive = True
        self.paused = False
        self.steps_left: int | None = None
        """How many more callbacks run before `on_exhausted` is called; None: no end."""
        self.on_exhausted: Callable[[], None] = lambda: None

    # --- what the simulator does with it -----------------------------------------------------------------

    def resume(self) -> None:
        """The process runs again; what became due meanwhile happens now."""
        self.paused = False
        self._turn()

    def kill(self) -> None:
        """Nothing of the process happens any more."""
        self.alive = False
        self._ready.clear()
        # Later: a task that kills its own process is still running.
        self._timeline.after(0, self._clear)

    def _clear(self) -> None:
        """The coroutines of the dead process are closed; what they still say goes nowhere."""
        with self.entered():
            tasks = asyncio.all_tasks(self)
            for task in tasks:
                task.cancel()
            for _ in range(CLEARING_STEPS_MAX):
                if not self._ready:
                    break
                self._ready.popleft()._run()
            for task in tasks:
                coroutine = task.get_coro()
                if not task.done() and isinstance(coroutine, Coroutine):
                    _close(coroutine)
        self._ready.clear()

    @contextlib.contextmanager
    def entered(self) -> Generator[None, None, None]:
        """What runs inside runs in this process."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(before)

    def _turn(self) -> None:
        if self._turning or self.paused or not self.alive:
            return
        self._turning = True
        try:
            self._run_ready()
        finally:
            self._turning = False

    def _run_ready(self) -> None:
        ready = self._ready
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            while ready and self.alive and not self.paused:
                handle = ready.popleft()
                if handle._cancelled:
                    continue
                handle._run()
                if self.steps_left is not None:
                    self.steps_left -= 1
                    if self.steps_left <= 0:
                        self.steps_left = None
                        self.on_exhausted()
        finally:
            asyncio._set_running_loop(before)

    def _come_due(self, handle: Handle) -> None:
        if self.alive and not handle._cancelled:
            self._ready.append(handle)
            self._turn()

    # --- what asyncio asks of it -------------------------------------------------------------------------

    def time(self) -> float:
        return self._timeline.now_us / 1_000_000

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Handle:
        handle = Handle(callback, args, self, context)
        self._ready.append(handle)
        if not self._turning and self.alive:
            self._timeline.after(0, self._turn)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> TimerHandle:
        handle = TimerHandle(when, callback, args, self, context)
        if self.alive:
            # What lies ahead by less than the clock's step waits for that step: else time would never reach it.
            now_us = self._timeline.now_us
            due_us = max(round(when * 1_000_000), now_us + 1 if when > self.time() else now_us)
            self._timeline.at(due_us, self._come_due, handle)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        *,
        name: str | None = None,
        context: Any = None,
    ) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """The work of a thread: done at one moment, known at a later one."""
        assert executor is None, "a node's own pools are its Threads"
        done_us = self._timeline.pick(*THREAD_US)
        return self.work(0, done_us, done_us + self._timeline.pick(*HANDOVER_US), func, *args).future

    def work(self, begun_us: int, done_us: int, known_us: int, func: Callable[..., Any], *args: Any) -> Job:
        """A thread's work: it begins, is done (`func` runs), and its outcome is known, each so long from now.

        Who is cancelled before it began is not done; afterwards it is, though nobody hears of it.
        """
        job = Job(self.create_future(), func, args)
        now_s = self.time()
        if begun_us:
            self.call_at(now_s + begun_us / 1_000_000, job.begin)
        else:
            job.begin()
        self.call_at(now_s + done_us / 1_000_000, job.run)
        self.call_at(now_s + known_us / 1_000_000, job.tell)
        return job

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.alive:
            self._on_error(f"{context.get('message')}: {context.get('exception')!r}")

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return not self.alive

    def _timer_handle_cancelled(self, handle: TimerHandle) -> None:
        """A cancelled timer stays in the heap and does nothing."""
