"""Percentiles and medians as the reports give them."""

from collections.abc import Sequence
from statistics import median

import msgspec


class Percentiles(msgspec.Struct, frozen=True):
    """Milliseconds."""

    p50: float
    p90: float
    p99: float
    p999: float = 0.0


class Spread(msgspec.Struct, frozen=True):
    """The median of some repetitions, with the least and the greatest of them."""

    median: float
    min: float
    max: float


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed; 0.0 for no values."""
    if not ascending:
        return 0.0
    rank = -(-len(ascending) * round(percent * 10) // 1000)
    return ascending[max(0, int(rank) - 1)]


def percentiles_ms(seconds: Sequence[float]) -> Percentiles:
    """The usual four of some durations in seconds."""
    ascending = sorted(seconds)
    p50, p90, p99, p999 = (round(percentile(ascending, percent) * 1000, 1) for percent in (50, 90, 99, 99.9))
    return Percentiles(p50, p90, p99, p999)


def spread(values: Sequence[float], digits: int = 1) -> Spread:
    """Median, least and greatest of at least one value."""
    return Spread(round(median(values), digits), round(min(values), digits), round(max(values), digits))


def medians(runs: Sequence[Percentiles]) -> Percentiles:
    """Each percentile's median over at least one run."""
    p50, p90, p99, p999 = (
        round(median(values), 1) for values in zip(*((r.p50, r.p90, r.p99, r.p999) for r in runs), strict=True)
    )
    return Percentiles(p50, p90, p99, p999)
