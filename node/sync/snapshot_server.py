"""Serves this node's finished snapshots to members that join: one answer at a time, half of the time at most."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeAlias

from node.wire import Chunk, FetchChunk, FetchSnapshot, SnapshotOffer

WAITING_PER_PEER_MAX = 2
NOTHING = bytes(32)
"""The digest in the answer of a node that offers no snapshot."""

_Question: TypeAlias = FetchSnapshot | FetchChunk


class Snapshots(Protocol):
    """What lies finished on this node's disk."""

    def newest(self) -> tuple[int, bytes, bytes] | None:
        """Return height, digest and encoded manifest of the newest snapshot, or None."""

    def chunk(self, height: int, digest: bytes, index: int) -> bytes | None:
        """Return a chunk's file; None when that snapshot, or that chunk of it, is not here. Called in a thread."""


class Sender(Protocol):
    """The links to peers, as serving uses them."""

    def send(self, peer: str, message: SnapshotOffer | Chunk) -> bool:
        """Queue `message`; False when there is no link or no room."""


class SnapshotServer:
    """Answers in a lane of its own: a file is read, and an answer is in memory, one after the other."""

    def __init__(self, sender: Sender, snapshots: Snapshots, on_failure: Callable[[BaseException], None]) -> None:
        """`on_failure` gets what nobody expected."""
        self._sender = sender
        self._snapshots = snapshots
        self._on_failure = on_failure
        self._waiting: deque[tuple[str, _Question]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.bytes_served = 0

    async def close(self) -> None:
        """Nothing is served any more."""
        self._closed = True
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def on_question(self, peer: str, message: FetchSnapshot | FetchChunk) -> None:
        """`peer` will be answered. What exceeds WAITING_PER_PEER_MAX is dropped: an honest peer asks for one."""
        if self._closed or sum(1 for asker, _ in self._waiting if asker == peer) >= WAITING_PER_PEER_MAX:
            return
        self._waiting.append((peer, message))
        if self._task is None:
            self._start()

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._serve())
        self._task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)
        elif self._waiting and not self._closed:
            self._start()

    async def _serve(self) -> None:
        now_s = asyncio.get_running_loop().time
        while self._waiting:
            peer, message = self._waiting.popleft()
            started_s = now_s()
            if isinstance(message, FetchSnapshot):
                self._sender.send(peer, self._offer(message))
            else:
                data = await asyncio.to_thread(self._snapshots.chunk, message.height, message.digest, message.index)
                if self._sender.send(peer, Chunk(message.request, data)):
                    self.bytes_served += len(data or b"")
            # Whoever asks without end gets half of this lane's time at most.
            await asyncio.sleep(now_s() - started_s)

    def _offer(self, message: FetchSnapshot) -> SnapshotOffer:
        newest = self._snapshots.newest()
        if newest is None:
            return SnapshotOffer(message.request, 0, NOTHING, None)
        height, digest, manifest = newest
        return SnapshotOffer(message.request, height, digest, None if digest in message.known else manifest)
