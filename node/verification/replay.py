"""Blocks executed again in an empty directory beside the ledger, from genesis or from an older state of it.

Why a store of its own: execution must not read what is being judged. The state it begins with is proven by the root
in a certified header; from then on receipts, values, members and undo records come out of the blocks alone.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec

from consensus.codec import encode
from consensus.effects import BlockStanding
from contracts import CONTRACTS, FURTHER
from contracts.engine import Engine
from contracts.membership import Membership
from node.config import NetworkConfig
from node.errors import HansaError, StoreError
from node.executor import Executor, request_of
from node.ledger import BlockBody, CertifiedBlock, HeadRecord, Proposal, Transaction, transaction_signing_bytes
from node.signatures import verify, verify_many
from node.snapshot import pending_adoption
from node.state import ExecutedBlock
from node.store import LevelDatabase, Store
from node.store.layout import FORMAT, META_FORMAT, META_HEAD, META_NETWORK, UndoRecord, number
from node.verification.report import differs

SIGNATURES_PER_JOB = 64
BATCH_BYTES = 4 * 1024 * 1024


class OpenedBlock(msgspec.Struct, frozen=True):
    """A block's body with its transactions decoded, and the verdicts on their signatures, made in threads."""

    body: BlockBody
    transactions: list[Transaction]
    verdicts: list["Future[list[bool]]"]

    def require_signatures(self) -> None:
        """Every transaction of the block is signed by the keys that it names; else raise StoreError."""
        good = [verdict for job in self.verdicts for verdict in job.result()]
        at = 0
        for transaction in self.transactions:
            count = len(transaction.signatures)
            if not all(good[at : at + count]):
                raise differs(f"a signature of transaction {transaction.tx_id.hex()} is wrong")
            at += count


def open_block(body: BlockBody, threads: ThreadPoolExecutor) -> OpenedBlock:
    """Return `body` opened; its signatures are being verified from now on. StoreError for what is no block."""
    transactions: list[Transaction] = []
    for position, data in enumerate(body.transactions):
        try:
            transactions.append(Transaction.decode(data))
        except HansaError as error:
            raise differs(f"transaction {position} cannot be read: {error.message}") from error
    items = [
        (signature.key, transaction_signing_bytes(transaction.body_bytes), signature.signature)
        for transaction in transactions
        for signature in transaction.signatures
    ]
    jobs = [
        threads.submit(verify_many, items[start : start + SIGNATURES_PER_JOB])
        for start in range(0, len(items), SIGNATURES_PER_JOB)
    ]
    return OpenedBlock(body, transactions, jobs)


def genesis_head(network: NetworkConfig) -> HeadRecord:
    """Return the head record of the genesis that the network's definition makes."""
    made = make_executor(network).genesis()
    header = made.header
    return HeadRecord(0, made.digest, header.time_ms, header.state_root, None, 0, made.members.validators)


def make_executor(network: NetworkConfig) -> Executor:
    """Return an executor of the contracts that this release has."""
    return Executor(network, Engine(CONTRACTS, FURTHER), Membership)


class Replay:
    """A ledger that grows by executing blocks, and says what it comes to."""

    def __init__(self, path: Path, network: NetworkConfig) -> None:
        """Stand on nothing in the empty directory `path`; call `begin_at_genesis` or `begin_at`."""
        self._path = path
        self._network = network
        self.executor = make_executor(network)
        self._store: Store | None = None

    @property
    def store(self) -> Store:
        """The ledger that it has come to."""
        if self._store is None:
            raise ValueError("the replay stands on nothing yet")
        return self._store

    def begin_at_genesis(self) -> None:
        """Stand on the genesis that the network's definition makes."""
        self._store = Store(self._path, self._network.network_id, self._network.genesis_hash)
        self._store.initialise(self.executor.genesis(), never_voted=False)
        self.executor.open(self._store.snapshot())

    def begin_at_snapshot(self, folder: Path, on_progress: Callable[[int, int], None]) -> None:
        """Stand on the block of the snapshot in `folder`, proven by its certificate.

        Raise StoreError when that is no whole snapshot of this network.
        """
        network = self._network
        with contextlib.closing(Store(self._path, network.network_id, network.genesis_hash)) as store:
            store.initialise(self.executor.genesis(), never_voted=False)
        with contextlib.closing(LevelDatabase(self._path)) as database:
            adoption = pending_adoption(
                database,
                folder,
                network.network_id,
                network.genesis_hash,
                network.validators,
                network.parameters.state_tree_bits,
                verify,
                recoveries=network.recoveries,
            )
            if adoption is None:
                raise StoreError("store_corrupt", f"{folder} is no whole snapshot of this network")
            adoption.perform(request_of, on_progress)
        self._store = Store(self._path, network.network_id, network.genesis_hash)
        self.executor.open(self._store.snapshot())

    def begin_at(self, head: HeadRecord, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Stand on `head`, whose state, tree and request index are `rows`; StoreError when they are not."""
        database = LevelDatabase(self._path)
        try:
            marker = encode((self._network.network_id, self._network.genesis_hash))
            for batch in batches(rows):
                database.write(batch)
            database.write(
                [
                    (META_FORMAT, FORMAT),
                    (META_NETWORK, marker),
                    (b"h" + number(head.height), encode(head)),
                    (META_HEAD, number(head.height)),
                ]
            )
        finally:
            database.close()
        self._store = Store(self._path, self._network.network_id, self._network.genesis_hash)
        self.executor.open(self._store.snapshot())

    def execute(self, opened: OpenedBlock) -> ExecutedBlock:
        """Return what the next block does; raise InvalidBlock when it is not what its header says."""
        wire_ids = tuple([transaction.wire_id for transaction in opened.transactions])
        proposal = Proposal(opened.body.header, wire_ids, opened.body.quarantined)
        return self.executor.check(proposal, opened.transactions, standing=BlockStanding.DECIDED)

    def apply(self, executed: ExecutedBlock, block: CertifiedBlock, start_view: int) -> HeadRecord:
        """The executed block is part of the ledger; return the new head."""
        head = self.store.apply(executed, block.certificate, start_view)
        self.executor.advance(executed, self.store.snapshot())
        return head

    def close(self) -> None:
        """The directory is free."""
        if self._store is not None:
            self._store.close()


def undo_bytes(executed: ExecutedBlock) -> bytes:
    """Return the undo record that a store keeps of the block."""
    return encode(UndoRecord(tuple(executed.writes.before.items())))


def batches(rows: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes | None]]]:
    """Yield `rows` in lists of a few megabytes."""
    batch: list[tuple[bytes, bytes | None]] = []
    size_bytes = 0
    for key, value in rows:
        batch.append((key, value))
        size_bytes += len(key) + len(value)
        if size_bytes >= BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch
