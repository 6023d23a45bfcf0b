"""`hansa why` on a terminal, for programs, and where no node answers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from node.cli import diagnosis
from node.cli.diagnosis import absent_node, show_diagnosis
from node.cli.documents import docs
from node.cli.main import main
from node.cli.output import Output
from node.client.answers import Diagnosis
from node.config import NodeConfig
from node.diagnosis import CAUSES, cause_table, diagnose
from tests.node.diagnosis_world import facts, without

FIELDS = {
    "moving",
    "since_ms",
    "headline",
    "culprits",
    "sentences",
    "next",
    "operator",
    "height",
    "view",
    "phase",
    "step",
    "members",
    "missing",
    "details",
}
HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def shown(answer: Diagnosis, capsys: pytest.CaptureFixture[str]) -> str:
    show_diagnosis(Output(False), answer)
    return capsys.readouterr().out


def test_a_stall_reads_from_the_culprit_to_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(diagnose(without("member-2", "member-3")), capsys)
    first, *rest = text.splitlines()
    assert first.startswith("not moving for 2.0 s: No block can be made: member-2 and member-3 are down")
    assert any(line.startswith("next") and "as soon as 1 of member-2 and member-3" in line for line in rest)
    assert any(line.startswith("do") and "Start member-2 and member-3." in line for line in rest)
    assert any("member-3" in line and "member_down" in line for line in rest)


def test_how_long_nothing_moves_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    known = facts(waiting_ms=15_800)
    text = shown(diagnose(known), capsys).splitlines()[0]
    assert text.startswith("not moving: No block for 15.8 s")
    assert text.count("15.8 s") == 1


def test_a_network_that_is_well_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(diagnose(facts()), capsys).startswith("ok: All is well: nothing waits")


def test_one_member_down_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(diagnose(without("member-3")), capsys).startswith("ok, but: Blocks are made, but member-3 is down")


def test_the_document_has_the_fields_that_programs_rely_on(capsys: pytest.CaptureFixture[str]) -> None:
    Output(True).document(diagnose(without("member-3")))
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(answer) >= FIELDS
    assert set(answer["culprits"][0]) == {"member", "cause", "sentence"}
    assert {"what", "in_ms"} == set(answer["next"])
    assert {"id", "reachable", "height", "view", "version", "clock_offset_ms", "report_age_ms"} <= set(
        answer["members"][0]
    )


def config(directory: Path) -> NodeConfig:
    return NodeConfig("bank-a", directory, directory, directory, "127.0.0.1:1", "127.0.0.1:2")


def test_a_node_that_does_not_run(tmp_path: Path) -> None:
    answer = absent_node(config(tmp_path))
    assert answer.headline == "This node (bank-a) does not run."
    assert (answer.moving, answer.culprits[0].cause) == (False, "member_down")


def test_a_node_that_stopped_for_its_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "_free_bytes", lambda _: 1_000)
    answer = absent_node(config(tmp_path))
    assert answer.headline == "This node (bank-a) does not run, and its disk is full (1000 bytes free)."
    assert answer.operator[0].startswith("Free disk under")


def test_a_process_that_holds_the_data_and_does_not_answer(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "LOCK")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        answer = absent_node(config(tmp_path))
        assert answer.headline == f"The process of this node (bank-a) runs (pid {holder.pid}) and does not answer."
        assert answer.culprits[0].cause == "member_silent"
        assert holder.stdin is not None
        holder.stdin.close()


def test_without_a_node_and_without_its_directory_the_exit_code_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HANSA_DIR", raising=False)
    assert main(["why", "--node", "http://127.0.0.1:9"]) == 4
    assert "node_unreachable" in capsys.readouterr().err


def test_the_causes_are_printed_from_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert docs.name == "docs"
    assert main(["docs", "causes"]) == 0
    assert capsys.readouterr().out == cause_table()
    assert all(f"| `{code}` |" in cause_table() for code in CAUSES)
