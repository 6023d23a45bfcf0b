"""Makes a snapshot of a view of the store, in small steps, so that whoever runs it can let others work in between.

Invariant: a directory gets its final name only when every file in it is synced and the hashes computed from the
values themselves fold to the state root that the block's certificate covers (cutting.py).

The state is read once, in key order, and its rows are set aside by the first byte of their keys' hashes (spill.py).
That is all that needs the store; what takes most of the time, cutting the rows into chunks, does not.
"""

import hashlib
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path

from consensus.codec import encode
from node.snapshot.cutting import ROWS_A_STEP, Cut, Draft, SnapshotTooLarge, cut
from node.snapshot.folder import SnapshotFolder, snapshot_at, unfinished_at
from node.snapshot.manifest import CHANGES_MAX, MemberChange, level_of
from node.snapshot.spill import Spill
from node.store import StoreView

ROWS_A_SCAN = 1_000
"""So many rows are read with one iterator: some tenths of a second, where a step is followed by a rest."""


def make_snapshot(
    view: StoreView, network: str, genesis_hash: bytes, tree_bits: int, root: Path, cut: Cut = cut
) -> Generator[None, None, SnapshotFolder]:
    """Return the finished snapshot of the view's head in `root`; every step but the last yields None.

    Raise StoreError for a full or failing disk and for a state that does not have its certified root,
    SnapshotTooLarge for one that does not fit the format. What was begun is removed then, as when the generator
    is closed.
    """
    folder, height = unfinished_at(root, view.head.height), view.head.height
    folder.remove()
    folder.create()
    try:
        keys, size_bytes = yield from _set_aside(view, folder)
        draft = _draft(view, network, genesis_hash, tree_bits, keys, size_bytes)
        folder.write_draft(encode(draft))
        # LevelDB cannot let go of what a view may still show, and cutting takes several times as long as reading.
        del view
        yield from cut(folder)
        return folder.rename(snapshot_at(root, height).path)
    except BaseException:
        folder.remove()
        raise


def _set_aside(view: StoreView, folder: SnapshotFolder) -> Generator[None, None, tuple[int, int]]:
    """Return how many rows the state has, and their bytes; all of them lie in the directory's scratch files."""
    spill = Spill(folder.path)
    keys = size_bytes = 0
    for key, value in _rows(view):
        keys += 1
        size_bytes += len(key) + len(value)
        if spill.add(hashlib.sha256(key).digest(), key, value):
            yield from spill.flush()
        if keys % ROWS_A_STEP == 0:
            yield
    yield from spill.flush()
    return keys, size_bytes


def _rows(view: StoreView) -> Iterator[tuple[bytes, bytes]]:
    """Yield the state's rows, ascending by key, from one iterator after the other.

    Why not from one: LevelDB keeps what it replaces while an iterator is open, on disk and mapped into memory.
    Under load, in the half minute that reading takes, these are more tables than the state's own.
    """
    start: bytes | None = b""
    while start is not None:
        last = None
        for key, value in islice(view.scan(start, b"\xff"), ROWS_A_SCAN):
            last = key
            yield key, value
        start = None if last is None else last + b"\0"


def _draft(view: StoreView, network: str, genesis_hash: bytes, tree_bits: int, keys: int, size_bytes: int) -> Draft:
    head = view.head
    heights = [height for height in view.member_changes() if height < head.height]
    if len(heights) > CHANGES_MAX:
        raise SnapshotTooLarge(f"the members changed {len(heights)} times; {CHANGES_MAX} fit")
    before = [view.head_at(height) for height in heights]
    changes = [MemberChange(view.header(record.height), record.validators) for record in before]
    certificates = [record.certificate for record in (*before, head) if record.certificate is not None]
    return Draft(
        network=network,
        genesis_hash=genesis_hash,
        header=view.header(head.height),
        validators=head.validators,
        changes=tuple(changes),
        tree_bits=tree_bits,
        level=level_of(tree_bits, size_bytes),
        keys=keys,
        certificates=tuple(certificates),
    )
