"""Compile a contract's source with its meter built in.

The tree gets a tick in every loop body and comprehension, an entry with a depth limit in every function, and a
guard around each operator and built-in that could hide unbounded work. Names of guards have two underscores on
both sides, which the purity rules refuse in a contract's own source.
"""

import ast
from types import CodeType
from typing import TypeVar

from contracts.metering import GUARDED_CALLS

_OPERATORS: tuple[tuple[type[ast.operator], str], ...] = (
    (ast.Add, "__hansa_add__"),
    (ast.Sub, "__hansa_subtract__"),
    (ast.Mult, "__hansa_multiply__"),
    (ast.Mod, "__hansa_modulo__"),
)

_Loop = TypeVar("_Loop", ast.For, ast.While)
_Placed = TypeVar("_Placed", bound=ast.expr | ast.stmt)


def compile_contract(tree: ast.Module, filename: str) -> CodeType:
    """Return the metered code of `tree`, which is changed by it.

    The code needs the names of `metering.GUARDS` among its built-ins.
    """
    return compile(_Instrument().visit(tree), filename, "exec", dont_inherit=True, optimize=0)


def _at(place: ast.expr | ast.stmt, node: _Placed) -> _Placed:
    """Return `node`, standing where `place` stands in the source.

    ast.fix_missing_locations would do it afterwards, by a walk that takes longer than everything else here.
    """
    node.lineno, node.col_offset = place.lineno, place.col_offset
    node.end_lineno, node.end_col_offset = place.end_lineno, place.end_col_offset
    return node


def _call(place: ast.expr | ast.stmt, name: str, *args: ast.expr) -> ast.Call:
    called = _at(place, ast.Name(id=name, ctx=ast.Load()))
    return _at(place, ast.Call(func=called, args=list(args), keywords=[]))


def _guard(operator: ast.operator) -> str | None:
    for type_, name in _OPERATORS:
        if isinstance(operator, type_):
            return name
    return None


class _Instrument(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        body = node.body
        docstring: list[ast.stmt] = []
        first = body[0]
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            docstring, body = [first], body[1:]
        meter = _at(first, ast.Name(id="__hansa_meter__", ctx=ast.Load()))
        target = _at(first, ast.Name(id="__hansa_meter__", ctx=ast.Store()))
        entry = _at(first, ast.Assign(targets=[target], value=_call(first, "__hansa_enter__")))
        depth = _at(first, ast.Attribute(value=meter, attr="depth", ctx=ast.Store()))
        one = _at(first, ast.Constant(value=1))
        leave = _at(first, ast.AugAssign(target=depth, op=ast.Sub(), value=one))
        rest = body or [_at(first, ast.Pass())]
        guarded = _at(first, ast.Try(body=rest, handlers=[], orelse=[], finalbody=[leave]))
        node.body = [*docstring, entry, guarded]
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        self.generic_visit(node)
        node.body = _at(node, ast.BoolOp(op=ast.And(), values=[_call(node, "__hansa_tick__"), node.body]))
        return node

    def visit_For(self, node: ast.For) -> ast.AST:
        return self._loop(node)

    def visit_While(self, node: ast.While) -> ast.AST:
        return self._loop(node)

    def _loop(self, node: _Loop) -> _Loop:
        self.generic_visit(node)
        node.body = [_at(node, ast.Expr(value=_call(node, "__hansa_tick__"))), *node.body]
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        self.generic_visit(node)
        node.ifs = [_call(node.target, "__hansa_tick__"), *node.ifs]
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        name = _guard(node.op)
        return node if name is None else _call(node, name, node.left, node.right)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        name = _guard(node.op)
        if name is None:
            self.generic_visit(node)
            return node
        # The purity rules refuse calls inside the target, so reading it a second time has no second effect.
        loaded = ast.parse(ast.unparse(node.target), mode="eval").body
        changed = _call(node, name, self.visit(loaded), self.visit(node.value))
        return _at(node, ast.Assign(targets=[self.visit(node.target)], value=changed))

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) != 1 or not isinstance(node.ops[0], ast.In | ast.NotIn):
            return node
        found = _call(node, "__hansa_contains__", node.left, node.comparators[0])
        return _at(node, ast.UnaryOp(op=ast.Not(), operand=found)) if isinstance(node.ops[0], ast.NotIn) else found

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.slice, ast.Slice) and isinstance(node.ctx, ast.Load):
            return _call(node, "__hansa_sized__", node)
        return node

    def visit_List(self, node: ast.List) -> ast.AST:
        return self._display(node, node.elts, node.ctx)

    def visit_Tuple(self, node: ast.Tuple) -> ast.AST:
        return self._display(node, node.elts, node.ctx)

    def _display(self, node: ast.expr, items: list[ast.expr], context: ast.expr_context) -> ast.AST:
        self.generic_visit(node)
        if isinstance(context, ast.Load) and any(isinstance(item, ast.Starred) for item in items):
            return _call(node, "__hansa_sized__", node)
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        self.generic_visit(node)
        return _call(node, "__hansa_sized__", node)

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        self.generic_visit(node)
        node.value = _call(node, "__hansa_text__", node.value)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in GUARDED_CALLS:
            node.func = _at(node.func, ast.Name(id=f"__hansa_{node.func.id}__", ctx=ast.Load()))
        return node
