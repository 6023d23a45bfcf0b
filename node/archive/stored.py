"""What a store gives to an archive."""

from collections.abc import Iterator

from node.archive.format import ArchivedBlock, ArchiveHead, MemberChange
from node.errors import StoreError
from node.store import StoreView


def archive_head(view: StoreView, network_id: str, genesis_hash: bytes, first: int) -> ArchiveHead:
    """Return the head of an archive that starts with block `first` of the store. Raise NotFound or StoreError."""
    changes: list[MemberChange] = []
    for height in view.member_changes():
        if height >= first:
            break
        decided = view.head_at(height)
        if decided.certificate is None:
            raise StoreError("store_corrupt", f"block {height} is missing its certificate")
        changes.append(MemberChange(view.header(height), decided.certificate, decided.validators))
    return ArchiveHead(
        "hansa/archive",
        1,
        network_id,
        genesis_hash,
        first,
        view.header(first - 1) if first > 1 else None,
        view.head_at(first - 1).validators,
        tuple(changes),
    )


def archived_block(view: StoreView, height: int) -> ArchivedBlock:
    """Return the block at `height` as an archive holds it. Raise NotFound (also `block_pruned`) or StoreError."""
    return ArchivedBlock(view.block(height), view.receipts(height), view.head_at(height).validators)


def archived_blocks(view: StoreView, first: int, last: int) -> Iterator[ArchivedBlock]:
    """Yield the blocks `first` … `last` of the store."""
    for height in range(first, last + 1):
        yield archived_block(view, height)
