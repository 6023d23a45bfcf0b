"""Each scenario file happens as it says. `HANSA_REWRITE=1 pytest tests/scenarios` writes down what happens now."""

import difflib
import os
import re
from pathlib import Path

import pytest

from tests.scenarios.commands import ScriptError
from tests.scenarios.script import UNPROVED, parse, perform, render, replay

HERE = Path(__file__).parent
SCENARIOS = sorted(HERE.glob("*.txt"))
# What no scenario may ever show, not even where its file says so.
FAILURES = ("BROKEN", "NOT ALIVE", "NOT HALTED", "this never happened")


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_the_scenario_happens_as_it_is_written(path: Path) -> None:
    said, happens = replay(path)
    failures = [line for line in happens.splitlines() if line.startswith(FAILURES) or line.endswith(UNPROVED)]
    if os.environ.get("HANSA_REWRITE"):
        path.write_text(happens)
        said = happens
    difference = difflib.unified_diff(said.splitlines(), happens.splitlines(), "written", "happens", lineterm="")
    assert said == happens, "\n" + "\n".join(difference)
    assert failures == []


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_the_scenario_names_its_source_and_its_rules(path: Path) -> None:
    head = parse(path.read_text())[0].lines
    assert head[0].startswith("# source: ")
    [prevented] = [line for line in head if line.startswith("# prevented by: ")]
    rules = re.findall(r"\b\d+\.\d+\b", prevented)
    specification = (HERE.parents[1] / "consensus" / "README.md").read_text()
    assert rules
    assert [rule for rule in rules if f"- **{rule}** " not in specification] == []
    row = next(line for line in (HERE / "README.md").read_text().splitlines() if f"| `{path.stem}` |" in line)
    assert re.findall(r"\b\d+\.\d+\b", row.split("|")[-2]) == rules


def test_a_scenario_that_happens_differently_is_written_anew() -> None:
    text = "# source: here\nnetwork 4\nwork all\nrun until height 1\n----\na decides\n\nlive within 1 s\n"
    written = render(perform(parse(text)))
    assert "a b c d decide height 1 in view 0" in written
    assert written == render(perform(parse(written)))


def test_a_scenario_has_to_end_alive() -> None:
    assert UNPROVED in render(perform(parse("network 4\nwork all\nrun 1 s\n")))
    stopped = render(perform(parse("network 4\nstop a b\nwork all\nlive within 5 s\n")))
    assert "NOT ALIVE" in stopped
    assert UNPROVED in stopped


def test_evidence_is_told() -> None:
    text = "network 4\ncopy a\nclock a' ahead 1 s\nrun 3 s\nwork all\nrun until height 1\nlive within 5 s\n"
    assert "contradicted itself" in render(perform(parse(text)))


@pytest.mark.parametrize("line", ["work all", "network 4\nfly a", "network 4\nstop z", "network 4\nrun until noon"])
def test_a_command_that_means_nothing_is_refused(line: str) -> None:
    with pytest.raises(ScriptError):
        perform(parse(line))
