"""A tier that nobody can meet any more goes by the members' votes; nothing else of a member's policies does."""

from typing import Any

import pytest

from contracts.governance import Governance
from contracts.membership import Membership
from contracts.testkit import World, reverts
from tests.contracts.test_governance import END_MS, decided, ended, key, ready, status, vote, world_of

PERSONS = ("anna", "ben", "cleo")
TREASURY = "bank-a/treasury"


def tier(member: str = "bank-a", **changes: Any) -> dict[str, Any]:
    """Two of three persons for calls to membership, of the member's root."""
    persons = [f"{member}/{name}" for name in PERSONS]
    groups = [{"threshold": 2, "persons": persons}]
    return {"name": "large", "principal": member, "contract": "membership", "groups": groups, **changes}


def seated(world: World, member: str = "bank-a") -> World:
    """The member has its three persons, a treasury and the tier `large`."""
    root = world.as_(member)
    for number, name in enumerate((*PERSONS, "treasury"), 210):
        root.call(Membership.add_principal, principal=f"{member}/{name}", threshold=1, keys=[key(number)])
    root.call(Membership.set_tier, **tier(member))
    return world


@pytest.fixture
def world() -> World:
    return seated(world_of(6))


def propose(world: World, by: str = "bank-a", **changes: Any) -> int:
    args = {"member": by, "tier": "large", "expires_at_ms": END_MS, **changes}
    number: int = world.as_(by).call(Governance.propose_tier_removal, **args)[0].data["proposal"]
    return number


def policies(world: World) -> list[tuple[Any, ...]]:
    """Of all of bank-a's principals: threshold and keys."""
    rows = world.query(Membership.principals, member="bank-a")
    return [(row["id"], row["threshold"], row["keys"], row["former"]) for row in rows]


def names(world: World, member: str = "bank-a") -> list[str]:
    return [item["name"] for item in world.query(Membership.tiers, member=member)]


def test_all_votes_but_f_take_the_tier_away_and_nothing_else(world: World) -> None:
    root = world.as_("bank-a")
    root.call(Membership.set_tier, **tier(name="other", principal=TREASURY))
    root.call(
        Membership.rotate_key, principal=TREASURY, former=key(213), key=key(214), overlap_ms=END_MS - world.time_ms
    )
    before = policies(world)
    number = propose(world)
    shown = world.query(Governance.proposal, proposal=number)["proposal"]
    assert (shown["subject"], shown["tier"]["groups"][0]["threshold"]) == ("tier/bank-a/large", 2)
    assert (shown["before"]["standing"], shown["after"]["standing"]) == ("active", "absent")
    # A quorum of six are four; this asks for five, the proposer's own vote among them.
    vote(world, number, "bank-b", "bank-c", "bank-d")
    assert (status(world, number), names(world)) == ("open", ["large", "other"])
    vote(world, number, "bank-e")
    assert (ended(world, number), names(world)) == (("effective", ""), ["other"])
    assert policies(world) == before
    [row] = [row for row in world.query(Membership.principals, member="bank-a") if row["id"] == "bank-a"]
    assert row["tiers"] == ["other"]
    [event] = [event for _, event in world.events("membership/principal/bank-a", world.height, world.height, 9)]
    assert (event.name, event.data["tier"], event.data["persons"]) == ("TierChanged", "large", [])


@pytest.mark.parametrize(
    ("by", "changes", "code"),
    [
        ("bank-b", {"member": "bank-a"}, "not_its_own_tier"),
        (TREASURY, {"member": "bank-a"}, "not_its_own_tier"),
        ("bank-a/anna", {"member": "bank-a"}, "not_its_own_tier"),
        ("bank-a", {"tier": "other"}, "tier_not_found"),
        ("bank-b", {}, "tier_not_found"),
        ("bank-a", {"expires_at_ms": 1}, "expiry_out_of_range"),
    ],
)
def test_only_the_members_root_proposes_it_of_a_tier_that_is_there(
    world: World, by: str, changes: dict[str, Any], code: str
) -> None:
    with reverts(code):
        propose(world, by, **changes)


@pytest.mark.parametrize(
    ("kind", "code"), [("suspend_member", "member_suspended"), ("remove_member", "member_removed")]
)
def test_a_member_that_is_out_loses_no_tier(world: World, kind: str, code: str) -> None:
    waiting = propose(world)
    ready(world, decided(world, kind, "bank-a", "bank-b"), "bank-b", "bank-c", "bank-d", "bank-e")
    with reverts(code):
        propose(world)
    vote(world, waiting, "bank-b", "bank-c", "bank-d", "bank-e")
    assert (ended(world, waiting), names(world)) == (("void", code), ["large"])


def test_an_observers_tier_goes_by_the_validators_votes() -> None:
    world = seated(world_of(5), "watch")
    number = propose(world, "watch")
    vote(world, number, "bank-a", "bank-b", "bank-c")
    assert (status(world, number), names(world, "watch")) == ("open", ["large"])
    vote(world, number, "bank-d")
    assert (status(world, number), names(world, "watch")) == ("effective", [])


@pytest.mark.parametrize(
    ("method", "args"),
    [
        (Membership.set_tier, tier(argument="threshold", over=5)),
        (Membership.set_tier, tier(principal=TREASURY)),
        (Membership.remove_tier, {"name": "large"}),
    ],
    ids=["limit", "principal", "removed"],
)
def test_a_tier_that_changed_meanwhile_is_not_the_one_that_was_voted_on(
    world: World, method: Any, args: dict[str, Any]
) -> None:
    number = propose(world)
    vote(world, number, "bank-b", "bank-c", "bank-d")
    world.as_("bank-a").call(method, **args)
    left = world.query(Membership.tiers, member="bank-a")
    vote(world, number, "bank-e")
    assert ended(world, number) == ("void", "changed_meanwhile")
    assert world.query(Membership.tiers, member="bank-a") == left


def test_of_two_proposals_the_second_is_void_and_more_than_f_say_no(world: World) -> None:
    first, second, third = propose(world), propose(world), propose(world)
    vote(world, third, "bank-b", "bank-c", yes=False)
    assert status(world, third) == "rejected"
    vote(world, first, "bank-b", "bank-c", "bank-d", "bank-e")
    assert ended(world, second) == ("void", "changed_meanwhile")


def test_nobody_strikes_a_tier_but_the_members(world: World) -> None:
    for sender in ("bank-a", "bank-b", TREASURY):
        with reverts("not_authorized"):
            world.as_(sender).call(Membership.strike_tier, member="bank-a", name="large")
        with reverts("not_authorized"):
            world.as_(sender).call(Membership.tier, member="bank-a", name="large")
    assert names(world) == ["large"]


@pytest.mark.parametrize("changes", [{"method": "propose_tier_removal"}, {"argument": "tier"}, {"where": "tier"}])
def test_a_tier_over_the_way_out_would_only_seem_to_protect(world: World, changes: dict[str, str]) -> None:
    with reverts("tier_names_nothing"):
        world.as_("bank-a").call(Membership.set_tier, **tier(contract="governance", **changes))
