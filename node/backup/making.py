"""Backing up a running node: a snapshot of its state, all its blocks in archive files, its configuration.

The node goes on voting meanwhile: blocks come over its HTTP interface, page by page, and a snapshot is made by the
node itself beside its commits. A backup is incremental: what lies there stays as it is, new blocks go into new
archive files, and a new snapshot is only made when the last one is old. Every new file is proven by certificates
before the manifest names it.

Keys are not part of a backup unless asked for; they stay encrypted then, and the passphrase is never part of it.
"""

import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from node.archive import ArchiveReader, ArchiveWriter, verify_archive
from node.archive.shelf import ArchiveShelf
from node.backup.manifest import (
    ARCHIVES,
    CONFIGURATION,
    KEYS,
    SNAPSHOTS,
    BackupManifest,
    copy_file,
    describe_file,
    held,
    read_manifest,
    remove_leftovers,
    write_manifest,
)
from node.backup.pages import Page, archived, read_page
from node.client.answers import BackupStatus
from node.config import load_network, load_node
from node.errors import ConfigError, HansaError, Unavailable
from node.keys import verify
from node.snapshot import SnapshotFolder, finished_heights, verify_snapshot
from node.snapshot.folder import snapshot_at

OnProgress = Callable[[str, int, int], None]
"""Told what is being done, and how much of how much."""

ARCHIVE_BYTES = 512 * 1024 * 1024
"""An archive file ends with the block that reaches this."""
SNAPSHOT_POLL_S = 0.2
SNAPSHOT_TIMEOUT_S = 6 * 3600.0


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


class Backup:
    """One run: brings the backup in a directory up to the node's head."""

    def __init__(self, node_file: Path, client: BackupNode, directory: Path, on_progress: OnProgress) -> None:
        """`client` reaches the node of `node_file`, whose files are on this machine. Raise ConfigError."""
        self._node_file = node_file
        self._node = load_node(node_file)
        self._network = load_network(self._node.network_file)
        self._client = client
        self._directory = directory
        self._on_progress = on_progress
        self._notes: list[str] = []
        self._manifest: BackupManifest

    def run(self, *, snapshot: bool, snapshot_blocks: int, keys: bool) -> BackupReport:
        """Return what was done. A snapshot is made when asked for, or when the last one is `snapshot_blocks` old.

        Raise ConfigError for a directory that is no backup of this node, Unavailable when the node does not answer,
        StoreError for a full disk: the backup is then what it was before, or what was finished meanwhile.
        """
        started = time.monotonic()
        with held(self._directory):
            known = read_manifest(self._directory)
            before = self._manifest = self._begin(known)
            remove_leftovers(self._directory, before)
            height = self._client.backup_status().height
            old = before.snapshot_height
            if height > 0 and (snapshot or old == 0 or height - old >= snapshot_blocks):
                self._take_snapshot()
            self._take_blocks()
            self._take_configuration(keys)
            self._save()
        manifest = self._manifest
        return BackupReport(
            directory=str(self._directory),
            height=manifest.last,
            first=manifest.first,
            blocks=max(0, manifest.last - max(before.last, manifest.first - 1)),
            snapshot_height=manifest.snapshot_height,
            new_snapshot=manifest.snapshot_height != old,
            files=len(manifest.files),
            size_bytes=manifest.size_bytes,
            added_bytes=manifest.size_bytes - before.size_bytes,
            took_ms=round((time.monotonic() - started) * 1000),
            keys=manifest.keys,
            notes=tuple(self._notes),
        )

    def _begin(self, known: BackupManifest | None) -> BackupManifest:
        network, member = self._network, self._node.member
        if known is None:
            others = [path.name for path in self._directory.iterdir() if path.name != ".lock"]
            if others:
                raise ConfigError(
                    "backup_unreadable", f"{self._directory} is no backup and not empty: it holds {others[0]}"
                )
            return BackupManifest(
                "hansa/backup", 1, network.network_id, network.genesis_hash.hex(), member, _now_ms()
            )
        if (known.genesis_hash, known.member) != (network.genesis_hash.hex(), member):
            raise ConfigError(
                "backup_unreadable", f"{self._directory} is a backup of {known.member} in {known.network}"
            )
        return known

    # --- the snapshot ----------------------------------------------------------------------------------------

    def _take_snapshot(self) -> None:
        """A snapshot of a recent height is in the backup, proven; an older one is not any more."""
        made = self._await_snapshot()
        source = snapshot_at(self._node.backup_dir, made)
        target = self._directory / SNAPSHOTS / str(made)
        files = sorted(path for path in source.path.iterdir() if path.is_file())
        for index, path in enumerate(files):
            self._on_progress("copying the snapshot", index, len(files))
            copy_file(path, target / path.name)
        network = self._network
        verify_snapshot(
            SnapshotFolder(target),
            network.network_id,
            network.genesis_hash,
            network.validators,
            network.parameters.state_tree_bits,
            verify,
            lambda done, total: self._on_progress("judging the snapshot", done, total),
        )
        kept = [file for file in self._manifest.files if not file.path.startswith(f"{SNAPSHOTS}/")]
        kept += [describe_file(self._directory, path) for path in sorted(target.iterdir())]
        self._manifest = msgspec.structs.replace(self._manifest, snapshot_height=made, files=tuple(kept))
        self._save()
        for height in finished_heights(self._directory / SNAPSHOTS):
            if height != made:
                shutil.rmtree(self._directory / SNAPSHOTS / str(height), ignore_errors=True)
        with contextlib.suppress(HansaError):
            source.remove()

    def _await_snapshot(self) -> int:
        """The height of the snapshot that the node has made for this run."""
        status = self._client.make_backup_snapshot()
        wanted = status.making_height or status.snapshot_height
        deadline = time.monotonic() + SNAPSHOT_TIMEOUT_S
        while status.making_height:
            if time.monotonic() > deadline:
                raise Unavailable("node_busy", f"the snapshot of height {wanted} is not done after six hours")
            self._on_progress(f"the node makes a snapshot of height {wanted}", 0, 0)
            time.sleep(SNAPSHOT_POLL_S)
            status = self._client.backup_status()
        if not status.snapshot_height:
            raise Unavailable("snapshot_not_made", f"the node made none: {status.failed or 'it does not say'}")
        if not snapshot_at(self._node.backup_dir, status.snapshot_height).path.is_dir():
            raise ConfigError(
                "backup_unreadable",
                f"no snapshot lies in {self._node.backup_dir}: run this on the node's machine, with its --dir",
            )
        return status.snapshot_height

    # --- the blocks ------------------------------------------------------------------------------------------

    def _take_blocks(self) -> None:
        """Every block up to the node's head, and beyond the snapshot, is in an archive file of the backup."""
        status = self._client.backup_status()
        first = self._manifest.last + 1
        while first < status.first_block:
            following = self._take_shelved(first)
            if following is None:
                break
            first = following
        if first < status.first_block:
            lost = f"blocks {first} to {status.first_block - 1} were pruned and no archive of the node has them"
            self._notes.append(f"{lost}: they are not in this backup")
            if self._manifest.last == 0:
                self._manifest = msgspec.structs.replace(self._manifest, first=status.first_block)
            first = status.first_block
        while first <= status.height:
            first = self._write_archive(first, status.height) + 1

    def _take_shelved(self, first: int) -> int | None:
        """The node's own archive that holds block `first` is in the backup; return the block after it, or None."""
        directory = self._node.retention.archive_dir
        found = None if directory is None else ArchiveShelf(directory).holding(first)
        if found is None:
            return None
        target = self._directory / ARCHIVES / found.path.name
        copy_file(found.path, target)
        self._add_archive(target)
        return found.last + 1

    def _write_archive(self, first: int, height: int) -> int:
        """One new archive file holds the blocks from `first` on; return the last one's height."""
        shelf = ArchiveShelf(self._directory / ARCHIVES)
        shelf.prepare()
        page = self._page(first)
        if page.head is None:
            raise Unavailable("unexpected_answer", f"the node has no block {first} any more")
        writing = shelf.directory / "unfinished"
        writer = ArchiveWriter(writing, page.head)
        try:
            last = first - 1
            while True:
                for item in page.blocks:
                    writer.add(archived(item))
                    last += 1
                self._on_progress("copying blocks", last, height)
                if last >= height or writer.size_bytes >= ARCHIVE_BYTES:
                    break
                page = self._page(last + 1)
                if not page.blocks:
                    break
            writer.finish()
        except BaseException:
            writer.abandon()
            raise
        target = shelf.path_of(first, last)
        # Before it has its name: as little of a bank's payments as of its keys is for others on the machine.
        writing.chmod(0o600)
        writing.rename(target)
        self._add_archive(target)
        return last

    def _add_archive(self, path: Path) -> None:
        """The archive at `path` is proven, follows the one before it, and is part of the backup."""
        known = self._manifest
        with ArchiveReader(path) as reader:
            parent = bytes.fromhex(known.last_digest) if reader.first == known.last + 1 and known.last else None
            proof = verify_archive(
                reader,
                self._network,
                None,
                lambda done, total: self._on_progress("judging blocks", done, total),
                parent=parent,
            )
        self._manifest = msgspec.structs.replace(
            known,
            last=proof.last,
            last_digest=proof.digest.hex(),
            files=(*known.files, describe_file(self._directory, path)),
        )
        self._save()

    def _page(self, first: int) -> Page:
        return read_page(self._client.backup_blocks(first), first)

    # --- the rest --------------------------------------------------------------------------------------------

    def _take_configuration(self, keys: bool) -> None:
        """The node's two files are in the backup and, where asked for, its key files, encrypted as they are."""
        wanted = {
            f"{CONFIGURATION}/network.toml": self._node.network_file,
            f"{CONFIGURATION}/node.toml": self._node_file,
        }
        if keys:
            for path in sorted(self._node.keys_dir.glob("*.key")):
                wanted[f"{KEYS}/{path.name}"] = path
        if keys or self._manifest.keys:
            self._notes.append("key files are in this backup, encrypted under their passphrase, which is not in it")
        else:
            self._notes.append("no key is in this backup: keep keys/ apart, or ask for them with --keys")
        kept = [file for file in self._manifest.files if file.path not in wanted]
        for name, source in wanted.items():
            copy_file(source, self._directory / name)
            kept.append(describe_file(self._directory, self._directory / name))
        self._manifest = msgspec.structs.replace(
            self._manifest, files=tuple(kept), keys=keys or self._manifest.keys, made_ms=_now_ms()
        )

    def _save(self) -> None:
        write_manifest(self._directory, self._manifest)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
