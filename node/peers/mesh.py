"""The default transport: TLS 1.3 with pinned keys, one connection to every other member.

Of two members the one with the higher id dials; the other one does when it was not reached for a while, for the
address in its peers' files may be wrong, or be that of another process with its key. Both prove their TLS keys in
the handshake, and then that they run the same network in a greeting: Hello from the dialler, Welcome or a Refusal
with its reason back. The key is compared with the *current* members after the handshake: a TLS context does not
forget. A newer connection of a member replaces the older: that may be half-open, and its member knows better.
"""

import asyncio
import itertools
import random
import socket
import time
from collections.abc import Mapping, Sequence

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from node.config import MemberConfig, NetworkConfig, split_address
from node.errors import ConfigError, InvalidFrame, Unavailable
from node.keys import SigningKey, certificate_key
from node.peers.accounts import Account, Endings, describe_failure, printable
from node.peers.link import Link
from node.peers.listener import Listener
from node.peers.shown_keys import ShownKeys, server_name
from node.peers.transport import PeerHandler, PeerInfo, Timing
from node.wire import (
    PROTOCOL_VERSION,
    REASON_LENGTH_MAX,
    REPLY_TYPES,
    Hello,
    Ping,
    Pong,
    Refusal,
    Reply,
    Request,
    Welcome,
    WireMessage,
    decode_message,
    encode_frame,
    traffic_class,
)

REQUESTS_MAX = 256
"""Unanswered requests to one peer."""
CLOSE_S = 2.0
"""How long a stopping node waits for its connections to end."""


class _Pending:
    """A request that waits for its reply."""

    __slots__ = ("peer", "reply", "reply_type")

    def __init__(self, peer: str, reply_type: type[Reply], reply: "asyncio.Future[Reply]") -> None:
        self.peer = peer
        self.reply_type = reply_type
        self.reply = reply


class Peers:
    """The links of one node. Implements `Transport`; judges greetings, and passes messages to `handler`.

    `queue_bytes_max` bounds what may wait for each peer. `listen` is "host:port"; port 0 lets the system choose.
    """

    def __init__(
        self,
        *,
        network: NetworkConfig,
        member: str,
        tls_key: SigningKey,
        further_tls_keys: Sequence[SigningKey] = (),
        listen: str,
        contracts_hash: bytes,
        instance: bytes,
        handler: PeerHandler,
        queue_bytes_max: int = 16 * 1024 * 1024,
        timing: Timing | None = None,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        """Raise ConfigError where `member` is none of the network's, or `tls_key` is not its key.

        `further_tls_keys` are those to which it rotated since, or will: the current members say which one is shown.
        """
        if network.member(member).tls_key != tls_key.public:
            raise ConfigError("wrong_key", f"the TLS key at hand is not the one that network.toml has for {member}")
        self._id = member
        self._shown = ShownKeys((tls_key, *further_tls_keys))
        self._listen = listen
        self._handler = handler
        self._queue_bytes_max = queue_bytes_max
        self._timing = timing or Timing()
        self._log = log if log is not None else structlog.get_logger()
        self._introduction = (PROTOCOL_VERSION, network.network_id, network.genesis_hash, member)
        self._instance = instance
        self.set_contracts(contracts_hash)
        self._members: dict[str, MemberConfig] = {}
        self._accounts: dict[str, Account] = {}
        self._links: dict[str, Link] = {}
        self._unproven: set[Link] = set()
        self._requests: dict[int, _Pending] = {}
        self._numbers = itertools.count(1)
        self._endings = Endings(self._log)
        self._listener = Listener(self._prove, lambda code, text: self._note(code, text))
        self._watching: asyncio.Task[None] | None = None
        self._running = False
        self.set_members(network.known)

    # --- the Transport ---

    async def start(self) -> None:
        """Listening, and dialling has begun. Raise ConfigError `port_in_use` or `cannot_listen`."""
        await self._listener.start(self._listen)
        self._running = True
        self._watching = asyncio.create_task(self._watch(), name="watch peers")
        self._log.info("peers.listening", address=self.address, member=self._id)
        self._start_diallers()

    async def close(self) -> None:
        """All links are closed and nothing runs any more. `on_disconnected` was called for each that was open."""
        self._running = False
        tasks = [account.dialler for account in self._accounts.values() if account.dialler]
        tasks += [self._watching] if self._watching else []
        for task in tasks:
            task.cancel()
        links = [*self._links.values(), *self._unproven]
        for link in links:
            self._refuse(link, "closed", "this node stops")
        await self._listener.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        waits = [asyncio.create_task(link.lost.wait()) for link in links if link.up]
        if waits:
            _, late = await asyncio.wait(waits, timeout=CLOSE_S)
            for wait in late:
                wait.cancel()
        await asyncio.sleep(0)  # the last on_ended calls are due now

    @property
    def address(self) -> str:
        """Where this node listens ("host:port"); "" before start."""
        return self._listener.address

    @property
    def connected(self) -> tuple[str, ...]:
        """The ids of the peers that messages reach now, in ascending order."""
        return tuple(sorted(peer for peer, link in self._links.items() if link.reason is None))

    def send(self, peer: str, message: WireMessage) -> bool:
        """Return whether `message` was queued: False when `peer` is not connected or its queue is full."""
        link = self._links.get(peer)
        return link is not None and link.send(message)

    def broadcast(self, message: WireMessage) -> None:
        """`message` is queued for every connected peer, encoded once."""
        if not self._links:
            return
        kind, frame = traffic_class(message), encode_frame(message)
        for link in self._links.values():
            link.send_frame(kind, frame)

    async def request(self, peer: str, message: Request, timeout_s: float) -> Reply:
        """Return the reply to `message`, whose `request` number is set here.

        Raise Unavailable: `peer_gone`, `peer_timeout`, `peer_busy` (its queue, or our questions to it, are full).
        """
        account = self._accounts.get(peer)
        if account is None or peer not in self.connected:
            raise Unavailable("peer_gone", f"{peer} is not connected", peer=peer)
        if account.requests >= REQUESTS_MAX:
            raise Unavailable("peer_busy", f"{peer} has {account.requests} requests to answer", peer=peer)
        number = next(self._numbers) % 2**32
        pending = _Pending(peer, REPLY_TYPES[type(message)], asyncio.get_running_loop().create_future())
        self._requests[number] = pending
        account.requests += 1
        try:
            if not self.send(peer, msgspec.structs.replace(message, request=number)):
                raise Unavailable("peer_busy", f"the queue to {peer} is full", peer=peer)
            async with asyncio.timeout(timeout_s):
                return await pending.reply
        except TimeoutError as error:
            name = type(message).__name__
            raise Unavailable(
                "peer_timeout", f"{peer} did not answer {name} in {timeout_s:g} s", peer=peer
            ) from error
        finally:
            account.requests -= 1
            del self._requests[number]

    def peers(self) -> tuple[PeerInfo, ...]:
        """Every other member with the state of its link, in the members' order."""
        return tuple(
            self._accounts[member.id].describe(member, self._links.get(member.id))
            for member in self._members.values()
        )

    def refusals(self) -> Mapping[str, int]:
        """How many connections ended or failed since the start, by reason code."""
        return dict(self._endings.counts)

    def set_contracts(self, contracts_hash: bytes) -> None:
        """Whoever is greeted from now on is told this hash of the contracts that are active here."""
        introduction = (*self._introduction, contracts_hash, self._instance)
        self._hello, self._welcome = Hello(*introduction), Welcome(*introduction)

    def set_members(self, members: Sequence[MemberConfig]) -> None:
        """Only `members` are spoken to from now on; links of removed members, and under old keys, are closed.

        Of its own keys the node shows those that are valid (shown_keys.py).
        """
        before = self._members
        own = next((member for member in members if member.id == self._id), None)
        if own is not None and not self._shown.has(own.tls_key):
            self._log.error("peers.tls_key_missing", tls_key=own.tls_key.hex(), member=self._id)
        self._members = {member.id: member for member in members if member.id != self._id}
        pinned = [key for member in self._members.values() for key in member.tls_keys]
        self._shown.show(() if own is None else own.tls_keys, pinned)
        for member_id in [*before]:
            old, new = before[member_id], self._members.get(member_id)
            link = self._links.get(member_id)
            proven = link is not None and new is not None and certificate_key(link.certificate) in new.tls_keys
            if new is not None and new.address == old.address and (link is None or proven):
                continue
            dialler = self._accounts[member_id].dialler
            if dialler is not None:
                dialler.cancel()
                self._accounts[member_id].dialler = None
            if link is not None and not proven:
                self._refuse(link, "not_a_member", f"{member_id} is no member any more, or its key was changed")
            if new is None:
                del self._accounts[member_id]
        for member_id in self._members:
            self._accounts.setdefault(member_id, Account())
        if self._running:
            self._start_diallers()

    # --- dialling and accepting ---

    def _start_diallers(self) -> None:
        for member in self._members.values():
            account = self._accounts[member.id]
            if account.dialler is None:
                dial = self._dial(member) if member.id < self._id else self._dial_late(member)
                account.dialler = asyncio.create_task(dial, name=f"dial {member.id}")

    async def _dial(self, member: MemberConfig) -> None:
        """Keep one link to `member` for as long as this task lives."""
        timing = self._timing
        delay = timing.retry_first_s
        while True:
            link = await self._connect(member)
            if link is not None:
                await link.lost.wait()
                if asyncio.get_running_loop().time() - link.opened_at > timing.stable_s:
                    delay = timing.retry_first_s
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, timing.retry_cap_s)

    async def _dial_late(self, member: MemberConfig) -> None:
        """Dial `member`, whose turn it is to dial, when there was no link for a while."""
        patience_s = self._timing.fallback_first_s
        while True:
            await asyncio.sleep(patience_s * random.uniform(0.75, 1.25))
            patience_s = self._timing.fallback_s
            if member.id not in self._links:
                link = await self._connect(member)
                if link is not None:
                    await link.lost.wait()

    async def _connect(self, member: MemberConfig) -> Link | None:
        """Return an open link to `member`, or None after the reason was noted."""
        link = Link(self, member.id, self._queue_bytes_max)
        host, port = split_address(member.address)
        # Its key may have changed since this node began to dial it.
        known_by = self._members.get(member.id, member).tls_key
        account = self._accounts[member.id]
        context = self._shown.client(former=account.shows_former)
        self._unproven.add(link)
        try:
            async with asyncio.timeout(self._timing.connect_s):
                await asyncio.get_running_loop().create_connection(
                    lambda: link,
                    host,
                    port,
                    ssl=context,
                    server_hostname=server_name(known_by),
                    ssl_handshake_timeout=self._timing.connect_s,
                )
            # A refused key shows only now: the handshake has come to its end on this side.
            account.shows_former = not account.shows_former
            await self._await_greeting(link)
        except asyncio.CancelledError:
            link.abort("closed", "the attempt was given up")
            raise
        except (OSError, ValueError) as error:  # ValueError: a host name that cannot be encoded
            self._note("unreachable", describe_failure(error), member.id)
            return None
        finally:
            self._unproven.discard(link)
        if link.peer is None:
            return None
        account.shows_former = False
        return link

    async def _prove(self, connection: socket.socket, host: str) -> None:
        """Return when the caller behind `connection` is a connected peer, or gone."""
        link = Link(self, None, self._queue_bytes_max)
        self._unproven.add(link)
        try:
            async with asyncio.timeout(self._timing.connect_s):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: link,
                    connection,
                    ssl=self._shown.server,
                    ssl_handshake_timeout=self._timing.connect_s,
                )
            await self._await_greeting(link)
        except asyncio.CancelledError:
            link.abort("closed", "the attempt was given up")
            raise
        except OSError as error:
            self._note("handshake_failed", f"{host}: {describe_failure(error)}")
        finally:
            self._unproven.discard(link)

    async def _await_greeting(self, link: Link) -> None:
        try:
            async with asyncio.timeout(self._timing.greeting_s):
                await link.greeted.wait()
        except TimeoutError:
            self._refuse(link, "greeting_timeout", "the greeting did not come in time")

    # --- what links tell ---

    def on_secured(self, link: Link) -> None:
        """The handshake is done: compare the key with the current members, then greet or wait for the greeting."""
        member = self._member_of(link)
        if member is None:
            self._refuse(link, "not_a_member", "your TLS key belongs to no member of this network")
        elif link.dialled not in (None, member.id):
            self._refuse(link, "wrong_member", f"{link.dialled} was dialled, {member.id} answered")
        else:
            link.proven = member.id
            if link.dialled is not None:
                link.send(self._hello)

    def on_payload(self, link: Link, payload: bytes) -> None:
        """A frame came: a greeting, or a message of a connected peer."""
        message = decode_message(payload)
        if link.peer is None:
            self._on_greeting(link, message)
        elif isinstance(message, Reply):
            self._on_reply(link.peer, message)
        elif isinstance(message, Ping):
            link.send(Pong(message.number))
        elif isinstance(message, Pong):
            self._on_pong(link, message)
        elif isinstance(message, Refusal):
            self._on_refusal(link, message)
        elif isinstance(message, Hello | Welcome):
            raise InvalidFrame("invalid_frame", "a second greeting")
        else:
            self._handler.on_message(link.peer, message)

    def on_ended(self, link: Link) -> None:
        """The link ended: its member is told of, and whoever waited for it."""
        code, text = link.reason or ("lost", "")
        member_id = link.peer or link.proven or link.dialled
        account = self._accounts.get(member_id or "")
        if account is not None:
            account.sent_bytes += link.sent_bytes
            account.received_bytes += link.received_bytes
            account.dropped_messages += link.dropped_messages
        self._note(code, f"{link.remote}: {text}", member_id)
        if link.peer is None or self._links.get(link.peer) is not link:
            return
        self._disconnected(link.peer)

    def _member_of(self, link: Link) -> MemberConfig | None:
        """The current member whose TLS key the other side has proven."""
        key = certificate_key(link.certificate)
        return next((member for member in self._members.values() if key in member.tls_keys), None)

    def _on_greeting(self, link: Link, message: WireMessage) -> None:
        if isinstance(message, Refusal):
            self._on_refusal(link, message)
            return
        greeting = Hello if link.dialled is None else Welcome
        if not isinstance(message, Hello | Welcome) or not isinstance(message, greeting):
            raise InvalidFrame("invalid_frame", "a greeting out of place")
        ours = self._hello
        if message.version != ours.version:
            text = f"protocol version {message.version} meets {ours.version}"
            self._refuse(link, "wrong_version", text)
        elif (message.network, message.genesis_hash) != (ours.network, ours.genesis_hash):
            text = f"network {message.network} ({message.genesis_hash.hex()[:16]}) meets {ours.network}"
            self._refuse(link, "wrong_network", text)
        elif message.member != link.proven:
            self._refuse(link, "wrong_member", f"the certificate says {link.proven}, the greeting {message.member}")
        elif self._member_of(link) is None:  # removed since the handshake
            self._refuse(link, "not_a_member", "your TLS key belongs to no member of this network")
        elif self._is_spare(link, message):
            self._refuse(link, "wrong_direction", "there is a link to this process already")
        else:
            link.instance = message.instance
            if link.dialled is None:
                link.send(self._welcome)
            self._opened(link, message.member, message.contracts_hash)

    def _is_spare(self, link: Link, greeting: Hello | Welcome) -> bool:
        """Whether the lower id dialled for a second link: two that dial at once would cut each other's."""
        usual = (link.dialled is not None) == (greeting.member < self._id)
        known = self._links.get(greeting.member)
        return not usual and known is not None and known.reason is None and known.instance == greeting.instance

    @staticmethod
    def _on_refusal(link: Link, refusal: Refusal) -> None:
        if refusal.code == "closed":
            link.abort("closed", "the peer stops")
        else:
            link.abort("refused", f"{refusal.code}: {printable(refusal.message)}")

    def _opened(self, link: Link, peer: str, contracts_hash: bytes) -> None:
        older = self._links.get(peer)
        if older is not None:
            self._refuse(older, "replaced", "a newer connection of the same member took its place")
            self._disconnected(peer)
        account = self._accounts[peer]
        account.contracts_hash = contracts_hash
        account.repeated = ""
        link.open(peer, contracts_hash, time.time_ns() // 1_000_000)
        self._links[peer] = link
        self._log.info("peer.connected", peer=peer, remote=link.remote, dialled=link.dialled is not None)
        if contracts_hash != self._hello.contracts_hash:
            theirs, ours = contracts_hash.hex()[:16], self._hello.contracts_hash.hex()[:16]
            self._log.warning("peer.other_contracts", peer=peer, theirs=theirs, ours=ours)
        self._handler.on_connected(peer)
        link.resume()

    def _disconnected(self, peer: str) -> None:
        del self._links[peer]
        for pending in self._requests.values():
            if pending.peer == peer and not pending.reply.done():
                pending.reply.set_exception(Unavailable("peer_gone", f"{peer} went away", peer=peer))
        self._handler.on_disconnected(peer)

    def _on_reply(self, peer: str, message: Reply) -> None:
        pending = self._requests.get(message.request)
        if pending is None or pending.peer != peer or pending.reply.done():
            self._endings.counts["late_reply"] += 1
            return
        if not isinstance(message, pending.reply_type):
            raise InvalidFrame("invalid_frame", f"{type(message).__name__} answers another question")
        pending.reply.set_result(message)

    # --- watching ---

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        interval = min(self._timing.ping_s, self._timing.silence_s / 4)
        before = loop.time()
        while True:
            await asyncio.sleep(interval)
            now = loop.time()
            was_paused = now - before > interval + self._timing.silence_s / 2
            before = now
            for link in tuple(self._links.values()):
                if was_paused:  # then nobody else was silent: this process was
                    link.forgive()
                elif now - link.heard_at > self._timing.silence_s:
                    link.abort("silent", f"nothing came for {self._timing.silence_s:g} s")
                elif link.blocked_s > self._timing.silence_s:
                    link.abort("not_reading", f"nothing could be written for {self._timing.silence_s:g} s")
                else:
                    if link.ping_sent_at is None:
                        link.ping_sent_at = now
                        link.ping_number = (link.ping_number + 1) % 2**32
                    link.send(Ping(link.ping_number))

    @staticmethod
    def _on_pong(link: Link, pong: Pong) -> None:
        if link.ping_sent_at is not None and pong.number == link.ping_number:
            link.round_trip_ms = round((asyncio.get_running_loop().time() - link.ping_sent_at) * 1000)
            link.ping_sent_at = None

    # --- telling ---

    def _refuse(self, link: Link, code: str, text: str) -> None:
        """End `link`; the other side reads the reason if it still reads."""
        link.send(Refusal(code, text[:REASON_LENGTH_MAX]))
        link.close(code, text)

    def _note(self, code: str, text: str, member_id: str | None = None) -> None:
        self._endings.note(code, text, member_id, self._accounts.get(member_id or ""))
