"""The listening socket, and what strangers may cost before they have proven who they are."""

import asyncio
import contextlib
import errno
import socket
from collections import Counter
from collections.abc import Awaitable, Callable

from node.config import split_address
from node.errors import ConfigError

UNPROVEN_MAX = 64
"""Connections at once whose handshake or greeting is not finished."""
UNPROVEN_HOST_MAX = 32
"""The same, of one source address."""
ACCEPT_PAUSE_S = 0.2
"""How long to wait when the process has no file descriptor left."""


class Listener:
    """Accepts connections and hands each to `prove`, which returns when the peer is proven or gone.

    Beyond the limits a connection is closed at once, and `refuse` is told (code, text).
    """

    def __init__(
        self, prove: Callable[[socket.socket, str], Awaitable[None]], refuse: Callable[[str, str], None]
    ) -> None:
        self._prove = prove
        self._refuse = refuse
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._proving: set[asyncio.Task[None]] = set()
        self._unproven: Counter[str] = Counter()

    @property
    def address(self) -> str:
        """Where it listens, with the port that the system chose for port 0; "" while it does not."""
        if self._socket is None:
            return ""
        name = self._socket.getsockname()
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"

    async def start(self, listen: str) -> None:
        """It listens on "host:port". Raise ConfigError `port_in_use` or `cannot_listen`."""
        host, port = split_address(listen)
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, kind, protocol, _, address = found[0]
            self._socket = socket.socket(family, kind, protocol)
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(address)
            self._socket.listen(UNPROVEN_MAX)
        except OSError as error:
            self._close_socket()
            code = "port_in_use" if error.errno == errno.EADDRINUSE else "cannot_listen"
            raise ConfigError(code, f"{listen}: {error.strerror or error}", listen=listen) from error
        self._accepting = asyncio.create_task(self._accept(self._socket), name=f"accept {listen}")

    async def close(self) -> None:
        """Nothing is accepted any more and no handshake is under way."""
        tasks = [*self._proving, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._close_socket()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except OSError as error:
                self._refuse("accept_failed", str(error))
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            host = address[0]
            if self._unproven.total() >= UNPROVEN_MAX or self._unproven[host] >= UNPROVEN_HOST_MAX:
                connection.close()
                self._refuse("too_many_connections", f"{host}: too many unfinished handshakes")
                continue
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._unproven[host] += 1
            task = asyncio.create_task(self._run(connection, host), name=f"prove {host}")
            self._proving.add(task)
            task.add_done_callback(self._proving.discard)

    async def _run(self, connection: socket.socket, host: str) -> None:
        try:
            await self._prove(connection, host)
        finally:
            self._unproven[host] -= 1
            if not self._unproven[host]:
                del self._unproven[host]

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
