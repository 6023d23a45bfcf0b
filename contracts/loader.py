"""How contract modules come into the process: judged, metered and without cached bytecode.

Every module of this package that is not machinery is a service module. It is read from its source each time (a
stale or planted .pyc must not decide what a member executes), refused when it is not pure, compiled with its meter
and run with the few built-ins a contract may use.
"""

import ast
import builtins
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

from contracts.instrument import compile_contract
from contracts.metering import GUARDS
from contracts.purity import ALLOWED_BUILTINS, MACHINERY, importable, imported_contracts, judge

_DIGEST = "__hansa_digest__"
_IMPORTS = "__hansa_imports__"


class ImpureContract(ImportError):
    """A contract's source breaks the rules of purity; the text names lines and rules."""


class ContractLoader(SourceFileLoader):
    """Loads one service module, metered, from a file or from `source`."""

    def __init__(self, fullname: str, path: str, source: bytes | None = None) -> None:
        super().__init__(fullname, path)
        self._source = source
        self._code: CodeType | None = None

    def get_data(self, path: str) -> bytes:
        """Return the module's source."""
        return super().get_data(path) if self._source is None else self._source

    def get_code(self, fullname: str) -> CodeType:
        """Return the metered code of the module's source as it is now; raise ImpureContract otherwise."""
        code, self._code = self._code, None
        return code or compile_contract(self._judged(self.get_data(self.path)), self.path)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module with a contract's built-ins, and note in it what its source was."""
        source = self.get_data(self.path)  # once: the digest is of exactly what runs
        tree = self._judged(source)  # once too: every process of a node begins with this
        module.__dict__["__builtins__"] = _contract_builtins()
        module.__dict__[_IMPORTS] = imported_contracts(tree)
        module.__dict__[_DIGEST] = hashlib.sha256(source).digest()
        self._code = compile_contract(tree, self.path)
        super().exec_module(module)

    def _judged(self, source: bytes) -> ast.Module:
        tree, broken = judge(importlib.util.decode_source(source))
        if broken:
            raise ImpureContract(f"{self.path} is no pure contract:\n" + "\n".join(broken))
        return tree


class ContractFinder(MetaPathFinder):
    """Finds the service modules of this package before the ordinary import does."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to load `fullname`, or None when it is no service module."""
        package, _, name = fullname.rpartition(".")
        if package != "contracts" or name in MACHINERY:
            return None
        found = PathFinder.find_spec(fullname, path, target)
        if found is None or found.origin is None:
            return found
        return importlib.util.spec_from_file_location(
            fullname, found.origin, loader=ContractLoader(fullname, found.origin)
        )


def install() -> None:
    """Make service modules load through ContractLoader from now on; once."""
    if not any(isinstance(finder, ContractFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, ContractFinder())


def load_source(name: str, source: str) -> ModuleType:
    """Return the module `name` made of `source` exactly as a file of this package would be loaded."""
    module = ModuleType(name)
    sys.modules[name] = module  # annotations are resolved through the table of modules
    ContractLoader(name, f"<{name}>", source.encode()).exec_module(module)
    return module


def source_digests(module_name: str) -> dict[str, bytes]:
    """Return the SHA-256 of the source of a module, and of each contract module that it imports, by module name."""
    found: dict[str, bytes] = {}
    waiting = [module_name]
    while waiting:
        name = waiting.pop()
        if name not in found:
            module = importlib.import_module(name)
            found[name] = _digest(module)
            waiting.extend(getattr(module, _IMPORTS, ()))
    return found


def _digest(module: ModuleType) -> bytes:
    recorded: Any = getattr(module, _DIGEST, None)
    if isinstance(recorded, bytes):
        return recorded
    spec = module.__spec__
    if spec is None or spec.origin is None:
        raise ImportError(f"{module.__name__} has no source")
    return hashlib.sha256(SourceFileLoader(module.__name__, spec.origin).get_data(spec.origin)).digest()


def _contract_builtins() -> dict[str, Any]:
    allowed = {name: getattr(builtins, name) for name in ALLOWED_BUILTINS}
    return {
        **allowed,
        **GUARDS,
        "__build_class__": builtins.__build_class__,
        "__import__": _import,
    }


def _import(
    name: str,
    scope: Mapping[str, object] | None = None,
    local: Mapping[str, object] | None = None,
    names: Sequence[str] = (),
    level: int = 0,
) -> ModuleType:
    if level or not importable(name):
        raise ImpureContract(f"a contract may not import {name}")
    return __import__(name, scope, local, names, level)
