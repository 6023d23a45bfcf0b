"""Claims by their public calls: coverage, reserve, four eyes, and a payout that is whole or nothing."""

from typing import Any

import pytest

from contracts.claims import Claims
from contracts.settlement import Settlement
from contracts.testkit import Actor, World, reverts

ADJUSTER = "insurer-a/adjuster"
MANAGER = "insurer-a/manager"
UETR = "00000000-0000-4000-8000-000000000001"
UETR_2 = "00000000-0000-4000-8000-000000000002"
TERMS: dict[str, Any] = {
    "product": "MOTOR",
    "insurer": "insurer-a",
    "account": "CLAIMS-A",
    "perils": ("collision", "injury"),
    "limit": 100_000,
    "deductible": 5_000,
    "coinsurance_bp": 1_000,
    "waiting_days": 10,
    "notice_days": 365,
    "authority_limit": 20_000,
    "staff": (ADJUSTER, MANAGER),
}


def make_world(funds: int = 1_000_000, **terms: Any) -> World:
    world = World(
        (Settlement, Claims),
        genesis={"settlement": {"currencies": ({"code": "AUD", "exponent": 2, "issuer": "bank-a/issuer"},)}},
    )
    world.as_("insurer-a").call(
        Settlement.open_account, account="CLAIMS-A", owner="insurer-a", currency="AUD", operators=("@claims",)
    )
    world.as_("bank-a").call(Settlement.open_account, account="JO", owner="bank-a", currency="AUD")
    if funds:
        world.as_("bank-a/issuer").call(Settlement.issue, account="CLAIMS-A", amount=funds)
    world.as_("insurer-a").call(Claims.create_product, **{**TERMS, **terms})
    staff(world).call(
        Claims.bind_policy,
        policy="P1",
        product="MOTOR",
        payee="JO",
        inception_day=1_000,
        expiry_day=1_365,
        insured_object="VIN-1",
    )
    return world


def staff(world: World, name: str = ADJUSTER) -> Actor:
    return world.as_(name)


def notify(world: World, claim: str = "C1", **changes: Any) -> str:
    """Notify a loss and return where the claim stands: its status, or the reason for which it was denied."""
    arguments = {
        "claim": claim,
        "policy": "P1",
        "peril": "injury",
        "loss_day": 1_100,
        "notice_day": 1_110,
        "claimed": 50_000,
        "insured_object": "VIN-1",
        **changes,
    }
    staff(world).call(Claims.notify, **arguments)
    found = world.query(Claims.claim, claim=claim)
    return str(found["reason"] or found["status"]) if isinstance(found, dict) else str(found.reason or found.status)


def balance(world: World, account: str) -> int:
    return int(field(world.query(Settlement.balance, account=account), "balance"))


def field(value: Any, name: str) -> Any:
    return value[name] if isinstance(value, dict) else getattr(value, name)


def approved(world: World, assessed: int = 50_000) -> None:
    assert notify(world) == "under_review"
    staff(world).call(Claims.set_reserve, claim="C1", reserve=60_000)
    staff(world).call(Claims.assess, claim="C1", assessed=assessed)
    staff(world, MANAGER).call(Claims.approve, claim="C1")


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "under_review"),
        ({"loss_day": 999, "notice_day": 1_000}, "not_in_force"),
        ({"loss_day": 1_365, "notice_day": 1_365}, "not_in_force"),
        ({"peril": "theft"}, "peril_excluded"),
        ({"loss_day": 1_009, "notice_day": 1_010}, "waiting_period"),
        ({"notice_day": 1_466}, "late_notice"),
        ({"insured_object": "VIN-2"}, "wrong_object"),
    ],
)
def test_coverage_names_the_first_reason(changes: dict[str, Any], outcome: str) -> None:
    assert notify(make_world(), **changes) == outcome


def test_an_unpaid_premium_covers_nothing_until_it_is_paid() -> None:
    world = make_world()
    staff(world).call(
        Claims.bind_policy,
        policy="P2",
        product="MOTOR",
        payee="JO",
        inception_day=1_000,
        expiry_day=1_365,
        insured_object="VIN-1",
        premium_paid=False,
    )
    assert notify(world, "C1", policy="P2") == "premium_unpaid"
    staff(world).call(Claims.pay_premium, policy="P2")
    assert notify(world, "C2", policy="P2") == "under_review"


def test_evidence_is_asked_for_where_the_product_requires_it() -> None:
    world = make_world(evidence_required=True)
    assert notify(world, "C1") == "evidence_missing"
    assert notify(world, "C2", evidence=b"\x01" * 32) == "under_review"


def test_the_same_loss_notified_twice_is_a_duplicate_until_the_first_is_denied() -> None:
    world = make_world()
    assert notify(world, "C1") == "under_review"
    assert notify(world, "C2") == "duplicate"
    staff(world, MANAGER).call(Claims.deny, claim="C1", reason="fraud")
    assert notify(world, "C3") == "under_review"


def test_a_notice_before_its_loss_is_refused() -> None:
    world = make_world()
    with reverts("notice_before_loss"):
        notify(world, loss_day=1_200, notice_day=1_199)


@pytest.mark.parametrize(
    ("assessed", "payable"),
    [
        (50_000, 40_500),
        (200_000, 85_500),
        (5_000, 0),
        (5_001, 1),  # own share 0.1 rounds to 0
        (5_005, 4),  # own share 0.5 rounds half up to 1
    ],
)
def test_payable_is_limit_then_deductible_then_own_share(assessed: int, payable: int) -> None:
    world = make_world()
    notify(world)
    staff(world).call(Claims.assess, claim="C1", assessed=assessed)
    assert field(world.query(Claims.claim, claim="C1"), "payable") == payable


def test_payout_moves_claim_reserve_and_money_in_one_step() -> None:
    world = make_world()
    approved(world)
    staff(world).call(Claims.payout, claim="C1", uetr=UETR)
    claim = world.query(Claims.claim, claim="C1")
    totals = world.query(Claims.total, product="MOTOR")
    assert (field(claim, "status"), field(claim, "reserve")) == ("paid", 0)
    assert (field(totals, "reserved"), field(totals, "paid"), field(totals, "paid_claims")) == (0, 40_500, 1)
    assert (balance(world, "CLAIMS-A"), balance(world, "JO")) == (959_500, 40_500)


def test_a_payout_without_cash_changes_nothing_and_the_claim_stays_payable() -> None:
    world = make_world(funds=40_499)
    approved(world)
    with reverts("insufficient_funds"):
        staff(world).call(Claims.payout, claim="C1", uetr=UETR)
    claim = world.query(Claims.claim, claim="C1")
    assert (field(claim, "status"), field(claim, "reserve")) == ("approved", 60_000)
    assert field(world.query(Claims.total, product="MOTOR"), "reserved") == 60_000
    assert (balance(world, "CLAIMS-A"), balance(world, "JO")) == (40_499, 0)
    world.as_("bank-a/issuer").call(Settlement.issue, account="CLAIMS-A", amount=1)
    staff(world).call(Claims.payout, claim="C1", uetr=UETR)
    assert balance(world, "JO") == 40_500


def test_a_claim_is_paid_once() -> None:
    world = make_world()
    approved(world)
    staff(world).call(Claims.payout, claim="C1", uetr=UETR)
    for uetr in (UETR, UETR_2):
        with reverts("wrong_status"):
            staff(world).call(Claims.payout, claim="C1", uetr=uetr)
    assert balance(world, "JO") == 40_500


def test_the_uetr_of_another_claims_payout_pays_nothing() -> None:
    world = make_world()
    approved(world)
    staff(world).call(Claims.payout, claim="C1", uetr=UETR)
    assert notify(world, "C2", loss_day=1_101) == "under_review"
    staff(world).call(Claims.set_reserve, claim="C2", reserve=60_000)
    staff(world).call(Claims.assess, claim="C2", assessed=50_000)
    staff(world, MANAGER).call(Claims.approve, claim="C2")
    with reverts("uetr_conflict"):
        staff(world).call(Claims.payout, claim="C2", uetr=UETR)
    assert field(world.query(Claims.claim, claim="C2"), "status") == "approved"


def test_above_the_authority_limit_the_checker_is_not_the_maker() -> None:
    world = make_world()
    notify(world)
    staff(world).call(Claims.set_reserve, claim="C1", reserve=60_000)
    staff(world).call(Claims.assess, claim="C1", assessed=50_000)
    with reverts("checker_is_maker"):
        staff(world).call(Claims.approve, claim="C1")
    with reverts("checker_is_maker"):
        staff(world).call(Claims.deny, claim="C1", reason="fraud")
    staff(world, MANAGER).call(Claims.approve, claim="C1")


def test_within_the_authority_limit_one_person_decides() -> None:
    world = make_world()
    notify(world)
    staff(world).call(Claims.set_reserve, claim="C1", reserve=20_000)
    staff(world).call(Claims.assess, claim="C1", assessed=20_000)
    staff(world).call(Claims.approve, claim="C1")


def test_approval_needs_a_reserve_that_covers_it() -> None:
    world = make_world()
    notify(world)
    staff(world).call(Claims.set_reserve, claim="C1", reserve=40_499)
    staff(world).call(Claims.assess, claim="C1", assessed=50_000)
    with reverts("reserve_insufficient"):
        staff(world, MANAGER).call(Claims.approve, claim="C1")


def test_an_assessment_below_the_deductible_is_denied_not_approved() -> None:
    world = make_world()
    notify(world)
    staff(world).call(Claims.assess, claim="C1", assessed=4_000)
    with reverts("nothing_payable"):
        staff(world, MANAGER).call(Claims.approve, claim="C1")
    staff(world, MANAGER).call(Claims.deny, claim="C1", reason="below_deductible")


@pytest.mark.parametrize("outsider", ["bank-a", "insurer-b", "insurer-a/broker", "insurer-b/adjuster"])
def test_only_the_insurers_staff_acts_on_its_claims(outsider: str) -> None:
    world = make_world()
    approved(world)
    with reverts("not_authorized"):
        staff(world, outsider).call(Claims.payout, claim="C1", uetr=UETR)


def test_claims_cannot_debit_an_account_that_did_not_name_it() -> None:
    world = make_world()
    world.as_("insurer-a").call(Settlement.set_operators, account="CLAIMS-A", operators=())
    approved(world)
    with reverts("not_authorized"):
        staff(world).call(Claims.payout, claim="C1", uetr=UETR)


def test_steps_out_of_order_are_refused() -> None:
    world = make_world()
    notify(world)
    with reverts("wrong_status"):
        staff(world, MANAGER).call(Claims.approve, claim="C1")
    with reverts("wrong_status"):
        staff(world).call(Claims.payout, claim="C1", uetr=UETR)
    with reverts("claim_not_found"):
        staff(world).call(Claims.assess, claim="C9", assessed=1)
    with reverts("claim_exists"):
        notify(world)


def test_no_product_pays_from_an_account_that_its_insurer_does_not_act_for() -> None:
    """Whoever had named "@claims" as operator could be paid out by any other member's product."""
    world = make_world()
    other = world.as_("bank-a")
    product = {
        **TERMS,
        "product": "THEFT",
        "insurer": "bank-a",
        "account": "CLAIMS-A",
        "staff": (),
        "authority_limit": 100_000,
    }
    with reverts("not_authorized"):
        other.call(Claims.create_product, **product)
    owner = world.as_("insurer-a")
    owner.call(Settlement.set_operators, account="CLAIMS-A", operators=("@claims", "bank-a"))
    other.call(Claims.create_product, **product)
    # And who is let in and out again pays no more.
    other.call(Claims.bind_policy, policy="P2", product="THEFT", payee="JO", inception_day=1_000, expiry_day=1_365)
    loss = {"claim": "C2", "policy": "P2", "peril": "injury", "loss_day": 1_100, "notice_day": 1_110}
    other.call(Claims.notify, **loss, claimed=50_000)
    other.call(Claims.set_reserve, claim="C2", reserve=50_000)
    other.call(Claims.assess, claim="C2", assessed=50_000)
    other.call(Claims.approve, claim="C2")
    owner.call(Settlement.set_operators, account="CLAIMS-A", operators=("@claims",))
    with reverts("not_authorized"):
        other.call(Claims.payout, claim="C2", uetr=UETR)
    assert balance(world, "JO") == 0
