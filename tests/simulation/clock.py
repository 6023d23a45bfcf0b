"""The clocks of one simulated machine: wrong by an offset, and too fast or too slow."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.world import World

WALL_CLOCK_START_MS = 1_700_000_000_000


class Clock:
    """A wall clock and a monotonic one that run at the same, maybe wrong, pace."""

    def __init__(self, world: "World") -> None:
        """Right, as long as nobody changes `skew_ms` (of the wall clock) or the drift."""
        self._world = world
        self.skew_ms = 0
        self._drift_permille = 0
        self._shown_us = self._since_us = 0  # what it showed when, since when the drift counts
        self._started_us = 0
        self._started_ms = 0

    def start(self, monotonic_ms: int) -> None:
        """A process starts: its monotonic clock shows `monotonic_ms`."""
        self._started_us = self._now_us()
        self._started_ms = monotonic_ms

    def read(self) -> tuple[int, int]:
        """(monotonic ms of this process, wall clock ms)."""
        now_us = self._now_us()
        monotonic_ms = self._started_ms + (now_us - self._started_us) // 1000
        return monotonic_ms, WALL_CLOCK_START_MS + now_us // 1000 + self.skew_ms

    def set_drift(self, permille: int) -> None:
        """From now on the clocks run so much faster than time."""
        self._shown_us, self._since_us = self._now_us(), self._world.now_us
        self._drift_permille = permille

    def mend(self, skew_ms: int) -> None:
        """The wall clock is right to `skew_ms`, and neither clock drifts any more."""
        self.set_drift(0)
        self.skew_ms = skew_ms + (self._world.now_us - self._shown_us) // 1000

    def _now_us(self) -> int:
        return self._shown_us + (self._world.now_us - self._since_us) * (1000 + self._drift_permille) // 1000
