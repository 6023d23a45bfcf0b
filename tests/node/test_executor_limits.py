"""What bounds a block: calls, operations, memory, due calls; and how a suspect transaction is settled."""

import tracemalloc
from pathlib import Path

import msgspec
import pytest

from node.errors import RejectedTransaction
from node.executor import admission as admission_module
from node.ledger import Call, content_root
from tests.node.ledger_world import Ledger, decoded, network, transfer, uetr, with_header
from tests.node.test_executor import codes, ledger, refusal

__all__ = ["ledger"]


# --- limits ----------------------------------------------------------------------------------------------


def test_blocks_keep_their_limits_and_checkers_insist_on_them(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, network(block_calls_max=5, block_transactions_max=3))
    two_calls = [ledger.transaction("bank-a", *[ledger.opening() for _ in range(2)]) for _ in range(4)]
    built = ledger.build(*two_calls)
    assert built is not None
    assert [len(built.tx_ids), built.calls] == [2, 4]
    third = two_calls[2]
    forged = with_header(
        msgspec.structs.replace(built.proposal, wire_ids=(*built.proposal.wire_ids, third.wire_id)),
        tx_root=ledger.tx_root(*two_calls[:3]),
    )
    assert refusal(ledger, forged, two_calls[:3]).code == "block_too_large"
    singles = [ledger.transaction("bank-a") for _ in range(4)]
    assert len((ledger.build(*singles) or built).tx_ids) == 3
    many = with_header(
        msgspec.structs.replace(built.proposal, wire_ids=tuple(item.wire_id for item in singles)),
        tx_root=ledger.tx_root(*singles),
    )
    assert refusal(ledger, many, singles).code == "block_too_large"


def test_the_first_transaction_always_fits_and_then_nothing_more(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, network(block_calls_max=5))
    large = ledger.transaction("bank-a", *[ledger.opening() for _ in range(9)])
    built = ledger.build(large, ledger.transaction("bank-b"), halvings=3)
    assert built is not None
    assert built.proposal.wire_ids == (large.wire_id,)
    ledger.follow(built)


def test_failed_views_halve_what_is_built_and_not_what_is_accepted(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, network(block_calls_max=8))
    items = [ledger.transaction("bank-a") for _ in range(8)]
    sizes = []
    for halvings in range(5):
        built = ledger.build(*items, halvings=halvings)
        assert built is not None
        ledger.executor.check(built.proposal, decoded(built.body))
        sizes.append(len(built.tx_ids))
    assert sizes == [8, 4, 2, 1, 1]


def test_operations_bound_a_block_and_a_single_transaction(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, network(block_operations_max=10_000, call_operations_max=10_000))
    items = [ledger.transaction("bank-a", *[ledger.opening() for _ in range(20)]) for _ in range(12)]
    built = ledger.build(*items)
    assert built is not None
    assert 1 <= len(built.tx_ids) < 12
    assert built.operations <= 10_000
    longer = items[: len(built.tx_ids) + 1]
    wire_ids = tuple(item.wire_id for item in longer)
    forged = with_header(
        msgspec.structs.replace(built.proposal, wire_ids=wire_ids), tx_root=ledger.tx_root(*longer)
    )
    error = refusal(ledger, forged, longer)
    assert (error.code, "operations" in error.message) == ("block_too_large", True)
    ledger.follow(built)
    [huge] = ledger.settle(ledger.transaction("bank-a", *[ledger.opening() for _ in range(400)], mode="each"))
    found = codes(huge)
    assert found[0] == "ok"
    assert found[-1] == "limit_exceeded"


def test_a_block_ends_when_its_builder_has_had_enough_but_not_before_its_first(ledger: Ledger) -> None:
    items = [ledger.transaction("bank-a") for _ in range(4)]
    first, third = ledger.build(*items, enough=lambda: True), iter([False, False, False, True])
    assert first is not None
    assert first.tx_ids == (items[0].tx_id,)
    following = ledger.build(*items, enough=lambda: next(third))
    assert following is not None
    assert following.tx_ids == tuple(item.tx_id for item in items[:3])


def test_room_is_what_certainly_would_have_fitted(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, network(block_transactions_max=4, block_calls_max=100))
    roomy = ledger.build(ledger.transaction("bank-a"))
    full = ledger.build(*[ledger.transaction("bank-a") for _ in range(3)])
    assert roomy is not None
    assert full is not None
    assert ledger.executor.room(roomy)[0] == 99
    assert ledger.executor.room(full) == (0, 0)


# --- scheduled calls and quarantine ----------------------------------------------------------------------


def holds(ledger: Ledger, count: int, expires_in_ms: int) -> None:
    calls = [
        Call(
            "settlement",
            "hold",
            {
                "debtor": "A", "creditor": "B", "amount": 10, "uetr": uetr(100 + number),
                "expires_at_ms": ledger.now_ms + expires_in_ms,
            },
        )
        for number in range(count)
    ]  # fmt: skip
    [receipt] = ledger.settle(ledger.transaction("bank-a", *calls))
    assert set(codes(receipt)) == {"ok"}


def test_invented_senders_leave_nothing_in_memory_while_the_head_stands_still(ledger: Ledger) -> None:
    """Nobody needs a key to be judged where the pool is full, and a head may stand for hours."""

    def judged(names: range) -> None:
        for number in names:
            stranger = ledger.transaction(f"bank-a/n{number}", keys=[bytes(32)])
            with pytest.raises(RejectedTransaction, match="unknown_principal"):
                ledger.executor.admission(stranger, ledger.now_ms)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(admission_module, "SENDERS_MAX", 10)
        judged(range(100))
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        judged(range(100, 1_600))
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert after - before < 90_000, "fifteen hundred names leave sixty bytes each at most"


def test_due_calls_run_before_transactions_and_at_most_k_a_block(tmp_path: Path) -> None:
    config = network(scheduled_calls_max=2)
    ledger, backup = Ledger(tmp_path / "one", config), Ledger(tmp_path / "two", config)
    ledger.open_accounts("A", "B", funds=100)
    holds(ledger, 3, expires_in_ms=10_000)
    due_ms = ledger.executor.next_due_ms()
    assert due_ms == ledger.now_ms + 9_000
    assert ledger.build() is None, "not yet due"
    ledger.now_ms = due_ms
    executed = ledger.build(ledger.transaction("bank-a"))
    assert executed is not None
    assert (executed.scheduled, len(executed.tx_ids)) == (2, 3)
    assert ledger.executor.room(executed)[0] > 0
    ledger.decide(executed)
    last = ledger.build()
    assert last is not None, "a due call is a block's reason"
    assert last.scheduled == 1
    ledger.decide(last)
    assert ledger.executor.next_due_ms() is None
    backup.follow_store(ledger)
    assert backup.executor.head == ledger.executor.head
    place = ledger.store.locate(executed.tx_ids[0])
    assert place == (executed.height, 0)
    assert ledger.store.transaction(executed.tx_ids[0]) is None
    assert ledger.store.transaction(executed.tx_ids[2]) == executed.body.transactions[0]


def test_quarantine_settles_unexecuted_and_only_where_it_is_allowed(ledger: Ledger) -> None:
    ledger.open_accounts("A", "B", funds=100)
    holds(ledger, 1, expires_in_ms=2_000)
    ledger.now_ms += 10_000
    suspect = ledger.transaction("bank-a", transfer("A", "B", 5, 1), transfer("A", "B", 5, 2))
    fine = ledger.transaction("bank-a", transfer("A", "B", 7, 3))
    plain = ledger.build(fine, suspect, suspects=[suspect.wire_id])
    assert plain is not None
    assert not plain.body.quarantined, "suspicion alone is not enough"
    scheduled = plain.tx_ids[0]
    executed = ledger.build(fine, suspect, suspects=[suspect.wire_id, scheduled], allow_quarantine=True)
    assert executed is not None
    assert executed.body.quarantined == (0, 2)
    transactions = decoded(executed.body)
    refused = refusal(ledger, executed.proposal, transactions, allow_quarantine=False)
    assert refused.code == "quarantine_refused"
    for wrong in ((2, 0), (0, 2, 3), (0, 0, 2), (-1, 0, 2)):
        proposal = msgspec.structs.replace(executed.proposal, quarantined=wrong)
        assert refusal(ledger, proposal, transactions).code == "block_content_differs", "the header names them too"
        forged = with_header(proposal, tx_root=content_root(executed.body.transactions, wrong))
        assert refusal(ledger, forged, transactions).code == "quarantine_refused"
    ledger.follow(executed)
    receipts = [ledger.store.receipt(executed.height, position) for position in range(3)]
    assert [codes(receipt) for receipt in receipts] == [["quarantined"], ["ok"], ["quarantined"] * 2]
    assert ledger.balance("B") == 107
    assert ledger.executor.obstacle(suspect, ledger.now_ms) == "already_final"
