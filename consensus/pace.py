"""Whether a primary that is alive is slow: throughput under full load, compared with the best of late.

Only windows count in which work waited the whole time (so loads are alike) and this node's own executor was
idle for at least half of it (so the slowness is not ours). Overload is nobody's fault: after a change that did
not help, the primary must be twice as slow as before to be accused.
"""

import msgspec

WINDOWS_KEPT = 8
FACTOR_MAX = 64


class _Window(msgspec.Struct):
    started_ms: int
    size_bytes: int
    checking_ms: int


class Pace:
    """Measures decided bytes a second in windows of `window_ms` under full load."""

    def __init__(self, window_ms: int) -> None:
        """One accusation at most per `WINDOWS_KEPT` windows."""
        self._window_ms = window_ms
        self._window: _Window | None = None
        self._rates: list[int] = []
        self._factor = 2
        self._quiet_until_ms = 0
        self._accused_rate: int | None = None

    def tick(self, now_ms: int, passed_ms: int, *, saturated: bool, checking: bool) -> bool:
        """Account for the last `passed_ms`; return True when the primary should be accused of being slow."""
        if not saturated:
            self._window = None
            return False
        if self._window is None:
            self._window = _Window(started_ms=now_ms, size_bytes=0, checking_ms=0)
            return False
        window = self._window
        if checking:
            window.checking_ms += passed_ms
        elapsed_ms = now_ms - window.started_ms
        if elapsed_ms < self._window_ms:
            return False
        self._window = None
        if window.checking_ms * 2 > elapsed_ms:
            return False
        return self._judge(now_ms, window.size_bytes * 1000 // elapsed_ms)

    def decided(self, size_bytes: int) -> None:
        """A block of so many payload bytes was decided."""
        if self._window is not None:
            self._window.size_bytes += size_bytes

    def restart(self) -> None:
        """Forget the window in work: the view, the primary or the clock changed."""
        self._window = None

    def _judge(self, now_ms: int, rate: int) -> bool:
        best = max(self._rates, default=0)
        if self._accused_rate is not None:
            # The first window after an accusation tells whether the successor is any better.
            self._factor = 2 if rate > self._accused_rate else min(self._factor * 2, FACTOR_MAX)
            self._accused_rate = None
        slow = rate * self._factor < best and now_ms >= self._quiet_until_ms
        self._rates = [*self._rates, rate][-WINDOWS_KEPT:]
        if slow:
            self._accused_rate = rate
            self._quiet_until_ms = now_ms + WINDOWS_KEPT * self._window_ms
        return slow
