"""What many runs amount to: how much was tried, which rules took effect, and what broke."""

import textwrap
from collections import Counter
from typing import Any, NamedTuple

from tests.simulation import coverage
from tests.simulation.world import Failure, Outcome

COVERAGE_SEEDS_MIN = 1_000
"""A sweep of so many seeds must have seen every rule take effect; a short one cannot."""


class Report(NamedTuple):
    """What a set of runs amounts to. `faults`, `rules` (the checkers) and `numbers` (README) count how often.

    `reached` counts the rare situations that the checkers are for: a thousand easy runs would prove little.
    `transitions` are changes of `ReplicaStatus.phase`, watched in one seed of fifty.
    """

    seeds: int
    steps: int
    heights: int
    failed: tuple[Failure, ...]
    faults: Counter[str]
    rules: Counter[str]
    reached: Counter[str]
    numbers: Counter[str]
    records: Counter[str]
    transitions: Counter[str]
    recovery_ms_max: int
    recovery_permille_of_bound_max: int
    seconds: float

    @property
    def never_hit(self) -> list[str]:
        """The numbered rules that never took effect; empty where they were not counted, or too few seeds ran."""
        if self.seeds < COVERAGE_SEEDS_MIN or not self.numbers:
            return []
        return coverage.never_hit(self.numbers)

    def as_json(self) -> dict[str, Any]:
        """The document of `scripts/simulate --json`."""
        return {
            "seeds": self.seeds,
            "failed": [
                {"seed": failure.seed, "step": failure.step, "rule": failure.rule, "detail": failure.detail}
                for failure in self.failed
            ],
            "steps": self.steps,
            "heights": self.heights,
            "faults": dict(sorted(self.faults.items())),
            "rules": dict(sorted(self.rules.items())),
            "reached": dict(sorted(self.reached.items())),
            "numbered_rules": {number: self.numbers[number] for number in coverage.rules()},
            "never_hit": self.never_hit,
            "not_counted": coverage.NOT_COUNTED,
            "records": dict(sorted(self.records.items())),
            "transitions": dict(sorted(self.transitions.items())),
            "recovery_ms_max": self.recovery_ms_max,
            "recovery_permille_of_bound_max": self.recovery_permille_of_bound_max,
            "seconds": round(self.seconds, 1),
        }


class Tally:
    """Adds outcomes up, one at a time: a hundred thousand of them are never held at once."""

    def __init__(self) -> None:
        """Nothing ran yet."""
        self._seeds = self._steps = self._heights = 0
        self._failed: list[Failure] = []
        self._counters: tuple[Counter[str], ...] = tuple(Counter() for _ in range(6))
        self._recovery_ms = self._recovery_permille = 0

    def add(self, outcome: Outcome) -> None:
        """One more run."""
        self._seeds += 1
        self._steps += outcome.steps
        self._heights += outcome.heights
        parts = (outcome.faults, outcome.rules, outcome.reached, outcome.numbers, outcome.records)
        for counter, part in zip(self._counters, (*parts, outcome.transitions), strict=True):
            counter.update(part)
        if outcome.failure is not None:
            self._failed.append(outcome.failure)
        else:
            self._recovery_ms = max(self._recovery_ms, outcome.recovery_ms)
            permille = outcome.recovery_ms * 1000 // outcome.bound_ms
            self._recovery_permille = max(self._recovery_permille, permille)

    def report(self, seconds: float) -> Report:
        """The sum of all that was added."""
        faults, rules, reached, numbers, records, transitions = self._counters
        return Report(
            seeds=self._seeds,
            steps=self._steps,
            heights=self._heights,
            failed=tuple(self._failed),
            faults=faults,
            rules=rules,
            reached=reached,
            numbers=numbers,
            records=records,
            transitions=transitions,
            recovery_ms_max=self._recovery_ms,
            recovery_permille_of_bound_max=self._recovery_permille,
            seconds=seconds,
        )


def replay_line(failure: Failure) -> str:
    """The one line that shows a failure again, and the rule that it breaks."""
    return f"scripts/simulate --seed {failure.seed} --until {failure.step}   # {failure.rule}: {failure.detail}"


def report_lines(report: Report) -> list[str]:
    """The report for people: replay lines of what broke first, then how often everything came up."""
    lines = [replay_line(failure) for failure in report.failed]
    if report.seeds > 1:
        lines += _table("faults", report.faults)
        lines += _table("checks", report.rules)
        lines += _table("situations", report.reached)
        lines += _table("records", report.records)
        lines += _table("changes of phase (one seed in fifty)", report.transitions)
        if report.numbers:
            lines += _rule_table(report.numbers)
    if report.never_hit:
        lines.append("never took effect, which fails the sweep: " + ", ".join(report.never_hit))
    per_minute = report.seeds * 60 / report.seconds if report.seconds else 0
    lines.append(
        f"{report.seeds} {'seed' if report.seeds == 1 else 'seeds'}, {len(report.failed)} failed, "
        f"{report.steps} steps, {report.heights} heights, "
        f"{report.seconds:.1f} s ({per_minute:.0f} seeds a minute); slowest recovery {report.recovery_ms_max} ms, "
        f"at most {report.recovery_permille_of_bound_max / 10:.1f} % of its bound"
    )
    return lines


def _table(title: str, counts: Counter[str]) -> list[str]:
    if not counts:
        return []
    width = max(len(name) for name in counts) + 2
    cells = [f"{name:<{width}}{count:>11}" for name, count in sorted(counts.items())]
    half = -(-len(cells) // 2)
    right = [*cells[half:], ""]
    return [f"-- {title}", *(f"{left}    {right[row]}".rstrip() for row, left in enumerate(cells[:half]))]


def _rule_table(numbers: Counter[str]) -> list[str]:
    lines = ["-- rules of consensus/README.md: how often each took effect"]
    for number, text in coverage.rules().items():
        hits = "-" if number in coverage.NOT_COUNTED else str(numbers[number])
        said = coverage.NOT_COUNTED.get(number, text)
        lines.append(f"{number:<6}{hits:>11}    {textwrap.shorten(said, 84, placeholder=' …')}")
    return lines
