"""What is restored from a backup is what the members certified, whole, and has no memory of votes."""

from pathlib import Path

import msgspec
import pytest

from node.archive import ArchiveReader, write_archive
from node.backup import read_manifest
from node.backup.manifest import describe_file, write_manifest
from node.config import load_node
from node.errors import ConfigError, StoreError
from node.ledger import CertifiedBlock
from node.verification import verify_directory
from tests.node.backup_world import World, prune, shelf_notes, world

__all__ = ["world"]


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


def test_newer_data_is_never_overwritten(world: World) -> None:
    world.backup()
    world.restore()
    with pytest.raises(ConfigError, match="restore_refused"):
        world.restore()
