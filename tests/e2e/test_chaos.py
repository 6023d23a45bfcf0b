"""A few short schedules of faults on real processes; `scripts/test --long` performs sixty full ones."""

import json
import os
import subprocess
import sys

import pytest

from scripts.localnet.layout import ROOT

pytestmark = pytest.mark.slow

PORT_OFFSET = 60
"""Beside the networks of the other modules, which take the first ports of each range."""
SCHEDULES = 2
FIRST_SEED = 22
"""A member is paused in the first; in the second one is cut off while another has lost its data."""
GENEROUS_S = 60
"""Here is asked whether blocks come again; how soon, `scripts/chaos` judges on a quiet machine."""
TIMEOUT_S = 300


def test_random_faults_lose_nothing_and_blocks_come_again(base_port: int) -> None:
    command = [sys.executable, "-P", "-m", "scripts.localnet.chaos", "--json", "--brief"]
    command += ["--first", str(FIRST_SEED), "--schedules", str(SCHEDULES), "--bound", str(GENEROUS_S)]
    command += ["--base-port", str(base_port + PORT_OFFSET)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)["schedules"]
    assert len(outcomes) == SCHEDULES
    for outcome in outcomes:
        assert outcome["problems"] == []
        assert outcome["accepted"] == outcome["final"] + outcome["expired"] > 0
