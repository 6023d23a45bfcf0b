"""Asks several peers for ranges of blocks at once, so that the blocks after the head are at hand when they are due.

The lowest missing range is asked for first, each peer for one range at a time. A peer whose answer is overdue is
overtaken: somebody else is asked for the same, at once where it holds up the head. What a peer sent that cannot be
judged yet (the members of its heights are not known here) keeps it from being asked for more ahead.

Memory: blocks at hand and the largest answers that may still come stay below HELD_BYTES_MAX together; only the
range that holds up the head is asked for beyond it, since nothing else would ever free any. So there are never more
encoded bytes than HELD_BYTES_MAX and two answers (BLOCKS_BYTES_MAX each), whoever sends what.
"""

import asyncio
from collections.abc import Callable

from consensus.effects import Head
from node.config import NO_RECOVERIES, Recoveries
from node.errors import HansaError, InvalidFrame
from node.sync.collaborators import Transport
from node.sync.progress import PeerAtWork
from node.sync.proof import Candidate, Verify, open_range
from node.sync.ranges import Range, Ranges
from node.sync.sources import RANGE_MAX, Sources
from node.wire import BLOCKS_BYTES_MAX, Blocks, FetchBlocks

RANGES_MAX = 32
"""Ranges at hand or asked for."""
HELD_BYTES_MAX = 96 * 1024 * 1024
ASKED_FOR_ONE_MAX = 2
"""Peers that are asked for the same range at one time."""
ANSWER_TIMEOUT_S = 5.0


class Fetching:
    """The questions under way and the blocks at hand. Used on the event loop; blocks are opened in threads."""

    def __init__(
        self,
        transport: Transport,
        sources: Sources,
        network: str,
        verify: Verify,
        head: Callable[[], Head],
        fault: Callable[[str, HansaError], None],
        recoveries: Recoveries = NO_RECOVERIES,
    ) -> None:
        """`head()` is this node's own; `fault` is told of a peer that sent what it must not."""
        self.ranges = Ranges()
        self.bytes_total = 0
        self.news = asyncio.Event()
        """Set whenever a question has come to its end."""
        self._transport = transport
        self._sources = sources
        self._network = network
        self._verify = verify
        self._head = head
        self._fault = fault
        self._recoveries = recoveries
        self._asks: dict[str, tuple[asyncio.Task[None], Range]] = {}
        self._failure: BaseException | None = None

    def begin(self) -> None:
        """A run begins; nothing is at hand."""
        self._failure = None

    async def close(self) -> None:
        """Nothing is asked for or at hand any more."""
        tasks = [task for task, _ in self._asks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.ranges.clear()

    def asks(self, now_s: float) -> tuple[PeerAtWork, ...]:
        """Who is asked for what now."""
        return tuple(
            PeerAtWork(peer, item.first, item.last, now_s - item.asked_s.get(peer, now_s))
            for peer, (_, item) in sorted(self._asks.items())
        )

    # --- asking ----------------------------------------------------------------------------------------------

    def work(self, target: int) -> None:
        """Every peer that can help is asked for ranges that begin at `target` or below.

        Raise what a question failed by that is no peer's doing.
        """
        if self._failure is not None:
            raise self._failure
        height = self._head().height
        self.ranges.drop_through(height)
        free = self._sources.free(self._transport.connected, self._asks)
        unjudged = {item.peer for item in self.ranges if item.doubtful}
        lowest = next(iter(self.ranges), None)
        if lowest is not None and self._overdue(lowest):
            self._ask_one(lowest, free, unjudged, due=True)
        while free:
            item = self.ranges.waiting()
            if item is None and len(self.ranges) < RANGES_MAX:
                item = self.ranges.extend(height, target, RANGE_MAX)
            if item is None or item.first > target:
                break
            if not self._ask_one(item, free, unjudged, due=item.first <= height + 1):
                break
        for item in list(self.ranges):
            # Nothing else is left to do for those that are free.
            if free and self._overdue(item):
                self._ask_one(item, free, unjudged, due=False)

    def wait_s(self) -> float | None:
        """How long until the range that holds up the head is overdue; None when nobody is asked for it in time."""
        item = next(iter(self.ranges), None)
        if item is None or not item.asked_s:
            return None
        left_s = max(item.asked_s.values()) + self._sources.overdue_s() - asyncio.get_running_loop().time()
        return left_s if left_s > 0 else None

    def _ask_one(self, item: Range, free: list[str], unjudged: set[str], due: bool) -> bool:
        """Whether somebody of `free`, who is so no more, is asked for the range. `due`: it holds up the head."""
        coming_bytes = (len(self._asks) + 1) * BLOCKS_BYTES_MAX
        if not due and self.ranges.held_bytes + coming_bytes > HELD_BYTES_MAX:
            return False
        able = [peer for peer in free if peer not in item.asked_s and (due or peer not in unjudged)]
        peer = self._sources.choose(able, item.first)
        if peer is None:
            return False
        free.remove(peer)
        if not item.asked_s:
            self.ranges.cut(item, self._sources.range_size(peer))
        loop = asyncio.get_running_loop()
        item.asked_s[peer] = loop.time()
        task = loop.create_task(self._ask(item, peer))
        self._asks[peer] = (task, item)
        task.add_done_callback(lambda done: self._ended(peer, item, done))
        return True

    def _overdue(self, item: Range) -> bool:
        if item.candidates or not 0 < len(item.asked_s) < ASKED_FOR_ONE_MAX:
            return False
        now_s = asyncio.get_running_loop().time()
        return all(now_s - asked_s >= self._sources.overdue_s() for asked_s in item.asked_s.values())

    async def _ask(self, item: Range, peer: str) -> None:
        loop = asyncio.get_running_loop()
        first, last, started_s = item.first, item.last, loop.time()
        try:
            reply = await self._transport.request(peer, FetchBlocks(0, first, last), ANSWER_TIMEOUT_S)
            if not isinstance(reply, Blocks) or len(reply.blocks) > last - first + 1:
                raise InvalidFrame("bad_catch_up", f"not the blocks {first} to {last} that were asked for")
            self._sources.told(peer, reply.first, reply.head)
            if not reply.blocks:
                self._sources.lacks(peer, first)
                return
            size_bytes = sum(map(len, reply.blocks))
            self.bytes_total += size_bytes
            candidates: list[Candidate] = []
            if not item.candidates:
                # Hashing and signatures of a whole range would hold up the votes of a running network.
                candidates = await asyncio.to_thread(
                    open_range,
                    reply.blocks,
                    first,
                    self._network,
                    self._head().members,
                    self._verify,
                    self._recoveries,
                )
            whole = len(reply.blocks) == last - first + 1 or reply.head < last
            self._sources.answered(peer, loop.time() - started_s, len(reply.blocks), whole)
        except InvalidFrame as error:
            self._fault(peer, error)
        except HansaError as error:
            self._sources.failed(peer, error.message)
        else:
            if candidates and self.ranges.fill(item, peer, candidates, size_bytes):
                for earlier, asked_s in item.asked_s.items():
                    if asked_s < item.asked_s[peer]:
                        self._sources.overtaken(earlier, peer)

    def _ended(self, peer: str, item: Range, task: asyncio.Task[None]) -> None:
        item.asked_s.pop(peer, None)
        del self._asks[peer]
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
        self.news.set()
