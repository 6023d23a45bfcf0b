"""A database of which the process dies at a chosen write, and what the power cut leaves of the newest log.

Real LevelDB lies below: a crash takes its directory as it is at that moment, without a close, as the next process
would find it. A torn write is one that LevelDB has made and of which only a part is there afterwards; its sync
never returned, so nothing of it was promised to anybody.
"""

import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from node.store import Database, LevelDatabase
from node.store.database import Reader
from node.store.log_tail import log_files

SECTOR = 512
PAGE = 4096
Rows = list[tuple[bytes, bytes | None]]
Wrap = Callable[[Database], Database]


class PowerCut(BaseException):
    """The process ends here and now: nothing that it would have done after this happens."""


class DyingDatabase:
    """A LevelDB directory in use by a process that dies at its `writes_left`th write from now, in the way `how`.

    `before`: nothing of the write is there. `after`: all of it is, and nobody was told. The other ways are those of
    `tear`, which is given the log and how long it was before the write.
    """

    def __init__(self, path: Path, writes_left: int, how: str) -> None:
        self.path = path
        self.how = how
        self._left = writes_left
        self._database = LevelDatabase(path)
        self.synced_writes = 0
        self.log_size = 0
        """Of the newest log, before the write at which the process died."""

    def write(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        """The rows are durable, or the process is dead."""
        self._left -= 1
        if self._left == 0:
            self.log_size = self._newest_log_size()
            if self.how != "before":
                self._database.write(rows)
            raise PowerCut
        self._database.write(rows)
        self.synced_writes += 1

    def _newest_log_size(self) -> int:
        logs = log_files(self.path)
        return logs[-1].stat().st_size if logs else 0

    def crashed(self, chance: random.Random, place: Path) -> None:
        """`place` is the directory that the next process finds; this one is gone."""
        freeze(self.path, place)
        self._database.close()
        log = log_files(place)[-1]
        if self.how not in ("before", "after") and log.name == log_files(self.path)[-1].name:
            data = log.read_bytes()
            if len(data) > self.log_size:
                log.write_bytes(tear(data, self.log_size, self.how, chance))

    def get(self, key: bytes) -> bytes | None:
        """As LevelDatabase."""
        return self._database.get(key)

    def scan(
        self, start: bytes, end: bytes, reverse: bool = False, ahead: int = 1
    ) -> Iterator[tuple[bytes, bytes]]:
        """As LevelDatabase."""
        return self._database.scan(start, end, reverse, ahead)

    def snapshot(self) -> Reader:
        """As LevelDatabase."""
        return self._database.snapshot()

    def size_bytes(self, start: bytes = b"", end: bytes = b"\xff") -> int:
        """As LevelDatabase."""
        return self._database.size_bytes(start, end)

    def compact(self, start: bytes, end: bytes) -> None:
        """As LevelDatabase."""
        self._database.compact(start, end)

    def close(self) -> None:
        """As LevelDatabase."""
        self._database.close()


def freeze(live: Path, place: Path) -> None:
    """`place` holds the files of the open database `live` as they were at one moment.

    LevelDB compacts in a thread of its own meanwhile: a copy during which a file came, went or grew is made anew.
    """
    while True:
        before = _sizes(live)
        try:
            shutil.copytree(live, place)
        except (shutil.Error, FileNotFoundError):
            before = {}
        if before and _sizes(live) == before == _sizes(place):
            return
        shutil.rmtree(place, ignore_errors=True)


def _sizes(directory: Path) -> dict[str, int]:
    sizes = {}
    for entry in directory.iterdir():
        try:
            sizes[entry.name] = entry.stat().st_size
        except FileNotFoundError:
            sizes[entry.name] = -1
    return sizes


WAYS = ("before", "after", "cut", "zeros", "holes", "garbage")
"""How a process dies at a write. `cut`: the file ends within it. `zeros`: the file has its length, and from a page
on nothing was written. `holes`: some sectors were written and some were not. `garbage`: stale bytes instead of
it."""


def tear(data: bytes, begun: int, how: str, chance: random.Random) -> bytes:
    """The log `data`, of which what follows byte `begun` was being written, as the power cut leaves it."""
    if how == "cut":
        return data[: chance.randrange(begun, len(data))]
    torn = bytearray(data)
    if how == "zeros":
        at = chance.randrange(begun, len(data))
        at = max(begun, at - at % chance.choice((SECTOR, PAGE)))
        torn[at:] = bytes(len(data) - at)
    elif how == "holes":
        sectors = list(range(begun - begun % SECTOR, len(data), SECTOR))
        for at in chance.sample(sectors, chance.randint(1, len(sectors))):
            first, last = max(at, begun), min(at + SECTOR, len(data))
            torn[first:last] = bytes(last - first)
    else:
        at = chance.randrange(begun, len(data))
        torn[at:] = chance.randbytes(len(data) - at)
    return bytes(torn)
