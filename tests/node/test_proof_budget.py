"""What proofs may cost: by client, at a time, and with an answer that says when to come again."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.api.failures import failure_headers, status_of
from node.errors import Unavailable
from node.runtime import proof_budget, proving
from node.runtime.clock import Clock
from node.runtime.proof_budget import EVERY, ProofBudget
from node.runtime.proving import Proving
from tests.node.evidence_world import ProvableLedger
from tests.node.ledger_world import ENGINE


def wait_of(budget: ProofBudget, client: str, now_ms: int) -> int:
    """How long `client` is told to wait; 0: it may ask."""
    try:
        budget.require(client, now_ms)
    except Unavailable as error:
        refused = error
    else:
        return 0
    assert (refused.code, status_of(refused)) == ("proofs_spent", 429)
    retry_after_ms = refused.details["retry_after_ms"]
    assert isinstance(retry_after_ms, int)
    assert failure_headers(refused) == {"retry-after": str(-(-retry_after_ms // 1000))}
    return retry_after_ms


def test_who_has_spent_its_budget_waits_as_long_as_it_is_told_and_nobody_else_does() -> None:
    budget = ProofBudget(1_000)
    budget.charge("a", 999, 0)
    assert wait_of(budget, "a", 0) == 0
    budget.charge("a", 5_001, 0)
    wait_ms = wait_of(budget, "a", 0)
    assert wait_ms == 5_001 * EVERY
    assert wait_of(budget, "b", 0) == 0
    assert wait_of(budget, "a", wait_ms - EVERY) > 0
    assert wait_of(budget, "a", wait_ms) == 0
    # Whoever rests for long has no more than one who never came.
    budget.charge("a", 1_000, 10**9)
    assert wait_of(budget, "a", 10**9) > 0


def test_a_client_causes_no_more_work_than_its_share_however_it_asks() -> None:
    budget, done_ms, now_ms = ProofBudget(1_000), 0, 0
    while now_ms < 100_000:
        wait_ms = wait_of(budget, "a", now_ms)
        if wait_ms:
            now_ms += wait_ms
            continue
        now_ms += 700
        done_ms += 700
        budget.charge("a", 700, now_ms)
    assert done_ms <= 1_000 + now_ms // EVERY + 700


def test_what_is_remembered_of_clients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof_budget, "CLIENTS_MAX", 3)
    budget = ProofBudget(10)
    for client in "abcd":
        budget.charge(client, 100, 0)
    assert [wait_of(budget, client, 0) > 0 for client in "abcd"] == [False, True, True, True]


class Ticking(Clock):
    """A clock on which every look costs a second."""

    def __init__(self) -> None:
        self.ms = 0

    def now_ms(self) -> int:
        self.ms += 1_000
        return self.ms


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[ProvableLedger]:
    opened = ProvableLedger(tmp_path / "data")
    opened.open_accounts("A", funds=5)
    opened.settle(opened.transaction("bank-a"))
    opened.settle(opened.transaction("bank-a"))
    yield opened
    opened.close()


def proofs_of(ledger: ProvableLedger, clock: Clock) -> Proving:
    return Proving(ledger.network, ENGINE, ledger.store, ledger.between_blocks, clock)


async def test_proofs_of_past_heights_are_charged_to_whoever_asks(
    ledger: ProvableLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.runtime.proving.asyncio.sleep", no_pause)
    made = proofs_of(ledger, Ticking())
    made._budget = ProofBudget(10_000)
    greedy, modest = made.for_client("10.0.0.1"), made.for_client("10.0.0.2")
    answered, refused = 0, None
    while refused is None and answered < 50:
        try:
            await greedy.state(b"key", 1, None)
            answered += 1
        except Unavailable as error:
            refused = error
    assert refused is not None
    assert refused.code == "proofs_spent"
    assert 0 < answered < 20
    assert "10.0.0.1" in refused.message
    # Proofs of the head, transactions and statements are made of the same time.
    with pytest.raises(Unavailable, match="proofs_spent"):
        await greedy.state(b"key", None, None)
    with pytest.raises(Unavailable, match="proofs_spent"):
        await greedy.transaction(bytes(32), None)
    assert await modest.state(b"key", 1, None)


async def no_pause(delay_s: float) -> None:
    """The pauses are those of a clock on which everything takes seconds."""


async def test_one_client_does_not_take_all_places_and_all_do_not_take_more_than_there_are(
    ledger: ProvableLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proving, "ASKING_MAX", 3)
    monkeypatch.setattr(proving, "CLIENT_ASKING_MAX", 2)
    made = proofs_of(ledger, Clock())
    clients = {name: made.for_client(name) for name in "abc"}
    # Nobody is let go on until all have asked.
    async with asyncio.timeout(10), made._making, made._making:
        first = [asyncio.create_task(clients[name].state(b"key", None, None)) for name in "aa"]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="node_busy"):
            await clients["a"].state(b"key", None, None)
        first.append(asyncio.create_task(clients["b"].state(b"key", None, None)))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="node_busy") as busy:
            await clients["c"].state(b"key", None, None)
        assert failure_headers(busy.value) == {"retry-after": "1"}
    await asyncio.gather(*first)
    assert await clients["a"].state(b"key", None, None)
    assert made._asking.total() == 0
