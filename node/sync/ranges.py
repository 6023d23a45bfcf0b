"""The heights above this node's head cut into ranges: which are missing, which are asked for, which are at hand.

Invariant: the ranges are disjoint, ascend, and leave no gap between the first and the last of them.
"""

from collections.abc import Iterator, Sequence

from node.sync.proof import Candidate


class Range:
    """The heights `first` … `last`: at hand when `candidates` holds their blocks, else missing."""

    __slots__ = ("asked_s", "candidates", "first", "last", "peer", "size_bytes")

    def __init__(self, first: int, last: int) -> None:
        self.first = first
        self.last = last
        self.asked_s: dict[str, float] = {}
        """Who is asked for it now, since when."""
        self.candidates: list[Candidate] = []
        self.peer = ""
        """Who sent the candidates."""
        self.size_bytes = 0

    def block(self, height: int) -> Candidate | None:
        """Return the block at `height`, if it is in this range and at hand."""
        place = height - self.first
        return self.candidates[place] if 0 <= place < len(self.candidates) else None

    @property
    def doubtful(self) -> bool:
        """Whether a block of it was not decided by the members known when it came: they changed, or it is a lie."""
        return any(candidate.proven_by is None for candidate in self.candidates)


class Ranges:
    """All ranges from the head up."""

    def __init__(self) -> None:
        self._ranges: list[Range] = []
        self.held_bytes = 0
        """Encoded size of all blocks at hand."""

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    def drop_through(self, height: int) -> None:
        """What lies at `height` or below is forgotten, but for the lower end of a range at hand or asked for."""
        while self._ranges and self._ranges[0].last <= height:
            self._clear(self._ranges.pop(0))
        if self._ranges and not self._ranges[0].candidates and not self._ranges[0].asked_s:
            self._ranges[0].first = max(self._ranges[0].first, height + 1)

    def extend(self, head_height: int, target: int, size: int) -> Range | None:
        """Return the next range of `size` heights, added behind the others; None when `target` is reached."""
        first = self._ranges[-1].last + 1 if self._ranges else head_height + 1
        if first > target:
            return None
        added = Range(first, first + size - 1)
        self._ranges.append(added)
        return added

    def waiting(self) -> Range | None:
        """Return the lowest range that is missing and that nobody is asked for."""
        return next((item for item in self._ranges if not item.candidates and not item.asked_s), None)

    def at_hand(self, height: int) -> Range | None:
        """Return the range with the block at `height`, if it is at hand."""
        found = next((item for item in self._ranges if item.first <= height <= item.last), None)
        return found if found is not None and found.candidates else None

    def fill(self, item: Range, peer: str, candidates: Sequence[Candidate], size_bytes: int) -> bool:
        """The candidates, the first of the range or all, are at hand; the rest is a range of its own.

        False when they are not wanted any more: another peer was quicker, or the head has passed them.
        """
        if item.candidates or item not in self._ranges:
            return False
        # It may have been cut since this peer was asked for it.
        item.candidates = list(candidates[: item.last - item.first + 1])
        item.peer, item.size_bytes = peer, size_bytes
        self._split(item, len(item.candidates))
        self.held_bytes += size_bytes
        return True

    def cut(self, item: Range, size: int) -> None:
        """A missing range of more than `size` heights ends after them; the rest is a range of its own."""
        if item in self._ranges and not item.candidates:
            self._split(item, size)

    def _split(self, item: Range, size: int) -> None:
        if item.last - item.first + 1 > size:
            self._ranges.insert(self._ranges.index(item) + 1, Range(item.first + size, item.last))
            item.last = item.first + size - 1

    def discard(self, item: Range) -> None:
        """The blocks of the range are missing again."""
        self._clear(item)

    def discard_doubtful(self, peer: str) -> None:
        """What `peer` sent and no members known are seen to have decided is missing again."""
        for item in self._ranges:
            if item.peer == peer and item.doubtful:
                self._clear(item)

    def clear(self) -> None:
        """Nothing is at hand or missing."""
        for item in self._ranges:
            self._clear(item)
        self._ranges.clear()

    def _clear(self, item: Range) -> None:
        self.held_bytes -= item.size_bytes
        item.candidates, item.peer, item.size_bytes = [], "", 0
