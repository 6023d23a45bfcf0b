"""Whether what a message claims was signed by whom it names. Every vote is verified once.

The cache holds vote signatures that were found good, so that a certificate whose votes came in one by one
costs nothing. It holds a bounded number of entries and forgets the oldest.
"""

from collections.abc import Callable

from consensus.members import Members
from consensus.messages import (
    Certificate,
    NewView,
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

GOOD_VOTES_MAX = 4096


class Verifier:
    """Judges signatures and certificates for one network."""

    def __init__(self, network: str, verify: Callable[[bytes, bytes, bytes], bool]) -> None:
        """`verify(key, message, signature)` is a pure function."""
        self._network = network
        self._verify = verify
        self._good: dict[tuple[bytes, bytes, bytes], None] = {}

    def vote(self, vote: Vote, members: Members) -> bool:
        """Whether the member that `vote` names signed it."""
        return vote.member < members.n and self.vote_by(vote, members.key(vote.member))

    def vote_by(self, vote: Vote, key: bytes) -> bool:
        """Whether the owner of `key` signed it. The place that it names is not signed, and changes with lists."""
        message = vote_bytes(self._network, vote.kind, vote.view, vote.height, vote.digest)
        return self._signed(key, message, vote.signature)

    def certificate(self, certificate: Certificate, kind: VoteKind, members: Members) -> bool:
        """Whether a quorum of `members` signed exactly what `certificate` says, and it is of `kind`."""
        signatures = certificate.signatures
        if certificate.kind != kind or not members.quorum <= len(signatures) <= members.n:
            return False
        last = -1
        for index, _ in signatures:
            if not last < index < members.n:
                return False
            last = index
        message = vote_bytes(self._network, kind, certificate.view, certificate.height, certificate.digest)
        return all(self._signed(members.key(index), message, signature) for index, signature in signatures)

    def view_change(self, message: ViewChange, members: Members) -> bool:
        """Whether the member that `message` names signed it, and its prepared certificate is genuine.

        The certificate of the height before is not judged here: who works on this height has its own.
        """
        if message.member >= members.n:
            return False
        if not self._verify(
            members.key(message.member), view_change_bytes(self._network, message), message.signature
        ):
            return False
        return message.prepared is None or self.certificate(message.prepared, VoteKind.PREPARE, members)

    def new_view(self, message: NewView, members: Members) -> bool:
        """Whether the member that `message` names signed it. Its view changes are judged one by one."""
        return message.member < members.n and self._verify(
            members.key(message.member), new_view_bytes(self._network, message), message.signature
        )

    def status(self, message: Status, key: bytes) -> bool:
        """Whether the owner of `key` signed it."""
        return self._verify(key, status_bytes(self._network, message), message.signature)

    def presence(self, message: Presence, key: bytes) -> bool:
        """Whether the owner of `key` signed it."""
        return self._verify(key, presence_bytes(self._network, message), message.signature)

    def _signed(self, key: bytes, message: bytes, signature: bytes) -> bool:
        entry = (key, message, signature)
        if entry in self._good:  # [2.2]
            return True
        if not self._verify(key, message, signature):
            return False
        if len(self._good) >= GOOD_VOTES_MAX:
            del self._good[next(iter(self._good))]
        self._good[entry] = None
        return True
