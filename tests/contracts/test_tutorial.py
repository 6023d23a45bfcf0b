"""The tutorial in contracts/README.md is code that loads, passes its own tests, and matches what it says."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import contracts
from contracts.loader import load_source

README = Path(contracts.__file__).parent / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def tutorial_tests() -> Iterator[dict[str, Any]]:
    contract, tests = blocks()
    load_source("contracts.invoices", contract)
    scope: dict[str, Any] = {"__name__": "tutorial"}
    try:
        exec(compile(tests, str(README), "exec"), scope)  # noqa: S102 - our own documentation
        yield scope
    finally:
        del sys.modules["contracts.invoices"]


def test_the_tutorials_contract_passes_the_tutorials_tests(tutorial_tests: dict[str, Any]) -> None:
    names = [name for name in tutorial_tests if name.startswith("test_")]
    assert len(names) == 4
    for name in names:
        tutorial_tests[name]()
