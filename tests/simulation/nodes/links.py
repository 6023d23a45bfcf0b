"""Simulated links: streams that are slow, stall, break and heal, but never lose or swap anything silently.

A link is what TLS over TCP is to a node (node.peers): in each direction the messages of one class arrive in their
order, late or not at all; what was under way when it breaks is lost, and both sides learn of the break, sooner or
later. The side with the higher id dials, and dials again.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec

from node.config import MemberConfig
from node.errors import InvalidFrame, Unavailable
from node.peers import PeerHandler, PeerInfo, Timing
from node.peers.mesh import REQUESTS_MAX
from node.wire import (
    LENGTH_SIZE,
    Blocks,
    ConsensusMessage,
    Execution,
    FetchBlocks,
    FetchExecution,
    FetchManifest,
    FetchPayload,
    FetchTransactions,
    Manifest,
    PayloadReply,
    Reply,
    Request,
    TrafficClass,
    TransactionBatch,
    TransactionIds,
    Transactions,
    WireMessage,
    decode_message,
    encode_frame,
    traffic_class,
)
from tests.simulation.nodes.loop import ProcessLoop
from tests.simulation.nodes.timeline import Timeline

TIMING = Timing()
CODED_PERMILLE = 60
"""How many of the messages travel as bytes; the rest as the frozen values that they are, which is quicker."""
REPLY_TYPES: Mapping[type, type] = {
    FetchTransactions: Transactions,
    FetchPayload: PayloadReply,
    FetchBlocks: Blocks,
    FetchExecution: Execution,
    FetchManifest: Manifest,
}
SMALL_BYTES = 200


def _us(seconds: float) -> int:
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

        self.timeline.after(_us(TIMING.silence_s), give_up)

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
        self.timeline.after(_us(TIMING.silence_s), give_up)

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
            wait_us = _us(TIMING.silence_s)
        self.timeline.after(wait_us, other.end, link, False)

    def gone(self, transport: "SimTransport", power: bool) -> None:
        """The process is dead; its peers learn it from the operating system, or with the power, from silence."""
        if self.running.get(transport.id) is transport:
            del self.running[transport.id]
        for link in list(transport.links.values()):
            link.open_at.discard(transport.id)
            other = link.other(transport.id)
            cut = power or self.is_cut(transport.id, other.id)
            wait_us = _us(TIMING.silence_s) if cut else self.delay()
            self.timeline.after(wait_us, other.end, link, False)
        transport.links.clear()

    def back(self, transport: "SimTransport") -> None:
        """The process listens; who still holds a link to the one before it learns better with its next ping."""
        self.running[transport.id] = transport
        for other in list(self.running.values()):
            link = other.links.get(transport.id)
            if link is not None and transport not in link.ends and not self.is_cut(other.id, transport.id):
                self.timeline.after(self.timeline.pick(0, _us(TIMING.ping_s)), other.end, link, False)


class SimTransport:
    """The links of one process (node.peers.Transport)."""

    def __init__(
        self, network: Network, member: str, others: Sequence[MemberConfig], loop: ProcessLoop, handler: PeerHandler
    ) -> None:
        self.id = member
        self.loop = loop
        self.links: dict[str, Link] = {}
        self.pauses = 0
        self._network = network
        self._others = {other.id: other for other in others if other.id != member}
        self._handler = handler
        self._retry_s = dict.fromkeys(self._others, TIMING.retry_first_s)
        self._number = 0
        self._pending: dict[int, tuple[str, type, asyncio.Future[Reply]]] = {}
        self._running = False

    # --- life --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listening, and dialling has begun."""
        self._running = True
        self._network.back(self)
        for peer in self._others:
            if peer < self.id:
                self._network.timeline.after(self._network.delay(), self._dial, peer)

    async def close(self) -> None:
        """All links are closed."""
        if not self._running:
            return
        self._running = False
        links = list(self.links.values())
        self._network.gone(self, power=False)
        for link in links:
            self._handler.on_disconnected(link.other(self.id).id)

    def die(self, power: bool) -> None:
        """The process is dead."""
        if self._running:
            self._running = False
            self._network.gone(self, power)

    def _dial(self, peer: str) -> None:
        """Try once; whoever does not succeed tries again later."""
        if not self._running or peer in self.links:
            return
        if self.loop.paused or self._network.reachable(self.id, peer) is None:
            self._dial_later(peer)
        else:
            self._network.timeline.after(3 * self._network.delay(), self._greeted, peer)

    def _dial_later(self, peer: str) -> None:
        timeline, retry_s = self._network.timeline, self._retry_s[peer]
        timeline.after(timeline.pick(_us(retry_s / 2), _us(retry_s)), self._dial, peer)
        self._retry_s[peer] = min(2 * retry_s, TIMING.retry_cap_s)

    def _greeted(self, peer: str) -> None:
        if not self._running or peer in self.links:
            return
        acceptor = self._network.reachable(self.id, peer)
        if acceptor is None or self.loop.paused:
            self._dial_later(peer)
            return
        network = self._network
        welcome_us = network.delay()
        link = Link(self, acceptor, network.timeline.now_us)
        link.streams[acceptor.id].free_us = dict.fromkeys(TrafficClass, network.timeline.now_us + welcome_us)
        older = acceptor.links.get(self.id)
        if older is not None:
            network.counts["link replaced"] += 1
            acceptor.end(older)
        network.counts["link opened"] += 1
        acceptor.take(link, self.id)
        network.timeline.after(welcome_us, self._welcomed, link, acceptor)

    def _welcomed(self, link: Link, acceptor: "SimTransport") -> None:
        if not self._running:
            return
        if acceptor.id in link.open_at:
            self.take(link, acceptor.id)
        else:
            self._dial_later(acceptor.id)

    def take(self, link: Link, peer: str) -> None:
        """The link is open at this end, and the node is told before anything else that comes over it."""
        self.links[peer] = link
        link.open_at.add(self.id)
        self.loop.call_soon(self._tell_connected, link, peer)

    def _tell_connected(self, link: Link, peer: str) -> None:
        if self.links.get(peer) is link:
            self._handler.on_connected(peer)

    def end(self, link: Link, tell: bool = True) -> None:
        """The link is over at this end; the other one will find out."""
        peer = link.other(self.id).id
        link.open_at.discard(self.id)
        if self.links.get(peer) is not link:
            return
        del self.links[peer]
        if tell:
            self._network.tell_end(link, self)
        if not self._running:
            return
        self._network.counts["link ended"] += 1
        self.loop.call_soon(self._tell_disconnected, peer)
        if peer < self.id:
            if self._network.timeline.now_us - link.opened_us > _us(TIMING.stable_s):
                self._retry_s[peer] = TIMING.retry_first_s
            self._dial_later(peer)

    def _tell_disconnected(self, peer: str) -> None:
        for pending_peer, _, reply in self._pending.values():
            if pending_peer == peer and not reply.done():
                reply.set_exception(Unavailable("peer_gone", f"{peer} went away", peer=peer))
        self._handler.on_disconnected(peer)

    # --- messages ----------------------------------------------------------------------------------------

    @property
    def connected(self) -> tuple[str, ...]:
        """The ids of the peers that messages reach now, in ascending order."""
        return tuple(sorted(self.links))

    def send(self, peer: str, message: WireMessage) -> bool:
        """Whether `message` was queued."""
        link = self.links.get(peer)
        if link is None:
            return False
        self._network.on_sent(self.id, message)
        kept = self._withhold(message)
        return kept is None or self._network.carry(link, self.id, kept)

    def broadcast(self, message: WireMessage) -> None:
        """`message` is queued for every connected peer."""
        if not self.links:
            return
        self._network.on_sent(self.id, message)
        kept = self._withhold(message)
        if kept is not None:
            for link in list(self.links.values()):
                self._network.carry(link, self.id, kept)

    def _withhold(self, message: WireMessage) -> WireMessage | None:
        """What of `message` leaves a member that withholds the bytes which it names."""
        how = self._network.withholding.get(self.id)
        if how is None:
            return message
        if isinstance(message, TransactionBatch | TransactionIds):
            return None
        if isinstance(message, Transactions | PayloadReply):
            self._network.counts["bytes withheld"] += 1
            if how == "silent":
                return None
            empty = {"transactions": ()} if isinstance(message, Transactions) else {"payload": None}
            return msgspec.structs.replace(message, **empty)
        return message

    async def request(self, peer: str, message: Request, timeout_s: float) -> Reply:
        """The reply to `message`. Raise Unavailable: `peer_gone`, `peer_timeout`, `peer_busy`."""
        if peer not in self.links:
            raise Unavailable("peer_gone", f"{peer} is not connected", peer=peer)
        if sum(1 for asked, _, _ in self._pending.values() if asked == peer) >= REQUESTS_MAX:
            raise Unavailable("peer_busy", f"{peer} has many requests to answer", peer=peer)
        self._number += 1
        number = self._number
        reply: asyncio.Future[Reply] = self.loop.create_future()
        self._pending[number] = (peer, REPLY_TYPES[type(message)], reply)
        try:
            if not self.send(peer, msgspec.structs.replace(message, request=number)):
                raise Unavailable("peer_busy", f"the queue to {peer} is full", peer=peer)
            async with asyncio.timeout(timeout_s):
                return await reply
        except TimeoutError as error:
            raise Unavailable("peer_timeout", f"{peer} did not answer in {timeout_s:g} s", peer=peer) from error
        finally:
            del self._pending[number]

    def receive(self, link: Link, message: WireMessage) -> None:
        """The message has come to this process."""
        peer = link.other(self.id).id
        if self.links.get(peer) is not link or not self._running:
            return
        self._network.on_received(self.id, message)
        try:
            if isinstance(message, Transactions | PayloadReply | Blocks | Execution | Manifest):
                self._on_reply(peer, message)
            else:
                self._handler.on_message(peer, message)
        except InvalidFrame:
            self._network.counts["link ended by a bad message"] += 1
            self.end(link)

    def _on_reply(self, peer: str, message: Reply) -> None:
        asked, kind, reply = self._pending.get(message.request, ("", object, None))
        if reply is None or asked != peer or reply.done():
            return
        if not isinstance(message, kind):
            raise InvalidFrame("invalid_frame", f"{type(message).__name__} answers another question")
        reply.set_result(message)

    # --- telling -----------------------------------------------------------------------------------------

    def peers(self) -> tuple[PeerInfo, ...]:
        """Every other member with the state of its link."""
        return tuple(
            PeerInfo(
                id=other.id,
                address=other.address,
                connected=other.id in self.links,
                connected_since_ms=None,
                sent_bytes=0,
                received_bytes=0,
                contracts_hash=None,
                round_trip_ms=None,
                queued_bytes=0,
                dropped_messages=0,
                last_error="",
            )
            for other in self._others.values()
        )

    def refusals(self) -> Mapping[str, int]:
        """Nothing is refused here."""
        return {}

    def set_members(self, members: Sequence[MemberConfig]) -> None:
        """Only `members` are spoken to from now on."""
        self._others = {other.id: other for other in members if other.id != self.id}
        for peer in [*self.links]:
            if peer not in self._others:
                self.end(self.links[peer])


def size_bytes(message: WireMessage) -> int:
    """About how many bytes the message has on the wire."""
    if isinstance(message, TransactionBatch | Transactions):
        return SMALL_BYTES + sum(len(data) for data in message.transactions)
    if isinstance(message, Blocks):
        return SMALL_BYTES + sum(len(data) for data in message.blocks)
    if isinstance(message, ConsensusMessage):
        return 2 * SMALL_BYTES + len(getattr(message.message, "payload", b"") or b"")
    return SMALL_BYTES
