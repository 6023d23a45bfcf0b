"""Puts archived blocks back into a store, so that queries find them again; and takes them out once more."""

from collections.abc import Callable

import msgspec

from node.archive.reader import ArchiveReader
from node.archive.verifying import verify_archive, verify_contents
from node.config import NetworkConfig
from node.errors import NotFound, StoreError
from node.store import Store


class ImportReport(msgspec.Struct, frozen=True):
    """Of the heights `first` … `last` so many blocks were put back, or taken out; the others needed nothing."""

    first: int
    last: int
    blocks: int


def import_archive(
    store: Store,
    network: NetworkConfig,
    reader: ArchiveReader,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImportReport:
    """Return what was put back: every block of the archive is here whole, with receipts and indexes.

    The store must be nobody else's meanwhile. First all of the file is verified, then each block is compared with
    the digest that this store has kept of its height, so that nothing is put back of a file that is not right;
    what is put back is judged in the very bytes that are written. What was put back stays when the node prunes,
    until `give_back`. Raise StoreError (`archive_damaged`, `archive_refused`) and NotFound (a height that is not
    decided here, or of which not even the header is here); a crash leaves some of the blocks put back.
    """
    total = 2 * (reader.last - reader.first + 1)
    verify_archive(reader, network, progress=lambda done, _: progress(done, total))
    if reader.last > store.head.height:
        raise NotFound(
            "block_not_found", f"{reader.path} goes up to block {reader.last}, this ledger to {store.head.height}"
        )
    for height in range(reader.first, reader.last + 1):
        if store.head_at(height).digest != reader.block(height).block.certificate.digest:
            raise StoreError("archive_refused", f"block {height} of {reader.path} is not the one of this ledger")
    pruning = store.pruning()
    count = 0
    for item in reader.blocks():
        # Read once more, so judged once more: the file may have been changed since. That the header is the one
        # decided here `restore` sees to; what it commits to is all that is written.
        verify_contents(item)
        count += pruning.restore(item.block, item.receipts)
        progress(total // 2 + item.height - reader.first + 1, total)
    return ImportReport(reader.first, reader.last, count)


def give_back(store: Store, reader: ArchiveReader) -> ImportReport:
    """Return what was taken out again of the blocks that were put back from this archive."""
    pruning = store.pruning()
    count = 0
    for removal in pruning.give_back(reader.first, reader.last):
        pruning.remove(removal)
        count += removal.blocks
    return ImportReport(reader.first, reader.last, count)
