"""Nothing changes but by votes, nothing takes effect before a quorum of the new list has shown that it runs.

More than 500 lines because every kind of proposal goes the same way, told by the same few helpers.
"""

from typing import Any

import pytest

from consensus.members import Members, Validator
from contracts.engine import EventRecord
from contracts.governance import PARAMETERS, Governance, quorum_of, votes_needed
from contracts.lifecycle import Lifecycle
from contracts.membership import Membership
from contracts.policies import Policy
from contracts.sdk import Contract, Revert
from contracts.testkit import START_MS, World, reverts

DAY_MS = 86_400_000
END_MS = START_MS + DAY_MS
TIDY_MS = DAY_MS + 1_000
"""What ends at END_MS is tidied up at the next full second."""


def key(number: int) -> bytes:
    return bytes([number]) * 32


def world_of(
    count: int,
    *,
    contracts: tuple[type[Contract], ...] = (),
    genesis: dict[str, dict[str, Any]] | None = None,
    **rules: Any,
) -> World:
    """Banks a, b, … and an observer."""
    names = [f"bank-{'abcdefghij'[index]}" for index in range(count)]
    members = [
        {"id": name, "role": "validator", "voting_key": key(number), "tls_key": key(100 + number)}
        for number, name in enumerate(names, 1)
    ]
    members.append({"id": "watch", "role": "observer", "voting_key": key(90), "tls_key": key(190)})
    principals = [{"id": item["id"], "keys": [key(200)], "threshold": 1} for item in members]
    limits = [{"name": name, "value": 5_000} for name, _, _ in PARAMETERS if name != "ready_blocks"]
    membership = {"members": members, "principals": principals, "limits": limits}
    return World(
        (Membership, Lifecycle, Governance, *contracts),
        {"membership": membership, "governance": rules, **(genesis or {})},
    )


@pytest.fixture
def world() -> World:
    return world_of(5)


def propose(world: World, kind: str, member: str, by: str = "bank-a", **options: Any) -> int:
    """The number of a new proposal."""
    found = world.as_(by).call(Governance.propose, kind=kind, member=member, **{"expires_at_ms": END_MS, **options})
    number: int = found[0].data["proposal"]
    return number


def vote(world: World, number: int, *voters: str, yes: bool = True) -> None:
    for voter in voters:
        world.as_(voter).call(Governance.vote, proposal=number, yes=yes)


def ready(world: World, number: int, *members: str) -> tuple[EventRecord, ...]:
    events: tuple[EventRecord, ...] = ()
    for member in members:
        events = world.as_(f"{member}/node").call(Governance.ready, proposal=number)
    return events


def status(world: World, number: int) -> str:
    answer: str = world.query(Governance.proposal, proposal=number)["proposal"]["status"]
    return answer


def ended(world: World, number: int) -> tuple[str, str]:
    found = world.query(Governance.proposal, proposal=number)["proposal"]
    return found["status"], found["ended_code"]


def voters(world: World) -> list[str]:
    return [name for name, _ in Membership.read_validators(world.state)]


def decided(world: World, kind: str, member: str, by: str = "bank-a", **options: Any) -> int:
    """A proposal that everybody voted for."""
    number = propose(world, kind, member, by, **options)
    for name in voters(world):
        if status(world, number) == "open" and name != by:
            vote(world, number, name)
    return number


def test_thresholds_are_those_of_consensus() -> None:
    for count in range(1, 17):
        members = Members(tuple(Validator(f"m{index}", key(index)) for index in range(count)))
        assert quorum_of(count) == votes_needed(count, False) == members.quorum
        assert votes_needed(count, True) == count - members.f


def test_a_member_is_removed_when_the_votes_and_then_the_new_quorum_suffice(world: World) -> None:
    number = propose(world, "remove_member", "bank-e")
    vote(world, number, "bank-b", "bank-c")
    assert status(world, number) == "open"
    vote(world, number, "bank-d")
    # Of the four that are left, three decide: until three have shown that they run, five decide.
    assert status(world, number) == "waiting"
    ready(world, number, "bank-a", "bank-b")
    assert "bank-e" in voters(world)
    events = ready(world, number, "bank-c")
    assert [event.name for event in events] == ["ReadinessShown", "MemberChanged", "Moved"]
    assert voters(world) == ["bank-a", "bank-b", "bank-c", "bank-d"]
    assert ended(world, number) == ("effective", "")
    assert world.query(Membership.member, member="bank-e")["standing"] == "removed"
    what = [step["what"] for step in world.query(Governance.proposal, proposal=number)["history"]]
    assert what == ["proposed", "yes", "yes", "yes", "yes", "waiting", "ready", "ready", "ready", "effective"]


def test_readiness_grows_old(world: World) -> None:
    world = world_of(5, ready_blocks=20)
    number = decided(world, "remove_member", "bank-e")
    ready(world, number, "bank-a", "bank-b")
    for _ in range(19):
        world.advance(1)
    ready(world, number, "bank-c")
    assert status(world, number) == "waiting"
    ready(world, number, "bank-a")
    assert status(world, number) == "waiting"
    ready(world, number, "bank-b")
    assert status(world, number) == "effective"


def test_who_was_suspended_comes_back_only_when_its_own_node_runs(world: World) -> None:
    number = decided(world, "suspend_member", "bank-c")
    with reverts("not_in_new_set"):
        ready(world, number, "bank-c")
    ready(world, number, "bank-a", "bank-b", "bank-d")
    assert voters(world) == ["bank-a", "bank-b", "bank-d", "bank-e"]
    with reverts("not_a_voter"):
        propose(world, "resume_member", "bank-c", "bank-c")
    number = decided(world, "resume_member", "bank-c")
    ready(world, number, "bank-a", "bank-b", "bank-d", "bank-e")
    assert "bank-c" not in voters(world)
    ready(world, number, "bank-c")
    assert voters(world) == ["bank-a", "bank-b", "bank-c", "bank-d", "bank-e"]


def test_a_new_voting_key_is_in_force_once_its_node_has_signed_with_it(world: World) -> None:
    def node_keys() -> tuple[bytes, ...]:
        policy = Membership.read_policy(world.state, "bank-b/node")
        assert policy is not None
        return policy.keys

    assert node_keys() == (key(2),)
    number = decided(world, "rotate_voting_key", "bank-b", "bank-b", voting_key=key(50))
    assert node_keys() == (key(50),)
    assert dict(Membership.read_validators(world.state))["bank-b"] == key(2)
    ready(world, number, "bank-a", "bank-c", "bank-d", "bank-e")
    assert status(world, number) == "waiting"
    ready(world, number, "bank-b")
    assert dict(Membership.read_validators(world.state))["bank-b"] == key(50)
    assert node_keys() == (key(50),)


def test_a_later_new_key_takes_the_place_of_one_that_waits(world: World) -> None:
    first = decided(world, "rotate_voting_key", "bank-b", "bank-b", voting_key=key(50))
    ready(world, first, "bank-a", "bank-c", "bank-d")
    second = decided(world, "rotate_voting_key", "bank-b", "bank-b", voting_key=key(51))
    assert ended(world, first) == ("void", "superseded")
    with reverts("proposal_not_waiting"):
        ready(world, first, "bank-b")
    ready(world, second, "bank-a", "bank-c", "bank-d", "bank-b")
    assert dict(Membership.read_validators(world.state))["bank-b"] == key(51)


def test_a_rotation_that_expires_gives_the_node_its_key_back(world: World) -> None:
    number = decided(world, "rotate_voting_key", "bank-b", "bank-b", voting_key=key(50))
    world.advance(TIDY_MS)
    assert status(world, number) == "expired"
    policy = Membership.read_policy(world.state, "bank-b/node")
    assert policy is not None
    assert policy.keys == (key(2),)


def test_what_was_voted_on_is_what_happens_or_nothing(world: World) -> None:
    rotation = decided(world, "rotate_voting_key", "bank-b", "bank-b", voting_key=key(50))
    suspension = decided(world, "suspend_member", "bank-b")
    ready(world, suspension, "bank-a", "bank-c", "bank-d")
    assert "bank-b" not in voters(world)
    # The list after the rotation has bank-b, which votes no more: it never brings bank-b back.
    assert ended(world, rotation) == ("void", "changed_meanwhile")
    with reverts("proposal_not_waiting"):
        ready(world, rotation, "bank-a")
    assert "bank-b" not in voters(world)


def test_an_observer_is_suspended_by_the_votes_alone(world: World) -> None:
    number = decided(world, "suspend_member", "watch")
    assert status(world, number) == "effective"
    assert world.query(Membership.member, member="watch")["standing"] == "suspended"


def test_votes_change_until_decided_and_only_those_of_validators_count(world: World) -> None:
    number = propose(world, "remove_member", "bank-e")
    with reverts("vote_unchanged"):
        vote(world, number, "bank-a")
    for stranger in ("watch", "bank-b/desk", "bank-b/node"):
        with reverts("not_a_voter"):
            vote(world, number, stranger)
    vote(world, number, "bank-b", yes=False)
    vote(world, number, "bank-b")
    row = world.query(Governance.page)[0]
    assert (row["yes"], row["no"]) == (["bank-a", "bank-b"], [])
    vote(world, number, "bank-c", "bank-d")
    with reverts("proposal_not_open"):
        vote(world, number, "bank-e", yes=False)


def test_a_member_cannot_change_its_vote_for_ever(world: World) -> None:
    number = propose(world, "remove_member", "bank-e")
    for count in range(8):
        vote(world, number, "bank-b", yes=bool(count % 2))
    with reverts("too_many_casts"):
        vote(world, number, "bank-b", yes=False)


def test_what_cannot_be_reached_any_more_is_rejected(world: World) -> None:
    number = propose(world, "remove_member", "bank-e")
    vote(world, number, "bank-b", yes=False)
    assert status(world, number) == "open"
    vote(world, number, "bank-c", yes=False)
    assert status(world, number) == "rejected"


def test_genesis_may_ask_for_more_votes() -> None:
    world = world_of(6, thresholds=[{"kind": "remove_member", "threshold": "all_but_f"}])
    number = propose(world, "remove_member", "bank-f")
    vote(world, number, "bank-b", "bank-c", "bank-d")
    assert status(world, number) == "open"
    vote(world, number, "bank-e")
    assert status(world, number) == "waiting"
    other = propose(world, "suspend_member", "bank-f")
    vote(world, other, "bank-b", "bank-c", "bank-d")
    assert status(world, other) == "waiting"


def test_no_change_leaves_fewer_validators_than_genesis_allows() -> None:
    world = world_of(4)
    for kind in ("remove_member", "suspend_member"):
        with reverts("too_few_validators"):
            propose(world, kind, "bank-d")
    small = world_of(4, validators_min=3)
    first, second = decided(small, "remove_member", "bank-d"), decided(small, "suspend_member", "bank-c")
    ready(small, first, "bank-a", "bank-b")
    assert voters(small) == ["bank-a", "bank-b", "bank-c"]
    # Both were allowed when they were proposed; the second no more, now that the first has taken effect.
    ready(small, second, "bank-a")
    assert ended(small, second) == ("void", "too_few_validators")
    assert voters(small) == ["bank-a", "bank-b", "bank-c"]


def test_a_degraded_network_keeps_a_member_without_which_it_would_stand_still() -> None:
    # As in the field: two of six are dead, and removing a live one would leave a quorum of four to three.
    world = world_of(6)
    number = propose(world, "remove_member", "bank-d")
    vote(world, number, "bank-b", "bank-c")
    vote(world, number, "bank-d")
    assert status(world, number) == "waiting"
    ready(world, number, "bank-a", "bank-b", "bank-c")
    assert "bank-d" in voters(world)
    world.advance(TIDY_MS)
    assert ended(world, number) == ("expired", "")
    assert "bank-d" in voters(world)


def test_a_proposal_expires_and_then_takes_neither_votes_nor_readiness(world: World) -> None:
    number = propose(world, "remove_member", "bank-e")
    waiting = decided(world, "suspend_member", "bank-e")
    world.advance(TIDY_MS)
    assert (status(world, number), status(world, waiting)) == ("expired", "expired")
    with reverts("proposal_not_open"):
        vote(world, number, "bank-b")
    with reverts("proposal_not_waiting"):
        ready(world, waiting, "bank-a")
    assert world.query(Governance.pending) == []


def test_only_the_proposer_withdraws_and_only_what_is_open(world: World) -> None:
    number = propose(world, "remove_member", "bank-e")
    with reverts("not_the_proposer"):
        world.as_("bank-b").call(Governance.withdraw, proposal=number)
    world.as_("bank-a").call(Governance.withdraw, proposal=number)
    assert status(world, number) == "withdrawn"
    with reverts("proposal_not_open"):
        world.as_("bank-a").call(Governance.withdraw, proposal=number)


@pytest.mark.parametrize(
    ("by", "arguments", "code"),
    [
        ("watch", {"kind": "remove_member", "member": "bank-e"}, "not_a_voter"),
        ("bank-a/desk", {"kind": "remove_member", "member": "bank-e"}, "not_a_voter"),
        ("bank-a", {"kind": "remove_member", "member": "bank-z"}, "member_not_found"),
        ("bank-a", {"kind": "resume_member", "member": "bank-e"}, "nothing_to_change"),
        ("bank-a", {"kind": "rotate_voting_key", "member": "bank-a"}, "argument_missing"),
        ("bank-a", {"kind": "remove_member", "member": "bank-e", "voting_key": key(50)}, "argument_not_expected"),
        ("bank-a", {"kind": "rotate_voting_key", "member": "bank-b", "voting_key": key(50)}, "not_its_own_key"),
        ("bank-a", {"kind": "rotate_voting_key", "member": "bank-a", "voting_key": key(1)}, "nothing_to_change"),
        ("bank-a", {"kind": "rotate_voting_key", "member": "bank-a", "voting_key": key(2)}, "key_in_use"),
        ("bank-a", {"kind": "remove_member", "member": "bank-e", "expires_at_ms": START_MS}, "expiry_out_of_range"),
        (
            "bank-a",
            {"kind": "remove_member", "member": "bank-e", "expires_at_ms": START_MS + 91 * DAY_MS},
            "expiry_out_of_range",
        ),
        ("bank-a", {"kind": "add_member", "member": "bank-z"}, "invalid_arguments"),
        ("bank-a", {"kind": "change_role", "member": "bank-e"}, "argument_missing"),
        ("bank-a", {"kind": "change_role", "member": "bank-e", "role": "validator"}, "nothing_to_change"),
        ("bank-a", {"kind": "change_role", "member": "bank-e", "role": "king"}, "invalid_arguments"),
        ("bank-a", {"kind": "remove_member", "member": "bank-e", "role": "observer"}, "argument_not_expected"),
        ("bank-a", {"kind": "rotate_tls_key", "member": "bank-a"}, "argument_missing"),
        ("bank-a", {"kind": "rotate_tls_key", "member": "bank-b", "tls_key": key(50)}, "not_its_own_key"),
        ("bank-a", {"kind": "rotate_tls_key", "member": "bank-a", "tls_key": key(102)}, "key_in_use"),
        ("bank-a", {"kind": "rotate_tls_key", "member": "bank-a", "tls_key": key(1)}, "key_in_use"),
        ("watch", {"kind": "rotate_tls_key", "member": "bank-a", "tls_key": key(50)}, "not_a_voter"),
        ("bank-a", {"kind": "expel", "member": "bank-e"}, "invalid_arguments"),
    ],
)
def test_a_proposal_that_cannot_be_is_refused(world: World, by: str, arguments: dict[str, Any], code: str) -> None:
    with reverts(code):
        propose(world, by=by, **arguments)


def test_a_removed_member_neither_votes_nor_comes_back(world: World) -> None:
    number = decided(world, "remove_member", "bank-e")
    ready(world, number, "bank-a", "bank-b", "bank-c")
    with reverts("not_a_voter"):
        propose(world, "suspend_member", "bank-a", "bank-e")
    with reverts("member_removed"):
        propose(world, "resume_member", "bank-e")
    assert Membership.read_policy(world.state, "bank-e/node") is None


def test_votes_of_who_is_no_validator_any_more_do_not_count() -> None:
    world = world_of(6)
    removal = propose(world, "remove_member", "bank-f")
    vote(world, removal, "bank-e", "bank-b")
    suspension = decided(world, "suspend_member", "bank-e")
    ready(world, suspension, "bank-a", "bank-b", "bank-c", "bank-d")
    # Five are left and four of them must agree: bank-e's word has lapsed.
    vote(world, removal, "bank-c")
    assert status(world, removal) == "open"
    vote(world, removal, "bank-d")
    assert status(world, removal) == "waiting"


def test_proposals_are_bounded(world: World) -> None:
    for _ in range(8):
        propose(world, "remove_member", "bank-e")
    with reverts("too_many_open"):
        propose(world, "remove_member", "bank-e")
    propose(world, "remove_member", "bank-e", "bank-b")


def test_members_are_changed_by_governance_alone(world: World) -> None:
    for sender in ("bank-a", "bank-a/node"):
        actor = world.as_(sender)
        with reverts("not_authorized"):
            keys = {"voting_key": key(5), "tls_key": key(105)}
            actor.call(Membership.change_member, member="bank-e", role="validator", standing="removed", **keys)
        with reverts("not_authorized"):
            actor.call(Membership.expect_key, member="bank-a", voting_key=key(77))
        with reverts("not_authorized"):
            actor.call(Membership.roster)


def test_nobody_sets_a_policy_for_a_node(world: World) -> None:
    with reverts("reserved_principal"):
        world.as_("bank-a").call(Membership.add_principal, principal="bank-a/node", threshold=1, keys=[key(60)])
    with reverts("reserved_principal"):
        world.as_("bank-a").call(Membership.set_policy, principal="bank-a/node", threshold=1, keys=[key(60)])


@pytest.mark.parametrize(
    "rules",
    [
        {"validators_min": 0},
        {"ready_blocks": 19},
        {"thresholds": [{"kind": "remove_member", "threshold": "quorum"}] * 2},
    ],
)
def test_rules_out_of_range_make_no_network(rules: dict[str, Any]) -> None:
    with pytest.raises(Revert, match="rules_out_of_range"):
        world_of(4, **rules)


NEWCOMER: dict[str, Any] = {
    "member": "bank-n",
    "role": "validator",
    "address": "bank-n.example:7600",
    "voting_key": key(60),
    "tls_key": key(160),
    "keys": [key(201), key(202)],
    "threshold": 2,
    "expires_at_ms": END_MS,
}


def propose_member(world: World, by: str = "bank-a", **changed: Any) -> int:
    found = world.as_(by).call(Governance.propose_member, **{**NEWCOMER, **changed})
    number: int = found[0].data["proposal"]
    return number


def test_a_newcomer_is_linked_once_decided_and_votes_once_its_own_node_runs(world: World) -> None:
    number = propose_member(world)
    assert Membership.read_policy(world.state, "bank-n/node") is None
    vote(world, number, "bank-b", "bank-c", "bank-d")
    assert status(world, number) == "waiting"
    assert world.query(Membership.member, member="bank-n")["standing"] == "joining"
    # Its node may say that it runs; nobody acts for the institution yet.
    assert Membership.read_policy(world.state, "bank-n") is None
    ready(world, number, "bank-a", "bank-b", "bank-c", "bank-d", "bank-e")
    assert "bank-n" not in voters(world)
    ready(world, number, "bank-n")
    assert voters(world) == ["bank-a", "bank-b", "bank-c", "bank-d", "bank-e", "bank-n"]
    assert Membership.read_policy(world.state, "bank-n") == Policy(2, (key(201), key(202)))
    row = world.query(Membership.member, member="bank-n")
    assert (row["standing"], row["address"]) == ("active", "bank-n.example:7600")
    world.as_("bank-n").call(Governance.propose, kind="suspend_member", member="bank-a", expires_at_ms=END_MS)


def test_a_newcomer_that_never_comes_is_forgotten_and_may_try_again(world: World) -> None:
    number = propose_member(world)
    vote(world, number, "bank-b", "bank-c", "bank-d")
    with reverts("member_joining"):
        propose(world, "remove_member", "bank-n")
    with reverts("member_exists"):
        propose_member(world, by="bank-b")
    world.advance(TIDY_MS)
    assert status(world, number) == "expired"
    assert Membership.read_policy(world.state, "bank-n/node") is None
    assert all(row["id"] != "bank-n" for row in world.query(Membership.members))
    assert propose_member(world, expires_at_ms=END_MS + DAY_MS) == number + 1


def test_an_observer_joins_by_the_votes_alone(world: World) -> None:
    number = propose_member(world, role="observer")
    vote(world, number, "bank-b", "bank-c", "bank-d")
    assert status(world, number) == "effective"
    assert world.query(Membership.member, member="bank-n")["standing"] == "active"
    assert "bank-n" not in voters(world)


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"by": "watch"}, "not_a_voter"),
        ({"member": "bank-e"}, "member_exists"),
        ({"keys": []}, "keys_out_of_range"),
        ({"threshold": 3}, "threshold_out_of_range"),
        ({"keys": [key(60), key(202)]}, "keys_not_distinct"),
        ({"voting_key": key(3)}, "key_in_use"),
        ({"tls_key": key(3)}, "key_in_use"),
        ({"address": "nowhere"}, "invalid_arguments"),
        ({"address": "host:0"}, "invalid_arguments"),
        ({"expires_at_ms": START_MS}, "expiry_out_of_range"),
    ],
)
def test_a_newcomer_that_cannot_be_is_refused(world: World, changed: dict[str, Any], code: str) -> None:
    with reverts(code):
        propose_member(world, **changed)


def test_two_proposals_for_one_id_admit_one_newcomer(world: World) -> None:
    first, second = propose_member(world), propose_member(world, by="bank-b", voting_key=key(61), tls_key=key(161))
    vote(world, first, "bank-b", "bank-c", "bank-d")
    vote(world, second, "bank-a", "bank-c", "bank-d")
    assert ended(world, second) == ("void", "changed_meanwhile")
    assert status(world, first) == "waiting"
    assert world.query(Membership.member, member="bank-n")["voting_key"] == key(60)


def test_a_role_changes_with_the_guard_where_the_list_changes(world: World) -> None:
    number = decided(world, "change_role", "watch", role="validator")
    ready(world, number, "bank-a", "bank-b", "bank-c", "bank-d", "bank-e")
    assert "watch" not in voters(world)
    ready(world, number, "watch")
    assert voters(world)[-1] == "watch"
    number = decided(world, "change_role", "watch", role="regulator")
    ready(world, number, "bank-a", "bank-b", "bank-c", "bank-d")
    assert "watch" not in voters(world)
    number = decided(world, "change_role", "watch", role="observer")
    assert status(world, number) == "effective"


def test_no_role_change_leaves_too_few_validators() -> None:
    world = world_of(4)
    with reverts("too_few_validators"):
        propose(world, "change_role", "bank-d", role="observer")


def test_both_tls_keys_prove_a_member_until_the_overlap_ends(world: World) -> None:
    number = decided(world, "rotate_tls_key", "bank-b", "bank-b", tls_key=key(150), overlap_ms=60_000)
    # Nobody knows yet that its node has the key.
    assert status(world, number) == "waiting"
    with reverts("not_in_new_set"):
        ready(world, number, "bank-a")
    ready(world, number, "bank-b")
    assert status(world, number) == "effective"
    row = world.query(Membership.member, member="bank-b")
    assert (row["tls_key"], row["former_tls_key"]) == (key(150), key(102))
    world.advance(60_000)
    row = world.query(Membership.member, member="bank-b")
    assert (row["tls_key"], row["former_tls_key"]) == (key(150), b"")
    with reverts("key_in_use"):
        propose(world, "rotate_tls_key", "bank-b", "bank-b", tls_key=key(102), expires_at_ms=END_MS + DAY_MS)


def new_tls_key(world: World, member: str, new: bytes, overlap_ms: int) -> None:
    """The member's node has the key and proves itself by it."""
    number = decided(world, "rotate_tls_key", member, member, tls_key=new, overlap_ms=overlap_ms)
    ready(world, number, member)
    assert status(world, number) == "effective"


def test_the_overlap_of_a_later_tls_key_is_not_cut_short_by_an_earlier_one(world: World) -> None:
    new_tls_key(world, "bank-b", key(150), 60_000)
    world.advance(30_000)
    new_tls_key(world, "bank-b", key(151), 60_000)
    assert world.query(Membership.member, member="bank-b")["former_tls_key"] == key(150)
    world.advance(30_000)
    assert world.query(Membership.member, member="bank-b")["former_tls_key"] == key(150)
    world.advance(30_000)
    assert world.query(Membership.member, member="bank-b")["former_tls_key"] == b""


def test_an_observer_rotates_its_own_key_and_does_not_vote_for_it(world: World) -> None:
    number = propose(world, "rotate_tls_key", "watch", "watch", tls_key=key(150), overlap_ms=0)
    assert world.query(Governance.proposal, proposal=number)["yes"] == []
    vote(world, number, "bank-a", "bank-b", "bank-c", "bank-d")
    ready(world, number, "watch")
    row = world.query(Membership.member, member="watch")
    assert (row["tls_key"], row["former_tls_key"]) == (key(150), b"")


def test_an_observers_voting_key_too_is_in_force_once_its_node_has_signed_with_it(world: World) -> None:
    number = propose(world, "rotate_voting_key", "watch", "watch", voting_key=key(50))
    vote(world, number, "bank-a", "bank-b", "bank-c", "bank-d")
    assert (status(world, number), node_keys(world, "watch")) == ("waiting", (key(50),))
    with reverts("not_in_new_set"):
        ready(world, number, "bank-a")
    ready(world, number, "watch")
    assert world.query(Membership.member, member="watch")["voting_key"] == key(50)


def test_a_voting_key_never_serves_twice_even_for_its_own_member(world: World) -> None:
    number = decided(world, "rotate_voting_key", "bank-b", "bank-b", voting_key=key(50))
    ready(world, number, "bank-a", "bank-b", "bank-c", "bank-d")
    assert dict(Membership.read_validators(world.state))["bank-b"] == key(50)
    with reverts("key_in_use"):
        propose(world, "rotate_voting_key", "bank-b", "bank-b", voting_key=key(2))


def propose_parameter(world: World, name: str, value: int, by: str = "bank-a") -> int:
    args = {"name": name, "value": value, "expires_at_ms": END_MS}
    number: int = world.as_(by).call(Governance.propose_parameter, **args)[0].data["proposal"]
    return number


def test_a_parameter_changes_with_all_votes_but_f() -> None:
    world = world_of(6)
    number = propose_parameter(world, "block_calls_max", 8_000)
    vote(world, number, "bank-b", "bank-c", "bank-d")
    # A quorum of six are four; what all blocks are judged by asks for five.
    assert status(world, number) == "open"
    vote(world, number, "bank-e")
    assert status(world, number) == "effective"
    assert dict(Membership.read_limits(world.state))["block_calls_max"] == 8_000
    number = propose_parameter(world, "ready_blocks", 70)
    vote(world, number, "bank-b", "bank-c", "bank-d", "bank-e")
    assert world.query(Governance.current_rules)["ready_blocks"] == 70


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("block_calls_max", 99, "value_out_of_range"),
        ("block_calls_max", 1_000_001, "value_out_of_range"),
        ("block_operations_max", 199_999, "value_out_of_range"),
        ("ready_blocks", 9, "value_out_of_range"),
        ("block_calls_max", 5_000, "nothing_to_change"),
        ("validators_min", 1, "parameter_not_found"),
        ("Bad Name", 1, "invalid_arguments"),
    ],
)
def test_a_parameter_that_cannot_be_so_is_refused(world: World, name: str, value: int, code: str) -> None:
    with reverts(code):
        propose_parameter(world, name, value)


def test_only_validators_propose_parameters(world: World) -> None:
    with reverts("not_a_voter"):
        propose_parameter(world, "ready_blocks", 70, by="watch")


def test_what_was_proposed_of_a_parameter_meanwhile_is_void(world: World) -> None:
    first, second = propose_parameter(world, "ready_blocks", 70), propose_parameter(world, "ready_blocks", 80)
    vote(world, first, "bank-b", "bank-c", "bank-d")
    assert status(world, first) == "effective"
    assert ended(world, second) == ("void", "changed_meanwhile")


def node_keys(world: World, member: str) -> tuple[bytes, ...]:
    policy = Membership.read_policy(world.state, f"{member}/node")
    assert policy is not None
    return policy.keys


def test_a_rotation_never_takes_effect_on_a_signature_of_the_old_key(world: World) -> None:
    """Suspended and brought back while its rotation waited, a node signed with its old key, and it counted."""
    rotation = decided(world, "rotate_voting_key", "bank-b", "bank-b", voting_key=key(50))
    ready(world, rotation, "bank-a", "bank-c", "bank-d", "bank-e")
    out = decided(world, "suspend_member", "bank-b")
    ready(world, out, "bank-a", "bank-c", "bank-d")
    assert ended(world, rotation) == ("void", "changed_meanwhile")
    back = decided(world, "resume_member", "bank-b")
    ready(world, back, "bank-a", "bank-c", "bank-d", "bank-b")
    with reverts("proposal_not_waiting"):
        ready(world, rotation, "bank-b")
    assert dict(Membership.read_validators(world.state))["bank-b"] == key(2)
    assert node_keys(world, "bank-b") == (key(2),)


def test_a_change_ends_what_else_was_proposed_about_the_member(world: World) -> None:
    stale = propose(world, "change_role", "bank-e", role="observer")
    other = propose(world, "suspend_member", "bank-d")
    number = decided(world, "suspend_member", "bank-e")
    ready(world, number, "bank-a", "bank-b", "bank-c")
    assert ended(world, stale) == ("void", "changed_meanwhile")
    assert status(world, other) == "open"


def test_a_member_that_lost_its_new_key_can_take_its_rotation_back(world: World) -> None:
    """A mistyped key silenced the node for every change of the members, for as long as the rotation waited."""
    rotation = decided(world, "rotate_voting_key", "bank-b", "bank-b", voting_key=key(50))
    assert node_keys(world, "bank-b") == (key(50),)
    with reverts("not_the_proposer"):
        world.as_("bank-a").call(Governance.withdraw, proposal=rotation)
    world.as_("bank-b").call(Governance.withdraw, proposal=rotation)
    assert node_keys(world, "bank-b") == (key(2),)
    # What the members decided about another is theirs.
    removal = decided(world, "remove_member", "bank-e")
    with reverts("proposal_not_open"):
        world.as_("bank-a").call(Governance.withdraw, proposal=removal)


def test_a_stolen_old_key_of_another_member_is_refused(world: World) -> None:
    first = decided(world, "rotate_voting_key", "bank-b", "bank-b", voting_key=key(50))
    ready(world, first, "bank-a", "bank-c", "bank-d", "bank-b")
    with reverts("key_in_use"):
        propose(world, "rotate_voting_key", "bank-c", "bank-c", voting_key=key(2))


def test_votes_that_suffice_after_the_list_shrank_decide() -> None:
    """Of eight, six must agree, of seven five: five had agreed, and nobody could say so again."""
    world = world_of(8)
    number = propose(world, "remove_member", "bank-g")
    vote(world, number, "bank-b", "bank-c", "bank-d", "bank-e")
    vote(world, number, "bank-f", "bank-g", yes=False)
    with reverts("vote_unchanged"):
        vote(world, number, "bank-a")
    leaving = decided(world, "remove_member", "bank-h")
    ready(world, leaving, "bank-a", "bank-b", "bank-c", "bank-d", "bank-e")
    assert (len(voters(world)), status(world, number)) == (7, "open")
    vote(world, number, "bank-a")
    assert status(world, number) == "waiting"
