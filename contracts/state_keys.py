"""State keys: tuples as bytes whose order is the order of the tuples.

Each component is a tag byte and its content. Text and bytes are escaped (00 becomes 00 01) and end with 00 00, so
no encoded component is the beginning of another; integers are 8 bytes big-endian. Tags keep `True`, `1` and `"1"`
apart, and no component starts with FF, so `prefix + FF` ends the range of everything below a prefix.
"""

from collections.abc import Sequence
from typing import TypeAlias

Component: TypeAlias = str | bytes | int | bool

KEY_SIZE_BYTES_MAX = 1024
INTEGER_MAX = 2**64 - 1
TEXT_START = b"\x02"
TEXT_END = b"\x00\x00"

_BYTES = 0x01
_TEXT = 0x02
_INTEGER = 0x03
_FALSE = 0x04
_TRUE = 0x05


class StateKeyError(ValueError):
    """A tuple that has no key, or bytes that are no key."""


def encode_component(part: Component) -> bytes:
    """Return the bytes of one component of a key."""
    if type(part) is str:
        try:
            return TEXT_START + part.encode("utf-8").replace(b"\x00", b"\x00\x01") + TEXT_END
        except UnicodeEncodeError as error:
            raise StateKeyError("text with a lone surrogate has no key") from error
    if type(part) is int:
        if not 0 <= part <= INTEGER_MAX:
            raise StateKeyError("an integer in a key lies between 0 and 2^64 - 1")
        return b"\x03" + part.to_bytes(8, "big")
    if type(part) is bytes:
        return b"\x01" + part.replace(b"\x00", b"\x00\x01") + b"\x00\x00"
    if part is True:
        return b"\x05"
    if part is False:
        return b"\x04"
    raise StateKeyError(f"a key has no component of type {type(part).__name__}")


def encode_key(parts: Sequence[Component]) -> bytes:
    """Return the key of `parts`; keys sort as their tuples do (bytes, text, integers, booleans)."""
    key = b"".join([encode_component(part) for part in parts])
    if len(key) > KEY_SIZE_BYTES_MAX:
        raise StateKeyError(f"a key of {len(key)} bytes is longer than {KEY_SIZE_BYTES_MAX}")
    return key


def decode_key(key: bytes) -> tuple[Component, ...]:
    """Return the tuple whose key is `key`; raise StateKeyError when there is none."""
    parts: list[Component] = []
    position = 0
    while position < len(key):
        tag = key[position]
        position += 1
        if tag == _INTEGER:
            if position + 8 > len(key):
                raise StateKeyError("key ends inside an integer")
            parts.append(int.from_bytes(key[position : position + 8], "big"))
            position += 8
        elif tag in (_TEXT, _BYTES):
            content, position = _unescape(key, position)
            try:
                parts.append(content.decode("utf-8") if tag == _TEXT else content)
            except UnicodeDecodeError as error:
                raise StateKeyError("key holds text that is not UTF-8") from error
        elif tag in (_FALSE, _TRUE):
            parts.append(tag == _TRUE)
        else:
            raise StateKeyError(f"unknown tag {tag} in key")
    return tuple(parts)


def _unescape(key: bytes, position: int) -> tuple[bytes, int]:
    content = bytearray()
    while True:
        end = key.find(b"\x00", position)
        if end < 0:
            raise StateKeyError("key ends inside a component")
        content += key[position:end]
        following = key[end + 1 : end + 2]
        if following == b"\x00":
            return bytes(content), end + 2
        if following != b"\x01":
            raise StateKeyError("key holds a NUL that is neither escaped nor an end")
        content.append(0)
        position = end + 2
