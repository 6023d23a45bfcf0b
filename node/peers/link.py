"""One TLS connection: its send queue, its frames, its byte counts and how it ends.

Sending never waits. Frames queue by traffic class and are written several at once whenever the socket takes
them; between two writes the most urgent class goes first, so a vote waits for one write of bulk at most.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol, cast

from node.errors import InvalidFrame
from node.wire import FrameDecoder, TrafficClass, WireMessage, encode_frame, traffic_class

WRITE_SIZE = 128 * 1024
"""Bytes handed to the socket at once, unless one frame is larger; also what may wait inside the TLS layer."""
FRAME_OVERHEAD = 64
"""What a queued frame costs in memory beside its bytes."""


class SendQueue:
    """The frames that wait for one peer, bounded in bytes by class: a quarter, a quarter and a half of `bytes_max`.

    Where a class is full, the oldest bulk is dropped for newer bulk (gossip and catch-up ask again), control is
    refused, and consensus ends the link: the replica sends its state again on the next one. A frame of any
    size fits into an empty class.
    """

    __slots__ = ("_frames", "_limits", "_sizes", "dropped")

    def __init__(self, bytes_max: int) -> None:
        self._frames: dict[TrafficClass, deque[bytes]] = {kind: deque() for kind in TrafficClass}
        self._sizes = dict.fromkeys(TrafficClass, 0)
        self._limits = {
            TrafficClass.CONSENSUS: bytes_max // 4,
            TrafficClass.CONTROL: bytes_max // 4,
            TrafficClass.BULK: bytes_max // 2,
        }
        self.dropped = 0

    def __bool__(self) -> bool:
        return any(self._frames.values())

    @property
    def size_bytes(self) -> int:
        """The memory that all waiting frames take."""
        return sum(self._sizes.values())

    def put(self, kind: TrafficClass, frame: bytes) -> bool:
        """Return whether `frame` was queued; for bulk, older frames make room."""
        frames, cost = self._frames[kind], len(frame) + FRAME_OVERHEAD
        while frames and self._sizes[kind] + cost > self._limits[kind]:
            if kind is not TrafficClass.BULK:
                return False
            self._sizes[kind] -= len(frames.popleft()) + FRAME_OVERHEAD
            self.dropped += 1
        frames.append(frame)
        self._sizes[kind] += cost
        return True

    def take(self, bytes_max: int) -> bytes:
        """Remove and return the most urgent frames, at least one if any wait, about `bytes_max` bytes together."""
        batch: list[bytes] = []
        size = 0
        for kind, frames in self._frames.items():
            while frames and (not batch or size + len(frames[0]) <= bytes_max):
                frame = frames.popleft()
                self._sizes[kind] -= len(frame) + FRAME_OVERHEAD
                size += len(frame)
                batch.append(frame)
            if frames:
                break
        return b"".join(batch) if len(batch) != 1 else batch[0]

    def clear(self) -> None:
        """Forget every frame."""
        for kind, frames in self._frames.items():
            frames.clear()
            self._sizes[kind] = 0


class LinkOwner(Protocol):
    """Whoever judges what comes over a link."""

    def on_secured(self, link: "Link") -> None:
        """The TLS handshake is done; `link.certificate` is what the other side showed."""

    def on_payload(self, link: "Link", payload: bytes) -> None:
        """A whole frame came. May raise InvalidFrame."""

    def on_ended(self, link: "Link") -> None:
        """Nothing is sent or received any more, and `link.reason` says why. Called once."""


class Link(asyncio.Protocol):
    """One connection, from the finished TLS handshake to its end.

    `dialled` is the member that this node called, None where the other side called. `proven` is the member whose
    key the other side showed, `peer` the same once its greeting is accepted. `reason` (code, text) is set by
    whoever ends the link first.
    """

    def __init__(self, owner: LinkOwner, dialled: str | None, queue_bytes_max: int) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder()
        self._queue = SendQueue(queue_bytes_max)
        self._transport: asyncio.Transport | None = None
        self._flush_due = False
        self._paused_at: float | None = None
        self.dialled = dialled
        self.peer: str | None = None
        self.proven: str | None = None
        self.contracts_hash: bytes | None = None
        self.instance: bytes = b""
        self.certificate: bytes = b""
        self.remote = "?"
        self.opened_at = 0.0
        self.opened_time_ms = 0
        self.sent_bytes = 0
        self.received_bytes = 0
        self.heard_at = self._loop.time()
        self.ping_sent_at: float | None = None
        self.ping_number = 0
        self.round_trip_ms: int | None = None
        self.reason: tuple[str, str] | None = None
        self.greeted = asyncio.Event()
        """Set when the greeting is accepted, or the link ended before."""
        self.lost = asyncio.Event()
        """Set when the socket is gone."""

    # --- what the owner does with a link ---

    def open(self, peer: str, contracts_hash: bytes, time_ms: int) -> None:
        """The greeting is accepted: messages to `peer` flow; those that came behind it wait for `resume`."""
        self.peer = peer
        self.contracts_hash = contracts_hash
        self.opened_at = self.heard_at = self._loop.time()
        self.opened_time_ms = time_ms
        self.greeted.set()

    def resume(self) -> None:
        """Hand on what came behind the greeting; call once, after `open` and after everybody was told of it."""
        self._deliver(self._decoder.open)

    def send(self, message: WireMessage) -> bool:
        """Return whether `message` was queued."""
        return self.send_frame(traffic_class(message), encode_frame(message))

    def send_frame(self, kind: TrafficClass, frame: bytes) -> bool:
        """Return whether `frame` was queued; the link ends when consensus messages find no room."""
        if self.reason is not None or self._transport is None:
            return False
        if not self._queue.put(kind, frame):
            if kind is TrafficClass.CONSENSUS:
                self.abort("queue_full", f"the peer does not read; {self._queue.size_bytes} bytes wait for it")
            return False
        if not self._flush_due and self._paused_at is None:
            self._flush_due = True
            self._loop.call_soon(self._flush)
        return True

    def close(self, code: str, text: str) -> None:
        """End the link after what is queued now was written, as far as the peer takes it at once."""
        if self.reason is not None:
            return
        if self._transport is not None:
            self._flush()
            if self._queue or self._transport.get_write_buffer_size() > WRITE_SIZE:
                self.abort(code, text)
                return
            self._transport.close()
            self._loop.call_later(1.0, self._transport.abort)
        self._end(code, text)

    def abort(self, code: str, text: str) -> None:
        """End the link now; what is queued is lost."""
        if self.reason is not None:
            return
        self._end(code, text)
        if self._transport is not None:
            self._transport.abort()

    @property
    def up(self) -> bool:
        """Whether there is a socket: from the finished handshake to the loss of the connection."""
        return self._transport is not None

    @property
    def blocked_s(self) -> float:
        """For how long the socket has taken nothing."""
        return 0.0 if self._paused_at is None else self._loop.time() - self._paused_at

    @property
    def queued_bytes(self) -> int:
        """The memory that waiting frames take."""
        return self._queue.size_bytes

    @property
    def dropped_messages(self) -> int:
        """How many messages of bulk were dropped because this peer was slow."""
        return self._queue.dropped

    def forgive(self) -> None:
        """Start the clocks of silence anew: this process itself was paused."""
        self.heard_at = self._loop.time()
        if self._paused_at is not None:
            self._paused_at = self.heard_at
        if self.ping_sent_at is not None:
            self.ping_sent_at = self.heard_at

    # --- what asyncio tells ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS is up."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_SIZE)
        tls = transport.get_extra_info("ssl_object")
        self.certificate = (tls.getpeercert(binary_form=True) if tls is not None else None) or b""
        name = transport.get_extra_info("peername")
        self.remote = f"{name[0]}:{name[1]}" if name else "?"
        if self.reason is not None:
            self._transport.abort()
        else:
            self._owner.on_secured(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self.received_bytes += len(data)
        self.heard_at = self._loop.time()
        self._deliver(lambda: self._decoder.feed(data))

    def pause_writing(self) -> None:
        """The socket takes no more."""
        self._paused_at = self._loop.time()

    def resume_writing(self) -> None:
        """The socket takes bytes again."""
        self._paused_at = None
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone, whoever ended it."""
        self._end("lost", str(error) if error else "the other side closed the connection")
        self._transport = None
        self.lost.set()

    # --- inside ---

    def _deliver(self, payloads: Callable[[], list[bytes]]) -> None:
        if self.reason is not None:
            return
        try:
            for payload in payloads():
                self._owner.on_payload(self, payload)
                if self.reason is not None:
                    return
            if self._decoder.failure is not None:
                raise self._decoder.failure
        except InvalidFrame as error:
            self.abort("invalid_frame", error.message)

    def _flush(self) -> None:
        self._flush_due = False
        while self._queue and self._paused_at is None and self._transport is not None and self.reason is None:
            data = self._queue.take(WRITE_SIZE)
            self.sent_bytes += len(data)
            self._transport.write(data)

    def _end(self, code: str, text: str) -> None:
        if self.reason is not None:
            return
        self.reason = (code, text)
        self._queue.clear()
        self.greeted.set()
        self._loop.call_soon(self._owner.on_ended, self)  # later: whoever is sending now must not be called back
