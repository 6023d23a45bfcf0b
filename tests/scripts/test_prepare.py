"""`scripts/prepare` never points another checkout's environment at this one, and notices when its own was."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.localnet.layout import ROOT

NEEDED = (
    *("bash", "cat", "chmod", "cut", "dirname", "flock", "grep", "head"),
    *("id", "mktemp", "mv", "readlink", "rm", "sha256sum", "tail"),
)
"""Programs that the script calls on every machine."""
SITE = Path("lib", "python3.11", "site-packages")
INTERPRETER = """#!/bin/sh
# Stands for the environment's interpreter: packages are there, nothing is fetched.
case "$*" in
  *"pip --version"*) echo "pip from $(dirname "$(dirname "$0")")/lib" ;;
  *purelib*) echo "$(dirname "$(dirname "$0")")/lib/python3.11/site-packages" ;;
esac
"""


def checkout(path: Path) -> Path:
    """A checkout as far as the script looks at it, whose environment it has prepared."""
    (path / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "prepare", path / "scripts" / "prepare")
    (path / "requirements.lock").write_text("")
    venv = path / ".venv"
    (venv / SITE).mkdir(parents=True)
    (venv / "bin").mkdir()
    (venv / "bin" / "python").write_text(INTERPRETER)
    (venv / "bin" / "python").chmod(0o755)
    point(path, path)
    stamp(path)
    return path


def stamp(path: Path) -> None:
    """The environment is marked as prepared for this checkout."""
    files = [path / "requirements.lock", path / "scripts" / "prepare"]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    (path / ".venv" / ".prepared-run").write_text(f"{' '.join(digests)} {path}\n")


def point(path: Path, root: Path) -> None:
    """The environment of the checkout at `path` uses the one at `root`."""
    (path / ".venv" / SITE / "hansa.pth").write_text(f"{root}\n{root}/verifier\n")


def pointed_at(path: Path) -> str:
    return (path / ".venv" / SITE / "hansa.pth").read_text().splitlines()[0]


def prepare(path: Path, python: Path | None = None) -> "subprocess.CompletedProcess[str]":
    python = python or path / ".venv" / "bin" / "python"
    environment = {**os.environ, "HANSA_PYTHON": str(python), "TMPDIR": str(path)}
    command = [path / "scripts" / "prepare"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_prepared_checkout_is_left_alone(tmp_path: Path) -> None:
    ended = prepare(checkout(tmp_path / "one"))
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("stamped", [False, True])
def test_the_environment_of_another_checkout_is_refused(tmp_path: Path, stamped: bool) -> None:
    """It was pointed here without a word, and the other checkout's commands ran this one's code."""
    one, other = checkout(tmp_path / "one"), checkout(tmp_path / "other")
    shutil.rmtree(one / ".venv")
    (one / ".venv").symlink_to(other / ".venv")
    if stamped:
        stamp(one)
    ended = prepare(one)
    assert ended.returncode == 2
    assert f"belongs to the checkout {other}" in ended.stderr
    assert pointed_at(other) == str(other)


def test_an_environment_that_was_pointed_elsewhere_comes_back_aloud(tmp_path: Path) -> None:
    one = checkout(tmp_path / "one")
    point(one, tmp_path / "other")
    ended = prepare(one)
    assert ended.returncode == 0, ended.stderr
    assert f"used the checkout {tmp_path / 'other'}; from now on it uses this one" in ended.stderr
    assert pointed_at(one) == str(one)
    assert prepare(one).stderr == ""


def test_an_environment_that_points_here_may_lie_elsewhere(tmp_path: Path) -> None:
    one = checkout(tmp_path / "one")
    (one / ".venv").rename(tmp_path / "environment")
    (one / ".venv").symlink_to(tmp_path / "environment")
    assert prepare(one).stderr == ""


def test_an_environment_of_another_interpreter_is_made_anew(tmp_path: Path) -> None:
    """It went on with the interpreter that it was made with, which may be a third slower than the one asked for."""
    path = checkout(tmp_path / "one")
    (path / ".venv" / ".prepared-run").unlink()
    made = tmp_path / "made"
    wanted = tmp_path / "python"
    wanted.write_text(f'#!/bin/sh\ncase "$*" in *"-m venv"*) echo "$*" >{made}; exit 1 ;; esac\n')
    wanted.chmod(0o755)
    ended = prepare(path, wanted)
    assert ended.returncode == 2
    assert made.read_text().split()[-2:] == ["--clear", str(path / ".venv")]


def test_an_interpreter_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    path = checkout(tmp_path / "one")
    (path / ".venv" / ".prepared-run").unlink()
    ended = prepare(path, tmp_path / "nothing")
    assert ended.returncode == 2
    assert f"HANSA_PYTHON names no Python 3.11 ({tmp_path / 'nothing'})" in ended.stderr


def test_where_softhsm_cannot_be_had_the_tests_that_need_it_are_named_and_the_rest_is_prepared(
    tmp_path: Path,
) -> None:
    """A machine without Debian's tools: only what the script needs anyway lies in the PATH."""
    one = checkout(tmp_path / "one")
    (one / "requirements-dev.lock").write_text("")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in NEEDED:
        (tools / name).symlink_to(shutil.which(name) or "/missing")
    interpreter = str(one / ".venv" / "bin" / "python")
    environment = {"PATH": str(tools), "HANSA_PYTHON": interpreter, "TMPDIR": str(tmp_path)}
    command = [str(one / "scripts" / "prepare"), "--dev"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "the tests of keys in devices will be skipped" in ended.stderr
    assert ended.stderr.endswith("prepare: ready\n")
