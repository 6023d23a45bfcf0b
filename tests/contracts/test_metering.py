"""A contract cannot run for ever, nest or grow without bound; every member stops at the same place."""

import importlib.util
import marshal
import py_compile
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from contracts.engine import CallError, Engine, Environment, Outcome, Revert
from contracts.loader import ContractLoader, load_source
from contracts.metering import DEPTH_MAX
from contracts.testkit import MemoryState, World

SOURCE = """
from contracts.sdk import Amount, Context, Contract, Map, Revert, call, query

def nest(depth: int) -> int:
    return depth if depth == 0 else nest(depth - 1)

class Work(Contract):
    rows: Map[str, str] = Map()

    @call
    def spin(self, ctx: Context) -> None:
        while True:
            pass

    @call
    def spin_for(self, ctx: Context) -> None:
        for number in range(1_000_000_000):
            pass

    @call
    def comprehend(self, ctx: Context) -> None:
        list([number for number in range(1_000_000_000)])

    @call
    def add_up(self, ctx: Context) -> None:
        sum(range(1_000_000_000))

    @call
    def sort(self, ctx: Context) -> None:
        sorted(enumerate(range(1_000_000_000)))

    @call
    def write(self, ctx: Context) -> None:
        while True:
            self.rows["a"] = "b"

    @call
    def recurse(self, ctx: Context) -> None:
        self.recurse(ctx)

    @call
    def nested(self, ctx: Context, depth: int) -> None:
        nest(depth)

    @call
    def square(self, ctx: Context) -> None:
        number = 3
        for _ in range(20):
            number *= number

    @call
    def double(self, ctx: Context) -> None:
        number = 1
        for _ in range(1_000):
            number = number + number

    @call
    def double_down(self, ctx: Context) -> None:
        number = 1
        for _ in range(1_000):
            number -= 0 - number

    @call
    def lengthen(self, ctx: Context) -> None:
        text = "x"
        for _ in range(100):
            text = f"{text}{text}"

    @call
    def concatenate(self, ctx: Context) -> None:
        row = (1,)
        for _ in range(100):
            row += row

    @call
    def spread(self, ctx: Context) -> None:
        row = (1,)
        for _ in range(100):
            row = (*row, *row)

    @call
    def repeat(self, ctx: Context, text: str) -> None:
        self.rows["a"] = text * 1_000_000

    @call
    def pad(self, ctx: Context, text: str) -> None:
        self.rows["a"] = text % 1

    @call
    def count(self, ctx: Context, times: int) -> None:
        for _ in range(times):
            pass

    @call
    def write_and_refuse(self, ctx: Context) -> None:
        self.rows["a"] = "b"
        raise Revert("no")

    @query
    def read_and_refuse(self) -> int:
        self.rows.get("a")
        raise Revert("no")

    @query
    def wait(self) -> int:
        while True:
            pass
"""


@pytest.fixture(scope="module")
def work() -> ModuleType:
    return load_source("metering_work", SOURCE)


def encode(value: object) -> bytes:
    return repr(value).encode()


def run(work: ModuleType, method: str, args: dict[str, Any] | None = None, operations_max: int = 20_000) -> Outcome:
    env = Environment("test", 1, 1, "bank-a", b"", encode)
    return Engine([work.Work]).execute(MemoryState(), env, "work", method, args or {}, operations_max)


@pytest.mark.parametrize(
    "method",
    [
        "spin",
        "spin_for",
        "comprehend",
        "add_up",
        "sort",
        "write",
        "recurse",
        "square",
        "double",
        "double_down",
        "lengthen",
        "concatenate",
        "spread",
    ],
)
def test_unbounded_work_ends_in_limit_exceeded(work: ModuleType, method: str) -> None:
    first = run(work, method)
    assert first.code == "limit_exceeded", first.detail
    assert first == run(work, method)


@pytest.mark.parametrize(("method", "args"), [("repeat", {"text": "x"}), ("pad", {"text": "%99999999d"})])
def test_operators_that_are_safe_for_integers_only_are_a_fault_for_text(
    work: ModuleType, method: str, args: dict[str, Any]
) -> None:
    assert run(work, method, args).code == "contract_fault"


def test_depth_is_counted_by_the_contract_and_not_by_the_interpreter(work: ModuleType) -> None:
    def deeper(levels: int, then: Callable[[], Outcome]) -> Outcome:
        return then() if levels == 0 else deeper(levels - 1, then)

    fits = {"depth": DEPTH_MAX - 2}
    assert run(work, "nested", fits).code == "ok"
    assert run(work, "nested", {"depth": DEPTH_MAX - 1}).code == "limit_exceeded"
    room = sys.getrecursionlimit() // 2
    assert deeper(room, lambda: run(work, "nested", fits)) == run(work, "nested", fits)


def test_operations_are_counted_exactly_and_decide_at_the_bound(work: ModuleType) -> None:
    counted = run(work, "count", {"times": 100}).operations
    assert run(work, "count", {"times": 101}).operations == counted + 1
    assert run(work, "count", {"times": 100}, operations_max=counted).code == "ok"
    assert run(work, "count", {"times": 100}, operations_max=counted - 1).code == "limit_exceeded"


def test_the_bound_is_judged_before_a_refusal_that_comes_after_it(work: ModuleType) -> None:
    """Prices of state are only added up; beyond the bound the call ends, whatever it said next."""
    refused = run(work, "write_and_refuse")
    assert refused.code == "no"
    assert run(work, "write_and_refuse", operations_max=refused.operations).code == "no"
    exceeded = run(work, "write_and_refuse", operations_max=refused.operations - 1)
    assert (exceeded.code, exceeded.operations) == ("limit_exceeded", refused.operations - 1)


def test_the_bound_of_a_query_is_judged_before_its_refusal(work: ModuleType) -> None:
    def ask(operations_max: int) -> str:
        env = Environment("test", 1, 1, "", b"", encode)
        engine = Engine([work.Work])
        try:
            engine.query(MemoryState(), World([work.Work]), env, "work", "read_and_refuse", {}, operations_max)
        except (CallError, Revert) as error:
            return error.code
        return "ok"

    codes = [ask(operations_max) for operations_max in range(1, 40)]
    assert codes == sorted(codes)
    assert {codes[0], codes[-1]} == {"limit_exceeded", "no"}


def test_each_thread_has_its_own_meter(work: ModuleType) -> None:
    expected = run(work, "count", {"times": 3_000})
    found: list[Outcome] = []
    threads = [
        threading.Thread(target=lambda: found.append(run(work, "count", {"times": 3_000}))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_planted_bytecode_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "planted.py"
    file.write_text("answer = 1\n")
    loader = ContractLoader("contracts.planted", str(file))
    cache = Path(importlib.util.cache_from_source(str(file)))
    cache.parent.mkdir()
    py_compile.compile(str(file), cfile=str(cache))
    planted = cache.read_bytes()
    cache.write_bytes(planted[:16] + marshal.dumps(compile("answer = 2", str(file), "exec")))
    module = ModuleType("contracts.planted")
    loader.exec_module(module)
    assert module.answer == 1
    assert loader.get_code("contracts.planted") is not None
