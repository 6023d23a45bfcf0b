"""Who belongs to the network: member institutions, and the principals who act for them with their key policies.

A member's root principal carries the member's id ("bank-a") and acts for all that stand below it
("bank-a/treasury"). A policy says how many of which keys must sign what a principal sends.

"bank-a/node" is the member's node itself: it signs with the voting key, so it has no policy of its own that anybody
could set. While a rotation of the voting key is expected, it signs with the new key, which proves that it has it.

More than 500 lines because whoever audits a contract reads one file.

Members change by decisions of the contract `governance` alone. No voting or TLS key ever serves twice. Keys of
links and of principals overlap when they change: for a while the former one does too, and never counts beside its
successor. Invariant: a former key serves in no block at or after its `until_ms`, whatever else happens; no call has
to come for that, since a scheduled call may be settled unexecuted.
"""

from typing import Annotated, Literal

from contracts.sdk import (
    Argument,
    Code,
    Context,
    Contract,
    Event,
    Map,
    Meta,
    PrincipalId,
    QueryContext,
    State,
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


class FormerKey(Value):
    """A key that was rotated: in blocks below `until_ms` it signs in the place of its successor."""

    key: bytes
    successor: bytes
    until_ms: int


class Policy(Value):
    """A principal's signatures suffice when `threshold` of `keys` (1 … 16, ascending) signed.

    Each of `former` signs for its successor, and both together count once.
    """

    threshold: int
    keys: tuple[bytes, ...]
    former: tuple[FormerKey, ...] = ()


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
    """A principal with its policy."""

    id: str
    threshold: int
    keys: tuple[bytes, ...]
    former: tuple[FormerKey, ...] = ()


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
    )

    registered: Map[MemberId, Member] = Map(missing="member_not_found")
    # Under (member, the rest of the id): ("bank-a", "/treasury"); the root principal has "" and comes first.
    policies: Map[tuple[MemberId, str], Policy] = Map(missing="principal_not_found")
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
        policy = _policy(threshold, keys)
        self.policies[place] = policy
        ctx.emit(PrincipalAdded(place[0], principal, policy.threshold, policy.keys))

    @call
    def set_policy(self, ctx: Context, principal: PrincipalId, threshold: int, keys: Keys) -> None:
        """Replace a principal's policy, the root's own too; the member's root principal sends this."""
        place = self._managed(ctx, principal)
        require(place in self.policies, "principal_not_found", principal)
        policy = _policy(threshold, keys)
        self.policies[place] = policy
        ctx.emit(PolicyChanged(place[0], principal, policy.threshold, policy.keys))

    @call
    def remove_principal(self, ctx: Context, principal: PrincipalId) -> None:
        """Remove a principal below a member; the member's root principal sends this."""
        place = self._managed(ctx, principal)
        require(place[1] != "", "root_principal", principal)
        require(place in self.policies, "principal_not_found", principal)
        del self.policies[place]
        ctx.emit(PrincipalRemoved(place[0], principal))

    @call
    def rotate_key(
        self, ctx: Context, principal: PrincipalId, former: Key, key: Key, overlap_ms: OverlapMs = OVERLAP_MS
    ) -> None:
        """Put `key` in the place of `former` in the principal's policy; the member's root principal sends this.

        For `overlap_ms` either signs, and both together count once: who has both is not two.
        """
        place = self._managed(ctx, principal)
        known = self.policies[place]
        require(former in known.keys, "key_not_found", principal)
        valid = [item for item in known.former if ctx.time_ms < item.until_ms]
        require(key not in known.keys and all(item.key != key for item in valid), "key_in_use", principal)
        keys = tuple(sorted([key if item == former else item for item in known.keys]))
        # What `former` itself had replaced ends now: its successor is none any more.
        kept = [item for item in valid if item.successor != former]
        until_ms = ctx.time_ms + overlap_ms
        if overlap_ms:
            kept.append(FormerKey(former, key, until_ms))
        self.policies[place] = Policy(known.threshold, keys, tuple(kept))
        ctx.emit(KeyRotated(place[0], principal, former, key, until_ms))

    def _managed(self, ctx: Context, principal: str) -> tuple[str, str]:
        """Where the principal's policy lies; revert unless its member's root principal sends this."""
        place = _place(principal)
        require(place[1] != NODE, "reserved_principal", principal)
        ctx.authorize(place[0])
        require(place[0] in self.registered, "member_not_found", place[0])
        return place

    @call
    def roster(self, ctx: Context) -> tuple[MemberRow, ...]:
        """Return all members in their order; for the contract `governance` alone."""
        ctx.authorize(GOVERNANCE)
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
                PrincipalRow(f"{member}{place[1]}", policy.threshold, policy.keys, policy.former)
                for place, policy in self.policies.scan(prefix=(member,), after=start, limit=limit)
            ]
        )

    @query
    def principal(self, principal: PrincipalId) -> PrincipalRow:
        """One principal with its policy."""
        found = self.policies[_place(principal)]
        return PrincipalRow(principal, found.threshold, found.keys, found.former)

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


def _ordered(members: tuple[tuple[str, Member], ...]) -> tuple[tuple[str, Member], ...]:
    return tuple(sorted(members, key=lambda row: row[1].position))
