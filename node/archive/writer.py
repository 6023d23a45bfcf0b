"""Writing an archive file: under its name there is a whole, synced file or none.

Invariant: bytes go to `<name>.partial`, which one writer at a time has for itself; only when all of them are synced
is the file renamed, and the directory is synced after that. Whoever has `finish` returned may delete the blocks
elsewhere; a crash before it leaves a partial file that the next writer of that name replaces.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import msgspec

from consensus.codec import encode
from consensus.members import Validator
from node.archive.format import (
    BLOCK_ROW,
    HEAD_SIZE,
    MAGIC,
    TAIL,
    TRANSACTION_ROW,
    ArchivedBlock,
    ArchiveHead,
    MemberList,
    StoredBlock,
)
from node.errors import StoreError
from node.ledger import Receipt, sha256
from node.store.reading import read_receipt

COMPRESSION_LEVEL = 6
PARTIAL = ".partial"


class ArchiveSummary(msgspec.Struct, frozen=True):
    """What was written: heights `first` … `last`, `transactions` (scheduled calls left out), bytes of the file."""

    path: Path
    first: int
    last: int
    transactions: int
    size_bytes: int


class ArchiveWriter:
    """One archive file in the making. Blocks are added in ascending order; then `finish`, or `abandon`."""

    def __init__(self, path: Path, head: ArchiveHead) -> None:
        """Begin the file that will be `path`; what lay under its partial name is gone. Raise StoreError."""
        self._path = path
        self._partial = path.with_name(path.name + PARTIAL)
        self._head = head
        self._next = head.first
        self._validators: tuple[Validator, ...] = head.validators
        self._lists = [MemberList(head.first - 1, head.validators)]
        self._rows = bytearray()
        self._transactions: list[bytes] = []
        self._head_bytes = encode(head)
        self._count = 0
        self._size = 0
        try:
            self._file = _claimed(self._partial)
        except OSError as error:
            raise _failure(self._partial, error) from error
        self._write(HEAD_SIZE.pack(MAGIC, len(self._head_bytes)) + self._head_bytes)

    @property
    def size_bytes(self) -> int:
        """How many bytes of blocks were written so far."""
        return self._size

    def add(self, item: ArchivedBlock) -> None:
        """The next block is written, not yet synced. ValueError when it is not the next one; StoreError."""
        if item.height != self._next:
            raise ValueError(f"block {item.height} is not the next one, {self._next}")
        plain = encode(StoredBlock(item.block, item.receipts))
        data = zlib.compress(plain, COMPRESSION_LEVEL)
        self._rows += BLOCK_ROW.pack(self._size, len(data), len(plain), sha256(data))
        for position in range(item.receipts.scheduled, len(item.receipts.receipts)):
            receipt: Receipt = read_receipt(item.receipts.receipts, item.height, position)
            self._transactions.append(TRANSACTION_ROW.pack(receipt.tx_id, item.height - self._head.first, position))
        self._write(data)
        if item.validators != self._validators:
            self._validators = item.validators
            self._lists.append(MemberList(item.height, item.validators))
        self._next += 1

    def finish(self, path: Path | None = None) -> ArchiveSummary:
        """The file is whole, synced and has its name: `path`, in the same directory, where it was not known before.

        Raise StoreError; ValueError when it holds no block.
        """
        if self._next == self._head.first:
            raise ValueError("an archive holds at least one block")
        last = self._next - 1
        rows, lists = bytes(self._rows), encode(tuple(self._lists))
        self._transactions.sort()
        transactions = b"".join(self._transactions)
        index_offset = self._size
        tail = TAIL.pack(
            self._head.first,
            last,
            index_offset,
            index_offset + len(rows),
            index_offset + len(rows) + len(transactions),
            len(lists),
            sha256(self._head_bytes),
            hashlib.sha256(rows).digest(),
            hashlib.sha256(transactions).digest(),
            sha256(lists),
        )
        for part in (rows, transactions, lists, tail, sha256(tail), MAGIC):
            self._write(part)
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._path = path or self._path
            self._partial.rename(self._path)
            sync_directory(self._path.parent)
        except OSError as error:
            self.abandon()
            raise _failure(self._path, error) from error
        return ArchiveSummary(self._path, self._head.first, last, len(self._transactions), self._size)

    def abandon(self) -> None:
        """Nothing of it remains; what lay under the name before lies there still."""
        # The rest of the buffer may not fit on the disk: it is thrown away in any case.
        with contextlib.suppress(OSError):
            self._file.close()
        # Where the disk is gone it stays, and the next writer replaces it.
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            self.abandon()
            raise _failure(self._partial, error) from error
        self._size += len(data)


def write_archive(
    path: Path,
    network_id: str,
    genesis_hash: bytes,
    blocks: Iterable[ArchivedBlock],
    progress: Callable[[int], None] = lambda height: None,
    *,
    head: ArchiveHead,
) -> ArchiveSummary:
    """Return what the archive at `path` holds: all of `blocks`, whole and synced; `progress(height)` after each.

    `head` tells where it starts: `archive_head` makes it from a store. Raise StoreError, and then nothing has
    changed under `path`; ValueError when the blocks are not a run from `head.first` on of this network.
    """
    if (head.network, head.genesis_hash) != (network_id, genesis_hash):
        raise ValueError("the head belongs to another network")
    writer = ArchiveWriter(path, head)
    try:
        for item in blocks:
            writer.add(item)
            progress(item.height)
    except BaseException:
        writer.abandon()
        raise
    return writer.finish()


def _claimed(path: Path) -> BinaryIO:
    """Return the file at `path`, empty, which no other writer has until it is closed. Raise OSError.

    Two nodes with one directory for their archives would write into one file, also after the first had verified it.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            # Whoever had it renamed it just now: it is a whole archive, and no longer under this name.
            raise BlockingIOError(errno.EWOULDBLOCK, "another process is writing it")
        file.truncate(0)
    except BaseException:
        file.close()
        raise
    return file


def sync_directory(path: Path) -> None:
    """The names in the directory at `path` are durable. Raise OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failure(path: Path, error: OSError) -> StoreError:
    return StoreError("archive_failed", f"{path}: {error.strerror or error}")
