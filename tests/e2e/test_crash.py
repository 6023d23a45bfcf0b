"""A kill under load and full disks on real processes: short forms of `scripts/crash --kills` and `--full-disk`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.localnet.full_disk import SmallDisk
from scripts.localnet.layout import ROOT, TestnetError

pytestmark = pytest.mark.slow

PORT_OFFSET = 80
"""Beside the networks of the other modules, which take the first ports of each range."""
TIMEOUT_S = 300


def crash(base_port: int, *arguments: str) -> Any:
    command = [sys.executable, "-m", "scripts.localnet.crash", "--json", *arguments]
    command += ["--base-port", str(base_port + PORT_OFFSET)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_killed_node_finds_everything_again(base_port: int) -> None:
    report = crash(base_port, "--kills", "1")["kills"]
    assert report["problems"] == []
    [kill] = report["kills"]
    assert kill["losses"] == []
    assert kill["head"] >= kill["shown"]
    assert all(report["verified"].values())


def test_a_full_disk_stops_a_node_cleanly_and_it_votes_again_when_space_is_freed(
    base_port: int, tmp_path: Path
) -> None:
    probe = tmp_path / "probe"
    probe.mkdir()
    disk = SmallDisk(probe)
    try:
        disk.mount()
    except TestnetError as error:
        pytest.skip(str(error))
    disk.unmount()
    report = crash(base_port, "--full-disk", "3")["full_disk"]
    assert report["problems"] == []
    assert [point["problems"] for point in report["points"]] == [[], [], []]
    assert [point["kind"] for point in report["points"]] == ["full", "full", "reserve"]
    assert report["points"][2]["ended"] is None
