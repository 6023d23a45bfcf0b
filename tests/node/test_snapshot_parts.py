"""Subtrees that hold more than a chunk may: keys made to share digits of their hashes, and plain growth."""

import itertools
import random
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from consensus.codec import encode
from node.errors import InvalidFrame
from node.evidence import account_key
from node.executor import request_of
from node.signatures import verify
from node.snapshot import (
    Manifest,
    SnapshotFolder,
    SnapshotTooLarge,
    cutting,
    open_chunk,
    read_manifest,
    spill,
    verify_manifest,
)
from node.snapshot.frontier import level_hashes, next_node, nodes_of
from node.snapshot.spill import PAUSE, Spill
from node.state_tree import build_bucket, build_subtree
from node.store.layout import META_ADOPTING, body_key, number
from node.tree_records import PAIRS_MAX, branch_over
from tests.node.test_snapshot import SignedLedger, due, judged, made, opened, signed_network, state_of

STUFFED = "a7"
"""The bucket of an 8-bit tree into which all ground keys fall."""
COUNT = 100
ROWS_MAX = 70
"""More than a leaf holds, as the real limit is: what has more is no leaf."""


def ground(digits: str, count: int) -> list[str]:
    """So many accounts whose state keys' hashes begin with these digits."""
    names = (f"G{number}" for number in itertools.count())
    return list(
        itertools.islice(
            (name for name in names if sha256(account_key(name)).hexdigest().startswith(digits)), count
        )
    )


@pytest.fixture(scope="module")
def stuffed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SignedLedger]:
    """A ledger with one bucket that holds far more keys than others; nobody changes it."""
    ledger = SignedLedger(tmp_path_factory.mktemp("stuffed") / "data", signed_network())
    ledger.open_accounts(*ground(STUFFED, COUNT))
    yield ledger
    ledger.close()


@pytest.fixture
def parted(stuffed: SignedLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SnapshotFolder:
    """Its snapshot, in chunks of so few rows that the stuffed bucket needs several."""
    monkeypatch.setattr(cutting, "CHUNK_ROWS_MAX", ROWS_MAX)
    return made(stuffed, tmp_path / "snapshots")


def test_a_stuffed_subtree_lies_in_several_chunks_each_proven_by_itself(
    stuffed: SignedLedger, parted: SnapshotFolder
) -> None:
    judged(parted, stuffed)
    content = read_manifest(parted.manifest_bytes()).content
    assert STUFFED in content.parted
    rows: dict[bytes, bytes] = {}
    for index in range(len(content.chunks)):
        found = open_chunk(parted.chunk(index) or b"", content, index).rows
        assert len(found) <= ROWS_MAX
        rows.update(found)
    assert rows == dict(stuffed.store.snapshot().scan(b"", b"\xff"))
    holding = [
        index
        for index in range(len(content.chunks))
        if any(node.startswith(STUFFED) for node in content.chunk_nodes(index))
    ]
    assert len(holding) >= COUNT // ROWS_MAX + 1


def test_two_makers_part_alike_whatever_their_memory(
    stuffed: SignedLedger, parted: SnapshotFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill.Spill.__init__, "__defaults__", (200, 0, "part"))
    monkeypatch.setattr(spill, "PART_BYTES_MAX", 500)
    other = made(stuffed, tmp_path / "other")
    assert other.manifest_bytes() == parted.manifest_bytes()
    assert not list((tmp_path / "other").rglob("part*"))


def test_a_state_of_too_many_bytes_parts_as_one_of_too_many_keys(
    stuffed: SignedLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "CHUNK_BYTES_MAX", 5_000)
    monkeypatch.setattr(cutting, "CHUNK_BYTES_TARGET", 5_000)
    folder = made(stuffed, tmp_path / "snapshots")
    judged(folder, stuffed)
    content = read_manifest(folder.manifest_bytes()).content
    # An inner node first, then the bucket below it.
    assert content.parted == (STUFFED[0], STUFFED)
    assert max(chunk.size_bytes for chunk in content.chunks) <= 5_000


def test_beyond_the_bounds_of_the_format_none_is_made_and_it_is_said(
    stuffed: SignedLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "CHUNK_ROWS_MAX", ROWS_MAX)
    monkeypatch.setattr(cutting, "SPLITS_MAX", 1)
    with pytest.raises(SnapshotTooLarge, match="1 subtrees are parted already"):
        made(stuffed, tmp_path / "snapshots")
    monkeypatch.setattr(cutting, "SPLITS_MAX", 1024)
    monkeypatch.setattr(cutting, "MANIFEST_BYTES_MAX", 1_000)
    with pytest.raises(SnapshotTooLarge, match="cannot be offered"):
        made(stuffed, tmp_path / "snapshots")
    assert list((tmp_path / "snapshots").iterdir()) == []


def test_a_leaf_is_never_parted(stuffed: SignedLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has one hash. What it may hold fits into a chunk always; only a smaller limit shows this."""
    monkeypatch.setattr(cutting, "CHUNK_ROWS_MAX", 1)
    with pytest.raises(SnapshotTooLarge):
        made(stuffed, tmp_path / "snapshots")


@pytest.mark.slow
def test_an_adoption_of_a_parted_bucket_that_dies_at_any_write_ends_in_the_same_tree(
    stuffed: SignedLedger, parted: SnapshotFolder, tmp_path: Path
) -> None:
    config, expected = stuffed.network, state_of(stuffed.store)[:6]
    writes = len(read_manifest(parted.manifest_bytes()).content.chunks) + 8
    finished = False
    # From the end: the records above the parts are written last.
    for lives in (writes, *range(writes - 8, writes)):
        database, store = opened(tmp_path / f"joiner-{lives}", config)
        store.initialise(stuffed.executor.genesis(), never_voted=False)
        # A bucket that was parted before, and a block that was in work.
        database.write([(b"d0", bytes(577)), (b"w" + number(1) + bytes(32), b""), (body_key(1, bytes(32)), b"x")])
        adoption = due(database, parted.path, config)
        assert adoption is not None
        database.lives, database.after = lives, True
        try:
            adoption.perform(request_of)
            finished = True
        except KeyboardInterrupt:
            database.lives = -1
            again = due(database, parted.path, config)
            if again is not None:
                again.perform(request_of)
        assert database.get(META_ADOPTING) is None
        database.close()
        database, store = opened(tmp_path / f"joiner-{lives}", config)
        assert state_of(store)[:6] == expected
        assert not [*database.scan(b"w", b"x"), *database.scan(b"b", b"c")]
        database.close()
    assert finished


LIES: dict[str, tuple[str, ...]] = {
    "a leaf": ("00",),
    "none": (),
    "no node": ("0abc",),
    "twice": ("a", "a"),
    "backwards": ("a7", "a"),
    "too long": ("a" * 64,),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_parts_otherwise_is_refused(
    stuffed: SignedLedger, parted: SnapshotFolder, lie: str
) -> None:
    manifest = read_manifest(parted.manifest_bytes())
    content = msgspec.structs.replace(manifest.content, parted=LIES[lie])
    with pytest.raises(InvalidFrame, match="snapshot_corrupt"):
        judged_as_read(msgspec.structs.replace(manifest, content=content), stuffed)


def judged_as_read(manifest: Manifest, ledger: SignedLedger) -> None:
    config, data = ledger.network, encode(manifest)
    verify_manifest(read_manifest(data), config.network_id, config.genesis_hash, config.validators, 8, verify)


def test_the_nodes_of_a_level_and_below_parted_ones_are_in_the_order_of_hashes() -> None:
    assert nodes_of(1, ()) == tuple("0123456789abcdef")
    parts = nodes_of(2, ("0f", "0f0", "ff"))
    assert len(parts) == 256 + 3 * 15
    assert list(parts) == sorted(parts)
    assert parts[14:18] == ("0e", "0f00", "0f01", "0f02")
    assert (next_node("0f0f", 2), next_node("0fff", 2), next_node("fff", 2)) == ("0f1", "10", "")
    # No node lies below another, and together they take in every hash.
    assert sum(16.0 ** -len(node) for node in parts) == 1.0
    for wrong in (("0f0",), ("0f", "0f"), ("ff", "0f"), ("0",)):
        with pytest.raises(ValueError, match="part"):
            nodes_of(2, wrong)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_hashes_of_parted_nodes_lead_to_those_of_the_level(bits: int) -> None:
    rng = random.Random(bits)
    # 150 pairs that share three digits, and some elsewhere.
    hashes = [b"\xa7\x10" + rng.randbytes(30) for _ in range(150)] + [rng.randbytes(32) for _ in range(60)]
    pairs = sorted(digest + rng.randbytes(32) for digest in hashes)

    def below(node: str) -> list[bytes]:
        return [pair for pair in pairs if pair.hex().startswith(node)]

    parted = ("a", "a7", "a71")
    nodes = nodes_of(1, parted)
    records: dict[str, bytes | None] = {}
    named = b"".join(build_subtree(node, bits, below(node), records) for node in nodes)
    whole = b"".join(build_subtree(node, bits, below(node), {}) for node in nodes_of(1, ()))
    assert level_hashes(named, nodes, parted) == whole
    # The records above the parts are those that a tree of the same pairs has.
    expected: dict[str, bytes | None] = {}
    for bucket in range(2**bits):
        build_bucket(bucket, bits, below(f"{bucket:0{bits // 4}x}"), expected)
    for node in reversed([node for node in parted if len(node) >= bits // 4]):
        records[node] = branch_over([records.get(f"{node}{child:x}") for child in range(16)])
    assert records == expected
    assert len(below("a71")) > PAIRS_MAX


def test_rows_are_sorted_in_bounded_memory_however_many_first_bytes_they_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "PART_BYTES_MAX", 2_000)
    rng = random.Random(7)
    rows = [
        (
            rng.choice((b"", b"\x01", b"\x01\x02\x03")).ljust(0) + rng.randbytes(32),
            rng.randbytes(9),
            rng.randbytes(20),
        )
        for _ in range(400)
    ]
    rows = [(key_hash[:32], key, value) for key_hash, key, value in rows]
    held = _Held(tmp_path, bytes_max=1_000)
    for row in rows:
        if held.add(*row):
            list(held.flush())
    assert [row for row in held.sorted() if row != PAUSE] == sorted(rows)
    assert list(tmp_path.iterdir()) == []
    # The largest parts are sorted by the deeper ones.
    assert max(held.sorted_bytes) <= 2_000
    assert sum(held.sorted_bytes) < sum(40 + len(key) + len(value) + 32 for _, key, value in rows)


class _Held(Spill):
    """Notes how much is sorted in memory at a time."""

    def __init__(self, directory: Path, bytes_max: int, place: int = 0, name: str = "part") -> None:
        super().__init__(directory, bytes_max, place, name)
        self.sorted_bytes: list[int] = []

    def _in_memory(self, data: bytes) -> Iterator[spill.Row]:
        self.sorted_bytes.append(len(data))
        return super()._in_memory(data)
