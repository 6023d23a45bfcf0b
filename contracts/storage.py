"""What a contract declares to keep: Map and Item, typed values under state keys.

A value is put only after it went through its encoding and back: so what is stored has exactly the declared type, is
immutable, and has a canonical form, on every member alike. Every read, write and row is charged to the call.
"""

import types
import typing
from typing import Any, Final, Generic, Literal, Protocol, Self, TypeVar, cast, dataclass_transform, overload

import msgspec

from contracts.metering import READ_COST, SCAN_ROW_COST, SIZE_SHIFT, UNLIMITED, WRITE_COST, Meter
from contracts.state_keys import TEXT_END, TEXT_START, Component, decode_key, encode_component, encode_key

T = TypeVar("T")
K = TypeVar("K", bound=str | bytes | int | tuple[Any, ...])
V = TypeVar("V")

SCAN_LIMIT_MAX: Final = 1_000
VALUE_SIZE_BYTES_MAX: Final = 16_384
KEY_SIZE_BYTES_MAX: Final = 1_024

_encode: Final = msgspec.msgpack.Encoder(order="sorted").encode


class State(Protocol):
    """Typed values under encoded keys, with savepoints. Values are immutable; `scan` sees pending writes."""

    def get(self, key: bytes, type_: type[T]) -> T | None:
        """Return the value under `key` as `type_`, or None; raise WrongType when it is a value of another type."""

    def put(self, key: bytes, value: object) -> None:
        """Set the value under `key`."""

    def delete(self, key: bytes) -> None:
        """Remove `key`; nothing happens when it is absent."""

    def scan(self, start: bytes, end: bytes, type_: type[T], limit: int) -> list[tuple[bytes, T]]:
        """Return up to `limit` pairs with start <= key < end, ascending; raise WrongType as `get` does."""

    def savepoint(self) -> int:
        """Return a mark for `rollback`."""

    def rollback(self, savepoint: int) -> None:
        """Undo every write since the mark."""


class Revert(Exception):
    """The contract says no: every write and event of the call is undone and its receipt carries `code`.

    `detail` is for the person who reads the answer of a query or a dry run; it is never part of a receipt.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        self.code = code
        self.detail = detail
        super().__init__(f"{code}: {detail}" if detail else code)


class WrongType(Exception):
    """Under a key lies another value than the contract declares: its author's fault, alike on every member.

    So it is when a version takes over a state without the migration that it needed.
    """


class HostFailure(BaseException):
    """The state below a contract failed (a disk, a bug): no outcome of the call, the node must stop.

    Not an Exception, so that no rule for failing contract code catches it; `__cause__` is what happened.
    """


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Value(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a Map or an Item keeps: an immutable value with named, typed fields."""


class Access:
    """One call's way to the state: who pays, and whether writing is allowed."""

    __slots__ = ("meter", "state", "unbounded", "writable")

    def __init__(self, state: State, meter: Meter, *, writable: bool, unbounded: bool = False) -> None:
        self.state = state
        self.meter = meter
        self.writable = writable
        self.unbounded = unbounded

    def get(self, key: bytes, type_: type[T]) -> T | None:
        """Return the value under `key`, charged alike whether it was cached or not."""
        self.meter.operations += READ_COST
        try:
            return self.state.get(key, type_)
        except WrongType:
            raise
        except Exception as error:
            raise HostFailure from error

    def put(self, key: bytes, value: object, decoder: msgspec.msgpack.Decoder[Any]) -> None:
        """Set the value under `key` after it passed through its encoding."""
        if not self.writable:
            raise TypeError("a query or an invariant writes nothing")
        data = _encode(value)
        size_bytes = len(data)
        if size_bytes > VALUE_SIZE_BYTES_MAX:
            raise ValueError(f"a value of {size_bytes} bytes is larger than {VALUE_SIZE_BYTES_MAX}")
        self.meter.operations += WRITE_COST + (size_bytes >> SIZE_SHIFT)
        kept = decoder.decode(data)
        try:
            self.state.put(key, kept)
        except Exception as error:
            raise HostFailure from error

    def delete(self, key: bytes) -> None:
        """Remove `key`."""
        if not self.writable:
            raise TypeError("a query or an invariant writes nothing")
        self.meter.operations += WRITE_COST
        try:
            self.state.delete(key)
        except Exception as error:
            raise HostFailure from error

    def scan(self, start: bytes, end: bytes, type_: type[T], limit: int | None) -> list[tuple[bytes, T]]:
        """Return up to `limit` rows; None means all of them and is for invariants."""
        if limit is None:
            if not self.unbounded:
                raise ValueError("only an invariant scans without a limit")
            limit = UNLIMITED
        elif not 0 <= limit <= SCAN_LIMIT_MAX:
            raise ValueError(f"a scan returns between 0 and {SCAN_LIMIT_MAX} rows")
        self.meter.charge(READ_COST)
        try:
            rows = self.state.scan(start, end, type_, limit)
        except WrongType:
            raise
        except Exception as error:
            raise HostFailure from error
        self.meter.charge(SCAN_ROW_COST * len(rows))
        return rows


class _Holder(Protocol):
    """A contract instance: made for one call, with that call's access."""

    _access: Access


class _OutOfReach:
    """What a declaration has in place of an Access."""

    def __getattr__(self, name: str) -> Any:
        raise TypeError("a Map or an Item is reached through self, inside a call")


class _Field:
    """What Map and Item have in common: their place in the state and the type they keep."""

    def __init__(self, missing: str) -> None:
        self.missing = missing
        self.name = ""
        self.prefix = b""
        self.text_prefix = b""
        self.value_type: Any = None
        self.decoder: msgspec.msgpack.Decoder[Any] = _ANY
        self._access = cast(Access, _OutOfReach())

    def declare(self, contract: str, name: str, hint: Any) -> None:
        """Take the place (contract, name) and the types of the annotation `hint`."""
        arguments = typing.get_args(hint)
        self.name = name
        self.prefix = encode_key((contract, name))
        self.text_prefix = self.prefix + TEXT_START
        self.value_type = arguments[-1]
        check_stored_type(self.value_type, f"{contract}.{name}")
        self.decoder = msgspec.msgpack.Decoder(self.value_type, strict=True)

    def _bind(self, holder: _Holder) -> Self:
        bound = self.__class__.__new__(self.__class__)
        bound.missing = self.missing
        bound.name = self.name
        bound.prefix = self.prefix
        bound.text_prefix = self.text_prefix
        bound.value_type = self.value_type
        bound.decoder = self.decoder
        bound._access = holder._access
        # Found in the instance from now on: the descriptor is asked once a call.
        holder.__dict__[self.name] = bound
        return bound


_ANY: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder()


class Map(_Field, Generic[K, V]):
    """Values under keys: text, bytes, an integer of 0 … 2^64-1, a bool, or a tuple of these.

    `missing` is the revert code of `self.accounts[key]` when nothing is there.
    """

    def __init__(self, *, missing: str = "not_found") -> None:
        super().__init__(missing)

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> "Map[K, V]": ...
    def __get__(self, instance: Any, owner: type) -> "Map[K, V]":
        return self if instance is None else self._bind(instance)

    def key(self, key: K) -> bytes:
        """Return the state key of `key`."""
        if isinstance(key, str) and "\x00" not in key:
            data = self.text_prefix + key.encode() + TEXT_END  # as encode_component, without its calls
        elif isinstance(key, tuple):
            data = self.prefix + b"".join([encode_component(part) for part in key])
        else:
            data = self.prefix + encode_component(cast(Component, key))
        if len(data) > KEY_SIZE_BYTES_MAX:
            raise ValueError(f"a key of {len(data)} bytes is longer than {KEY_SIZE_BYTES_MAX}")
        return data

    def __getitem__(self, key: K) -> V:
        """Return the value under `key`; revert with the map's `missing` code when there is none."""
        value: V | None = self._access.get(self.key(key), self.value_type)
        if value is None:
            raise Revert(self.missing, f"{self.name}: {key!r}")
        return value

    def get(self, key: K) -> V | None:
        """Return the value under `key`, or None."""
        value: V | None = self._access.get(self.key(key), self.value_type)
        return value

    def __contains__(self, key: K) -> bool:
        return self.get(key) is not None

    def __setitem__(self, key: K, value: V) -> None:
        self._access.put(self.key(key), value, self.decoder)

    def __delitem__(self, key: K) -> None:
        self._access.delete(self.key(key))

    def scan(
        self, *, prefix: tuple[Component, ...] = (), after: K | None = None, limit: int | None = SCAN_LIMIT_MAX
    ) -> tuple[tuple[K, V], ...]:
        """Return up to `limit` (key, value) pairs in the order of their keys.

        `prefix`: only tuple keys that start with it. `after`: only keys greater than it (the last one of the page
        before). `limit=None` reads everything and is allowed in invariants only.
        """
        start = self.prefix + b"".join([encode_component(part) for part in prefix])
        end = start + b"\xff"
        if after is not None:
            start = max(start, self.key(after) + b"\x00")
        found = self._access.scan(start, end, self.value_type, limit)
        return tuple([(self._parts(key), cast(V, value)) for key, value in found])

    def read_from(self, state: State, key: K) -> V | None:
        """Return the value under `key` in `state`, for a host that reads outside any call."""
        return self.read_at(state, self.key(key))

    def read_at(self, state: State, state_key: bytes) -> V | None:
        """Return the value under `state_key`, which `key` made, for a host that reads outside any call."""
        value: V | None = state.get(state_key, self.value_type)
        return value

    def scan_from(self, state: State, limit: int) -> tuple[tuple[K, V], ...]:
        """Return the first `limit` pairs in `state`, for a host that reads outside any call."""
        found = state.scan(self.prefix, self.prefix + b"\xff", self.value_type, limit)
        return tuple([(self._parts(key), cast(V, value)) for key, value in found])

    def _parts(self, key: bytes) -> K:
        parts = decode_key(key[len(self.prefix) :])
        return cast(K, parts[0] if len(parts) == 1 else parts)


class Item(_Field, Generic[V]):
    """One value. `missing` is the revert code of `self.total.value` before it was set."""

    def __init__(self, *, missing: str = "not_found") -> None:
        super().__init__(missing)

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> "Item[V]": ...
    def __get__(self, instance: Any, owner: type) -> "Item[V]":
        return self if instance is None else self._bind(instance)

    def read(self) -> V:
        """Return the value; revert with `missing` when it was never set."""
        value = self._access.get(self.prefix, self.value_type)
        if value is None:
            raise Revert(self.missing, self.name)
        return cast(V, value)

    def get(self) -> V | None:
        """Return the value, or None when it was never set."""
        return cast("V | None", self._access.get(self.prefix, self.value_type))

    def set(self, value: V) -> None:
        """Set the value."""
        self._access.put(self.prefix, value, self.decoder)

    def read_from(self, state: State) -> V | None:
        """Return the value in `state`, or None, for a host that reads outside any call."""
        return cast("V | None", state.get(self.prefix, self.value_type))

    def clear(self) -> None:
        """Remove the value."""
        self._access.delete(self.prefix)


def check_stored_type(hint: Any, where: str, depth: int = 8, plain: bool = False) -> None:
    """Raise TypeError unless values of `hint` are immutable, bounded in depth and have one encoding.

    With `plain` they may hold another call's arguments, which nobody keeps as they are.
    """
    if depth == 0:
        raise TypeError(f"{where}: nested deeper than 8, or recursive")
    if hint in (int, str, bytes, bool) or (plain and hint == dict[str, Any]):
        return
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        check_stored_type(typing.get_args(hint)[0], where, depth, plain)
    elif origin is Literal:
        if not all(isinstance(item, str) for item in typing.get_args(hint)):
            raise TypeError(f"{where}: a Literal of other things than text")
    elif origin is tuple:
        for item in typing.get_args(hint):
            if item is not Ellipsis:
                check_stored_type(item, where, depth - 1, plain)
    elif origin in (typing.Union, types.UnionType):
        for item in typing.get_args(hint):
            if item is not type(None):
                check_stored_type(item, where, depth, plain)
    elif isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        if not hint.__struct_config__.frozen:
            raise TypeError(f"{where}: {hint.__name__} is not frozen; derive it from Value")
        for name, item in typing.get_type_hints(hint, include_extras=True).items():
            if typing.get_origin(item) is not typing.ClassVar:
                check_stored_type(item, f"{where}.{name}", depth - 1, plain)
    else:
        raise TypeError(
            f"{where}: {hint!r} cannot be kept; use int, str, bytes, bool, tuple[…], Literal or a Value"
        )
