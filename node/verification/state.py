"""The state and its tree against the root in the head's certified header, and the undo records against past roots.

The root proves the tree's pairs, the pairs prove the values, and counting shows that there are no others. An
undo record is right when the tree that it leads back to has the root of the header before.
"""

from collections.abc import Iterator
from functools import partial

from consensus.codec import CodecError, decode_own
from node.executor.run import REQUESTS
from node.ledger import HeadRecord, RequestRecord
from node.state_tree import StateTree
from node.store.database import Reader
from node.store.layout import RECORD_SIZE_MAX, UndoRecord, number
from node.store.reading import read_head, stored
from node.store.tree_rows import odd_branch, pair_row, read_bucket, read_pairs, staged_rows
from node.verification.report import Progress, differs, require

UNDONE_BYTES_MAX = 256 * 1024 * 1024
"""Of the values that undoing brings back: so far back and no further is the state of a past height made again."""
ROW_BYTES = 200
"""What a value takes in memory beside itself and its key."""


def open_tree(rows: Reader, bits: int, head: HeadRecord) -> StateTree:
    """Return the tree of the stored pairs; raise StoreError when its root is not that of the head's header.

    The records of parted buckets, which the root does not need, are those of the pairs then too.
    """
    tree = StateTree(bits, partial(read_bucket, rows), read_pairs(rows))
    require(tree.root == head.state_root, "the state tree does not have the root that the last header names")
    odd = odd_branch(rows, bits)
    require(odd is None, "the records of parted buckets of the tree are not those of its pairs", odd or b"")
    return tree


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
        pairs = sum(1 for _ in read_pairs(self._rows))
        self._progress.where = "the state"
        found = requests = 0
        for key, value in self._rows.scan(b"s", b"t"):
            pair, value_hash = pair_row(key[1:], value)
            require(self._rows.get(pair) == value_hash, "a value differs from its hash in the state tree", key)
            found += 1
            if key[1:].startswith(REQUESTS):
                entry = request_row(key[1:], value)
                require(self._rows.get(entry) == b"", "a request id is not marked to be forgotten", entry)
                requests += 1
        require(found == pairs, f"{pairs - found} values are missing that the state tree holds")
        self._progress.where = "the requests to forget"
        for key, value in self._rows.scan(b"q", b"r"):
            record = self._rows.get(b"s" + key[9:])
            right = record is not None and not value and request_row(key[9:], record) == key
            require(right, "an entry belongs to no request in the state", key)
            requests -= 1
        require(requests == 0, "request ids are not marked to be forgotten")
        return tree


class History:
    """The state of past heights, stepping back from the head, each undo record proven by the root it leads to."""

    def __init__(self, rows: Reader, bits: int, head: HeadRecord, progress: Progress) -> None:
        """Stand on the head."""
        self._rows = rows
        self._progress = progress
        self._buckets: dict[str, bytes | None] = {}
        self._tree_rows: dict[bytes, bytes | None] = {}
        self._tree = StateTree(bits, self._bucket, read_pairs(rows))
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
        known = len(self._tree_rows)
        self._tree_rows.update(staged_rows(staged))
        self._size_bytes += ROW_BYTES * (len(self._tree_rows) - known)
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
        for letter in (b"d", b"t"):
            changes = {key[1:]: value for key, value in self._tree_rows.items() if key[:1] == letter}
            yield from _merged(self._rows.scan(letter, bytes((letter[0] + 1,))), letter, changes)

    def _bucket(self, name: str) -> bytes | None:
        return self._buckets[name] if name in self._buckets else read_bucket(self._rows, name)


def request_row(key: bytes, value: bytes) -> bytes:
    """Return the row that marks the request under the state key `key` to be forgotten; raise StoreError."""
    try:
        record = decode_own(value, RequestRecord, size_max=RECORD_SIZE_MAX)
    except CodecError as error:
        raise differs(f"a request's record cannot be read: {error}", b"s" + key) from error
    return b"q" + number(record.expires_at_ms) + key


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
