"""Members come from genesis; a member's root principal manages its own principals and nobody else's."""

from typing import Any

import pytest

from contracts.membership import Membership
from contracts.policies import FormerKey, Policy
from contracts.sdk import Revert
from contracts.testkit import World, reverts


def key(number: int) -> bytes:
    return bytes([number]) * 32


def member(name: str, number: int, role: str = "validator") -> dict[str, Any]:
    return {"id": name, "role": role, "voting_key": key(number), "tls_key": key(100 + number)}


GENESIS: dict[str, Any] = {
    "members": [member("zeta", 1), member("bank-a", 2), member("watch", 3, "regulator"), member("bank-a-2", 4)],
    "principals": [
        {"id": "bank-a", "keys": [key(11), key(10)], "threshold": 2},
        {"id": "zeta", "keys": [key(12)], "threshold": 1},
        {"id": "bank-a/desk", "keys": [key(13)], "threshold": 1},
        {"id": "bank-a-2", "keys": [key(14)], "threshold": 1},
    ],
}


@pytest.fixture
def world() -> World:
    return World((Membership,), {"membership": GENESIS})


def test_validators_stand_in_the_order_of_the_definition(world: World) -> None:
    assert Membership.read_validators(world.state) == (("zeta", key(1)), ("bank-a", key(2)), ("bank-a-2", key(4)))
    assert [row["id"] for row in world.query(Membership.members)] == ["zeta", "bank-a", "watch", "bank-a-2"]
    assert world.query(Membership.member, member="watch")["role"] == "regulator"


def test_policies_are_read_from_the_state_outside_any_call(world: World) -> None:
    assert Membership.read_policy(world.state, "bank-a") == Policy(2, (key(10), key(11)))
    assert Membership.read_policy(world.state, "bank-a/desk") == Policy(1, (key(13),))
    for stranger in ("nobody", "bank-a/", "bank-a/desk/x", "", "\x00"):
        assert Membership.read_policy(world.state, stranger) is None


def test_principals_are_listed_by_member_the_root_first(world: World) -> None:
    world.as_("bank-a").call(Membership.add_principal, principal="bank-a/api", threshold=1, keys=[key(20)])
    rows = world.query(Membership.principals, member="bank-a")
    assert [row["id"] for row in rows] == ["bank-a", "bank-a/api", "bank-a/desk"]
    page = world.query(Membership.principals, member="bank-a", after="bank-a", limit=1)
    assert [row["id"] for row in page] == ["bank-a/api"]
    assert world.query(Membership.principal, principal="bank-a/api")["threshold"] == 1


def test_a_root_adds_changes_and_removes(world: World) -> None:
    root = world.as_("bank-a")
    (event,) = root.call(Membership.add_principal, principal="bank-a/x", threshold=1, keys=[key(20), key(19)])
    assert event.topics == ("membership/member/bank-a", "membership/principal/bank-a/x")
    root.call(Membership.set_policy, principal="bank-a/x", threshold=2, keys=[key(20), key(19)])
    assert Membership.read_policy(world.state, "bank-a/x") == Policy(2, (key(19), key(20)))
    root.call(Membership.remove_principal, principal="bank-a/x")
    assert Membership.read_policy(world.state, "bank-a/x") is None
    root.call(Membership.set_policy, principal="bank-a", threshold=1, keys=[key(30)])
    assert Membership.read_policy(world.state, "bank-a") == Policy(1, (key(30),))


@pytest.mark.parametrize("sender", ["zeta", "bank-a/desk", "bank-a-2", "watch"])
def test_nobody_else_manages_them(world: World, sender: str) -> None:
    actor = world.as_(sender)
    with reverts("not_authorized"):
        actor.call(Membership.add_principal, principal="bank-a/x", threshold=1, keys=[key(20)])
    with reverts("not_authorized"):
        actor.call(Membership.set_policy, principal="bank-a/desk", threshold=1, keys=[key(20)])
    with reverts("not_authorized"):
        actor.call(Membership.remove_principal, principal="bank-a/desk")


@pytest.mark.parametrize(
    ("threshold", "keys", "code"),
    [
        (0, [key(1)], "threshold_out_of_range"),
        (-1, [key(1)], "threshold_out_of_range"),
        (2, [key(1)], "threshold_out_of_range"),
        (1, [], "keys_out_of_range"),
        (1, [key(number) for number in range(17)], "keys_out_of_range"),
        (1, [key(1), key(1)], "keys_not_distinct"),
        (1, [b"short"], "invalid_arguments"),
    ],
)
def test_a_policy_that_cannot_be_satisfied_is_refused(
    world: World, threshold: int, keys: list[bytes], code: str
) -> None:
    root = world.as_("bank-a")
    with reverts(code):
        root.call(Membership.add_principal, principal="bank-a/x", threshold=threshold, keys=keys)
    with reverts(code):
        root.call(Membership.set_policy, principal="bank-a", threshold=threshold, keys=keys)


def test_sixteen_keys_are_a_policy(world: World) -> None:
    keys = [key(number) for number in range(16)]
    world.as_("bank-a").call(Membership.add_principal, principal="bank-a/x", threshold=16, keys=keys)


def test_the_root_stays_and_unknown_or_double_principals_are_refused(world: World) -> None:
    root = world.as_("bank-a")
    with reverts("root_principal"):
        root.call(Membership.remove_principal, principal="bank-a")
    with reverts("principal_not_found"):
        root.call(Membership.remove_principal, principal="bank-a/none")
    with reverts("principal_not_found"):
        root.call(Membership.set_policy, principal="bank-a/none", threshold=1, keys=[key(1)])
    with reverts("principal_exists"):
        root.call(Membership.add_principal, principal="bank-a/desk", threshold=1, keys=[key(1)])
    with reverts("invalid_arguments"):
        root.call(Membership.add_principal, principal="bank-a/UPPER", threshold=1, keys=[key(1)])


@pytest.mark.parametrize(
    ("members", "principals", "code"),
    [
        ([member("a", 1), member("a", 2)], [], "member_exists"),
        ([member("a", 1), member("b", 1)], [], "keys_not_distinct"),
        ([member("a", 1)], [{"id": "b", "keys": [key(1)], "threshold": 1}], "member_not_found"),
        ([member("a", 1)], [{"id": "a", "keys": [key(1)], "threshold": 2}], "threshold_out_of_range"),
        ([member("a", 1)], [{"id": "a", "keys": [key(1)], "threshold": 1}] * 2, "principal_exists"),
    ],
)
def test_a_wrong_definition_makes_no_network(
    members: list[dict[str, Any]], principals: list[dict[str, Any]], code: str
) -> None:
    with pytest.raises(Revert, match=code):
        World((Membership,), {"membership": {"members": members, "principals": principals}})


def test_a_principals_key_is_rotated_with_an_overlap(world: World) -> None:
    root = world.as_("bank-a")
    rotate = {"principal": "bank-a/desk", "former": key(13), "key": key(30), "overlap_ms": 60_000}
    (event,) = root.call(Membership.rotate_key, **rotate)
    began_ms = world.time_ms
    assert event.name == "KeyRotated"
    assert Membership.read_policy(world.state, "bank-a/desk") == Policy(
        1, (key(30),), (FormerKey(key(13), key(30), began_ms + 60_000),)
    )
    with reverts("key_not_found"):
        root.call(Membership.rotate_key, **rotate)
    with reverts("key_in_use"):
        root.call(Membership.rotate_key, principal="bank-a/desk", former=key(30), key=key(13))
    # A third key ends the first one at once, whose successor is none any more.
    root.call(Membership.rotate_key, principal="bank-a/desk", former=key(30), key=key(31), overlap_ms=120_000)
    assert Membership.read_policy(world.state, "bank-a/desk") == Policy(
        1, (key(31),), (FormerKey(key(30), key(31), world.time_ms + 120_000),)
    )
    world.advance(60_000)
    assert len(world.query(Membership.principal, principal="bank-a/desk")["former"]) == 1
    # Its time is over: another one may take its place, and it is forgotten.
    world.advance(60_000)
    root.call(Membership.rotate_key, principal="bank-a/desk", former=key(31), key=key(30), overlap_ms=0)
    assert Membership.read_policy(world.state, "bank-a/desk") == Policy(1, (key(30),))


def test_only_the_root_rotates_and_never_a_nodes_key(world: World) -> None:
    with reverts("not_authorized"):
        world.as_("bank-a/desk").call(Membership.rotate_key, principal="bank-a/desk", former=key(13), key=key(30))
    with reverts("not_authorized"):
        world.as_("zeta").call(Membership.rotate_key, principal="bank-a/desk", former=key(13), key=key(30))
    with reverts("reserved_principal"):
        world.as_("bank-a").call(Membership.rotate_key, principal="bank-a/node", former=key(2), key=key(30))
