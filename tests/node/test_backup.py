"""A backup holds everything, grows by what is new, and begins and ends with room on the disks."""

import contextlib
import json
import os
from pathlib import Path

import msgspec
import pytest

from node.backup import Backup, making, read_manifest
from node.backup.manifest import copy_file
from node.backup.pages import read_page
from node.cli.backing_up import telling
from node.client.answers import BackupStatus
from node.config import DiskSettings
from node.errors import ConfigError, StoreError, Unavailable
from node.keys import write_key_file
from node.runtime.backing_up import BackingUp
from node.runtime.disk_space import DiskSpace
from node.runtime.threads import WorkerThreads
from node.snapshot import cut, finished_heights
from node.store.room import resume_bytes
from node.verification import verify_archives, verify_snapshot_directory
from tests.node.backup_world import RunningNode, World, prune, world
from tests.node.signed_ledger import KEYS

__all__ = ["world"]

PHRASE = "a phrase for tests"


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


def test_who_waits_for_a_node_that_is_slow_with_its_snapshot_reads_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Slow(RunningNode):
        """Says a few times that it is not done yet."""

        asked = 0

        def backup_status(self) -> BackupStatus:
            known = super().backup_status()
            self.asked += known.snapshot_height > 0
            busy = 0 < self.asked < 4
            return msgspec.structs.replace(known, making_height=3, snapshot_height=0) if busy else known

    monkeypatch.setattr(making, "SNAPSHOT_POLL_S", 0.0)
    node = Slow(tmp_path)
    moved: list[tuple[int, int]] = []
    telling_them = telling(lambda done, total: moved.append((done, total)))
    report = Backup(node.node_file, node, tmp_path / "backup", telling_them).run(
        snapshot=False, snapshot_blocks=10_000, keys=False
    )
    node.ledger.close()
    assert (report.snapshot_height, moved.count((0, 0))) == (3, 3)
    said = "hansa: the node makes a snapshot of height 3, at low priority: this may take minutes"
    assert capsys.readouterr().err.splitlines() == [said]


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
    making_it = BackingUp(tmp_path / "backup-snapshot", node.ledger.network, node.store, threads, disk, cut)
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
