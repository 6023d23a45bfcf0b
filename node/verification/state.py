"""The state and its tree against the root in the head's certified header, and the undo records against past roots.

The root proves the tree's records, the records prove the values, and counting shows that there are no others. An
undo record is right when the tree that it leads back to has the root of the header before.
"""

import bisect
from collections.abc import Iterator

from consensus.codec import CodecError, decode_own
from node.executor.run import REQUESTS
from node.ledger import HeadRecord, RequestRecord, sha256
from node.state_tree import EMPTY, StateTree
from node.store.database import Reader
from node.store.layout import RECORD_SIZE_MAX, UndoRecord, number
from node.store.reading import read_head, stored
from node.verification.report import Progress, differs, require

UNDONE_BYTES_MAX = 256 * 1024 * 1024
"""Of the values that undoing brings back: so far back and no further is the state of a past height made again."""
ROW_BYTES = 200
"""What a value takes in memory beside itself and its key."""

_PAIR = 64
_BRANCH_HASHES = 1 + 16 * 4


def open_tree(rows: Reader, bits: int, head: HeadRecord) -> StateTree:
    """Return the tree of the stored buckets; raise StoreError when its root is not that of the head's header."""
    tree = StateTree(bits, lambda path: rows.get(b"t" + path), buckets(rows))
    require(tree.root == head.state_root, "the state tree does not have the root that the last header names")
    return tree


def buckets(rows: Reader) -> Iterator[tuple[bytes, bytes]]:
    """Yield every (path, record) of the stored state tree."""
    for key, record in rows.scan(b"t", b"u"):
        yield key[1:], record


class State:
    """The values, the tree and the request index of one store at its head."""

    def __init__(self, rows: Reader, bits: int, progress: Progress) -> None:
        """Nothing was read yet."""
        self._rows = rows
        self._bits = bits
        self._progress = progress

    def check(self, head: HeadRecord) -> StateTree:
        """Every value, every record of the tree and every request to forget is what the header proves."""
        self._progress.where = "the state tree"
        tree = open_tree(self._rows, self._bits, head)
        values, records = self._count_pairs()
        stored_records = sum(1 for _ in self._rows.scan(b"t", b"u"))
        if stored_records != records:
            self._find_odd_record()
        self._progress.where = "the state"
        found = requests = 0
        for key, value in self._rows.scan(b"s", b"t"):
            require(self._holds(key[1:], value), "a value differs from its hash in the state tree", key)
            found += 1
            if key[1:].startswith(REQUESTS):
                entry = request_row(key[1:], value)
                require(self._rows.get(entry) == b"", "a request id is not marked to be forgotten", entry)
                requests += 1
        require(found == values, f"{values - found} values are missing that the state tree holds")
        self._progress.where = "the requests to forget"
        for key, value in self._rows.scan(b"q", b"r"):
            record = self._rows.get(b"s" + key[9:])
            right = record is not None and not value and request_row(key[9:], record) == key
            require(right, "an entry belongs to no request in the state", key)
            requests -= 1
        require(requests == 0, "request ids are not marked to be forgotten")
        return tree

    def _count_pairs(self) -> tuple[int, int]:
        """(pairs, records) of the tree; every sub-bucket hashes to what its branch says."""
        pairs = records = 0
        for key, record in self._rows.scan(b"t", b"u"):
            if len(key) == 5:
                found, below = self._count_below(key[1:], record)
                pairs, records = pairs + found, records + 1 + below
        return pairs, records

    def _count_below(self, path: bytes, record: bytes) -> tuple[int, int]:
        if record[:1] == b"\x00":
            return len(record) // _PAIR, 0
        pairs = records = 0
        for child in range(16):
            known = record[_BRANCH_HASHES + 32 * child : _BRANCH_HASHES + 32 * child + 32]
            count = int.from_bytes(record[1 + 4 * child : 5 + 4 * child], "big")
            key = b"t" + path + bytes((child,))
            if known == EMPTY:
                require(count == 0, "a branch of the tree counts what is not there", b"t" + path)
                continue
            below = self._rows.get(key)
            require(below is not None and bucket_hash(below) == known, "a bucket differs from its hash", key)
            found, more = self._count_below(path + bytes((child,)), below or b"")
            require(found == count, "a branch of the tree counts wrongly", b"t" + path)
            pairs, records = pairs + found, records + 1 + more
        return pairs, records

    def _find_odd_record(self) -> None:
        """Raise the error that names the record under a path that no branch leads to."""
        for key, _ in self._rows.scan(b"t", b"u"):
            parent = self._rows.get(key[:-1]) if len(key) > 5 else None
            at = _BRANCH_HASHES + 32 * key[-1]
            known = parent is not None and parent[:1] == b"\x01" and parent[at : at + 32] != EMPTY and key[-1] < 16
            require(len(key) == 5 or known, "a record of the tree stands where nothing leads to", key)
        raise differs("records of the state tree are missing")

    def _holds(self, key: bytes, value: bytes) -> bool:
        key_hash = sha256(key)
        path = (int.from_bytes(key_hash[:4], "big") >> (32 - self._bits)).to_bytes(4, "big")
        depth = self._bits // 4
        record = self._rows.get(b"t" + path)
        while record is not None and record[:1] == b"\x01":
            byte = key_hash[depth >> 1]
            path += bytes((byte & 15 if depth & 1 else byte >> 4,))
            depth += 1
            record = self._rows.get(b"t" + path)
        if record is None:
            return False
        place = bisect.bisect_left(range(len(record) // _PAIR), key_hash, key=lambda at: _pair(record, at)[:32])
        return place < len(record) // _PAIR and _pair(record, place) == key_hash + sha256(value)


class History:
    """The state of past heights, stepping back from the head, each undo record proven by the root it leads to."""

    def __init__(self, rows: Reader, bits: int, head: HeadRecord, progress: Progress) -> None:
        """Stand on the head."""
        self._rows = rows
        self._progress = progress
        self._buckets: dict[bytes, bytes | None] = {}
        self._tree = StateTree(bits, self._bucket, buckets(rows))
        self._before: dict[bytes, bytes | None] = {}
        self._size_bytes = 0
        self.head = head

    @property
    def full(self) -> bool:
        """Whether as much was brought back as may be: older heights are not reached."""
        return self._size_bytes > UNDONE_BYTES_MAX

    def back(self) -> bool:
        """Stand one height lower; False when its undo record is not here or too much would have to be kept."""
        height = self.head.height
        key = b"u" + number(height)
        data = self._rows.get(key)
        if height == 0 or data is None or self.full:
            return False
        self._progress.where = f"the undo record of block {height}"
        before = stored(data, UndoRecord, self._progress.where).before
        keys = [item[0] for item in before]
        require(keys == sorted(set(keys)), "its keys do not ascend", key)
        lower = read_head(self._rows, height - 1)
        staged = self._tree.stage(dict(before))
        require(staged.root == lower.state_root, "it does not lead back to the root of the block before", key)
        self._tree.commit(staged)
        self._buckets.update(staged.buckets)
        for name, value in before:
            self._size_bytes += len(value or b"") + (0 if name in self._before else len(name) + ROW_BYTES)
            self._before[name] = value
        self._size_bytes += sum(len(record or b"") for record in staged.buckets.values())
        self.head = lower
        return True

    def rows(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the rows of this height's state, tree and request index, as a store of that height has them."""
        for key, value in _merged(self._rows.scan(b"s", b"t"), b"s", self._before):
            yield key, value
            if key[1:].startswith(REQUESTS):
                yield request_row(key[1:], value), b""
        yield from _merged(self._rows.scan(b"t", b"u"), b"t", self._buckets)

    def _bucket(self, path: bytes) -> bytes | None:
        if path in self._buckets:
            return self._buckets[path]
        return self._rows.get(b"t" + path)


def request_row(key: bytes, value: bytes) -> bytes:
    """Return the row that marks the request under the state key `key` to be forgotten; raise StoreError."""
    try:
        record = decode_own(value, RequestRecord, size_max=RECORD_SIZE_MAX)
    except CodecError as error:
        raise differs(f"a request's record cannot be read: {error}", b"s" + key) from error
    return b"q" + number(record.expires_at_ms) + key


def bucket_hash(record: bytes) -> bytes:
    """Return the hash of a bucket's record."""
    return sha256(record[_BRANCH_HASHES:] if record[:1] == b"\x01" else record)


def _pair(record: bytes, at: int) -> bytes:
    return record[1 + _PAIR * at : 1 + _PAIR * at + _PAIR]


def _merged(
    rows: Iterator[tuple[bytes, bytes]], letter: bytes, changes: dict[bytes, bytes | None]
) -> Iterator[tuple[bytes, bytes]]:
    """Yield `rows` with `changes` (by key without its letter; None: no row) over them, ascending."""
    changed = iter(sorted(changes))
    following = next(changed, None)
    for key, value in rows:
        while following is not None and letter + following < key:
            new = changes[following]
            if new is not None:
                yield letter + following, new
            following = next(changed, None)
        if following is not None and letter + following == key:
            new = changes[following]
            if new is not None:
                yield key, new
            following = next(changed, None)
        else:
            yield key, value
    while following is not None:
        new = changes[following]
        if new is not None:
            yield letter + following, new
        following = next(changed, None)
