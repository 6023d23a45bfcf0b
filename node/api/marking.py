"""Every answer of a node that executes a block otherwise than the network says so, whatever was asked."""

from typing import Final

from litestar.types import ASGIApp, Message, Receive, Scope, Send

from node.api.service import NodeService

HEADER: Final = "hansa-diverged"
"""The height of the block in question: what is read is the certified state before it, and does not go on."""


class DivergenceMark:
    """An ASGI application that adds the header to what the application inside answers while the node diverges."""

    def __init__(self, app: ASGIApp, service: NodeService) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application inside does, marked."""

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                height = self._service.diverged_at()
                if height is not None:
                    headers = [*message["headers"], (HEADER.encode(), str(height).encode())]
                    message["headers"] = headers
            await send(message)

        await self._app(scope, receive, marked)
