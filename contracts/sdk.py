"""What a contract is written with. More than 500 lines because everything a contract may import stands here.

    class Counter(Contract):
        counts: Map[str, int] = Map()

        @call
        def add(self, ctx: Context, name: str) -> None:
            self.counts[name] = (self.counts.get(name) or 0) + 1

A contract is a set of pure functions of declared state, a context and typed arguments. `README.md` beside this file
is the tutorial.
"""

import hashlib
import inspect
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Concatenate,
    Final,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    dataclass_transform,
)

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from contracts.metering import (
    AUTHORIZE_COST,
    CALL_COST,
    DIGEST_COST,
    EMIT_COST,
    READ_COST,
    SCAN_ROW_COST,
    SCHEDULE_COST,
    SIZE_SHIFT,
    Meter,
    charge,
)
from contracts.storage import Access, Item, Map, Revert, State, Value, check_stored_type

__all__ = [
    "AMOUNT_MAX",
    "GOVERNING",
    "NO_BRAKES",
    "Amount",
    "Argument",
    "Brakes",
    "CallError",
    "Code",
    "Context",
    "Contract",
    "Event",
    "EventLog",
    "EventRecord",
    "Item",
    "Map",
    "Meta",
    "Performed",
    "PlainArguments",
    "PlannedCall",
    "PrincipalId",
    "QueryContext",
    "Revert",
    "State",
    "TimeMs",
    "Value",
    "call",
    "genesis",
    "invariant",
    "migration",
    "pack_arguments",
    "query",
    "replace",
    "require",
    "require_amount",
    "scheduled",
    "unpack_arguments",
]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound="Contract")
Kind = Literal["call", "scheduled", "query", "genesis", "migration", "invariant"]

SEMANTICS_VERSION: Final = 1
AMOUNT_MAX: Final = 2**63 - 1
TIME_MS_MAX: Final = 2**53 - 1
GOVERNING: Final = ("membership", "governance", "lifecycle", "maintenance", "brake", "approvals")
"""The contracts through which members have their say: no emergency brake stops a call of theirs.

What `approvals` performs is judged call by call.
"""
EVENT_SIZE_BYTES_MAX: Final = 16_384
TOPICS_MAX: Final = 16
EVENT_ROWS_MAX: Final = 10_000

PrincipalId = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}(/[a-z][a-z0-9-]{0,31})?\Z")]
TimeMs = Annotated[int, Meta(ge=0, le=TIME_MS_MAX)]
# The schema shows the bounds; the type lets every integer in, so that the contract can refuse a wrong amount with
# its own code and the receipt says `amount_not_positive`, not `invalid_arguments`. `require_amount` judges it.
Amount = Annotated[
    int,
    Meta(description="minor units, 1 … 2^63 - 1", extra_json_schema={"minimum": 1, "maximum": AMOUNT_MAX}),
]

# What another call takes, in a call that names it: judged by that one's method (`Context.misfit`).
PlainArguments = Annotated[dict[str, Any], Meta(description="the call's arguments by name")]

_encode: Final = msgspec.msgpack.Encoder(order="sorted").encode
_decode_plain: Final[Callable[[bytes], dict[str, Any]]] = msgspec.msgpack.Decoder().decode
_KIND: Final = "__hansa_kind__"


class CallError(Exception):
    """The call cannot be tried: `code` is unknown_contract, unknown_method or invalid_arguments.

    A query may also end in limit_exceeded or contract_fault.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(f"{code}: {message}")


class Code(msgspec.Struct, frozen=True):
    """A revert code of a contract: what it means, and the ISO 20022 status reason that says the same, if any."""

    code: str
    meaning: str
    iso: str | None = None


SDK_CODES: Final = (
    Code("not_authorized", "The sender may not act for the principal that this needs.", "AG01"),
    Code("not_found", "There is nothing under that key."),
    Code("amount_not_positive", "The amount is zero or negative.", "AM01"),
    Code("amount_too_large", "The amount is more than 2^63 - 1 minor units.", "AM02"),
    Code("braked", "An emergency brake of the members stops this for now; it ends by itself: `hansa brake list`."),
)

Brakes = Mapping[tuple[str, str], int]
"""What emergency brakes stop in a block: (scope, subject) -> the block time from which on it goes again.

Scopes are "account", "currency", "method" (as "settlement.transfer") and "member".
"""
NO_BRAKES: Final[Brakes] = MappingProxyType({})


class Environment(msgspec.Struct, frozen=True):
    """What a call is told: where and when it runs, who sent it, and what the members have stopped.

    `encode` makes canonical bytes.
    """

    network: str
    height: int
    time_ms: int
    sender: str
    tx_id: bytes
    encode: Callable[[object], bytes]
    brakes: Brakes = NO_BRAKES


class PlannedCall(Protocol):
    """A call before it runs: one of a transaction, or one that somebody asks for."""

    @property
    def contract(self) -> str:
        """The contract's name."""

    @property
    def method(self) -> str:
        """The method's name."""

    @property
    def args(self) -> dict[str, Any]:
        """The arguments by name, as the caller gave them."""


class EventRecord(msgspec.Struct, frozen=True):
    """An event as it was emitted: plain data, found again by its topics."""

    contract: str
    name: str
    topics: tuple[str, ...]
    data: dict[str, Any]


class Emitted(msgspec.Struct, frozen=True, array_like=True):
    """An event on its way into a receipt: its data stays the bytes that it was encoded to."""

    contract: str
    name: str
    topics: tuple[str, ...]
    data: msgspec.Raw

    def record(self) -> EventRecord:
        """Return the event as plain data."""
        return EventRecord(self.contract, self.name, self.topics, _decode_plain(self.data))


class EventLog(Protocol):
    """The events of final blocks."""

    def events(self, topic: str, from_height: int, to_height: int, limit: int) -> list[tuple[int, EventRecord]]:
        """Return the first `limit` events with `topic`, from_height <= height <= to_height, in their order."""


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Argument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A structured argument: callers send a map with its fields by name. (A Value would be a bare list.)"""


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Event(msgspec.Struct, frozen=True):
    """Something that happened. `topics` are what it can be found by: `"account/{debtor}"` with a field's name.

    The contract's name is put before: `settlement/account/ACC-1`. A field that is None gives no topic.
    """

    topics: ClassVar[tuple[str, ...]] = ()


def require(condition: bool, code: str, detail: str = "") -> None:
    """Revert the call with `code` unless `condition`."""
    if not condition:
        raise Revert(code, detail)


def require_amount(amount: int) -> None:
    """Revert with amount_not_positive or amount_too_large unless `amount` is 1 … 2^63 - 1 minor units."""
    if amount <= 0:
        raise Revert("amount_not_positive", f"{amount}")
    if amount > AMOUNT_MAX:
        raise Revert("amount_too_large", f"{amount}")


def pack_arguments(args: dict[str, Any]) -> bytes:
    """Return the canonical bytes of another call's arguments, to keep them."""
    data = _encode(args)
    charge(len(data) >> SIZE_SHIFT)
    return data


def unpack_arguments(data: bytes) -> dict[str, Any]:
    """Return the arguments that `pack_arguments` packed."""
    charge(len(data) >> SIZE_SHIFT)
    return _decode_plain(data)


def _mark(function: F, kind: Kind) -> F:
    setattr(function, _KIND, kind)
    return function


def call(function: F) -> F:
    """A method that anyone may call with a transaction: `self, ctx: Context`, then typed arguments."""
    return _mark(function, "call")


def scheduled(function: F) -> F:
    """A method that only `ctx.schedule` of the same contract reaches: no transaction can call it."""
    return _mark(function, "scheduled")


def query(function: F) -> F:
    """A method that reads: `self`, then `ctx: QueryContext` when it needs one, then typed arguments."""
    return _mark(function, "query")


def genesis(function: F) -> F:
    """The method that makes the contract's first state out of the network definition: `self, ctx`, arguments."""
    return _mark(function, "genesis")


def migration(function: F) -> F:
    """The method that makes this version's state out of that of the version before: `self, ctx`, and no more.

    It runs once, at the end of the block before this version's first; `ctx.former` reads what the other one kept.
    """
    return _mark(function, "migration")


def invariant(function: F) -> F:
    """A method without arguments that is true after every call; it may scan without a limit."""
    return _mark(function, "invariant")


class Method:
    """One method of a contract: its kind, its typed arguments and what runs."""

    __slots__ = ("arguments", "contract", "defaults", "doc", "function", "kind", "name", "takes_context")

    def __init__(self, contract: "type[Contract]", name: str, function: Callable[..., Any]) -> None:
        self.contract = contract
        self.name = name
        self.function = function
        self.kind: Kind = getattr(function, _KIND)
        self.doc = inspect.getdoc(function) or ""
        where = f"{contract.name}.{name}"
        parameters = list(inspect.signature(function).parameters.values())[1:]
        self.takes_context = bool(parameters) and parameters[0].name == "ctx"
        if self.kind in ("call", "scheduled", "genesis", "migration") and not self.takes_context:
            raise TypeError(f"{where}: the first parameter after self is `ctx: Context`")
        if self.kind == "invariant" and parameters:
            raise TypeError(f"{where}: an invariant takes only self")
        if self.kind == "migration" and len(parameters) != 1:
            raise TypeError(f"{where}: a migration takes `self, ctx` and no more")
        hints = typing.get_type_hints(function, include_extras=True)
        fields: list[Any] = []
        for parameter in parameters[1:] if self.takes_context else parameters:
            if parameter.name not in hints or parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
                raise TypeError(f"{where}: `{parameter.name}` needs a type and a plain position")
            check_stored_type(
                hints[parameter.name], f"{where}({parameter.name})", plain=self.kind in ("call", "query")
            )
            if parameter.default is parameter.empty:
                fields.append((parameter.name, hints[parameter.name]))
            else:
                fields.append((parameter.name, hints[parameter.name], parameter.default))
        self.arguments = msgspec.defstruct(
            f"{contract.__name__}_{name}", fields, frozen=True, forbid_unknown_fields=True
        )

    def plain(self, args: dict[str, Any]) -> dict[str, Any]:
        """Return `args` as plain values after they were judged: what a later block can be given."""
        self.convert(args)
        return cast(dict[str, Any], msgspec.to_builtins(args, builtin_types=(bytes,)))

    def convert(self, args: dict[str, Any]) -> tuple[Any, ...]:
        """Return the typed arguments in their order; raise CallError(invalid_arguments). Nothing is coerced."""
        try:
            return msgspec.structs.astuple(
                msgspec.convert(args, self.arguments, strict=True, builtin_types=(bytes,))
            )
        except (msgspec.ValidationError, RecursionError) as error:
            raise CallError("invalid_arguments", f"{self.contract.name}.{self.name}: {error}") from error


class Contract:
    """A service of the ledger. State is declared at the top, methods below, invariants beside them.

    `name` is the class name in lower case unless given; `uses` are the methods of other contracts that `ctx.call`
    may reach; `codes` are the revert codes that its methods may answer. `acts_for_principals`: it may run calls
    with the authority of a principal (`Context.perform`), which it must have from that principal itself.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    uses: ClassVar[tuple[Callable[..., Any], ...]] = ()
    codes: ClassVar[tuple[Code, ...]] = ()
    acts_for_principals: ClassVar[bool] = False
    methods: ClassVar[dict[str, Method]]

    def __init__(self, access: Access) -> None:
        self._access = access

    def __init_subclass__(cls) -> None:
        cls.name = cls.__dict__.get("name") or cls.__name__.lower()
        hints = typing.get_type_hints(cls, include_extras=True)
        methods: dict[str, Method] = {}
        for name, member in list(cls.__dict__.items()):
            if isinstance(member, Map | Item):
                member.declare(cls.name, name, hints[name])
            elif hasattr(member, _KIND):
                methods[name] = Method(cls, name, member)
        cls.methods = methods
        for kind in ("genesis", "migration"):
            if len([method for method in methods.values() if method.kind == kind]) > 1:
                raise TypeError(f"{cls.name} has more than one @{kind} method")


class Emitter:
    """How events of one class become records: prepared once."""

    __slots__ = ("contract", "name", "topics")

    def __init__(self, contract: str, event: type[Event]) -> None:
        """Raise TypeError when a field's type cannot stand in an event or a topic names no field."""
        self.contract = contract
        self.name = event.__name__
        for name, hint in typing.get_type_hints(event, include_extras=True).items():
            if typing.get_origin(hint) is not ClassVar:
                check_stored_type(hint, f"{event.__name__}.{name}")
        if len(event.topics) > TOPICS_MAX:
            raise TypeError(f"{event.__name__}: more than {TOPICS_MAX} topics")
        topics: list[tuple[str, str]] = []
        for topic in event.topics:
            kind, slash, field = topic.rpartition("/")
            if not slash or field[:1] + field[-1:] != "{}" or field[1:-1] not in event.__struct_fields__:
                raise TypeError(f'{event.__name__}: topic {topic!r} does not read "kind/{{field}}"')
            topics.append((f"{contract}/{kind}/", field[1:-1]))
        self.topics = tuple(topics)

    def emit(self, event: Event, meter: Meter) -> Emitted:
        """Return `event` encoded, with its topics."""
        data = _encode(event)
        size_bytes = len(data)
        if size_bytes > EVENT_SIZE_BYTES_MAX:
            raise ValueError(f"an event of {size_bytes} bytes is larger than {EVENT_SIZE_BYTES_MAX}")
        meter.operations += EMIT_COST + (size_bytes >> SIZE_SHIFT)
        topics: list[str] = []
        for prefix, field in self.topics:
            value = getattr(event, field)
            if value is None:
                continue
            # Anything but text reads as it does when it comes out of its bytes.
            topic = prefix + (value if type(value) is str else f"{_decode_plain(data)[field]}")
            if topic not in topics:
                topics.append(topic)
        return Emitted(self.contract, self.name, tuple(topics), msgspec.Raw(data))


class Run(Protocol):
    """What the engine does for a context: one call with everything it reaches."""

    meter: Meter
    env: Environment

    def emit(self, contract: type[Contract], event: Event) -> None:
        """Add an event."""

    def call(self, caller: type[Contract], function: Callable[..., Any], args: Any, options: dict[str, Any]) -> Any:
        """Run another contract's method."""

    def schedule(self, contract: type[Contract], at_ms: int, method: str, args: dict[str, Any]) -> None:
        """Add a call for a later block."""

    def calls_of(self, contract: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Return the calls of a contract with the names of their arguments."""

    def misfit(self, contract: str, method: str, args: dict[str, Any]) -> str:
        """Return why a call cannot be tried, or ""."""

    def perform(
        self, caller: type[Contract], principal: str, calls: tuple[tuple[str, str, dict[str, Any]], ...]
    ) -> "Performed":
        """Run calls with a principal's authority."""

    def former(self, contract: type[Contract], former: type[Contract]) -> Contract:
        """Return the version before `contract`, bound to the state."""


class Performed(msgspec.Struct, frozen=True):
    """What came of calls that were run for a principal: "ok", or the code of the one after the first `position`."""

    code: str
    position: int


class Context:
    """Who calls, when, and what a call may do besides reading and writing its own state."""

    __slots__ = (
        "_brakes",
        "_contract",
        "_encode",
        "_meter",
        "_run",
        "height",
        "network",
        "sender",
        "time_ms",
        "tx_id",
    )

    def __init__(self, run: Run, contract: type[Contract], sender: str) -> None:
        env = run.env
        self._run = run
        self._meter = run.meter
        self._encode = env.encode
        self._brakes = env.brakes
        self._contract = contract
        self.sender = sender
        self.network = env.network
        self.height = env.height
        self.time_ms = env.time_ms
        self.tx_id = env.tx_id

    def may_act_for(self, principal: str, operators: tuple[str, ...] = ()) -> bool:
        """Whether the sender acts for `principal`: it is the same, or the root of the same member, or an operator.

        The root of `bank-a/treasury` is `bank-a`. Inside `ctx.call` the sender is the calling contract, "@claims":
        it acts for nobody but those who named it among `operators`.
        """
        self._meter.operations += AUTHORIZE_COST
        sender = self.sender
        return sender == principal or principal.startswith(sender + "/") or sender in operators

    def authorize(self, principal: str, operators: tuple[str, ...] = ()) -> None:
        """Revert with not_authorized unless the sender acts for `principal` (see `may_act_for`)."""
        if not self.may_act_for(principal, operators):
            raise Revert("not_authorized", f"{self.sender} does not act for {principal}")

    def braked_until(self, scope: str, subject: str) -> int:
        """Return the block time up to which an emergency brake stops `subject`; 0: none does (see `Brakes`)."""
        return self._brakes.get((scope, subject), 0) if self._brakes else 0

    def require_unbraked(self, account: str, currency: str) -> None:
        """Revert with `braked` while an emergency brake stops money of the account, or of all in the currency."""
        if not self._brakes:
            return
        for stopped in (("account", account), ("currency", currency)):
            if stopped in self._brakes:
                raise Revert("braked", f"{stopped[0]} {stopped[1]}, until {self._brakes[stopped]}")

    def emit(self, event: Event) -> None:
        """Add `event` to the call's receipt."""
        self._run.emit(self._contract, event)

    def call(self, function: Callable[Concatenate[Any, "Context", P], R], *args: P.args, **options: P.kwargs) -> R:
        """Run another contract's method as "@<this contract>" and return what it returns.

        The method stands in this contract's `uses`. Its revert reverts this call too: both happen or neither.
        """
        return cast(R, self._run.call(self._contract, function, args, options))

    def schedule(self, at_ms: int, function: Callable[..., Any], **args: Any) -> None:
        """Run this contract's @scheduled method in the first block whose time is at_ms or later."""
        self._meter.operations += SCHEDULE_COST
        self._run.schedule(self._contract, at_ms, getattr(function, "__name__", ""), args)

    def calls_of(self, contract: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Return the calls of the contract, each with the names of its arguments; none for an unknown contract."""
        found = self._run.calls_of(contract)
        self._meter.charge(READ_COST + len(found))
        return found

    def misfit(self, contract: str, method: str, args: dict[str, Any]) -> str:
        """Return the code with which the call cannot be tried, or "" when it can; judges no state."""
        self._meter.charge(CALL_COST)
        return self._run.misfit(contract, method, args)

    def perform(self, principal: str, calls: tuple[tuple[str, str, dict[str, Any]], ...]) -> Performed:
        """Run (contract, method, args) one after the other as if `principal` had sent them: all of them or none.

        For a contract that `acts_for_principals` alone. A call that fails is no failure of this one.
        """
        return self._run.perform(self._contract, principal, calls)

    def former(self, contract: type[C]) -> C:
        """Return the version before this one, to read and to change what it kept; in a migration alone."""
        return cast(C, self._run.former(self._contract, contract))

    def digest(self, value: object) -> bytes:
        """Return the SHA-256 of the canonical bytes of `value` (a Value, or plain values)."""
        data = self._encode(value)
        self._meter.operations += DIGEST_COST + (len(data) >> SIZE_SHIFT)
        return hashlib.sha256(data).digest()


class QueryContext:
    """What a query sees besides state: where the ledger stands, and the events of final blocks."""

    __slots__ = ("_contract", "_events", "_meter", "height", "network", "time_ms")

    def __init__(
        self, contract: type[Contract], events: EventLog, meter: Meter, network: str, height: int, time_ms: int
    ) -> None:
        self._contract = contract
        self._events = events
        self._meter = meter
        self.network = network
        self.height = height
        self.time_ms = time_ms

    def events(
        self, topic: str, from_height: int, to_height: int, limit: int
    ) -> tuple[tuple[int, EventRecord], ...]:
        """Return up to `limit` (height, event) of this contract with `topic` ("account/ACC-1"), in their order."""
        if not 0 <= limit <= EVENT_ROWS_MAX:
            raise ValueError(f"between 0 and {EVENT_ROWS_MAX} events are read at once")
        found = self._events.events(f"{self._contract.name}/{topic}", from_height, to_height, limit)
        self._meter.charge(SCAN_ROW_COST * (1 + len(found)))
        return tuple(found)
