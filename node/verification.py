"""The stopped node's whole ledger, read again and executed again from genesis on.

Nothing that the store says is believed: the members of each height come out of the replay, certificates and
signatures are verified, receipts, indexes and state are compared with what the blocks lead to.
"""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from consensus.messages import VoteKind
from consensus.verification import Verifier
from contracts import CONTRACTS
from contracts.engine import Engine
from contracts.membership import Membership
from node.config import NetworkConfig, NodeConfig, load_network
from node.errors import ConfigError, HansaError, StoreError
from node.executor import Executor
from node.keys import verify, verify_many
from node.ledger import Proposal, Transaction, transaction_signing_bytes
from node.store import ReceiptsRecord, Store, StoreView


class LedgerReport(msgspec.Struct, frozen=True):
    """What was read: `blocks` and `transactions` found right up to the first error, of `height` blocks in all."""

    ok: bool
    height: int
    blocks: int
    transactions: int
    first_error: str | None


def verify_directory(
    node: NodeConfig, progress: Callable[[int, int], None] = lambda height, head: None
) -> LedgerReport:
    """Return what the data directory of `node` holds; `progress(height, head)` is told of every block.

    The replay needs as much room again beside the data directory, until it is done. Raise ConfigError when the
    directory holds no ledger of this network or a running node holds it.
    """
    network = load_network(node.network_file)
    if not (node.data_dir / "CURRENT").exists():
        raise ConfigError("data_dir_unusable", f"{node.data_dir} holds no ledger")
    store = Store(node.data_dir, network.network_id, network.genesis_hash)
    try:
        with tempfile.TemporaryDirectory(prefix="verify-", dir=node.data_dir.parent) as scratch:
            return verify_store(store, network, Path(scratch), progress)
    finally:
        store.close()


def verify_store(
    store: Store, network: NetworkConfig, scratch: Path, progress: Callable[[int, int], None]
) -> LedgerReport:
    """Return what `store` holds, compared with a replay in the empty directory `scratch`."""
    replay = Store(scratch, network.network_id, network.genesis_hash)
    head = blocks = transactions = 0
    try:
        head = store.head.height
        executor = Executor(network, Engine(CONTRACTS), Membership)
        replay.initialise(executor.genesis(), never_voted=False)
        executor.open(replay.snapshot())
        _require(store.head_at(0) == replay.head, "genesis is not that of the network definition")
        verifier = Verifier(network.network_id, verify)
        for height in range(1, head + 1):
            transactions += _replay_block(store, replay, executor, verifier, height)
            blocks = height
            progress(height, head)
        _compare_state(store.snapshot(), replay.snapshot())
    except HansaError as error:
        where = f"block {blocks + 1}" if blocks < head else "state"
        return LedgerReport(False, head, blocks, transactions, f"{where}: {error}")
    finally:
        replay.close()
    return LedgerReport(True, head, blocks, transactions, None)


def _replay_block(store: Store, replay: Store, executor: Executor, verifier: Verifier, height: int) -> int:
    """The block at `height` is right and applied to `replay`; return how many transactions it has."""
    block = store.block(height)
    body, certificate = block.body, block.certificate
    _require(
        (certificate.height, certificate.digest) == (height, body.header.digest)
        and verifier.certificate(certificate, VoteKind.COMMIT, replay.head.members),
        "the certificate is not one of the members of this height",
    )
    transactions = [Transaction.decode(data) for data in body.transactions]
    signatures = [
        (signature.key, transaction_signing_bytes(transaction.body_bytes), signature.signature)
        for transaction in transactions
        for signature in transaction.signatures
    ]
    _require(all(verify_many(signatures)), "a transaction's signature is wrong")
    wire_ids = tuple([transaction.wire_id for transaction in transactions])
    executed = executor.check(Proposal(body.header, wire_ids, body.quarantined), transactions, decided=True)
    stored = store.head_at(height)
    _require(store.receipts(height) == ReceiptsRecord(executed.scheduled, executed.receipts), "the receipts differ")
    for position, tx_id in enumerate(executed.tx_ids):
        _require(store.locate(tx_id) == (height, position), f"transaction {tx_id.hex()} is not found by its id")
    applied = replay.apply(executed, certificate, stored.start_view)
    _require(stored == applied, "the head record differs")
    executor.advance(executed, replay.snapshot())
    return len(transactions)


def _compare_state(ours: StoreView, right: StoreView) -> None:
    """Raise StoreError for the first value or bucket of `ours` that differs from `right`."""
    for found, expected in itertools.zip_longest(ours.scan(b"", b"\xff"), right.scan(b"", b"\xff")):
        _require(found == expected, f"the value under {(found or expected or (b'',))[0].hex()} differs")
    for found, expected in itertools.zip_longest(ours.buckets(), right.buckets()):
        _require(found == expected, f"bucket {(found or expected or (b'',))[0].hex()} of the state tree differs")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise StoreError("ledger_differs", message)
