"""One real replica on a stage: the test plays the other members, the executor, the disk and the clock.

Signatures are a keyed hash (the replica takes `sign` and `verify` as functions), so everything is deterministic.
"""

import hashlib
from typing import TypeVar

from consensus.config import Config
from consensus.effects import (
    Applied,
    Broadcast,
    CheckPayload,
    Decide,
    Effect,
    Head,
    Input,
    Memory,
    PayloadBuilt,
    PayloadChecked,
    Persist,
    Received,
    Record,
    Send,
    Tick,
    WorkWaiting,
)
from consensus.members import Members
from consensus.messages import (
    Certificate,
    Message,
    NewView,
    PrePrepare,
    Presence,
    Status,
    ViewChange,
    Vote,
    VoteKind,
    new_view_bytes,
    status_bytes,
    view_change_bytes,
    vote_bytes,
)
from consensus.replica import Replica
from tests.simulation.signing import Signer

NETWORK = "stage-0123456789ab"
GENESIS = b"\0" * 32
FRESH = Memory(never_voted=True, voted=False, abstain_until=0, records=())
TIME_MS = 1_700_000_000_000

E = TypeVar("E")
M = TypeVar("M")


def digest_of(payload: bytes) -> bytes:
    """The name of a payload."""
    return hashlib.sha256(payload).digest()


def remembering(*records: Record) -> Memory:
    """What a disk with these records says."""
    return Memory(never_voted=False, voted=True, abstain_until=0, records=records)


def of(kind: type[E], effects: list[Effect]) -> list[E]:
    """The effects of one kind."""
    return [effect for effect in effects if isinstance(effect, kind)]


def said(kind: type[M], effects: list[Effect]) -> list[M]:
    """The messages of one kind that were broadcast."""
    return [effect.message for effect in of(Broadcast, effects) if isinstance(effect.message, kind)]


def sent(kind: type[M], effects: list[Effect], peer: str) -> list[M]:
    """The messages of one kind that were sent to `peer` alone."""
    return [
        effect.message for effect in of(Send, effects) if effect.peer == peer and isinstance(effect.message, kind)
    ]


def recorded(effects: list[Effect]) -> list[Record]:
    """The records that were persisted, in order."""
    return [effect.record for effect in of(Persist, effects)]


class Stage:
    """Member `me` of `n`, started; `me` None puts an observer on the stage."""

    def __init__(
        self,
        n: int = 4,
        me: int | None = 0,
        *,
        memory: Memory = FRESH,
        head: Head | None = None,
        instance: bytes = b"",
        **parameters: int,
    ) -> None:
        self.signer = Signer(n)
        self.members: Members = self.signer.members
        self.me = me
        self.head = head or Head(0, GENESIS, None, 0, self.members)
        self.now_ms = 1_000_000
        self.verified = 0
        member = self.members.id(me) if me is not None else None
        self.config = Config(network=NETWORK, member=member, instance=instance, **parameters)
        self.replica = Replica(
            self.config,
            self.head,
            memory,
            self.signer.sign_as(me if me is not None else 0),
            self._verify,
            self.now_ms,
            TIME_MS,
        )
        self.first_effects = self.replica.start()

    def _verify(self, key: bytes, data: bytes, signature: bytes) -> bool:
        self.verified += 1
        return self.signer.verify(key, data, signature)

    # --- inputs -------------------------------------------------------------------------------------------

    def give(self, *inputs: Input) -> list[Effect]:
        """Step through `inputs`; return all effects."""
        effects: list[Effect] = []
        for input_ in inputs:
            effects += self.replica.step(input_)
        return effects

    def receive(self, *messages: Message, peer: int | None = None) -> list[Effect]:
        """Receive each message from the member that signed it (or from `peer`)."""
        effects: list[Effect] = []
        for message in messages:
            sender = peer if peer is not None else _author(message)
            effects += self.give(Received(self.members.id(sender), message))
        return effects

    def pass_time(self, ms: int, *, alive: tuple[int, ...] = ()) -> list[Effect]:
        """Let time pass in ticks of 100 ms; members in `alive` send their status each time."""
        effects: list[Effect] = []
        for _ in range(ms // 100):
            self.now_ms += 100
            effects += self.give(Tick(self.now_ms, TIME_MS + self.now_ms))
            for index in alive:
                effects += self.receive(self.status(index, TIME_MS + self.now_ms))
        return effects

    def jump(self, ms: int) -> list[Effect]:
        """One tick after a pause of the process."""
        self.now_ms += ms
        return self.give(Tick(self.now_ms, TIME_MS + self.now_ms))

    def work(self, waiting: bool = True, passed_over: int = 0, *, full: bool = False) -> list[Effect]:
        """Tell whether work waits, and whether more than a block's worth."""
        return self.give(WorkWaiting(waiting, passed_over, full))

    def built(self, payload: bytes | None, view: int = 0, height: int | None = None) -> list[Effect]:
        """The builder answers."""
        digest = digest_of(payload) if payload is not None else None
        return self.give(PayloadBuilt(height or self.height, view, digest, payload))

    def checked(
        self, effects: list[Effect], *, valid: bool | None = True, payload: bytes | None = None
    ) -> list[Effect]:
        """The executor answers every CheckPayload among `effects`."""
        answers: list[Effect] = []
        for check in of(CheckPayload, effects):
            answers += self.give(
                PayloadChecked(check.height, check.view, check.digest, valid, payload or check.payload, "")
            )
        return answers

    def applied(self, effects: list[Effect]) -> list[Effect]:
        """The store has applied the block of the one Decide among `effects`."""
        [decide] = of(Decide, effects)
        self.head = Head(decide.height, decide.digest, decide.certificate, decide.start_view, self.members)
        return self.give(Applied(self.head))

    # --- what the others say ------------------------------------------------------------------------------

    @property
    def height(self) -> int:
        """The height above the head."""
        return self.head.height + 1

    def vote(self, kind: VoteKind, member: int, payload: bytes, view: int = 0, height: int | None = None) -> Vote:
        """A vote signed by `member`."""
        height = height or self.height
        digest = digest_of(payload)
        signature = self.signer.sign_as(member)(vote_bytes(NETWORK, kind, view, height, digest))
        return Vote(kind, view, height, digest, member, signature)

    def prepare(self, member: int, payload: bytes, view: int = 0, height: int | None = None) -> Vote:
        """A prepare signed by `member`."""
        return self.vote(VoteKind.PREPARE, member, payload, view, height)

    def commit(self, member: int, payload: bytes, view: int = 0, height: int | None = None) -> Vote:
        """A commit signed by `member`."""
        return self.vote(VoteKind.COMMIT, member, payload, view, height)

    def certificate(
        self, kind: VoteKind, payload: bytes, members: tuple[int, ...], view: int = 0, height: int | None = None
    ) -> Certificate:
        """A certificate signed by `members`."""
        votes = [self.vote(kind, member, payload, view, height) for member in members]
        return Certificate(
            kind, view, votes[0].height, votes[0].digest, tuple((vote.member, vote.signature) for vote in votes)
        )

    def prepared(self, payload: bytes, view: int = 0, members: tuple[int, ...] = (0, 1, 2)) -> Certificate:
        """A prepare certificate of the height in work."""
        return self.certificate(VoteKind.PREPARE, payload, members, view)

    def primary(self, view: int, height: int | None = None) -> int:
        """Who proposes in `view`."""
        return self.members.primary(height or self.height, view, self.config.rotation_heights)

    def pre_prepare(
        self, payload: bytes, view: int = 0, parent: Certificate | None = None, height: int | None = None
    ) -> PrePrepare:
        """The proposal of `payload` by the primary of `view`."""
        return PrePrepare(self.prepare(self.primary(view, height), payload, view, height), payload, parent)

    def ask(
        self,
        member: int,
        view: int,
        prepared: Certificate | None = None,
        *,
        height: int | None = None,
        decided: Certificate | None = None,
    ) -> ViewChange:
        """A view change signed by `member`."""
        height = height or self.height
        decided = decided or (self.head.certificate if height == self.height else None)
        unsigned = ViewChange(height, view, decided, prepared, member, b"")
        return ViewChange(
            height,
            view,
            decided,
            prepared,
            member,
            self.signer.sign_as(member)(view_change_bytes(NETWORK, unsigned)),
        )

    def new_view(self, view: int, *asks: ViewChange, member: int | None = None) -> NewView:
        """The new view of `view` with these view changes."""
        author = member if member is not None else self.primary(view)
        unsigned = NewView(asks[0].height, view, asks, author, b"")
        signature = self.signer.sign_as(author)(new_view_bytes(NETWORK, unsigned))
        return NewView(asks[0].height, view, asks, author, signature)

    def open(self, view: int, *prepared: Certificate) -> NewView:
        """A valid new view by the members 1, 2, 3; the first of them shows the prepared certificate, if any."""
        certificates = [*prepared, None, None, None]
        return self.new_view(view, *(self.ask(i, view, certificates[i - 1]) for i in (1, 2, 3)))

    def status(
        self, member: int, time_ms: int = TIME_MS, height: int | None = None, view: int = 0, head: bytes = GENESIS
    ) -> Status:
        """A heartbeat signed by `member`."""
        unsigned = Status(height or self.height, view, head, time_ms, member, b"")
        signature = self.signer.sign_as(member)(status_bytes(NETWORK, unsigned))
        return Status(unsigned.height, view, head, time_ms, member, signature)

    # --- ways to get somewhere ----------------------------------------------------------------------------

    def follow(self, payload: bytes, view: int = 0, parent: Certificate | None = None) -> list[Effect]:
        """A backup takes a proposal and finds it good."""
        return self.checked(self.receive(self.pre_prepare(payload, view, parent)))

    def decide(self, payload: bytes, *, view: int = 0) -> list[Effect]:
        """A backup goes through one height under members 1, 2, 3 and the primary, and applies it."""
        others = [index for index in range(self.members.n) if index != self.me]
        self.follow(payload, view, self.head.certificate)
        self.receive(*(self.prepare(index, payload, view) for index in others))
        effects = self.receive(*(self.commit(index, payload, view) for index in others))
        return self.applied(effects)


def _author(message: Message) -> int:
    if isinstance(message, PrePrepare):
        return message.vote.member
    assert isinstance(message, Vote | ViewChange | NewView | Status | Presence)
    return message.member
