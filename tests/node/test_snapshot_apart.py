"""A snapshot cut by another process is the same, and nothing is left of one that fails or of its process."""

import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.errors import StoreError
from node.snapshot import SnapshotFolder, SnapshotTooLarge, apart, cut, cut_apart, make_snapshot, read_manifest
from node.snapshot.cutting import Steps
from tests.node.ledger_world import transfer
from tests.node.test_snapshot import SignedLedger, judged, made, signed_network

CUT = [sys.executable, "-P", "-m", "node.snapshot"]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SignedLedger]:
    opened = SignedLedger(tmp_path / "data", signed_network())
    opened.open_accounts("A", "B", funds=1_000)
    opened.settle(opened.transaction("bank-a", transfer("A", "B", 10, 1)))
    yield opened
    opened.close()


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Those that were started to cut."""
    started: list[subprocess.Popen[bytes]] = []
    popen: Any = subprocess.Popen

    def start(command: list[str], **options: bool | int) -> subprocess.Popen[bytes]:
        started.append(popen(command, **options))
        return started[-1]

    monkeypatch.setattr("node.snapshot.apart.subprocess.Popen", start)
    return started


@pytest.fixture
def stuck(tmp_path: Path) -> SnapshotFolder:
    """A directory whose draft cannot be read to its end: whoever cuts it never comes further."""
    folder = SnapshotFolder(tmp_path / "stuck")
    folder.create()
    os.mkfifo(folder.path / "draft")
    return folder


def test_another_process_makes_the_same_snapshot_and_leaves_nothing_else(
    ledger: SignedLedger, tmp_path: Path
) -> None:
    here = made(ledger, tmp_path / "here", cut)
    there = made(ledger, tmp_path / "there", cut_apart)
    judged(there, ledger)
    contents = [read_manifest(folder.manifest_bytes()).content for folder in (here, there)]
    assert contents[0].digest == contents[1].digest
    for folder in (here, there):
        assert {path.name for path in folder.path.iterdir()} == {"0000.chunk", "manifest"}


def test_nothing_keeps_the_view_while_the_rows_are_cut(ledger: SignedLedger, tmp_path: Path) -> None:
    """LevelDB keeps every value that is overwritten for as long as a view may show it."""
    config, views = ledger.network, [ledger.store.snapshot()]
    kept = weakref.ref(views[0])

    def looking(folder: SnapshotFolder) -> Steps:
        assert kept() is None
        yield from cut(folder)

    steps = make_snapshot(views.pop(), config.network_id, config.genesis_hash, 8, tmp_path, looking)
    assert len(list(steps)) > 1


def test_what_the_process_refuses_is_told_with_its_reason(ledger: SignedLedger, tmp_path: Path) -> None:
    ledger.store._database.write([(b"s" + b"\x02stray\x00\x00", b"\x01")])
    with pytest.raises(StoreError, match="corrupt_state_tree: the state's root differs from that of block 2"):
        made(ledger, tmp_path / "snapshots", cut_apart)
    assert list((tmp_path / "snapshots").iterdir()) == []


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ('{"code": "", "message": "10001 changes"}', SnapshotTooLarge, "10001 changes"),
        ('{"code": "disk_full", "message": "no room"}', StoreError, "disk_full: no room"),
        ('{"code": "made_up", "message": "what?"}', StoreError, "snapshot_not_cut: what?"),
        ('{"code"', StoreError, "snapshot_not_cut: .* cannot be read"),
    ],
)
def test_what_the_process_says_is_read_with_care(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, error: type[Exception], words: str
) -> None:
    """It comes over a pipe: on a full disk there is no room for a file that says so."""
    speaker = tmp_path / "speaker"
    speaker.write_text(f"#!/bin/sh\nprintf %s '{said}'\nexit {apart.TOLD}\n")
    speaker.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(speaker))
    with pytest.raises(error, match=words):
        list(cut_apart(SnapshotFolder(tmp_path / "one")))


def test_a_process_that_cannot_be_started_is_an_error_of_its_own(
    stuck: SnapshotFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(stuck.path / "nobody"))
    with pytest.raises(StoreError, match="snapshot_not_cut: no process can be started: No such file"):
        list(cut_apart(stuck))


def test_a_process_that_is_killed_makes_no_snapshot(
    stuck: SnapshotFolder, processes: list[subprocess.Popen[bytes]]
) -> None:
    steps = cut_apart(stuck)
    next(steps)
    os.kill(processes[0].pid, signal.SIGKILL)
    with pytest.raises(StoreError, match=r"snapshot_not_cut: .* ended by signal 9"):
        list(steps)


def test_whoever_gives_up_leaves_no_process(
    stuck: SnapshotFolder, processes: list[subprocess.Popen[bytes]]
) -> None:
    steps = cut_apart(stuck)
    next(steps)
    assert processes[0].poll() is None
    steps.close()
    assert processes[0].returncode == -signal.SIGKILL


def test_the_process_ends_when_the_node_is_killed(stuck: SnapshotFolder) -> None:
    """As when the node's end of the pipe closes, however that comes about."""
    with subprocess.Popen([*CUT, str(stuck.path)], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 1


def test_the_process_lets_everybody_else_go_first(stuck: SnapshotFolder) -> None:
    with subprocess.Popen([*CUT, str(stuck.path)], stdin=subprocess.PIPE, start_new_session=True) as process:
        # It reads the draft once its priority is lowered.
        with (stuck.path / "draft").open("wb"):
            assert os.getpriority(os.PRIO_PROCESS, process.pid) == apart.LOWEST_PRIORITY
            assert priority_of_session(process.pid) in (apart.LOWEST_PRIORITY, None)
        process.kill()


def test_a_process_in_a_session_of_others_lowers_itself_alone(stuck: SnapshotFolder) -> None:
    """It lowered all that run in that session, for good: whoever ran this file went on behind everybody else."""
    command = ["/bin/sh", "-c", '"$@"; exit', "sh", *CUT, str(stuck.path)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as shell,
        (stuck.path / "draft").open("wb"),
    ):
        assert priority_of_session(shell.pid) in (0, None)


def priority_of_session(pid: int) -> int | None:
    """How the session of the process stands to others, from -20 to 19; None where the system does not tell."""
    try:
        told = Path(f"/proc/{pid}/autogroup").read_text()
    except OSError:
        return None
    return int(told.split()[-1]) if told else None
