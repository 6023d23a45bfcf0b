"""A small file whose bytes are on the disk in one step: the former ones or the new ones, whatever crashes."""

import contextlib
import os
import tempfile
from pathlib import Path


def replace_durably(path: Path, data: bytes) -> None:
    """`path` holds `data`, readable by its owner alone, and so do the names that lead to it. Raise OSError.

    Its directory is made where there is none. What a crash leaves beside it begins with a dot and is of no use.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mkstemp gives mode 0600
    try:
        with open(descriptor, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(descriptor)
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    for directory in (path.parent, path.parent.parent):
        name = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(name)
        finally:
            os.close(name)
