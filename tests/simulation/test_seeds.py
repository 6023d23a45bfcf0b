"""A thousand networks under faults: every rule of consensus holds at every step, and all of them recover."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.simulation.runner import report_lines, run_seeds, trace_seed

ROOT = Path(__file__).resolve().parents[2]
FAST = bool(os.environ.get("HANSA_FAST"))
SEEDS = 60 if FAST else 1_000


def test_every_seed_holds_every_rule() -> None:
    report = run_seeds(0, SEEDS, jobs=min(2, os.cpu_count() or 1))
    text = "\n".join(report_lines(report))
    print(text)
    assert not report.failed, text
    assert report.seeds == SEEDS
    # A rule that is never judged, a fault that never happens and a danger that never comes up prove nothing.
    unexercised = [rule for rule in EXPECTED_RULES if not report.rules[rule]]
    unexercised += [kind for kind in EXPECTED_FAULTS if not report.faults[kind]]
    if not FAST:
        unexercised += [name for name in EXPECTED_SITUATIONS if not report.reached[name]]
    assert not unexercised


def test_one_seed_is_one_run_whatever_the_hash_seed() -> None:
    traces = [_trace_in_process(hash_seed) for hash_seed in ("1", "2")]
    assert traces[0] == traces[1]
    assert traces[0].count("\n") > 500


def test_a_run_stops_at_the_step_it_is_told() -> None:
    lines: list[str] = []
    outcome = trace_seed(3, until=200, write=lines.append)
    assert outcome.steps == 200
    assert outcome.failure is None
    assert lines


def test_the_report_for_scripts_counts_seeds_steps_faults_and_rules() -> None:
    command = [sys.executable, "scripts/simulate", "--seeds", "4", "--first", "7", "--jobs", "1", "--json"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    report = json.loads(finished.stdout)
    assert (report["seeds"], report["failed"]) == (4, [])
    assert report["steps"] > 1_000
    assert report["faults"]
    assert report["rules"]["agreement"] > 0


def _trace_in_process(hash_seed: str) -> str:
    command = [sys.executable, "scripts/simulate", "--seed", "11", "--until", "3000"]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return "\n".join(line for line in finished.stdout.splitlines() if " steps, " not in line)


EXPECTED_FAULTS = (
    "backup",
    "clock",
    "crash",
    "crash at",
    "crash several",
    "isolate",
    "lie",
    "loss",
    "message cut",
    "message drop",
    "message duplicate",
    "message late",
    "one-way cut",
    "pause",
    "power cut",
    "restore",
    "rollback",
    "slow executor",
    "slow network",
    "split",
    "twin",
    "wipe",
    "withhold",
)
EXPECTED_SITUATIONS = (
    "asked for a view with something prepared",
    "asked for the third view or later",
    "caught up by a certified block",
    "commit again in a higher view",
    "decided in a later view",
    "equivocation proved",
    "prepare again in a higher view",
    "prepare for another block in a higher view",
    "proposed afresh in a new view",
    "proposed again what was prepared",
    "voted above the view that decided",
    "voted again after losing its memory",
)
EXPECTED_RULES = (
    "a decided block is at hand",
    "a later view is opened by a new view",
    "a new view re-proposes what is prepared",
    "a prepare is stored with its block",
    "a request takes effect once",
    "a view change hides nothing prepared",
    "abstention",
    "agreement",
    "amnesia",
    "certificate",
    "chain",
    "commit only what is prepared",
    "digest names the payload",
    "durable before sent",
    "heights only grow",
    "heights only grow by one",
    "never below a view asked for or voted in",
    "new view is valid",
    "no honest member is accused",
    "one vote per slot",
    "own signature",
    "progress after healing",
    "right to propose",
    "start view",
    "step is total",
    "view change is valid",
    "vote above an applied block",
)
