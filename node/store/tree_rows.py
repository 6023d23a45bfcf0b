"""The rows of the state tree: one for each pair, and one for each bucket that is parted.

Whoever asks for a bucket gets its record (tree_records.py). Which form it has follows from how many pairs there
are, so a leaf is made of its pairs and only the record of a parted bucket is read.
"""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from itertools import groupby

from node.state_tree import StagedTree
from node.store.database import Reader
from node.tree_records import BRANCH, PAIRS_MAX, leaf_over, pairs_of, write_bucket

_Rows = list[tuple[bytes, bytes | None]]

PAIRS_AHEAD = 256
"""So many pairs are read at a time where all are."""


def read_bucket(reader: Reader, name: str) -> bytes | None:
    """Return the record of the bucket or sub-bucket `name`, or None where no pair is; the tree knows its hash.

    That does not cover a branch's counts, so its checksum is verified.
    """
    odd = len(name) & 1
    first = b"t" + bytes.fromhex(name + "0" * odd)
    # Behind every hash that begins with these digits: hashes have 32 bytes.
    last = b"t" + bytes.fromhex(name + "f" * odd) + b"\xff" * 32
    pairs: list[tuple[bytes, bytes]] = []
    for key, value_hash in reader.scan(first, last, ahead=PAIRS_MAX + 1):
        if len(pairs) == PAIRS_MAX:
            return reader.get(b"d" + name.encode())
        pairs.append((key[1:], value_hash))
    return leaf_over(pairs) if pairs else None


def read_pairs(reader: Reader) -> Iterator[tuple[bytes, bytes]]:
    """Yield every (key hash, value hash), ascending."""
    for key, value_hash in reader.scan(b"t", b"u", ahead=PAIRS_AHEAD):
        yield key[1:], value_hash


def staged_rows(staged: StagedTree) -> _Rows:
    """Return the rows that change with `staged`."""
    rows: _Rows = [(b"t" + key, None if pair is None else pair[32:]) for key, pair in staged.pairs.items()]
    rows += [(b"d" + name.encode(), record) for name, record in staged.branches.items()]
    return rows


def record_rows(records: Mapping[str, bytes | None]) -> _Rows:
    """Return the rows of these records by name, leaves and branches, where none of them is yet."""
    rows: _Rows = []
    for name, record in records.items():
        if record is None:
            continue
        if record[:1] == BRANCH:
            rows.append((b"d" + name.encode(), record))
        else:
            rows += [(b"t" + pair[:32], pair[32:]) for pair in pairs_of(record)]
    return rows


def odd_branch(reader: Reader, bits: int) -> bytes | None:
    """Return the key of the first row of a parted bucket that is not what its pairs make; None: all are right."""
    found, width = reader.scan(b"d", b"e"), bits // 4
    for bucket, rows in groupby(read_pairs(reader), key=lambda pair: pair[0].hex()[:width]):
        pairs = [key_hash + value_hash for key_hash, value_hash in rows]
        for right in _branch_rows(bucket, pairs) if len(pairs) > PAIRS_MAX else ():
            row = next(found, None)
            if row != right:
                return right[0] if row is None else min(row[0], right[0])
    extra = next(found, None)
    return None if extra is None else extra[0]


def _branch_rows(name: str, pairs: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the rows, ascending, of the bucket `name` of so many `pairs` that it is parted."""
    records: dict[str, bytes | None] = {}
    write_bucket(name, pairs, records)
    return sorted((key, value) for key, value in record_rows(records) if key[:1] == b"d" and value is not None)


def pair_row(key: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Return the row of the pair that the state's `key` makes when it holds `value`."""
    return b"t" + sha256(key).digest(), sha256(value).digest()
