"""Only our own processes are found and ended."""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.localnet import processes


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[tuple[int, int]]:
    pid, ticks = processes.start(["/bin/sleep", "60"], os.environ, tmp_path / "log")
    yield pid, ticks
    processes.end(pid, ticks, kill=True)


@pytest.mark.parametrize("kill", [True, False])
def test_a_started_process_lives_until_it_is_ended(sleeper: tuple[int, int], kill: bool) -> None:
    pid, ticks = sleeper
    assert processes.is_alive(pid, ticks)
    assert processes.end(pid, ticks, kill=kill)
    assert not processes.is_alive(pid, ticks)
    assert processes.end(pid, ticks, kill=kill)


def test_a_stranger_with_the_same_pid_is_left_alone(sleeper: tuple[int, int]) -> None:
    pid, ticks = sleeper
    assert not processes.is_alive(pid, ticks - 1)
    assert processes.end(pid, ticks - 1, kill=True)
    assert processes.is_alive(pid, ticks)


def test_a_process_killed_by_others_counts_as_dead(sleeper: tuple[int, int]) -> None:
    pid, ticks = sleeper
    handle = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PIDFD, handle, os.WEXITED | os.WNOWAIT)
    os.close(handle)
    assert not processes.is_alive(pid, ticks)


def test_a_process_that_ignores_the_signal_is_reported(tmp_path: Path) -> None:
    fifo = tmp_path / "ready"
    os.mkfifo(fifo)
    script = f"trap '' TERM; echo ready > {fifo}; exec /bin/sleep 60"
    pid, ticks = processes.start(["/bin/sh", "-c", script], os.environ, tmp_path / "log")
    assert fifo.read_text() == "ready\n"
    assert not processes.end(pid, ticks, kill=False, timeout_s=0.1)
    assert processes.end(pid, ticks, kill=True)


def test_output_goes_to_the_log(tmp_path: Path) -> None:
    pid, _ = processes.start(["/bin/sh", "-c", "echo out; echo err >&2"], os.environ, tmp_path / "log")
    os.waitpid(pid, 0)
    assert (tmp_path / "log").read_text() == "out\nerr\n"


def test_a_used_port_is_found() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        used = f"127.0.0.1:{server.getsockname()[1]}"
        assert processes.used_addresses([used]) == [used]
    assert processes.used_addresses([used]) == []


def test_usage_of_a_running_process_and_of_none(sleeper: tuple[int, int]) -> None:
    found = processes.usage(sleeper[0])
    assert found is not None
    assert 0 < found.rss_mb <= found.rss_peak_mb
    processes.end(*sleeper, kill=True)
    assert processes.usage(sleeper[0]) is None


CHILDREN = """
import subprocess, sys
burning = "x = sum(range(40_000_000))"
large = "x = b'x' * 60_000_000; print(flush=True); sys.stdin.read()"
subprocess.run([sys.executable, "-c", burning])
child = subprocess.Popen([sys.executable, "-c", "import sys; " + large], stdin=subprocess.PIPE)
child.wait()
"""


def test_usage_is_that_of_all_that_a_process_started(tmp_path: Path) -> None:
    log = tmp_path / "log"
    pid, ticks = processes.start([sys.executable, "-c", CHILDREN], os.environ, log)
    try:
        deadline_s = time.monotonic() + 30
        while not log.read_bytes() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        found = processes.usage(pid)
        assert found is not None
        assert found.rss_peak_mb >= found.rss_mb > 60, "of the one that runs"
        assert found.cpu_s > 0.15, "of the one that has ended, which took more than that"
    finally:
        # The child that is left reads the end of its input then.
        processes.end(pid, ticks, kill=True)
