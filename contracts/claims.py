"""Claims of an insurer: from the notice of loss to the payout, with coverage, reserve, assessment and four eyes.

A product fixes the terms, a policy puts one insured under them, a claim is one loss. A claim moves

    notify -> under_review -> assess -> assessed -> approve -> approved -> payout -> paid
       \\-> denied (coverage)     \\----------- deny -----------/-> denied

and every move names who made it. The payout calls settlement, so the claim's state, its reserve and the money
change together or not at all: when the cash is missing the claim stays approved and payable.

More than 500 lines because whoever audits a contract reads one file.
"""

from typing import Annotated, Literal

from contracts.sdk import (
    AMOUNT_MAX,
    Amount,
    Code,
    Context,
    Contract,
    Event,
    Map,
    Meta,
    PrincipalId,
    Value,
    call,
    invariant,
    query,
    replace,
    require,
    require_amount,
)
from contracts.settlement import AccountId, Settlement, Uetr

ProductId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,34}\Z")]
PolicyId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,34}\Z")]
ClaimId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,34}\Z")]
Peril = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,39}\Z")]
Reason = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,39}\Z")]
InsuredObject = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{0,64}\Z")]
Day = Annotated[int, Meta(ge=0, le=100_000, description="days since 1970-01-01")]
Days = Annotated[int, Meta(ge=0, le=36_500)]
BasisPoints = Annotated[int, Meta(ge=0, le=10_000)]
MinorUnits = Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]
EvidenceHash = Annotated[bytes, Meta(min_length=32, max_length=32)]
Status = Literal["under_review", "assessed", "approved", "paid", "denied"]

PAGE_MAX = 100
COVERED = "covered"


class Product(Value):
    """Terms of insurance. Amounts are minor units of the payout account's currency.

    `staff` are the principals that handle claims; `authority_limit` is the amount up to which one of them may
    decide alone. `notice_days` 0: a notice is never late. `coinsurance_bp` is the insured's own share.
    """

    insurer: PrincipalId
    account: AccountId
    perils: tuple[Peril, ...]
    limit: int
    deductible: int
    coinsurance_bp: BasisPoints
    waiting_days: Days
    notice_days: Days
    authority_limit: int
    evidence_required: bool
    staff: tuple[PrincipalId, ...]


class Policy(Value):
    """One insured under a product, in force on inception_day <= day < expiry_day; paid out to `payee`."""

    product: ProductId
    payee: AccountId
    insured_object: InsuredObject
    inception_day: Day
    expiry_day: Day
    premium_paid: bool


class Claim(Value):
    """One loss. `reserve` is what the insurer still holds for it, `payable` what the assessment gives.

    `maker` prepared the pending decision (the notice, then the assessment); `decided_by` approved or denied.
    """

    policy: PolicyId
    peril: Peril
    loss_day: Day
    notice_day: Day
    claimed: int
    status: Status
    reason: str
    reserve: int
    assessed: int
    payable: int
    maker: PrincipalId
    decided_by: str
    evidence: bytes


class Totals(Value):
    """A product's sums: open reserves, payouts, and how many claims stand where."""

    claims: int = 0
    paid_claims: int = 0
    denied_claims: int = 0
    reserved: int = 0
    paid: int = 0


class ClaimView(Value):
    """A claim with its id, as queries show it."""

    claim_id: ClaimId
    claim: Claim


class ProductCreated(Event):
    """A product exists."""

    topics = ("product/{product}",)
    product: ProductId
    insurer: PrincipalId


class PolicyBound(Event):
    """A policy is in force for its days."""

    topics = ("policy/{policy}", "product/{product}")
    policy: PolicyId
    product: ProductId


class LossNotified(Event):
    """A loss is on record; `coverage` is `covered` or the first reason why the policy does not answer for it."""

    topics = ("claim/{claim}", "policy/{policy}")
    claim: ClaimId
    policy: PolicyId
    coverage: str
    by: PrincipalId


class ReserveSet(Event):
    """The insurer holds `reserve` for the claim."""

    topics = ("claim/{claim}",)
    claim: ClaimId
    reserve: int
    by: PrincipalId


class ClaimAssessed(Event):
    """The loss is assessed. payable = (min(assessed, limit) - deductible) less the insured's own share."""

    topics = ("claim/{claim}",)
    claim: ClaimId
    assessed: int
    within_limit: int
    deductible: int
    own_share: int
    payable: int
    by: PrincipalId


class ClaimApproved(Event):
    """The claim is payable."""

    topics = ("claim/{claim}",)
    claim: ClaimId
    payable: int
    maker: PrincipalId
    by: PrincipalId


class ClaimDenied(Event):
    """The claim is closed without a payout."""

    topics = ("claim/{claim}",)
    claim: ClaimId
    reason: str
    by: PrincipalId


class ClaimPaid(Event):
    """The payout is final; `reserve_released` went back with it."""

    topics = ("claim/{claim}", "policy/{policy}")
    claim: ClaimId
    policy: PolicyId
    amount: int
    uetr: Uetr
    reserve_released: int


class Claims(Contract):
    """Claims that pay themselves: coverage by rule, decisions by two people, payout in the same step."""

    version = 1
    uses = (Settlement.transfer, Settlement.require_acting)
    codes = (
        Code("product_not_found", "There is no product of that id."),
        Code("product_exists", "The product's id is taken."),
        Code("policy_not_found", "There is no policy of that id."),
        Code("policy_exists", "The policy's id is taken."),
        Code("claim_not_found", "There is no claim of that id."),
        Code("claim_exists", "The claim's id is taken."),
        Code("terms_invalid", "The product's or policy's terms contradict one another."),
        Code("notice_before_loss", "The loss was notified before it happened.", "DT01"),
        Code("wrong_status", "The claim does not stand where this step begins."),
        Code("reserve_insufficient", "The reserve is smaller than what is payable: raise it first."),
        Code("checker_is_maker", "Above the authority limit somebody else has to decide.", "AG01"),
        Code("nothing_payable", "The assessment leaves nothing to pay: deny the claim with its reason."),
    )

    products: Map[ProductId, Product] = Map(missing="product_not_found")
    policies: Map[PolicyId, Policy] = Map(missing="policy_not_found")
    claims: Map[ClaimId, Claim] = Map(missing="claim_not_found")
    totals: Map[ProductId, Totals] = Map(missing="product_not_found")
    # (policy, peril, loss day) -> the claim that stands for this loss: a second one is a duplicate.
    losses: Map[tuple[PolicyId, Peril, Day], ClaimId] = Map()
    by_policy: Map[tuple[PolicyId, ClaimId], bool] = Map()

    @call
    def create_product(
        self,
        ctx: Context,
        product: ProductId,
        insurer: PrincipalId,
        account: AccountId,
        perils: tuple[Peril, ...],
        limit: Amount,
        deductible: MinorUnits,
        coinsurance_bp: BasisPoints,
        waiting_days: Days,
        notice_days: Days,
        authority_limit: MinorUnits,
        staff: tuple[PrincipalId, ...],
        evidence_required: bool = False,
    ) -> None:
        """`product` is on sale by `insurer`; its payouts come from `account`, which names "@claims" as operator.

        The insurer acts for the account itself: else whoever has a product could pay from anybody's.
        """
        ctx.authorize(insurer)
        ctx.call(Settlement.require_acting, account=account, principal=insurer)
        require(self.products.get(product) is None, "product_exists")
        require_amount(limit)
        require(0 < len(perils) <= 64 and len(staff) <= 64, "terms_invalid", "1 … 64 perils, at most 64 staff")
        require(deductible < limit, "terms_invalid", "the deductible reaches the limit")
        root = insurer.split("/")[0]
        for person in staff:
            require(person.split("/")[0] == root, "terms_invalid", f"{person} does not belong to {root}")
        self.products[product] = Product(
            insurer=insurer,
            account=account,
            perils=perils,
            limit=limit,
            deductible=deductible,
            coinsurance_bp=coinsurance_bp,
            waiting_days=waiting_days,
            notice_days=notice_days,
            authority_limit=authority_limit,
            evidence_required=evidence_required,
            staff=staff,
        )
        self.totals[product] = Totals()
        ctx.emit(ProductCreated(product, insurer))

    @call
    def bind_policy(
        self,
        ctx: Context,
        policy: PolicyId,
        product: ProductId,
        payee: AccountId,
        inception_day: Day,
        expiry_day: Day,
        insured_object: InsuredObject = "",
        premium_paid: bool = True,
    ) -> None:
        """`policy` is in force on inception_day <= day < expiry_day under the terms of `product`."""
        ctx.authorize(self.products[product].insurer, self.products[product].staff)
        require(self.policies.get(policy) is None, "policy_exists")
        require(inception_day < expiry_day, "terms_invalid", "the policy ends before it begins")
        self.policies[policy] = Policy(product, payee, insured_object, inception_day, expiry_day, premium_paid)
        ctx.emit(PolicyBound(policy, product))

    @call
    def pay_premium(self, ctx: Context, policy: PolicyId) -> None:
        """The insurer has the premium of `policy`: losses are covered from now on."""
        bound = self.policies[policy]
        ctx.authorize(self.products[bound.product].insurer, self.products[bound.product].staff)
        self.policies[policy] = replace(bound, premium_paid=True)

    @call
    def notify(
        self,
        ctx: Context,
        claim: ClaimId,
        policy: PolicyId,
        peril: Peril,
        loss_day: Day,
        notice_day: Day,
        claimed: Amount,
        insured_object: InsuredObject = "",
        evidence: EvidenceHash | None = None,
    ) -> None:
        """The loss is on record: under review when the policy covers it, else denied with the reason."""
        bound = self.policies[policy]
        product = self.products[bound.product]
        ctx.authorize(product.insurer, product.staff)
        require(self.claims.get(claim) is None, "claim_exists")
        require(loss_day <= notice_day, "notice_before_loss")
        require_amount(claimed)
        coverage = self._coverage(product, bound, policy, peril, loss_day, notice_day, insured_object, evidence)
        covered = coverage == COVERED
        self.claims[claim] = Claim(
            policy=policy,
            peril=peril,
            loss_day=loss_day,
            notice_day=notice_day,
            claimed=claimed,
            status="under_review" if covered else "denied",
            reason="" if covered else coverage,
            reserve=0,
            assessed=0,
            payable=0,
            maker=ctx.sender,
            decided_by="",
            evidence=evidence or b"",
        )
        self.by_policy[(policy, claim)] = True
        if covered:
            self.losses[(policy, peril, loss_day)] = claim
        totals = self.totals[bound.product]
        self.totals[bound.product] = replace(
            totals, claims=totals.claims + 1, denied_claims=totals.denied_claims + (0 if covered else 1)
        )
        ctx.emit(LossNotified(claim, policy, coverage, ctx.sender))

    def _coverage(
        self,
        product: Product,
        policy: Policy,
        policy_id: str,
        peril: str,
        loss_day: int,
        notice_day: int,
        insured_object: str,
        evidence: bytes | None,
    ) -> str:
        """Return `covered`, or the first reason in the order in which an adjuster asks."""
        if not policy.inception_day <= loss_day < policy.expiry_day:
            return "not_in_force"
        if not policy.premium_paid:
            return "premium_unpaid"
        if peril not in product.perils:
            return "peril_excluded"
        if loss_day < policy.inception_day + product.waiting_days:
            return "waiting_period"
        if product.notice_days and notice_day > loss_day + product.notice_days:
            return "late_notice"
        if insured_object != policy.insured_object:
            return "wrong_object"
        if self.losses.get((policy_id, peril, loss_day)) is not None:
            return "duplicate"
        if product.evidence_required and evidence is None:
            return "evidence_missing"
        return COVERED

    @call
    def set_reserve(self, ctx: Context, claim: ClaimId, reserve: MinorUnits) -> None:
        """The insurer holds `reserve` minor units for the claim."""
        current, product_id, product = self._open_claim(claim)
        ctx.authorize(product.insurer, product.staff)
        require(current.status in ("under_review", "assessed"), "wrong_status", current.status)
        self._move_reserve(product_id, reserve - current.reserve)
        self.claims[claim] = replace(current, reserve=reserve)
        ctx.emit(ReserveSet(claim, reserve, ctx.sender))

    @call
    def assess(self, ctx: Context, claim: ClaimId, assessed: Amount) -> None:
        """The loss is worth `assessed`; what is payable of it follows from the product's terms."""
        current, _, product = self._open_claim(claim)
        ctx.authorize(product.insurer, product.staff)
        require(current.status in ("under_review", "assessed"), "wrong_status", current.status)
        require_amount(assessed)
        within_limit = min(assessed, product.limit)
        above_deductible = max(0, within_limit - product.deductible)
        # The insured's own share, rounded half up to a whole minor unit.
        own_share = (above_deductible * product.coinsurance_bp + 5_000) // 10_000
        payable = above_deductible - own_share
        self.claims[claim] = replace(
            current, status="assessed", assessed=assessed, payable=payable, maker=ctx.sender
        )
        ctx.emit(ClaimAssessed(claim, assessed, within_limit, product.deductible, own_share, payable, ctx.sender))

    @call
    def approve(self, ctx: Context, claim: ClaimId) -> None:
        """The claim is payable. Above the authority limit the approver is not the assessor."""
        current, _, product = self._open_claim(claim)
        ctx.authorize(product.insurer, product.staff)
        require(current.status == "assessed", "wrong_status", current.status)
        require(current.payable > 0, "nothing_payable")
        self._four_eyes(ctx, product, current, current.payable)
        require(
            current.reserve >= current.payable, "reserve_insufficient", f"{current.reserve} < {current.payable}"
        )
        self.claims[claim] = replace(current, status="approved", decided_by=ctx.sender)
        ctx.emit(ClaimApproved(claim, current.payable, current.maker, ctx.sender))

    @call
    def deny(self, ctx: Context, claim: ClaimId, reason: Reason) -> None:
        """The claim is closed without a payout and its reserve released; four eyes as for an approval."""
        current, product_id, product = self._open_claim(claim)
        ctx.authorize(product.insurer, product.staff)
        require(current.status in ("under_review", "assessed"), "wrong_status", current.status)
        at_stake = current.payable if current.status == "assessed" else min(current.claimed, product.limit)
        self._four_eyes(ctx, product, current, at_stake)
        self._move_reserve(product_id, -current.reserve)
        del self.losses[(current.policy, current.peril, current.loss_day)]
        totals = self.totals[product_id]
        self.totals[product_id] = replace(totals, denied_claims=totals.denied_claims + 1)
        self.claims[claim] = replace(current, status="denied", reason=reason, reserve=0, decided_by=ctx.sender)
        ctx.emit(ClaimDenied(claim, reason, ctx.sender))

    @call
    def payout(self, ctx: Context, claim: ClaimId, uetr: Uetr) -> None:
        """The payee has the money, the reserve is released and the claim is paid: in one step, once."""
        current, product_id, product = self._open_claim(claim)
        ctx.authorize(product.insurer, product.staff)
        require(current.status == "approved", "wrong_status", current.status)
        # Of today: the account's owner may have taken the insurer out since.
        ctx.call(Settlement.require_acting, account=product.account, principal=product.insurer)
        payee = self.policies[current.policy].payee
        self._move_reserve(product_id, -current.reserve)
        totals = self.totals[product_id]
        self.totals[product_id] = replace(
            totals, paid=totals.paid + current.payable, paid_claims=totals.paid_claims + 1
        )
        self.claims[claim] = replace(current, status="paid", reserve=0)
        # With the claim as reference, a UETR that paid another claim is refused as other content.
        ctx.call(
            Settlement.transfer,
            debtor=product.account,
            creditor=payee,
            amount=current.payable,
            uetr=uetr,
            reference=claim,
        )
        ctx.emit(ClaimPaid(claim, current.policy, current.payable, uetr, current.reserve))

    def _open_claim(self, claim: str) -> tuple[Claim, str, Product]:
        current = self.claims[claim]
        product_id = self.policies[current.policy].product
        return current, product_id, self.products[product_id]

    def _move_reserve(self, product_id: str, change: int) -> None:
        totals = self.totals[product_id]
        self.totals[product_id] = replace(totals, reserved=totals.reserved + change)

    def _four_eyes(self, ctx: Context, product: Product, claim: Claim, amount: int) -> None:
        if amount > product.authority_limit:
            require(ctx.sender != claim.maker, "checker_is_maker", f"{claim.maker} prepared this decision")

    @query
    def product(self, product: ProductId) -> Product:
        """The terms of a product."""
        return self.products[product]

    @query
    def policy(self, policy: PolicyId) -> Policy:
        """A policy."""
        return self.policies[policy]

    @query
    def claim(self, claim: ClaimId) -> Claim:
        """Where a claim stands."""
        return self.claims[claim]

    @query
    def claims_of_policy(
        self,
        policy: PolicyId,
        after: ClaimId | None = None,
        limit: Annotated[int, Meta(ge=1, le=PAGE_MAX)] = PAGE_MAX,
    ) -> tuple[ClaimView, ...]:
        """The claims under a policy, by id; `after` continues a page."""
        rows = self.by_policy.scan(prefix=(policy,), after=None if after is None else (policy, after), limit=limit)
        return tuple([ClaimView(key[1], self.claims[key[1]]) for key, _ in rows])

    @query
    def total(self, product: ProductId) -> Totals:
        """The sums of a product."""
        return self.totals[product]

    @invariant
    def totals_add_up(self) -> bool:
        """Each product's reserves, payouts and counts are the sums over its claims."""
        sums = {product: Totals() for product, _ in self.totals.scan(limit=None)}
        for _, claim in self.claims.scan(limit=None):
            product = self.policies[claim.policy].product
            seen = sums[product]
            sums[product] = Totals(
                claims=seen.claims + 1,
                paid_claims=seen.paid_claims + (1 if claim.status == "paid" else 0),
                denied_claims=seen.denied_claims + (1 if claim.status == "denied" else 0),
                reserved=seen.reserved + claim.reserve,
                paid=seen.paid + (claim.payable if claim.status == "paid" else 0),
            )
        return all(sums[product] == totals for product, totals in self.totals.scan(limit=None))

    @invariant
    def payouts_stay_within_terms(self) -> bool:
        """No claim is paid more than the limit, closed claims hold no reserve, approved ones hold enough."""
        for _, claim in self.claims.scan(limit=None):
            product = self.products[self.policies[claim.policy].product]
            if claim.payable > product.limit:
                return False
            if claim.status in ("paid", "denied") and claim.reserve:
                return False
            if claim.status == "approved" and claim.reserve < claim.payable:
                return False
        return True
