"""Messages as a liar sends them: well-formed, but one value in them, or in bytes within them, is another one."""

from collections.abc import Callable
from typing import Any

import msgspec

from consensus.codec import encode
from node.errors import InvalidFrame
from node.wire import WireMessage, decode_message

Pick = Callable[[int, int], int]
"""A number in [low, high)."""
INTEGERS = (0, 1, 2, 2**31, 2**53, 2**63 - 1, 2**64 - 1)
TEXTS = ("", "bank-a", "@governance", "\0", "x" * 300)


def garbled(message: WireMessage, pick: Pick) -> WireMessage | None:
    """What became of `message`; None when no peer would take it for a message."""
    tree = msgspec.msgpack.decode(encode(message))
    tag, *fields = tree
    try:
        return decode_message(msgspec.msgpack.encode([tag, *_bent(fields, pick)]))
    except (InvalidFrame, OverflowError):
        return None


def _bent(value: Any, pick: Pick) -> Any:
    if isinstance(value, list):
        if value and pick(0, 8):
            place = pick(0, len(value))
            return [*value[:place], _bent(value[place], pick), *value[place + 1 :]]
        return ([], value * 2, value[:-1], value[::-1], [*value, 2**63 - 1])[pick(0, 5)]
    if isinstance(value, bytes):
        inside = _inside(value) if pick(0, 4) else None
        if inside is not None:
            return msgspec.msgpack.encode(_bent(inside, pick))
        return (b"", bytes(len(value)), value[:-1], value + b"x", value[::-1], b"\x91" * 2_000)[pick(0, 6)]
    if isinstance(value, bool) or value is None:
        return (None, True, False, 1, b"")[pick(0, 5)]
    if isinstance(value, int):
        return (*INTEGERS, value + 1, value - 1)[pick(0, len(INTEGERS) + 2)]
    return TEXTS[pick(0, len(TEXTS))]


def _inside(value: bytes) -> list[Any] | None:
    """What the bytes encode, if that is a list with something in it."""
    try:
        found = msgspec.msgpack.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return found if isinstance(found, list) and found else None
