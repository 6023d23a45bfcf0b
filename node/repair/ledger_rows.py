"""The rows that follow from blocks made right again: bodies, head records, headers, receipts, indexes.

Invariant: what is written was proven by a certificate of the members of its height, or by a header that such a
certificate covers. The heights are gone through upwards, so that the members of each are known when it is judged.
"""

from collections.abc import Callable, Sequence

from consensus.codec import encode
from consensus.members import Members, Validator
from consensus.messages import VoteKind
from node.config import NetworkConfig
from node.errors import HansaError, RejectedTransaction, StoreError
from node.ledger import (
    BlockBody,
    CertifiedBlock,
    Header,
    HeadRecord,
    Transaction,
    content_root,
    members_hash,
    merkle_root,
)
from node.repair.report import Journal, unproven
from node.repair.sources import BlockSource
from node.signatures import verify
from node.store import Database, ReceiptsRecord
from node.store.layout import META_HEAD, body_key, number, read_location
from node.store.reading import read_body, read_receipt, stored
from node.verification import genesis_head
from node.verification.contents import derive, index_rows

MENDED = "rows made right again"


class LedgerRows:
    """Mends one store's rows that follow from its blocks."""

    def __init__(
        self,
        database: Database,
        network: NetworkConfig,
        sources: Sequence[BlockSource],
        journal: Journal,
        progress: Callable[[int, int], None],
    ) -> None:
        """`sources` are asked in their order for what cannot be mended from the rows themselves."""
        self._database = database
        self._network = network
        self._sources = sources
        self._journal = journal
        self._progress = progress
        self._verifier = network.recoveries.verifier(network.network_id, verify)
        self._expected = {b"x": 0, b"e": 0, b"r": 0}
        self.head_was_damaged = False

    def mend(self, height: int, first_block: int) -> HeadRecord:
        """Every row of the blocks 1 … `height` is right, bodies from `first_block` on; return the head.

        Raise StoreError("repair_impossible") for what nobody could prove.
        """
        before = self._genesis()
        changes: set[int] = set()
        last_head = self._last_head(height)
        for at in range(1, height + 1):
            if at < first_block - 1 and self._absent(at):
                continue
            head = self._mend_block(at, before, first_block, last_head)
            if head.validators != before.validators:
                changes.add(at)
            before = head
            self._progress(at, height)
        self._mend_changes(changes)
        for letter in (b"x", b"e", b"r"):
            self._remove_strays(letter, height, first_block)
        return before

    def _genesis(self) -> HeadRecord:
        right = genesis_head(self._network)
        self._mend_row(b"h" + number(0), encode(right))
        return right

    def _last_head(self, height: int) -> int:
        """The height of the head, noted once more where the marker was wrong."""
        self._mend_row(META_HEAD, number(height))
        return height

    def _absent(self, height: int) -> bool:
        """Whether the height was never here, because a snapshot was joined above it."""
        return (
            self._database.get(b"h" + number(height)) is None and self._database.get(b"k" + number(height)) is None
        )

    def _mend_block(self, height: int, before: HeadRecord, first_block: int, last: int) -> HeadRecord:
        key = b"h" + number(height)
        known = self._readable_head(key, height)
        header, body = self._content(height, known)
        if known is None or header is None or not self._proven(known, header, before):
            block = self._fetch_block(height, before)
            header, body = block.body.header, block.body
            kept = known is not None and self._proven(known, header, before)
            head = known if known is not None and kept else self._head_of(block, before, known)
            if height == last and not kept:
                self.head_was_damaged = True
        else:
            head = known
            if body is None and height >= first_block:
                body = self._fetch_block(height, before).body
        self._mend_row(key, encode(head))
        if body is not None and (height >= first_block or self._kept(height)):
            self._mend_row(body_key(height, head.digest), encode(body))
            self._mend_contents(height, body, first_block)
        elif height < first_block:
            self._mend_row(b"k" + number(height), encode(header))
        return head

    def _kept(self, height: int) -> bool:
        return self._database.get(b"r" + number(height)) is not None

    def _readable_head(self, key: bytes, height: int) -> HeadRecord | None:
        data = self._database.get(key)
        try:
            head = None if data is None else stored(data, HeadRecord, "head record")
        except StoreError:
            return None
        return head if head is not None and head.height == height else None

    def _content(self, height: int, head: HeadRecord | None) -> tuple[Header | None, BlockBody | None]:
        """(header, body) of the height as far as they are here and whole."""
        if head is None:
            return None, None
        try:
            body = read_body(self._database, height, head.digest)
        except StoreError:
            body = None
        if body is not None:
            return body.header, body
        data = self._database.get(b"k" + number(height))
        try:
            header = None if data is None else stored(data, Header, "header")
        except StoreError:
            return None, None
        return (header, None) if header is not None and header.digest == head.digest else (None, None)

    def _proven(self, head: HeadRecord, header: Header, before: HeadRecord) -> bool:
        certificate = head.certificate
        return (
            (before.height != head.height - 1 or header.parent == before.digest)
            and certificate is not None
            and (certificate.height, certificate.digest) == (head.height, header.digest)
            and self._verifier.certificate(certificate, VoteKind.COMMIT, before.members)
            and (head.time_ms, head.state_root) == (header.time_ms, header.state_root)
            and certificate.view <= head.start_view < 2**63
            and self._named(head.validators, header)
        )

    def _fetch_block(self, height: int, before: HeadRecord) -> CertifiedBlock:
        """The certified block at `height`, from the first source that has the right one."""
        for source in self._sources:
            for block in source.blocks(height):
                header, certificate = block.body.header, block.certificate
                if (
                    (header.network, header.height) == (self._network.network_id, height)
                    and (before.height != height - 1 or header.parent == before.digest)
                    and header.tx_root == content_root(block.body.transactions, block.body.quarantined)
                    and (certificate.height, certificate.digest) == (height, header.digest)
                    and self._verifier.certificate(certificate, VoteKind.COMMIT, before.members)
                ):
                    self._journal.fetched += 1
                    self._journal.count(f"blocks from {source.name}")
                    return block
        raise unproven(f"nobody gave block {height}: {self._asked()}")

    def _head_of(self, block: CertifiedBlock, before: HeadRecord, known: HeadRecord | None) -> HeadRecord:
        """The head record of a fetched block; who decides the next height is proven by the header's hash."""
        header, certificate = block.body.header, block.certificate
        candidates = [before.validators]
        if known is not None:
            candidates.append(known.validators)
        validators = next((item for item in candidates if self._named(item, header)), None)
        if validators is None:
            raise unproven(f"block {header.height} changed the members, and nothing here tells to whom")
        return HeadRecord(
            header.height,
            header.digest,
            header.time_ms,
            header.state_root,
            certificate,
            # The view in which the next height starts matters at the head alone; there the node abstains.
            certificate.view,
            validators,
        )

    def _named(self, validators: tuple[Validator, ...], header: Header) -> bool:
        try:
            return members_hash(Members(validators)) == header.members_hash
        except ValueError:
            return False

    def _mend_contents(self, height: int, body: BlockBody, first_block: int) -> None:
        """Receipts and indexes of the block are right."""
        key = b"r" + number(height)
        record = self._receipts(height, body)
        self._mend_row(key, encode(record))
        tx_ids, topics = derive(record)
        for entry, value in index_rows(height, tx_ids, topics):
            self._mend_row(entry, value)
        if height >= first_block:
            self._expected[b"x"] += len(tx_ids)
            self._expected[b"e"] += len(topics)
            self._expected[b"r"] += 1

    def _receipts(self, height: int, body: BlockBody) -> ReceiptsRecord:
        data = self._database.get(b"r" + number(height))
        try:
            record = None if data is None else stored(data, ReceiptsRecord, "receipts")
        except StoreError:
            record = None
        if record is not None and self._fits(record.receipts, record.scheduled, body):
            return record
        if self._fits((), 0, body):
            return ReceiptsRecord(0, ())
        for source in self._sources:
            for receipts in source.receipts(height):
                scheduled = len(receipts) - len(body.transactions)
                if self._fits(receipts, scheduled, body):
                    self._journal.fetched += 1
                    self._journal.count(f"receipts of blocks from {source.name}")
                    return ReceiptsRecord(scheduled, receipts)
        raise unproven(f"nobody gave the receipts of block {height}: {self._asked()}")

    def _fits(self, receipts: tuple[bytes, ...], scheduled: int, body: BlockBody) -> bool:
        """Whether these are the receipts that the header commits to, one for each transaction after `scheduled`."""
        if merkle_root(receipts) != body.header.receipts_root or not 0 <= scheduled <= len(receipts):
            return False
        if scheduled + len(body.transactions) != len(receipts):
            return False
        try:
            named = [read_receipt(receipts, body.header.height, at).tx_id for at in range(scheduled, len(receipts))]
            return named == [Transaction.decode(data).tx_id for data in body.transactions]
        except (StoreError, RejectedTransaction):
            return False

    def _asked(self) -> str:
        return "; ".join(source.account() for source in self._sources) or "nobody was asked"

    def _mend_changes(self, changes: set[int]) -> None:
        wanted = {b"l" + number(height) for height in changes}
        for key, _ in list(self._database.scan(b"l", b"m")):
            if key not in wanted:
                self._remove(key)
        for key in sorted(wanted):
            self._mend_row(key, b"")

    def _remove_strays(self, letter: bytes, head: int, first_block: int) -> None:
        """No row of the kind is here that no block leads to; they are only looked for when there are too many."""
        following = bytes((letter[0] + 1,))
        found, strays = 0, []
        for key, value in self._database.scan(letter, following):
            height = _height_of(key, value)
            if not 1 <= height <= head:
                strays.append(key)
            found += first_block <= height <= head
        if found != self._expected[letter]:
            for key, value in self._database.scan(letter, following):
                height = _height_of(key, value)
                if first_block <= height <= head and not self._belongs(key, value, height):
                    strays.append(key)
        for key in strays:
            self._remove(key)

    def _belongs(self, key: bytes, value: bytes, height: int) -> bool:
        try:
            data = self._database.get(b"r" + number(height))
            record = stored(data or b"", ReceiptsRecord, "receipts")
            tx_ids, topics = derive(record)
        except HansaError:
            return False
        return key[:1] == b"r" or dict(index_rows(height, tx_ids, topics)).get(key) == value

    def _mend_row(self, key: bytes, value: bytes) -> None:
        try:
            same = self._database.get(key) == value
        except StoreError:
            same = False
        if not same:
            self._database.write([(key, value)])
            self._journal.count_row(MENDED, key)

    def _remove(self, key: bytes) -> None:
        self._database.write([(key, None)])
        self._journal.count_row("rows that belong to no block removed", key)


def _height_of(key: bytes, value: bytes) -> int:
    """The height that a row of an index, or receipts, names; 0 where it cannot be read."""
    if key[:1] == b"x":
        return read_location(value)[0] if len(key) == 33 and len(value) == 12 else 0
    if key[:1] == b"r":
        return int.from_bytes(key[1:], "big") if len(key) == 9 else 0
    return int.from_bytes(key[-8:], "big") if len(key) >= 10 and value and len(value) % 4 == 0 else 0
