"""A node of one member in memory: enough ledger for what HTTP, client and CLI promise about requests and answers.

Blocks are made when a test says so. Its one contract, `till`, counts `deposit`s of an account.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from consensus.messages import Certificate, VoteKind
from node.api import Backups, EventCursor, EventFilter, Proofs, StoredBlock
from node.client import (
    ChangedValue,
    CodeDescription,
    ContractAnswer,
    Diagnosis,
    DryRun,
    EventPage,
    EvidenceItem,
    Fate,
    LedgerEvent,
    MemberStatus,
    MethodDescription,
    NodeStatus,
    PeerStatus,
    QueryAnswer,
    Submission,
    TransactionPage,
    TransactionSummary,
    outcomes,
    plain_json,
)
from node.errors import HansaError, NotFound, RejectedTransaction, Unavailable
from node.ledger import (
    BlockBody,
    CallReceipt,
    CertifiedBlock,
    EventData,
    Header,
    Receipt,
    Transaction,
    merkle_root,
    transaction_signing_bytes,
)
from node.signatures import verify

NETWORK = "memory-0123456789ab"
_ZERO = bytes(32)

_STRING = {"type": "string"}
_AMOUNT = {"type": "integer", "minimum": 1}
TILL = ContractAnswer(
    name="till",
    version=1,
    doc="Counts deposits.",
    codes=(CodeDescription(code="amount_not_positive", meaning="An amount is more than nothing.", iso="AM01"),),
    calls=(
        MethodDescription(
            name="deposit",
            doc="Add `amount` minor units to `account`.",
            arguments={
                "type": "object",
                "properties": {
                    "account": _STRING,
                    "amount": {"$ref": "#/$defs/Amount"},
                    "tags": {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}},
                    "proof": {"anyOf": [{"type": "string", "contentEncoding": "base64"}, {"type": "null"}]},
                },
                "required": ["account", "amount"],
                "$defs": {"Amount": _AMOUNT},
            },
        ),
    ),
    queries=(
        MethodDescription(
            name="balance",
            doc="What `account` holds.",
            arguments={"type": "object", "properties": {"account": _STRING}, "required": ["account"]},
        ),
        MethodDescription(
            name="echo",
            doc="The arguments as the contract gets them.",
            arguments={
                "type": "object",
                "properties": {
                    "number": {"type": "integer"},
                    "data": {"type": "string", "contentEncoding": "base64"},
                    "flag": {"type": "boolean"},
                    "list": {"type": "array", "items": {"type": "integer"}},
                },
            },
        ),
    ),
)


class MemoryNode:
    """Implements NodeService. `capacity` bounds the pending transactions; `instant` makes blocks by itself."""

    def __init__(self, capacity: int = 10_000, instant: bool = False) -> None:
        self.capacity = capacity
        self.instant = instant
        self.taken = asyncio.Event()
        self.pending: dict[bytes, Transaction] = {}
        self.final: dict[bytes, tuple[int, Receipt]] = {}
        self.raw: dict[bytes, bytes] = {}
        self.blocks: list[StoredBlock] = []
        self.balances: dict[str, int] = {}
        self.reasons: list[str] = []
        self.broken = False
        self.diverged: int | None = None
        self.submissions = 0
        self._new_block = asyncio.Event()

    @property
    def network(self) -> str:
        return NETWORK

    @property
    def genesis_hash(self) -> bytes:
        return _ZERO

    async def submit(self, transactions: Sequence[bytes]) -> list[Submission | HansaError]:
        return [self._submit(data) for data in transactions]

    def _submit(self, data: bytes) -> Submission | HansaError:
        self.submissions += 1
        if self.broken:
            raise RuntimeError("a bug of the node")
        try:
            transaction = self._judged(data)
        except HansaError as error:
            return error
        key = transaction.tx_id
        if key in self.raw:
            status = self.fate(key).status
            return Submission(tx_id=key.hex(), status=status, duplicate=True)
        if len(self.pending) >= self.capacity:
            return Unavailable("queue_full", f"{self.capacity} transactions wait", retry_after_ms=1500)
        self.pending[key] = transaction
        self.raw[key] = data
        self.taken.set()
        if self.instant:
            asyncio.get_running_loop().call_soon(self.make_block)
        return Submission(tx_id=key.hex())

    def _judged(self, data: bytes) -> Transaction:
        transaction = Transaction.decode(data)
        if transaction.body.network != NETWORK:
            raise RejectedTransaction("wrong_network", f"this is {NETWORK}", network=NETWORK)
        message = transaction_signing_bytes(transaction.body_bytes)
        if not all(verify(item.key, message, item.signature) for item in transaction.signatures):
            raise RejectedTransaction("bad_signature", "a signature does not verify")
        return transaction

    def make_block(self) -> int:
        """Everything pending is final; return the height."""
        height = len(self.blocks) + 1
        transactions = list(self.pending.values())
        receipts = tuple(self._execute(transaction) for transaction in transactions)
        leaves = [transaction.data for transaction in transactions]
        header = Header(
            NETWORK, height, _ZERO, height * 1000, "bank-a", merkle_root(leaves), _ZERO, _ZERO, _ZERO, _ZERO
        )
        certificate = Certificate(VoteKind.COMMIT, 0, height, header.digest, ((0, bytes(64)),))
        body = BlockBody(header, tuple(leaves), ())
        self.blocks.append(StoredBlock(CertifiedBlock(body, certificate), receipts))
        for transaction, receipt in zip(transactions, receipts, strict=True):
            self.final[transaction.tx_id] = (height, receipt)
        self.pending.clear()
        self._new_block.set()
        self._new_block = asyncio.Event()
        return height

    def _execute(self, transaction: Transaction) -> Receipt:
        calls = []
        for call in transaction.body.calls:
            account, amount = call.args["account"], call.args["amount"]
            if amount <= 0:
                calls.append(CallReceipt("amount_not_positive", ()))
                continue
            self.balances[account] = self.balances.get(account, 0) + amount
            data = {"account": account, "amount": amount, "proof": b"\x01\xff"}
            calls.append(CallReceipt("ok", (EventData("till", "Deposited", (f"till/account/{account}",), data),)))
        return Receipt(transaction.tx_id, tuple(calls))

    async def wait_final(self, tx_id: bytes, timeout_s: float) -> Fate:
        try:
            async with asyncio.timeout(timeout_s):
                while tx_id in self.pending:
                    await self._new_block.wait()
        except TimeoutError:
            pass
        return self.fate(tx_id)

    async def wait_all(self, tx_ids: Sequence[bytes], timeout_s: float) -> list[Fate | NotFound]:
        return list(await asyncio.gather(*(self.wait_final(tx_id, timeout_s) for tx_id in tx_ids)))

    def fate(self, tx_id: bytes) -> Fate:
        if tx_id in self.pending:
            return Fate(tx_id=tx_id.hex(), status="pending")
        if tx_id not in self.final:
            return Fate(tx_id=tx_id.hex(), status="unknown")
        height, receipt = self.final[tx_id]
        return Fate(tx_id=tx_id.hex(), status="final", height=height, receipts=outcomes(receipt))

    async def missing(self, tx_id: bytes) -> NotFound:
        return NotFound("transaction_not_found", f"this node does not know {tx_id.hex()}")

    def transaction(self, tx_id: bytes) -> bytes | None:
        return self.raw.get(tx_id)

    def transactions(self, limit: int, before: str | None) -> TransactionPage:
        if before is not None and not before.isdigit():
            raise RejectedTransaction("invalid_cursor", f"{before!r} is no cursor")
        known = list(self.raw)[::-1]
        start = int(before) if before else 0
        lines = tuple(self._line(tx_id) for tx_id in known[start : start + limit])
        more = str(start + limit) if start + limit < len(known) else None
        return TransactionPage(transactions=lines, before=more)

    def _line(self, tx_id: bytes) -> TransactionSummary:
        body, fate = Transaction.decode(self.raw[tx_id]).body, self.fate(tx_id)
        return TransactionSummary(
            tx_id=tx_id.hex(),
            status=fate.status,
            sender=body.sender,
            request_id=body.request_id,
            calls=len(body.calls),
            height=fate.height,
            failed=sum(receipt.code != "ok" for receipt in fate.receipts),
        )

    async def query(self, contract: str, name: str, args: dict[str, Any], at_height: int | None) -> QueryAnswer:
        if contract != "till":
            raise NotFound("unknown_contract", f"{contract!r} is not a contract here")
        if at_height is not None and at_height > len(self.blocks):
            raise NotFound("block_not_found", f"the head is {len(self.blocks)}")
        value: Any = args if name == "echo" else self.balances.get(args["account"], 0)
        return QueryAnswer(value=value, height=len(self.blocks), state_root=_ZERO.hex(), age_ms=5)

    def block(self, height: int | None) -> StoredBlock:
        wanted = len(self.blocks) if height is None else height
        if not 1 <= wanted <= len(self.blocks):
            raise NotFound("block_not_found", f"the head is {len(self.blocks)}", height=wanted)
        return self.blocks[wanted - 1]

    def events(self, after: EventCursor, limit: int, wanted: EventFilter) -> EventPage:
        found: list[LedgerEvent] = []
        for stored in self.blocks:
            height = stored.block.body.header.height
            position = -1
            for receipt in stored.receipts:
                for call in receipt.calls:
                    for event in call.events:
                        position += 1
                        cursor = EventCursor(height, position)
                        if cursor <= after or wanted.contract not in (None, event.contract):
                            continue
                        if wanted.topic is not None and wanted.topic not in event.topics:
                            continue
                        found.append(
                            LedgerEvent(
                                contract=event.contract,
                                name=event.name,
                                topics=event.topics,
                                data=plain_json(event.data),
                                cursor=str(cursor),
                                height=height,
                                tx_id=receipt.tx_id.hex(),
                            )
                        )
        page = tuple(found[:limit])
        complete = len(found) <= limit
        end = EventCursor(len(self.blocks) + 1, -1) if complete else EventCursor.parse(page[-1].cursor)
        return EventPage(events=page, next=str(max(end, after)), complete=complete)

    async def wait_height(self, above: int) -> int:
        while len(self.blocks) <= above:
            await self._new_block.wait()
        return len(self.blocks)

    def height(self) -> int:
        return len(self.blocks)

    def status(self) -> NodeStatus:
        ready, reasons = self.ready()
        return NodeStatus(
            member="bank-a",
            role="validator",
            network=NETWORK,
            genesis_hash=_ZERO.hex(),
            version="0.1.0",
            height=len(self.blocks),
            view=0,
            primary="bank-a",
            head=_ZERO.hex(),
            state_root=_ZERO.hex(),
            head_time_ms=len(self.blocks) * 1000,
            ready=ready,
            reasons=tuple(reasons),
            voting=True,
            peers=(PeerStatus(id="bank-b", connected=False),),
            pending_transactions=len(self.pending),
            pending_bytes=0,
        )

    def diverged_at(self) -> int | None:
        return self.diverged

    def members(self) -> tuple[MemberStatus, ...]:
        key = _ZERO.hex()
        return (
            MemberStatus(
                id="bank-a", role="validator", address="a:1", voting_key=key, tls_key=key, connected=True, height=1
            ),
        )

    def contracts(self) -> tuple[ContractAnswer, ...]:
        return (TILL,)

    def why(self) -> Diagnosis:
        return Diagnosis(moving=not self.reasons, sentences=tuple(self.reasons) or ("Blocks are made.",))

    def ready(self) -> tuple[bool, list[str]]:
        return not self.reasons, self.reasons

    def evidence(self) -> tuple[EvidenceItem, ...]:
        return (EvidenceItem(member="bank-x", kind="vote", height=1, view=0, data="00"),)

    @property
    def backups(self) -> Backups:
        raise Unavailable("not_ready", "there is nothing on a disk to be backed up")

    @property
    def proofs(self) -> Proofs:
        raise Unavailable("not_ready", "nobody has signed what this node holds")

    def metrics(self) -> bytes:
        return b"hansa_height 1\n"

    async def diagnostics(self) -> bytes:
        return b"PK"

    async def dry_run(self, data: bytes) -> DryRun:
        transaction = self._judged(data)
        call = transaction.body.calls[0]
        before = self.balances.get(call.args["account"])
        change = ChangedValue(
            key=("till", call.args["account"]), before=before, after=(before or 0) + call.args["amount"]
        )
        receipt = Receipt(transaction.tx_id, (CallReceipt("ok", ()),))
        return DryRun(
            tx_id=transaction.tx_id.hex(),
            height=len(self.blocks),
            receipts=outcomes(receipt),
            changes=(change,),
        )


def as_json(data: bytes) -> Any:
    """A JSON document as plain values."""
    return msgspec.json.decode(data)
