"""Who the members are now: the ledger says it, network.toml only where a node of theirs listens.

Invariant: consensus never asks here; the list that decides a height is in the head. This is for links, reports and
people. A removed member stays linked for a while, for it needs the very block that removed it; then its links end.
"""

from collections.abc import Callable, Mapping

import msgspec

from contracts.membership import Member, Membership
from node.config import MemberConfig, NetworkConfig
from node.peers import Transport
from node.runtime.clock import Clock
from node.state import LedgerView, Overlay

FAREWELL_MS = 10_000
"""For so long after its removal a member may still fetch what was decided: the others close its links then."""


class Roster(msgspec.Struct, frozen=True):
    """All members of the ledger in their order, with the keys that hold now, and the standing of each."""

    members: tuple[MemberConfig, ...]
    standings: Mapping[str, str]

    @property
    def present(self) -> tuple[MemberConfig, ...]:
        """Those that were not removed."""
        return tuple(member for member in self.members if self.standings[member.id] != "removed")

    @property
    def validators(self) -> tuple[str, ...]:
        """Those that decide blocks."""
        return tuple(
            member.id
            for member in self.members
            if member.role == "validator" and self.standings[member.id] == "active"
        )


def roster_of(
    network: NetworkConfig, rows: tuple[tuple[str, Member], ...], height: int, time_ms: int, me: str
) -> Roster:
    """Return the members as the ledger has them at `height`, whose block has `time_ms`, and this one, `me`, whom it
    may not have yet.

    Below the height of an invitation (network.as_of) the ledger here is older than that: its peers come first.
    """
    here = {item.id: item for item in network.known}
    invited = {item.id: item for item in network.peers} if height < network.as_of else {}
    members: list[MemberConfig] = []
    standings: dict[str, str] = {}
    for name, row in rows:
        address = here[name].address if name in here else row.address
        former = row.former_tls_key if time_ms < row.former_tls_until_ms else b""
        member = MemberConfig(name, row.role, address, row.voting_key, row.tls_key, former)
        later = invited.pop(name, None)
        if later is not None:
            member = msgspec.structs.replace(member, tls_key=later.tls_key, former_tls_key=later.former_tls_key)
        members.append(member)
        standings[name] = row.standing
    if me not in standings:
        invited[me] = here[me]
    for name, later in invited.items():
        members.append(later)
        standings[name] = "joining"
    return Roster(tuple(members), standings)


def roster_at(network: NetworkConfig, view: LedgerView, me: str) -> Roster:
    """Return the members as the state of `view` has them, and `me`."""
    head = view.head
    return roster_of(network, Membership.read_members(Overlay(view)), head.height, head.time_ms, me)


class MemberLinks:
    """Keeps the links to the present members, and no others. Runs on the event loop."""

    def __init__(
        self,
        member: str,
        linked: tuple[MemberConfig, ...],
        roster: Roster,
        transport: Transport,
        clock: Clock,
        told: Callable[[Roster], None],
    ) -> None:
        """The links are those of `roster`, without any farewell; `told` is called with it and with each change.

        `linked` are whom the transport speaks to now.
        """
        self._member = member
        self._transport = transport
        self._clock = clock
        self._told = told
        self._roster = roster
        self._linked = linked
        self._farewell_ms: dict[str, int] = {}
        self._link()
        told(roster)

    @property
    def roster(self) -> Roster:
        """The members now."""
        return self._roster

    def change(self, roster: Roster) -> None:
        """The ledger has these members from now on."""
        if roster == self._roster:
            return
        before = {item.id for item in self._roster.present}
        self._roster = roster
        gone = before - {item.id for item in roster.present}
        until_ms = self._clock.now_ms() + FAREWELL_MS
        self._farewell_ms.update(dict.fromkeys(sorted(gone), until_ms))
        self._link()
        self._told(roster)

    def look(self) -> None:
        """Links whose farewell is over are closed; call it every while."""
        now_ms = self._clock.now_ms()
        over = [member for member, until_ms in self._farewell_ms.items() if until_ms <= now_ms]
        for member in over:
            del self._farewell_ms[member]
        if over:
            self._link()

    def _link(self) -> None:
        standings = self._roster.standings
        # Whoever was removed itself has nobody to talk to, once it has said good-bye.
        alone = standings.get(self._member) == "removed" and self._member not in self._farewell_ms
        wanted = tuple(
            item
            for item in self._roster.members
            if not alone and (standings[item.id] != "removed" or item.id in self._farewell_ms)
        )
        if wanted != self._linked:
            self._linked = wanted
            self._transport.set_members(wanted)
