"""The snapshot from which "why does it not move, and who is missing" can be answered."""

from enum import StrEnum

import msgspec


class Phase(StrEnum):
    """What the height in work waits for."""

    IDLE = "idle"  # nothing to decide
    BUILD = "build"  # this node is primary and builds a block
    PROPOSAL = "proposal"  # work waits and the primary has not proposed
    CHECK = "check"  # this node executes the proposal
    PREPARE = "prepare"  # a quorum of prepares
    COMMIT = "commit"  # a quorum of commits
    APPLY = "apply"  # decided, not durable yet
    VIEW_CHANGE = "view_change"  # this node asked for a view and waits for others or for its primary
    CATCH_UP = "catch_up"  # others are ahead


class Abstention(StrEnum):
    """Why this member signs nothing."""

    NONE = ""  # it signs
    OBSERVER = "observer"  # it has no vote
    OTHER_KEY = "other_key"  # the member list names another voting key
    KEY_TWICE = "key_twice"  # its key was seen alive in another place
    WITHHELD = "withheld"  # the caller forbids it: its execution or its code differs
    LOST = "lost"  # its memory is lost: it asks which heights are decided
    CONFIRMING = "confirming"  # just started: the others show its newest vote
    UNTIL = "until"  # it may have signed up to `abstain_until` and does not know what


class LastSuspicion(msgspec.Struct, frozen=True):
    """The primary that this member last asked to be replaced, why, and how long ago."""

    primary: str
    reason: str
    ms_ago: int


class PeerStatus(msgspec.Struct, frozen=True):
    """The last status that a member sent, and when. `clock_offset_ms` is its clock minus ours."""

    member: str
    height: int
    view: int
    head: bytes
    clock_offset_ms: int
    heard_ms_ago: int


class ReplicaStatus(msgspec.Struct, frozen=True):
    """Where the replica stands; immutable.

    `missing` names the members whose message the phase waits for. `asked` is the view this member asked for at
    this height (None: none) and `askers` who asks for which. `abstaining` is empty or says why nothing is signed,
    `abstention` says the same as a code. `last_suspicion` outlives its height (None: nobody yet).
    `resting` are the members whose turn as primary is skipped at this height.
    `suspicion` is empty or says why a view was asked for last. `refusal` is empty or says why the last proposal
    or decided block was not accepted. `next_event` happens by itself in `next_event_in_ms` (None: nothing will).
    """

    member: str | None
    height: int
    view: int
    head: bytes
    start_view: int
    primary: str
    phase: Phase
    digest: bytes | None
    prepared_view: int | None
    voted_prepare: tuple[str, ...]
    voted_commit: tuple[str, ...]
    missing: tuple[str, ...]
    quorum: int
    asked: int | None
    askers: tuple[tuple[str, int], ...]
    waiting: bool
    passed_over: int
    abstaining: str
    abstain_until: int
    suspicion: str
    refusal: str
    catch_up_target: int | None
    peers: tuple[PeerStatus, ...]
    next_event: str
    next_event_in_ms: int | None
    abstention: Abstention
    last_suspicion: LastSuspicion | None
    resting: tuple[str, ...] = ()
