"""Virtual time: what happens when, and all chance, from one seed.

Nothing here reads a real clock, real randomness or the order of a set; a seed is one run, always the same.
"""

import heapq
import random
from collections.abc import Callable

START_MS = 1_700_000_000_000
"""Unix milliseconds when a run begins."""


class Timeline:
    """Microseconds since the start of the run, a heap of what is due, and one stream of chance."""

    def __init__(self, seed: int) -> None:
        self.now_us = 0
        self.steps = 0
        self._random = random.Random(seed).random
        self._heap: list[tuple[int, int, Callable[..., None], tuple[object, ...]]] = []
        self._sequence = 0

    def at(self, due_us: int, act: Callable[..., None], *arguments: object) -> None:
        """`act` is called when it is `due_us`; what is due at once comes in the order in which it was asked for."""
        self._sequence += 1
        heapq.heappush(self._heap, (max(due_us, self.now_us), self._sequence, act, arguments))

    def after(self, delay_us: int, act: Callable[..., None], *arguments: object) -> None:
        """`act` is called in `delay_us`."""
        self.at(self.now_us + delay_us, act, *arguments)

    def step(self) -> None:
        """Time has come to the next thing that is due, and it has happened."""
        self.now_us, _, act, arguments = heapq.heappop(self._heap)
        self.steps += 1
        act(*arguments)

    def finish(self) -> None:
        """Everything that is due now has happened; nothing later will."""
        while self._heap and self._heap[0][0] <= self.now_us:
            self.step()
        self._heap.clear()

    def pick(self, low: int, high: int) -> int:
        """A number in [low, high); `low` where the interval is empty."""
        return low + int(self._random() * (high - low)) if high > low else low

    def chance(self, permille: int) -> bool:
        """True `permille` times in a thousand."""
        return self._random() * 1000 < permille
