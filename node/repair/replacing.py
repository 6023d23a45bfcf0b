"""A judged copy takes the place of the damaged data directory, in three renames that a crash may come between.

Invariants. (1) Under `data.repaired-N` lies only a copy that was judged right. (2) The damaged directory is moved
to `data.damaged-N`, of the same number, only for that copy, and the number was free before. So where both lie there
and no data directory does, nothing has been written since, and the last rename is all that is missing. A copy
beside a data directory is of no use to anybody: a node may have voted in there meanwhile.
"""

import os
import re
import shutil
from pathlib import Path

from node.errors import StoreError

JUDGED, DAMAGED = "repaired", "damaged"


def replace(data: Path, copy: Path) -> Path:
    """`copy` lies at `data`; return where that lies now. Raise StoreError, and then `data` is where it was.

    Where even that cannot be had, both lie there as after a crash, and `finish_replacing` goes on.
    """
    number = 1
    while _at(data, DAMAGED, number).exists():
        number += 1
    judged, kept = _at(data, JUDGED, number), _at(data, DAMAGED, number)
    try:
        copy.rename(judged)
        _sync(data.parent)
        data.rename(kept)
        try:
            judged.rename(data)
        except OSError:
            kept.rename(data)
            raise
        _sync(data.parent)
    except OSError as error:
        raise StoreError("disk_failed", f"{data}: {error.strerror or error}") from error
    return kept


def finish_replacing(data: Path) -> Path | None:
    """The copy for which `data` was moved away lies in its place, if a crash has kept it from there.

    Return where the damaged directory lies then; None where there was nothing to finish. Raise StoreError.
    """
    try:
        if data.exists() and any(data.iterdir()):
            return None
        for number, judged in _judged(data):
            kept = _at(data, DAMAGED, number)
            if kept.is_dir():
                judged.rename(data)
                _sync(data.parent)
                return kept
    except OSError as error:
        raise StoreError("disk_failed", f"{data}: {error.strerror or error}") from error
    return None


def drop_stale(data: Path) -> None:
    """No copy lies beside a data directory that is there; whoever calls holds its lock."""
    if data.is_dir():
        for _, judged in _judged(data):
            shutil.rmtree(judged, ignore_errors=True)


def _judged(data: Path) -> list[tuple[int, Path]]:
    """The judged copies beside `data` with their numbers, the latest first."""
    if not data.parent.is_dir():
        return []
    name = re.compile(rf"{re.escape(data.name)}\.{JUDGED}-([1-9][0-9]{{0,8}})")
    found = [(int(match[1]), path) for path in data.parent.iterdir() if (match := name.fullmatch(path.name))]
    return sorted(found, reverse=True)


def _at(data: Path, state: str, number: int) -> Path:
    return data.with_name(f"{data.name}.{state}-{number}")


def _sync(directory: Path) -> None:
    """The names in the directory are durable. Raise OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
