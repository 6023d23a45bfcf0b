"""Real transports on 127.0.0.1, with a handler that remembers, and a peer that misbehaves on purpose."""

import asyncio
import contextlib
import itertools
import os
import secrets
import socket
from collections.abc import Callable, Sequence

import msgspec

from consensus.messages import INSTANCE_SIZE
from node.config import MemberConfig, NetworkConfig
from node.keys import SigningKey, tls_context
from node.peers import Peers, Timing
from node.wire import (
    PROTOCOL_VERSION,
    FrameDecoder,
    Hello,
    Welcome,
    WireMessage,
    decode_message,
    encode_frame,
)

CONTRACTS_HASH = b"c" * 32
INSTANCE = b"i" * 16
QUICK = Timing(
    connect_s=1.0,
    greeting_s=5.0,
    retry_first_s=0.01,
    retry_cap_s=0.05,
    fallback_first_s=5.0,
    stable_s=0.5,
    ping_s=0.1,
    silence_s=1.2,
)
WAIT_S = 8.0


async def until(condition: Callable[[], bool]) -> None:
    """Return as soon as `condition` holds; fail when it does not in time."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - the condition is about several objects
            await asyncio.sleep(0.002)


class Handler:
    """Remembers what it was told; `react` may answer."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, WireMessage]] = []
        self.links: list[str] = []
        self.react: Callable[[str, WireMessage], None] = lambda peer, message: None

    def on_message(self, peer: str, message: WireMessage) -> None:
        self.messages.append((peer, message))
        self.react(peer, message)

    def on_connected(self, peer: str) -> None:
        self.links.append(f"+{peer}")

    def on_disconnected(self, peer: str) -> None:
        self.links.append(f"-{peer}")


class Mesh:
    """A network of `ids` whose nodes are started by name; addresses are free ports of this machine."""

    def __init__(self, ids: Sequence[str], timing: Timing = QUICK, queue_bytes_max: int = 1024 * 1024) -> None:
        self.tls_keys = {member: SigningKey.generate() for member in ids}
        self.network = NetworkConfig(
            "trial",
            tuple(
                MemberConfig(
                    member,
                    "validator",
                    f"127.0.0.1:{free_port()}",
                    SigningKey.generate().public,
                    self.tls_keys[member].public,
                )
                for member in ids
            ),
        )
        self.handlers = {member: Handler() for member in ids}
        self.nodes: dict[str, Peers] = {}
        self.instances: dict[str, bytes] = {}
        self._timing = timing
        self._queue_bytes_max = queue_bytes_max

    async def start(self, member: str, **changes: object) -> Peers:
        """The node of `member` listens and dials. `changes` replace constructor arguments."""
        self.instances[member] = secrets.token_bytes(INSTANCE_SIZE)
        arguments: dict[str, object] = {
            "network": self.network,
            "member": member,
            "tls_key": self.tls_keys[member],
            "listen": next((m.address for m in self.network.members if m.id == member), "127.0.0.1:0"),
            "contracts_hash": CONTRACTS_HASH,
            "instance": self.instances[member],
            "handler": self.handlers[member],
            "queue_bytes_max": self._queue_bytes_max,
            "timing": self._timing,
            **changes,
        }
        node = Peers(**arguments)  # type: ignore[arg-type]
        await node.start()
        self.nodes[member] = node
        return node

    async def start_all(self) -> None:
        """All nodes run and every one is connected with every other."""
        for member in self.tls_keys:
            await self.start(member)
        await until(lambda: all(len(node.connected) == len(self.nodes) - 1 for node in self.nodes.values()))

    async def close(self) -> None:
        for node in self.nodes.values():
            await node.close()

    async def intruder(self, victim: str, key: SigningKey) -> "Intruder":
        """A raw TLS connection to `victim`, showing the certificate of `key`."""
        host, port = self.nodes[victim].address.rsplit(":", 1)
        context = tls_context(key, server=False, pinned=[self.tls_keys[victim].public])
        async with asyncio.timeout(WAIT_S):
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="")
        return Intruder(reader, writer)

    def hello(self, sender: str, /, **changes: object) -> Hello:
        """The greeting that `sender` would send, with `changes`."""
        network = self.network
        hello = Hello(PROTOCOL_VERSION, network.network_id, network.genesis_hash, sender, CONTRACTS_HASH, INSTANCE)
        return msgspec.structs.replace(hello, **changes)


class Intruder:
    """One side of a connection, under the test's control."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._decoder = FrameDecoder()
        self._messages: list[WireMessage] = []

    async def send(self, data: bytes | WireMessage) -> None:
        self.writer.write(data if isinstance(data, bytes) else encode_frame(data))
        with contextlib.suppress(OSError):
            await self.writer.drain()

    async def receive(self) -> WireMessage | None:
        """The next message; None when the other side has closed."""
        async with asyncio.timeout(WAIT_S):
            while not self._messages:
                try:
                    data = await self.reader.read(65_536)
                except OSError:
                    return None
                if not data:
                    return None
                payloads = self._decoder.feed(data)
                self._messages += map(decode_message, payloads)
                if any(isinstance(message, Welcome) for message in self._messages):
                    self._messages += map(decode_message, self._decoder.open())
        return self._messages.pop(0)

    async def ended(self) -> bool:
        """True once the other side has closed, whatever it says before."""
        while await self.receive() is not None:
            pass
        return True

    def close(self) -> None:
        self.writer.transport.abort()


_PORTS_EACH = 500
_FIRST_PORT = 10_000 + os.getpid() % 20 * _PORTS_EACH
_PORTS = itertools.cycle(range(_FIRST_PORT, _FIRST_PORT + _PORTS_EACH))


def free_port() -> int:
    """A port that nobody listens on, and that nobody is lent before it is used.

    The kernel lends ports from 32,768 on to outgoing connections, of which other tests make many; the networks of
    tests/e2e have theirs from 20,000 on. Each process goes through a range of its own.
    """
    while True:
        port = next(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
