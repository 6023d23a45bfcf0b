"""Brings this node from its head up to a target height with certified blocks from peers.

One range is fetched while the one before it is executed. A peer that answers late, with nothing, or with what does
not prove itself is put aside with a back-off and another is asked; so one honest peer with the blocks is enough.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import msgspec
import structlog

from consensus.codec import encode
from consensus.effects import Head
from node.errors import HansaError, InvalidBlock, InvalidFrame
from node.ledger import CertifiedBlock, sha256
from node.sync.collaborators import Transport
from node.sync.proof import Candidate, Verify, open_range, require_proof
from node.wire import Blocks, FetchBlocks

RANGE_START = 32
RANGE_MAX = 256
ANSWER_TIMEOUT_S = 5.0
ASIDE_S = 1.0
ASIDE_S_MAX = 30.0
BEHIND_ASIDE_S = 0.2
FAULT_ASIDE_S = 10.0
PAUSE_S_MAX = 0.25


class Chain(Protocol):
    """This node's own blocks."""

    @property
    def head(self) -> Head:
        """The last applied block."""

    async def apply_certified(self, block: CertifiedBlock) -> Head:
        """The block is executed, its roots agree, and it is durable; returns the head then.

        The block follows the head and its certificate was verified; when the head has reached its height meanwhile
        nothing happens. Raise InvalidBlock when execution gives other roots than the header.
        """


class PeerAside(msgspec.Struct, frozen=True):
    """A peer that is not asked for now: why, and for how long."""

    peer: str
    reason: str
    remaining_s: float


class Progress(msgspec.Struct, frozen=True):
    """A snapshot for status and metrics. Heights and rate are of the current run, or of the last one."""

    running: bool
    from_height: int
    height: int
    target: int
    peer: str | None
    blocks_per_s: float
    blocks_total: int
    aside: tuple[PeerAside, ...]
    problem: str | None


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
    ) -> None:
        """`verify(key, message, signature)` is pure and may be called from threads.

        `on_synced` is told of each new head, `report` of a peer at fault, `on_divergence` of the certified block to
        which this node alone computes other roots: nothing is fetched any more while that block is the next one.

        `on_failure` gets what ends the node: a broken disk or a bug.
        """
        self._transport = transport
        self._chain = chain
        self._network = network
        self._verify = verify
        self._on_synced = on_synced
        self._report = report
        self._on_divergence = on_divergence
        self._on_failure = on_failure
        self._diverged_at = 0
        self._task: asyncio.Task[None] | None = None
        self._ahead: asyncio.Task[_Range | None] | None = None
        self._closed = False
        self._target = 0
        self._hints: tuple[str, ...] = ()
        self._records: dict[str, _Record] = {}
        self._range = RANGE_START
        self._refusals: dict[str, bytes] = {}
        self._from_height = 0
        self._started_s = 0.0
        self._blocks = 0
        self._blocks_total = 0
        self._elapsed_s = 0.0
        self._peer: str | None = None
        self._problem: str | None = None
        self._log = structlog.get_logger("sync")

    def catch_up(self, target: int, peers: Sequence[str]) -> None:
        """This node is on its way to `target`, asking `peers` first; a run under way is extended.

        It goes on, at a bounded rate, until the target is reached: by this run or by consensus itself.
        """
        self._target = max(self._target, target)
        self._hints = tuple(peers)
        height = self._chain.head.height
        if self._closed or self._diverged or self._task is not None or height >= self._target:
            return
        self._from_height, self._blocks, self._started_s = height, 0, self._now_s()
        self._log.info("catching up", height=height, target=self._target)
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._finished)

    async def close(self) -> None:
        """Nothing runs any more; a block that was being applied is applied."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def progress(self) -> Progress:
        """A snapshot of where catch-up stands."""
        now_s = self._now_s()
        elapsed_s = now_s - self._started_s if self._task is not None else self._elapsed_s
        return Progress(
            running=self._task is not None,
            from_height=self._from_height,
            height=self._chain.head.height,
            target=self._target,
            peer=self._peer,
            blocks_per_s=self._blocks / elapsed_s if elapsed_s > 0 else 0.0,
            blocks_total=self._blocks_total,
            aside=tuple(
                PeerAside(peer, record.reason, record.aside_until_s - now_s)
                for peer, record in sorted(self._records.items())
                if record.aside_until_s > now_s
            ),
            problem=self._problem,
        )

    @property
    def _diverged(self) -> bool:
        """Whether this node computes other roots to the next block; should it be applied after all, it goes on."""
        return self._diverged_at == self._chain.head.height + 1

    # --- the run ---------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while (height := self._chain.head.height) < self._target and not self._diverged:
                fetched = await self._next(height + 1)
                if fetched is None:
                    continue
                if fetched.last < self._target:
                    self._ahead = asyncio.get_running_loop().create_task(self._fetch(fetched.last + 1))
                if not await self._apply(fetched):
                    await self._drop_ahead()
        finally:
            await self._drop_ahead()

    async def _next(self, first: int) -> "_Range | None":
        """The range from `first` on: the one fetched ahead where it fits, else one fetched now; None: try again."""
        if self._ahead is not None:
            fetched = await self._ahead
            self._ahead = None
            if fetched is not None and fetched.first <= first <= fetched.last:
                return fetched
        return await self._fetch(first)

    async def _drop_ahead(self) -> None:
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)

    async def _fetch(self, first: int) -> "_Range | None":
        peer = self._choose(first)
        if peer is None:
            await asyncio.sleep(PAUSE_S_MAX * random.uniform(0.5, 1.0))
            return None
        self._peer = peer
        last = first + self._range - 1
        asked_s = self._now_s()
        try:
            reply = await self._transport.request(peer, FetchBlocks(0, first, last), ANSWER_TIMEOUT_S)
            if not isinstance(reply, Blocks) or len(reply.blocks) > last - first + 1:
                raise InvalidFrame("bad_catch_up", f"not the blocks {first} to {last} that were asked for")
            record = self._records.setdefault(peer, _Record())
            record.head_height = reply.head
            if not reply.blocks:
                if reply.head < first:
                    record.aside_until_s, record.reason = self._now_s() + BEHIND_ASIDE_S, f"has no block {first}"
                else:
                    self._put_aside(peer, f"does not serve block {first}", ASIDE_S)
                return None
            members = self._chain.head.members
            # Hashing and signatures of a whole range would hold up the votes of a running network.
            candidates = await asyncio.to_thread(
                open_range, reply.blocks, first, self._network, members, self._verify
            )
        except InvalidFrame as error:
            self._fault(peer, error)
            return None
        except HansaError as error:
            # Late, or gone. The answer may have been too big for the link: ask for less.
            self._range = max(1, self._range // 2)
            self._put_aside(peer, error.message, ASIDE_S)
            return None
        record.cost_s = (self._now_s() - asked_s) / len(candidates)
        self._range = min(2 * self._range, RANGE_MAX)
        return _Range(peer, first, tuple(candidates))

    async def _apply(self, fetched: "_Range") -> bool:
        """Apply the range's blocks above the head; False when one of them was no good."""
        before = self._chain.head.height
        try:
            for candidate in fetched.candidates:
                head = self._chain.head
                if candidate.height <= head.height:
                    continue
                require_proof(candidate, head.digest, head.members, self._verify)
                await _to_its_end(self._chain.apply_certified(candidate.block))
                self._blocks += 1
                self._blocks_total += 1
                self._refusals.clear()
        except InvalidFrame as error:
            self._fault(fetched.peer, error)
            return False
        except InvalidBlock as error:
            self._refused(fetched.peer, candidate, error)
            return False
        finally:
            if self._chain.head.height > before:
                self._on_synced(self._chain.head)
        record = self._records.setdefault(fetched.peer, _Record())
        record.failures = 0
        self._problem = None
        return True

    def _refused(self, peer: str, candidate: Candidate, error: InvalidBlock) -> None:
        """Judge who is wrong about a certified block that gives other roots here: its sender, or this node.

        The header covers the block's content; but of two contents with one hash, if they could be made, only one
        would be the block. Once more members than can be faulty have sent the very same, this node is the odd one.
        """
        self._fault(peer, error)
        members = self._chain.head.members
        if members.index(peer) is None:
            return
        block = self._refusals[peer] = sha256(encode(candidate.block.body))
        if list(self._refusals.values()).count(block) >= members.weak_quorum:
            self._diverged_at = candidate.height
            self._on_divergence(candidate.block, error)

    # --- peers -----------------------------------------------------------------------------------------------

    def _choose(self, first: int) -> str | None:
        """The peer to ask for `first`: known to have it, quickest a block, untried ones early; None: none now."""
        now_s = self._now_s()
        best: tuple[tuple[bool, float, int, str], str] | None = None
        for peer in self._transport.connected:
            record = self._records.setdefault(peer, _Record())
            if record.aside_until_s > now_s:
                continue
            place = self._hints.index(peer) if peer in self._hints else len(self._hints)
            rank = (record.head_height is not None and record.head_height < first, record.cost_s, place, peer)
            if best is None or rank < best[0]:
                best = (rank, peer)
        return None if best is None else best[1]

    def _fault(self, peer: str, error: HansaError) -> None:
        self._put_aside(peer, error.message, FAULT_ASIDE_S)
        self._report(peer, error)

    def _put_aside(self, peer: str, reason: str, aside_s: float) -> None:
        """`peer` is not asked for `aside_s` seconds, doubled for each failure since it last helped."""
        record = self._records.setdefault(peer, _Record())
        record.reason = reason
        record.aside_until_s = self._now_s() + min(aside_s * 2**record.failures, ASIDE_S_MAX)
        record.failures = min(record.failures + 1, 8)
        self._problem = f"{peer}: {reason}"
        self._log.info("peer put aside", peer=peer, reason=reason)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._task, self._peer = None, None
        self._elapsed_s = self._now_s() - self._started_s
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            self._on_failure(error)
            return
        if self._diverged:
            return
        self._log.info("caught up", height=self._chain.head.height, blocks=self._blocks)
        # The target may have been raised between the end of the run and this callback.
        self.catch_up(self._target, self._hints)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


class _Record(msgspec.Struct):
    """What is remembered of a peer: its claimed head, seconds a block of its last answer, and its failures."""

    head_height: int | None = None
    cost_s: float = 0.0
    failures: int = 0
    aside_until_s: float = float("-inf")
    reason: str = ""


class _Range(msgspec.Struct, frozen=True):
    """Consecutive blocks from one peer, whole and linked, not yet proven against this node's head."""

    peer: str
    first: int
    candidates: tuple[Candidate, ...]

    @property
    def last(self) -> int:
        """The height of the last block."""
        return self.first + len(self.candidates) - 1


async def _to_its_end(applying: Coroutine[Any, Any, Head]) -> Head:
    """Await `applying`; when cancelled, let it end first: a block is applied whole or not at all."""
    task = asyncio.ensure_future(applying)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise
