"""Many crashes of many lives, and how they were survived."""

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.crash.dying import WAYS, Wrap
from tests.crash.life import Loss, Point, live, untouched
from tests.crash.story import tell

LIVES_PER_STORY = 5
LOSSES_MAX = 3
"""After so many nothing new is learnt."""


class Way(msgspec.Struct, frozen=True):
    """What came of the crashes of one kind. `head_behind`: the head was h - 1; `abstained`: memory given up
    aloud."""

    how: str
    points: int
    head_there: int
    head_behind: int
    abstained: int


class PointsReport(msgspec.Struct, frozen=True):
    """All crashes of a run. `losses` are sentences with the seed and the life that show them again."""

    seed: int
    points: int
    lives: int
    ways: list[Way]
    doing: dict[str, int]
    losses: list[str]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing was lost."""
        return not self.losses


def crash_points(
    count: int, seed: int, on_life: Callable[[int], None] = lambda done: None, wrap: Wrap = untouched
) -> PointsReport:
    """The report of `count` crashes from `seed` on; `on_life` hears how many there were after each life."""
    started = time.perf_counter()
    points: list[Point] = []
    losses: list[str] = []
    lives = story_seed = 0
    while len(points) < count and len(losses) < LOSSES_MAX:
        with tempfile.TemporaryDirectory(prefix="crash-") as name:
            story = tell(Path(name) / "story", seed + story_seed)
            for life in range(LIVES_PER_STORY):
                if len(points) >= count:
                    break
                place = Path(name) / str(life)
                place.mkdir()
                lives += 1
                chance = random.Random(f"{seed + story_seed}/{life}")
                try:
                    points += live(story, place, chance, count - len(points), wrap)
                except Loss as loss:
                    losses.append(f"seed {seed + story_seed}, life {life}: {loss}")
                on_life(len(points))
        story_seed += 1
    return PointsReport(
        seed=seed,
        points=len(points),
        lives=lives,
        ways=[_way(how, [point for point in points if point.how == how]) for how in WAYS],
        doing=dict(Counter(point.doing for point in points).most_common()),
        losses=losses,
        seconds=round(time.perf_counter() - started, 1),
    )


def _way(how: str, points: list[Point]) -> Way:
    there = sum(point.behind == 0 for point in points)
    return Way(how, len(points), there, len(points) - there, sum(point.abstains for point in points))
