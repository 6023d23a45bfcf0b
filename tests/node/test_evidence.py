"""Evidence packs: what a node makes, the stand-alone verifier accepts, with the network's definition alone.

What could mislead is not made: no absence where it means nothing, no statement with a gap, no past state whose root
was not certified.
"""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hansa_verify
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consensus.codec import decode_own, encode
from contracts.settlement import Account, Entry
from contracts.state_keys import encode_key
from node.errors import HansaError, NotFound, RejectedTransaction, StoreError, Unavailable
from node.evidence import named_key
from node.evidence.pack import SealedPack
from node.ledger import Call, Receipt, Transaction
from node.runtime.clock import Clock
from node.runtime.proving import LOOKING_MAX, Proving
from node.state_tree import StateTree
from node.store import StoreView
from node.store.layout import META_FIRST, UndoRecord, number
from tests.node.evidence_world import ProvableLedger, provable_network
from tests.node.ledger_world import BANKS, ENGINE, transfer

RETENTION_MS = 60_000


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[ProvableLedger]:
    opened = ProvableLedger(tmp_path / "data")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProvableLedger]:
    """Two accounts and nine payments: blocks 1 (opened), 2 … 10 (one payment each, 1 … 9 cents). Only read."""
    opened = ProvableLedger(tmp_path_factory.mktemp("busy"))
    pay(opened)
    yield opened
    opened.close()


@pytest.fixture
def own(ledger: ProvableLedger) -> ProvableLedger:
    """The same, to be changed."""
    pay(ledger)
    return ledger


def pay(ledger: ProvableLedger) -> None:
    ledger.open_accounts("A", "B", funds=1_000)
    for amount in range(1, 10):
        ledger.settle(ledger.transaction("bank-a", transfer("A", "B", amount, amount)))


def accepted(ledger: ProvableLedger, pack: bytes, expect: str, height: int | None = None) -> hansa_verify.Proof:
    """What the verifier says of the pack; `expect` "" is nothing in particular."""
    checkpoint = None if height is None else f"{height}:{ledger.store.head_at(height).digest.hex()}"
    return hansa_verify.verify(pack, ledger.genesis, checkpoint, expect or None)


def item_of(pack: bytes) -> tuple[Any, ...]:
    """What the pack proves, as it stands in it."""
    return decode_own(pack, SealedPack, size_max=len(pack)).item


def account_in(proof: Any) -> Account | None:
    """The account in a state proof of a pack."""
    _, value, _, _ = proof
    return None if value is None else decode_own(value, Account, size_max=len(value))


def entries_in(pack: bytes) -> list[Entry]:
    """The entries of a statement."""
    return [decode_own(data, Entry, size_max=len(data)) for data in item_of(pack)[2]]


def outcome_in(pack: bytes) -> str:
    """The outcome of the first call of a transaction."""
    receipt = item_of(pack)[2]
    return decode_own(receipt, Receipt, size_max=len(receipt)).calls[0].code


def code(error: pytest.ExceptionInfo[Any]) -> str:
    assert isinstance(error.value, HansaError)
    return error.value.code


# --- transactions ---


async def test_a_transaction_is_proven_with_its_outcome_wherever_it_stands_in_its_block(
    ledger: ProvableLedger,
) -> None:
    ledger.open_accounts("A", "B", funds=100)
    for count in (1, 2, 3, 5, 8):
        made = [ledger.transaction("bank-a", transfer("A", "B", 1, 100 * count + each)) for each in range(count)]
        ledger.settle(*made)
        for item in made:
            pack = await ledger.proving.transaction(item.tx_id, None)
            accepted(ledger, pack, f"transaction:{item.tx_id.hex()}")
            assert (item_of(pack)[0], outcome_in(pack)) == (item.data, "ok")


async def test_a_quarantined_leaf_does_not_disturb_the_path(ledger: ProvableLedger) -> None:
    slow, other = ledger.transaction("bank-a"), ledger.transaction("bank-a")
    ledger.settle(slow, other, allow_quarantine=True, suspects=[slow.wire_id])
    for item, outcome in ((slow, "quarantined"), (other, "ok")):
        pack = await ledger.proving.transaction(item.tx_id, None)
        accepted(ledger, pack, f"transaction:{item.tx_id.hex()}")
        assert outcome_in(pack) == outcome


async def test_what_nobody_signed_or_nobody_knows_has_no_proof(ledger: ProvableLedger) -> None:
    ledger.open_accounts("A", "B", funds=100)
    hold = {"uetr": "00000000-0000-4000-8000-000000000001", "debtor": "A", "creditor": "B", "amount": 5}
    expires = ledger.now_ms + 5_000
    ledger.settle(ledger.transaction("bank-a", Call("settlement", "hold", {**hold, "expires_at_ms": expires})))
    ledger.now_ms += 10_000
    receipts = ledger.settle(ledger.transaction("bank-a"))
    assert len(receipts) == 2
    for tx_id in (receipts[0].tx_id, bytes(32)):
        with pytest.raises(NotFound) as error:
            await ledger.proving.transaction(tx_id, None)
        assert code(error) == "transaction_not_found"
    # Behind a scheduled call, a transaction's place among the receipts is not its place in the block.
    pack = await ledger.proving.transaction(receipts[1].tx_id, None)
    accepted(ledger, pack, f"transaction:{receipts[1].tx_id.hex()}")


# --- state ---


async def test_values_and_their_absence_are_proven_at_the_head_and_at_every_past_height(
    busy: ProvableLedger,
) -> None:
    for name in ("A", "B", "C"):
        key = busy.proving.key("settlement", "accounts", [name])
        for height in (None, *range(1, 11)):
            pack = await busy.proving.state(key, height, None)
            kind = "absence" if name == "C" else "state"
            proof = accepted(busy, pack, f"{kind}:{key.hex()}")
            assert proof.blocks[0].height == (height or 10)
            account = account_in(item_of(pack)[0])
            assert (None if account is None else account.balance) == (
                None if name == "C" else busy.balance(name, at=height)
            )


@pytest.mark.parametrize(("height", "expected"), [(0, "block_not_found"), (11, "block_not_found")])
async def test_a_height_without_certificate_proves_nothing(
    busy: ProvableLedger, height: int, expected: str
) -> None:
    with pytest.raises(NotFound) as error:
        await busy.proving.state(b"key", height, None)
    assert code(error) == expected


async def test_history_that_is_no_longer_kept_is_said_so(tmp_path: Path) -> None:
    ledger = ProvableLedger(tmp_path / "short", history_blocks=3)
    for _ in range(6):
        ledger.settle(ledger.transaction("bank-a"))
    key = encode_key(("settlement", "accounts", "ACC-1"))
    accepted(ledger, await ledger.proving.state(key, 3, None), "")
    with pytest.raises(NotFound) as error:
        await ledger.proving.state(key, 2, None)
    assert code(error) == "history_pruned"
    ledger.close()


async def test_too_many_changes_are_not_undone(busy: ProvableLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.evidence.past.PAST_CHANGES_MAX", 12)
    accepted(busy, await busy.proving.state(b"key", 8, None), "")
    with pytest.raises(NotFound) as error:
        await busy.proving.state(b"key", 1, None)
    assert code(error) == "history_too_far"


async def test_a_past_state_with_another_root_than_the_certified_one_is_never_proven(own: ProvableLedger) -> None:
    key = encode_key(("settlement", "accounts", "A"))
    [before] = [value for name, value in own.store.snapshot().undone(5, 6).items() if name == key]
    forged = UndoRecord(((key, (before or b"")[:-1] + b"\xc2"),))
    own.store._database.write([(b"u" + number(6), encode(forged))])
    with pytest.raises(StoreError) as error:
        await own.proving.state(key, 5, None)
    assert code(error) == "corrupt_state_tree"


async def test_one_past_state_is_rebuilt_at_a_time_and_the_head_is_always_provable(
    own: ProvableLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.evidence.past.SLICE_CHANGES", 1)
    first = asyncio.create_task(own.proving.state(b"key", 1, None))
    while not own.proving._undoing.locked():  # noqa: ASYNC110 (there is no event for it)
        await asyncio.sleep(0)
    with pytest.raises(Unavailable) as error:
        await own.proving.state(b"key", 2, None)
    assert code(error) == "node_busy"
    accepted(own, await own.proving.state(b"key", None, None), "")
    # Blocks go on meanwhile, and the proof is of the moment at which it was asked for.
    own.settle(own.transaction("bank-a"))
    assert accepted(own, await first, "").blocks[0].height == 1


async def test_a_block_waits_for_two_proofs_however_many_are_asked_for(own: ProvableLedger) -> None:
    waiting, most, turn = 0, 0, asyncio.Lock()

    async def in_turn(look: Callable[[StoreView, StateTree], Any]) -> Any:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        async with turn:
            await asyncio.sleep(0)
            waiting -= 1
            return look(own.store.snapshot(), own.executor.tree)

    proving = Proving(own.network, ENGINE, own.store, in_turn, Clock())
    packs = await asyncio.gather(*[proving.state(b"key", None, None) for _ in range(20)])
    assert len(set(packs)) == 1
    assert most == LOOKING_MAX


# Not ACC-…, which the ledger opens by itself where a block has nothing else to do.
names = st.integers(0, 12).map(lambda index: f"N-{index}")


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(names, max_size=6, unique=True), min_size=1, max_size=8), st.data())
def test_random_histories_are_provable_at_random_heights(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[list[str]], data: st.DataObject
) -> None:
    ledger = ProvableLedger(tmp_path_factory.mktemp("ledger"), provable_network(state_tree_bits=4))
    for accounts in blocks:
        calls = [
            Call("settlement", "open_account", {"account": name, "owner": "bank-a", "currency": "USD"})
            for name in accounts
        ]
        ledger.settle(ledger.transaction("bank-a", *calls, mode="each"))
    asked = data.draw(st.lists(st.tuples(names, st.integers(1, len(blocks))), max_size=6))
    for name, height in asked:
        key = encode_key(("settlement", "accounts", name))
        pack = asyncio.run(ledger.proving.state(key, height, None))
        there = any(name in accounts for accounts in blocks[:height])
        accepted(ledger, pack, f"{'state' if there else 'absence'}:{key.hex()}")
    ledger.close()


# --- names of state keys ---


@pytest.mark.parametrize(
    ("contract", "field", "parts", "key"),
    [
        ("settlement", "accounts", ["A-1"], ("settlement", "accounts", "A-1")),
        ("settlement", "owned", ["bank-a", "A-1"], ("settlement", "owned", "bank-a", "A-1")),
        ("ledger", "request", ["bank-a", "R"], ("ledger", "request", "bank-a", "R")),
        ("ledger", "schedule", ["17", "3"], ("ledger", "schedule", 17, 3)),
    ],
)
def test_a_state_key_is_named_by_contract_field_and_parts(
    contract: str, field: str, parts: list[str], key: tuple[str | int, ...]
) -> None:
    assert named_key(ENGINE.contracts, contract, field, parts) == encode_key(key)


@pytest.mark.parametrize(
    ("contract", "field", "parts", "expected"),
    [
        ("settlemint", "accounts", ["A"], "unknown_contract"),
        ("settlement", "acounts", ["A"], "unknown_field"),
        ("settlement", "transfer", ["A"], "unknown_field"),
        ("ledger", "accounts", ["A"], "unknown_field"),
        ("settlement", "accounts", [], "invalid_arguments"),
        ("settlement", "accounts", ["A", "B"], "invalid_arguments"),
        ("ledger", "schedule", ["soon", "3"], "invalid_arguments"),
        ("ledger", "schedule", ["99999999999999999999", "3"], "invalid_arguments"),
        ("settlement", "accounts", ["A" * 2000], "invalid_arguments"),
    ],
)
def test_a_name_that_is_none_is_refused(contract: str, field: str, parts: list[str], expected: str) -> None:
    with pytest.raises(HansaError) as error:
        named_key(ENGINE.contracts, contract, field, parts)
    assert code(error) == expected


# --- statements ---


@pytest.mark.parametrize(("first", "last", "count"), [(1, 10, 9), (4, 8, 4), (9, 10, 1), (4, None, 6)])
async def test_a_statement_holds_every_entry_between_its_heights(
    busy: ProvableLedger, first: int, last: int | None, count: int
) -> None:
    for account, sign in (("A", -1), ("B", 1)):
        pack = await busy.proving.statement(account, first, last, None)
        accepted(busy, pack, f"statement:{account}")
        assert [entry.amount for entry in entries_in(pack)] == [
            sign * amount for amount in range(first, first + count)
        ]
        balances = [account_in(proof).balance for proof in item_of(pack)[:2]]  # type: ignore[union-attr]
        assert balances == [busy.balance(account, at=height) for height in (first, last)]


async def test_a_statement_may_begin_before_the_account_and_may_be_empty(ledger: ProvableLedger) -> None:
    ledger.settle(ledger.transaction("bank-a"))
    ledger.open_accounts("A", "B", funds=50)
    ledger.settle(ledger.transaction("bank-a"))
    pack = await ledger.proving.statement("A", 1, None, None)
    accepted(ledger, pack, "statement:A")
    assert (account_in(item_of(pack)[0]), len(entries_in(pack))) == (None, 1)
    pack = await ledger.proving.statement("A", 2, 3, None)
    accepted(ledger, pack, "statement:A")
    assert entries_in(pack) == []


async def test_entries_are_found_beyond_one_page_of_events(
    ledger: ProvableLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.open_accounts("A", "B", funds=100)
    for first in (1, 3, 5, 7):
        ledger.settle(*[ledger.transaction("bank-a", transfer("A", "B", 1, first + each)) for each in range(2)])
    for page in (3, 4, 5):
        monkeypatch.setattr("node.evidence.item.EVENTS_MAX", page)
        pack = await ledger.proving.statement("A", 1, None, None)
        accepted(ledger, pack, "statement:A")
        assert [entry.number for entry in entries_in(pack)] == list(range(2, 10))
    monkeypatch.setattr("node.evidence.item.EVENTS_MAX", 2)
    with pytest.raises(RejectedTransaction, match="proof_too_large"):
        await ledger.proving.statement("A", 1, None, None)


@pytest.mark.parametrize(
    ("account", "first", "last", "expected"),
    [
        ("C", 1, 5, "account_not_found"),
        ("A", 0, 5, "malformed_request"),
        ("A", 5, 5, "malformed_request"),
        ("A", 6, 5, "malformed_request"),
        ("A", 5, 99, "block_not_found"),
    ],
)
async def test_a_statement_that_cannot_be_made_says_why(
    busy: ProvableLedger, account: str, first: int, last: int, expected: str
) -> None:
    with pytest.raises(HansaError) as error:
        await busy.proving.statement(account, first, last, None)
    assert code(error) == expected


async def test_a_statement_with_a_gap_is_never_made(own: ProvableLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.evidence.item.ENTRIES_MAX", 3)
    with pytest.raises(RejectedTransaction, match="proof_too_large"):
        await own.proving.statement("A", 1, None, None)
    monkeypatch.undo()
    row = b"e" + bytes((len("settlement/account/A"),)) + b"settlement/account/A" + number(5)
    assert own.store._database.get(row) is not None
    own.store._database.write([(row, None)])
    with pytest.raises(StoreError, match="ledger_differs"):
        await own.proving.statement("A", 1, None, None)
    own.store._database.write([(META_FIRST, number(6))])
    with pytest.raises(NotFound, match="block_pruned"):
        await own.proving.statement("A", 1, None, None)
    accepted(own, await own.proving.statement("A", 5, None, None), "statement:A")


# --- members and checkpoints ---


async def test_changes_of_members_lead_from_genesis_to_the_proven_block(ledger: ProvableLedger) -> None:
    lists = {2: ("bank-b", "bank-a", "bank-c", "bank-e"), 4: ("bank-e",), 5: BANKS}
    made: list[Transaction] = []
    for height in range(1, 8):
        if height in lists:
            ledger.appoint(*lists[height])
        made.append(ledger.transaction("bank-a"))
        ledger.settle(made[-1])
    view = ledger.store.snapshot()
    assert view.member_changes() == (2, 4, 5)
    for height, item in enumerate(made, 1):
        pack = await ledger.proving.transaction(item.tx_id, None)
        proof = accepted(ledger, pack, f"transaction:{item.tx_id.hex()}")
        deciders = lists[max((changed for changed in lists if changed < height), default=5)]
        assert set(proof.blocks[0].signers) <= set(deciders)
        content = decode_own(pack, SealedPack, size_max=len(pack))
        assert [change.header.height for change in content.changes] == [at for at in lists if at <= height]
    for height in range(1, 7):
        accepted(ledger, await ledger.proving.state(b"key", height, None), "")


async def test_headers_lead_to_a_checkpoint(busy: ProvableLedger) -> None:
    key = busy.proving.key("settlement", "accounts", ["A"])
    for checkpoint in (4, 5, 10):
        pack = await busy.proving.state(key, 4, checkpoint)
        accepted(busy, pack, f"state:{key.hex()}", checkpoint)
    with pytest.raises(hansa_verify.Refused):
        hansa_verify.verify(pack, busy.genesis, f"10:{bytes(32).hex()}")
    for checkpoint, expected in ((3, "malformed_request"), (11, "block_not_found")):
        with pytest.raises(HansaError) as error:
            await busy.proving.state(key, 4, checkpoint)
        assert code(error) == expected
    statement = await busy.proving.statement("A", 2, 6, 8)
    accepted(busy, statement, "statement:A", 8)


async def test_a_certificate_is_cut_to_a_quorum(busy: ProvableLedger) -> None:
    pack = await busy.proving.state(b"key", None, None)
    [block] = decode_own(pack, SealedPack, size_max=len(pack)).blocks
    certificate = busy.store.head.certificate
    assert certificate is not None
    assert len(certificate.signatures) == 4
    assert block.certificate.signatures == certificate.signatures[:3]
