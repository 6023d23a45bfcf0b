"""Many seeds on several processes, one seed with its trace, and the report of either."""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tests.simulation import outage
from tests.simulation.report import Report, Tally, replay_line, report_lines
from tests.simulation.world import STEPS_MAX, Outcome, World

__all__ = ["Report", "main", "replay_line", "report_lines", "run_seed", "run_seeds", "trace_seed"]

CHUNK = 8


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
        tally = _add_up(map(run, seeds), count, stop_at_failure)
    else:
        with multiprocessing.get_context("fork").Pool(jobs) as pool:
            tally = _add_up(pool.imap(run, seeds, chunksize=CHUNK), count, stop_at_failure)
    return tally.report(time.monotonic() - started)


def _add_up(outcomes: Iterable[Outcome], count: int, stop_at_failure: bool) -> Tally:
    """All `outcomes` in one tally; a bar on the terminal shows how far it is."""
    tally = Tally()
    columns = (
        TextColumn("{task.completed} of {task.total} seeds"),
        BarColumn(),
        TextColumn("{task.fields[failed]} failed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task, failed = bar.add_task("", total=count, failed=0), 0
        for outcome in outcomes:
            tally.add(outcome)
            failed += outcome.failure is not None
            bar.update(task, advance=1, failed=failed)
            if outcome.failure is not None and stop_at_failure:
                break
    return tally


def trace_seed(seed: int, until: int = STEPS_MAX, write: Callable[[str], None] = print) -> Outcome:
    """Run one seed and write a line for each input and effect."""
    world = World(seed, trace=write)
    write(f"seed {seed}: {world.plan}")
    return world.run(until)


def main(arguments: list[str]) -> int:
    """Run what the command line asks for; 0 when every rule held, 1 when one broke."""
    if "--nodes" in arguments:
        from tests.simulation.nodes import runner as nodes  # it needs this module, and its own options

        return nodes.main(arguments)
    if "--twins" in arguments:
        from tests.simulation import twins  # it needs this module, and its own few options

        return twins.main(arguments)
    options = _options(arguments)
    if options.outage is not None:
        return outage.main(options.outage, options.first, options.jobs, as_json=options.json)
    if options.replay_bundle is not None:
        from tests.simulation.replay import replay_file  # it needs the node, which a sweep would wait for

        return replay_file(options.replay_bundle, options.until, quiet=options.quiet, as_json=options.json)
    if options.seed is not None:
        write = (lambda line: print(line, file=sys.stderr)) if options.json else print
        started = time.monotonic()
        until = options.until or STEPS_MAX
        outcome = trace_seed(options.seed, until, write) if not options.quiet else run_seed(options.seed)
        tally = Tally()
        tally.add(outcome)
        report = tally.report(time.monotonic() - started)
    else:
        report = run_seeds(options.first, options.seeds, options.jobs)
    if options.json:
        print(json.dumps(report.as_json()))
    else:
        print("\n".join(report_lines(report)))
    return 1 if report.failed or report.never_hit else 0


def _options(arguments: list[str]) -> Any:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate",
        description="Run the consensus under faults, from seeds. With --twins: every short schedule of leaders and "
        "partitions with one key in two places (scripts/simulate --twins --help).",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="run this seed and print its trace")
    what.add_argument("--seeds", type=_positive, help="run this many seeds")
    what.add_argument(
        "--outage",
        type=_positive,
        metavar="N",
        help="measure N times how fast blocks come after two hours of outage",
    )
    what.add_argument("--replay-bundle", type=Path, metavar="FILE", help="step through a diagnostics bundle")
    parser.add_argument("--until", type=_positive, help="stop after this step, or this input of a bundle")
    parser.add_argument("--quiet", action="store_true", help="with --seed and --replay-bundle: no trace")
    parser.add_argument("--first", type=int, default=0, help="with --seeds and --outage: the first of them")
    parser.add_argument("--jobs", type=_positive, default=multiprocessing.cpu_count(), help="how many processes")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
