"""What the API needs of the node: the one interface between HTTP and the running process."""

import re
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from node.client.answers import (
    BackupStatus,
    ContractAnswer,
    Diagnosis,
    DryRun,
    EventPage,
    EvidenceItem,
    Fate,
    MemberStatus,
    NodeStatus,
    QueryAnswer,
    Submission,
    TransactionPage,
)
from node.errors import HansaError, NotFound, RejectedTransaction
from node.ledger import CertifiedBlock, Receipt

_CURSOR = re.compile(r"([0-9]{1,18}):(-1|[0-9]{1,9})")


class StoredBlock(msgspec.Struct, frozen=True):
    """A decided block, its certificate, and the receipts of its transactions in their order."""

    block: CertifiedBlock
    receipts: tuple[Receipt, ...]


class EventFilter(msgspec.Struct, frozen=True):
    """Which events are wanted; None: no restriction."""

    contract: str | None = None
    topic: str | None = None


class EventCursor(msgspec.Struct, frozen=True, order=True):
    """A place in the ledger: just after the event at `position` (0-based within the block) of `height`.

    `position` -1 stands before the block's first event.
    """

    height: int
    position: int

    @classmethod
    def parse(cls, text: str) -> "EventCursor":
        """The cursor that was written as `text`; raise RejectedTransaction("invalid_cursor") when it is none."""
        found = _CURSOR.fullmatch(text)
        if not found:
            raise RejectedTransaction("invalid_cursor", f"{text[:80]!r} is not a cursor: write HEIGHT:POSITION")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.height}:{self.position}"


class Proofs(Protocol):
    """What makes evidence packs (docs/evidence.md). `checkpoint`: headers up to that height are put in too.

    Common errors: NotFound block_not_found, block_pruned, history_pruned, history_too_far; RejectedTransaction
    malformed_request, proof_too_large; Unavailable node_busy while another proof of a past height is being made or
    too many are asked for, proofs_spent for a client that has caused more work than one gets.
    """

    def for_client(self, client: str) -> "Proofs":
        """The same, in the name of `client` (an address): what is made is charged to it."""

    async def transaction(self, tx_id: bytes, checkpoint: int | None) -> bytes:
        """A final transaction and its receipt. Raises NotFound transaction_not_found."""

    def key(self, contract: str, field: str, parts: Sequence[str]) -> bytes:
        """The state key of a contract's field under `parts`, written as on the command line.

        Raises NotFound (unknown_contract, unknown_field), RejectedTransaction (invalid_arguments).
        """

    async def state(self, key: bytes, at_height: int | None, checkpoint: int | None) -> bytes:
        """The value under the state key after block `at_height` (None: the head), or its absence."""

    async def not_executed(self, data: bytes, at_height: int | None, checkpoint: int | None) -> bytes:
        """That a transaction (signed, or its body alone) was not executed and never will be.

        Raises RejectedTransaction (malformed_transaction, wrong_network, transaction_executed, not_expired_yet,
        wrong_proof_height), NotFound retention_over.
        """

    async def not_executed_by_id(self, tx_id: bytes, at_height: int | None, checkpoint: int | None) -> bytes:
        """The same of a transaction that this node accepted. Raises NotFound transaction_not_kept besides."""

    async def statement(
        self, account: str, from_height: int, to_height: int | None, checkpoint: int | None
    ) -> bytes:
        """Every entry of a settlement account after `from_height` up to `to_height` (None: the head).

        Raises NotFound account_not_found.
        """


class Backups(Protocol):
    """What a backup is made of."""

    def status(self) -> BackupStatus:
        """What the node could be backed up with now."""

    def make_snapshot(self) -> BackupStatus:
        """A snapshot of the head is being made for a backup, one at a time."""

    async def blocks(self, first: int) -> bytes:
        """Some blocks from `first` on (node.backup.pages). Raises NotFound("block_pruned")."""


class NodeService(Protocol):
    """The running node as the API sees it. All methods are called in the node's event loop.

    Synchronous methods answer from memory or by a few store reads (well under 5 ms) and never wait.
    Every expected failure is a HansaError; anything else is a bug of the node and answered with 500.
    """

    @property
    def network(self) -> str:
        """The network id that transactions carry."""

    @property
    def genesis_hash(self) -> bytes:
        """The hash of the network's definition (32 bytes)."""

    async def submit(self, transactions: Sequence[bytes]) -> list[Submission | HansaError]:
        """Judge raw transactions and take the good ones; one outcome each, in order. Never raises for one of them.

        Bytes that were accepted or are final already give a Submission with `duplicate`.
        """

    async def wait_final(self, tx_id: bytes, timeout_s: float) -> Fate:
        """The fate of `tx_id` once it is no longer pending, or after `timeout_s` as it then is."""

    async def wait_all(self, tx_ids: Sequence[bytes], timeout_s: float) -> Sequence[Fate | NotFound]:
        """For each of `tx_ids`, in order, what `wait_final` returns or raises; they are waited for together."""

    def fate(self, tx_id: bytes) -> Fate:
        """What became of `tx_id`; status `unknown` when this node has never seen it, or not kept it.

        Raises NotFound (`block_pruned`) where it is final in a block that is not here any more.
        """

    async def missing(self, tx_id: bytes) -> NotFound:
        """Why `tx_id` is unknown here, and where it may be found: an error to be raised."""

    def transaction(self, tx_id: bytes) -> bytes | None:
        """The raw transaction, pending or final, or None when this node does not have it."""

    def transactions(self, limit: int, before: str | None) -> TransactionPage:
        """At most `limit` transactions: pending ones, then final ones from the newest down.

        `before` is a `TransactionPage.before` of an earlier answer; raises RejectedTransaction("invalid_cursor")
        when it is none.
        """

    async def query(self, contract: str, name: str, args: dict[str, Any], at_height: int | None) -> QueryAnswer:
        """The answer of a contract's query on the head's state, or on that after block `at_height`.

        `args` are plain values (bytes as bytes); the value may hold bytes and tuples, the API writes them as JSON.
        Raises NotFound (unknown_contract, unknown_method, history_pruned, block_not_found) or
        RejectedTransaction (invalid_arguments, query_refused with the contract's code in details).
        """

    def block(self, height: int | None) -> StoredBlock:
        """The decided block at `height` (None: the newest). Raises NotFound("block_not_found" | "block_pruned")."""

    def events(self, after: EventCursor, limit: int, wanted: EventFilter) -> EventPage:
        """At most `limit` matching events after `after`, in ledger order; cursors as `str(EventCursor)`.

        One call scans a bounded number of blocks; `next` moves on over blocks without matching events.
        """

    async def wait_height(self, above: int) -> int:
        """The head's height, once it is greater than `above`."""

    def height(self) -> int:
        """The height of the last applied block."""

    def status(self) -> NodeStatus:
        """Where this node stands now."""

    def diverged_at(self) -> int | None:
        """The height of the block that this node executes otherwise than the network; None: there is none."""

    def members(self) -> tuple[MemberStatus, ...]:
        """The members of the network, in their order, as last heard."""

    def contracts(self) -> tuple[ContractAnswer, ...]:
        """The active contracts with the JSON Schemas of their arguments."""

    def why(self) -> Diagnosis:
        """Why blocks are made or not made, and who is missing."""

    def ready(self) -> tuple[bool, list[str]]:
        """Whether the node follows the network and blocks can be made; else sentences that name who is missing."""

    def evidence(self) -> tuple[EvidenceItem, ...]:
        """Proofs of equivocation that this node holds, oldest first."""

    def metrics(self) -> bytes:
        """Prometheus text exposition."""

    async def diagnostics(self) -> bytes:
        """The diagnostics bundle of this moment: a zip without keys, transactions or their arguments.

        Raises Unavailable("node_busy") while another one is being made.
        """

    @property
    def backups(self) -> Backups:
        """What a backup is made of."""

    @property
    def proofs(self) -> Proofs:
        """What makes evidence packs of this node's ledger."""

    async def dry_run(self, data: bytes) -> DryRun:
        """What the raw transaction would do on the head's state; nothing is changed, stored or gossiped.

        Raises RejectedTransaction as `submit` would report it.
        """
