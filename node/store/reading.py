"""Typed reads of what the store wrote; what is missing or damaged becomes a clear error."""

from typing import TypeVar

import msgspec

from consensus.codec import CodecError, decode
from node.errors import NotFound, StoreError
from node.ledger import BlockBody, CertifiedBlock, Header, HeadRecord, Receipt, content_root
from node.store.database import Reader
from node.store.layout import (
    LEDGER_KINDS,
    META_FIRST,
    META_HEAD,
    META_HELD,
    RECORD_SIZE_MAX,
    HeldTopic,
    ReceiptsRecord,
    body_key,
    number,
    read_location,
)

T = TypeVar("T")


class _Beginning(msgspec.Struct, frozen=True, array_like=True):
    """What a stored body begins with; the transactions behind it are passed over unread."""

    header: Header


def stored(data: bytes, type_: type[T], what: str) -> T:
    """Return the value that `data` holds; raise StoreError naming `what` when it is damaged."""
    try:
        return decode(data, type_, size_max=RECORD_SIZE_MAX)
    except CodecError as error:
        raise StoreError("store_corrupt", f"the {what} cannot be read: {error}") from error


def read_height(reader: Reader) -> int:
    """Return the height of the head."""
    data = reader.get(META_HEAD)
    if data is None or len(data) != 8:
        raise StoreError("store_corrupt", "the store holds no head")
    return int.from_bytes(data, "big")


def awaits_ledger(reader: Reader) -> bool:
    """Return whether no row of any block is here, genesis included: the node fetches everything at its next start.

    So it is after `hansa repair --join`, and after a crash within a node's first moments.
    """
    kinds = [bytes((letter,)) for letter in LEDGER_KINDS]
    return reader.get(META_HEAD) is None and all(
        next(reader.scan(kind, bytes((kind[0] + 1,))), None) is None for kind in kinds
    )


def read_first(reader: Reader) -> int:
    """Return the lowest height from which on every decided block is here with body, receipts and index rows."""
    data = reader.get(META_FIRST)
    if data is not None and len(data) != 8:
        raise StoreError("store_corrupt", "the height of the first block kept cannot be read")
    return 1 if data is None else int.from_bytes(data, "big")


def read_held(reader: Reader) -> tuple[HeldTopic, ...]:
    """Return the topics under legal hold, ascending by word."""
    data = reader.get(META_HELD)
    return () if data is None else stored(data, tuple[HeldTopic, ...], "list of held topics")


def read_first_event(reader: Reader, topic: str, from_height: int = 1) -> int:
    """Return the lowest height from which on every event under `topic` is here; `from_height` if it is lower."""
    first = read_first(reader)
    # What was put back from archives, or is held: whole as far down as none is missing in between.
    for key, _ in reader.scan(b"y" + number(from_height), b"y" + number(max(from_height, first)), reverse=True):
        if int.from_bytes(key[1:9], "big") != first - 1:
            break
        first -= 1
    if first > 1:
        for item in read_held(reader):
            if topic == item.word or topic.endswith(f"/{item.word}"):
                first = min(first, item.since)
    return first


def pruned(height: int, first: int) -> NotFound:
    """Return the error for a block below the first that is not here any more."""
    text = f"block {height} was pruned here; the first block kept is {first}"
    return NotFound("block_pruned", text, height=height, first=first)


def read_head(reader: Reader, height: int) -> HeadRecord:
    """Return what stood as head after block `height` (0: genesis). Raise NotFound or StoreError."""
    data = None if height < 0 else reader.get(b"h" + number(height))
    if data is None and 0 < height < (first := read_first(reader)):
        # Between this node's own older blocks and a snapshot that it adopted.
        raise pruned(height, first)
    if data is None:
        raise NotFound("block_not_found", f"height {height} is not decided here")
    head = stored(data, HeadRecord, f"head record of block {height}")
    if head.height != height:
        raise StoreError("store_corrupt", f"the head record of block {height} says {head.height}")
    return head


def read_body(reader: Reader, height: int, digest: bytes) -> BlockBody | None:
    """Return the body under `height` and `digest`, its header and its transactions checked, or None."""
    data = reader.get(body_key(height, digest))
    if data is None:
        return None
    body = stored(data, BlockBody, f"block {digest.hex()}")
    header = body.header
    content = content_root(body.transactions, body.quarantined)
    if (header.height, header.digest, header.tx_root) != (height, digest, content):
        raise StoreError("store_corrupt", f"block {digest.hex()} differs from its hash")
    return body


def read_block(reader: Reader, height: int) -> CertifiedBlock:
    """Return the decided block at `height`. Raise NotFound or StoreError."""
    if height < 1:
        raise NotFound("block_not_found", "the first block has height 1; genesis is network.toml")
    head = read_head(reader, height)
    body = read_body(reader, height, head.digest)
    if body is None and height < (first := read_first(reader)):
        raise pruned(height, first)
    if body is None or head.certificate is None:
        raise StoreError("store_corrupt", f"block {height} is missing its body or certificate")
    return CertifiedBlock(body, head.certificate)


def read_header(reader: Reader, height: int) -> Header:
    """Return the header of the decided block at `height`, pruned or not. Raise NotFound or StoreError."""
    if height < 1:
        raise NotFound("block_not_found", "the first block has height 1; genesis is network.toml")
    head = read_head(reader, height)
    data = reader.get(b"k" + number(height))
    if data is None:
        header = _header_in(reader.get(body_key(height, head.digest)), height)
    else:
        header = stored(data, Header, f"header of block {height}")
    if header.digest != head.digest:
        raise StoreError("store_corrupt", f"the header of block {height} differs from its hash")
    return header


def _header_in(body: bytes | None, height: int) -> Header:
    """Return the header of a stored body. Its digest is the caller's to compare: that proves all of it.

    Nothing else of the body is read: who wants the headers of many blocks would check all their transactions.
    """
    if body is None:
        raise StoreError("store_corrupt", f"block {height} is missing its header")
    try:
        return msgspec.msgpack.decode(body, type=_Beginning).header
    except (msgspec.MsgspecError, RecursionError) as error:
        raise StoreError("store_corrupt", f"the header of block {height} cannot be read: {error}") from error


def read_receipts(reader: Reader, height: int) -> ReceiptsRecord:
    """Return the receipts of the block at `height`. Raise NotFound or StoreError."""
    data = None if height < 1 else reader.get(b"r" + number(height))
    if data is None and 1 <= height < (first := read_first(reader)):
        raise pruned(height, first)
    if data is None:
        raise NotFound("block_not_found", f"height {height} is not decided here")
    return stored(data, ReceiptsRecord, f"receipts of block {height}")


def read_receipt(receipts: tuple[bytes, ...], height: int, position: int) -> Receipt:
    """Return the receipt at `position` of a block's receipts."""
    if position >= len(receipts):
        raise StoreError("store_corrupt", f"block {height} has no receipt {position}")
    return stored(receipts[position], Receipt, f"receipt {position} of block {height}")


def read_transaction_location(reader: Reader, tx_id: bytes) -> tuple[int, int] | None:
    """Return (height, position among the block's receipts) of a final transaction, or None."""
    data = reader.get(b"x" + tx_id)
    if data is None:
        return None
    if len(data) != 12:
        raise StoreError("store_corrupt", f"the index entry of transaction {tx_id.hex()} cannot be read")
    return read_location(data)
