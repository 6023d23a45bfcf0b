"""How the members govern their network: proposals, votes, and a guard against changes after which it stands still.

More than 500 lines because whoever audits a contract reads one file. A proposal moves

    open -> waiting -> effective
      \\-> rejected, withdrawn, expired      \\-> expired, void

It is *waiting* once enough members voted for it. A change of the list that decides blocks then waits for the QUORUM
GUARD: it takes effect in the block in which a quorum of the NEW list has shown, on the ledger and within the last
`ready_blocks` blocks, that its nodes run (`ready`), among them every member that the change brings in. That block
still belongs to the old list; its header names the new one, which decides the next height. A member's own new key,
be it for votes or for links, waits for that member's node at least: it says so only with the key at hand.

Invariants: what takes effect is exactly what was voted on (`before` must still hold, else the proposal is void); no
change leaves fewer than `validators_min` validators; each member has one vote, that of its root principal, and only
active validators vote. No proposal takes votes or readiness, or takes effect, in a block at or after its
`expires_at_ms`: each call looks at that itself and ends what is over, since a scheduled call may be settled
unexecuted. A member's own new key ends no proposal of others about that member. Member records belong to
`membership`: this contract changes them by `ctx.call` alone. Who is added is linked once the votes
suffice, and has no vote before its own node has shown that it runs. Of a member's policies the members' votes take
a TIER away and nothing else: the very one that they saw, proposed by that member, by n - f votes, so that no
administrator alone gets rid of those who check him.
"""

from typing import Annotated, Literal

from contracts.lifecycle import (
    CONTRACT_KINDS,
    ContractKind,
    ContractName,
    Lifecycle,
    SourceDigest,
    Target,
    VersionNumber,
)
from contracts.membership import (
    JOINED_MAX,
    KEYS_MAX,
    OVERLAP_MS,
    Address,
    Key,
    Keys,
    MemberId,
    MemberRow,
    Membership,
    OverlapMs,
    Role,
    Standing,
)
from contracts.policies import Tier, TierName
from contracts.sdk import (
    Argument,
    Code,
    Context,
    Contract,
    Event,
    Item,
    Map,
    Meta,
    Revert,
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
from contracts.waking import wake_ms, wakes_max

MemberKind = Literal[
    "remove_member", "suspend_member", "resume_member", "change_role", "rotate_voting_key", "rotate_tls_key"
]
Kind = Literal[
    "add_member",
    "remove_member",
    "suspend_member",
    "resume_member",
    "change_role",
    "rotate_voting_key",
    "rotate_tls_key",
    "change_parameter",
    "remove_tier",
    "activate_contract",
    "deactivate_contract",
    "upgrade_contract",
]
Status = Literal["open", "waiting", "effective", "rejected", "withdrawn", "expired", "void"]
Threshold = Literal["quorum", "all_but_f"]
Number = Annotated[int, Meta(ge=1, le=9_007_199_254_740_991, description="the proposal's number")]
Height = Annotated[int, Meta(ge=1, le=9_007_199_254_740_991, description="a block's height")]
ParameterName = Annotated[str, Meta(pattern=r"^[a-z][a-z_]{0,63}\Z")]
Reason = Annotated[str, Meta(max_length=500)]

VALIDATORS_MIN = 4
VALIDATORS_MAX = 128
"""Consensus has no place for more."""
READY_BLOCKS = 100
READY_BLOCKS_MIN = 20
READY_BLOCKS_EACH = 4
"""A readiness lasts so many blocks for each that must show it, or `ready_blocks` if that is more: one that is said
anew makes a block of its own, and must not make those of all others grow old."""
READY_BLOCKS_MAX = 100_000
DAY_MS = 86_400_000
PROPOSAL_MS_MAX = 90 * DAY_MS
READY_BLOCKS_NAME = "ready_blocks"
PARAMETERS = (
    ("block_transactions_max", 10, 100_000),
    ("block_calls_max", 100, 1_000_000),
    ("block_operations_max", 200_000, 100_000_000),
    (READY_BLOCKS_NAME, READY_BLOCKS_MIN, READY_BLOCKS_MAX),
)
"""What members may change, from and to: whatever they choose, the first transaction of a block always fits, so that
they can choose again.
"""
OWN_KINDS = ("rotate_voting_key", "rotate_tls_key")
"""Any member proposes these for itself, and nobody for another: only it knows that it has the key."""
STRICT_KINDS = ("change_parameter", "remove_tier")
"""They need n - f votes whatever genesis says, and take effect with them: no list of validators changes."""
OPEN_PER_MEMBER_MAX = 8
OPEN_MAX = 400
OPEN_PER_OTHER_MAX = 2
OPEN_OTHERS_MAX = 50
"""Who has no vote proposes about itself alone. All f of 128 validators and all others leave room for proposals."""
ENDED_MAX = 50
"""So many proposals at most does one call end whose time is over; the next calls end more."""
WAKES_MAX = wakes_max(PROPOSAL_MS_MAX)
CONTRACT_SUBJECT = "contract/"
"""What stands before a contract's name, so that no member's id is taken for it."""
TIER_SUBJECT = "tier/"
"""What stands before the member and the name of a tier."""
CASTS_MAX = 8
PAGE_MAX = 100
HISTORY_MAX = 500
"""So many lines of history are in an answer; 128 validators that change their votes make more than 1,000."""


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
    """What a proposal would change of a member, or of a parameter the `value`; a newcomer is absent at first.

    Of a contract `value` is the version, and it is active or absent, as a tier is.
    """

    standing: Standing | Literal["absent"]
    role: Role
    voting_key: bytes
    tls_key: bytes
    address: str
    value: int = 0


class Undecided(Value):
    """Of a proposal that is open or waits: who proposed it, about what, and from when on it is over."""

    proposer: str
    subject: str
    expires_at_ms: int


class RootPolicy(Value):
    """By which keys a newcomer's root principal will sign."""

    threshold: int
    keys: tuple[bytes, ...]


class Proposal(Value):
    """A change that was proposed: the member's record as it was then, and as it would be.

    `subject` is the member's id, the parameter's name, or "contract/" and the contract's name; `code` is what such
    a proposal makes of it. Of "tier/<member>/<name>" `tier` is what would be removed.
    `decided_height` is where it had enough votes and `ended_height` where it ended, 0 before; `ended_code` says why
    a void proposal could not take effect. `overlap_ms` is for how long a former TLS key serves too; `root` is what
    a newcomer brings.
    """

    proposer: str
    kind: Kind
    subject: str
    before: Facts
    after: Facts
    reason: str
    proposed_height: int
    expires_at_ms: int
    status: Status
    decided_height: int
    ended_height: int
    ended_code: str
    overlap_ms: int = 0
    root: RootPolicy | None = None
    code: Target | None = None
    tier: Tier | None = None


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
    """A proposal with what happened to it, and the rules that judge it.

    Of `history_lines` lines of history `history` has the first ones; `history_page` gives the others.
    """

    number: int
    proposal: Proposal
    yes: tuple[str, ...]
    no: tuple[str, ...]
    ready: tuple[ReadyRow, ...]
    history: tuple[Step, ...]
    history_lines: int
    rules: Rules


class Proposed(Event):
    """The proposal can be voted on; its proposer has voted for it."""

    proposal: int
    proposer: str
    kind: Kind
    subject: str

    topics = ("proposal/{proposal}", "subject/{subject}")


class Voted(Event):
    """The member's vote stands so from now on."""

    proposal: int
    voter: str
    yes: bool

    topics = ("proposal/{proposal}",)


class Moved(Event):
    """The proposal has this status from now on."""

    proposal: int
    subject: str
    status: Status
    code: str

    topics = ("proposal/{proposal}", "subject/{subject}")


class ReadinessShown(Event):
    """The member's node runs and would carry out the proposal."""

    proposal: int
    member: str

    topics = ("proposal/{proposal}",)


class Governance(Contract):
    """Proposals to change the network's members, the members' votes on them, and the quorum guard."""

    uses = (
        Membership.roster,
        Membership.is_used,
        Membership.enlist,
        Membership.admit,
        Membership.dismiss,
        Membership.change_member,
        Membership.expect_key,
        Membership.limit,
        Membership.change_limit,
        Membership.tier,
        Membership.strike_tier,
        Lifecycle.version_of,
        Lifecycle.obstacle,
        Lifecycle.plan,
        Lifecycle.drop,
        Lifecycle.switch,
    )
    codes = (
        Code("proposal_not_found", "No proposal has that number."),
        Code("member_not_found", "No member has that id."),
        Code("proposal_not_open", "The proposal was decided or has ended: it takes no votes any more."),
        Code("proposal_not_waiting", "The proposal waits for no readiness: it is still voted on, or has ended."),
        Code("not_a_voter", "Only the root principal of an active validator proposes and votes."),
        Code("not_the_proposer", "Only who proposed it withdraws a proposal."),
        Code("not_its_own_key", "A member proposes a new key for itself alone: only it knows that it has the key."),
        Code("not_its_own_tier", "Only a member's own root principal proposes to remove a tier of that member."),
        Code("tier_not_found", "The member has no tier of that name."),
        Code("nothing_to_change", "The member is as the proposal would make it already."),
        Code("member_exists", "A member has or had that id: a newcomer chooses another."),
        Code("member_removed", "The member was removed: nothing of it changes any more."),
        Code("member_suspended", "The member is suspended: its tiers stay as they are until it is back."),
        Code("member_joining", "The member is about to join: wait until it has, or until that proposal expires."),
        Code("argument_missing", "The change names the new key, or the new role."),
        Code(
            "argument_not_expected", "Only the rotation of a key names a key, and only the change of a role a role."
        ),
        Code("key_in_use", "The key is or was a member's: make one that was never used."),
        Code("keys_not_distinct", "The voting key, the TLS key and the principal's keys are all different."),
        Code("keys_out_of_range", "The newcomer's root principal has 1 to 16 keys."),
        Code("threshold_out_of_range", "The threshold lies between 1 and the number of keys."),
        Code("address_in_use", "Another member's node listens there."),
        Code("too_many_members", "A network grows to at most 256 members, 128 of them validators."),
        Code("too_few_validators", "The change would leave fewer validators than the network allows."),
        Code("parameter_not_found", "No parameter that members may change has that name."),
        Code("value_out_of_range", "The parameter cannot be that: docs/governance.md has the ranges."),
        Code("expiry_out_of_range", "A proposal expires within 90 days, and after now."),
        Code(
            "too_many_open",
            "A member has at most 8 undecided or waiting proposals (2 without a vote), and a network 400 (50).",
        ),
        Code("vote_unchanged", "The member has voted so already."),
        Code("too_many_casts", "A member casts its vote on one proposal at most 8 times."),
        Code("not_in_new_set", "Only a validator of the list after the change shows its readiness, by its node."),
        Code("changed_meanwhile", "Something else changed the member, or the tier, since this was proposed."),
        Code("superseded", "Another new key of the same member was decided later."),
        Code(
            "height_passed", "The height is over: name a later one, for the block after the next at the earliest."
        ),
        Code("not_ready_yet", "A quorum of the validators' nodes has not said yet that they have this version."),
        Code("use_not_active", "A contract that would be active uses another one that would not: see its history."),
        Code("migration_failed", "The new version could not take over the state: nothing was changed."),
        Code("rules_out_of_range", "validators_min is 1 … 256, ready_blocks 20 … 100,000, and a kind stands once."),
        Code("limit_out_of_range", "A page has 1 … 100 rows."),
    )

    rules: Item[Rules] = Item()
    last: Item[int] = Item()
    proposals: Map[int, Proposal] = Map(missing="proposal_not_found")
    # Those that are open or waiting, by number.
    undecided: Map[int, Undecided] = Map(missing="proposal_not_found")
    # At which times `tidy` is scheduled, and at which height that was done.
    wakes: Map[int, int] = Map()
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
        require(
            1 <= validators_min <= 256 and READY_BLOCKS_MIN <= ready_blocks <= READY_BLOCKS_MAX,
            "rules_out_of_range",
        )
        named: list[str] = [item.kind for item in thresholds]
        require(all(named.count(kind) == 1 for kind in named), "rules_out_of_range")
        strict = sorted([item.kind for item in thresholds if item.threshold == "all_but_f"])
        self.rules.set(Rules(validators_min, ready_blocks, tuple(strict)))
        self.last.set(0)

    @call
    def propose(
        self,
        ctx: Context,
        kind: MemberKind,
        member: MemberId,
        expires_at_ms: TimeMs,
        voting_key: Key | None = None,
        tls_key: Key | None = None,
        role: Role | None = None,
        overlap_ms: OverlapMs = OVERLAP_MS,
        reason: Reason = "",
    ) -> None:
        """Propose a change of `member`; the proposer, an active validator's root principal, votes for it by this.

        It ends at `expires_at_ms` unless it took effect before. `voting_key` or `tls_key`: for their rotation, the
        new one, which any member proposes for itself; the former TLS key serves on for `overlap_ms`.
        """
        self._end_overdue(ctx)
        rows = ctx.call(Membership.roster)
        own = kind in OWN_KINDS and ctx.sender == member
        require(own or ctx.sender in _voters(rows), "not_a_voter", ctx.sender)
        require(own or kind not in OWN_KINDS, "not_its_own_key", member)
        for name, given in (("rotate_voting_key", voting_key), ("rotate_tls_key", tls_key), ("change_role", role)):
            require(kind != name or given is not None, "argument_missing", name)
            require(kind == name or given is None, "argument_not_expected", name)
        before = _known(rows, member)
        require(before.standing != "removed", "member_removed", member)
        require(before.standing != "joining", "member_joining", member)
        after = _after(kind, before, voting_key, tls_key, role)
        require(after != before, "nothing_to_change", member)
        overlap = overlap_ms if kind == "rotate_tls_key" else 0
        self._open(ctx, rows, kind, member, before, after, expires_at_ms, reason, overlap, None)

    @call
    def propose_member(
        self,
        ctx: Context,
        member: MemberId,
        role: Role,
        address: Address,
        voting_key: Key,
        tls_key: Key,
        keys: Keys,
        threshold: int,
        expires_at_ms: TimeMs,
        reason: Reason = "",
    ) -> None:
        """Propose a new member, by the keys that its `hansa init --join` printed; the proposer votes for it so.

        Once the votes suffice, its node is linked and follows. A validator has its vote once its node has caught up
        and said so. `keys` and `threshold` are its root principal's.
        """
        self._end_overdue(ctx)
        rows = ctx.call(Membership.roster)
        require(ctx.sender in _voters(rows), "not_a_voter", ctx.sender)
        require(_facts(rows, member) is None, "member_exists", member)
        require(1 <= len(keys) <= KEYS_MAX, "keys_out_of_range")
        require(1 <= threshold <= len(keys), "threshold_out_of_range")
        every = (voting_key, tls_key, *keys)
        require(all(every.count(key) == 1 for key in every), "keys_not_distinct")
        after = Facts("active", role, voting_key, tls_key, address)
        root = RootPolicy(threshold, tuple(sorted(keys)))
        before = replace(after, standing="absent")
        self._open(ctx, rows, "add_member", member, before, after, expires_at_ms, reason, 0, root)

    @call
    def propose_parameter(
        self, ctx: Context, name: ParameterName, value: int, expires_at_ms: TimeMs, reason: Reason = ""
    ) -> None:
        """Propose another value of a parameter of the network, from the next block on; it needs n - f votes."""
        self._end_overdue(ctx)
        rows = ctx.call(Membership.roster)
        require(ctx.sender in _voters(rows), "not_a_voter", ctx.sender)
        ranges = [(low, high) for known, low, high in PARAMETERS if known == name]
        require(len(ranges) == 1, "parameter_not_found", name)
        require(ranges[0][0] <= value <= ranges[0][1], "value_out_of_range", name)
        now = self._value(ctx, name)
        require(value != now, "nothing_to_change", name)
        before = Facts("absent", "observer", b"", b"", "", now)
        after = replace(before, value=value)
        self._open(ctx, rows, "change_parameter", name, before, after, expires_at_ms, reason, 0, None)

    @call
    def propose_tier_removal(
        self, ctx: Context, member: MemberId, tier: TierName, expires_at_ms: TimeMs, reason: Reason = ""
    ) -> None:
        """Propose that the sender's own tier, which nobody can satisfy any more, is removed; it needs n - f votes.

        No tier looks at this call. Keys and thresholds of all policies stay; if the tier changes before the members
        have decided, the proposal is void.
        """
        self._end_overdue(ctx)
        rows = ctx.call(Membership.roster)
        require(ctx.sender == member, "not_its_own_tier", ctx.sender)
        found = ctx.call(Membership.tier, member, tier)
        if found is None:
            raise Revert("tier_not_found", tier)
        before = Facts("active", "observer", b"", b"", "")
        after = replace(before, standing="absent")
        subject = f"{TIER_SUBJECT}{member}/{tier}"
        self._open(ctx, rows, "remove_tier", subject, before, after, expires_at_ms, reason, 0, None, None, found)

    @call
    def propose_contract(
        self,
        ctx: Context,
        kind: ContractKind,
        contract: ContractName,
        version: VersionNumber,
        source: SourceDigest,
        at_height: Height,
        expires_at_ms: TimeMs,
        reason: Reason = "",
    ) -> None:
        """Propose that `contract` runs in `version` from height `at_height` on, or later, or that it runs no more.

        `source` is the version's source digest, which `hansa contracts` shows. It happens at the first height from
        then on at which a quorum of the validators' nodes has said that they have exactly these bytes.
        """
        self._end_overdue(ctx)
        rows = ctx.call(Membership.roster)
        require(ctx.sender in _voters(rows), "not_a_voter", ctx.sender)
        require(at_height > ctx.height + 1, "height_passed")
        known = ctx.call(Lifecycle.version_of, contract)
        before = Facts("active" if known.active else "absent", "observer", b"", b"", "", known.version)
        after = replace(before, standing="absent" if kind == "deactivate_contract" else "active", value=version)
        target = Target(version, source, at_height)
        subject = CONTRACT_SUBJECT + contract
        self._open(ctx, rows, kind, subject, before, after, expires_at_ms, reason, 0, None, target)

    @call
    def vote(self, ctx: Context, proposal: Number, yes: bool) -> None:
        """Vote for or against an open proposal; the vote may be changed until the proposal is decided.

        The same vote again counts all votes anew: others may suffice since the list has changed. A proposal whose
        time is over ends by this, and does not count the vote.
        """
        if self._is_over(ctx, proposal):
            return
        found = self.proposals[proposal]
        rows = ctx.call(Membership.roster)
        require(ctx.sender in _voters(rows), "not_a_voter", ctx.sender)
        require(found.status == "open", "proposal_not_open", found.status)
        known = self.votes.get((proposal, ctx.sender))
        if known is None or known.yes != yes:
            self._cast(ctx, proposal, yes)
        self._count(ctx, proposal, found, rows)
        again = known is not None and known.yes == yes
        require(not again or self.proposals[proposal].status != "open", "vote_unchanged", ctx.sender)

    @call
    def withdraw(self, ctx: Context, proposal: Number) -> None:
        """Take back an open proposal, or one's own new key that is waited for; the proposer sends this."""
        if self._is_over(ctx, proposal):
            return
        found = self.proposals[proposal]
        require(ctx.sender == found.proposer, "not_the_proposer", ctx.sender)
        # Else a key that was mistyped or lost would silence the member's node for as long as it is waited for.
        own = found.status == "waiting" and found.kind in OWN_KINDS
        require(found.status == "open" or own, "proposal_not_open", found.status)
        self._let_go(ctx, proposal, found)
        self._end(ctx, proposal, found, "withdrawn", "")

    @call
    def ready(self, ctx: Context, proposal: Number) -> None:
        """Show that the sending node runs and would go on under a waiting change; nodes send this by themselves.

        The sender is "<member>/node", whose signature is the voting key's: after the change, the new one's.
        """
        if self._is_over(ctx, proposal):
            return
        found = self.proposals[proposal]
        require(found.status == "waiting", "proposal_not_waiting", found.status)
        rows = ctx.call(Membership.roster)
        member, slash, rest = ctx.sender.partition("/")
        heard = heard_for(rows, found)
        own = found.kind in OWN_KINDS and member == found.subject
        require(slash + rest == "/node" and (own or member in heard), "not_in_new_set", ctx.sender)
        if (proposal, member) not in self.readiness:
            self._note(ctx, proposal, member, "ready")
        self.readiness[proposal, member] = ctx.height
        ctx.emit(ReadinessShown(proposal, member))
        if found.code is not None:
            return  # it is carried out at the end of a block
        obstacle = self._obstacle(ctx, rows, found)
        if obstacle != "":
            self._let_go(ctx, proposal, found)
            self._end(ctx, proposal, found, "void", obstacle)
            return
        lasting = lasting_blocks(self.rules.read(), len(heard))
        shown = [name for name in heard if self._is_ready(proposal, name, ctx.height, lasting)]
        needed = quorum_of(len(heard)) if heard else 0
        # Whom the change brings in, or whose key is new, is among them.
        awaited = found.subject in heard or found.kind in OWN_KINDS
        if len(shown) >= needed and (not awaited or self._is_ready(proposal, found.subject, ctx.height, lasting)):
            self._take_effect(ctx, proposal, found)

    @scheduled
    def carry_out(self, ctx: Context, proposal: Number, failed: str = "", unmet: str = "") -> None:
        """Change the contract's version; the executor calls this at the end of a block, and with `failed` instead,
        an outcome's code, where the version could not begin, or with `unmet`, what uses what would not be active.
        """
        found = self.proposals[proposal]
        require(found.status == "waiting" and found.code is not None, "proposal_not_waiting", found.status)
        ctx.schedule(ctx.time_ms, Governance.announce, proposal=proposal)
        if found.expires_at_ms <= ctx.time_ms:
            self._expire(ctx, proposal)
            return
        rows = ctx.call(Membership.roster)
        obstacle = "migration_failed" if failed else "use_not_active" if unmet else self._obstacle(ctx, rows, found)
        if obstacle != "":
            if failed or unmet:
                self._note(ctx, proposal, "", failed or unmet)
            self._let_go(ctx, proposal, found)
            self._end(ctx, proposal, found, "void", obstacle)
            return
        voters = _voters(rows)
        lasting = lasting_blocks(self.rules.read(), len(voters))
        shown = [name for name in voters if self._is_ready(proposal, name, ctx.height, lasting)]
        require(len(shown) >= quorum_of(len(voters)), "not_ready_yet")
        self._take_effect(ctx, proposal, found)

    @scheduled
    def announce(self, ctx: Context, proposal: Number) -> None:
        """Tell what became of the proposal at the end of the block before, where no receipt could."""
        found = self.proposals[proposal]
        ctx.emit(Moved(proposal, found.subject, found.status, found.ended_code))

    @scheduled
    def tidy(self, ctx: Context) -> None:
        """End proposals whose time is over; nothing hangs on that, for they take and do nothing any more."""
        for at_ms, _ in self.wakes.scan(limit=WAKES_MAX):
            if at_ms <= ctx.time_ms:
                del self.wakes[at_ms]
        self._end_overdue(ctx)
        self._wake(ctx)

    # --- steps ---

    def _wake(self, ctx: Context) -> None:
        """Let `tidy` be called on the way to the next end; once for each time."""
        ends = [item.expires_at_ms for _, item in self.undecided.scan(limit=OPEN_MAX)]
        if ends:
            at_ms = wake_ms(max(min(ends), ctx.time_ms + 1), ctx.time_ms)
            if at_ms not in self.wakes:
                self.wakes[at_ms] = ctx.height
                ctx.schedule(at_ms, Governance.tidy)

    def _is_over(self, ctx: Context, number: int) -> bool:
        """End proposals whose time is over; return whether this one has just been among them."""
        known = self.undecided.get(number)
        over = known is not None and known.expires_at_ms <= ctx.time_ms
        if over:
            self._expire(ctx, number)
        self._end_overdue(ctx)
        return over

    def _end_overdue(self, ctx: Context) -> None:
        rows = self.undecided.scan(limit=OPEN_MAX)
        for number in [number for number, item in rows if item.expires_at_ms <= ctx.time_ms][:ENDED_MAX]:
            self._expire(ctx, number)

    def _expire(self, ctx: Context, number: int) -> None:
        found = self.proposals[number]
        self._let_go(ctx, number, found)
        self._end(ctx, number, found, "expired", "")

    def _open(
        self,
        ctx: Context,
        rows: tuple[MemberRow, ...],
        kind: Kind,
        member: str,
        before: Facts,
        after: Facts,
        expires_at_ms: int,
        reason: str,
        overlap_ms: int,
        root: RootPolicy | None,
        code: Target | None = None,
        tier: Tier | None = None,
    ) -> None:
        require(ctx.time_ms < expires_at_ms <= ctx.time_ms + PROPOSAL_MS_MAX, "expiry_out_of_range")
        votes = ctx.sender in _voters(rows)
        proposal = Proposal(
            ctx.sender,
            kind,
            member,
            before,
            after,
            reason,
            ctx.height,
            expires_at_ms,
            "open",
            0,
            0,
            "",
            overlap_ms,
            root,
            code,
            tier,
        )
        obstacle = self._obstacle(ctx, rows, proposal)
        require(obstacle == "", obstacle, member)
        self._require_room(ctx, rows, votes)
        number = self.last.read() + 1
        self.last.set(number)
        self.undecided[number] = Undecided(ctx.sender, member, expires_at_ms)
        self.proposals[number] = proposal
        self._wake(ctx)
        self._note(ctx, number, ctx.sender, "proposed")
        ctx.emit(Proposed(number, ctx.sender, kind, member))
        if votes:
            self._cast(ctx, number, True)
        self._count(ctx, number, proposal, rows)

    def _require_room(self, ctx: Context, rows: tuple[MemberRow, ...], votes: bool) -> None:
        """Nobody keeps the others from proposing: those who have no vote have a small share of the room."""
        voters = _voters(rows)
        found = [item for _, item in self.undecided.scan(limit=OPEN_MAX)]
        own = len([item for item in found if item.proposer == ctx.sender])
        others = len([item for item in found if item.proposer not in voters])
        room = len(found) < OPEN_MAX and own < OPEN_PER_MEMBER_MAX
        small = own < OPEN_PER_OTHER_MAX and others < OPEN_OTHERS_MAX
        require(room and (votes or small), "too_many_open", ctx.sender)

    def _cast(self, ctx: Context, number: int, yes: bool) -> None:
        known = self.votes.get((number, ctx.sender))
        casts = 0 if known is None else known.casts
        require(casts < CASTS_MAX, "too_many_casts", ctx.sender)
        self.votes[number, ctx.sender] = Vote(yes, casts + 1, ctx.height)
        self._note(ctx, number, ctx.sender, "yes" if yes else "no")
        ctx.emit(Voted(number, ctx.sender, yes))

    def _count(self, ctx: Context, number: int, found: Proposal, rows: tuple[MemberRow, ...]) -> None:
        """Decide the proposal where the votes of those who are active validators now suffice."""
        voters = _voters(rows)
        cast = [vote for vote in [self.votes.get((number, voter)) for voter in voters] if vote is not None]
        yes = len([vote for vote in cast if vote.yes])
        strict = found.kind in STRICT_KINDS or found.kind in self.rules.read().all_but_f
        needed = votes_needed(len(voters), strict)
        if yes >= needed:
            self._decide(ctx, number, found, rows)
        elif len(voters) - (len(cast) - yes) < needed:
            self._end(ctx, number, found, "rejected", "")

    def _decide(self, ctx: Context, number: int, found: Proposal, rows: tuple[MemberRow, ...]) -> None:
        decided = replace(found, decided_height=ctx.height)
        obstacle = self._obstacle(ctx, rows, found)
        if obstacle != "":
            self._end(ctx, number, decided, "void", obstacle)
            return
        member, after = found.subject, found.after
        if found.kind in STRICT_KINDS:
            self._take_effect(ctx, number, decided)
            return
        if found.kind == "add_member":
            ctx.call(Membership.enlist, member, after.role, after.address, after.voting_key, after.tls_key)
        if found.kind not in OWN_KINDS and not heard_for(rows, found):
            self._take_effect(ctx, number, decided)
            return
        if found.kind == "rotate_voting_key":
            self._supersede(ctx, member, (found.kind,))
            ctx.call(Membership.expect_key, member, after.voting_key)
        if found.code is not None:
            self._supersede(ctx, member, CONTRACT_KINDS)
            ctx.call(Lifecycle.plan, number, _contract(found), found.code)
        self.proposals[number] = replace(decided, status="waiting")
        self._note(ctx, number, "", "waiting")
        ctx.emit(Moved(number, member, "waiting", ""))

    def _supersede(self, ctx: Context, subject: str, kinds: tuple[str, ...]) -> None:
        """No other change of one of the kinds waits: a node proves one new key, or one version, at a time."""
        for number in self._about(subject):
            found = self.proposals[number]
            if found.kind in kinds and found.status == "waiting":
                if found.code is not None:
                    ctx.call(Lifecycle.drop, number)
                self._end(ctx, number, found, "void", "superseded")

    def _about(self, subject: str) -> tuple[int, ...]:
        """The undecided proposals about a member, a parameter, or a contract."""
        every = self.undecided.scan(limit=OPEN_MAX)
        return tuple([number for number, item in every if item.subject == subject])

    def _take_effect(self, ctx: Context, number: int, found: Proposal) -> None:
        member, after, root = found.subject, found.after, found.root
        if member == READY_BLOCKS_NAME:
            self.rules.set(replace(self.rules.read(), ready_blocks=after.value))
        elif found.kind == "change_parameter":
            ctx.call(Membership.change_limit, member, after.value)
        elif found.tier is not None:
            ctx.call(Membership.strike_tier, found.proposer, found.tier.name)
        elif found.code is not None:
            ctx.call(Lifecycle.drop, number)
            active = after.standing == "active"
            source = found.code.source if active else ctx.call(Lifecycle.version_of, _contract(found)).source
            ctx.call(Lifecycle.switch, _contract(found), after.value, source, active)
        elif root is not None:
            ctx.call(Membership.admit, member, root.threshold, root.keys)
        elif after.standing != "absent":
            ctx.call(
                Membership.change_member,
                member,
                after.role,
                after.standing,
                after.voting_key,
                after.tls_key,
                found.overlap_ms,
            )
        self._end(ctx, number, found, "effective", "")
        for other in self._about(member):
            stale = self.proposals[other]
            if found.kind in OWN_KINDS and stale.kind != found.kind:
                self._carry_on(other, stale, found)
                continue
            # It was voted on for the member as it was before, and would look right again some day.
            self._let_go(ctx, other, stale)
            self._end(ctx, other, stale, "void", "changed_meanwhile")

    def _carry_on(self, number: int, stale: Proposal, rotated: Proposal) -> None:
        """What was proposed of a member that has a new key is proposed of it with that key.

        Else whoever is about to be removed would shake that off with a harmless new key, again and again.
        """
        if rotated.kind == "rotate_tls_key":
            key = rotated.after.tls_key
            before, after = replace(stale.before, tls_key=key), replace(stale.after, tls_key=key)
        else:
            key = rotated.after.voting_key
            before, after = replace(stale.before, voting_key=key), replace(stale.after, voting_key=key)
            if (number, stale.subject) in self.readiness:
                # Its node shows with the new key that it runs.
                del self.readiness[number, stale.subject]
        self.proposals[number] = replace(stale, before=before, after=after)

    def _value(self, ctx: Context, name: str) -> int:
        return self.rules.read().ready_blocks if name == READY_BLOCKS_NAME else ctx.call(Membership.limit, name)

    def _let_go(self, ctx: Context, number: int, found: Proposal) -> None:
        """What was prepared while the proposal waited is undone: it does not take effect."""
        if found.status == "waiting" and found.kind == "rotate_voting_key":
            ctx.call(Membership.expect_key, found.subject, None)
        if found.status == "waiting" and found.kind == "add_member":
            ctx.call(Membership.dismiss, found.subject)
        if found.status == "waiting" and found.code is not None:
            ctx.call(Lifecycle.drop, number)

    def _obstacle(self, ctx: Context, rows: tuple[MemberRow, ...], found: Proposal) -> str:
        """Why the change cannot take effect on the members as they are; empty: it can."""
        if found.kind == "change_parameter":
            return "" if self._value(ctx, found.subject) == found.before.value else "changed_meanwhile"
        if found.tier is not None:
            return self._tier_obstacle(ctx, rows, found, found.tier)
        if found.kind in CONTRACT_KINDS:
            return self._contract_obstacle(ctx, found)
        joins = found.kind == "add_member" and found.status == "waiting"
        now, before, after = _facts(rows, found.subject), found.before, found.after
        if found.kind == "add_member" and not joins:
            if now is not None:
                return "changed_meanwhile"
            if any(row.address == after.address for row in rows):
                return "address_in_use"
            if any(ctx.call(Membership.is_used, key) for key in (after.voting_key, after.tls_key)):
                return "key_in_use"
            if len(rows) >= JOINED_MAX:
                return "too_many_members"
        elif now != (replace(after, standing="joining") if joins else before):
            return "changed_meanwhile"
        elif not joins and any(
            new != old and ctx.call(Membership.is_used, new)
            for old, new in ((before.voting_key, after.voting_key), (before.tls_key, after.tls_key))
        ):
            return "key_in_use"
        if found.kind == "rotate_voting_key" and found.status == "waiting":
            expected = [row.next_voting_key for row in rows if row.id == found.subject]
            if expected != [after.voting_key]:
                return "changed_meanwhile"
        count, then = len(_voters(rows)), len(_voters(_changed(rows, found)))
        if then > VALIDATORS_MAX:
            return "too_many_members"
        return "too_few_validators" if then < count and then < self.rules.read().validators_min else ""

    def _tier_obstacle(self, ctx: Context, rows: tuple[MemberRow, ...], found: Proposal, tier: Tier) -> str:
        """Why the tier cannot be removed as things are; empty: it can, and is the very one that was proposed."""
        standing = _known(rows, found.proposer).standing
        if standing != "active":
            return "member_suspended" if standing == "suspended" else "member_removed"
        return "" if ctx.call(Membership.tier, found.proposer, tier.name) == tier else "changed_meanwhile"

    def _contract_obstacle(self, ctx: Context, found: Proposal) -> str:
        """Why the change of a contract cannot be made on the versions as they are; empty: it can."""
        obstacle = ctx.call(Lifecycle.obstacle, found.kind, _contract(found), found.after.value)
        if obstacle != "":
            return obstacle
        known = ctx.call(Lifecycle.version_of, _contract(found))
        same = (known.version, known.active) == (found.before.value, found.before.standing == "active")
        return "" if same else "changed_meanwhile"

    def _end(self, ctx: Context, number: int, found: Proposal, status: Status, code: str) -> None:
        self.proposals[number] = replace(found, status=status, ended_height=ctx.height, ended_code=code)
        del self.undecided[number]
        self._note(ctx, number, "", status)
        ctx.emit(Moved(number, found.subject, status, code))

    def _note(self, ctx: Context, number: int, member: str, what: str) -> None:
        known = self.lines.get(number)
        place = 0 if known is None else known
        self.lines[number] = place + 1
        self.history[number, place] = Step(ctx.height, ctx.time_ms, member, what)

    def _is_ready(self, number: int, member: str, height: int, lasting: int) -> bool:
        shown = self.readiness.get((number, member))
        return shown is not None and height - shown < lasting

    # --- queries ---

    @query
    def page(self, after: int = 0, limit: int = 20) -> tuple[ProposalRow, ...]:
        """Proposals by number, those after the number `after`."""
        require(1 <= limit <= PAGE_MAX, "limit_out_of_range")
        found = self.proposals.scan(after=after, limit=limit)
        return tuple([self._row(number, proposal) for number, proposal in found])

    @query
    def pending(self, after: int = 0, limit: int = 20) -> tuple[ProposalRow, ...]:
        """Proposals that are voted on or wait for readiness by number, those after the number `after`."""
        require(1 <= limit <= PAGE_MAX, "limit_out_of_range")
        found = self.undecided.scan(after=after, limit=limit)
        return tuple([self._row(number, self.proposals[number]) for number, _ in found])

    @query
    def current_rules(self) -> Rules:
        """The rules that judge proposals now."""
        return self.rules.read()

    @query
    def proposal(self, proposal: Number) -> ProposalView:
        """One proposal with its votes, readiness and history."""
        row = self._row(proposal, self.proposals[proposal])
        ready = [ReadyRow(key[1], height) for key, height in self.readiness.scan(prefix=(proposal,))]
        steps = [step for _, step in self.history.scan(prefix=(proposal,), limit=HISTORY_MAX)]
        rules = self.rules.read()
        lines = self.lines[proposal]
        return ProposalView(
            proposal,
            row.proposal,
            row.yes,
            row.no,
            tuple(ready),
            tuple(steps),
            lines,
            rules,
        )

    @query
    def history_page(
        self, proposal: Number, after: Annotated[int, Meta(ge=0)] = 0, limit: int = PAGE_MAX
    ) -> tuple[Step, ...]:
        """What happened to a proposal, in its order: the lines after the first `after` ones."""
        require(1 <= limit <= PAGE_MAX, "limit_out_of_range")
        require(proposal in self.proposals, "proposal_not_found")
        last = (proposal, after - 1) if after else None
        return tuple([step for _, step in self.history.scan(prefix=(proposal,), after=last, limit=limit)])

    def _row(self, number: int, proposal: Proposal) -> ProposalRow:
        cast = [(key[1], vote.yes) for key, vote in self.votes.scan(prefix=(number,))]
        yes = tuple([voter for voter, is_yes in cast if is_yes])
        return ProposalRow(number, proposal, yes, tuple([voter for voter, is_yes in cast if not is_yes]))

    @staticmethod
    def read_waiting(state: State, time_ms: int) -> tuple[tuple[int, Proposal], ...]:
        """Return the decided proposals that wait for readiness and are not over at `time_ms`, by number."""
        undecided = Governance.undecided.scan_from(state, OPEN_MAX)
        numbers = [number for number, item in undecided if time_ms < item.expires_at_ms]
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


def lasting_blocks(rules: Rules, count: int) -> int:
    """Return for how many blocks a readiness counts where `count` validators show theirs."""
    return max(rules.ready_blocks, READY_BLOCKS_EACH * count)


def heard_for(rows: tuple[MemberRow, ...], found: Proposal) -> tuple[str, ...]:
    """Return of whom a quorum must be ready: the list after the change if it is another one, else of nobody.

    A contract's version is every validator's affair.
    """
    if found.code is not None:
        return _voters(rows)
    then = _changed(rows, found)
    return () if _list(rows) == _list(then) else _voters(then)


def _contract(found: Proposal) -> str:
    """The contract that a proposal of a contract's version is about."""
    return found.subject.removeprefix(CONTRACT_SUBJECT)


def _voters(rows: tuple[MemberRow, ...]) -> tuple[str, ...]:
    return tuple([row.id for row in rows if row.votes])


def _list(rows: tuple[MemberRow, ...]) -> tuple[tuple[str, bytes], ...]:
    """The list that decides blocks."""
    return tuple([(row.id, row.voting_key) for row in rows if row.votes])


def _facts(rows: tuple[MemberRow, ...], member: str) -> Facts | None:
    """The member as it is; None: nobody has that id."""
    found = [
        Facts(row.standing, row.role, row.voting_key, row.tls_key, row.address) for row in rows if row.id == member
    ]
    return found[0] if found else None


def _known(rows: tuple[MemberRow, ...], member: str) -> Facts:
    found = _facts(rows, member)
    if found is None:
        raise Revert("member_not_found", member)
    return found


def _after(
    kind: MemberKind, before: Facts, voting_key: bytes | None, tls_key: bytes | None, role: Role | None
) -> Facts:
    """What the member would be; the same as `before` where the kind changes nothing of it."""
    if kind == "remove_member":
        return replace(before, standing="removed")
    if kind == "suspend_member":
        return replace(before, standing="suspended")
    if kind == "resume_member":
        return replace(before, standing="active")
    if role is not None:
        return replace(before, role=role)
    if tls_key is not None:
        return replace(before, tls_key=tls_key)
    return before if voting_key is None else replace(before, voting_key=voting_key)


def _changed(rows: tuple[MemberRow, ...], found: Proposal) -> tuple[MemberRow, ...]:
    """The members after the change; a newcomer comes last."""
    after = found.after
    standing = "removed" if after.standing == "absent" else after.standing
    votes = after.role == "validator" and after.standing == "active"
    keys = (after.voting_key, after.tls_key)
    row = MemberRow(found.subject, after.role, keys[0], keys[1], standing, votes, after.address, b"", 0, b"")
    known = any(item.id == found.subject for item in rows)
    changed = tuple([row if item.id == found.subject else item for item in rows])
    return changed if known else (*changed, row)
