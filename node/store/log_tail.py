"""The end of LevelDB's logs after a power cut: what was never acknowledged is cut off, anything else is told.

Invariant: no record that was acknowledged (its sync returned) disappears unnoticed. Writes are one synced batch
after the other, so of all records of the newest log only the last can be unfinished; whatever has a whole record
behind it was acknowledged, and every record of an older log was.

Why this is needed although LevelDB checks itself. Opened with paranoid checks, it refuses a log whose last record
ends in zeros or stale bytes, which is what file systems leave behind when the power goes during a write; and it
takes a record whose length was damaged, or a sector of zeros, for the end of the log when that happens in the last
32 KiB, and drops every record behind it without a word (leveldb/log_reader.cc, ReadPhysicalRecord). So the logs are
looked through before each opening: their structure always, their checksums where something is wrong.

Format: blocks of 32 KiB; in them fragments of (masked CRC-32C of type and data, 4 bytes; length, 2; type, 1; data),
integers little-endian; a record is one fragment of type 1 or a chain of types 2, 3 … 3, 4. The MANIFEST is alike.
"""

import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import structlog

from node.errors import StoreError

BLOCK: Final = 32 * 1024
HEADER: Final = 7
SECTOR: Final = 512
"""The smallest piece that a disk writes whole."""
ZEROS_MIN: Final = 16
"""So many zeros are no accident of what a record holds; fewer may be."""
CHECKED_BYTES_MAX: Final = 64 * 1024 * 1024
"""So much is checked in search of a whole record behind a damaged one; beyond that the log counts as damaged."""
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
DAMAGED_TAIL: Final = "damaged-tail"
"""Holds the bytes that were cut from a log although nobody can tell whether they had been acknowledged."""
DAMAGED_TAIL_NEW: Final = "damaged-tail.new"
"""The same, while the store has not yet drawn the consequence."""

_Bytes: TypeAlias = bytes | mmap.mmap


@dataclass(frozen=True)
class Fragment:
    """One fragment: `at` its header, `end` behind its data; `record` is where its record begins."""

    at: int
    end: int
    kind: int
    record: int


@dataclass(frozen=True)
class Tail:
    """The last record of a log is not whole. `kept` bytes before it are; `torn`: its write certainly never
    ended."""

    kept: int
    torn: bool


def mend_logs(path: Path, *, thoroughly: bool = False) -> bool:
    """Every log at `path` ends with a whole record; return whether something was cut off for that.

    Nobody else may have the database open. `thoroughly`: all checksums are verified, and not only where the
    structure is wrong. Raise StoreError("store_corrupt") for damage that is not an unfinished last write.
    """
    cut = False
    manifest = current_manifest(path)
    logs = log_files(path)
    for file in [*([manifest] if manifest else []), *logs]:
        tail = inspect(file, sequenced=file.suffix == ".log", thoroughly=thoroughly)
        if tail is None:
            continue
        if file in logs and file != logs[-1] and any(item.stat().st_size for item in logs[logs.index(file) + 1 :]):
            raise _damaged(file, tail.kept, "it is not the newest log, so all of it was written whole once")
        if not tail.torn and file == manifest:
            raise _damaged(file, tail.kept, "the list of the database's files cannot be read to its end")
        _cut(path, file, tail)
        cut = True
    return cut


def needs_mending(path: Path) -> bool:
    """Whether the structure of a log or of the MANIFEST at `path` is not that of one written to its end."""
    manifest = current_manifest(path)
    for file in [*([manifest] if manifest else []), *log_files(path)]:
        with _opened(file) as data:
            if _first_fault(data, checked=False) is not None:
                return True
    return False


def lost_memory(path: Path) -> bool:
    """Whether bytes were cut off that may have been acknowledged, and `memory_settled` was not called since."""
    return (path / DAMAGED_TAIL_NEW).exists()


def memory_settled(path: Path) -> None:
    """The store has drawn the consequence of what was cut off; the bytes stay for whoever looks into it."""
    (path / DAMAGED_TAIL_NEW).replace(path / DAMAGED_TAIL)
    _sync(path)


def log_files(path: Path) -> list[Path]:
    """The database's logs, the newest last."""
    return sorted((item for item in path.glob("*.log") if item.stem.isdigit()), key=lambda item: int(item.stem))


def current_manifest(path: Path) -> Path | None:
    """The MANIFEST that CURRENT names, or None when there is none."""
    try:
        name = (path / "CURRENT").read_bytes()[:64].decode("ascii", "replace").strip()
    except OSError:
        return None
    found = path / name
    return found if re.fullmatch(r"MANIFEST-[0-9]+", name) and found.is_file() else None


def inspect(file: Path, *, sequenced: bool = True, thoroughly: bool = False) -> Tail | None:
    """What is wrong with the end of the log `file`, or None; raise StoreError for damage before its last record.

    `sequenced`: its records are batches, which begin with ascending numbers.
    """
    with _opened(file) as data:
        if _first_fault(data, checked=thoroughly) is None:
            return None
        fault = _first_fault(data, checked=True)
        if fault is None:
            return None
        at, record = fault
        after = _sequence_before(data, record) if sequenced else None
        later = _later_fragment(data, at + 1, (FULL, FIRST), after)
        single = _is_one_record(data, at, record)
        if later is None and not single:
            later = _later_fragment(data, at + 1, (MIDDLE, LAST), after)
        if later is not None:
            raise _damaged(file, at, f"what was written behind it, at byte {later}, is whole")
        return Tail(record, single and _is_torn(data, at, record))


def _damaged(file: Path, at: int, why: str) -> StoreError:
    return StoreError("store_corrupt", f"{file.name} is damaged at byte {at} of {file.stat().st_size}: {why}")


def _cut(path: Path, file: Path, tail: Tail) -> None:
    """The file ends at `tail.kept`, durably. What may have been acknowledged was put aside first."""
    size = file.stat().st_size
    structlog.get_logger("store").warning(
        "the last write was never finished: cut off" if tail.torn else "the last write cannot be read: put aside",
        file=file.name,
        kept_bytes=tail.kept,
        cut_bytes=size - tail.kept,
    )
    if not tail.torn:
        with file.open("rb") as source, (path / DAMAGED_TAIL_NEW).open("wb") as aside:
            source.seek(tail.kept)
            aside.write(source.read())
            aside.flush()
            os.fsync(aside.fileno())
        _sync(path)
    with file.open("r+b") as log:
        log.truncate(tail.kept)
        os.fsync(log.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _opened:
    """The bytes of a file, mapped while the block of code runs; an empty file has no map."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._map: mmap.mmap | None = None

    def __enter__(self) -> _Bytes:
        with self._file.open("rb") as opened:
            if os.fstat(opened.fileno()).st_size == 0:
                return b""
            self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def __exit__(self, *_: object) -> None:
        if self._map is not None:
            self._map.close()


# --- reading a log -------------------------------------------------------------------------------------------


def _fragments(data: _Bytes, *, checked: bool) -> Iterator[Fragment | tuple[int, int]]:
    """Yield the fragments in order; at the first fault (its place, where its record begins), and end."""
    size = len(data)
    at = 0
    record: int | None = None
    while at < size:
        room = BLOCK - at % BLOCK
        if room < HEADER:
            at += room
            continue
        begun = at if record is None else record
        end = _end(data, at)
        kind = data[at + 6] if at + HEADER <= size else 0
        starts = kind in (FULL, FIRST)
        if not FULL <= kind <= LAST or end > size or end - at > room or starts == (record is not None):
            yield at, begun
            return
        if checked and not _whole(data, at, end):
            yield at, begun
            return
        yield Fragment(at, end, kind, begun)
        record = None if kind in (FULL, LAST) else begun
        at = end
    if record is not None:
        yield size, record


def _first_fault(data: _Bytes, *, checked: bool) -> tuple[int, int] | None:
    """Where the log cannot be read on, and where the record at that place begins; None: it is whole."""
    for found in _fragments(data, checked=checked):
        if isinstance(found, tuple):
            return found
    return None


def _sequence_before(data: _Bytes, record: int) -> int:
    """The number of the last batch that begins before `record`."""
    sequence = 0
    for found in _fragments(data, checked=False):
        if isinstance(found, tuple) or found.at >= record:
            break
        if found.kind in (FULL, FIRST):
            sequence = _sequence(data, found.at)
    return sequence


def _sequence(data: _Bytes, at: int) -> int:
    return int.from_bytes(data[at + HEADER : at + HEADER + 8], "little")


def _later_fragment(data: _Bytes, start: int, kinds: tuple[int, int], after: int | None) -> int | None:
    """Where a whole fragment of one of `kinds` begins at or behind `start`, at whatever byte; None: nowhere.

    Of batches only one with a number above `after` counts: what lies there from an earlier use of the disk does
    not.
    """
    size = len(data)
    left = CHECKED_BYTES_MAX
    for found in re.compile(rb"[%c%c]" % kinds).finditer(data, start + HEADER - 1):
        at = found.start() - HEADER + 1
        end = _end(data, at)
        if end > size or end - at > BLOCK - at % BLOCK:
            continue
        if after is not None and FIRST in kinds and not after < _sequence(data, at) <= after + 2**32:
            continue
        left -= end - at
        if left < 0 or _whole(data, at, end):
            return at
    return None


def _is_one_record(data: _Bytes, at: int, record: int) -> bool:
    """Whether all from `at` on can be what is there of the one record that begins at `record`.

    Its headers say how far it goes; one that was not written stands as zeros, and then the next block goes on.
    """
    size = len(data)
    kinds = (FULL, FIRST) if at == record else (MIDDLE, LAST)
    while at + HEADER <= size:
        room = BLOCK - at % BLOCK
        if any(data[at + 4 : at + HEADER]) and not _has_hole(data, at, at + HEADER, record):
            kind, end = data[at + 6], _end(data, at)
            if kind not in kinds or end - at > room:
                return False
            if kind in (FULL, LAST):
                return end >= size
            if end - at != room:
                return False
        at += room
        kinds = (MIDDLE, LAST)
    return True


def _is_torn(data: _Bytes, at: int, record: int) -> bool:
    """Whether the log's last record, which cannot be read from `at` on, was certainly never written whole.

    It was not when the file ends before it does, or when zeros stand where a sector of it should be. Everything
    else may as well be damage of a record that was acknowledged.
    """
    size = len(data)
    if at + HEADER >= size:
        return True
    if _end(data, at) > size:
        # Unless it ends just here by its checksum: then not the record is short but its length is wrong.
        return not _whole(data, at, size)
    return _has_hole(data, record, size, record) or not any(data[max(record, size - ZEROS_MIN) : size])


def _has_hole(data: _Bytes, start: int, end: int, record: int) -> bool:
    """Whether of a sector between `start` and `end` all that belongs to the record that begins at `record` is
    zeros.

    Of its first sector and of its last one that may be a few bytes.
    """
    for sector in range(start - start % SECTOR, end, SECTOR):
        if not any(data[max(sector, record) : sector + SECTOR]):
            return True
    return False


def _end(data: _Bytes, at: int) -> int:
    """Where the fragment with its header at `at` says that it ends."""
    return at + HEADER + int.from_bytes(data[at + 4 : at + 6], "little")


# --- checksums -----------------------------------------------------------------------------------------------


def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_CRC32C: Final = _table()


def _whole(data: _Bytes, at: int, end: int) -> bool:
    """Whether the fragment with header at `at` and data up to `end` has its own checksum."""
    crc = 0xFFFFFFFF
    table = _CRC32C
    for byte in data[at + 6 : end]:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return masked == int.from_bytes(data[at : at + 4], "little")
