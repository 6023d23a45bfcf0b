"""Calls that wait for what a tier asks for: requested, approved on the ledger, and run when it is satisfied.

A principal requests calls with its ordinary signatures. The persons of the tiers that these calls ask for
(contracts/policies.py) approve, each by a transaction of its own; a stand-in approves in its person's place. With
the approval that satisfies the last tier the calls run, all or none, in that same transaction and with the
requester's authority, and the request ends: `executed`, or `failed` with the code of the call that failed. It moves

    pending -> executed, failed, rejected, withdrawn, expired

Invariants: what runs is exactly what was requested, and who approves says which (`digest`); it runs at most once,
never in a block at or after `expires_at_ms`, and only if at that moment the policies in force say yes: the tiers as
they are then, each person with the keys it has then, the requester too. What somebody said with keys that were
taken from it since counts no more; and no former key asks for a person's calls to `membership`, as none sends them.
No other contract acts for principals, and this one only in `approve`.
"""

from typing import Annotated, Any, Literal

from contracts.membership import MemberId, Membership
from contracts.policies import SEATS_MAX, Mandate, Planned, Progress
from contracts.sdk import (
    Code,
    Context,
    Contract,
    Event,
    Item,
    Map,
    Meta,
    QueryContext,
    TimeMs,
    Value,
    call,
    invariant,
    pack_arguments,
    query,
    replace,
    require,
    unpack_arguments,
)

Status = Literal["pending", "executed", "failed", "rejected", "withdrawn", "expired"]
Number = Annotated[int, Meta(ge=1, le=9_007_199_254_740_991, description="the request's number")]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32, description="of what is approved")]
Calls = Annotated[tuple[Planned, ...], Meta(min_length=1, max_length=16)]
Note = Annotated[str, Meta(max_length=140)]

DAY_MS = 86_400_000
EXPIRY_MS_MAX = 30 * DAY_MS
KEPT_MS = 90 * DAY_MS
"""So long at least an ended request can be asked for, if not too many of its requester's ended since; its events
stay in the blocks."""
ARGUMENTS_BYTES_MAX = 8_192
PENDING_PER_PRINCIPAL_MAX = 16
PENDING_PER_MEMBER_MAX = 64
PENDING_MAX = 4_096
ENDED_PER_PRINCIPAL_MAX = 1_000
"""So many of a principal's ended requests are kept, those that ended last, and as many more as may be pending."""
TIDIED_MAX = 4
"""So many requests whose time is over does a new one end, of its member and of all; and so many it forgets, of all
and of its requester's."""
SPOKEN_MAX = SEATS_MAX
PAGE_MAX = 100
DOMAIN = "hansa/approval"


class Step(Value):
    """A call that was requested; `args` are packed."""

    contract: str
    method: str
    args: bytes


class Content(Value):
    """What the digest of a request is made of."""

    domain: str
    request: int
    requester: str
    calls: tuple[Step, ...]


class Ending(Value):
    """How a request ended: by whom, in which transaction, and for a failed one the code of which call (from 1)."""

    by: str
    tx_id: bytes
    height: int
    time_ms: int
    code: str = ""
    call: int = 0


class Request(Value):
    """Calls that a principal asked for by the policy `mandate`."""

    calls: tuple[Step, ...]
    mandate: Mandate
    digest: bytes
    note: str
    height: int
    time_ms: int
    expires_at_ms: int
    status: Status = "pending"
    ending: Ending | None = None


class Waiting(Value):
    """Of a pending request: whose it is, and until when."""

    requester: str
    expires_at_ms: int


class Word(Value):
    """An approval: by which policy it was given, and where."""

    mandate: Mandate
    height: int
    time_ms: int


class RequestRow(Value):
    """A pending request in a list."""

    request: int
    requester: str
    calls: tuple[str, ...]
    note: str
    expires_at_ms: int
    approved_by: tuple[str, ...]


class Requested(Event):
    """Calls wait for what their tiers ask for."""

    request: int
    requester: str
    member: str
    digest: bytes
    tiers: tuple[str, ...]
    expires_at_ms: int

    topics = ("request/{request}", "requester/{requester}", "member/{member}")


class Approved(Event):
    """The principal has spoken for the request."""

    request: int
    by: str

    topics = ("request/{request}", "by/{by}")


class Ended(Event):
    """The request waits no more. Of one that failed, `code` says how its call number `call` ended."""

    request: int
    requester: str
    member: str
    status: Status
    by: str
    code: str
    call: int

    topics = ("request/{request}", "requester/{requester}", "member/{member}")


class Approvals(Contract):
    """Calls above a tier's limit, which wait for its persons to approve them."""

    version = 1
    acts_for_principals = True
    uses = (Membership.mandate, Membership.standing)
    codes = (
        Code(
            "request_not_found",
            "There is no such request, or it ended long ago, or 1,000 of its requester's since.",
        ),
        Code("request_ended", "The request was executed, rejected or withdrawn, or has expired."),
        Code(
            "request_lapsed",
            "The requester's keys were changed since: what they signed counts no more. Ask anew; calls of a person"
            " to `membership` when no former key of it is valid any more.",
        ),
        Code(
            "nothing_to_approve", "No tier asks for more than the sender's signatures: send the calls themselves."
        ),
        Code("call_not_possible", "A call names no method, has wrong arguments, or is one of approvals itself."),
        Code("calls_too_large", "The arguments of a request's calls have at most 8,192 bytes together."),
        Code("digest_differs", "The request is another one than the sender means to approve."),
        Code(
            "not_entitled",
            "The sender has no seat in what the request waits for, or its seat has spoken for itself.",
        ),
        Code("expiry_out_of_range", "A request expires after this block and within 30 days."),
        Code("too_many_requests", "16 requests of a principal, 64 of a member or 4,096 in all are pending."),
        Code("limit_out_of_range", "A page has 1 … 100 rows."),
    )

    requests: Map[int, Request] = Map(missing="request_not_found")
    words: Map[tuple[int, str], Word] = Map()
    # The pending ones, by member and by the time when they are over.
    waiting: Map[tuple[str, int], Waiting] = Map()
    expiring: Map[tuple[int, int], str] = Map()
    pending_total: Item[int] = Item()
    # The ended ones of each requester, by the height where that was, and how many these are.
    ended: Map[tuple[str, int, int], bool] = Map()
    ended_total: Map[str, int] = Map()
    last_number: Item[int] = Item()

    @call
    def request(self, ctx: Context, calls: Calls, expires_at_ms: TimeMs, note: Note = "") -> None:
        """Ask for the approval of calls, which run in the sender's name when it is given."""
        require(ctx.time_ms < expires_at_ms <= ctx.time_ms + EXPIRY_MS_MAX, "expiry_out_of_range")
        steps: list[Step] = []
        for item in calls:
            misfit = ctx.misfit(item.contract, item.method, item.args)
            require(misfit == "" and item.contract != Approvals.name, "call_not_possible", misfit)
            steps.append(Step(item.contract, item.method, pack_arguments(item.args)))
        require(sum([len(step.args) for step in steps]) <= ARGUMENTS_BYTES_MAX, "calls_too_large")
        mandate = ctx.call(Membership.mandate, ctx.sender)
        standing = ctx.call(Membership.standing, mandate, calls, ())
        require(any(not tier.met for tier in standing.tiers), "nothing_to_approve")
        require(standing.speaks, "request_lapsed")
        member = _member(ctx.sender)
        self._make_room(ctx, member)
        number = (self.last_number.get() or 0) + 1
        self.last_number.set(number)
        digest = ctx.digest(Content(DOMAIN, number, ctx.sender, tuple(steps)))
        self.requests[number] = Request(tuple(steps), mandate, digest, note, ctx.height, ctx.time_ms, expires_at_ms)
        self.waiting[(member, number)] = Waiting(ctx.sender, expires_at_ms)
        self.expiring[(expires_at_ms, number)] = member
        self.pending_total.set((self.pending_total.get() or 0) + 1)
        tiers = tuple([tier.tier for tier in standing.tiers])
        ctx.emit(Requested(number, ctx.sender, member, digest, tiers, expires_at_ms))

    @call
    def approve(self, ctx: Context, request: Number, digest: Digest) -> None:
        """Speak for the request; if that is what was still missing, its calls run now."""
        found = self._pending(ctx, request)
        require(digest == found.digest, "digest_differs")
        mandate = ctx.call(Membership.mandate, ctx.sender)
        rows = self.words.scan(prefix=(request,), limit=SPOKEN_MAX)
        spoken = [word.mandate for key, word in rows if key[1] != ctx.sender]
        standing = self._standing(ctx, found, (*spoken, mandate))
        require(standing.speaks, "request_lapsed")
        self._require_entitled(ctx, found, standing)
        # Room for all seats of a member's largest tiers; what is more than that has lapsed.
        require(len(spoken) < SPOKEN_MAX, "not_entitled")
        self.words[(request, ctx.sender)] = Word(mandate, ctx.height, ctx.time_ms)
        ctx.emit(Approved(request, ctx.sender))
        if all(tier.met for tier in standing.tiers):
            steps = [(step.contract, step.method, unpack_arguments(step.args)) for step in found.calls]
            done = ctx.perform(found.mandate.principal, tuple(steps))
            if done.code == "ok":
                self._end(ctx, request, found, "executed", "", 0)
            else:
                self._end(ctx, request, found, "failed", done.code, done.position + 1)

    @call
    def reject(self, ctx: Context, request: Number) -> None:
        """End the request; whoever could approve it may do that."""
        found = self._pending(ctx, request)
        mandate = ctx.call(Membership.mandate, ctx.sender)
        self._require_entitled(ctx, found, self._standing(ctx, found, (mandate,)))
        self._end(ctx, request, found, "rejected", "", 0)

    @call
    def withdraw(self, ctx: Context, request: Number) -> None:
        """Take the request back; the requester sends this, or the root of its member."""
        found = self._pending(ctx, request)
        ctx.authorize(found.mandate.principal)
        self._end(ctx, request, found, "withdrawn", "", 0)

    def _pending(self, ctx: Context, number: int) -> Request:
        found = self.requests[number]
        require(found.status == "pending" and ctx.time_ms < found.expires_at_ms, "request_ended", found.status)
        return found

    def _standing(self, ctx: Context, found: Request, spoken: tuple[Mandate, ...]) -> Progress:
        return ctx.call(Membership.standing, found.mandate, _planned(found), spoken)

    def _require_entitled(self, ctx: Context, found: Request, standing: Progress) -> None:
        """Revert unless the sender's word counts; where no tier asks any more, the requester's own does."""
        if len(standing.tiers) == 0:
            ctx.authorize(found.mandate.principal)
            return
        seats = [seat for tier in standing.tiers for group in tier.groups for seat in group.seats]
        require(any(seat.by == ctx.sender for seat in seats), "not_entitled", ctx.sender)

    def _make_room(self, ctx: Context, member: str) -> None:
        """End some whose time is over, forget some that ended long ago, and revert when too many are left."""
        rows = self.waiting.scan(prefix=(member,), limit=PENDING_PER_MEMBER_MAX + TIDIED_MAX)
        over = [(item.expires_at_ms, key[1]) for key, item in rows if item.expires_at_ms <= ctx.time_ms][
            :TIDIED_MAX
        ]
        for key, _ in self.expiring.scan(limit=TIDIED_MAX):
            if key[0] <= ctx.time_ms and key not in over:
                over.append(key)
        for _, number in over:
            self._end(ctx, number, self.requests[number], "expired", "", 0)
        for number, item in self.requests.scan(limit=TIDIED_MAX):
            if item.ending is not None and item.ending.time_ms + KEPT_MS <= ctx.time_ms:
                self._forget(number, item.mandate.principal, item.ending.height)
        surplus = min((self.ended_total.get(ctx.sender) or 0) - ENDED_PER_PRINCIPAL_MAX, TIDIED_MAX)
        if surplus > 0:
            for place, _ in self.ended.scan(prefix=(ctx.sender,), limit=surplus):
                self._forget(place[2], place[0], place[1])
        live = [item.requester for _, item in rows if ctx.time_ms < item.expires_at_ms]
        own = [requester for requester in live if requester == ctx.sender]
        require(len(live) < PENDING_PER_MEMBER_MAX and len(rows) <= PENDING_PER_MEMBER_MAX, "too_many_requests")
        require(len(own) < PENDING_PER_PRINCIPAL_MAX, "too_many_requests", ctx.sender)
        require((self.pending_total.get() or 0) < PENDING_MAX, "too_many_requests", "of all members")

    def _forget(self, number: int, requester: str, height: int) -> None:
        for place, _ in self.words.scan(prefix=(number,), limit=SPOKEN_MAX):
            del self.words[place]
        del self.requests[number]
        del self.ended[requester, height, number]
        left = self.ended_total[requester] - 1
        if left:
            self.ended_total[requester] = left
        else:
            del self.ended_total[requester]

    def _end(self, ctx: Context, number: int, found: Request, status: Status, code: str, place: int) -> None:
        requester = found.mandate.principal
        member = _member(requester)
        by = "" if status == "expired" else ctx.sender
        ending = Ending(by, ctx.tx_id, ctx.height, ctx.time_ms, code, place)
        self.requests[number] = replace(found, status=status, ending=ending)
        del self.waiting[(member, number)]
        del self.expiring[(found.expires_at_ms, number)]
        self.pending_total.set((self.pending_total.get() or 0) - 1)
        self.ended[requester, ctx.height, number] = True
        self.ended_total[requester] = (self.ended_total.get(requester) or 0) + 1
        ctx.emit(Ended(number, requester, member, status, by, code, place))

    @query
    def pending(
        self, ctx: QueryContext, member: MemberId, after: Annotated[int, Meta(ge=0)] = 0, limit: int = 50
    ) -> tuple[RequestRow, ...]:
        """The member's pending requests by number, those after the number `after`."""
        require(1 <= limit <= PAGE_MAX, "limit_out_of_range")
        rows = self.waiting.scan(prefix=(member,), after=(member, after), limit=limit)
        found = [(key[1], self.requests[key[1]]) for key, item in rows if ctx.time_ms < item.expires_at_ms]
        return tuple([self._row(number, item) for number, item in found])

    def _row(self, number: int, found: Request) -> RequestRow:
        words = self.words.scan(prefix=(number,), limit=SPOKEN_MAX)
        return RequestRow(
            number,
            found.mandate.principal,
            tuple([f"{step.contract}.{step.method}" for step in found.calls]),
            found.note,
            found.expires_at_ms,
            tuple([key[1] for key, _ in words]),
        )

    @query
    def show(self, ctx: QueryContext, request: Number) -> dict[str, Any]:
        """A request with its calls, who has spoken, and how it ended; `packed` is what the digest is made of."""
        found = self.requests[request]
        over = found.status == "pending" and found.expires_at_ms <= ctx.time_ms
        words = self.words.scan(prefix=(request,), limit=SPOKEN_MAX)
        return {
            "request": request,
            "requester": found.mandate,
            "calls": [
                {
                    "contract": step.contract,
                    "method": step.method,
                    "args": unpack_arguments(step.args),
                    "packed": step.args,
                }
                for step in found.calls
            ],
            "digest": found.digest,
            "note": found.note,
            "height": found.height,
            "time_ms": found.time_ms,
            "expires_at_ms": found.expires_at_ms,
            "status": "expired" if over else found.status,
            "approvals": [word for _, word in words],
            "ending": found.ending,
        }

    @invariant
    def pending_ones_are_listed(self) -> bool:
        """Exactly the pending requests stand in both lists, and the total counts them."""
        open_ones = [
            (number, item.mandate.principal, item.expires_at_ms)
            for number, item in self.requests.scan(limit=None)
            if item.status == "pending"
        ]
        listed = [(key[1], item.requester, item.expires_at_ms) for key, item in self.waiting.scan(limit=None)]
        timed = [(key[1], key[0]) for key, _ in self.expiring.scan(limit=None)]
        return (
            sorted(listed) == open_ones
            and sorted(timed) == [(number, expires) for number, _, expires in open_ones]
            and (self.pending_total.get() or 0) == len(open_ones)
        )

    @invariant
    def ended_ones_are_listed(self) -> bool:
        """Exactly the ended requests stand in the list of their requester, which is counted."""
        over = [
            (item.mandate.principal, item.ending.height, number)
            for number, item in self.requests.scan(limit=None)
            if item.ending is not None
        ]
        listed = [key for key, _ in self.ended.scan(limit=None)]
        names = [key[0] for key in listed]
        counted = {name: names.count(name) for name in names}
        return sorted(over) == sorted(listed) and dict(self.ended_total.scan(limit=None)) == counted


def _planned(found: Request) -> tuple[Planned, ...]:
    return tuple([Planned(step.contract, step.method, unpack_arguments(step.args)) for step in found.calls])


def _member(requester: str) -> str:
    return requester.partition("/")[0]
