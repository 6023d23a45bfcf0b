"""The state tree against the plainest reading of its definition."""

from collections.abc import Iterable, Iterator
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import StoreError
from node.state_tree import TAG, StagedTree, StateTree, TreeProof
from node.store.tree_rows import read_bucket, read_pairs, record_rows, staged_rows
from node.tree_records import PAIRS_MAX


def naive_root(values: dict[bytes, bytes], bits: int) -> bytes:
    """The root by the words of the definition: recursion over bits, nothing remembered."""

    def bucket(pairs: list[bytes], nibble: int) -> bytes:
        if not pairs:
            return bytes(32)
        if len(pairs) <= 64:
            return sha256(b"\x00" + b"".join(sorted(pairs))).digest()
        return sha256(b"".join(bucket(part, nibble + 1) for part in parted(pairs, nibble))).digest()

    def parted(pairs: list[bytes], nibble: int) -> list[list[bytes]]:
        return [[pair for pair in pairs if int(pair.hex()[nibble], 16) == child] for child in range(16)]

    def node(pairs: list[bytes], nibble: int) -> bytes:
        if nibble == bits // 4:
            return bucket(pairs, nibble)
        return sha256(b"".join(node(part, nibble + 1) for part in parted(pairs, nibble))).digest()

    pairs = [sha256(key).digest() + sha256(value).digest() for key, value in values.items()]
    return sha256(TAG + bytes((bits,)) + node(pairs, 0)).digest()


def nothing(name: str) -> bytes | None:
    """An empty store."""
    return None


class Disk:
    """The store's rows of a tree in memory, and the tree over them."""

    def __init__(self, bits: int, cache_bytes_max: int = 0) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.tree = StateTree(bits, self.bucket, (), cache_bytes_max)

    def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def scan(
        self, start: bytes, end: bytes, reverse: bool = False, ahead: int = 1
    ) -> Iterator[tuple[bytes, bytes]]:
        assert not reverse
        return iter(sorted((key, value) for key, value in self.rows.items() if start <= key < end))

    def bucket(self, name: str) -> bytes | None:
        return read_bucket(self, name)

    def pairs(self) -> list[tuple[bytes, bytes]]:
        return list(read_pairs(self))

    def parted(self) -> list[str]:
        return [key[1:].decode() for key in self.rows if key[:1] == b"d"]

    def write(self, staged: StagedTree) -> None:
        for key, value in staged_rows(staged):
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value

    def apply(self, changes: dict[bytes, bytes | None]) -> StagedTree:
        staged = self.tree.stage(changes)
        self.write(staged)
        self.tree.commit(staged)
        return staged


def rows_of(values: dict[bytes, bytes], bits: int) -> dict[bytes, bytes]:
    """The rows that a tree of these values has, built at once."""
    fresh = StateTree(bits, nothing)
    return {key: value for key, value in record_rows(fresh.stage(dict(values)).buckets) if value is not None}


# With 4 bits there are 16 buckets, so a few hundred keys stuff them and several sub-levels appear.
keys = st.integers(0, 400).map(lambda number: b"key%d" % number)
changes = st.dictionaries(keys, st.one_of(st.none(), st.binary(max_size=4)), max_size=200)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(changes, max_size=6), st.booleans(), st.sampled_from([0, 3_000, 10**6]))
def test_every_history_leads_to_the_root_of_the_values_that_are_left(
    blocks: list[dict[bytes, bytes | None]], filled: bool, cache_bytes_max: int
) -> None:
    disk = Disk(4, cache_bytes_max)
    values: dict[bytes, bytes] = {}
    if filled:
        blocks = [{b"key%d" % number: b"v" for number in range(1400)}, *blocks]
    for block in blocks:
        disk.apply(block)
        for key, value in block.items():
            values.pop(key, None)
            if value is not None:
                values[key] = value
        assert disk.tree.root == naive_root(values, 4)
        assert not any(disk.tree.lacks(key) for key in values)
    rebuilt = StateTree(4, disk.bucket, disk.pairs())
    assert rebuilt.root == disk.tree.root
    assert disk.rows == rows_of(values, 4), "no row is left over, and none is missing"


def test_a_stuffed_bucket_is_parted_and_joined_again_without_a_trace() -> None:
    disk = Disk(4)
    small: dict[bytes, bytes | None] = {b"key%d" % number: b"v" for number in range(20)}
    large: dict[bytes, bytes | None] = {b"more%d" % number: b"v" for number in range(18_000)}
    disk.apply(small)
    before, rows = disk.tree.root, dict(disk.rows)
    staged = disk.apply(large)
    assert max(len(name) for name in disk.parted()) >= 2, "two levels of sub-buckets were expected"
    assert max(len(record or b"") for record in staged.buckets.values()) <= 1 + PAIRS_MAX * 64
    disk.apply(dict.fromkeys(large))
    assert (disk.tree.root, disk.rows) == (before, rows)
    disk.apply(dict.fromkeys(small))
    assert not disk.rows
    assert disk.tree.root == StateTree(4, disk.bucket).root


def test_what_a_changed_key_writes_does_not_grow_with_its_bucket() -> None:
    """A whole leaf was written for it: with a million keys in 65,536 buckets a kilobyte for each change."""
    disk = Disk(4)
    disk.apply({b"key%d" % number: b"v" for number in range(PAIRS_MAX * 12)})
    rows = staged_rows(disk.tree.stage({b"key7": b"w"}))
    assert not disk.parted()
    assert sum(len(key) + len(value or b"") for key, value in rows) == 1 + 32 + 32


@pytest.mark.parametrize("cache_bytes_max", [0, 10**6])
def test_a_key_that_is_there_is_never_said_to_be_lacking(cache_bytes_max: int) -> None:
    disk = Disk(8, cache_bytes_max)
    keys = [b"key%d" % number for number in range(300)]
    disk.apply(dict.fromkeys(keys, b"v"))
    # A value may be any bytes: also a key, so that its hash stands where another key's could.
    disk.apply({b"other": b"absent", keys[0]: None})
    assert not any(disk.tree.lacks(key) for key in [*keys[1:], b"other"])
    unknown = [b"new%d" % number for number in range(300)]
    lacking = sum(disk.tree.lacks(key) for key in [*unknown, keys[0]])
    # Without records in memory only an empty bucket tells.
    assert lacking == 301 if cache_bytes_max else 0 < lacking < 301
    disk.apply(dict.fromkeys([b"key%d" % number for number in range(20_000)], b"v"))
    assert not any(disk.tree.lacks(b"key%d" % number) for number in range(20_000)), "parted buckets"


def test_the_order_of_changes_is_of_no_importance() -> None:
    changes: dict[bytes, bytes | None] = {b"key%d" % number: b"%d" % number for number in range(500)}
    one, other = Disk(8), Disk(8)
    one.apply(changes)
    other.apply(dict(reversed(changes.items())))
    assert one.tree.root == other.tree.root
    assert one.rows == other.rows


def test_staging_changes_nothing_and_a_stale_stage_is_refused() -> None:
    disk = Disk(8)
    empty = disk.tree.root
    staged = disk.tree.stage({b"a": b"1"})
    assert disk.tree.root == empty != staged.root
    disk.apply({b"b": b"1"})
    with pytest.raises(ValueError, match="another root"):
        disk.tree.commit(staged)


def test_a_bucket_of_eight_pairs_cannot_pass_for_an_inner_node() -> None:
    sizes = {1 + 64 * count for count in range(1, PAIRS_MAX + 1)}
    assert 512 not in sizes


@pytest.mark.parametrize("keys", [1, 2_000])
@pytest.mark.parametrize("damage", ["flipped", "missing", "unknown kind", "cut"])
def test_a_damaged_bucket_is_noticed_when_it_is_read(damage: str, keys: int) -> None:
    """Of one key: its pair. Of two thousand: the record of the parted bucket that it lies in."""
    disk = Disk(4)
    disk.apply({b"key%d" % number: b"value" for number in range(keys)})
    row = min(key for key in disk.rows if key[:1] == (b"d" if keys > 1 else b"t"))
    value = disk.rows[row]
    if damage == "missing":
        del disk.rows[row]
    else:
        disk.rows[row] = {
            "flipped": value[:-1] + bytes((value[-1] ^ 1,)),
            "unknown kind": b"\x07" + value[1:],
            "cut": value[:-1],
        }[damage]
    touched = [key for key in (b"key%d" % number for number in range(keys)) if sha256(key).digest()[0] >> 4 == 0]
    with pytest.raises(StoreError, match="corrupt_state_tree"):
        disk.tree.stage(dict.fromkeys(touched or [b"key0"], b"other"))


@pytest.mark.parametrize("lie", ["none", "one more", "as many as there can be", "a few of many"])
@pytest.mark.parametrize("level", [1, 2])
def test_a_branch_that_counts_otherwise_than_its_parts_is_noticed(lie: str, level: int) -> None:
    """The hash of a branch does not cover its counts: a wrong one led to another root, or to no StoreError."""
    disk = Disk(4)
    names = [b"key%d" % number for number in range(18_000)]
    disk.apply(dict.fromkeys(names, b"v"))
    row = min(key for key in disk.rows if key[:1] == b"d" and len(key) == 1 + level)
    counts = [int.from_bytes(disk.rows[row][at : at + 4], "big") for at in range(1, 65, 4)]
    counts = {
        "none": [0] * 16,
        "one more": [count + 1 for count in counts],
        "as many as there can be": [2**32 - 1] * 16,
        "a few of many": [5] * 16,
    }[lie]
    disk.rows[row] = b"\x01" + b"".join(count.to_bytes(4, "big") for count in counts) + disk.rows[row][65:]
    touched = [key for key in names if sha256(key).hexdigest().startswith(row[1:].decode())]
    with pytest.raises(StoreError, match="counts otherwise"):
        disk.tree.stage(dict.fromkeys(touched[: -PAIRS_MAX if lie == "a few of many" else None]))


def test_a_tree_stands_again_over_many_pairs_whole_and_parted_buckets_among_them() -> None:
    disk = Disk(8)
    disk.apply({b"key%d" % number: b"v" for number in range(PAIRS_MAX * 2**8)})
    assert 0 < len(disk.parted()) < 2**8, "whole ones and parted ones"
    again = StateTree(8, disk.bucket, disk.pairs())
    assert again.root == disk.tree.root
    changes: dict[bytes, bytes | None] = {b"key%d" % number: b"w" for number in range(0, 16_000, 97)}
    changes |= {b"key5": None, b"new": b"1"}
    assert again.stage(changes) == disk.tree.stage(changes), "every level is as it was"


def test_what_was_read_at_the_start_is_not_read_again_as_far_as_there_is_room() -> None:
    disk = Disk(12)
    keys = [b"key%d" % number for number in range(3_000)]
    disk.apply(dict.fromkeys(keys, b"v"))
    names = {pair[0].hex()[:3] for pair in disk.pairs()}
    size = 64 * 3_000 + len(names)
    for bound, all_there in ((10 * size, True), (size // 2, False)):
        read: list[str] = []

        def reading(name: str, read: list[str] = read) -> bytes | None:
            read.append(name)
            return disk.bucket(name)

        tree = StateTree(12, reading, disk.pairs(), bound)
        assert not read
        assert not any(tree.lacks(key) for key in keys)
        tree.stage(dict.fromkeys(keys, b"w"))
        assert len(read) == (0 if all_there else len(set(read)))
        if not all_there:
            kept = [disk.bucket(name) or b"" for name in names - set(read)]
            assert 0 < sum(len(record) for record in kept) <= bound


@pytest.mark.parametrize("damage", [(32, 0), (32, 31), (32, 33), (0, 32), (31, 32), (33, 32)])
def test_a_row_that_can_be_no_pair_is_refused_at_start_among_many(damage: tuple[int, int]) -> None:
    disk = Disk(12)
    disk.apply({b"key%d" % number: b"v" for number in range(6_000)})
    pairs = disk.pairs()
    pairs[4_500] = ((pairs[4_500][0] + bytes(32))[: damage[0]], bytes(damage[1]))
    with pytest.raises(StoreError, match="no pair of hashes"):
        StateTree(12, disk.bucket, pairs)


def test_another_pair_leads_to_another_root() -> None:
    disk = Disk(12)
    disk.apply({b"key%d" % number: b"v" for number in range(6_000)})
    pairs = disk.pairs()
    for at in (0, 4_095, 4_096, len(pairs) - 1):
        key_hash, value_hash = pairs[at]
        flipped = value_hash[:-1] + bytes((value_hash[-1] ^ 1,))
        altered = [*pairs[:at], (key_hash, flipped), *pairs[at + 1 :]]
        missing = [*pairs[:at], *pairs[at + 1 :]]
        roots = {StateTree(12, disk.bucket, rows).root for rows in (pairs, altered, missing)}
        assert len(roots) == 3
        assert disk.tree.root in roots


@pytest.mark.parametrize("bits", [0, 3, 5, 28])
def test_the_number_of_bits_has_bounds(bits: int) -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        StateTree(bits, nothing)


def test_the_roots_of_version_one_never_change() -> None:
    """Vectors: an empty tree, one key, and the same key in a tree of other depth."""
    assert Disk(4).tree.root == naive_root({}, 4)
    disk = Disk(16)
    disk.apply({b"account": b"100"})
    assert disk.tree.root.hex() == "865c3cb4730e2d7054b636b5f412e65ceaceac8c3fd6b630b9a5fbb728826f56"


# --- proofs ---


def proven_root(key: bytes, proof: TreeProof, bits: int) -> bytes:
    """The root that a proof leads to, by the definition alone."""
    digits = [int(digit, 16) for digit in sha256(key).hexdigest()]
    node = sha256(b"\x00" + proof.pairs).digest() if proof.pairs else bytes(32)
    for level in range(len(proof.siblings) - 1, -1, -1):
        others, place = proof.siblings[level], digits[level]
        assert len(others) == 480
        node = sha256(others[: 32 * place] + node + others[32 * place :]).digest()
    return sha256(TAG + bytes((bits,)) + node).digest()


def proven_value(key: bytes, proof: TreeProof) -> bytes | None:
    """The value's hash that a proof shows; None: it shows that there is none."""
    pairs = {proof.pairs[at : at + 32]: proof.pairs[at + 32 : at + 64] for at in range(0, len(proof.pairs), 64)}
    return pairs.get(sha256(key).digest())


def check_proofs(tree: StateTree, values: dict[bytes, bytes], keys: Iterable[bytes]) -> None:
    """Every key, present or absent, has a proof under the tree's root of exactly what it holds."""
    for key in keys:
        proof = tree.prove(key)
        assert proven_root(key, proof, tree.bits) == tree.root
        assert proven_value(key, proof) == (sha256(values[key]).digest() if key in values else None)


@pytest.mark.parametrize(("bits", "count"), [(4, 0), (4, 1), (4, 18_000), (8, 500), (16, 300)])
def test_presence_and_absence_are_proven_in_empty_small_and_parted_buckets(bits: int, count: int) -> None:
    disk = Disk(bits)
    values = {b"key%d" % number: b"value%d" % number for number in range(count)}
    disk.apply(dict(values))
    present = list(values)[:: max(1, count // 60)]
    check_proofs(disk.tree, values, [*present, *(b"absent%d" % number for number in range(60))])
    if count == 18_000:
        depths = {len(disk.tree.prove(key).siblings) for key in present}
        assert max(depths) >= 3, "two levels of sub-buckets were expected"
    if count == 0:
        assert disk.tree.prove(b"key").pairs == b""


@settings(max_examples=20, deadline=None)
@given(st.lists(changes, min_size=1, max_size=5), st.lists(keys, max_size=20))
def test_a_proof_holds_after_every_history(blocks: list[dict[bytes, bytes | None]], asked: list[bytes]) -> None:
    disk = Disk(4)
    values: dict[bytes, bytes] = {}
    for block in blocks:
        disk.apply(block)
        for key, value in block.items():
            values.pop(key, None)
            if value is not None:
                values[key] = value
    check_proofs(disk.tree, values, asked)


def test_a_copy_goes_its_own_way() -> None:
    disk = Disk(8)
    disk.apply({b"key%d" % number: b"old" for number in range(100)})
    root, own = disk.tree.root, Disk(8)
    own.rows = dict(disk.rows)
    copied = disk.tree.copy(own.bucket)
    disk.apply({b"key%d" % number: b"new" for number in range(50)})
    assert copied.root == root != disk.tree.root
    check_proofs(copied, {b"key1": b"old"}, [b"key1", b"nothing"])
    staged = copied.stage({b"key1": None})
    own.write(staged)
    copied.commit(staged)
    check_proofs(copied, {}, [b"key1"])
    check_proofs(disk.tree, {b"key1": b"new"}, [b"key1"])


def test_a_proof_of_a_damaged_bucket_is_never_made() -> None:
    disk = Disk(4)
    disk.apply({b"key": b"value"})
    [(row, value_hash)] = disk.rows.items()
    disk.rows[row] = value_hash[:-1] + bytes((value_hash[-1] ^ 1,))
    with pytest.raises(StoreError, match="corrupt_state_tree"):
        disk.tree.prove(b"key")


@pytest.mark.parametrize("cache_bytes_max", [0, 10**6])
def test_changes_one_by_one_leave_the_records_that_they_leave_together(cache_bytes_max: int) -> None:
    """Few changes in a leaf are made in its bytes, many by taking it apart: from empty to over full and back."""
    one_by_one, together = Disk(4, cache_bytes_max), Disk(4)
    for step in (
        {b"key%d" % number: b"v" for number in range(200)},
        {b"key%d" % number: None if number % 3 else b"w" for number in range(0, 260, 2)},
        {b"more%d" % number: b"v" for number in range(1_000)},
        {b"more%d" % number: None for number in range(990)},
        {b"key%d" % number: None for number in range(260)},
        {b"more%d" % number: None for number in range(1_000)},
    ):
        changes: dict[bytes, bytes | None] = dict(step)
        for key, value in changes.items():
            one_by_one.apply({key: value})
        together.apply(changes)
        assert (one_by_one.tree.root, one_by_one.rows) == (together.tree.root, together.rows)
    assert not together.rows
