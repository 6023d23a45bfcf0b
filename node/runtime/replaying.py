"""Decided blocks executed one after the other without waiting for the disk in between.

While the executing thread is at a block, the writing thread makes the one before it durable, and the one after it
waits in the executing thread's queue; so neither the event loop nor the disk is on the way from block to block.

Invariants:

- A block is written only after it was executed and came to its header's roots, on a parent that was; its signatures
  and its certificate were verified before it came here. So what is on disk is never ahead of what was verified.
- Every block has its own batch, synced, as when consensus decides it, in the order of heights: after a crash the
  head is one that was applied, with all that belongs to it, or the one that was being written. Only execution runs
  ahead, in memory; what a crash takes of that is fetched and executed again.
- The executor stands at most AHEAD_MAX blocks above what is on disk, on a view (node.executor.AheadView) that shows
  what the disk will show. When `run` ends it stands on the disk's own head again, unless the disk failed.
- Nobody is told of a block that is not durable, nor is a transaction judged by one when it comes in. In what view
  the next height starts is read in the writing thread, behind every record of a vote that was put before.

Why a sync for every block although the network still has it: LevelDB starts a new log now and then, and a synced
write to the new one does not sync what was left unsynced in the old one; after a power cut a later row (a vote, a
head) could be there without an earlier one. And it costs only the writing thread, which has time.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from consensus.effects import BlockStanding, VoteRecord
from consensus.messages import Certificate
from node.executor import AheadView, Executor
from node.ledger import CertifiedBlock, HeadRecord, Proposal, Transaction
from node.runtime.threads import Threads
from node.state import ExecutedBlock
from node.store import Store, StoreView
from node.sync import ReadyBlock

AHEAD_MAX = 3
"""Blocks that are begun and not yet durable: one is written, one executed, one waits for its turn to be."""


class _Stopped(Exception):
    """An earlier block was not applied."""


class Replaying:
    """One run of blocks from the head on. Its owner keeps everybody else from executing meanwhile."""

    def __init__(
        self,
        store: Store,
        executor: Executor,
        threads: Threads,
        known: Callable[[bytes], ExecutedBlock | None],
        applied: Callable[[ExecutedBlock, HeadRecord, StoreView], None],
    ) -> None:
        """`known(digest)` is a block that was executed on the present head already; `applied` is told in order."""
        self._store = store
        self._executor = executor
        self._threads = threads
        self._known = known
        self._applied = applied
        self._durable = store.snapshot()
        self._executed: list[ExecutedBlock] = []
        self._stopped = False

    async def run(self, take: Callable[[], Awaitable[ReadyBlock | None]]) -> None:
        """The blocks that `take` gives until it gives None are applied, each of them told to `applied`.

        They follow the head one after the other, their certificates and signatures verified. Raise InvalidBlock
        for one that comes to other roots, or what `take` raises: every block before it is applied then, none after
        it is. It must not be cancelled.
        """
        under_way: deque[asyncio.Task[None]] = deque()
        failure: BaseException | None = None
        try:
            await self._feed(take, under_way)
        except BaseException as error:
            failure = error
        if under_way:
            await asyncio.wait(under_way)
        # Else the disk failed, and the executor keeps what it knows: nothing is built on it any more.
        if self._executor.head.digest == self._durable.head.digest:
            self._executor.settle(self._durable)
        # The lowest block's error is the one that counts: it is why the later ones stopped.
        for reason in [*[task.exception() for task in under_way], failure]:
            if reason is not None:
                raise reason

    async def _feed(
        self, take: Callable[[], Awaitable[ReadyBlock | None]], under_way: deque[asyncio.Task[None]]
    ) -> None:
        while not self._stopped:
            if len(under_way) >= AHEAD_MAX:
                await asyncio.wait((under_way[0],))
            while under_way and under_way[0].done():
                under_way[0].result()
                under_way.popleft()
            if len(under_way) >= AHEAD_MAX:
                continue
            ready = await take()
            if ready is None:
                return
            before = under_way[-1] if under_way else None
            under_way.append(asyncio.get_running_loop().create_task(self._one(*ready, before)))

    async def _one(
        self, block: CertifiedBlock, transactions: Sequence[Transaction], before: "asyncio.Task[None] | None"
    ) -> None:
        """The block is applied, after the one `before` it was."""
        executed = await self._threads.execute(self._execute, block, transactions)
        if before is not None:
            if not before.done():
                await asyncio.wait((before,))
            if before.exception() is not None:
                raise _Stopped
        record, view = await self._threads.write(self.apply, executed, block.certificate)
        self._executor.show(view, executed.writes)
        self._applied(executed, record, view)

    def _execute(self, block: CertifiedBlock, transactions: Sequence[Transaction]) -> ExecutedBlock:
        """In the executing thread: what the block does; the executor stands on it."""
        if self._stopped:
            raise _Stopped
        try:
            body, certificate = block.body, block.certificate
            executed = self._known(certificate.digest)
            if executed is None:
                proposal = Proposal(body.header, tuple([item.wire_id for item in transactions]), body.quarantined)
                executed = self._executor.check(proposal, transactions, standing=BlockStanding.DECIDED)
            durable = self._durable
            begun = [item for item in self._executed if item.height > durable.head.height]
            self._executed = [*begun, executed]
            self._executor.advance(executed, AheadView(durable, self._executed, certificate), shown=False)
            return executed
        except BaseException:
            self._stopped = True
            raise

    def apply(self, executed: ExecutedBlock, certificate: Certificate) -> tuple[HeadRecord, StoreView]:
        """In the writing thread: the executed block is durable; returns its head and the view on it."""
        try:
            # The next height starts no lower than any view that this member voted in at this one.
            voted = [
                record.vote.view
                for record in self._store.memory().records
                if isinstance(record, VoteRecord) and record.vote.height == executed.height
            ]
            record = self._store.apply(executed, certificate, max([certificate.view, *voted]))
            self._durable = self._store.snapshot()
            return record, self._durable
        except BaseException:
            self._stopped = True
            raise
