"""A first backup that was killed at any moment goes on with the next run; nobody else's folder is ever touched."""

import os
import shutil
from pathlib import Path

import pytest

from node.backup.beginning import BEGUN
from node.client.answers import BackupStatus
from node.errors import ConfigError, StoreError, Unavailable
from tests.node.backup_world import World, world
from tests.node.test_backup_broken_off import refuse_manifests, require_whole

__all__ = ["world"]


def images_of_a_first_run(world: World, monkeypatch: pytest.MonkeyPatch, place: Path) -> list[Path]:
    """What the disk holds whenever the first run before its first manifest is about to have something written."""
    images: list[Path] = []
    base, sync = world.backup_directory, os.fsync

    def fsync(descriptor: int) -> None:
        if base in (path := Path(os.readlink(f"/proc/self/fd/{descriptor}")), *path.parents) and base.exists():
            images.append(Path(shutil.copytree(base, place / str(len(images)))))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        refuse_manifests(patch, 0)
        with pytest.raises(StoreError, match="disk_full"):
            world.backup()
    return images


def contents(directory: Path) -> dict[str, bytes | None]:
    """Every name below the directory but the lock, with the bytes of what is a file."""
    names = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.name != ".lock"}
    return {name: path.read_bytes() if path.is_file() else None for name, path in names.items()}


def fullest(images: list[Path]) -> Path:
    """The image with the most files: the run was killed just before its manifest."""
    return max(images, key=lambda image: len(contents(image)))


def test_a_first_backup_that_was_killed_before_its_first_manifest_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The next run called the folder "no backup and not empty": an operator had to remove it by hand."""
    images = images_of_a_first_run(world, monkeypatch, tmp_path / "images")
    told = [tuple(sorted({name.split("/")[0] for name in contents(image)})) for image in images]
    assert {(BEGUN,), (BEGUN, "snapshots")} <= set(told)
    assert not world.backup_directory.exists()
    for image in {images[told.index(kind)] for kind in told} | {fullest(images)}:
        world.backup_directory = image
        report = world.backup()
        assert (report.height, report.blocks, report.new_snapshot) == (3, 3, True)
        require_whole(world)
        assert not (image / BEGUN).exists()
    assert world.restore().height == 3


def test_what_is_not_this_nodes_unfinished_first_backup_is_refused_and_not_touched(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun = fullest(images_of_a_first_run(world, monkeypatch, tmp_path / "images"))
    mark = (begun / BEGUN).read_bytes()

    def foreign(name: str) -> Path:
        return Path(shutil.copytree(begun, tmp_path / name))

    (foreign("no mark") / BEGUN).unlink()
    (foreign("another member's") / BEGUN).write_bytes(mark.replace(b"bank-a", b"bank-b"))
    (foreign("another network's") / BEGUN).write_bytes(
        mark.replace(b"hansa/backup begun\n", b"hansa/backup begun\nx")
    )
    # The mark is whole before anything else is there.
    (foreign("half a mark") / BEGUN).write_bytes(mark[:-9])
    (foreign("something beside it") / "payments.xlsx").write_bytes(b"payments")
    link = foreign("a link") / "archives"
    link.symlink_to(tmp_path / "images")
    for name in (
        "no mark",
        "another member's",
        "another network's",
        "half a mark",
        "something beside it",
        "a link",
    ):
        world.backup_directory = tmp_path / name
        before = contents(tmp_path / name)
        with pytest.raises(ConfigError, match="is no backup and not empty: it holds"):
            world.backup()
        assert contents(tmp_path / name) == before, name
    world.backup_directory = begun
    with pytest.raises(ConfigError, match="its first run was not finished"):
        world.restore()


@pytest.mark.parametrize("begun", [b"", b"hansa/backup be"], ids=["nothing", "half"])
def test_a_mark_that_was_being_written_is_written_anew(world: World, begun: bytes) -> None:
    world.backup_directory.mkdir()
    (world.backup_directory / BEGUN).write_bytes(begun)
    assert world.backup().height == 3
    require_whole(world)


def test_a_first_run_that_fails_leaves_an_empty_folder_empty(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own empty places made the next run call the folder somebody else's."""
    world.backup_directory.mkdir()
    refuse_manifests(monkeypatch, 0)
    with pytest.raises(StoreError, match="disk_full"):
        world.backup()
    assert contents(world.backup_directory) == {}


def test_a_run_that_fails_after_a_killed_one_leaves_no_half_manifest_that_makes_the_folder_a_strangers(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The mark went and `backup.partial` stayed: every later run refused the folder."""
    world.backup_directory = image = fullest(images_of_a_first_run(world, monkeypatch, tmp_path / "images"))
    (image / "backup.partial").write_bytes(b'{"format": "hansa/ba')
    with monkeypatch.context() as patch:

        def away() -> BackupStatus:
            raise Unavailable("node_unreachable", "the node does not answer")

        patch.setattr(world.node, "backup_status", away)
        with pytest.raises(Unavailable, match="does not answer"):
            world.backup()
    assert contents(image) == {}
    assert world.backup().height == 3
    require_whole(world)


def test_a_mark_beside_a_manifest_says_nothing_and_goes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the two: the manifest counts, and what it names stays."""
    with monkeypatch.context() as patch:
        patch.setattr("node.backup.making.end", lambda directory: None)
        world.backup()
    assert (world.backup_directory / BEGUN).exists()
    before = world.files()
    assert world.backup().blocks == 0
    assert not (world.backup_directory / BEGUN).exists()
    assert world.files() == before


def test_who_finds_another_run_there_removes_nothing_of_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had found no directory when it began, and took the other's lock away."""

    def busy(directory: Path) -> None:
        directory.mkdir()
        (directory / ".lock").touch()
        raise ConfigError("data_dir_in_use", "another backup runs there")

    monkeypatch.setattr("node.backup.making.held", busy)
    with pytest.raises(ConfigError, match="data_dir_in_use"):
        world.backup()
    assert (world.backup_directory / ".lock").exists()
