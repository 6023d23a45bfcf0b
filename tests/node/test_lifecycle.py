"""Versions of contracts on one ledger: the switch at its height, its migration, and a node that lacks it."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from consensus.effects import BlockStanding
from contracts import CONTRACTS
from contracts.engine import Engine
from contracts.lifecycle import Lifecycle, Version
from contracts.sdk import Contract
from node.cli.refusals import meaning
from node.cli.versions import stands_against
from node.config import Recoveries, Recovery
from node.errors import ConfigError, InvalidBlock, NotFound, RejectedTransaction
from node.executor import Executor
from node.ledger import Call
from node.runtime.describing import describe
from node.state import Overlay
from tests.node.ledger_world import BANKS, HOUR_MS, Ledger, decoded, network
from tests.node.lifecycle_world import OTHER_2, SECOND, TALLY_1, TALLY_2, Versions, adding, tally


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Versions]:
    made = Versions(tmp_path / "data", TALLY_2)
    yield made
    made.close()


def test_a_version_changes_at_its_height_and_the_header_names_it_from_then_on(ledger: Versions) -> None:
    ledger.decide_change("upgrade_contract", 2, 8)
    before = ledger.executor.contracts_hash
    while ledger.height < 7:
        assert ledger.version.version == 1
        ledger.add()
        assert ledger.store.snapshot().header(ledger.height).contracts_hash == before
    # Block 7 was executed by version 1, and the state after it is that of version 2.
    assert ledger.version == Version(
        "tally", 2, ledger.engine.source_digest("tally", 2) or b"", since=8, active=True
    )
    assert ledger.status() == ("effective", "")
    total = ledger.count()
    assert ledger.count(at=6) == total - 1, "a past height is read by the version of that height"
    ledger.add()
    assert ledger.count() == total + 2
    header = ledger.store.snapshot().header(8)
    assert header.contracts_hash == ledger.executor.contracts_hash != before
    assert ledger.executor.former_contracts_hash == before


def test_who_carries_a_version_that_is_not_active_has_the_same_hash(ledger: Versions, tmp_path: Path) -> None:
    plain = Versions(tmp_path / "plain")
    assert plain.executor.contracts_hash == ledger.executor.contracts_hash
    assert plain.executor.head.state_root == ledger.executor.head.state_root
    plain.close()


def test_nothing_changes_without_readiness_of_a_quorum(ledger: Versions) -> None:
    ledger.propose("upgrade_contract", 2, 5)
    ledger.vote()
    ledger.ready("bank-a", "bank-b")
    ledger.grow(12)
    assert (ledger.version.version, ledger.status()) == (1, ("waiting", ""))
    ledger.ready("bank-c")
    assert (ledger.version.version, ledger.version.since) == (2, ledger.height + 1)


def test_readiness_that_has_grown_old_does_not_count(ledger: Versions) -> None:
    ledger.decide_change("upgrade_contract", 2, 120)
    ledger.grow(124)
    assert (ledger.version.version, ledger.status()) == (1, ("waiting", ""))
    ledger.ready(*BANKS[:3])
    assert ledger.version.version == 2


def test_a_migration_that_fails_leaves_everything_as_it_was(ledger: Versions) -> None:
    ledger.add("poison")
    ledger.decide_change("upgrade_contract", 2, 7)
    ledger.grow(6)
    assert ledger.status() == ("void", "migration_failed")
    assert (ledger.version.version, ledger.count("poison")) == (1, 1)
    assert Lifecycle.read_plans(Overlay(ledger.executor.view)) == ()
    assert ledger.add() == ["ok"]


def test_a_migration_has_the_operations_of_one_block(tmp_path: Path) -> None:
    ledger = Versions(tmp_path / "data", TALLY_2, block_operations_max=10_000, call_operations_max=9_000)
    for start in range(0, 400, 50):
        ledger.run(*[adding(f"n{start + place}") for place in range(50)])
    ledger.decide_change("upgrade_contract", 2, ledger.height + 6)
    while ledger.status()[0] == "waiting":
        ledger.add()
    assert ledger.status() == ("void", "migration_failed")
    assert ledger.version.version == 1
    ledger.close()


def test_a_version_that_cannot_read_what_is_there_fails_its_calls_and_stops_no_node(tmp_path: Path) -> None:
    hasty = tally(
        "tally_2_hasty", SECOND.replace("@migration\n    def begin", "def begin").replace(", migration", "")
    )
    ledger = Versions(tmp_path / "data", hasty)
    ledger.decide_change("upgrade_contract", 2, 6)
    ledger.grow(6)
    assert ledger.version.version == 2
    assert ledger.add("b") == ["ok"]
    assert ledger.add("a") == ["contract_fault"]
    with pytest.raises(RejectedTransaction, match="WrongType"):
        ledger.count("a")
    ledger.close()


def test_a_deactivated_contract_takes_no_calls_and_answers_queries(ledger: Versions) -> None:
    ledger.add()
    ledger.decide_change("deactivate_contract", 1, 6)
    while ledger.version.active:
        ledger.add()
    count = ledger.count()
    assert ledger.add() == ["unknown_contract"]
    assert ledger.count() == count
    ledger.decide_change("activate_contract", 2, ledger.height + 5, number=2)
    while not ledger.version.active:
        ledger.run()
    assert ledger.status(2) == ("effective", "")
    assert ledger.add() == ["ok"]
    assert ledger.count() == count + 2


def test_a_change_that_leaves_a_used_contract_inactive_is_void_by_that_name(ledger: Versions) -> None:
    """It was `migration_failed`, though no migration was tried."""
    ledger.decide_change("deactivate_contract", 1, 6, contract="settlement")
    ledger.grow(6)
    assert ledger.status() == ("void", "use_not_active")
    ledger.decide_change("deactivate_contract", 1, ledger.height + 5, number=2, contract="claims")
    ledger.grow(ledger.height + 3)
    assert ledger.status(2) == ("effective", "")
    ledger.decide_change("deactivate_contract", 1, ledger.height + 5, number=3, contract="settlement")
    ledger.grow(ledger.height + 3)
    assert ledger.status(3) == ("effective", "")
    ledger.decide_change("activate_contract", 1, ledger.height + 5, number=4, contract="claims")
    ledger.grow(ledger.height + 3)
    assert ledger.status(4) == ("void", "use_not_active")
    view = ledger.executor.queries.answer(ledger.store.snapshot(), "governance", "proposal", {"proposal": 4})
    assert "claims uses Settlement.transfer" in [step["what"] for step in view["history"]]


def test_the_commands_know_what_a_change_of_a_contract_would_leave_without(ledger: Versions) -> None:
    shown = describe(ledger.engine, Lifecycle.read_versions(Overlay(ledger.executor.view)))
    assert stands_against(shown, "deactivate_contract", "settlement") == "claims uses settlement"
    assert stands_against(shown, "deactivate_contract", "claims") == ""
    assert stands_against(shown, "activate_contract", "claims") == ""
    without = [msgspec.structs.replace(item, active=item.name not in ("claims", "settlement")) for item in shown]
    assert stands_against(without, "activate_contract", "claims") == "claims uses settlement, which is not active"
    assert stands_against(without, "deactivate_contract", "settlement") == ""


def test_a_code_that_contracts_share_is_told_in_the_words_of_the_one_that_was_called(ledger: Versions) -> None:
    """Who may not vote on a proposal was told who lifts brakes; whose proposal lasts too long, of requests."""
    shown = describe(ledger.engine, Lifecycle.read_versions(Overlay(ledger.executor.view)))
    for called, code, words in (
        ("governance", "not_a_voter", "proposes and votes"),
        ("brake", "not_a_voter", "brake of others"),
        ("governance", "expiry_out_of_range", "proposal expires within 90 days"),
        ("settlement", "expiry_out_of_range", "hold expires"),
        ("approvals", "expiry_out_of_range", "request expires"),
        # Not its own: claims pays by settlement.
        ("claims", "expiry_out_of_range", "hold expires"),
        ("claims", "vote_unchanged", "voted so already"),
    ):
        assert words in meaning(shown, called, code)
    assert meaning(shown, "claims", "nobody_has_it") == ""


def test_the_next_block_tells_of_it(ledger: Versions) -> None:
    ledger.decide_change("upgrade_contract", 2, 8)
    while ledger.version.version == 1:
        ledger.add()
    assert ledger.executor.next_due_ms() is not None
    [receipt] = ledger.settle()
    [told] = receipt.calls[0].events
    assert (told.name, told.data["status"]) == ("Moved", "effective")


@pytest.mark.parametrize(
    ("kind", "version", "code"),
    [
        ("activate_contract", 1, "contract_active"),
        ("upgrade_contract", 3, "version_not_next"),
        ("upgrade_contract", 1, "version_not_next"),
        ("deactivate_contract", 2, "version_not_next"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_proposed(
    ledger: Versions, kind: str, version: int, code: str
) -> None:
    assert ledger.propose(kind, version, 9) == [code]


def test_heights_that_are_over_and_contracts_that_the_node_reads_are_refused(ledger: Versions) -> None:
    assert ledger.propose("upgrade_contract", 2, ledger.height + 2) == ["height_passed"]
    args = {"kind": "deactivate_contract", "contract": "membership", "version": 1, "source": bytes(32)}
    args |= {"at_height": 99, "expires_at_ms": ledger.now_ms + HOUR_MS}
    assert ledger.run(("bank-a", Call("governance", "propose_contract", args))) == ["core_contract"]


def test_nobody_but_governance_changes_a_version(ledger: Versions) -> None:
    args = {"contract": "tally", "version": 2, "source": b"", "active": True}
    assert ledger.run(("bank-a", Call("lifecycle", "switch", args))) == ["not_authorized"]


@pytest.mark.parametrize("others", [(), (OTHER_2,)], ids=["not here", "other bytes"])
def test_who_lacks_the_version_neither_builds_nor_votes_for_the_block_that_makes_it_active(
    ledger: Versions, tmp_path: Path, others: tuple[type[Contract], ...]
) -> None:
    behind = Versions(tmp_path / "behind", *others)
    ledger.decide_change("upgrade_contract", 2, 8)
    ledger.grow(6)
    behind.catch_up(ledger)
    last = ledger.block(adding())
    assert behind.build(allow_empty=True) is None
    with pytest.raises(InvalidBlock, match="tally 2"):
        behind.executor.check(last.proposal, decoded(last.body))
    ledger.decide(last)
    if not others:
        with pytest.raises(InvalidBlock) as refused:
            behind.executor.check(last.proposal, decoded(last.body), standing=BlockStanding.DECIDED)
        assert refused.value.code == "contract_not_here"
    else:
        # Its bytes do the same: it follows the network, and votes for nothing.
        ledger.add()
        behind.catch_up(ledger)
        assert behind.executor.lacking == ("tally 2 (other bytes here)",)
        assert behind.build(allow_empty=True) is None
        again = ledger.block(adding())
        for standing in (BlockStanding.PROPOSED, BlockStanding.PREPARED):
            with pytest.raises(InvalidBlock) as refused:
                behind.executor.check(again.proposal, decoded(again.body), standing=standing)
            assert refused.value.code == "contracts_differ"
        # Nor for one that was made with its own bytes: the ledger names others.
        header = msgspec.structs.replace(again.header, contracts_hash=behind.executor.contracts_hash)
        own = msgspec.structs.replace(again.proposal, header=header)
        with pytest.raises(InvalidBlock) as refused:
            behind.executor.check(own, decoded(again.body))
        assert refused.value.code == "contracts_differ"
    behind.close()


def test_a_node_that_stands_on_a_version_it_does_not_have_executes_nothing(
    ledger: Versions, tmp_path: Path
) -> None:
    ledger.decide_change("upgrade_contract", 2, 8)
    ledger.grow(8)
    old = Executor(ledger.network, Engine((*CONTRACTS, TALLY_1)), Ledger.registry)
    old.open(ledger.store.snapshot())
    assert old.lacking == ("tally 2 (not here)",)
    block = ledger.block(adding())
    with pytest.raises(InvalidBlock) as refused:
        old.check(block.proposal, decoded(block.body), standing=BlockStanding.DECIDED)
    assert refused.value.code == "contract_not_here"
    with pytest.raises(NotFound):
        old.queries.answer(ledger.store.snapshot(), "tally", "count", {"name": "a"})


def test_a_definition_names_what_a_network_begins_with(tmp_path: Path) -> None:
    def founded(version: int) -> Executor:
        named = {"founding": [{"contract": "tally", "version": version}]}
        config = msgspec.structs.replace(network(), contracts={**network().contracts, "lifecycle": named})
        executor = Executor(config, Engine(CONTRACTS, (TALLY_1, TALLY_2)), Ledger.registry)
        executor.genesis()
        return executor

    founded(1)
    founded(2)
    with pytest.raises(ConfigError, match="no tally 3"):
        founded(3)


def test_a_replay_and_a_restart_execute_each_block_by_the_version_of_its_height(
    ledger: Versions, tmp_path: Path
) -> None:
    ledger.decide_change("upgrade_contract", 2, 8)
    ledger.grow(12)
    replayed = Versions(tmp_path / "replayed", TALLY_2)
    replayed.catch_up(ledger)
    assert replayed.executor.head == ledger.executor.head
    for height in range(1, 13):
        assert replayed.count(at=height) == ledger.count(at=height)
    replayed.close()
    again = Versions(tmp_path / "replayed", TALLY_2)
    assert again.executor.contracts_hash == ledger.executor.contracts_hash
    block = ledger.block(adding())
    assert again.executor.check(block.proposal, decoded(block.body)).digest == block.digest
    again.close()


def test_a_recovery_block_changes_no_version_and_the_block_after_it_does(ledger: Versions) -> None:
    """Who drafted it left the change to the next block, and whoever was to follow made it at once: nobody could."""
    ledger.decide_change("upgrade_contract", 2, 8)
    ledger.grow(6)
    head = ledger.executor.head
    unnamed = Recovery(7, b"", b"", head.validators[:2], "a fire", bytes(32))
    drafted = ledger.executor.recover(unnamed, ledger.now_ms + 1_000)
    recovery = msgspec.structs.replace(unnamed, digest=drafted.digest)
    trusted = msgspec.structs.replace(ledger.network, recoveries=Recoveries((recovery,)))
    follower = Executor(trusted, ledger.engine, ledger.registry)
    follower.open(ledger.store.snapshot())
    assert follower.check(drafted.proposal, (), standing=BlockStanding.DECIDED).header == drafted.header
    ledger.decide(drafted)
    assert (ledger.height, ledger.version.version) == (7, 1)
    ledger.now_ms += 2_000
    ledger.decide(ledger.block())
    assert (ledger.height, ledger.version.version) == (8, 2)
