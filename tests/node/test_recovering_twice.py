"""A survivor that loses its memory around a recovery, and one that signs more than one recovery."""

from pathlib import Path

import msgspec
import plyvel
import pytest

from consensus.amnesia import Amnesia
from consensus.config import Config
from consensus.effects import Accuse, Head, Memory, PreparedRecord, Received, VoteRecord
from consensus.epochs import EPOCH_VIEWS
from consensus.messages import Vote, VoteKind
from consensus.replica import Replica
from node.errors import HansaError
from node.recovery import RecoveryFile
from node.repair import Repair
from node.rescue import perform_recoveries, preferred
from node.rescue.survivor import REPLACED_MAX
from node.signatures import verify
from node.store.log_tail import log_files
from tests.node.evidence_world import VOTING
from tests.node.ledger_world import BANKS
from tests.node.recovery_world import RecoveryWorld

AB = ("bank-a", "bank-b")
LATER_MS = 120_000


@pytest.fixture
def world(tmp_path: Path) -> RecoveryWorld:
    return RecoveryWorld(tmp_path)


def refused(code: str) -> "pytest.RaisesExc[HansaError]":
    return pytest.raises(HansaError, check=lambda error: error.code == code)


def start(world: RecoveryWorld, bank: str, *votes: Vote) -> Memory:
    """What the bank's memory is once its node has started; these votes it signs then."""
    ledger = world.ledger(bank)
    try:
        perform_recoveries(world.node(bank), ledger.network, ledger.store, ledger.executor)
        ledger.store.put_records([VoteRecord(vote, False, None) for vote in votes])
        return ledger.store.memory()
    finally:
        ledger.close()


def trust(world: RecoveryWorld, bank: str, file: RecoveryFile) -> None:
    """The file lies where the bank's next start finds it."""
    directory = world.node(bank).recoveries_dir
    directory.mkdir(exist_ok=True)
    (directory / "recovery.json").write_bytes(file.encode())


def above(height: int) -> Vote:
    """A vote of bank-b in the first view after a recovery."""
    return Vote(VoteKind.PREPARE, EPOCH_VIEWS, height, b"v" * 32, 1, bytes(64))


# --- a memory lost once is not given back -------------------------------------------------------------------


@pytest.mark.parametrize("without", [(), ("bank-b",)])
def test_a_damaged_log_tail_over_the_recovery_block_gives_no_memory_back(
    world: RecoveryWorld, without: tuple[str, ...]
) -> None:
    """That the block was passed is lost with the votes above it: the next start applies it as if it were new."""
    file = world.draft("bank-a", AB, without_memory=without, accepts_unseen=bool(without))
    trust(world, "bank-b", world.sign("bank-b", world.sign("bank-a", file)))
    data = world.node("bank-b").data_dir
    world.ledger("bank-b").close()
    kept = log_files(data)[-1].stat().st_size
    assert start(world, "bank-b", above(5)).records
    log = log_files(data)[-1]
    raw = log.read_bytes()
    log.write_bytes(raw[: kept + 20] + bytes(byte ^ 0x5A for byte in raw[kept + 20 :]))
    store = world.store("bank-b")
    assert store.head.height == 3
    assert Amnesia(store.memory(), 0).lost
    store.close()
    assert Amnesia(start(world, "bank-b"), 0).lost
    store = world.store("bank-b")
    assert (store.head.height, store.head.digest) == (4, file.digest)
    store.close()


def test_a_repair_that_brings_an_older_row_back_gives_no_memory_back(world: RecoveryWorld) -> None:
    """A page of the log is damaged; what was compacted before says that the recovery block was never passed."""
    file = world.complete(*AB)
    data = world.node("bank-b").data_dir
    for _ in range(2):
        database = plyvel.DB(str(data))
        database.compact_range()
        database.close()
    trust(world, "bank-b", file)
    start(world, "bank-b", above(5))
    log = log_files(data)[-1]
    # The vote's record behind it is whole: this is no unfinished write.
    log.write_bytes(b"Z" * 600 + log.read_bytes()[600:])
    report = Repair(world.node("bank-b"), world.trusted("bank-b"), [], lambda what, done, total: None).run()
    assert (report.outcome, report.abstains) == ("repaired", True)
    memory = start(world, "bank-b")
    assert Amnesia(memory, 0).lost
    store = world.store("bank-b")
    assert store.head.digest == file.digest
    store.close()


def test_a_promise_to_abstain_that_is_over_is_no_memory_of_the_votes_lost_since(world: RecoveryWorld) -> None:
    store = world.store("bank-b")
    store.put_records([], abstain_until=1)
    store.close()
    data = world.node("bank-b").data_dir
    world.store("bank-b").close()
    kept = log_files(data)[-1].stat().st_size
    start(world, "bank-b", above(4))
    log = log_files(data)[-1]
    raw = log.read_bytes()
    log.write_bytes(raw[: kept + 20] + bytes(byte ^ 0x5A for byte in raw[kept + 20 :]))
    assert Amnesia(start(world, "bank-b"), 0).lost


# --- records of another history -----------------------------------------------------------------------------


@pytest.mark.parametrize("drafting", ["bank-a", "bank-b"])
def test_what_the_former_members_had_prepared_stops_no_second_recovery(world: RecoveryWorld, drafting: str) -> None:
    world.decide(world.built("bank-c"), "bank-c")
    fifth = world.built("bank-c")
    old = PreparedRecord(world.certificate(VoteKind.PREPARE, fifth, BANKS[:3], 0))
    world.apply(world.complete(*AB), *AB)
    store = world.store("bank-b")
    store.put_records([old], {fifth.digest: fifth.body})
    store.close()
    second = world.draft(drafting, ["bank-b"], accepts_unseen=True, time_ms=world.now_ms + LATER_MS)
    assert second.kept is None
    second = world.sign("bank-b", second, now_ms=world.now_ms + LATER_MS)
    assert world.apply(second, "bank-b") == [5]


def test_a_survivor_on_an_older_chain_than_its_votes_has_to_be_named_without_memory(world: RecoveryWorld) -> None:
    """It knows that it voted above; which blocks came of it, it does not."""
    store = world.store("bank-b")
    store.put_records([VoteRecord(msgspec.structs.replace(above(9), view=0), False, None)])
    store.close()
    with refused("recovery_memory_lost"):
        world.sign("bank-b", world.draft("bank-a", AB))
    world.sign("bank-b", world.draft("bank-a", AB, without_memory=("bank-b",), accepts_unseen=True))


# --- one recovery in the place of another -------------------------------------------------------------------


def test_who_signs_a_recovery_in_the_place_of_another_is_accused_by_nobody(world: RecoveryWorld) -> None:
    first = world.sign("bank-a", world.draft("bank-a", AB))
    second = world.draft("bank-a", AB, time_ms=world.now_ms + 65_000)
    second = world.sign("bank-a", second, instead_of=first.digest)
    assert (first.view, second.view) == (EPOCH_VIEWS, 2 * EPOCH_VIEWS)
    store = world.store("bank-c")
    at = store.head
    store.close()
    head = Head(at.height, at.digest, at.certificate, at.start_view, at.members, at.members)
    config = Config(network=world.network.network_id, member="bank-c")
    replica = Replica(config, head, Memory(True, False, 0, ()), VOTING["bank-c"].sign, verify, 0, 0)
    replica.start()
    effects = []
    for file in (first, second):
        signature = file.signatures[0].recovery
        vote = Vote(VoteKind.COMMIT, file.view, file.header.height, file.digest, 0, signature)
        effects += replica.step(Received("bank-d", vote))
    assert not [effect for effect in effects if isinstance(effect, Accuse)]
    assert world.apply(world.sign("bank-b", second), *AB) == [4, 4]
    world.grow("bank-a")


def test_nobody_signs_two_recoveries_of_one_epoch(world: RecoveryWorld) -> None:
    first = world.sign("bank-a", world.draft("bank-a", AB))
    # bank-b knows nothing of the first one, unless it is told.
    same = world.draft("bank-b", AB, reason="another")
    with refused("recovery_signed_other"):
        world.sign("bank-a", same, instead_of=first.digest)
    told = world.draft("bank-b", AB, reason="another", replaces=(first,))
    assert (told.view, preferred([told, same]), preferred([same, told])) == (2 * EPOCH_VIEWS, told, told)
    second = world.sign("bank-a", told, instead_of=first.digest)
    # Nor does it go back to an epoch that it has left, but to the very recovery that it has signed there.
    for view in (EPOCH_VIEWS, 2 * EPOCH_VIEWS):
        other = world.draft("bank-b", AB, reason="a third", replaces=() if view == EPOCH_VIEWS else (first,))
        assert other.view == view
        with refused("recovery_signed_other"):
            world.sign("bank-a", other, instead_of=second.digest)
    assert world.sign("bank-a", first, instead_of=second.digest).signatures == first.signatures
    assert world.draft("bank-a", AB).view == 3 * EPOCH_VIEWS


def test_no_draft_uses_up_the_views_that_are_left(world: RecoveryWorld) -> None:
    first = world.draft("bank-a", AB)
    far = msgspec.structs.replace(first, view=(REPLACED_MAX + 1) * EPOCH_VIEWS)
    with refused("recovery_refused"):
        world.draft("bank-a", AB, replaces=(far,))
    near = msgspec.structs.replace(first, view=REPLACED_MAX * EPOCH_VIEWS)
    last = world.draft("bank-b", AB, replaces=(near,))
    world.sign("bank-a", last)
    with refused("recovery_refused"):
        world.sign("bank-b", msgspec.structs.replace(last, view=last.view + EPOCH_VIEWS))
    with refused("recovery_of_another_network"):
        world.draft("bank-b", AB, replaces=(msgspec.structs.replace(first, network="other-000000000000"),))


# --- another base block -------------------------------------------------------------------------------------


def test_a_node_that_fetches_another_base_block_than_its_file_names_does_not_start(world: RecoveryWorld) -> None:
    """It was given the file while it stood below the base, where nothing told the two histories apart."""
    for bank in AB:
        ledger = world.ledger(bank)
        ledger.settle(ledger.transaction("bank-a"), ledger.transaction("bank-a"))
        ledger.close()
    file = world.complete(*AB)
    assert file.base_height == 4
    assert world.apply(file, "bank-c") == [3]
    start(world, "bank-c")
    world.decide(world.built("bank-c"), "bank-c")
    with refused("recovery_differs"):
        start(world, "bank-c")
