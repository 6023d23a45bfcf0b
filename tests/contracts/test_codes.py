"""Every revert code of a shipped contract is declared with its meaning, and every declared one can be answered."""

import ast
import re
import sys
from pathlib import Path

import pytest

from contracts import CONTRACTS
from contracts.engine import RESERVED_CODES, Engine
from contracts.sdk import SDK_CODES, Contract


def literals(contract: type[Contract]) -> set[str]:
    """All text constants in the module outside `codes`, and so every code that the module can answer."""
    tree = ast.parse(Path(str(sys.modules[contract.__module__].__file__)).read_text())
    declared = {id(item) for node in ast.walk(tree) if is_code(node) for item in ast.walk(node)}
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in declared]
    return {node.value for node in found if isinstance(node.value, str)}


def is_code(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Code"


def answered(contract: type[Contract]) -> set[str]:
    """The constants given as a code to `require`, `Revert` and `missing=`."""
    tree = ast.parse(Path(str(sys.modules[contract.__module__].__file__)).read_text())
    found: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found += node.args[1:2] if node.func.id == "require" else []
            found += node.args[:1] if node.func.id == "Revert" else []
            found += [keyword.value for keyword in node.keywords if keyword.arg == "missing"]
    return {item.value for item in found if isinstance(item, ast.Constant) and isinstance(item.value, str)}


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
def test_codes_that_are_answered_are_declared(contract: type[Contract]) -> None:
    declared = {item.code for item in (*SDK_CODES, *contract.codes)}
    assert answered(contract)
    assert answered(contract) <= declared


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
def test_declared_codes_are_used_once_named_and_explained(contract: type[Contract]) -> None:
    codes = [item.code for item in (*SDK_CODES, *contract.codes)]
    assert len(codes) == len(set(codes))
    assert not set(codes) & set(RESERVED_CODES)
    found = literals(contract)
    for item in contract.codes:
        assert item.code in found, f"{item.code} is never answered"
        assert re.fullmatch(r"[a-z][a-z0-9_]{0,47}", item.code)
        assert item.meaning.endswith(".")


def test_patterns_in_schemas_end_as_every_reader_of_schemas_understands() -> None:
    described = Engine(CONTRACTS).describe()
    text = repr([method.arguments for contract in described for method in (*contract.calls, *contract.queries)])
    assert "pattern" in text
    assert "\\Z" not in text
