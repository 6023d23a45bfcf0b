"""Percentiles are values that occurred, by the nearest-rank rule."""

from scripts.localnet.figures import Percentiles, Spread, medians, percentile, percentiles_ms, spread


def test_percentiles_are_measured_values() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, p) for p in (0, 50, 90, 99, 100)] == [1.0, 50.0, 90.0, 99.0, 100.0]
    assert percentile([7.0], 99) == 7.0
    assert percentile([float(value) for value in range(1, 2001)], 99.9) == 1998.0
    assert percentile([], 50) == 0.0


def test_milliseconds_from_unsorted_seconds() -> None:
    assert percentiles_ms([0.3, 0.1, 0.2]) == Percentiles(p50=200.0, p90=300.0, p99=300.0, p999=300.0)


def test_spread_of_three_runs() -> None:
    assert spread([3.0, 1.0, 2.04]) == Spread(median=2.0, min=1.0, max=3.0)


def test_each_percentile_has_a_median_of_its_own() -> None:
    runs = [Percentiles(1.0, 9.0, 30.0, 40.0), Percentiles(3.0, 8.0, 10.0, 50.0), Percentiles(2.0, 7.0, 20.0, 99.0)]
    assert medians(runs) == Percentiles(2.0, 8.0, 20.0, 50.0)
