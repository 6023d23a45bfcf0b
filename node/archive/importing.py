"""Puts archived blocks back into a store, so that queries find them again; and takes them out once more.

Only blocks that were decided here can be put back: each is compared with the header that the ledger has kept. What
the ledger has not reached was never executed here, and of what lies before the snapshot that it was joined with
there is nothing to compare with.
"""

from collections.abc import Callable

import msgspec

from node.archive.reader import ArchiveReader
from node.archive.verifying import verify_archive, verify_contents
from node.config import NetworkConfig
from node.errors import ConfigError, NotFound, StoreError
from node.store import Store
from node.wording import blocks_from


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
    until `give_back`. Raise ConfigError as `require_decided` does, StoreError (`archive_damaged`,
    `archive_refused`); a crash leaves some of the blocks put back.
    """
    require_decided(store, reader)
    total = 2 * (reader.last - reader.first + 1)
    verify_archive(reader, network, progress=lambda done, _: progress(done, total))
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


def require_decided(store: Store, reader: ArchiveReader) -> None:
    """Of every block that the archive says it holds the header is here, to be compared with it.

    Raise ConfigError: `archive_ahead` where it goes on beyond the head, `archive_before_join` where it holds blocks
    before the snapshot that this ledger was joined with.
    """
    head, held = store.head.height, f"{reader.path} holds {blocks_from(reader.first, reader.last)}"
    if reader.last > head:
        ends = f"ends at block {head}" if head else "has no block yet"
        beyond = blocks_from(max(reader.first, head + 1), reader.last)
        raise ConfigError("archive_ahead", f"{held}, and this ledger {ends}: {beyond} cannot be put back")
    for height in range(reader.first, reader.last + 1):
        try:
            store.head_at(height)
        except NotFound as error:
            raise ConfigError(
                "archive_before_join",
                f"{held}, and of block {height} not even the header is here: this ledger began after it, with a"
                " snapshot",
            ) from error


def give_back(store: Store, reader: ArchiveReader) -> ImportReport:
    """Return what was taken out again of the blocks that were put back from this archive."""
    pruning = store.pruning()
    count = 0
    for removal in pruning.give_back(reader.first, reader.last):
        pruning.remove(removal)
        count += removal.blocks
    return ImportReport(reader.first, reader.last, count)
