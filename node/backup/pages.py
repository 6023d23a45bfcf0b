"""Blocks on their way from a running node into a backup: pages of them, as archives hold them."""

from typing import Annotated

import msgspec

from consensus.codec import CodecError, decode, encode
from node.archive import ArchivedBlock, ArchiveHead, archive_head, archived_block
from node.archive.format import StoredBlock, ValidatorList
from node.errors import Unavailable
from node.store import StoreView

PAGE_BLOCKS_MAX = 256
PAGE_BYTES = 4 * 1024 * 1024
"""A page ends with the block that reaches this."""
PAGE_SIZE_MAX = 128 * 1024 * 1024


class PagedBlock(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A block with its receipts, and who decides the next height."""

    stored: StoredBlock
    validators: ValidatorList


class Page(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Consecutive blocks. `head` is that of an archive that begins with the first of them.

    `height` is the node's head: there are more blocks up to it. Without blocks there is none to begin with yet.
    """

    height: int
    head: ArchiveHead | None
    blocks: Annotated[tuple[PagedBlock, ...], msgspec.Meta(max_length=PAGE_BLOCKS_MAX)]


def make_page(view: StoreView, network_id: str, genesis_hash: bytes, first: int) -> bytes:
    """Return the page of the blocks from `first` on. Raise NotFound("block_pruned") when that one is not here."""
    height = view.head.height
    if first > height:
        return encode(Page(height, None, ()))
    head = archive_head(view, network_id, genesis_hash, first)
    blocks: list[PagedBlock] = []
    size_bytes = 0
    for at in range(first, min(height, first + PAGE_BLOCKS_MAX - 1) + 1):
        item = archived_block(view, at)
        blocks.append(PagedBlock(StoredBlock(item.block, item.receipts), item.validators))
        size_bytes += sum(map(len, item.block.body.transactions)) + sum(map(len, item.receipts.receipts))
        if size_bytes >= PAGE_BYTES:
            break
    return encode(Page(height, head, tuple(blocks)))


def read_page(data: bytes, first: int) -> Page:
    """Return the page in `data`, whose blocks begin with `first`; raise Unavailable when it is none."""
    try:
        page = decode(data, Page, size_max=PAGE_SIZE_MAX)
    except CodecError as error:
        raise Unavailable("unexpected_answer", f"the node's blocks cannot be read: {error}") from error
    heights = [item.stored.block.body.header.height for item in page.blocks]
    if heights != list(range(first, first + len(heights))) or (page.head is None) != (not heights):
        raise Unavailable("unexpected_answer", f"the node sent other blocks than those from {first} on")
    if page.head is not None and page.head.first != first:
        raise Unavailable("unexpected_answer", f"the node sent another archive head than that of block {first}")
    return page


def archived(item: PagedBlock) -> ArchivedBlock:
    """Return the block as archives have it."""
    return ArchivedBlock(item.stored.block, item.stored.receipts, item.validators)
