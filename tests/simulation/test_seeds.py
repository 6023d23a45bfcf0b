"""A thousand networks under faults: every rule of consensus holds at every step, and all of them recover."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import FAST
from tests.simulation.byzantine.roles import ROLES
from tests.simulation.runner import trace_seed

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 30 if FAST else 1_000


def test_every_seed_holds_every_rule() -> None:
    jobs = str(min(2, os.cpu_count() or 1))
    command = [sys.executable, "scripts/simulate", "--seeds", str(SEEDS), "--jobs", jobs, "--json"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    report = json.loads(finished.stdout)
    for failure in report["failed"]:
        print(f"scripts/simulate --seed {failure['seed']} --until {failure['step']}   # {failure['rule']}")
    assert not report["failed"]
    assert report["seeds"] == SEEDS
    # A rule that is never judged, a fault that never happens and a danger that never comes up prove nothing.
    unexercised = [rule for rule in EXPECTED_RULES if rule not in report["rules"]]
    unexercised += [kind for kind in EXPECTED_FAULTS if kind not in report["faults"]]
    if not FAST:
        unexercised += [rule for rule in RARE_RULES if rule not in report["rules"]]
        unexercised += [kind for kind in RARE_FAULTS if kind not in report["faults"]]
        unexercised += [name for name in EXPECTED_SITUATIONS if name not in report["reached"]]
        unexercised += report["never_hit"]
    assert not unexercised
    assert finished.returncode == 0


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
    "clock",
    "clock drift",
    "crash",
    "crash at",
    "crash several",
    "flapping",
    "isolate",
    "lie",
    "loss",
    "message cut",
    "message drop",
    "message duplicate",
    "message late",
    "new release",
    "one-way cut",
    "other release at one",
    "pause",
    "power cut",
    "signature withheld",
    "slow builder",
    "slow executor",
    "slow link",
    "slow network",
    "split",
    "stopped in its window",
    "torn last record",
    "window",
    "wipe",
    "withhold",
)
# What sixty seeds may miss.
RARE_FAULTS = (
    "all paused for 30 min",
    "backup",
    "clock far off",
    "member joins",
    "member leaves",
    "member rotates its key",
    "one paused for 30 min",
    "poison",
    "restore",
    "rollback",
    "slow primary under full load",
    "twin",
    *(f"lie: {role}" for role in ROLES),
    *(f"equivocation by {kind}" for kind in ("PrePrepare", "PREPARE", "COMMIT", "ViewChange", "NewView")),
)
EXPECTED_SITUATIONS = (
    "asked for a view with something prepared",
    "asked for the third view or later",
    "caught up by a certified block",
    "commit again in a higher view",
    "a doubled key stops for good",
    "decided by another release, and executed",
    "decided in a later view",
    "equivocation proved",
    "more rested than a quorum can spare",
    "one instance in two places",
    "one key twice proved",
    "prepare again in a higher view",
    "prepared by another release, and executed",
    "prepare for another block in a higher view",
    "proposed afresh in a new view",
    "proposed while another rested",
    "proposed again what was prepared",
    "started with a rotated key",
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
    "equal member lists",
    "equal resting members",
    "equal state roots",
    "height and view only grow",
    "heights only grow by one",
    "never below a view asked for or voted in",
    "new view is valid",
    "nothing is signed that is withheld",
    "no accepted request is lost",
    "no honest member is accused",
    "one vote per slot",
    "own signature",
    "progress after healing",
    "right to propose",
    "start view",
    "step is total",
    "view change is valid",
    "vote above an applied block",
    "who rests has no turn",
)
RARE_RULES = (
    "a proof of two processes is genuine",
    "two processes are proved where two ran",
    "who lives once never stops for good",
)
