"""One client's connection: uvicorn's HTTP/1.1 on httptools, with the bounds that they leave to whoever uses them.

The parser is C and knows no limits: an address, a field, the trailer behind a body or a chunk's extension may go on
for ever, and one packet may hold thousands of whole requests. None of it costs a node more here than the constants
below, whoever sends it.
"""

import asyncio
from typing import ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from node.api.failures import failure_bytes
from node.errors import RejectedTransaction, Unavailable

HEAD_BYTES_MAX: Final = 32 * 1024
"""A request's address and fields, the trailing ones with them; and what comes without meaning anything so far."""
PIPELINED_MAX: Final = 32
"""Requests of one connection that wait for their turn."""


class _TooMuch(Exception):
    """What came is more than may come; the parser ends with it."""


class BoundedProtocol(HttpToolsProtocol):
    """Bounds a request's head, what is sent ahead, the time to begin, and connections; fails in our shape."""

    connections_max: ClassVar[int] = 0
    _waiting_since: float | None = None
    _head_bytes = 0
    _unclear_bytes = 0
    _understood = False
    _too_much = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.connections_max:
            error = Unavailable("node_busy", "too many connections are open", retry_after_ms=1000)
            self._answer(503, failure_bytes(error))
            return
        self._await_request()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._understood = False
        super().data_received(data)
        # The parser keeps a field that has not ended to itself, and says nothing until it has.
        self._unclear_bytes = 0 if self._understood else self._unclear_bytes + len(data)
        if self._unclear_bytes > HEAD_BYTES_MAX:
            self.send_400_response(f"a field, or what should be one, has more than {HEAD_BYTES_MAX} bytes")
            return
        if self._answering():
            self._waiting_since = None
        elif self.timeout_keep_alive_task is None and not self.transport.is_closing():
            # Part of a request's head: what is missing has to come in the same time, not byte by byte.
            self._await_request()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._understood = True
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= PIPELINED_MAX:
            self._too_much = f"at most {PIPELINED_MAX} requests may be sent ahead of their answers"
            raise _TooMuch
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._understood = True
        super().on_body(body)

    def _count(self, size_bytes: int) -> None:
        self._understood = True
        self._head_bytes += size_bytes
        if self._head_bytes > HEAD_BYTES_MAX:
            self._too_much = f"the address and fields of a request have at most {HEAD_BYTES_MAX} bytes"
            raise _TooMuch

    def _await_request(self) -> None:
        now = self.loop.time()
        self._waiting_since = self._waiting_since or now
        self.timeout_keep_alive_task = self.loop.call_at(
            self._waiting_since + self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        self._answer(400, failure_bytes(RejectedTransaction("malformed_request", self._too_much or msg)))

    def _answer(self, status: int, body: bytes) -> None:
        """Write a whole answer outside any request, and close."""
        reason = {400: "Bad Request", 503: "Service Unavailable"}[status]
        head = f"HTTP/1.1 {status} {reason}\r\nconnection: close\r\ncontent-type: application/json\r\n"
        if not (self._answering() and self.cycle.response_started):
            self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()


def bounded_protocol(connections_max: int) -> type[asyncio.Protocol]:
    """The class of connections of which `connections_max` may be open at a time."""
    return type("Connection", (BoundedProtocol,), {"connections_max": connections_max})
