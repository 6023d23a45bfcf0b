"""Run contracts: one call in, one outcome out, nothing left behind by a call that failed.

The engine is immutable after its construction and may be used by several threads, each with its own state.

More than 500 lines because one call's way, with all that it may reach and leaves, is read from top to bottom.
"""

import functools
import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar, cast
from weakref import proxy

import msgspec

from contracts.describing import ContractDescription, MethodDescription, describe_contract
from contracts.loader import source_digests
from contracts.metering import CALL_COST, CURRENT, UNLIMITED, LimitExceeded, Meter
from contracts.sdk import (
    GOVERNING,
    SDK_CODES,
    SEMANTICS_VERSION,
    TIME_MS_MAX,
    CallError,
    Context,
    Contract,
    Emitted,
    Emitter,
    Environment,
    Event,
    EventLog,
    EventRecord,
    Method,
    Performed,
    QueryContext,
)
from contracts.storage import Access, HostFailure, Revert, State

__all__ = [
    "Active",
    "CallError",
    "ContractDescription",
    "Emitted",
    "Engine",
    "Environment",
    "EventLog",
    "EventRecord",
    "MethodDescription",
    "Outcome",
    "Revert",
    "Scheduled",
    "Session",
    "State",
]

T = TypeVar("T")

CALL_DEPTH_MAX: Final = 8
PERFORM_RESERVE: Final = 2_000
"""Operations that are left to a contract after calls that it performed, to write down what came of them."""
OTHERS_MAX: Final = 16
"""So many engines with other versions an engine keeps: a replay or a query at an old height needs few."""
RESERVED_CODES: Final = (
    "ok",
    "contract_fault",
    "limit_exceeded",
    "unknown_contract",
    "unknown_method",
    "invalid_arguments",
    "reverted",
    "quarantined",
)

# The modules whose behaviour decides outcomes, beside the contracts' own.
SEMANTIC_MODULES: Final = ("engine", "instrument", "loader", "metering", "purity", "sdk", "state_keys", "storage")

_CODE: Final = re.compile(r"[a-z][a-z0-9_]{0,47}\Z")
_emitter = functools.cache(Emitter)
"""Prepared once a process: a node makes an engine for every list of active versions that it has to do with."""


class Scheduled(msgspec.Struct, frozen=True):
    """A call to run in the first block whose time is `at_ms` or later, with the sender "@contract"."""

    at_ms: int
    contract: str
    method: str
    args: dict[str, Any]


class Outcome(msgspec.Struct, frozen=True):
    """What came of a call. Events and scheduled calls are empty unless `code` is "ok".

    `detail` helps the person at this node; it may differ in wording between releases and is part of no receipt.
    """

    code: str
    emitted: tuple[Emitted, ...] = ()
    operations: int = 0
    scheduled: tuple[Scheduled, ...] = ()
    detail: str = ""

    @property
    def events(self) -> tuple[EventRecord, ...]:
        """The events as plain data."""
        return tuple([event.record() for event in self.emitted])


class Active(NamedTuple):
    """A contract as the ledger has it: not `active`, it was deactivated, and its state can only be read."""

    contract: str
    version: int
    active: bool


class Engine:
    """The active contracts and the one way to run them; and what else is shipped, to make another engine of."""

    def __init__(
        self,
        contracts: Sequence[type[Contract]],
        further: Sequence[type[Contract]] = (),
        *,
        dormant: Sequence[type[Contract]] = (),
    ) -> None:
        """`contracts` are active, of `dormant` only queries are answered, `further` and all of these are shipped.

        Raise TypeError when two active contracts share a name, or a version is shipped twice.
        """
        self.contracts = tuple(contracts)
        self.dormant = tuple(dormant)
        self._contracts = MappingProxyType({contract.name: contract for contract in self.contracts})
        if len(self._contracts) != len(self.contracts):
            raise TypeError("two contracts of one name")
        every = tuple(dict.fromkeys((*self.contracts, *self.dormant, *further)))
        self.shipped = MappingProxyType({(contract.name, contract.version): contract for contract in every})
        if len(self.shipped) != len(every):
            raise TypeError("a contract's version is shipped twice")
        self._methods = {
            (contract.name, method.name): method
            for contract in self.contracts
            for method in contract.methods.values()
        }
        self._dormant_queries = {
            (contract.name, method.name): method
            for contract in self.dormant
            for method in contract.methods.values()
            if method.kind == "query"
        }
        self._by_function = {
            method.function: method
            for contract in every
            for method in contract.methods.values()
            if method.kind == "call"
        }
        for contract in self.contracts:
            for value in list(vars(sys.modules[contract.__module__]).values()):
                if isinstance(value, type) and issubclass(value, Event) and value is not Event:
                    self.emitter(contract, value)
        digests: dict[str, bytes] = {}
        for module in (
            *(f"contracts.{name}" for name in SEMANTIC_MODULES),
            *(c.__module__ for c in self.contracts),
        ):
            digests.update(source_digests(module))
        self.module_digests: Mapping[str, bytes] = MappingProxyType(digests)
        self._others: dict[tuple[Active, ...], Engine] = {}

    def unmet_uses(self) -> list[str]:
        """Return what active contracts use that is no active call ("claims uses settlement.transfer")."""
        return [
            f"{contract.name} uses {function.__qualname__}"
            for contract in self.contracts
            for function in contract.uses
            if (method := self._by_function.get(function)) is None
            or (found := self._methods.get((method.contract.name, method.name))) is None
            or found.kind != "call"
        ]

    def with_active(self, rows: Sequence[Active]) -> "Engine":
        """Return the engine of what is shipped that runs exactly `rows`, as far as they are shipped; made once."""
        key = tuple(rows)
        found = self._others.get(key)
        if found is None:
            if len(self._others) >= OTHERS_MAX:
                self._others.clear()
            here = [(row.active, self.shipped.get((row.contract, row.version))) for row in rows]
            found = type(self)(
                [contract for active, contract in here if active and contract is not None],
                tuple(self.shipped.values()),
                dormant=[contract for active, contract in here if not active and contract is not None],
            )
            self._others[key] = found
        return found

    def source_digest(self, contract: str, version: int) -> bytes | None:
        """Return the digest of all contract sources that this version is made of; None: it is not shipped."""
        found = self.shipped.get((contract, version))
        if found is None:
            return None
        digests = source_digests(found.__module__)
        return manifest_hash([f"{name} {digest.hex()}" for name, digest in sorted(digests.items())])

    def emitter(self, contract: type[Contract], event: type[Event]) -> Emitter:
        """Return how `event` becomes a record of `contract`."""
        return _emitter(contract.name, event)

    def used_method(self, caller: type[Contract], function: Callable[..., Any]) -> tuple[Method, Method]:
        """Return the method that `caller` names by `function`, and that of the version that is active.

        Raise TypeError when its `uses` lacks it, CallError when the other contract is not active.
        """
        if function not in caller.uses:
            raise TypeError(f"{caller.name} does not list {function.__qualname__} in `uses`")
        named = self._by_function[function]
        return named, self.find(named.contract.name, named.name, "call")

    def validate(self, contract: str, method: str, args: dict[str, Any]) -> None:
        """Return when the call can be tried; raise CallError otherwise. Judges no state."""
        self.find(contract, method, "call").convert(args)

    def execute(
        self, state: State, env: Environment, contract: str, method: str, args: dict[str, Any], operations_max: int
    ) -> Outcome:
        """Return the outcome of a single call, as `Session.execute` does for one call after the other."""
        return Session(self, state).execute(env, contract, method, args, operations_max)

    def query(
        self,
        state: State,
        events: EventLog,
        env: Environment,
        contract: str,
        name: str,
        args: dict[str, Any],
        operations_max: int,
    ) -> Any:
        """Return the answer as plain values (a Value or a Struct is a dict of its fields, a tuple a list).

        Raise CallError when it cannot be asked, costs more than `operations_max` (limit_exceeded) or the contract
        broke (contract_fault); Revert when the contract says no. Writes nothing.
        """
        method = self._dormant_queries.get((contract, name)) or self.find(contract, name, "query")
        values = method.convert(args)
        meter = Meter(operations_max)
        with _metered(meter):
            holder = method.contract(Access(state, meter, writable=False))
            try:
                if method.takes_context:
                    context = QueryContext(method.contract, events, meter, env.network, env.height, env.time_ms)
                    answer = _plain(method.function(holder, context, *values))
                else:
                    answer = _plain(method.function(holder, *values))
                meter.charge(0)
                return answer
            except MemoryError:
                raise
            except Exception as error:
                if isinstance(error, LimitExceeded) or meter.operations > operations_max:
                    raise CallError("limit_exceeded", f"the query used up its limits: {error}") from error
                if isinstance(error, Revert):
                    raise
                raise CallError("contract_fault", f"{type(error).__name__}: {error}") from error

    def genesis(self, state: State, env: Environment, arguments: Mapping[str, dict[str, Any]]) -> None:
        """Write each contract's first state, in the order of the contracts.

        Raise CallError for arguments that do not fit (or name no contract) and Revert when a contract refuses them.
        """
        for name in arguments:
            if name not in self._contracts:
                raise CallError("unknown_contract", f"the network definition has arguments for {name!r}")
        if unmet := self.unmet_uses():
            raise CallError("unknown_contract", f"{unmet[0]}, which is no active call")
        for contract in self.contracts:
            makers = [method for method in contract.methods.values() if method.kind == "genesis"]
            if not makers and arguments.get(contract.name):
                raise CallError("invalid_arguments", f"{contract.name} takes no arguments at genesis")
            for method in makers:
                values = method.convert(dict(arguments.get(contract.name, {})))
                session = Session(self, state)
                session.env = env
                with _metered(session.meter):
                    method.function(session.holder(contract), Context(session, contract, env.sender), *values)
                if session.events or session.scheduled:
                    raise TypeError(f"{contract.name}: genesis neither emits nor schedules")

    def check_invariants(self, state: State, env: Environment) -> list[str]:
        """Return the names ("settlement.conserved") of the invariants that do not hold; reads the whole state."""
        broken: list[str] = []
        for method in self._methods.values():
            if method.kind != "invariant":
                continue
            meter = Meter(UNLIMITED)
            with _metered(meter):
                access = Access(state, meter, writable=False, unbounded=True)
                if not method.function(method.contract(access)):
                    broken.append(f"{method.contract.name}.{method.name}")
        return broken

    def describe(self) -> list[ContractDescription]:
        """Return every contract with its methods and the JSON Schemas of their arguments; a dormant one's
        queries.
        """
        return [
            describe_contract(contract, callable_too=callable_too, uses=self._used_by(contract))
            for known, callable_too in ((self.contracts, True), (self.dormant, False))
            for contract in known
        ]

    def _used_by(self, contract: type[Contract]) -> tuple[str, ...]:
        """The names of the contracts that it calls."""
        methods = [self._by_function.get(function) for function in contract.uses]
        return tuple(dict.fromkeys([method.contract.name for method in methods if method is not None]))

    def meaning_of(self, contract: str, code: str) -> str:
        """Return the sentence that the contract has for its code; empty where it has none."""
        codes = [
            item for known in (*self.contracts, *self.dormant) if known.name == contract for item in known.codes
        ]
        return next((item.meaning for item in (*codes, *SDK_CODES) if item.code == code), "")

    def contracts_hash(self) -> bytes:
        """Return the digest of all that decides outcomes; members with the same one execute alike."""
        return manifest_hash(self.manifest())

    def manifest(self) -> tuple[str, ...]:
        """Return the lines whose digest is the contracts hash, to say which contract or module differs."""
        return (
            f"hansa/contracts {SEMANTICS_VERSION} python {sys.version_info.major}.{sys.version_info.minor}",
            *(f"{contract.name} {contract.version}" for contract in self.contracts),
            *(f"{name} {digest.hex()}" for name, digest in sorted(self.module_digests.items())),
        )

    def calls_of(self, contract: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Return the calls of the contract, each with the names of its arguments; none for an unknown contract."""
        found = self._contracts.get(contract)
        if found is None:
            return ()
        return tuple(
            (method.name, method.arguments.__struct_fields__)
            for method in found.methods.values()
            if method.kind == "call"
        )

    def maker(self, contract: str, kind: str) -> Method | None:
        """Return the active contract's one method of that kind ("genesis", "migration"); None: it has none."""
        found = [method for method in self._contracts[contract].methods.values() if method.kind == kind]
        return found[0] if found else None

    def find(self, contract: str, method: str, kind: str) -> Method:
        """Return the method, which is of that kind; raise CallError when there is none."""
        found = self._methods.get((contract, method))
        if found is not None and found.kind == kind:
            return found
        if contract not in self._contracts:
            dormant = contract in [item.name for item in self.dormant]
            text = f"{contract} is not active any more" if dormant else f"no contract is called {contract!r}"
            raise CallError("unknown_contract", text)
        raise CallError("unknown_method", f"{contract} has no {kind} {method!r}")


class Session:
    """The contracts at work on one state: one call after the other, in one thread.

    What calls have in common is made once: the meter, and each contract bound to the state. Most calls take less
    time than making those. Nothing of one call is left for the next: a contract's source assigns no attributes.
    """

    env: Environment
    """That of the call at work."""

    def __init__(self, engine: Engine, state: State) -> None:
        self.meter = Meter(UNLIMITED)
        self.events: list[Emitted] = []
        self.scheduled: list[Scheduled] = []
        self._depth = 0
        self._migrating = False
        self._engine = engine
        self._state = state
        self._access = Access(state, self.meter, writable=True)
        self._holders: dict[type[Contract], Contract] = {}
        self._known_env: Environment | None = None
        self._contexts: dict[type[Contract], Context] = {}
        self._emitters: dict[tuple[type[Contract], type[Event]], Emitter] = {}

    def execute(
        self, env: Environment, contract: str, method: str, args: dict[str, Any], operations_max: int
    ) -> Outcome:
        """Return the outcome of the call; the state holds its writes if the code is "ok", and is as before if not.

        A sender that starts with "@" is the ledger itself, running what the contract scheduled. Raises only what
        the state below raised (a disk that fails is no outcome).
        """
        kind = "scheduled" if env.sender.startswith("@") else "call"
        return self._execute(env, contract, method, args, operations_max, kind)

    def begin_version(self, env: Environment, contract: str, kind: str, operations_max: int) -> Outcome:
        """Return the outcome of what the contract's active version does to become active, as `execute` does.

        `kind`: "migration", from the version before, or "genesis", with the arguments that are there without a
        network definition. "ok" also where it declares nothing to do.
        """
        found = self._engine.maker(contract, kind)
        if found is None:
            return Outcome("ok")
        self._migrating = kind == "migration"
        try:
            outcome = self._execute(env, contract, found.name, {}, operations_max, kind)
        finally:
            self._migrating = False
        if outcome.emitted or outcome.scheduled:
            # Nobody could see them, for no receipt stands for this.
            return Outcome("contract_fault", detail=f"{contract}.{found.name} emits or schedules")
        return outcome

    def _execute(
        self, env: Environment, contract: str, method: str, args: dict[str, Any], operations_max: int, kind: str
    ) -> Outcome:
        meter, state = self.meter, self._state
        meter.operations, meter.operations_max, meter.depth = 0, operations_max, 0
        self._depth = 0
        self.events.clear()
        self.scheduled.clear()
        if env is not self._known_env:
            self._known_env = self.env = env
            self._contexts.clear()
        savepoint = state.savepoint()
        token = CURRENT.set(meter)
        code, detail = "ok", ""
        try:
            found = self._engine.find(contract, method, kind)
            values = found.convert(args)
            meter.operations += CALL_COST
            if env.brakes and kind == "call":
                _require_unstopped(env, found)
            context = self._contexts.get(found.contract)
            if context is None:
                # Weakly: in a cycle, the state's view of the disk would outlive the block by an unknown time.
                context = self._contexts[found.contract] = Context(
                    proxy(self), found.contract, f"@{contract}" if kind != "call" else env.sender
                )
            found.function(self.holder(found.contract), context, *values)
        except CallError as error:
            code, detail = error.code, error.message
        except Revert as revert:
            code, detail = _revert_code(revert), revert.detail
        except LimitExceeded as error:
            code, detail = "limit_exceeded", str(error)
        except HostFailure as failure:
            raise cast(BaseException, failure.__cause__) from None
        except MemoryError:
            raise  # this machine's fault, never a common outcome
        except Exception as error:
            code, detail = "contract_fault", f"{type(error).__name__}: {error}"
        finally:
            CURRENT.reset(token)
        if meter.operations > operations_max:
            code, detail = "limit_exceeded", f"more than {operations_max} operations"
        if code == "ok":
            return Outcome("ok", tuple(self.events), meter.operations, tuple(self.scheduled))
        state.rollback(savepoint)
        return Outcome(code, operations=min(meter.operations, operations_max), detail=detail)

    def holder(self, contract: type[Contract]) -> Contract:
        """Return `contract` bound to the state."""
        found = self._holders.get(contract)
        if found is None:
            found = self._holders[contract] = contract(self._access)
        return found

    def emit(self, contract: type[Contract], event: Event) -> None:
        """Add an event."""
        key = (contract, type(event))
        emitter = self._emitters.get(key)
        if emitter is None:
            emitter = self._emitters[key] = self._engine.emitter(*key)
        self.events.append(emitter.emit(event, self.meter))

    def call(self, caller: type[Contract], function: Callable[..., Any], args: Any, options: dict[str, Any]) -> Any:
        """Run another contract's method as "@<caller>"."""
        named, method = self._engine.used_method(caller, function)
        self.meter.charge(CALL_COST)
        if self._depth >= CALL_DEPTH_MAX:
            raise LimitExceeded(f"contracts calling one another deeper than {CALL_DEPTH_MAX}")
        # In the order in which the caller was written for it: another version may have another one.
        names = named.arguments.__struct_fields__
        if len(args) > len(names):
            raise TypeError(f"{method.name} takes {len(names)} arguments")
        values = method.convert({**dict(zip(names, args, strict=False)), **options})
        if self.env.brakes:
            _require_unstopped(self.env, method)
        self._depth += 1
        context = Context(self, method.contract, f"@{caller.name}")
        result = method.function(self.holder(method.contract), context, *values)
        self._depth -= 1
        return result

    def schedule(self, contract: type[Contract], at_ms: int, method: str, args: dict[str, Any]) -> None:
        """Add a call for a later block."""
        target = contract.methods.get(method)
        if target is None or target.kind != "scheduled":
            raise TypeError(f"{method} is no @scheduled method of {contract.name}")
        if type(at_ms) is not int or not 0 <= at_ms <= TIME_MS_MAX:
            raise ValueError("at_ms is a time in Unix milliseconds")
        self.scheduled.append(Scheduled(at_ms, contract.name, method, target.plain(args)))

    def calls_of(self, contract: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Return the calls of a contract with the names of their arguments."""
        return self._engine.calls_of(contract)

    def misfit(self, contract: str, method: str, args: dict[str, Any]) -> str:
        """Return why a call cannot be tried, or ""."""
        try:
            self._engine.validate(contract, method, args)
        except CallError as error:
            return error.code
        return ""

    def perform(
        self, caller: type[Contract], principal: str, calls: tuple[tuple[str, str, dict[str, Any]], ...]
    ) -> Performed:
        """Run the calls with the principal's authority, all or none; the caller's own work stays.

        Each has the depth that it would have in a transaction of the principal's, and all share what is left of the
        caller's operations, less a reserve.
        """
        if not caller.acts_for_principals:
            raise TypeError(f"{caller.name} acts for no principal")
        if any(contract == caller.name for contract, _, _ in calls):
            raise TypeError(f"{caller.name} does not perform its own calls")
        meter, state = self.meter, self._state
        operations_max, levels, depth = meter.operations_max, meter.depth, self._depth
        events, scheduled, savepoint = len(self.events), len(self.scheduled), state.savepoint()
        spent = meter.operations
        meter.operations_max -= PERFORM_RESERVE
        code, position = "ok", 0
        try:
            meter.charge(0)
            for contract, method, args in calls:
                self._depth = meter.depth = 0
                found = self._engine.find(contract, method, "call")
                values = found.convert(args)
                meter.operations += CALL_COST
                if self.env.brakes:
                    _require_unstopped(self.env, found)
                context = Context(self, found.contract, principal)
                found.function(self.holder(found.contract), context, *values)
                # Charged operations are compared with the bound at loops and functions, and here at the end.
                meter.charge(0)
                position += 1
        except MemoryError:
            raise  # this machine's fault, never a common outcome
        except Exception as error:
            code = _failure_code(error)
            state.rollback(savepoint)
            del self.events[events:]
            del self.scheduled[scheduled:]
        meter.operations = min(meter.operations, max(spent, meter.operations_max))
        meter.operations_max, meter.depth, self._depth = operations_max, levels, depth
        return Performed(code, position)

    def former(self, contract: type[Contract], former: type[Contract]) -> Contract:
        """Return the version before `contract`, bound to the state."""
        if not self._migrating or (former.name, former.version) != (contract.name, contract.version - 1):
            raise TypeError("ctx.former gives the version before this one, in its migration")
        return self.holder(former)


def manifest_hash(lines: Sequence[str]) -> bytes:
    """Return the contracts hash of a manifest, whoever sent it."""
    return hashlib.sha256("\n".join(lines).encode()).digest()


@contextmanager
def _metered(meter: Meter) -> Iterator[None]:
    token = CURRENT.set(meter)
    try:
        yield
    except HostFailure as failure:
        raise cast(BaseException, failure.__cause__) from None
    finally:
        CURRENT.reset(token)


def _require_unstopped(env: Environment, method: Method) -> None:
    """Revert where an emergency brake stops the method, for everybody, or all that the sender's member sends.

    Inside `ctx.call` too: else a contract that calls the method would be a way around. What a contract scheduled
    has no member as its sender.
    """
    contract = method.contract.name
    if contract in GOVERNING:
        return
    for stopped in (("method", f"{contract}.{method.name}"), ("member", env.sender.partition("/")[0])):
        if stopped in env.brakes:
            raise Revert("braked", f"{stopped[0]} {stopped[1]}, until {env.brakes[stopped]}")


def _revert_code(revert: Revert) -> str:
    code = revert.code
    if isinstance(code, str) and _CODE.match(code) and code not in RESERVED_CODES:
        return code
    return "contract_fault"


def _failure_code(error: Exception) -> str:
    """The outcome of a call that ended with `error`, as `Session.execute` says it."""
    if isinstance(error, CallError):
        return error.code
    if isinstance(error, Revert):
        return _revert_code(error)
    return "limit_exceeded" if isinstance(error, LimitExceeded) else "contract_fault"


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value
