"""Whether an archive holds what the members of this network certified: nothing of the file is believed.

Trusted are the network definition (or the members given) and the signature scheme. From there on every step is
proven: the member lists by certified headers, each block by its certificate and its parent, transactions and
receipts by the header's roots, the transaction index by the receipts.
"""

from collections.abc import Callable

import msgspec

from consensus.members import Members, Validator
from consensus.messages import VoteKind
from consensus.verification import Verifier
from node.archive.format import TRANSACTION_ROW, ArchivedBlock, ArchiveHead
from node.archive.reader import ArchiveReader
from node.config import NetworkConfig
from node.errors import RejectedTransaction, StoreError
from node.ledger import (
    Header,
    Transaction,
    content_root,
    members_hash,
    merkle_root,
    transaction_signing_bytes,
)
from node.signatures import verify, verify_many
from node.store.reading import read_receipt


class ArchiveProof(msgspec.Struct, frozen=True):
    """What was proven: heights, counts, the digest of the last block, and who decides the height after it."""

    first: int
    last: int
    transactions: int
    digest: bytes
    members: Members


def verify_archive(
    reader: ArchiveReader,
    network: NetworkConfig,
    members: Members | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    parent: bytes | None = None,
    signatures: bool = True,
) -> ArchiveProof:
    """Return what the archive proves; `progress(blocks done, blocks in all)` after each block.

    `members` decided the first block; None: they come from the network definition through the changes in the
    file's head. `parent` is the digest of the block before the first, where it is known. Without `signatures` those
    of transactions are left out, for a node that verified each before it voted. Raise StoreError:
    `archive_damaged` for bytes that are not as written, `archive_refused` for content that nobody certified.
    """
    head = reader.head
    _require(
        (head.network, head.genesis_hash) == (network.network_id, network.genesis_hash),
        f"the archive belongs to network {head.network}, not to {network.network_id}",
    )
    verifier = network.recoveries.verifier(network.network_id, verify)
    proven = _members_at_first(head, network, verifier)
    changed = [change.header.height for change in head.changes]
    left_out = network.recoveries.passed_over(head.first - 1, changed)
    if left_out is not None:
        raise StoreError("recovery_differs", f"it leaves out the recovery at block {left_out.height}")
    if members is not None:
        _require(members == proven, f"block {head.first} was decided by other members")
    before = parent if head.parent is None else head.parent.digest
    _require(parent is None or before == parent, f"block {head.first} follows another block than the one known")
    reader.check_layout()
    rows: list[bytes] = []
    total = reader.last - reader.first + 1
    for height in range(reader.first, reader.last + 1):
        item = reader.block(height)
        after = _members(item.validators, height)
        _require_history(item.block.body.header, network)
        for tx_id, position in _verify_block(item, network.network_id, before, proven, after, verifier, signatures):
            rows.append(TRANSACTION_ROW.pack(tx_id, height - reader.first, position))
        before, proven = item.block.body.header.digest, after
        progress(height - reader.first + 1, total)
    reader.check_transactions(rows)
    return ArchiveProof(reader.first, reader.last, len(rows), before or b"", proven)


def require_no_gap(last: int, reader: ArchiveReader) -> None:
    """No block is missing between `last`, up to which archives reach, and the first of this one.

    Raise StoreError (`archive_refused`), which names the missing blocks. Files may overlap: each is proven alone.
    """
    if reader.first > last + 1:
        missing = (
            f"blocks {last + 1} to {reader.first - 1} are" if reader.first > last + 2 else f"block {last + 1} is"
        )
        raise StoreError(
            "archive_refused", f"{missing} missing: {reader.path.name} does not follow the file before it"
        )


def _members_at_first(head: ArchiveHead, network: NetworkConfig, verifier: Verifier) -> Members:
    """Return who decides the first block: from genesis through certified changes, each judged by those before."""
    members, last = network.validators, 0
    for change in head.changes:
        height = change.header.height
        _require(last < height < head.first, "the member changes in its head are out of order")
        _verify_decided(change.header, change.certificate.digest, change.certificate.height, network.network_id)
        _require_history(change.header, network)
        _require(
            verifier.certificate(change.certificate, VoteKind.COMMIT, members),
            f"the change of members at block {height} has no certificate of the members of its height",
        )
        members, last = _members(change.validators, height), height
        _require(
            change.header.members_hash == members_hash(members),
            f"the change of members at block {height} names other members than its header",
        )
    _require(members.validators == head.validators, f"block {head.first} is said to be decided by other members")
    if head.first > 1:
        _require(head.parent is not None, "the header before its first block is missing")
    if head.parent is not None:
        _require(head.parent.height == head.first - 1, "the header before its first block has another height")
        _require(
            head.parent.members_hash == members_hash(members),
            f"a change of members below block {head.first} is missing in its head",
        )
    return members


def _require_history(header: Header, network: NetworkConfig) -> None:
    """The block belongs to the history that is trusted here, as far as recoveries say."""
    objection = network.recoveries.objection(header.height, header.digest, header.proposer)
    if objection:
        raise StoreError("recovery_differs", objection)


def _verify_decided(header: Header, digest: bytes, height: int, network_id: str) -> None:
    _require(header.network == network_id, f"block {header.height} belongs to network {header.network}")
    _require(
        (height, digest) == (header.height, header.digest),
        f"block {header.height} carries a certificate of something else",
    )


def _members(validators: tuple[Validator, ...], height: int) -> Members:
    try:
        return Members(validators)
    except ValueError as error:
        raise StoreError("archive_refused", f"the members after block {height} are no list: {error}") from error


def _verify_block(
    item: ArchivedBlock,
    network_id: str,
    parent: bytes | None,
    members: Members,
    after: Members,
    verifier: Verifier,
    signatures: bool,
) -> list[tuple[bytes, int]]:
    """Return (tx_id, position) of the block's transactions; all that its header commits to is right."""
    body, certificate, height = item.block.body, item.block.certificate, item.height
    header = body.header
    _verify_decided(header, certificate.digest, certificate.height, network_id)
    _require(parent is None or header.parent == parent, f"block {height} does not follow block {height - 1}")
    _require(
        verifier.certificate(certificate, VoteKind.COMMIT, members),
        f"block {height} has no certificate of the members of its height",
    )
    _require(
        header.members_hash == members_hash(after),
        f"the members after block {height} are not those of its header",
    )
    transactions, rows = verify_contents(item)
    signed = [
        (signature.key, transaction_signing_bytes(transaction.body_bytes), signature.signature)
        for transaction in transactions
        for signature in transaction.signatures
    ]
    _require(not signatures or all(verify_many(signed)), f"a transaction of block {height} has a wrong signature")
    return rows


def verify_contents(item: ArchivedBlock) -> tuple[list[Transaction], list[tuple[bytes, int]]]:
    """Return the block's transactions and their (tx_id, position), when all are what its header commits to.

    Raise StoreError (`archive_refused`).
    """
    body, height = item.block.body, item.height
    header = body.header
    _require(
        content_root(body.transactions, body.quarantined) == header.tx_root,
        f"block {height} has other transactions than its header says",
    )
    receipts = item.receipts.receipts
    _require(
        merkle_root(receipts) == header.receipts_root, f"block {height} has other receipts than its header says"
    )
    scheduled = item.receipts.scheduled
    _require(
        scheduled == len(receipts) - len(body.transactions) and scheduled >= 0,
        f"block {height} has not one receipt for each transaction",
    )
    try:
        transactions = [Transaction.decode(data) for data in body.transactions]
    except RejectedTransaction as error:
        raise StoreError("archive_refused", f"block {height} holds bytes that are no transaction") from error
    rows: list[tuple[bytes, int]] = []
    for position, transaction in enumerate(transactions, scheduled):
        receipt = read_receipt(receipts, height, position)
        _require(receipt.tx_id == transaction.tx_id, f"block {height} has the receipt of another transaction")
        rows.append((transaction.tx_id, position))
    return transactions, rows


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise StoreError("archive_refused", message)
