"""The first run of a backup leaves a mark, by which a later run knows what a killed one has left behind.

Invariants. The mark is durable before anything else is put into the directory, and is only made where nothing lies;
so what the backup's parts hold beside a whole mark was put there by a first run for the same member. It is gone
once there is a manifest. A directory with anything else in it is refused, and nothing of it is touched.
"""

import contextlib
import os
from pathlib import Path

from node.backup.manifest import LOCK, NAME, PARTS, BackupManifest, disk_error, sync_directory
from node.errors import ConfigError

BEGUN = "backup.begun"
_MANIFEST_PARTIAL = Path(NAME).with_suffix(".partial").name


def begin(directory: Path, manifest: BackupManifest) -> None:
    """The directory holds the mark of a first backup as `manifest` describes it, and at most what such a one left.

    Raise ConfigError, with nothing changed, for a directory with anything else in it; StoreError.
    """
    path, mark = directory / BEGUN, _mark(manifest)
    try:
        others = sorted(item.name for item in directory.iterdir() if item.name not in (LOCK, BEGUN))
        found = _read(path, len(mark) + 1)
        if found == mark:
            foreign = [name for name in others if not _may_be_left(directory / name)]
            if foreign:
                raise _refused(directory, f"{foreign[0]} beside an unfinished first backup")
            return
        if found is not None and not mark.startswith(found):
            raise _refused(directory, f"{BEGUN}, which is not the mark of this node's first backup")
        if others:
            raise _refused(directory, others[0])
        # Nothing of it, or its beginning alone where a run was killed while it wrote the mark.
        _write(path, mark)
    except OSError as error:
        raise disk_error(path, error) from error


def is_begun(directory: Path) -> bool:
    """Whether a first backup was begun in `directory` that has no manifest yet."""
    return (directory / BEGUN).exists() and not (directory / NAME).exists()


def end(directory: Path) -> None:
    """The mark is gone: a manifest says what is there, or nothing is there. Raise StoreError."""
    path = directory / BEGUN
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(path, error) from error


def remove_begun(directory: Path) -> None:
    """Nothing of a first backup without a manifest is there any more, once its parts are empty.

    Where they are not, or the disk refuses, the mark stays: the next run goes on then.
    """
    if not (directory / NAME).exists():
        with contextlib.suppress(OSError):
            # Without the mark it would be a stranger's, and the directory refused from then on.
            (directory / _MANIFEST_PARTIAL).unlink(missing_ok=True)
            for part in PARTS:
                if (directory / part).exists():
                    (directory / part).rmdir()
            sync_directory(directory)
            (directory / BEGUN).unlink(missing_ok=True)


def _mark(manifest: BackupManifest) -> bytes:
    """What the mark says: always the same for one member's backup, so that half of one is known too."""
    lines = ("hansa/backup begun", manifest.network, manifest.genesis_hash, manifest.member)
    return "".join(f"{line}\n" for line in lines).encode()


def _read(path: Path, size_bytes: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(size_bytes)
    except FileNotFoundError:
        return None


def _write(path: Path, mark: bytes) -> None:
    with path.open("wb") as file:
        file.write(mark)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path.parent)


def _may_be_left(path: Path) -> bool:
    """Whether a run that was killed before its first manifest could have left this."""
    if path.name in PARTS:
        return path.is_dir() and not path.is_symlink()
    return path.name == _MANIFEST_PARTIAL and path.is_file()


def _refused(directory: Path, what: str) -> ConfigError:
    return ConfigError("backup_unreadable", f"{directory} is no backup and not empty: it holds {what}")
