"""Many seeds of whole nodes on several processes, one seed with its trace, and what a sweep must come across."""

import argparse
import json
import multiprocessing
import time
from typing import Any

from node.runtime.node import Node
from tests.simulation.nodes.faults import draw_governed_plan, draw_plan
from tests.simulation.nodes.versions import make_node
from tests.simulation.nodes.world import STEPS_MAX, NodeWorld
from tests.simulation.runner import Report, report_lines, run_seeds
from tests.simulation.world import Failure, Outcome

FULL_SEEDS = 500
"""From so many seeds on, a sweep fails that never came across one of EXPECTED."""

EXPECTED_FAULTS = (
    "backup",
    "clock",
    "conflicting request",
    "crash",
    "crash after a write",
    "crash before a write",
    "crash between awaits",
    "disk broken",
    "disk full",
    "flapping",
    "isolate",
    "one-way stall",
    "overdraft",
    "pause",
    "power cut",
    "reset",
    "restore",
    "short-lived",
    "slow disk",
    "slow executor",
    "slow links",
    "slow network",
    "split",
    "stop",
    "submitted again",
    "wipe",
    "withhold",
)
EXPECTED_SITUATIONS = (
    "a block came by catch-up",
    "a block came by catch-up while it was being decided",
    "a known transaction promised",
    "a payload came from a holder",
    "a proposal to be held",
    "a proposal too early to be held",
    "a submission failed: disk_full",
    "an accepted transaction dropped",
    "an accepted transaction expired",
    "bodies came from a holder",
    "bytes withheld",
    "link given up in silence",
    "link replaced",
    "new view",
    "queue full of consensus",
    "refused: queue_full",
    "refused: request_conflict",
    "started with a journal",
    "started with a journal near or above the mempool",
    "view change",
    "voted for a proposal that was held",
)


def run_seed(seed: int) -> Outcome:
    """The outcome of one seed."""
    return NodeWorld(seed).run()


def run_governed_seed(seed: int) -> Outcome:
    """The outcome of one seed in which the members change their own list meanwhile."""
    return NodeWorld(seed, plan=draw_governed_plan, make_node=make_node).run()


def replay_line(failure: Failure, *, governed: bool = False) -> str:
    """The one line that shows a failure again, and the rule that it breaks."""
    command = f"scripts/simulate --nodes{' --governed' * governed} --seed {failure.seed} --until {failure.step}"
    return f"{command}   # {failure.rule}: {failure.detail}"


def unexercised(report: Report) -> list[str]:
    """What a sweep of that size should have come across and did not: a fault or a situation."""
    if report.seeds < FULL_SEEDS:
        return []
    missing = [f"fault {name}" for name in EXPECTED_FAULTS if not report.faults[name]]
    return missing + [f"situation {name}" for name in EXPECTED_SITUATIONS if not report.reached[name]]


def main(arguments: list[str]) -> int:
    """Run what the command line asks for; 0 when every rule held and nothing was left unexercised, else 1."""
    options = _options(arguments)
    if options.seed is not None:
        started = time.monotonic()
        plan = draw_governed_plan if options.governed else draw_plan
        make = make_node if options.governed else Node
        world = NodeWorld(options.seed, plan=plan, make_node=make, trace=None if options.quiet else print)
        print(f"seed {options.seed}: {world.plan}")
        outcome = world.run(options.until)
        print(f"{outcome.steps} steps, {outcome.heights} heights, {time.monotonic() - started:.1f} s")
        if outcome.failure is not None:
            print(replay_line(outcome.failure, governed=options.governed))
        return 1 if outcome.failure is not None else 0
    run = run_governed_seed if options.governed else run_seed
    report = run_seeds(options.first, options.seeds, options.jobs, run=run)
    missing = unexercised(report)
    if options.json:
        print(json.dumps({**report.as_json(), "unexercised": missing}))
    else:
        for failure in report.failed:
            print(replay_line(failure, governed=options.governed))
        print("\n".join(report_lines(report)[len(report.failed) :]))
        print("\n".join(f"never came up: {name}" for name in missing))
    return 1 if report.failed or missing else 0


def _options(arguments: list[str]) -> Any:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate --nodes", description="Run whole nodes under faults, from seeds."
    )
    parser.add_argument("--nodes", action="store_true", required=True, help="whole nodes, not consensus alone")
    parser.add_argument("--governed", action="store_true", help="the members change their own list meanwhile")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="run this seed and print its trace")
    what.add_argument("--seeds", type=int, help="run this many seeds")
    parser.add_argument("--until", type=int, default=STEPS_MAX, help="with --seed: stop after this step")
    parser.add_argument("--quiet", action="store_true", help="with --seed: no trace")
    parser.add_argument("--first", type=int, default=0, help="with --seeds: the first of them")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count(), help="how many processes")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    return parser.parse_args(arguments)
