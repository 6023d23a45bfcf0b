"""Canonical bytes and typed values: the only encoder of the project.

One value has one encoding: MessagePack with shortest integers, fixed-order arrays for our own types, map keys as
ASCII `str` in ascending order, no floats, no extension types, no trailing bytes, depth at most 16. `decode` proves
it by encoding the typed value again; bytes that differ are refused, so a hash or a signature over the bytes is one
over the value.

Why msgspec writes the bytes and not the package msgpack: the bytes are the same (a property test compares the two),
and a transaction's bytes are typed, proven and hashed by every member; msgspec does that in a third of the time.
"""

from functools import cache
from typing import Any, Final, TypeVar

import msgpack
import msgspec

T = TypeVar("T")

DEPTH_MAX = 16
INTEGER_MIN = -(2**63)
INTEGER_MAX = 2**64 - 1
_PLAIN: Final = frozenset({str, bytes, bool, type(None)})


class CodecError(ValueError):
    """Bytes or a value that have no canonical form; the text says which rule was broken."""


def _refuse(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} is not allowed")


_encode: Final = msgspec.msgpack.Encoder(order="sorted", enc_hook=_refuse).encode


@cache
def _decoder(type_: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(type_, strict=True)


def encode(value: object) -> bytes:
    """Return the canonical bytes of a typed value (a Struct, or a composition of plain types)."""
    try:
        if not isinstance(value, msgspec.Struct):
            # The fields of a Struct have types that say what may stand in them; here nothing else does.
            check_plain(msgspec.to_builtins(value, builtin_types=(bytes,)))
        return _encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise CodecError(f"value has no canonical form: {error}") from error


def decode(data: bytes, type_: type[T], *, size_max: int) -> T:
    """Return the value of type `type_` whose canonical bytes are `data`.

    Raise CodecError when `data` is longer than `size_max` bytes, is not MessagePack, does not have the
    type exactly (nothing is coerced, nothing defaulted), or is not the canonical encoding of its value.
    """
    value = decode_own(data, type_, size_max=size_max)
    if encode(value) != data:
        raise CodecError("bytes are not in canonical form")
    return value


def decode_own(data: bytes, type_: type[T], *, size_max: int) -> T:
    """Return the value of type `type_` in `data`, which this process has encoded or proven canonical before."""
    if len(data) > size_max:
        raise CodecError(f"{len(data)} bytes are more than the {size_max} allowed")
    try:
        value: T = _decoder(type_).decode(data)  # type: ignore[arg-type]
        return value
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise CodecError(str(error)) from error


def unpack(data: bytes, *, size_max: int) -> Any:
    """Return the plain value in `data` without judging its type or form, within `size_max` bytes."""
    if len(data) > size_max:
        raise CodecError(f"{len(data)} bytes are more than the {size_max} allowed")
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            use_list=False,
            max_str_len=size_max,
            max_bin_len=size_max,
            max_array_len=size_max,
            max_map_len=size_max,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise CodecError(f"not MessagePack: {error or type(error).__name__}") from error


def check_plain(value: object, depth: int = DEPTH_MAX) -> None:
    """Raise CodecError unless `value` is made of None, bool, int, str, bytes, sequences and str-keyed maps.

    For the one place where a type says `Any`: the arguments of a call, before their contract is known.
    """
    if type(value) in _PLAIN:
        return
    if type(value) is int:
        if not INTEGER_MIN <= value <= INTEGER_MAX:
            raise CodecError("integer outside 64 bits")
        return
    if depth == 0:
        raise CodecError(f"nested deeper than {DEPTH_MAX}")
    if isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                raise CodecError(f"map key of type {type(key).__name__} is not allowed")
            if type(item) not in _PLAIN:
                check_plain(item, depth - 1)
    elif isinstance(value, tuple | list):
        for item in value:
            if type(item) not in _PLAIN:
                check_plain(item, depth - 1)
    else:
        raise CodecError(f"{type(value).__name__} is not allowed")
