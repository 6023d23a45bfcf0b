"""The recoveries of a network that this node's operator, or a verifier's user, has said to trust.

A network whose quorum is lost for good goes on by a block that the survivors alone have signed (docs/recovery.md).
By the ledger's own rules that block is nothing: a quorum of the members before it has not signed it, and two groups
of survivors could each make one. So it is believed where a person has supplied its recovery file, as the genesis
file is supplied, and nowhere else.

Invariant: nothing in here ever comes from a peer, a pack, a snapshot, an archive or a backup.
"""

from collections.abc import Callable, Collection
from functools import cached_property

import msgspec

from consensus.members import Members, Validator
from consensus.messages import Certificate, VoteKind
from consensus.verification import Verifier

PROPOSER = "@recovery"
"""Stands as the proposer in the header of a recovery block, and in no other."""


class Recovery(msgspec.Struct, frozen=True, dict=True):
    """The recovery block that stands at `height`, and what it does.

    `validators` decided it and decide what follows, until they change their list by the ledger's rules. Where
    `kept_digest` is not empty, the block below it is one that the former members had prepared: the survivors have
    decided it too. `statement` is the hash of all that they signed besides.
    """

    height: int
    digest: bytes
    kept_digest: bytes
    validators: tuple[Validator, ...]
    reason: str
    statement: bytes

    @cached_property
    def members(self) -> Members:
        """The survivors."""
        return Members(self.validators)

    @property
    def first(self) -> int:
        """The lowest height that the survivors decided."""
        return self.height - 1 if self.kept_digest else self.height

    @property
    def call(self) -> tuple[str, str, dict[str, object]]:
        """The one call (contract, method, arguments) that the recovery block executes."""
        survivors = [validator.id for validator in self.validators]
        arguments: dict[str, object] = {"reason": self.reason, "statement": self.statement, "survivors": survivors}
        return "membership", "recover", arguments

    def names(self, height: int, digest: bytes) -> bool:
        """Whether the block `digest` is the one that the survivors decided at `height`."""
        return digest == (self.digest if height == self.height else self.kept_digest)


class Recoveries(msgspec.Struct, frozen=True):
    """All recoveries of one network that are trusted here, by ascending height."""

    items: tuple[Recovery, ...] = ()

    def at(self, height: int) -> Recovery | None:
        """The recovery whose survivors decided `height` in the place of the members before it, if there is one."""
        return next((item for item in self.items if item.first <= height <= item.height), None)

    def of_block(self, height: int, digest: bytes) -> Recovery | None:
        """The recovery of which this is the recovery block, if it is trusted here."""
        found = self.at(height)
        return found if found is not None and (found.height, found.digest) == (height, digest) else None

    def deciders(self, height: int, digest: bytes, members: Members) -> Members | None:
        """Who decides the block `digest` at `height`, where the height before names `members`.

        None: nobody can, for another block was decided there by the survivors.
        """
        found = self.at(height)
        if found is None:
            return members
        return found.members if found.names(height, digest) else None

    def objection(self, height: int, digest: bytes, proposer: str) -> str:
        """Why the block is none of the history that is trusted here, in a sentence; empty: nothing says so.

        Its certificate is still to be judged.
        """
        found = self.at(height)
        if found is not None and not found.names(height, digest):
            return (
                f"block {height} is {digest.hex()} there; the recovery {found.digest.hex()} that is trusted here"
                " has another one: these are two histories"
            )
        if proposer == PROPOSER and self.of_block(height, digest) is None:
            return (
                f"block {height} says that the network was recovered there by its survivors, and that recovery is"
                f" not trusted here: get the recovery file {digest.hex()} from a member, by another way than this"
                " came, and compare its number with a second member"
            )
        return ""

    def passed_over(self, height: int, changed: Collection[int]) -> Recovery | None:
        """A recovery below or at `height` that a proof up to there leaves out; None: it leaves out none.

        `changed` are the heights of all blocks in the proof that changed the members. Every recovery does, so a
        proof without it is one of another history: that of the members who were lost, or of other survivors.
        """
        return next((item for item in self.items if item.height <= height and item.height not in changed), None)

    def verifier(self, network: str, verify: Callable[[bytes, bytes, bytes], bool]) -> Verifier:
        """A judge of votes and certificates of `network` that knows of these recoveries."""
        return _Verifier(network, verify, self)


NO_RECOVERIES = Recoveries()
"""Nothing is trusted but the network's definition."""


class _Verifier(Verifier):
    """Judges a commit certificate by the members of its height, or by the survivors who decided that height."""

    def __init__(self, network: str, verify: Callable[[bytes, bytes, bytes], bool], recoveries: Recoveries) -> None:
        super().__init__(network, verify)
        self._recoveries = recoveries

    def certificate(self, certificate: Certificate, kind: VoteKind, members: Members) -> bool:
        """Whether a quorum of who decides that height signed exactly what `certificate` says, and it is of `kind`.

        `members` are those whom the height before names.
        """
        decided_by: Members | None = members
        if kind == VoteKind.COMMIT:
            decided_by = self._recoveries.deciders(certificate.height, certificate.digest, members)
        return decided_by is not None and super().certificate(certificate, kind, decided_by)
