"""Money moves in double entry, only by those who may move it, and each payment once."""

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest

from consensus.codec import encode
from contracts.sdk import AMOUNT_MAX, CallError, Revert
from contracts.settlement import Settlement
from contracts.testkit import Actor, World, reverts

GENESIS: dict[str, Any] = {
    "settlement": {
        "currencies": [
            {"code": "USD", "exponent": 2, "issuer": "bank-c/issuer"},
            {"code": "JPY", "exponent": 0, "issuer": "bank-c"},
        ]
    }
}
HOUR_MS = 3_600_000


def uetr(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


@pytest.fixture
def world() -> World:
    """bank-a's A has 1,000 cents, bank-b's B nothing; Y is bank-b's account in yen."""
    world = World((Settlement,), GENESIS)
    for account, owner, currency in (("A", "bank-a/desk", "USD"), ("B", "bank-b", "USD"), ("Y", "bank-b", "JPY")):
        world.as_(owner).call(Settlement.open_account, account=account, owner=owner, currency=currency)
    world.as_("bank-c").call(Settlement.issue, account="A", amount=1_000)
    return world


@pytest.fixture
def a(world: World) -> Actor:
    return world.as_("bank-a/desk")


@pytest.fixture
def b(world: World) -> Actor:
    return world.as_("bank-b")


def balances(world: World, *accounts: str) -> list[tuple[int, int]]:
    rows = [world.query(Settlement.balance, account=account) for account in accounts]
    assert all(row["available"] == row["balance"] - row["held"] for row in rows)
    return [(row["balance"], row["held"]) for row in rows]


def place_hold(world: World, actor: Actor, amount: int, number: int = 1) -> int:
    expires_at_ms = world.time_ms + HOUR_MS
    actor.call(
        Settlement.hold, uetr=uetr(number), debtor="A", creditor="B", amount=amount, expires_at_ms=expires_at_ms
    )
    return expires_at_ms


# --- accounts ---


def test_an_account_is_opened_by_its_owner_and_listed(world: World, a: Actor, b: Actor) -> None:
    a.call(Settlement.open_account, account="A2", owner="bank-a/desk", currency="JPY")
    world.as_("bank-a").call(Settlement.open_account, account="A3", owner="bank-a/desk", currency="USD")
    rows = world.query(Settlement.accounts_of, owner="bank-a/desk", limit=2)
    assert rows[0] == {"account": "A", "currency": "USD", "balance": 1_000, "held": 0, "available": 1_000}
    assert [(row["account"], row["currency"], row["balance"]) for row in rows[1:]] == [("A2", "JPY", 0)]
    rows = world.query(Settlement.accounts_of, owner="bank-a/desk", after="A2")
    assert [row["account"] for row in rows] == ["A3"]
    with reverts("not_authorized"):
        b.call(Settlement.open_account, account="A4", owner="bank-a/desk", currency="USD")
    with reverts("account_exists"):
        a.call(Settlement.open_account, account="B", owner="bank-a/desk", currency="USD")
    with reverts("currency_not_found"):
        a.call(Settlement.open_account, account="A4", owner="bank-a/desk", currency="CHF")


@pytest.mark.parametrize("account", ["", "a" * 35, "ä", "A B", "A/B", "A\n", "-A", "A\x00"])
def test_an_account_id_is_one_to_34_plain_characters(a: Actor, account: str) -> None:
    with reverts("invalid_arguments"):
        a.call(Settlement.open_account, account=account, owner="bank-a/desk", currency="USD")


def test_an_account_closes_empty_and_stays_closed(world: World, a: Actor, b: Actor) -> None:
    with reverts("account_not_empty"):
        a.call(Settlement.close_account, account="A")
    with reverts("not_authorized"):
        a.call(Settlement.close_account, account="B")
    b.call(Settlement.close_account, account="B")
    with reverts("account_closed"):
        a.call(Settlement.transfer, debtor="A", creditor="B", amount=1)
    with reverts("account_closed"):
        world.as_("bank-c").call(Settlement.issue, account="B", amount=1)
    with reverts("account_closed"):
        b.call(Settlement.close_account, account="B")
    with reverts("account_exists"):
        b.call(Settlement.open_account, account="B", owner="bank-b", currency="USD")


def test_operators_act_for_the_account_but_do_not_name_others(a: Actor, b: Actor) -> None:
    with reverts("not_authorized"):
        b.call(Settlement.transfer, debtor="A", creditor="B", amount=1)
    a.call(Settlement.set_operators, account="A", operators=["bank-b", "@claims"])
    b.call(Settlement.transfer, debtor="A", creditor="B", amount=1)
    with reverts("not_authorized"):
        b.call(Settlement.set_operators, account="A", operators=[])
    a.call(Settlement.set_operators, account="A", operators=[])
    with reverts("not_authorized"):
        b.call(Settlement.transfer, debtor="A", creditor="B", amount=1)


# --- issue, redeem, transfer ---


def test_a_transfer_debits_and_credits(world: World, a: Actor) -> None:
    (event,) = a.call(Settlement.transfer, debtor="A", creditor="B", amount=300, uetr=uetr(1), reference="INV 7")
    assert balances(world, "A", "B") == [(700, 0), (300, 0)]
    assert event.name == "Moved"
    assert event.topics == ("settlement/account/A", "settlement/account/B")
    assert (event.data["debtor_entry"], event.data["creditor_entry"]) == (2, 1)
    assert (event.data["debtor_balance"], event.data["creditor_balance"]) == (700, 300)


def test_only_the_issuer_issues_and_takes_back_what_it_may_reach(world: World, a: Actor) -> None:
    issuer = world.as_("bank-c/issuer")
    with reverts("not_authorized"):
        a.call(Settlement.issue, account="A", amount=1)
    with reverts("not_authorized"):
        issuer.call(Settlement.issue, account="Y", amount=1)  # yen are the root's
    with reverts("not_authorized"):
        a.call(Settlement.redeem, account="A", amount=1)
    with reverts("not_authorized"):
        issuer.call(Settlement.redeem, account="A", amount=1)
    a.call(Settlement.set_operators, account="A", operators=["bank-c/issuer"])
    issuer.call(Settlement.redeem, account="A", amount=400)
    with reverts("insufficient_funds"):
        issuer.call(Settlement.redeem, account="A", amount=601)
    supply = world.query(Settlement.supply, currency="USD")
    assert (supply["issued"], supply["redeemed"], supply["outstanding"]) == (1_000, 400, 600)
    assert (supply["exponent"], supply["issuer"]) == (2, "bank-c/issuer")


@pytest.mark.parametrize(
    ("amount", "code"),
    [
        (0, "amount_not_positive"),
        (-1, "amount_not_positive"),
        (-(2**63), "amount_not_positive"),
        (2**63, "amount_too_large"),
        (2**64 - 1, "amount_too_large"),
        (2**63 - 1, "insufficient_funds"),
        (1_001, "insufficient_funds"),
        (1.0, "invalid_arguments"),
        (True, "invalid_arguments"),
        ("1", "invalid_arguments"),
        (None, "invalid_arguments"),
    ],
)
def test_a_wrong_amount_is_refused_with_its_own_code(world: World, a: Actor, amount: Any, code: str) -> None:
    before = balances(world, "A", "B")
    with reverts(code):
        a.call(Settlement.transfer, debtor="A", creditor="B", amount=amount)
    with reverts(code):
        a.call(
            Settlement.hold,
            uetr=uetr(1),
            debtor="A",
            creditor="B",
            amount=amount,
            expires_at_ms=world.time_ms + HOUR_MS,
        )
    assert balances(world, "A", "B") == before


def test_wrong_accounts_are_refused(a: Actor) -> None:
    for debtor, creditor, code in (
        ("A", "A", "same_account"),
        ("A", "NONE", "account_not_found"),
        ("NONE", "A", "account_not_found"),
        ("A", "Y", "currency_mismatch"),
    ):
        with reverts(code):
            a.call(Settlement.transfer, debtor=debtor, creditor=creditor, amount=1)


def test_supply_is_bounded(world: World) -> None:
    issuer = world.as_("bank-c")
    with reverts("supply_overflow"):
        issuer.call(Settlement.issue, account="A", amount=AMOUNT_MAX - 999)
    issuer.call(Settlement.issue, account="A", amount=AMOUNT_MAX - 1_000)
    assert balances(world, "A") == [(AMOUNT_MAX, 0)]


# --- UETR ---


@pytest.mark.parametrize("kind", ["transfer", "issue", "redeem"])
def test_a_uetr_with_the_same_content_names_the_original_and_moves_nothing(
    world: World, a: Actor, kind: str
) -> None:
    a.call(Settlement.set_operators, account="A", operators=["bank-c"])
    sender = a if kind == "transfer" else world.as_("bank-c")
    args: dict[str, Any] = {"debtor": "A", "creditor": "B"} if kind == "transfer" else {"account": "A"}
    args |= {"amount": 5, "uetr": uetr(1), "reference": "R"}
    sender.call(f"settlement.{kind}", **args)
    height, after = world.height, balances(world, "A", "B")
    (event,) = sender.call(f"settlement.{kind}", **args)
    assert event.name == "Repeated"
    assert (event.data["kind"], event.data["height"]) == (kind, height)
    assert event.data["tx_id"] == height.to_bytes(32, "big")
    assert balances(world, "A", "B") == after
    for change in ({"amount": 6}, {"reference": "S"}):
        with reverts("uetr_conflict"):
            sender.call(f"settlement.{kind}", **{**args, **change})
    movement = world.query(Settlement.movement, uetr=uetr(1))
    assert (movement["amount"], movement["height"]) == (5, height)


def test_a_uetr_is_used_for_one_purpose(world: World, a: Actor, b: Actor) -> None:
    a.call(Settlement.transfer, debtor="A", creditor="B", amount=5, uetr=uetr(1))
    with reverts("uetr_conflict"):
        b.call(Settlement.transfer, debtor="B", creditor="A", amount=5, uetr=uetr(1))
    with reverts("uetr_conflict"):
        place_hold(world, a, 5)
    with reverts("not_authorized"):  # a stranger does not learn whether it was used
        b.call(Settlement.transfer, debtor="A", creditor="B", amount=5, uetr=uetr(1))


def test_a_refused_payment_does_not_use_up_its_uetr(a: Actor) -> None:
    with reverts("insufficient_funds"):
        a.call(Settlement.transfer, debtor="A", creditor="B", amount=5_000, uetr=uetr(1))
    (event,) = a.call(Settlement.transfer, debtor="A", creditor="B", amount=5, uetr=uetr(1))
    assert event.name == "Moved"


@pytest.mark.parametrize(
    "wrong", ["", uetr(1).upper()[:-1] + "A", uetr(1).replace("-4", "-1"), uetr(1)[:-1], uetr(1) + "\n"]
)
def test_a_uetr_is_a_lower_case_version_4_uuid(a: Actor, wrong: str) -> None:
    with reverts("invalid_arguments"):
        a.call(Settlement.transfer, debtor="A", creditor="B", amount=5, uetr=wrong)


# --- holds ---


def test_held_money_stays_but_cannot_be_spent(world: World, a: Actor) -> None:
    place_hold(world, a, 900)
    assert balances(world, "A", "B") == [(1_000, 900), (0, 0)]
    with reverts("insufficient_funds"):
        a.call(Settlement.transfer, debtor="A", creditor="B", amount=101)
    with reverts("insufficient_funds"):
        place_hold(world, a, 101, number=2)
    a.call(Settlement.transfer, debtor="A", creditor="B", amount=100)


def test_captures_go_on_until_the_hold_is_used_up(world: World, a: Actor, b: Actor) -> None:
    place_hold(world, a, 300)
    b.call(Settlement.capture, uetr=uetr(1), amount=100)
    assert balances(world, "A", "B") == [(900, 200), (100, 0)]
    with reverts("exceeds_hold"):
        b.call(Settlement.capture, uetr=uetr(1), amount=201)
    events = b.call(Settlement.capture, uetr=uetr(1), amount=200)
    assert [event.name for event in events] == ["Moved", "HoldEnded"]
    assert balances(world, "A", "B") == [(700, 0), (300, 0)]
    with reverts("hold_not_open"):
        b.call(Settlement.capture, uetr=uetr(1), amount=1)


def test_a_final_capture_returns_the_rest(world: World, a: Actor, b: Actor) -> None:
    place_hold(world, a, 300)
    events = b.call(Settlement.capture, uetr=uetr(1), amount=100, final=True)
    assert events[1].data["returned"] == 200
    assert balances(world, "A", "B") == [(900, 0), (100, 0)]
    hold = world.query(Settlement.find_hold, uetr=uetr(1))
    assert (hold["status"], hold["captured"], hold["remaining"]) == ("captured", 100, 0)


def test_only_the_creditor_captures_and_only_before_expiry(world: World, a: Actor, b: Actor) -> None:
    expires_at_ms = place_hold(world, a, 300)
    with reverts("not_authorized"):
        a.call(Settlement.capture, uetr=uetr(1), amount=100)
    world.advance(expires_at_ms - world.time_ms - 2)
    b.call(Settlement.capture, uetr=uetr(1), amount=100)
    assert world.time_ms == expires_at_ms - 1
    # In the block of the expiry the scheduled call comes first.
    with reverts("hold_not_open"):
        b.call(Settlement.capture, uetr=uetr(1), amount=100)


def test_a_hold_returns_by_itself_at_its_expiry(world: World, a: Actor) -> None:
    expires_at_ms = place_hold(world, a, 300)
    assert world.advance(expires_at_ms - world.time_ms - 1) == []
    assert balances(world, "A") == [(1_000, 300)]
    (outcome,) = world.advance(1)
    assert outcome.events[0].data["status"] == "expired"
    assert balances(world, "A") == [(1_000, 0)]


def test_an_ended_hold_does_not_return_twice(world: World, a: Actor, b: Actor) -> None:
    place_hold(world, a, 300)
    place_hold(world, a, 50, number=2)
    b.call(Settlement.release, uetr=uetr(1))
    assert balances(world, "A") == [(1_000, 50)]
    outcomes = world.advance(2 * HOUR_MS)
    assert [(outcome.code, len(outcome.events)) for outcome in outcomes] == [("ok", 0), ("ok", 1)]
    assert balances(world, "A") == [(1_000, 0)]


def test_the_debtor_waits_for_the_expiry_even_when_the_schedule_is_late(world: World, a: Actor, b: Actor) -> None:
    expires_at_ms = place_hold(world, a, 300)
    with reverts("hold_not_expired"):
        a.call(Settlement.release, uetr=uetr(1))
    with reverts("not_authorized"):
        world.as_("bank-c").call(Settlement.release, uetr=uetr(1))
    world.time_ms = expires_at_ms - 1
    late, world.due = world.due, []
    with reverts("hold_expired"):
        b.call(Settlement.capture, uetr=uetr(1), amount=1)
    world.time_ms = expires_at_ms - 1
    (event,) = a.call(Settlement.release, uetr=uetr(1))
    assert event.data["returned"] == 300
    world.due = late
    assert [outcome.events for outcome in world.advance(1)] == [()]


def test_nobody_calls_the_expiry_from_outside(world: World, a: Actor) -> None:
    place_hold(world, a, 300)
    with pytest.raises(CallError, match="unknown_method"):
        world.engine.validate("settlement", "expire", {"uetr": uetr(1)})
    with reverts("unknown_method"):
        a.call("settlement.expire", uetr=uetr(1))


def test_a_hold_expires_within_a_year(world: World, a: Actor) -> None:
    for expires_at_ms in (0, world.time_ms, world.time_ms + 367 * 24 * HOUR_MS):
        with reverts("expiry_out_of_range"):
            a.call(Settlement.hold, uetr=uetr(1), debtor="A", creditor="B", amount=1, expires_at_ms=expires_at_ms)


def test_a_repeated_hold_holds_once(world: World, a: Actor) -> None:
    args: dict[str, Any] = {"uetr": uetr(1), "debtor": "A", "creditor": "B", "amount": 10}
    expires_at_ms = world.time_ms + HOUR_MS
    a.call(Settlement.hold, **args, expires_at_ms=expires_at_ms)
    (event,) = a.call(Settlement.hold, **args, expires_at_ms=expires_at_ms)
    assert event.name == "Repeated"
    assert balances(world, "A") == [(1_000, 10)]
    with reverts("uetr_conflict"):
        a.call(Settlement.hold, **args, expires_at_ms=expires_at_ms + 1)


# --- statement ---


def chain_of(entries: Sequence[dict[str, Any]]) -> bytes:
    """Recompute an account's chain from a statement, as an auditor with the documentation does."""
    chain = b""
    for entry in entries:
        fields = tuple(entry.values())
        chain = hashlib.sha256(encode((chain, fields))).digest()
    return chain


def test_a_statement_is_consistent_and_its_chain_can_be_recomputed(world: World, a: Actor, b: Actor) -> None:
    a.call(Settlement.transfer, debtor="A", creditor="B", amount=300, reference="one")
    place_hold(world, a, 200)
    b.call(Settlement.capture, uetr=uetr(1), amount=50, final=True)
    b.call(Settlement.transfer, debtor="B", creditor="A", amount=10)
    statement = world.query(Settlement.statement, account="A")
    assert [entry["amount"] for entry in statement["entries"]] == [1_000, -300, -50, 10]
    assert [entry["kind"] for entry in statement["entries"]] == ["issue", "transfer", "capture", "transfer"]
    assert (statement["opening"], statement["closing"], statement["more"]) == (0, 660, False)
    for account in ("A", "B"):
        entries = world.query(Settlement.statement, account=account)["entries"]
        found = world.query(Settlement.account, account=account)
        assert (found["entries"], found["chain"]) == (len(entries), chain_of(entries))


def test_a_statement_of_a_range_opens_where_the_one_before_closes(world: World, a: Actor) -> None:
    for amount in (100, 200, 300):
        a.call(Settlement.transfer, debtor="A", creditor="B", amount=amount)
    last = world.height
    world.advance(1)
    ranges = ((0, last - 3), (last - 2, last - 2), (last - 1, last), (last + 1, last + 5))
    parts = [
        world.query(Settlement.statement, account="B", from_height=low, to_height=high) for low, high in ranges
    ]
    assert [(part["opening"], part["closing"]) for part in parts] == [(0, 0), (0, 100), (100, 600), (600, 600)]


def test_a_statement_is_read_in_pages(world: World, a: Actor) -> None:
    for _ in range(5):
        a.call(Settlement.transfer, debtor="A", creditor="B", amount=1)
    seen: list[int] = []
    page: dict[str, Any] = {"from_height": 0, "after_entry": 0}
    while True:
        statement = world.query(Settlement.statement, account="B", limit=2, **page)
        seen += [entry["number"] for entry in statement["entries"]]
        if not statement["more"]:
            break
        last = statement["entries"][-1]
        page = {"from_height": last["height"], "after_entry": last["number"]}
    assert seen == [1, 2, 3, 4, 5]
    assert statement["closing"] == 5


def test_a_statement_with_a_hole_is_not_shown(world: World, a: Actor) -> None:
    for _ in range(3):
        a.call(Settlement.transfer, debtor="A", creditor="B", amount=1)
    del world.log[-2]
    with pytest.raises(Revert, match="statement_incomplete"):
        world.query(Settlement.statement, account="B")


@pytest.mark.parametrize(
    ("args", "code"), [({"limit": 0}, "limit"), ({"limit": 501}, "limit"), ({"from_height": 9}, "r")]
)
def test_a_statement_has_limits(world: World, args: dict[str, int], code: str) -> None:
    with pytest.raises(Revert, match=code):
        world.query(Settlement.statement, account="A", **{"to_height": 8, **args})
