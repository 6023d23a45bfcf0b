"""Files that a command writes once: new, readable by their owner alone, never over an older one."""

import os
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
        with open(descriptor, "wb") as opened:
            opened.write(data)
    except OSError as error:
        raise ConfigError(code, f"{file}: {error.strerror or error}") from error
