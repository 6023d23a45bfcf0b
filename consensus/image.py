"""An exact image of a replica between two steps, as canonical bytes: `thaw` makes one that goes on just the same.

For whoever looks at a fault later and elsewhere. Three things are left out: the payloads of blocks, of which only
the length stays (the replica never looks into them), the caller's words why nothing is signed, and the cache of
signatures found good, which saves time alone.
The classes of the modules below and their attributes are walked as they are, so a new attribute is in the image by
itself; a value of a kind that is not known here raises, and the test of this file finds it.

An image may come from anybody: reading one makes objects of those classes only, never calls what it names, and
gives an attribute no name that the class itself has.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from types import ModuleType
from typing import Any, Final, cast, get_args

import msgspec

from consensus import (
    amnesia,
    checks,
    config,
    context,
    height,
    instances,
    lag,
    pace,
    pledge,
    replica,
    status,
    suspicion,
    verification,
    votes,
)
from consensus.checks import Check
from consensus.codec import CodecError, decode, encode, unpack
from consensus.effects import Head, Record
from consensus.members import Members, Validator
from consensus.messages import Certificate, Evidence, Message, PrePrepare, VoteKind
from consensus.replica import Replica

IMAGE_SIZE_MAX: Final = 16 * 1024 * 1024
DEPTH_MAX: Final = 10
_HEADER: Final = "hansa/image/2"
_MODULES: Final = (
    amnesia,
    checks,
    config,
    context,
    height,
    instances,
    lag,
    pace,
    pledge,
    replica,
    status,
    suspicion,
    verification,
    votes,
)


def _classes(modules: Sequence[ModuleType], *, values: bool) -> dict[str, type]:
    """The classes that `modules` define, by name: the Structs, which are values, or the others."""
    return {
        name: item
        for module in modules
        for name, item in vars(module).items()
        if isinstance(item, type) and item.__module__ == module.__name__ and not issubclass(item, Enum)
        if issubclass(item, msgspec.Struct) == values
    }


# What has a life of its own and changes; it appears once, whoever refers to it.
_OBJECTS: Final = _classes(_MODULES, values=False)
# What is signed or stored has canonical bytes already, and reading them judges it.
_CODED: Final[dict[str, type]] = {
    class_.__name__: class_
    for class_ in (Certificate, *get_args(Message), *get_args(Record), *get_args(Evidence))
    if class_ is not PrePrepare
}
_STRUCTS: Final = {**_classes(_MODULES, values=True), "Head": Head}
_CALLABLES: Final = ("sign", "verify")
_CACHE: Final = ("Verifier", "_good")
_PAYLOADS: Final = ("Checks", "_good")
_WITHHELD: Final = ("Context", "withheld")
NOT_KEPT: Final = "the reason was not recorded"
"""Stands for the caller's words why nothing is signed: they may name what stands in the ledger's state."""


class StandIn(bytes):
    """Stands for a payload that was not kept: it has its length and nothing else of it."""

    length: int

    def __len__(self) -> int:
        return self.length


def stand_in(length: int) -> StandIn:
    """The stand-in of a payload of `length` bytes; it takes no memory for them."""
    made = StandIn()
    made.length = length
    return made


def freeze(replica: Replica) -> bytes:
    """The image of `replica`. Call it between two steps, never within one."""
    return _Freezer().image(replica)


def thaw(data: bytes, sign: Callable[[bytes], bytes], verify: Callable[[bytes, bytes, bytes], bool]) -> Replica:
    """A replica that goes on as the one of which `data` is the image; it signs and verifies by these functions.

    Raise CodecError when `data` is no image of this version. What an image says of *values* is not judged: one that
    was made up can make the replica raise at any later step.
    """
    return _Thawer(sign, verify).replica(data)


class _Freezer:
    def __init__(self) -> None:
        self._objects: list[object] = []
        self._rows: list[list[object]] = []

    def image(self, replica: Replica) -> bytes:
        self._place(replica)
        return encode((_HEADER, *self._rows))

    def _place(self, value: object) -> int:
        """The number of an object; it is written down when it is met first."""
        for place, known in enumerate(self._objects):
            if known is value:
                return place
        place, name = len(self._objects), type(value).__name__
        row: list[object] = [name]
        self._objects.append(value)
        self._rows.append(row)
        for attribute, item in vars(value).items():
            row += [attribute, self._attribute(name, attribute, item)]
        return place

    def _attribute(self, name: str, attribute: str, value: object) -> object:
        if (name, attribute) == _CACHE:
            return ["d"]
        if (name, attribute) == _WITHHELD:
            return NOT_KEPT if value else ""
        if (name, attribute) == _PAYLOADS and isinstance(value, dict):
            return ["d", *(part for digest, payload in value.items() for part in (digest, _hidden(payload)))]
        if attribute.lstrip("_") in _CALLABLES and callable(value):
            return ["f", attribute.lstrip("_")]
        return self._value(value)

    def _value(self, value: object) -> object:
        kind = type(value)
        if value is None or kind in (bool, int, str, bytes):
            return value
        if isinstance(value, VoteKind):
            return ["k", int(value)]
        if kind is dict:
            return ["d", *(self._value(part) for pair in cast(dict[Any, Any], value).items() for part in pair)]
        if kind in (tuple, list):
            return ["t" if kind is tuple else "l", *map(self._value, cast(Sequence[Any], value))]
        if kind is set:
            return ["s", *map(self._value, sorted(cast(set[Any], value)))]
        if isinstance(value, Members):
            return ["m", encode(value.validators)]
        if isinstance(value, PrePrepare):
            bare = msgspec.structs.replace(value, payload=b"")
            return ["p", encode(bare), len(value.payload)]
        if _CODED.get(kind.__name__) is kind:
            return ["c", kind.__name__, encode(value)]
        if isinstance(value, Check):
            return ["x", "Check", value.standing, _hidden(value.payload), value.started_ms]
        if _STRUCTS.get(kind.__name__) is kind:
            return ["x", kind.__name__, *map(self._value, msgspec.structs.astuple(cast(msgspec.Struct, value)))]
        if _OBJECTS.get(kind.__name__) is kind:
            return ["o", self._place(value)]
        raise CodecError(f"an image cannot hold a {kind.__name__}")


def _hidden(payload: object) -> object:
    return ["z", len(payload)] if isinstance(payload, bytes) else None


class _Thawer:
    def __init__(self, sign: Callable[[bytes], bytes], verify: Callable[[bytes, bytes, bytes], bool]) -> None:
        self._callables: dict[str, object] = {"sign": sign, "verify": verify}
        self._objects: list[object] = []

    def replica(self, data: bytes) -> Replica:
        rows = unpack(data, size_max=IMAGE_SIZE_MAX)
        try:
            header, *described = rows
            if header != _HEADER:
                raise CodecError("this is no image of a replica that this version can read")
            self._objects = [object.__new__(_OBJECTS[name]) for name, *_ in described]
            for made, (_, *parts) in zip(self._objects, described, strict=True):
                self._fill(made, parts)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise CodecError(f"the image is malformed: {type(error).__name__}: {error}") from error
        root = self._objects[0] if self._objects else None
        if not isinstance(root, Replica):
            raise CodecError("the image is not that of a replica")
        return root

    def _fill(self, made: object, parts: Sequence[Any]) -> None:
        for attribute, value in zip(parts[::2], parts[1::2], strict=True):
            if not attribute.isidentifier() or hasattr(type(made), attribute):
                raise CodecError(f"{attribute!r} is no attribute of a {type(made).__name__}")
            setattr(made, attribute, self._value(value, DEPTH_MAX))

    def _value(self, value: Any, depth: int) -> Any:
        if not isinstance(value, tuple):
            return value
        if depth == 0:
            raise CodecError(f"the image is nested deeper than {DEPTH_MAX}")
        code, *items = value
        if code == "o":
            return self._objects[_natural(items[0])]
        if code == "f":
            return self._callables[items[0]]
        if code == "k":
            return VoteKind(items[0])
        if code == "z":
            return stand_in(_natural(items[0]))
        if code == "m":
            return Members(decode(items[0], tuple[Validator, ...], size_max=IMAGE_SIZE_MAX))
        if code == "p":
            bare = decode(items[0], PrePrepare, size_max=IMAGE_SIZE_MAX)
            return msgspec.structs.replace(bare, payload=stand_in(_natural(items[1])))
        if code == "c":
            return decode(items[1], _CODED[items[0]], size_max=IMAGE_SIZE_MAX)
        if code == "x":
            return _STRUCTS[items[0]](*(self._value(item, depth - 1) for item in items[1:]))
        inner = [self._value(item, depth - 1) for item in items]
        if code == "d":
            return dict(zip(inner[::2], inner[1::2], strict=True))
        if code == "t":
            return tuple(inner)
        if code == "l":
            return inner
        if code == "s":
            return set(inner)
        raise CodecError(f"{code!r} is no kind of value in an image")


def _natural(number: object) -> int:
    """A place or a length: an int that is not negative."""
    if type(number) is not int or not 0 <= number <= IMAGE_SIZE_MAX:
        raise CodecError("a place or a length in the image is no small natural number")
    return number
