"""The emergency brake: two members together stop an account, a currency, a method or a member's transactions.

    asked -> on -> over
      \\-> lapsed, withdrawn    \\-> lifted

One member asks, a second one confirms within 15 minutes, and from the next block on the host refuses what the brake
names, with the code `braked`. Everybody reads in the ask what will be stopped and until when, so both have signed
for that. It ends by itself; going on beyond that takes another brake, and so two members again.

The state has a bound that the members set by being so many: of each a few brakes that stand, and the last ones that
have ended. Those that were on are forgotten apart from those that never were: nobody alone pushes out what two did.

Invariants: no brake is on in a block at or after its `until_ms`, whatever else happens; no call has to come for
that, since a scheduled call may be settled unexecuted. Two different members stand behind each brake that is or was
on. No brake stops a call by which members have their say (GOVERNING in contracts/sdk.py), nor touches who votes in
consensus or what a quorum is: those are no transactions.

What a brake confirmed or lifted in block h stops, it stops or no more stops from block h + 1 on: the host reads the
brakes once for each block, from the state at its parent, and judges them by the block's own time.
"""

from typing import Annotated, Literal

from contracts.governance import quorum_of
from contracts.membership import MemberId, MemberRow, Membership
from contracts.sdk import (
    GOVERNING,
    NO_BRAKES,
    Brakes,
    Code,
    Context,
    Contract,
    Event,
    Item,
    Map,
    Meta,
    QueryContext,
    State,
    TimeMs,
    Value,
    call,
    invariant,
    query,
    replace,
    require,
    scheduled,
)
from contracts.waking import HOUR_MS, wake_ms, wakes_max

BRAKE_MS_MAX = 6 * HOUR_MS
CONFIRM_MS = 900_000
PULLED_PER_MEMBER = 4
STANDING_MAX = 256
KEPT_MAX = 32
"""So many ended brakes of a member are kept, and so many asks that came to nothing; events stay in the blocks."""
WAKES_MAX = wakes_max(BRAKE_MS_MAX)
PAGE_MAX = 100
ROLES = ("validator", "regulator")

Status = Literal["asked", "on", "over", "lifted", "lapsed", "withdrawn"]
What = Annotated[
    str,
    Meta(
        pattern=(
            r"^(account/[A-Za-z0-9][A-Za-z0-9._-]{0,33}|currency/[A-Z]{3}|member/[a-z][a-z0-9-]{0,31}"
            r"|method/[a-z][a-z0-9_]{0,39}\.[a-z][a-z0-9_]{0,39})\Z"
        ),
        description="account/ACC-1, currency/EUR, method/settlement.transfer or member/bank-a",
    ),
]
Number = Annotated[int, Meta(ge=1, le=9_007_199_254_740_991, description="the brake's number")]
Reason = Annotated[str, Meta(min_length=1, max_length=500)]


class Pulled(Value):
    """A brake with who stands behind it. `confirmer` is empty and `on_ms` 0 before it was on."""

    scope: str
    subject: str
    reason: str
    asker: str
    asked_ms: int
    confirm_by_ms: int
    until_ms: int
    status: Status
    confirmer: str = ""
    on_ms: int = 0
    ended_ms: int = 0
    ended_by: tuple[str, ...] = ()


class Standing(Value):
    """Of a brake that is asked for or on: what the host, and the bound on their number, need of it."""

    scope: str
    subject: str
    asker: str
    on: bool
    ends_ms: int


class BrakeRow(Value):
    """A brake in a list, with its status at the time of the head; `lifters` ask for its end."""

    number: int
    brake: Pulled
    lifters: tuple[str, ...]


class Asked(Event):
    """A member asks for a brake; nothing is stopped before another member confirms it."""

    brake: int
    scope: str
    subject: str
    asker: str
    until_ms: int
    reason: str

    topics = ("brake/{brake}", "subject/{subject}")


class Stopped(Event):
    """From the next block on, and in blocks below `until_ms`, the brake stops its subject."""

    brake: int
    scope: str
    subject: str
    asker: str
    confirmer: str
    until_ms: int

    topics = ("brake/{brake}", "subject/{subject}")


class Ended(Event):
    """The brake, or the ask for it, has this status from now on; `by` are the members that ended it."""

    brake: int
    scope: str
    subject: str
    status: Status
    by: tuple[str, ...]

    topics = ("brake/{brake}", "subject/{subject}")


class Brake(Contract):
    """The emergency brake: scoped, by two members together, and it ends by itself."""

    uses = (Membership.roster,)
    codes = (
        Code("brake_not_found", "No brake has that number."),
        Code(
            "not_a_puller", "Only the root principal of an active validator or regulator has a hand at the brake."
        ),
        Code("member_not_found", "No member has that id."),
        Code("not_stoppable", "By that method members have their say: no brake stops it."),
        Code("until_out_of_range", "A brake ends within 6 hours, and after now."),
        Code("too_many_brakes", "A member has asked for at most 4 brakes that are not over, all together for 256."),
        Code("same_member", "Another member than the one who asked confirms a brake."),
        Code(
            "asker_gone", "Who asked for the brake is no active validator or regulator any more: another asks anew."
        ),
        Code(
            "brake_not_asked", "The brake is on already, or was not confirmed within its 15 minutes, or has ended."
        ),
        Code("brake_not_on", "The brake is not on: there is nothing to lift."),
        Code("not_the_asker", "Before it is on, only who asked for a brake takes it back."),
        Code("not_a_voter", "A brake of others is lifted by active validators, together."),
        Code("lift_unchanged", "The member has asked for the brake's end already."),
        Code("limit_out_of_range", "A page has 1 … 100 rows."),
    )

    last: Item[int] = Item()
    brakes: Map[int, Pulled] = Map(missing="brake_not_found")
    # Those asked for or on, by number.
    standing: Map[int, Standing] = Map()
    # Who besides the two asks for a brake's end.
    lifters: Map[int, tuple[str, ...]] = Map()
    # What a member asked for and has ended, the oldest first: by whether it ever was on.
    ended: Map[tuple[MemberId, bool], tuple[int, ...]] = Map()
    # At which times `tidy` is scheduled, and at which height that was done.
    wakes: Map[int, int] = Map()

    @call
    def ask(self, ctx: Context, what: What, until_ms: TimeMs, reason: Reason) -> None:
        """Ask for a brake on `what` that ends at `until_ms`; another member confirms it within 15 minutes."""
        self._end_overdue(ctx)
        rows = self._pullers(ctx)
        scope, _, subject = what.partition("/")
        require(scope != "member" or any(row.id == subject for row in rows), "member_not_found", subject)
        require(scope != "method" or subject.partition(".")[0] not in GOVERNING, "not_stoppable", subject)
        require(ctx.time_ms < until_ms <= ctx.time_ms + BRAKE_MS_MAX, "until_out_of_range", f"{until_ms}")
        every = [row for _, row in self.standing.scan(limit=STANDING_MAX)]
        own = [row for row in every if row.asker == ctx.sender]
        require(len(own) < PULLED_PER_MEMBER and len(every) < STANDING_MAX, "too_many_brakes", ctx.sender)
        number = (self.last.get() or 0) + 1
        self.last.set(number)
        confirm_by_ms = min(ctx.time_ms + CONFIRM_MS, until_ms)
        self.brakes[number] = Pulled(
            scope, subject, reason, ctx.sender, ctx.time_ms, confirm_by_ms, until_ms, "asked"
        )
        self.standing[number] = Standing(scope, subject, ctx.sender, False, confirm_by_ms)
        self._wake(ctx)
        ctx.emit(Asked(number, scope, subject, ctx.sender, until_ms, reason))

    @call
    def confirm(self, ctx: Context, brake: Number) -> None:
        """The brake is on from the next block on; the sender is another member than the one who asked for it."""
        self._end_overdue(ctx)
        rows = self._pullers(ctx)
        found = self.brakes[brake]
        require(found.status == "asked", "brake_not_asked", found.status)
        require(ctx.sender != found.asker, "same_member", ctx.sender)
        require(found.asker in _pullers_of(rows), "asker_gone", found.asker)
        self.brakes[brake] = replace(found, status="on", confirmer=ctx.sender, on_ms=ctx.time_ms)
        self.standing[brake] = Standing(found.scope, found.subject, found.asker, True, found.until_ms)
        self._wake(ctx)
        ctx.emit(Stopped(brake, found.scope, found.subject, found.asker, ctx.sender, found.until_ms))

    @call
    def lift(self, ctx: Context, brake: Number) -> None:
        """The brake ends: at once by one of the two members behind it, else as soon as a quorum has asked for that.

        Before it is on, the one who asked takes it back.
        """
        self._end_overdue(ctx)
        voters = tuple([row.id for row in self._pullers(ctx) if row.votes])
        found = self.brakes[brake]
        if found.status == "asked":
            require(ctx.sender == found.asker, "not_the_asker", ctx.sender)
            self._end(ctx, brake, found, "withdrawn", (ctx.sender,))
            return
        require(found.status == "on", "brake_not_on", found.status)
        if ctx.sender in (found.asker, found.confirmer):
            self._end(ctx, brake, found, "lifted", (ctx.sender,))
            return
        require(ctx.sender in voters, "not_a_voter", ctx.sender)
        told = self.lifters.get(brake)
        before = () if told is None else told
        # Who has lost its vote since does not count.
        by = (*[name for name in before if name in voters and name != ctx.sender], ctx.sender)
        self.lifters[brake] = by
        if len(by) >= quorum_of(len(voters)):
            self._end(ctx, brake, found, "lifted", by)
        else:
            # Said again, it counts anew: fewer may suffice since the list has changed.
            require(ctx.sender not in before, "lift_unchanged", ctx.sender)

    @scheduled
    def tidy(self, ctx: Context) -> None:
        """Brakes and asks that are over are told as such: so there is a block by then, on a quiet ledger too."""
        for at_ms, _ in self.wakes.scan(limit=WAKES_MAX):
            if at_ms <= ctx.time_ms:
                del self.wakes[at_ms]
        self._end_overdue(ctx)
        self._wake(ctx)

    def _wake(self, ctx: Context) -> None:
        """Let `tidy` be called on the way to the next end; once for each time."""
        ends = [row.ends_ms for _, row in self.standing.scan(limit=STANDING_MAX)]
        if ends:
            at_ms = wake_ms(min(ends), ctx.time_ms)
            if at_ms not in self.wakes:
                self.wakes[at_ms] = ctx.height
                ctx.schedule(at_ms, Brake.tidy)

    def _pullers(self, ctx: Context) -> tuple[MemberRow, ...]:
        """All members; revert unless the sender is one that has a hand at the brake."""
        rows = ctx.call(Membership.roster)
        require(ctx.sender in _pullers_of(rows), "not_a_puller", ctx.sender)
        return rows

    def _end_overdue(self, ctx: Context) -> None:
        """End all that is over at this block's time: what is left as asked or on is just that."""
        for number, row in self.standing.scan(limit=STANDING_MAX):
            if row.ends_ms <= ctx.time_ms:
                self._end(ctx, number, self.brakes[number], "over" if row.on else "lapsed", ())

    def _end(self, ctx: Context, number: int, found: Pulled, status: Status, by: tuple[str, ...]) -> None:
        ended_ms = min(ctx.time_ms, found.until_ms)
        self.brakes[number] = replace(found, status=status, ended_ms=ended_ms, ended_by=by)
        del self.standing[number]
        known = self.ended.get((found.asker, found.status == "on"))
        kept = (number,) if known is None else (*known, number)
        for old in kept[:-KEPT_MAX]:
            del self.brakes[old]
            del self.lifters[old]
        self.ended[found.asker, found.status == "on"] = kept[-KEPT_MAX:]
        ctx.emit(Ended(number, found.scope, found.subject, status, by))

    @query
    def page(self, ctx: QueryContext, after: int = 0, limit: int = 20) -> tuple[BrakeRow, ...]:
        """The brakes by number after the number `after`, with the last of each member that have ended."""
        require(1 <= limit <= PAGE_MAX, "limit_out_of_range")
        return tuple([self._row(ctx, number) for number, _ in self.brakes.scan(after=after, limit=limit)])

    @query
    def pulled(self, ctx: QueryContext) -> tuple[BrakeRow, ...]:
        """The brakes that are on, and those asked for."""
        rows = self.standing.scan(limit=STANDING_MAX)
        return tuple([self._row(ctx, number) for number, row in rows if ctx.time_ms < row.ends_ms])

    @query
    def brake(self, ctx: QueryContext, brake: Number) -> BrakeRow:
        """One brake."""
        return self._row(ctx, brake)

    def _row(self, ctx: QueryContext, number: int) -> BrakeRow:
        found = self.brakes[number]
        if found.status == "on" and found.until_ms <= ctx.time_ms:
            found = replace(found, status="over", ended_ms=found.until_ms)
        if found.status == "asked" and found.confirm_by_ms <= ctx.time_ms:
            found = replace(found, status="lapsed", ended_ms=found.confirm_by_ms)
        lifters = self.lifters.get(number)
        return BrakeRow(number, found, () if lifters is None else lifters)

    @staticmethod
    def read_on(state: State) -> tuple[Standing, ...]:
        """Return the brakes that were pulled and not tidied up: each is on in blocks below its `ends_ms`."""
        return tuple([row for _, row in Brake.standing.scan_from(state, STANDING_MAX) if row.on])

    @invariant
    def two_members_stand_behind_each(self) -> bool:
        """What is or was on was asked for and confirmed by different members, and ends in time."""
        return all(
            found.asker != found.confirmer and 0 < found.until_ms - found.asked_ms <= BRAKE_MS_MAX
            for _, found in self.brakes.scan(limit=None)
            if found.status in ("on", "over", "lifted")
        )

    @invariant
    def standing_ones_are_listed(self) -> bool:
        """The list that the host reads has exactly the brakes that are asked for or on, as they are."""
        wanted = [
            (
                number,
                Standing(
                    found.scope,
                    found.subject,
                    found.asker,
                    found.status == "on",
                    found.until_ms if found.status == "on" else found.confirm_by_ms,
                ),
            )
            for number, found in self.brakes.scan(limit=None)
            if found.status in ("asked", "on")
        ]
        return wanted == list(self.standing.scan(limit=None))


def _pullers_of(rows: tuple[MemberRow, ...]) -> tuple[str, ...]:
    return tuple([row.id for row in rows if row.standing == "active" and row.role in ROLES])


def stopped_at(standing: tuple[Standing, ...], time_ms: int) -> Brakes:
    """Return what the pulled brakes `standing`, as `read_on` gave them, stop in a block of this time."""
    if not standing:
        return NO_BRAKES
    found: dict[tuple[str, str], int] = {}
    for row in standing:
        if time_ms < row.ends_ms:
            key = (row.scope, row.subject)
            found[key] = max(row.ends_ms, found.get(key, 0))
    return found
