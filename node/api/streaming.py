"""Events: pages of them, and streams that resume where a client left off.

A stream reads from the store only as fast as its client takes, so a slow client costs one page of memory and
never delays the node or another client. A client that takes nothing for a while is let go: it has its cursor.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter
from litestar.types import ASGIApp, Receive, Scope, Send

from node.api.service import EventCursor, EventFilter, NodeService
from node.client.answers import EventPage, LedgerEvent
from node.errors import Unavailable

STREAM_PAGE_EVENTS: Final = 200
PAGE_EVENTS_MAX: Final = 1_000
HEARTBEAT_S: Final = 15.0
SEND_TIMEOUT_S: Final = 30.0


class EventStreams:
    """The open streams of one server: their bound, and their common end."""

    def __init__(self, streams_max: int, heartbeat_s: float = HEARTBEAT_S) -> None:
        self.closing = asyncio.Event()
        self.heartbeat_s = heartbeat_s
        self._streams_max = streams_max
        self._open = 0

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places; raise `too_many_streams` when there is none."""
        if self._open >= self._streams_max:
            raise Unavailable("too_many_streams", f"{self._streams_max} streams are open", retry_after_ms=5_000)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


def event_routes(service: NodeService, streams: EventStreams) -> list[HTTPRouteHandler]:
    """The handler of /v1/events."""

    @get(
        "/events",
        summary="Events of contracts, as a page or as a stream",
        description="With `Accept: text/event-stream`: server-sent events from the cursor on (without one: from"
        " now), for ever; an event's `id` is its cursor, and `Last-Event-ID` or `after` resumes just behind it."
        " Else one page (without a cursor: from the first block).",
        tags=["ledger"],
        sync_to_thread=False,
        responses={200: ResponseSpec(EventPage, description="A page, or a stream", generate_examples=False)},
    )
    def events(
        request: Request[None, None, State],
        after: Annotated[str | None, QueryParameter(description="A cursor, HEIGHT:POSITION.")] = None,
        contract: Annotated[
            str | None, QueryParameter(max_length=40, description="Only events of this contract.")
        ] = None,
        topic: Annotated[
            str | None, QueryParameter(max_length=512, description="Only events with this topic.")
        ] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=PAGE_EVENTS_MAX)] = 100,
    ) -> ASGIApp:
        wanted = EventFilter(contract, topic)
        if "text/event-stream" not in request.headers.get("accept", ""):
            start = EventCursor.parse(after) if after else EventCursor(0, -1)
            page = service.events(start, limit, wanted)
            return Response(msgspec.json.encode(page), media_type="application/json").to_asgi_response(
                None, request
            )
        resumed = request.headers.get("last-event-id") or after
        start = EventCursor.parse(resumed) if resumed else EventCursor(service.height() + 1, -1)
        # Read before the answer starts, so that a pruned cursor is an error and not a broken stream.
        first = service.events(start, STREAM_PAGE_EVENTS, wanted)
        return _Stream(service, streams, wanted, first)

    return [events]


class _Stream:
    """One client's stream, as an ASGI application."""

    def __init__(self, service: NodeService, streams: EventStreams, wanted: EventFilter, first: EventPage) -> None:
        self._service = service
        self._streams = streams
        self._wanted = wanted
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._streams.place():
            ends = [
                asyncio.ensure_future(_until_disconnect(receive)),
                asyncio.ensure_future(self._streams.closing.wait()),
            ]
            try:
                headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await self._run(send, ends)
            except TimeoutError:
                # The client takes nothing. Ending here without a last chunk closes its connection.
                return
            finally:
                for end in ends:
                    end.cancel()

    async def _run(self, send: Send, ends: Sequence["asyncio.Future[Any]"]) -> None:
        page = self._first
        await self._send(send, b"retry: 1000\n\n")
        while not any(end.done() for end in ends):
            if page.events:
                await self._send(send, b"".join(map(_event_bytes, page.events)))
            if page.complete:
                above = self._service.height()
                if not await self._wait(above, ends):
                    # An id without data moves the client's cursor over blocks that had nothing for it.
                    await self._send(send, f"id: {page.next}\n: height {above}\n\n".encode())
            page = self._service.events(EventCursor.parse(page.next), STREAM_PAGE_EVENTS, self._wanted)
        await asyncio.wait_for(
            send({"type": "http.response.body", "body": b"", "more_body": False}), SEND_TIMEOUT_S
        )

    async def _wait(self, above: int, ends: Sequence["asyncio.Future[Any]"]) -> bool:
        """Whether a block above `above` came, rather than the end of the stream or time for a heartbeat."""
        came = asyncio.ensure_future(self._service.wait_height(above))
        try:
            await asyncio.wait(
                [came, *ends], timeout=self._streams.heartbeat_s, return_when=asyncio.FIRST_COMPLETED
            )
            return came.done()
        finally:
            came.cancel()

    async def _send(self, send: Send, data: bytes) -> None:
        await asyncio.wait_for(
            send({"type": "http.response.body", "body": data, "more_body": True}), SEND_TIMEOUT_S
        )


def _event_bytes(event: LedgerEvent) -> bytes:
    return b"id: " + event.cursor.encode() + b"\ndata: " + msgspec.json.encode(event) + b"\n\n"


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
