"""Finds the payload of a proposal that is known by its digest alone."""

import asyncio
from collections.abc import Callable, Collection, Sequence

from consensus.codec import CodecError, decode
from consensus.messages import PAYLOAD_SIZE_MAX
from node.errors import HansaError, InvalidFrame
from node.ledger import Proposal
from node.sync.collaborators import Transport
from node.wire import FetchPayload, PayloadReply

PAUSE_S = 0.05
PAUSE_S_MAX = 0.5


async def fetch_payload(
    transport: Transport,
    height: int,
    digest: bytes,
    holders: Sequence[str],
    timeout_s: float,
    report: Callable[[str, HansaError], None],
    refused: Collection[bytes] = (),
) -> bytes | None:
    """Return a payload whose header is the one that `digest` names; None when no holder has one within `timeout_s`.

    The digest covers the header alone: another holder may have other wire ids under the same header. A payload that
    turned out not to fit its header is named in `refused` when this is called again.
    """
    pause_s = PAUSE_S
    liars: set[str] = set()
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                connected = frozenset(transport.connected)
                asked = [peer for peer in dict.fromkeys(holders) if peer in connected and peer not in liars]
                for peer in asked:
                    try:
                        payload = await _ask(transport, peer, height, digest, timeout_s / (len(asked) + 1))
                    except InvalidFrame as error:
                        liars.add(peer)
                        report(peer, error)
                        continue
                    if payload is not None and payload not in refused:
                        return payload
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)
    except TimeoutError:
        return None


async def _ask(transport: Transport, peer: str, height: int, digest: bytes, timeout_s: float) -> bytes | None:
    """The payload as `peer` has it, or None; raise InvalidFrame when it sent something else."""
    try:
        reply = await transport.request(peer, FetchPayload(0, height, digest), timeout_s)
    except HansaError:
        return None
    if not isinstance(reply, PayloadReply):
        raise InvalidFrame("bad_catch_up", f"{peer} answered a request for a payload with something else")
    if reply.payload is None:
        return None
    try:
        header = decode(reply.payload, Proposal, size_max=PAYLOAD_SIZE_MAX).header
    except CodecError as error:
        raise InvalidFrame("bad_catch_up", f"{peer} sent an unreadable payload: {error}") from error
    if (header.height, header.digest) != (height, digest):
        raise InvalidFrame("bad_catch_up", f"{peer} sent the payload of another block")
    return reply.payload
