"""Bodies are read here, before any handler runs: bounded in size, in time and in their sum over all requests.

A request that breaks a bound is answered at once. What its sender still has on the way is read and thrown
away before the connection closes, while it keeps coming and for half a minute at most: closing earlier would reset
the connection, and the answer would be lost.
"""

import asyncio
from typing import Final

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPReceiveMessage, Receive, Scope, Send

from node.api.failures import failure_bytes, failure_headers, status_of
from node.errors import HansaError, RejectedTransaction, Unavailable

BODY_TIMEOUT_S: Final = 60.0
DISCARD_IDLE_S: Final = 2.0
DISCARD_TIMEOUT_S: Final = 30.0
WHOLE_BODIES_MAX: Final = 4
"""How many bodies of the largest size may be in memory at a time, summed over all requests."""


class BodyIntake:
    """An ASGI application that hands `app` whole bodies of at most `size_bytes_max`."""

    def __init__(self, app: ASGIApp, size_bytes_max: int) -> None:
        self._app = app
        self._size_bytes_max = size_bytes_max
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        held = _Held()
        try:
            try:
                self._check_declared(scope)
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    whole = await self._read(receive, held)
            except TimeoutError:
                await _refuse(
                    RejectedTransaction("body_too_slow", f"the body was not complete after {BODY_TIMEOUT_S:.0f} s"),
                    receive,
                    send,
                )
                return
            except HansaError as error:
                await _refuse(error, receive, send)
                return
            if whole is None:
                return
            await self._app(scope, _replay(whole, receive), send)
        finally:
            self._held_bytes -= held.bytes

    def _check_declared(self, scope: Scope) -> None:
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > self._size_bytes_max:
                raise self._too_large()

    def _too_large(self) -> RejectedTransaction:
        return RejectedTransaction(
            "body_too_large",
            f"a request's body may have {self._size_bytes_max} bytes",
            limit_bytes=self._size_bytes_max,
        )

    async def _read(self, receive: Receive, held: "_Held") -> bytes | None:
        """The whole body, or None when the client went away."""
        chunks: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            chunk = message["body"]
            held.bytes += len(chunk)
            self._held_bytes += len(chunk)
            if held.bytes > self._size_bytes_max:
                raise self._too_large()
            if self._held_bytes > self._size_bytes_max * WHOLE_BODIES_MAX:
                raise Unavailable("node_busy", "too many large requests at a time", retry_after_ms=1000)
            chunks.append(chunk)
            if not message["more_body"]:
                return b"".join(chunks)


class _Held:
    """How many bytes one request holds."""

    def __init__(self) -> None:
        self.bytes = 0


def _has_body(scope: Scope) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the whole body once, then what the server says (that is: the client went away)."""
    given = False

    async def replay() -> HTTPReceiveMessage:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()  # type: ignore[return-value]

    return replay


async def _refuse(error: HansaError, receive: Receive, send: Send) -> None:
    body = failure_bytes(error)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    headers += [(name.encode(), value.encode()) for name, value in failure_headers(error).items()]
    await send({"type": "http.response.start", "status": status_of(error), "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    try:
        async with asyncio.timeout(DISCARD_TIMEOUT_S):
            while True:
                async with asyncio.timeout(DISCARD_IDLE_S):
                    message = await receive()
                if message["type"] != "http.request" or not message["more_body"]:
                    break
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})
