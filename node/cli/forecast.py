"""What a change of the members would do to the network as it runs now: the arithmetic, before anybody votes; pure.

The ledger's own guard waits for readiness and cannot know who is down for good. This looks at the members' signed
statuses, as the asked node has them, and says whether those who run would be a quorum.
"""

from collections.abc import Mapping, Sequence

import msgspec

from consensus.members import Members, Validator
from node.client.answers import MemberDiagnosis, MemberStatus

ACTIVE, SUSPENDED, REMOVED = "active", "suspended", "removed"
CONFIRMING = "confirming"
VALIDATOR = "validator"
KINDS = (
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
)


STRICT_KINDS = ("change_parameter", "remove_tier")
"""What needs the votes of all but f validators, whatever genesis says."""


class ListFacts(msgspec.Struct, frozen=True):
    """A list that decides blocks: who stands in it, how many may fail, how many decide, and who of them runs.

    `causes` has why a member does not, by the codes of `hansa docs causes`, where it is known.
    """

    members: tuple[str, ...]
    f: int
    quorum: int
    up: tuple[str, ...]
    causes: Mapping[str, str] = {}

    @property
    def decides(self) -> bool:
        """Whether those who run are enough."""
        return len(self.up) >= self.quorum


class Forecast(msgspec.Struct, frozen=True):
    """The list now, and after the change."""

    before: ListFacts
    after: ListFacts

    @property
    def refusal(self) -> str:
        """Why the change would make the network stand still, with the arithmetic; empty: it would not."""
        after = self.after
        if after.decides:
            return ""
        up = ", ".join(after.up) or "none"
        down = ", ".join(
            f"{name} ({after.causes[name]})" if name in after.causes else name
            for name in after.members
            if name not in after.up
        )
        return (
            f"after it {len(after.up)} of {len(after.members)} validators would run ({up})"
            f" and {after.quorum} must agree on every block; down or silent: {down}"
        )


def votes_needed(kind: str, now: ListFacts, all_but_f: Sequence[str]) -> int:
    """Return how many of the list must vote for a proposal; `all_but_f` has the kinds that genesis names."""
    return len(now.members) - now.f if kind in (*STRICT_KINDS, *all_but_f) else now.quorum


def forecast(
    kind: str,
    member: str,
    members: Sequence[MemberStatus],
    heard: Sequence[MemberDiagnosis],
    role: str | None = None,
) -> Forecast:
    """Return what the change would make of the list that decides, by what the asked node knows of who runs.

    `role` is the newcomer's, or the new one. A newcomer counts as running: it has no vote before it said so itself.
    """
    standings = {item.id: (item.role, item.standing) for item in members}
    now = {name: standing for name, (kept, standing) in standings.items() if kept == VALIDATOR}
    before_role, standing = standings.get(member, (role, ACTIVE))
    after_role = role if kind in ("add_member", "change_role") else before_role
    then = {name: known for name, known in now.items() if name != member}
    if after_role == VALIDATOR and (kind == "add_member" or member in standings):
        # In its own place: the order of the table is that of the members.
        after = {**now, member: _standing_after(kind, standing)}
        then = {name: after[name] for name in [*(n for n in standings if n in after), member]}
    diagnoses = {item.id: item for item in heard}
    coming = member if kind == "add_member" else None
    return Forecast(_facts(now, diagnoses), _facts(then, diagnoses, coming))


def _standing_after(kind: str, standing: str) -> str:
    changed = {
        "add_member": ACTIVE,
        "remove_member": REMOVED,
        "suspend_member": SUSPENDED,
        "resume_member": ACTIVE,
    }
    return changed.get(kind, standing)


def _facts(
    standings: Mapping[str, str], diagnoses: Mapping[str, MemberDiagnosis], coming: str | None = None
) -> ListFacts:
    names = tuple(name for name, standing in standings.items() if standing == ACTIVE)
    up = tuple(name for name in names if name == coming or (name in diagnoses and _runs(diagnoses[name])))
    if not names:
        return ListFacts((), 0, 1, ())
    # The one place where thresholds are reckoned counts members, whatever their keys are.
    list_ = Members(tuple(Validator(name, name.encode()) for name in names))
    causes = {
        name: diagnoses[name].cause
        for name in names
        if name not in up and name in diagnoses and diagnoses[name].cause
    }
    return ListFacts(names, list_.f, list_.quorum, up, causes)


def _runs(member: MemberDiagnosis) -> bool:
    """Whether it does its part; who has no vote now is heard, and votes once it may."""
    votes_soon = member.cause in (SUSPENDED, CONFIRMING) or member.role != VALIDATOR
    return member.votes or (member.reachable and votes_soon)
