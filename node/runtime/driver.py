"""Steps the replica and performs its effects, in order, durable facts first.

Invariant: no effect is performed before every record that precedes it is synced. Delaying an effect is always
allowed (the network delays it anyway), so all records of one drained batch share one sync and only then the other
effects follow, in their order.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

import structlog

from consensus.effects import (
    Accuse,
    Broadcast,
    BuildPayload,
    CatchUp,
    CheckPayload,
    Decide,
    Effect,
    Input,
    Persist,
    PersistAbstention,
    Send,
    Tick,
)
from consensus.image import freeze
from consensus.messages import Message, ViewChange
from consensus.replica import Replica
from consensus.status import ReplicaStatus
from node.runtime.clock import Clock
from node.runtime.recorder import Recorder

TICK_MS = 50

Asked = TypeVar("Asked", BuildPayload, CheckPayload, Decide)


class Performer(Protocol):
    """What the driver needs done for the effects that are neither records nor messages."""

    async def build(self, effect: BuildPayload) -> Input:
        """Return PayloadBuilt."""

    async def check(self, effect: CheckPayload) -> Input:
        """Return PayloadChecked."""

    async def decide(self, effect: Decide) -> Input | None:
        """Return Applied once the block is durable; None when catch-up was there first."""

    def catch_up(self, effect: CatchUp) -> None:
        """Start or extend catch-up; its results come as Synced."""

    async def accuse(self, effect: Accuse) -> None:
        """Store and show the evidence."""


class Links(Protocol):
    """The connections to the other members."""

    def send_consensus(self, peer: str, message: Message) -> None:
        """Queue `message` for one peer; dropped when it is not connected."""

    def broadcast_consensus(self, message: Message) -> None:
        """Queue `message` for every connected peer."""


class Driver:
    """The one place that steps the replica. Every input goes through `give`, on the event loop's thread."""

    def __init__(
        self,
        replica: Replica,
        performer: Performer,
        links: Links,
        persist: Callable[[list[Persist | PersistAbstention]], Awaitable[None]],
        clock: Clock,
        recorder: Recorder,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """`persist` makes records durable with one sync; `on_failure` ends the node (a bug or a broken disk).

        `recorder` is told of every input and its effects.
        """
        self._replica = replica
        self._performer = performer
        self._links = links
        self._persist = persist
        self._clock = clock
        self._recorder = recorder
        self._on_failure = on_failure
        self._queue: deque[Effect] = deque()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._started = False
        self._stopped = False
        self._asked = (0, 0)
        self._log = structlog.get_logger("consensus")

    def status(self) -> ReplicaStatus:
        """What the replica waits for, as an immutable snapshot."""
        return self._replica.status()

    def catch_up_target(self) -> int | None:
        """`status().catch_up_target` alone, for whoever asks with every block."""
        return self._replica.catch_up_target()

    def start(self) -> None:
        """The replica's first effects are under way and time runs for it."""
        self._started = True
        self._recorder.begin(lambda: freeze(self._replica))
        effects = self._replica.start()
        self._recorder.started(effects)
        self._enqueue(effects)
        self.spawn(self._perform_all())
        self.spawn(self._tick())

    async def close(self) -> None:
        """Nothing more is stepped or performed; effects not yet performed are dropped, as a crash would."""
        self._stopped = True
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def halt(self) -> None:
        """Nothing is given to the replica any more, as if this process had crashed; `close` is still to come."""
        self._stopped = True

    def give(self, given: Input) -> None:
        """The replica has taken `given` and its effects are queued; nothing is given to one without its records."""
        if self._stopped or not self._started:
            return
        try:
            effects = self._replica.step(given)
        except Exception as error:
            # The replica is total; an exception is our bug. Voting on after it could be voting wrongly.
            self._recorder.stepped(given, None)
            self._fail(error)
            return
        self._recorder.stepped(given, effects)
        self._enqueue(effects)

    def _enqueue(self, effects: list[Effect]) -> None:
        if effects:
            self._queue.extend(effects)
            self._wake.set()

    async def _tick(self) -> None:
        while not self._stopped:
            self.give(Tick(self._clock.now_ms(), self._clock.time_ms()))
            await asyncio.sleep(TICK_MS * 0.001)

    async def _perform_all(self) -> None:
        while not self._stopped:
            await self._wake.wait()
            self._wake.clear()
            batch = list(self._queue)
            self._queue.clear()
            records = [effect for effect in batch if isinstance(effect, Persist | PersistAbstention)]
            if records:
                await self._persist(records)
            for effect in batch:
                if not self._stopped:
                    self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Broadcast):
            self._links.broadcast_consensus(effect.message)
            if isinstance(effect.message, ViewChange):
                self._log_view_change(effect.message)
        elif isinstance(effect, Send):
            self._links.send_consensus(effect.peer, effect.message)
        elif isinstance(effect, BuildPayload):
            self.spawn(self._answer(self._performer.build, effect))
        elif isinstance(effect, CheckPayload):
            self.spawn(self._answer(self._performer.check, effect))
        elif isinstance(effect, Decide):
            self.spawn(self._answer(self._performer.decide, effect))
        elif isinstance(effect, CatchUp):
            self._performer.catch_up(effect)
        elif isinstance(effect, Accuse):
            self.spawn(self._performer.accuse(effect))

    def _log_view_change(self, message: ViewChange) -> None:
        """The log says once why this node asked for another primary; the message itself goes out many times."""
        if (message.height, message.view) > self._asked:
            self._asked = (message.height, message.view)
            reason = self._replica.status().suspicion
            self._log.warning("asks for view", height=message.height, view=message.view, reason=reason)

    async def _answer(self, perform: Callable[[Asked], Awaitable[Input | None]], effect: Asked) -> None:
        # Called here and not before: of a task that is cancelled before it begins nothing is left unawaited.
        answer = await perform(effect)
        if answer is not None:
            self.give(answer)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """`work` runs until it ends or the driver closes; an exception in it ends the node."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self._stopped:
            self._stopped = True
            self._on_failure(error)
