"""What is known when somebody asks why: this node's own state, its links, and the other members' signed reports."""

from collections.abc import Mapping

import msgspec

from consensus.status import ReplicaStatus
from node.report import Report

HEARD_MS_MAX = 3_000
"""A member that was not heard for longer is not there."""
REPORT_MS_MAX = 6_000
"""An older report says what was, not what is."""
BEHIND_BLOCKS_MAX = 2
"""A node is behind, and not ready, when others have certainly decided more than so many blocks beyond its head."""
STARTING_MS_MAX = 10_000
"""So long after its start a node does not take those for absent whose first word has not come."""
STALL_MS_MAX = 6_000
"""Work that waits longer without a new block is a stall."""


class Link(msgspec.Struct, frozen=True):
    """This node's connection to a member.

    `silence_ms`: since it was last heard (None: never). `error`: why the last link ended or could not be made.
    `clock_offset_ms`: the median of what its statuses showed, corrected by half the round trip.
    """

    connected: bool
    silence_ms: int | None = None
    error: str = ""
    contracts_hash: bytes | None = None
    clock_offset_ms: int | None = None


class Heard(msgspec.Struct, frozen=True):
    """The newest report of a member and how long ago it came."""

    report: Report
    age_ms: int

    @property
    def fresh(self) -> bool:
        """Whether it speaks of now."""
        return self.age_ms <= REPORT_MS_MAX


class Pause(msgspec.Struct, frozen=True):
    """This process stood still for `length_ms` and woke `ago_ms` ago."""

    length_ms: int
    ago_ms: int


class Facts(msgspec.Struct, frozen=True):
    """Everything that a diagnosis is made from; times are milliseconds.

    `validators` and `roles` are in the members' order. `idle_ms`: since the last applied block; `waiting_ms`: for
    how long work has waited since then (0: none waits); `step_ms`: for how long the replica has been in this phase.
    `no_block`: the ledger holds none yet. `up_ms`: since this node's start (None: long ago).
    `former_hashes`: what `contracts_hash` was under versions of contracts that were active before.
    `suspended`: whom the ledger's list names so.
    `conditions` are the facts that other parts of this node set (code: detail); `failure` says why it stops.
    """

    member: str
    roles: Mapping[str, str]
    validators: tuple[str, ...]
    status: ReplicaStatus
    links: Mapping[str, Link]
    reports: Mapping[str, Heard]
    version: str
    contracts_hash: bytes
    drift_ms: int
    censorship_blocks: int
    idle_ms: int
    waiting_ms: int
    step_ms: int
    waiting: int
    waiting_max: int
    disk_free_bytes: int | None = None
    conditions: Mapping[str, str] = {}
    failure: str = ""
    pause: Pause | None = None
    no_block: bool = False
    up_ms: int | None = None
    former_hashes: tuple[bytes, ...] = ()
    suspended: tuple[str, ...] = ()

    def code_of(self, report: Report) -> bytes:
        """The contracts hash that the member tells; this node's own for a member that runs, or ran, the same code.

        Who is behind or ahead runs the versions of the height where it is.
        """
        elsewhere = report.phase == "catch_up" or report.height > self.status.height
        alike = elsewhere or report.contracts_hash in self.former_hashes
        return self.contracts_hash if alike else report.contracts_hash

    @property
    def others(self) -> tuple[str, ...]:
        """All members but this one, in order."""
        return tuple(name for name in self.roles if name != self.member)

    def fresh_report(self, member: str) -> Report | None:
        """The member's report, when it speaks of now."""
        heard = self.reports.get(member)
        return heard.report if heard is not None and heard.fresh else None

    def hears(self, member: str) -> bool:
        """Whether this node hears the member now."""
        link = self.links.get(member)
        if member == self.member:
            return True
        if link is None or link.silence_ms is None:
            return False
        # A link that has just broken may be dialled again at once: what was heard a moment ago is still here.
        return link.silence_ms <= (HEARD_MS_MAX if link.connected else HEARD_MS_MAX // 2)
