"""A traitor: runs the shipped replica to stay plausible, and abuses its key on everything that goes out."""

from collections import deque

import msgspec

from consensus.messages import (
    Certificate,
    Decided,
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
from tests.simulation.block import digest_of, parse, payload_of
from tests.simulation.checks import NETWORK
from tests.simulation.machine import Machine

HEIGHT_MAX = 2**63 - 1


class Liar(Machine):
    """Equivocates, votes for whatever it hears of, hides what it prepared, claims absurd views, replays."""

    _heard: deque[Message]
    _lies_permille: int

    def start(self) -> None:
        """The process runs, with a mood of its own for this life."""
        self._heard = deque(maxlen=30)
        self._lies_permille = (50, 300, 900)[self.world.pick(0, 3)]
        super().start()

    def receive(self, peer: str, message: Message) -> None:
        """Besides the replica's own answer: echo votes with the own key, or play something old again."""
        self._heard.append(message)
        super().receive(peer, message)
        if not self.world.chance(self._lies_permille // 4):
            return
        self.world.faults["lie"] += 1
        if isinstance(message, Vote):
            kind = (message.kind, VoteKind.COMMIT)[self.world.pick(0, 2)]
            self._out(self._vote(kind, message.view, message.height, message.digest))
        else:
            self._out(self._heard[self.world.pick(0, len(self._heard))])

    def _emit(self, message: Message, peer: str | None) -> None:
        if not self.world.chance(self._lies_permille):
            super()._emit(message, peer)
            return
        self.world.faults["lie"] += 1
        lie = self._lie(message)
        self._heard.append(message)
        for machine in self.world.machines:
            told = (message, lie)[self.world.pick(0, 2)]
            if machine is not self and told is not None:
                self._out(told, machine)

    def _out(self, message: Message, machine: Machine | None = None) -> None:
        vote = message.vote if isinstance(message, PrePrepare) else message
        if isinstance(vote, Vote) and vote.member == self.member:
            self.world.checks.on_foreign_commit(vote)
        self.world.network.send(self, (machine or self._any_other()).id, message)

    def _any_other(self) -> Machine:
        others = [machine for machine in self.world.machines if machine is not self]
        return others[self.world.pick(0, len(others))]

    # --- what it says instead ----------------------------------------------------------------------------

    def _lie(self, message: Message) -> Message | None:
        """Another message in the place of `message`; None for silence."""
        if self.world.chance(200):
            return None
        if isinstance(message, Vote):
            other = self._other_digest(message.digest)
            if self.world.chance(250):
                return Decided(self._forge(VoteKind.COMMIT, message.view, message.height, other))
            return self._vote(message.kind, message.view, message.height, other)
        if isinstance(message, PrePrepare):
            return self._other_proposal(message)
        if isinstance(message, ViewChange):
            return self._other_view_change(message)
        if isinstance(message, NewView):
            shuffled = message.view_changes[::-1][: self.world.pick(1, len(message.view_changes) + 1)]
            bare = msgspec.structs.replace(message, view_changes=shuffled)
            return msgspec.structs.replace(bare, signature=self._sign(new_view_bytes(NETWORK, bare)))
        if isinstance(message, Status):
            height = (message.height, message.height + 1, message.height + 50, HEIGHT_MAX)[self.world.pick(0, 4)]
            view = (message.view, message.view + 1, HEIGHT_MAX)[self.world.pick(0, 3)]
            status = msgspec.structs.replace(message, height=height, view=view)
            return msgspec.structs.replace(status, signature=self._sign(status_bytes(NETWORK, status)))
        return message

    def _other_proposal(self, message: PrePrepare) -> PrePrepare:
        block = parse(message.payload)
        assert block is not None
        if self.world.chance(150):
            payload = b"\xc1 no block"
        else:
            payload = payload_of(
                msgspec.structs.replace(block, time_ms=block.time_ms + 1, requests=block.requests[1:])
            )
        vote = self._vote(VoteKind.PREPARE, message.vote.view, message.vote.height, digest_of(payload))
        parent = message.parent
        if parent is not None and self.world.chance(200):
            parent = self._forge(VoteKind.COMMIT, message.vote.view, parent.height, parent.digest)
        return msgspec.structs.replace(message, vote=vote, payload=payload, parent=parent)

    def _other_view_change(self, message: ViewChange) -> ViewChange:
        view = (message.view, message.view + 1, message.view + 7, 2**62)[self.world.pick(0, 4)]
        prepared: Certificate | None = message.prepared if self.world.chance(300) else None
        if message.view > 0 and self.world.chance(300):
            digest = self._other_digest(message.prepared.digest if message.prepared is not None else b"")
            prepared = self._forge(VoteKind.PREPARE, message.view - 1, message.height, digest)
        change = msgspec.structs.replace(message, view=view, prepared=prepared)
        return msgspec.structs.replace(change, signature=self._sign(view_change_bytes(NETWORK, change)))

    def _forge(self, kind: VoteKind, view: int, height: int, digest: bytes) -> Certificate:
        """A certificate without a quorum: the own signature beside invented ones, or alone, or many times."""
        own = self._vote(kind, view, height, digest).signature
        quorum = self.world.members.quorum
        how = self.world.pick(0, 3)
        indices = range(quorum) if how < 2 else (self.member,)
        signatures = tuple((index, own if how == 1 or index == self.member else bytes(64)) for index in indices)
        return Certificate(kind, view, height, digest, signatures)

    def _vote(self, kind: VoteKind, view: int, height: int, digest: bytes) -> Vote:
        signature = self._sign(vote_bytes(NETWORK, kind, view, height, digest))
        return Vote(kind, view, height, digest, self.member, signature)

    def _other_digest(self, digest: bytes) -> bytes:
        for heard in self._heard:
            vote = heard.vote if isinstance(heard, PrePrepare) else heard
            if isinstance(vote, Vote) and vote.digest != digest:
                return vote.digest
        return digest_of(digest)

    def _sign(self, data: bytes) -> bytes:
        return self.world.signer.sign_as(self.member)(data)
