"""Cash accounts in many currencies: issue, redeem, transfer, and two-phase holds. Every movement is double entry.

More than 500 lines because one service stands in one module, its values and events beside its rules.

Amounts are integer minor units (cents of USD, yen of JPY). A transfer debits one account and credits another;
issue and redeem have the issuer's supply on the other side. What an account can spend is `balance - held`.

A UETR (ISO 20022's unique end-to-end transaction reference: a lower-case UUID version 4) makes a payment
idempotent: the same UETR with the same content changes nothing and answers with a `Repeated` event that names the
original movement; with other content it is refused as `uetr_conflict`. UETRs are one space for the whole ledger:
who takes another's out of spite has signed for it, and the payer sends again with a new one.

An emergency brake (contracts/brake.py) on an account or a currency stops every movement of its money: no entry is
written, nothing is set aside and nothing set aside is returned. A hold does not run out on who could not capture
it: one whose time ends while a brake stops that stays open until an hour after the brake's end.

Entries are not kept in state. An account counts them and chains their hashes, each movement's event carries both
sides' entry numbers and balances, and `statement` reads the events back.
"""

from typing import Annotated, Any, Literal

from contracts.sdk import (
    AMOUNT_MAX,
    Amount,
    Argument,
    Code,
    Context,
    Contract,
    Event,
    Map,
    Meta,
    PrincipalId,
    QueryContext,
    TimeMs,
    Value,
    call,
    genesis,
    invariant,
    query,
    replace,
    require,
    require_amount,
    scheduled,
)

HEIGHT_MAX = 9_007_199_254_740_991

AccountId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,33}\Z", description="1 … 34 characters")]
CurrencyCode = Annotated[str, Meta(pattern=r"^[A-Z]{3}\Z", description="ISO 4217")]
Uetr = Annotated[
    str,
    Meta(
        pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z",
        description="a lower-case UUID version 4",
    ),
]
Reference = Annotated[str, Meta(pattern=r"^[ -~]{0,35}\Z", description="up to 35 printable ASCII characters")]
Operator = Annotated[str, Meta(pattern=r"^(@[a-z][a-z0-9_]{0,39}|[a-z][a-z0-9-]{0,31}(/[a-z][a-z0-9-]{0,31})?)\Z")]
Operators = Annotated[tuple[Operator, ...], Meta(max_length=8)]
Height = Annotated[int, Meta(ge=0, le=HEIGHT_MAX)]
Kind = Literal["issue", "redeem", "transfer", "hold", "capture"]
HoldStatus = Literal["open", "captured", "released", "expired"]

HOLD_MS_MAX = 366 * 24 * 60 * 60 * 1000
AFTER_BRAKE_MS = 3_600_000
PAGE_MAX = 500
EVENTS_MAX = 10_000
NO_CHAIN = b""

# Values and events below say `str` where a call's arguments were already judged by their pattern.


class Currency(Value):
    """A currency: decimals of its major unit, and the principal who issues and redeems it."""

    exponent: int
    issuer: str


class NewCurrency(Argument):
    """A currency in the network definition."""

    code: CurrencyCode
    exponent: Annotated[int, Meta(ge=0, le=9)]
    issuer: PrincipalId


class Supply(Value):
    """What was ever issued and redeemed of a currency; the difference lies on accounts."""

    issued: int
    redeemed: int


class Account(Value):
    """An account of `owner`. `operators` may act for it too: principals, or contracts as "@claims".

    `chain` is the SHA-256 over the previous chain and the newest entry (see `Entry`); empty before the first.
    """

    owner: str
    currency: str
    balance: int
    held: int
    entries: int
    chain: bytes
    operators: tuple[str, ...]
    open: bool


class Entry(Value):
    """One line of a statement, as it goes into the account's chain. `amount` is negative on the debtor's side."""

    account: str
    number: int
    height: int
    kind: Kind
    amount: int
    other: str | None
    uetr: str | None
    reference: str
    balance: int


class Link(Value):
    """What an account's chain hashes: the chain before, and the entry that goes on from it."""

    chain: bytes
    entry: Entry


class Movement(Value):
    """The first use of a UETR: what it was for, and where it stands. A side without account has entry 0."""

    kind: Kind
    debtor: str | None
    creditor: str | None
    amount: int
    currency: str
    reference: str
    height: int
    time_ms: int
    tx_id: bytes
    debtor_entry: int
    creditor_entry: int


class Order(Value):
    """What a call wants to be booked, or set aside."""

    kind: Kind
    debtor: str | None
    creditor: str | None
    amount: int
    currency: str
    uetr: str | None
    reference: str


class Hold(Value):
    """Money of the debtor set aside for the creditor until expires_at_ms; `remaining` is still set aside.

    `put_off_ms` is its end instead, where an emergency brake was on at that time; else 0.
    """

    debtor: str
    creditor: str
    amount: int
    remaining: int
    captured: int
    expires_at_ms: int
    reference: str
    status: HoldStatus
    put_off_ms: int = 0


class AccountOpened(Event):
    """An account exists."""

    account: str
    owner: str
    currency: str
    operators: tuple[str, ...]

    topics = ("opened/{account}", "owner/{owner}")


class OperatorsChanged(Event):
    """Others may act for the account from now on."""

    account: str
    operators: tuple[str, ...]

    topics = ("opened/{account}",)


class AccountClosed(Event):
    """The account takes no movements any more."""

    account: str

    topics = ("opened/{account}",)


class Moved(Event):
    """Money moved: one debit and one credit. A side without account (issue, redeem) is the currency's supply."""

    kind: Kind
    debtor: str | None
    creditor: str | None
    amount: int
    currency: str
    uetr: str | None
    reference: str
    debtor_entry: int
    debtor_balance: int
    creditor_entry: int
    creditor_balance: int

    # Not by UETR: `movement` answers that from state, and an index entry for each would cost more than it saves.
    topics = ("account/{debtor}", "account/{creditor}")


class Repeated(Event):
    """The UETR was used before for the same: nothing changed. The fields name the original."""

    uetr: str
    kind: Kind
    height: int
    tx_id: bytes
    debtor_entry: int
    creditor_entry: int

    topics = ("uetr/{uetr}",)


class HoldPlaced(Event):
    """Money is set aside."""

    uetr: str
    debtor: str
    creditor: str
    amount: int
    expires_at_ms: int

    topics = ("hold/{uetr}", "holds/{debtor}", "holds/{creditor}")


class HoldPutOff(Event):
    """The hold's time would be over, but an emergency brake is on: it ends at `until_ms` instead."""

    uetr: str
    debtor: str
    creditor: str
    until_ms: int

    topics = ("hold/{uetr}", "holds/{debtor}", "holds/{creditor}")


class HoldEnded(Event):
    """Nothing is set aside any more: `returned` went back to what the debtor can spend."""

    uetr: str
    debtor: str
    creditor: str
    status: HoldStatus
    returned: int

    topics = ("hold/{uetr}", "holds/{debtor}", "holds/{creditor}")


class AccountBalance(Value):
    """What is on an account; `available` is what it can spend."""

    account: str
    currency: str
    balance: int
    held: int
    available: int


class CurrencySupply(Value):
    """A currency and how much of it there is."""

    currency: str
    exponent: int
    issuer: str
    issued: int
    redeemed: int
    outstanding: int


class Statement(Value):
    """The entries of an account in a range of heights, with the balances before the first and after the last.

    `more`: the range holds further entries; ask again with from_height = the last entry's height and after_entry =
    its number.
    """

    account: str
    currency: str
    opening: int
    entries: tuple[Entry, ...]
    closing: int
    more: bool


class Settlement(Contract):
    """Cash accounts in many currencies; every movement is double entry."""

    version = 1
    codes = (
        Code("account_not_found", "There is no such account.", "AC01"),
        Code("account_exists", "The account id is taken."),
        Code("account_closed", "The account is closed.", "AC04"),
        Code("account_not_empty", "An account is closed only with nothing on it and nothing held."),
        Code("currency_not_found", "The network has no such currency.", "AM03"),
        Code("currency_exists", "The network definition names a currency twice."),
        Code("currency_mismatch", "Debtor's and creditor's accounts have different currencies.", "AM03"),
        Code("same_account", "Debtor and creditor are the same account.", "AC01"),
        Code("insufficient_funds", "The account's balance less its holds is smaller than the amount.", "AM04"),
        Code("balance_overflow", "The creditor's balance would exceed 2^63 - 1.", "AM02"),
        Code("supply_overflow", "More than 2^63 - 1 would have been issued or redeemed in all.", "AM02"),
        Code("uetr_conflict", "The UETR was used before with other content.", "DUPL"),
        Code("movement_not_found", "No movement has that UETR."),
        Code("hold_not_found", "There is no such hold."),
        Code("hold_not_open", "The hold was captured, released or has expired."),
        Code("hold_expired", "The hold's time is over: it can only be released.", "TM01"),
        Code("hold_not_expired", "The debtor gets the money back only after the hold's time.", "TM01"),
        Code("exceeds_hold", "More is captured than is still held.", "AM04"),
        Code("expiry_out_of_range", "A hold expires after this block and within 366 days.", "DT01"),
        Code("limit_out_of_range", "A page has 1 … 500 rows."),
        Code("range_out_of_range", "from_height lies above to_height."),
        Code("statement_incomplete", "The node's event index lacks entries of this range."),
    )

    currencies: Map[CurrencyCode, Currency] = Map(missing="currency_not_found")
    supplies: Map[CurrencyCode, Supply] = Map(missing="currency_not_found")
    accounts: Map[AccountId, Account] = Map(missing="account_not_found")
    owned: Map[tuple[PrincipalId, AccountId], CurrencyCode] = Map()
    movements: Map[Uetr, Movement] = Map(missing="movement_not_found")
    holds: Map[Uetr, Hold] = Map(missing="hold_not_found")

    @genesis
    def create(self, ctx: Context, currencies: tuple[NewCurrency, ...] = ()) -> None:
        """Create the network's currencies with nothing issued."""
        for item in currencies:
            require(item.code not in self.currencies, "currency_exists", item.code)
            self.currencies[item.code] = Currency(item.exponent, item.issuer)
            self.supplies[item.code] = Supply(0, 0)

    # --- accounts ---

    @call
    def open_account(
        self,
        ctx: Context,
        account: AccountId,
        owner: PrincipalId,
        currency: CurrencyCode,
        operators: Operators = (),
    ) -> None:
        """Open an empty account of `owner`, who sends this."""
        ctx.authorize(owner)
        require(currency in self.currencies, "currency_not_found", currency)
        require(account not in self.accounts, "account_exists", account)
        self.accounts[account] = Account(owner, currency, 0, 0, 0, NO_CHAIN, operators, True)
        self.owned[(owner, account)] = currency
        ctx.emit(AccountOpened(account, owner, currency, operators))

    @call
    def set_operators(self, ctx: Context, account: AccountId, operators: Operators) -> None:
        """Replace who may act for the account besides its owner; an operator cannot do this."""
        found = self._open(account)
        ctx.authorize(found.owner)
        self.accounts[account] = replace(found, operators=operators)
        ctx.emit(OperatorsChanged(account, operators))

    @call
    def require_acting(self, ctx: Context, account: AccountId, principal: PrincipalId) -> None:
        """Revert unless the principal acts for the account as its owner, the owner's root or an operator.

        For contracts that pay from it: its owner has let them, and that says not in whose name.
        """
        found = self._open(account)
        acts = principal == found.owner or found.owner.startswith(principal + "/") or principal in found.operators
        require(acts, "not_authorized", f"{principal} does not act for {account}")

    @call
    def close_account(self, ctx: Context, account: AccountId) -> None:
        """Close an empty account for good; its statement stays."""
        found = self._open(account)
        ctx.authorize(found.owner)
        require(found.balance == 0 and found.held == 0, "account_not_empty", account)
        self.accounts[account] = replace(found, open=False)
        ctx.emit(AccountClosed(account))

    # --- money ---

    @call
    def issue(
        self, ctx: Context, account: AccountId, amount: Amount, uetr: Uetr | None = None, reference: Reference = ""
    ) -> None:
        """Put new money of the account's currency on the account; the currency's issuer sends this."""
        require_amount(amount)
        credited = self.accounts[account]
        ctx.authorize(self.currencies[credited.currency].issuer)
        order = Order("issue", None, account, amount, credited.currency, uetr, reference)
        if self._repeated(ctx, order):
            return
        require(credited.open, "account_closed", account)
        supply = self.supplies[credited.currency]
        require(supply.issued + amount <= AMOUNT_MAX, "supply_overflow")
        self.supplies[credited.currency] = replace(supply, issued=supply.issued + amount)
        credited = self._enter(ctx, order, account, credited, amount, None)
        self._book(ctx, order, 0, 0, credited.entries, credited.balance)

    @call
    def redeem(
        self, ctx: Context, account: AccountId, amount: Amount, uetr: Uetr | None = None, reference: Reference = ""
    ) -> None:
        """Take money of the account out of the world: the currency's issuer sends this and may act for the account.

        The issuer redeems what was paid to its own accounts, or where the owner named it as an operator; it cannot
        reach into others' accounts.
        """
        require_amount(amount)
        debited = self.accounts[account]
        ctx.authorize(self.currencies[debited.currency].issuer)
        ctx.authorize(debited.owner, debited.operators)
        order = Order("redeem", account, None, amount, debited.currency, uetr, reference)
        if self._repeated(ctx, order):
            return
        require(debited.open, "account_closed", account)
        require(debited.balance - debited.held >= amount, "insufficient_funds", account)
        supply = self.supplies[debited.currency]
        self.supplies[debited.currency] = replace(supply, redeemed=supply.redeemed + amount)
        debited = self._enter(ctx, order, account, debited, 0 - amount, None)
        self._book(ctx, order, debited.entries, debited.balance, 0, 0)

    @call
    def transfer(
        self,
        ctx: Context,
        debtor: AccountId,
        creditor: AccountId,
        amount: Amount,
        uetr: Uetr | None = None,
        reference: Reference = "",
    ) -> None:
        """Move `amount` minor units from debtor to creditor. Final when the block is."""
        require_amount(amount)
        debited = self.accounts[debtor]
        ctx.authorize(debited.owner, debited.operators)
        order = Order("transfer", debtor, creditor, amount, debited.currency, uetr, reference)
        if self._repeated(ctx, order):
            return
        require(debtor != creditor, "same_account", debtor)
        credited = self.accounts[creditor]
        self._judge(debited, credited)
        require(debited.balance - debited.held >= amount, "insufficient_funds", debtor)
        debited = self._enter(ctx, order, debtor, debited, 0 - amount, creditor)
        credited = self._enter(ctx, order, creditor, credited, amount, debtor)
        self._book(ctx, order, debited.entries, debited.balance, credited.entries, credited.balance)

    # --- holds ---

    @call
    def hold(
        self,
        ctx: Context,
        uetr: Uetr,
        debtor: AccountId,
        creditor: AccountId,
        amount: Amount,
        expires_at_ms: TimeMs,
        reference: Reference = "",
    ) -> None:
        """Set `amount` of the debtor aside for the creditor. What is not captured returns by itself at expiry."""
        require_amount(amount)
        debited = self.accounts[debtor]
        ctx.authorize(debited.owner, debited.operators)
        order = Order("hold", debtor, creditor, amount, debited.currency, uetr, reference)
        if self._repeated(ctx, order):
            require(self.holds[uetr].expires_at_ms == expires_at_ms, "uetr_conflict", uetr)
            return
        require(debtor != creditor, "same_account", debtor)
        self._judge(debited, self.accounts[creditor])
        ctx.require_unbraked(debtor, debited.currency)
        ctx.require_unbraked(creditor, debited.currency)
        require(ctx.time_ms < expires_at_ms <= ctx.time_ms + HOLD_MS_MAX, "expiry_out_of_range")
        require(debited.balance - debited.held >= amount, "insufficient_funds", debtor)
        self.accounts[debtor] = replace(debited, held=debited.held + amount)
        self.holds[uetr] = Hold(debtor, creditor, amount, amount, 0, expires_at_ms, reference, "open")
        self._remember(ctx, order, 0, 0)
        ctx.schedule(expires_at_ms, Settlement.expire, uetr=uetr)
        ctx.emit(HoldPlaced(uetr, debtor, creditor, amount, expires_at_ms))

    @call
    def capture(self, ctx: Context, uetr: Uetr, amount: Amount, final: bool = False) -> None:
        """Pay `amount` of the hold to its creditor, who sends this before expiry; as often as something remains.

        `final` returns the rest to the debtor. Each capture pays again: repeat one under its request_id.
        """
        require_amount(amount)
        held = self.holds[uetr]
        credited = self.accounts[held.creditor]
        ctx.authorize(credited.owner, credited.operators)
        require(held.status == "open", "hold_not_open", uetr)
        require(ctx.time_ms < _end_of(held), "hold_expired", uetr)
        require(amount <= held.remaining, "exceeds_hold", uetr)
        debited = self.accounts[held.debtor]
        self._judge(debited, credited)
        order = Order("capture", held.debtor, held.creditor, amount, debited.currency, uetr, held.reference)
        remaining = held.remaining - amount
        ended = final or remaining == 0
        debited = replace(debited, held=debited.held - (held.remaining if ended else amount))
        debited = self._enter(ctx, order, held.debtor, debited, 0 - amount, held.creditor)
        credited = self._enter(ctx, order, held.creditor, credited, amount, held.debtor)
        self._book(ctx, order, debited.entries, debited.balance, credited.entries, credited.balance)
        held = replace(held, captured=held.captured + amount, remaining=remaining)
        if ended:
            held = replace(held, remaining=0, status="captured")
            ctx.emit(HoldEnded(uetr, held.debtor, held.creditor, "captured", remaining))
        self.holds[uetr] = held

    @call
    def release(self, ctx: Context, uetr: Uetr) -> None:
        """Return what the hold still keeps: by the creditor at any time, by the debtor from expiry on."""
        held = self.holds[uetr]
        debited = self.accounts[held.debtor]
        credited = self.accounts[held.creditor]
        if not ctx.may_act_for(credited.owner, credited.operators):
            ctx.authorize(debited.owner, debited.operators)
            require(ctx.time_ms >= _end_of(held), "hold_not_expired", uetr)
        require(held.status == "open", "hold_not_open", uetr)
        ctx.require_unbraked(held.debtor, debited.currency)
        ctx.require_unbraked(held.creditor, debited.currency)
        self._end(ctx, uetr, held, "released")

    @scheduled
    def expire(self, ctx: Context, uetr: Uetr) -> None:
        """Return what the hold still keeps, in the first block at or after its expiry; an hour after a brake's end
        where one stopped the creditor's capture then.
        """
        held = self.holds[uetr]
        if held.status != "open":
            return
        braked_ms = self._braked_until(ctx, held)
        if not braked_ms:
            self._end(ctx, uetr, held, "expired")
            return
        until_ms = braked_ms + AFTER_BRAKE_MS
        self.holds[uetr] = replace(held, put_off_ms=until_ms)
        ctx.schedule(until_ms, Settlement.expire, uetr=uetr)
        ctx.emit(HoldPutOff(uetr, held.debtor, held.creditor, until_ms))

    def _braked_until(self, ctx: Context, held: Hold) -> int:
        """Up to when an emergency brake keeps the creditor from capturing; 0: none does."""
        credited = self.accounts[held.creditor]
        return max(
            ctx.braked_until("account", held.debtor),
            ctx.braked_until("account", held.creditor),
            ctx.braked_until("currency", credited.currency),
            ctx.braked_until("method", "settlement.capture"),
            ctx.braked_until("member", credited.owner.partition("/")[0]),
        )

    # --- the books ---

    def _open(self, account: str) -> Account:
        found = self.accounts[account]
        require(found.open, "account_closed", account)
        return found

    def _judge(self, debited: Account, credited: Account) -> None:
        require(debited.open and credited.open, "account_closed")
        require(debited.currency == credited.currency, "currency_mismatch", credited.currency)

    def _repeated(self, ctx: Context, order: Order) -> bool:
        """Whether the order's UETR was used before for the same; revert when it was for something else."""
        if order.uetr is None:
            return False
        found = self.movements.get(order.uetr)
        if found is None:
            return False
        same = (
            found.kind == order.kind
            and found.debtor == order.debtor
            and found.creditor == order.creditor
            and found.amount == order.amount
            and found.reference == order.reference
        )
        require(same, "uetr_conflict", order.uetr)
        ctx.emit(
            Repeated(order.uetr, found.kind, found.height, found.tx_id, found.debtor_entry, found.creditor_entry)
        )
        return True

    def _enter(
        self, ctx: Context, order: Order, account: str, found: Account, amount: int, other: str | None
    ) -> Account:
        """Add an entry of `amount` (negative is a debit) to the account and return the account after it.

        No money moves but by this, so here is where a brake stops it.
        """
        ctx.require_unbraked(account, found.currency)
        balance = found.balance + amount
        require(balance <= AMOUNT_MAX, "balance_overflow", account)
        number = found.entries + 1
        entry = Entry(account, number, ctx.height, order.kind, amount, other, order.uetr, order.reference, balance)
        after = replace(found, balance=balance, entries=number, chain=ctx.digest(Link(found.chain, entry)))
        self.accounts[account] = after
        return after

    def _book(
        self,
        ctx: Context,
        order: Order,
        debtor_entry: int,
        debtor_balance: int,
        creditor_entry: int,
        creditor_balance: int,
    ) -> None:
        """Tell the movement, and remember the first use of its UETR (a capture's is its hold's)."""
        if order.uetr is not None and order.kind != "capture":
            self._remember(ctx, order, debtor_entry, creditor_entry)
        ctx.emit(
            Moved(
                order.kind,
                order.debtor,
                order.creditor,
                order.amount,
                order.currency,
                order.uetr,
                order.reference,
                debtor_entry,
                debtor_balance,
                creditor_entry,
                creditor_balance,
            )
        )

    def _remember(self, ctx: Context, order: Order, debtor_entry: int, creditor_entry: int) -> None:
        if order.uetr is not None:
            self.movements[order.uetr] = Movement(
                order.kind,
                order.debtor,
                order.creditor,
                order.amount,
                order.currency,
                order.reference,
                ctx.height,
                ctx.time_ms,
                ctx.tx_id,
                debtor_entry,
                creditor_entry,
            )

    def _end(self, ctx: Context, uetr: str, held: Hold, status: HoldStatus) -> None:
        debited = self.accounts[held.debtor]
        self.accounts[held.debtor] = replace(debited, held=debited.held - held.remaining)
        self.holds[uetr] = replace(held, remaining=0, status=status)
        ctx.emit(HoldEnded(uetr, held.debtor, held.creditor, status, held.remaining))

    # --- reading ---

    @query
    def account(self, account: AccountId) -> Account:
        """The account with its owner, balance, holds, operators and chain."""
        return self.accounts[account]

    @query
    def balance(self, account: AccountId) -> AccountBalance:
        """What is on the account and what of it can be spent."""
        found = self.accounts[account]
        return AccountBalance(account, found.currency, found.balance, found.held, found.balance - found.held)

    @query
    def supply(self, currency: CurrencyCode) -> CurrencySupply:
        """How much of the currency was issued and redeemed, and by whom."""
        found = self.currencies[currency]
        supply = self.supplies[currency]
        outstanding = supply.issued - supply.redeemed
        return CurrencySupply(currency, found.exponent, found.issuer, supply.issued, supply.redeemed, outstanding)

    @query
    def movement(self, uetr: Uetr) -> Movement:
        """What the UETR was first used for, and at which height."""
        return self.movements[uetr]

    @query
    def find_hold(self, uetr: Uetr) -> Hold:
        """The hold, open or ended."""
        return self.holds[uetr]

    @query
    def accounts_of(
        self, owner: PrincipalId, after: AccountId | None = None, limit: int = 100
    ) -> tuple[AccountBalance, ...]:
        """The owner's accounts, closed ones too, in the order of their ids and after the id `after`."""
        require(1 <= limit <= PAGE_MAX, "limit_out_of_range")
        start = None if after is None else (owner, after)
        found = self.owned.scan(prefix=(owner,), after=start, limit=limit)
        return tuple([self.balance(key[1]) for key, _ in found])

    @query
    def statement(
        self,
        ctx: QueryContext,
        account: AccountId,
        from_height: Height = 0,
        to_height: Height = HEIGHT_MAX,
        limit: int = 100,
        after_entry: int = 0,
    ) -> Statement:
        """The account's entries with from_height <= height <= to_height, and the balances around them."""
        require(1 <= limit <= PAGE_MAX, "limit_out_of_range")
        require(from_height <= to_height, "range_out_of_range")
        found = self.accounts[account]
        topic = f"account/{account}"
        to_height = min(to_height, ctx.height)
        events = ctx.events(topic, from_height, to_height, 1)
        if not events:
            # Nothing moved in the range: the balance is the one before the first later movement, or today's.
            later = ctx.events(topic, to_height + 1, ctx.height, 1)
            balance = found.balance
            if later:
                first = _entry(account, later[0][0], later[0][1].data)
                balance = first.balance - first.amount
            return Statement(account, found.currency, balance, (), balance, False)
        # Entries are numbered without gaps, so those before the page can be counted.
        skipped = max(0, after_entry + 1 - _entry(account, events[0][0], events[0][1].data).number)
        require(skipped + limit < EVENTS_MAX, "limit_out_of_range", "begin nearer: raise from_height")
        events = ctx.events(topic, from_height, to_height, skipped + limit + 1)
        entries = tuple([_entry(account, height, event.data) for height, event in events[skipped:]])
        more = len(entries) > limit
        entries = entries[:limit]
        if not entries:
            last = _entry(account, events[-1][0], events[-1][1].data)
            return Statement(account, found.currency, last.balance, (), last.balance, False)
        opening = entries[0].balance - entries[0].amount
        closing, number = opening, entries[0].number
        for entry in entries:
            closing += entry.amount
            require(entry.number == number and entry.balance == closing, "statement_incomplete", f"entry {number}")
            number += 1
        return Statement(account, found.currency, opening, entries, closing, more)

    # --- what is always true ---

    @invariant
    def conserved(self) -> bool:
        """Of each currency, all balances together are what was issued less what was redeemed."""
        totals = {code: supply.issued - supply.redeemed for code, supply in self.supplies.scan(limit=None)}
        for _, account in self.accounts.scan(limit=None):
            totals[account.currency] -= account.balance
        return all(rest == 0 for rest in totals.values())

    @invariant
    def covered(self) -> bool:
        """No balance is negative or beyond its bound, and no more is held than is there."""
        return all(
            0 <= account.held <= account.balance <= AMOUNT_MAX for _, account in self.accounts.scan(limit=None)
        )

    @invariant
    def held_for_open_holds(self) -> bool:
        """What an account holds is what its open holds still keep, and a hold that ended keeps nothing."""
        held = {key: account.held for key, account in self.accounts.scan(limit=None)}
        for _, item in self.holds.scan(limit=None):
            held[item.debtor] -= item.remaining
            if item.captured + item.remaining > item.amount or (item.remaining > 0) != (item.status == "open"):
                return False
        return all(rest == 0 for rest in held.values())


def _end_of(held: Hold) -> int:
    """When the hold's time is over."""
    return max(held.expires_at_ms, held.put_off_ms)


def _entry(account: str, height: int, data: dict[str, Any]) -> Entry:
    """The account's side of a `Moved` event."""
    debit = data["debtor"] == account
    side = "debtor" if debit else "creditor"
    return Entry(
        account,
        data[f"{side}_entry"],
        height,
        data["kind"],
        0 - data["amount"] if debit else data["amount"],
        data["creditor"] if debit else data["debtor"],
        data["uetr"],
        data["reference"],
        data[f"{side}_balance"],
    )
