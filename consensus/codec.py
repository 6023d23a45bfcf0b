"""Canonical bytes and typed values: the only encoder of the project.

One value has one encoding: MessagePack with shortest integers, fixed-order arrays for our own types,
map keys as ASCII `str` in ascending order, no floats, no extension types, no trailing bytes, depth at most 16.
`decode` proves it by encoding the typed value again; bytes that differ are refused, so a hash or a
signature over the bytes is one over the value.
"""

from typing import Any, TypeVar, cast

import msgpack
import msgspec

T = TypeVar("T")

DEPTH_MAX = 16
INTEGER_MIN = -(2**63)
INTEGER_MAX = 2**64 - 1


class CodecError(ValueError):
    """Bytes or a value that have no canonical form; the text says which rule was broken."""


def encode(value: object) -> bytes:
    """Return the canonical bytes of a typed value (a Struct, or a composition of plain types)."""
    try:
        plain = msgspec.to_builtins(value, builtin_types=(bytes,), order="sorted")
        if not isinstance(value, msgspec.Struct):
            # The fields of a Struct have types that say what may stand in them; here nothing else does.
            check_plain(plain)
        return cast(bytes, msgpack.packb(plain, default=_refuse))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CodecError(f"value has no canonical form: {error}") from error


def decode(data: bytes, type_: type[T], *, size_max: int) -> T:
    """Return the value of type `type_` whose canonical bytes are `data`.

    Raise CodecError when `data` is longer than `size_max` bytes, is not MessagePack, does not have the
    type exactly (nothing is coerced, nothing defaulted), or is not the canonical encoding of its value.
    """
    value = convert(unpack(data, size_max=size_max), type_)
    if encode(value) != data:
        raise CodecError("bytes are not in canonical form")
    return value


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


def convert(value: Any, type_: type[T]) -> T:
    """Return `value`, made of plain types, as the type `type_`, strictly."""
    try:
        return msgspec.convert(value, type_, strict=True, builtin_types=(bytes,))
    except (msgspec.ValidationError, RecursionError) as error:
        raise CodecError(str(error)) from error


def check_plain(value: object, depth: int = DEPTH_MAX) -> None:
    """Raise CodecError unless `value` is made of None, bool, int, str, bytes, sequences and str-keyed maps.

    For the one place where a type says `Any`: the arguments of a call, before their contract is known.
    """
    if depth < 0:
        raise CodecError(f"nested deeper than {DEPTH_MAX}")
    if value is None or isinstance(value, bool | str | bytes):
        return
    if isinstance(value, int):
        if not INTEGER_MIN <= value <= INTEGER_MAX:
            raise CodecError("integer outside 64 bits")
    elif isinstance(value, tuple | list):
        for item in value:
            check_plain(item, depth - 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise CodecError(f"map key of type {type(key).__name__} is not allowed")
            check_plain(item, depth - 1)
    else:
        raise CodecError(f"{type(value).__name__} is not allowed")


def _refuse(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} is not allowed")
