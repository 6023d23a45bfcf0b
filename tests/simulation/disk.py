"""What survives a crash of a simulated member: exactly what was synced, and nothing else."""

import copy
import hashlib
from typing import NamedTuple

from consensus.effects import Head, Memory, PreparedRecord, Record, ViewChangeRecord, VoteRecord
from consensus.members import Members
from consensus.messages import Certificate, VoteKind
from tests.simulation.block import Block

GENESIS = bytes(range(32))


class Stored(NamedTuple):
    """One applied block with what was written in the same batch."""

    block: Block
    payload: bytes
    digest: bytes
    certificate: Certificate
    start_view: int
    members: Members | None = None
    """Who decides the next height; None stands for the list of genesis."""
    resting: tuple[str, ...] = ()
    """Whose turn as primary is skipped at the next height."""


class Disk:
    """The durable chain, the bodies that were voted for, the records and the markers of one data directory."""

    def __init__(self, *, initialised: bool) -> None:
        self.chain: list[Stored] = []
        self.applied_requests: dict[int, None] = {}
        self.accepted: dict[int, None] = {}  # requests that clients were promised, not settled yet
        self.root = GENESIS  # stands for the state: a hash over all that took effect, in order
        self.bodies: dict[bytes, bytes] = {}
        self.records: list[Record] = []
        self.never_voted = initialised
        self.voted = False
        self.abstain_until = 0
        self.withheld = ""

    @property
    def height(self) -> int:
        """The height of the last applied block; 0 for genesis."""
        return len(self.chain)

    @property
    def head_digest(self) -> bytes:
        """The digest of the last applied block."""
        return self.chain[-1].digest if self.chain else GENESIS

    @property
    def head_time_ms(self) -> int:
        """The block time of the last applied block."""
        return self.chain[-1].block.time_ms if self.chain else 0

    def members(self, genesis: Members) -> Members:
        """Who decides the next height."""
        return (self.chain[-1].members or genesis) if self.chain else genesis

    def head(self, genesis: Members) -> Head:
        """The head as the replica takes it; `genesis` decides as long as no block has changed the list."""
        if not self.chain:
            return Head(height=0, digest=GENESIS, certificate=None, start_view=0, members=genesis)
        last = self.chain[-1]
        return Head(
            height=self.height,
            digest=last.digest,
            certificate=last.certificate,
            start_view=last.start_view,
            members=last.members or genesis,
            decided_by=(self.chain[-2].members or genesis) if self.height > 1 else genesis,
            resting=last.resting,
        )

    @property
    def resting(self) -> tuple[str, ...]:
        """Whose turn as primary is skipped at the next height."""
        return self.chain[-1].resting if self.chain else ()

    def memory(self) -> Memory:
        """The member's own records as the replica takes them at start."""
        return Memory(
            never_voted=self.never_voted,
            voted=self.voted,
            abstain_until=self.abstain_until,
            records=tuple(self.records),
            withheld=self.withheld,
        )

    def write(self, record: Record, body: bytes | None) -> None:
        """`record` is durable; `body` is the payload of the digest that it names, where it is at hand."""
        slot, view = _slot_of(record)
        known = [other for other in self.records if _slot_of(other)[0] == slot]
        if _height_of(record) > self.height and not any(_slot_of(other)[1] > view for other in known):
            self.records = [other for other in self.records if other not in known] + [record]
        if isinstance(record, VoteRecord | ViewChangeRecord):  # what others signed makes nobody one that has voted
            self.never_voted = False
            self.voted = True
        digest = _digest_named(record)
        if body is not None and digest is not None:
            self.bodies[digest] = body

    def apply(self, stored: Stored) -> None:
        """The block is the head, and whatever only mattered up to its height is gone."""
        self.chain.append(stored)
        for request in stored.block.requests:
            self.applied_requests[request] = None
            self.accepted.pop(request, None)
        self.root = hashlib.sha256(self.root + repr(stored.block.requests).encode()).digest()
        self.records = [record for record in self.records if _height_of(record) > self.height]
        self.bodies = {}

    def highest_view_voted(self, height: int) -> int:
        """The highest view of this member's own votes at `height` that the records still know; 0 without any."""
        return max(
            (
                record.vote.view
                for record in self.records
                if isinstance(record, VoteRecord) and record.vote.height == height
            ),
            default=0,
        )

    def copy(self) -> "Disk":
        """A backup of the directory as it is now."""
        twin = copy.copy(self)
        twin.chain = list(self.chain)
        twin.applied_requests = dict(self.applied_requests)
        twin.accepted = dict(self.accepted)
        twin.bodies = dict(self.bodies)
        twin.records = list(self.records)
        return twin

    def lose_memory(self) -> None:
        """Chain kept, own records and markers gone: what restoring a backup leaves."""
        self.records = []
        self.bodies = {}
        self.never_voted = False
        self.voted = False
        self.abstain_until = 0


def _slot_of(record: Record) -> tuple[tuple[object, ...], int]:
    """(slot, view): of one slot only the highest view is kept, as the node's store does it."""
    height = _height_of(record)
    if isinstance(record, VoteRecord):
        vote = record.vote
        return (VoteRecord, height, vote.kind, vote.view), vote.view
    view = record.certificate.view if isinstance(record, PreparedRecord) else record.message.view
    return (type(record), height), view


def _height_of(record: Record) -> int:
    if isinstance(record, VoteRecord):
        return record.vote.height
    if isinstance(record, PreparedRecord):
        return record.certificate.height
    return record.message.height


def _digest_named(record: Record) -> bytes | None:
    if isinstance(record, VoteRecord) and record.vote.kind is VoteKind.PREPARE:
        return record.vote.digest
    if isinstance(record, PreparedRecord):
        return record.certificate.digest
    return None
