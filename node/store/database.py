"""LevelDB with its failures as StoreError: the only module that imports plyvel."""

import contextlib
import errno
import fcntl
import os
import random
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import plyvel

from node.errors import ConfigError, StoreError
from node.store.log_tail import mend_logs, needs_mending
from node.store.packing import PACKED_KINDS, may_hold_packed, pack, unpack

WRITE_BUFFER_BYTES = 16 * 1024 * 1024
"""At most: each database takes from five eighths of it to all, by chance.

Why: whatever fills it (blocks, the same at every member) fills it everywhere in the same moment, and a table of so
many bytes is written and synced then. Members that differ do so one after the other, and a quorum need not wait.
"""
CACHE_BYTES = 32 * 1024 * 1024
OPEN_FILES_MAX = 512
BLOCK_BYTES = 2 * 1024
"""Half of LevelDB's own choice: state is read by the key, and a whole block is checked for each."""
MERGING_NICENESS = 5
"""Of the thread that merges tables: where cores are short it takes a third of what any other thread takes. It must
keep up, for LevelDB takes no writes when too much waits to be merged."""
_merging_begun = threading.Event()
_DATABASE_FILE = re.compile(r"CURRENT|MANIFEST-[0-9]+|[0-9]+\.(?:ldb|sst|log)")


class Reader(Protocol):
    """A consistent view of keys and values."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value under `key`, its checksum verified, or None."""

    def scan(
        self, start: bytes, end: bytes, reverse: bool = False, ahead: int = 1
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) for start <= key < end, ascending or descending; read `ahead` rows at a time."""


class Database(Reader, Protocol):
    """Keys and values that outlive the process. After a failed write no further one is taken."""

    @property
    def synced_writes(self) -> int:
        """How many batches were written since it was opened, each of which has waited for the disk."""

    def write(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        """All `rows` are put (None: deleted) and durable, in one batch; with StoreError, nothing of it is."""

    def snapshot(self) -> Reader:
        """Return the database as it is now; later writes do not show."""

    def size_bytes(self, start: bytes = b"", end: bytes = b"\xff") -> int:
        """Return about how many bytes the entries start <= key < end take on disk, removed ones included."""

    def compact(self, start: bytes, end: bytes) -> None:
        """What was removed or replaced of start <= key < end takes no room any more, unless a snapshot needs it.

        It takes about as long as the disk needs to read and write the range. Writes may go on meanwhile.
        """

    def close(self) -> None:
        """Everything is on disk and the place is free for another process."""


class _Gate:
    """Whether a database may be read, and how many reads are under way in all threads.

    Why: LevelDB frees what a read in another thread is using when it is closed under it, and the process dies. Long
    reads (proofs, past states) run in threads that a stopping node cannot end. A list, for its appends and pops are
    atomic under the interpreter lock and cost a tenth of a lock's.
    """

    def __init__(self) -> None:
        self.open = True
        self.inside: list[None] = []

    def shut(self) -> None:
        """No read begins any more, and none is under way."""
        self.open = False
        while self.inside:
            time.sleep(0.001)


class _Reading:
    """Reads through a plyvel database or snapshot."""

    def __init__(self, source: Any, gate: _Gate) -> None:
        self._get = source.get
        self._iterator = source.iterator
        self._gate = gate

    def get(self, key: bytes) -> bytes | None:
        """Return the value under `key`, its checksum verified, or None."""
        inside = self._gate.inside
        inside.append(None)
        try:
            if not self._gate.open:
                raise _closed()
            value: bytes | None = self._get(key, verify_checksums=True)
        except (plyvel.Error, RuntimeError) as error:
            raise _failure(error) from error
        finally:
            inside.pop()
        return value if value is None or key[0] not in PACKED_KINDS else unpack(value)

    def scan(
        self, start: bytes, end: bytes, reverse: bool = False, ahead: int = 1
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) for start <= key < end, ascending or descending; read `ahead` rows at a time."""
        gate, inside = self._gate, self._gate.inside
        packed = may_hold_packed(start, end)
        rows: Any = None
        try:
            while True:
                # Between two reads anybody may close the database: it ends its iterators itself.
                inside.append(None)
                try:
                    if not gate.open:
                        raise _closed()
                    if rows is None:
                        rows = self._iterator(start=start, stop=end, reverse=reverse, verify_checksums=True)
                    page: list[tuple[bytes, bytes]] = list(islice(rows, ahead))
                    if not page:
                        rows.close()
                        return
                finally:
                    inside.pop()
                if packed:
                    page = [(key, unpack(value) if key[0] in PACKED_KINDS else value) for key, value in page]
                yield from page
        except (plyvel.Error, RuntimeError) as error:
            raise _failure(error) from error
        finally:
            inside.append(None)
            if gate.open and rows is not None:
                rows.close()
            inside.pop()


class LevelDatabase(_Reading):
    """One open LevelDB directory. After a failed write it takes no further one: what is on disk stays whole."""

    def __init__(self, path: Path) -> None:
        """Open or create the database at `path`; raise ConfigError or StoreError when that cannot be.

        A last write that was never finished is cut off first (node.store.log_tail). Where files of a database lie
        and CURRENT is missing or unreadable, none is created and nothing is changed.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            _require_current(path)
            if needs_mending(path):
                _mend(path, thoroughly=False)
            try:
                self._db = _open(path)
            except plyvel.CorruptionError:
                # A checksum is wrong. At the very end of the log it is that of a write which never ended.
                if not _mend(path, thoroughly=True):
                    raise
                self._db = _open(path)
        except plyvel.IOError as error:
            text = _text(error)
            if "already held" in text or "temporarily unavailable" in text:
                raise ConfigError("data_dir_in_use", f"{path} is in use by another process") from error
            if _failure(error).code == "disk_full" or "Input/output error" in text:
                raise _failure(error) from error
            raise ConfigError("data_dir_unusable", f"{path}: {text}") from error
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise ConfigError("data_dir_in_use", f"{path} is in use by another process") from error
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreError("disk_full", f"{path}: {error.strerror}") from error
            if error.errno == errno.EIO:
                raise StoreError("disk_failed", f"{path}: {error.strerror}") from error
            raise ConfigError("data_dir_unusable", f"{path}: {error.strerror}") from error
        except plyvel.Error as error:
            raise StoreError("store_corrupt", f"{path}: {_text(error)}") from error
        self._failed: StoreError | None = None
        self.synced_writes = 0
        super().__init__(self._db, _Gate())

    def write(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        """All `rows` are put (None: deleted) and durable, in one batch; nothing of it when this raises."""
        if self._failed is not None:
            raise self._failed
        try:
            with self._db.write_batch(transaction=True, sync=True) as batch:
                put, delete = batch.put, batch.delete
                for key, value in rows:
                    if value is None:
                        delete(key)
                    else:
                        put(key, pack(value) if key[0] in PACKED_KINDS else value)
        except (plyvel.Error, RuntimeError) as error:
            self._failed = _failure(error)
            raise self._failed from error
        self.synced_writes += 1

    def snapshot(self) -> Reader:
        """Return the database as it is now; later writes do not show. It is released with its last reference."""
        self._gate.inside.append(None)
        try:
            if not self._gate.open:
                raise _closed()
            return _Reading(self._db.snapshot(), self._gate)
        except (plyvel.Error, RuntimeError) as error:
            raise _failure(error) from error
        finally:
            self._gate.inside.pop()

    def size_bytes(self, start: bytes = b"", end: bytes = b"\xff") -> int:
        """Return about how many bytes the entries start <= key < end take on disk, removed ones included."""
        try:
            return int(self._db.approximate_size(start, end))
        except (plyvel.Error, RuntimeError) as error:
            raise _failure(error) from error

    def compact(self, start: bytes, end: bytes) -> None:
        """What was removed or replaced of start <= key < end takes no room any more, unless a snapshot needs it."""
        try:
            self._db.compact_range(start=start, stop=end)
        except (plyvel.Error, RuntimeError) as error:
            raise _failure(error) from error

    def close(self) -> None:
        """Everything is on disk and the directory free for another process; reads in other threads have ended."""
        self._gate.shut()
        self._db.close()


def holds_database(path: Path) -> bool:
    """Whether files at `path` belong to a database, damaged or not.

    A lone MANIFEST-000001 does not count: it is what a crash while an empty database was made leaves behind.
    CURRENT comes right after it, before the first log, and the first opening goes on with a later MANIFEST.
    """
    if not path.is_dir():
        return False
    return any(_DATABASE_FILE.fullmatch(file.name) and file.name != "MANIFEST-000001" for file in path.iterdir())


def salvage(path: Path) -> None:
    """The database at `path`, which nobody has open, can be opened; what could not be read of it is gone.

    Nothing tells which rows those were. Raise StoreError when there is nothing to be saved.
    """
    try:
        plyvel.repair_db(str(path), paranoid_checks=True, bloom_filter_bits=10, compression=None)
    except (plyvel.Error, RuntimeError) as error:
        raise _failure(error) from error


def _require_current(path: Path) -> None:
    """A database at `path` has its CURRENT, or there is none; raise StoreError or OSError otherwise.

    Why: without CURRENT, LevelDB takes the directory for a new one, and deletes every table and log in it.
    """
    if not holds_database(path):
        return
    try:
        name = (path / "CURRENT").read_bytes()[:64]
    except FileNotFoundError:
        what = "the file CURRENT is missing, although other files of the database are there"
        raise StoreError("store_corrupt", f"{path}: {what}") from None
    if not re.fullmatch(rb"MANIFEST-[0-9]+\n", name):
        raise StoreError("store_corrupt", f"{path}: the file CURRENT is damaged: it names no MANIFEST")


def _open(path: Path) -> Any:
    """Open the database; the thread in which LevelDB merges tables gives way to all others of the process.

    Why: it merges for seconds at a time, at every member at about the same height, and votes would wait behind it.
    LevelDB has one such thread for all databases of a process. It starts when there is first something to do, with
    the priority of whichever thread found that out: so that is a thread of low priority, which has the first
    database that is opened compact an empty range (it gets a new, empty log by it).
    """
    if _merging_begun.is_set():
        return _open_database(path)

    def begin() -> Any:
        if sys.platform == "linux":
            # That of this thread alone; elsewhere it would be that of the process. A sandbox may forbid it.
            with contextlib.suppress(OSError):
                os.nice(MERGING_NICENESS)
        database = _open_database(path)
        database.compact_range(start=b"\x00", stop=b"\x00")
        _merging_begun.set()
        return database

    with ThreadPoolExecutor(1, "begin-merging") as threads:
        return threads.submit(begin).result()


def _open_database(path: Path) -> Any:
    share = random.uniform(0.625, 1.0)
    # Paranoid: a damaged log in the middle is an error and never silently dropped.
    return plyvel.DB(
        str(path),
        create_if_missing=True,
        paranoid_checks=True,
        bloom_filter_bits=10,
        # What shrinks is compressed once, before it comes here; the rest is hashes and signatures.
        compression=None,
        block_size=BLOCK_BYTES,
        write_buffer_size=int(share * WRITE_BUFFER_BYTES),
        lru_cache_size=CACHE_BYTES,
        max_open_files=OPEN_FILES_MAX,
    )


def _mend(path: Path, *, thoroughly: bool) -> bool:
    """The logs end with whole records, and nobody had the database open meanwhile; return whether one was cut.

    Raise plyvel.IOError or BlockingIOError when somebody has it open.
    """
    try:
        # Asks LevelDB for its lock, which knows of holders in this process too, and for nothing else.
        plyvel.DB(str(path), create_if_missing=False, error_if_exists=True)
    except plyvel.IOError:
        raise
    except plyvel.Error:
        pass
    with (path / "LOCK").open("a") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return mend_logs(path, thoroughly=thoroughly)


def _closed() -> StoreError:
    return StoreError("store_closed", "the database was closed")


def _text(error: Exception) -> str:
    first = error.args[0] if error.args else ""
    return first.decode("utf-8", "replace") if isinstance(first, bytes) else str(first)


def _failure(error: Exception) -> StoreError:
    text = _text(error)
    if "No space left" in text or "Disk quota" in text or "File too large" in text:
        return StoreError("disk_full", text)
    if isinstance(error, plyvel.CorruptionError):
        return StoreError("store_corrupt", text)
    if isinstance(error, RuntimeError):
        return StoreError("store_closed", text)
    return StoreError("disk_failed", text)
