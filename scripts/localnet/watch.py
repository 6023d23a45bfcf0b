"""What the nodes of a network say of themselves, asked several times a second while other things go on."""

import asyncio
import time
from collections.abc import Callable, Mapping

import httpx
import msgspec

from node.client.answers import NodeStatus

ASK_EVERY_S = 0.1
ASK_TIMEOUT_S = 1.0


class Watch:
    """The nodes' newest answers, and the time at which each height was first seen anywhere."""

    def __init__(self, http: httpx.AsyncClient, apis: Mapping[str, str]) -> None:
        """`apis` are the nodes' URLs by member."""
        self._http = http
        self._apis = apis
        self._moved = asyncio.Condition()
        self.latest: dict[str, NodeStatus | None] = dict.fromkeys(apis)
        self.blocks: list[tuple[float, int]] = []
        """(monotonic time, height), ascending: when the greatest height grew."""

    async def run(self) -> None:
        """Ask until cancelled; a node that does not answer delays no other."""
        async with asyncio.TaskGroup() as group:
            for member in self._apis:
                group.create_task(self._follow(member))

    @property
    def height(self) -> int:
        """The greatest height that was seen."""
        return self.blocks[-1][1] if self.blocks else 0

    def ready(self) -> bool:
        """Whether every node answered last that it is ready."""
        return all(status is not None and status.ready for status in self.latest.values())

    def best_api(self) -> str | None:
        """A node that stands at the greatest height, if one answers."""
        for member, status in self.latest.items():
            if status is not None and status.height >= self.height:
                return self._apis[member]
        return None

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether `condition` came to hold in time; looked at whenever a node has answered."""
        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(condition)
        except TimeoutError:
            return False
        return True

    async def _follow(self, member: str) -> None:
        while True:
            status = await self._ask(member)
            self.latest[member] = status
            if status is not None and status.height > self.height:
                self.blocks.append((time.monotonic(), status.height))
            async with self._moved:
                self._moved.notify_all()
            await asyncio.sleep(ASK_EVERY_S)

    async def _ask(self, member: str) -> NodeStatus | None:
        try:
            response = await self._http.get(f"{self._apis[member]}/v1/status", timeout=ASK_TIMEOUT_S)
            return msgspec.json.decode(response.content, type=NodeStatus)
        except (httpx.HTTPError, msgspec.DecodeError):
            return None
