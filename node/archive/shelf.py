"""The directory in which a node's archive files lie."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from node.archive.reader import ArchiveReader
from node.archive.writer import sync_directory
from node.errors import ConfigError, HansaError

_NAME = re.compile(r"blocks-([0-9]{12,19})-([0-9]{12,19})\.hansa")


class ShelvedArchive(msgspec.Struct, frozen=True):
    """An archive file by its name: heights `first` … `last`."""

    path: Path
    first: int
    last: int


def ascending(paths: Iterable[Path]) -> list[ShelvedArchive]:
    """Return those of the paths that have the name of an archive, ascending by what they hold."""
    found = [
        ShelvedArchive(path, int(match[1]), int(match[2]))
        for path in paths
        if (match := _NAME.fullmatch(path.name)) is not None
    ]
    return sorted(found, key=lambda item: (item.first, item.last))


class ArchiveShelf:
    """One directory of archive files. Their names say what they hold; whoever needs more opens them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def prepare(self) -> None:
        """The directory is there, durably, and can be written to; else raise ConfigError (`archive_unreadable`)."""
        probe = self.directory / ".probe"
        try:
            missing = [item for item in (self.directory, *self.directory.parents) if not item.exists()]
            self.directory.mkdir(parents=True, exist_ok=True)
            for item in missing:
                # Else a power cut could take the directory with all that is in it, after it was pruned here.
                sync_directory(item.parent)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError("archive_unreadable", f"{self.directory}: {error.strerror or error}") from error

    def path_of(self, first: int, last: int) -> Path:
        """Return where the archive of the heights `first` … `last` belongs."""
        return self.directory / f"blocks-{first:012d}-{last:012d}.hansa"

    def files(self) -> list[ShelvedArchive]:
        """Return the archives that lie here, ascending; raise ConfigError where the directory cannot be read."""
        try:
            names = [item.name for item in self.directory.iterdir()]
        except OSError as error:
            raise ConfigError("archive_unreadable", f"{self.directory}: {error.strerror or error}") from error
        return ascending(self.directory / name for name in names)

    def holding(self, height: int) -> ShelvedArchive | None:
        """Return a file whose name says that it holds the block at `height`, or None."""
        return next((item for item in self._readable() if item.first <= height <= item.last), None)

    def locate(self, tx_id: bytes) -> tuple[int, ShelvedArchive] | None:
        """Return (height, file) of a transaction in one of the files, the newest looked at first, or None.

        Opens file after file: for whoever has asked everywhere else. A file that cannot be read is passed over.
        """
        for item in reversed(self._readable()):
            try:
                with ArchiveReader(item.path) as reader:
                    place = reader.locate(tx_id)
            except HansaError:
                continue
            if place is not None:
                return place[0], item
        return None

    def last(self) -> int:
        """Return the highest height in any file; 0 where there is none."""
        return max((item.last for item in self._readable()), default=0)

    def readers(self) -> Iterator[ArchiveReader]:
        """Yield an open reader of each file, ascending; it is closed when the next one is asked for."""
        for item in self.files():
            with ArchiveReader(item.path) as reader:
                yield reader

    def _readable(self) -> list[ShelvedArchive]:
        try:
            return self.files()
        except ConfigError:
            return []
