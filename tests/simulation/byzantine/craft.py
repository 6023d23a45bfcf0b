"""Statements made with the keys of traitors: well signed where a key is at hand, forged where none is."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

import msgspec

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
    presence_bytes,
    status_bytes,
    view_change_bytes,
    vote_bytes,
)
from tests.simulation.block import digest_of, parse, payload_of
from tests.simulation.checks import NETWORK

if TYPE_CHECKING:
    from tests.simulation.byzantine.traitor import Traitor

NO_SIGNATURE = bytes(64)

MessageT = TypeVar("MessageT", bound=Message)


class Craft:
    """Signs with any key of the ring: the traitors that share their secrets."""

    def __init__(self, owner: "Traitor") -> None:
        """The list of members that counts is the one that decides the height in work of `owner`."""
        self.world = owner.world
        self._owner = owner
        self._mates: dict[int, Traitor] = {}
        self._members: Members | None = None

    @property
    def members(self) -> Members:
        """Who decides the height that the owner of this forge works on."""
        return self._owner.disk.members(self.world.members)

    @property
    def ring(self) -> tuple[int, ...]:
        """The places of all traitors in the list, ascending; those that are not in it have none."""
        members = self.members
        if members is not self._members:
            self._members = members
            places = {members.index(mate.id): mate for mate in self._owner.ring()}
            self._mates = {place: places[place] for place in sorted(one for one in places if one is not None)}
        return tuple(self._mates)

    def _sign(self, member: int, data: bytes) -> bytes:
        """The member's signature; an invented one where its key is not in the ring."""
        if member not in self.ring:
            return NO_SIGNATURE
        mate = self._mates[member]
        return self.world.signer.sign_as(mate.member, mate.key_version)(data)

    def vote(self, member: int, kind: VoteKind, view: int, height: int, digest: bytes) -> Vote:
        """A vote in the name of `member`."""
        data = vote_bytes(NETWORK, kind, view, height, digest)
        return Vote(kind, view, height, digest, member, self._sign(member, data))

    def signed(self, message: MessageT) -> MessageT:
        """`message` with a signature that fits its content, where it names a traitor; else as it is."""
        signed: Message = message
        if isinstance(message, PrePrepare):
            signed = msgspec.structs.replace(message, vote=self.signed(message.vote))
        elif isinstance(message, Vote) and message.member in self.ring:
            signed = self.vote(message.member, message.kind, message.view, message.height, message.digest)
        elif isinstance(message, ViewChange) and message.member in self.ring:
            signature = self._sign(message.member, view_change_bytes(NETWORK, message))
            signed = msgspec.structs.replace(message, signature=signature)
        elif isinstance(message, NewView) and message.member in self.ring:
            signature = self._sign(message.member, new_view_bytes(NETWORK, message))
            signed = msgspec.structs.replace(message, signature=signature)
        elif isinstance(message, Status) and message.member in self.ring:
            signature = self._sign(message.member, status_bytes(NETWORK, message))
            signed = msgspec.structs.replace(message, signature=signature)
        elif isinstance(message, Presence) and message.member in self.ring:
            signature = self._sign(message.member, presence_bytes(NETWORK, message))
            signed = msgspec.structs.replace(message, signature=signature)
        return signed  # type: ignore[return-value]  # the same type: only a signature was replaced

    def rival(self, message: PrePrepare) -> PrePrepare:
        """Another valid block for the same slot, with the same right beside it."""
        block = parse(message.payload)
        assert block is not None
        kept = block.requests[1:]
        other = msgspec.structs.replace(
            block,
            time_ms=block.time_ms + 1,
            requests=kept,
            quarantined=tuple(one for one in block.quarantined if one in kept),
            proposer=self._owner.member,
        )
        payload = payload_of(other)
        vote = msgspec.structs.replace(message.vote, digest=digest_of(payload))
        return self.signed(msgspec.structs.replace(message, vote=vote, payload=payload))

    def forged_certificate(self, kind: VoteKind, view: int, height: int, digest: bytes) -> Certificate:
        """A certificate without a quorum: the ring's signatures beside invented ones, alone, or many times."""
        pick = self.world.pick
        own = self.vote(self._owner.place, kind, view, height, digest).signature
        indices: Iterable[int] = range(self.members.quorum) if pick(0, 3) else self.ring
        repeated = pick(0, 2) == 1
        signatures = tuple(
            (index, own if repeated else self.vote(index, kind, view, height, digest).signature)
            for index in sorted(indices)
        )
        return Certificate(kind, view, height, digest, signatures)
