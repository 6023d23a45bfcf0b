"""What a contract's source may contain: the rules that keep it the same function on every machine.

Everything here is judged on the syntax tree, before the module runs; a module that breaks a rule is not loaded.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from contracts.metering import GUARDED_CALLS

ALLOWED_BUILTINS: Final = (
    "abs",
    "all",
    "any",
    "bool",
    "bytes",
    "dict",
    "divmod",
    "enumerate",
    "int",
    "isinstance",
    "len",
    "list",
    "max",
    "min",
    "range",
    "reversed",
    "sorted",
    "staticmethod",
    "str",
    "sum",
    "tuple",
    "zip",
    "True",
    "False",
    "None",
)

ALLOWED_IMPORTS: Final = ("contracts.sdk", "typing")

# Methods of built-in types whose result may be far larger than what they are called with, or has a second form.
_REFUSED_METHODS: Final = (
    "center",
    "expandtabs",
    "extend",
    "format",
    "format_map",
    "from_bytes",
    "fromkeys",
    "join",
    "ljust",
    "replace",
    "rjust",
    "to_bytes",
    "translate",
    "zfill",
)

# Modules of this package that are the machinery and no service.
MACHINERY: Final = (
    "describing",
    "engine",
    "instrument",
    "loader",
    "metering",
    "purity",
    "sdk",
    "state_keys",
    "storage",
    "testkit",
)

_REFUSED: Final[Mapping[type[ast.AST], str]] = {
    ast.AsyncFunctionDef: "async functions are not deterministic",
    ast.AsyncFor: "async loops are not deterministic",
    ast.AsyncWith: "async blocks are not deterministic",
    ast.Await: "async code is not deterministic",
    ast.Try: "no try: a failed call reverts as a whole",
    ast.TryStar: "no try: a failed call reverts as a whole",
    ast.With: "no with blocks",
    ast.Global: "no global state",
    ast.Nonlocal: "no hidden state",
    ast.Yield: "no generators; return a tuple",
    ast.YieldFrom: "no generators; return a tuple",
    ast.Assert: "no assert: use require(condition, code)",
    ast.NamedExpr: "no assignment inside an expression",
    ast.Match: "no match statement",
    ast.SetComp: "no sets: their order is not the same everywhere",
}

_OPERATORS: Final[tuple[tuple[type[ast.operator], str], ...]] = (
    (ast.Div, "no `/`: it makes floats; use //"),
    (ast.Pow, "no `**`: write the power out as a constant"),
    (ast.LShift, "no `<<`: multiply"),
    (ast.MatMult, "no `@`"),
)


def check_purity(source: str) -> list[str]:
    """Return what in `source` breaks the rules, each text with its line; an empty list is a pure module."""
    return judge(source)[1]


def judge(source: str) -> tuple[ast.Module, list[str]]:
    """Return the tree of `source`, and what check_purity says of it; the tree of what is not Python is empty."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        return ast.Module([], []), [f"line {getattr(error, 'lineno', None) or 1}: not Python: {error}"]
    nodes = _nodes(tree)
    found = [*_module_state(tree, nodes), *_sets_and_lambdas(nodes)]
    for node in nodes:
        kind = type(node)
        if kind in _REFUSED:
            found.append((getattr(node, "lineno", 1), _REFUSED[kind]))
        elif kind in _JUDGES:
            found.extend((getattr(node, "lineno", 1), text) for text in _JUDGES[kind](node))
    return tree, [f"line {line}: {text}" for line, text in sorted(found)]


def _nodes(tree: ast.AST) -> list[ast.AST]:
    """Return what ast.walk yields, in a third of its time: every process of a node begins with this."""
    found = [tree]
    for node in found:  # which grows meanwhile
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, list):
                found.extend(item for item in value if isinstance(item, ast.AST))
            elif isinstance(value, ast.AST):
                found.append(value)
    return found


def _constant(node: ast.Constant) -> Iterator[str]:
    if isinstance(node.value, float | complex):
        yield "no floating point: use integers in minor units"


def _formatted(node: ast.FormattedValue) -> Iterator[str]:
    if node.format_spec is not None or node.conversion != -1:
        yield "no format specification in an f-string"


def _raise(node: ast.Raise) -> Iterator[str]:
    if not (
        isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name) and node.exc.func.id == "Revert"
    ):
        yield "raise only Revert(code)"


def _compare(node: ast.Compare) -> Iterator[str]:
    if len(node.ops) > 1 and any(isinstance(operator, ast.In | ast.NotIn) for operator in node.ops):
        yield "no chained `in`"


def _argument(node: ast.arg) -> Iterator[str]:
    if node.arg in GUARDED_CALLS:
        yield f"`{node.arg}` is the name of a built-in"


def _imports(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield "import names: `from contracts.sdk import …`"
        return
    module = node.module or ""
    if node.level or not importable(module):
        yield f"`{module or '.'}` may not be imported; allowed are {', '.join(ALLOWED_IMPORTS)} and other contracts"
    if any(name.name == "*" for name in node.names):
        yield "import names, not `*`"


def importable(module: str) -> bool:
    """Whether a contract may import from `module`: the SDK, typing, or another contract."""
    package, _, name = module.rpartition(".")
    return module in ALLOWED_IMPORTS or (package == "contracts" and name not in MACHINERY)


def imported_contracts(tree: ast.Module) -> tuple[str, ...]:
    """Return the names of the contract modules that the module imports: they decide its outcomes too."""
    found = [node.module for node in _nodes(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return tuple(sorted(name for name in found if importable(name) and name not in ALLOWED_IMPORTS))


def _operator(node: ast.BinOp | ast.AugAssign) -> Iterator[str]:
    for type_, text in _OPERATORS:
        if isinstance(node.op, type_):
            yield text
    if isinstance(node.op, ast.Mult) and isinstance(node, ast.BinOp):
        for side in (node.left, node.right):
            if isinstance(side, ast.List | ast.Tuple | ast.JoinedStr) or (
                isinstance(side, ast.Constant) and isinstance(side.value, str | bytes)
            ):
                yield "no repetition of a sequence"
    if isinstance(node, ast.AugAssign) and any(isinstance(part, ast.Call) for part in ast.walk(node.target)):
        yield "no call inside the target of an augmented assignment"


def _name(node: ast.Name) -> Iterator[str]:
    if node.id.startswith("__"):
        yield f"`{node.id}` is out of bounds"
    elif isinstance(node.ctx, ast.Store) and node.id in GUARDED_CALLS:
        yield f"`{node.id}` is the name of a built-in"
    elif isinstance(node.ctx, ast.Load) and node.id in _REFUSED_BUILTINS:
        yield f"`{node.id}` is not available to a contract"


def _attribute(node: ast.Attribute) -> Iterator[str]:
    if node.attr.startswith("__"):
        yield f"`.{node.attr}` is out of bounds"
    if isinstance(node.ctx, ast.Store):
        yield "no assignment to an attribute: state lives in Map and Item, values are immutable"


def _call(node: ast.Call) -> Iterator[str]:
    if isinstance(node.func, ast.Attribute) and node.func.attr in _REFUSED_METHODS:
        yield f"`.{node.func.attr}()` hides unbounded work or machine-dependent text"
    if any(isinstance(argument, ast.Starred) for argument in node.args) or any(
        keyword.arg is None for keyword in node.keywords
    ):
        yield "no `*` or `**` in a call"


def _function(node: ast.FunctionDef | ast.Lambda) -> Iterator[str]:
    defaults = [*node.args.defaults, *(item for item in node.args.kw_defaults if item is not None)]
    if any(_mutable(item) for item in defaults):
        yield "no mutable default: it would live from call to call"
    if isinstance(node, ast.FunctionDef) and node.name.startswith("__"):
        yield f"`{node.name}` is out of bounds"


def _module_state(tree: ast.Module, nodes: list[ast.AST]) -> Iterator[tuple[int, str]]:
    """Mutable values bound by the module or by a class body."""
    bodies: list[list[ast.stmt]] = [
        tree.body,
        *(node.body for node in nodes if isinstance(node, ast.ClassDef)),
    ]
    for body in bodies:
        for statement in body:
            if isinstance(statement, ast.Assign | ast.AnnAssign) and _mutable(statement.value):
                yield statement.lineno, "no mutable state outside a call: use a tuple, Map or Item"
            if isinstance(statement, ast.For | ast.While | ast.If | ast.Expr | ast.AugAssign | ast.Delete) and not (
                isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            ):
                yield statement.lineno, "a module only declares"


def _mutable(value: ast.expr | None) -> bool:
    if isinstance(
        value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp | ast.GeneratorExp
    ):
        return True
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in ("list", "dict")


def _sets_and_lambdas(nodes: list[ast.AST]) -> Iterator[tuple[int, str]]:
    """Sets only as the right side of `in`; lambdas only as `key=`, where they cannot call themselves."""
    allowed: list[ast.AST] = []
    for node in nodes:
        if isinstance(node, ast.Compare):
            allowed.extend(item for item in node.comparators if isinstance(item, ast.Set))
        elif isinstance(node, ast.Call):
            allowed.extend(keyword.value for keyword in node.keywords if keyword.arg == "key")
    for node in nodes:
        if isinstance(node, ast.Set) and not any(node is item for item in allowed):
            yield node.lineno, "no sets: their order is not the same everywhere"
        if isinstance(node, ast.Lambda) and not any(node is item for item in allowed):
            yield node.lineno, "a lambda only as `key=`; write a method"


# By the exact type of a node: a parsed tree has no others.
_JUDGES: Final[Mapping[type[ast.AST], Callable[[Any], Iterator[str]]]] = {
    ast.Import: _imports,
    ast.ImportFrom: _imports,
    ast.Constant: _constant,
    ast.BinOp: _operator,
    ast.AugAssign: _operator,
    ast.Name: _name,
    ast.Attribute: _attribute,
    ast.Call: _call,
    ast.FormattedValue: _formatted,
    ast.Raise: _raise,
    ast.Compare: _compare,
    ast.FunctionDef: _function,
    ast.Lambda: _function,
    ast.arg: _argument,
}

_REFUSED_BUILTINS: Final = (
    "aiter",
    "anext",
    "ascii",
    "bin",
    "breakpoint",
    "bytearray",
    "callable",
    "chr",
    "classmethod",
    "compile",
    "complex",
    "delattr",
    "dir",
    "eval",
    "exec",
    "exit",
    "filter",
    "float",
    "format",
    "frozenset",
    "getattr",
    "globals",
    "hasattr",
    "hash",
    "help",
    "hex",
    "id",
    "input",
    "issubclass",
    "iter",
    "locals",
    "map",
    "memoryview",
    "next",
    "object",
    "oct",
    "open",
    "ord",
    "pow",
    "print",
    "property",
    "quit",
    "repr",
    "round",
    "set",
    "setattr",
    "slice",
    "super",
    "type",
    "vars",
)
