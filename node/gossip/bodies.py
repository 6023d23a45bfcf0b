"""Transactions' bodies by name: asked of those who have them, served to those who lack them."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from node.errors import HansaError
from node.gossip.collaborators import Pool, Transport, wire_id_of
from node.wire import FetchTransactions, Transactions

IDS_MAX = 512
REPLY_SIZE_BYTES_MAX = 1024 * 1024
PAUSE_S = 0.05
PAUSE_S_MAX = 0.5


class Bodies:
    """Fetches and serves raw transactions. Nothing but the name of what was fetched is verified here."""

    def __init__(self, transport: Transport, pool: Pool, blame: Callable[[str, str], None]) -> None:
        """`blame` is told of a peer that answered what was not asked, and how."""
        self._transport = transport
        self._pool = pool
        self._blame = blame
        self.fetched = 0
        self.served = 0

    def serve(self, peer: str, message: FetchTransactions) -> None:
        """`peer` has its answer queued: what is at hand, in the order asked, up to REPLY_SIZE_BYTES_MAX or one."""
        found: list[bytes] = []
        size_bytes = 0
        for wire_id in message.wire_ids[:IDS_MAX]:
            data = self._pool.body(wire_id)
            if data is None:
                continue
            if found and size_bytes + len(data) > REPLY_SIZE_BYTES_MAX:
                break
            found.append(data)
            size_bytes += len(data)
        self.served += len(found)
        self._transport.send(peer, Transactions(message.request, tuple(found)))

    async def ask(self, peer: str, wire_ids: Sequence[bytes], timeout_s: float) -> dict[bytes, bytes]:
        """Return the bodies that `peer` has of the first IDS_MAX of `wire_ids`, by wire id; maybe not all at once.

        Raise HansaError when there is no answer in time. An answer to something else counts as an empty one.
        """
        asked = frozenset(wire_ids[:IDS_MAX])
        reply = await self._transport.request(peer, FetchTransactions(0, tuple(wire_ids[:IDS_MAX])), timeout_s)
        if not isinstance(reply, Transactions):
            self._blame(peer, "an answer to something else")
            return {}
        found = {wire_id_of(data): data for data in reply.transactions}
        if len(found) != len(reply.transactions) or not asked.issuperset(found):
            self._blame(peer, "transactions that were not asked for")
            return {}
        self.fetched += len(found)
        return found

    async def fetch(
        self,
        wire_ids: Sequence[bytes],
        holders: Sequence[str],
        timeout_s: float,
        find_here: Callable[[list[bytes]], Awaitable[dict[bytes, bytes]]],
    ) -> dict[bytes, bytes]:
        """Return what was found of `wire_ids` within `timeout_s`, by wire id.

        First by `find_here`, then at `holders` in their order, round after round while something is missing.
        """
        found: dict[bytes, bytes] = {}
        missing = dict.fromkeys(wire_ids)
        pause_s = PAUSE_S
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    _move(await find_here(list(missing)), missing, found)
                    connected = frozenset(self._transport.connected)
                    asked = [peer for peer in dict.fromkeys(holders) if peer in connected]
                    for peer in asked:
                        # A silent or dripping holder must not use up the time of all: each gets its share.
                        await self._ask_all(peer, missing, found, timeout_s / (len(asked) + 1))
                    if not missing:
                        return found
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, PAUSE_S_MAX)
        except TimeoutError:
            return found

    async def _ask_all(
        self, peer: str, missing: dict[bytes, None], found: dict[bytes, bytes], share_s: float
    ) -> None:
        try:
            async with asyncio.timeout(share_s):
                while missing:
                    answer = await self.ask(peer, tuple(missing), share_s)
                    if not answer:
                        return
                    _move(answer, missing, found)
        except (HansaError, TimeoutError):
            return


def _move(answer: dict[bytes, bytes], missing: dict[bytes, None], found: dict[bytes, bytes]) -> None:
    for wire_id, data in answer.items():
        missing.pop(wire_id, None)
        found[wire_id] = data
