"""How far other members' clocks are from this node's: the middle of several measurements, half a round trip off."""

from collections import deque
from collections.abc import Mapping

SAMPLES_MAX = 9


class ClockOffsets:
    """The last few offsets of every peer, in milliseconds."""

    def __init__(self) -> None:
        """Nothing is measured."""
        self._samples: dict[str, deque[int]] = {}

    def note(self, peer: str, their_time_ms: int, our_time_ms: int, round_trip_ms: int | None) -> None:
        """`peer` sent its time, which came now; the way took half of `round_trip_ms` (None: not known, no time)."""
        offset_ms = their_time_ms - our_time_ms + (round_trip_ms or 0) // 2
        self._samples.setdefault(peer, deque(maxlen=SAMPLES_MAX)).append(offset_ms)

    def forget(self, peer: str) -> None:
        """The link to `peer` is new: either clock may have been set meanwhile."""
        self._samples.pop(peer, None)

    def medians(self) -> Mapping[str, int]:
        """The middle one of every peer's samples."""
        return {peer: sorted(samples)[len(samples) // 2] for peer, samples in self._samples.items()}
