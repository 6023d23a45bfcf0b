"""The simulated ledger's block: numbered requests in an order, and the rules that make such a block valid."""

import hashlib
import itertools

import msgspec

from consensus.codec import CodecError, decode, encode

REQUESTS_MAX = 4
DRIFT_MS = 5_000


class Block(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One payload. `view` is only there to make two fresh blocks of one height differ."""

    height: int
    parent: bytes
    time_ms: int
    proposer: int
    view: int
    requests: tuple[int, ...]
    quarantined: tuple[int, ...] = ()
    """Those of `requests` that were settled without being executed."""
    release: int = 0
    """What its maker ran."""


def payload_of(block: Block) -> bytes:
    """The canonical bytes of `block`."""
    return encode(block)


def digest_of(payload: bytes) -> bytes:
    """The name of a payload."""
    return hashlib.sha256(payload).digest()


def parse(payload: bytes) -> Block | None:
    """The block in `payload`, or None where the payload is malformed."""
    try:
        block = decode(payload, Block, size_max=4096)
    except CodecError:
        return None
    well_formed = len(block.requests) <= REQUESTS_MAX and all(
        earlier < later for earlier, later in itertools.pairwise(block.requests)
    )
    well_formed = well_formed and all(request in block.requests for request in block.quarantined)
    return block if well_formed else None
