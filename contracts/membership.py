"""Who belongs to the network: member institutions, and the principals who act for them with their key policies.

A member's root principal carries the member's id ("bank-a") and acts for all that stand below it
("bank-a/treasury"). A policy says how many of which keys must sign what a principal sends.

"bank-a/node" is the member's node itself: it signs with the voting key, so it has no policy of its own that anybody
could set. While a rotation of the voting key is expected, it signs with the new key, which proves that it has it.

More than 500 lines because whoever audits a contract reads one file.

A member's TIERS (contracts/policies.py) ask for more than a policy does. They lie in the policy of the root, which
all of them bind, and each also in that of the principal that it is for: so nothing more is read for who has none.

Members change by decisions of the contract `governance` alone. No voting or TLS key ever serves twice. Keys of
links and of principals overlap when they change: for a while the former one does too, and never counts beside its
successor. Invariant: a former key serves in no block at or after its `until_ms`, whatever else happens; no call has
to come for that, since a scheduled call may be settled unexecuted.
"""

from typing import Annotated, Literal, Sequence  # noqa: UP035 - a contract imports from nowhere else

from contracts.policies import (
    PLANNED_MAX,
    SEATS_MAX,
    TIERS_MAX,
    WAY_OUT,
    FormerKey,
    Group,
    Limit,
    Mandate,
    Name,
    NewGroup,
    NewMandate,
    Planned,
    Policy,
    Progress,
    StandIn,
    Text,
    Tier,
    TierName,
    circle,
    count,
    demanded,
    holds,
    seats_of,
    suffices,
)
from contracts.sdk import (
    TIME_MS_MAX,
    Argument,
    Code,
    Context,
    Contract,
    Event,
    Map,
    Meta,
    PlannedCall,
    PrincipalId,
    QueryContext,
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

MemberId = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Keys = Annotated[tuple[Key, ...], Meta(max_length=64)]
Survivors = Annotated[tuple[MemberId, ...], Meta(max_length=128)]
Role = Literal["validator", "observer", "regulator"]
Standing = Literal["joining", "active", "suspended", "removed"]
Address = Annotated[
    str,
    Meta(
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,200}|\[[0-9A-Fa-f:.]{2,45}\]):[1-9][0-9]{0,4}\Z",
        description="where a member's node listens for the others: host:port",
    ),
]
OverlapMs = Annotated[int, Meta(ge=0, le=90 * 86_400_000, description="for so long the former key serves too")]

GOVERNANCE = "@governance"
ROSTER_READERS = ("@maintenance", "@brake")
"""Contracts besides `governance` that ask who the members are."""
APPROVALS = "@approvals"
NODE = "/node"
READY = ("governance", "ready")
"""The one call that a node makes."""
KEYS_MAX = 16
LIMITS_MAX = 32
MEMBERS_MAX = 1_000
JOINED_MAX = 256
"""More members than that no network definition may have, and none comes to have."""
PAGE_MAX = 500
OVERLAP_MS = 7 * 86_400_000
STAND_IN_MS_MAX = 366 * 86_400_000
STAND_INS_MAX = 500
GROUPS_MAX = 4


class NewMember(Argument):
    """A member in the network definition. Keys are raw Ed25519 public keys."""

    id: MemberId
    role: Role
    voting_key: Key
    tls_key: Key


class NewLimit(Argument):
    """A limit of blocks in the network definition, by its name there."""

    name: str
    value: int


class NewPrincipal(Argument):
    """A principal in the network definition."""

    id: PrincipalId
    keys: Keys
    threshold: int


class Member(Value):
    """An institution. `position` is its place in the network definition, which orders the validators.

    Only an active validator has a vote. One that joins is linked and follows; a suspended member does too and may
    come back; a removed one does not. `next_voting_key` is the key that a decided rotation waits for, or empty.
    `former_tls_key` still proves the member's node, beside `tls_key`, below `former_tls_until_ms`; or empty.
    `address` is where the node of a member listens that joined later; the definition has those of the first.
    """

    position: int
    role: Role
    voting_key: bytes
    tls_key: bytes
    standing: Standing = "active"
    next_voting_key: bytes = b""
    former_tls_key: bytes = b""
    former_tls_until_ms: int = 0
    address: str = ""


class MemberRow(Value):
    """A member in a list; `votes` says whether it stands in the list that decides blocks."""

    id: str
    role: Role
    voting_key: bytes
    tls_key: bytes
    standing: Standing
    votes: bool
    address: str
    former_tls_key: bytes
    former_tls_until_ms: int
    next_voting_key: bytes


class LimitRow(Value):
    """A limit of blocks as it holds now."""

    name: str
    value: int


class PrincipalRow(Value):
    """A principal with its policy, and the names of the tiers that bind it."""

    id: str
    threshold: int
    keys: tuple[bytes, ...]
    former: tuple[FormerKey, ...] = ()
    tiers: tuple[str, ...] = ()


class StandInRow(Value):
    """Who speaks for whom, and when."""

    person: str
    stand_in: StandIn


class MemberJoins(Event):
    """The members decided for the newcomer: its node is linked from now on and follows."""

    member: str
    role: Role
    address: str

    topics = ("member/{member}",)


class JoiningEnded(Event):
    """The newcomer did not come in its time: its node is linked no more."""

    member: str

    topics = ("member/{member}",)


class MemberChanged(Event):
    """From the next height on, the member has this role, this standing and these keys."""

    member: str
    role: Role
    standing: Standing
    voting_key: bytes
    tls_key: bytes

    topics = ("member/{member}",)


class LimitChanged(Event):
    """From the next height on, the limit of blocks is this."""

    name: str
    value: int


class PrincipalAdded(Event):
    """The principal may send transactions."""

    member: str
    principal: str
    threshold: int
    keys: tuple[bytes, ...]

    topics = ("member/{member}", "principal/{principal}")


class PolicyChanged(Event):
    """From the next transaction on, the new policy judges the principal's signatures."""

    member: str
    principal: str
    threshold: int
    keys: tuple[bytes, ...]

    topics = ("member/{member}", "principal/{principal}")


class KeyRotated(Event):
    """From the next transaction on `key` signs in the place of `former`, which signs too until `until_ms`."""

    member: str
    principal: str
    former: bytes
    key: bytes
    until_ms: int

    topics = ("member/{member}", "principal/{principal}")


class PrincipalRemoved(Event):
    """The principal cannot send any more; its root still acts for what it owned."""

    member: str
    principal: str

    topics = ("member/{member}", "principal/{principal}")


class TierChanged(Event):
    """From the next transaction on, the tier asks for some of these persons; without persons it is gone."""

    member: str
    tier: str
    principal: str
    persons: tuple[str, ...]

    topics = ("member/{member}", "principal/{principal}")


class StandInChanged(Event):
    """The person has this stand-in; with a delegate of "", none."""

    member: str
    person: str
    delegate: str
    tiers: tuple[str, ...]
    from_ms: int
    until_ms: int

    topics = ("member/{member}", "principal/{person}")


class NetworkRecovered(Event):
    """A quorum was lost for good, and the survivors alone go on from this block. Each suspended member is named.

    `statement` is the hash of what they signed (docs/recovery.md).
    """

    reason: str
    survivors: tuple[str, ...]
    suspended: tuple[str, ...]
    statement: bytes


class Membership(Contract):
    """Members with their roles and keys; principals with their m-of-n key policies."""

    version = 1
    codes = (
        Code("member_not_found", "No member has that id."),
        Code("member_exists", "The network definition names a member twice."),
        Code("principal_not_found", "No principal has that id."),
        Code("principal_exists", "The principal is there already: change it with set_policy."),
        Code("root_principal", "A member's root principal cannot be removed."),
        Code("reserved_principal", "A member's node signs with the voting key: nobody sets a policy for it."),
        Code("no_validator_left", "A network has at least one active validator."),
        Code("too_many_members", "A network has at most 1,000 members, and grows to 256."),
        Code("key_in_use", "The key is or was a member's already, or the policy's: make a new one."),
        Code("key_not_found", "The policy has no such key."),
        Code("threshold_out_of_range", "The threshold lies between 1 and the number of keys."),
        Code("keys_out_of_range", "A policy has 1 to 16 keys."),
        Code("keys_not_distinct", "A key stands twice in the policy, or two validators share one."),
        Code("not_a_survivor", "Only active validators survive, each once, in their order, and not all of them."),
        Code("limit_not_found", "No limit of blocks that members may change has that name."),
        Code("limit_out_of_range", "A page has 1 … 500 rows."),
        Code("tier_not_found", "The member has no tier of that name."),
        Code("tier_names_nothing", "No call of the contract is one that the tier looks at: check the names."),
        Code(
            "tier_on_approvals", "No tier asks for more before `approvals`: by it tiers are satisfied, and changed."
        ),
        Code("too_many_tiers", "A member has at most 16 tiers, with 96 seats together."),
        Code("groups_out_of_range", "A tier has 1 to 4 groups."),
        Code("nobody_to_spare", "A group has one person more than it asks for: else one lost key closes the tier."),
        Code("persons_not_distinct", "A person stands twice in a tier, or two persons sign with one key."),
        Code("principal_seated", "A tier asks for the principal: take it out there first."),
        Code("stand_in_useless", "The person sits in no such tier, or the delegate has a seat of its own there."),
        Code("stand_in_taken", "The delegate stands in for somebody else already."),
        Code("stand_in_not_found", "The person has no stand-in."),
        Code("time_out_of_range", "A stand-in's time ends after it begins, in the future and within 366 days."),
    )

    registered: Map[MemberId, Member] = Map(missing="member_not_found")
    # Under (member, the rest of the id): ("bank-a", "/treasury"); the root principal has "" and comes first.
    policies: Map[tuple[MemberId, str], Policy] = Map(missing="principal_not_found")
    stand_ins: Map[tuple[MemberId, str], StandIn] = Map(missing="stand_in_not_found")
    # What blocks may hold, by the names in the network definition; the executor reads it before each block.
    limits: Map[str, int] = Map(missing="limit_not_found")
    # Every voting and TLS key that a member has or had.
    used: Map[Key, MemberId] = Map()

    @genesis
    def create(
        self,
        ctx: Context,
        members: tuple[NewMember, ...] = (),
        principals: tuple[NewPrincipal, ...] = (),
        limits: tuple[NewLimit, ...] = (),
    ) -> None:
        """Create the members and principals of the network definition, and note its limits of blocks."""
        require(len(limits) <= LIMITS_MAX, "limit_out_of_range")
        for limit in limits:
            self.limits[limit.name] = limit.value
        require(len(members) <= MEMBERS_MAX, "too_many_members")
        validator_keys: list[bytes] = []
        for position, item in enumerate(members):
            require(item.id not in self.registered, "member_exists", item.id)
            if item.role == "validator":
                require(item.voting_key not in validator_keys, "keys_not_distinct", item.id)
                validator_keys.append(item.voting_key)
            self.registered[item.id] = Member(position, item.role, item.voting_key, item.tls_key)
            self.used[item.voting_key] = item.id
            self.used[item.tls_key] = item.id
        for principal in principals:
            place = _place(principal.id)
            require(place[1] != NODE, "reserved_principal", principal.id)
            require(place[0] in self.registered, "member_not_found", principal.id)
            require(place not in self.policies, "principal_exists", principal.id)
            self.policies[place] = _policy(principal.threshold, principal.keys)

    @call
    def add_principal(self, ctx: Context, principal: PrincipalId, threshold: int, keys: Keys) -> None:
        """Add a principal below a member; the member's root principal sends this."""
        place = self._managed(ctx, principal)
        require(place not in self.policies, "principal_exists", principal)
        # A tier stays when its principal goes, and binds it when it comes back.
        policy = replace(_policy(threshold, keys), tiers=_own(self._tiers_of(place[0]), place))
        self.policies[place] = policy
        ctx.emit(PrincipalAdded(place[0], principal, policy.threshold, policy.keys))

    @call
    def set_policy(self, ctx: Context, principal: PrincipalId, threshold: int, keys: Keys) -> None:
        """Replace a principal's policy, the root's own too; the member's root principal sends this."""
        place = self._managed(ctx, principal)
        policy = replace(_policy(threshold, keys), tiers=self.policies[place].tiers)
        self._require_own_keys(ctx, principal, policy)
        self.policies[place] = policy
        ctx.emit(PolicyChanged(place[0], principal, policy.threshold, policy.keys))

    @call
    def remove_principal(self, ctx: Context, principal: PrincipalId) -> None:
        """Remove a principal below a member; the member's root principal sends this."""
        place = self._managed(ctx, principal)
        require(place[1] != "", "root_principal", principal)
        require(place in self.policies, "principal_not_found", principal)
        require(not self._is_seated(place[0], principal), "principal_seated", principal)
        del self.policies[place]
        if place in self.stand_ins:
            del self.stand_ins[place]
        ctx.emit(PrincipalRemoved(place[0], principal))

    @call
    def rotate_key(
        self, ctx: Context, principal: PrincipalId, former: Key, key: Key, overlap_ms: OverlapMs = OVERLAP_MS
    ) -> None:
        """Put `key` in the place of `former` in the principal's policy; the member's root principal sends this.

        A person of a tier, to whom the root alone can give no key, also sends it for itself if it has but one. For
        `overlap_ms` either signs, and both together count once: who has both is not two. What a person itself sends
        to this contract the new one alone signs.
        """
        place = _place(principal)
        if ctx.sender != principal or not self._is_seated(place[0], principal):
            self._managed(ctx, principal)
        known = self.policies[place]
        require(len(known.keys) == 1 or ctx.sender == place[0], "not_authorized", principal)
        require(former in known.keys, "key_not_found", principal)
        valid = [item for item in known.former if ctx.time_ms < item.until_ms]
        require(key not in known.keys and all(item.key != key for item in valid), "key_in_use", principal)
        keys = tuple(sorted([key if item == former else item for item in known.keys]))
        # What `former` itself had replaced ends now: its successor is none any more.
        kept = [item for item in valid if item.successor != former]
        until_ms = ctx.time_ms + overlap_ms
        if overlap_ms:
            kept.append(FormerKey(former, key, until_ms))
        policy = replace(known, keys=keys, former=tuple(kept))
        self._require_own_keys(ctx, principal, policy)
        self.policies[place] = policy
        ctx.emit(KeyRotated(place[0], principal, former, key, until_ms))

    def _require_own_keys(self, ctx: Context, principal: str, policy: Policy) -> None:
        """Revert where the person signs with a key of another one in its tiers, or of who stands in there.

        A signature counts for one person: whoever takes another's public key for its own would silence that one.
        """
        keys = circle(policy, ctx.time_ms)
        others: list[str] = []
        for tier in self._tiers_of(_place(principal)[0]):
            seats = seats_of(tier)
            for person in seats if principal in seats else ():
                if person != principal and person not in others:
                    others.append(person)
        for person in list(others):
            found = self.stand_ins.get(_place(person))
            if found is not None and found.delegate != principal and ctx.time_ms < found.until_ms:
                others.append(found.delegate)
        for person in others:
            known = self.policies.get(_place(person))
            taken = () if known is None else circle(known, ctx.time_ms)
            require(all(key not in taken for key in keys), "persons_not_distinct", person)

    def _managed(self, ctx: Context, principal: str) -> tuple[str, str]:
        """Where the principal's policy lies; revert unless its member's root principal sends this."""
        place = _place(principal)
        require(place[1] != NODE, "reserved_principal", principal)
        ctx.authorize(place[0])
        require(place[0] in self.registered, "member_not_found", place[0])
        return place

    # --- tiers ---

    @call
    def set_tier(
        self,
        ctx: Context,
        name: TierName,
        principal: PrincipalId,
        contract: Name,
        groups: tuple[NewGroup, ...],
        method: Name = "",
        argument: Name = "",
        over: Limit = 0,
        where: Name = "",
        equals: Text = "",
    ) -> None:
        """Ask for persons of each group where calls for `principal` go over a limit; the member's root sends this.

        One of that name is replaced, for which the former one must be satisfied. contracts/policies.py says more.
        """
        place = self._managed(ctx, principal)
        require(place in self.policies, "principal_not_found", principal)
        tier = _tier(name, principal, (contract, method), (argument, over), (where, equals), groups)
        # A transaction holds fewer signatures than a tier may ask for: beyond that, requests are the only way.
        require(f"@{contract}" != APPROVALS, "tier_on_approvals")
        _require_known(tier, ctx.calls_of(contract))
        keys: dict[bytes, str] = {}
        for person in seats_of(tier):
            for key in circle(self.policies[_place(person)], ctx.time_ms):
                require(key not in keys, "persons_not_distinct", person)
                keys[key] = person
        self._put_tiers(place[0], name, (tier,))
        ctx.emit(TierChanged(place[0], name, principal, seats_of(tier)))

    @call
    def remove_tier(self, ctx: Context, name: TierName) -> None:
        """Take the tier back, for which it must be satisfied itself; the member's root principal sends this."""
        self._drop_tier(ctx, ctx.sender, name)

    @call
    def tier(self, ctx: Context, member: MemberId, name: TierName) -> Tier | None:
        """Return the member's tier of that name, None where it has none; for the contract `governance` alone."""
        ctx.authorize(GOVERNANCE)
        found = [tier for tier in self._tiers_of(member) if tier.name == name]
        return found[0] if found else None

    @call
    def strike_tier(self, ctx: Context, member: MemberId, name: TierName) -> None:
        """Take the tier away, which nobody can satisfy any more, and nothing else; for `governance` alone."""
        ctx.authorize(GOVERNANCE)
        self._drop_tier(ctx, member, name)

    def _drop_tier(self, ctx: Context, member: str, name: str) -> None:
        found = [tier for tier in self._tiers_of(member) if tier.name == name]
        require(len(found) == 1, "tier_not_found", name)
        self._put_tiers(member, name, ())
        ctx.emit(TierChanged(member, name, found[0].principal, ()))

    def _tiers_of(self, member: str) -> tuple[Tier, ...]:
        root = self.policies.get((member, ""))
        return () if root is None else root.tiers

    def _is_seated(self, member: str, principal: str) -> bool:
        return any(principal in seats_of(tier) for tier in self._tiers_of(member))

    def _put_tiers(self, member: str, name: str, instead: tuple[Tier, ...]) -> None:
        """Write the member's tiers, with others for the one of that name, into all policies that they bind."""
        before = self._tiers_of(member)
        after = (*[tier for tier in before if tier.name != name], *instead)
        seats = [person for tier in after for person in seats_of(tier)]
        require(len(after) <= TIERS_MAX and len(seats) <= SEATS_MAX, "too_many_tiers", member)
        bound = [tier.principal for tier in (*before, *instead) if tier.name == name]
        for principal in (member, *bound):
            place = _place(principal)
            known = self.policies.get(place)
            if known is not None:
                self.policies[place] = replace(known, tiers=_own(after, place))

    @call
    def stand_in(
        self,
        ctx: Context,
        delegate: PrincipalId,
        key: Key,
        until_ms: TimeMs,
        from_ms: TimeMs = 0,
        tiers: Annotated[tuple[TierName, ...], Meta(max_length=TIERS_MAX)] = (),
    ) -> None:
        """Let `delegate` speak in the sender's place from one time to another, in these tiers or in all.

        It does so alone and with `key`: whoever gave it another one before this came gets no seat by that. It ends
        by itself. A delegate has one such place, passes it on to nobody, and never counts twice in a tier.
        """
        place, other = _place(ctx.sender), _place(delegate)
        require(place[0] == other[0] and place != other, "principal_not_found", delegate)
        require(circle(self.policies[other], ctx.time_ms) == (key,), "key_not_found", delegate)
        begins_ms = max(from_ms, ctx.time_ms)
        require(begins_ms < until_ms <= ctx.time_ms + STAND_IN_MS_MAX, "time_out_of_range")
        known = self._tiers_of(place[0])
        chosen = [
            item for item in known if ctx.sender in seats_of(item) and (len(tiers) == 0 or item.name in tiers)
        ]
        require(len(chosen) >= max(1, len(tiers)), "stand_in_useless", ctx.sender)
        require(any(delegate not in seats_of(item) for item in chosen), "stand_in_useless", delegate)
        rows = self.stand_ins.scan(prefix=(place[0],), limit=STAND_INS_MAX)
        for of, item in rows:
            taken = item.delegate == delegate and of != place and ctx.time_ms < item.until_ms
            require(not taken, "stand_in_taken", delegate)
        require(len(rows) < STAND_INS_MAX or place in self.stand_ins, "stand_in_taken", "too many")
        self.stand_ins[place] = StandIn(delegate, tiers, begins_ms, until_ms, key)
        ctx.emit(StandInChanged(place[0], ctx.sender, delegate, tiers, begins_ms, until_ms))

    @call
    def end_stand_in(self, ctx: Context, person: PrincipalId) -> None:
        """Nobody speaks in the person's place any more, at once; the person itself or its root sends this."""
        ctx.authorize(person)
        found = self.stand_ins[_place(person)]
        del self.stand_ins[_place(person)]
        until_ms = min(found.until_ms, ctx.time_ms)
        ctx.emit(StandInChanged(_place(person)[0], person, "", found.tiers, found.from_ms, until_ms))

    @call
    def mandate(self, ctx: Context, principal: PrincipalId) -> Mandate:
        """Return by which policy the principal speaks now; for the contract `approvals` alone."""
        ctx.authorize(APPROVALS)
        found = self.policies[_place(principal)]
        return Mandate(principal, found.threshold, circle(found, ctx.time_ms))

    @call
    def standing(
        self, ctx: Context, requester: Mandate, calls: tuple[Planned, ...], spoken: tuple[Mandate, ...]
    ) -> Progress:
        """Return which tiers the calls ask for, and how far they are; for the contract `approvals` alone.

        What somebody said counts for as long as all keys by which it may have been said are that principal's.
        """
        ctx.authorize(APPROVALS)
        return self._standing_of(requester, calls, spoken, ctx.time_ms)

    def _standing_of(
        self, requester: Mandate, calls: Sequence[PlannedCall], spoken: tuple[Mandate, ...], time_ms: int
    ) -> Progress:
        policy = self._policy_of(requester.principal)
        tiers: tuple[Tier, ...] = () if policy is None else policy.tiers
        if policy is not None and self.needs_keys_in_force(requester.principal, calls):
            # A mandate names all that may have signed: with a former key among them, it says nothing here.
            policy = replace(policy, former=())
        given = [item.principal for item in spoken if holds(item, self._policy_of(item.principal), time_ms)]
        rows = [
            count(tier, self._policy_of, self._stand_in_of, given, time_ms)
            for tier in demanded(tiers, requester.principal, calls)
        ]
        return Progress(holds(requester, policy, time_ms), tuple(rows))

    def _policy_of(self, principal: str) -> Policy | None:
        return self.policies.get(_place(principal))

    def _stand_in_of(self, person: str) -> StandIn | None:
        return self.stand_ins.get(_place(person))

    # --- members, for the contract `governance` ---

    @call
    def roster(self, ctx: Context) -> tuple[MemberRow, ...]:
        """Return all members in their order; for `governance` and the contracts that need to know them."""
        ctx.authorize(GOVERNANCE, ROSTER_READERS)
        return self._rows(ctx.time_ms)

    @call
    def is_used(self, ctx: Context, key: Key) -> bool:
        """Return whether the key is or was a member's; for the contract `governance` alone."""
        ctx.authorize(GOVERNANCE)
        return key in self.used

    @call
    def enlist(
        self, ctx: Context, member: MemberId, role: Role, address: Address, voting_key: Key, tls_key: Key
    ) -> None:
        """Let the newcomer's node be linked and follow, without a vote; for `governance` alone."""
        ctx.authorize(GOVERNANCE)
        known = self.registered.scan(limit=MEMBERS_MAX)
        require(len(known) < JOINED_MAX, "too_many_members")
        require(member not in self.registered, "member_exists", member)
        position = max([item.position for _, item in known]) + 1
        self.registered[member] = Member(position, role, voting_key, tls_key, "joining", address=address)
        self.used[voting_key] = member
        self.used[tls_key] = member
        ctx.emit(MemberJoins(member, role, address))

    @call
    def admit(self, ctx: Context, member: MemberId, threshold: int, keys: Keys) -> None:
        """Make the newcomer a member from the next height on, with its root principal; for `governance` alone."""
        ctx.authorize(GOVERNANCE)
        known = self.registered[member]
        require(known.standing == "joining", "member_exists", member)
        policy = _policy(threshold, keys)
        self.policies[member, ""] = policy
        ctx.emit(PrincipalAdded(member, member, policy.threshold, policy.keys))
        self._change(ctx, member, replace(known, standing="active"))

    @call
    def dismiss(self, ctx: Context, member: MemberId) -> None:
        """Forget the newcomer, which did not come; for `governance` alone."""
        ctx.authorize(GOVERNANCE)
        known = self.registered[member]
        require(known.standing == "joining", "member_exists", member)
        # Nothing was ever decided with its keys.
        del self.used[known.voting_key]
        del self.used[known.tls_key]
        del self.registered[member]
        ctx.emit(JoiningEnded(member))

    @call
    def change_member(
        self,
        ctx: Context,
        member: MemberId,
        role: Role,
        standing: Standing,
        voting_key: Key,
        tls_key: Key,
        overlap_ms: OverlapMs = 0,
    ) -> None:
        """Give the member this role, this standing and these keys from the next height on; for `governance` alone.

        A former TLS key serves on for `overlap_ms`.
        """
        ctx.authorize(GOVERNANCE)
        known = self.registered[member]
        # A new voting key that is waited for is, unless this is it: `governance` takes back what it does not.
        expected = known.next_voting_key if voting_key == known.voting_key else b""
        after = replace(known, role=role, standing=standing, voting_key=voting_key, next_voting_key=expected)
        if tls_key != known.tls_key:
            until_ms = ctx.time_ms + overlap_ms
            former = known.tls_key if overlap_ms else b""
            after = replace(after, tls_key=tls_key, former_tls_key=former, former_tls_until_ms=until_ms)
            if overlap_ms:
                # So that there is a block by then, on a quiet ledger too: nodes look at their links with each.
                ctx.schedule(until_ms, Membership.end_tls_overlap, member=member, former=former)
        self.used[voting_key] = member
        self.used[tls_key] = member
        self._change(ctx, member, after)

    def _change(self, ctx: Context, member: str, after: Member) -> None:
        self.registered[member] = after
        rows = self._rows(ctx.time_ms)
        require(any(row.votes for row in rows), "no_validator_left", member)
        same = [row for row in rows if row.role == "validator" and row.voting_key == after.voting_key]
        require(len(same) <= 1, "keys_not_distinct", member)
        ctx.emit(MemberChanged(member, after.role, after.standing, after.voting_key, after.tls_key))

    @scheduled
    def recover(self, ctx: Context, survivors: Survivors, reason: str, statement: Key) -> None:
        """Suspend every validator but the survivors, from the next height on.

        Recovery blocks alone run this (docs/recovery.md): nothing here schedules it, and nobody else can.

        The others may be resumed by the survivors' vote. What is voted on about a member that is suspended by this
        ends as `void` when it would take effect: the member is not what it was.
        """
        rows = self._rows(ctx.time_ms)
        voting = [row.id for row in rows if row.votes]
        require(tuple([member for member in voting if member in survivors]) == survivors, "not_a_survivor")
        suspended = tuple([member for member in voting if member not in survivors])
        require(suspended != () and survivors != (), "not_a_survivor")
        for member in suspended:
            known = self.registered[member]
            # A key that a decided rotation waits for proves its node no longer: the rotation ends as void.
            self._change(ctx, member, replace(known, standing="suspended", next_voting_key=b""))
        ctx.emit(NetworkRecovered(reason, survivors, suspended, statement))

    @call
    def limit(self, ctx: Context, name: str) -> int:
        """Return a limit of blocks; for the contract `governance` alone."""
        ctx.authorize(GOVERNANCE)
        return self.limits[name]

    @call
    def change_limit(self, ctx: Context, name: str, value: int) -> None:
        """Set a limit of blocks from the next height on; for the contract `governance` alone."""
        ctx.authorize(GOVERNANCE)
        require(name in self.limits, "limit_not_found", name)
        self.limits[name] = value
        ctx.emit(LimitChanged(name, value))

    @scheduled
    def end_tls_overlap(self, ctx: Context, member: str, former: bytes) -> None:
        """Forget a former TLS key whose time is over; one that overlaps since stays."""
        known = self.registered[member]
        if known.former_tls_key == former and known.former_tls_until_ms <= ctx.time_ms:
            self.registered[member] = replace(known, former_tls_key=b"", former_tls_until_ms=0)

    @call
    def expect_key(self, ctx: Context, member: MemberId, voting_key: Key | None = None) -> None:
        """Let the member's node sign with this key, to show that it has it; without one, with its voting key again.

        For the contract `governance` alone.
        """
        ctx.authorize(GOVERNANCE)
        expected = b"" if voting_key is None else voting_key
        self.registered[member] = replace(self.registered[member], next_voting_key=expected)

    @query
    def members(self, ctx: QueryContext) -> tuple[MemberRow, ...]:
        """All members in the order of the network definition."""
        return self._rows(ctx.time_ms)

    @query
    def block_limits(self) -> tuple[LimitRow, ...]:
        """The limits of blocks that the members may change, as they hold for the next block."""
        return tuple([LimitRow(name, value) for name, value in self.limits.scan(limit=LIMITS_MAX)])

    @query
    def member(self, ctx: QueryContext, member: MemberId) -> MemberRow:
        """One member."""
        return _row(member, self.registered[member], ctx.time_ms)

    def _rows(self, time_ms: int) -> tuple[MemberRow, ...]:
        found = self.registered.scan(limit=MEMBERS_MAX)
        return tuple([_row(key, item, time_ms) for key, item in _ordered(found)])

    @query
    def principals(
        self, member: MemberId, after: PrincipalId | None = None, limit: int = 100
    ) -> tuple[PrincipalRow, ...]:
        """The member's principals with their policies, the root first, then by id and after the id `after`."""
        require(1 <= limit <= PAGE_MAX, "limit_out_of_range")
        start = None if after is None else _place(after)
        return tuple(
            [
                _principal_row(f"{member}{place[1]}", policy)
                for place, policy in self.policies.scan(prefix=(member,), after=start, limit=limit)
            ]
        )

    @query
    def principal(self, principal: PrincipalId) -> PrincipalRow:
        """One principal with its policy."""
        return _principal_row(principal, self.policies[_place(principal)])

    @query
    def tiers(self, member: MemberId) -> tuple[Tier, ...]:
        """What the member's tiers ask for, and of which calls."""
        return self._tiers_of(member)

    @query
    def stand_ins_of(self, ctx: QueryContext, member: MemberId) -> tuple[StandInRow, ...]:
        """Who stands in for whom at the member, now or later."""
        rows = self.stand_ins.scan(prefix=(member,), limit=STAND_INS_MAX)
        return tuple(
            [StandInRow(f"{place[0]}{place[1]}", item) for place, item in rows if ctx.time_ms < item.until_ms]
        )

    @query
    def lacking(
        self,
        ctx: QueryContext,
        requester: NewMandate,
        calls: Annotated[tuple[Planned, ...], Meta(max_length=PLANNED_MAX)],
        spoken: Annotated[tuple[NewMandate, ...], Meta(max_length=SEATS_MAX)] = (),
    ) -> Progress:
        """Which tiers these calls ask for, and how far they are with what was said by then."""
        mandates = [Mandate(item.principal, item.threshold, item.keys) for item in spoken]
        asking = Mandate(requester.principal, requester.threshold, requester.keys)
        return self._standing_of(asking, calls, tuple(mandates), ctx.time_ms)

    @staticmethod
    def unmet_tier(
        state: State, sender: str, calls: Sequence[PlannedCall], signers: Sequence[bytes], time_ms: int
    ) -> tuple[str | None, int]:
        """Return the first tier that calls of the sender ask for and signatures of `signers` leave open, or None;
        and up to which time that stays so, where no policy and no stand-in changes (`decides_tiers`).

        Who has spoken is whose own policy they satisfy.
        """
        moments = [TIME_MS_MAX]

        def policy_of(principal: str) -> Policy | None:
            found = Membership.policies.read_from(state, _place(principal))
            for item in () if found is None else found.former:
                moments.append(item.until_ms)
            return found

        def stand_in_of(person: str) -> StandIn | None:
            found = Membership.stand_ins.read_from(state, _place(person))
            for moment in () if found is None else (found.from_ms, found.until_ms):
                moments.append(moment)
            return found

        policy = policy_of(sender)
        for tier in () if policy is None else demanded(policy.tiers, sender, calls):
            seats = seats_of(tier)
            delegates = [item.delegate for item in [stand_in_of(person) for person in seats] if item is not None]
            spoken = [person for person in (*seats, *delegates) if suffices(policy_of(person), signers, time_ms)]
            if not count(tier, policy_of, stand_in_of, spoken, time_ms).met:
                return tier.name, min([moment for moment in moments if moment > time_ms])
        return None, min([moment for moment in moments if moment > time_ms])

    @staticmethod
    def decides_tiers(key: bytes) -> bool:
        """Whether the value under the state key may decide what `unmet_tier` says."""
        return key.startswith((Membership.policies.prefix, Membership.stand_ins.prefix))

    @staticmethod
    def read_policy(state: State, principal: str) -> Policy | None:
        """Return the policy by which a principal's signatures are judged; None for an unknown principal."""
        return Membership.read_policy_at(state, Membership.policy_key(principal))

    @staticmethod
    def only_call(principal: str) -> tuple[str, str] | None:
        """Return the one call (contract, method) that such a principal makes; None: it makes any.

        A node's key lies open at a machine on the network: no money is to hang on it.
        """
        return READY if principal.endswith(NODE) else None

    @staticmethod
    def needs_keys_in_force(sender: str, calls: Sequence[PlannedCall]) -> bool:
        """Whether former keys sign nothing of these calls: a person's own keys and stand-ins are for the new one.

        So it is of calls that are sent, and of those that are requested for `approvals` to perform later.
        Else who has found the former key puts its own in the place of both while they overlap, and keeps the seat.
        The root's former key may: nobody else could give the root another one if the new one was mistyped.
        """
        return sender != _place(sender)[0] and any(item.contract == Membership.name for item in calls)

    @staticmethod
    def policy_key(principal: str) -> bytes:
        """Return the state key under which a principal's policy lies; a node's is its member's record."""
        member, rest = _place(principal)
        return Membership.registered.key(member) if rest == NODE else Membership.policies.key((member, rest))

    @staticmethod
    def read_policy_at(state: State, key: bytes) -> Policy | None:
        """Return what `read_policy` does, for a host that has the key already."""
        if not key.startswith(Membership.registered.prefix):
            return Membership.policies.read_at(state, key)
        member = Membership.registered.read_at(state, key)
        if member is None or member.standing == "removed":
            return None
        return Policy(1, (member.next_voting_key or member.voting_key,))

    @staticmethod
    def read_members(state: State) -> tuple[tuple[str, Member], ...]:
        """Return every member with its id, in the order of the network definition."""
        return _ordered(Membership.registered.scan_from(state, MEMBERS_MAX))

    @staticmethod
    def read_rows(state: State) -> tuple[MemberRow, ...]:
        """Return every member as `members` does, without the former keys of links."""
        return tuple([_row(key, item, item.former_tls_until_ms) for key, item in Membership.read_members(state)])

    @staticmethod
    def read_validators(state: State) -> tuple[tuple[str, bytes], ...]:
        """Return (id, voting key) of the active validators in the order of the network definition."""
        return tuple([(key, member.voting_key) for key, member in Membership.read_members(state) if _votes(member)])

    @staticmethod
    def read_limits(state: State) -> tuple[tuple[str, int], ...]:
        """Return the limits of blocks for the height after this state, by their names in the definition."""
        return Membership.limits.scan_from(state, LIMITS_MAX)

    @invariant
    def somebody_decides(self) -> bool:
        """There is an active validator, and no two validators share a voting key."""
        found = [member for _, member in self.registered.scan(limit=None) if member.role == "validator"]
        keys = sorted([member.voting_key for member in found])
        return _ascending(tuple(keys)) and (not found or any(_votes(member) for member in found))

    @invariant
    def policies_can_be_satisfied(self) -> bool:
        """Every policy asks for at least one and at most all of its distinct keys."""
        return all(
            1 <= policy.threshold <= len(policy.keys) <= KEYS_MAX
            and _ascending(policy.keys)
            and all(item.successor in policy.keys and item.key not in policy.keys for item in policy.former)
            for _, policy in self.policies.scan(limit=None)
        )

    @invariant
    def tiers_bind(self) -> bool:
        """Each policy has the tiers of its root that bind it; their persons exist, in each group one to spare."""
        for place, policy in self.policies.scan(limit=None):
            persons = [person for tier in policy.tiers for person in seats_of(tier)]
            groups = [group for tier in policy.tiers for group in tier.groups]
            if (
                policy.tiers != _own(self._tiers_of(place[0]), place)
                or any(_place(person) not in self.policies for person in persons)
                or any(not 1 <= group.threshold < len(group.persons) for group in groups)
            ):
                return False
        return True

    @invariant
    def principals_have_a_member(self) -> bool:
        """Nobody acts for an institution that is no member."""
        return all(place[0] in self.registered for place, _ in self.policies.scan(limit=None))


def _row(member: str, found: Member, time_ms: int) -> MemberRow:
    overlaps = time_ms < found.former_tls_until_ms
    return MemberRow(
        member,
        found.role,
        found.voting_key,
        found.tls_key,
        found.standing,
        _votes(found),
        found.address,
        found.former_tls_key if overlaps else b"",
        found.former_tls_until_ms if overlaps else 0,
        found.next_voting_key,
    )


def _principal_row(principal: str, policy: Policy) -> PrincipalRow:
    names = tuple([tier.name for tier in policy.tiers])
    return PrincipalRow(principal, policy.threshold, policy.keys, policy.former, names)


def _votes(member: Member) -> bool:
    """Whether the member stands in the list that decides blocks."""
    return member.role == "validator" and member.standing == "active"


def _place(principal: str) -> tuple[str, str]:
    member, slash, rest = principal.partition("/")
    return member, slash + rest


def _ascending(keys: tuple[bytes, ...]) -> bool:
    return all(left < right for left, right in zip(keys, keys[1:], strict=False))  # noqa: RUF007


def _policy(threshold: int, keys: tuple[bytes, ...]) -> Policy:
    require(1 <= len(keys) <= KEYS_MAX, "keys_out_of_range")
    require(1 <= threshold <= len(keys), "threshold_out_of_range")
    ordered = tuple(sorted(keys))
    require(_ascending(ordered), "keys_not_distinct")
    return Policy(threshold, ordered)


def _tier(
    name: str,
    principal: str,
    calls: tuple[str, str],
    amount: tuple[str, int],
    where: tuple[str, str],
    groups: Sequence[NewGroup],
) -> Tier:
    """Return the tier; revert unless its groups can be satisfied, with one person of each to spare."""
    require(1 <= len(groups) <= GROUPS_MAX, "groups_out_of_range")
    require(amount[0] != "" or amount[1] == 0, "tier_names_nothing", "a limit without the argument of the amount")
    require(where[0] != "" or where[1] == "", "tier_names_nothing", "a value without its argument")
    seats: list[str] = []
    kept: list[Group] = []
    for group in groups:
        require(group.threshold >= 1, "threshold_out_of_range")
        require(group.threshold < len(group.persons), "nobody_to_spare")
        for person in group.persons:
            require(person not in seats, "persons_not_distinct", person)
            require(_place(person)[0] == _place(principal)[0], "principal_not_found", person)
            seats.append(person)
        kept.append(Group(group.threshold, tuple(sorted(group.persons))))
    return Tier(name, principal, calls[0], calls[1], amount[0], amount[1], where[0], where[1], tuple(kept))


def _require_known(tier: Tier, methods: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    """Revert unless some call that the contract has (its methods with their arguments) is one the tier looks at."""
    named = [
        arguments
        for method, arguments in methods
        if tier.method in {"", method} and (tier.contract, method) != WAY_OUT
    ]
    for argument in (tier.argument, tier.where):
        known = [arguments for arguments in named if argument == "" or argument in arguments]
        require(len(known) > 0, "tier_names_nothing", f"{tier.contract} {tier.method} {argument}")


def _own(tiers: Sequence[Tier], place: tuple[str, str]) -> tuple[Tier, ...]:
    """Those of a member's tiers that bind the principal; the root acts for everybody, so all bind it."""
    return tuple([tier for tier in tiers if place[1] == "" or tier.principal == f"{place[0]}{place[1]}"])


def _ordered(members: tuple[tuple[str, Member], ...]) -> tuple[tuple[str, Member], ...]:
    return tuple(sorted(members, key=lambda row: row[1].position))
