"""How the members govern their network: proposals, votes, and a guard against changes after which it stands still.

More than 500 lines because whoever audits a contract reads one file. A proposal moves

    open -> waiting -> effective
      \\-> rejected, withdrawn, expired      \\-> expired, void

It is *waiting* once enough members voted for it. A change of the list that decides blocks then waits for the QUORUM
GUARD: it takes effect in the block in which a quorum of the NEW list has shown, on the ledger and within the last
`ready_blocks` blocks, that its nodes run (`ready`), among them every member that the change brings in. That block
still belongs to the old list; its header names the new one, which decides the next height.

Invariants: what takes effect is exactly what was voted on (`before` must still hold, else the proposal is void); no
change leaves fewer than `validators_min` validators; each member has one vote, that of its root principal, and only
active validators vote. Member records belong to `membership`: this contract changes them by `ctx.call` alone.
"""

from typing import Annotated, Literal

from contracts.membership import Key, MemberId, MemberRow, Membership, Standing
from contracts.sdk import (
    Argument,
    Code,
    Context,
    Contract,
    Event,
    Item,
    Map,
    Meta,
    State,
    TimeMs,
    Value,
    call,
    genesis,
    invariant,
    query,
    replace,
    require,
    scheduled,
)

Kind = Literal["remove_member", "suspend_member", "resume_member", "rotate_voting_key"]
Status = Literal["open", "waiting", "effective", "rejected", "withdrawn", "expired", "void"]
Threshold = Literal["quorum", "all_but_f"]
Number = Annotated[int, Meta(ge=1, le=9_007_199_254_740_991, description="the proposal's number")]
Reason = Annotated[str, Meta(max_length=500)]

VALIDATORS_MIN = 4
READY_BLOCKS = 100
READY_BLOCKS_MAX = 100_000
DAY_MS = 86_400_000
PROPOSAL_MS_MAX = 90 * DAY_MS
OPEN_PER_MEMBER_MAX = 8
OPEN_MAX = 400
CASTS_MAX = 8
PAGE_MAX = 100
HISTORY_MAX = 500


class KindThreshold(Argument):
    """How many active validators must vote for proposals of a kind."""

    kind: Kind
    threshold: Threshold


class Rules(Value):
    """What genesis says of proposals. `all_but_f` are the kinds that need n - f votes; the others need a quorum."""

    validators_min: int
    ready_blocks: int
    all_but_f: tuple[str, ...]


class Facts(Value):
    """What a proposal would change of a member."""

    standing: Standing
    voting_key: bytes


class Proposal(Value):
    """A change that was proposed: the member's record as it was then, and as it would be.

    `decided_height` is where it had enough votes and `ended_height` where it ended, 0 before; `ended_code` says why
    a void proposal could not take effect.
    """

    proposer: str
    kind: Kind
    member: str
    before: Facts
    after: Facts
    reason: str
    proposed_height: int
    expires_at_ms: int
    status: Status
    decided_height: int
    ended_height: int
    ended_code: str


class Vote(Value):
    """A member's vote as it stands, and how often the member has cast it."""

    yes: bool
    casts: int
    height: int


class Step(Value):
    """One line of a proposal's history. `what` is proposed, yes, no, ready, or the status that it came to."""

    height: int
    time_ms: int
    member: str
    what: str


class ProposalRow(Value):
    """A proposal in a list."""

    number: int
    proposal: Proposal
    yes: tuple[str, ...]
    no: tuple[str, ...]


class ReadyRow(Value):
    """A member whose node showed at `height` that it runs."""

    member: str
    height: int


class ProposalView(Value):
    """A proposal with everything that happened to it, and the rules that judge it."""

    number: int
    proposal: Proposal
    yes: tuple[str, ...]
    no: tuple[str, ...]
    ready: tuple[ReadyRow, ...]
    history: tuple[Step, ...]
    rules: Rules


class Proposed(Event):
    """The proposal can be voted on; its proposer has voted for it."""

    proposal: int
    proposer: str
    kind: Kind
    member: str

    topics = ("proposal/{proposal}", "member/{member}")


class Voted(Event):
    """The member's vote stands so from now on."""

    proposal: int
    voter: str
    yes: bool

    topics = ("proposal/{proposal}",)


class Moved(Event):
    """The proposal has this status from now on."""

    proposal: int
    member: str
    status: Status
    code: str

    topics = ("proposal/{proposal}", "member/{member}")


class ReadinessShown(Event):
    """The member's node runs and would carry out the proposal."""

    proposal: int
    member: str

    topics = ("proposal/{proposal}",)


class Governance(Contract):
    """Proposals to change the network's members, the members' votes on them, and the quorum guard."""

    uses = (Membership.roster, Membership.change_member, Membership.expect_key)
    codes = (
        Code("proposal_not_found", "No proposal has that number."),
        Code("member_not_found", "No member has that id."),
        Code("proposal_not_open", "The proposal was decided or has ended: it takes no votes any more."),
        Code("proposal_expired", "The proposal's time is over: propose it again."),
        Code("proposal_not_waiting", "The proposal waits for no readiness: it is still voted on, or has ended."),
        Code("not_a_voter", "Only the root principal of an active validator proposes and votes."),
        Code("not_the_proposer", "Only who proposed it withdraws a proposal."),
        Code("not_its_own_key", "A member proposes a new key for itself alone: only it knows that it has the key."),
        Code("nothing_to_change", "The member is as the proposal would make it already."),
        Code("member_removed", "The member was removed: it can neither be suspended nor come back by this."),
        Code("key_missing", "The rotation of a voting key names the new key."),
        Code("key_not_expected", "Only the rotation of a voting key names a key."),
        Code("key_in_use", "The key is or was the voting key of a member: choose one that was never used."),
        Code("too_few_validators", "The change would leave fewer validators than the network allows."),
        Code("expiry_out_of_range", "A proposal expires within 90 days, and after now."),
        Code("too_many_open", "A member has at most 8 undecided or waiting proposals, and a network 400."),
        Code("vote_unchanged", "The member has voted so already."),
        Code("too_many_casts", "A member casts its vote on one proposal at most 8 times."),
        Code("not_in_new_set", "Only a validator of the list after the change shows its readiness, by its node."),
        Code("changed_meanwhile", "Something else changed the member since this was proposed."),
        Code("superseded", "Another new key of the same member was decided later."),
        Code("rules_out_of_range", "validators_min is 1 … 256, ready_blocks 2 … 100,000, and a kind stands once."),
        Code("limit_out_of_range", "A page has 1 … 100 rows."),
    )

    rules: Item[Rules] = Item()
    last: Item[int] = Item()
    proposals: Map[int, Proposal] = Map(missing="proposal_not_found")
    # Those that are open or waiting, by number.
    undecided: Map[int, str] = Map(missing="proposal_not_found")
    votes: Map[tuple[int, MemberId], Vote] = Map()
    readiness: Map[tuple[int, MemberId], int] = Map()
    history: Map[tuple[int, int], Step] = Map()
    lines: Map[int, int] = Map()

    @genesis
    def create(
        self,
        ctx: Context,
        validators_min: int = VALIDATORS_MIN,
        ready_blocks: int = READY_BLOCKS,
        thresholds: tuple[KindThreshold, ...] = (),
    ) -> None:
        """Set the rules of the network definition.

        `validators_min`: no change may leave fewer. `ready_blocks`: for so long a readiness counts.
        """
        require(1 <= validators_min <= 256 and 2 <= ready_blocks <= READY_BLOCKS_MAX, "rules_out_of_range")
        named: list[str] = [item.kind for item in thresholds]
        require(all(named.count(kind) == 1 for kind in named), "rules_out_of_range")
        strict = sorted([item.kind for item in thresholds if item.threshold == "all_but_f"])
        self.rules.set(Rules(validators_min, ready_blocks, tuple(strict)))
        self.last.set(0)

    @call
    def propose(
        self,
        ctx: Context,
        kind: Kind,
        member: MemberId,
        expires_at_ms: TimeMs,
        voting_key: Key | None = None,
        reason: Reason = "",
    ) -> None:
        """Propose a change of `member`; the proposer, an active validator's root principal, votes for it by this.

        It ends at `expires_at_ms` unless it took effect before. `voting_key`: for rotate_voting_key, the new one.
        """
        rows = ctx.call(Membership.roster)
        require(ctx.sender in _voters(rows), "not_a_voter", ctx.sender)
        require(ctx.time_ms < expires_at_ms <= ctx.time_ms + PROPOSAL_MS_MAX, "expiry_out_of_range")
        require((voting_key is None) == (kind != "rotate_voting_key"), _key_code(voting_key), kind)
        require(kind != "rotate_voting_key" or ctx.sender == member, "not_its_own_key", member)
        before = _facts(rows, member)
        require(before.standing != "removed", "member_removed", member)
        after = _after(kind, before, voting_key)
        require(after != before, "nothing_to_change", member)
        obstacle = _obstacle(rows, self.rules.read(), member, before, after)
        require(obstacle == "", obstacle, member)
        open_ones = self.undecided.scan(limit=OPEN_MAX)
        own = [number for number, proposer in open_ones if proposer == ctx.sender]
        require(len(own) < OPEN_PER_MEMBER_MAX and len(open_ones) < OPEN_MAX, "too_many_open", ctx.sender)
        number = self.last.read() + 1
        self.last.set(number)
        self.undecided[number] = ctx.sender
        proposal = Proposal(
            ctx.sender, kind, member, before, after, reason, ctx.height, expires_at_ms, "open", 0, 0, ""
        )
        self.proposals[number] = proposal
        ctx.schedule(expires_at_ms, Governance.expire, number=number)
        self._note(ctx, number, ctx.sender, "proposed")
        ctx.emit(Proposed(number, ctx.sender, kind, member))
        self._cast(ctx, number, True)
        self._count(ctx, number, proposal, rows)

    @call
    def vote(self, ctx: Context, proposal: Number, yes: bool) -> None:
        """Vote for or against an open proposal; the vote may be changed until the proposal is decided."""
        found = self.proposals[proposal]
        rows = ctx.call(Membership.roster)
        require(ctx.sender in _voters(rows), "not_a_voter", ctx.sender)
        require(found.status == "open", "proposal_not_open", found.status)
        require(ctx.time_ms < found.expires_at_ms, "proposal_expired")
        self._cast(ctx, proposal, yes)
        self._count(ctx, proposal, found, rows)

    @call
    def withdraw(self, ctx: Context, proposal: Number) -> None:
        """Take back an open proposal; its proposer sends this."""
        found = self.proposals[proposal]
        require(ctx.sender == found.proposer, "not_the_proposer", ctx.sender)
        require(found.status == "open", "proposal_not_open", found.status)
        self._end(ctx, proposal, found, "withdrawn", "")

    @call
    def ready(self, ctx: Context, proposal: Number) -> None:
        """Show that the sending node runs and would go on under a waiting change; nodes send this by themselves.

        The sender is "<member>/node", whose signature is the voting key's: after the change, the new one's.
        """
        found = self.proposals[proposal]
        require(found.status == "waiting", "proposal_not_waiting", found.status)
        require(ctx.time_ms < found.expires_at_ms, "proposal_expired")
        rows = ctx.call(Membership.roster)
        member, slash, rest = ctx.sender.partition("/")
        new_list = _voters(_changed(rows, found.member, found.after))
        require(slash + rest == "/node" and member in new_list, "not_in_new_set", ctx.sender)
        if (proposal, member) not in self.readiness:
            self._note(ctx, proposal, member, "ready")
        self.readiness[proposal, member] = ctx.height
        ctx.emit(ReadinessShown(proposal, member))
        rules = self.rules.read()
        obstacle = _obstacle(rows, rules, found.member, found.before, found.after)
        if obstacle != "":
            self._expect(ctx, found, None)
            self._end(ctx, proposal, found, "void", obstacle)
            return
        shown = [name for name in new_list if self._is_ready(proposal, name, ctx.height, rules)]
        brought_in = found.member in new_list and found.member not in shown
        if len(shown) >= quorum_of(len(new_list)) and not brought_in:
            self._take_effect(ctx, proposal, found)

    @scheduled
    def expire(self, ctx: Context, number: int) -> None:
        """End a proposal that did not take effect in its time."""
        found = self.proposals[number]
        if number in self.undecided:
            if found.status == "waiting":
                self._expect(ctx, found, None)
            self._end(ctx, number, found, "expired", "")

    # --- steps ---

    def _cast(self, ctx: Context, number: int, yes: bool) -> None:
        known = self.votes.get((number, ctx.sender))
        casts = 0 if known is None else known.casts
        require(known is None or known.yes != yes, "vote_unchanged", ctx.sender)
        require(casts < CASTS_MAX, "too_many_casts", ctx.sender)
        self.votes[number, ctx.sender] = Vote(yes, casts + 1, ctx.height)
        self._note(ctx, number, ctx.sender, "yes" if yes else "no")
        ctx.emit(Voted(number, ctx.sender, yes))

    def _count(self, ctx: Context, number: int, found: Proposal, rows: tuple[MemberRow, ...]) -> None:
        """Decide the proposal where the votes of those who are active validators now suffice."""
        voters = _voters(rows)
        cast = [vote for vote in [self.votes.get((number, voter)) for voter in voters] if vote is not None]
        yes = len([vote for vote in cast if vote.yes])
        needed = votes_needed(len(voters), found.kind in self.rules.read().all_but_f)
        if yes >= needed:
            self._decide(ctx, number, found, rows)
        elif len(voters) - (len(cast) - yes) < needed:
            self._end(ctx, number, found, "rejected", "")

    def _decide(self, ctx: Context, number: int, found: Proposal, rows: tuple[MemberRow, ...]) -> None:
        decided = replace(found, decided_height=ctx.height)
        obstacle = _obstacle(rows, self.rules.read(), found.member, found.before, found.after)
        if obstacle != "":
            self._end(ctx, number, decided, "void", obstacle)
            return
        if _list(rows) == _list(_changed(rows, found.member, found.after)):
            self._take_effect(ctx, number, decided)
            return
        if found.kind == "rotate_voting_key":
            self._supersede(ctx, found.member)
        self.proposals[number] = replace(decided, status="waiting")
        if found.kind == "rotate_voting_key":
            ctx.call(Membership.expect_key, found.member, found.after.voting_key)
        self._note(ctx, number, "", "waiting")
        ctx.emit(Moved(number, found.member, "waiting", ""))

    def _supersede(self, ctx: Context, member: str) -> None:
        """No other rotation of the member waits: its node proves one new key at a time."""
        numbers = [number for number, proposer in self.undecided.scan(limit=OPEN_MAX) if proposer == member]
        for number, found in [(number, self.proposals[number]) for number in numbers]:
            if found.kind == "rotate_voting_key" and found.status == "waiting":
                self._end(ctx, number, found, "void", "superseded")

    def _take_effect(self, ctx: Context, number: int, found: Proposal) -> None:
        ctx.call(Membership.change_member, found.member, found.after.standing, found.after.voting_key)
        self._end(ctx, number, found, "effective", "")

    def _expect(self, ctx: Context, found: Proposal, key: bytes | None) -> None:
        """The member's node signs with its voting key again, if a rotation had changed that."""
        if found.kind == "rotate_voting_key":
            ctx.call(Membership.expect_key, found.member, key)

    def _end(self, ctx: Context, number: int, found: Proposal, status: Status, code: str) -> None:
        self.proposals[number] = replace(found, status=status, ended_height=ctx.height, ended_code=code)
        del self.undecided[number]
        self._note(ctx, number, "", status)
        ctx.emit(Moved(number, found.member, status, code))

    def _note(self, ctx: Context, number: int, member: str, what: str) -> None:
        known = self.lines.get(number)
        place = 0 if known is None else known
        self.lines[number] = place + 1
        self.history[number, place] = Step(ctx.height, ctx.time_ms, member, what)

    def _is_ready(self, number: int, member: str, height: int, rules: Rules) -> bool:
        shown = self.readiness.get((number, member))
        return shown is not None and height - shown < rules.ready_blocks

    # --- queries ---

    @query
    def page(self, after: int = 0, limit: int = 20) -> tuple[ProposalRow, ...]:
        """Proposals by number, those after the number `after`."""
        require(1 <= limit <= PAGE_MAX, "limit_out_of_range")
        found = self.proposals.scan(after=after, limit=limit)
        return tuple([self._row(number, proposal) for number, proposal in found])

    @query
    def pending(self, limit: int = 20) -> tuple[ProposalRow, ...]:
        """Proposals that are voted on or wait for readiness, the oldest first."""
        require(1 <= limit <= PAGE_MAX, "limit_out_of_range")
        return tuple([self._row(key, self.proposals[key]) for key, _ in self.undecided.scan(limit=limit)])

    @query
    def proposal(self, proposal: Number) -> ProposalView:
        """One proposal with its votes, readiness and history."""
        row = self._row(proposal, self.proposals[proposal])
        ready = [ReadyRow(key[1], height) for key, height in self.readiness.scan(prefix=(proposal,))]
        steps = [step for _, step in self.history.scan(prefix=(proposal,), limit=HISTORY_MAX)]
        rules = self.rules.read()
        return ProposalView(proposal, row.proposal, row.yes, row.no, tuple(ready), tuple(steps), rules)

    def _row(self, number: int, proposal: Proposal) -> ProposalRow:
        cast = [(key[1], vote.yes) for key, vote in self.votes.scan(prefix=(number,))]
        yes = tuple([voter for voter, is_yes in cast if is_yes])
        return ProposalRow(number, proposal, yes, tuple([voter for voter, is_yes in cast if not is_yes]))

    @staticmethod
    def read_waiting(state: State) -> tuple[tuple[int, Proposal], ...]:
        """Return the decided proposals that wait for readiness, with their numbers."""
        numbers = [number for number, _ in Governance.undecided.scan_from(state, OPEN_MAX)]
        found = [(number, Governance.proposals.read_from(state, number)) for number in numbers]
        return tuple([(number, item) for number, item in found if item is not None and item.status == "waiting"])

    @staticmethod
    def read_readiness(state: State, number: int, member: str) -> int | None:
        """Return the height at which the member's node showed its readiness for the proposal; None: never."""
        return Governance.readiness.read_from(state, (number, member))

    @staticmethod
    def read_rules(state: State) -> Rules | None:
        """Return the rules of the network definition."""
        return Governance.rules.read_from(state)

    # --- invariants ---

    @invariant
    def undecided_are_open_or_waiting(self) -> bool:
        """The list of undecided proposals has exactly those that have not ended."""
        found = [number for number, item in self.proposals.scan(limit=None) if item.status in ("open", "waiting")]
        return found == [number for number, _ in self.undecided.scan(limit=None)]

    @invariant
    def what_took_effect_was_decided(self) -> bool:
        """Nothing takes effect or waits that had not enough votes at some height."""
        return all(
            1 <= item.proposed_height <= item.decided_height
            for _, item in self.proposals.scan(limit=None)
            if item.status in ("waiting", "effective")
        )


def quorum_of(count: int) -> int:
    """Return how many of `count` validators decide a block: as consensus counts them."""
    return (count + (count - 1) // 3) // 2 + 1


def votes_needed(count: int, all_but_f: bool) -> int:
    """Return how many of `count` validators must vote for a proposal."""
    return count - (count - 1) // 3 if all_but_f else quorum_of(count)


def _key_code(voting_key: bytes | None) -> str:
    return "key_missing" if voting_key is None else "key_not_expected"


def _voters(rows: tuple[MemberRow, ...]) -> tuple[str, ...]:
    return tuple([row.id for row in rows if row.votes])


def _list(rows: tuple[MemberRow, ...]) -> tuple[tuple[str, bytes], ...]:
    """The list that decides blocks."""
    return tuple([(row.id, row.voting_key) for row in rows if row.votes])


def _facts(rows: tuple[MemberRow, ...], member: str) -> Facts:
    found = [Facts(row.standing, row.voting_key) for row in rows if row.id == member]
    require(len(found) == 1, "member_not_found", member)
    return found[0]


def _after(kind: Kind, before: Facts, voting_key: bytes | None) -> Facts:
    """What the member would be; the same as `before` where the kind changes nothing of it."""
    if kind == "remove_member":
        return replace(before, standing="removed")
    if kind == "suspend_member":
        return replace(before, standing="suspended")
    if kind == "resume_member":
        return replace(before, standing="active")
    return before if voting_key is None else replace(before, voting_key=voting_key)


def _changed(rows: tuple[MemberRow, ...], member: str, after: Facts) -> tuple[MemberRow, ...]:
    """The members after the change."""
    return tuple(
        [
            row
            if row.id != member
            else replace(
                row,
                standing=after.standing,
                voting_key=after.voting_key,
                votes=row.role == "validator" and after.standing == "active",
            )
            for row in rows
        ]
    )


def _obstacle(rows: tuple[MemberRow, ...], rules: Rules, member: str, before: Facts, after: Facts) -> str:
    """Why the change cannot take effect on the members as they are; empty: it can."""
    if _facts(rows, member) != before:
        return "changed_meanwhile"
    if after.voting_key != before.voting_key and any(row.voting_key == after.voting_key for row in rows):
        return "key_in_use"
    count, then = len(_voters(rows)), len(_voters(_changed(rows, member, after)))
    return "too_few_validators" if then < count and then < rules.validators_min else ""
