"""The meter of a call: operations, depth of calls and size of values, alike on every member.

Contract modules are compiled so that loops, comprehensions, function entries and growing operators call the
functions of this module (see instrument.py); the SDK charges what state, events and calls cost. One operation
stands for about half a microsecond. The meter guards against mistakes in contracts and against hostile
arguments; it is no sandbox for hostile contract code, which is reviewed and shipped with a release.

The meter of the running call is found through a context variable, because queries run in other threads.
Charges depend on arguments and state alone, never on what a member happens to have cached.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Final

DEPTH_MAX: Final = 64
INTEGER_BITS_MAX: Final = 256
SIZE_MAX: Final = 65_536
UNLIMITED: Final = 2**62

CALL_COST: Final = 16
READ_COST: Final = 8
WRITE_COST: Final = 16
SCAN_ROW_COST: Final = 8
EMIT_COST: Final = 12
DIGEST_COST: Final = 6
SCHEDULE_COST: Final = 24
AUTHORIZE_COST: Final = 1
SIZE_SHIFT: Final = 5  # what is written, emitted or hashed costs one more operation per 32 bytes

_INTEGER_BOUND: Final = 1 << INTEGER_BITS_MAX
_INTEGER_DIGITS_MAX: Final = 78


class LimitExceeded(Exception):
    """The call used up its operations, its depth, or the size of a value."""


class Meter:
    """Counts the operations and the depth of one call.

    The bound is judged at every function entry and turn of a loop, and at the end of the call, however it ended: so
    whoever charges a fixed price in between just adds to `operations`, and the outcome is the same.
    """

    __slots__ = ("depth", "operations", "operations_max")

    def __init__(self, operations_max: int) -> None:
        self.operations = 0
        self.operations_max = operations_max
        self.depth = 0

    def charge(self, operations: int) -> None:
        """Count `operations`; raise LimitExceeded when that is more than the call has."""
        self.operations += operations
        if self.operations > self.operations_max:
            raise LimitExceeded(f"more than {self.operations_max} operations")


CURRENT: Final[ContextVar[Meter | None]] = ContextVar("hansa_meter", default=None)


def tick() -> bool:
    """Charge one operation to the running call; always true, so that it fits a comprehension's condition."""
    meter = CURRENT.get()
    if meter is not None:
        meter.operations += 1
        if meter.operations > meter.operations_max:
            raise LimitExceeded(f"more than {meter.operations_max} operations")
    return True


def charge(operations: int) -> None:
    """Charge `operations` to the running call, if one is running (modules are imported without)."""
    meter = CURRENT.get()
    if meter is not None:
        meter.charge(operations)


def enter() -> Meter:
    """Count a function entry; the caller gives `depth` back when it leaves."""
    meter = CURRENT.get()
    if meter is None:
        meter = Meter(UNLIMITED)
    meter.operations += 1
    meter.depth += 1
    if meter.operations > meter.operations_max:
        raise LimitExceeded(f"more than {meter.operations_max} operations")
    if meter.depth > DEPTH_MAX:
        raise LimitExceeded(f"functions nested deeper than {DEPTH_MAX}")
    return meter


def _sized(value: Any) -> Any:
    """Return `value` after its length was bounded and charged."""
    size = len(value)
    if size > SIZE_MAX:
        raise LimitExceeded(f"a value longer than {SIZE_MAX}")
    charge(size >> 4)
    return value


def _integer(value: int) -> int:
    if -_INTEGER_BOUND < value < _INTEGER_BOUND:
        return value
    raise LimitExceeded(f"an integer of more than {INTEGER_BITS_MAX} bits")


def _add(left: Any, right: Any) -> Any:
    result = left + right
    if type(result) is int:
        if -_INTEGER_BOUND < result < _INTEGER_BOUND:
            return result
        raise LimitExceeded(f"an integer of more than {INTEGER_BITS_MAX} bits")
    return _sized(result)


def _subtract(left: Any, right: Any) -> Any:
    result = left - right
    if -_INTEGER_BOUND < result < _INTEGER_BOUND:
        return result
    raise LimitExceeded(f"an integer of more than {INTEGER_BITS_MAX} bits")


def _multiply(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return _integer(left * right)
    raise TypeError("only integers can be multiplied in a contract")


def _modulo(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return left % right
    raise TypeError("only integers have a remainder in a contract")


def _text(value: Any) -> str | int:
    """Return what an f-string may show: text and integers, whose form is the same everywhere."""
    if isinstance(value, str | int):
        return value
    raise TypeError(f"a contract's text cannot hold a {type(value).__name__}")


def _contains(item: Any, container: Any) -> bool:
    if isinstance(container, list | tuple | str | bytes):
        charge(len(container) >> 3)
    return item in container


def _ticking(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        tick()
        yield item


def _metered(items: Any) -> Any:
    """Return `items` charged by its length, or charging one by one when the length is unknown."""
    try:
        size = len(items)
    except TypeError:
        return _ticking(items)
    charge(size)
    return items


def _consuming(function: Callable[..., Any]) -> Callable[..., Any]:
    def metered(*args: Any, **options: Any) -> Any:
        if args and not isinstance(args[0], int | str | bytes):
            args = (_metered(args[0]), *args[1:])
        return function(*args, **options)

    return metered


def _int(value: Any = 0) -> int:
    if isinstance(value, str) and len(value) > _INTEGER_DIGITS_MAX:
        raise LimitExceeded(f"a number of more than {_INTEGER_DIGITS_MAX} digits")
    if isinstance(value, str | int):
        return _integer(int(value))
    raise TypeError(f"no integer is made of a {type(value).__name__}")


def _str(value: Any = "") -> str:
    return str(_text(value))


def _bytes(value: Any = b"") -> bytes:
    if isinstance(value, bytes):
        return value
    raise TypeError("bytes are not built in a contract")


GUARDS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "__hansa_tick__": tick,
        "__hansa_enter__": enter,
        "__hansa_sized__": _sized,
        "__hansa_add__": _add,
        "__hansa_subtract__": _subtract,
        "__hansa_multiply__": _multiply,
        "__hansa_modulo__": _modulo,
        "__hansa_text__": _text,
        "__hansa_contains__": _contains,
        "__hansa_int__": _int,
        "__hansa_str__": _str,
        "__hansa_bytes__": _bytes,
        "__hansa_sum__": _consuming(sum),
        "__hansa_min__": _consuming(min),
        "__hansa_max__": _consuming(max),
        "__hansa_sorted__": _consuming(sorted),
        "__hansa_list__": _consuming(list),
        "__hansa_tuple__": _consuming(tuple),
        "__hansa_dict__": _consuming(dict),
        "__hansa_any__": _consuming(any),
        "__hansa_all__": _consuming(all),
    }
)

# Rewritten where they are called; as annotations they stay what they are.
GUARDED_CALLS: Final = (
    "all",
    "any",
    "bytes",
    "dict",
    "int",
    "list",
    "max",
    "min",
    "sorted",
    "str",
    "sum",
    "tuple",
)
