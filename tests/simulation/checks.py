"""The rules of consensus, judged from outside at every effect that a simulated member performs.

Nothing here shares code with the replica beyond the messages' types and the bytes that are signed: quorum,
certificates and slots are computed again, so that a mistake in the replica cannot excuse itself.
"""

import itertools
from collections import Counter

from consensus.effects import NewViewRecord, PreparedRecord, Record, ViewChangeRecord, VoteRecord
from consensus.members import Members
from consensus.messages import (
    Certificate,
    Message,
    NewView,
    PrePrepare,
    Status,
    ViewChange,
    Vote,
    VoteKind,
    new_view_bytes,
    status_bytes,
    view_change_bytes,
    vote_bytes,
)
from tests.simulation.block import digest_of
from tests.simulation.disk import Disk, Stored
from tests.simulation.signing import Signer

NETWORK = "sim-0123456789ab"


class Violation(Exception):
    """A rule is broken: `rule` is its short name, `detail` says by whom and how."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.detail = detail


class Conduct:
    """All that one honest member durably promised, across its restarts; a wiped disk starts a new one."""

    def __init__(self, votes_above: int) -> None:
        self.votes_above = votes_above  # amnesia: every height up to here may hold a forgotten promise
        self.slots: dict[tuple[VoteKind, int, int], bytes] = {}
        self.floor: dict[int, int] = {}  # height -> highest view asked for or voted in
        self.voted: dict[int, int] = {}  # height -> highest view voted in
        self.prepared: dict[int, Certificate] = {}  # height -> highest prepare certificate
        self.decided_view: dict[int, int] = {0: 0}  # height -> view of the certificate that decided it
        self.view_changes: dict[ViewChange, None] = {}
        self.new_views: dict[tuple[int, int], NewView] = {}

    def start_view(self, height: int) -> int:
        """The view in which this member must start `height`, as far as it is known."""
        return max(self.decided_view.get(height - 1, 0), self.voted.get(height - 1, 0))

    def highest_height_voted(self) -> int:
        """The highest height at which this member ever voted or asked for a view; 0 without any."""
        return max(self.floor, default=0)


class Checks:
    """Every rule, how often it was judged (`rules`), which rare situations came up (`reached`), and known facts."""

    def __init__(self, signer: Signer) -> None:
        self.steps = 0  # every one of them was total, and its height and view were judged
        self.rules: Counter[str] = Counter()
        self.reached: Counter[str] = Counter()
        self.records: Counter[str] = Counter()  # what honest members made durable, by kind
        self._signer = signer
        # Height -> who decides it: known as soon as any member has applied the block below.
        self._lists: dict[int, Members] = {1: signer.members}
        # Height -> whose turn as primary is skipped there.
        self._resting: dict[int, tuple[str, ...]] = {1: ()}
        self._roots: dict[int, bytes] = {}
        self._committed: dict[int, tuple[bytes, str]] = {}
        self._commits: dict[tuple[int, int, bytes], int] = {}
        self._judged: dict[Certificate, bool] = {}
        self._views: dict[int, int] = {}  # height -> highest view that an honest member asked for or voted in

    def require(self, rule: str, holds: bool, *detail: object) -> None:
        """Count one judgement of `rule`; raise Violation when it does not hold."""
        self.rules[rule] += 1
        if not holds:
            raise Violation(rule, " ".join(str(part) for part in detail))

    # --- lists and state ---------------------------------------------------------------------------------

    def on_state(self, name: str, disk: Disk, members: Members, *, honest: bool) -> None:
        """Judge what executing the new head left behind: the state, and the list that decides the next height."""
        height = disk.height
        known = self._lists.setdefault(height + 1, members)
        root = self._roots.setdefault(height, disk.root)
        if honest:
            self.require("equal member lists", known == members, name, "after", height)
            self.require("equal state roots", root == disk.root, name, "at", height)
        resting = self._resting.setdefault(height + 1, disk.resting)
        if honest:
            self.require("equal resting members", resting == disk.resting, name, "after", height)

    def _judge_turn(self, where: str, height: int, member: int) -> None:
        """Who rests neither proposes nor opens a view, unless the others are too few for a quorum."""
        members = self._lists[height]
        resting = [name for name in self._resting[height] if members.index(name) is not None]
        if not resting:
            return
        if members.n - len(resting) < _quorum_of(members):
            self.reached["more rested than a quorum can spare"] += 1
            return
        self.reached["proposed while another rested"] += 1
        self.require("who rests has no turn", members.id(member) not in resting, where)

    def _index(self, number: int, height: int) -> int | None:
        """The place of the member `number` in the list that decides `height`."""
        members = self._lists.get(height)
        return members.index(self._signer.name(number)) if members is not None else None

    # --- what is durable ---------------------------------------------------------------------------------

    def on_durable(self, name: str, member: int, conduct: Conduct, disk: Disk, record: Record) -> None:
        """Judge a record just before the disk has it. `member` is the number of who writes it."""
        self.records[type(record).__name__] += 1
        if isinstance(record, VoteRecord):
            self._on_vote_durable(name, member, conduct, disk, record)
        elif isinstance(record, PreparedRecord):
            certificate = record.certificate
            self.require(
                "certificate", self._prepared(certificate, certificate.height), name, "prepared", certificate
            )
            known = conduct.prepared.get(certificate.height)
            if known is None or known.view <= certificate.view:
                conduct.prepared[certificate.height] = certificate
        elif isinstance(record, ViewChangeRecord):
            self._on_view_change_durable(name, member, conduct, record.message)
        else:
            self._on_new_view_durable(name, conduct, record)

    def _on_vote_durable(self, name: str, member: int, conduct: Conduct, disk: Disk, record: VoteRecord) -> None:
        vote = record.vote
        slot = (vote.kind, vote.view, vote.height)
        where = f"{name} {vote.kind.name} h{vote.height} v{vote.view} {vote.digest.hex()[:8]}"
        own = vote.member == self._index(member, vote.height)
        self.require("own signature", own and self._vote_signed(vote), where)
        known = conduct.slots.get(slot)
        self.require("one vote per slot", known in (None, vote.digest), where, "after", (known or b"").hex())
        if known is not None:
            return
        self.require("vote above an applied block", vote.height <= disk.height + 1, where, "at head", disk.height)
        self.require(
            "never below a view asked for or voted in", vote.view >= conduct.floor.get(vote.height, 0), where
        )
        self.require("start view", vote.view >= conduct.start_view(vote.height), where)
        self.require("abstention", vote.height > disk.abstain_until, where, "until", disk.abstain_until)
        self.require("amnesia", vote.height > conduct.votes_above, where, "forgot up to", conduct.votes_above)
        if vote.kind is VoteKind.COMMIT:
            proof = conduct.prepared.get(vote.height)
            holds = proof is not None and (proof.view, proof.digest) == (vote.view, vote.digest)
            self.require("commit only what is prepared", holds, where)
        self._judge_view_of_vote(where, conduct, vote)
        self._note_vote(conduct, vote)
        conduct.slots[slot] = vote.digest
        self._views[vote.height] = max(self._views.get(vote.height, 0), vote.view)
        conduct.floor[vote.height] = max(conduct.floor.get(vote.height, 0), vote.view)
        conduct.voted[vote.height] = max(conduct.voted.get(vote.height, 0), vote.view)

    def _judge_view_of_vote(self, where: str, conduct: Conduct, vote: Vote) -> None:
        """A second view of a height is entered by a new view only, and that binds what may be voted for there."""
        new_view = conduct.new_views.get((vote.height, vote.view))
        voted = conduct.voted.get(vote.height)
        if voted is not None and voted < vote.view:
            self.require("a later view is opened by a new view", new_view is not None, where, "after view", voted)
        bound = _highest_prepared(new_view) if new_view is not None else None
        if bound is not None:
            self.require("a new view re-proposes what is prepared", bound.digest == vote.digest, where)

    def _note_vote(self, conduct: Conduct, vote: Vote) -> None:
        """Count the situations in which a vote is more than routine."""
        before = [slot for slot in conduct.slots if slot[2] == vote.height and slot[0] == vote.kind]
        if before:
            self.reached[f"{vote.kind.name.lower()} again in a higher view"] += 1
            if any(conduct.slots[slot] != vote.digest for slot in before):
                self.reached[f"{vote.kind.name.lower()} for another block in a higher view"] += 1
        if conduct.votes_above:
            self.reached["voted again after losing its memory"] += 1

    def _on_view_change_durable(self, name: str, member: int, conduct: Conduct, message: ViewChange) -> None:
        where = f"{name} VIEW-CHANGE h{message.height} v{message.view}"
        height = message.height
        own = message.member == self._index(member, height)
        signed = own and self._signed(
            height, message.member, view_change_bytes(NETWORK, message), message.signature
        )
        self.require("own signature", signed, where)
        self.require(
            "never below a view asked for or voted in", message.view >= conduct.floor.get(height, 0), where
        )
        self.require("amnesia", height > conduct.votes_above, where, "forgot up to", conduct.votes_above)
        self.require("view change is valid", self._view_change_valid(message, height, message.view), where)
        known = conduct.prepared.get(height)
        tells = known is None or (message.prepared is not None and message.prepared.view >= known.view)
        self.require("a view change hides nothing prepared", tells, where)
        # An honest member asks for one view more than it is in, or for one that an honest member asked for before.
        highest = max(self._views.get(height, 0), self._views.get(height - 1, 0), conduct.start_view(height))
        self.require("nobody follows a liar to its view", message.view <= highest + 1, where, "above", highest)
        self._views[height] = max(self._views.get(height, 0), message.view)
        conduct.view_changes[message] = None
        if message.prepared is not None:
            self.reached["asked for a view with something prepared"] += 1
        if message.view >= 3 + conduct.start_view(height):
            self.reached["asked for the third view or later"] += 1
        conduct.floor[height] = max(conduct.floor.get(height, 0), message.view)

    def _on_new_view_durable(self, name: str, conduct: Conduct, record: NewViewRecord) -> None:
        message = record.message
        self.require("new view is valid", self._new_view_valid(message), name, f"h{message.height} v{message.view}")
        conduct.new_views[(message.height, message.view)] = message

    # --- what is sent ------------------------------------------------------------------------------------

    def on_sent(self, name: str, member: int, conduct: Conduct, message: Message) -> None:
        """Judge a message that an honest member sends in its own name."""
        where = f"{name} sends {type(message).__name__}"
        if isinstance(message, Vote):
            if message.member == self._index(member, message.height):
                self._on_vote_sent(where, conduct, message)
        elif isinstance(message, PrePrepare):
            self._on_pre_prepare_sent(where, conduct, message)
        elif isinstance(message, ViewChange):
            if message.member == self._index(member, message.height):
                self.require(
                    "durable before sent", message in conduct.view_changes, where, message.height, message.view
                )
        elif isinstance(message, NewView):
            if message.member == self._index(member, message.height):
                known = conduct.new_views.get((message.height, message.view))
                self.require("durable before sent", known == message, where, message.height, message.view)
                self._judge_turn(where, message.height, message.member)
        elif isinstance(message, Status):
            own = message.member == self._index(member, message.height)
            signed = own and self._signed(
                message.height, message.member, status_bytes(NETWORK, message), message.signature
            )
            self.require("own signature", signed, where)

    def _on_vote_sent(self, where: str, conduct: Conduct, vote: Vote) -> None:
        durable = conduct.slots.get((vote.kind, vote.view, vote.height)) == vote.digest
        self.require("durable before sent", durable, where, vote.kind.name, f"h{vote.height} v{vote.view}")
        if vote.kind is VoteKind.COMMIT:
            self._count_commit(vote)

    def _on_pre_prepare_sent(self, where: str, conduct: Conduct, message: PrePrepare) -> None:
        vote = message.vote
        where = f"{where} h{vote.height} v{vote.view}"
        self._on_vote_sent(where, conduct, vote)
        self._judge_turn(where, vote.height, vote.member)
        self.require("digest names the payload", digest_of(message.payload) == vote.digest, where)
        new_view = conduct.new_views.get((vote.height, vote.view))
        if new_view is not None:
            bound = _highest_prepared(new_view)
            honest = bound is None or bound.digest == vote.digest
            self.require("a new view re-proposes what is prepared", honest, where)
            self.reached["proposed again what was prepared" if bound else "proposed afresh in a new view"] += 1
        elif message.parent is not None:
            right = self._decided(message.parent, vote.height - 1) and message.parent.view == vote.view
            self.require("right to propose", right, where)
            if message.parent.view != conduct.decided_view.get(vote.height - 1):
                self.reached["proposed by a certificate of another view than its own"] += 1
        else:
            self.require("right to propose", (vote.height, vote.view) == (1, 0), where)

    def _count_commit(self, vote: Vote) -> None:
        """A quorum of commits in one view decides, whether or not anybody has collected them yet."""
        key = (vote.height, vote.view, vote.digest)
        self._commits[key] = voters = self._commits.get(key, 0) | 1 << vote.member
        if voters.bit_count() >= _quorum_of(self._lists[vote.height]):
            self.on_decided(f"a quorum of commits in view {vote.view}", vote.height, vote.digest)

    def on_foreign_commit(self, vote: Vote) -> None:
        """A faulty member's commit counts towards quorums too."""
        if vote.kind is VoteKind.COMMIT and self._vote_signed(vote):
            self._count_commit(vote)

    # --- what is decided ---------------------------------------------------------------------------------

    def on_decided(self, who: str, height: int, digest: bytes) -> None:
        """Judge agreement: one digest a height, for ever, whoever finds out."""
        first, by = self._committed.setdefault(height, (digest, who))
        self.require(
            "agreement", first == digest, f"h{height}: {who} has {digest.hex()[:8]}, {by} had {first.hex()[:8]}"
        )

    def on_decide(self, name: str, conduct: Conduct, certificate: Certificate, start_view: int) -> None:
        """Judge a Decide before it is performed."""
        where = f"{name} h{certificate.height} v{certificate.view}"
        self.require("certificate", self._decided(certificate, certificate.height), where)
        self.on_decided(name, certificate.height, certificate.digest)
        expected = max(certificate.view, conduct.voted.get(certificate.height, 0))
        if expected > certificate.view:
            self.reached["voted above the view that decided"] += 1
        elif certificate.view > conduct.start_view(certificate.height):
            self.reached["decided in a later view"] += 1
        self.require("start view", start_view == expected, where, f"start view {start_view}, expected {expected}")

    def on_fetched(self, name: str, stored: Stored) -> None:
        """Judge a block that catch-up brought."""
        certificate = stored.certificate
        valid = self._decided(certificate, stored.block.height) and certificate.digest == digest_of(stored.payload)
        self.require("certificate", valid, name, "fetched", f"h{stored.block.height}")
        self.on_decided(name, stored.block.height, stored.digest)

    def on_applied(self, name: str, disk: Disk, stored: Stored, conduct: Conduct) -> None:
        """Judge the block that is about to become the head of `disk`."""
        block = stored.block
        where = f"{name} h{block.height}"
        self.require("heights only grow by one", block.height == disk.height + 1, where, "on", disk.height)
        self.require("chain", block.parent == disk.head_digest and block.time_ms > disk.head_time_ms, where)
        once = not any(request in disk.applied_requests for request in block.requests)
        self.require("a request takes effect once", once, where, block.requests)
        conduct.decided_view[block.height] = stored.certificate.view

    # --- proofs ------------------------------------------------------------------------------------------

    def _vote_signed(self, vote: Vote) -> bool:
        data = vote_bytes(NETWORK, vote.kind, vote.view, vote.height, vote.digest)
        return self._signed(vote.height, vote.member, data, vote.signature)

    def _signed(self, height: int, index: int, data: bytes, signature: bytes) -> bool:
        """Whether the member at `index` of the list of `height` signed `data`."""
        members = self._lists.get(height)
        if members is None or index >= members.n:
            return False
        return self._signer.verify(members.key(index), data, signature)

    def _decided(self, certificate: Certificate, height: int) -> bool:
        return certificate.kind is VoteKind.COMMIT and certificate.height == height and self._proves(certificate)

    def _prepared(self, certificate: Certificate, height: int) -> bool:
        return certificate.kind is VoteKind.PREPARE and certificate.height == height and self._proves(certificate)

    def _proves(self, certificate: Certificate) -> bool:
        known = self._judged.get(certificate)
        if known is None:
            known = self._judged[certificate] = self._judge(certificate)
        return known

    def _judge(self, certificate: Certificate) -> bool:
        members = self._lists.get(certificate.height)
        indices = [index for index, _ in certificate.signatures]
        ascending = all(low < high for low, high in itertools.pairwise(indices))
        if members is None or len(indices) < _quorum_of(members) or not ascending or indices[-1] >= members.n:
            return False
        data = vote_bytes(NETWORK, certificate.kind, certificate.view, certificate.height, certificate.digest)
        return all(
            self._signer.verify(members.key(index), data, signature) for index, signature in certificate.signatures
        )

    def _view_change_valid(
        self, message: ViewChange, height: int, view: int, *, asked_by_another: bool = False
    ) -> bool:
        """`asked_by_another`: its proof of the height before is for who is behind; who works here has its own."""
        if (message.height, message.view) != (height, view) or message.member >= self._lists[height].n:
            return False
        if message.decided is None:
            if height != 1:
                return False
        elif not (self._decided(message.decided, height - 1) or asked_by_another):
            return False
        proof = message.prepared
        return proof is None or (proof.view < view and self._prepared(proof, height))

    def _new_view_valid(self, message: NewView) -> bool:
        height = message.height
        signed = self._signed(height, message.member, new_view_bytes(NETWORK, message), message.signature)
        askers = [change.member for change in message.view_changes]
        if not signed or len(set(askers)) != len(askers) or len(askers) < _quorum_of(self._lists[height]):
            return False
        return all(
            self._view_change_valid(change, message.height, message.view, asked_by_another=True)
            and self._signed(height, change.member, view_change_bytes(NETWORK, change), change.signature)
            for change in message.view_changes
        )


def _quorum_of(members: Members) -> int:
    """How many votes decide, computed apart from the code that is judged."""
    return (members.n + (members.n - 1) // 3) // 2 + 1


def _highest_prepared(new_view: NewView) -> Certificate | None:
    proofs = [change.prepared for change in new_view.view_changes if change.prepared is not None]
    return max(proofs, key=lambda proof: proof.view, default=None)
