"""Whatever ends a run of `hansa backup` or `hansa restore`: what backup.json names is there, and is told right."""

import os
from pathlib import Path

import pytest

from node.backup import Restore, making, read_manifest
from node.backup.manifest import copy_file, describe_file, missing_files, write_manifest
from node.errors import ConfigError, StoreError
from tests.node.backup_world import World, prune, shelf_notes, world

__all__ = ["world"]


def require_whole(world: World) -> None:
    """Every file that the manifest on disk names is there as it was written, and nothing else is."""
    manifest = read_manifest(world.backup_directory)
    assert manifest
    base = world.backup_directory
    assert [describe_file(base, base / file.path) for file in manifest.files] == list(manifest.files)
    assert set(world.files()) == {file.path for file in manifest.files}


def refuse_manifests(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The disk takes so many more manifests, and then none."""
    genuine, written = write_manifest, 0

    def failing(*given: object) -> None:
        nonlocal written
        written += 1
        if written > after:
            raise StoreError("disk_full", "backup.json: no space")
        genuine(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(making, "write_manifest", failing)


@pytest.mark.parametrize(
    "after", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_a_manifest_that_cannot_be_written_costs_no_file_of_the_one_before(
    world: World, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The run went by a manifest that was never written, and removed the snapshot that backup.json named."""
    world.backup()
    world.node.grow(2)
    world.node.node_file.write_text(world.node.node_file.read_text() + "\n# changed\n")
    with monkeypatch.context() as patch:
        refuse_manifests(patch, after)
        with pytest.raises(StoreError, match="disk_full"):
            world.backup(snapshot=True)
    require_whole(world)
    world.backup()
    require_whole(world)


def test_a_changed_configuration_lies_under_another_name_until_the_manifest_names_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was copied over the old one before the manifest was written: broken off between, no restore took it."""
    world.backup()
    text = world.node.node_file.read_text()
    for change in range(3):
        before = world.files()
        changed = f"{text}\n# change {change}\n"
        world.node.node_file.write_text(changed)
        with monkeypatch.context() as patch:
            # As a power cut would: nothing is tidied up after it.
            refuse_manifests(patch, 0)
            patch.setattr(making, "remove_leftovers", lambda *given: None)
            with pytest.raises(StoreError, match="disk_full"):
                world.backup()
        assert before.items() <= world.files().items()
        world.backup()
        require_whole(world)
        assert [data for name, data in world.files().items() if name.endswith("node.toml")] == [changed.encode()]
    same = world.files()
    world.backup()
    assert world.files() == same
    world.restore()
    assert (world.restored / "node.toml").read_text() == changed


@pytest.mark.slow
def test_a_changed_key_file_is_restored_under_its_own_name(world: World) -> None:
    key = world.node.directory / "keys" / "tls.key"
    for text in ("the first", "the second"):
        key.write_text(text)
        world.backup(keys=True)
    require_whole(world)
    assert [data for name, data in world.files().items() if name.startswith("keys/")] == [b"the second"]
    world.restore()
    assert [path.read_text() for path in (world.restored / "keys").iterdir()] == ["the second"]


def test_a_snapshot_that_lies_there_is_not_written_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.backup()
    copied = []
    monkeypatch.setattr(making, "copy_file", lambda source, target: copied.append(target))
    world.backup(snapshot=True)
    assert copied == []
    require_whole(world)


@pytest.mark.parametrize("deed", ["remove", pytest.param("shorten", marks=pytest.mark.slow)])
def test_what_is_named_and_not_there_is_taken_anew(world: World, deed: str) -> None:
    """A run believed the manifest, and called a backup whole that no restore took."""
    for _ in range(3):
        world.backup()
        world.node.grow(2)
    base = world.backup_directory
    manifest = read_manifest(base)
    assert manifest
    before = world.files()
    lost = [name for name in before if "blocks-000000000003" not in name and not name.endswith("manifest")]
    lost = [name for name in lost if "blocks-000000000001" not in name]
    assert {name.split("/")[0] for name in lost} == {"archives", "snapshots", "configuration"}
    for name in lost:
        if deed == "remove":
            (base / name).unlink()
        else:
            (base / name).write_bytes(before[name][:-1])
    assert {file.path for file in missing_files(base, manifest)} == set(lost)
    report = world.backup()
    assert report.height == 9
    assert sum("not there as it was written" in note for note in report.notes) == 1
    require_whole(world)
    assert world.restore().height == 9


def test_lost_archives_of_blocks_that_nobody_has_any_more_end_the_run_and_nothing_is_removed(world: World) -> None:
    """It may be a disk that is not mounted: files that the manifest forgot would be removed as leftovers."""
    for _ in range(2):
        world.backup()
        world.node.grow(2)
    prune(world.node.store, 4)
    [path] = (world.backup_directory / "archives").glob("blocks-000000000001*")
    aside = path.rename(world.backup_directory.parent / path.name)
    before = world.files()
    with pytest.raises(ConfigError, match=f"{path.name}.* is a disk not mounted"):
        world.backup()
    assert world.files() == before
    aside.rename(path)
    assert world.backup().height == 7
    require_whole(world)


def test_every_name_in_a_backup_is_durable_before_the_manifest_names_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Archives had their names, and snapshots their directories, only until the next power cut."""
    base = world.backup_directory
    unsynced: set[Path] = set()
    sync, rename, mkdir = os.fsync, Path.rename, Path.mkdir

    def fsync(descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        unsynced.difference_update([path for path in unsynced if path.parent == place])
        sync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        if target == base / "backup.json":
            assert not unsynced
        unsynced.add(target)
        return rename(self, target)

    def made(self: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if base in (self, *self.parents) and not self.exists():
            unsynced.add(self)
        mkdir(self, mode, parents, exist_ok)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Path, "mkdir", made)
    world.backup()
    assert not [path for path in unsynced if base in path.parents]


def test_archives_that_cannot_be_copied_do_not_hide_that_the_ledger_is_restored(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restore ended with an error, its data directory in place, and told nothing of abstaining."""
    shelf = world.restored.parent / "shelf"
    world.backup()
    world.restored.mkdir()
    text = world.node.node_file.read_text().replace("[retention]", f'[retention]\narchive_dir = "{shelf}"')
    (world.restored / "node.toml").write_text(text)

    def failing(source: Path, target: Path) -> None:
        if target.parent == shelf:
            raise StoreError("disk_full", f"{target}: no space")
        copy_file(source, target)

    monkeypatch.setattr("node.backup.restoring.copy_file", failing)
    report = Restore(world.backup_directory, world.restored, lambda what, done, total: None).run()
    assert report.height == 3
    [path] = (world.backup_directory / "archives").iterdir()
    [told] = shelf_notes(report)
    assert told.startswith("blocks 1 to 3: ")
    assert f"copy {path} to {shelf}" in told
    assert any("abstains" in note for note in report.notes)


@pytest.mark.slow
def test_a_shelf_that_cannot_be_read_does_not_hide_it_either(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.backup()

    def failing(*given: object) -> None:
        raise ConfigError("archive_unreadable", "somewhere")

    monkeypatch.setattr(Restore, "_shelve", failing)
    notes = world.restore().notes
    assert any("blocks below 4" in note and "archive_unreadable" in note for note in notes)
    assert any("abstains" in note for note in notes)


def test_a_copy_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="disk_failed"):
        copy_file(tmp_path, tmp_path / "there" / "copy")
    assert list((tmp_path / "there").iterdir()) == []
