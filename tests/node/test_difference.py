"""What a node finds out about a block that it executes otherwise, from an account that proves itself."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from consensus.effects import BlockStanding
from contracts import CONTRACTS
from contracts.engine import Engine
from contracts.state_keys import encode_key
from node.errors import InvalidBlock, InvalidFrame
from node.executor import Claim, Difference
from node.ledger import Call, Transaction, sha256
from node.store import DivergenceRecord
from tests.node.ledger_world import Ledger, certificate, decoded
from tests.node.live_network import SOURCE, drifting


class Drifted(Ledger):
    """A ledger whose contract `drifting` has these globals."""

    def __init__(self, path: Path, bias: int = 0, limit: int = 100, source: str = SOURCE) -> None:
        self.engine = Engine((*CONTRACTS, drifting(bias, limit, source)))
        super().__init__(path)

    def add(self, name: str, amount: int, method: str = "add") -> Transaction:
        return self.transaction("bank-a", Call("drifting", method, {"name": name, "amount": amount}))


@pytest.fixture
def right(tmp_path: Path) -> Drifted:
    return Drifted(tmp_path / "right")


def compared(right: Drifted, wrong: Drifted, *transactions: Transaction, **changes: Any) -> Difference:
    """What the wrong node finds when it compares the right one's block; `changes` are lies in the account."""
    executed = right.build(*transactions)
    assert executed is not None
    right.decide(executed)
    account = right.store.snapshot().execution(executed.height)
    claim = Claim(account.receipts, None if account.writes is None else dict(account.writes))
    claim = msgspec.structs.replace(claim, **changes)
    with pytest.raises(InvalidBlock):
        wrong.executor.check(executed.proposal, decoded(executed.body), standing=BlockStanding.DECIDED)
    return wrong.executor.compare(executed.body, decoded(executed.body), claim)


def test_the_transaction_that_alone_wrote_the_key_is_named(right: Drifted, tmp_path: Path) -> None:
    wrong = Drifted(tmp_path / "wrong", bias=1)
    transactions = [right.add("even", 1), right.add("odd", 2), right.add("even", 3)]
    found = compared(right, wrong, *transactions)
    assert (found.position, found.tx_id, found.exact) == (1, transactions[1].tx_id, True)
    assert (found.contract, found.method) == ("drifting", "add")
    assert (found.key, found.keys) == (encode_key(("drifting", "counts", "odd")), 1)
    assert (found.ours, found.theirs) == (sha256(b"\x03"), sha256(b"\x02"))
    assert (found.our_code, found.their_code) == ("", "")


def test_of_several_writers_of_the_key_the_last_is_named_as_such(right: Drifted, tmp_path: Path) -> None:
    wrong = Drifted(tmp_path / "wrong", bias=1)
    found = compared(right, wrong, right.add("odd", 2), right.add("even", 1), right.add("odd", 3))
    assert (found.position, found.exact) == (2, False)


def test_a_differing_outcome_is_named_with_both_codes(right: Drifted, tmp_path: Path) -> None:
    wrong = Drifted(tmp_path / "wrong", limit=10)
    found = compared(right, wrong, right.add("a", 1, "add_some"), right.add("b", 20, "add_some"))
    assert (found.position, found.our_code, found.their_code, found.exact) == (1, "too_much", "ok", True)
    assert (found.method, found.ours, found.theirs) == ("add_some", None, sha256(b"\x14"))


def test_what_only_the_network_wrote_is_a_difference_too(right: Drifted, tmp_path: Path) -> None:
    wrong = Drifted(tmp_path / "wrong", limit=10)
    both = right.transaction(
        "bank-a",
        Call("drifting", "add", {"name": "a", "amount": 1}),
        Call("drifting", "add_some", {"name": "b", "amount": 20}),
        mode="each",
    )
    found = compared(right, wrong, both)
    assert (found.position, found.method, found.keys) == (0, "add_some", 1)


def test_without_the_values_the_receipts_still_name_the_transaction(right: Drifted, tmp_path: Path) -> None:
    wrong = Drifted(tmp_path / "wrong", limit=10)
    found = compared(right, wrong, right.add("a", 1, "add_some"), right.add("b", 20, "add_some"), writes=None)
    assert (found.position, found.key, found.keys) == (1, None, 0)
    wrong = Drifted(tmp_path / "biased", bias=1)
    wrong.follow_store(right)
    found = compared(right, wrong, right.add("odd", 1), writes=None)
    assert (found.position, found.tx_id, found.key) == (None, None, None)


@pytest.mark.parametrize(
    "lie",
    [
        {"receipts": ()},
        {"writes": {}},
        {"writes": {encode_key(("drifting", "counts", "odd")): b"\x05"}},
    ],
)
def test_an_account_without_the_certified_roots_proves_nothing(
    right: Drifted, tmp_path: Path, lie: dict[str, Any]
) -> None:
    wrong = Drifted(tmp_path / "wrong", bias=1)
    with pytest.raises(InvalidFrame) as raised:
        compared(right, wrong, right.add("odd", 2), **lie)
    assert raised.value.code == "bad_proof"
    # Nothing of it was kept: the node executes its next block as before.
    assert wrong.build(wrong.add("even", 1)) is not None


def test_a_block_of_other_code_is_good_only_when_it_is_prepared_or_decided(right: Drifted, tmp_path: Path) -> None:
    other = Drifted(tmp_path / "other", source=SOURCE + "\n# another release\n")
    executed = right.build(right.transaction("bank-a"))
    assert executed is not None
    for standing in (BlockStanding.PROPOSED, BlockStanding.VOTED):
        with pytest.raises(InvalidBlock) as raised:
            other.executor.check(executed.proposal, decoded(executed.body), standing=standing)
        assert raised.value.code == "contracts_differ"
    prepared = other.executor.check(executed.proposal, decoded(executed.body), standing=BlockStanding.PREPARED)
    assert prepared.digest == executed.digest
    checked = other.executor.check(executed.proposal, decoded(executed.body), standing=BlockStanding.DECIDED)
    assert checked.digest == executed.digest
    other.decide(checked)
    assert other.store.head.state_root == executed.header.state_root


def test_an_old_blocks_values_are_those_after_it(right: Drifted) -> None:
    for amount in (1, 2, 3):
        right.settle(right.add("even", amount))
    key = encode_key(("drifting", "counts", "even"))
    values = [dict(right.store.snapshot().execution(height).writes or ()).get(key) for height in (1, 2, 3)]
    assert values == [b"\x01", b"\x03", b"\x06"]


def test_values_that_are_no_longer_kept_are_left_out(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, history_blocks=2)
    for _ in range(5):
        ledger.settle(ledger.transaction("bank-a"))
    assert ledger.store.snapshot().execution(1).writes is None
    assert ledger.store.snapshot().execution(5).writes


def test_a_finding_is_kept_until_its_block_is_applied(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    record = DivergenceRecord(1, bytes(32), 5, "state_differs", "block 1", "bank-b", b"difference")
    ledger.store.put_divergence(record)
    ledger.close()
    ledger = Ledger(tmp_path)
    assert ledger.store.divergence() == record
    executed = ledger.build(ledger.transaction("bank-a"))
    assert executed is not None
    ledger.store.apply(executed, certificate(executed), 0)
    assert ledger.store.divergence() is None
    ledger.store.put_divergence(record)
    assert ledger.store.divergence() is None, "its block is applied: it is over"
