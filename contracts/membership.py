"""Who belongs to the network: member institutions, and the principals who act for them with their key policies.

A member's root principal carries the member's id ("bank-a") and acts for all that stand below it
("bank-a/treasury"). A policy says how many of which keys must sign what a principal sends.

"bank-a/node" is the member's node itself: it signs with the voting key, so it has no policy of its own that anybody
could set. While a rotation of the voting key is expected, it signs with the new key, which proves that it has it.

Members change by decisions of the contract `governance` alone.
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
    State,
    Value,
    call,
    genesis,
    invariant,
    query,
    replace,
    require,
)

MemberId = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Keys = Annotated[tuple[Key, ...], Meta(max_length=64)]
Role = Literal["validator", "observer", "regulator"]
Standing = Literal["active", "suspended", "removed"]

GOVERNANCE = "@governance"
NODE = "/node"
KEYS_MAX = 16
MEMBERS_MAX = 1_000
PAGE_MAX = 500


class NewMember(Argument):
    """A member in the network definition. Keys are raw Ed25519 public keys."""

    id: MemberId
    role: Role
    voting_key: Key
    tls_key: Key


class NewPrincipal(Argument):
    """A principal in the network definition."""

    id: PrincipalId
    keys: Keys
    threshold: int


class Member(Value):
    """An institution. `position` is its place in the network definition, which orders the validators.

    Only an active validator has a vote. A suspended member follows the network and may come back; a removed one
    does not. `next_voting_key` is the key that a decided rotation waits for, or empty.
    """

    position: int
    role: Role
    voting_key: bytes
    tls_key: bytes
    standing: Standing = "active"
    next_voting_key: bytes = b""


class Policy(Value):
    """A principal's signatures suffice when `threshold` of `keys` (1 … 16, ascending) signed."""

    threshold: int
    keys: tuple[bytes, ...]


class MemberRow(Value):
    """A member in a list; `votes` says whether it stands in the list that decides blocks."""

    id: str
    role: Role
    voting_key: bytes
    tls_key: bytes
    standing: Standing
    votes: bool


class PrincipalRow(Value):
    """A principal with its policy."""

    id: str
    threshold: int
    keys: tuple[bytes, ...]


class MemberChanged(Event):
    """From the next height on, the member has this standing and this voting key."""

    member: str
    standing: Standing
    voting_key: bytes

    topics = ("member/{member}",)


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


class PrincipalRemoved(Event):
    """The principal cannot send any more; its root still acts for what it owned."""

    member: str
    principal: str

    topics = ("member/{member}", "principal/{principal}")


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
        Code("too_many_members", "A network has at most 1,000 members."),
        Code("threshold_out_of_range", "The threshold lies between 1 and the number of keys."),
        Code("keys_out_of_range", "A policy has 1 to 16 keys."),
        Code("keys_not_distinct", "A key stands twice in the policy, or two validators share one."),
        Code("limit_out_of_range", "A page has 1 … 500 rows."),
    )

    registered: Map[MemberId, Member] = Map(missing="member_not_found")
    # Under (member, the rest of the id): ("bank-a", "/treasury"); the root principal has "" and comes first.
    policies: Map[tuple[MemberId, str], Policy] = Map(missing="principal_not_found")

    @genesis
    def create(
        self, ctx: Context, members: tuple[NewMember, ...] = (), principals: tuple[NewPrincipal, ...] = ()
    ) -> None:
        """Create the members and principals of the network definition."""
        require(len(members) <= MEMBERS_MAX, "too_many_members")
        validator_keys: list[bytes] = []
        for position, item in enumerate(members):
            require(item.id not in self.registered, "member_exists", item.id)
            if item.role == "validator":
                require(item.voting_key not in validator_keys, "keys_not_distinct", item.id)
                validator_keys.append(item.voting_key)
            self.registered[item.id] = Member(position, item.role, item.voting_key, item.tls_key)
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
        return self.members()

    @call
    def change_member(self, ctx: Context, member: MemberId, standing: Standing, voting_key: Key) -> None:
        """Give the member this standing and voting key from the next height on; for `governance` alone."""
        ctx.authorize(GOVERNANCE)
        known = self.registered[member]
        self.registered[member] = replace(known, standing=standing, voting_key=voting_key, next_voting_key=b"")
        rows = self.members()
        require(any(row.votes for row in rows), "no_validator_left", member)
        same = [row for row in rows if row.role == "validator" and row.voting_key == voting_key]
        require(len(same) <= 1, "keys_not_distinct", member)
        ctx.emit(MemberChanged(member, standing, voting_key))

    @call
    def expect_key(self, ctx: Context, member: MemberId, voting_key: Key | None = None) -> None:
        """Let the member's node sign with this key, to show that it has it; without one, with its voting key again.

        For the contract `governance` alone.
        """
        ctx.authorize(GOVERNANCE)
        expected = b"" if voting_key is None else voting_key
        self.registered[member] = replace(self.registered[member], next_voting_key=expected)

    @query
    def members(self) -> tuple[MemberRow, ...]:
        """All members in the order of the network definition."""
        found = self.registered.scan(limit=MEMBERS_MAX)
        return tuple([_row(key, item) for key, item in _ordered(found)])

    @query
    def member(self, member: MemberId) -> MemberRow:
        """One member."""
        return _row(member, self.registered[member])

    @query
    def principals(
        self, member: MemberId, after: PrincipalId | None = None, limit: int = 100
    ) -> tuple[PrincipalRow, ...]:
        """The member's principals with their policies, the root first, then by id and after the id `after`."""
        require(1 <= limit <= PAGE_MAX, "limit_out_of_range")
        start = None if after is None else _place(after)
        return tuple(
            [
                PrincipalRow(f"{member}{place[1]}", policy.threshold, policy.keys)
                for place, policy in self.policies.scan(prefix=(member,), after=start, limit=limit)
            ]
        )

    @query
    def principal(self, principal: PrincipalId) -> PrincipalRow:
        """One principal with its policy."""
        found = self.policies[_place(principal)]
        return PrincipalRow(principal, found.threshold, found.keys)

    @staticmethod
    def read_policy(state: State, principal: str) -> Policy | None:
        """Return the policy by which a principal's signatures are judged; None for an unknown principal."""
        return Membership.read_policy_at(state, Membership.policy_key(principal))

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
    def read_validators(state: State) -> tuple[tuple[str, bytes], ...]:
        """Return (id, voting key) of the active validators in the order of the network definition."""
        return tuple([(key, member.voting_key) for key, member in Membership.read_members(state) if _votes(member)])

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
            1 <= policy.threshold <= len(policy.keys) <= KEYS_MAX and _ascending(policy.keys)
            for _, policy in self.policies.scan(limit=None)
        )

    @invariant
    def principals_have_a_member(self) -> bool:
        """Nobody acts for an institution that is no member."""
        return all(place[0] in self.registered for place, _ in self.policies.scan(limit=None))


def _row(member: str, found: Member) -> MemberRow:
    return MemberRow(member, found.role, found.voting_key, found.tls_key, found.standing, _votes(found))


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
