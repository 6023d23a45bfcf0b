"""A one-node ledger for tests: the real contracts, executor and store, and certificates that nobody had to sign."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from consensus.messages import Certificate, VoteKind
from contracts import CONTRACTS
from contracts.engine import Engine
from contracts.membership import Membership
from node.config import MemberConfig, NetworkConfig, Parameters, PrincipalConfig
from node.executor import Executor
from node.ledger import (
    BlockBody,
    Body,
    Call,
    HeadRecord,
    KeySignature,
    Proposal,
    Receipt,
    Transaction,
    content_root,
)
from node.runtime.clock import Clock
from node.state import ExecutedBlock
from node.store import Store
from node.store.view import PAST_BLOCKS_MAX

ENGINE = Engine(CONTRACTS)
START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
BANKS = ("bank-a", "bank-b", "bank-c", "bank-d")


def key_of(principal: str, number: int = 0) -> bytes:
    """A public key of the principal; nobody verifies signatures at this layer."""
    return f"{principal}#{number}".encode().ljust(32, b".")


def network(name: str = "testnet", **parameters: int) -> NetworkConfig:
    """Four validators; each bank's root has one key, bank-a/desk needs two of three."""
    return NetworkConfig(
        name=name,
        members=tuple(
            MemberConfig(bank, "validator", f"127.0.0.1:{7600 + index}", key_of(bank, 8), key_of(bank, 9))
            for index, bank in enumerate(BANKS)
        ),
        principals=(
            *[PrincipalConfig(bank, (key_of(bank),), 1) for bank in BANKS],
            PrincipalConfig("bank-a/desk", tuple(key_of("bank-a/desk", number) for number in range(3)), 2),
        ),
        parameters=Parameters(**{"state_tree_bits": 8, **parameters}),
        contracts={"settlement": {"currencies": [{"code": "USD", "exponent": 2, "issuer": "bank-a"}]}},
    )


def uetr(number: int) -> str:
    """A unique end-to-end transaction reference."""
    return str(uuid.UUID(int=number, version=4))


def transfer(debtor: str, creditor: str, amount: int, number: int) -> Call:
    """A transfer with the UETR of `number`."""
    args = {"debtor": debtor, "creditor": creditor, "amount": amount, "uetr": uetr(number)}
    return Call("settlement", "transfer", args)


class Ledger:
    """A store with its executor, and blocks decided by decree."""

    registry = Membership
    engine = ENGINE

    def __init__(
        self,
        path: Path,
        config: NetworkConfig | None = None,
        *,
        never_voted: bool = True,
        history_blocks: int = PAST_BLOCKS_MAX,
    ) -> None:
        """Open the data directory at `path`; genesis is applied to a new one."""
        self.path = path
        self.network = config or network()
        self.store = Store(path, self.network.network_id, self.network.genesis_hash, history_blocks)
        self.executor = Executor(self.network, self.engine, self.registry)
        if not self.store.initialised:
            self.store.initialise(self.executor.genesis(), never_voted)
        try:
            self.executor.open(self.store.snapshot())
        except BaseException:
            self.store.close()
            raise
        self.now_ms = max(START_MS, self.store.head.time_ms)
        self.requests = 0

    def transaction(
        self,
        sender: str,
        *calls: Call,
        request: str | None = None,
        keys: Sequence[bytes] | None = None,
        mode: Any = "atomic",
        expires_at_ms: int | None = None,
        network_id: str | None = None,
    ) -> Transaction:
        """A transaction with the signatures of `keys` (default: the sender's first)."""
        self.requests += 1
        body = Body(
            network=network_id or self.network.network_id,
            sender=sender,
            request_id=request or f"{self.executor.head.height}-{self.requests}",
            expires_at_ms=self.now_ms + HOUR_MS if expires_at_ms is None else expires_at_ms,
            mode=mode,
            calls=calls or (self.opening(sender),),
        )
        return Transaction.assemble(body, [KeySignature(key, bytes(64)) for key in keys or [key_of(sender)]])

    def opening(self, owner: str = "bank-a") -> Call:
        """A call that opens an account with a name not used before."""
        self.requests += 1
        args = {"account": f"ACC-{self.requests}", "owner": owner, "currency": "USD"}
        return Call("settlement", "open_account", args)

    def build(self, *transactions: Transaction, **options: Any) -> ExecutedBlock | None:
        """Build the next block, one second after the last."""
        self.now_ms += 1_000
        return self.executor.build(self.now_ms, "bank-a", transactions, **options)

    def decide(self, executed: ExecutedBlock) -> HeadRecord:
        """The block is applied."""
        head = self.store.apply(executed, certificate(executed), start_view=0)
        self.executor.advance(executed, self.store.snapshot())
        return head

    def settle(self, *transactions: Transaction, **options: Any) -> list[Receipt]:
        """Build and apply a block; return its receipts, those of scheduled calls first."""
        executed = self.build(*transactions, **options)
        assert executed is not None
        self.decide(executed)
        return [self.store.receipt(executed.height, position) for position in range(len(executed.tx_ids))]

    def follow(self, executed: ExecutedBlock) -> ExecutedBlock:
        """Check a block of another node as a backup would, and apply it."""
        checked = self.executor.check(executed.proposal, decoded(executed.body))
        self.decide(checked)
        return checked

    def follow_store(self, other: "Ledger") -> None:
        """Apply the blocks that the other ledger has and this one lacks, as catch-up would."""
        for height in range(self.store.head.height + 1, other.store.head.height + 1):
            body = other.store.block(height).body
            transactions = decoded(body)
            wire_ids = tuple(item.wire_id for item in transactions)
            self.decide(self.executor.check(Proposal(body.header, wire_ids, body.quarantined), transactions))

    def tx_root(self, *transactions: Transaction) -> bytes:
        """What a header says of these transactions."""
        return content_root([item.data for item in transactions], ())

    def open_accounts(self, *accounts: str, funds: int = 0) -> None:
        """Accounts of bank-a in USD, each with `funds`."""
        calls = [
            Call("settlement", "open_account", {"account": account, "owner": "bank-a", "currency": "USD"})
            for account in accounts
        ]
        if funds:
            calls += [Call("settlement", "issue", {"account": account, "amount": funds}) for account in accounts]
        [receipt] = self.settle(self.transaction("bank-a", *calls))
        assert {call.code for call in receipt.calls} == {"ok"}

    def balance(self, account: str, at: int | None = None) -> int:
        """The balance by the contract's own query."""
        view = self.store.snapshot()
        answer = self.executor.queries.answer(
            view if at is None else view.at(at), "settlement", "balance", {"account": account}
        )
        balance: int = answer["balance"]
        return balance

    def close(self) -> None:
        """The data directory is free."""
        self.store.close()


def certificate(executed: ExecutedBlock) -> Certificate:
    """A certificate whose signatures say nothing; the store does not judge them."""
    return Certificate(VoteKind.COMMIT, 0, executed.height, executed.digest, ((0, bytes(64)),))


def with_header(proposal: Proposal, **fields: Any) -> Proposal:
    """The proposal with other fields in its header."""
    return msgspec.structs.replace(proposal, header=msgspec.structs.replace(proposal.header, **fields))


def decoded(body: BlockBody) -> list[Transaction]:
    """The transactions of a body."""
    return [Transaction.decode(data) for data in body.transactions]


class LedgerClock(Clock):
    """The wall clock stands where the ledger does."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def time_ms(self) -> int:
        return self._ledger.now_ms
