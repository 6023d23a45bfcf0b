"""The state tree of a past height, made by undoing on a copy what later blocks changed. Pure.

Invariant: nothing is proven under a root that was not certified. A past height is reached only when the copy's root
is the state root in that height's head record; any other root means that the disk is damaged.
"""

from collections.abc import Iterator, Mapping

from node.errors import NotFound, StoreError
from node.evidence.pack import StateProof, state_proof
from node.state_tree import StateTree
from node.store import StoreView
from node.store.view import PAST_CHANGES_MAX

SLICE_CHANGES = 1_000
"""So many are undone in one step (about 20 ms), so that whoever performs the steps can give way between them."""


class PastTree:
    """A copy of the head's tree that goes back in time over a view of that head; the original stays as it is."""

    def __init__(self, view: StoreView, tree: StateTree) -> None:
        """Stand at the head of `view`. ValueError when `tree` is that of another state."""
        if tree.root != view.head.state_root:
            raise ValueError("the tree is not that of the view's head")
        self._view = view
        self._records: dict[str, bytes | None] = {}
        self._tree = tree.copy(self._read)
        self._before: dict[bytes, bytes | None] = {}
        self.height = view.head.height

    def back_to(self, height: int) -> Iterator[None]:
        """Stand at `height` (at or below the present one) once all steps are taken; before that, nowhere.

        Raise NotFound (history_pruned, history_too_far) before the first step, StoreError after the last when the
        root is not the certified one.
        """
        changes = list(self._changes(height).items())
        for start in range(0, len(changes), SLICE_CHANGES):
            self._undo(dict(changes[start : start + SLICE_CHANGES]))
            yield
        if self._tree.root != self._view.head_at(height).state_root:
            raise StoreError(
                "corrupt_state_tree", f"undoing the blocks after {height} does not lead to its state root"
            )
        self.height = height

    def prove(self, key: bytes) -> StateProof:
        """Return the proof of what `key` held at this height."""
        value = self._before[key] if key in self._before else self._view.get(key)
        return state_proof(self._tree, key, value)

    def _changes(self, height: int) -> Mapping[bytes, bytes | None]:
        changes = self._view.undone(height, self.height)
        # Of a key that changed before and after the present height, the older value is the one that counts now.
        self._before.update(changes)
        if len(self._before) > PAST_CHANGES_MAX:
            raise NotFound("history_too_far", f"too much has changed since height {height}")
        return changes

    def _undo(self, changes: Mapping[bytes, bytes | None]) -> None:
        staged = self._tree.stage(changes)
        self._records.update(staged.buckets)
        self._tree.commit(staged)

    def _read(self, name: str) -> bytes | None:
        return self._records[name] if name in self._records else self._view.bucket(name)
