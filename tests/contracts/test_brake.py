"""A brake takes two members, stops what it names and all ways around that, and ends by itself.

More than 500 lines because who pulls it and what it stops are told of one network, by the same few helpers.
"""

from typing import Any

import pytest

from contracts.brake import (
    BRAKE_MS_MAX,
    CONFIRM_MS,
    KEPT_MAX,
    PULLED_PER_MEMBER,
    STANDING_MAX,
    WAKES_MAX,
    Brake,
    Pulled,
)
from contracts.brake import Standing as Pending
from contracts.claims import Claims
from contracts.governance import Governance
from contracts.maintenance import Maintenance
from contracts.membership import Membership
from contracts.sdk import GOVERNING, Context, Contract, Map, Revert, call, scheduled
from contracts.settlement import AFTER_BRAKE_MS, Settlement
from contracts.testkit import OPERATIONS_MAX, START_MS, World, reverts
from contracts.waking import HOUR_MS
from tests.contracts.test_governance import decided, key, propose, vote, world_of

UETR = "00000000-0000-4000-8000-00000000000"


class Standing(Contract):
    """Pays by a call of its own that it scheduled, as a standing order would."""

    uses = (Settlement.transfer,)
    codes = ()

    paid: Map[int, int] = Map()

    @call
    def order(self, ctx: Context, at_ms: int) -> None:
        """Pay 5 at `at_ms`."""
        ctx.schedule(at_ms, Standing.pay)

    @scheduled
    def pay(self, ctx: Context) -> None:
        """Pay 5."""
        ctx.call(Settlement.transfer, debtor="A", creditor="B", amount=5)
        self.paid[ctx.time_ms] = 5


@pytest.fixture
def world() -> World:
    """bank-a's A has 1,000 cents and bank-b's B 100; C of bank-c has yen."""
    genesis = {
        "settlement": {
            "currencies": [
                {"code": "USD", "exponent": 2, "issuer": "bank-d"},
                {"code": "JPY", "exponent": 0, "issuer": "bank-d"},
            ]
        }
    }
    made = world_of(
        4, contracts=(Settlement, Claims, Maintenance, Brake, Standing), genesis=genesis, validators_min=1
    )
    for account, owner, currency in (
        ("A", "bank-a", "USD"),
        ("B", "bank-b", "USD"),
        ("C", "bank-c", "JPY"),
        ("D", "bank-a/desk", "JPY"),
    ):
        operators = ("@standing", "@claims") if account == "A" else ()
        made.as_(owner).call(
            Settlement.open_account, account=account, owner=owner, currency=currency, operators=operators
        )
    for account, amount in (("A", 1_000), ("B", 100), ("C", 50)):
        made.as_("bank-d").call(Settlement.issue, account=account, amount=amount)
    return made


def ask(world: World, what: str, by: str = "bank-c", ms: int = HOUR_MS) -> int:
    events = world.as_(by).call(Brake.ask, what=what, until_ms=world.time_ms + 1 + ms, reason="fraud")
    number: int = events[-1].data["brake"]
    return number


def pull(world: World, what: str, ms: int = HOUR_MS) -> int:
    """Pulled by bank-c and bank-d."""
    number = ask(world, what, ms=ms)
    world.as_("bank-d").call(Brake.confirm, brake=number)
    return number


def untidied(world: World) -> None:
    """As if all calls that tidy up were settled unexecuted: nothing is to hang on them."""
    world.due = [item for item in world.due if item[2].contract != "brake"]


def status(world: World, number: int) -> str:
    answer: str = world.query(Brake.brake, brake=number)["brake"]["status"]
    return answer


def pay(world: World, by: str = "bank-a", debtor: str = "A", creditor: str = "B", amount: int = 10) -> None:
    world.as_(by).call(Settlement.transfer, debtor=debtor, creditor=creditor, amount=amount)


def balance(world: World, account: str) -> int:
    found: int = world.query(Settlement.balance, account=account)["balance"]
    return found


# --- two members, and an end -----------------------------------------------------------------------------------


def test_one_member_stops_nothing_and_two_do_until_the_time_both_have_signed(world: World) -> None:
    number = ask(world, "account/A")
    pay(world)
    with reverts("same_member"):
        world.as_("bank-c").call(Brake.confirm, brake=number)
    world.as_("bank-d").call(Brake.confirm, brake=number)
    row = world.query(Brake.brake, brake=number)["brake"]
    assert (row["status"], row["asker"], row["confirmer"]) == ("on", "bank-c", "bank-d")
    with reverts("braked"):
        pay(world)
    world.time_ms = row["until_ms"] - 2
    with reverts("braked"):
        pay(world)
    pay(world)
    assert status(world, number) == "over"


def test_a_brake_ends_by_its_time_where_nothing_tidies_up(world: World) -> None:
    number = pull(world, "account/A")
    untidied(world)
    world.time_ms += HOUR_MS
    pay(world)
    assert status(world, number) == "over"
    assert world.query(Brake.pulled) == []
    with reverts("brake_not_on"):
        world.as_("bank-c").call(Brake.lift, brake=number)


def test_an_ask_lapses_and_is_confirmed_no_more(world: World) -> None:
    number = ask(world, "account/A")
    world.time_ms += CONFIRM_MS
    with reverts("brake_not_asked"):
        world.as_("bank-d").call(Brake.confirm, brake=number)
    assert status(world, number) == "lapsed"
    pay(world)
    # As well where the call that tidies up never came.
    other = ask(world, "account/A")
    untidied(world)
    world.time_ms += CONFIRM_MS
    with reverts("brake_not_asked"):
        world.as_("bank-d").call(Brake.confirm, brake=other)


def test_it_goes_on_only_by_two_members_again(world: World) -> None:
    first = pull(world, "account/A")
    with reverts("brake_not_asked"):
        world.as_("bank-b").call(Brake.confirm, brake=first)
    second = pull(world, "account/A", ms=2 * HOUR_MS)
    world.advance(HOUR_MS)
    assert (status(world, first), status(world, second)) == ("over", "on")
    with reverts("braked"):
        pay(world)
    world.advance(HOUR_MS)
    pay(world)


def test_one_of_the_two_lifts_it_at_once_and_the_others_by_a_quorum(world: World) -> None:
    for by in ("bank-c", "bank-d"):
        number = pull(world, "account/A")
        world.as_(by).call(Brake.lift, brake=number)
        assert status(world, number) == "lifted"
        pay(world)
    world = world_of(7, contracts=(Settlement, Brake))
    number = pull(world, "account/A")
    for by in ("bank-a", "bank-b", "bank-e", "bank-f"):
        world.as_(by).call(Brake.lift, brake=number)
        assert status(world, number) == "on"
    with reverts("lift_unchanged"):
        world.as_("bank-f").call(Brake.lift, brake=number)
    with reverts("not_a_puller"):
        world.as_("watch").call(Brake.lift, brake=number)
    world.as_("bank-g").call(Brake.lift, brake=number)
    row = world.query(Brake.brake, brake=number)
    assert row["brake"]["ended_by"] == ["bank-a", "bank-b", "bank-e", "bank-f", "bank-g"]


def test_who_lost_its_vote_does_not_count_among_those_who_lift(world: World) -> None:
    world = world_of(7, contracts=(Settlement, Brake))
    number = pull(world, "account/A", ms=BRAKE_MS_MAX)
    for by in ("bank-a", "bank-b", "bank-e", "bank-f"):
        world.as_(by).call(Brake.lift, brake=number)
    suspend(world, "bank-f")
    # Six are left, of whom a quorum is four: a, b, e and the next one.
    assert status(world, number) == "on"
    with reverts("not_a_puller"):
        world.as_("bank-f").call(Brake.lift, brake=number)
    world.as_("bank-g").call(Brake.lift, brake=number)
    assert status(world, number) == "lifted"


def test_before_it_is_on_only_the_asker_takes_it_back(world: World) -> None:
    number = ask(world, "account/A")
    with reverts("not_the_asker"):
        world.as_("bank-a").call(Brake.lift, brake=number)
    world.as_("bank-c").call(Brake.lift, brake=number)
    assert status(world, number) == "withdrawn"
    with reverts("brake_not_asked"):
        world.as_("bank-d").call(Brake.confirm, brake=number)


@pytest.mark.parametrize(
    ("by", "what", "ms", "code"),
    [
        ("watch", "account/A", HOUR_MS, "not_a_puller"),
        ("bank-a/desk", "account/A", HOUR_MS, "not_a_puller"),
        ("bank-a", "account/A", 0, "until_out_of_range"),
        ("bank-a", "account/A", BRAKE_MS_MAX + 1, "until_out_of_range"),
        ("bank-a", "member/bank-z", HOUR_MS, "member_not_found"),
        ("bank-a", "method/governance.vote", HOUR_MS, "not_stoppable"),
        ("bank-a", "method/brake.lift", HOUR_MS, "not_stoppable"),
        ("bank-a", "method/membership.set_policy", HOUR_MS, "not_stoppable"),
        ("bank-a", "method/maintenance.book", HOUR_MS, "not_stoppable"),
        ("bank-a", "account/", HOUR_MS, "invalid_arguments"),
        ("bank-a", "currency/usd", HOUR_MS, "invalid_arguments"),
        ("bank-a", "everything/x", HOUR_MS, "invalid_arguments"),
    ],
)
def test_what_cannot_be_asked(world: World, by: str, what: str, ms: int, code: str) -> None:
    with reverts(code):
        ask(world, what, by, ms)


def test_asks_are_bounded_and_over_ones_make_room(world: World) -> None:
    numbers = [ask(world, f"account/X{place}") for place in range(PULLED_PER_MEMBER)]
    with reverts("too_many_brakes"):
        ask(world, "account/A")
    ask(world, "account/A", "bank-b")
    untidied(world)
    world.time_ms += CONFIRM_MS
    ask(world, "account/A")
    assert {status(world, number) for number in numbers} == {"lapsed"}


def suspend(world: World, member: str) -> None:
    """The members decide so, and the list without it runs."""
    proposal = decided(world, "suspend_member", member)
    for name, _ in Membership.read_validators(world.state):
        if (
            name != member
            and world.query(Governance.proposal, proposal=proposal)["proposal"]["status"] == "waiting"
        ):
            world.as_(f"{name}/node").call(Governance.ready, proposal=proposal)


def test_what_a_member_asked_for_that_is_none_any_more_is_not_confirmed(world: World) -> None:
    number = ask(world, "account/A", "bank-c")
    suspend(world, "bank-c")
    with reverts("asker_gone"):
        world.as_("bank-d").call(Brake.confirm, brake=number)
    pay(world)
    world.as_("bank-a").call(Brake.confirm, brake=ask(world, "account/A", "bank-d"))


def test_a_lift_counts_anew_where_fewer_suffice_since(world: World) -> None:
    world = world_of(7, contracts=(Settlement, Brake))
    number = pull(world, "account/A", ms=BRAKE_MS_MAX)
    for by in ("bank-a", "bank-b", "bank-e", "bank-f"):
        world.as_(by).call(Brake.lift, brake=number)
    suspend(world, "bank-g")
    assert status(world, number) == "on"
    world.as_("bank-a").call(Brake.lift, brake=number)
    assert status(world, number) == "lifted"


def test_asking_and_taking_back_leaves_no_more_than_a_few_rows_and_calls(world: World) -> None:
    """It left a row and a scheduled call each time, for ever and for up to six hours."""
    pulled = pull(world, "account/A")
    world.as_("bank-c").call(Brake.lift, brake=pulled)
    before = len(world.state.data)
    for _ in range(2 * KEPT_MAX):
        number = ask(world, "account/A", "bank-c", ms=CONFIRM_MS)
        world.as_("bank-c").call(Brake.lift, brake=number)
        world.time_ms += 1_001
    rows = world.query(Brake.page, limit=100)
    assert [row["number"] for row in rows] == [pulled, *range(number - KEPT_MAX + 1, number + 1)]
    assert len(world.due) == len({at_ms for at_ms, _, _ in world.due}) < WAKES_MAX
    # Those that are kept, the list of them, and the times of calls that wait.
    assert len(world.state.data) <= before + KEPT_MAX + 1 + len(world.due)
    world.advance(HOUR_MS)
    assert world.due == []


def test_what_was_on_is_forgotten_with_who_asked_for_its_end(world: World) -> None:
    for _ in range(KEPT_MAX + 2):
        number = pull(world, "account/A")
        world.as_("bank-a").call(Brake.lift, brake=number)
        world.as_("bank-c").call(Brake.lift, brake=number)
    rows = world.query(Brake.page, limit=100)
    assert [(row["number"], row["lifters"]) for row in rows] == [
        (kept, ["bank-a"]) for kept in range(3, KEPT_MAX + 3)
    ]
    with reverts("brake_not_found"):
        world.as_("bank-a").call(Brake.lift, brake=2)
    assert len(list(Brake.lifters.scan_from(world.state, 100))) == KEPT_MAX


def test_all_that_can_be_over_at_once_ends_within_a_calls_operations(world: World) -> None:
    """Also where each of them pushes out another one that a quorum has nearly lifted."""
    names = tuple(f"member-with-a-long-name-{place:03}" for place in range(85))
    for place in range(STANDING_MAX):
        asker = f"m{place // PULLED_PER_MEMBER}"
        row = Pulled("account", "A", "x" * 500, asker, START_MS, START_MS + 1, START_MS + 1, "on", "bank-b")
        number = 1_000 + place
        world.state.put(Brake.brakes.key(number), row)
        world.state.put(Brake.standing.key(number), Pending("account", "A", asker, True, START_MS + 1))
        world.state.put(Brake.lifters.key(number), names)
        world.state.put(Brake.ended.key((asker, True)), tuple(range(KEPT_MAX)))
    arguments = {"what": "account/A", "until_ms": world.time_ms + HOUR_MS, "reason": "fraud"}
    outcome = world.execute("bank-c", Brake.ask, arguments)
    assert (outcome.code, len(outcome.events)) == ("ok", STANDING_MAX + 1)
    assert outcome.operations < OPERATIONS_MAX // 2, outcome.operations


def test_the_history_stays(world: World) -> None:
    pull(world, "account/A")
    ask(world, "currency/USD", "bank-a")
    world.advance(HOUR_MS)
    rows = world.query(Brake.page)
    assert [(row["number"], row["brake"]["status"]) for row in rows] == [(1, "over"), (2, "lapsed")]
    assert [row["number"] for row in world.query(Brake.page, after=1, limit=1)] == [2]
    with pytest.raises(Revert, match="limit_out_of_range"):
        world.query(Brake.page, limit=101)


# --- what is stopped -------------------------------------------------------------------------------------------


def hold(world: World, number: int, ms: int = HOUR_MS, debtor: str = "A", creditor: str = "B") -> str:
    uetr = f"{UETR}{number}"
    end = {"uetr": uetr, "amount": 10, "expires_at_ms": world.time_ms + 1 + ms}
    by = "bank-a" if debtor == "A" else "bank-b"
    world.as_(by).call(Settlement.hold, debtor=debtor, creditor=creditor, **end)
    return uetr


def every_movement_of_a_and_b(world: World, out: str, back: str) -> list[tuple[str, Any, dict[str, Any]]]:
    """Each way in which money of A or B moves, or is set aside; `out` and `back` are holds on A and on B."""
    end_ms = world.time_ms + 5 * HOUR_MS
    uetr = f"{UETR}9"
    return [
        ("bank-a", Settlement.transfer, {"debtor": "A", "creditor": "B", "amount": 1}),
        ("bank-b", Settlement.transfer, {"debtor": "B", "creditor": "A", "amount": 1}),
        ("bank-d", Settlement.issue, {"account": "A", "amount": 1}),
        ("bank-d", Settlement.redeem, {"account": "A", "amount": 1}),
        (
            "bank-a",
            Settlement.hold,
            {"uetr": uetr, "debtor": "A", "creditor": "B", "amount": 1, "expires_at_ms": end_ms},
        ),
        (
            "bank-b",
            Settlement.hold,
            {"uetr": uetr, "debtor": "B", "creditor": "A", "amount": 1, "expires_at_ms": end_ms},
        ),
        ("bank-b", Settlement.capture, {"uetr": out, "amount": 1}),
        ("bank-a", Settlement.capture, {"uetr": back, "amount": 1}),
        ("bank-b", Settlement.release, {"uetr": out}),
        ("bank-a", Settlement.release, {"uetr": back}),
    ]


@pytest.mark.parametrize("what", ["account/A", "currency/USD"])
def test_no_money_of_a_braked_account_or_currency_moves_and_others_go_on(world: World, what: str) -> None:
    world.as_("bank-a").call(Settlement.set_operators, account="A", operators=("bank-d", "@claims", "@standing"))
    out, back = hold(world, 1, 5 * HOUR_MS), hold(world, 2, 5 * HOUR_MS, "B", "A")
    ways = every_movement_of_a_and_b(world, out, back)
    number = pull(world, what)
    before = [world.query(Settlement.account, account=name) for name in "AB"]
    for by, method, args in ways:
        with reverts("braked"):
            world.as_(by).call(method, **args)
    assert [world.query(Settlement.account, account=name) for name in "AB"] == before
    pay(world, "bank-c", "C", "D")
    world.as_("bank-c").call(Brake.lift, brake=number)
    # None of them was refused for another reason.
    for by, method, args in ways:
        if args.get("uetr") != f"{UETR}9" or args["debtor"] == "A":
            world.as_(by).call(method, **args)


def test_a_payment_that_was_made_before_is_told_and_not_made_again(world: World) -> None:
    args: dict[str, Any] = {"debtor": "A", "creditor": "B", "amount": 10, "uetr": f"{UETR}1"}
    world.as_("bank-a").call(Settlement.transfer, **args)
    pull(world, "account/A")
    [event] = world.as_("bank-a").call(Settlement.transfer, **args)
    assert event.name == "Repeated"


def test_the_owner_of_a_braked_account_still_says_who_acts_for_it(world: World) -> None:
    pull(world, "account/A")
    world.as_("bank-a").call(Settlement.set_operators, account="A", operators=())


@pytest.mark.parametrize(
    "what", ["account/A", "account/B", "currency/USD", "method/settlement.capture", "member/bank-b"]
)
def test_a_hold_does_not_run_out_on_who_could_not_capture_it(world: World, what: str) -> None:
    uetr = hold(world, 1)
    number = pull(world, what, ms=2 * HOUR_MS)
    end_ms = world.query(Brake.brake, brake=number)["brake"]["until_ms"]
    untidied(world)
    [outcome] = world.advance(HOUR_MS)
    assert [event.name for event in outcome.events] == ["HoldPutOff"]
    found = world.query(Settlement.find_hold, uetr=uetr)
    assert (found["status"], found["put_off_ms"]) == ("open", end_ms + AFTER_BRAKE_MS)
    with reverts("braked"):
        world.as_("bank-b").call(Settlement.capture, uetr=uetr, amount=4)
    world.time_ms = end_ms
    world.as_("bank-b").call(Settlement.capture, uetr=uetr, amount=4)
    with reverts("hold_not_expired"):
        world.as_("bank-a").call(Settlement.release, uetr=uetr)
    world.advance(AFTER_BRAKE_MS)
    found = world.query(Settlement.find_hold, uetr=uetr)
    assert (found["status"], found["captured"], balance(world, "B")) == ("expired", 4, 104)


def test_a_hold_that_no_brake_touches_ends_in_its_time(world: World) -> None:
    uetr = hold(world, 1)
    pull(world, "account/C", ms=2 * HOUR_MS)
    world.advance(HOUR_MS)
    assert world.query(Settlement.find_hold, uetr=uetr)["status"] == "expired"


def test_a_method_is_stopped_for_all_and_also_where_contracts_call_it(world: World) -> None:
    approved_claim(world)
    number = pull(world, "method/settlement.transfer")
    for by, debtor, creditor in (("bank-a", "A", "B"), ("bank-c", "C", "D")):
        with reverts("braked"):
            pay(world, by, debtor, creditor)
    with reverts("braked"):
        world.as_("bank-a").call(Claims.payout, claim="CLAIM", uetr=f"{UETR}1")
    assert world.query(Claims.claim, claim="CLAIM")["status"] == "approved"
    # Another method of the same contract goes on, and other methods of the same name do not exist.
    world.as_("bank-d").call(Settlement.issue, account="A", amount=1)
    world.as_("bank-d").call(Brake.lift, brake=number)
    world.as_("bank-a").call(Claims.payout, claim="CLAIM", uetr=f"{UETR}1")


@pytest.mark.parametrize(
    "what", ["account/A", "account/B", "currency/USD", "method/claims.payout", "member/bank-a"]
)
def test_a_claim_that_meets_a_brake_stays_approved_and_is_paid_once_afterwards(world: World, what: str) -> None:
    approved_claim(world)
    pull(world, what)
    with reverts("braked"):
        world.as_("bank-a").call(Claims.payout, claim="CLAIM", uetr=f"{UETR}1")
    assert (world.query(Claims.claim, claim="CLAIM")["status"], balance(world, "B")) == ("approved", 100)
    world.advance(HOUR_MS)
    world.as_("bank-a").call(Claims.payout, claim="CLAIM", uetr=f"{UETR}1")
    with reverts("wrong_status"):
        world.as_("bank-a").call(Claims.payout, claim="CLAIM", uetr=f"{UETR}1")
    assert balance(world, "B") == 150


def approved_claim(world: World) -> None:
    """A claim over 50, to be paid from A to B."""
    terms = {"perils": ("fire",), "limit": 100, "deductible": 0, "coinsurance_bp": 0, "waiting_days": 0}
    rules = {"notice_days": 0, "authority_limit": 100, "staff": ()}
    by = world.as_("bank-a")
    by.call(Claims.create_product, product="HOME", insurer="bank-a", account="A", **terms, **rules)
    by.call(Claims.bind_policy, policy="P", product="HOME", payee="B", inception_day=1, expiry_day=9)
    loss = {"peril": "fire", "loss_day": 2, "notice_day": 2, "claimed": 50}
    by.call(Claims.notify, claim="CLAIM", policy="P", **loss)
    by.call(Claims.set_reserve, claim="CLAIM", reserve=50)
    by.call(Claims.assess, claim="CLAIM", assessed=50)
    by.call(Claims.approve, claim="CLAIM")


@pytest.mark.parametrize("what", ["account/A", "account/B", "currency/USD", "method/settlement.transfer"])
def test_a_scheduled_call_that_meets_a_brake_runs_when_it_ends(world: World, what: str) -> None:
    world.as_("bank-a").call(Standing.order, at_ms=world.time_ms + HOUR_MS)
    pull(world, what, ms=2 * HOUR_MS)
    pull(world, "account/B" if what == "account/A" else "account/A", ms=3 * HOUR_MS)
    untidied(world)
    assert [outcome.code for outcome in world.advance(HOUR_MS)] == ["braked"]
    # Tried again when the first of the brakes ends, and when the next one does.
    assert [outcome.code for outcome in world.advance(HOUR_MS)] == ["braked"]
    assert balance(world, "B") == 100
    assert [outcome.code for outcome in world.advance(HOUR_MS)] == ["ok"]
    assert balance(world, "B") == 105
    assert world.advance(10 * HOUR_MS) == []


def test_a_members_transactions_are_stopped_and_never_its_say(world: World) -> None:
    pull(world, "member/bank-a")
    with reverts("braked"):
        pay(world)
    with reverts("braked"):
        pay(world, "bank-a/desk", "D", "C", 0)
    # What others send to its accounts arrives.
    pay(world, "bank-b", "B", "A")
    number = propose(world, "suspend_member", "bank-d", by="bank-b")
    vote(world, number, "bank-a")
    propose(world, "rotate_voting_key", "bank-a", voting_key=key(77))
    world.as_("bank-a").call(Membership.set_policy, principal="bank-a", threshold=1, keys=(key(5),))
    window = {"from_ms": START_MS + 9 * HOUR_MS, "until_ms": START_MS + 10 * HOUR_MS}
    world.as_("bank-a").call(Maintenance.book, **window)
    other = ask(world, "account/C", "bank-b")
    world.as_("bank-a").call(Brake.confirm, brake=other)
    assert status(world, other) == "on"
    assert "bank-a" in dict(Membership.read_validators(world.state))


def test_no_brake_stops_the_approval_of_what_a_member_says(world: World) -> None:
    """A change of keys that waits for approval could not be approved: what is performed is judged by itself."""
    with reverts("not_stoppable"):
        ask(world, "method/approvals.approve")
    assert "approvals" in GOVERNING


def test_what_is_pulled_in_a_block_holds_from_the_next_one_on(world: World) -> None:
    number = ask(world, "account/A")
    world.as_("bank-d").call(Brake.confirm, brake=number)
    # In the block that pulled it the host had read none.
    assert (
        world._run("bank-a", "settlement", "transfer", {"debtor": "A", "creditor": "B", "amount": 1}).code == "ok"
    )
    with reverts("braked"):
        pay(world)
