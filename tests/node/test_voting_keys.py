"""One key signs for one height, and a process whose member the list names anew signs nothing any more."""

import pytest

from consensus.config import Config
from consensus.effects import CheckPayload, Effect, Head, Memory, PayloadChecked, Received, Synced, Tick
from consensus.members import Members, Validator
from consensus.messages import Certificate, LatestVote, PrePrepare, Vote, VoteKind, vote_bytes
from consensus.replica import Replica
from consensus.status import Abstention
from node.runtime.voting_keys import VotingKeys
from tests.consensus.stage import NETWORK, TIME_MS, digest_of, of, said
from tests.simulation.signing import Signer

CHANGED, LAST = 120, 150
"""The list changed at CHANGED. Now LAST is decided; before its image was put back, the member voted at LAST + 1."""


class Image:
    """A member whose disk is an image from before the list changed, and what it signed since."""

    def __init__(self, change: str) -> None:
        self.signer = Signer(5)
        base = tuple(self.signer.members)
        first = Members(base[:4])
        self.me = first.id(1)
        self.place = 4 if change == "rotated" else 1
        self.now = Members((base[0], Validator(self.me, base[self.place].voting_key), *base[2:4]))
        self.before = first if change == "rotated" else Members((base[0], *base[2:5]))
        self.further = {base[4].voting_key: self.signer.sign_as(4)} if change == "rotated" else {}

    def vote(self, height: int, payload: bytes, member: int, by: int, kind: VoteKind = VoteKind.PREPARE) -> Vote:
        data = vote_bytes(NETWORK, kind, 0, height, digest_of(payload))
        return Vote(kind, 0, height, digest_of(payload), member, self.signer.sign_as(by)(data))

    def head(self, height: int, members: Members) -> Head:
        payload = f"block {height}".encode()
        votes = [self.vote(height, payload, index, index, VoteKind.COMMIT) for index in (0, 2, 3)]
        signatures = tuple((vote.member, vote.signature) for vote in votes)
        proof = Certificate(VoteKind.COMMIT, 0, height, digest_of(payload), signatures)
        return Head(height, proof.digest, proof, 0, members, members)

    def process(self, members: Members, height: int) -> tuple[VotingKeys, Replica, list[Effect]]:
        """A process that starts on this head, and what it says when the others show its newest vote."""
        base = self.signer.members
        keys = VotingKeys(self.me, base.key(1), self.signer.sign_as(1), self.further, members)
        config, memory = Config(network=NETWORK, member=self.me), Memory(False, True, 0, ())
        head = self.head(height, members)
        replica = Replica(config, head, memory, keys.sign, self.signer.verify, 1_000, TIME_MS)
        effects = replica.start()
        forgotten = self.vote(LAST + 1, b"X", 1, self.place)
        for index in (0, 2, 3):
            effects += replica.step(Received(base.id(index), LatestVote(forgotten)))
        return keys, replica, effects

    def goes_on(self, replica: Replica) -> list[Vote]:
        """What it votes after it was given the head with the list as it is now."""
        replica.step(Synced(self.head(LAST, self.now)))
        return self.votes_again(replica)

    def votes_again(self, replica: Replica) -> list[Vote]:
        """What it votes when another block is proposed at the height at which it has voted."""
        effects: list[Effect] = []
        for ms in range(100, 5_000, 100):
            effects += replica.step(Tick(1_000 + ms, TIME_MS + ms))
        primary = self.now.primary(LAST + 1, 0, 10_000)
        proof = self.head(LAST, self.now).certificate
        proposal = PrePrepare(self.vote(LAST + 1, b"Y", primary, primary), b"Y", proof)
        effects += replica.step(Received(self.now.id(primary), proposal))
        for check in of(CheckPayload, effects):
            answer = PayloadChecked(check.height, check.view, check.digest, True, check.payload, "")
            effects += replica.step(answer)
        return [vote for vote in said(Vote, effects) if vote.height == LAST + 1]


@pytest.mark.parametrize("change", ["rotated", "resumed"])
def test_an_image_from_before_the_list_changed_makes_nobody_vote_twice(change: str) -> None:
    """Put back, it was shown votes under a key that it did not know, caught up, and voted again."""
    image = Image(change)
    keys, replica, _ = image.process(image.before, CHANGED - 20)
    assert keys.adopt(image.now)
    # Whoever would go on with it signs nothing: neither what a peer could take nor what the disk would keep.
    with pytest.raises(RuntimeError, match="names anew"):
        image.goes_on(replica)
    # The next process is shown them again, and knows them.
    keys, replica, _ = image.process(image.now, LAST)
    assert not image.votes_again(replica)
    assert replica.status().abstention in (Abstention.LOST, Abstention.UNTIL)


def test_who_stays_in_the_list_or_leaves_it_goes_on() -> None:
    image = Image("rotated")
    keys, *_ = image.process(image.before, CHANGED)
    rest = Members((*tuple(image.before)[:1], *tuple(image.before)[2:]))
    assert not keys.adopt(image.before)
    assert not keys.adopt(rest)
    assert keys.listed is None
    # And whoever comes back begins anew.
    assert keys.adopt(image.before)
    with pytest.raises(RuntimeError, match="names anew"):
        keys.sign(b"x")


def test_a_key_that_is_not_at_hand_signs_nothing() -> None:
    image = Image("rotated")
    image.further = {}
    keys, replica, _ = image.process(image.now, LAST)
    assert keys.sign(b"x") == bytes(64)
    assert replica.status().abstention is Abstention.OTHER_KEY
