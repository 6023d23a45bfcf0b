"""The replica: `step(input) -> [effects]`, total, without a clock, a socket or a disk.

It triages what comes in by height, keeps time, heals what was lost, and moves from one height to the next. What
happens within a height is in height.py, what may be signed in pledge.py. Numbers in brackets are README sections.
"""

from collections.abc import Callable

import msgspec

from consensus.amnesia import Amnesia
from consensus.config import Config
from consensus.context import Context
from consensus.effects import (
    Applied,
    Broadcast,
    Connected,
    Effect,
    Head,
    Input,
    Memory,
    PayloadBuilt,
    PayloadChecked,
    PersistAbstention,
    Received,
    Send,
    Synced,
    Tick,
    VoteRecord,
    Withhold,
    WorkWaiting,
)
from consensus.epochs import epoch, since_epoch
from consensus.height import HeightInWork
from consensus.instances import Instances
from consensus.lag import Held, Lag, height_of
from consensus.members import Members
from consensus.messages import (
    Certificate,
    Decided,
    KnownInstance,
    LatestVote,
    Message,
    NewView,
    PrePrepare,
    Presence,
    Status,
    ViewChange,
    Vote,
    VoteKind,
    status_bytes,
    vote_bytes,
)
from consensus.pledge import UNSIGNED
from consensus.report import report
from consensus.status import PeerStatus, ReplicaStatus
from consensus.suspicion import Suspicion
from consensus.verification import Verifier

RESEND_FACTOR_MAX = 8
LATE_VOTES_MS = 200


class Replica:
    """One member's (or observer's) consensus, from the last applied block on."""

    def __init__(
        self,
        config: Config,
        head: Head,
        memory: Memory,
        sign: Callable[[bytes], bytes],
        verify: Callable[[bytes, bytes, bytes], bool],
        now_ms: int,
        time_ms: int,
    ) -> None:
        """`verify(key, message, signature)`; `now_ms` monotonic, `time_ms` wall clock. Nothing happens yet."""
        self._config = config
        self._context = Context(config, Verifier(config.network, verify), sign, Amnesia(memory, time_ms), now_ms)
        self._context.withheld = memory.withheld
        self._instances = Instances(self._context)
        self._verify = verify
        self._records = since_epoch(memory.records, head.first_view)
        self._time_ms = time_ms
        self._suspicion = Suspicion(self._context)
        self._held = Held()
        self._lag = Lag(config.status_interval_ms)
        self._peers: dict[str, PeerStatus] = {}
        self._peer_heard_ms: dict[str, int] = {}
        self._answered_ms: dict[str, int] = {}
        self._shown_ms: dict[str, int] = {}
        self._status_due_ms = now_ms
        self._retry_due_ms = now_ms
        self._resend_due_ms = now_ms
        self._resend_delay_ms = config.status_interval_ms
        self._resend_slot: tuple[int, int, int] | None = None
        # After this long a member votes although too few others have shown its newest vote: they are not there.
        self._confirm_due_ms = now_ms + config.base_timeout_ms
        self._applied_ms = now_ms
        self._checked_key: bytes | None = None
        self._work = self._open(head)

    def start(self) -> list[Effect]:
        """Return what a (re)started node does first: resends, checks of blocks it voted for. Call once."""
        context = self._context
        context.block_applied()
        newest = max(
            (record.vote.height for record in self._records if isinstance(record, VoteRecord)),
            default=0,
        )
        if newest > self._work.height:
            # The chain is older than the votes: somebody put an old chain back. Wait until it has passed them.
            context.own_vote_unknown(newest)
        if self._work.members.quorum == 1:
            context.amnesia.waited_enough()
        self._work.resume(self._records)
        self._records = ()
        self._send_status()
        self._conclude_amnesia()
        return self._take_effects()

    def step(self, input_: Input) -> list[Effect]:
        """Return the effects of one input, to be performed in order. No input of a peer can make it raise."""
        match input_:
            case Tick():
                self._on_tick(input_)
            case Received():
                self._on_message(input_.peer, input_.message)
            case Connected(peer=peer):
                self._on_connected(peer)
            case WorkWaiting():
                self._context.work_announced(input_.waiting, input_.passed_over, full=input_.full)
                self._work.advance()
            case PayloadBuilt():
                if self._context.building == (input_.height, input_.view):
                    self._context.building = None
                    self._work.on_built(input_)
            case PayloadChecked():  # [4.5]
                if input_.height == self._work.height:
                    self._work.on_checked(input_)
                    self._catch_up()
            case Applied(head=head) | Synced(head=head):
                self._on_head(head)
            case Withhold(reason=reason):
                self._context.withheld = reason  # [9.9]
                self._work.begin()
        return self._take_effects()

    def status(self) -> ReplicaStatus:
        """Return an immutable snapshot: where it stands, what it waits for, and who is missing."""
        now_ms = self._context.now_ms
        peers = tuple(
            msgspec.structs.replace(self._peers[name], heard_ms_ago=now_ms - self._peer_heard_ms[name])
            for name in sorted(self._peers)
        )
        next_event = self._suspicion.next_event(self._work)
        return report(self._context, self._work, next_event, peers, self.catch_up_target())

    def catch_up_target(self) -> int | None:
        """The height that is certainly decided elsewhere and not here; None: there is none."""
        return self._lag.target(self._work.members, self._work.head.height)

    # --- time [6, 7] --------------------------------------------------------------------------------------

    def _on_tick(self, tick: Tick) -> None:
        context = self._context
        passed_ms = max(0, tick.now_ms - context.now_ms)
        context.now_ms += passed_ms
        self._time_ms = tick.time_ms
        context.amnesia.clock_shows(tick.time_ms)
        if passed_ms >= max(self._config.base_timeout_ms // 2, 1):
            self._suspicion.restart()  # [6.9]
        if context.now_ms >= self._status_due_ms:
            self._send_status()
        if context.now_ms >= self._retry_due_ms:
            self._retry_due_ms = context.now_ms + self._config.status_interval_ms
            self._work.retry()
        if context.now_ms >= self._confirm_due_ms and context.amnesia.waited_enough():
            self._work.begin()
        self._work.advance()
        verdict = self._suspicion.judge(self._work, passed_ms)
        if verdict is not None:
            self._work.ask(*verdict)
        self._resend()
        self._catch_up()

    def _send_status(self) -> None:
        self._status_due_ms = self._context.now_ms + self._config.status_interval_ms
        status = self._own_status()
        if status is not None:
            self._context.emit(Broadcast(status))  # [7.1]

    def _own_status(self) -> Status | None:
        """Our heartbeat; an abstaining member sends it too: a status promises nothing."""
        work = self._work
        if work.me is None or not self._context.key_is_ours:
            return None
        unsigned = Status(work.height, work.view, work.head.digest, max(self._time_ms, 0), work.me, UNSIGNED)
        signature = self._context.sign(status_bytes(self._config.network, unsigned))
        return msgspec.structs.replace(unsigned, signature=signature)

    def _resend(self) -> None:
        """Say again what was signed at this height, less and less often, while it stays undecided."""
        work, now_ms = self._work, self._context.now_ms
        slot = (work.height, work.view, work.pledge.floor)
        if slot != self._resend_slot:
            self._resend_slot = slot
            self._resend_delay_ms = self._config.status_interval_ms
            self._resend_due_ms = now_ms + self._resend_delay_ms
        if now_ms < self._resend_due_ms:
            return
        self._resend_delay_ms = min(self._resend_delay_ms * 2, RESEND_FACTOR_MAX * self._config.status_interval_ms)
        self._resend_due_ms = now_ms + self._resend_delay_ms
        if self._context.amnesia.lost or self._context.amnesia.unconfirmed:
            # Ask the others again what they know of us: our question is their reminder.
            self._context.emit(Broadcast(LatestVote(None)))
        self._context.emit(*(Broadcast(message) for message in work.own_messages()))  # [7.2]
        proposal = work.own_proposal()
        if proposal is not None:
            voted = work.book.voters(VoteKind.PREPARE, proposal.vote.view, proposal.vote.digest)
            for index, validator in enumerate(work.members):
                if index not in voted:
                    self._context.emit(Send(validator.id, proposal))

    def _catch_up(self) -> None:
        """Ask for blocks while others are certainly ahead; one request at a time is answered by `Synced`."""
        work = self._work
        if work.decided:
            return
        holders = work.catch_up_from()
        if holders:
            self._lag.note_certificate(holders, work.height)
        # The votes may be on their way; and while our own executor has the block, it is likely the faster one.
        config = self._config
        executing = work.checks.running and self._lag.is_news(work.height)
        patience_ms = config.base_timeout_ms if executing else config.status_interval_ms
        effect = self._lag.catch_up(work.members, work.head.height, self._context.now_ms, patience_ms)
        if effect is not None:
            self._context.emit(effect)

    # --- peers [7] ----------------------------------------------------------------------------------------

    def _on_connected(self, peer: str) -> None:
        """Say again, to `peer` alone, what it may have missed, and show it its own newest vote."""
        self._show_latest_vote(peer)
        self._instances.on_connected(peer, self._work.members)
        status = self._own_status()
        if status is not None:
            self._send(peer, status)
        self._send_own(peer)

    def _send_own(self, peer: str) -> None:
        work = self._work
        for message in work.own_messages():
            self._send(peer, message)
        proposal = work.own_proposal()
        if proposal is not None and work.outcome is None:
            self._send(peer, proposal)

    def _send(self, peer: str, message: Message) -> None:
        self._context.emit(Send(peer, message))

    def _show_latest_vote(self, peer: str) -> None:
        if self._work.members.index(peer) is not None:
            self._shown_ms[peer] = self._context.now_ms
            self._send(peer, LatestVote(self._context.newest_votes.get(peer)))

    def _may_answer(self, peer: str) -> bool:
        """Whether `peer` may have an answer now: at most one per status interval."""
        now_ms = self._context.now_ms
        last_ms = self._answered_ms.get(peer)
        if last_ms is not None and now_ms - last_ms < self._config.status_interval_ms:
            return False
        if peer not in self._answered_ms and len(self._answered_ms) >= 4 * max(self._work.members.n, 16):
            del self._answered_ms[next(iter(self._answered_ms))]
        self._answered_ms[peer] = now_ms
        return True

    def _answer_behind(self, peer: str) -> None:
        """Prove to `peer` that its height is decided; the block comes by catch-up."""
        certificate = self._work.head.certificate
        if certificate is not None and self._may_answer(peer):
            self._send(peer, Decided(certificate))  # [7.3]

    def _answer_lower_view(self, peer: str) -> None:
        """Prove to `peer`, which is in a lower view of this height, that ours is open; and say our part again."""
        work = self._work
        if work.outcome is not None or not self._may_answer(peer):
            return
        if work.new_view is not None:
            self._send(peer, work.new_view)  # [7.3]
        elif work.parent is not None:
            self._send(peer, Decided(work.parent))  # [7.3]
        self._send_own(peer)

    # --- messages -----------------------------------------------------------------------------------------

    def _on_message(self, peer: str, message: Message) -> None:
        height = height_of(message)
        if height is not None:
            self._on_protocol(peer, message, height)
        elif isinstance(message, Status):
            self._on_status(peer, message)
        elif isinstance(message, Decided):
            self._on_decided(peer, message.certificate)
        elif isinstance(message, LatestVote):
            self._on_latest_vote(peer, message)
        elif isinstance(message, KnownInstance):
            self._instances.on_known(peer, message, self._work.members, self._work.me)
        elif isinstance(message, Presence):
            self._instances.on_presence(peer, message, self._work.members, self._work.me)
        self._conclude_amnesia()

    def _on_protocol(self, peer: str, message: Message, height: int) -> None:
        """Judge a message about the height in work; answer one below; hold the next; note what lies beyond."""
        work = self._work
        if height < work.height:
            late = isinstance(message, Vote) and height == work.head.height
            if not late or self._context.now_ms - self._applied_ms >= LATE_VOTES_MS:
                self._answer_behind(peer)
            return
        if height > work.height:
            self._lag.hint(peer, height)
            if work.members.index(peer) is not None:
                self._lag.note(peer, height)
                if height == work.height + 1:
                    self._held.keep(peer, message)  # [4.4]
            for certificate in _commit_certificates(message):
                self._on_decided(peer, certificate)
            return
        self._dispatch(peer, message)

    def _dispatch(self, peer: str, message: Message) -> None:
        work = self._work
        if isinstance(message, Vote):
            work.on_vote(message)
            if message.view < work.view:
                self._answer_lower_view(peer)
        elif isinstance(message, PrePrepare):
            if self._is_from(peer, message):
                work.on_pre_prepare(message)
        elif isinstance(message, ViewChange):
            work.on_view_change(message)
            if message.view <= work.view:
                self._answer_lower_view(peer)
        elif isinstance(message, NewView):
            work.on_new_view(message)

    def _is_from(self, peer: str, message: Message) -> bool:
        """Whether `peer` may bring `message`: a proposal comes from its primary itself, the rest from anybody.

        Only the vote in a proposal is signed; somebody else could put another payload beside a genuine vote.
        """
        foreign = isinstance(message, PrePrepare) and self._work.members.index(peer) != message.vote.member
        return not foreign  # [2.5]

    def _on_status(self, peer: str, status: Status) -> None:
        work = self._work
        members = work.members
        index = members.index(peer)
        if status.height > work.height:
            self._lag.hint(peer, status.height)
        if peer == self._config.member or index is None:
            return
        # Who works on another height may have another place in its list; it is its key that says who it is.
        if status.height == work.height and status.member != index:
            return
        if not self._context.verifier.status(status, members.key(index)):
            return
        now_ms = self._context.now_ms
        self._context.heard_ms[peer] = now_ms
        self._peer_heard_ms[peer] = now_ms
        self._peers[peer] = PeerStatus(
            peer, status.height, status.view, status.head, status.time_ms - self._time_ms, 0
        )
        self._lag.note(peer, status.height)
        self._context.amnesia.claimed(peer, max(status.height - 1, 0), status.time_ms)
        if status.height < work.height:
            self._answer_behind(peer)
        elif status.height == work.height and status.view < work.view:
            self._answer_lower_view(peer)

    def _on_decided(self, peer: str, certificate: Certificate) -> None:
        """Take a commit certificate: of this height, of the one below (it may open a view), or of one ahead."""
        work = self._work
        # One of an epoch before our head's says what another history decided (README 16.1).
        if certificate.height < work.head.height or epoch(certificate.view) < epoch(work.first_view):
            return
        if certificate.height <= work.height:
            work.on_certificate(certificate)
            if work.outcome is not None or certificate.height == work.head.height:
                self._context.amnesia.proved(peer, min(certificate.height, work.height))
        elif self._lag.is_news(certificate.height) and self._context.verifier.certificate(
            certificate, VoteKind.COMMIT, work.members
        ):
            self._lag.note_certificate((peer,), certificate.height)
            self._context.amnesia.proved(peer, certificate.height)
            self._catch_up()

    def _on_latest_vote(self, peer: str, message: LatestVote) -> None:
        """Compare the newest vote that `peer` has from us with our records; tell it ours if it may not know."""
        vote = message.vote
        work = self._work
        if vote is not None and work.me is not None and vote.height >= work.height:
            # At a later height we may have another place in the list: our key says whose vote it is [9.3].
            ours = vote.member == work.me or vote.height > work.height
            if ours and self._context.verifier.vote_by(vote, work.members.key(work.me)):
                work.pledge.shown_vote(vote)
        if self._context.amnesia.confirmed(peer, work.members, self._config.member or ""):
            work.begin()
        last_ms = self._shown_ms.get(peer)
        if last_ms is None or self._context.now_ms - last_ms >= self._config.status_interval_ms:
            self._show_latest_vote(peer)

    def _conclude_amnesia(self) -> None:
        if not self._context.amnesia.lost:
            return
        member = self._config.member
        if member is not None:
            until = self._context.amnesia.conclude(self._work.head.height, self._work.members, member)
            if until is not None:
                self._context.emit(PersistAbstention(until))

    # --- from height to height [4] ------------------------------------------------------------------------

    def _on_head(self, head: Head) -> None:
        """Move to the height above `head`: what was held for it is judged now."""
        work = self._work
        if head.height < work.height:
            return
        proposal = work.proposal
        followed = head.height == work.height and proposal is not None and proposal.vote.digest == head.digest
        self._suspicion.decided(followed=followed)
        if head.height == work.height:
            # Catch-up may have applied the very block that we voted for: our votes keep their weight.
            start_view = max(head.start_view, work.pledge.voted_view or 0)
            decided_by = head.decided_by or work.members
            head = msgspec.structs.replace(head, start_view=start_view, decided_by=decided_by)
        self._applied_ms = self._context.now_ms
        self._context.block_applied()
        self._context.suspicion = ""
        self._context.refusal = ""
        self._work = self._open(head)  # [1.3]
        self._lag.moved()
        self._forget_strangers(head.members)
        if head.members != work.members:
            self._instances.list_changed(work.members, head.members, self._work.me)
        self._work.begin()
        for peer, message in self._held.take(self._work.height):
            self._dispatch(peer, message)
        self._conclude_amnesia()

    def _forget_strangers(self, members: Members) -> None:
        """Drop what is kept about names that are no members any more."""
        self._context.forget_strangers(members)
        self._lag.forget_strangers(members)
        self._peers = {name: said for name, said in self._peers.items() if members.index(name) is not None}
        self._peer_heard_ms = {
            name: ms for name, ms in self._peer_heard_ms.items() if members.index(name) is not None
        }
        self._shown_ms = {name: ms for name, ms in self._shown_ms.items() if members.index(name) is not None}

    def _open(self, head: Head) -> HeightInWork:
        work = HeightInWork(self._context, head)
        if work.me is not None:
            self._prove_key(head, work.me)
        judges = head.decided_by or head.members
        if head.certificate is not None:
            for index, signature in head.certificate.signatures:
                if index < judges.n:
                    certificate = head.certificate
                    vote = Vote(
                        certificate.kind, certificate.view, certificate.height, certificate.digest, index, signature
                    )
                    self._context.remember_vote(vote, judges)
        return work

    def _prove_key(self, head: Head, me: int) -> None:
        """Find out whether the key in the member list is the one we sign with; once for each key."""
        key = head.members.key(me)
        if key != self._checked_key:
            self._checked_key = key
            probe = vote_bytes(self._config.network, VoteKind.PREPARE, 0, 0, head.digest)
            self._context.key_is_ours = self._verify(key, probe, self._context.sign(probe))  # [9.6]

    def _take_effects(self) -> list[Effect]:
        effects = self._context.effects
        self._context.effects = []
        return effects


def _commit_certificates(message: Message) -> list[Certificate]:
    """The commit certificate that a message of a later height carries as its proof."""
    if isinstance(message, PrePrepare):
        return [message.parent] if message.parent is not None else []
    if isinstance(message, ViewChange):
        return [message.decided] if message.decided is not None else []
    if isinstance(message, NewView):
        return [asked.decided for asked in message.view_changes[:1] if asked.decided is not None]
    return []
