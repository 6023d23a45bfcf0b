"""What a backup asks of the node, and what it tells of its run."""

from collections.abc import Callable
from typing import Protocol

import msgspec

from node.client.answers import BackupStatus

OnProgress = Callable[[str, int, int], None]
"""Told what is being done, and how much of how much."""


class BackupNode(Protocol):
    """The running node, as node.client.Client reaches it."""

    def backup_status(self) -> BackupStatus:
        """What the node could be backed up with."""

    def make_backup_snapshot(self) -> BackupStatus:
        """The node makes a snapshot of its head for a backup."""

    def backup_blocks(self, first: int) -> bytes:
        """Some blocks from `first` on (node.backup.pages)."""


class BackupReport(msgspec.Struct, frozen=True):
    """What a run of `hansa backup` did.

    `height` is the last block in the backup, `blocks` how many this run added, `snapshot_height` that of the
    snapshot in it (0: none) and `new_snapshot` whether this run added it. Sizes are bytes: of all, and of what was
    added. `notes` say what else is to be known.
    """

    directory: str
    height: int
    first: int
    blocks: int
    snapshot_height: int
    new_snapshot: bool
    files: int
    size_bytes: int
    added_bytes: int
    took_ms: int
    keys: bool
    notes: tuple[str, ...]
