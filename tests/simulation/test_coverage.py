"""Every numbered rule of the protocol is counted somewhere, and what counts is the shipped code."""

import ast
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation import coverage

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "consensus").glob("*.py"))


def marked() -> Counter[str]:
    """Rule -> on how many lines of consensus/ it is marked."""
    return Counter(
        number for path in SOURCES for numbers in coverage.marks(path.read_text()).values() for number in numbers
    )


def test_each_rule_of_the_readme_has_a_mark_or_a_reason_and_no_mark_is_for_an_unknown_rule() -> None:
    found, rules = marked(), coverage.rules()
    assert len(rules) >= 59
    assert [number for number in rules if not found[number] and number not in coverage.NOT_COUNTED] == []
    assert [number for number in [*found, *coverage.NOT_COUNTED, *coverage.ONLY_IF] if number not in rules] == []
    assert [number for number in coverage.NOT_COUNTED if found[number]] == []


@pytest.mark.parametrize(
    ("source", "line", "counted"),
    [
        ("if a:  # [1.1]\n    b()\nc()\n", 1, "b()"),
        ("if a:\n    b()  # [1.1]\n    c()\n", 2, "b()"),
        ("def f():\n    # [1.1]\n    return b(\n        c\n    )\n", 2, "return b(c)"),
        ("x = [\n    1,  # [1.1]\n]\n", 2, "x = [1]"),
        ('def f():  # [1.1]\n    """It does."""\n    b()\n', 1, "b()"),
    ],
)
def test_a_mark_counts_the_statement_it_stands_on_or_the_first_of_its_branch(
    source: str, line: int, counted: str
) -> None:
    assert list(coverage.marks(source)) == [line]
    body, index = coverage.place_of(ast.parse(source), line)
    assert ast.unparse(body[index]) == counted


def test_counting_changes_nothing_in_a_run_and_counts_what_happens() -> None:
    code = (
        "import sys\nfrom tests.simulation import coverage\n"
        "if sys.argv[1] == 'counted': coverage.install()\n"
        "from tests.simulation.world import World\n"
        "outcome = World(12).run()\n"
        "print(outcome.steps, outcome.heights, sorted(outcome.rules.items()))\n"
        "print(outcome.numbers['4.3'], outcome.numbers['11.2'])\n"
    )
    plain, counted = (
        subprocess.run(
            [sys.executable, "-c", code, how],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for how in ("plain", "counted")
    )
    assert plain[0] == counted[0]
    assert plain[1] == "0 0"
    assert int(counted[1].split()[0]) > 10
