"""Inputs and effects: the whole contract between the replica and the outside.

The caller's duties, each of them once:

1. Effects of one step, and of steps in sequence, are performed in list order. A `Persist` must be durable
   (synced) before any later effect is performed; several adjacent ones may share one sync.
2. Every effect that asks for an answer gets exactly one, in time or late: `BuildPayload` -> `PayloadBuilt`,
   `CheckPayload` -> `PayloadChecked`, `Decide` -> `Applied`. `CatchUp` may be answered by any number of `Synced`.
3. A payload that was checked valid or built stays available under its digest until its height is applied,
   and is made durable with the first `Persist` that names its digest.
4. `Applied` and `Synced` are given only after the block is durable.
5. Time goes forward: `Tick.now_ms` never decreases. Ticks come at least every 100 ms; a jump is a paused process.
6. Where a list names this member anew (for the first time, again, or with another key), the replica gets neither
   the head with that list nor anything else: another one is started on it (README 9.3).
7. `Head.resting` follows from the chain up to that head alone, so that it is the same at every member (README 1.4).
   Where it is not, no two blocks are decided for that, but members wait for different primaries.
"""

from enum import IntEnum
from typing import TypeAlias

import msgspec

from consensus.members import Members
from consensus.messages import Certificate, Digest, Evidence, Height, Message, NewView, View, ViewChange, Vote

# --- records: facts that must survive a crash ------------------------------------------------------------


class _Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    pass


class VoteRecord(_Record, frozen=True, tag=1):
    """This member's own vote. For a prepare, the block under `vote.digest` is stored with it.

    `parent` is set where the vote is the primary's own pre-prepare, which is sent again after a restart.
    """

    vote: Vote
    proposed: bool
    parent: Certificate | None


class PreparedRecord(_Record, frozen=True, tag=2):
    """The highest prepare certificate known for the height in work."""

    certificate: Certificate


class ViewChangeRecord(_Record, frozen=True, tag=3):
    """This member asked for a view."""

    message: ViewChange


class NewViewRecord(_Record, frozen=True, tag=4):
    """A new view that this member sent or accepted."""

    message: NewView


Record: TypeAlias = VoteRecord | PreparedRecord | ViewChangeRecord | NewViewRecord


class Head(msgspec.Struct, frozen=True):
    """The last applied block and all that the next height needs of it.

    `height` 0 is genesis: its digest is the genesis hash and it has no certificate.
    `start_view` is the view in which height + 1 starts (kept in the apply batch).
    `members` decide height + 1. `decided_by` decided `height` itself and judges `certificate`; None says that it
    is the same list. `resting` are the members whose turn as primary of height + 1 is skipped: what the state and
    the time of this head say, so everybody who has it knows the same ones (README 1.4).
    """

    height: int
    digest: bytes
    certificate: Certificate | None
    start_view: int
    members: Members
    decided_by: Members | None = None
    resting: tuple[str, ...] = ()

    @property
    def first_view(self) -> int:
        """The view of its certificate, in which the next height begins: nobody who has this head votes below."""
        return self.certificate.view if self.certificate is not None else 0


class Memory(msgspec.Struct, frozen=True):
    """What the disk says at start about this member's own votes.

    `never_voted` is the marker that `hansa init` writes and wiping or restoring removes. Without the marker
    and without records the member has lost its memory and abstains. `voted` says that this data directory
    has voted before (its records may be pruned since); `abstain_until` is a promise made earlier: no vote at
    or below that height (0: none).
    """

    never_voted: bool
    voted: bool
    abstain_until: int
    records: tuple[Record, ...]
    withheld: str = ""


# --- inputs ----------------------------------------------------------------------------------------------


class Tick(msgspec.Struct, frozen=True):
    """Time has passed: `now_ms` is monotonic, `time_ms` is the wall clock (Unix)."""

    now_ms: int
    time_ms: int


class Received(msgspec.Struct, frozen=True):
    """`message` came from the authenticated peer `peer` (a member id, or an observer's)."""

    peer: str
    message: Message


class Connected(msgspec.Struct, frozen=True):
    """A link to `peer` is up (again): what it may have missed is sent again."""

    peer: str


class WorkWaiting(msgspec.Struct, frozen=True):
    """Whether this node could build a non-empty block now.

    `passed_over` counts decided, non-full blocks that left out the oldest includable transaction. `full`: at least
    as much waits as the last block held.
    """

    waiting: bool
    passed_over: int
    full: bool = False


class PayloadBuilt(msgspec.Struct, frozen=True):
    """Answer to BuildPayload. `digest` and `payload` are None when there was nothing to build."""

    height: Height
    view: View
    digest: Digest | None
    payload: bytes | None


class PayloadChecked(msgspec.Struct, frozen=True):
    """Answer to CheckPayload.

    `valid` True: executed, roots agree, and the payload is at hand. False: it, or what came under
    its name, is invalid with the standing that it had. None: not available now (nobody sent the payload or its
    transactions).
    `payload` is the encoded payload where it is at hand (the replica may have asked by digest alone).
    """

    height: Height
    view: View
    digest: Digest
    valid: bool | None
    payload: bytes | None
    reason: str


class Applied(msgspec.Struct, frozen=True):
    """The decided block is durable. `head` is the new head."""

    head: Head


class Synced(msgspec.Struct, frozen=True):
    """Catch-up applied certified blocks up to `head`."""

    head: Head


class Withhold(msgspec.Struct, frozen=True):
    """This node must sign nothing, for `reason` (its execution or its code differs); empty: it may again.

    Silence promises nothing: what was signed stays recorded, so lifting it needs no waiting.
    """

    reason: str


Input: TypeAlias = (
    Tick | Received | Connected | WorkWaiting | PayloadBuilt | PayloadChecked | Applied | Synced | Withhold
)

# --- effects ---------------------------------------------------------------------------------------------


class Persist(msgspec.Struct, frozen=True):
    """Make `record` durable before any later effect."""

    record: Record


class PersistAbstention(msgspec.Struct, frozen=True):
    """Make durable that this member votes at no height up to and including `until`, before any later effect."""

    until: Height


class Broadcast(msgspec.Struct, frozen=True):
    """Send `message` to every connected peer."""

    message: Message


class Send(msgspec.Struct, frozen=True):
    """Send `message` to one peer; dropped silently when it is not connected."""

    peer: str
    message: Message


class BuildPayload(msgspec.Struct, frozen=True):
    """Build a block on the head. The builder's limits are divided by 2 ** `halvings`.

    `allow_empty`: an empty block is wanted (the slow heartbeat). `allow_quarantine`: two views have failed at this
    height, a suspect transaction may be settled as `quarantined`.
    """

    height: Height
    view: View
    parent: Digest
    halvings: int
    allow_empty: bool
    allow_quarantine: bool


class BlockStanding(IntEnum):
    """How far a block has come by the time it is executed; the farther, the less of it is left to judge."""

    PROPOSED = 0  # nobody is known to have accepted it: its clock and its proposer are judged too
    VOTED = 1  # this member has voted for it, before a restart
    PREPARED = 2  # a quorum has, so it may be the one that is decided: other code may have made it
    DECIDED = 3  # nothing is signed at its height any more: whoever comes to the same roots applies it


class CheckPayload(msgspec.Struct, frozen=True):
    """Execute the block `digest` and compare; `payload` None means: find it at hand or fetch it from `holders`.

    What is judged depends on its `standing`. `allow_quarantine` as in BuildPayload. `proposer` is the member that
    sent this pre-prepare.
    """

    height: Height
    view: View
    digest: Digest
    payload: bytes | None
    standing: BlockStanding
    allow_quarantine: bool
    proposer: str
    holders: tuple[str, ...]


class Decide(msgspec.Struct, frozen=True):
    """The block `digest` is decided by `certificate`: apply it, with `start_view` in the same batch."""

    height: Height
    digest: Digest
    certificate: Certificate
    start_view: View


class CatchUp(msgspec.Struct, frozen=True):
    """This node is behind: fetch certified blocks from this height's head up to `target`, best from `peers`."""

    target: Height
    peers: tuple[str, ...]


class Accuse(msgspec.Struct, frozen=True):
    """`evidence` proves a member's equivocation to anybody: store it, expose it, alert."""

    member: str
    evidence: Evidence


Effect: TypeAlias = (
    Persist | PersistAbstention | Broadcast | Send | BuildPayload | CheckPayload | Decide | CatchUp | Accuse
)
