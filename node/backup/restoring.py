"""A fresh data directory from a backup: the snapshot adopted, later blocks executed, everything judged.

Invariants. (1) No file is used before its hash is that of the manifest, and nothing of it before certificates of
this network's members prove it. (2) The data directory appears at the end, whole, by a rename. (3) A restored node
has no memory of its votes: neither the marker that it never voted nor one that it did is written, so it abstains
until it has learnt from the others which heights are decided (consensus/README.md, section 9).
"""

import contextlib
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from consensus.messages import VoteKind
from node.archive import ArchiveReader, verify_archive
from node.archive.shelf import ArchiveShelf, ShelvedArchive
from node.backup.beginning import is_begun
from node.backup.manifest import (
    ARCHIVES,
    CONFIGURATION,
    KEYS,
    SNAPSHOTS,
    BackupManifest,
    copy_file,
    describe_file,
    disk_error,
    make_directory,
    read_manifest,
    sync_directory,
)
from node.backup.report import OnProgress
from node.config import NetworkConfig, NodeConfig, load_node
from node.errors import ConfigError, StoreError
from node.ledger import CertifiedBlock
from node.recovery import load_trusted
from node.signatures import verify
from node.store import LevelDatabase
from node.verification import verify_rows
from node.verification.replay import Replay, open_block
from node.wording import blocks_from

NODE_FILE, NETWORK_FILE = "node.toml", "network.toml"
UNUSED_KEY = "voting.unused"


class RestoreReport(msgspec.Struct, frozen=True):
    """What `hansa restore` built: a ledger up to `height`.

    It stands on the snapshot of `snapshot_height` (0: on genesis); `executed` blocks came after it. `first_block`
    is the first block that is in the data directory itself.
    """

    directory: str
    member: str
    height: int
    snapshot_height: int
    executed: int
    first_block: int
    took_ms: int
    notes: tuple[str, ...]


class Restore:
    """Builds one node's data directory from a backup."""

    def __init__(self, backup: Path, directory: Path, on_progress: OnProgress) -> None:
        """`directory` is the node's: with its keys and configuration, or empty."""
        self._backup = backup
        self._directory = directory
        self._on_progress = on_progress
        self._notes: list[str] = []
        self._written: list[Path] = []
        self._created: list[Path] = []

    def run(self) -> RestoreReport:
        """Return what was built. Raise ConfigError where data lies already or the backup is another network's,
        StoreError for a damaged backup: then no data directory was made, and no configuration either.
        """
        started = time.monotonic()
        manifest = read_manifest(self._backup)
        if manifest is None:
            why = "there is no backup.json"
            if is_begun(self._backup):
                why = "its first run was not finished. Run `hansa backup` once more, or restore from another one"
            raise ConfigError("backup_unreadable", f"{self._backup} holds no backup: {why}")
        self._check_files(manifest)
        self._check_blocks(manifest)
        try:
            node, snapshot_height, height, first_block = self._make(manifest)
        except BaseException:
            self._take_back()
            raise
        try:
            self._shelve(manifest, node, first_block)
        except (ConfigError, StoreError) as error:
            # The ledger is in its place: that is what has to be known now, and what is left to do.
            self._notes.append(
                f"blocks below {first_block} are not in the data directory, and their archive files could not be "
                f"looked at ({error}): copy those of {self._backup / ARCHIVES} to archive_dir of node.toml"
            )
        self._notes.append(
            "the node has no memory of its votes: it abstains from voting until it has caught up with the others "
            "and two more blocks were decided, and says so in `hansa why`; until then it counts as a failed member"
        )
        self._notes.append(f"what was decided after block {height} comes from the other members when it is started")
        return RestoreReport(
            directory=str(self._directory),
            member=node.member,
            height=height,
            snapshot_height=snapshot_height,
            executed=height - snapshot_height,
            first_block=first_block,
            took_ms=round((time.monotonic() - started) * 1000),
            notes=tuple(self._notes),
        )

    def _check_files(self, manifest: BackupManifest) -> None:
        """Every file is there as it was written."""
        for index, file in enumerate(manifest.files):
            self._on_progress("checking files", index, len(manifest.files))
            path = self._backup / file.path
            if not path.is_file():
                raise StoreError("backup_damaged", f"{path} is missing")
            if describe_file(self._backup, path) != file:
                raise StoreError("backup_damaged", f"{path} differs from its hash in backup.json")

    def _check_blocks(self, manifest: BackupManifest) -> None:
        """The archives hold, by their names, every block that the manifest claims beyond its snapshot.

        Else the ledger would silently end before what the backup was believed to hold.
        """
        if not manifest.last:
            return
        archives = ArchiveShelf(self._backup / ARCHIVES).files()
        reach = manifest.snapshot_height
        for item in archives:
            if item.first <= reach + 1:
                reach = max(reach, item.last)
        if max((item.last for item in archives), default=0) < manifest.last or reach < manifest.last:
            raise _lacking(manifest, reach)

    def _make(self, manifest: BackupManifest) -> tuple[NodeConfig, int, int, int]:
        """(node, height of the snapshot, height, first block) of the data directory that is in its place now."""
        node, network = self._configuration(manifest)
        if node.data_dir.exists() and any(node.data_dir.iterdir()):
            raise ConfigError(
                "restore_refused", f"{node.data_dir} is not empty: move it away first, it may hold newer blocks"
            )
        self._prove_older(manifest, network)
        building = node.data_dir.parent / "data.restoring"
        shutil.rmtree(building, ignore_errors=True)
        try:
            building.mkdir(mode=0o700, parents=True)
            snapshot_height, height, first_block = self._build(building, network, manifest)
            # A key beside a restored ledger has voted, whatever a marker from its making says.
            (node.keys_dir / UNUSED_KEY).unlink(missing_ok=True)
            self._place(building, node)
        except OSError as error:
            raise disk_error(building, error) from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return node, snapshot_height, height, first_block

    def _prove_older(self, manifest: BackupManifest, network: NetworkConfig) -> None:
        """The archives of the blocks that no execution will judge, for the snapshot stands above them, are proven.

        They are all that is left of these blocks here, and a sum in backup.json is nobody's signature.
        """
        last, digest = 0, None
        for item in ArchiveShelf(self._backup / ARCHIVES).files() if manifest.last else []:
            if item.first > manifest.snapshot_height:
                break
            self._on_progress("judging archives", item.first, manifest.snapshot_height)
            try:
                with ArchiveReader(item.path) as reader:
                    parent = digest if reader.first == last + 1 else None
                    proof = verify_archive(reader, network, parent=parent)
            except (ConfigError, StoreError) as error:
                held = blocks_from(item.first, item.last)
                lost = f"the snapshot needs none of it, but {held} would be in no whole file here"
                raise StoreError("backup_damaged", f"{error.message}; {lost}", path=str(item.path)) from error
            last, digest = proof.last, proof.digest

    def _take_back(self) -> None:
        """Configuration and keys that this run has written are gone again, and the directories that it made.

        What lay there before stays.
        """
        for path in self._written:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        for path in self._created:
            with contextlib.suppress(OSError):
                path.rmdir()

    def _configuration(self, manifest: BackupManifest) -> tuple[NodeConfig, NetworkConfig]:
        """The directory has configuration and, if the backup has them, keys; what lay there is kept."""
        self._created = [path for path in (self._directory / KEYS, self._directory) if not path.exists()]
        try:
            make_directory(self._directory)
        except OSError as error:
            raise disk_error(self._directory, error) from error
        for file in manifest.files:
            part, name = file.key
            if part == KEYS:
                target = self._directory / KEYS / name
            elif part == CONFIGURATION and name in (NODE_FILE, NETWORK_FILE):
                target = self._directory / name
            else:
                continue
            if not target.exists():
                # Noted first: a copy that is broken off is taken back too.
                self._written.append(target)
                copy_file(self._backup / file.path, target)
        node = load_node(self._directory / NODE_FILE)
        network = load_trusted(node)
        if manifest.genesis_hash != network.genesis_hash.hex():
            raise ConfigError("restore_refused", f"the backup is one of {manifest.network}, not of this network")
        if node.member != manifest.member:
            self._notes.append(f"the backup was made by {manifest.member}; the ledger is the same at every member")
        if not (node.keys_dir / "voting.key").exists():
            self._notes.append(f"put the keys of {node.member} into {node.keys_dir} before starting the node")
        return node, network

    def _build(self, building: Path, network: NetworkConfig, manifest: BackupManifest) -> tuple[int, int, int]:
        """(height of the snapshot, height, first block) of the ledger that lies in `building` now, judged."""
        replay = Replay(building, network)
        with contextlib.closing(replay):
            if manifest.snapshot_height:
                folder = self._backup / SNAPSHOTS / str(manifest.snapshot_height)
                replay.begin_at_snapshot(
                    folder, lambda at, of: self._on_progress("taking the snapshot over", at, of)
                )
            else:
                replay.begin_at_genesis()
            snapshot_height = replay.store.head.height
            with ThreadPoolExecutor(2) as threads:
                for block in self._blocks(manifest, network, snapshot_height + 1):
                    self._execute(replay, network, block, manifest.last, threads)
            height, first_block = replay.store.head.height, replay.store.first_block
        if height < manifest.last:
            raise _lacking(manifest, height)
        with contextlib.closing(LevelDatabase(building)) as database:
            scratch = building.with_name("data.restoring.scratch")
            try:
                report = verify_rows(
                    database,
                    network,
                    scratch,
                    lambda done, total: self._on_progress("judging", done, total),
                    "rows",
                )
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        if not report.ok:
            raise StoreError("backup_damaged", f"what was built from it is not right: {report.first_error}")
        return snapshot_height, height, first_block

    def _blocks(self, manifest: BackupManifest, network: NetworkConfig, first: int) -> Iterator[CertifiedBlock]:
        """The blocks from `first` on, as far as the archives hold them without a gap."""
        shelf = ArchiveShelf(self._backup / ARCHIVES)
        height = first
        while height <= manifest.last and (found := shelf.holding(height)) is not None:
            with ArchiveReader(found.path) as reader:
                for at in range(height, reader.last + 1):
                    yield reader.block(at).block
            height = found.last + 1

    def _execute(
        self, replay: Replay, network: NetworkConfig, block: CertifiedBlock, last: int, threads: ThreadPoolExecutor
    ) -> None:
        """The block is certified by the members of its height, and applied."""
        header, certificate, head = block.body.header, block.certificate, replay.store.head
        objection = network.recoveries.objection(header.height, header.digest, header.proposer)
        if objection:
            raise StoreError("recovery_differs", objection)
        if (
            (certificate.height, certificate.digest) != (header.height, header.digest)
            or header.parent != head.digest
            or not network.recoveries.verifier(network.network_id, verify).certificate(
                certificate, VoteKind.COMMIT, head.members
            )
        ):
            raise StoreError("backup_damaged", f"block {header.height} is not one that the members have certified")
        opened = open_block(block.body, threads)
        executed = replay.execute(opened)
        opened.require_signatures()
        replay.apply(executed, block, certificate.view)
        self._on_progress("executing blocks", header.height, last)

    def _place(self, building: Path, node: NodeConfig) -> None:
        """What was built lies in the data directory."""
        node.data_dir.parent.mkdir(parents=True, exist_ok=True)
        if node.data_dir.exists():
            node.data_dir.rmdir()
        building.rename(node.data_dir)
        sync_directory(node.data_dir.parent)

    def _shelve(self, manifest: BackupManifest, node: NodeConfig, first_block: int) -> None:
        """Archives of blocks that the data directory does not hold lie where the node looks for archives.

        What is there and what is nowhere is said by the heights that were found, and not by what there should be.
        """
        if first_block == 1:
            return
        older = [item for item in ArchiveShelf(self._backup / ARCHIVES).files() if item.first < first_block]
        directory = node.retention.archive_dir
        place = self._backup / ARCHIVES if directory is None else directory
        failed = {} if directory is None else self._copy_archives(manifest, older, directory)
        shelved, missing, reach = list[str](), list[str](), 0
        for item in older:
            if item.first > reach + 1:
                missing.append(blocks_from(reach + 1, item.first - 1))
            blocks = blocks_from(item.first, min(item.last, first_block - 1))
            if item.path in failed:
                self._notes.append(
                    f"{blocks}: not in the data directory, and their archive file could not be copied "
                    f"({failed[item.path]}): copy {item.path} to {place}"
                )
            else:
                shelved.append(blocks)
            reach = max(reach, item.last)
        if reach < first_block - 1:
            missing.append(blocks_from(reach + 1, first_block - 1))
        if shelved:
            told = f"{', '.join(shelved)}: not in the data directory, but in the archive files of {place}"
            self._notes.append(f"{told}, which `hansa archive` reads")
        if missing:
            self._notes.append(f"{', '.join(missing)}: neither in the data directory nor in this backup")

    def _copy_archives(
        self, manifest: BackupManifest, older: list[ShelvedArchive], directory: Path
    ) -> dict[Path, StoreError]:
        """The files lie in `directory`; what lay there under such a name is kept, and told where it is another.

        Return why a file does not lie there, by its path in the backup.
        """
        sums = {file.path: file.sha256 for file in manifest.files}
        failed = dict[Path, StoreError]()
        for item in older:
            target = directory / item.path.name
            try:
                if not target.exists():
                    copy_file(item.path, target)
                elif describe_file(directory, target).sha256 != sums.get(f"{ARCHIVES}/{item.path.name}"):
                    self._notes.append(
                        f"{target} was there and is not the backup's file of that name: it was left as it is. "
                        f"`hansa archive verify` tells whether it is damaged; then copy {item.path} in its place"
                    )
            except StoreError as error:
                failed[item.path] = error
            except OSError as error:
                failed[item.path] = disk_error(target, error)
        return failed


def _lacking(manifest: BackupManifest, reach: int) -> StoreError:
    claim = f"backup.json claims blocks up to {manifest.last}"
    if reach >= manifest.last:
        return StoreError("backup_damaged", f"{claim}, its archives do not reach so far")
    start = f"its snapshot of block {manifest.snapshot_height}" if manifest.snapshot_height else "genesis"
    return StoreError("backup_damaged", f"{claim}, its archives continue {start} only up to {reach}")
