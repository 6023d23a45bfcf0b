"""Reading an archive file at random: blocks by height, transactions by id.

The file is hostile: sizes are checked before anything is read or inflated, and a block is given out only when its
bytes have the hash of the index. Whether that is what members certified says `verify_archive`, and nobody else.
"""

import hashlib
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar

from consensus.codec import CodecError, decode
from consensus.members import Validator
from node.archive.format import (
    BLOCK_PLAIN_SIZE_MAX,
    BLOCK_ROW,
    HEAD_SIZE,
    HEAD_SIZE_MAX,
    LISTS_SIZE_MAX,
    MAGIC,
    TAIL,
    TAIL_SIZE,
    TRANSACTION_ROW,
    ArchivedBlock,
    ArchiveHead,
    MemberList,
    StoredBlock,
    damaged,
)
from node.errors import ConfigError, NotFound
from node.ledger import sha256

T = TypeVar("T")

PIECE_SIZE: Final = 1024 * 1024


class ArchiveReader:
    """An open archive. Reads are positioned, so threads may share it; `close` it, or use it in a `with`."""

    def __init__(self, path: Path) -> None:
        """Open the archive at `path`; its head, its tail and its proportions are right.

        Raise ConfigError (`archive_unreadable`) where no file can be read, StoreError (`archive_damaged`) where it
        is no archive or not as it was written.
        """
        self.path = path
        try:
            # Without O_NONBLOCK a pipe in the place of a file would be waited for.
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ConfigError("archive_unreadable", f"{path}: {error.strerror or error}") from error
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError("archive_unreadable", f"{self.path}: is not a file")
        self.size_bytes = size = found.st_size
        if size < HEAD_SIZE.size + TAIL_SIZE:
            raise damaged(self.path, "is too short for an archive")
        magic, head_size = HEAD_SIZE.unpack(self._read(0, HEAD_SIZE.size))
        tail = self._read(size - TAIL_SIZE, TAIL_SIZE)
        if magic != MAGIC or tail[-len(MAGIC) :] != MAGIC:
            raise damaged(self.path, "is no archive, or was not written to its end")
        if sha256(tail[: TAIL.size]) != tail[TAIL.size : TAIL.size + 32]:
            raise damaged(self.path, "its tail differs from its hash")
        fields = TAIL.unpack(tail[: TAIL.size])
        self.first, self.last, self._index, self._transactions, self._lists_at, lists_size = fields[:6]
        head_hash, self._index_hash, self._transactions_hash, lists_hash = fields[6:]
        self._blocks_at = HEAD_SIZE.size + head_size
        self.transactions, odd = divmod(self._lists_at - self._transactions, TRANSACTION_ROW.size)
        if (
            head_size > HEAD_SIZE_MAX
            or lists_size > LISTS_SIZE_MAX
            or not 1 <= self.first <= self.last
            or not self._blocks_at < self._index < self._transactions <= self._lists_at
            or self._index + (self.last - self.first + 1) * BLOCK_ROW.size != self._transactions
            or odd
            or self._lists_at + lists_size + TAIL_SIZE != size
        ):
            raise damaged(self.path, "its parts do not fit into the file")
        self.head = self._decoded(HEAD_SIZE.size, head_size, head_hash, ArchiveHead, "head")
        self._lists = self._decoded(self._lists_at, lists_size, lists_hash, tuple[MemberList, ...], "member lists")
        heights = [item.height for item in self._lists]
        if (
            self.head.first != self.first
            or not heights
            or heights != sorted(set(heights))
            or heights[0] != self.first - 1
            or heights[-1] > self.last
            or self._lists[0].validators != self.head.validators
        ):
            raise damaged(self.path, "its head, its member lists and its tail contradict one another")

    def close(self) -> None:
        """The file is closed; a second time does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> "ArchiveReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def block(self, height: int) -> ArchivedBlock:
        """Return the block at `height`. Raise NotFound (`not_in_archive`), StoreError (`archive_damaged`)."""
        if not self.first <= height <= self.last:
            text = f"{self.path} holds the blocks {self.first} to {self.last}, not {height}"
            raise NotFound("not_in_archive", text)
        offset, size, plain_size, digest = self._row(height)
        outside = offset < self._blocks_at or offset + size > self._index
        if outside or max(size, plain_size) > BLOCK_PLAIN_SIZE_MAX:
            raise damaged(self.path, f"the index entry of block {height} points outside")
        data = self._read(offset, size)
        if sha256(data) != digest:
            raise damaged(self.path, f"block {height} differs from its hash")
        inflater = zlib.decompressobj()
        try:
            plain = inflater.decompress(data, plain_size + 1)
            stored = decode(plain, StoredBlock, size_max=plain_size)
        except (zlib.error, CodecError) as error:
            raise damaged(self.path, f"block {height} cannot be read: {error}") from error
        if len(plain) != plain_size or not inflater.eof or inflater.unused_data:
            raise damaged(self.path, f"block {height} has another size than its index entry says")
        if stored.block.body.header.height != height:
            raise damaged(
                self.path, f"block {stored.block.body.header.height} stands in the place of block {height}"
            )
        return ArchivedBlock(stored.block, stored.receipts, self.validators(height))

    def blocks(self) -> Iterator[ArchivedBlock]:
        """Yield every block, ascending."""
        for height in range(self.first, self.last + 1):
            yield self.block(height)

    def validators(self, height: int) -> tuple[Validator, ...]:
        """Return the validators that decide `height` + 1, for first - 1 <= height <= last, as the file says."""
        return next(item.validators for item in reversed(self._lists) if item.height <= height)

    def locate(self, tx_id: bytes) -> tuple[int, int] | None:
        """Return (height, position among the block's receipts) of a transaction in this file, or None."""
        low, high = 0, self.transactions
        while low < high:
            middle = (low + high) // 2
            found, offset, position = self._transaction(middle)
            if found == tx_id:
                height = self.first + offset
                if height > self.last:
                    raise damaged(self.path, "its transaction index points outside")
                return height, position
            if found < tx_id:
                low = middle + 1
            else:
                high = middle
        return None

    def check_layout(self) -> None:
        """Both indexes have their hashes, and the blocks lie one behind the other. Raise StoreError."""
        for start, end, digest, what in (
            (self._index, self._transactions, self._index_hash, "block index"),
            (self._transactions, self._lists_at, self._transactions_hash, "transaction index"),
        ):
            if self._hash(start, end) != digest:
                raise damaged(self.path, f"its {what} differs from its hash")
        expected = self._blocks_at
        for height in range(self.first, self.last + 1):
            offset, size, _, _ = self._row(height)
            if offset != expected:
                raise damaged(self.path, f"block {height} does not follow the one before it")
            expected = offset + size
        if expected != self._index:
            raise damaged(self.path, "bytes lie behind its last block")

    def check_transactions(self, rows: list[bytes]) -> None:
        """The transaction index consists of exactly `rows`, which are sorted by this. Raise StoreError."""
        rows.sort()
        if len(rows) != self.transactions or sha256(b"".join(rows)) != self._transactions_hash:
            raise damaged(self.path, "its transaction index is not that of its blocks")

    def _transaction(self, number: int) -> tuple[bytes, int, int]:
        found: tuple[bytes, int, int] = TRANSACTION_ROW.unpack(
            self._read(self._transactions + number * TRANSACTION_ROW.size, TRANSACTION_ROW.size)
        )
        return found

    def _row(self, height: int) -> tuple[int, int, int, bytes]:
        at = self._index + (height - self.first) * BLOCK_ROW.size
        row: tuple[int, int, int, bytes] = BLOCK_ROW.unpack(self._read(at, BLOCK_ROW.size))
        return row

    def _decoded(self, offset: int, size: int, digest: bytes, type_: type[T], what: str) -> T:
        data = self._read(offset, size)
        if sha256(data) != digest:
            raise damaged(self.path, f"its {what} differs from its hash")
        try:
            return decode(data, type_, size_max=size)
        except CodecError as error:
            raise damaged(self.path, f"its {what} cannot be read: {error}") from error

    def _hash(self, start: int, end: int) -> bytes:
        """The hash of a part of the file, piece by piece: a file with holes may be far larger than the memory."""
        hashed = hashlib.sha256()
        for offset in range(start, end, PIECE_SIZE):
            hashed.update(self._read(offset, min(PIECE_SIZE, end - offset)))
        return hashed.digest()

    def _read(self, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self._file, size, offset)
        except OSError as error:
            raise damaged(self.path, f"cannot be read: {error.strerror or error}") from error
        if len(data) != size:
            raise damaged(self.path, "it ends before its tail says so")
        return data
