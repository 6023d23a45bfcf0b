"""Simulated links: streams that are slow, stall, break and heal, but never lose or swap anything silently.

A link is what TLS over TCP is to a node (node.peers): in each direction the messages of one class arrive in their
order, late or not at all; what was under way when it breaks is lost, and both sides learn of the break, sooner or
later. The side with the higher id dials, and dials again.
"""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from node.peers import Timing
from node.wire import (
    LENGTH_SIZE,
    Blocks,
    ConsensusMessage,
    TrafficClass,
    TransactionBatch,
    Transactions,
    WireMessage,
    decode_message,
    encode_frame,
    traffic_class,
)
from tests.simulation.nodes.timeline import Timeline

if TYPE_CHECKING:
    from tests.simulation.nodes.transport import SimTransport

TIMING = Timing(ping_s=1.0, silence_s=3.0)
"""Links are given up sooner than real ones, so that short runs see it."""
CODED_PERMILLE = 60
"""How many of the messages travel as bytes; the rest as the frozen values that they are, which is quicker."""
SMALL_BYTES = 200


def microseconds(seconds: float) -> int:
    """`seconds` as the timeline counts."""
    return round(seconds * 1_000_000)


class SlowLink(msgspec.Struct, frozen=True):
    """A direction with little bandwidth: what waits for it is bounded by `queue_bytes`."""

    bytes_per_s: int
    queue_bytes: int


class Stream:
    """One direction of a link."""

    __slots__ = ("free_us", "receiver", "sender", "stalled")

    def __init__(self, sender: "SimTransport", receiver: "SimTransport", free_us: int) -> None:
        self.sender = sender
        self.receiver = receiver
        self.free_us = dict.fromkeys(TrafficClass, free_us)
        self.stalled: list[tuple[TrafficClass, WireMessage]] = []


class Link:
    """One connection between two processes; `open_at` are the ids of those that take it for open."""

    __slots__ = ("ends", "open_at", "opened_us", "streams")

    def __init__(self, dialler: "SimTransport", acceptor: "SimTransport", now_us: int) -> None:
        self.ends = (dialler, acceptor)
        self.open_at: set[str] = set()
        self.opened_us = now_us
        self.streams = {
            dialler.id: Stream(dialler, acceptor, now_us),
            acceptor.id: Stream(acceptor, dialler, now_us),
        }

    def other(self, end: str) -> "SimTransport":
        """The process at the other end."""
        return self.ends[1] if self.ends[0].id == end else self.ends[0]


class Network:
    """All links: which directions are cut or slow, how long messages take, and who listens."""

    def __init__(
        self,
        timeline: Timeline,
        on_sent: Callable[[str, WireMessage], None],
        on_received: Callable[[str, WireMessage], None],
    ) -> None:
        """`on_sent` sees what a process gives to an open link, `on_received` what another is about to be given."""
        self.timeline = timeline
        self.on_sent = on_sent
        self.on_received = on_received
        self.delay_us = (300, 3_000)
        self.cuts: Counter[tuple[str, str]] = Counter()
        self.epochs: Counter[tuple[str, str]] = Counter()
        self.slow: dict[tuple[str, str], SlowLink] = {}
        self.withholding: dict[str, str] = {}
        self.garbling: dict[str, int] = {}
        """Of a thousand messages, so many are garbled by that member."""
        self.running: dict[str, SimTransport] = {}
        self.counts: Counter[str] = Counter()

    # --- faults ------------------------------------------------------------------------------------------

    def cut(self, sender: str, receiver: str) -> None:
        """Nothing of `sender` reaches `receiver` until `mend`; a link is given up when that takes long."""
        self.cuts[sender, receiver] += 1
        self.epochs[sender, receiver] += 1
        epoch = self.epochs[sender, receiver]

        def give_up() -> None:
            if self.epochs[sender, receiver] == epoch:
                self._silent(sender, receiver)

        self.timeline.after(microseconds(TIMING.silence_s), give_up)

    def mend(self, sender: str, receiver: str) -> None:
        """One `cut` is undone; what stalled arrives now, on links that still stand."""
        self.cuts[sender, receiver] -= 1
        if self.cuts[sender, receiver] > 0:
            return
        self.epochs[sender, receiver] += 1
        transport = self.running.get(sender)
        link = transport.links.get(receiver) if transport is not None else None
        if link is not None:
            stream = link.streams[sender]
            stalled, stream.stalled = stream.stalled, []
            for kind, message in stalled:
                self._carry(link, stream, kind, message)

    def is_cut(self, sender: str, receiver: str) -> bool:
        """Whether nothing of `sender` reaches `receiver` now."""
        return self.cuts[sender, receiver] > 0

    def _silent(self, sender: str, receiver: str) -> None:
        """`receiver` has heard nothing of `sender` for too long."""
        transport = self.running.get(receiver)
        if transport is not None and sender in transport.links:
            self.counts["link given up in silence"] += 1
            transport.end(transport.links[sender])

    def reset(self, one: str, other: str) -> None:
        """The link between the two breaks now, and both know."""
        transport = self.running.get(one)
        link = transport.links.get(other) if transport is not None else None
        if link is not None:
            for end in link.ends:
                end.end(link, tell=False)

    def is_paused(self, member: str, since: int) -> None:
        """`member` does not run: its peers give their links up when that takes long (`since` counts its pauses)."""
        transport = self.running.get(member)
        if transport is None:
            return

        def give_up() -> None:
            if self.running.get(member) is transport and transport.loop.paused and transport.pauses == since:
                for link in list(transport.links.values()):
                    self._silent(member, link.other(member).id)

        transport.pauses = since
        self.timeline.after(microseconds(TIMING.silence_s), give_up)

    # --- carrying ----------------------------------------------------------------------------------------

    def delay(self) -> int:
        """How long a message takes now."""
        return self.timeline.pick(*self.delay_us)

    def carry(self, link: Link, sender: str, message: WireMessage) -> bool:
        """Whether the message is under way; a slow link that is full takes no more of it."""
        receiver = link.other(sender).id
        kind = traffic_class(message)
        stream = link.streams[sender]
        slow = self.slow.get((sender, receiver))
        if slow is not None:
            now_us = self.timeline.now_us
            waiting = max(0, stream.free_us[kind] - now_us) * slow.bytes_per_s // 1_000_000
            if waiting > slow.queue_bytes:
                self.counts[f"queue full of {kind.name.lower()}"] += 1
                if kind is TrafficClass.CONSENSUS:
                    stream.sender.end(link)
                return kind is TrafficClass.BULK
        self._carry(link, stream, kind, message)
        return True

    def _carry(self, link: Link, stream: Stream, kind: TrafficClass, message: WireMessage) -> None:
        now_us = self.timeline.now_us
        sender, receiver = stream.sender.id, stream.receiver.id
        slow = self.slow.get((sender, receiver))
        took_us = 0 if slow is None else size_bytes(message) * 1_000_000 // slow.bytes_per_s
        arrival_us = max(now_us + self.delay(), stream.free_us[kind]) + took_us
        stream.free_us[kind] = arrival_us
        if self.timeline.chance(CODED_PERMILLE):
            message = decode_message(encode_frame(message)[LENGTH_SIZE:])
        self.timeline.at(arrival_us, self._arrive, link, stream, kind, message)

    def _arrive(self, link: Link, stream: Stream, kind: TrafficClass, message: WireMessage) -> None:
        if self.is_cut(stream.sender.id, stream.receiver.id):
            stream.stalled.append((kind, message))
        elif stream.receiver.id in link.open_at:
            stream.receiver.loop.call_soon(stream.receiver.receive, link, message)

    # --- opening and ending ------------------------------------------------------------------------------

    def reachable(self, one: str, other: str) -> "SimTransport | None":
        """The process of `other`, if it answers `one` now."""
        transport = self.running.get(other)
        if transport is None or transport.loop.paused or self.is_cut(one, other) or self.is_cut(other, one):
            return None
        return transport

    def tell_end(self, link: Link, closed: "SimTransport") -> None:
        """The other end learns that `closed` has ended the link: soon, or when it hears nothing for too long."""
        other = link.other(closed.id)
        if other.id not in link.open_at:
            return
        wait_us = self.delay()
        if self.is_cut(closed.id, other.id):
            wait_us = microseconds(TIMING.silence_s)
        self.timeline.after(wait_us, other.end, link, False)

    def gone(self, transport: "SimTransport", power: bool) -> None:
        """The process is dead; its peers learn it from the operating system, or with the power, from silence."""
        if self.running.get(transport.id) is transport:
            del self.running[transport.id]
        for link in list(transport.links.values()):
            link.open_at.discard(transport.id)
            other = link.other(transport.id)
            cut = power or self.is_cut(transport.id, other.id)
            wait_us = microseconds(TIMING.silence_s) if cut else self.delay()
            self.timeline.after(wait_us, other.end, link, False)
        transport.links.clear()

    def back(self, transport: "SimTransport") -> None:
        """The process listens; who still holds a link to the one before it learns better with its next ping."""
        self.running[transport.id] = transport
        for other in list(self.running.values()):
            link = other.links.get(transport.id)
            if link is not None and transport not in link.ends and not self.is_cut(other.id, transport.id):
                self.timeline.after(self.timeline.pick(0, microseconds(TIMING.ping_s)), other.end, link, False)


def size_bytes(message: WireMessage) -> int:
    """About how many bytes the message has on the wire."""
    if isinstance(message, TransactionBatch | Transactions):
        return SMALL_BYTES + sum(len(data) for data in message.transactions)
    if isinstance(message, Blocks):
        return SMALL_BYTES + sum(len(data) for data in message.blocks)
    if isinstance(message, ConsensusMessage):
        return 2 * SMALL_BYTES + len(getattr(message.message, "payload", b"") or b"")
    return SMALL_BYTES
