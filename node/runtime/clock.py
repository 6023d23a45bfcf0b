"""The node's two clocks: one that only goes forward, one that agrees with the wall."""

import time


class Clock:
    """Milliseconds from the operating system."""

    def now_ms(self) -> int:
        """Monotonic milliseconds since an arbitrary start."""
        return time.monotonic_ns() // 1_000_000

    def time_ms(self) -> int:
        """Unix milliseconds; may jump when the machine's clock is set."""
        return time.time_ns() // 1_000_000
