"""The links to peers, as catch-up uses them."""

from collections.abc import Iterable
from typing import Protocol

from node.wire import Blocks, Execution, FetchBlocks, FetchExecution, FetchPayload, PayloadReply


class Transport(Protocol):
    """Sends, and asks with an answer."""

    @property
    def connected(self) -> Iterable[str]:
        """The peers with a link now."""

    def send(self, peer: str, message: Blocks | PayloadReply | Execution) -> bool:
        """Queue `message`; False when there is no link or no room."""

    async def request(
        self, peer: str, message: FetchBlocks | FetchPayload | FetchExecution, timeout_s: float
    ) -> object:
        """The peer's answer; raises HansaError when none comes in time."""
