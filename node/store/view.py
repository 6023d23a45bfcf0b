"""Reads of one moment: the head's state while blocks go on being applied, and the state of past heights."""

from collections.abc import Iterator, Mapping

from node.errors import NotFound
from node.ledger import CertifiedBlock, EventData, Header, HeadRecord
from node.store.database import Reader
from node.store.layout import Execution, ReceiptsRecord, UndoRecord, number, topic_prefix
from node.store.reading import (
    read_block,
    read_first,
    read_first_event,
    read_head,
    read_header,
    read_height,
    read_receipt,
    read_receipts,
    read_transaction_location,
    stored,
)
from node.store.tree_rows import read_bucket, read_pairs

PAST_BLOCKS_MAX = 10_000
PAST_CHANGES_MAX = 500_000
EVENTS_MAX = 10_000


class StoreView:
    """A consistent view of everything that was applied up to `head`; safe to use in another thread."""

    def __init__(self, reader: Reader) -> None:
        """Raise StoreError when the store holds no head."""
        self._reader = reader
        self._get = reader.get
        self._head = read_head(reader, read_height(reader))

    @property
    def head(self) -> HeadRecord:
        """The last block that this view contains."""
        return self._head

    def get(self, key: bytes) -> bytes | None:
        """Return the state's bytes under `key`, or None."""
        return self._get(b"s" + key)

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the state's (key, bytes) for start <= key < end, ascending."""
        for key, value in self._reader.scan(b"s" + start, b"s" + end):
            yield key[1:], value

    def bucket(self, name: str) -> bytes | None:
        """Return the state tree's record of the bucket `name`, or None; the tree has its hash to compare."""
        return read_bucket(self._reader, name)

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield every (key hash, value hash) of the state tree, ascending."""
        return read_pairs(self._reader)

    def requests_due(self, from_ms: int, before_ms: int, limit: int) -> list[tuple[int, bytes]]:
        """Return up to `limit` (expires_at_ms, state key) of the requests that expire in that time, ascending."""
        due: list[tuple[int, bytes]] = []
        if before_ms <= from_ms:
            return due
        for key, _ in self._reader.scan(b"q" + number(from_ms), b"q" + number(before_ms)):
            if len(due) == limit:
                break
            due.append((int.from_bytes(key[1:9], "big"), key[9:]))
        return due

    def events(self, topic: str, from_height: int, to_height: int, limit: int) -> list[tuple[int, EventData]]:
        """Return up to `limit` (height, event) under `topic`, oldest first, from_height <= height <= to_height.

        Heights beyond this view's head are left out, so that an answer belongs to one state. Raise NotFound
        (`block_pruned`) where blocks of the range are gone whose events nobody holds.
        """
        found: list[tuple[int, EventData]] = []
        limit = min(limit, EVENTS_MAX)
        last = min(to_height, self._head.height)
        if last < from_height or from_height < 0:
            return found
        first = self.first_event(topic, from_height)
        if max(1, from_height) < first:
            text = f"events under {topic} are here from block {first} on; the blocks before it were pruned"
            raise NotFound("block_pruned", text, first=first)
        prefix = topic_prefix(topic)
        for key, positions in self._reader.scan(prefix + number(from_height), prefix + number(last + 1)):
            height = int.from_bytes(key[-8:], "big")
            receipts = self.receipts(height).receipts
            for at in range(0, len(positions), 4):
                receipt = read_receipt(receipts, height, int.from_bytes(positions[at : at + 4], "big"))
                for call in receipt.calls:
                    for event in call.events:
                        if topic in event.topics:
                            if len(found) == limit:
                                return found
                            found.append((height, event))
        return found

    def first_event(self, topic: str, from_height: int = 1) -> int:
        """Return the lowest height from which on every event under `topic` is here (`from_height` if it is lower).

        Blocks from there on that are gone had none.
        """
        return read_first_event(self._reader, topic, max(1, from_height))

    def block(self, height: int) -> CertifiedBlock:
        """Return the decided block at `height`, its hashes checked. Raise NotFound or StoreError."""
        return read_block(self._reader, height)

    @property
    def first_block(self) -> int:
        """The lowest height from which on every block is here whole; below it most have only their headers."""
        return read_first(self._reader)

    def header(self, height: int) -> Header:
        """Return the header of the decided block at `height`, pruned or not. Raise NotFound or StoreError."""
        return read_header(self._reader, height)

    def receipts(self, height: int) -> ReceiptsRecord:
        """Return the receipts of the block at `height`. Raise NotFound or StoreError."""
        return read_receipts(self._reader, height)

    def execution(self, height: int) -> Execution:
        """Return what the block at `height` did. Raise NotFound or StoreError."""
        receipts = self.receipts(height).receipts
        data = self._get(b"u" + number(height))
        if data is None:
            return Execution(receipts, None)
        try:
            after = self.at(height)
        except NotFound:
            return Execution(receipts, None)
        before = stored(data, UndoRecord, f"undo record of block {height}").before
        return Execution(receipts, tuple((key, after.get(key)) for key, _ in before))

    def head_at(self, height: int) -> HeadRecord:
        """Return what stood as head after block `height`: digest, certificate, validators of the next height.

        Heads are kept for ever. Raise NotFound("block_not_found") above this view's head.
        """
        if height > self._head.height:
            raise NotFound("block_not_found", f"height {height} is not decided here", head=self._head.height)
        return read_head(self._reader, height)

    def member_changes(self) -> tuple[int, ...]:
        """Return the heights of all blocks that changed the list of validators, ascending, up to the head."""
        rows = self._reader.scan(b"l", b"l" + number(self._head.height + 1))
        return tuple([int.from_bytes(key[1:], "big") for key, _ in rows])

    def undone(self, height: int, from_height: int) -> dict[bytes, bytes | None]:
        """Return what was under each state key after block `height` that changed from there up to `from_height`.

        Raise NotFound as `at` does.
        """
        return _undone(self._reader, from_height, height)

    def locate(self, tx_id: bytes) -> tuple[int, int] | None:
        """Return (height, position among the block's receipts) of a final transaction, or None."""
        return read_transaction_location(self._reader, tx_id)

    def at(self, height: int) -> "StoreView":
        """Return the view of the state after block `height`.

        Raise NotFound: block_not_found above the head, history_pruned where undo records were removed,
        history_too_far where more would have to be undone than one query may.
        """
        return PastView(self._reader, self._head, height)


class PastView(StoreView):
    """The state of an earlier height: the later write sets undone over the view it was asked of."""

    def __init__(self, reader: Reader, newest: HeadRecord, height: int) -> None:
        self._reader = reader
        self._get = reader.get
        self._before = _undone(reader, newest.height, height)
        self._head = read_head(reader, height)

    def get(self, key: bytes) -> bytes | None:
        """Return the state's bytes under `key` at this height, or None."""
        if key in self._before:
            return self._before[key]
        return super().get(key)

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the state's (key, bytes) at this height for start <= key < end, ascending."""
        changed = sorted(key for key in self._before if start <= key < end)
        at = 0
        for key, value in super().scan(start, end):
            while at < len(changed) and changed[at] < key:
                yield from _present(changed[at], self._before)
                at += 1
            if at < len(changed) and changed[at] == key:
                yield from _present(key, self._before)
                at += 1
            else:
                yield key, value
        for key in changed[at:]:
            yield from _present(key, self._before)

    def bucket(self, name: str) -> bytes | None:
        """The tree is kept for the head alone."""
        raise NotFound("history_pruned", "the state tree is kept for the head alone")


def _present(key: bytes, values: Mapping[bytes, bytes | None]) -> Iterator[tuple[bytes, bytes]]:
    value = values[key]
    if value is not None:
        yield key, value


def _undone(reader: Reader, newest: int, height: int) -> dict[bytes, bytes | None]:
    """Return what keys held after `height` that were changed since."""
    if not 0 <= height <= newest:
        raise NotFound("block_not_found", f"height {height} is not decided here; the head is {newest}", head=newest)
    if newest - height > PAST_BLOCKS_MAX:
        raise NotFound("history_too_far", f"height {height} is {newest - height} blocks back", head=newest)
    before: dict[bytes, bytes | None] = {}
    for later in range(height + 1, newest + 1):
        data = reader.get(b"u" + number(later))
        if data is None:
            raise NotFound("history_pruned", f"the state of height {height} is no longer kept", head=newest)
        for key, value in stored(data, UndoRecord, f"undo record of block {later}").before:
            before.setdefault(key, value)
        if len(before) > PAST_CHANGES_MAX:
            raise NotFound("history_too_far", f"too much has changed since height {height}", head=newest)
    return before
