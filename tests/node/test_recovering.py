"""Survivors of a lost quorum agree, sign and go on: what is refused, and what is kept.

More than 500 lines because all of it is about one rule: what survivors agree on is the same at all of them.
"""

import contextlib
import json
import shutil
from pathlib import Path

import msgspec
import pytest

from consensus.codec import encode
from consensus.effects import BlockStanding, VoteRecord
from consensus.epochs import EPOCH_VIEWS
from consensus.messages import Vote, VoteKind
from node.config import Recoveries
from node.errors import ConfigError, HansaError, InvalidBlock, InvalidFrame
from node.executor import request_of
from node.ledger import CertifiedBlock, Proposal
from node.recovery import RecoveryFile, trusted
from node.repair import Repair
from node.rescue import Survivor, perform_recoveries, preferred
from node.signatures import verify
from node.snapshot import make_snapshot, pending_adoption
from node.store import LevelDatabase, Store, StoreView
from node.store.layout import META_HEAD
from node.sync.proof import open_range, require_proof
from node.verification import verify_directory
from tests.node.evidence_world import ProvableLedger
from tests.node.plain_rows import PlainRows
from tests.node.recovery_world import REASON, RecoveryWorld

AB, CD = ("bank-a", "bank-b"), ("bank-c", "bank-d")


@pytest.fixture
def world(tmp_path: Path) -> RecoveryWorld:
    return RecoveryWorld(tmp_path)


def refused(code: str) -> "pytest.RaisesExc[HansaError]":
    return pytest.raises(HansaError, check=lambda error: error.code == code)


def test_survivors_go_on_from_a_block_that_shows_what_happened(world: RecoveryWorld) -> None:
    file = world.complete(*AB)
    assert RecoveryFile.decode(file.encode()) == file
    assert world.apply(file, *AB) == [4, 4]
    world.grow("bank-a")
    store = world.store("bank-a")
    try:
        block = store.block(4)
        assert (block.body.header.proposer, block.body.transactions) == ("@recovery", ())
        assert (block.certificate.view, block.body.header.digest) == (EPOCH_VIEWS, file.digest)
        [receipt] = [store.receipt(4, 0)]
        [call] = receipt.calls
        event = call.events[-1]
        assert (event.name, event.data["reason"]) == ("NetworkRecovered", REASON)
        assert (event.data["survivors"], event.data["suspended"]) == ([*AB], [*CD])
        assert event.data["statement"] == file.recovery.statement
        assert [item.id for item in store.head.validators] == list(AB)
    finally:
        store.close()
    report = verify_directory(world.node("bank-a"))
    assert (report.ok, report.height, report.first_error) == (True, 6, None)


def test_all_survivors_come_to_the_same_bytes(world: RecoveryWorld) -> None:
    assert world.draft("bank-a", AB) == world.draft("bank-b", AB)
    assert world.draft("bank-a", AB).digest != world.draft("bank-a", AB, reason="another").digest


def test_a_node_on_an_empty_disk_is_told_to_run_once_before_it_applies(world: RecoveryWorld) -> None:
    """It was told to look at the path and its permissions."""
    file = world.complete(*AB)
    shutil.rmtree(world.node("bank-d").data_dir)
    with pytest.raises(ConfigError, match=r"ledger_not_here: .* start the node once and stop it") as refused:
        world.apply(file, "bank-d")
    assert "hansa run" in refused.value.entry.action


def test_nothing_is_applied_that_not_every_survivor_has_signed(world: RecoveryWorld) -> None:
    file = world.sign("bank-a", world.draft("bank-a", AB))
    assert file.missing == ("bank-b",)
    with refused("recovery_incomplete"):
        world.apply(file, "bank-a")
    assert not list(world.node("bank-a").recoveries_dir.glob("*.json"))


def test_a_file_is_refused_whole_when_a_part_of_it_was_changed(world: RecoveryWorld) -> None:
    file = json.loads(world.complete(*AB).encode())
    changes = {
        "reason": "nothing happened",
        "number": "00" * 32,
        "base_height": 2,
        "view": 2 * EPOCH_VIEWS,
        "survivors": file["survivors"][:1],
        "former": file["former"][:3],
        "without_memory": ["bank-a"],
        "time_ms": file["time_ms"] + 1,
        "header": file["header"][:-2] + "00",
        "summary": file["summary"][:-1],
        "network": "other-000000000000",
        "signatures": [{**file["signatures"][0], "member": "bank-b"}, *file["signatures"][1:]],
    }
    for field, value in changes.items():
        with pytest.raises(ConfigError):
            # Who a change is not shown to by the file itself comes to another block.
            world.sign("bank-a", RecoveryFile.decode(json.dumps({**file, field: value}).encode()))
    with refused("recovery_file_invalid"):
        RecoveryFile.decode(b"{" * 100_000)
    with refused("recovery_file_invalid"):
        RecoveryFile.decode(world.draft("bank-a", AB).encode().replace(b"{", b'{"reason": "twice",', 1))


def test_a_block_that_only_a_lost_member_may_have_decided_is_kept(world: RecoveryWorld) -> None:
    prepared = world.built("bank-a")
    world.prepare(prepared, "bank-b")
    without = world.draft("bank-a", AB)
    assert without.kept is None
    with refused("recovery_leaves_out_prepared"):
        world.sign("bank-b", without)
    keeping = world.draft("bank-b", AB)
    assert preferred([without, keeping]) is keeping
    file = world.sign("bank-a", world.sign("bank-b", keeping))
    assert RecoveryFile.decode(file.encode()) == file
    assert world.apply(file, *AB) == [5, 5]
    store = world.store("bank-a")
    assert store.head_at(4).digest == prepared.digest
    store.close()
    world.grow("bank-b")
    assert verify_directory(world.node("bank-b")).ok


def test_of_two_prepared_blocks_that_of_the_higher_view_is_kept(world: RecoveryWorld) -> None:
    early = world.built("bank-a")
    ledger = world.ledger("bank-b")
    late = ledger.executor.build(ledger.now_ms + 5_000, "bank-b", [ledger.transaction("bank-a")])
    ledger.close()
    assert late is not None
    assert late.digest != early.digest
    world.prepare(early, "bank-a", view=0)
    world.prepare(late, "bank-b", view=1)
    drafts = [world.draft(bank, AB) for bank in AB]
    assert preferred(drafts) is drafts[1]
    with refused("recovery_leaves_out_prepared"):
        world.sign("bank-b", drafts[0])
    file = world.sign("bank-a", world.sign("bank-b", drafts[1]))
    assert world.apply(file, *AB) == [5, 5]


def test_a_prepared_block_without_its_content_is_drafted_elsewhere(world: RecoveryWorld) -> None:
    world.prepare(world.built("bank-a"), "bank-a", with_body=False)
    with refused("recovery_block_missing"):
        world.draft("bank-a", AB)


def test_nobody_goes_on_from_below_a_certified_block(world: RecoveryWorld) -> None:
    low = world.draft("bank-a", AB)
    world.decide(world.built("bank-b"), "bank-b")
    with refused("recovery_base_differs"):
        world.sign("bank-b", low)
    high = world.draft("bank-b", AB)
    assert preferred([low, high]) is high
    with refused("recovery_base_differs"):
        world.sign("bank-a", high)


def test_blocks_that_no_survivor_can_know_of_are_given_up_only_knowingly(world: RecoveryWorld) -> None:
    with refused("recovery_may_lose_blocks"):
        world.draft("bank-a", ["bank-a"])
    with refused("recovery_may_lose_blocks"):
        world.draft("bank-a", AB, without_memory=("bank-b",))
    assert world.draft("bank-a", ["bank-a"], accepts_unseen=True).left_out == ("bank-b", *CD)
    with refused("recovery_too_few"):
        world.draft("bank-a", AB, accepts_few=False)


def test_only_members_with_a_vote_survive_and_not_all_of_them(world: RecoveryWorld) -> None:
    for survivors in (("bank-a", "bank-z"), ("bank-a", "bank-a"), ("bank-a", *AB[1:], *CD)):
        with refused("recovery_refused"):
            world.draft("bank-a", survivors)


def test_a_clock_that_runs_ahead_stops_nobody(world: RecoveryWorld) -> None:
    file = world.draft("bank-a", AB)
    with refused("recovery_refused"):
        world.sign("bank-b", file, now_ms=world.now_ms)
    with refused("recovery_refused"):
        world.draft("bank-a", AB, time_ms=1)


def test_who_has_signed_promises_before_and_signs_no_other(world: RecoveryWorld) -> None:
    file = world.draft("bank-a", AB)
    world.sign("bank-a", file)
    store = world.store("bank-a")
    owed = store.owed_recovery()
    assert owed is not None
    assert (owed.height, owed.digest) == (4, file.digest)
    store.close()
    other = world.draft("bank-a", ("bank-a", "bank-c"))
    with refused("recovery_signed_other"):
        world.sign("bank-a", other)
    again = world.sign("bank-a", file)
    assert again.signatures == world.sign("bank-a", file).signatures
    replaced = world.sign("bank-c", world.sign("bank-a", other, instead_of=file.digest))
    with refused("recovery_signed_other"):
        world.apply(world.sign("bank-b", again), "bank-a")
    assert world.apply(replaced, "bank-a") == [4]


def test_a_promise_is_there_when_the_process_dies_before_the_signature_is(world: RecoveryWorld) -> None:
    file = world.draft("bank-a", AB)

    class Dying:
        public = next(item.voting_key for item in file.survivors if item.id == "bank-a")

        def sign(self, message: bytes) -> bytes:
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        Survivor.opened(world.node("bank-a"), world.trusted("bank-a")) as survivor,
    ):
        survivor.sign(file, Dying(), world.now_ms + 70_000)  # type: ignore[arg-type]
    store = world.store("bank-a")
    assert store.owed_recovery() is not None
    store.close()
    with refused("recovery_signed_other"):
        world.sign("bank-a", world.draft("bank-a", ("bank-a", "bank-c")))


def test_a_promise_holds_on_the_chain_of_the_former_members(world: RecoveryWorld) -> None:
    """The lost members come back and decide the height after all: the survivor does not vote with them."""
    world.sign("bank-a", world.draft("bank-a", AB))
    world.decide(world.built("bank-a"), "bank-a")
    store = world.store("bank-a")
    assert store.head.height == 4
    assert store.owed_recovery() is not None
    store.close()


def test_a_crash_between_the_kept_block_and_the_recovery_block_is_gone_on_from(
    world: RecoveryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.prepare(world.built("bank-a"), "bank-a")
    file = world.complete(*AB)
    apply, left = Store.apply, [1]

    def dying(self: Store, *args: object) -> object:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return apply(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Store, "apply", dying)
        with pytest.raises(KeyboardInterrupt):
            world.apply(file, "bank-a")
    store = world.store("bank-a")
    assert store.head.height == 4
    assert store.owed_recovery() is not None
    store.close()
    assert world.apply(file, "bank-a") == [5]
    store = world.store("bank-a")
    assert store.owed_recovery() is None
    store.close()


def test_votes_of_the_former_list_are_gone_and_no_slot_is_shared(world: RecoveryWorld) -> None:
    block = world.built("bank-a")
    vote = Vote(VoteKind.COMMIT, 7, 4, block.digest, 0, bytes(64))
    store = world.store("bank-a")
    store.put_records([VoteRecord(vote, False, None)], {block.digest: block.body})
    store.close()
    world.apply(world.complete(*AB), "bank-a")
    store = world.store("bank-a")
    assert store.memory().records == ()
    assert store.memory().voted
    assert store.head.start_view == EPOCH_VIEWS
    store.close()


def test_a_member_without_memory_signs_only_when_all_are_told_and_votes_then(world: RecoveryWorld) -> None:
    store = world.store("bank-b")
    store.put_records([], abstain_until=100)
    store.close()
    with refused("recovery_memory_lost"):
        world.sign("bank-b", world.draft("bank-a", AB))
    file = world.draft("bank-a", AB, without_memory=("bank-b",), accepts_unseen=True)
    file = world.sign("bank-b", world.sign("bank-a", file))
    assert any("without memory" in line for line in file.summary())
    world.apply(file, "bank-b", "bank-c")
    store = world.store("bank-b")
    assert store.memory().voted
    assert store.memory().abstain_until == 0
    # What is lost again after that is lost.
    store.put_records([], abstain_until=200)
    store.close()
    world.apply(file, "bank-b")
    store = world.store("bank-b")
    assert store.memory().abstain_until == 200
    store.close()


def test_a_ledger_that_is_fetched_again_gives_no_memory_back_a_second_time(world: RecoveryWorld) -> None:
    """`hansa repair --join`: the chain comes to the recovery block again, and what was signed above it is lost."""
    file = world.draft("bank-a", AB, without_memory=("bank-b",), accepts_unseen=True)
    world.apply(world.sign("bank-b", world.sign("bank-a", file)), *AB)
    store = world.store("bank-b")
    assert store.memory().abstain_until == 0
    store.put_records([], abstain_until=200)
    store.close()
    data = world.node("bank-b").data_dir
    rows = PlainRows(data)
    for key in rows.keys(b"b", b"c"):
        rows.delete(key)
    rows.close()
    report = Repair(world.node("bank-b"), world.trusted("bank-b"), [], lambda what, done, total: None).run(
        join=True
    )
    assert (report.outcome, report.height) == ("repaired", 0)
    fetch_again(world, "bank-b", world.node("bank-c").data_dir)
    assert world.apply(RecoveryFile.decode(applied(world, "bank-b")), "bank-b") == [4]
    store = world.store("bank-b")
    assert store.memory().abstain_until == 200
    store.close()


def test_a_snapshot_that_leads_past_the_recovery_block_gives_no_memory_back_later(world: RecoveryWorld) -> None:
    file = world.draft("bank-a", AB, without_memory=("bank-b",), accepts_unseen=True)
    file = world.sign("bank-b", world.sign("bank-a", file))
    world.apply(file, "bank-a")
    at_base = world.base / "at-base"
    shutil.copytree(world.node("bank-b").data_dir, at_base)
    fetch_again(world, "bank-b", world.node("bank-a").data_dir)
    store = world.store("bank-b")
    assert store.head.height == 4
    # Signed above the recovery block, and lost since.
    store.put_records([], abstain_until=200)
    store.close()
    fetch_again(world, "bank-b", at_base)
    assert world.apply(file, "bank-b") == [4]
    store = world.store("bank-b")
    assert store.memory().abstain_until == 200
    store.close()


def test_signing_the_same_recovery_again_gives_no_memory_back_a_second_time(world: RecoveryWorld) -> None:
    file = world.draft("bank-a", AB, without_memory=("bank-b",), accepts_unseen=True)
    signed = world.sign("bank-b", world.sign("bank-a", file))
    world.apply(signed, "bank-b")
    store = world.store("bank-b")
    store.put_records([], abstain_until=200)
    store.close()
    fetch_again(world, "bank-b", world.node("bank-a").data_dir)
    shutil.rmtree(world.node("bank-b").recoveries_dir)
    world.sign("bank-b", file)
    world.apply(signed, "bank-b")
    store = world.store("bank-b")
    assert store.memory().abstain_until == 200
    store.close()


def fetch_again(world: RecoveryWorld, bank: str, source: Path) -> None:
    """The bank keeps what it knows of itself, and has the ledger that lies in `source`."""
    data = world.node(bank).data_dir
    own = PlainRows(data)
    kept = {key: own.get(key) for key in own.keys(b"m", b"n") if key != META_HEAD}
    own.close()
    shutil.rmtree(data)
    shutil.copytree(source, data)
    rows = PlainRows(data)
    for key in rows.keys(b"m", b"n"):
        if key != META_HEAD:
            rows.delete(key)
    for key, value in kept.items():
        rows.put(key, value)
    rows.close()


def applied(world: RecoveryWorld, bank: str) -> bytes:
    """The recovery file that was applied at the bank."""
    [path] = world.node(bank).recoveries_dir.glob("*.json")
    return path.read_bytes()


def test_two_groups_make_two_histories_and_nobody_follows_both(world: RecoveryWorld) -> None:
    ours, theirs = world.complete(*AB), world.complete(*CD, reason="those others are gone")
    assert ours.header.height == theirs.header.height
    assert ours.digest != theirs.digest
    world.apply(ours, *AB)
    world.apply(theirs, *CD)
    for bank in ("bank-a", "bank-c"):
        world.grow(bank)
        assert verify_directory(world.node(bank)).ok
    with refused("recovery_differs"):
        world.apply(theirs, "bank-a")
    report = verify_directory(world.node("bank-c"), depth="quick", anchors=[])
    assert report.ok
    # Whoever has the other one's anchor, or none, refuses the ledger and says so.
    for anchor, word in ((world.path(ours), "two histories"), (None, "get the recovery file")):
        for file in world.node("bank-c").recoveries_dir.glob("*.json"):
            file.unlink()
        report = verify_directory(world.node("bank-c"), depth="quick", anchors=[anchor] if anchor else [])
        assert not report.ok
        assert word in (report.first_error or "")


def test_followers_believe_the_step_only_by_their_own_anchor(world: RecoveryWorld) -> None:
    ours, theirs = world.complete(*AB), world.complete(*CD)
    world.apply(ours, "bank-a")
    world.grow("bank-a")
    store = world.store("bank-a")
    blocks = [encode(store.block(height)) for height in (4, 5, 6)]
    former, parent = store.head_at(3).members, store.head_at(3).digest
    store.close()

    def judged(recoveries: Recoveries) -> None:
        first = open_range(blocks, 4, world.network.network_id, former, verify, recoveries)[0]
        require_proof(first, parent, former, recoveries)

    judged(Recoveries((ours.recovery,)))
    for other in (Recoveries(), Recoveries((theirs.recovery,))):
        with pytest.raises(InvalidFrame, match="recovery_not_trusted"):
            judged(other)


def test_a_node_executes_no_recovery_that_it_does_not_trust(world: RecoveryWorld) -> None:
    world.apply(world.complete(*AB), "bank-a")
    store = world.store("bank-a")
    block: CertifiedBlock = store.block(4)
    store.close()
    ledger = world.ledger("bank-c")
    proposal = Proposal(block.body.header, (), ())
    for standing in BlockStanding:
        with pytest.raises(InvalidBlock, match="recovery_refused"):
            ledger.executor.check(proposal, [], standing=standing)
    ledger.close()


def test_a_member_with_the_former_members_next_block_does_not_follow(world: RecoveryWorld) -> None:
    world.decide(world.built("bank-c"), "bank-c")
    with refused("recovery_differs"):
        world.apply(world.complete(*AB), "bank-c")
    assert not world.node("bank-c").recoveries_dir.exists()


def test_who_had_decided_the_kept_block_before_proves_it_by_the_survivors_afterwards(world: RecoveryWorld) -> None:
    """Its own certificate was that of the former members, which neither `hansa verify` nor its peers accept."""
    kept = world.built("bank-a")
    world.prepare(kept, "bank-a")
    world.decide(kept, "bank-c")
    file = world.complete(*AB)
    assert world.apply(file, "bank-a", "bank-c") == [5, 5]
    blocks = []
    for bank in ("bank-a", "bank-c"):
        store = world.store(bank)
        blocks.append([encode(store.block(height)) for height in (4, 5)])
        store.close()
    assert blocks[1] == blocks[0]
    report = verify_directory(world.node("bank-c"))
    assert (report.ok, report.height, report.first_error) == (True, 5, None)
    # A node that has applied the file already, before this was so, is mended at its start.
    ledger = world.ledger("bank-c")
    ledger.store.replace_certificate(world.certificate(VoteKind.COMMIT, kept, ("bank-b", *CD), 0))
    perform_recoveries(world.node("bank-c"), ledger.network, ledger.store, ledger.executor)
    assert encode(ledger.store.block(4)) == blocks[0][0]
    with pytest.raises(ValueError, match="not that of block 4"):
        ledger.store.replace_certificate(msgspec.structs.replace(file.certificate(kept=True), digest=bytes(32)))
    ledger.close()


@pytest.mark.parametrize("kept", [False, True])
def test_a_snapshot_of_the_recovery_or_of_the_kept_block_says_who_changed_the_members(
    world: RecoveryWorld, kept: bool
) -> None:
    """The recovery block changes them, though the list after it is who decided it; the kept one need not."""
    prepared = world.built("bank-a")
    world.prepare(prepared, *AB)
    file = world.complete(*AB)
    if kept:
        world.decide(prepared, "bank-a")
        store = world.store("bank-a")
        store.replace_certificate(file.certificate(kept=True))
        store.close()
    else:
        world.apply(file, "bank-a")
    source = world.store("bank-a")
    view, changes = source.snapshot(), source.snapshot().member_changes()
    named = (world.network.network_id, world.network.genesis_hash)
    made = make_snapshot(view, *named, 8, world.base / "snapshots")
    with contextlib.suppress(StopIteration):
        while True:
            next(made)
    source.close()
    [folder] = (world.base / "snapshots").iterdir()
    network = trusted(world.network, [world.path(file)])
    node = world.node("bank-c")
    database = LevelDatabase(node.data_dir)
    founders = network.validators
    adoption = pending_adoption(database, folder, *named, founders, 8, verify, recoveries=network.recoveries)
    assert adoption is not None
    adoption.perform(request_of)
    joined = StoreView(database.snapshot())
    assert joined.head.height == (4 if kept else 5)
    assert list(joined.member_changes()) == list(changes) == ([] if kept else [5])
    database.close()


def test_a_node_with_another_base_block_follows_no_recovery_from_there(world: RecoveryWorld) -> None:
    world.decide(world.built("bank-c"), "bank-c")
    for bank in AB:
        ledger = world.ledger(bank)
        ledger.settle(ledger.transaction("bank-a"), ledger.transaction("bank-a"))
        ledger.close()
    file = world.complete(*AB)
    assert file.base_height == 4
    with refused("recovery_differs"):
        world.apply(file, "bank-c")
    assert not world.node("bank-c").recoveries_dir.exists()


def test_a_recovery_whose_file_is_gone_lets_no_node_begin(world: RecoveryWorld) -> None:
    """What a running node has trusted it still trusts when it begins anew."""
    file = world.complete(*AB)
    world.apply(file, "bank-a")
    ledger = ProvableLedger(world.node("bank-c").data_dir, world.trusted("bank-a"))
    with refused("recovery_file_unreadable"):
        perform_recoveries(world.node("bank-c"), ledger.network, ledger.store, ledger.executor)
    ledger.close()


def test_a_second_recovery_follows_the_first(world: RecoveryWorld) -> None:
    world.apply(world.complete(*AB), *AB)
    second = world.draft("bank-a", ["bank-a"], accepts_unseen=True, time_ms=world.now_ms + 120_000)
    assert second.view == 2 * EPOCH_VIEWS
    world.apply(world.sign("bank-a", second, now_ms=world.now_ms + 130_000), "bank-a")
    world.grow("bank-a")
    assert verify_directory(world.node("bank-a")).ok
    assert [item.height for item in world.trusted("bank-a").recoveries.items] == [4, 5]
    assert msgspec.structs.replace(world.trusted("bank-a"), recoveries=Recoveries()) == world.network


def test_nobody_proposes_a_recovery_block(world: RecoveryWorld) -> None:
    """As a decided block it is trusted; as a proposal in consensus it is refused all the same."""
    file = world.complete(*AB)
    world.apply(file, "bank-a")
    ledger = ProvableLedger(world.node("bank-b").data_dir, world.trusted("bank-a"))
    proposal = Proposal(file.header, (), ())
    with pytest.raises(InvalidBlock, match="recovery_refused"):
        ledger.executor.check(proposal, [])
    assert ledger.executor.check(proposal, [], standing=BlockStanding.DECIDED).digest == file.digest
    ledger.close()


def test_a_node_with_another_history_does_not_start_with_a_file_put_there(world: RecoveryWorld) -> None:
    file = world.complete(*AB)
    world.decide(world.built("bank-c"), "bank-c")
    node = world.node("bank-c")
    node.recoveries_dir.mkdir()
    (node.recoveries_dir / "by-hand.json").write_bytes(file.encode())
    ledger = world.ledger("bank-c")
    with refused("recovery_differs"):
        perform_recoveries(node, ledger.network, ledger.store, ledger.executor)
    ledger.close()


def test_another_block_of_the_same_survivors_has_no_certificate(world: RecoveryWorld) -> None:
    file = world.complete(*AB)
    recoveries, former = Recoveries((file.recovery,)), world.network.validators
    judge = recoveries.verifier(world.network.network_id, verify)
    assert judge.certificate(file.certificate(), VoteKind.COMMIT, former)
    elsewhere = msgspec.structs.replace(file.recovery, digest=bytes(32))
    judge = Recoveries((elsewhere,)).verifier(world.network.network_id, verify)
    assert not judge.certificate(file.certificate(), VoteKind.COMMIT, former)
