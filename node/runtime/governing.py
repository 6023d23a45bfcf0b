"""What the members decide about themselves, carried out at this node: its links, keys, readiness and words.

The ledger is looked at after each block, and no more than its proposals and members.
"""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import msgspec
import structlog

from consensus.members import Members
from consensus.status import Abstention, ReplicaStatus
from contracts.governance import OPEN_MAX, Governance
from contracts.membership import Member, Membership
from node.client.answers import Submission
from node.config import NetworkConfig
from node.errors import HansaError
from node.peers import Transport
from node.runtime.clock import Clock
from node.runtime.readiness import Readiness
from node.runtime.roster import MemberLinks, Roster, roster_at
from node.runtime.voting_keys import VotingKeys
from node.state import LedgerView, Overlay

Submit = Callable[[Sequence[bytes]], Awaitable[list[Submission | HansaError]]]


class Mark(msgspec.Struct, frozen=True):
    """What differs between two states if a proposal moved between them, a member changed, or an overlap ended."""

    last: int
    undecided: tuple[int, ...]
    rows: tuple[tuple[str, Member], ...]
    overlapping: tuple[str, ...]
    invited: bool


class Governing:
    """Keeps this node in step with the members that the ledger has. Runs on the event loop."""

    def __init__(
        self,
        network: NetworkConfig,
        member: str,
        view: Callable[[], LedgerView],
        transport: Transport,
        clock: Clock,
        keys: VotingKeys,
        submit: Submit,
        replica: Callable[[], ReplicaStatus],
        is_withheld: Callable[[], bool],
        remembers: bool,
        tls_keys: frozenset[bytes],
        told: Callable[[Roster], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        has: Callable[[str, int], bytes | None],
    ) -> None:
        """`view()` gives the state of the head on disk. `remembers`: the disk knew at the start what this member
        signed. `tls_keys` are those at hand. `told` is called with the members now and with each change of
        them; `spawn` runs what takes time. `has(contract, version)` gives the digest of its sources here.
        """
        self._network = network
        self._member = member
        self._view = view
        self._keys = keys
        self._replica = replica
        self._is_withheld = is_withheld
        self._remembers = remembers
        self._spawn = spawn
        now = view()
        self._seen = self._mark_of(now)
        self._saying = False
        self._links = MemberLinks(member, network.known, roster_at(network, now, member), transport, clock, told)
        self._readiness = Readiness(network.network_id, member, keys, tls_keys, clock, submit, self._may, has)
        self._log = structlog.get_logger("governance").bind(member=member)

    @property
    def roster(self) -> Roster:
        """The members now."""
        return self._links.roster

    def adopt(self, members: Members) -> bool:
        """This list decides from now on, and the replica is told next; return whether the node must begin anew."""
        anew = self._keys.adopt(members)
        if anew:
            self._log.warning("the list names this member anew: this process signs no more, and another begins")
        return anew

    def on_applied(self, view: LedgerView) -> None:
        """A block was applied: the members are what its state, that of `view`, says."""
        mark = self._mark_of(view)
        if mark != self._seen:
            self._seen = mark
            before = self._links.roster
            self._links.change(roster_at(self._network, view, self._member))
            if self._links.roster != before:
                height, standings = view.head.height, dict(self.roster.standings)
                self._log.warning("the members changed", height=height, standings=standings)

    def look(self) -> None:
        """Say and close what is due; call it every while."""
        self._links.look()
        if self._seen.undecided and not self._saying:
            self._saying = True
            self._spawn(self._say())

    async def _say(self) -> None:
        try:
            await self._readiness.look(self._view())
        finally:
            self._saying = False

    def _may(self, own_key: bool) -> bool:
        """Whether this node would do its part: it votes now, or follows and has caught up.

        `own_key`: for a new key of its own it must have caught up, and no more.
        """
        status = self._replica()
        target = status.catch_up_target
        if self._is_withheld() or (target is not None and target > status.height):
            return False
        # The list stays as long as it was, and its member as silent or not. One silenced for good votes under the
        # new key; what was promised for some heights holds under any.
        if own_key or status.abstention is Abstention.NONE:
            return True
        # Who comes back must not be silent again for want of memory: the others may need its vote at once.
        concluded = self._remembers or status.abstain_until > 0
        return status.abstention is Abstention.OBSERVER and concluded and status.abstain_until < status.height

    def _mark_of(self, view: LedgerView) -> Mark:
        state = Overlay(view)
        numbers = tuple(number for number, _ in Governance.undecided.scan_from(state, OPEN_MAX))
        last = Governance.last.read_from(state) or 0
        rows = Membership.read_members(state)
        overlapping = tuple(name for name, row in rows if view.head.time_ms < row.former_tls_until_ms)
        return Mark(last, numbers, rows, overlapping, view.head.height < self._network.as_of)
