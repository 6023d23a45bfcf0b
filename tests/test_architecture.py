"""The house rules that an import linter cannot see: purity, who may touch what, names and sizes."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from node import errors

ROOT = Path(__file__).parent.parent

PURE = sorted(
    [
        *(ROOT / "consensus").glob("*.py"),
        *(ROOT / "contracts").glob("*.py"),
        *(ROOT / "node" / "evidence").glob("*.py"),
        *(ROOT / "node" / "executor").glob("*.py"),
        *(
            ROOT / "node" / name
            for name in (
                "ledger.py",
                "report.py",
                "state.py",
                "state_tree.py",
                "mempool.py",
                "wire.py",
            )
            if (ROOT / "node" / name).exists()
        ),
    ]
)
SOURCES = sorted(path for package in ("consensus", "contracts", "node") for path in (ROOT / package).rglob("*.py"))

IMPURE_MODULES = {
    "asyncio",
    "concurrent",
    "datetime",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "plyvel",
    "random",
    "secrets",
    "select",
    "signal",
    "socket",
    "ssl",
    "structlog",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "uuid",
    "uvloop",
    "zstandard",
}
# Each exception is one place that loads or measures contract source, never one that decides an outcome.
PURITY_EXCEPTIONS: dict[str, set[str]] = {}
FORBIDDEN_FILE_NAMES = {"utils", "helpers", "base", "common", "manager"}
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Everything in the file, found once for all rules."""
    return tuple(ast.walk(tree(path)))


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module


def impurities(module: ast.Module, allowed: set[str]) -> Iterator[str]:
    """Yield each rule of DESIGN §1 that the module breaks, with its line."""
    for node in ast.walk(module):
        line = f"line {getattr(node, 'lineno', 0)}"
        for name in imported(node):
            if name.split(".")[0] in IMPURE_MODULES - allowed:
                yield f"{line}: imports {name}"
        if isinstance(node, ast.Constant) and isinstance(node.value, float):
            yield f"{line}: a float"
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
            yield f"{line}: true division"
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            yield f"{line}: async"
        if isinstance(node, ast.Global):
            yield f"{line}: writes a global"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in {"hash", "open", "eval", "exec", "input", "print", "id"} - allowed:
                yield f"{line}: calls {node.func.id}()"
            if node.func.id == "float":
                yield f"{line}: makes a float"
        if isinstance(node, ast.For | ast.comprehension) and isinstance(node.iter, ast.Set | ast.SetComp):
            yield f"{line}: iterates over a set"
    for statement in module.body:
        # A module-level name in lower case that is bound to an empty container is there to be changed.
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            mutable = isinstance(statement.value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp)
            if mutable and any(not name.isupper() and name != "__all__" for name in names):
                yield f"line {statement.lineno}: module-level mutable state {names}"


@pytest.mark.parametrize("path", PURE, ids=relative)
def test_pure_modules_are_pure(path: Path) -> None:
    allowed = PURITY_EXCEPTIONS.get(relative(path), set())
    assert list(impurities(tree(path), allowed)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from asyncio import sleep",
        "x = 0.5",
        "def f(a, b):\n    return a / b",
        "async def f(): ...",
        "cache = {}",
        "def f(x):\n    return hash(x)",
        "def f():\n    return [x for x in {1, 2}]",
    ],
)
def test_the_purity_check_notices(source: str) -> None:
    assert list(impurities(ast.parse(source), set()))


def importers_of(module: str) -> set[str]:
    return {
        relative(path)
        for path in SOURCES
        for node in nodes(path)
        for name in imported(node)
        if name.split(".")[0] == module
    }


def test_only_the_store_touches_leveldb() -> None:
    assert importers_of("plyvel") == {"node/store/database.py"}


def test_only_keys_touches_signature_libraries() -> None:
    assert importers_of("nacl") | importers_of("cryptography") == {"node/keys.py", "node/signatures/verifying.py"}


def test_only_one_module_speaks_to_devices() -> None:
    source = (ROOT / "node" / "hardware.py").read_text()
    assert 'importlib.import_module("pkcs11")' in source
    assert importers_of("pkcs11") == set()


def test_only_the_runtime_steps_the_replica() -> None:
    users = {
        relative(path)
        for path in SOURCES
        if not relative(path).startswith("consensus/")
        for node in nodes(path)
        if isinstance(node, ast.ImportFrom) and node.module == "consensus.replica"
        for alias in node.names
        if alias.name == "Replica"
    }
    assert users == {"node/runtime/driver.py", "node/runtime/node.py"}


def test_only_the_command_line_prints() -> None:
    printers = {
        relative(path)
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert {name for name in printers if not name.startswith("node/cli/")} == set()


def test_every_error_that_is_raised_stands_in_the_catalogue() -> None:
    """One that did not, `malformed_block`, ended the node of everybody to whom a primary sent garbage."""
    kinds = {
        name
        for name, item in vars(errors).items()
        if isinstance(item, type) and issubclass(item, errors.HansaError)
    }
    raised = [
        (node.args[0].value, f"{relative(path)}:{node.lineno}")
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds
        if node.args and isinstance(node.args[0], ast.Constant)
    ]
    assert raised
    assert not [where for code, where in raised if code not in errors.CATALOGUE]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_are_rooms_with_one_purpose(path: Path) -> None:
    assert path.stem not in FORBIDDEN_FILE_NAMES
    lines = path.read_text().splitlines()
    head = "\n".join(lines[:12])
    assert len(lines) <= FILE_LINES_MAX or "lines because" in head, f"{len(lines)} lines and no reason given"
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            assert length <= FUNCTION_LINES_MAX or "lines because" in text, f"{node.name}: {length} lines"
