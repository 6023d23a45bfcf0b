"""One height, from its first message to its decision: the views, the proposal and the votes.

Every `on_…` method either ignores what it is given or takes note of it by a rule of README 3 to 5, and leaves
it to `advance` to do whatever has become possible. Numbers in brackets are README sections.

More than 500 lines because the rules of one height share one state, and are read together to judge them.
"""

from consensus.checks import Checks
from consensus.context import Context
from consensus.effects import (
    BlockStanding,
    Broadcast,
    BuildPayload,
    Decide,
    Head,
    NewViewRecord,
    PayloadBuilt,
    PayloadChecked,
    Persist,
    Record,
)
from consensus.messages import (
    Certificate,
    Message,
    NewView,
    NewViewEquivocation,
    PrePrepare,
    ViewChange,
    Vote,
    VoteEquivocation,
    VoteKind,
)
from consensus.pledge import Pledge
from consensus.view_change import (
    fault_of_new_view,
    fault_of_view_change,
    gives_right,
    highest_prepared,
    jump_target,
    quorum_asks,
    view_changes_for,
)
from consensus.votes import VoteBook

QUARANTINE_AFTER_VIEWS = 2


class HeightInWork:
    """The height above `head`, until it is decided."""

    def __init__(self, context: Context, head: Head) -> None:
        """Start in the view of the certificate of `head`; `resume` then brings back what the disk remembers."""
        self._context = context
        self.head = head
        self.members = head.members
        self.resting = head.members.resting(head.resting)
        self.height = head.height + 1
        self.pledge = Pledge(context, head)
        self.me = self.pledge.me
        # The view that is open: its proposals are looked at. `new_view` opened it, or else `parent` did, a
        # certificate of the height before, maybe another than ours; `required` must be proposed again in it.
        self.first_view = head.first_view
        self.view = self.first_view
        self.new_view: NewView | None = None
        self.parent = head.certificate
        self.required: Certificate | None = None
        self.entered_ms = context.now_ms
        self.asks: dict[int, ViewChange] = {}
        self.book = VoteBook(self.members, self.view)
        self.proposal: PrePrepare | None = None
        # What the executor said of the proposal; None: nothing yet, or not available.
        self.verdict: bool | None = None
        self._ahead: dict[int, PrePrepare] = {}
        self.checks = Checks(context, self.members, self.height, self.first_view + QUARANTINE_AFTER_VIEWS)
        # The certificate that decided this height, and whether `Decide` went out.
        self.outcome: Certificate | None = None
        self.decided = False
        self.diverged = False

    def primary(self, view: int) -> int:
        """The index of the member that proposes in `view`."""
        return self.members.primary(self.height, view, self._context.config.rotation_heights, self.resting)

    @property
    def changing(self) -> bool:
        """Whether we asked for a view that is not open yet."""
        return self.pledge.asked is not None and self.pledge.asked > self.view

    def failed_views(self, view: int) -> int:
        """How many views have failed at this height before `view`, as far as this member's start tells."""
        return max(0, view - max(self.first_view, self.head.start_view))

    # --- start and restart [8] ----------------------------------------------------------------------------

    def resume(self, records: tuple[Record, ...]) -> None:
        """Bring back what was signed and learnt at this height, and say it again: it may have been lost."""
        new_view = self.pledge.restore(records)
        if self.pledge.view_change is not None:
            self.asks[self.pledge.view_change.member] = self.pledge.view_change
        view = max(self.view, self.pledge.voted_view or 0, new_view.view if new_view is not None else 0)
        if view > self.view:
            self._enter(view, new_view if new_view and new_view.view == view else None, self.pledge.parent)
        for vote in self.pledge.votes.values():
            if self.book.wants(vote):
                self.book.add(vote)
        self._context.emit(*(Broadcast(message) for message in self.own_messages()))  # [8.2]
        prepare = self.pledge.votes.get(VoteKind.PREPARE)
        if prepare is not None:
            # Its block lies on the disk; its outcome has to be computed again.
            self._ask_for(prepare.digest, prepare.view, None, ())
        self.begin()

    def begin(self) -> None:
        """Ask for the start view if it lies above the open one, follow who asked, do what is possible [4]."""
        if self.head.start_view > self.view:
            self.ask(self.head.start_view, "voted in that view at the height before")  # [4.2]
        self._follow()
        self.advance()

    def own_messages(self) -> list[Message]:
        """What we signed here and others may still need, except our own proposal (it is large)."""
        messages: list[Message] = []
        if self.new_view is not None and self.new_view.member == self.me:
            messages.append(self.new_view)
        if self.changing and self.pledge.view_change is not None:
            messages.append(self.pledge.view_change)
        prepare = self.pledge.votes.get(VoteKind.PREPARE)
        if prepare is not None and self.primary(prepare.view) != self.me:
            messages.append(prepare)
        commit = self.pledge.votes.get(VoteKind.COMMIT)
        if commit is not None:
            messages.append(commit)
        return messages

    def own_proposal(self) -> PrePrepare | None:
        """Our own pre-prepare in the open view, if there is one."""
        proposal = self.proposal
        return proposal if proposal is not None and proposal.vote.member == self.me else None

    # --- normal case [3] ----------------------------------------------------------------------------------

    def on_pre_prepare(self, message: PrePrepare) -> None:
        """Take a proposal that came from its primary itself: look at it, or keep it until its view is open."""
        vote = message.vote
        if vote.kind != VoteKind.PREPARE or vote.view < self.view or vote.member != self.primary(vote.view):
            return
        if not self._note(vote) or vote.member == self.me:
            return
        if vote.view > self.view:
            if self._opens_by_parent(message.parent, vote.view):
                self._enter(vote.view, None, message.parent)  # [5.5]
            else:
                held = self._ahead.get(vote.member)
                if held is None or held.vote.view < vote.view:
                    self._ahead[vote.member] = message
                return
        self._accept(message)
        self.advance()

    def on_vote(self, vote: Vote) -> None:
        """Count a prepare or commit of this height."""
        if self._note(vote):
            self.advance()

    def on_built(self, answer: PayloadBuilt) -> None:
        """Propose what was built, if that is still wanted."""
        context = self._context
        if (
            self._may_propose()
            and self.required is None
            and (answer.height, answer.view) == (self.height, self.view)
        ):
            if answer.digest is not None and answer.payload is not None:
                self.checks.note_built(answer.digest, answer.payload)
                self._propose(answer.digest, answer.payload, self.parent)
            else:
                context.nothing_built()
        self.advance()

    def on_checked(self, answer: PayloadChecked) -> None:
        """Take the executor's word on a block of this height."""
        check = self.checks.answered(answer)
        if check is None:
            return
        proposal = self.proposal
        judged = proposal is not None and (self.view, proposal.vote.digest) == (answer.view, answer.digest)
        if judged:
            self.verdict = answer.valid
        if answer.valid:
            self._context.refusal = ""
        elif answer.valid is False:
            self._context.refusal = answer.reason or "the block is invalid"
            if self.outcome is not None and self.outcome.digest == answer.digest:
                # A proposal may be refused for its clock, its proposer or its code; a decided block for none.
                self.diverged = self.diverged or check.standing == BlockStanding.DECIDED
            elif judged and check.standing >= self._standing(answer.digest):
                self.ask(self.view + 1, f"invalid proposal: {self._context.refusal}")  # [3.6]
        self.advance()

    def on_certificate(self, certificate: Certificate) -> None:
        """Learn from a commit certificate: it decides this height, or opens a view of it [4, 5]."""
        if certificate.height == self.height:
            verifier = self._context.verifier
            if self.outcome is None and verifier.certificate(certificate, VoteKind.COMMIT, self.members):
                self.pledge.shown_certificate(certificate)  # [7.4]
                self._close(certificate)
                self.advance()
        elif certificate.view > self.view and self._opens_by_parent(certificate, certificate.view):
            self._enter(certificate.view, None, certificate)  # [5.5]
            self.advance()

    # --- view change [5] ----------------------------------------------------------------------------------

    def ask(self, view: int, reason: str) -> None:
        """Ask for `view`, durably, if it is above every view we know; from now on nothing is signed below it."""
        suspect = self.primary(self.view if self.pledge.asked is None else max(self.view, self.pledge.asked))
        message = self.pledge.ask(view, self.head.certificate) if view > self.view else None
        if message is None:
            return
        self.asks[message.member] = message
        self._context.suspect(self.members.id(suspect), reason)
        self._context.emit(Broadcast(message))
        self._open_as_primary()

    def on_view_change(self, message: ViewChange) -> None:
        """Note that a member asks for a view; follow when f + 1 do; open it when a quorum asks us."""
        known = self.asks.get(message.member)
        if known is not None and known.view >= message.view:  # [10.2]
            return
        if fault_of_view_change(message, self.head):
            return
        if not self._context.verifier.view_change(message, self.members):
            return
        if message.member == self.me:
            self.pledge.shown_ask(message.view)
            return
        self._heard(message.member)
        self.asks[message.member] = message
        if message.prepared is not None:
            self.pledge.shown_certificate(message.prepared)
        self._follow()

    def on_new_view(self, message: NewView) -> None:
        """Open the view that a quorum asked for, unless we asked for a higher one."""
        if message.view <= self.view:
            self._compare(message)
            return
        if fault_of_new_view(message, self.head, self.primary(message.view)):
            return
        verifier = self._context.verifier
        if not verifier.new_view(message, self.members):
            return
        if message.member == self.me:
            self.pledge.shown_ask(message.view)
            return
        for view_change in message.view_changes:
            known = self.asks.get(view_change.member)
            if known != view_change and not verifier.view_change(view_change, self.members):
                return
        self._heard(message.member)
        if message.view < self.pledge.floor or self.outcome is not None:  # [5.6]
            return
        if self.me is not None and not self._context.amnesia.lost:
            self._context.emit(Persist(NewViewRecord(message)))  # [5.2]
        self._enter(message.view, message, None)  # [9.7]
        self.advance()

    def quorum_asks(self) -> bool:
        """Whether a quorum asks for the view that we asked for, or for a higher one."""
        asked = self.pledge.asked
        return asked is not None and quorum_asks([other.view for other in self.asks.values()], asked, self.members)

    def retry(self) -> None:
        """Ask again for a block that was not available."""
        if self.checks.unavailable:
            self.checks.unavailable = False
            self.advance()

    def advance(self) -> None:
        """Do everything that the state allows now; doing it twice does nothing more."""
        if self.outcome is None:
            self._resend_restored_proposal()
            self._prepare()
            self._commit()
            for certificate in self.book.certificates(VoteKind.COMMIT)[:1]:
                self._close(certificate)  # [3.5]
        if self.outcome is None:
            self._start_proposal()
        else:
            self._decide(self.outcome)

    # --- taking note --------------------------------------------------------------------------------------

    def _note(self, vote: Vote) -> bool:
        """Verify and keep `vote`; return whether it is genuine (also when it was known already)."""
        if not self.book.wants(vote):
            return False
        if self.book.find(vote.kind, vote.view, vote.member) == vote:
            return True
        if not self._context.verifier.vote(vote, self.members):
            return False
        if vote.member == self.me:
            self.pledge.shown_vote(vote)
            return True
        self._heard(vote.member)
        self._context.remember_vote(vote, self.members)
        contradicted = self.book.add(vote)
        if contradicted is not None:  # [2.3, 10.1]
            member, kind = self.members.id(vote.member), vote.kind.name.lower()
            self._context.accuse(member, kind, self.height, vote.view, VoteEquivocation(contradicted, vote))
        return True

    def _heard(self, member: int) -> None:
        self._context.heard_ms[self.members.id(member)] = self._context.now_ms

    def _opens_by_parent(self, parent: Certificate | None, view: int) -> bool:
        """Whether `parent` opens `view` for us: only while we have voted for nothing at this height [5]."""
        return (
            self.outcome is None
            and self.pledge.voted_view is None
            and view >= self.pledge.floor
            and gives_right(parent, view, self.head, self._context.verifier)
        )

    def _enter(self, view: int, new_view: NewView | None, parent: Certificate | None) -> None:
        """Open `view` by `new_view` or by `parent`: forget the view before, keep what is prepared."""
        self.view = view
        self.new_view = new_view
        self.parent = parent if new_view is None and parent is not None and parent.view == view else None
        self.required = highest_prepared(new_view.view_changes) if new_view is not None else None
        self.proposal = None
        self.verdict = None
        self.entered_ms = self._context.now_ms
        self.book.enter(view)
        kept = (self.pledge.prepared, self.required)
        self.checks.forget_but([certificate.digest for certificate in kept if certificate is not None])
        early = self._ahead.get(self.primary(view))
        self._ahead = {index: message for index, message in self._ahead.items() if message.vote.view > view}
        if early is not None and early.vote.view == view:
            self._accept(early)

    def _accept(self, message: PrePrepare) -> None:
        """Make `message` the proposal of the open view, if it has the right and there is none yet."""
        if self.proposal is not None:
            return
        if self.new_view is None and not gives_right(message.parent, self.view, self.head, self._context.verifier):
            return  # [5.5]
        if self.required is not None and self.required.digest != message.vote.digest:
            self._context.refusal = "the primary did not propose the prepared block again"  # [5.3]
            self.ask(self.view + 1, self._context.refusal)
            return
        self.proposal = message  # [5.4]
        self.verdict = None

    def _compare(self, message: NewView) -> None:
        """Two new views of one member for the open view with different content are evidence."""
        known = self.new_view
        if known is None or known.view != message.view or known.member != message.member:
            return
        if known.view_changes == message.view_changes or not self._context.verifier.new_view(message, self.members):
            return
        member = self.members.id(message.member)  # [10.1]
        self._context.accuse(member, "new_view", self.height, message.view, NewViewEquivocation(known, message))
        if message.member == self.me:
            self._context.own_key_equivocates()

    def _close(self, certificate: Certificate) -> None:
        """The height is decided: nothing more is signed at it."""
        self.outcome = certificate
        self.pledge.closed = True  # [4.3]

    # --- what has become possible: the parts of `advance` -------------------------------------------------

    def _prepare(self) -> None:
        """Have the proposal executed, and vote for it once it is found good."""
        proposal = self.proposal
        if proposal is None or proposal.vote.member == self.me:
            return
        vote = proposal.vote
        settled = self._standing(vote.digest) > BlockStanding.PROPOSED  # [3.3]
        if self.verdict is None and settled and self.checks.is_good(vote.digest):
            self.verdict = True
        if self.verdict:
            self._vote(VoteKind.PREPARE, vote.digest)
        else:
            # Once refused, it is asked about again only if it stands better by now.
            holders = self.book.voters(VoteKind.PREPARE, vote.view, vote.digest)
            self._ask_for(vote.digest, vote.view, proposal.payload, holders)

    def _standing(self, digest: bytes) -> BlockStanding:
        """How far the block has come, as far as we know."""
        if self.outcome is not None and self.outcome.digest == digest:
            return BlockStanding.DECIDED
        if any(known is not None and known.digest == digest for known in (self.required, self.pledge.prepared)):
            return BlockStanding.PREPARED
        own = self.pledge.votes.get(VoteKind.PREPARE)
        return BlockStanding.VOTED if own is not None and own.digest == digest else BlockStanding.PROPOSED

    def _ask_for(self, digest: bytes, view: int, payload: bytes | None, holders: tuple[int, ...]) -> None:
        """Have the block executed as what it is by now."""
        self.checks.ask(digest, view, payload, self._standing(digest), self.primary(view), holders)

    def _commit(self) -> None:
        """Note the prepared certificate of the open view, and vote commit once its block is at hand."""
        prepared = self.pledge.prepared
        if prepared is None or prepared.view < self.view:
            for certificate in self.book.certificates(VoteKind.PREPARE):
                if certificate.view == self.view:
                    self.pledge.note_prepared(certificate)
            prepared = self.pledge.prepared
        if prepared is None or prepared.view != self.view:
            return
        digest = prepared.digest
        if self.checks.is_good(digest):
            self._vote(VoteKind.COMMIT, digest)  # [8.4]
        elif self.proposal is None or self.proposal.vote.digest != digest:
            self._ask_for(digest, self.view, None, prepared.signers)

    def _decide(self, certificate: Certificate) -> None:
        """Hand the decided block over, once it is at hand."""
        digest = certificate.digest
        if self.checks.is_good(digest) and not self.decided:
            self.decided = True  # [3.5]
            start_view = max(certificate.view, self.pledge.voted_view or 0)
            self._context.emit(Decide(self.height, digest, certificate, start_view))  # [4.1]
        elif not (self.decided or self.diverged or self.checks.is_running(digest)):
            proposal = self.proposal
            payload = proposal.payload if proposal is not None and proposal.vote.digest == digest else None
            self._ask_for(digest, certificate.view, payload, certificate.signers)

    def catch_up_from(self) -> tuple[str, ...]:
        """Who has this height's decided block, when it is not to be had here in any other way."""
        if self.outcome is None or self.decided or not (self.diverged or self.checks.unavailable):
            return ()
        return tuple(self.members.id(index) for index in self.outcome.signers if index != self.me)

    def _vote(self, kind: VoteKind, digest: bytes) -> None:
        vote = self.pledge.vote(kind, self.view, digest)
        if vote is not None:
            self.book.add(vote)
            self._context.emit(Broadcast(vote))

    # --- the primary's part -------------------------------------------------------------------------------

    def _may_propose(self) -> bool:
        return self.me == self.primary(self.view) and self.pledge.may_vote(VoteKind.PREPARE, self.view)

    def _start_proposal(self) -> None:
        """Propose the required block again, or have a fresh one built when there is a reason to."""
        if not self._may_propose() or self.me is None:
            return
        required = self.required
        if required is not None:
            payload = self.checks.payload(required.digest)
            if payload is not None:
                self._propose(required.digest, payload, None)  # [5.3]
            else:
                self._ask_for(required.digest, self.view, None, required.signers)  # [5.7]
            return
        context = self._context
        if context.wants_block():
            context.building = (self.height, self.view)
            context.told_since_build = False  # [3.1]
            failed = self.failed_views(self.view)
            quarantine = failed >= QUARANTINE_AFTER_VIEWS
            context.emit(  # [3.7]
                BuildPayload(self.height, self.view, self.head.digest, failed, context.empty_is_due(), quarantine)
            )

    def _propose(self, digest: bytes, payload: bytes, parent: Certificate | None) -> None:
        vote = self.pledge.vote(VoteKind.PREPARE, self.view, digest, proposed=True, parent=parent)
        if vote is None:
            return
        self.book.add(vote)
        self._publish(PrePrepare(vote, payload, parent))  # [1.2]
        self.advance()

    def _publish(self, proposal: PrePrepare) -> None:
        self.proposal = proposal
        self.verdict = True
        self._context.emit(Broadcast(proposal))

    def _resend_restored_proposal(self) -> None:
        """After a restart our own pre-prepare goes out again as soon as its block is at hand [8]."""
        own = self.pledge.votes.get(VoteKind.PREPARE)
        if own is None or self.proposal is not None or own.view != self.view or self.primary(own.view) != self.me:
            return
        payload = self.checks.payload(own.digest)
        if payload is None:
            self._ask_for(own.digest, own.view, None, ())
        else:
            self._publish(PrePrepare(own, payload, self.pledge.parent))  # [8.2]

    def _follow(self) -> None:
        """Ask for the view that f + 1 members ask for, and open it if it is ours to open."""
        target = jump_target([asked.view for asked in self.asks.values()], self.members)
        if target is not None:
            self.ask(target, "other members ask for it")  # [6.6]
        self._open_as_primary()

    def _open_as_primary(self) -> None:
        """Send the new view that a quorum asks us for, durably, once; then propose in it."""
        view = self.pledge.asked
        if view is None or not self.changing or self.me != self.primary(view):
            return
        view_changes = view_changes_for(self.asks, view, self.members)
        message = self.pledge.open(view, view_changes) if view_changes is not None else None
        if message is not None:
            self._context.emit(Broadcast(message))
            self._enter(view, message, None)
            self.advance()
