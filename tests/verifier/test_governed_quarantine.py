"""A primary may settle a scheduled call unexecuted after two failed views: nothing that must end hangs on one."""

from pathlib import Path
from typing import Any

from contracts.governance import Governance
from contracts.membership import Membership
from contracts.waking import MINUTE_MS
from node.executor.run import SCHEDULE
from node.ledger import Call, sha256
from node.state import Overlay
from tests.node.evidence_world import VOTING
from tests.verifier.test_governed_chain import GovernedLedger, opened


def quarantine_what_is_due(ledger: GovernedLedger) -> None:
    """A block in which all scheduled calls are settled unexecuted; every honest backup takes it."""
    keys = [key for key, _ in ledger.store.snapshot().scan(SCHEDULE, SCHEDULE + b"\xff")]
    suspects = frozenset(sha256(b"hansa/scheduled" + key) for key in keys)
    executed = ledger.build(allow_empty=True, allow_quarantine=True, suspects=suspects)
    assert executed is not None
    assert executed.proposal.quarantined == tuple(range(len(keys)))
    assert ledger.executor.check(executed.proposal, [], allow_quarantine=True).digest == executed.digest
    ledger.decide(executed)


def test_an_expiry_that_was_settled_unexecuted_ends_the_proposal_all_the_same(tmp_path: Path) -> None:
    """It waited for ever, took its proposer's room, and every node went on saying that it was ready."""
    ledger = opened(tmp_path / "data")
    ledger.open_accounts("ACC-1", "ACC-2", funds=1_000)
    end_ms = ledger.now_ms + MINUTE_MS
    ledger.agree(
        ledger.say("bank-a", "propose", kind="remove_member", member="bank-d", expires_at_ms=end_ms),
        ledger.say("bank-b", "vote", proposal=1, yes=True),
        ledger.say("bank-c", "vote", proposal=1, yes=True),
    )
    ledger.now_ms = end_ms + MINUTE_MS
    quarantine_what_is_due(ledger)
    state = Overlay(ledger.store.snapshot())
    # No node says anything of it any more.
    assert Governance.read_waiting(state, ledger.store.head.time_ms) == ()
    ledger.settle(ledger.say("bank-b", "vote", proposal=1, yes=False))
    found = Governance.proposals.read_from(Overlay(ledger.store.snapshot()), 1)
    ledger.close()
    assert found is not None
    assert found.status == "expired"


def test_an_end_of_an_overlap_that_was_settled_unexecuted_ends_it_all_the_same(tmp_path: Path) -> None:
    """Whoever is invited would be told that a key which may be stolen still proves the member's node."""
    ledger = opened(tmp_path / "data")
    ledger.open_accounts("ACC-1", "ACC-2", funds=1_000)
    overlap_ms = 10 * MINUTE_MS
    change: dict[str, Any] = {
        "kind": "rotate_tls_key",
        "member": "bank-b",
        "tls_key": b"n" * 32,
        "overlap_ms": overlap_ms,
    }
    ledger.agree(
        ledger.say("bank-b", "propose", expires_at_ms=ledger.now_ms + MINUTE_MS, **change),
        ledger.say("bank-a", "vote", proposal=1, yes=True),
        ledger.say("bank-c", "vote", proposal=1, yes=True),
    )
    ledger.agree(ledger.say("bank-b/node", "ready", by=VOTING["bank-b"], proposal=1))
    until_ms = ledger.store.head.time_ms + overlap_ms
    former = ledger.network.member("bank-b").tls_key
    assert overlap_of(ledger) == (former, until_ms)
    ledger.now_ms = until_ms
    quarantine_what_is_due(ledger)
    assert ledger.store.head.time_ms >= until_ms
    record = dict(Membership.read_members(Overlay(ledger.store.snapshot())))["bank-b"]
    found = overlap_of(ledger)
    ledger.close()
    # Nobody has tidied up, and nothing hangs on that.
    assert record.former_tls_key == former
    assert found == (b"", 0)


def overlap_of(ledger: GovernedLedger) -> tuple[bytes, int]:
    """Which former TLS key of bank-b serves until when, as the ledger tells whoever asks."""
    view, asked = ledger.store.snapshot(), {"member": "bank-b"}
    row = ledger.executor.queries.answer(view, "membership", "member", asked)
    return row["former_tls_key"], row["former_tls_until_ms"]


def test_a_node_says_that_it_is_ready_and_makes_no_other_call(tmp_path: Path) -> None:
    """The voting key lies open at a machine on the network: no money is to hang on it."""
    ledger = opened(tmp_path / "data")
    opening = Call("settlement", "open_account", {"account": "HOT", "owner": "bank-b", "currency": "USD"})
    ready = Call("governance", "ready", {"proposal": 1})
    alone = ledger.transaction("bank-b/node", opening, by=VOTING["bank-b"])
    beside = ledger.transaction("bank-b/node", ready, opening, by=VOTING["bank-b"])
    good = ledger.transaction("bank-b/node", ready, by=VOTING["bank-b"])
    found = [ledger.executor.obstacle(item, ledger.now_ms) for item in (alone, beside, good)]
    ledger.close()
    assert found == ["not_for_nodes", "not_for_nodes", None]
