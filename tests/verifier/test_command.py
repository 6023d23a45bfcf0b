"""The command hansa-verify, and the file and package that it is."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hansa_verify
import pytest

from tests.verifier.packs import MadePack

SOURCE = Path(hansa_verify.__file__)
LINES_MAX = 360


def files(directory: Path, pack: MadePack) -> list[str]:
    (directory / "pack").write_bytes(pack.data)
    (directory / "network.toml").write_bytes(pack.genesis)
    return [str(directory / "pack"), "--genesis", str(directory / "network.toml")]


def test_the_command_tells_people(
    tmp_path: Path, packs: dict[str, MadePack], capsys: pytest.CaptureFixture[str]
) -> None:
    pack = packs["not_executed replaced"]
    assert pack.checkpoint is not None
    command = [*files(tmp_path, pack), "--expect", pack.expect]
    assert hansa_verify.main([*command, "--checkpoint", pack.checkpoint]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"PROVEN {pack.expect}\n")
    assert "was not executed and never will be" in told
    assert "\nASSUMED\n" in told
    assert hansa_verify.main(command) == 1
    assert capsys.readouterr().out == "REFUSED: the pack leads to a checkpoint: name it with --checkpoint\n"


def test_the_command_tells_programs(
    tmp_path: Path, packs: dict[str, MadePack], capsys: pytest.CaptureFixture[str]
) -> None:
    pack = packs["statement of an epoch"]
    assert hansa_verify.main([*files(tmp_path, pack), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["accepted"] is True
    assert (document["kind"], document["subject"]) == ("statement", "ACC-1")
    assert [block["height"] for block in document["blocks"]] == [2, 3]
    assert len(document["blocks"][0]["digest"]) == 64
    assert hansa_verify.main([*files(tmp_path, pack), "--json", "--expect", "statement:ACC-2"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document == {"accepted": False, "reason": "the pack proves statement:ACC-1, not statement:ACC-2"}


def test_a_claim_is_followed_by_what_belongs_to_it(
    tmp_path: Path, packs: dict[str, MadePack], capsys: pytest.CaptureFixture[str]
) -> None:
    """The block stood between the claim, which ends with a colon, and the keys and outcomes."""
    pack = packs["transaction of the first epoch"]
    proof = hansa_verify.verify(pack.data, pack.genesis)
    assert hansa_verify.main([*files(tmp_path, pack), "--expect", pack.expect]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [proof.proven[0], *proof.details, *proof.proven[1:], "ASSUMED", *proof.assumed]


def test_a_reader_that_has_enough_is_no_failure(tmp_path: Path, packs: dict[str, MadePack]) -> None:
    """`hansa-verify … | head -1` ended with a trace and another exit code."""
    command = [sys.executable, str(SOURCE), *files(tmp_path, packs["state now"])]
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.parametrize("expect", [[], ["--expect", "state:else"]])
def test_a_verdict_that_cannot_be_written_is_neither_proven_nor_refused(
    tmp_path: Path, packs: dict[str, MadePack], form: list[str], expect: list[str]
) -> None:
    """It ended with a trace and the exit code of a refusal."""
    command = [sys.executable, str(SOURCE), *files(tmp_path, packs["state now"]), *form, *expect]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, text=True)
    said = "hansa-verify: the verdict could not be written: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (3, said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('member = "bank-a"\nnetwork = "network.toml"', "a value of another kind"),
        ("members = []", "'network'"),
        ("network = ", "Invalid value (at end of document)"),
    ],
)
def test_a_genesis_file_that_is_none_is_told_in_plain_words(
    tmp_path: Path, packs: dict[str, MadePack], text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = files(tmp_path, packs["state now"])
    (tmp_path / "network.toml").write_text(text)
    with pytest.raises(SystemExit):
        hansa_verify.main(command)
    assert f"the genesis file is no network.toml; wrong or missing in it: {said}\n" in capsys.readouterr().err


@pytest.mark.parametrize("checkpoint", ["", "22", "22:", "22:" + 64 * "A", "x:" + 64 * "a", "22:" + 65 * "a"])
def test_a_checkpoint_that_is_none_is_wrong_use(
    tmp_path: Path, packs: dict[str, MadePack], checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        hansa_verify.main([*files(tmp_path, packs["state now"]), "--checkpoint", checkpoint])
    assert ended.value.code == 2
    assert "--checkpoint is written HEIGHT:DIGEST" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["no pack", "no genesis", "wrong genesis", "no option"])
def test_wrong_use_ends_with_two(tmp_path: Path, packs: dict[str, MadePack], damage: str) -> None:
    command = files(tmp_path, packs["state now"])
    if damage == "no pack":
        (tmp_path / "pack").unlink()
    elif damage == "no genesis":
        (tmp_path / "network.toml").unlink()
    elif damage == "wrong genesis":
        (tmp_path / "network.toml").write_text("[network]")
    else:
        command = command[:1]
    with pytest.raises(SystemExit) as ended:
        hansa_verify.main(command)
    assert ended.value.code == 2


# --- the file itself -------------------------------------------------------------------------------------


def test_an_auditor_can_read_it_in_one_sitting() -> None:
    assert len(SOURCE.read_text().splitlines()) <= LINES_MAX


def test_it_knows_nothing_of_the_node() -> None:
    module = ast.parse(SOURCE.read_text())
    names = {alias.name for node in ast.walk(module) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(module) if isinstance(node, ast.ImportFrom)}
    foreign = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    assert foreign == {"msgpack", "nacl"}


@pytest.mark.slow
def test_pip_installs_it_alone(tmp_path: Path, packs: dict[str, MadePack]) -> None:
    """Without the node and without a network: its two libraries are lent by this environment."""
    python = sys.executable
    site = tmp_path / "site"
    build = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    project = shutil.copytree(SOURCE.parent, tmp_path / "verifier", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([*build, "--target", str(site), str(project)], check=True, capture_output=True)
    assert (site / "hansa_verify.py").read_bytes() == SOURCE.read_bytes()
    pack = packs["state now"]
    command = [str(site / "bin" / "hansa-verify"), *files(tmp_path, pack), "--expect", pack.expect]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env={"PYTHONPATH": str(site)})
    assert told.stdout.startswith('PROVEN state:["settlement", "accounts", "ACC-1"]\n')
