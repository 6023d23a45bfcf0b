"""A ledger that was tampered with on disk is found out, and where."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import plyvel
import pytest

from consensus.codec import decode, encode
from consensus.messages import Certificate, VoteKind, vote_bytes
from node.config import NetworkConfig
from node.keys import SigningKey
from node.ledger import BlockBody, HeadRecord, KeySignature, Transaction, transaction_signing_bytes
from node.state import ExecutedBlock
from node.store.layout import ReceiptsRecord, number
from node.verification import LedgerReport, verify_store
from tests.node.ledger_world import BANKS, Ledger, network, transfer

KEYS = {bank: SigningKey(bank.encode().ljust(32, b"!")) for bank in BANKS}


def signed_network() -> NetworkConfig:
    """The test network, its validators and roots with keys that can sign."""
    config = network()
    return msgspec.structs.replace(
        config,
        members=tuple(
            msgspec.structs.replace(member, voting_key=KEYS[member.id].public) for member in config.members
        ),
        principals=tuple(
            msgspec.structs.replace(principal, keys=(KEYS[principal.id].public,))
            for principal in config.principals
            if principal.id in KEYS
        ),
    )


def signed(item: Transaction) -> Transaction:
    key = KEYS[item.body.sender]
    signature = key.sign(transaction_signing_bytes(item.body_bytes))
    return Transaction.assemble(item.body, [KeySignature(key.public, signature)])


def certified(executed: ExecutedBlock) -> Certificate:
    """A real certificate of three of the four members."""
    message = vote_bytes(executed.header.network, VoteKind.COMMIT, 0, executed.height, executed.digest)
    signatures = tuple((index, KEYS[bank].sign(message)) for index, bank in enumerate(BANKS[:3]))
    return Certificate(VoteKind.COMMIT, 0, executed.height, executed.digest, signatures)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Three blocks: two accounts, money, a transfer."""
    ledger = Ledger(tmp_path / "data", signed_network())
    for calls in (
        [ledger.opening("bank-a"), ledger.opening("bank-a")],
        [],
        [transfer("ACC-1", "ACC-2", 0, 1)],
    ):
        executed = ledger.build(signed(ledger.transaction("bank-a", *calls)))
        assert executed is not None
        ledger.store.apply(executed, certified(executed), 0)
        ledger.executor.advance(executed, ledger.store.snapshot())
    return ledger


def report(ledger: Ledger) -> LedgerReport:
    scratch = ledger.path.with_name("scratch")
    return verify_store(ledger.store, ledger.network, scratch, lambda height, head: None)


def tampered(ledger: Ledger, change: Callable[[plyvel.DB], None]) -> LedgerReport:
    ledger.close()
    db = plyvel.DB(str(ledger.path))
    change(db)
    db.close()
    again = Ledger.__new__(Ledger)
    again.path, again.network = ledger.path, ledger.network
    again.store = type(ledger.store)(ledger.path, ledger.network.network_id, ledger.network.genesis_hash)
    return report(again)


def test_an_honest_ledger_is_right_from_genesis_to_head(ledger: Ledger) -> None:
    seen: list[tuple[int, int]] = []
    found = verify_store(
        ledger.store, ledger.network, ledger.path.with_name("scratch"), lambda *place: seen.append(place)
    )
    assert found == LedgerReport(ok=True, height=3, blocks=3, transactions=3, first_error=None)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_an_altered_value_of_the_state_is_found(ledger: Ledger) -> None:
    def change(db: plyvel.DB) -> None:
        key = next(key for key in db.iterator(start=b"s", stop=b"t", include_value=False) if b"ACC-1" in key)
        db.put(key, db.get(key).replace(b"bank-a", b"bank-b"))

    found = tampered(ledger, change)
    assert (found.ok, found.blocks) == (False, 3)
    assert found.first_error
    assert "state: ledger_differs: the value under" in found.first_error


def test_a_certificate_too_small_is_found(ledger: Ledger) -> None:
    def change(db: plyvel.DB) -> None:
        head = decode(db.get(b"h" + number(2)), HeadRecord, size_max=10**6)
        assert head.certificate
        fewer = msgspec.structs.replace(head.certificate, signatures=head.certificate.signatures[:2])
        db.put(b"h" + number(2), encode(msgspec.structs.replace(head, certificate=fewer)))

    found = tampered(ledger, change)
    assert (found.ok, found.blocks, found.transactions) == (False, 1, 1)
    assert found.first_error
    assert found.first_error.startswith("block 2: ledger_differs: the certificate")


def test_altered_receipts_are_found(ledger: Ledger) -> None:
    def change(db: plyvel.DB) -> None:
        receipts = decode(db.get(b"r" + number(3)), ReceiptsRecord, size_max=10**6)
        db.put(b"r" + number(3), encode(ReceiptsRecord(0, (receipts.receipts[0] + b"x",))))

    found = tampered(ledger, change)
    assert (found.ok, found.blocks) == (False, 2)
    assert found.first_error == "block 3: ledger_differs: the receipts differ"


def test_a_lost_index_entry_is_found(ledger: Ledger) -> None:
    tx_id = Transaction.decode(ledger.store.block(3).body.transactions[0]).tx_id

    found = tampered(ledger, lambda db: db.delete(b"x" + tx_id))
    assert (found.ok, found.blocks) == (False, 2)
    assert found.first_error == f"block 3: ledger_differs: transaction {tx_id.hex()} is not found by its id"


def test_a_block_of_another_history_is_found(ledger: Ledger) -> None:
    def change(db: plyvel.DB) -> None:
        head = decode(db.get(b"h" + number(3)), HeadRecord, size_max=10**6)
        body = decode(db.get(b"b" + head.digest), BlockBody, size_max=10**6)
        db.put(b"b" + head.digest, encode(msgspec.structs.replace(body, transactions=())))

    found = tampered(ledger, change)
    assert (found.ok, found.blocks) == (False, 2)
    assert found.first_error
    assert found.first_error.startswith("block 3: store_corrupt")
