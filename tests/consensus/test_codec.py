"""One value, one encoding: DESIGN 3 on bytes."""

import contextlib
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.codec import DEPTH_MAX, CodecError, check_plain, decode, encode, unpack
from consensus.messages import Certificate, Message, PrePrepare, Vote, VoteKind

from .strategies import messages

MESSAGE: Any = Message  # a union is no `type` for mypy
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


class Sample(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    number: int
    text: str
    extra: int | None = None


class Loose(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    fields: dict[str, int]


@given(messages())
def test_a_message_comes_back_from_its_bytes(message: Message) -> None:
    data = encode(message)
    again = decode(data, MESSAGE, size_max=len(data))
    assert again == message
    assert encode(again) == data


@given(PLAIN)
def test_a_plain_value_comes_back_from_its_bytes(value: Any) -> None:
    data = encode((value,))
    assert unpack(data, size_max=len(data)) == (value,)


@given(value=PLAIN)
def test_the_package_msgpack_writes_the_same_bytes(value: Any) -> None:
    """Two libraries agree on the canonical form, so it is MessagePack and not one library's habit."""
    assert encode((value,)) == msgpack.packb([_ordered(value)])


def _ordered(value: Any) -> Any:
    """The value with its maps' keys in ascending order."""
    if isinstance(value, dict):
        return {key: _ordered(value[key]) for key in sorted(value)}
    return [_ordered(item) for item in value] if isinstance(value, tuple | list) else value


@given(PLAIN, st.randoms(use_true_random=False))
def test_maps_have_one_order(value: Any, random: Any) -> None:
    def shuffled(plain: Any) -> Any:
        if isinstance(plain, dict):
            items = list(plain.items())
            random.shuffle(items)
            return {key: shuffled(item) for key, item in items}
        return tuple(map(shuffled, plain)) if isinstance(plain, tuple) else plain

    assert encode((shuffled(value),)) == encode((value,))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_canonical_message_or_refused(data: bytes) -> None:
    try:
        message = decode(data, MESSAGE, size_max=200)
    except CodecError:
        return
    assert encode(message) == data


@given(messages(), st.data())
def test_a_changed_byte_is_another_message_or_refused(message: Message, data: st.DataObject) -> None:
    encoded = encode(message)
    place = data.draw(st.integers(0, len(encoded) - 1))
    flipped = bytearray(encoded)
    flipped[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(CodecError):
        assert decode(bytes(flipped), MESSAGE, size_max=len(encoded)) != message


@pytest.mark.parametrize(
    ("data", "type_"),
    [
        (b"\x93\xcd\x00\x01\xa1a\xc0", Sample),  # 1 in three bytes
        (b"\x93\xd0\x01\xa1a\xc0", Sample),  # 1 as a signed byte
        (b"\x93\x01\xd9\x01a\xc0", Sample),  # a short text with a long head
        (b"\xdc\x00\x03\x01\xa1a\xc0", Sample),  # a short array with a long head
        (b"\x92\x01\xa1a", Sample),  # a field left to its default
        (b"\x94\x01\xa1a\xc0\xc0", Sample),  # a field too many
        (b"\x93\x01\xa1a\xc0\x00", Sample),  # trailing bytes
        (b"\x93\x01\xa1a", Sample),  # cut short
        (b"\x93\x01\xc4\x01a\xc0", Sample),  # bytes for text
        (b"\x93\xa11\xa1a\xc0", Sample),  # text for a number
        (b"\x93\xcb" + bytes(8) + b"\xa1a\xc0", Sample),  # a float for a number
        (b"\x93\xc3\xa1a\xc0", Sample),  # True for 1
        (b"\x93\x01\xa1\xff\xc0", Sample),  # not UTF-8
        (b"\x93\xd4\x01\x00\xa1a\xc0", Sample),  # an extension type
        (b"\x93\xd6\xff" + bytes(4) + b"\xa1a\xc0", Sample),  # a timestamp
        (b"\x91\x82\xa1b\x01\xa1a\x02", Loose),  # keys out of order
        (b"\x91\x82\xa1a\x01\xa1a\x02", Loose),  # a key twice
        (b"\x91\x81\xc4\x01a\x01", Loose),  # a key of bytes
        (b"\x91\x81\x01\x01", Loose),  # a key of another type
        (b"", Sample),
        (b"\xc1", Sample),  # never used by MessagePack
    ],
)
def test_every_other_spelling_is_refused(data: bytes, type_: type[Any]) -> None:
    with pytest.raises(CodecError):
        decode(data, type_, size_max=100)


def test_bytes_above_the_limit_are_refused_before_they_are_read() -> None:
    data = encode(Sample(1, "x" * 100))
    with pytest.raises(CodecError, match="more than the 50 allowed"):
        decode(data, Sample, size_max=50)


def test_a_length_that_promises_more_than_there_is_takes_no_memory() -> None:
    for head in (
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
    ):
        with pytest.raises(CodecError):
            unpack(head, size_max=1_000)


def test_a_deep_value_is_refused() -> None:
    value: Any = 1
    for _ in range(DEPTH_MAX + 2):
        value = (value,)
    with pytest.raises(CodecError, match="nested deeper"):
        check_plain(value)
    with pytest.raises(CodecError):
        decode(b"\x91" * 100_000 + b"\x01", Sample, size_max=200_000)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, {1: 2}, object(), (object(),)])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(CodecError):
        encode(value)


def test_arguments_of_an_unknown_type_are_judged_value_by_value() -> None:
    check_plain({"a": [1, "b", b"c", None, True, {"d": ()}]})
    for bad in (1.0, {"a": 1.0}, {1: 2}, [object()], msgpack.Timestamp(1, 0), 2**64):
        with pytest.raises(CodecError):
            check_plain(bad)


def test_numbers_outside_their_field_are_refused() -> None:
    vote = Vote(VoteKind.PREPARE, 0, 1, b"d" * 32, 0, b"s" * 64)
    for bad in (
        msgspec.structs.replace(vote, view=2**63),
        msgspec.structs.replace(vote, height=-1),
        msgspec.structs.replace(vote, member=128),
        msgspec.structs.replace(vote, digest=b"short"),
        msgspec.structs.replace(vote, signature=b"s" * 65),
    ):
        with pytest.raises(CodecError):
            decode(encode(bad), MESSAGE, size_max=1_000)


def test_a_payload_and_a_certificate_have_a_largest_size() -> None:
    vote = Vote(VoteKind.PREPARE, 0, 1, b"d" * 32, 0, b"s" * 64)
    with pytest.raises(CodecError):
        decode(encode(PrePrepare(vote, bytes(4 * 1024 * 1024 + 1), None)), PrePrepare, size_max=2**24)
    crowd = Certificate(VoteKind.COMMIT, 0, 1, b"d" * 32, ((0, b"s" * 64),) * 129)
    with pytest.raises(CodecError):
        decode(encode(crowd), Certificate, size_max=2**24)
