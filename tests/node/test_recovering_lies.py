"""Recovery files, directories and commands that are not what they seem."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from consensus.epochs import EPOCH_VIEWS
from node.errors import HansaError
from node.executor import request_of
from node.recovery import RecoveryFile
from node.rescue.survivor import REPLACED_MAX
from node.signatures import verify
from node.snapshot import make_snapshot, pending_adoption
from node.store import LevelDatabase
from node.store.layout import META_ADOPTING
from node.verification import verify_directory
from tests.node.plain_rows import PlainRows
from tests.node.recovery_world import RecoveryWorld, altered

AB = ("bank-a", "bank-b")


@pytest.fixture
def world(tmp_path: Path) -> RecoveryWorld:
    return RecoveryWorld(tmp_path)


def refused(code: str) -> "pytest.RaisesExc[HansaError]":
    return pytest.raises(HansaError, check=lambda error: error.code == code)


def trusted_at(world: RecoveryWorld, bank: str) -> list[bytes]:
    """The recovery files that the bank trusts."""
    return [path.read_bytes() for path in world.node(bank).recoveries_dir.glob("*.json")]


def test_a_file_with_other_terms_under_the_same_number_is_not_trusted(world: RecoveryWorld) -> None:
    """Its signatures are right, for they cover the number: it lay in recoveries/, and no start succeeded then."""
    file = world.complete(*AB)
    forged = altered(file, reason="nothing happened at all")
    assert RecoveryFile.decode(forged.encode()).digest == file.digest
    for bank in ("bank-a", "bank-c"):
        with refused("recovery_differs"):
            world.apply(forged, bank)
        assert trusted_at(world, bank) == []
        assert world.apply(file, bank) == [4]
        # Nor does it take the place of the right one later.
        with refused("recovery_differs"):
            world.apply(forged, bank)
        assert trusted_at(world, bank) == [file.encode()]
        assert world.apply(file, bank) == [4]
        assert verify_directory(world.node(bank)).ok


def test_a_node_that_joined_the_former_members_above_the_recovery_does_not_trust_it(world: RecoveryWorld) -> None:
    """It has no block of that height, so nothing told the two histories apart, and it went on in the other one."""
    file = world.complete(*AB)
    for _ in range(2):
        world.decide(world.built("bank-c"), "bank-c")
    source = world.store("bank-c")
    named = (world.network.network_id, world.network.genesis_hash)
    making = make_snapshot(source.snapshot(), *named, 8, world.base / "snapshots")
    with contextlib.suppress(StopIteration):
        while True:
            next(making)
    source.close()
    [folder] = (world.base / "snapshots").iterdir()
    database = LevelDatabase(world.node("bank-d").data_dir)
    adoption = pending_adoption(database, folder, *named, world.network.validators, 8, verify)
    assert adoption is not None
    adoption.perform(request_of)
    database.close()
    store = world.store("bank-d")
    assert store.head.height == 5
    store.close()
    with refused("recovery_differs"):
        world.apply(file, "bank-d")
    assert trusted_at(world, "bank-d") == []


def test_two_recoveries_that_cannot_follow_one_another_are_not_trusted_together(world: RecoveryWorld) -> None:
    """At a node below both nothing else tells that; it came to the first one's block, and never started again."""
    earlier = world.complete(*AB)
    world.decide(world.built("bank-c"), "bank-c")
    later = world.complete("bank-c", accepts_unseen=True)
    assert (earlier.header.height, later.base_height) == (4, 4)
    shutil.rmtree(world.node("bank-d").data_dir)
    world.ledger("bank-d").close()
    assert world.apply(later, "bank-d") == [0]
    with refused("recovery_differs"):
        world.apply(earlier, "bank-d")
    assert trusted_at(world, "bank-d") == [later.encode()]


def test_nobody_recovers_from_a_directory_that_is_half_a_snapshots(world: RecoveryWorld) -> None:
    """A crash while a snapshot is taken over leaves a head that is neither the old one nor the new one."""
    file = world.complete(*AB)
    for bank in ("bank-a", "bank-c"):
        rows = PlainRows(world.node(bank).data_dir)
        rows.put(META_ADOPTING, b"begun")
        rows.close()
    with refused("ledger_not_here"):
        world.draft("bank-a", AB)
    with refused("ledger_not_here"):
        world.sign("bank-a", file)
    with refused("ledger_not_here"):
        world.apply(file, "bank-c")
    assert trusted_at(world, "bank-c") == []


def test_a_survivor_that_drafts_far_ahead_ends_nobodys_way(world: RecoveryWorld) -> None:
    """All but one had signed in the last view that was allowed: none of them could ever sign another recovery."""
    near = altered(world.draft("bank-a", AB), view=REPLACED_MAX * EPOCH_VIEWS)
    far = world.draft("bank-c", (*AB, "bank-c"), replaces=(near,))
    assert far.view == (REPLACED_MAX + 1) * EPOCH_VIEWS
    for bank in AB:
        world.sign(bank, far)
    other = world.draft("bank-a", AB)
    for bank in AB:
        other = world.sign(bank, other, instead_of=far.digest)
    assert world.apply(RecoveryFile.decode(other.encode()), *AB) == [4, 4]


def test_a_file_writes_nothing_over_the_screen_of_who_reads_it(world: RecoveryWorld) -> None:
    """`recovery show` and `sign` show what it says before anything is compared with this network."""
    file = json.loads(world.draft("bank-a", AB).encode())
    for network in ("evidence\x1b[2J-000000000000", "x\nrecovery block 4, number 00", "", "e" * 90_000):
        with refused("recovery_file_invalid"):
            RecoveryFile.decode(json.dumps({**file, "network": network}).encode())
