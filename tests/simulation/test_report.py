"""How a sweep is told to people."""

import pytest

from tests.simulation.report import Tally, report_lines


@pytest.mark.parametrize(
    ("seeds", "text"), [(0, "0 seeds, 0 failed"), (1, "1 seed, 0 failed"), (2, "2 seeds, 0 failed")]
)
def test_seeds_are_counted_as_people_count(seeds: int, text: str) -> None:
    report = Tally().report(1.0)._replace(seeds=seeds)
    assert report_lines(report)[-1].startswith(text)
