"""Takes old blocks out of a store, and puts archived ones back.

Invariants. (1) A block is here whole (body, receipts, index rows) or only its header is: all its rows go and come
in one batch. (2) Only blocks in a range that `release` named go, and whoever calls it has seen their archive
synced and read. (3) Head records, headers, consensus records and evidence are never touched. (4) After a crash
at any write `removals` goes on where it was: the range stands in `mpruned` and `mremove` until all of it is done.

A block under legal hold stays, with a `y` row that says so; so does one that was imported again.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias

import msgspec

from consensus.codec import encode
from node.errors import StoreError
from node.ledger import CertifiedBlock, Receipt
from node.store.database import Database, Reader
from node.store.layout import (
    META_FIRST,
    META_HELD,
    META_PRUNED,
    META_REMOVE,
    HeldTopic,
    ReceiptsRecord,
    body_key,
    location,
    number,
    topic_prefix,
)
from node.store.reading import read_first, read_head, read_header, read_height, read_held, read_receipts, stored

HELD: Final = b"held"
IMPORTED: Final = b"imported"
ROWS_A_BATCH: Final = 1_000
"""Blocks are put together up to so many rows, so that empty ones do not cost a sync each."""
PART_BYTES: Final = 32 * 1024 * 1024
"""What one step of a compaction rewrites at most, about: a second of work for the disk."""
_POSITION_BYTES: Final = 30
"""So many bytes of keys halve a range finely enough."""

_Rows: TypeAlias = list[tuple[bytes, bytes | None]]


class Removal(msgspec.Struct, frozen=True):
    """One batch: rows to write, what it takes from the disk, how many blocks go and how many stay under hold."""

    rows: tuple[tuple[bytes, bytes | None], ...]
    size_bytes: int = 0
    blocks: int = 0
    held: int = 0


class Pruning:
    """What may go from one store. Methods that write must not overlap with the store's other writes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- what is here ----------------------------------------------------------------------------------------

    @property
    def done(self) -> int:
        """Below this height nothing is left to be removed."""
        return _number(self._database, META_PRUNED, 1)

    @property
    def released(self) -> int:
        """Blocks below this height may go."""
        return max(_number(self._database, META_REMOVE, 1), self.done)

    @property
    def holds(self) -> bool:
        """Whether any topic is under legal hold."""
        return bool(read_held(self._database))

    def next_run(self) -> tuple[int, int] | None:
        """Return (lowest height not released that is here whole, last of the unbroken run from there), or None.

        After a snapshot was adopted there is a gap between the older blocks and those after it.
        """
        row = next(self._database.scan(b"r" + number(self.released), b"s"), None)
        if row is None:
            return None
        lowest, first, head = _height(row[0]), read_first(self._database), read_height(self._database)
        if lowest >= first:
            return lowest, head
        low, high = lowest, first - 1
        while low < high:
            middle = (low + high + 1) // 2
            here = self._database.get(b"r" + number(middle)) is not None
            low, high = (middle, high) if here else (low, middle - 1)
        # An unbroken run may go on into what is kept.
        return lowest, head if low == first - 1 else low

    # --- taking blocks out -----------------------------------------------------------------------------------

    def hold(self, words: Sequence[str]) -> None:
        """From now on exactly the topics that `words` name are held; what is known of longer ones stays known."""
        known = {item.word: item for item in read_held(self._database)}
        # Across the gap that a snapshot leaves nothing is known to be complete.
        unbroken = self.next_run() == (self.released, read_height(self._database))
        since = self.done if unbroken else read_first(self._database)
        held = tuple(known.get(word) or HeldTopic(word, since) for word in sorted(set(words)))
        if held != tuple(known.values()):
            self._database.write([(META_HELD, encode(held))])

    def release(self, last: int) -> None:
        """Blocks up to `last` may go: they are archived, or the operator wants none. ValueError above the head."""
        if not self.released <= last < read_height(self._database):
            raise ValueError(f"block {last} cannot be released")
        first = max(read_first(self._database), last + 1)
        self._database.write([(META_FIRST, number(first)), (META_REMOVE, number(last + 1))])

    def removals(self, held_too: bool = False) -> Iterator[Removal]:
        """Yield the batches that take out what was released, a block in one batch; each to be given to `remove`.

        `held_too`: also what was kept for a hold that stands no more. Reads from a snapshot, so it may run beside
        writes.
        """
        reader, done, released = self._database.snapshot(), self.done, self.released
        words = frozenset(item.word for item in read_held(reader))
        if held_too:
            yield from _gathered(_given_up(reader, words))
        if done < released:
            yield from _gathered(_outgoing(reader, done, released, words))

    def stale_history(self, history_blocks: int) -> Iterator[Removal]:
        """Yield the batches that take out undo records more than `history_blocks` below the head."""
        reader = self._database.snapshot()
        end = read_height(reader) - history_blocks + 1
        if end > 0:
            for rows in _batched(reader.scan(b"u", b"u" + number(end)), ROWS_A_BATCH // 10):
                size = sum(len(key) + len(value) for key, value in rows)
                yield Removal(tuple((key, None) for key, _ in rows), size)

    def remove(self, removal: Removal) -> None:
        """The batch is done, durably. Raise StoreError, and then nothing of it is."""
        self._database.write(removal.rows)

    # --- putting blocks back ---------------------------------------------------------------------------------

    def restore(self, block: CertifiedBlock, receipts: ReceiptsRecord) -> bool:
        """The block, which somebody has verified, is here whole again; False when it was here.

        Raise NotFound for a height that is not decided here, StoreError (`archive_refused`) for another block than
        the one decided here at its height.
        """
        header = block.body.header
        height = number(header.height)
        head = read_head(self._database, header.height)
        if (head.digest, header.digest) != (block.certificate.digest, block.certificate.digest):
            raise StoreError("archive_refused", f"block {header.height} is not the one of this ledger")
        if self._database.get(b"r" + height) is not None:
            return False
        rows: _Rows = list(_index_rows(header.height, receipts))
        rows += [
            (body_key(header.height, head.digest), encode(block.body)),
            (b"r" + height, encode(receipts)),
            (b"k" + height, None),
        ]
        self._database.write([*rows, (b"y" + height, IMPORTED)])
        return True

    def give_back(self, first: int, last: int) -> Iterator[Removal]:
        """Yield the batches that take out again what was imported of the heights `first` … `last`."""
        reader = self._database.snapshot()
        heights = [
            _height(key)
            for key, why in reader.scan(b"y" + number(first), b"y" + number(last + 1))
            if why == IMPORTED
        ]
        words = frozenset(item.word for item in read_held(reader))
        yield from _gathered(_leaving(reader, height, words) for height in heights)

    # --- giving bytes back to the disk -----------------------------------------------------------------------

    def parts(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the ranges of keys in which removed rows take room, each small enough to be compacted at once."""
        done = number(self.done)
        for start, end in ((b"r", b"r" + done), (b"b", b"b" + done), (b"x", b"y"), (b"e", b"f"), (b"u", b"v")):
            yield from _parts(start, end, self._database.size_bytes)

    def compact(self, part: tuple[bytes, bytes]) -> None:
        """What was removed in the range takes no room on the disk; may run beside writes."""
        self._database.compact(*part)


def _outgoing(reader: Reader, done: int, released: int, words: frozenset[str]) -> Iterator[Removal]:
    for key, _ in reader.scan(b"r" + number(done), b"r" + number(released)):
        height = _height(key)
        removal = _leaving(reader, height, words)
        yield msgspec.structs.replace(removal, rows=(*removal.rows, (META_PRUNED, number(height + 1))))
    yield Removal(((META_PRUNED, number(released)),))


def _given_up(reader: Reader, words: frozenset[str]) -> Iterator[Removal]:
    """What is held no more, of all that was kept for a hold."""
    for key, why in reader.scan(b"y", b"z"):
        if why == HELD:
            removal = _leaving(reader, _height(key), words)
            if not removal.held:
                yield removal


def _leaving(reader: Reader, height: int, words: frozenset[str]) -> Removal:
    """The removal of one block, or what makes it stay under hold."""
    receipts = read_receipts(reader, height)
    index = list(_index_rows(height, receipts))
    key = number(height)
    if words and any(_is_held(topic, words) for topic in _topics(receipts)):
        return Removal(((b"y" + key, HELD),), held=1)
    head, header = read_head(reader, height), read_header(reader, height)
    body = reader.get(body_key(height, head.digest)) or b""
    size = len(body) + sum(map(len, receipts.receipts)) + sum(len(name) + len(value) for name, value in index)
    rows: _Rows = [(name, None) for name, _ in index]
    rows += [
        (body_key(height, head.digest), None),
        (b"r" + key, None),
        (b"y" + key, None),
        (b"k" + key, encode(header)),
    ]
    return Removal(tuple(rows), size, 1)


def _index_rows(height: int, record: ReceiptsRecord) -> Iterator[tuple[bytes, bytes]]:
    """Yield the index rows of a block as Store.apply writes them: by transaction, by topic."""
    topics: dict[str, list[int]] = {}
    for position, receipt in enumerate(_receipts(record)):
        yield b"x" + receipt.tx_id, location(height, position)
        for topic in dict.fromkeys(
            [topic for call in receipt.calls for event in call.events for topic in event.topics]
        ):
            topics.setdefault(topic, []).append(position)
    for topic, positions in topics.items():
        yield topic_prefix(topic) + number(height), b"".join(at.to_bytes(4, "big") for at in positions)


def _receipts(record: ReceiptsRecord) -> Iterator[Receipt]:
    for data in record.receipts:
        yield stored(data, Receipt, "receipt")


def _topics(record: ReceiptsRecord) -> Iterator[str]:
    for receipt in _receipts(record):
        for call in receipt.calls:
            for event in call.events:
                yield from event.topics


def _is_held(topic: str, words: frozenset[str]) -> bool:
    """Whether one of the words is the topic, or what stands behind a slash in it."""
    rest = topic
    while rest not in words:
        _, slash, rest = rest.partition("/")
        if not slash:
            return False
    return True


def _gathered(removals: Iterable[Removal]) -> Iterator[Removal]:
    """Yield the same, small ones put together."""
    rows: _Rows = []
    size = blocks = held = 0
    for item in removals:
        rows += item.rows
        size, blocks, held = size + item.size_bytes, blocks + item.blocks, held + item.held
        if len(rows) >= ROWS_A_BATCH:
            yield Removal(tuple(rows), size, blocks, held)
            rows, size, blocks, held = [], 0, 0, 0
    if rows:
        yield Removal(tuple(rows), size, blocks, held)


def _batched(rows: Iterator[tuple[bytes, bytes]], count: int) -> Iterator[list[tuple[bytes, bytes]]]:
    while batch := list(itertools.islice(rows, count)):
        yield batch


def _parts(start: bytes, end: bytes, size_of: Callable[[bytes, bytes], int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield ranges that make up start … end, each of at most PART_BYTES where keys can be told apart."""
    size = size_of(start, end)
    if size == 0:
        return
    low = int.from_bytes(start.ljust(_POSITION_BYTES, b"\0"), "big")
    high = int.from_bytes(end.ljust(_POSITION_BYTES, b"\0"), "big")
    middle = (low + high) // 2
    if size <= PART_BYTES or middle == low:
        yield start, end
        return
    between = middle.to_bytes(_POSITION_BYTES, "big")
    yield from _parts(start, between, size_of)
    yield from _parts(between, end, size_of)


def _height(key: bytes) -> int:
    return int.from_bytes(key[1:9], "big")


def _number(reader: Reader, key: bytes, absent: int) -> int:
    data = reader.get(key)
    if data is None:
        return absent
    if len(data) != 8:
        raise StoreError("store_corrupt", f"the marker {key[1:].decode()} cannot be read")
    return int.from_bytes(data, "big")
