"""Serves decided blocks, what they did, and payloads at hand to peers that lack them."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeAlias

from node.sync.collaborators import Transport
from node.wire import (
    BLOCKS_BYTES_MAX,
    ROWS_MAX,
    Blocks,
    Execution,
    FetchBlocks,
    FetchExecution,
    FetchPayload,
    PayloadReply,
)

RANGE_MAX = 256
REPLY_SIZE_BYTES = min(2 * 1024 * 1024, BLOCKS_BYTES_MAX)
WAITING_PER_PEER_MAX = 2

_Question: TypeAlias = FetchBlocks | FetchPayload | FetchExecution


class Archive(Protocol):
    """What the store offers. `certified_block` and `execution` are called in a thread, the others on the loop."""

    @property
    def head_height(self) -> int:
        """The height of the last applied block."""

    @property
    def first_height(self) -> int:
        """The lowest height from which on every block is here; 1 where nothing was ever pruned."""

    def certified_block(self, height: int) -> bytes | None:
        """The encoded ledger.CertifiedBlock of `height`; None when it is not here (yet, or any more)."""

    def execution(self, height: int) -> tuple[Sequence[bytes], Sequence[tuple[bytes, bytes | None]] | None] | None:
        """The encoded receipts of block `height`, and what it wrote (None: no longer kept); None: not here."""

    def payload(self, height: int, digest: bytes) -> bytes | None:
        """The payload of the block `digest` proposed at `height`, if it is at hand."""


class _Lane:
    """Questions that are answered one after the other."""

    def __init__(self) -> None:
        self.requests: deque[tuple[str, _Question]] = deque()
        self.task: asyncio.Task[None] | None = None


class BlockServer:
    """Answers requests, one range at a time: however many come, one thread reads and one answer is in memory."""

    def __init__(self, transport: Transport, archive: Archive, on_failure: Callable[[BaseException], None]) -> None:
        """`on_failure` gets what the archive raises: a broken disk or a bug."""
        self._transport = transport
        self._archive = archive
        self._on_failure = on_failure
        # An old execution costs a third of a second to read; whoever waits for a payload waits to vote.
        self._quick, self._slow = _Lane(), _Lane()
        self._closed = False
        self.blocks_served = 0

    async def close(self) -> None:
        """Nothing is served any more."""
        self._closed = True
        for lane in (self._quick, self._slow):
            lane.requests.clear()
            if lane.task is not None:
                lane.task.cancel()
                await asyncio.gather(lane.task, return_exceptions=True)

    def on_fetch_blocks(self, peer: str, message: FetchBlocks) -> None:
        """`peer` will be answered: blocks from `first` on, as many as fit, at least one if it is here."""
        self._take(peer, message)

    def on_fetch_payload(self, peer: str, message: FetchPayload) -> None:
        """`peer` will be answered: the payload, or None."""
        self._take(peer, message)

    def on_fetch_execution(self, peer: str, message: FetchExecution) -> None:
        """`peer` will be answered: the rows of what the block did, from `first` on, as many as fit."""
        self._take(peer, message)

    def _take(self, peer: str, message: _Question) -> None:
        """What exceeds WAITING_PER_PEER_MAX is dropped unanswered: an honest peer asks for one after the other."""
        lane = self._slow if isinstance(message, FetchExecution) else self._quick
        waiting = sum(1 for asker, _ in lane.requests if asker == peer)
        if self._closed or waiting >= WAITING_PER_PEER_MAX:
            return
        lane.requests.append((peer, message))
        if lane.task is None:
            self._start(lane)

    def _start(self, lane: _Lane) -> None:
        lane.task = asyncio.get_running_loop().create_task(self._serve(lane))
        lane.task.add_done_callback(partial(self._finished, lane))

    async def _serve(self, lane: _Lane) -> None:
        while lane.requests:
            peer, message = lane.requests.popleft()
            if isinstance(message, FetchBlocks):
                blocks = await asyncio.to_thread(self._read, message.first, message.last)
                head, first = self._archive.head_height, self._archive.first_height
                answer = Blocks(message.request, tuple(blocks), head, first)
                if self._transport.send(peer, answer):
                    self.blocks_served += len(blocks)
                continue
            started_s, idle = asyncio.get_running_loop().time(), 1
            if isinstance(message, FetchExecution):
                self._transport.send(peer, await asyncio.to_thread(self._read_execution, message))
                idle = 3
            else:
                payload = self._archive.payload(message.height, message.digest)
                self._transport.send(peer, PayloadReply(message.request, payload))
            # Whoever asks without end gets half of this node's time at most, for executions a quarter.
            await asyncio.sleep(idle * (asyncio.get_running_loop().time() - started_s))

    def _read_execution(self, message: FetchExecution) -> Execution:
        found = self._archive.execution(message.height)
        if found is None:
            return Execution(message.request, 0, 0, False, ())
        receipts, writes = found
        rows: list[tuple[bytes, bytes | None]] = [*((b"", receipt) for receipt in receipts), *(writes or ())]
        items: list[tuple[bytes, bytes | None]] = []
        size_bytes = 0
        for key, value in rows[message.first : message.first + ROWS_MAX]:
            size_bytes += len(key) + len(value or b"")
            if items and size_bytes > REPLY_SIZE_BYTES:
                break
            items.append((key, value))
        if size_bytes > BLOCKS_BYTES_MAX:
            return Execution(message.request, 0, 0, False, ())
        return Execution(message.request, len(receipts), len(rows), writes is not None, tuple(items))

    def _finished(self, lane: _Lane, task: asyncio.Task[None]) -> None:
        lane.task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)
        elif lane.requests and not self._closed:
            self._start(lane)

    def _read(self, first: int, last: int) -> list[bytes]:
        blocks: list[bytes] = []
        size_bytes = 0
        for height in range(max(first, 1), min(last, first + RANGE_MAX - 1) + 1):
            block = self._archive.certified_block(height)
            if block is None or (blocks and size_bytes + len(block) > REPLY_SIZE_BYTES):
                break
            blocks.append(block)
            size_bytes += len(block)
        return blocks
