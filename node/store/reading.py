"""Typed reads of what the store wrote; what is missing or damaged becomes a clear error."""

from typing import TypeVar

from consensus.codec import CodecError, decode
from node.errors import NotFound, StoreError
from node.ledger import BlockBody, CertifiedBlock, HeadRecord, Receipt, content_root
from node.store.database import Reader
from node.store.layout import META_HEAD, RECORD_SIZE_MAX, ReceiptsRecord, number, read_location

T = TypeVar("T")


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


def read_head(reader: Reader, height: int) -> HeadRecord:
    """Return what stood as head after block `height` (0: genesis). Raise NotFound or StoreError."""
    data = None if height < 0 else reader.get(b"h" + number(height))
    if data is None:
        raise NotFound("block_not_found", f"height {height} is not decided here")
    head = stored(data, HeadRecord, f"head record of block {height}")
    if head.height != height:
        raise StoreError("store_corrupt", f"the head record of block {height} says {head.height}")
    return head


def read_body(reader: Reader, digest: bytes) -> BlockBody | None:
    """Return the body under `digest`, its header and its transactions checked against it, or None."""
    data = reader.get(b"b" + digest)
    if data is None:
        return None
    body = stored(data, BlockBody, f"block {digest.hex()}")
    if body.header.digest != digest or content_root(body.transactions, body.quarantined) != body.header.tx_root:
        raise StoreError("store_corrupt", f"block {digest.hex()} differs from its hash")
    return body


def read_block(reader: Reader, height: int) -> CertifiedBlock:
    """Return the decided block at `height`. Raise NotFound or StoreError."""
    if height < 1:
        raise NotFound("block_not_found", "the first block has height 1; genesis is network.toml")
    head = read_head(reader, height)
    body = read_body(reader, head.digest)
    if body is None or head.certificate is None:
        raise StoreError("store_corrupt", f"block {height} is missing its body or certificate")
    return CertifiedBlock(body, head.certificate)


def read_receipts(reader: Reader, height: int) -> ReceiptsRecord:
    """Return the receipts of the block at `height`. Raise NotFound or StoreError."""
    data = None if height < 1 else reader.get(b"r" + number(height))
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
