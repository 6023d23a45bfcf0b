"""The HTTP server: the routes behind bounds, listening inside the node's own event loop."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Annotated, Any, Final

import msgspec
import uvicorn
from litestar import Litestar, Router
from litestar.openapi import OpenAPIConfig
from litestar.types import ASGIApp, ControllerRouterHandler

from node.api.backing_up import backup_routes
from node.api.connections import bounded_protocol
from node.api.documents import document_routes
from node.api.failures import EXCEPTION_HANDLERS
from node.api.intake import BodyIntake
from node.api.marking import DivergenceMark
from node.api.proving import proof_routes
from node.api.reading import ledger_routes, node_routes, probe_routes
from node.api.service import NodeService
from node.api.streaming import HEARTBEAT_S, EventStreams, event_routes
from node.api.submitting import submitting_routes
from node.errors import ConfigError

STOP_TIMEOUT_S: Final = 5
DEAD_CLIENT_TIMEOUT_MS: Final = 60_000


class ApiLimits(msgspec.Struct, frozen=True):
    """What this node spends on its clients.

    `idle_timeout_s` bounds how long a connection may be silent between requests, or take to begin one.
    """

    request_bytes_max: Annotated[int, msgspec.Meta(ge=1)] = 16 * 1024 * 1024
    connections_max: Annotated[int, msgspec.Meta(ge=1)] = 256
    streams_max: Annotated[int, msgspec.Meta(ge=0)] = 64
    idle_timeout_s: Annotated[int, msgspec.Meta(ge=1)] = 60
    heartbeat_s: float = HEARTBEAT_S


class ApiServer:
    """Serves a NodeService over HTTP on one address, from `start` to `stop`, inside the running event loop.

    It installs no signal handlers and writes no files. Whoever may reach the address may read and submit:
    transactions carry their own signatures, and reading is limited by where the node listens.
    """

    def __init__(
        self, service: NodeService, host: str, port: int, *, limits: ApiLimits | None = None, version: str = "0.1.0"
    ) -> None:
        """`port` 0 lets the system choose; `version` is shown in the documents."""
        self._service = service
        self._host = host
        self._port = port
        self._limits = limits or ApiLimits()
        self._version = version
        self._server: _EmbeddedServer | None = None
        self._serving: asyncio.Task[None] | None = None
        self._streams: EventStreams | None = None
        self._listener: socket.socket | None = None

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._listener.getsockname()[1]) if self._listener else self._port

    @property
    def url(self) -> str:
        """Where clients on this machine reach it."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Requests are answered from now on; raise ConfigError when the address cannot be listened on."""
        self._listener = _listen(self._host, self._port)
        self._streams = EventStreams(self._limits.streams_max, self._limits.heartbeat_s)
        routes = build_app(self._service, self._streams, self._version)
        app = BodyIntake(DivergenceMark(routes, self._service), self._limits.request_bytes_max)
        config = uvicorn.Config(
            app,
            http=bounded_protocol(self._limits.connections_max),
            ws="none",
            lifespan="off",
            log_config=None,
            # Below errors there is only what strangers send; it would fill the log at their pleasure.
            log_level="error",
            access_log=False,
            server_header=False,
            # Nothing here asks who the client is, so no header may say so.
            proxy_headers=False,
            timeout_keep_alive=self._limits.idle_timeout_s,
            timeout_graceful_shutdown=STOP_TIMEOUT_S,
        )
        self._server = _EmbeddedServer(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]), name="hansa-api")
        listening = asyncio.create_task(self._server.listening.wait())
        await asyncio.wait([listening, self._serving], return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if self._serving.done():
            await self._serving

    async def stop(self) -> None:
        """Nothing is listened on any more; requests in work had a moment to end, streams were ended."""
        if self._server is None or self._serving is None or self._streams is None:
            return
        self._streams.closing.set()
        self._server.should_exit = True
        await self._serving
        self._server = self._serving = self._streams = None
        if self._listener is not None:
            self._listener.close()


def build_app(service: NodeService, streams: EventStreams, version: str) -> ASGIApp:
    """The ASGI application of all routes."""

    def routes() -> list[ControllerRouterHandler]:
        versioned = [
            *submitting_routes(service),
            *ledger_routes(service),
            *proof_routes(service),
            *backup_routes(service),
            *node_routes(service),
            *event_routes(service, streams),
        ]
        return [Router("/v1", route_handlers=versioned), *probe_routes(service)]

    def describe() -> dict[str, Any]:
        # Never served: with a description of its own, an application also gets pages that load from elsewhere.
        described = Litestar(routes(), openapi_config=OpenAPIConfig(title="Hansa", version=version))
        return described.openapi_schema.to_schema()

    return Litestar(
        [*routes(), *document_routes(service, describe, version)],
        exception_handlers=EXCEPTION_HANDLERS,
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,
    )


def _listen(host: str, port: int) -> socket.socket:
    address = f"{host}:{port}"
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError("cannot_listen", f"{address}: {error.strerror or error}", address=address) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # A client that takes nothing keeps its connection only so long (accepted sockets inherit this).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_CLIENT_TIMEOUT_MS)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.bind(target)
        listener.listen(128)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        code = "port_in_use" if error.errno == errno.EADDRINUSE else "cannot_listen"
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(code, f"the API cannot listen on {address}: {reason}", address=address) from error
    return listener


class _EmbeddedServer(uvicorn.Server):
    """Leaves the process's signals to the node, and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
