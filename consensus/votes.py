"""The votes of one height: one per member and slot, certificates out of them, and equivocation.

A slot is (kind, view). Votes are kept for the view in work and, per member and kind, for the highest view
above it: a liar who votes in many views fills only its own two places.
Every vote in the book was verified before it came in.
"""

from consensus.members import Members
from consensus.messages import Certificate, Vote, VoteKind


class VoteBook:
    """The verified votes of one height."""

    def __init__(self, members: Members, view: int) -> None:
        """An empty book for the view `view` and later ones."""
        self._members = members
        self._view = view
        self._current: dict[VoteKind, dict[int, Vote]] = {VoteKind.PREPARE: {}, VoteKind.COMMIT: {}}
        self._ahead: dict[VoteKind, dict[int, Vote]] = {VoteKind.PREPARE: {}, VoteKind.COMMIT: {}}

    def find(self, kind: VoteKind, view: int, member: int) -> Vote | None:
        """The vote of `member` in the slot (kind, view), if it is kept."""
        vote = (self._current if view == self._view else self._ahead)[kind].get(member)
        return vote if vote is not None and vote.view == view else None

    def wants(self, vote: Vote) -> bool:
        """Whether the book would look at `vote` (before it is verified): a slot in work, or the highest ahead."""
        if not 0 <= vote.member < self._members.n or vote.view < self._view:
            return False
        if vote.view == self._view:
            return True
        ahead = self._ahead[vote.kind].get(vote.member)
        return ahead is None or vote.view >= ahead.view

    def add(self, vote: Vote) -> Vote | None:
        """Keep a verified, wanted vote; return the vote in the same slot that it contradicts, if any.

        The first vote of a slot stays: a second one is evidence, never counted.
        """
        found = self.find(vote.kind, vote.view, vote.member)
        if found is not None:
            return found if found.digest != vote.digest else None
        (self._current if vote.view == self._view else self._ahead)[vote.kind][vote.member] = vote
        return None

    def enter(self, view: int) -> None:
        """Move to a higher view: its votes that came early count now, votes below it are forgotten."""
        self._view = view  # [11.2]
        for kind, ahead in self._ahead.items():
            self._current[kind] = {member: vote for member, vote in ahead.items() if vote.view == view}
            self._ahead[kind] = {member: vote for member, vote in ahead.items() if vote.view > view}

    def voters(self, kind: VoteKind, view: int, digest: bytes | None = None) -> tuple[int, ...]:
        """Who voted in the slot (for `digest`, or for anything), ascending."""
        votes = (self._current if view == self._view else self._ahead)[kind]
        return tuple(
            sorted(
                member
                for member, vote in votes.items()
                if vote.view == view and (digest is None or vote.digest == digest)
            )
        )

    def slots(self, kind: VoteKind) -> list[tuple[int, bytes]]:
        """Every (view, digest) that has votes of `kind`, in ascending order of view."""
        found: dict[tuple[int, bytes], None] = {}
        for votes in (self._current[kind], self._ahead[kind]):
            for vote in votes.values():
                found[(vote.view, vote.digest)] = None
        return sorted(found)

    def certificates(self, kind: VoteKind) -> list[Certificate]:
        """Every certificate of `kind` that the kept votes make, in ascending order of view."""
        enough = self._members.quorum
        if len(self._current[kind]) < enough and len(self._ahead[kind]) < enough:
            return []
        made = [self.certificate(kind, view, digest) for view, digest in self.slots(kind)]
        return [certificate for certificate in made if certificate is not None]

    def certificate(self, kind: VoteKind, view: int, digest: bytes) -> Certificate | None:
        """A certificate for `digest` in the slot, if a quorum voted so; made of verified votes."""
        voters = self.voters(kind, view, digest)
        if len(voters) < self._members.quorum:
            return None
        votes = (self._current if view == self._view else self._ahead)[kind]  # [1.1, 2.1]
        return Certificate(
            kind=kind,
            view=view,
            height=votes[voters[0]].height,
            digest=digest,
            signatures=tuple((member, votes[member].signature) for member in voters[: self._members.quorum]),
        )
