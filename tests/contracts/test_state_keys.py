"""State keys sort as their tuples do, no key is mistaken for another, and decoding is the inverse."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.state_keys import StateKeyError, decode_key, encode_key

TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    ["", "\x00", "a\x00", "a", "a\x00b"]
)
BYTES = st.binary(max_size=6) | st.sampled_from([b"", b"\x00", b"\x00\xff", b"\xff", b"\x00\x00"])
COMPONENT = TEXT | BYTES | st.integers(0, 2**64 - 1) | st.booleans()
KEY = st.lists(COMPONENT, max_size=4).map(tuple)


def rank(part: Any) -> tuple[int, Any]:
    """Order of components: bytes, text by its UTF-8, integers, False, True."""
    if isinstance(part, bool):
        return (3, part)
    if isinstance(part, int):
        return (2, part)
    return (1, part.encode()) if isinstance(part, str) else (0, part)


@given(KEY, KEY)
def test_keys_are_in_the_order_of_their_tuples_and_distinct(left: tuple[Any, ...], right: tuple[Any, ...]) -> None:
    ranks = [rank(part) for part in left], [rank(part) for part in right]
    assert (encode_key(left) < encode_key(right)) == (ranks[0] < ranks[1])
    assert (encode_key(left) == encode_key(right)) == (ranks[0] == ranks[1])


@given(KEY)
def test_decoding_is_the_inverse(key: tuple[Any, ...]) -> None:
    decoded = decode_key(encode_key(key))
    assert decoded == key
    assert [type(part) for part in decoded] == [type(part) for part in key]


@given(COMPONENT, COMPONENT)
def test_no_component_begins_with_another(left: Any, right: Any) -> None:
    if rank(left) != rank(right):
        assert not encode_key((left,)).startswith(encode_key((right,)))


@given(KEY, COMPONENT)
def test_everything_below_a_prefix_lies_before_prefix_and_ff(prefix: tuple[Any, ...], part: Any) -> None:
    start = encode_key(prefix)
    assert start < encode_key((*prefix, part)) < start + b"\xff"


def test_truth_is_not_one() -> None:
    assert len({encode_key((part,)) for part in (True, 1, "1", b"1")}) == 4


@pytest.mark.parametrize("part", [-1, 2**64, 1.5, None, "\ud800", ("a",)])
def test_what_has_no_key_is_refused(part: Any) -> None:
    with pytest.raises(StateKeyError):
        encode_key((part,))


def test_a_key_is_bounded() -> None:
    encode_key(("a" * 1000,))
    with pytest.raises(StateKeyError):
        encode_key(("a" * 2000,))


@given(st.binary(max_size=20))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        parts = decode_key(data)
    except StateKeyError:
        return
    assert encode_key(parts) == data
