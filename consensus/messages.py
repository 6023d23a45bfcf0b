"""What members say to one another about one height, and what of it is signed.

A vote is a signature over (tag, network, kind, view, height, digest). The primary's pre-prepare *is* its
prepare vote, with the payload and the right to propose beside it, so a certificate is always of one kind.
View changes, new views and statuses are signed as whole messages.
"""

from enum import IntEnum
from typing import Annotated, TypeAlias

import msgspec

from consensus.codec import encode

INSTANCE_SIZE = 16
"""Bytes that a process draws at its start to be told apart from any other."""
VALIDATORS_MAX = 128
PAYLOAD_SIZE_MAX = 4 * 1024 * 1024

Index: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=VALIDATORS_MAX)]
View: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Height: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
TimeMs: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Digest: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Instance: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=INSTANCE_SIZE, max_length=INSTANCE_SIZE)]
Signature: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
Payload: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=PAYLOAD_SIZE_MAX)]


class VoteKind(IntEnum):
    """The two votes of PBFT that carry a digest."""

    PREPARE = 1
    COMMIT = 2


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Encoded as a fixed-order array; messages on the wire also carry their tag first."""


class Certificate(_Message, frozen=True):
    """A quorum of votes of one kind, in one view, for one digest; indices strictly ascending."""

    kind: VoteKind
    view: View
    height: Height
    digest: Digest
    signatures: Annotated[tuple[tuple[Index, Signature], ...], msgspec.Meta(max_length=VALIDATORS_MAX)]

    @property
    def signers(self) -> tuple[int, ...]:
        """The indices of who signed."""
        return tuple(index for index, _ in self.signatures)


class Vote(_Message, frozen=True, tag=1):
    """One member's prepare or commit for the block `digest` at (height, view)."""

    kind: VoteKind
    view: View
    height: Height
    digest: Digest
    member: Index
    signature: Signature


class ViewChange(_Message, frozen=True, tag=2):
    """`member` asks for `view` at `height`; proves that height - 1 is decided and what it has prepared.

    `decided` is the commit certificate of height - 1 (None only at height 1);
    `prepared` is the highest prepare certificate the member has for `height`, if any.
    """

    height: Height
    view: View
    decided: Certificate | None
    prepared: Certificate | None
    member: Index
    signature: Signature


class NewView(_Message, frozen=True, tag=3):
    """The primary of (height, view) shows a quorum of view changes for exactly that slot."""

    height: Height
    view: View
    view_changes: Annotated[tuple[ViewChange, ...], msgspec.Meta(max_length=VALIDATORS_MAX)]
    member: Index
    signature: Signature


class PrePrepare(_Message, frozen=True, tag=4):
    """The primary proposes `payload`; `vote` is its signed prepare vote for the payload's digest.

    `parent` is the commit certificate of height - 1 in the same view, which gives the right to propose without
    a new view; it is None at height 1 in view 0 and wherever a NewView for (height, view) gives that right.
    """

    vote: Vote
    payload: Payload
    parent: Certificate | None


class Status(_Message, frozen=True, tag=5):
    """A member's heartbeat: the height it works on, its view there, its head, and its clock (Unix ms)."""

    height: Height
    view: View
    head: Digest
    time_ms: TimeMs
    member: Index
    signature: Signature


class Decided(_Message, frozen=True, tag=6):
    """Proof that a height is decided: sent to whoever still speaks about it. The block is fetched by catch-up."""

    certificate: Certificate


class LatestVote(_Message, frozen=True, tag=7):
    """The newest signed vote that the sender holds from the receiver (None: it holds none).

    Sent on every connect: a member that is shown a vote newer than its own records has lost its memory.
    """

    vote: Vote | None


class KnownInstance(_Message, frozen=True, tag=8):
    """The process of the receiver's member that the sender met last (None: none yet). Sent on every connect.

    Every process draws its instance at its start. The answer is a Presence.
    """

    instance: Instance | None


class Presence(_Message, frozen=True, tag=9):
    """The process `instance` of `member` lives, and lived after the process `met` of that member had started.

    None can be shown an instance before it was drawn, so two processes that have each met the other lived at the
    same time. `met` is None where no other process was shown.
    """

    instance: Instance
    met: Instance | None
    member: Index
    signature: Signature


Message: TypeAlias = (
    Vote | ViewChange | NewView | PrePrepare | Status | Decided | LatestVote | KnownInstance | Presence
)


class VoteEquivocation(_Message, frozen=True, tag=1):
    """Two votes of one member and kind for one (height, view) with different digests."""

    first: Vote
    second: Vote


class NewViewEquivocation(_Message, frozen=True, tag=2):
    """Two new views of one member for one (height, view) with different content."""

    first: NewView
    second: NewView


class TwoInstances(_Message, frozen=True, tag=3):
    """Two processes with one member's key, each of which lived after the other had started.

    The places that they name differ where the list changed in between: it is the key that says whose they are.
    """

    first: Presence
    second: Presence


Evidence: TypeAlias = VoteEquivocation | NewViewEquivocation | TwoInstances


class _SignedVote(msgspec.Struct, frozen=True, array_like=True):
    """What a vote signs: a Struct and not a tuple, because the codec looks into every item of a tuple."""

    domain: str
    network: str
    kind: int
    view: int
    height: int
    digest: bytes


class _SignedViewChange(msgspec.Struct, frozen=True, array_like=True):
    """What a view change signs."""

    domain: str
    network: str
    height: int
    view: int
    decided: Certificate | None
    prepared: Certificate | None
    member: int


class _SignedNewView(msgspec.Struct, frozen=True, array_like=True):
    """What a new view signs."""

    domain: str
    network: str
    height: int
    view: int
    view_changes: tuple[ViewChange, ...]
    member: int


class _SignedStatus(msgspec.Struct, frozen=True, array_like=True):
    """What a status signs."""

    domain: str
    network: str
    height: int
    view: int
    head: bytes
    time_ms: int
    member: int


class _SignedPresence(msgspec.Struct, frozen=True, array_like=True):
    """What a presence signs."""

    domain: str
    network: str
    instance: bytes
    met: bytes | None
    member: int


def vote_bytes(network: str, kind: VoteKind, view: int, height: int, digest: bytes) -> bytes:
    """The bytes that a vote signs."""
    return encode(_SignedVote("hansa/vote", network, int(kind), view, height, digest))


def view_change_bytes(network: str, message: ViewChange) -> bytes:
    """The bytes that a view change signs: everything but the signature."""
    return encode(
        _SignedViewChange(
            "hansa/view-change",
            network,
            message.height,
            message.view,
            message.decided,
            message.prepared,
            message.member,
        )
    )


def new_view_bytes(network: str, message: NewView) -> bytes:
    """The bytes that a new view signs: everything but the signature."""
    return encode(
        _SignedNewView(
            "hansa/new-view", network, message.height, message.view, message.view_changes, message.member
        )
    )


def status_bytes(network: str, message: Status) -> bytes:
    """The bytes that a status signs: everything but the signature."""
    return encode(
        _SignedStatus(
            "hansa/status", network, message.height, message.view, message.head, message.time_ms, message.member
        )
    )


def presence_bytes(network: str, message: Presence) -> bytes:
    """The bytes that a presence signs: everything but the signature."""
    return encode(_SignedPresence("hansa/presence", network, message.instance, message.met, message.member))
