"""What a backup directory holds, told by its `backup.json`: every file with its size and SHA-256.

Invariant: a file that the manifest names is whole and synced, its name too, before the manifest names it, and is
never changed afterwards; what takes its place lies under another name. The manifest itself is replaced by a rename.
So an interrupted backup is the one before it, and files that no manifest names are leftovers.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, BinaryIO, Literal

import msgspec

from node.errors import ConfigError, StoreError

NAME = "backup.json"
LOCK = ".lock"
ARCHIVES, SNAPSHOTS, CONFIGURATION, KEYS = "archives", "snapshots", "configuration", "keys"
PARTS = (ARCHIVES, SNAPSHOTS, CONFIGURATION, KEYS)
MANIFEST_SIZE_MAX = 64 * 1024 * 1024
_CHUNK = 1024 * 1024

HexHash = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class BackupFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file: its path below the directory, with slashes, its size and its hash."""

    path: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+){1,2}\Z", max_length=200)]
    size_bytes: Count
    sha256: HexHash

    @property
    def key(self) -> tuple[str, str]:
        """What it is, wherever it lies: the part of the backup, and the file's own name or, elsewhere, its path.

        A configuration or key file that has changed lies in a directory between, named after its hash.
        """
        part, *_, name = self.path.split("/")
        return (part, name) if part in (CONFIGURATION, KEYS) else (part, self.path)


class BackupManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A backup of one member's node: blocks `first` … `last` in archives, and the snapshot of `snapshot_height`.

    `first` is 1 unless the node had pruned its first blocks and kept no archive of them. `last_digest` is the
    digest of block `last` ("" while there is none), `snapshot_height` 0 without a snapshot. Times are Unix
    milliseconds.
    """

    format: Literal["hansa/backup"]
    version: Literal[1]
    network: str
    genesis_hash: HexHash
    member: str
    made_ms: Count
    first: Count = 1
    last: Count = 0
    last_digest: str = ""
    snapshot_height: Count = 0
    keys: bool = False
    files: tuple[BackupFile, ...] = ()

    @property
    def size_bytes(self) -> int:
        """How many bytes all files take."""
        return sum(file.size_bytes for file in self.files)


def read_manifest(directory: Path) -> BackupManifest | None:
    """Return the manifest of the backup in `directory`, None without one; ConfigError for one that is none."""
    path = directory / NAME
    try:
        with path.open("rb") as file:
            data = file.read(MANIFEST_SIZE_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError("backup_unreadable", f"{path}: {error.strerror or error}") from error
    try:
        if len(data) > MANIFEST_SIZE_MAX:
            raise msgspec.DecodeError("too large")
        manifest = msgspec.json.decode(data, type=BackupManifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError("backup_unreadable", f"{path}: {error}") from error
    if any(".." in PurePosixPath(file.path).parts for file in manifest.files):
        raise ConfigError("backup_unreadable", f"{path}: names files outside the backup")
    return manifest


def write_manifest(directory: Path, manifest: BackupManifest) -> None:
    """The backup in `directory` is what `manifest` says. Raise StoreError, and then it is what it was."""
    path = directory / NAME
    try:
        with _replacing(path, path.with_suffix(".partial")) as file:
            file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
    except OSError as error:
        raise disk_error(path, error) from error


def missing_files(directory: Path, manifest: BackupManifest) -> list[BackupFile]:
    """Return the files that the manifest names and that are not there with their size.

    Raise StoreError where the disk does not tell: a file that cannot be seen now is not a lost one.
    """
    missing = []
    for file in manifest.files:
        path = directory / file.path
        try:
            found = path.stat()
            whole = stat.S_ISREG(found.st_mode) and found.st_size == file.size_bytes
        except (FileNotFoundError, NotADirectoryError):
            whole = False
        except OSError as error:
            raise disk_error(path, error) from error
        if not whole:
            missing.append(file)
    return missing


def describe_file(directory: Path, path: Path) -> BackupFile:
    """Return what a manifest says of the file at `path` in `directory`. Raise StoreError."""
    digest = hashlib.sha256()
    size_bytes = 0
    try:
        with path.open("rb") as file:
            while data := file.read(_CHUNK):
                digest.update(data)
                size_bytes += len(data)
    except OSError as error:
        raise disk_error(path, error) from error
    return BackupFile(path.relative_to(directory).as_posix(), size_bytes, digest.hexdigest())


def copy_file(source: Path, target: Path) -> None:
    """`target` is a synced copy of `source`, readable by its owner alone. Raise StoreError, and then it is not."""
    try:
        make_directory(target.parent)
        partial = target.with_name(target.name + ".partial")
        with source.open("rb") as read, _replacing(target, partial) as written:
            shutil.copyfileobj(read, written, _CHUNK)
    except OSError as error:
        raise disk_error(target, error) from error


def make_directory(path: Path) -> None:
    """The directory is there, durably, and for its owner alone where it was not there before. Raise OSError."""
    missing = [item for item in (path, *path.parents) if not item.exists()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for item in missing:
        # Else a power cut could take the directory with every synced file in it.
        sync_directory(item.parent)


@contextlib.contextmanager
def _replacing(path: Path, partial: Path) -> Iterator[BinaryIO]:
    """What is written inside is durable under `path`, for its owner alone; or `path` is as it was.

    A first run that left its `partial` behind would find its own directory to be somebody else's. Raise OSError.
    """
    try:
        with open(_own_file(partial), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _own_file(path: Path) -> int:
    """Open an empty file at `path` for writing that its owner alone may read, whatever lay there. Raise OSError."""
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """No other process writes to the backup in `directory`; raise ConfigError when one does."""
    try:
        make_directory(directory)
        with (directory / LOCK).open("a") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError as error:
        raise ConfigError("data_dir_in_use", f"{directory}: another backup runs there") from error


def remove_leftovers(directory: Path, manifest: BackupManifest) -> None:
    """Of the backup's parts only files that `manifest` names are there."""
    named = {file.path for file in manifest.files}
    try:
        # Nothing goes before it is certain which manifest a power cut would leave.
        sync_directory(directory)
        for part in PARTS:
            for path in sorted((directory / part).rglob("*"), reverse=True):
                if path.is_dir():
                    with contextlib.suppress(OSError):
                        path.rmdir()
                elif path.relative_to(directory).as_posix() not in named:
                    path.unlink()
    except OSError as error:
        raise disk_error(directory, error) from error


def sync_directory(path: Path) -> None:
    """The names in the directory are durable. Raise OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(path: Path, error: OSError) -> StoreError:
    """Return the StoreError for what the disk refused."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return StoreError(
        "disk_full" if full else "disk_failed", f"{error.filename or path}: {error.strerror or error}"
    )
