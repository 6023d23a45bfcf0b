"""Key policies: which signatures let a principal act, and when more is asked for than those.

A POLICY is m of n keys. A TIER binds whoever acts for a principal: the principal itself, and the root of its
member, which acts for all below it. Calls above its limit need, besides the signatures of the sender's policy,
`threshold` persons of each of its groups. A PERSON is a principal of the same member, never a key: who rotates a
key, or has two of them, is still one.

Invariants: within a tier everybody counts once, be it for himself or in another's place. What cannot be judged (an
amount that is absent or no integer) counts as above the limit. Whatever changes a tier, or could give one of its
seats to somebody else, asks for that tier itself: so none falls to less than it asks for. Each group has a person
to spare: one lost key closes no tier. Where more are lost than that, the members vote the tier away, and nothing
but the tier (WAY_OUT).
"""

from typing import Annotated, Callable, Sequence  # noqa: UP035 - a contract imports from nowhere else

from contracts.sdk import AMOUNT_MAX, Argument, Meta, PlainArguments, PlannedCall, PrincipalId, Value

TierName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]
Name = Annotated[str, Meta(pattern=r"^([a-z][a-z0-9_]{0,47})?\Z")]
Limit = Annotated[int, Meta(ge=0, le=AMOUNT_MAX, description="minor units")]
Text = Annotated[str, Meta(pattern=r"^[ -~]{0,64}\Z")]
Persons = Annotated[tuple[PrincipalId, ...], Meta(max_length=12)]

TIERS_MAX = 16
PLANNED_MAX = 10_000
JUDGED_MAX = 10_000
"""So many calls times tiers are judged of one transaction; where there are more, all the tiers ask."""
SEATS_MAX = 96
"""Of all tiers of a member together: so that they fit into one value, and a judgement has an end."""
CHANGES_OF_SEATS = ("set_policy", "rotate_key", "remove_principal")
CHANGES_OF_TIERS = ("set_tier", "remove_tier")
WAY_OUT = ("governance", "propose_tier_removal")
"""No tier looks at this call: by it goes a tier that nobody can meet any more. The members' votes guard it."""


class Planned(Argument):
    """A call as a request names it."""

    contract: Annotated[str, Meta(max_length=64)]
    method: Annotated[str, Meta(max_length=64)]
    args: PlainArguments


class NewGroup(Argument):
    """So many of these persons are asked for."""

    threshold: int
    persons: Persons


class Group(Value):
    """`threshold` of these persons, ascending, and at least one more to choose from."""

    threshold: int
    persons: tuple[str, ...]


class FormerKey(Value):
    """A key that was rotated: in blocks below `until_ms` it signs in the place of its successor."""

    key: bytes
    successor: bytes
    until_ms: int


class Tier(Value):
    """Which calls ask for more, and of whom: `threshold` persons of each group.

    It looks at calls of `contract` and `method` ("": any), with `where` only at those in which that argument is the
    text `equals`.
    It asks as soon as the amounts in `argument` exceed `over`, added up over the calls of one transaction; without
    `argument` each such call asks.
    """

    name: str
    principal: str
    contract: str
    method: str
    argument: str
    over: int
    where: str
    equals: str
    groups: tuple[Group, ...]


class Policy(Value):
    """A principal's signatures suffice when `threshold` of `keys` (1 … 16, ascending) signed.

    Each of `former` signs for its successor, and both together count once. `tiers` may ask for more than that.
    """

    threshold: int
    keys: tuple[bytes, ...]
    former: tuple[FormerKey, ...] = ()
    tiers: tuple[Tier, ...] = ()


class StandIn(Value):
    """`delegate` speaks in somebody's place in blocks with from_ms <= time < until_ms; in `tiers`, or in all.

    Only for as long as the delegate signs alone and with `key`, which the person named: whoever administers the
    delegate must not get a seat by that.
    """

    delegate: str
    tiers: tuple[str, ...]
    from_ms: int
    until_ms: int
    key: bytes


class Mandate(Value):
    """By which policy somebody spoke: with any `threshold` of `keys`, former ones that signed too among them."""

    principal: str
    threshold: int
    keys: tuple[bytes, ...]


class NewMandate(Argument):
    """A mandate in a question."""

    principal: PrincipalId
    threshold: int
    keys: Annotated[tuple[bytes, ...], Meta(max_length=64)]


class Seat(Value):
    """A person of a group, and who spoke for it: itself, its stand-in, or nobody ("")."""

    person: str
    by: str


class GroupStanding(Value):
    """How far a group is: as many of `seats` as have somebody in `by` count."""

    threshold: int
    seats: tuple[Seat, ...]


class TierStanding(Value):
    """A tier that calls ask for, and how far it is."""

    tier: str
    met: bool
    groups: tuple[GroupStanding, ...]


class Progress(Value):
    """What stands between a principal and its calls. `speaks`: its own policy still says what it said."""

    speaks: bool
    tiers: tuple[TierStanding, ...]


def seats_of(tier: Tier) -> tuple[str, ...]:
    """Return all persons of the tier."""
    return tuple([person for group in tier.groups for person in group.persons])


def demanded(tiers: Sequence[Tier], sender: str, calls: Sequence[PlannedCall]) -> tuple[Tier, ...]:
    """Return those of the sender's tiers that the calls of one transaction ask for."""
    if len(tiers) * len(calls) > JUDGED_MAX:
        return tuple(tiers)
    return tuple([tier for tier in tiers if _asks(tier, sender, calls)])


def _asks(tier: Tier, sender: str, calls: Sequence[PlannedCall]) -> bool:
    total = 0
    for call in calls:
        if call.contract == "membership" and _loosens(tier, sender, call):
            return True
        if (call.contract, call.method) == WAY_OUT:
            continue
        if call.contract != tier.contract or tier.method not in {"", call.method}:
            continue
        args = call.args
        value = args.get(tier.where, tier.equals)
        if isinstance(value, str) and value != tier.equals:
            continue
        amount = args.get(tier.argument)
        if tier.argument == "" or not isinstance(amount, int):
            return True
        # A negative amount is refused where it is executed, and pays for nothing here.
        total += max(amount, 0)
    return total > tier.over


def _loosens(tier: Tier, sender: str, call: PlannedCall) -> bool:
    """Whether the call changes the tier, or may give one of its seats to somebody else."""
    if call.method in CHANGES_OF_TIERS:
        return call.args.get("name") == tier.name
    person = call.args.get("principal")
    return call.method in CHANGES_OF_SEATS and person != sender and person in seats_of(tier)


def circle(policy: Policy, time_ms: int) -> tuple[bytes, ...]:
    """Return all keys with which the principal signs at that time."""
    return (*policy.keys, *[item.key for item in policy.former if time_ms < item.until_ms])


def holds(mandate: Mandate, policy: Policy | None, time_ms: int) -> bool:
    """Whether what was said by the mandate still stands: all keys that may have said it are the principal's yet."""
    if policy is None or policy.threshold > mandate.threshold:
        return False
    keys = circle(policy, time_ms)
    return all(key in keys for key in mandate.keys)


def suffices(policy: Policy | None, signers: Sequence[bytes], time_ms: int) -> bool:
    """Whether signatures of these keys satisfy the policy, as the host judges it of a sender."""
    if policy is None:
        return False
    signed = len([key for key in policy.keys if key in signers])
    for item in policy.former:
        if time_ms < item.until_ms and item.key in signers and item.successor not in signers:
            signed += 1
    return signed >= policy.threshold


def count(
    tier: Tier,
    policy_of: Callable[[str], Policy | None],
    stand_in_of: Callable[[str], StandIn | None],
    spoken: Sequence[str],
    time_ms: int,
) -> TierStanding:
    """Return how far the tier is when these principals have spoken. No person, and no key, counts twice in it."""
    seats = seats_of(tier)
    taken: dict[bytes, str] = {}
    groups: list[GroupStanding] = []
    for group in tier.groups:
        row: list[Seat] = []
        for person in group.persons:
            by = _speaker(tier, seats, person, stand_in_of(person), spoken, policy_of, time_ms)
            policy = policy_of(by) if by else None
            keys = () if policy is None else circle(policy, time_ms)
            if any(key in taken for key in keys):
                by = ""
            for key in keys if by else ():
                taken[key] = person
            row.append(Seat(person, by))
        groups.append(GroupStanding(group.threshold, tuple(row)))
    met = all(len([seat for seat in item.seats if seat.by]) >= item.threshold for item in groups)
    return TierStanding(tier.name, met, tuple(groups))


def _speaker(
    tier: Tier,
    seats: Sequence[str],
    person: str,
    stand_in: StandIn | None,
    spoken: Sequence[str],
    policy_of: Callable[[str], Policy | None],
    time_ms: int,
) -> str:
    """Who of those who have spoken did it for the person: itself, or its stand-in; nobody is ""."""
    if person in spoken:
        return person
    if (
        stand_in is None
        or stand_in.delegate not in spoken
        # Who has a seat here speaks from that one alone.
        or stand_in.delegate in seats
        or not stand_in.from_ms <= time_ms < stand_in.until_ms
        or (len(stand_in.tiers) > 0 and tier.name not in stand_in.tiers)
    ):
        return ""
    policy = policy_of(stand_in.delegate)
    return stand_in.delegate if policy is not None and circle(policy, time_ms) == (stand_in.key,) else ""
