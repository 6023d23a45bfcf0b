"""Many seeds on several processes, one seed with its trace, and the report of either."""

import argparse
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from tests.simulation.world import STEPS_MAX, Failure, Outcome, World

CHUNK = 8


class Report(NamedTuple):
    """What a set of runs amounts to: `faults` and `rules` count how often each happened and was judged.

    `reached` counts the rare situations that the rules are for: a thousand easy runs would prove little.
    """

    seeds: int
    steps: int
    heights: int
    failed: tuple[Failure, ...]
    faults: Counter[str]
    rules: Counter[str]
    reached: Counter[str]
    recovery_ms_max: int
    recovery_permille_of_bound_max: int
    seconds: float

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
            "recovery_ms_max": self.recovery_ms_max,
            "seconds": round(self.seconds, 1),
        }


def run_seed(seed: int) -> Outcome:
    """The outcome of one seed."""
    return World(seed).run()


def run_seeds(
    first: int, count: int, jobs: int, *, run: Callable[[int], Outcome] = run_seed, stop_at_failure: bool = False
) -> Report:
    """The report of the seeds first … first + count - 1, run by `jobs` processes."""
    started = time.monotonic()
    seeds = range(first, first + count)
    if jobs == 1:
        outcomes = _collect(map(run, seeds), stop_at_failure)
    else:
        with multiprocessing.get_context("fork").Pool(jobs) as pool:
            outcomes = _collect(pool.imap(run, seeds, chunksize=CHUNK), stop_at_failure)
    return _sum(outcomes, time.monotonic() - started)


def _collect(outcomes: Iterable[Outcome], stop_at_failure: bool) -> list[Outcome]:
    collected = []
    for outcome in outcomes:
        collected.append(outcome)
        if outcome.failure is not None and stop_at_failure:
            break
    return collected


def _sum(outcomes: list[Outcome], seconds: float) -> Report:
    faults: Counter[str] = Counter()
    rules: Counter[str] = Counter()
    reached: Counter[str] = Counter()
    for outcome in outcomes:
        faults.update(outcome.faults)
        rules.update(outcome.rules)
        reached.update(outcome.reached)
    healthy = [outcome for outcome in outcomes if outcome.failure is None]
    return Report(
        seeds=len(outcomes),
        steps=sum(outcome.steps for outcome in outcomes),
        heights=sum(outcome.heights for outcome in outcomes),
        failed=tuple(outcome.failure for outcome in outcomes if outcome.failure is not None),
        faults=faults,
        rules=rules,
        reached=reached,
        recovery_ms_max=max((outcome.recovery_ms for outcome in healthy), default=0),
        recovery_permille_of_bound_max=max(
            (outcome.recovery_ms * 1000 // outcome.bound_ms for outcome in healthy), default=0
        ),
        seconds=seconds,
    )


def replay_line(failure: Failure) -> str:
    """The one line that shows a failure again, and the rule that it breaks."""
    return f"scripts/simulate --seed {failure.seed} --until {failure.step}   # {failure.rule}: {failure.detail}"


def trace_seed(seed: int, until: int = STEPS_MAX, write: Callable[[str], None] = print) -> Outcome:
    """Run one seed and write a line for each input and effect."""
    world = World(seed, trace=write)
    write(f"seed {seed}: {world.plan}")
    return world.run(until)


def report_lines(report: Report) -> list[str]:
    """The report for people: replay lines first, then how often each fault and rule was exercised."""
    lines = [replay_line(failure) for failure in report.failed]
    lines.append(
        f"{report.seeds} seeds, {len(report.failed)} failed, {report.steps} steps, {report.heights} heights, "
        f"{report.seconds:.1f} s; slowest recovery {report.recovery_ms_max} ms "
        f"({report.recovery_permille_of_bound_max / 10:.1f} % of its bound)"
    )
    lines.append("faults: " + ", ".join(f"{kind} {count}" for kind, count in sorted(report.faults.items())))
    lines.append("rules:  " + ", ".join(f"{rule} {count}" for rule, count in sorted(report.rules.items())))
    lines.append("reached: " + ", ".join(f"{name} {count}" for name, count in sorted(report.reached.items())))
    return lines


def main(arguments: list[str]) -> int:
    """Run what the command line asks for; 0 when every rule held, 1 when one broke."""
    options = _options(arguments)
    if options.seed is not None:
        write = (lambda line: print(line, file=sys.stderr)) if options.json else print
        started = time.monotonic()
        outcome = trace_seed(options.seed, options.until, write) if not options.quiet else run_seed(options.seed)
        report = _sum([outcome], time.monotonic() - started)
    else:
        report = run_seeds(options.first, options.seeds, options.jobs)
    if options.json:
        print(json.dumps(report.as_json()))
    else:
        print("\n".join(report_lines(report)))
    return 1 if report.failed else 0


def _options(arguments: list[str]) -> Any:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate", description="Run the consensus under faults, from seeds."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="run this seed and print its trace")
    what.add_argument("--seeds", type=_positive, help="run this many seeds")
    parser.add_argument("--until", type=_positive, default=STEPS_MAX, help="with --seed: stop after this step")
    parser.add_argument("--quiet", action="store_true", help="with --seed: no trace")
    parser.add_argument("--first", type=int, default=0, help="with --seeds: the first of them")
    parser.add_argument("--jobs", type=_positive, default=multiprocessing.cpu_count(), help="how many processes")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
