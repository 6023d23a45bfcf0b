"""The state tree against the plainest reading of its definition."""

from collections.abc import Iterable
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import StoreError
from node.state_tree import PAIRS_MAX, TAG, StagedTree, StateTree, TreeProof


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


def nothing(path: bytes) -> bytes | None:
    """An empty store."""
    return None


class Disk:
    """Bucket records in memory, and the tree over them."""

    def __init__(self, bits: int, cache_bytes_max: int = 0) -> None:
        self.records: dict[bytes, bytes] = {}
        self.tree = StateTree(bits, self.records.get, (), cache_bytes_max)

    def apply(self, changes: dict[bytes, bytes | None]) -> StagedTree:
        staged = self.tree.stage(changes)
        for path, record in staged.buckets.items():
            if record is None:
                self.records.pop(path, None)
            else:
                self.records[path] = record
        self.tree.commit(staged)
        return staged


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
    rebuilt = StateTree(4, disk.records.get, sorted(disk.records.items()))
    assert rebuilt.root == disk.tree.root


def test_a_stuffed_bucket_is_parted_and_joined_again_without_a_trace() -> None:
    disk = Disk(4)
    small: dict[bytes, bytes | None] = {b"key%d" % number: b"v" for number in range(20)}
    large: dict[bytes, bytes | None] = {b"more%d" % number: b"v" for number in range(18_000)}
    disk.apply(small)
    before, records = disk.tree.root, dict(disk.records)
    disk.apply(large)
    assert max(len(path) for path in disk.records) >= 6, "two levels of sub-buckets were expected"
    assert max(len(record) for record in disk.records.values()) <= 1 + PAIRS_MAX * 64
    disk.apply(dict.fromkeys(large))
    assert (disk.tree.root, disk.records) == (before, records)
    disk.apply(dict.fromkeys(small))
    assert not disk.records
    assert disk.tree.root == StateTree(4, disk.records.get).root


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
    assert one.records == other.records


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


@pytest.mark.parametrize("damage", ["flipped", "missing", "unknown kind", "cut"])
def test_a_damaged_bucket_is_noticed_when_it_is_read(damage: str) -> None:
    disk = Disk(4)
    disk.apply({b"key": b"value"})
    [(path, record)] = disk.records.items()
    if damage == "missing":
        del disk.records[path]
    else:
        disk.records[path] = {
            "flipped": record[:-1] + bytes((record[-1] ^ 1,)),
            "unknown kind": b"\x07" + record[1:],
            "cut": record[:-1],
        }[damage]
    with pytest.raises(StoreError, match="corrupt_state_tree"):
        disk.tree.stage({b"key": b"other"})


def test_records_outside_the_tree_are_refused_at_start() -> None:
    with pytest.raises(StoreError, match="outside a tree"):
        StateTree(4, nothing, [((16).to_bytes(4, "big"), b"\x00" + bytes(64))])


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_a_tree_stands_again_over_many_records_whole_and_parted_buckets_among_them(order: str) -> None:
    disk = Disk(8)
    disk.apply({b"key%d" % number: b"v" for number in range(PAIRS_MAX * 2**8)})
    records = sorted(disk.records.items(), reverse=order == "descending")
    kinds = {(len(path), record[:1]) for path, record in records}
    assert kinds == {(4, b"\x00"), (4, b"\x01"), (5, b"\x00")}, "whole, parted, parts"
    again = StateTree(8, disk.records.get, records)
    assert again.root == disk.tree.root
    changes: dict[bytes, bytes | None] = {b"key%d" % number: b"w" for number in range(0, 16_000, 97)}
    changes |= {b"key5": None, b"new": b"1"}
    assert again.stage(changes) == disk.tree.stage(changes), "every level is as it was"


def test_what_was_read_at_the_start_is_not_read_again_as_far_as_there_is_room() -> None:
    disk = Disk(12)
    keys = [b"key%d" % number for number in range(3_000)]
    disk.apply(dict.fromkeys(keys, b"v"))
    size = sum(len(record) for record in disk.records.values())
    for bound, all_there in ((10 * size, True), (size // 2, False)):
        read: list[bytes] = []

        def reading(path: bytes, read: list[bytes] = read) -> bytes | None:
            read.append(path)
            return disk.records.get(path)

        tree = StateTree(12, reading, sorted(disk.records.items()), bound)
        assert not read
        assert not any(tree.lacks(key) for key in keys)
        tree.stage(dict.fromkeys(keys, b"w"))
        assert len(read) == (0 if all_there else len(set(read)))
        if not all_there:
            kept = [record for path, record in disk.records.items() if path not in set(read)]
            assert 0 < sum(len(record) for record in kept) <= bound


@pytest.mark.parametrize(
    "damage", [b"", b"\x00", b"\x07" + bytes(64), b"\x00" + bytes(63), b"\x00" + bytes(65 * 64)]
)
def test_a_record_that_can_be_none_is_refused_at_start_among_many(damage: bytes) -> None:
    disk = Disk(12)
    disk.apply({b"key%d" % number: b"v" for number in range(3_000)})
    records = sorted(disk.records.items())
    records[1_500] = (records[1_500][0], damage)
    with pytest.raises(StoreError, match=f"bucket {records[1_500][0].hex()} is neither leaf nor branch"):
        StateTree(12, disk.records.get, records)


def test_another_record_leads_to_another_root() -> None:
    disk = Disk(12)
    disk.apply({b"key%d" % number: b"v" for number in range(3_000)})
    records = sorted(disk.records.items())
    for at in (0, 1_023, 1_024, len(records) - 1):
        path, record = records[at]
        altered = [*records[:at], (path, record[:-1] + bytes((record[-1] ^ 1,))), *records[at + 1 :]]
        missing = [*records[:at], *records[at + 1 :]]
        roots = {StateTree(12, disk.records.get, rows).root for rows in (records, altered, missing)}
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
    root, records = disk.tree.root, dict(disk.records)
    copied = disk.tree.copy(records.get)
    disk.apply({b"key%d" % number: b"new" for number in range(50)})
    assert copied.root == root != disk.tree.root
    check_proofs(copied, {b"key1": b"old"}, [b"key1", b"nothing"])
    staged = copied.stage({b"key1": None})
    records.update({path: record for path, record in staged.buckets.items() if record is not None})
    copied.commit(staged)
    check_proofs(copied, {}, [b"key1"])
    check_proofs(disk.tree, {b"key1": b"new"}, [b"key1"])


def test_a_proof_of_a_damaged_bucket_is_never_made() -> None:
    disk = Disk(4)
    disk.apply({b"key": b"value"})
    [(path, record)] = disk.records.items()
    disk.records[path] = record[:-1] + bytes((record[-1] ^ 1,))
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
        assert (one_by_one.tree.root, one_by_one.records) == (together.tree.root, together.records)
    assert not together.records
