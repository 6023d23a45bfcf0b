"""Proofs that a payment was not executed and never will be: made only where a bank may pay again upon them."""

from pathlib import Path

import pytest

from contracts.state_keys import encode_key
from node.errors import NotFound, RejectedTransaction
from node.ledger import Ending, Transaction
from tests.node.evidence_world import ProvableLedger
from tests.node.ledger_world import transfer
from tests.node.test_evidence import RETENTION_MS, accepted, busy, code, ledger, own

__all__ = ["busy", "ledger", "own"]


def late(ledger: ProvableLedger) -> Transaction:
    """A transaction that expires in ten seconds and is never sent."""
    return ledger.transaction("bank-a", request="order-1", expires_at_ms=ledger.now_ms + 10_000)


async def test_non_execution_is_proven_from_the_first_block_after_expiry_on(ledger: ProvableLedger) -> None:
    unsent = late(ledger)
    with pytest.raises(RejectedTransaction) as error:
        await ledger.proving.not_executed(unsent.data, None, None)
    assert (code(error), error.value.details["possible_after_ms"]) == ("not_expired_yet", unsent.body.expires_at_ms)
    ledger.now_ms += 9_000
    ledger.settle(ledger.transaction("bank-a"))
    assert ledger.store.head.time_ms == unsent.body.expires_at_ms
    with pytest.raises(RejectedTransaction, match="not_expired_yet"):
        await ledger.proving.not_executed(unsent.data, None, None)
    ledger.settle(ledger.transaction("bank-a"))
    for data in (unsent.data, unsent.body_bytes):
        pack = await ledger.proving.not_executed(data, None, None)
        accepted(ledger, pack, f"not_executed:{unsent.tx_id.hex()}")
    with pytest.raises(RejectedTransaction, match="wrong_proof_height"):
        await ledger.proving.not_executed(unsent.data, 1, None)


async def test_after_the_retention_a_kept_height_of_the_window_is_found(ledger: ProvableLedger) -> None:
    unsent = late(ledger)
    for step_ms in (5_000, 20_000, 20_000, 30_000, 20_000):
        ledger.now_ms += step_ms - 1_000
        ledger.settle(ledger.transaction("bank-a"))
    last_ms = unsent.body.expires_at_ms + RETENTION_MS
    assert ledger.store.head_at(3).time_ms < last_ms < ledger.store.head_at(4).time_ms + 10_000
    pack = await ledger.proving.not_executed(unsent.data, None, None)
    [block] = accepted(ledger, pack, f"not_executed:{unsent.tx_id.hex()}").blocks
    later = ledger.store.head_at(block.height + 1)
    assert block.time_ms <= last_ms < later.time_ms
    with pytest.raises(RejectedTransaction, match="wrong_proof_height"):
        await ledger.proving.not_executed(unsent.data, later.height, None)


async def test_without_a_block_in_the_window_it_is_too_late(ledger: ProvableLedger) -> None:
    ledger.settle(ledger.transaction("bank-a"))
    unsent = late(ledger)
    ledger.now_ms += 10_000 + RETENTION_MS
    ledger.settle(ledger.transaction("bank-a"))
    with pytest.raises(NotFound) as error:
        await ledger.proving.not_executed(unsent.data, None, None)
    assert code(error) == "retention_over"
    assert error.value.details["possible_until_ms"] == unsent.body.expires_at_ms + RETENTION_MS


@pytest.mark.parametrize("forgotten", ["nothing", "by the index", "by the state"])
async def test_what_was_executed_is_never_proven_not_executed(tmp_path: Path, forgotten: str) -> None:
    ledger = ProvableLedger(tmp_path / "data", history_blocks=1)
    sent = late(ledger)
    ledger.settle(sent)
    ledger.now_ms += 20_000 + (RETENTION_MS if forgotten == "by the state" else 0)
    ledger.settle(ledger.transaction("bank-a"))
    if forgotten == "by the index":
        ledger.store._database.write([(b"x" + sent.tx_id, None)])
    remembered = ledger.store.snapshot().get(encode_key(("ledger", "request", "bank-a", "order-1")))
    assert (remembered is None) == (forgotten == "by the state")
    with pytest.raises(RejectedTransaction) as error:
        await ledger.proving.not_executed(sent.data, None, None)
    assert (code(error), error.value.details["height"]) == ("transaction_executed", 1)
    assert ("its receipt is not here" in error.value.message) == (forgotten == "by the index")
    ledger.close()


async def test_executed_is_not_paid_so_the_refusal_names_the_outcomes(ledger: ProvableLedger) -> None:
    ledger.open_accounts("A", "B", funds=1_000)
    height = ledger.store.head.height
    failed = ledger.transaction("bank-a", transfer("A", "NOBODY", 5, 1))
    mixed = ledger.transaction(
        "bank-a", *(transfer("A", name, 5, 2 + at) for at, name in enumerate(("NONE", "B", "NOBODY"))), mode="each"
    )
    ledger.settle(failed)
    ledger.settle(mixed)
    for sent, at, told, calls, calls_ok in (
        (failed, height + 1, "account_not_found", 1, 0),
        (mixed, height + 2, "account_not_found (2 calls), ok", 3, 1),
    ):
        with pytest.raises(RejectedTransaction) as error:
            await ledger.proving.not_executed(sent.data, None, None)
        assert error.value.message.endswith(f" was executed in block {at}; its calls came to: {told}")
        assert error.value.details == {"height": at, "calls": calls, "calls_ok": calls_ok}


async def test_another_transaction_under_the_same_request_id_proves_it_too(ledger: ProvableLedger) -> None:
    unsent = late(ledger)
    ledger.settle(ledger.transaction("bank-a", request="order-1", expires_at_ms=ledger.now_ms + 15_000))
    ledger.now_ms += 10_000
    ledger.settle(ledger.transaction("bank-a"))
    pack = await ledger.proving.not_executed(unsent.data, None, None)
    accepted(ledger, pack, f"not_executed:{unsent.tx_id.hex()}")


async def test_an_expired_transaction_is_kept_by_the_node_that_took_it(ledger: ProvableLedger) -> None:
    unsent, large = late(ledger), ledger.transaction("bank-a", *[ledger.opening() for _ in range(400)])
    ledger.store.put_pending([(item.tx_id, item.data) for item in (unsent, large)])
    ledger.now_ms += 10_000
    ledger.settle(ledger.transaction("bank-a"))
    ledger.store.end_pending({item.tx_id: Ending("expired", "expired", 1) for item in (unsent, large)})
    assert not ledger.store.is_pending(unsent.tx_id)
    pack = await ledger.proving.not_executed_by_id(unsent.tx_id, None, None)
    accepted(ledger, pack, f"not_executed:{unsent.tx_id.hex()}")
    for tx_id in (large.tx_id, bytes(32)):
        with pytest.raises(NotFound) as error:
            await ledger.proving.not_executed_by_id(tx_id, None, None)
        assert code(error) == "transaction_not_kept"


@pytest.mark.parametrize("data", [b"", b"\x92\x00", b"\x96", b"nonsense", b"\x92" + bytes(100)])
async def test_bytes_that_are_no_transaction_are_refused(ledger: ProvableLedger, data: bytes) -> None:
    with pytest.raises(RejectedTransaction) as error:
        await ledger.proving.not_executed(data, None, None)
    assert code(error) == "malformed_transaction"


async def test_a_transaction_of_another_network_is_refused(ledger: ProvableLedger) -> None:
    foreign = ledger.transaction("bank-a", network_id="other-000000000000")
    with pytest.raises(RejectedTransaction, match="wrong_network"):
        await ledger.proving.not_executed(foreign.data, None, None)
