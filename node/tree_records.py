"""The records of the state tree's buckets: leaves of pairs, and branches over buckets that hold too many. Pure.

A bucket is named by the hex digits that the hashes of all its keys begin with. What a record looks like and how it
is hashed stands in state_tree.py.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256

from node.errors import StoreError

EMPTY = bytes(32)
PAIRS_MAX = 64
PAIR = 64
LEAF = b"\x00"
BRANCH = b"\x01"
BRANCH_HASHES = 1 + 16 * 4
BRANCH_SIZE = BRANCH_HASHES + 16 * 32
RECORD_SIZE_MAX = 1 + PAIRS_MAX * PAIR
DIGITS = "0123456789abcdef"


class BucketUpdate:
    """What changes make of one bucket and its sub-buckets, by their records: for large leaves and branches."""

    def __init__(self, changes: Mapping[bytes, bytes | None], read: Callable[[str, bytes], bytes]) -> None:
        """`changes` are pairs by key hash (None: deleted); `read` gives the record of that name and hash."""
        self.records: dict[str, bytes | None] = {}
        self._joined: list[str] = []
        self._changes = changes
        self._read = read

    def branches(self) -> dict[str, bytes | None]:
        """Return the records of what is parted now; None for what no longer is."""
        parted = {name: record for name, record in self.records.items() if record and record[:1] == BRANCH}
        return {**dict.fromkeys(self._joined), **parted}

    def bucket(self, name: str, record: bytes, part: list[bytes]) -> tuple[bytes, int]:
        """Put the records of the bucket `name`, `record` before, after the changes of the key hashes in `part`.

        Return its hash and how many pairs it has.
        """
        if record[:1] == BRANCH:
            return self._branch(name, record, part)
        pairs = pairs_of(record)
        for key_hash in part:
            pair = self._changes[key_hash]
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
            return write_bucket(name, pairs, self.records)
        if record != LEAF:
            self.records[name] = None
        return EMPTY, 0

    def _branch(self, name: str, record: bytes, part: list[bytes]) -> tuple[bytes, int]:
        """As `bucket`, for one that is parted into sub-buckets; joined again when 64 pairs are left."""
        counts, hashes = _children(name, record)
        parts: dict[int, list[bytes]] = {}
        for key_hash in part:
            parts.setdefault(nibble(key_hash, len(name)), []).append(key_hash)
        for child, hashes_below in parts.items():
            below = self._read(name + DIGITS[child], hashes[child])
            if _pair_count(below) != counts[child]:
                raise _miscounted(name)
            hashes[child], counts[child] = self.bucket(name + DIGITS[child], below, hashes_below)
        if sum(counts) > PAIRS_MAX:
            return _write_branch(name, counts, hashes, self.records)
        pairs: list[bytes] = []
        for child in range(16):
            child_name = name + DIGITS[child]
            if counts[child]:
                staged = self.records.get(child_name)
                below = staged if staged is not None else self._read(child_name, hashes[child])
                if below[:1] == BRANCH:
                    raise _miscounted(name)
                pairs += pairs_of(below)
                self.records[child_name] = None
        if len(pairs) != sum(counts):
            raise _miscounted(name)
        self._joined.append(name)
        if not pairs:
            self.records[name] = None
            return EMPTY, 0
        return write_bucket(name, pairs, self.records)


def leaf_over(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the record of a leaf of these (key hash, value hash), which ascend."""
    return LEAF + b"".join([part for pair in pairs for part in pair])


def branch_over(children: Sequence[bytes | None]) -> bytes:
    """Return the record of a parted bucket whose 16 sub-buckets have these records; None where one is empty.

    Raise StoreError("corrupt_state_tree") for what is no record.
    """
    counts = [0 if record is None else _pair_count(record) for record in children]
    hashes = [EMPTY if record is None else record_hash("", record) for record in children]
    records: dict[str, bytes | None] = {}
    _write_branch("", counts, hashes, records)
    return records[""] or b""


def nibble(key_hash: bytes, place: int) -> int:
    """Return the four bits of the hash at `place`, the first being place 0."""
    byte = key_hash[place >> 1]
    return byte & 15 if place & 1 else byte >> 4


def pairs_of(record: bytes) -> list[bytes]:
    """Return the pairs of a leaf's record, key hash and value hash joined."""
    return [record[at : at + PAIR] for at in range(1, len(record), PAIR)]


def leaf_after(leaf: bytes, part: list[bytes], changes: Mapping[bytes, bytes | None]) -> bytes:
    """Return the `leaf` after the `changes` of the key hashes in `part`; it may be empty then, or too long."""
    for key_hash in part:
        low, high = 0, len(leaf) // PAIR
        while low < high:
            middle = (low + high) >> 1
            at = PAIR * middle + 1
            if leaf[at : at + 32] < key_hash:
                low = middle + 1
            else:
                high = middle
        at = PAIR * low + 1
        rest = at + PAIR if leaf.startswith(key_hash, at) else at
        leaf = leaf[:at] + (changes[key_hash] or b"") + leaf[rest:]
    return leaf


def _pair_count(record: bytes) -> int:
    if record[:1] == LEAF:
        return len(record) // PAIR
    return sum(_children("", record)[0])


def _children(name: str, record: bytes) -> tuple[list[int], list[bytes]]:
    """Return the counts and hashes of a branch; raise StoreError for counts that cannot be those of its hashes."""
    counts = [int.from_bytes(record[1 + 4 * i : 5 + 4 * i], "big") for i in range(16)]
    hashes = [record[BRANCH_HASHES + 32 * i : BRANCH_HASHES + 32 * i + 32] for i in range(16)]
    if not PAIRS_MAX < sum(counts) < 2**32:
        raise _miscounted(name)
    if any((count == 0) != (known == EMPTY) for count, known in zip(counts, hashes, strict=True)):
        raise _miscounted(name)
    return counts, hashes


def _miscounted(name: str) -> StoreError:
    """The hash of a branch does not cover its counts, so they are compared with what is found."""
    return StoreError("corrupt_state_tree", f"bucket {name} counts otherwise than its parts")


def record_hash(name: str, record: bytes) -> bytes:
    """Return the hash of the bucket that `record` describes; raise StoreError when it has neither form."""
    size = len(record)
    if size % PAIR == 1 and PAIR < size <= RECORD_SIZE_MAX and record.startswith(LEAF):
        return sha256(record).digest()
    if size == BRANCH_SIZE and record.startswith(BRANCH):
        return sha256(record[BRANCH_HASHES:]).digest()
    raise StoreError("corrupt_state_tree", f"bucket {name} is neither leaf nor branch")


def write_bucket(name: str, pairs: list[bytes], records: dict[str, bytes | None]) -> tuple[bytes, int]:
    """Put the records of the bucket `name` of ascending `pairs`, and below, there; return hash and count."""
    if len(pairs) <= PAIRS_MAX:
        record = LEAF + b"".join(pairs)
        records[name] = record
        return sha256(record).digest(), len(pairs)
    parts: list[list[bytes]] = [[] for _ in range(16)]
    for pair in pairs:
        parts[nibble(pair, len(name))].append(pair)
    counts, hashes = [], []
    for digit, part in zip(DIGITS, parts, strict=True):
        counts.append(len(part))
        hashes.append(write_bucket(name + digit, part, records)[0] if part else EMPTY)
    return _write_branch(name, counts, hashes, records)


def _write_branch(
    name: str, counts: list[int], hashes: list[bytes], records: dict[str, bytes | None]
) -> tuple[bytes, int]:
    joined = b"".join(hashes)
    records[name] = BRANCH + b"".join(count.to_bytes(4, "big") for count in counts) + joined
    return sha256(joined).digest(), sum(counts)
