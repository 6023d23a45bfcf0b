"""Brings this node from its head up to a target height with certified blocks from peers.

Ranges come from several peers at once (fetching.py); their blocks are decoded and verified ahead (preparing.py) and
handed on in stretches (stretch.py), in which the next block executes while the last one is written. A peer that
answers late, with nothing, or with what does not prove itself is put aside with a back-off and others are asked for
its part; so one honest peer with the blocks is enough.

Invariant: a block is applied only on this node's own head, with a quorum of the members of its height, and it is
durable before the head is told to anybody.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import structlog

from consensus.codec import encode
from consensus.effects import Head
from node.config import NO_RECOVERIES, Recoveries
from node.errors import HansaError, InvalidBlock, InvalidFrame
from node.ledger import CertifiedBlock, Transaction, sha256
from node.sync.collaborators import Transport
from node.sync.ending import to_its_end
from node.sync.fetching import Fetching
from node.sync.preparing import Preparing
from node.sync.progress import Pace, Progress
from node.sync.proof import Candidate, Verify, prove_again
from node.sync.ranges import Range
from node.sync.sources import FAULT_ASIDE_S, Sources
from node.sync.stretch import ReadyBlock, Stretch

PAUSE_S_MAX = 0.25
TELL_S = 0.2
"""The head is told to consensus so often while blocks are applied."""
UNSERVABLE_S = 10.0
"""How often it is said again that nobody serves the next block."""


class Chain(Protocol):
    """This node's own blocks."""

    @property
    def head(self) -> Head:
        """The last applied block."""

    async def verified(self, data: Sequence[bytes]) -> list[Transaction]:
        """The transactions of a block, decoded, their signatures verified; raise InvalidBlock for a bad one."""

    async def replay(self, take: Callable[[], Awaitable[ReadyBlock | None]]) -> None:
        """The blocks that `take` gives, until it gives None, are executed, their roots agree, and they are durable.

        They follow the head one after the other: when `take` is called first, and while it is called, nobody else
        moves the head. Raise InvalidBlock when execution of the block above the head gives other roots than its
        header, or what `take` raises: the blocks given before that one are applied then, none after it is.
        """


class CatchUp:
    """Fetches, proves and hands on decided blocks. Everything runs on the event loop."""

    def __init__(
        self,
        transport: Transport,
        chain: Chain,
        network: str,
        verify: Verify,
        on_synced: Callable[[Head], None],
        report: Callable[[str, HansaError], None],
        on_divergence: Callable[[CertifiedBlock, InvalidBlock], None],
        on_failure: Callable[[BaseException], None],
        on_unservable: Callable[[int, int], None],
        recoveries: Recoveries = NO_RECOVERIES,
    ) -> None:
        """`verify(key, message, signature)` is pure and may be called from threads.

        `on_synced` is told of new heads, `report` of a peer at fault, `on_divergence` of the certified block to
        which this node alone computes other roots: nothing is fetched any more while that block is the next one.

        `on_failure` gets what ends the node: a broken disk or a bug. `on_unservable(next_height, first_served)` is
        told, again and again while it stays so, that no connected peer serves the next block any more and which
        height is the lowest that one of them serves: only a snapshot helps then.
        """
        self._transport = transport
        self._chain = chain
        self._verify = verify
        self._on_synced = on_synced
        self._report = report
        self._on_divergence = on_divergence
        self._on_failure = on_failure
        self._on_unservable = on_unservable
        self._sources = Sources(self._now_s)
        self._recoveries = recoveries
        self._fetching = Fetching(
            transport, self._sources, network, verify, lambda: chain.head, self._fault, recoveries
        )
        self._preparing = Preparing(chain.verified)
        self._pace = Pace()
        self._diverged_at = 0
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = self._resting = self._stopping = False
        self._target = 0
        self._refusals: dict[str, bytes] = {}
        self._from_height = 0
        self._started_s = self._elapsed_s = self._waited_s = 0.0
        self._told, self._told_s = 0, float("-inf")
        self._unservable, self._unservable_told_s = 0, float("-inf")
        self._faults = 0
        self._log = structlog.get_logger("sync")

    def catch_up(self, target: int, peers: Sequence[str]) -> None:
        """This node is on its way to `target`, asking `peers` first; a run under way is extended.

        It goes on, at a bounded rate, until the target is reached: by this run or by consensus itself.
        """
        self._loop = asyncio.get_running_loop()
        self._target = max(self._target, target)
        self._sources.hints = tuple(peers)
        height = self._chain.head.height
        idle = self._task is None and not self._closed and not self._resting
        if not idle or self._diverged or height >= self._target:
            return
        self._from_height, self._started_s, self._waited_s = height, self._now_s(), 0.0
        self._pace.begin(self._started_s)
        self._log.info("catching up", height=height, target=self._target)
        self._stopping = False
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._finished)

    def rest(self, resting: bool) -> None:
        """While `resting` nothing is fetched or applied but the block that is being applied; then it goes on."""
        self._resting = resting
        if resting:
            self._stop()
        elif not resting and self._target > self._chain.head.height:
            self.catch_up(self._target, self._sources.hints)

    async def close(self) -> None:
        """Nothing runs any more; a block that was being applied is applied."""
        self._closed = True
        self._stop()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def _stop(self) -> None:
        """The run under way ends after the block that is being applied; it is told so once."""
        if self._task is not None and not self._stopping:
            self._stopping = True
            self._task.cancel()

    def progress(self) -> Progress:
        """A snapshot of where catch-up stands."""
        now_s, running, height = self._now_s(), self._task is not None, self._chain.head.height
        blocks_per_s, transactions_per_s = self._pace.rates(now_s if running else self._started_s + self._elapsed_s)
        known = running and blocks_per_s > 0
        return Progress(
            running=running,
            from_height=self._from_height,
            height=height,
            target=self._target,
            blocks_per_s=blocks_per_s,
            transactions_per_s=transactions_per_s,
            blocks_total=self._pace.blocks,
            transactions_total=self._pace.transactions,
            bytes_total=self._fetching.bytes_total,
            faults_total=self._faults,
            held_bytes=self._fetching.ranges.held_bytes,
            asks=self._fetching.asks(now_s),
            waited_s=self._waited_s,
            elapsed_s=now_s - self._started_s if running else self._elapsed_s,
            eta_s=max(0, self._target - height) / blocks_per_s if known else None,
            aside=self._sources.aside(),
            problem=self._sources.problem if running else None,
            unservable=self._unservable,
        )

    @property
    def _diverged(self) -> bool:
        """Whether this node computes other roots to the next block; should it be applied after all, it goes on."""
        return self._diverged_at == self._chain.head.height + 1

    # --- the run ---------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        self._fetching.begin()
        try:
            while (height := self._chain.head.height) < self._target and not self._diverged:
                self._fetching.news.clear()
                self._fetching.work(self._target)
                due = self._fetching.ranges.at_hand(height + 1)
                if due is None:
                    await self._wait(height + 1)
                elif not await self._apply(due):
                    self._fetching.ranges.discard(due)
                    if self._stopping:
                        # The block was refused while it was to stop: its error went before the cancellation.
                        raise asyncio.CancelledError
        finally:
            await self._fetching.close()
            await self._preparing.clear()
            self._unservable = 0

    async def _wait(self, height: int) -> None:
        """Something has come, or an answer is overdue, or it is time to look who is there."""
        started_s = self._now_s()
        self._judge_served(height)
        pause_s = min(self._fetching.wait_s() or PAUSE_S_MAX, PAUSE_S_MAX)
        try:
            async with asyncio.timeout(pause_s * random.uniform(0.5, 1.0)):
                await self._fetching.news.wait()
        except TimeoutError:
            pass
        self._waited_s += self._now_s() - started_s

    def _judge_served(self, height: int) -> None:
        """Whether anybody serves the block at `height` is known, and told where nobody does."""
        first = self._sources.unservable(self._transport.connected, height)
        now_s, self._unservable = self._now_s(), first
        if not first:
            return
        self._sources.problem = (
            f"no connected peer serves block {height} any more: the lowest that one of them serves is {first}"
        )
        if now_s - self._unservable_told_s >= UNSERVABLE_S:
            self._unservable_told_s = now_s
            self._log.warning("blocks are not served any more", next=height, first_served=first)
            self._on_unservable(height, first)

    async def _apply(self, due: Range) -> bool:
        """Apply blocks of the range above the head; False when one of them was no good."""
        head = self._chain.head
        self._told = head.height
        candidate = due.block(head.height + 1)
        if candidate is not None and candidate.proven_by != head.members:
            # The members have changed, or the block is forged: judged off the loop, too.
            await self._judge_again(due, candidate, head)
        stretch = Stretch(due, head, self._preparing, self._recoveries)
        applied = self._pace.blocks
        try:
            # Whoever decides a block waits while others are replayed: its signatures are verified before.
            first = await stretch.next()
            if first is not None:
                await to_its_end(self._chain.replay(partial(self._next, stretch, deque([first]))))
        except InvalidFrame as error:
            self._passed(stretch)
            self._fault(stretch.peer, error)
            return False
        except InvalidBlock as error:
            self._passed(stretch)
            refused = stretch.give_up()
            # None: consensus has applied that very block meanwhile.
            if refused is not None:
                self._refused(stretch.peer, refused, error)
            return refused is None
        finally:
            self._passed(stretch)
            stretch.give_up()
            self._tell(at_once=True)
        if self._pace.blocks > applied:
            self._sources.helped(stretch.peer)
        return True

    async def _judge_again(self, due: Range, candidate: Candidate, head: Head) -> None:
        """The candidate, and behind it the rest of its range, are judged by the members of the head."""
        start = candidate.height - due.first
        judged = await asyncio.to_thread(
            prove_again, due.candidates[start:], head.members, self._verify, self._recoveries
        )
        if due.candidates:
            due.candidates[start:] = judged

    async def _next(self, stretch: Stretch, first: deque[ReadyBlock]) -> ReadyBlock | None:
        """The next block of the stretch, the `first` one to begin with; None when it ends, or this run is to."""
        self._passed(stretch)
        self._tell(at_once=False)
        if self._stopping:
            return None
        self._fetching.work(self._target)
        self._preparing.work_ahead(self._due_after(self._chain.head.height))
        if first:
            # Consensus may have decided it, and more, before it was its turn.
            block = first.popleft()
            return block if stretch.stands_on(self._chain.head) else None
        return await stretch.next()

    def _passed(self, stretch: Stretch) -> None:
        """What was applied meanwhile is counted."""
        for transactions in stretch.passed(self._chain.head.height):
            self._pace.note(self._now_s(), transactions)
            self._refusals.clear()

    def _due_after(self, height: int) -> Iterator[Candidate]:
        """The blocks behind `height` that are at hand without a gap and decided by the members known."""
        members = self._chain.head.members
        for item in self._fetching.ranges:
            if not item.candidates:
                return
            for candidate in item.candidates:
                if candidate.height > height:
                    if candidate.proven_by != members:
                        return
                    yield candidate

    def _tell(self, *, at_once: bool) -> None:
        """Consensus knows the head, unless it was told a moment ago."""
        head, now_s = self._chain.head, self._now_s()
        if head.height > self._told and (at_once or now_s - self._told_s >= TELL_S):
            self._told, self._told_s = head.height, now_s
            self._on_synced(head)

    def _refused(self, peer: str, candidate: Candidate, error: InvalidBlock) -> None:
        """Judge who is wrong about a certified block that gives other roots here: its sender, or this node.

        The header covers the block's content; but of two contents with one hash, if they could be made, only one
        would be the block. Once more members than can be faulty have sent the very same, this node is the odd one.
        """
        if error.code == "contract_not_here":
            # It hangs on this node's state and code alone: no sender is to blame.
            self._diverged_at = candidate.height
            self._on_divergence(candidate.block, error)
            return
        self._fault(peer, error)
        members = self._chain.head.members
        if members.index(peer) is None:
            return
        block = self._refusals[peer] = sha256(encode(candidate.block.body))
        if list(self._refusals.values()).count(block) >= members.weak_quorum:
            self._diverged_at = candidate.height
            self._on_divergence(candidate.block, error)

    def _fault(self, peer: str, error: HansaError) -> None:
        """`peer` sent what it must not: it is put aside, and what it sent that is not proven is asked for again."""
        self._faults += 1
        self._sources.put_aside(peer, error.message, FAULT_ASIDE_S)
        self._fetching.ranges.discard_doubtful(peer)
        self._report(peer, error)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._elapsed_s = self._now_s() - self._started_s
        if task.cancelled():
            if self._loop is not None and not self._loop.is_closed():
                # It was to rest, and may have been told to go on before it had come to its end.
                self.catch_up(self._target, self._sources.hints)
            return
        if (error := task.exception()) is not None:
            self._on_failure(error)
            return
        if self._diverged:
            return
        height = self._chain.head.height
        self._log.info("caught up", height=height, blocks=height - self._from_height)
        # The target may have been raised between the end of the run and this callback.
        self.catch_up(self._target, self._sources.hints)

    def _now_s(self) -> float:
        return 0.0 if self._loop is None else self._loop.time()
