"""A backup grows by what is new, is judged file by file, and gives back a ledger that has no memory of votes."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from node.archive import ArchiveReader, write_archive
from node.backup import Backup, BackupReport, Restore, RestoreReport, making, read_manifest
from node.backup.manifest import copy_file, describe_file, write_manifest
from node.backup.pages import make_page, read_page
from node.client.answers import BackupStatus
from node.config import DiskSettings, NodeConfig, dump_network, dump_node, load_node
from node.errors import ConfigError, StoreError, Unavailable
from node.keys import write_key_file
from node.ledger import CertifiedBlock
from node.runtime.backing_up import BackingUp
from node.runtime.disk_space import DiskSpace
from node.runtime.threads import WorkerThreads
from node.snapshot import finished_heights, make_snapshot
from node.store import Store
from node.store.room import resume_bytes
from node.verification import verify_archives, verify_directory, verify_snapshot_directory
from tests.node.ledger_world import Ledger
from tests.node.signed_ledger import KEYS, block, certified, make_ledger, signed_network

PHRASE = "a phrase for tests"


class RunningNode:
    """bank-a's node with three blocks, answering as its HTTP interface would."""

    def __init__(self, base: Path) -> None:
        self.directory = base / "bank-a"
        (self.directory / "keys").mkdir(parents=True)
        (self.directory / "network.toml").write_text(dump_network(signed_network()))
        config = NodeConfig(
            "bank-a", Path("data"), Path("keys"), Path("network.toml"), "127.0.0.1:7600", "127.0.0.1:7700"
        )
        self.node_file = self.directory / "node.toml"
        self.node_file.write_text(dump_node(config))
        self.node = load_node(self.node_file)
        self.ledger: Ledger = make_ledger(self.node.data_dir)
        self.store: Store = self.ledger.store
        self.failed = ""

    def grow(self, blocks: int) -> None:
        """So many more blocks are decided."""
        for _ in range(blocks):
            executed = block(self.ledger)
            self.store.apply(executed, certified(executed), 0)
            self.ledger.executor.advance(executed, self.store.snapshot())

    def backup_status(self) -> BackupStatus:
        heights = finished_heights(self.node.backup_dir)
        height = heights[-1] if heights else 0
        size_bytes = self.store.size_bytes()
        return BackupStatus(self.store.head.height, self.store.first_block, height, 0, self.failed, size_bytes)

    def make_backup_snapshot(self) -> BackupStatus:
        network = self.ledger.network
        if not self.failed:
            steps = make_snapshot(
                self.store.snapshot(), network.network_id, network.genesis_hash, 8, self.node.backup_dir
            )
            for _ in steps:
                pass
        return self.backup_status()

    def backup_blocks(self, first: int) -> bytes:
        network = self.ledger.network
        return make_page(self.store.snapshot(), network.network_id, network.genesis_hash, first)


class World:
    """A running node and places for a backup and for what is restored."""

    def __init__(self, base: Path) -> None:
        self.node = RunningNode(base)
        self.backup_directory = base / "backup"
        self.restored = base / "restored"

    def backup(
        self,
        *,
        snapshot: bool = False,
        blocks: int = 10_000,
        keys: bool = False,
        free: Callable[[Path], int | None] = lambda place: 10**12,
    ) -> BackupReport:
        work = Backup(self.node.node_file, self.node, self.backup_directory, lambda what, done, total: None, free)
        return work.run(snapshot=snapshot, snapshot_blocks=blocks, keys=keys)

    def restore(self) -> RestoreReport:
        return Restore(self.backup_directory, self.restored, lambda what, done, total: None).run()

    def files(self) -> dict[str, bytes]:
        """Every file of the backup but its manifest and lock."""
        paths = [path for path in self.backup_directory.rglob("*") if path.is_file()]
        names = {path.relative_to(self.backup_directory).as_posix(): path.read_bytes() for path in paths}
        return {name: data for name, data in names.items() if "/" in name}

    def restored_store(self) -> Store:
        network = self.node.ledger.network
        return Store(self.restored / "data", network.network_id, network.genesis_hash)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.node.ledger.close()


def test_a_backup_holds_state_blocks_and_configuration_and_names_every_file(world: World) -> None:
    report = world.backup()
    assert (report.height, report.first, report.blocks) == (3, 1, 3)
    assert (report.snapshot_height, report.new_snapshot, report.keys) == (3, True, False)
    files = world.files()
    manifest = read_manifest(world.backup_directory)
    assert manifest
    assert {file.path for file in manifest.files} == set(files)
    assert {name.split("/")[0] for name in files} == {"archives", "snapshots", "configuration"}
    assert any("no key is in this backup" in note for note in report.notes)
    network = world.node.ledger.network
    archives = sorted((world.backup_directory / "archives").iterdir())
    assert all(found.ok for found in verify_archives(archives, network, lambda done, total: None))
    snapshot = world.backup_directory / "snapshots" / "3"
    assert verify_snapshot_directory(snapshot, network, lambda done, total: None).ok


def test_the_next_run_adds_what_is_new_and_leaves_the_rest_as_it_is(world: World) -> None:
    world.backup()
    before = world.files()
    world.node.grow(4)
    report = world.backup()
    assert (report.height, report.blocks, report.new_snapshot, report.snapshot_height) == (7, 4, False, 3)
    after = world.files()
    assert {name: after[name] for name in before} == before
    assert [name for name in after if name not in before] == ["archives/blocks-000000000004-000000000007.hansa"]
    assert report.added_bytes == len(after["archives/blocks-000000000004-000000000007.hansa"])
    assert world.backup().blocks == 0


@pytest.mark.slow
def test_an_old_snapshot_is_replaced_by_a_new_one(world: World) -> None:
    world.backup()
    world.node.grow(4)
    report = world.backup(blocks=4)
    assert (report.snapshot_height, report.new_snapshot) == (7, True)
    assert [path.name for path in (world.backup_directory / "snapshots").iterdir()] == ["7"]
    assert finished_heights(world.node.node.backup_dir) == []


@pytest.mark.slow
@pytest.mark.parametrize("grown", [0, 4], ids=["its snapshot", "its snapshot and later blocks"])
def test_what_is_restored_has_the_state_and_no_memory_of_votes(world: World, grown: int) -> None:
    world.backup(keys=True)
    world.node.grow(grown)
    world.backup()
    report = world.restore()
    assert (report.height, report.snapshot_height, report.executed) == (3 + grown, 3, grown)
    assert report.first_block == 4
    assert any("abstains" in note for note in report.notes)
    store = world.restored_store()
    assert store.head == world.node.store.head
    memory = store.memory()
    assert (memory.never_voted, memory.voted, memory.abstain_until, memory.records) == (False, False, 0, ())
    store.close()
    verified = verify_directory(load_node(world.restored / "node.toml"))
    assert verified.first_error is None
    assert verified.executed_from == (4 if grown else None)


@pytest.mark.slow
def test_a_key_that_is_called_unused_is_not_any_more_beside_a_restored_ledger(world: World) -> None:
    world.backup()
    (world.restored / "keys").mkdir(parents=True)
    (world.restored / "keys" / "voting.unused").touch()
    world.restore()
    assert not (world.restored / "keys" / "voting.unused").exists()


@pytest.mark.slow
def test_keys_are_part_of_a_backup_only_when_asked_for_and_stay_encrypted(world: World) -> None:
    path = world.node.directory / "keys" / "voting.key"
    write_key_file(path, KEYS["bank-a"], kind="voting", id="bank-a", passphrase=PHRASE)
    world.backup()
    assert not any(name.startswith("keys/") for name in world.files())
    report = world.backup(keys=True)
    assert report.keys
    assert world.files()["keys/voting.key"] == path.read_bytes()
    assert KEYS["bank-a"].seed.hex().encode() not in path.read_bytes()
    world.restore()
    assert (world.restored / "keys" / "voting.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
@pytest.mark.parametrize("part", ["archives", "snapshots", "configuration"])
@pytest.mark.parametrize("deed", ["change", "remove"])
def test_a_damaged_backup_is_refused_before_anything_is_made_of_it(world: World, part: str, deed: str) -> None:
    world.backup()
    path = max((world.backup_directory / part).rglob("*.*"), key=lambda path: path.stat().st_size)
    if deed == "remove":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(StoreError, match="backup_damaged"):
        world.restore()
    assert not world.restored.exists()


@pytest.mark.slow
def test_a_forged_file_with_a_right_sum_is_refused_by_its_certificates(world: World) -> None:
    """Whoever can write the archive can write the manifest; only the members' signatures cannot be made."""
    world.backup()
    world.node.grow(1)
    world.backup()
    base = world.backup_directory
    [path] = (base / "archives").glob("*4.hansa")
    with ArchiveReader(path) as reader:
        head, item = reader.head, reader.block(4)
    body = item.block.body
    later = msgspec.structs.replace(
        body, header=msgspec.structs.replace(body.header, time_ms=body.header.time_ms + 1)
    )
    digest = later.header.digest
    certificate = msgspec.structs.replace(item.block.certificate, digest=digest)
    forged = msgspec.structs.replace(item, block=CertifiedBlock(later, certificate))
    write_archive(path, head.network, head.genesis_hash, [forged], head=head)
    manifest = read_manifest(base)
    assert manifest
    files = tuple(describe_file(base, base / file.path) for file in manifest.files)
    write_manifest(base, msgspec.structs.replace(manifest, files=files))
    with pytest.raises(StoreError, match="block 4 is not one that the members have certified"):
        world.restore()
    assert not (world.restored / "data").exists()


@pytest.mark.parametrize("deed", ["forged", "damaged and named by no manifest"])
def test_an_archive_below_the_snapshot_is_proven_too(world: World, deed: str) -> None:
    """No execution reads it, so that it was restored without a word, and was called the archive of its blocks."""
    world.backup()
    base = world.backup_directory
    [path] = (base / "archives").glob("*.hansa")
    manifest = read_manifest(base)
    assert manifest
    assert manifest.snapshot_height == 3
    with ArchiveReader(path) as reader:
        head, items = reader.head, list(reader.blocks())
    body = items[1].block.body
    later = msgspec.structs.replace(
        body, header=msgspec.structs.replace(body.header, time_ms=body.header.time_ms + 1)
    )
    items[1] = msgspec.structs.replace(items[1], block=CertifiedBlock(later, items[1].block.certificate))
    if deed == "forged":
        write_archive(path, head.network, head.genesis_hash, items, head=head)
        files = tuple(describe_file(base, base / file.path) for file in manifest.files)
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        files = tuple(file for file in manifest.files if not file.path.startswith("archives/"))
    write_manifest(base, msgspec.structs.replace(manifest, files=files))
    with pytest.raises(StoreError, match="blocks 1 to 3 would be in no whole file here") as refused:
        world.restore()
    assert refused.value.code == "backup_damaged"
    assert not world.restored.exists()


def shelf_notes(report: RestoreReport) -> list[str]:
    return [note for note in report.notes if note.startswith("block")]


def test_a_restore_says_exactly_which_blocks_are_where(world: World) -> None:
    world.backup()
    world.node.grow(1)
    world.backup()
    report = world.restore()
    assert (report.height, report.first_block) == (4, 4)
    place = f"the archive files of {world.backup_directory / 'archives'}, which `hansa archive` reads"
    assert shelf_notes(report) == [f"blocks 1 to 3: not in the data directory, but in {place}"]


def test_blocks_that_are_in_no_file_are_not_said_to_be_in_one(world: World) -> None:
    """The sentence named all blocks below the first as archived, whatever the backup held."""
    prune(world.node.store, 1)
    world.backup()
    world.node.grow(1)
    world.backup()
    notes = shelf_notes(world.restore())
    assert notes[0].startswith("blocks 2 to 3: not in the data directory, but in the archive files of ")
    assert notes[1:] == ["block 1: neither in the data directory nor in this backup"]


def test_an_archive_that_lies_there_already_is_compared_and_never_replaced(world: World, tmp_path: Path) -> None:
    world.backup()
    world.restored.mkdir()
    shelf = tmp_path / "shelf"
    text = world.node.node_file.read_text().replace("[retention]", f'[retention]\narchive_dir = "{shelf}"')
    (world.restored / "node.toml").write_text(text)
    [path] = (world.backup_directory / "archives").glob("*.hansa")
    shelf.mkdir()
    (shelf / path.name).write_bytes(b"something else")
    notes = world.restore().notes
    assert any("is not the backup's file of that name: it was left as it is" in note for note in notes)
    assert (shelf / path.name).read_bytes() == b"something else"
    # The same file is what should be there.
    (shelf / path.name).write_bytes(path.read_bytes())
    (world.restored / "data").rename(tmp_path / "away")
    report = world.restore()
    assert not any("it was left as it is" in note for note in report.notes)
    assert str(shelf) in shelf_notes(report)[0]


@pytest.mark.parametrize("deed", ["claims more", "lacks the continuation", "lacks the archives up to its snapshot"])
def test_a_backup_that_claims_more_blocks_than_it_holds_is_refused(world: World, deed: str) -> None:
    world.backup()
    base = world.backup_directory
    if deed == "lacks the continuation":
        for _ in range(2):
            world.node.grow(1)
            world.backup()
    manifest = read_manifest(base)
    assert manifest
    if deed == "claims more":
        manifest = msgspec.structs.replace(manifest, last=99)
    else:
        gone = "000003.hansa" if deed.endswith("snapshot") else "000004.hansa"
        [path] = (base / "archives").glob(f"*{gone}")
        path.unlink()
        kept = tuple(file for file in manifest.files if not file.path.endswith(gone))
        manifest = msgspec.structs.replace(manifest, files=kept)
    write_manifest(base, manifest)
    with pytest.raises(StoreError, match=f"backup_damaged: backup.json claims blocks up to {manifest.last}"):
        world.restore()
    assert not world.restored.exists()


def test_a_restore_that_fails_takes_back_what_it_wrote_and_nothing_else(world: World) -> None:
    world.backup()
    base = world.backup_directory
    name = "configuration/network.toml"
    (base / name).write_text("nothing that is a network")
    manifest = read_manifest(base)
    assert manifest
    files = tuple(describe_file(base, base / file.path) for file in manifest.files)
    write_manifest(base, msgspec.structs.replace(manifest, files=files))
    with pytest.raises(ConfigError, match=r"network\.toml"):
        world.restore()
    assert not world.restored.exists()
    world.restored.mkdir()
    own = world.restored / "node.toml"
    own.write_bytes(world.node.node_file.read_bytes())
    with pytest.raises(ConfigError, match=r"network\.toml"):
        world.restore()
    assert list(world.restored.iterdir()) == [own]
    own.unlink()
    with pytest.raises(ConfigError, match=r"network\.toml"):
        world.restore()
    assert list(world.restored.iterdir()) == []


def test_a_backup_and_what_is_restored_are_for_their_owner_alone(world: World) -> None:
    before = os.umask(0o022)
    try:
        world.backup()
        world.restore()
    finally:
        os.umask(before)
    assert (world.restored / "data").stat().st_mode & 0o777 == 0o700
    files = [world.backup_directory / "backup.json", *(world.backup_directory / "archives").iterdir()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_newer_data_is_never_overwritten(world: World) -> None:
    world.backup()
    world.restore()
    with pytest.raises(ConfigError, match="restore_refused"):
        world.restore()


@pytest.mark.slow
def test_a_directory_of_somebody_else_is_no_place_for_a_backup(world: World) -> None:
    world.backup_directory.mkdir()
    (world.backup_directory / "diary").write_text("private")
    with pytest.raises(ConfigError, match="diary"):
        world.backup()
    (world.backup_directory / "diary").unlink()
    world.backup()
    manifest = json.loads((world.backup_directory / "backup.json").read_text())
    manifest["member"] = "bank-b"
    (world.backup_directory / "backup.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="a backup of bank-b"):
        world.backup()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["../outside/file", "archives/../../x", "/etc/passwd", "archives/a/b/c"])
def test_a_manifest_names_no_file_outside_its_directory(world: World, path: str) -> None:
    world.backup()
    manifest = json.loads((world.backup_directory / "backup.json").read_text())
    manifest["files"][0]["path"] = path
    (world.backup_directory / "backup.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="backup_unreadable"):
        world.restore()


@pytest.mark.slow
def test_what_an_interrupted_run_left_is_gone_after_the_next(world: World) -> None:
    world.backup()
    leftovers = ["archives/unfinished.partial", "archives/blocks-000000000004-000000000009.hansa", "snapshots/9/x"]
    for name in leftovers:
        path = world.backup_directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    world.node.grow(1)
    assert world.backup().height == 4
    assert not set(leftovers) & set(world.files())
    assert world.restore().height == 4


@pytest.mark.slow
def test_a_node_that_makes_no_snapshot_is_told_so(world: World) -> None:
    world.node.failed = "no room"
    with pytest.raises(Unavailable, match="no room"):
        world.backup()
    assert read_manifest(world.backup_directory) is None


def test_pages_are_read_only_as_what_was_asked_for(world: World) -> None:
    data = world.node.backup_blocks(2)
    assert [item.stored.block.body.header.height for item in read_page(data, 2).blocks] == [2, 3]
    assert read_page(world.node.backup_blocks(9), 9).blocks == ()
    for first in (1, 3):
        with pytest.raises(Unavailable, match="unexpected_answer"):
            read_page(data, first)
    with pytest.raises(Unavailable, match="unexpected_answer"):
        read_page(data[:-1], 2)


# --- what is missing, and what there is no room for --------------------------------------------------------------


def prune(store: Store, last: int) -> None:
    """Blocks up to that height are gone from the node, and nobody has archived them."""
    pruning = store.pruning()
    pruning.release(last)
    for removal in list(pruning.removals()):
        pruning.remove(removal)


@pytest.mark.slow
def test_blocks_that_were_pruned_after_an_old_snapshot_bring_a_new_one(world: World) -> None:
    """The old snapshot could be continued by no block that is left: what was called a backup could not be
    restored."""
    world.backup()
    world.node.grow(5)
    prune(world.node.store, 6)
    report = world.backup()
    assert (report.height, report.snapshot_height, report.new_snapshot) == (8, 8, True)
    assert any("not in this backup: blocks 4 to 6" in note for note in report.notes)
    assert sum("a new snapshot was taken" in note for note in report.notes) == 1
    restored = world.restore()
    assert (restored.height, restored.snapshot_height) == (8, 8)
    # The gap is behind the snapshot now: the next run needs no other.
    world.node.grow(1)
    assert world.backup().snapshot_height == 8


@pytest.mark.slow
def test_a_node_that_prunes_faster_than_it_is_copied_makes_no_backup_that_lies(world: World) -> None:
    world.backup()
    world.node.grow(5)
    prune(world.node.store, 6)

    def pruning_meanwhile() -> BackupStatus:
        status = RunningNode.make_backup_snapshot(world.node)
        world.node.grow(3)
        prune(world.node.store, world.node.store.head.height - 1)
        return status

    world.node.make_backup_snapshot = pruning_meanwhile  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="prunes its blocks faster"):
        world.backup()


def test_without_room_nothing_is_written_and_the_reason_is_said(world: World) -> None:
    with pytest.raises(Unavailable, match=r"disk_low: the backup's new blocks in .* bytes of disk; 1,000 are free"):
        world.backup(free=lambda place: 1_000)
    assert not world.backup_directory.exists()
    assert finished_heights(world.node.node.backup_dir) == []
    # On the node's own disk its reserve is not for backups; on another one it is.
    on_its_disk = resume_bytes(world.node.node.disk)
    assert on_its_disk > making.MARGIN_BYTES
    with pytest.raises(Unavailable, match="disk_low"):
        world.backup(free=lambda place: making.MARGIN_BYTES + 1_000_000)
    world.backup(free=lambda place: on_its_disk + 1_000_000)


@pytest.mark.slow
def test_whenever_the_room_ends_only_what_the_manifest_names_is_left(world: World) -> None:
    runs, done = 0, False
    while not done:
        asked = 0

        def free(place: Path, rooms: int = runs) -> int:
            nonlocal asked
            asked += 1
            return 10**12 if asked <= rooms else 0

        with contextlib.suppress(Unavailable):
            world.backup(free=free)
            done = True
        manifest = read_manifest(world.backup_directory)
        assert set(world.files()) == (set() if manifest is None else {file.path for file in manifest.files})
        assert world.backup_directory.exists() is (manifest is not None)
        runs += 1
    assert runs > 3


@pytest.mark.parametrize("copies", [1, 2])
def test_a_copy_that_fails_leaves_no_half_of_a_snapshot(
    world: World, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, done = copy_file, 0

    def failing(source: Path, target: Path) -> None:
        nonlocal done
        genuine(source, target)
        done += 1
        if done == copies:
            raise StoreError("disk_full", "somebody else took the last bytes")

    monkeypatch.setattr(making, "copy_file", failing)
    with pytest.raises(StoreError, match="disk_full"):
        world.backup()
    assert not world.backup_directory.exists()


async def test_a_node_whose_disk_is_low_begins_no_snapshot_for_a_backup(world: World, tmp_path: Path) -> None:
    node, room = world.node, [10**12]
    threads = WorkerThreads(1)
    disk = DiskSpace(DiskSettings(), lambda: room[0], threads, lambda: None)
    making_it = BackingUp(tmp_path / "backup-snapshot", node.ledger.network, node.store, threads, disk)
    for free in (DiskSettings().low_bytes - 1, resume_bytes(DiskSettings()) - 1):
        disk._take(free)
        room[0] = free
        with pytest.raises(Unavailable, match="disk_low"):
            making_it.make_snapshot()
        assert making_it.status().making_height == 0
    assert not (tmp_path / "backup-snapshot").exists()
    disk._take(10**12)
    room[0] = 10**12
    assert making_it.make_snapshot().making_height == 3
    # It fills up meanwhile: what was begun is gone again.
    disk._take(0)
    task = making_it._task
    assert task is not None
    await task
    assert "disk_low" in making_it.status().failed
    assert not list((tmp_path / "backup-snapshot").rglob("*"))
    await making_it.close()
    threads.close()
