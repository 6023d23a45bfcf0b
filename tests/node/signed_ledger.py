"""A one-node ledger whose signatures and certificates are real, with a row of every kind in its store."""

from pathlib import Path

import msgspec

from consensus.effects import VoteRecord
from consensus.messages import Certificate, Vote, VoteEquivocation, VoteKind, vote_bytes
from node.config import NetworkConfig
from node.keys import SigningKey
from node.ledger import Ending, KeySignature, Transaction, transaction_signing_bytes
from node.state import ExecutedBlock
from tests.node.ledger_world import BANKS, Ledger, network, transfer

KEYS = {bank: SigningKey(bank.encode().ljust(32, b"!")) for bank in BANKS}
"""Those of the banks' root principals, which sign transactions."""
VOTING_KEYS = {bank: SigningKey(bank.encode().ljust(32, b"?")) for bank in BANKS}


def signed_network(**parameters: int) -> NetworkConfig:
    """The test network, its validators and roots with keys that can sign."""
    config = network("testnet", **parameters)
    return msgspec.structs.replace(
        config,
        members=tuple(
            msgspec.structs.replace(member, voting_key=VOTING_KEYS[member.id].public) for member in config.members
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
    signatures = tuple((index, VOTING_KEYS[bank].sign(message)) for index, bank in enumerate(BANKS[:3]))
    return Certificate(VoteKind.COMMIT, 0, executed.height, executed.digest, signatures)


def vote(ledger: Ledger, digest: bytes) -> Vote:
    """bank-a's real prepare at the height in work."""
    height = ledger.store.head.height + 1
    message = vote_bytes(ledger.network.network_id, VoteKind.PREPARE, 0, height, digest)
    return Vote(VoteKind.PREPARE, 0, height, digest, 0, VOTING_KEYS["bank-a"].sign(message))


def block(ledger: Ledger, *calls: object) -> ExecutedBlock:
    executed = ledger.build(signed(ledger.transaction("bank-a", *calls)))  # type: ignore[arg-type]
    assert executed is not None
    return executed


def make_ledger(path: Path, accounts: int = 2, **parameters: int) -> Ledger:
    """Three blocks (two accounts, another, a transfer), a fourth that was voted for, and a row of most kinds."""
    ledger = Ledger(path, signed_network(**parameters))
    for calls in (
        [ledger.opening("bank-a") for _ in range(accounts)],
        [],
        [transfer("ACC-1", "ACC-2", 0, 1)],
    ):
        executed = block(ledger, *calls)
        ledger.store.apply(executed, certified(executed), 0)
        ledger.executor.advance(executed, ledger.store.snapshot())
    in_work = block(ledger)
    ledger.store.put_records(
        [VoteRecord(vote(ledger, in_work.digest), False, None)], {in_work.digest: in_work.body}
    )
    ledger.store.put_evidence("bank-a", VoteEquivocation(vote(ledger, b"1" * 32), vote(ledger, b"2" * 32)))
    ended, waiting = (signed(ledger.transaction("bank-a")) for _ in range(2))
    ledger.store.put_pending([(item.tx_id, item.data) for item in (ended, waiting)])
    ledger.store.end_pending({ended.tx_id: Ending("expired", "expired", 3)})
    return ledger
