"""What lies where in the database: one letter for each kind of entry, integers as 8 bytes big-endian.

Values are as they are read; those of `b`, `r` and `u` lie there compressed (packing.py).

m name                  markers: format, network, height of the head, never_voted, voted, abstain_until, endings,
                        voting_key (the member's key in the list that the last process began with), silenced_keys
                        (those of its voting keys that never sign again, one after the other),
                        recovery (the recoveries that this member has signed, see RecoveryPromise),
                        diverged (the block that is executed otherwise here), first (the lowest height from which on
                        every body is here; absent: 1), remove (blocks below it may go), pruned (below it all is
                        gone but what `y` rows name), held (topics under legal hold)
s state-key             canonical bytes of a value of the state
t sha256(state-key)     SHA-256 of the value: a pair of the state tree
d name                  the record of a bucket of the state tree that is parted (tree_records.py)
b height digest         a block's body (header, transactions, quarantined)
w height digest         a body that was written before its height was decided
h height                the head record of that height: digest, certificate, validators of the next height
r height                its receipts, transaction by transaction
u height                what its write set replaced (undo record)
x tx_id                 height, position
k height                the header of a block whose body was pruned here
y height                a block below the first that is kept all the same: why (legal hold, imported again)
e size topic height     positions (4 bytes each) with events under the topic
q expires_at_ms key     a request id to be forgotten: state key of its record
p tx_id                 a transaction that this node accepted from a client and that is not final
j tx_id                 a transaction that was accepted here and ended without becoming final (see `g`)
l height                nothing: the block at that height changed the list of validators
c height slot           a consensus record: sequence number, canonical bytes
v number                evidence of equivocation, with the name of the accused
"""

import msgspec

from consensus.effects import PreparedRecord, Record, ViewChangeRecord, VoteRecord
from consensus.messages import Evidence
from node.ledger import sha256

FORMAT = b"3"

LEDGER_KINDS = b"bdehklqrstuwxy"
"""The letters of all rows that come from blocks. The others are markers and what the node remembers of itself."""

META_FORMAT = b"mformat"
META_NETWORK = b"mnetwork"
META_HEAD = b"mhead"
META_NEVER_VOTED = b"mnever_voted"
META_VOTED = b"mvoted"
META_ABSTAIN = b"mabstain_until"
META_ENDINGS = b"mendings"
META_VOTING_KEY = b"mvoting_key"
META_SILENCED = b"msilenced_keys"
META_RECOVERY = b"mrecovery"
META_DIVERGED = b"mdiverged"
META_FIRST = b"mfirst"
META_PRUNED = b"mpruned"
META_REMOVE = b"mremove"
META_HELD = b"mheld"
META_ADOPTING = b"madopting"

TOPIC_SIZE_MAX = 200
_TOPIC_HEADS = tuple(b"e" + bytes((size,)) for size in range(TOPIC_SIZE_MAX + 1))
RECORD_SIZE_MAX = 64 * 1024 * 1024
"""No stored value is larger: the largest are bodies and receipts of full blocks."""


class ReceiptsRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All receipts of a block, each encoded by itself; the first `scheduled` are those of scheduled calls."""

    scheduled: int
    receipts: tuple[bytes, ...]


class HeldTopic(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A word under legal hold: from height `since` on, every block with events under its topics is here."""

    word: str
    since: int


class EvidenceRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A proof, and whom it accused when it was found: a place in a list of members means another one later."""

    member: str
    evidence: Evidence


class UndoRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """(state key, its bytes before the block or None), ascending by key."""

    before: tuple[tuple[bytes, bytes | None], ...]


class RecoveryPromise(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """This member has signed, or is about to, the recovery block `digest` at `height`, and the kept block below.

    From then on it votes only on a chain that has this block, or the one of a later promise that takes its place.
    `view` is that of these votes: a member that signs another recovery signs it in a later epoch.
    `passed`: the chain in this directory has reached that height, or may have (forgetting.py). What this member may
    sign above the block it may have signed since, so a chain that comes to the block gives no lost memory back.
    """

    height: int
    digest: bytes
    view: int
    passed: bool = False


class Execution(msgspec.Struct, frozen=True):
    """What a block did: its encoded receipts, and (state key, value after it or None) of all that it changed.

    `writes` None: undo records are no longer kept that far back.
    """

    receipts: tuple[bytes, ...]
    writes: tuple[tuple[bytes, bytes | None], ...] | None


class DivergenceRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The certified block whose roots this node does not come to, since when, and what it found about it.

    `code` and `reason` are the executor's. `difference` is what a peer's proof showed, as bytes of whoever wrote it
    (None: not compared yet); `compared_with` is that peer ("": nobody yet).
    """

    height: int
    digest: bytes
    found_time_ms: int
    code: str
    reason: str
    compared_with: str = ""
    difference: bytes | None = None


def number(value: int) -> bytes:
    """Return `value` as 8 bytes that sort as it does."""
    return value.to_bytes(8, "big")


def body_key(height: int, digest: bytes) -> bytes:
    """Return where the body of a block lies.

    Heights ascend, so new bodies lie behind all older ones and LevelDB hardly ever writes one again to merge them.
    """
    return b"b" + number(height) + digest


def topic_prefix(topic: str) -> bytes:
    """Return what all index entries of `topic` start with; a height follows. Long topics go by their hash."""
    text = topic.encode("utf-8")
    if len(text) > TOPIC_SIZE_MAX:
        return b"e\xff" + sha256(text)
    return _TOPIC_HEADS[len(text)] + text


def place(position: int) -> bytes:
    """Return a position in a block as it stands in index entries."""
    return position.to_bytes(4, "big")


def location(height: int, position: int) -> bytes:
    """Return the index entry of a transaction."""
    return number(height) + place(position)


def read_location(data: bytes) -> tuple[int, int]:
    """Return (height, position) of an index entry."""
    return int.from_bytes(data[:8], "big"), int.from_bytes(data[8:], "big")


def record_slot(record: Record) -> tuple[bytes, int, int]:
    """Return (slot, height, view) of a consensus record: of one slot only the highest view matters.

    Votes have a slot for each kind and view; prepared certificate, view change and new view one each.
    """
    if isinstance(record, VoteRecord):
        vote = record.vote
        return b"1" + bytes((vote.kind,)) + number(vote.view), vote.height, vote.view
    if isinstance(record, PreparedRecord):
        return b"2", record.certificate.height, record.certificate.view
    if isinstance(record, ViewChangeRecord):
        return b"3", record.message.height, record.message.view
    return b"4", record.message.height, record.message.view
