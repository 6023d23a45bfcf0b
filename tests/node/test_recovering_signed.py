"""What a member has signed to recover its network outlives its data directory."""

import shutil
from pathlib import Path

import pytest

from consensus.amnesia import Amnesia
from consensus.epochs import EPOCH_VIEWS
from node.config import NodeConfig
from node.errors import HansaError
from node.repair import Repair, RepairReport
from node.store import RecoveryPromise, Store
from node.store.layout import META_RECOVERY
from node.store.log_tail import log_files
from node.store.signed_file import SignedFile
from tests.node.plain_rows import PlainRows
from tests.node.recovery_world import RecoveryWorld

AB, AC = ("bank-a", "bank-b"), ("bank-a", "bank-c")


@pytest.fixture
def world(tmp_path: Path) -> RecoveryWorld:
    return RecoveryWorld(tmp_path)


def refused(code: str) -> "pytest.RaisesExc[HansaError]":
    return pytest.raises(HansaError, check=lambda error: error.code == code)


def standing(world: RecoveryWorld, bank: str) -> tuple[bytes | None, bool]:
    """Of which recovery the bank owes the block, and whether it has lost the memory of its votes."""
    store = world.store(bank)
    try:
        owed = store.owed_recovery()
        return None if owed is None else owed.digest, Amnesia(store.memory(), 0).lost
    finally:
        store.close()


def fetch(world: RecoveryWorld, bank: str, source: str) -> None:
    """The bank's new directory has the ledger of `source`, and what the first start in it has noted."""
    world.ledger(bank).close()
    rows, others = PlainRows(world.node(bank).data_dir), PlainRows(world.node(source).data_dir)
    for key, value in others.items().items():
        if key[:1] not in b"cm" or key == b"mhead":
            rows.put(key, value)
    rows.close()
    others.close()


def damage(world: RecoveryWorld, bank: str, key: bytes) -> NodeConfig:
    """The row says nothing any more."""
    node = world.node(bank)
    rows = PlainRows(node.data_dir)
    rows.put(key, b"\xff\x00 nothing that can be read")
    rows.close()
    return node


def repair(world: RecoveryWorld, bank: str, *, join: bool = False) -> RepairReport:
    return Repair(world.node(bank), world.trusted(bank), [], lambda what, done, total: None).run(join=join)


def test_who_deletes_its_data_directory_is_not_free_of_the_recovery_that_it_has_signed(
    world: RecoveryWorld,
) -> None:
    """The ordinary repair of a damaged one; the member voted on the former chain again, or signed another."""
    file = world.sign("bank-a", world.draft("bank-a", AB))
    shutil.rmtree(world.node("bank-a").data_dir)
    world.store("bank-a").close()
    fetch(world, "bank-a", "bank-b")
    assert standing(world, "bank-a") == (file.digest, True)
    other = world.draft("bank-b", AC, without_memory=("bank-a",), accepts_unseen=True)
    with refused("recovery_signed_other"):
        world.sign("bank-a", other)
    with refused("recovery_signed_other"):
        world.sign("bank-a", other, instead_of=file.digest)
    told = world.draft("bank-a", AC, without_memory=("bank-a",), accepts_unseen=True)
    assert told.view == 2 * EPOCH_VIEWS
    # What it signs from now on gives it its vote back; the one that it had signed before does not.
    told = world.sign("bank-c", world.sign("bank-a", told, instead_of=file.digest))
    assert world.apply(told, "bank-a") == [4]
    assert standing(world, "bank-a") == (None, False)


def test_a_recovery_block_passed_in_a_new_directory_gives_no_memory_back(world: RecoveryWorld) -> None:
    file = world.complete(*AB)
    world.apply(file, "bank-a")
    shutil.rmtree(world.node("bank-a").data_dir)
    world.store("bank-a").close()
    fetch(world, "bank-a", "bank-b")
    assert world.apply(file, "bank-a") == [4]
    assert standing(world, "bank-a") == (None, True)


def test_an_older_copy_of_a_data_directory_remembers_neither_what_it_signed_nor_its_votes(
    world: RecoveryWorld,
) -> None:
    """Which recovery it is says the file beside; what the member voted for since, nothing does."""
    data = world.node("bank-a").data_dir
    shutil.copytree(data, world.base / "older")
    assert standing(world, "bank-a") == (None, False)
    file = world.sign("bank-a", world.draft("bank-a", AB))
    shutil.rmtree(data)
    shutil.copytree(world.base / "older", data)
    assert standing(world, "bank-a") == (file.digest, True)
    with refused("recovery_memory_lost"):
        world.sign("bank-a", file)


def test_a_promise_that_the_end_of_the_log_is_lost_with_holds(world: RecoveryWorld) -> None:
    draft = world.draft("bank-a", AB)
    data = world.node("bank-a").data_dir
    store = world.store("bank-a")
    kept = log_files(data)[-1].stat().st_size
    store.promise_recovery(RecoveryPromise(draft.header.height, draft.digest, draft.view))
    store.close()
    log = log_files(data)[-1]
    raw = log.read_bytes()
    log.write_bytes(raw[: kept + 20] + bytes(byte ^ 0x5A for byte in raw[kept + 20 :]))
    assert standing(world, "bank-a") == (draft.digest, True)
    rows = PlainRows(data)
    assert b"damaged" not in (rows.get(META_RECOVERY) or b"damaged")
    rows.close()


def test_a_crash_between_the_two_places_of_a_promise_takes_no_memory(
    world: RecoveryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the file first, the database would look like one that has lost it, and its member would abstain."""
    draft = world.draft("bank-a", AB)

    def dying(self: SignedFile, signed: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SignedFile, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            world.sign("bank-a", draft)
    assert standing(world, "bank-a") == (draft.digest, False)
    shutil.rmtree(world.node("bank-a").data_dir)
    world.store("bank-a").close()
    fetch(world, "bank-a", "bank-b")
    assert standing(world, "bank-a") == (draft.digest, True)


def test_one_whole_place_of_the_two_is_enough(world: RecoveryWorld) -> None:
    file = world.sign("bank-a", world.draft("bank-a", AB))
    signed = world.node("bank-a").signed_file
    whole = signed.read_bytes()
    for damaged in (None, b"", whole[:-1], whole[:40] + b"?" + whole[41:], bytes(2_000_000)):
        signed.unlink() if damaged is None else signed.write_bytes(damaged)
        assert standing(world, "bank-a") == (file.digest, False)
        assert signed.read_bytes() == whole
    # Neither is whole: nobody knows what the member has signed, and it does not begin.
    signed.write_bytes(whole[:-1])
    shutil.rmtree(world.node("bank-a").data_dir)
    with refused("recovery_promise_unreadable"):
        world.store("bank-a")
    # Who has made sure that the recovery can never be complete gives both up.
    signed.unlink()
    fetch(world, "bank-a", "bank-b")
    assert standing(world, "bank-a")[0] is None


def test_what_a_member_of_another_network_has_signed_is_not_taken_for_this_ones(world: RecoveryWorld) -> None:
    world.sign("bank-a", world.draft("bank-a", AB))
    node = world.node("bank-a")
    with refused("data_of_another_network"):
        Store(world.base / "elsewhere", "other-000000000000", bytes(32), signed=node.signed_file)


@pytest.mark.parametrize("join", [False, True])
def test_a_damaged_note_of_what_was_signed_is_mended_from_beside_the_data(world: RecoveryWorld, join: bool) -> None:
    """A repair refused it; or, where the ledger was given up, took it along, and no start could read it."""
    file = world.sign("bank-a", world.draft("bank-a", AB))
    node = damage(world, "bank-a", META_RECOVERY)
    if join:
        rows = PlainRows(node.data_dir)
        for key in rows.keys(b"b", b"c"):
            rows.delete(key)
        rows.close()
    report = repair(world, "bank-a", join=join)
    assert (report.outcome, report.height, report.abstains) == ("repaired", 0 if join else 3, True)
    if join:
        fetch(world, "bank-a", "bank-b")
    assert standing(world, "bank-a") == (file.digest, True)


@pytest.mark.parametrize("files", ["CURRENT", "*.l*"])
def test_a_promise_outlives_a_store_of_which_nothing_can_be_read(world: RecoveryWorld, files: str) -> None:
    """`hansa repair --join` keeps what it can read of the node's own rows, and the promise was not among it."""
    file = world.sign("bank-a", world.draft("bank-a", AB))
    for path in world.node("bank-a").data_dir.glob(files):
        path.write_bytes(b"\xff" * 4096)
    report = repair(world, "bank-a", join=True)
    assert (report.height, report.abstains) == (0 if files != "CURRENT" else 3, True)
    if report.height == 0:
        fetch(world, "bank-a", "bank-b")
    assert standing(world, "bank-a") == (file.digest, True)


@pytest.mark.parametrize("join", [False, True])
def test_a_damaged_note_that_stands_nowhere_else_is_not_given_up(world: RecoveryWorld, join: bool) -> None:
    world.sign("bank-a", world.draft("bank-a", AB))
    node = damage(world, "bank-a", META_RECOVERY)
    node.signed_file.unlink()
    assert repair(world, "bank-a", join=join).outcome == "not_repaired"
    with refused("store_corrupt"):
        world.store("bank-a")
