"""What a peer says that a decided block did, fetched in parts; whoever uses it proves it first."""

import asyncio

from node.errors import InvalidFrame, NotFound, Unavailable
from node.sync.collaborators import Transport
from node.wire import Execution, FetchExecution

ANSWER_TIMEOUT_S = 10.0
WHOLE_TIMEOUT_S = 60.0
"""For all parts together: a peer that sends one row at a time must not keep the others from being asked."""
BYTES_MAX = 256 * 1024 * 1024
"""Of one block's receipts and written values together: many times what a block can hold."""
ROW_BYTES = 128
"""What a row takes in memory beside its key and value: empty ones must not come without end."""


async def fetch_execution(
    transport: Transport, peer: str, height: int
) -> tuple[tuple[bytes, ...], dict[bytes, bytes | None] | None]:
    """Return the receipts of the block at `height` and the values it wrote (None: `peer` no longer keeps them).

    Raise InvalidFrame for an answer that is none, NotFound when `peer` does not have the block, Unavailable when it
    does not answer.
    """
    try:
        async with asyncio.timeout(WHOLE_TIMEOUT_S):
            return await _fetch(transport, peer, height)
    except TimeoutError as error:
        text = f"{peer} did not send all of block {height}'s execution in {WHOLE_TIMEOUT_S:g} s"
        raise Unavailable("peer_timeout", text, peer=peer) from error


async def _fetch(
    transport: Transport, peer: str, height: int
) -> tuple[tuple[bytes, ...], dict[bytes, bytes | None] | None]:
    items: list[tuple[bytes, bytes | None]] = []
    size_bytes = 0
    while True:
        reply = await transport.request(peer, FetchExecution(0, height, len(items)), ANSWER_TIMEOUT_S)
        if not isinstance(reply, Execution):
            raise InvalidFrame("bad_catch_up", f"{peer} answered a request for an execution with something else")
        if reply.rows == 0:
            raise NotFound("block_not_found", f"{peer} does not have block {height}")
        items += reply.items
        size_bytes += sum(len(key) + len(value or b"") + ROW_BYTES for key, value in reply.items)
        if not reply.items or len(items) > reply.rows or size_bytes > BYTES_MAX or reply.receipts > reply.rows:
            raise InvalidFrame("bad_catch_up", f"{peer} sent another execution of block {height} than it began")
        if len(items) == reply.rows:
            return _split(peer, items, reply)


def _split(
    peer: str, items: list[tuple[bytes, bytes | None]], last: Execution
) -> tuple[tuple[bytes, ...], dict[bytes, bytes | None] | None]:
    receipts = [value for key, value in items[: last.receipts] if not key and value is not None]
    writes = dict(items[last.receipts :])
    if len(receipts) != last.receipts or len(writes) != len(items) - last.receipts or b"" in writes:
        raise InvalidFrame("bad_catch_up", f"{peer} sent rows that are neither receipts nor values")
    return tuple(receipts), writes if last.whole else None
