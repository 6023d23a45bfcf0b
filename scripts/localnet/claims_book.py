"""The claims of the data as work for the ledger, and what a plain loop over them expects.

Odd rows are insured with the first insurer, even rows with the second, each under one product of its own. Every
claim has its own policy, in force around the accident, and its own payee's account in AUD. The injury is the peril.
An injury that was not recorded is no peril of either product, and a report after the notice period comes too late:
such claims have to be denied at the notice of loss. Of the others the settled amount is assessed; what the limit,
the deductible and the insured's own share leave of it is paid, and a claim with nothing left is denied.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from scripts.localnet.datasets import Claim
from scripts.localnet.plan import ExpectedCall, Group

CURRENCY = "AUD"
POLICY_STARTS_DAYS_BEFORE = 200
POLICY_DAYS = 365
PERILS = ("minor_injury", "small_injury", "medium_injury", "high_injury", "severe_injury", "fatal_injury")


class Terms(msgspec.Struct, frozen=True):
    """A product's terms; amounts in cents."""

    limit: int
    deductible: int
    coinsurance_bp: int
    notice_days: int
    authority_limit: int


TERMS = (
    Terms(limit=250_000_00, deductible=500_00, coinsurance_bp=1_000, notice_days=1_095, authority_limit=20_000_00),
    Terms(limit=100_000_00, deductible=1_000_00, coinsurance_bp=0, notice_days=730, authority_limit=10_000_00),
)


class Decision(msgspec.Struct, frozen=True):
    """How a claim has to end: `reason` is empty when it is paid, with `payable` cents."""

    denied_at_notice: bool
    reason: str
    payable: int


class Insurer(msgspec.Struct, frozen=True):
    """An insurer of the test network: its principals, its product and the account that pays."""

    member: str
    product: str
    account: str
    terms: Terms

    @property
    def adjuster(self) -> str:
        """Who takes notices, reserves and assesses."""
        return f"{self.member}/adjuster"

    @property
    def approver(self) -> str:
        """Who decides and pays out."""
        return f"{self.member}/approver"


class ClaimsBook:
    """Policies and claims at two insurers, payees' accounts at all `members`."""

    def __init__(
        self, claims: Sequence[Claim], insurers: tuple[str, str], members: Sequence[str], prefix: str
    ) -> None:
        self._claims = claims
        self._members = members
        self._prefix = prefix
        self.insurers = tuple(
            Insurer(member, f"{prefix}-BI-{index + 1}", f"{prefix}-CLAIMS-{index + 1}", terms)
            for index, (member, terms) in enumerate(zip(insurers, TERMS, strict=True))
        )

    def insurer(self, claim: Claim) -> Insurer:
        """Who insures it."""
        return self.insurers[(claim.row - 1) % 2]

    def payee(self, claim: Claim) -> str:
        """The account that is paid."""
        return f"{self._prefix}-P{claim.row}"

    def payee_owner(self, claim: Claim) -> str:
        """The member that keeps the payee's account."""
        return self._members[claim.row % len(self._members)]

    def decision(self, claim: Claim) -> Decision:
        """What the terms say about the claim, in whole cents."""
        terms = self.insurer(claim).terms
        if _peril(claim) not in PERILS:
            return Decision(True, "peril_excluded", 0)
        if claim.report_day - claim.accident_day > terms.notice_days:
            return Decision(True, "late_notice", 0)
        above = max(0, min(claim.cents, terms.limit) - terms.deductible)
        twice_own_share = 2 * above * terms.coinsurance_bp
        own_share = (twice_own_share + 10_000) // 20_000  # halves are rounded up
        payable = above - own_share
        return Decision(False, "", payable) if payable else Decision(False, "below_deductible", 0)

    def expected_payouts(self) -> dict[str, int]:
        """The plain loop: product -> the sum of its payouts in cents."""
        sums = {insurer.product: 0 for insurer in self.insurers}
        for claim in self._claims:
            sums[self.insurer(claim).product] += self.decision(claim).payable
        return sums

    # --- the work, phase by phase ---

    def openings(self) -> list[Group]:
        """The insurers' accounts, which their claims contract may use, their products, and the payees' accounts."""
        groups = []
        for insurer in self.insurers:
            account = _call(
                "settlement.open_account",
                account=insurer.account,
                owner=insurer.member,
                currency=CURRENCY,
                operators=("@claims",),
            )
            groups += [Group(insurer.member, (account,)), Group(insurer.member, (self._product(insurer),))]
        for claim in self._claims:
            owner = self.payee_owner(claim)
            opened = _call("settlement.open_account", account=self.payee(claim), owner=owner, currency=CURRENCY)
            groups.append(Group(owner, (opened,)))
        return groups

    def fundings(self, issuer: str) -> list[Group]:
        """The issuer puts on the insurers' accounts what they will pay."""
        sums = self.expected_payouts()
        return [
            Group(issuer, (_call("settlement.issue", account=insurer.account, amount=sums[insurer.product]),))
            for insurer in self.insurers
            if sums[insurer.product]
        ]

    def policies(self) -> list[Group]:
        """Each claim's policy."""
        return [
            Group(
                self.insurer(claim).member,
                (
                    _call(
                        "claims.bind_policy",
                        policy=self._id("POL", claim),
                        product=self.insurer(claim).product,
                        payee=self.payee(claim),
                        inception_day=claim.accident_day - POLICY_STARTS_DAYS_BEFORE,
                        expiry_day=claim.accident_day - POLICY_STARTS_DAYS_BEFORE + POLICY_DAYS,
                    ),
                ),
            )
            for claim in self._claims
        ]

    def notices(self) -> list[Group]:
        """Each claim's notice of loss; coverage is judged here."""
        return [
            Group(
                self.insurer(claim).adjuster,
                (
                    _call(
                        "claims.notify",
                        claim=self._id("CLM", claim),
                        policy=self._id("POL", claim),
                        peril=_peril(claim),
                        loss_day=claim.accident_day,
                        notice_day=claim.report_day,
                        claimed=claim.cents,
                    ),
                ),
            )
            for claim in self._claims
        ]

    def assessments(self) -> list[Group]:
        """Reserve and assessment of each covered claim."""
        groups = []
        for claim in self._covered():
            insurer, claim_id = self.insurer(claim), self._id("CLM", claim)
            reserve = _call("claims.set_reserve", claim=claim_id, reserve=min(claim.cents, insurer.terms.limit))
            assess = _call("claims.assess", claim=claim_id, assessed=claim.cents)
            groups.append(Group(insurer.adjuster, (reserve, assess)))
        return groups

    def decisions(self) -> list[Group]:
        """Approval, or denial where nothing is payable; by somebody else than the assessor."""
        groups = []
        for claim in self._covered():
            decision, claim_id = self.decision(claim), self._id("CLM", claim)
            if decision.payable:
                decided = _call("claims.approve", claim=claim_id)
            else:
                decided = _call("claims.deny", claim=claim_id, reason=decision.reason)
            groups.append(Group(self.insurer(claim).approver, (decided,)))
        return groups

    def payouts(self) -> list[Group]:
        """The money, once."""
        return [
            Group(
                self.insurer(claim).approver,
                (_call("claims.payout", claim=self._id("CLM", claim), uetr=self._uetr(claim)),),
            )
            for claim in self._claims
            if self.decision(claim).payable
        ]

    def _covered(self) -> list[Claim]:
        return [claim for claim in self._claims if not self.decision(claim).denied_at_notice]

    def _product(self, insurer: Insurer) -> ExpectedCall:
        return _call(
            "claims.create_product",
            product=insurer.product,
            insurer=insurer.member,
            account=insurer.account,
            perils=PERILS,
            waiting_days=0,
            staff=(insurer.adjuster, insurer.approver),
            **msgspec.structs.asdict(insurer.terms),
        )

    def _id(self, kind: str, claim: Claim) -> str:
        return f"{self._prefix}-{kind}-{claim.row}"

    def _uetr(self, claim: Claim) -> str:
        """A UUID of version 4 that is the same whenever the same data is loaded."""
        digest = hashlib.sha256(self._id("UETR", claim).encode()).hexdigest()
        return f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-8{digest[17:20]}-{digest[20:32]}"


def _peril(claim: Claim) -> str:
    return claim.injury.replace(" ", "_")


def _call(method: str, **args: Any) -> ExpectedCall:
    contract, _, name = method.partition(".")
    return ExpectedCall(contract, name, args)
