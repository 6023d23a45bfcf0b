"""What this member has signed at one height, and what it may still sign there: safety stands in this file.

1. Nothing is signed below the highest view that was asked for or voted in at this height.
2. One vote per kind and view, one view change and one new view per view.
3. Every signed thing is recorded before it can be sent: `Persist` stands before whatever the caller emits next.
4. Nothing is signed without memory (amnesia.py), after the height is decided, or by a key that is not ours.
"""

from consensus.context import Context, order
from consensus.effects import (
    Head,
    NewViewRecord,
    Persist,
    PreparedRecord,
    Record,
    ViewChangeRecord,
    VoteRecord,
)
from consensus.epochs import epoch
from consensus.messages import (
    Certificate,
    NewView,
    ViewChange,
    Vote,
    VoteEquivocation,
    VoteKind,
    new_view_bytes,
    view_change_bytes,
    vote_bytes,
)

VIEW_MAX = 2**63 - 1
UNSIGNED = b""


class Pledge:
    """This member's own signed statements at one height."""

    def __init__(self, context: Context, head: Head) -> None:
        """Nothing signed yet above `head`; `restore` brings back what the disk remembers."""
        self._context = context
        self._members = head.members
        self._height = head.height + 1
        self._epoch = epoch(head.first_view)
        member = context.config.member
        self.me = self._members.index(member) if member is not None else None
        self.votes: dict[VoteKind, Vote] = {}
        self.parent: Certificate | None = None
        self.voted_view: int | None = None
        self.view_change: ViewChange | None = None
        self.new_view: NewView | None = None
        self.prepared: Certificate | None = None
        self.closed = False

    @property
    def asked(self) -> int | None:
        """The highest view that we asked for at this height."""
        return self.view_change.view if self.view_change is not None else None

    @property
    def floor(self) -> int:
        """Nothing is signed below this view."""
        asked, voted = self.view_change, self.voted_view or 0
        return voted if asked is None or asked.view < voted else asked.view

    @property
    def may_sign(self) -> bool:
        """Whether we are a validator with key and memory, and the height is open."""
        return self.me is not None and not self.closed and self._context.may_sign(self._height)

    def restore(self, records: tuple[Record, ...]) -> NewView | None:
        """Bring back the newest of each kind of record of this height; return the highest new view we know."""
        known: NewView | None = None
        for record in records:
            match record:
                case VoteRecord(vote=vote) if vote.height == self._height and vote.member == self.me:
                    mine = self.votes.get(vote.kind)
                    if mine is None or mine.view <= vote.view:
                        self.votes[vote.kind] = vote
                        if vote.kind == VoteKind.PREPARE:
                            self.parent = record.parent
                    self.voted_view = max(vote.view, self.voted_view or 0)  # [8.3]
                case PreparedRecord(certificate=certificate) if certificate.height == self._height:
                    if self.prepared is None or self.prepared.view < certificate.view:
                        self.prepared = certificate
                case ViewChangeRecord(message=asked) if asked.height == self._height and asked.member == self.me:
                    if self.view_change is None or self.view_change.view < asked.view:
                        self.view_change = asked
                case NewViewRecord(message=message) if message.height == self._height:
                    if known is None or known.view < message.view:
                        known = message
                    if message.member == self.me and (self.new_view is None or self.new_view.view < message.view):
                        self.new_view = message
                case _:
                    pass
        return known

    def note_prepared(self, certificate: Certificate) -> None:
        """Remember the highest prepare certificate, durably: a commit vote or a view change may follow."""
        if self.prepared is None or self.prepared.view < certificate.view:
            self.prepared = certificate
            if self.me is not None:
                self._context.emit(Persist(PreparedRecord(certificate)))  # [3.4]

    def may_vote(self, kind: VoteKind, view: int) -> bool:
        """Whether the rules above allow a vote of `kind` in `view`."""
        own = self.votes.get(kind)
        if view < self.floor:  # [2.4]
            return False
        return (own is None or own.view < view) and self.may_sign

    def vote(
        self, kind: VoteKind, view: int, digest: bytes, *, proposed: bool = False, parent: Certificate | None = None
    ) -> Vote | None:
        """Sign and record a vote; None when a rule forbids it."""
        if self.me is None or not self.may_vote(kind, view):
            return None
        message = vote_bytes(self._context.config.network, kind, view, self._height, digest)  # [2.1]
        vote = Vote(kind, view, self._height, digest, self.me, self._context.sign(message))
        self.votes[kind] = vote
        if kind == VoteKind.PREPARE:
            self.parent = parent
        self.voted_view = view
        self._context.voted_since_start = True
        self._context.emit(Persist(VoteRecord(vote, proposed, parent)))  # [8.1]
        return vote

    def ask(self, view: int, decided: Certificate | None) -> ViewChange | None:
        """Sign and record a view change to a view above every other; None when a rule forbids it."""
        if self.me is None or not self.may_sign or not self.floor <= view < VIEW_MAX:
            return None
        if self.asked is not None and view <= self.asked:
            return None
        unsigned = ViewChange(self._height, view, decided, self.prepared, self.me, UNSIGNED)
        signature = self._context.sign(view_change_bytes(self._context.config.network, unsigned))
        message = ViewChange(self._height, view, decided, self.prepared, self.me, signature)
        self.view_change = message  # [5.1]
        self._context.emit(Persist(ViewChangeRecord(message)))
        return message

    def open(self, view: int, view_changes: tuple[ViewChange, ...]) -> NewView | None:
        """Sign and record the new view that a quorum asked us for; None when a rule forbids it."""
        if self.me is None or not self.may_sign or view < self.floor:
            return None
        if self.new_view is not None and view <= self.new_view.view:
            return None
        unsigned = NewView(self._height, view, view_changes, self.me, UNSIGNED)
        signature = self._context.sign(new_view_bytes(self._context.config.network, unsigned))
        message = NewView(self._height, view, view_changes, self.me, signature)
        self.new_view = message
        self._context.emit(Persist(NewViewRecord(message)))  # [5.2]
        return message

    # --- what others show us of ourselves -----------------------------------------------------------------

    def shown_vote(self, vote: Vote) -> None:
        """Judge a genuine vote with our key: do we remember it?"""
        if self.me is None or vote.height < self._height or epoch(vote.view) < self._epoch:  # README 16.3
            return
        own = self.votes.get(vote.kind)
        if own is not None and (own.height, own.view) == (vote.height, vote.view):
            if own.digest != vote.digest:
                evidence = VoteEquivocation(own, vote)
                member, kind = self._members.id(self.me), vote.kind.name.lower()
                self._context.accuse(member, kind, vote.height, vote.view, evidence)
                self._context.own_key_equivocates()
            return
        if order(vote) > max((order(mine) for mine in self.votes.values()), default=(0, 0, 0)):
            self._context.own_vote_unknown(vote.height)

    def shown_certificate(self, certificate: Certificate) -> None:
        """Judge our vote inside a genuine certificate, if it has one."""
        for index, signature in certificate.signatures:
            if index == self.me:
                self.shown_vote(
                    Vote(
                        certificate.kind,
                        certificate.view,
                        certificate.height,
                        certificate.digest,
                        index,
                        signature,
                    )
                )

    def shown_ask(self, view: int) -> None:
        """Judge a genuine view change or new view of this height with our key: do we remember it?"""
        if self.me is not None and view > self.floor:
            self._context.own_vote_unknown(self._height)
