"""The links of one simulated process, as its node sees them: who is connected, and what comes and goes."""

import asyncio
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

from node.config import MemberConfig
from node.errors import InvalidFrame, Unavailable
from node.peers import PeerHandler, PeerInfo
from node.peers.mesh import REQUESTS_MAX
from node.wire import (
    Blocks,
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
)
from tests.simulation.nodes.garbling import garbled
from tests.simulation.nodes.links import TIMING, Link, Network, microseconds
from tests.simulation.nodes.loop import ProcessLoop

REPLY_TYPES: Mapping[type, type] = MappingProxyType(
    {
        FetchTransactions: Transactions,
        FetchPayload: PayloadReply,
        FetchBlocks: Blocks,
        FetchExecution: Execution,
        FetchManifest: Manifest,
    }
)


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
        if not self._running or peer in self.links or peer not in self._others:
            return
        if self.loop.paused or self._network.reachable(self.id, peer) is None:
            self._dial_later(peer)
        else:
            self._network.timeline.after(3 * self._network.delay(), self._greeted, peer)

    def _dial_later(self, peer: str) -> None:
        timeline, retry_s = self._network.timeline, self._retry_s[peer]
        timeline.after(timeline.pick(microseconds(retry_s / 2), microseconds(retry_s)), self._dial, peer)
        self._retry_s[peer] = min(2 * retry_s, TIMING.retry_cap_s)

    def _greeted(self, peer: str) -> None:
        if not self._running or peer in self.links or peer not in self._others:
            return
        acceptor = self._network.reachable(self.id, peer)
        if acceptor is None or self.loop.paused or not acceptor.knows(self.id):
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

    def knows(self, peer: str) -> bool:
        """Whether `peer` is a member to this process: others are refused."""
        return peer in self._others

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
            if self._network.timeline.now_us - link.opened_us > microseconds(TIMING.stable_s):
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
        kept = self._told(message)
        return kept is None or self._network.carry(link, self.id, kept)

    def broadcast(self, message: WireMessage) -> None:
        """`message` is queued for every connected peer."""
        if not self.links:
            return
        self._network.on_sent(self.id, message)
        kept = self._told(message)
        if kept is not None:
            for link in list(self.links.values()):
                self._network.carry(link, self.id, kept)

    def _told(self, message: WireMessage) -> WireMessage | None:
        """What of `message` leaves a member that garbles its words, or withholds the bytes which it names."""
        network = self._network
        permille = network.garbling.get(self.id)
        if permille is not None and network.timeline.chance(permille):
            network.counts["message garbled"] += 1
            return garbled(message, network.timeline.pick)
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

    def set_contracts(self, contracts_hash: bytes) -> None:
        """Greetings say nothing of contracts here."""

    def set_members(self, members: Sequence[MemberConfig]) -> None:
        """Only `members` are spoken to from now on."""
        before = self._others
        self._others = {other.id: other for other in members if other.id != self.id}
        for peer in self._others:
            self._retry_s[peer] = TIMING.retry_first_s
            if self._running and peer not in before and peer < self.id:
                self._network.timeline.after(self._network.delay(), self._dial, peer)
        for peer in [*self.links]:
            if peer not in self._others:
                self.end(self.links[peer])
