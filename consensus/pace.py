"""Whether a primary that is alive is slow: how long this member stands idle for each of its proposals.

Throughput alone proves nothing: it follows the load, the kind of transactions and this machine's other work. So
two times are measured for each block: how long this member had nothing to do but wait for the proposal, and how
long its own executor worked on the block. A primary is slow when the first grew while the second did not, under a
full queue: then it is neither the load nor us. What everybody is slow at raises both and accuses nobody.

Times are sampled on ticks, so a window says something only on average; hence medians, and two windows in a row.
"""

import msgspec

WINDOWS_KEPT = 32
WINDOWS_NEEDED = 4
"""So many windows with like blocks must be known before anybody is judged by them."""
WINDOWS_SLOW = 2
"""So many windows in a row must be slow."""
WINDOWS_QUIET = 8
"""After an accusation comes no other for so many windows."""
WINDOWS_STANDING = 3
"""An accusation stands for so long, at every height: others see the same a little earlier or later."""
FACTOR_FIRST = 2
FACTOR_MAX = 64
DIFFERENCE_MIN_SHARE = 100
"""Waits that differ by less than this part of a window are alike: no view change is worth so little."""
EXECUTION_MIN_SHARE = 4
"""Nor is it for less than this part of a block's execution: so much the samples of a healthy primary differ."""


class _Window(msgspec.Struct):
    """From one decided block to another; times in ms. `full`: more than a block's worth waited throughout."""

    started_ms: int
    full: bool = True
    blocks: int = 0
    waited_ms: int = 0
    checked_ms: int = 0


class _Measure(msgspec.Struct, frozen=True):
    """A window's times per block, in microseconds."""

    waited: int
    checked: int


class Pace:
    """Measures windows of at least `window_ms`, from block to block."""

    def __init__(self, window_ms: int) -> None:
        """Nothing is known."""
        self._window_ms = window_ms
        self._window: _Window | None = None
        self._known: list[_Measure] = []
        self._slow_windows = 0
        self._factor = FACTOR_FIRST
        self._accused: _Measure | None = None
        self._replaced = False
        self._standing_until_ms = 0
        self._quiet_until_ms = 0

    def tick(self, now_ms: int, passed_ms: int, *, full: bool, waiting: bool, checking: bool) -> bool:
        """Account for the last `passed_ms`; return True while the primary stands accused of being slow.

        `waiting`: this member has nothing to do but wait for a proposal; `checking`: its executor is at work.
        """
        window = self._window
        if window is not None:
            window.full = window.full and full
            window.waited_ms += passed_ms if waiting else 0
            window.checked_ms += passed_ms if checking else 0
        return now_ms < self._standing_until_ms

    def decided(self, now_ms: int) -> None:
        """A block was decided: a window ends or begins here."""
        window = self._window
        if window is None:
            self._window = _Window(now_ms)
            return
        window.blocks += 1
        if now_ms - window.started_ms >= self._window_ms:
            self._window = _Window(now_ms)
            measure = _Measure(window.waited_ms * 1000 // window.blocks, window.checked_ms * 1000 // window.blocks)
            self._judge(now_ms, measure, full=window.full)

    def replaced(self) -> None:
        """Another member is primary: no accusation stands, and the next window shows whether it helped."""
        self._window = None
        self._slow_windows = 0
        self._replaced = self._accused is not None
        self._standing_until_ms = 0

    def restart(self) -> None:
        """Forget the window in work: the clock jumped."""
        self._window = None
        self._slow_windows = 0

    def _judge(self, now_ms: int, measure: _Measure, *, full: bool) -> None:
        if full and self._accused is not None and self._replaced:
            # The first full window after a change tells whether the successor is any better.
            better = measure.waited * 4 <= self._accused.waited * 3
            self._factor = FACTOR_FIRST if better else min(self._factor * 2, FACTOR_MAX)
            self._accused = None
        # Blocks that cost our executor much less tell nothing of what those like these must wait for.
        like = sorted(known.waited for known in self._known if known.checked * 3 >= measure.checked * 2)
        usual = like[len(like) // 2] if len(like) >= WINDOWS_NEEDED else None
        self._known = [*self._known, measure][-WINDOWS_KEPT:]
        slow = (
            full
            and usual is not None
            and measure.waited > usual * self._factor
            and (measure.waited - usual) * DIFFERENCE_MIN_SHARE >= self._window_ms * 1000
            and (measure.waited - usual) * EXECUTION_MIN_SHARE >= measure.checked
        )
        self._slow_windows = self._slow_windows + 1 if slow else 0
        if self._slow_windows >= WINDOWS_SLOW and now_ms >= self._quiet_until_ms:
            self._slow_windows = 0
            self._accused = measure
            self._replaced = False
            self._standing_until_ms = now_ms + WINDOWS_STANDING * self._window_ms
            self._quiet_until_ms = now_ms + WINDOWS_QUIET * self._window_ms
