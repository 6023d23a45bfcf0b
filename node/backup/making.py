"""Backing up a running node: a snapshot of its state, all its blocks in archive files, its configuration.

The node goes on voting meanwhile: blocks come over its HTTP interface, page by page, and a snapshot is made by the
node itself beside its commits. A backup is incremental: what lies there stays as it is, new blocks go into new
archive files, and a new snapshot is only made when the last one is old. Every new file is proven by certificates
before the manifest names it.

Invariants. (1) What is restored from a backup reaches its last block: the snapshot and the blocks after it follow
one another without a gap. Where the node has pruned blocks that the backup lacks, a snapshot from above the gap is
taken. (2) What the manifest on disk names is neither changed nor removed before another one is written, and a file
whose blocks nobody else has is never forgotten. (3) A run begins only where there is room for it, and neither disk
is brought near the node's reserve: a backup that takes a member's vote is worse than none. A run that fails leaves
nothing that the manifest does not name.

Keys are not part of a backup unless asked for; they stay encrypted then, and the passphrase is never part of it.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from node.archive import ArchiveReader, ArchiveWriter, verify_archive
from node.archive.shelf import ArchiveShelf, ShelvedArchive, ascending
from node.archive.writer import PARTIAL
from node.backup.beginning import begin, end, remove_begun
from node.backup.manifest import (
    ARCHIVES,
    CONFIGURATION,
    KEYS,
    LOCK,
    SNAPSHOTS,
    BackupFile,
    BackupManifest,
    copy_file,
    describe_file,
    held,
    missing_files,
    read_manifest,
    remove_leftovers,
    write_manifest,
)
from node.backup.pages import Page, archived, read_page
from node.backup.report import BackupNode, BackupReport, OnProgress
from node.client.answers import BackupStatus
from node.config import load_node
from node.errors import ConfigError, HansaError, Unavailable
from node.recovery import load_trusted
from node.signatures import verify
from node.snapshot import SnapshotFolder, verify_snapshot
from node.snapshot.folder import snapshot_at
from node.store.room import free_bytes, require_room, resume_bytes
from node.wording import blocks_from

ARCHIVE_BYTES = 512 * 1024 * 1024
"""An archive file ends with the block that reaches this."""
MARGIN_BYTES = 64 * 1024 * 1024
"""So much is left on a disk that the node does not use."""
SNAPSHOT_POLL_S = 0.2
SNAPSHOT_TIMEOUT_S = 6 * 3600.0
GAP_TRIES_MAX = 3
"""So often a new snapshot is taken in one run because blocks vanish before they are copied."""


class Backup:
    """One run: brings the backup in a directory up to the node's head."""

    def __init__(
        self,
        node_file: Path,
        client: BackupNode,
        directory: Path,
        on_progress: OnProgress,
        free: Callable[[Path], int | None] = free_bytes,
    ) -> None:
        """`client` reaches the node of `node_file`, whose files are on this machine; `free` tells how many bytes
        are left for a directory. Raise ConfigError."""
        self._node_file = node_file
        self._node = load_node(node_file)
        self._network = load_trusted(self._node)
        self._client = client
        self._directory = directory
        self._on_progress = on_progress
        self._free = free
        self._notes: list[str] = []
        self._manifest: BackupManifest

    def run(self, *, snapshot: bool, snapshot_blocks: int, keys: bool) -> BackupReport:
        """Return what was done. A snapshot is made when asked for, or when the last one is `snapshot_blocks` old.

        Raise ConfigError for a directory that is no backup of this node, Unavailable when the node does not answer
        or a disk has no room, StoreError for a full disk: the backup is then what it was before, or what was
        finished meanwhile, and nothing else lies there.
        """
        started = time.monotonic()
        made = [path for path in (self._directory, *self._directory.parents) if not path.exists()]
        holding = False
        try:
            with held(self._directory):
                holding = True
                before = self._manifest = self._begin(read_manifest(self._directory))
                try:
                    before = self._take_all(snapshot, snapshot_blocks, keys)
                except BaseException:
                    # By what the disk says: of a manifest that was being written nobody knows whether it was.
                    with contextlib.suppress(HansaError):
                        remove_leftovers(self._directory, read_manifest(self._directory) or before)
                    remove_begun(self._directory)
                    raise
        except BaseException:
            if holding:
                self._remove_empty(made)
            raise
        manifest, old = self._manifest, before.snapshot_height
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

    def _take_all(self, snapshot: bool, snapshot_blocks: int, keys: bool) -> BackupManifest:
        """All that this run is to bring is in the backup; return what was whole in it before."""
        status = self._client.backup_status()
        self._forget_missing(status)
        before = self._manifest
        remove_leftovers(self._directory, before)
        height, old = status.height, before.snapshot_height
        self._require_room(self._blocks_bytes(status), "the backup's new blocks")
        if height > 0 and (snapshot or old == 0 or height - old >= snapshot_blocks):
            self._take_snapshot()
        self._take_blocks()
        self._close_gap()
        self._take_configuration(keys)
        self._remove_replaced()
        return before

    def _forget_missing(self, status: BackupStatus) -> None:
        """The manifest names only files that are there with their size; what was not can be taken anew.

        Raise ConfigError, with nothing changed, for a lost archive whose blocks the node has no more.
        """
        missing = {file.path for file in missing_files(self._directory, self._manifest)}
        if not missing:
            return
        for item in self._named_archives(missing):
            if not self._obtainable(item, status):
                raise ConfigError(
                    "backup_unreadable",
                    f"{item.path} is not there as it was written, and the node has not all of its blocks any more:"
                    " is a disk not mounted? If it is lost, begin another backup in an empty directory",
                )
        self._note(
            f"not there as it was written, and taken anew where the node has it: {', '.join(sorted(missing))}"
        )
        if any(path.startswith(f"{SNAPSHOTS}/") for path in missing):
            missing |= {file.path for file in self._manifest.files if file.path.startswith(f"{SNAPSHOTS}/")}
            self._manifest = msgspec.structs.replace(self._manifest, snapshot_height=0)
        files = tuple(file for file in self._manifest.files if file.path not in missing)
        last = max((item.last for item in self._named_archives({file.path for file in files})), default=0)
        if last != self._manifest.last:
            # Nothing here tells the digest of that block: the next archive is proven by its certificates alone.
            first = self._manifest.first if last else 1
            self._manifest = msgspec.structs.replace(self._manifest, first=first, last=last, last_digest="")
        self._save(files=files, keys=any(file.path.startswith(f"{KEYS}/") for file in files))

    def _obtainable(self, item: ShelvedArchive, status: BackupStatus) -> bool:
        """Whether the node has all blocks of the archive, in its store or in archives of its own."""
        first = item.first
        while first <= min(item.last, status.first_block - 1):
            found = self._shelved(first)
            if found is None:
                return False
            first = found.last + 1
        return item.last <= status.height

    def _named_archives(self, paths: set[str] | None = None) -> list[ShelvedArchive]:
        """The archives of these paths, ascending; without paths those that the manifest names."""
        names = {file.path for file in self._manifest.files} if paths is None else paths
        return ascending(self._directory / name for name in names if name.startswith(f"{ARCHIVES}/"))

    def _note(self, sentence: str) -> None:
        """The report says so, once."""
        if sentence not in self._notes:
            self._notes.append(sentence)

    def _close_gap(self) -> None:
        """The blocks follow the snapshot without a gap: a new one is taken where this backup lacks some between."""
        for _ in range(GAP_TRIES_MAX):
            first = self._unbroken_from()
            if self._manifest.snapshot_height >= first - 1:
                return
            self._note(
                f"a new snapshot was taken: blocks below {first} are missing, and no older one goes on across them"
            )
            self._take_snapshot()
            self._take_blocks()
        raise Unavailable(
            "node_busy",
            "the node prunes its blocks faster than they are copied: its snapshot and what is left of them do not"
            " meet. Let it keep more blocks ([retention] in node.toml)",
        )

    def _unbroken_from(self) -> int:
        """The first block from which on archives hold every one up to the last."""
        gaps = self._gaps()
        if gaps:
            return gaps[-1][1] + 1
        return self._manifest.first if self._manifest.last else 1

    def _remove_empty(self, made: list[Path]) -> None:
        """Directories that this run has made are gone again where nothing was put into them."""
        with contextlib.suppress(OSError):
            if made and [item.name for item in self._directory.iterdir()] == [LOCK]:
                (self._directory / LOCK).unlink()
            for path in made:
                path.rmdir()

    # --- room ------------------------------------------------------------------------------------------------

    def _require_room(self, needed_bytes: int, what: str) -> None:
        """The backup's disk has so much room, and what a node on it needs besides. Raise Unavailable."""
        place = next(path for path in (self._directory, *self._directory.parents) if path.exists())
        kept_bytes = MARGIN_BYTES
        with contextlib.suppress(OSError):
            if place.stat().st_dev == self._node.data_dir.stat().st_dev:
                kept_bytes = max(kept_bytes, resume_bytes(self._node.disk))
        require_room(kept_bytes, self._free(place), needed_bytes, f"{what} in {self._directory}")

    def _blocks_bytes(self, status: BackupStatus) -> int:
        """About how many bytes the blocks take that the backup lacks: by those that it has, or by the node's
        disk."""
        known = self._manifest
        new = status.height - max(known.last, status.first_block - 1)
        archived = sum(file.size_bytes for file in known.files if file.path.startswith(f"{ARCHIVES}/"))
        had = known.last - known.first + 1
        if archived and had > 0:
            return archived * new // had
        here = status.height - status.first_block + 1
        return status.size_bytes * new // here if here > 0 else 0

    def _begin(self, known: BackupManifest | None) -> BackupManifest:
        network, member = self._network, self._node.member
        if known is None:
            first = BackupManifest(
                "hansa/backup", 1, network.network_id, network.genesis_hash.hex(), member, _now_ms()
            )
            begin(self._directory, first)
            return first
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
        if made != self._manifest.snapshot_height:
            self._copy_snapshot(source, made)
            self._remove_replaced()
        with contextlib.suppress(HansaError):
            source.remove()

    def _copy_snapshot(self, source: SnapshotFolder, made: int) -> None:
        target = self._directory / SNAPSHOTS / str(made)
        files = sorted(path for path in source.path.iterdir() if path.is_file())
        self._require_room(source.size_bytes(), "the snapshot")
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
            network.recoveries,
        )
        kept = [file for file in self._manifest.files if not file.path.startswith(f"{SNAPSHOTS}/")]
        kept += [describe_file(self._directory, path) for path in sorted(target.iterdir())]
        self._save(snapshot_height=made, files=tuple(kept))

    def _await_snapshot(self) -> int:
        """The height of the snapshot that the node has made for this run."""
        status = self._client.make_backup_snapshot()
        wanted = status.making_height or status.snapshot_height
        deadline = time.monotonic() + SNAPSHOT_TIMEOUT_S
        while status.making_height:
            if time.monotonic() > deadline:
                raise Unavailable("node_busy", f"the snapshot of height {wanted} is not done after six hours")
            self._on_progress(
                f"the node makes a snapshot of height {wanted}, at low priority: this may take minutes", 0, 0
            )
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
        for first, last in self._gaps():
            self._take_range(first, last, status)
        self._take_range(self._manifest.last + 1, status.height, status)

    def _gaps(self) -> list[tuple[int, int]]:
        """The blocks between the first and the last of the backup that no archive of it holds, first and last."""
        gaps, reach = [], self._manifest.first - 1
        for item in self._named_archives():
            if item.first > reach + 1:
                gaps.append((reach + 1, item.first - 1))
            reach = max(reach, item.last)
        return gaps

    def _take_range(self, first: int, last: int, status: BackupStatus) -> None:
        """The blocks first … last are in archive files of the backup, but for those that the node has no more."""
        while first <= min(last, status.first_block - 1):
            following = self._take_shelved(first)
            if following is None:
                break
            first = following
        if first <= min(last, status.first_block - 1):
            lost = blocks_from(first, min(last, status.first_block - 1))
            self._note(f"not in this backup: {lost}, which the node has pruned and has no archive of")
            if self._manifest.last == 0:
                self._manifest = msgspec.structs.replace(self._manifest, first=status.first_block)
            first = status.first_block
        while first <= last:
            first = self._write_archive(first, last) + 1

    def _shelved(self, height: int) -> ShelvedArchive | None:
        """The node's own archive that holds the block."""
        directory = self._node.retention.archive_dir
        return None if directory is None else ArchiveShelf(directory).holding(height)

    def _take_shelved(self, first: int) -> int | None:
        """The node's own archive that holds block `first` is in the backup; return the block after it, or None."""
        found = self._shelved(first)
        if found is None:
            return None
        target = self._directory / ARCHIVES / found.path.name
        self._require_room(found.path.stat().st_size, "an archive of the node")
        copy_file(found.path, target)
        self._add_archive(target)
        return found.last + 1

    def _write_archive(self, first: int, height: int) -> int:
        """One new archive file holds blocks from `first` on, none above `height`; return the last one's height."""
        shelf = ArchiveShelf(self._directory / ARCHIVES)
        shelf.prepare()
        page = self._page(first)
        if page.head is None:
            raise Unavailable("unexpected_answer", f"the node has no block {first} any more")
        unfinished = "unfinished"
        writer = ArchiveWriter(shelf.directory / unfinished, page.head)
        try:
            # As little of a bank's payments as of its keys is for others on the machine.
            (shelf.directory / f"{unfinished}{PARTIAL}").chmod(0o600)
            last = first - 1
            while True:
                for item in page.blocks[: height - last]:
                    writer.add(archived(item))
                    last += 1
                self._on_progress("copying blocks", last, height)
                self._require_room(0, "the backup's next blocks")
                if last >= height or writer.size_bytes >= ARCHIVE_BYTES:
                    break
                page = self._page(last + 1)
                if not page.blocks:
                    break
            target = shelf.path_of(first, last)
            writer.finish(target)
        except BaseException:
            writer.abandon()
            raise
        self._add_archive(target)
        return last

    def _add_archive(self, path: Path) -> None:
        """The archive at `path` is proven, follows the one before it, and is part of the backup."""
        known = self._manifest
        with ArchiveReader(path) as reader:
            parent = (
                bytes.fromhex(known.last_digest) if reader.first == known.last + 1 and known.last_digest else None
            )
            proof = verify_archive(
                reader,
                self._network,
                None,
                lambda done, total: self._on_progress("judging blocks", done, total),
                parent=parent,
            )
        files = (*known.files, describe_file(self._directory, path))
        if proof.last > known.last:
            self._save(files=files, last=proof.last, last_digest=proof.digest.hex())
        else:
            self._save(files=files)

    def _page(self, first: int) -> Page:
        return read_page(self._client.backup_blocks(first), first)

    # --- the rest --------------------------------------------------------------------------------------------

    def _take_configuration(self, keys: bool) -> None:
        """The node's two files are in the backup and, where asked for, its key files, encrypted as they are."""
        wanted = {
            (CONFIGURATION, "network.toml"): self._node.network_file,
            (CONFIGURATION, "node.toml"): self._node_file,
        }
        if keys:
            for path in sorted(self._node.keys_dir.glob("*.key")):
                wanted[KEYS, path.name] = path
        if keys or self._manifest.keys:
            self._notes.append("key files are in this backup, encrypted under their passphrase, which is not in it")
        else:
            self._notes.append("no key is in this backup: keep keys/ apart, or ask for them with --keys")
        files = {file.key: file for file in self._manifest.files}
        for (part, name), source in wanted.items():
            files[part, name] = self._take_file(source, part, name, files.get((part, name)))
        self._save(files=tuple(files.values()), keys=keys or self._manifest.keys, made_ms=_now_ms())

    def _take_file(self, source: Path, part: str, name: str, known: BackupFile | None) -> BackupFile:
        """A copy of `source` is there; where the one that is `known` has other bytes, it lies beside it."""
        found = describe_file(source.parent, source)
        path = f"{part}/{name}"
        if known is not None:
            if (found.sha256, found.size_bytes) == (known.sha256, known.size_bytes):
                return known
            if known.path == path:
                path = f"{part}/{found.sha256[:16]}/{name}"
        copy_file(source, self._directory / path)
        return describe_file(self._directory, self._directory / path)

    # --- the manifest ----------------------------------------------------------------------------------------

    def _save(self, **changes: Any) -> None:
        """backup.json says what is in the backup now. Raise StoreError; this run goes by the one before then."""
        manifest = msgspec.structs.replace(self._manifest, **changes)
        write_manifest(self._directory, manifest)
        self._manifest = manifest
        end(self._directory)

    def _remove_replaced(self) -> None:
        """What this run has put something else in the place of is gone; what stays now, the next run removes."""
        with contextlib.suppress(HansaError):
            remove_leftovers(self._directory, self._manifest)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
