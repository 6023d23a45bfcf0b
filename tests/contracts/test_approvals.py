"""Calls above a tier's limit wait on the ledger for the tier's persons, and run with the requester's authority.

More than 500 lines because requests, tiers and stand-ins are told of one member, by the same few helpers.
"""

import hashlib
from typing import Any

import pytest
from msgspec.structs import replace

from contracts import CONTRACTS
from contracts.approvals import EXPIRY_MS_MAX, PENDING_PER_PRINCIPAL_MAX, Approvals, Word
from contracts.membership import KEYS_MAX, Membership
from contracts.policies import FormerKey, Mandate, Planned, Policy, Tier, circle, demanded
from contracts.sdk import Context, Contract, Item, call
from contracts.settlement import Settlement
from contracts.testkit import OPERATIONS_MAX, START_MS, World, reverts
from node.ledger import SIGNATURES_MAX

HOUR_MS = 3_600_000
LIMIT = 1_000_000
PERSONS = ("anna", "ben", "cleo", "dora", "ria", "rob")
OFFICERS = ["bank-a/anna", "bank-a/ben", "bank-a/cleo"]
RISK = ["bank-a/ria", "bank-a/rob"]
GROUPS = [{"threshold": 2, "persons": OFFICERS}, {"threshold": 1, "persons": RISK}]
TIER: dict[str, Any] = {
    "name": "large",
    "principal": "bank-a/treasury",
    "contract": "settlement",
    "argument": "amount",
    "over": LIMIT,
    "groups": GROUPS,
}


def sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def key(number: int) -> bytes:
    return bytes([number]) * 32


def genesis() -> dict[str, Any]:
    principals = [("bank-a", 10), ("bank-a/treasury", 11), ("bank-b", 12)]
    principals += [(f"bank-a/{name}", 20 + place) for place, name in enumerate(PERSONS)]
    return {
        "membership": {
            "members": [
                {"id": name, "role": "validator", "voting_key": key(number), "tls_key": key(number + 50)}
                for number, name in enumerate(("bank-a", "bank-b"), start=1)
            ],
            "principals": [{"id": name, "keys": [key(number)], "threshold": 1} for name, number in principals],
        },
        "settlement": {"currencies": [{"code": "EUR", "exponent": 2, "issuer": "bank-b"}]},
    }


@pytest.fixture
def world() -> World:
    world = World((Membership, Settlement, Approvals), genesis())
    treasury = world.as_("bank-a/treasury")
    treasury.call(Settlement.open_account, account="A-1", owner="bank-a/treasury", currency="EUR")
    world.as_("bank-b").call(Settlement.open_account, account="B-1", owner="bank-b", currency="EUR")
    world.as_("bank-b").call(Settlement.issue, account="A-1", amount=10 * LIMIT)
    world.as_("bank-a").call(Membership.set_tier, **TIER)
    return world


def payment(amount: int, creditor: str = "B-1") -> dict[str, Any]:
    args = {"debtor": "A-1", "creditor": creditor, "amount": amount}
    return {"contract": "settlement", "method": "transfer", "args": args}


def administration(method: str, **args: Any) -> dict[str, Any]:
    return {"contract": "membership", "method": method, "args": args}


def request(world: World, *calls: dict[str, Any], sender: str = "bank-a/treasury", ms: int = HOUR_MS) -> int:
    expires_at_ms = world.time_ms + 1 + ms
    events = world.as_(sender).call(Approvals.request, calls=list(calls), expires_at_ms=expires_at_ms)
    return int(events[-1].data["request"])


def approve(world: World, number: int, *persons: str) -> list[str]:
    """The names of the events of the last approval."""
    names: list[str] = []
    for person in persons:
        digest = world.query(Approvals.show, request=number)["digest"]
        events = world.as_(f"bank-a/{person}").call(Approvals.approve, request=number, digest=digest)
        names = [event.name for event in events]
    return names


def status(world: World, number: int) -> str:
    return str(world.query(Approvals.show, request=number)["status"])


def received(world: World) -> int:
    return int(world.query(Settlement.balance, account="B-1")["balance"])


def test_the_last_person_makes_the_calls_run_in_the_requesters_name(world: World) -> None:
    number = request(world, payment(LIMIT + 1))
    assert approve(world, number, "anna", "ria") == ["Approved"]
    assert (status(world, number), received(world)) == ("pending", 0)
    assert approve(world, number, "cleo") == ["Approved", "Moved", "Ended"]
    assert received(world) == LIMIT + 1
    shown = world.query(Approvals.show, request=number)
    assert shown["status"] == "executed"
    assert (shown["ending"]["by"], shown["ending"]["height"]) == ("bank-a/cleo", world.height)
    assert [word["mandate"]["principal"] for word in shown["approvals"]] == [
        "bank-a/anna",
        "bank-a/cleo",
        "bank-a/ria",
    ]
    with reverts("request_ended"):
        approve(world, number, "ben")


def test_all_of_one_group_are_not_one_of_the_other(world: World) -> None:
    number = request(world, payment(LIMIT + 1))
    approve(world, number, "anna", "ben", "cleo")
    assert status(world, number) == "pending"
    approve(world, number, "rob")
    assert status(world, number) == "executed"


def test_nobody_approves_twice_or_without_a_seat_or_something_else(world: World) -> None:
    number = request(world, payment(LIMIT + 1))
    assert approve(world, number, "ria", "anna", "anna", "anna") == ["Approved"]
    assert status(world, number) == "pending"
    digest = world.query(Approvals.show, request=number)["digest"]
    for outsider in ("bank-a/dora", "bank-a/treasury", "bank-a", "bank-b"):
        with reverts("not_entitled"):
            world.as_(outsider).call(Approvals.approve, request=number, digest=digest)
    with reverts("digest_differs"):
        world.as_("bank-a/ben").call(Approvals.approve, request=number, digest=bytes(32))
    with reverts("request_not_found"):
        world.as_("bank-a/ben").call(Approvals.approve, request=number + 1, digest=digest)


def test_several_calls_run_all_or_none_and_amounts_add_up(world: World) -> None:
    with reverts("nothing_to_approve"):
        request(world, payment(LIMIT))
    number = request(world, payment(LIMIT), payment(1))
    approve(world, number, "anna", "ben", "ria")
    assert received(world) == LIMIT + 1
    failing = request(world, payment(LIMIT + 1), payment(LIMIT + 1, creditor="NONE"))
    assert approve(world, failing, "anna", "ben", "ria") == ["Approved", "Ended"]
    ending = world.query(Approvals.show, request=failing)["ending"]
    assert (status(world, failing), ending["code"], ending["call"]) == ("failed", "account_not_found", 2)
    assert received(world) == LIMIT + 1


def test_what_cannot_be_judged_counts_as_above_the_limit(world: World) -> None:
    # Any method of settlement: one without an amount asks too, for example who else may use the account.
    args = {"account": "A-1", "operators": ["bank-b"]}
    assert request(world, {"contract": "settlement", "method": "set_operators", "args": args}) == 1
    with reverts("call_not_possible"):
        request(world, {"contract": "settlement", "method": "transfer", "args": {"amount": "2000000"}})
    with reverts("call_not_possible"):
        request(world, {"contract": "settlement", "method": "transfers", "args": {}})
    with reverts("call_not_possible"):
        request(world, {"contract": "approvals", "method": "withdraw", "args": {"request": 1}})
    # A negative amount makes no room for another.
    assert request(world, payment(LIMIT + 5), payment(-10)) == 2


def test_requests_end_by_time_rejection_and_withdrawal(world: World) -> None:
    late, rejected, withdrawn = (request(world, payment(LIMIT + 1)) for _ in range(3))
    approve(world, late, "anna", "ria")
    with reverts("not_entitled"):
        world.as_("bank-a/dora").call(Approvals.reject, request=rejected)
    world.as_("bank-a/rob").call(Approvals.reject, request=rejected)
    with reverts("not_authorized"):
        world.as_("bank-a/anna").call(Approvals.withdraw, request=withdrawn)
    world.as_("bank-a/treasury").call(Approvals.withdraw, request=withdrawn)
    world.advance(2 * HOUR_MS)
    with reverts("request_ended"):
        approve(world, late, "cleo")
    assert [status(world, number) for number in (late, rejected, withdrawn)] == ["expired", "rejected", "withdrawn"]
    assert world.query(Approvals.pending, member="bank-a") == []
    assert received(world) == 0


def test_a_request_expires_within_thirty_days(world: World) -> None:
    for ms in (0, EXPIRY_MS_MAX + 1):
        with reverts("expiry_out_of_range"):
            request(world, payment(LIMIT + 1), ms=ms)


def test_pending_requests_are_bounded_and_those_that_are_over_make_room(world: World) -> None:
    for _ in range(PENDING_PER_PRINCIPAL_MAX):
        request(world, payment(LIMIT + 1))
    with reverts("too_many_requests"):
        request(world, payment(LIMIT + 1))
    rows = world.query(Approvals.pending, member="bank-a", after=2, limit=3)
    assert [row["request"] for row in rows] == [3, 4, 5]
    world.advance(2 * HOUR_MS)
    last = request(world, payment(LIMIT + 1))
    assert [row["request"] for row in world.query(Approvals.pending, member="bank-a")] == [last]


def test_what_ended_long_ago_is_forgotten(world: World) -> None:
    number = request(world, payment(LIMIT + 1))
    approve(world, number, "anna", "ben", "ria")
    world.advance(91 * 24 * HOUR_MS)
    request(world, payment(LIMIT + 1))
    with pytest.raises(Exception, match="request_not_found"):
        world.query(Approvals.show, request=number)


def test_of_a_principals_ended_requests_the_last_are_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked and took back, again and again, filled the state for ninety days."""
    monkeypatch.setattr("contracts.approvals.ENDED_PER_PRINCIPAL_MAX", 3)
    other = request(world, administration("remove_tier", name="large"), sender="bank-a")
    world.as_("bank-a").call(Approvals.withdraw, request=other)
    long = request(world, payment(LIMIT + 1))
    short = [request(world, payment(LIMIT + 1)) for _ in range(9)]
    approve(world, short[0], "anna", "ben")
    for number in (*short, long):
        world.as_("bank-a/treasury").call(Approvals.withdraw, request=number)

    def kept() -> list[int]:
        return [number for number, _ in Approvals.requests.scan_from(world.state, 100)]

    assert kept() == [other, long, *short]
    # Each new one forgets a few, those that ended first; as many as are pending may be left over for a while.
    last = request(world, payment(LIMIT + 1))
    assert kept() == [other, long, *short[4:], last]
    newest = [request(world, payment(LIMIT + 1)) for _ in range(2)]
    assert kept() == [other, long, *short[7:], last, *newest]
    assert [key[0] for key, _ in Approvals.words.scan_from(world.state, 100)] == []
    with pytest.raises(Exception, match="request_not_found"):
        world.query(Approvals.show, request=short[0])
    assert status(world, long) == "withdrawn"


def test_the_tiers_in_force_when_it_runs_decide(world: World) -> None:
    number = request(world, payment(LIMIT + 1))
    approve(world, number, "anna", "ben")
    stricter = [{"threshold": 3, "persons": [*OFFICERS, "bank-a/dora"]}, GROUPS[1]]
    world.as_("bank-a").call(Membership.set_tier, **{**TIER, "groups": stricter})
    approve(world, number, "ria")
    assert status(world, number) == "pending"
    approve(world, number, "dora")
    assert status(world, number) == "executed"
    left = request(world, payment(LIMIT + 1))
    world.as_("bank-a").call(Membership.remove_tier, name="large")
    digest = world.query(Approvals.show, request=left)["digest"]
    with reverts("not_authorized"):
        approve(world, left, "anna")
    world.as_("bank-a/treasury").call(Approvals.approve, request=left, digest=digest)
    assert status(world, left) == "executed"


def test_a_word_counts_for_as_long_as_its_key_does(world: World) -> None:
    first, second = request(world, payment(LIMIT + 1)), request(world, payment(LIMIT + 1))
    for number in (first, second):
        approve(world, number, "anna", "ria")
    rotation = {"principal": "bank-a/anna", "former": key(20), "key": key(99), "overlap_ms": HOUR_MS // 2}
    world.as_("bank-a/anna").call(Membership.rotate_key, **rotation)
    approve(world, first, "ben")
    assert status(world, first) == "executed"
    world.advance(HOUR_MS // 2)
    approve(world, second, "ben")
    assert status(world, second) == "pending"
    approve(world, second, "anna")
    assert status(world, second) == "executed"


def test_a_word_that_a_former_key_may_have_given_ends_with_that_key(world: World) -> None:
    number = request(world, payment(LIMIT + 1))
    rotation = {"principal": "bank-a/anna", "former": key(20), "key": key(99), "overlap_ms": HOUR_MS // 2}
    world.as_("bank-a/anna").call(Membership.rotate_key, **rotation)
    approve(world, number, "anna", "ria")
    world.advance(HOUR_MS // 2)
    approve(world, number, "ben")
    assert status(world, number) == "pending"
    approve(world, number, "anna")
    assert status(world, number) == "executed"


def test_a_requester_whose_keys_were_taken_asks_for_nothing_any_more(world: World) -> None:
    number = request(world, payment(LIMIT + 1))
    approve(world, number, "anna", "ria")
    root = world.as_("bank-a")
    root.call(Membership.set_policy, principal="bank-a/treasury", threshold=1, keys=[key(98)])
    with reverts("request_lapsed"):
        approve(world, number, "ben")


@pytest.mark.parametrize(
    "taking",
    [
        administration("remove_tier", name="large"),
        administration("set_tier", **{**TIER, "over": 10 * LIMIT}),
        administration("set_policy", principal="bank-a/ria", threshold=1, keys=[key(97)]),
        administration("rotate_key", principal="bank-a/anna", former=key(20), key=key(97)),
    ],
    ids=lambda taking: taking["method"],
)
def test_whoever_changes_the_tier_or_seats_its_persons_needs_the_tier_itself(
    world: World, taking: dict[str, Any]
) -> None:
    # A thief has the root's key: what would open the tier is requested like a payment, and asks for the same.
    number = request(world, taking, sender="bank-a")
    approve(world, number, "anna", "ben")
    assert status(world, number) == "pending"
    approve(world, number, "rob")
    assert status(world, number) == "executed"


def test_what_opens_no_tier_asks_for_none(world: World) -> None:
    harmless = {"principal": "bank-a/dora", "threshold": 1, "keys": [key(96)]}
    for call_ in (administration("set_policy", **harmless), administration("remove_tier", name="other")):
        with reverts("nothing_to_approve"):
            request(world, call_, sender="bank-a")


def test_a_seated_person_is_not_removed_and_rotates_its_own_key(world: World) -> None:
    with reverts("principal_seated"):
        world.as_("bank-a").call(Membership.remove_principal, principal="bank-a/ria")
    world.as_("bank-a").call(Membership.remove_principal, principal="bank-a/dora")
    with reverts("not_authorized"):
        world.as_("bank-a/treasury").call(
            Membership.rotate_key, principal="bank-a/treasury", former=key(11), key=key(97)
        )


def test_a_tier_outlives_the_principal_that_it_is_for(world: World) -> None:
    root = world.as_("bank-a")
    root.call(Membership.remove_principal, principal="bank-a/treasury")
    root.call(Membership.add_principal, principal="bank-a/treasury", threshold=1, keys=[key(11)])
    assert request(world, payment(LIMIT + 1)) == 1


def test_a_stand_in_speaks_for_a_time_in_one_place(world: World) -> None:
    anna = world.as_("bank-a/anna")
    start_ms, end_ms = world.time_ms + HOUR_MS, world.time_ms + 3 * HOUR_MS
    anna.call(
        Membership.stand_in, delegate="bank-a/dora", key=key(23), from_ms=start_ms, until_ms=end_ms, tiers=["large"]
    )
    with reverts("stand_in_taken"):
        world.as_("bank-a/ben").call(Membership.stand_in, delegate="bank-a/dora", key=key(23), until_ms=end_ms)
    number = request(world, payment(LIMIT + 1), ms=10 * HOUR_MS)
    with reverts("not_entitled"):
        approve(world, number, "dora")
    world.advance(HOUR_MS)
    approve(world, number, "dora", "ria")
    # Anna and her stand-in are one: it waits for another officer.
    approve(world, number, "anna")
    assert status(world, number) == "pending"
    with reverts("not_entitled"):
        approve(world, number, "dora")
    approve(world, number, "ben")
    assert status(world, number) == "executed"
    late = request(world, payment(LIMIT + 1), ms=10 * HOUR_MS)
    approve(world, late, "dora", "ria")
    world.advance(2 * HOUR_MS)
    approve(world, late, "ben")
    assert status(world, late) == "pending"
    with reverts("not_entitled"):
        approve(world, late, "dora")


def test_a_stand_in_ends_at_once_and_with_the_delegates_keys(world: World) -> None:
    number = request(world, payment(LIMIT + 1))
    anna, until_ms = world.as_("bank-a/anna"), world.time_ms + HOUR_MS
    anna.call(Membership.stand_in, delegate="bank-a/dora", key=key(23), until_ms=until_ms)
    assert len(world.query(Membership.stand_ins_of, member="bank-a")) == 1
    anna.call(Membership.end_stand_in, person="bank-a/anna")
    assert world.query(Membership.stand_ins_of, member="bank-a") == []
    with reverts("not_entitled"):
        approve(world, number, "dora")
    anna.call(Membership.stand_in, delegate="bank-a/dora", key=key(23), until_ms=until_ms)
    # The root administers dora, and gets no seat by that; nor if it is faster than anna.
    world.as_("bank-a").call(Membership.set_policy, principal="bank-a/dora", threshold=1, keys=[key(95)])
    with reverts("not_entitled"):
        approve(world, number, "dora")
    with reverts("key_not_found"):
        anna.call(Membership.stand_in, delegate="bank-a/dora", key=key(23), until_ms=until_ms)


def test_nobody_passes_a_place_on_or_has_two(world: World) -> None:
    until_ms = world.time_ms + HOUR_MS
    world.as_("bank-a/anna").call(Membership.stand_in, delegate="bank-a/dora", key=key(23), until_ms=until_ms)
    with reverts("stand_in_useless"):
        world.as_("bank-a/dora").call(
            Membership.stand_in, delegate="bank-a/treasury", key=key(11), until_ms=until_ms
        )
    # Who sits in the tier speaks from there alone.
    with reverts("stand_in_useless"):
        world.as_("bank-a/ben").call(Membership.stand_in, delegate="bank-a/ria", key=key(24), until_ms=until_ms)
    with reverts("stand_in_useless"):
        world.as_("bank-a/ben").call(
            Membership.stand_in, delegate="bank-a/treasury", key=key(11), until_ms=until_ms, tiers=["other"]
        )
    for ends_ms in (world.time_ms, world.time_ms + 367 * 24 * HOUR_MS):
        with reverts("time_out_of_range"):
            world.as_("bank-a/ben").call(
                Membership.stand_in, delegate="bank-a/treasury", key=key(11), until_ms=ends_ms
            )
    with reverts("principal_not_found"):
        world.as_("bank-a/ben").call(Membership.stand_in, delegate="bank-b", key=key(12), until_ms=until_ms)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"groups": []}, "groups_out_of_range"),
        ({"groups": [{"threshold": 2, "persons": RISK}]}, "nobody_to_spare"),
        ({"groups": [{"threshold": 0, "persons": RISK}]}, "threshold_out_of_range"),
        (
            {"groups": [*GROUPS, {"threshold": 1, "persons": ["bank-a/dora", "bank-a/anna"]}]},
            "persons_not_distinct",
        ),
        ({"groups": [{"threshold": 1, "persons": [*RISK, "bank-b"]}]}, "principal_not_found"),
        ({"groups": [{"threshold": 1, "persons": [*RISK, "bank-a/nobody"]}]}, "principal_not_found"),
        ({"groups": [{"threshold": 1, "persons": [*RISK, "bank-a/node"]}]}, "principal_not_found"),
        ({"contract": "settlment"}, "tier_names_nothing"),
        ({"method": "transfers"}, "tier_names_nothing"),
        ({"argument": "sum"}, "tier_names_nothing"),
        ({"argument": ""}, "tier_names_nothing"),
        ({"where": "curency", "equals": "EUR"}, "tier_names_nothing"),
        ({"equals": "EUR"}, "tier_names_nothing"),
        # By requests alone a tier is met that asks for more signatures than a transaction holds: it stays open.
        ({"principal": "bank-a", "contract": "approvals", "argument": "", "over": 0}, "tier_on_approvals"),
        ({"principal": "bank-b"}, "not_authorized"),
        ({"principal": "bank-a/nobody"}, "principal_not_found"),
    ],
)
def test_impossible_tiers_are_refused(world: World, change: dict[str, Any], code: str) -> None:
    with reverts(code):
        world.as_("bank-a").call(Membership.set_tier, **{**TIER, "name": "next", **change})


def test_two_persons_with_one_key_are_one(world: World) -> None:
    root = world.as_("bank-a")
    root.call(Membership.set_policy, principal="bank-a/dora", threshold=1, keys=[key(20)])
    twins = [{"threshold": 2, "persons": ["bank-a/anna", "bank-a/dora", "bank-a/ben"]}]
    with reverts("persons_not_distinct"):
        root.call(Membership.set_tier, **{**TIER, "name": "twins", "groups": twins})
    # Nor do two become one later, whoever agrees to it.
    number = request(
        world, administration("set_policy", principal="bank-a/ben", threshold=1, keys=[key(20)]), sender="bank-a"
    )
    approve(world, number, "anna", "cleo", "ria")
    assert world.query(Approvals.show, request=number)["ending"]["code"] == "persons_not_distinct"


def test_nobody_silences_another_person_by_taking_its_public_key(world: World) -> None:
    """A signature counts for one person: ria's became anna's, and a tier that asks for both could not be met."""
    anna = world.as_("bank-a/anna")
    with reverts("persons_not_distinct"):
        anna.call(Membership.rotate_key, principal="bank-a/anna", former=key(20), key=key(24), overlap_ms=1_000)
    world.as_("bank-a/ria").call(Membership.stand_in, delegate="bank-a/dora", key=key(23), until_ms=in_a_day(world))
    with reverts("persons_not_distinct"):
        anna.call(Membership.rotate_key, principal="bank-a/anna", former=key(20), key=key(23))
    anna.call(Membership.rotate_key, principal="bank-a/anna", former=key(20), key=key(90))
    number = request(world, payment(LIMIT + 1))
    assert approve(world, number, "anna", "ben", "ria")[-1] == "Ended"


def test_two_stand_ins_with_one_key_speak_for_one_person(world: World) -> None:
    root = world.as_("bank-a")
    root.call(Membership.add_principal, principal="bank-a/emil", threshold=1, keys=[key(23)])
    for person, delegate in (("anna", "dora"), ("ben", "emil")):
        named = {"delegate": f"bank-a/{delegate}", "key": key(23), "until_ms": in_a_day(world)}
        world.as_(f"bank-a/{person}").call(Membership.stand_in, **named)
    number = request(world, payment(LIMIT + 1))
    approve(world, number, "ria", "dora")
    with reverts("not_entitled"):
        approve(world, number, "emil")
    assert approve(world, number, "cleo")[-1] == "Ended"


def test_the_root_gets_no_seat_by_a_former_key_of_the_stand_in(world: World) -> None:
    """It rotated the delegate's key to its own and back, and signed for her by the overlap."""
    root, anna = world.as_("bank-a"), world.as_("bank-a/anna")
    anna.call(Membership.stand_in, delegate="bank-a/dora", key=key(23), until_ms=in_a_day(world))
    dora = {"principal": "bank-a/dora"}
    root.call(Membership.rotate_key, **dora, former=key(23), key=key(99), overlap_ms=0)
    root.call(Membership.rotate_key, **dora, former=key(99), key=key(23), overlap_ms=60_000)
    number = request(world, payment(LIMIT + 1))
    with reverts("not_entitled"):
        approve(world, number, "dora")
    with reverts("key_not_found"):
        anna.call(Membership.stand_in, delegate="bank-a/dora", key=key(23), until_ms=in_a_day(world))


def test_where_there_is_too_much_to_judge_all_tiers_ask() -> None:
    tier = Tier("large", "bank-a", "settlement", "transfer", "amount", LIMIT, "", "", ())
    calls = [Planned("settlement", "transfer", {"amount": 0})] * 5_001
    assert demanded((tier,), "bank-a", calls) == ()
    assert demanded((tier, replace(tier, name="other")), "bank-a", calls[:5_000]) == ()
    assert [item.name for item in demanded((tier, replace(tier, name="other")), "bank-a", calls)] == [
        "large",
        "other",
    ]


def in_a_day(world: World) -> int:
    return world.time_ms + 24 * HOUR_MS


def test_a_member_has_sixteen_tiers(world: World) -> None:
    root = world.as_("bank-a")
    for place in range(15):
        small = [{"threshold": 1, "persons": RISK}]
        root.call(Membership.set_tier, **{**TIER, "name": f"t-{place}", "groups": small})
    with reverts("too_many_tiers"):
        root.call(Membership.set_tier, **{**TIER, "name": "one-more"})
    assert len(world.query(Membership.tiers, member="bank-a")) == 16


@pytest.mark.parametrize(("tiers", "groups", "size"), [(1, 4, 12), (2, 4, 12), (16, 1, 6)])
def test_the_largest_tiers_that_can_be_set_are_met_on_the_ledger(tiers: int, groups: int, size: int) -> None:
    """With the longest names and the most keys that persons may have, each of them in an overlap besides.

    They ask for far more signatures than the 16 of a transaction; the last approval cost three times a call's
    operations, and so the tier was closed.
    """
    given, persons = genesis(), [f"bank-a/p{place:02}{'x' * 29}" for place in range(tiers * groups * size)]
    given["membership"]["principals"] += [
        {"id": name, "keys": [key(100)], "threshold": 1} for name in (*persons, "bank-a/desk")
    ]
    world = World((Membership, Settlement, Approvals), given)
    everybody = ["bank-a", "bank-a/desk", *persons]
    for name in everybody:
        keys = [tuple(sorted(sha256(f"{name} {when} {number}") for number in range(16))) for when in "fn"]
        former = tuple(FormerKey(old, new, START_MS + 90 * 24 * HOUR_MS) for old, new in zip(*keys, strict=True))
        member, slash, rest = name.partition("/")
        world.state.put(Membership.policies.key((member, slash + rest)), Policy(16, keys[1], former))
    root = world.as_("bank-a")
    for place in range(tiers):
        rows = [persons[(place * groups + row) * size :][:size] for row in range(groups)]
        long: dict[str, Any] = {"principal": "bank-a/desk", "contract": "settlement", "method": "transfer"}
        tier = {"argument": "amount", "over": 1, "where": "debtor", "equals": "A" * 34, **long}
        seats = [{"threshold": size - 1, "persons": row} for row in rows]
        root.call(Membership.set_tier, name=f"t{place:02}{'y' * 29}", groups=seats, **tier)
    assert tiers * groups * (size - 1) > SIGNATURES_MAX
    args = {"debtor": "A" * 34, "creditor": "B-1", "amount": 2}
    paying = request(world, *[{**payment(2), "args": args}] * 16, sender="bank-a/desk")
    changing = request(world, administration("remove_tier", name=f"t00{'y' * 29}"), sender="bank-a")
    for number, seats_needed in ((paying, persons), (changing, persons[: groups * size])):
        missing = [name for place, name in enumerate(seats_needed) if place % size]
        # As if all but two had approved: what the last ones cost is asked for.
        for name in missing[2:]:
            policy = Membership.read_policy(world.state, name)
            assert policy is not None
            word = Word(Mandate(name, 16, circle(policy, world.time_ms)), 1, world.time_ms)
            world.state.put(Approvals.words.key((number, name)), word)
        digest = world.query(Approvals.show, request=number)["digest"]
        outcomes = [
            world.execute(name, Approvals.approve, {"request": number, "digest": digest}) for name in missing[:2]
        ]
        assert [outcome.code for outcome in outcomes] == ["ok", "ok"]
        assert status(world, number) == ("executed" if number == changing else "failed")
        assert outcomes[-1].operations < OPERATIONS_MAX // 2, outcomes[-1].operations
        if number == paying:
            # They were run: what they found is not there.
            assert world.query(Approvals.show, request=number)["ending"]["code"] == "account_not_found"


def test_every_policy_can_be_satisfied_by_the_signatures_of_one_transaction() -> None:
    """So that each person of a tier can approve alone."""
    assert KEYS_MAX <= SIGNATURES_MAX


def test_a_tier_looks_only_where_it_is_told_to(world: World) -> None:
    narrow = {**TIER, "method": "transfer", "where": "debtor", "equals": "A-2"}
    root = world.as_("bank-a")
    root.call(Membership.set_tier, **{**narrow, "name": "narrow"})
    number = request(world, administration("remove_tier", name="large"), sender="bank-a")
    approve(world, number, "anna", "ben", "ria")
    with reverts("nothing_to_approve"):
        request(world, payment(LIMIT + 1))
    other = payment(LIMIT + 1)
    other["args"]["debtor"] = "A-2"
    assert request(world, other) > 0
    other["args"]["debtor"] = "A-1"
    with reverts("nothing_to_approve"):
        request(world, other)


def test_nobody_else_is_told_of_policies_or_acts_for_principals(world: World) -> None:
    with reverts("not_authorized"):
        world.as_("bank-a").call(Membership.mandate, principal="bank-a")
    mandate = {"principal": "bank-a", "threshold": 1, "keys": []}
    assert [contract.name for contract in CONTRACTS if contract.acts_for_principals] == ["approvals"]

    class Greedy(Contract):
        """Wants to act for others."""

        @call
        def take(self, ctx: Context) -> None:
            """Try it."""
            ctx.perform("bank-b", (("settlement", "issue", {"account": "A-1", "amount": 1}),))

    greedy = World((Settlement, Greedy), {"settlement": genesis()["settlement"]})
    with reverts("contract_fault"):
        greedy.as_("bank-a").call(Greedy.take)
    lacking = world.query(Membership.lacking, requester={**mandate, "keys": [key(10)]}, calls=[payment(LIMIT + 1)])
    assert [tier["tier"] for tier in lacking["tiers"]] == ["large"]


class Waste(Contract):
    """Costs as much as one wants."""

    last: Item[int] = Item()

    @call
    def waste(self, ctx: Context, writes: int) -> None:
        """Write so often."""
        for number in range(writes):
            self.last.set(number)


@pytest.mark.parametrize(("writes", "code"), [(10, ""), (600, "limit_exceeded")])
def test_calls_that_cost_too_much_fail_and_end_the_request(writes: int, code: str) -> None:
    world = World((Membership, Waste, Approvals), {"membership": genesis()["membership"]}, operations_max=10_000)
    world.as_("bank-a").call(Membership.set_tier, **{**TIER, "contract": "waste", "argument": "writes", "over": 5})
    number = request(world, {"contract": "waste", "method": "waste", "args": {"writes": writes}})
    assert approve(world, number, "anna", "ben", "ria") == ["Approved", "Ended"]
    assert world.query(Approvals.show, request=number)["ending"]["code"] == code


def test_a_stand_in_that_gets_a_seat_of_its_own_speaks_from_that_alone(world: World) -> None:
    until_ms = world.time_ms + HOUR_MS
    world.as_("bank-a/anna").call(Membership.stand_in, delegate="bank-a/dora", key=key(23), until_ms=until_ms)
    wider = [{"threshold": 2, "persons": [*OFFICERS, "bank-a/dora"]}, GROUPS[1]]
    change = request(world, administration("set_tier", **{**TIER, "groups": wider}), sender="bank-a")
    approve(world, change, "ben", "cleo", "ria")
    number = request(world, payment(LIMIT + 1))
    approve(world, number, "dora", "ria")
    spoken = [word["mandate"] for word in world.query(Approvals.show, request=number)["approvals"]]
    mandate = {"principal": "bank-a/treasury", "threshold": 1, "keys": [key(11)]}
    found = world.query(Membership.lacking, requester=mandate, calls=[payment(LIMIT + 1)], spoken=spoken)
    officers = {seat["person"]: seat["by"] for seat in found["tiers"][0]["groups"][0]["seats"]}
    assert officers == {**dict.fromkeys(OFFICERS, ""), "bank-a/dora": "bank-a/dora"}
    assert status(world, number) == "pending"
