"""A chain over which the members changed themselves by votes proves itself to whoever has the network definition.

Real contracts, executor, store, certificates and packs: a member was removed, and another has changed its key.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hansa_verify import verify

from consensus.messages import Certificate, VoteKind, vote_bytes
from contracts.governance import Governance
from node.client import sign
from node.config import PrincipalConfig
from node.keys import SigningKey
from node.ledger import Call, Transaction, members_hash
from node.signatures import verify as verify_signature
from node.snapshot import SnapshotFolder, make_snapshot, verify_snapshot
from node.state import ExecutedBlock, Overlay
from tests.node.evidence_world import SIGNING, VOTING, ProvableLedger, provable_network
from tests.node.ledger_world import BANKS, transfer

NEXT = SigningKey(b"the next voting key of bank-b".ljust(32, b"."))
ROOTS = {
    bank: SIGNING if bank == "bank-a" else SigningKey(f"root {bank}".encode().ljust(32, b".")) for bank in BANKS
}
KEYS = {key.public: key for key in (*VOTING.values(), NEXT)}


class GovernedLedger(ProvableLedger):
    """Four banks, of which three may go on; nodes sign with voting keys, whichever the ledger names."""

    def transaction(self, sender: str, *calls: Call, **options: Any) -> Transaction:
        """A transaction of a bank, or of its node with the key `by`."""
        by = options.pop("by", None) or ROOTS[sender]
        body = super().transaction(sender, *calls, **options).body
        return sign(body, [by])

    def certificate(self, executed: ExecutedBlock) -> Certificate:
        """The votes of all who decide this height, each with the key that the list names."""
        message = vote_bytes(self.network.network_id, VoteKind.COMMIT, 0, executed.height, executed.digest)
        votes = tuple(
            (index, KEYS[item.voting_key].sign(message)) for index, item in enumerate(self.store.head.members)
        )
        return Certificate(VoteKind.COMMIT, 0, executed.height, executed.digest, votes)

    def say(self, sender: str, method: str, by: SigningKey | None = None, **args: Any) -> Transaction:
        """A transaction to the governance contract."""
        return self.transaction(sender, Call("governance", method, args), by=by)

    def agree(self, *transactions: Transaction) -> None:
        """A block of them, all of which succeed."""
        receipts = self.settle(*transactions)
        assert {call.code for receipt in receipts for call in receipt.calls} == {"ok"}, receipts

    def end(self) -> int:
        """A time by which a proposal ends."""
        return self.now_ms + 3_600_000


def opened(path: Path) -> GovernedLedger:
    config = provable_network()
    config = msgspec.structs.replace(
        config,
        principals=tuple(PrincipalConfig(bank, (ROOTS[bank].public,), 1) for bank in BANKS),
        contracts={**config.contracts, "governance": {"validators_min": 3}},
    )
    return GovernedLedger(path, config)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[GovernedLedger]:
    made = opened(tmp_path / "data")
    made.open_accounts("ACC-1", "ACC-2", funds=1_000)
    made.agree(
        made.say("bank-a", "propose", kind="remove_member", member="bank-d", expires_at_ms=made.end()),
        made.say("bank-b", "vote", proposal=1, yes=True),
        made.say("bank-c", "vote", proposal=1, yes=True),
    )
    assert made.store.head.members.n == 4
    made.agree(*[made.say(f"{bank}/node", "ready", by=VOTING[bank], proposal=1) for bank in ("bank-a", "bank-b")])
    made.agree(
        made.say(
            "bank-b",
            "propose",
            kind="rotate_voting_key",
            member="bank-b",
            expires_at_ms=made.end(),
            voting_key=NEXT.public,
        ),
        made.say("bank-c", "vote", proposal=2, yes=True),
    )
    made.agree(
        made.say("bank-c/node", "ready", by=VOTING["bank-c"], proposal=2),
        made.say("bank-b/node", "ready", by=NEXT, proposal=2),
    )
    yield made
    made.close()


def test_headers_name_the_lists_that_the_votes_made(ledger: GovernedLedger) -> None:
    lists = [ledger.store.head_at(height).members for height in range(6)]
    assert [[item.id for item in members] for members in lists] == [list(BANKS)] * 3 + [list(BANKS[:3])] * 3
    assert [members.key(1) for members in lists] == [VOTING["bank-b"].public] * 5 + [NEXT.public]
    for height in range(1, 6):
        header = ledger.store.block(height).body.header
        assert header.members_hash == members_hash(lists[height])
    assert ledger.store.snapshot().member_changes() == (3, 5)


def test_a_replica_that_executes_the_chain_comes_to_the_same_lists(ledger: GovernedLedger, tmp_path: Path) -> None:
    other = opened(tmp_path / "other")
    other.follow_store(ledger)
    assert other.store.head.members == ledger.store.head.members
    assert other.store.head.digest == ledger.store.head.digest
    other.close()


async def test_the_verifier_follows_the_changes_from_the_genesis_file(ledger: GovernedLedger) -> None:
    paid = ledger.transaction("bank-a", transfer("ACC-1", "ACC-2", 10, 1))
    ledger.agree(paid)
    ledger.agree(ledger.transaction("bank-a", transfer("ACC-1", "ACC-2", 10, 2)))
    proof = verify(await ledger.proving.transaction(paid.tx_id, None), ledger.genesis)
    assert proof.blocks[0].signers == ["bank-a", "bank-b"]
    assert "a quorum of its 3 members" in proof.proven[1]


def test_a_snapshot_proves_itself_over_the_changes(ledger: GovernedLedger, tmp_path: Path) -> None:
    config = ledger.network
    steps = make_snapshot(
        ledger.store.snapshot(), config.network_id, config.genesis_hash, 8, tmp_path / "snapshots"
    )
    folder: SnapshotFolder | None = None
    while folder is None:
        try:
            next(steps)
        except StopIteration as end:
            folder = end.value
    verify_snapshot(folder, config.network_id, config.genesis_hash, config.validators, 8, verify_signature)


def test_the_old_key_signs_nothing_for_its_node_any_more(ledger: GovernedLedger) -> None:
    proposal = ledger.say("bank-a", "propose", kind="suspend_member", member="bank-c", expires_at_ms=ledger.end())
    [receipt] = ledger.settle(proposal)
    assert receipt.calls[0].code == "too_few_validators"
    stale = ledger.say("bank-b/node", "ready", by=VOTING["bank-b"], proposal=2)
    assert ledger.executor.obstacle(stale, ledger.now_ms) == "policy_unsatisfied"
    fresh = ledger.say("bank-b/node", "ready", by=NEXT, proposal=2)
    assert ledger.executor.obstacle(fresh, ledger.now_ms) is None
    removed = ledger.say("bank-d/node", "ready", by=VOTING["bank-d"], proposal=2)
    assert ledger.executor.obstacle(removed, ledger.now_ms) == "unknown_principal"
    found = Governance.proposals.read_from(Overlay(ledger.store.snapshot()), 2)
    assert found is not None
    assert found.status == "effective"
