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


def compile_contract(source: str, filename: str) -> CodeType:
    """Return the metered code of `source`. It needs the names of `metering.GUARDS` among its built-ins."""
    tree = _Instrument().visit(ast.parse(source, filename))
    return compile(ast.fix_missing_locations(tree), filename, "exec", dont_inherit=True, optimize=0)


def _call(name: str, *args: ast.expr) -> ast.Call:
    return ast.Call(func=ast.Name(id=name, ctx=ast.Load()), args=list(args), keywords=[])


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
        meter = ast.Name(id="__hansa_meter__", ctx=ast.Load())
        entry = ast.Assign(
            targets=[ast.Name(id="__hansa_meter__", ctx=ast.Store())], value=_call("__hansa_enter__")
        )
        leave = ast.AugAssign(
            target=ast.Attribute(value=meter, attr="depth", ctx=ast.Store()),
            op=ast.Sub(),
            value=ast.Constant(value=1),
        )
        guarded = ast.Try(body=body or [ast.Pass()], handlers=[], orelse=[], finalbody=[leave])
        node.body = [*docstring, entry, guarded]
        for statement in (entry, guarded):
            ast.copy_location(statement, first)
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        self.generic_visit(node)
        node.body = ast.BoolOp(op=ast.And(), values=[_call("__hansa_tick__"), node.body])
        return node

    def visit_For(self, node: ast.For) -> ast.AST:
        return self._loop(node)

    def visit_While(self, node: ast.While) -> ast.AST:
        return self._loop(node)

    def _loop(self, node: _Loop) -> _Loop:
        self.generic_visit(node)
        node.body = [ast.copy_location(ast.Expr(value=_call("__hansa_tick__")), node), *node.body]
        return node

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        self.generic_visit(node)
        node.ifs = [_call("__hansa_tick__"), *node.ifs]
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        name = _guard(node.op)
        return node if name is None else ast.copy_location(_call(name, node.left, node.right), node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        name = _guard(node.op)
        if name is None:
            self.generic_visit(node)
            return node
        # The purity rules refuse calls inside the target, so reading it a second time has no second effect.
        loaded = ast.parse(ast.unparse(node.target), mode="eval").body
        changed = _call(name, self.visit(loaded), self.visit(node.value))
        return ast.copy_location(ast.Assign(targets=[self.visit(node.target)], value=changed), node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) != 1 or not isinstance(node.ops[0], ast.In | ast.NotIn):
            return node
        found: ast.expr = _call("__hansa_contains__", node.left, node.comparators[0])
        if isinstance(node.ops[0], ast.NotIn):
            found = ast.UnaryOp(op=ast.Not(), operand=found)
        return ast.copy_location(found, node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.slice, ast.Slice) and isinstance(node.ctx, ast.Load):
            return ast.copy_location(_call("__hansa_sized__", node), node)
        return node

    def visit_List(self, node: ast.List) -> ast.AST:
        return self._display(node, node.elts, node.ctx)

    def visit_Tuple(self, node: ast.Tuple) -> ast.AST:
        return self._display(node, node.elts, node.ctx)

    def _display(self, node: ast.expr, items: list[ast.expr], context: ast.expr_context) -> ast.AST:
        self.generic_visit(node)
        if isinstance(context, ast.Load) and any(isinstance(item, ast.Starred) for item in items):
            return ast.copy_location(_call("__hansa_sized__", node), node)
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        self.generic_visit(node)
        return ast.copy_location(_call("__hansa_sized__", node), node)

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        self.generic_visit(node)
        node.value = _call("__hansa_text__", node.value)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in GUARDED_CALLS:
            node.func = ast.copy_location(ast.Name(id=f"__hansa_{node.func.id}__", ctx=ast.Load()), node.func)
        return node
