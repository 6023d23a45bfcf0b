"""Pure functions of view change: build and judge, find the view to jump to, derive what must be proposed again."""

from collections.abc import Iterable, Mapping

from consensus.effects import Head
from consensus.epochs import epoch
from consensus.members import Members
from consensus.messages import Certificate, NewView, ViewChange, VoteKind
from consensus.verification import Verifier


def jump_target(asked: Iterable[int], members: Members) -> int | None:
    """The (f + 1)-th highest view asked for, among at least two askers; None with fewer.

    At least one honest member asks for it or for a higher one, so f liars move nobody, however high they ask.
    """
    views = sorted(asked, reverse=True)
    place = max(members.weak_quorum, 2)
    return views[place - 1] if len(views) >= place else None


def quorum_asks(asked: Iterable[int], view: int, members: Members) -> bool:
    """Whether a quorum asks for `view` or a higher one: only then does its primary owe a new view."""
    return sum(1 for other in asked if other >= view) >= members.quorum


def view_changes_for(asks: Mapping[int, ViewChange], view: int, members: Members) -> tuple[ViewChange, ...] | None:
    """A quorum of view changes for exactly `view`, by ascending member, or None."""
    found = tuple(asks[member] for member in sorted(asks) if asks[member].view == view)
    return found[: members.quorum] if len(found) >= members.quorum else None


def highest_prepared(view_changes: Iterable[ViewChange]) -> Certificate | None:
    """The prepare certificate of the highest view among `view_changes`: its block must be proposed again.

    Two of one view for different blocks need more than f liars; the greater digest then breaks the tie, alike
    for everybody.
    """
    certificates = [message.prepared for message in view_changes if message.prepared is not None]
    return max(certificates, key=lambda certificate: (certificate.view, certificate.digest), default=None)


def gives_right(parent: Certificate | None, view: int, head: Head, verifier: Verifier) -> bool:
    """Whether `parent` gives the right to propose on `head` in `view` without a new view.

    It is the commit certificate of `head` in the same view; at height 1, view 0, there is none.
    """
    if head.certificate is None:
        return parent is None and view == 0
    if parent is None or parent.kind != VoteKind.COMMIT:
        return False
    if (parent.height, parent.digest, parent.view) != (head.height, head.digest, view):
        return False
    if view == head.certificate.view:
        return True  # our own certificate says the same: nothing to verify
    return verifier.certificate(parent, VoteKind.COMMIT, head.decided_by or head.members)


def fault_of_view_change(message: ViewChange, head: Head) -> str:
    """Why `message` cannot be a view change of the height above `head`; empty if it can.

    Signatures are judged elsewhere.
    """
    height = head.height + 1
    if message.height != height:
        return "for another height"
    if message.view == 0:
        return "asks for view 0, which nobody has to ask for"
    prepared = message.prepared
    if prepared is not None and (
        prepared.kind != VoteKind.PREPARE or prepared.height != height or prepared.view >= message.view
    ):
        return "its prepared certificate is not of a lower view of this height"
    if prepared is not None and epoch(prepared.view) < epoch(head.first_view):
        return "its prepared certificate is of another history"  # README 16.2
    decided = message.decided
    if decided is None:
        return "" if height == 1 else "does not prove that the height before is decided"
    if decided.kind != VoteKind.COMMIT or decided.height != head.height or decided.digest != head.digest:
        return "its commit certificate is not of the height before"
    return ""


def fault_of_new_view(message: NewView, head: Head, primary: int) -> str:
    """Why `message` cannot be a new view of the height above `head`; empty if it can.

    `primary` is the member whose view it is. Signatures are judged elsewhere.
    """
    members = head.members
    if message.height != head.height + 1:
        return "for another height"
    if message.member != primary:
        return "not from the primary of its view"
    if not members.quorum <= len(message.view_changes) <= members.n:
        return "not a quorum of view changes"
    last = -1
    for view_change in message.view_changes:
        if not last < view_change.member < members.n:
            return "its view changes are not of different members in ascending order"
        last = view_change.member
        if view_change.view != message.view:
            return "a view change asks for another view"
        fault = fault_of_view_change(view_change, head)
        if fault:
            return f"a view change is invalid: {fault}"
    return ""
