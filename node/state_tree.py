"""The state tree: one root over all of the state, in the simplest shape that is fast in Python. Pure.

A fixed tree of 16 children a node stands over 2 ** bits buckets. A key's bucket is named by the first `bits` bits
of SHA-256(key). A bucket hashes as SHA-256(0x00 || sorted (key hash || value hash) pairs), which is never 512 bytes
long and so never passes for an inner node; an empty bucket is 32 zero bytes; more than 64 pairs are hashed as 16
sub-buckets by the next four bits, recursively. The root is SHA-256(tag || bits || top).

The hashes of buckets and inner nodes lie in memory as one byte array a level. A bucket or sub-bucket is named by
the hex digits that the hashes of all its keys begin with, and described by a record:

    leaf    0x00 || pair ...                          at most 64 pairs; its SHA-256 is the bucket's hash
    branch  0x01 || 16 counts (4 bytes) || 16 hashes  the SHA-256 of the hashes is the bucket's hash

The store holds a row for each pair and one for each branch, not whole leaves: what a changed key writes must not
grow with the number of keys in its bucket (a branch of 577 bytes is written besides where there are more than 64).
Records of buckets up to a bound lie in memory, for a read from disk costs more than all the hashing for a key.
Every record that is read from the store is compared with the hash that the tree holds for it, and a branch's counts
with what is found below it.

A proof for a key is its bucket's pairs and, on each level from the top, the fifteen hashes beside the one on the
way: who knows the root and the number of bits computes the rest from SHA-256(key), and finds the pair or misses it.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from itertools import islice
from struct import Struct, unpack
from typing import Final

import msgspec

from node.errors import StoreError
from node.tree_records import (
    BRANCH,
    BRANCH_HASHES,
    DIGITS,
    EMPTY,
    LEAF,
    PAIR,
    RECORD_SIZE_MAX,
    BucketUpdate,
    leaf_after,
    nibble,
    pairs_of,
    record_hash,
    write_bucket,
)

BITS_MAX = 24
TAG = b"hansa/state"
_PART = 4096
"""So many stored pairs are judged together when the tree is rebuilt."""
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

    `base` is the root it was staged on, `root` the root it leads to. `pairs` (by key hash) and `branches` (records
    by name) are what the store has to write (None: delete). `buckets` are all changed records by name, leaves and
    branches (None: an empty one), `levels` the changed hashes by node number for each level, top first.
    """

    base: bytes
    root: bytes
    pairs: dict[bytes, bytes | None]
    branches: dict[str, bytes | None]
    buckets: dict[str, bytes | None]
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
    """The levels of the tree in memory; the buckets' records are read through the function it was given."""

    def __init__(
        self,
        bits: int,
        read_bucket: Callable[[str], bytes | None],
        pairs: Iterable[tuple[bytes, bytes]] = (),
        cache_bytes_max: int = CACHE_BYTES_MAX,
    ) -> None:
        """Stand over the stored `pairs` (key hash, value hash), which ascend, rebuilding every level from them.

        `bits` is a multiple of 4 from 4 to 24. Raise StoreError("corrupt_state_tree") for a malformed pair.
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
        self._name = f"%0{self._depth}x"
        leaves = bytearray(32 * 2**bits)
        self._take(pairs, leaves)
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
        buckets: dict[str, bytes | None] = {}
        branches: dict[str, bytes | None] = {}
        changed: dict[int, bytes] = {}
        parts: dict[int, list[bytes]] = {}
        shift, number_of, name_of = self._shift, int.from_bytes, self._name
        # Ascending hashes are ascending buckets.
        for key_hash in sorted(pairs):
            index = number_of(key_hash[:4], "big") >> shift
            if index in parts:
                parts[index].append(key_hash)
            else:
                parts[index] = [key_hash]
        remembered, leaves = self._remembered, self._levels[-1]
        for index, part in parts.items():
            name = name_of % index
            record = remembered[index] if remembered else None
            if record is None:
                record = self._read(name, bytes(leaves[32 * index : 32 * index + 32]))
            leaf = leaf_after(record, part, pairs) if len(part) <= _FEW and record.startswith(LEAF) else b""
            if PAIR < len(leaf) <= RECORD_SIZE_MAX:
                buckets[name] = leaf
                changed[index] = sha256(leaf).digest()
            else:
                update = BucketUpdate(pairs, self._read)
                changed[index], _ = update.bucket(name, record, part)
                buckets.update(update.records)
                branches.update(update.branches())
        levels = [changed]
        for level in range(self._depth - 1, -1, -1):
            changed = _parents(self._levels[level + 1], changed)
            levels.append(changed)
        top = changed.get(0, bytes(self._levels[0]))
        return StagedTree(self.root, self._root(top), pairs, branches, buckets, tuple(reversed(levels)))

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
        name = self._name % index
        record = (self._remembered[index] if self._remembered else None) or self._read(name, known)
        while record[:1] == BRANCH:
            child = nibble(key_hash, len(name))
            hashes = record[BRANCH_HASHES:]
            siblings.append(_beside(hashes, child))
            name += DIGITS[child]
            record = self._read(name, hashes[32 * child : 32 * child + 32])
        return TreeProof(tuple(siblings), record[1:])

    def lacks(self, key: bytes) -> bool:
        """Whether `key` certainly has no value under this root; False: only the store can tell. Reads nothing."""
        key_hash = sha256(key).digest()
        index = int.from_bytes(key_hash[:4], "big") >> self._shift
        record = self._remembered[index] if self._remembered else None
        if record is None:
            return self._levels[-1].startswith(EMPTY, 32 * index)
        return record[:1] == LEAF and key_hash not in record

    def copy(self, read_bucket: Callable[[str], bytes | None]) -> "StateTree":
        """Return a tree with this one's hashes that goes its own way over the records that `read_bucket` gives.

        It takes as much memory as the levels (2 MB at 16 bits, 34 MB at 20) and remembers no records.
        """
        copied = copy.copy(self)
        copied._read_bucket = read_bucket
        copied._levels = [bytearray(level) for level in self._levels]
        copied._remembered, copied._remembered_bytes = [], 0
        copied._cache_bytes_max = 0
        return copied

    def _take(self, pairs: Iterable[tuple[bytes, bytes]], leaves: bytearray) -> None:
        """`leaves` holds the hash of every bucket of `pairs`; as many records as there is room for are remembered.

        No node runs before this is done, for every pair there is: so what can be said of thousands of pairs at once
        is not asked of each.
        """
        rows, shift = iter(pairs), self._shift
        last, found = -1, [b""]
        while part := list(islice(rows, _PART)):
            if {(len(key_hash), len(value_hash)) for key_hash, value_hash in part} != {(32, 32)}:
                raise StoreError("corrupt_state_tree", "a stored pair of the state tree is no pair of hashes")
            heads = unpack(f">{len(part)}I", b"".join([key_hash[:4] for key_hash, _ in part]))
            for pair, head in zip(part, heads, strict=True):
                index = head >> shift
                if index == last:
                    found += pair
                else:
                    self._take_bucket(last, found, leaves)
                    last, found = index, [LEAF, *pair]
        self._take_bucket(last, found, leaves)

    def _take_bucket(self, index: int, parts: list[bytes], leaves: bytearray) -> None:
        """`leaves` has the hash of the bucket whose leaf is the joined `parts`; its record is remembered."""
        record = b"".join(parts)
        if not record:
            return
        if len(record) > RECORD_SIZE_MAX:
            records: dict[str, bytes | None] = {}
            name = self._name % index
            known, _ = write_bucket(name, pairs_of(record), records)
            record = records[name] or b""
        else:
            known = sha256(record).digest()
        _put_node(leaves, 32 * index, known)
        used = self._remembered_bytes + len(record) + _CACHE_ENTRY_BYTES
        if used <= self._cache_bytes_max:
            self._remembered_bytes = used
            self._remembered[index] = record

    def _root(self, top: bytes) -> bytes:
        return root_over(self.bits, top)

    def _read(self, name: str, known: bytes) -> bytes:
        """Return the stored record of the bucket `name`, whose hash is `known`; an empty leaf has none."""
        if known == EMPTY:
            return LEAF
        record = self._read_bucket(name)
        if record is None or record_hash(name, record) != known:
            raise StoreError("corrupt_state_tree", f"bucket {name} differs from its hash in the tree")
        return record

    def _remember(self, records: Mapping[str, bytes | None]) -> None:
        """The buckets have these `records` now. Beyond the bound others are forgotten in turn, as if at random."""
        remembered, used, hand = self._remembered, self._remembered_bytes, self._hand
        depth = self._depth
        for name, record in records.items():
            if len(name) == depth:
                index = int(name, 16)
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


def bucket_of(key_hash: bytes, bits: int) -> int:
    """Return the number of the bucket that the key with this hash lies in."""
    return int.from_bytes(key_hash[:4], "big") >> (32 - bits)


def build_bucket(index: int, bits: int, pairs: list[bytes], records: dict[str, bytes | None]) -> bytes:
    """Return the hash of bucket `index` of ascending `pairs`; its records are put into `records`."""
    if not pairs:
        return EMPTY
    return write_bucket(f"{index:0{bits // 4}x}", pairs, records)[0]


def build_subtree(node: str, bits: int, pairs: list[bytes], records: dict[str, bytes | None]) -> bytes:
    """Return the hash of a node, named by the hex digits of its way, that exactly the ascending `pairs` lie under.

    The records of its buckets are put into `records`. A node below a bucket is one of a parted bucket.
    """
    depth = bits // 4
    if len(node) >= depth:
        return write_bucket(node, pairs, records)[0] if pairs else EMPTY
    grouped: dict[int, list[bytes]] = {}
    for pair in pairs:
        grouped.setdefault(bucket_of(pair, bits), []).append(pair)
    width = 16 ** (depth - len(node))
    first = int(node, 16) * width if node else 0
    buckets = range(first, first + width)
    return fold(b"".join([build_bucket(index, bits, grouped.get(index, []), records) for index in buckets]))


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
