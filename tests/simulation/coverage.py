"""How often each numbered rule of consensus/README.md took effect in a run.

The code of consensus/ names a rule in a comment, `# [4.1]`, at the place where the rule acts: on a simple
statement, or on the head of a branch, which means the first statement in it. `install` makes the consensus modules
of this process count there: an import hook adds `__hits__[i] += 1` before the marked statement. What is shipped
stays as it is, and counting everything costs a few per cent (a trace function would cost many times the run).
"""

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import decode_source, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Final

README: Final = Path(__file__).resolve().parents[2] / "consensus" / "README.md"
_NUMBERS: Final = re.compile(r"\[((?:\d+\.\d+)(?:, \d+\.\d+)*)\]")
_RULE: Final = re.compile(r"^- \*\*(\d+\.\d+)\*\* (.*)$")

# Rules that no line of code carries out, or that no seed comes to, and what holds them instead.
NOT_COUNTED: Final = {
    "11.1": "is about every step: the checker `step is total` counts it",
    "11.4": "needs 2^63 views; tests/consensus/test_totality.py asks for the last one",
    **dict.fromkeys(
        ("16.1", "16.2", "16.3"), "needs a recovery, which no seed has; tests/consensus/test_epochs.py plays it"
    ),
}

# Where the marked line says more than the rule: it counts only while this holds, judged just before the line.
ONLY_IF: Final = {
    "2.5": "foreign",
    "3.7": "quarantine",
    "4.1": "(self.pledge.asked or 0) > start_view",
    "4.5": "input_.height != self._work.height",
    "5.4": "self.pledge.prepared is not None and self.pledge.prepared.digest != message.vote.digest",
    "5.6": "message.view < (self.pledge.asked or 0)",
    "6.4": "failed_views > 0",
    "6.6": "target > max(self.view, self.pledge.asked or 0)",
    "7.6": "peer in self._working_on",
    "8.4": "VoteKind.COMMIT not in self.pledge.votes and not self.book.certificates(VoteKind.PREPARE)",
    "9.1": "self.lost",
    "9.6": "not self._verify(key, probe, self._context.sign(probe))",
    "9.7": "self._context.amnesia.lost",
    "11.3": "(view, digest) in self._running",
}

_places: list[str] = []  # the rule of each counter
_hits: list[int] = []


def rules() -> dict[str, str]:
    """Every numbered rule of the README, in its order, with the beginning of its text."""
    found: dict[str, str] = {}
    for line in README.read_text(encoding="utf-8").splitlines():
        match = _RULE.match(line)
        if match:
            found[match[1]] = match[2]
    return found


def marks(source: str) -> dict[int, tuple[str, ...]]:
    """Line -> the rules that a comment on it names."""
    found: dict[int, tuple[str, ...]] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            numbers = [number for group in _NUMBERS.findall(token.string) for number in group.split(", ")]
            if numbers:
                found[token.start[0]] = tuple(numbers)
    return found


def install() -> None:
    """Count in every module of consensus that is imported from now on; ValueError where one is imported already."""
    if any(name.startswith("consensus.") for name in sys.modules):
        raise ValueError("consensus is imported already: it does not count")
    sys.meta_path.insert(0, _Finder())


def take() -> Counter[str]:
    """How often each rule took effect since the last call; empty where `install` was not called."""
    found: Counter[str] = Counter()
    for index, hits in enumerate(_hits):
        if hits:
            found[_places[index]] += hits
            _hits[index] = 0
    return found


def never_hit(hits: Counter[str]) -> list[str]:
    """The rules that took no effect, except those that cannot be counted."""
    return [number for number in rules() if not hits[number] and number not in NOT_COUNTED]


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """How to load a module of consensus; None for all others."""
        if not fullname.startswith("consensus."):
            return None
        found = PathFinder.find_spec(fullname, path, target)
        if found is None or found.origin is None:
            return found
        return spec_from_file_location(fullname, found.origin, loader=_Loader(fullname, found.origin))


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """The code of the source as it is now, with counters; nothing is read from or written to a cache."""
        source = decode_source(self.get_data(self.path))
        tree = ast.parse(source, self.path)
        for line, numbers in sorted(marks(source).items(), reverse=True):
            _count_at(tree, line, numbers)
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module with the counters at hand."""
        module.__dict__["__hits__"] = _hits
        super().exec_module(module)


def _count_at(tree: ast.Module, line: int, numbers: tuple[str, ...]) -> None:
    """Put counters before the statement that the mark on `line` belongs to."""
    body, place = place_of(tree, line)
    for number in numbers:
        condition = f"if {ONLY_IF[number]}: " if number in ONLY_IF else ""
        counter = ast.parse(f"{condition}__hits__[{len(_hits)}] += 1").body[0]
        for node in ast.walk(counter):
            ast.copy_location(node, body[place])
        body.insert(place, counter)
        _places.append(number)
        _hits.append(0)


def place_of(tree: ast.Module, line: int) -> tuple[list[ast.stmt], int]:
    """(body, index) of the simple statement on `line`, or else of the next statement after it."""
    best: tuple[int, int, list[ast.stmt], int] | None = None
    for node in ast.walk(tree):
        for _, value in ast.iter_fields(node):
            if not (isinstance(value, list) and value and isinstance(value[0], ast.stmt)):
                continue
            for index, statement in enumerate(value):
                simple = not hasattr(statement, "body") and not isinstance(statement, ast.Match)
                if simple and statement.lineno <= line <= (statement.end_lineno or statement.lineno):
                    return value, index
                docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
                after = statement.lineno > line and not docstring
                if after and (best is None or (statement.lineno, statement.col_offset) < best[:2]):
                    best = (statement.lineno, statement.col_offset, value, index)
    if best is None:
        raise ValueError(f"no statement at or after line {line}")
    return best[2], best[3]
