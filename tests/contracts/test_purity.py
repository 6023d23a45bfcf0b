"""What a contract may not contain is named with its line, and such a module does not load."""

import pytest

from contracts import CONTRACTS
from contracts.loader import ImpureContract, load_source
from contracts.purity import check_purity

BROKEN = [
    ("x = 1.5", "floating point"),
    ("def f(a):\n    return a / 2", "`/`"),
    ("def f(a):\n    a /= 2", "`/`"),
    ("def f(a):\n    return a ** a", "`**`"),
    ("def f(a):\n    return a << a", "`<<`"),
    ("def f(a):\n    return 'x' * a", "repetition"),
    ("def f(a):\n    return a * [1]", "repetition"),
    ("def f():\n    try:\n        pass\n    except ValueError:\n        pass", "no try"),
    ("def f():\n    with open('x') as y:\n        pass", "no with"),
    ("async def f():\n    pass", "async"),
    ("def f():\n    yield 1", "generators"),
    ("import time", "import names"),
    ("from time import time", "may not be imported"),
    ("from contracts.engine import Engine", "may not be imported"),
    ("from contracts.sdk import *", "not `*`"),
    ("from .sdk import call", "may not be imported"),
    ("rows = []", "mutable state"),
    ("class A:\n    rows = {}", "mutable state"),
    ("rows = dict()", "mutable state"),
    ("def f(a=[]):\n    pass", "mutable default"),
    ("def f():\n    global x", "global state"),
    ("def f(self):\n    self.x = 1", "assignment to an attribute"),
    ("def f(self):\n    self.x += 1", "assignment to an attribute"),
    ("def f(a):\n    return hash(a)", "`hash`"),
    ("def f(a):\n    return getattr(a, 'b')", "`getattr`"),
    ("def f(a):\n    return a.__class__", "out of bounds"),
    ("def f():\n    return __import__('time')", "out of bounds"),
    ("def f():\n    for x in {1, 2}:\n        pass", "sets"),
    ("def f(a):\n    return {x for x in a}", "sets"),
    ("def f(a):\n    return ','.join(a)", "`.join()`"),
    ("def f(a):\n    return '{}'.format(a)", "`.format()`"),
    ("def f(a):\n    return f'{a:99}'", "format specification"),
    ("def f(a):\n    return f'{a!r}'", "format specification"),
    ("def f(a):\n    assert a", "no assert"),
    ("def f(a):\n    raise ValueError(a)", "only Revert"),
    ("def f(a):\n    g = lambda x: g(x)", "lambda"),
    ("def f(a):\n    return g(*a)", "`*` or `**`"),
    ("def f(a):\n    a[g()] += 1", "augmented assignment"),
    ("for x in (1, 2):\n    pass", "only declares"),
    ("def f(a):\n    sum = a", "built-in"),
    ("def f(sum):\n    return 1", "built-in"),
    ("def f(a):\n    return a in a in a", "no chained `in`"),
    ("def f(a):\n    return sorted(a, key=lambda x, y=[]: x)", "mutable default"),
    ("def f(a):\n    return a @ a", "`@`"),
    ("def f(a):\n    return 1j", "floating point"),
    ("async def f(a):\n    async for x in a:\n        pass", "async loops"),
    ("async def f(a):\n    async with a:\n        pass", "async blocks"),
    ("async def f(a):\n    await a", "async code"),
    ("def f():\n    try:\n        pass\n    except* ValueError:\n        pass", "no try"),
    ("def f():\n    x = 1\n    def g():\n        nonlocal x", "hidden state"),
    ("def f(a):\n    yield from a", "generators"),
    ("def f(a):\n    return (b := a)", "inside an expression"),
    ("def f(a):\n    match a:\n        case 1:\n            pass", "no match"),
    ("def f(", "not Python"),
]


@pytest.mark.parametrize(("source", "rule"), BROKEN)
def test_each_rule_names_its_line(source: str, rule: str) -> None:
    found = check_purity(source)
    assert any(rule in text for text in found), found
    assert all(text.startswith("line ") for text in found)


def test_ordinary_contract_code_is_pure() -> None:
    source = """
from typing import Literal
from contracts.sdk import Contract, Map, Revert, call

LIMITS = (1, 2, 3)

class A(Contract):
    rows: Map[str, int] = Map()

    @call
    def f(self, ctx, name: str, items: tuple[int, ...] = ()) -> None:
        total = 0
        for item in sorted(items, key=lambda row: 0 - row):
            total += item * 2 % 7
        if name in {"a", "b"} or not items:
            raise Revert("nothing")
        self.rows[name] = total // 2
"""
    assert check_purity(source) == []


def test_an_impure_module_does_not_load() -> None:
    with pytest.raises(ImpureContract, match="line 2: no `/`"):
        load_source("impure", "def f(a):\n    return a / 2")


def test_the_shipped_contracts_were_loaded_metered() -> None:
    for contract in CONTRACTS:
        for method in contract.methods.values():
            assert "__hansa_enter__" in method.function.__code__.co_names, f"{contract.name}.{method.name}"
