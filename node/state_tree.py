"""The state tree: one root over all of the state, in the simplest shape that is fast in Python. Pure.

A fixed tree of 16 children a node stands over 2 ** bits buckets. A key's bucket is named by the first `bits` bits
of SHA-256(key). A bucket hashes as SHA-256(0x00 || sorted (key hash || value hash) pairs), which is never 512 bytes
long and so never passes for an inner node; an empty bucket is 32 zero bytes; more than 64 pairs are hashed as 16
sub-buckets by the next four bits, recursively. The root is SHA-256(tag || bits || top).

The hashes of buckets and inner nodes lie in memory as one byte array a level. The pairs lie in the store, one
record a bucket or sub-bucket, under its path (bucket number in 4 bytes, then one byte for each further nibble),
and those of buckets up to a bound in memory, for a read from disk costs more than all the hashing for a key:

    leaf    0x00 || pair ...                          at most 64 pairs; its SHA-256 is the bucket's hash
    branch  0x01 || 16 counts (4 bytes) || 16 hashes  the SHA-256 of the hashes is the bucket's hash

Every record that is read from the store is compared with the hash that the tree holds for it.

A proof for a key is its bucket's pairs and, on each level from the top, the fifteen hashes beside the one on the
way: who knows the root and the number of bits computes the rest from SHA-256(key), and finds the pair or misses it.
"""

import copy
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import islice
from operator import itemgetter
from struct import Struct, unpack
from typing import Final

import msgspec

from node.errors import StoreError

EMPTY = bytes(32)
PAIRS_MAX = 64
BITS_MAX = 24
TAG = b"hansa/state"

_PAIR = 64
_LEAF = b"\x00"
_BRANCH = b"\x01"
_BRANCH_HASHES = 1 + 16 * 4
_BRANCH_SIZE = _BRANCH_HASHES + 16 * 32
RECORD_SIZE_MAX = 1 + PAIRS_MAX * _PAIR
_LEAF_SIZES = frozenset(range(1 + _PAIR, RECORD_SIZE_MAX + 1, _PAIR))
_PART = 1024
"""So many stored records are judged together when the tree is rebuilt: 4 MB at most."""
CACHE_BYTES_MAX = 96 * 1024 * 1024
"""Enough for the buckets of a million keys at 20 bits."""
_put_node: Final = Struct("32s").pack_into
"""Writes a node's hash into a level at an offset: on its way into a slice it would be copied once more."""
_FEW = 8
"""So many changes are made in a leaf's bytes one by one: taking it apart and joining it costs more."""
_CACHE_ENTRY_BYTES = 48
"""What a remembered record costs besides its own bytes: its header, its slot and the allocator's rounding."""


class StagedTree(msgspec.Struct, frozen=True):
    """What a set of changes makes of the tree, not yet done.

    `base` is the root it was staged on, `root` the root it leads to. `buckets` are the records to write by path
    (None: delete), `levels` the changed hashes by node number for each level, top first.
    """

    base: bytes
    root: bytes
    buckets: dict[bytes, bytes | None]
    levels: tuple[dict[int, bytes], ...]


class TreeProof(msgspec.Struct, frozen=True):
    """What leads from a key to the root, whether the key is there or not.

    `siblings` holds for each level, top first, the 15 hashes beside the node on the key's way, in their order (480
    bytes); the levels of branch buckets follow those of the tree. `pairs` are the pairs of the leaf where the way
    ends, without the leading byte; empty where nothing lies.
    """

    siblings: tuple[bytes, ...]
    pairs: bytes


class StateTree:
    """The levels of the tree in memory; the buckets' pairs are read through the function it was given."""

    def __init__(
        self,
        bits: int,
        read_bucket: Callable[[bytes], bytes | None],
        records: Iterable[tuple[bytes, bytes]] = (),
        cache_bytes_max: int = CACHE_BYTES_MAX,
    ) -> None:
        """Stand over the stored bucket `records` (path, record), rebuilding every level from them.

        `bits` is a multiple of 4 from 4 to 24. Raise StoreError("corrupt_state_tree") for a malformed record.
        """
        if bits % 4 or not 4 <= bits <= BITS_MAX:
            raise ValueError(f"state_tree_bits must be a multiple of 4 from 4 to {BITS_MAX}, not {bits}")
        self.bits = bits
        self._read_bucket = read_bucket
        # One slot a bucket; none at all where nothing is to be remembered.
        self._remembered: list[bytes | None] = [None] * 2**bits if cache_bytes_max else []
        self._remembered_bytes = 0
        self._hand = 0
        self._cache_bytes_max = cache_bytes_max
        self._depth = bits // 4
        self._shift = 32 - bits
        leaves = bytearray(32 * 2**bits)
        self._take(records, leaves)
        self._levels = _levels_over(leaves)
        self.root = self._root(bytes(self._levels[0]))

    def stage(self, changes: Mapping[bytes, bytes | None]) -> StagedTree:
        """Return what `changes` (key to new value, None for deleted) make of the tree; the tree stays as it is.

        The result does not depend on the order of `changes`. Raise StoreError when a stored bucket is damaged.
        """
        pairs: dict[bytes, bytes | None] = {}
        for key, value in changes.items():
            key_hash = sha256(key).digest()
            pairs[key_hash] = None if value is None else key_hash + sha256(value).digest()
        buckets: dict[bytes, bytes | None] = {}
        changed: dict[int, bytes] = {}
        parts: dict[int, list[bytes]] = {}
        shift, number_of = self._shift, int.from_bytes
        # Ascending hashes are ascending buckets.
        for key_hash in sorted(pairs):
            index = number_of(key_hash[:4], "big") >> shift
            if index in parts:
                parts[index].append(key_hash)
            else:
                parts[index] = [key_hash]
        remembered, leaves, depth = self._remembered, self._levels[-1], self._depth
        for index, part in parts.items():
            path = index.to_bytes(4, "big")
            record = remembered[index] if remembered else None
            if record is None:
                record = self._read(path, bytes(leaves[32 * index : 32 * index + 32]))
            leaf = _leaf_after(record, part, pairs) if len(part) <= _FEW and record.startswith(_LEAF) else b""
            if _PAIR < len(leaf) <= RECORD_SIZE_MAX:
                buckets[path] = leaf
                changed[index] = sha256(leaf).digest()
            else:
                changed[index], _ = self._update(path, depth, record, part, pairs, buckets)
        levels = [changed]
        for level in range(self._depth - 1, -1, -1):
            changed = _parents(self._levels[level + 1], changed)
            levels.append(changed)
        top = changed.get(0, bytes(self._levels[0]))
        return StagedTree(self.root, self._root(top), buckets, tuple(reversed(levels)))

    def commit(self, staged: StagedTree) -> None:
        """Take over `staged`, whose buckets are in the store now. ValueError when it was staged on another root."""
        if staged.base != self.root:
            raise ValueError("the staged tree stands on another root")
        for level, changed in zip(self._levels, staged.levels, strict=True):
            for index, node in changed.items():
                _put_node(level, 32 * index, node)
        if self._remembered:
            self._remember(staged.buckets)
        self.root = staged.root

    def prove(self, key: bytes) -> TreeProof:
        """Return the proof that `key` has its value, or none, under this root. StoreError for a damaged bucket."""
        key_hash = sha256(key).digest()
        index = int.from_bytes(key_hash[:4], "big") >> self._shift
        siblings: list[bytes] = []
        for level in range(1, self._depth + 1):
            node = index >> 4 * (self._depth - level)
            first = 512 * (node >> 4)
            siblings.append(_beside(self._levels[level][first : first + 512], node & 15))
        known = bytes(self._levels[-1][32 * index : 32 * index + 32])
        path, nibble = index.to_bytes(4, "big"), self._depth
        record = (self._remembered[index] if self._remembered else None) or self._read(path, known)
        while record[:1] == _BRANCH:
            child = _nibble(key_hash, nibble)
            hashes = record[_BRANCH_HASHES:]
            siblings.append(_beside(hashes, child))
            path, nibble = path + bytes((child,)), nibble + 1
            record = self._read(path, hashes[32 * child : 32 * child + 32])
        return TreeProof(tuple(siblings), record[1:])

    def lacks(self, key: bytes) -> bool:
        """Whether `key` certainly has no value under this root; False: only the store can tell. Reads nothing."""
        key_hash = sha256(key).digest()
        index = int.from_bytes(key_hash[:4], "big") >> self._shift
        record = self._remembered[index] if self._remembered else None
        if record is None:
            return self._levels[-1].startswith(EMPTY, 32 * index)
        return record[:1] == _LEAF and key_hash not in record

    def copy(self, read_bucket: Callable[[bytes], bytes | None]) -> "StateTree":
        """Return a tree with this one's hashes that goes its own way over the records that `read_bucket` gives.

        It takes as much memory as the levels (2 MB at 16 bits, 34 MB at 20) and remembers no records.
        """
        copied = copy.copy(self)
        copied._read_bucket = read_bucket
        copied._levels = [bytearray(level) for level in self._levels]
        copied._remembered, copied._remembered_bytes = [], 0
        copied._cache_bytes_max = 0
        return copied

    def _take(self, records: Iterable[tuple[bytes, bytes]], leaves: bytearray) -> None:
        """`leaves` holds the hash of every stored bucket; as many `records` as there is room for are remembered.

        No node runs before this is done, for every bucket there is: so what can be said of a thousand records at
        once is not asked of each.
        """
        put, remembered, bound = Struct("32s").pack_into, self._remembered, self._cache_bytes_max
        rows = iter(records)
        while part := list(islice(rows, _PART)):
            # Sub-buckets are proven by the branch above them when they are read.
            buckets = [row for row in part if len(row[0]) == 4]
            if not buckets:
                continue
            places = unpack(f">{len(buckets)}I", b"".join([path for path, _ in buckets]))
            if max(places) >= 2**self.bits:
                text = f"bucket {max(places)} is outside a tree of {self.bits} bits"
                raise StoreError("corrupt_state_tree", text)
            found = [record for _, record in buckets]
            if _LEAF_SIZES.issuperset(map(len, found)) and not any(map(itemgetter(0), found)):
                for index, record in zip(places, found, strict=True):
                    put(leaves, 32 * index, sha256(record).digest())
            else:
                for index, (path, record) in zip(places, buckets, strict=True):
                    put(leaves, 32 * index, _record_hash(path, record))
            used = self._remembered_bytes + sum(map(len, found)) + _CACHE_ENTRY_BYTES * len(found)
            if used <= bound:
                self._remembered_bytes = used
                for index, record in zip(places, found, strict=True):
                    remembered[index] = record

    def _root(self, top: bytes) -> bytes:
        return root_over(self.bits, top)

    def _read(self, path: bytes, known: bytes) -> bytes:
        """Return the stored record of the bucket at `path`, whose hash is `known`; an empty leaf has none."""
        if known == EMPTY:
            return _LEAF
        record = self._read_bucket(path)
        if record is None or _record_hash(path, record) != known:
            raise StoreError("corrupt_state_tree", f"bucket {path.hex()} differs from its hash in the tree")
        return record

    def _remember(self, records: Mapping[bytes, bytes | None]) -> None:
        """The buckets have these `records` now. Beyond the bound others are forgotten in turn, as if at random."""
        remembered, used, hand = self._remembered, self._remembered_bytes, self._hand
        number_of = int.from_bytes
        for path, record in records.items():
            if len(path) == 4:
                index = number_of(path, "big")
                old = remembered[index]
                remembered[index] = record
                if old is not None:
                    used -= len(old) + _CACHE_ENTRY_BYTES
                if record is not None:
                    used += len(record) + _CACHE_ENTRY_BYTES
        while used > self._cache_bytes_max:
            old = remembered[hand]
            if old is not None:
                remembered[hand] = None
                used -= len(old) + _CACHE_ENTRY_BYTES
            hand = (hand + 1) % len(remembered)
        self._remembered_bytes, self._hand = used, hand

    def _update(
        self,
        path: bytes,
        nibble: int,
        record: bytes,
        part: list[bytes],
        changes: dict[bytes, bytes | None],
        buckets: dict[bytes, bytes | None],
    ) -> tuple[bytes, int]:
        """Write the records of the bucket at `path` after `changes`; return its hash and how many pairs it has.

        `part` are the key hashes in `changes` that lie here. `nibble` is the place in the key hash of the four bits
        that would part this bucket, `record` the bucket now.
        """
        if record[:1] == _BRANCH:
            return self._update_branch(path, nibble, record, part, changes, buckets)
        pairs = _pairs(record)
        for key_hash in part:
            pair = changes[key_hash]
            place = bisect_left(pairs, key_hash)
            found = place < len(pairs) and pairs[place].startswith(key_hash)
            if pair is None:
                if found:
                    del pairs[place]
            elif found:
                pairs[place] = pair
            else:
                pairs.insert(place, pair)
        if pairs:
            return _write(path, nibble, pairs, buckets)
        if record != _LEAF:
            buckets[path] = None
        return EMPTY, 0

    def _update_branch(
        self,
        path: bytes,
        nibble: int,
        record: bytes,
        part: list[bytes],
        changes: dict[bytes, bytes | None],
        buckets: dict[bytes, bytes | None],
    ) -> tuple[bytes, int]:
        """As `_update`, for a bucket that is parted into sub-buckets; joined again when 64 pairs are left."""
        counts = [int.from_bytes(record[1 + 4 * i : 5 + 4 * i], "big") for i in range(16)]
        hashes = [record[_BRANCH_HASHES + 32 * i : _BRANCH_HASHES + 32 * i + 32] for i in range(16)]
        parts: dict[int, list[bytes]] = {}
        for key_hash in part:
            parts.setdefault(_nibble(key_hash, nibble), []).append(key_hash)
        for child, hashes_below in parts.items():
            child_path = path + bytes((child,))
            below = self._read(child_path, hashes[child])
            hashes[child], counts[child] = self._update(
                child_path, nibble + 1, below, hashes_below, changes, buckets
            )
        if sum(counts) > PAIRS_MAX:
            return _write_branch(path, counts, hashes, buckets)
        pairs: list[bytes] = []
        for child in range(16):
            child_path = path + bytes((child,))
            if counts[child]:
                staged = buckets.get(child_path)
                pairs += _pairs(staged if staged is not None else self._read(child_path, hashes[child]))
                buckets[child_path] = None
        if not pairs:
            buckets[path] = None
            return EMPTY, 0
        return _write(path, nibble, pairs, buckets)


def bucket_of(key_hash: bytes, bits: int) -> int:
    """Return the number of the bucket that the key with this hash lies in."""
    return int.from_bytes(key_hash[:4], "big") >> (32 - bits)


def build_bucket(index: int, bits: int, pairs: list[bytes], records: dict[bytes, bytes | None]) -> bytes:
    """Return the hash of bucket `index` of ascending `pairs`; what is stored of it is put into `records`."""
    if not pairs:
        return EMPTY
    return _write(index.to_bytes(4, "big"), bits // 4, pairs, records)[0]


def build_subtree(node: str, bits: int, pairs: list[bytes], records: dict[bytes, bytes | None]) -> bytes:
    """Return the hash of a node, named by the hex digits of its way, that exactly the ascending `pairs` lie under.

    What is stored of its buckets is put into `records`. A node below a bucket is one of a parted bucket.
    """
    depth = bits // 4
    if len(node) >= depth:
        return _write(record_path(node, bits), len(node), pairs, records)[0] if pairs else EMPTY
    grouped: dict[int, list[bytes]] = {}
    for pair in pairs:
        grouped.setdefault(bucket_of(pair, bits), []).append(pair)
    width = 16 ** (depth - len(node))
    first = int(node, 16) * width if node else 0
    buckets = range(first, first + width)
    return fold(b"".join([build_bucket(index, bits, grouped.get(index, []), records) for index in buckets]))


def record_path(node: str, bits: int) -> bytes:
    """Return where the record of a bucket, or of a part of one, lies that is named by the hex digits of its way."""
    depth = bits // 4
    return int(node[:depth], 16).to_bytes(4, "big") + bytes([int(digit, 16) for digit in node[depth:]])


def branch_over(children: Sequence[bytes | None]) -> bytes:
    """Return the record of a parted bucket whose 16 sub-buckets have these records; None where one is empty.

    Raise StoreError("corrupt_state_tree") for what is no record.
    """
    counts = [0 if record is None else _pair_count(record) for record in children]
    hashes = [EMPTY if record is None else _record_hash(b"", record) for record in children]
    records: dict[bytes, bytes | None] = {}
    _write_branch(b"", counts, hashes, records)
    return records[b""] or b""


def fold(nodes: bytes | bytearray) -> bytes:
    """Return the hash of the node over all of `nodes`, the joined hashes of a level below it (16 ** n of them)."""
    while len(nodes) > 32:
        nodes = b"".join([sha256(nodes[at : at + 512]).digest() for at in range(0, len(nodes), 512)])
    return bytes(nodes)


def root_over(bits: int, top: bytes) -> bytes:
    """Return the root of a tree of 2 ** `bits` buckets whose top node is `top`."""
    return sha256(TAG + bytes((bits,)) + top).digest()


def _levels_over(leaves: bytearray) -> list[bytearray]:
    """Return the levels, top first, of the tree over the hashes of all buckets: 32 bytes a node, joined."""
    levels, empty = [leaves], EMPTY
    while len(levels[0]) > 32:
        below, nothing = levels[0], 16 * empty
        empty = sha256(nothing).digest()
        here = [
            empty if children == nothing else sha256(children).digest()
            for at in range(0, len(below), 512)
            for children in [below[at : at + 512]]
        ]
        levels.insert(0, bytearray().join(here))
    return levels


def _parents(below: bytearray, changed: dict[int, bytes]) -> dict[int, bytes]:
    """Return the hashes of the parents of the `changed` nodes, ascending by number, of the level `below`."""
    parents: dict[int, bytes] = {}
    last, children = -1, bytearray()
    for index, node in changed.items():
        parent = index >> 4
        if parent != last:
            if children:
                parents[last] = sha256(children).digest()
            last, children = parent, below[512 * parent : 512 * parent + 512]
        _put_node(children, 32 * (index & 15), node)
    if children:
        parents[last] = sha256(children).digest()
    return parents


def _beside(hashes: bytes | bytearray, place: int) -> bytes:
    """Return 16 children's hashes without the one at `place`."""
    return bytes(hashes[: 32 * place] + hashes[32 * place + 32 :])


def _nibble(key_hash: bytes, place: int) -> int:
    byte = key_hash[place >> 1]
    return byte & 15 if place & 1 else byte >> 4


def _pairs(record: bytes) -> list[bytes]:
    return [record[at : at + _PAIR] for at in range(1, len(record), _PAIR)]


def _leaf_after(leaf: bytes, part: list[bytes], changes: dict[bytes, bytes | None]) -> bytes:
    """Return the `leaf` after the `changes` of the key hashes in `part`; it may be empty then, or too long."""
    for key_hash in part:
        low, high = 0, len(leaf) // _PAIR
        while low < high:
            middle = (low + high) >> 1
            at = _PAIR * middle + 1
            if leaf[at : at + 32] < key_hash:
                low = middle + 1
            else:
                high = middle
        at = _PAIR * low + 1
        rest = at + _PAIR if leaf.startswith(key_hash, at) else at
        leaf = leaf[:at] + (changes[key_hash] or b"") + leaf[rest:]
    return leaf


def _pair_count(record: bytes) -> int:
    if record[:1] == _LEAF:
        return len(record) // _PAIR
    return sum([int.from_bytes(record[at : at + 4], "big") for at in range(1, _BRANCH_HASHES, 4)])


def _record_hash(path: bytes, record: bytes) -> bytes:
    """Return the hash of the bucket that `record` describes; raise StoreError when it has neither form."""
    size = len(record)
    if size % _PAIR == 1 and _PAIR < size <= RECORD_SIZE_MAX and record.startswith(_LEAF):
        return sha256(record).digest()
    if size == _BRANCH_SIZE and record.startswith(_BRANCH):
        return sha256(record[_BRANCH_HASHES:]).digest()
    raise StoreError("corrupt_state_tree", f"bucket {path.hex()} is neither leaf nor branch")


def _write(path: bytes, nibble: int, pairs: list[bytes], buckets: dict[bytes, bytes | None]) -> tuple[bytes, int]:
    """Put the records of the ascending `pairs` at and below `path` into `buckets`; return hash and count."""
    if len(pairs) <= PAIRS_MAX:
        record = _LEAF + b"".join(pairs)
        buckets[path] = record
        return sha256(record).digest(), len(pairs)
    parts: list[list[bytes]] = [[] for _ in range(16)]
    for pair in pairs:
        parts[_nibble(pair, nibble)].append(pair)
    counts, hashes = [], []
    for child, part in enumerate(parts):
        child_hash = EMPTY
        if part:
            child_hash, _ = _write(path + bytes((child,)), nibble + 1, part, buckets)
        counts.append(len(part))
        hashes.append(child_hash)
    return _write_branch(path, counts, hashes, buckets)


def _write_branch(
    path: bytes, counts: list[int], hashes: list[bytes], buckets: dict[bytes, bytes | None]
) -> tuple[bytes, int]:
    joined = b"".join(hashes)
    buckets[path] = _BRANCH + b"".join(count.to_bytes(4, "big") for count in counts) + joined
    return sha256(joined).digest(), sum(counts)
