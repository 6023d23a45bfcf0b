"""The state as a block sees it: typed values under encoded keys, written on an overlay over a fixed base. Pure.

A contract reads and writes typed values; the base and the write set hold canonical bytes. A key that a block writes
many times is encoded once, at its end. Values that cross from one block to the next are always decoded from their
bytes again: what a contract sees can therefore not depend on which node was restarted when.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import msgspec

from consensus.codec import CodecError, decode_own, encode, unpack
from consensus.members import Members
from contracts.storage import WrongType
from node.ledger import BlockBody, EventData, Header, HeadRecord, Proposal, Transaction
from node.state_tree import StagedTree

T = TypeVar("T")

VALUE_SIZE_MAX = 64 * 1024
CACHED_VALUES_MAX = 20_000
CACHED_VALUE_SIZE_MAX = 2048


class StateReader(Protocol):
    """A fixed state: encoded keys to canonical bytes."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value's bytes under `key`, or None."""

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, bytes) for start <= key < end, ascending."""


class LedgerView(StateReader, Protocol):
    """The state, its tree and the local indexes after one block."""

    @property
    def head(self) -> HeadRecord:
        """The block after which this is the state."""

    def bucket(self, name: str) -> bytes | None:
        """Return the state tree's record of the bucket `name`, or None."""

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield every (key hash, value hash) of the state tree, ascending."""

    def requests_due(self, from_ms: int, before_ms: int, limit: int) -> list[tuple[int, bytes]]:
        """Return up to `limit` (expires_at_ms, state key) of the requests that expire in that time, ascending."""

    def events(self, topic: str, from_height: int, to_height: int, limit: int) -> list[tuple[int, EventData]]:
        """Return up to `limit` (height, event) under `topic`, oldest first, from_height <= height <= to_height."""


class WriteSet(msgspec.Struct, frozen=True):
    """What a block changes, keys ascending: `after` and `before` hold the same keys (None: no value)."""

    after: dict[bytes, bytes | None]
    before: dict[bytes, bytes | None]


class ExecutedBlock(msgspec.Struct, frozen=True):
    """A block with all that it does, ready to be applied in one batch; or genesis, at height 0 with an empty body.

    `transactions` are those of the body, decoded. Positions count the due scheduled calls first, then the
    transactions: `receipts` (encoded), `tx_ids` and `topics` (topic to ascending positions) use them.
    `requests_added` and `requests_removed` are (expires_at_ms, state key) of request records. `members` decide the
    next height. `calls`, `size_bytes` and `operations` say how full the block is.
    """

    digest: bytes
    body: BlockBody
    transactions: tuple[Transaction, ...]
    proposal: Proposal
    receipts: tuple[bytes, ...]
    tx_ids: tuple[bytes, ...]
    topics: dict[str, list[int]]
    requests_added: tuple[tuple[int, bytes], ...]
    requests_removed: tuple[tuple[int, bytes], ...]
    writes: WriteSet
    tree: StagedTree
    members: Members
    calls: int
    size_bytes: int
    operations: int

    @property
    def header(self) -> Header:
        """The block's header."""
        return self.body.header

    @property
    def height(self) -> int:
        """The block's height."""
        return self.body.header.height

    @property
    def scheduled(self) -> int:
        """How many due scheduled calls stand before the transactions."""
        return len(self.tx_ids) - len(self.body.transactions)


class ValueCache:
    """Recently used values of one state, bytes and typed, so that hot keys are neither read nor decoded again.

    And the keys that have none, as far as `lacks` knows: most keys that a block reads are new ones (request ids,
    references), and to find nothing is what costs a store most. It may be wrong only where it says False.

    It belongs to one height. `advance` hands everything still true over to a new cache and leaves this one empty:
    an overlay that is still at work on the old height can neither read nor leave behind a wrong value. Whatever
    `lacks` asks may move on after that, never before.
    """

    __slots__ = ("_entries_max", "_older", "_younger", "lacks")

    def __init__(self, entries_max: int = CACHED_VALUES_MAX, lacks: Callable[[bytes], bool] | None = None) -> None:
        self._younger: dict[bytes, tuple[bytes, Any, Any]] = {}
        self._older: dict[bytes, tuple[bytes, Any, Any]] = {}
        self._entries_max = entries_max
        self.lacks = lacks or _unknown

    def get(self, key: bytes) -> tuple[bytes, Any, Any] | None:
        """Return (bytes, type, value) known for `key`; type None means that it was not decoded yet."""
        return self._younger.get(key) or self._older.get(key)

    def put(self, key: bytes, raw: bytes, type_: Any, value: Any) -> None:
        """Remember that `key` holds `raw`, which is `value` as the type `type_`.

        Two generations: when the younger is full, the older is forgotten.
        """
        if len(raw) > CACHED_VALUE_SIZE_MAX or self._entries_max < 2:
            return
        if 2 * len(self._younger) >= self._entries_max:
            self._older, self._younger = self._younger, {}
        self._younger[key] = (raw, type_, value)

    def advance(self, writes: WriteSet) -> "ValueCache":
        """Return the cache of the state after `writes`; this one is empty then.

        A key that had no value before is not kept: most of them (request ids, references) are not asked for again,
        and would take the room of those that are.
        """
        following = ValueCache(self._entries_max, self.lacks)
        self.lacks = _unknown
        following._younger, self._younger = self._younger, {}
        following._older, self._older = self._older, {}
        for (key, raw), old in zip(writes.after.items(), writes.before.values(), strict=True):
            if old is not None:
                following._younger.pop(key, None)
                following._older.pop(key, None)
                if raw is not None:
                    following.put(key, raw, None, None)
        return following


def _unknown(_: bytes) -> bool:
    return False


class _Deleted:
    """Stands for a pending deletion."""


_DELETED = _Deleted()


class Overlay:
    """Typed reads and pending writes over a base that does not change; implements the contracts' State."""

    __slots__ = ("_base", "_before", "_cache", "_journal", "_new_keys", "_sorted_keys", "_writes")

    def __init__(self, base: StateReader, cache: ValueCache | None = None) -> None:
        """Start without writes. `cache`, if given, belongs to the same state as `base`."""
        self._base = base
        self._cache = ValueCache(0) if cache is None else cache
        self._writes: dict[bytes, object] = {}
        self._journal: list[tuple[bytes, object | None]] = []
        self._before: dict[bytes, bytes | None] = {}
        self._sorted_keys: list[bytes] = []
        self._new_keys: list[bytes] = []

    def get(self, key: bytes, type_: type[T]) -> T | None:
        """Return the value under `key` as `type_`, or None; raise WrongType when it is a value of another type."""
        value = self._writes.get(key)
        if value is not None:
            if type(value) is type_:
                return value
            return None if value is _DELETED else _decode(encode(value), type_)
        cached = self._cache.get(key)
        if cached is None:
            raw = self._read(key)
            if raw is None:
                return None
        elif cached[1] is type_:
            known: T = cached[2]
            return known
        else:
            raw = cached[0]
        found = _decode(raw, type_)
        self._cache.put(key, raw, type_, found)
        return found

    def put(self, key: bytes, value: object) -> None:
        """Write `value` under `key`: immutable, with a canonical form (the contracts' Map sees to it), not None."""
        if value is None:
            raise TypeError("None is no value; use delete")
        old = self._writes.get(key)
        if old is None:
            self._new_keys.append(key)
        self._journal.append((key, old))
        self._writes[key] = value

    def delete(self, key: bytes) -> None:
        """Remove the value under `key`, if there is one."""
        self.put(key, _DELETED)

    def scan(self, start: bytes, end: bytes, type_: type[T], limit: int) -> list[tuple[bytes, T]]:
        """Return up to `limit` (key, value), start <= key < end, ascending, with the pending writes."""
        pending = self._pending_keys(start, end)
        found: list[tuple[bytes, T]] = []
        at = 0
        base = self._base.scan(start, end)
        item = next(base, None)
        while len(found) < limit and (item is not None or at < len(pending)):
            if item is not None and (at == len(pending) or item[0] < pending[at]):
                found.append((item[0], _decode(item[1], type_)))
                item = next(base, None)
                continue
            key = pending[at]
            at += 1
            if item is not None and item[0] == key:
                item = next(base, None)
            value = self.get(key, type_)
            if value is not None:
                found.append((key, value))
        return found

    def savepoint(self) -> int:
        """Return a mark to which `rollback` can return."""
        return len(self._journal)

    def written_since(self, savepoint: int) -> list[bytes]:
        """Return the keys written since `savepoint` and not rolled back, in order, some of them repeatedly."""
        return [key for key, _ in self._journal[savepoint:]]

    def rollback(self, savepoint: int) -> None:
        """Undo every write since `savepoint`."""
        journal, writes = self._journal, self._writes
        while len(journal) > savepoint:
            key, old = journal.pop()
            if old is None:
                del writes[key]
            else:
                writes[key] = old

    def write_set(self) -> WriteSet:
        """Return the real changes: keys whose bytes after all the writes differ from those of the base."""
        after: dict[bytes, bytes | None] = {}
        before: dict[bytes, bytes | None] = {}
        writes, read, known = self._writes, self._before, self._cache.get
        for key in sorted(writes):
            value = writes[key]
            raw = None if value is _DELETED else encode(value)
            if key in read:
                old = read[key]
            else:
                cached = known(key)
                old = self._read(key) if cached is None else cached[0]
            if raw != old:
                after[key], before[key] = raw, old
        return WriteSet(after, before)

    def _read(self, key: bytes) -> bytes | None:
        """Return the base's bytes under `key`; the answer is kept, for the write set asks again."""
        if key in self._before:
            return self._before[key]
        raw = self._before[key] = None if self._cache.lacks(key) else self._base.get(key)
        return raw

    def _pending_keys(self, start: bytes, end: bytes) -> list[bytes]:
        """Return the written keys in the range, ascending, each once; sorted as far as scans needed it."""
        keys = self._sorted_keys
        for key in self._new_keys:
            insort(keys, key)
        self._new_keys.clear()
        pending: list[bytes] = []
        for key in keys[bisect_left(keys, start) : bisect_left(keys, end)]:
            # A key that was rolled back stays in the list, and stands in it twice when written again.
            if key in self._writes and (not pending or pending[-1] != key):
                pending.append(key)
        return pending


def _decode(raw: bytes, type_: type[T]) -> T:
    """Return the value in `raw`; the bytes are our own, so their canonical form is not proven again.

    Raise WrongType for a whole value of another type, CodecError for what is none at all.
    """
    try:
        return decode_own(raw, type_, size_max=VALUE_SIZE_MAX)
    except CodecError as error:
        unpack(raw, size_max=VALUE_SIZE_MAX)
        raise WrongType(str(error)) from error
