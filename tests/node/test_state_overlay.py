"""The overlay against a plain dictionary, and what typed values and caches may never do."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from consensus.codec import encode
from contracts.storage import WrongType
from node.state import Overlay, ValueCache, WriteSet


class Account(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    owner: str
    balance: int


class Base:
    """A fixed state that counts its reads."""

    def __init__(self, values: dict[bytes, Any] | None = None) -> None:
        self.values = {key: encode(value) for key, value in (values or {}).items()}
        self.reads: list[bytes] = []

    def get(self, key: bytes) -> bytes | None:
        self.reads.append(key)
        return self.values.get(key)

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        yield from [(key, self.values[key]) for key in sorted(self.values) if start <= key < end]


def key_of(number: int) -> bytes:
    return b"k%02d" % number


numbers = st.integers(0, 12)


class OverlayMachine(RuleBasedStateMachine):
    """Every operation of an overlay, mirrored on a dictionary with copies as savepoints."""

    def __init__(self) -> None:
        super().__init__()
        self.start = {key_of(number): number for number in range(0, 12, 3)}
        self.base = Base(dict(self.start))
        self.cache = ValueCache(4)
        self.overlay = Overlay(self.base, self.cache)
        self.model: dict[bytes, int] = dict(self.start)
        self.marks: list[tuple[int, dict[bytes, int]]] = []

    @rule(number=numbers, value=st.integers(0, 5))
    def put(self, number: int, value: int) -> None:
        self.overlay.put(key_of(number), value)
        self.model[key_of(number)] = value

    @rule(number=numbers)
    def delete(self, number: int) -> None:
        self.overlay.delete(key_of(number))
        self.model.pop(key_of(number), None)

    @rule(number=numbers)
    def get(self, number: int) -> None:
        assert self.overlay.get(key_of(number), int) == self.model.get(key_of(number))

    @rule(low=numbers, high=numbers, limit=st.integers(0, 5))
    def scan(self, low: int, high: int, limit: int) -> None:
        start, end = key_of(low), key_of(high)
        expected = [(key, self.model[key]) for key in sorted(self.model) if start <= key < end][:limit]
        assert self.overlay.scan(start, end, int, limit) == expected

    @rule()
    def savepoint(self) -> None:
        self.marks.append((self.overlay.savepoint(), dict(self.model)))

    @precondition(lambda self: self.marks)
    @rule()
    def rollback(self) -> None:
        mark, self.model = self.marks.pop()
        self.overlay.rollback(mark)

    @precondition(lambda self: not self.marks)
    @rule()
    def next_block(self) -> None:
        writes = self.overlay.write_set()
        for key, raw in writes.after.items():
            self.base.values.pop(key, None)
            if raw is not None:
                self.base.values[key] = raw
        stale, self.cache = self.cache, self.cache.advance(writes)
        late = Overlay(Base({key_of(number): 99 for number in range(13)}), stale)
        for number in range(13):
            late.get(key_of(number), int)  # an overlay of the old height that is still at work
        self.start = dict(self.model)
        self.overlay = Overlay(self.base, self.cache)

    @invariant()
    def write_set_is_the_difference(self) -> None:
        writes = self.overlay.write_set()
        keys = sorted({*self.start, *self.model})
        changed = [key for key in keys if self.start.get(key) != self.model.get(key)]
        assert list(writes.after) == changed == list(writes.before)
        for key in changed:
            assert writes.after[key] == (encode(self.model[key]) if key in self.model else None)
            assert writes.before[key] == (encode(self.start[key]) if key in self.start else None)


TestOverlay = OverlayMachine.TestCase
TestOverlay.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_a_value_is_never_returned_as_another_type_than_its_own() -> None:
    overlay = Overlay(Base({b"a": 1}), ValueCache())
    assert overlay.get(b"a", int) == 1
    with pytest.raises(WrongType):
        overlay.get(b"a", str)
    overlay.put(b"b", True)
    assert overlay.get(b"b", bool) is True
    with pytest.raises(WrongType):
        overlay.get(b"b", int)
    overlay.put(b"c", ("bank-a", 7))
    assert overlay.get(b"c", Account) == Account("bank-a", 7)


def test_hot_keys_are_read_and_decoded_once_while_nobody_writes_them() -> None:
    base = Base({b"a": Account("bank-a", 1)})
    cache = ValueCache()
    first = Overlay(base, cache).get(b"a", Account)
    assert Overlay(base, cache).get(b"a", Account) is first
    assert base.reads == [b"a"]


def test_a_written_value_is_decoded_from_its_bytes_in_the_next_block() -> None:
    """What a contract sees must not depend on whether its node was restarted."""
    base = Base({b"a": Account("bank-a", 0)})
    cache = ValueCache()
    overlay = Overlay(base, cache)
    put = Account("bank-a", 1)
    overlay.put(b"a", put)
    assert overlay.get(b"a", Account) is put
    following = Overlay(base, cache.advance(overlay.write_set()))
    again = following.get(b"a", Account)
    assert again == put
    assert again is not put


def test_a_key_known_to_be_lacking_is_not_looked_up_until_the_state_moves_on() -> None:
    base = Base({b"a": 1})
    cache = ValueCache(lacks=lambda key: key != b"a")
    overlay = Overlay(base, cache)
    assert (overlay.get(b"a", int), overlay.get(b"b", int)) == (1, None)
    assert base.reads == [b"a"]
    following = cache.advance(WriteSet({b"b": encode(2)}, {b"b": None}))
    late = Overlay(base, cache)
    assert late.get(b"b", int) is None
    assert base.reads == [b"a", b"b"], "who stands on the old state must not ask what belongs to the new one"
    assert Overlay(base, following).get(b"c", int) is None
    assert base.reads == [b"a", b"b"]


def test_the_cache_stays_within_its_bound() -> None:
    base = Base({key_of(number): number for number in range(50)})
    overlay = Overlay(base, cache := ValueCache(4))
    for number in range(50):
        overlay.get(key_of(number), int)
    assert [number for number in range(50) if cache.get(key_of(number))] == [46, 47, 48, 49]


def test_none_is_no_value() -> None:
    with pytest.raises(TypeError):
        Overlay(Base()).put(b"a", None)


def test_what_had_no_value_before_is_not_kept_and_what_changed_is_never_stale() -> None:
    base = Base({b"a": 1, b"gone": 5})
    cache = ValueCache()
    overlay = Overlay(base, cache)
    assert (overlay.get(b"a", int), overlay.get(b"gone", int), overlay.get(b"new", int)) == (1, 5, None)
    overlay.put(b"a", 2)
    overlay.put(b"new", 3)
    overlay.delete(b"gone")
    writes = overlay.write_set()
    following = cache.advance(writes)
    assert [following.get(key) for key in (b"a", b"new", b"gone")] == [(encode(2), None, None), None, None]
    base.values.update({b"a": encode(2), b"new": encode(3)})
    del base.values[b"gone"]
    base.reads.clear()
    late = Overlay(base, following)
    assert [late.get(key, int) for key in (b"a", b"new", b"gone")] == [2, 3, None]
    assert base.reads == [b"new", b"gone"]
