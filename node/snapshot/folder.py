"""A snapshot on disk: one directory with `manifest` and `0000.chunk`, `0001.chunk`, …

Invariant: a file under its final name is whole and synced; a directory under its final name (its height) holds
every file. What a crash leaves behind has another name and is removed at the next start. Reads are bounded:
files may have been put there by anybody.
"""

import contextlib
import errno
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from node.errors import StoreError
from node.snapshot.manifest import CHUNK_FILE_BYTES_MAX, MANIFEST_BYTES_MAX

MANIFEST = "manifest"
DRAFT = "draft"
UNFINISHED = ".unfinished"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HEIGHT = re.compile(r"[1-9][0-9]{0,18}")


class SnapshotFolder:
    """One snapshot's directory, finished or being filled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> None:
        """The directory is there. Raise StoreError where it cannot be."""
        with _told(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            # An adoption relies on what lies here: a power cut must not take the directory with its synced files.
            _sync(self.path.parent)

    def start(self, manifest: bytes) -> None:
        """The directory holds this manifest, durably, and nothing else. Raise StoreError."""
        self.remove()
        self.create()
        self.write_manifest(manifest)

    def remove(self) -> None:
        """Nothing of it is there any more."""
        with _told(self.path), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.path)

    def manifest_bytes(self) -> bytes:
        """Return the manifest file; b"" where there is none. Raise StoreError."""
        return _read(self.path / MANIFEST, MANIFEST_BYTES_MAX) or b""

    def write_manifest(self, data: bytes) -> None:
        """The manifest is durable."""
        self._write(MANIFEST, data)

    def draft_bytes(self) -> bytes:
        """Return what was noted for whoever cuts the chunks; b"" where nothing was. Raise StoreError."""
        return _read(self.path / DRAFT, MANIFEST_BYTES_MAX) or b""

    def write_draft(self, data: bytes) -> None:
        """It is noted for whoever cuts the chunks."""
        self._write(DRAFT, data)

    def drop_draft(self) -> None:
        """Nothing is noted for whoever cuts the chunks."""
        with _told(self.path):
            (self.path / DRAFT).unlink(missing_ok=True)

    def chunk(self, index: int) -> bytes | None:
        """Return the chunk's file, compressed as it is, or None. Raise StoreError."""
        return _read(self.chunk_path(index), CHUNK_FILE_BYTES_MAX)

    def write_chunk(self, index: int, data: bytes) -> None:
        """The chunk is durable."""
        self._write(self.chunk_path(index).name, data)

    def chunk_path(self, index: int) -> Path:
        """Where the chunk lies."""
        return self.path / f"{index:04d}.chunk"

    def drop_chunk(self, index: int) -> None:
        """The chunk is not there any more."""
        with _told(self.path):
            self.chunk_path(index).unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """What a crash left of unfinished files is gone."""
        with _told(self.path), contextlib.suppress(FileNotFoundError):
            for item in self.path.iterdir():
                if item.name.endswith(UNFINISHED):
                    item.unlink(missing_ok=True)

    def rename(self, path: Path) -> "SnapshotFolder":
        """The directory lies at `path`, durably; what was there is gone."""
        target = SnapshotFolder(path)
        target.remove()
        with _told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.path.rename(path)
            _sync(path.parent)
        return target

    def size_bytes(self) -> int:
        """Return how many bytes its files take."""
        with contextlib.suppress(OSError):
            return sum([file.stat().st_size for file in self.path.iterdir()])
        return 0

    def _write(self, name: str, data: bytes) -> None:
        # Two threads may write one chunk: each fills a file of its own, and either whole file may stay.
        unfinished = self.path / f"{name}.{threading.get_ident()}{UNFINISHED}"
        try:
            with _told(self.path):
                with unfinished.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.rename(self.path / name)
                _sync(self.path)
        except FileNotFoundError as error:
            raise StoreError("disk_failed", f"{self.path} is gone: somebody removed it") from error


def finished_heights(root: Path) -> list[int]:
    """Return the heights of the finished snapshots in `root`, ascending."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), _told(root):
        return sorted(int(item.name) for item in root.iterdir() if _HEIGHT.fullmatch(item.name))
    return []


def snapshot_at(root: Path, height: int) -> SnapshotFolder:
    """The finished snapshot of that height in `root`."""
    return SnapshotFolder(root / str(height))


def unfinished_at(root: Path, height: int) -> SnapshotFolder:
    """Where the snapshot of that height is being made in `root`."""
    return SnapshotFolder(root / f"{height}{UNFINISHED}")


def remove_snapshot(root: Path, height: int) -> None:
    """The snapshot of that height is not there any more, nor ever in half under its final name."""
    folder = snapshot_at(root, height)
    if folder.path.exists():
        folder.rename(unfinished_at(root, height).path).remove()


def remove_leftovers(root: Path) -> None:
    """What a crash left of unfinished snapshots in `root` is gone."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), _told(root):
        for item in root.iterdir():
            if item.name.endswith(UNFINISHED):
                SnapshotFolder(item).remove()


def _read(path: Path, size_max: int) -> bytes | None:
    """Return at most one byte more than `size_max` of the file, which no judge accepts; None where there is
    none."""
    with _told(path):
        try:
            with path.open("rb") as file:
                return file.read(size_max + 1)
        except FileNotFoundError:
            return None


def _sync(directory: Path) -> None:
    """New names in the directory are durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """The operating system's refusals become StoreError; what is simply missing is left to the caller."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        code = "disk_full" if error.errno in _FULL else "disk_failed"
        raise StoreError(code, f"{error.filename or path}: {error.strerror}") from error
