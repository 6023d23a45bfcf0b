"""A stopped node's database, held so that nobody opens it, and copied file by file."""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from node.errors import ConfigError, StoreError
from node.store.room import free_bytes, require_room


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """No other process has the database at `path` open; raise ConfigError when one has."""
    with (path / "LOCK").open("a") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError("data_dir_in_use", f"{path} is in use by another process") from error
        yield


def copy_files(data: Path, copy: Path, purpose: str) -> None:
    """`copy` holds the files of `data`; raise Unavailable("disk_low") when there is no room for `purpose`.

    Not even tables are linked: LevelDB writes a table over whatever lies under its number, if its manifest does not
    name it, and would reach through the link into `data`.
    """
    try:
        files = [file for file in data.iterdir() if file.is_file() and file.name != "LOCK"]
        size_bytes = sum(file.stat().st_size for file in files)
        require_room(0, free_bytes(data), size_bytes, purpose)
        copy.mkdir(mode=0o700)
        for file in files:
            shutil.copy2(file, copy / file.name)
    except OSError as error:
        raise StoreError("disk_failed", f"{error.filename}: {error.strerror}") from error
