"""How many bytes a disk has left, and whether what somebody is about to write leaves enough for the node to go
on."""

import shutil
from pathlib import Path

from node.config import DiskSettings
from node.errors import Unavailable


def free_bytes(directory: Path) -> int | None:
    """How many bytes of disk are left for `directory`; None where nobody can tell."""
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return None


def resume_bytes(settings: DiskSettings) -> int:
    """Return how much has to be free for a node that stood still to go on."""
    return settings.reserve_bytes // 4 * 5


def require_room(kept_bytes: int, free: int | None, needed_bytes: int, what: str) -> None:
    """Of `free` bytes `kept_bytes` are left after `needed_bytes` more; else raise Unavailable("disk_low").

    `what` needs them, about. Where nobody can tell how many are free, nothing is refused.
    """
    if free is not None and free < needed_bytes + kept_bytes:
        raise Unavailable(
            "disk_low",
            f"{what} needs about {max(needed_bytes, 0):,} bytes of disk; {free:,} are free, and {kept_bytes:,} of"
            " them are kept in reserve",
        )
