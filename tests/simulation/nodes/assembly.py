"""The members' administrators of a seeded run: they suspend and bring back one another, change roles, rotate keys,
change how large blocks may be, and upgrade a contract meanwhile.

They know what the node knows that they ask, lose answers and say things twice; when all is mended, they bring back
whoever is suspended.
"""

from typing import TYPE_CHECKING, Any

from contracts.governance import Governance, Proposal
from contracts.lifecycle import Lifecycle
from contracts.membership import Member, Membership
from node.ledger import Call
from node.state import Overlay
from tests.simulation.nodes.founding import key_of, next_key, next_tls_key, transaction
from tests.simulation.nodes.timeline import START_MS
from tests.simulation.nodes.versions import CONTRACT

if TYPE_CHECKING:
    from tests.simulation.nodes.host import Host
    from tests.simulation.nodes.world import NodeWorld

EXPIRES_MS = 20_000
PROPOSAL_MS = 10 * 60_000
REPEAT_US = 1_500_000
"""Nobody says the same again sooner."""
OVERLAP_MS = 2_000
BOUND_MS = 90_000
"""So much longer may recovery take: the last change waits for its votes, its readiness, and a boundary."""


class Assembly:
    """Acts every while until the run ends; `healed` says that nothing fails any more."""

    def __init__(self, world: "NodeWorld") -> None:
        self.world = world
        self.healed = False
        self._said_us: dict[tuple[object, ...], int] = {}
        self._requests = 0

    def begin(self) -> None:
        """They come together soon."""
        self.world.timeline.after(self.world.timeline.pick(0, 800_000), self._come)

    def lacking(self) -> str | None:
        """What is not settled yet: a suspended member, or a change under way; or None."""
        for host in self.world.hosts:
            state = state_of(host)
            out = [name for name, member in Membership.read_members(state) if _way_back(member) is not None]
            if out or Governance.undecided.scan_from(state, 1):
                return f"{host.id}: {out} out, undecided {Governance.undecided.scan_from(state, 9)}"
        return None

    def _come(self) -> None:
        open_ones = [host for host in self.world.hosts if host.door is not None]
        if open_ones:
            newest = max(open_ones, key=lambda host: host.height)
            self._act(state_of(newest))
        self.world.timeline.after(self.world.timeline.pick(150_000, 500_000), self._come)

    def _act(self, state: Overlay) -> None:
        members = Membership.read_members(state)
        voters = [name for name, _ in Membership.read_validators(state)]
        numbers = [number for number, _ in Governance.undecided.scan_from(state, 9)]
        found = [(number, Governance.proposals.read_from(state, number)) for number in numbers]
        for number, proposal in found:
            if proposal is not None and proposal.status == "open":
                self._vote(state, number, proposal, voters)
        if found:
            return
        out = [(name, back) for name, member in members if (back := _way_back(member)) is not None]
        pick = self.world.timeline.pick
        by = voters[pick(0, len(voters))]
        if out:
            name, (kind, role) = out[0]
            self._say(by, "propose", {**self._change(kind, name), **role}, "propose")
        elif not self.healed and self.world.timeline.chance(150):
            self._resize(by)
        elif not self.healed and self.world.timeline.chance(250):
            self._upgrade(by, state)
        elif not self.healed:
            target = voters[pick(0, len(voters))]
            keys = dict(Membership.read_validators(state))
            spare = (len(voters) - 2) // 3 >= len(self.world.plan.faulty) and len(voters) > 4
            if spare and self.world.timeline.chance(600):
                if self.world.timeline.chance(500):
                    self._say(by, "propose", self._change("suspend_member", target), "propose")
                else:
                    change = {**self._change("change_role", target), "role": "observer"}
                    self._say(by, "propose", change, "propose")
            elif keys[target] != next_key(target):
                change = {**self._change("rotate_voting_key", target), "voting_key": next_key(target)}
                self._say(target, "propose", change, "propose")
            elif dict(members)[target].tls_key != next_tls_key(target):
                change = {**self._change("rotate_tls_key", target), "tls_key": next_tls_key(target)}
                self._say(target, "propose", {**change, "overlap_ms": OVERLAP_MS}, "propose")

    def _vote(self, state: Overlay, number: int, proposal: Proposal, voters: list[str]) -> None:
        for voter in voters:
            if Governance.votes.read_from(state, (number, voter)) is None:
                self._say(voter, "vote", {"proposal": number, "yes": True}, number)

    def _resize(self, by: str) -> None:
        """Another limit of transactions for the blocks from then on."""
        change = {
            **self._change("", ""),
            "name": "block_transactions_max",
            "value": self.world.timeline.pick(10, 40),
        }
        self._say(
            by, "propose_parameter", {key: change[key] for key in ("name", "value", "expires_at_ms")}, "propose"
        )

    def _upgrade(self, by: str, state: Overlay) -> None:
        """The next version of a contract from some height on, as far as there is one."""
        version = next(row.version for row in Lifecycle.read_versions(state) if row.contract == CONTRACT) + 1
        newest = max((host for host in self.world.hosts if host.door is not None), key=lambda host: host.height)
        assert newest.process is not None
        assert newest.process.node is not None
        source = newest.process.node._executor.engine.source_digest(CONTRACT, version)
        if source is not None:
            change = {
                "kind": "upgrade_contract",
                "contract": CONTRACT,
                "version": version,
                "source": source,
                "at_height": newest.height + self.world.timeline.pick(3, 12),
                "expires_at_ms": self._change("", "")["expires_at_ms"],
            }
            self._say(by, "propose_contract", change, "propose")

    def _change(self, kind: str, member: str) -> dict[str, Any]:
        now_ms = START_MS + self.world.timeline.now_us // 1000
        return {"kind": kind, "member": member, "expires_at_ms": now_ms + PROPOSAL_MS}

    def _say(self, sender: str, method: str, args: dict[str, Any], what: object) -> None:
        now_us = self.world.timeline.now_us
        key = (what, "" if what == "propose" else sender)
        if now_us - self._said_us.get(key, -REPEAT_US) < REPEAT_US:
            return
        self._said_us[key] = now_us
        self._requests += 1
        self.world.faults[f"{method} {args.get('kind', '')}".strip()] += 1
        made = transaction(
            self.world.founding.network,
            sender,
            f"assembly-{self._requests}",
            [Call("governance", method, args)],
            START_MS + now_us // 1000 + EXPIRES_MS,
            [key_of(sender)],
        )
        hosts = [host for host in self.world.hosts if host.door is not None]
        self.world.clients.submit_at(hosts[self.world.timeline.pick(0, len(hosts))], [made])


def _way_back(member: Member) -> tuple[str, dict[str, str]] | None:
    """The change, with its arguments, that makes the member a validator again; None: it is one."""
    if member.standing != "active":
        return "resume_member", {}
    return ("change_role", {"role": "validator"}) if member.role != "validator" else None


def state_of(host: "Host") -> Overlay:
    """The state of the head of a running node."""
    assert host.process is not None
    assert host.process.node is not None
    return Overlay(host.process.node._executor.view)
