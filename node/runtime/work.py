"""Whether a block could be built now, looked for and told to the replica when the answer changes.

What comes while a decided block is being applied is not looked at: the replica builds nothing before it knows of
the new head, and what waits would be judged by a head that is about to go, or be found in the block just applied,
up to hundreds of transactions a look. Who applied it looks right after, and so does a timer, but not while a block
is durable and not yet the head: what waits is judged by its state then, and its transactions are still among it,
so another than the oldest would pass for the one that was passed over.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from consensus.effects import WorkWaiting
from node.executor import Executor
from node.runtime.bodies import Bodies
from node.runtime.clock import Clock

T = TypeVar("T")


class Work:
    """What the replica knows of waiting work. Used on the event loop alone."""

    def __init__(
        self,
        bodies: Bodies,
        executor: Executor,
        clock: Clock,
        last_block_transactions: Callable[[], int],
        give: Callable[[WorkWaiting], None],
    ) -> None:
        """`last_block_transactions()`: how many the head holds; `give` tells the replica."""
        self._bodies = bodies
        self._executor = executor
        self._clock = clock
        self._last_block_transactions = last_block_transactions
        self._give = give
        self._known = WorkWaiting(False, 0)
        self._applying = 0
        self._settling = False

    def on_durable(self) -> None:
        """A block is on the disk; nothing is looked at until `on_applied`."""
        self._settling = True

    def on_applied(self) -> None:
        """A block is the head, and what waits no longer has its transactions: it is looked at."""
        self._settling = False
        self.look()

    def look(self) -> None:
        """The replica knows whether a non-empty block could be built on the present head."""
        if self._settling:
            return
        work = self._bodies.work()
        due_ms = self._executor.next_due_ms()
        due = due_ms is not None and due_ms <= self._clock.time_ms()
        full = work.waiting and self._bodies.waiting_count() >= self._last_block_transactions()
        known = WorkWaiting(work.waiting or due, work.passed_over, full)
        if known != self._known:
            self._known = known
            self._give(known)

    def on_new(self) -> None:
        """Something new waits: looked at now, or when the block in work is applied."""
        if not self._applying:
            self.look()

    async def while_applying(self, applied: Awaitable[T]) -> T:
        """Return what `applied` returns; whoever moves the head in it calls `look` then."""
        self._applying += 1
        try:
            return await applied
        finally:
            self._applying -= 1
