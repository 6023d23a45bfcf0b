"""What lies beside a block: receipts against the header's root, and the indexes that follow from them.

Receipts name their transactions and events, and the header's root proves receipts; so both indexes are judged
without executing anything. Every entry that follows from a block must be there, and nothing else may be: entries
are counted, and only where the counts differ is the odd one looked for.
"""

from collections.abc import Iterator

from consensus.codec import CodecError, decode
from node.errors import StoreError
from node.ledger import BlockBody, Receipt, Transaction, merkle_root
from node.store.database import Reader
from node.store.layout import RECORD_SIZE_MAX, ReceiptsRecord, location, number, read_location, topic_prefix
from node.store.reading import stored
from node.verification.report import Progress, differs, require


class Contents:
    """The receipts and indexes of one store, block by block, and at the end what belongs to no block."""

    def __init__(self, rows: Reader, progress: Progress) -> None:
        """Nothing was read yet."""
        self._rows = rows
        self._progress = progress
        self._transactions = 0
        self._topics = 0
        self._receipts = 0

    def check(self, body: BlockBody, transactions: list[Transaction]) -> ReceiptsRecord:
        """The block's receipts have the header's root, and both indexes name it as they should; return them."""
        height = body.header.height
        key = b"r" + number(height)
        data = self._rows.get(key)
        require(data is not None, "its receipts are missing", key)
        record = stored(data or b"", ReceiptsRecord, f"receipts of block {height}")
        require(merkle_root(record.receipts) == body.header.receipts_root, "the receipts differ", key)
        tx_ids, topics = derive(record)
        require(
            0 <= record.scheduled == len(tx_ids) - len(body.transactions)
            and tx_ids[record.scheduled :] == [transaction.tx_id for transaction in transactions],
            "the receipts are not those of its transactions",
            key,
        )
        for entry, value in index_rows(height, tx_ids, topics):
            found = self._rows.get(entry)
            if found != value:
                what = "transaction" if entry[:1] == b"x" else "an event"
                name = f" {entry[1:].hex()}" if entry[:1] == b"x" else ""
                way = "by its id" if entry[:1] == b"x" else "under its topic"
                raise differs(f"{what}{name} is not found {way}", entry)
        if height >= self._progress.first_block:
            self._receipts += 1
            self._transactions += len(tx_ids)
            self._topics += len(topics)
        return record

    def finish(self) -> None:
        """No receipts and no index entries are here besides those of the blocks that were checked, or pruned."""
        first = self._progress.first_block
        self._progress.where = "the index of transactions"
        found = 0
        for key, value in self._rows.scan(b"x", b"y"):
            require(len(key) == 33 and len(value) == 12, "an entry cannot be read", key)
            height = read_location(value)[0]
            require(1 <= height <= self._progress.height, f"an entry names block {height}", key)
            found += height >= first
        if found != self._transactions:
            self._find_odd_transaction(first)
        self._progress.where = "the index of events"
        found = 0
        for key, value in self._rows.scan(b"e", b"f"):
            height = _event_height(key, value)
            require(1 <= height <= self._progress.height, f"an entry names block {height}", key)
            found += height >= first
        if found != self._topics:
            self._find_odd_topic(first)
        self._progress.where = "the receipts"
        found = 0
        for key, _ in self._rows.scan(b"r", b"s"):
            require(len(key) == 9, "receipts have a key of another length", key)
            height = int.from_bytes(key[1:], "big")
            require(1 <= height <= self._progress.height, f"receipts of block {height}, which is not decided", key)
            found += height >= first
        require(found == self._receipts, "receipts are missing or belong to no block")

    def _find_odd_transaction(self, first: int) -> None:
        for key, value in self._rows.scan(b"x", b"y"):
            height, position = read_location(value)
            if height >= first:
                receipts = self._read(height).receipts
                named = position < len(receipts) and _receipt(receipts[position], height).tx_id == key[1:]
                require(named, f"an entry names a transaction that block {height} does not hold", key)

    def _find_odd_topic(self, first: int) -> None:
        for key, value in self._rows.scan(b"e", b"f"):
            height = _event_height(key, value)
            if height >= first:
                expected = dict(index_rows(height, [], derive(self._read(height))[1]))
                require(key in expected, f"an entry names an event that block {height} does not hold", key)

    def _read(self, height: int) -> ReceiptsRecord:
        data = self._rows.get(b"r" + number(height))
        if data is None:
            raise StoreError("store_corrupt", f"the receipts of block {height} vanished")
        return stored(data, ReceiptsRecord, f"receipts of block {height}")


def derive(record: ReceiptsRecord) -> tuple[list[bytes], dict[str, list[int]]]:
    """Return the tx_id of each receipt, and (topic to ascending positions) of their events."""
    tx_ids: list[bytes] = []
    topics: dict[str, list[int]] = {}
    for position, data in enumerate(record.receipts):
        receipt = _receipt(data, None)
        tx_ids.append(receipt.tx_id)
        for call in receipt.calls:
            for event in call.events:
                for topic in event.topics:
                    positions = topics.setdefault(topic, [])
                    if not positions or positions[-1] != position:
                        positions.append(position)
    return tx_ids, topics


def index_rows(height: int, tx_ids: list[bytes], topics: dict[str, list[int]]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the index rows of a block: where its transactions and its events are found."""
    for position, tx_id in enumerate(tx_ids):
        yield b"x" + tx_id, location(height, position)
    for topic, positions in topics.items():
        yield topic_prefix(topic) + number(height), b"".join([at.to_bytes(4, "big") for at in positions])


def _event_height(key: bytes, value: bytes) -> int:
    require(len(key) >= 10 and bool(value) and len(value) % 4 == 0, "an entry cannot be read", key)
    return int.from_bytes(key[-8:], "big")


def _receipt(data: bytes, height: int | None) -> Receipt:
    try:
        return decode(data, Receipt, size_max=RECORD_SIZE_MAX)
    except CodecError as error:
        block = "" if height is None else f" of block {height}"
        raise differs(f"a receipt{block} cannot be read: {error}") from error
