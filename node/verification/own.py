"""What a store keeps besides the ledger: consensus records, evidence, the journal, endings, markers.

None of it follows from blocks, so only its form, its signatures and its agreement with itself can be judged. What
is merely gone leaves no trace here: whoever lost votes is told so by its peers at its next start, and abstains.
"""

import itertools

from consensus.codec import CodecError, decode
from consensus.effects import NewViewRecord, PreparedRecord, Record, ViewChangeRecord, VoteRecord
from consensus.members import Members
from consensus.messages import NewViewEquivocation, VoteEquivocation, VoteKind, new_view_bytes
from consensus.verification import Verifier
from node.config import NetworkConfig
from node.errors import HansaError
from node.ledger import Ending, HeadRecord, Transaction, transaction_signing_bytes
from node.store.database import Reader
from node.store.layout import (
    META_ABSTAIN,
    META_ADOPTING,
    META_DIVERGED,
    META_ENDINGS,
    META_FIRST,
    META_FORMAT,
    META_HEAD,
    META_HELD,
    META_NETWORK,
    META_NEVER_VOTED,
    META_PRUNED,
    META_RECOVERY,
    META_REMOVE,
    META_SILENCED,
    META_VOTED,
    META_VOTING_KEY,
    RECORD_SIZE_MAX,
    DivergenceRecord,
    EvidenceRecord,
    HeldTopic,
    RecoveryPromise,
    body_key,
    record_slot,
)
from node.store.reading import read_body, stored
from node.verification.chain import Verify
from node.verification.report import Progress, differs, read, require

NUMBERS = (META_HEAD, META_ABSTAIN, META_ENDINGS, META_FIRST, META_PRUNED, META_REMOVE)
VALUES = (
    META_FORMAT,
    META_NETWORK,
    META_NEVER_VOTED,
    META_VOTED,
    META_VOTING_KEY,
    META_SILENCED,
    META_RECOVERY,
    META_DIVERGED,
    META_ADOPTING,
    META_HELD,
)
MARKERS = (*VALUES, *NUMBERS)
LETTERS = b"bcdefghjklmpqrstuvwxy"
"""The first byte of every row that this release writes."""


class Own:
    """The rows of one store that tell of this member alone, and that no row is of an unknown kind."""

    def __init__(self, rows: Reader, network: NetworkConfig, verify: Verify, progress: Progress) -> None:
        """Nothing was read yet."""
        self._rows = rows
        self._network = network
        self._verify = verify
        self._verifier = Verifier(network.network_id, verify)
        self._progress = progress

    def check(self, head: HeadRecord, voting_keys: dict[str, set[bytes]]) -> None:
        """All of them can be read, and what is signed is signed; raise StoreError for the first that is wrong."""
        self._check_letters()
        self._check_markers()
        self._check_records(head)
        self._check_bodies(head)
        self._check_evidence(voting_keys)
        self._check_journal()

    def _check_letters(self) -> None:
        self._progress.where = "the store"
        known = [bytes((letter,)) for letter in LETTERS]
        edges = [b"", *itertools.chain.from_iterable((letter, bytes((letter[0] + 1,))) for letter in known)]
        for start, end in zip(edges[::2], [*edges[1::2], b"\xff" * 64], strict=True):
            for key, _ in self._rows.scan(start, end):
                raise differs("a row of no known kind", key)

    def _check_markers(self) -> None:
        self._progress.where = "the markers"
        found = dict(self._rows.scan(b"m", b"n"))
        for key, value in found.items():
            require(key in MARKERS, f"a marker {key[1:]!r} of no known kind", key)
            require(key not in NUMBERS or len(value) == 8, "a number cannot be read", key)
        silenced = found.get(META_SILENCED, b"")
        require(len(silenced) % 32 == 0, "the list of keys that never sign again cannot be read", META_SILENCED)
        never = META_NEVER_VOTED in found
        require(
            not (never and (META_VOTED in found or self._signed())),
            "the node is marked as one that never voted, and has voted",
            META_NEVER_VOTED,
        )
        if META_DIVERGED in found:
            read(found[META_DIVERGED], DivergenceRecord, "divergence", META_DIVERGED)
            self._progress.notes.append("this node has marked a block that it executes otherwise than the network")
        if META_RECOVERY in found:
            read(found[META_RECOVERY], tuple[RecoveryPromise, ...], "recovery promises", META_RECOVERY)
        if META_HELD in found:
            read(found[META_HELD], tuple[HeldTopic, ...], "list of what is held", META_HELD)

    def _signed(self) -> bool:
        return any(
            isinstance(_record(value), VoteRecord | ViewChangeRecord) for _, value in self._rows.scan(b"c", b"d")
        )

    def _check_records(self, head: HeadRecord) -> None:
        self._progress.where = "the consensus records"
        sequences: set[bytes] = set()
        for key, value in self._rows.scan(b"c", b"d"):
            record = _record(value)
            require(record is not None, "a record cannot be read", key)
            assert record is not None
            slot, height, _ = record_slot(record)
            require(key == b"c" + height.to_bytes(8, "big") + slot, "a record lies in another's place", key)
            require(value[:8] not in sequences, "two records have one number", key)
            sequences.add(value[:8])
            if height == head.height + 1:
                require(self._genuine(record, head.members), "a record's signature is wrong", key)

    def _genuine(self, record: Record, members: Members) -> bool:
        """Whether the record of the height in work was signed by whom it names."""
        match record:
            case VoteRecord():
                return self._verifier.vote(record.vote, members)
            case PreparedRecord():
                return self._verifier.certificate(record.certificate, VoteKind.PREPARE, members)
            case ViewChangeRecord():
                return self._verifier.view_change(record.message, members)
            case NewViewRecord():
                return self._verifier.new_view(record.message, members)

    def _check_bodies(self, head: HeadRecord) -> None:
        """Bodies belong to a decided block, or to one that was voted for and is marked."""
        self._progress.where = "the bodies"
        marked: set[bytes] = set()
        for key, value in self._rows.scan(b"w", b"x"):
            require(len(key) == 41 and not value, "a mark of a block in work cannot be read", key)
            body = read_body(self._rows, int.from_bytes(key[1:9], "big"), key[9:])
            require(body is not None, "a block in work has no body", key)
            marked.add(key[1:])
        for key, _ in self._rows.scan(b"b", b"c"):
            if key[1:] in marked:
                continue
            height = int.from_bytes(key[1:9], "big")
            data = self._rows.get(b"h" + key[1:9]) if 0 < height <= head.height else None
            decided = None if data is None else stored(data, HeadRecord, f"head record of block {height}").digest
            require(decided == key[9:], "a body belongs to no decided block and to none in work", key)

        for key, _ in self._rows.scan(b"k", b"l"):
            require(self._rows.get(b"h" + key[1:]) is not None, "a header belongs to no decided block", key)
        self._progress.where = "the blocks that are kept"
        for key, _ in self._rows.scan(b"y", b"z"):
            height = int.from_bytes(key[1:], "big")
            require(
                len(key) == 9 and 0 < height < self._progress.first_block, "a mark belongs to no pruned block", key
            )
            data = self._rows.get(b"h" + key[1:])
            kept = None if data is None else stored(data, HeadRecord, f"head record of block {height}")
            require(
                kept is not None and self._rows.get(body_key(height, kept.digest)) is not None,
                f"block {height} is to be kept, and its body is missing",
                key,
            )

    def _check_evidence(self, voting_keys: dict[str, set[bytes]]) -> None:
        self._progress.where = "the evidence"
        for place, (key, value) in enumerate(self._rows.scan(b"v", b"w")):
            require(key == b"v" + place.to_bytes(8, "big"), f"number {place} is missing", key)
            record = read(value, EvidenceRecord, "evidence", key)
            keys = sorted(voting_keys.get(record.member, set()))
            require(any(self._accuses(record, key) for key in keys), "it is not signed by the accused", key)

    def _accuses(self, record: EvidenceRecord, key: bytes) -> bool:
        match record.evidence:
            case VoteEquivocation(first=one, second=two):
                return one.digest != two.digest and all(self._verifier.vote_by(vote, key) for vote in (one, two))
            case NewViewEquivocation(first=one, second=two):
                return one != two and all(
                    self._verify(key, new_view_bytes(self._network.network_id, message), message.signature)
                    for message in (one, two)
                )
            case found:
                return all(self._verifier.presence(word, key) for word in (found.first, found.second))

    def _check_journal(self) -> None:
        self._progress.where = "the journal"
        for letter, following, what in ((b"p", b"q", "an accepted"), (b"j", b"k", "an ended")):
            for key, value in self._rows.scan(letter, following):
                transaction = _transaction(value)
                require(transaction is not None, f"{what} transaction cannot be read", key)
                assert transaction is not None
                require(transaction.tx_id == key[1:], f"{what} transaction lies under another id", key)
                message = transaction_signing_bytes(transaction.body_bytes)
                signed = [self._verify(item.key, message, item.signature) for item in transaction.signatures]
                require(all(signed), f"a signature of {what} transaction is wrong", key)
        named: set[bytes] = set()
        count = int.from_bytes(self._rows.get(META_ENDINGS) or b"", "big")
        for key, value in self._rows.scan(b"g", b"h"):
            require(len(key) == 9 and len(value) == 32, "a place in the list of endings cannot be read", key)
            require(int.from_bytes(key[1:], "big") < count, "an ending lies beyond their number", key)
            named.add(value)
        for key, value in self._rows.scan(b"f", b"g"):
            read(value, Ending, "ending of a transaction", key)
            require(key[1:] in named, "the ending of a transaction is not in their list", key)
        for key, _ in self._rows.scan(b"j", b"k"):
            require(key[1:] in named, "an ended transaction is not in the list of endings", key)


def _record(value: bytes) -> Record | None:
    try:
        record: Record = decode(value[8:], Record, size_max=RECORD_SIZE_MAX)  # type: ignore[arg-type]
    except CodecError:
        return None
    return record


def _transaction(data: bytes) -> Transaction | None:
    try:
        return Transaction.decode(data)
    except HansaError:
        return None
