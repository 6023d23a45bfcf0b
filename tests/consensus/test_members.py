"""README 1: thresholds."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.members import Members, Validator


def members_of(n: int) -> Members:
    return Members(tuple(Validator(f"m{i}", bytes([i]) * 32) for i in range(n)))


@pytest.mark.parametrize("n", range(1, 17))
def test_two_quorums_share_an_honest_member_and_the_honest_are_a_quorum(n: int) -> None:
    """1.1"""
    members = members_of(n)
    assert 3 * members.f < n
    assert 2 * members.quorum - n >= members.f + 1
    assert n - members.f >= members.quorum
    assert members.weak_quorum == members.f + 1


@pytest.mark.parametrize("n", range(1, 17))
def test_a_smaller_quorum_would_fork(n: int) -> None:
    """1.1"""
    members = members_of(n)
    smaller = members.quorum - 1
    assert 2 * smaller - n < members.f + 1


def test_plain_2f_plus_1_forks_at_five_and_six_members() -> None:
    """1.1"""
    for n in (5, 6):
        members = members_of(n)
        plain = 2 * members.f + 1
        shared = min(
            len(set(a) & set(b)) for a in combinations(range(n), plain) for b in combinations(range(n), plain)
        )
        assert shared <= members.f
        assert members.quorum > plain


@given(
    n=st.integers(1, 16), height=st.integers(0, 2**62), view=st.integers(0, 2**62), rotation=st.integers(1, 10_000)
)
def test_every_member_is_primary_in_n_successive_views(n: int, height: int, view: int, rotation: int) -> None:
    """1.2"""
    members = members_of(n)
    primaries = [members.primary(height, view + step, rotation) for step in range(n)]
    assert sorted(primaries) == list(range(n))


def test_the_primary_stays_over_heights_until_the_rotation() -> None:
    """1.2"""
    members = members_of(4)
    assert {members.primary(height, 0, 100) for height in range(100)} == {0}
    assert members.primary(100, 0, 100) == 1


@pytest.mark.parametrize(
    "validators",
    [
        (),
        (Validator("a", b"1" * 32), Validator("a", b"2" * 32)),
        (Validator("a", b"1" * 32), Validator("b", b"1" * 32)),
    ],
)
def test_a_list_without_members_or_with_a_name_or_key_twice_is_refused(validators: tuple[Validator, ...]) -> None:
    """1.3"""
    with pytest.raises(ValueError):  # noqa: PT011 - three texts
        Members(validators)


def resting_sets(n: int) -> list[tuple[int, ...]]:
    """Every choice of members that leaves a quorum."""
    spare = n - members_of(n).quorum
    return [chosen for count in range(spare + 1) for chosen in combinations(range(n), count)]


@pytest.mark.parametrize("n", range(1, 11))
def test_a_resting_members_turn_goes_to_another_and_all_others_keep_theirs(n: int) -> None:
    """1.4"""
    members = members_of(n)
    for resting in resting_sets(n):
        turns = [members.primary(7, view, 3, resting) for view in range(n)]
        plain = [members.primary(7, view, 3) for view in range(n)]
        assert not set(turns) & set(resting)
        assert [one for one, turn in zip(turns, plain, strict=True) if turn not in resting] == [
            turn for turn in plain if turn not in resting
        ]
        # A dead member costs one time-out: the next view has another primary.
        assert n < 4 or all(turns[place] != turns[place - 1] for place in range(n))


@pytest.mark.parametrize("n", range(1, 17))
def test_nobody_rests_where_the_others_are_no_quorum(n: int) -> None:
    """1.4"""
    members = members_of(n)
    for count in range(n + 1):
        named = tuple(f"m{index}" for index in range(count))
        expected = tuple(range(count)) if n - count >= members.quorum else ()
        assert members.resting((*named, "stranger")) == expected
