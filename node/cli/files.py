"""Files that a command writes: new ones, never over an older one, and the one that it was given to add to."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from node.errors import ConfigError


def require_new(file: Path, code: str) -> None:
    """Return when nothing lies at `file`; raise ConfigError(`code`). Said before anybody works for it."""
    if file.exists():
        raise ConfigError(code, f"{file}: exists already")


def write_new(file: Path, data: bytes, code: str) -> None:
    """`data` lies in `file`, which is new and readable by its owner alone; raise ConfigError(`code`) otherwise."""
    require_new(file, code)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(code, f"{file}: {error.strerror or error}") from error
    try:
        with open(descriptor, "wb") as opened:
            opened.write(data)
    except OSError as error:
        # Half a file serves nobody, and stands in the way of the next attempt.
        with contextlib.suppress(OSError):
            os.unlink(file)
        raise ConfigError(code, f"{file}: {error.strerror or error}") from error


def replace_file(file: Path, data: bytes, code: str) -> None:
    """`file` holds `data`, on the disk, in one step; raise ConfigError(`code`), and it holds what it held before.

    Who may read it may read it still: in a directory that two people share, the second one goes on with it.
    """
    beside: str | None = None
    try:
        file = file.resolve(strict=True)  # else a link would be replaced, and what it leads to stay as it is
        mode = stat.S_IMODE(file.stat().st_mode)
        descriptor, beside = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # mkstemp gives mode 0600
        with open(descriptor, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        os.replace(beside, file)
    except OSError as error:
        if beside is not None:
            with contextlib.suppress(OSError):
                os.unlink(beside)
        raise ConfigError(code, f"{file}: {error.strerror or error}") from error
    # A stick is pulled out right after. Some shares cannot do this to a directory; there the file's bytes are safe.
    with contextlib.suppress(OSError):
        sync_directory(file.parent)


def sync_directory(path: Path) -> None:
    """The names in a directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
