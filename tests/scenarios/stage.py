"""A small network of shipped replicas whose messages, disks, clocks and processes a script holds in its hands.

It is the simulator's network without chance: the same machines, disks, links and checkers, but nothing is drawn,
every message takes one millisecond, and what fails is what the script says. All time is virtual.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from consensus.effects import (
    Accuse,
    Applied,
    BlockStanding,
    BuildPayload,
    CheckPayload,
    Decide,
    Effect,
    Head,
    Input,
    NewViewRecord,
    Persist,
    PersistAbstention,
    Synced,
    Tick,
    ViewChangeRecord,
    VoteRecord,
)
from consensus.members import Members
from consensus.messages import Message, VoteKind
from consensus.replica import Replica
from consensus.status import Abstention, ReplicaStatus
from tests.scenarios.story import Story
from tests.simulation.block import DRIFT_MS, Block
from tests.simulation.faults import Plan, draw_plan
from tests.simulation.machine import Machine
from tests.simulation.network import Network, kind_of
from tests.simulation.world import World

LETTERS = "abcdefghij"
MESSAGE_US = 1_000
KEY_TWICE = 2**63 - 1
# The names of messages in a script, and what the simulator calls them.
KINDS = {
    "proposals": "PrePrepare",
    "prepares": "PREPARE",
    "commits": "COMMIT",
    "view-changes": "ViewChange",
    "new-views": "NewView",
    "statuses": "Status",
    "proofs": "Decided",
    "newest-votes": "LatestVote",
}


class Settings(NamedTuple):
    """The numbers of a network, in milliseconds where a time."""

    n: int
    timeout_ms: int = 2_000
    cap_ms: int = 10_000
    status_ms: int = 500
    rotation_heights: int = 10_000
    empty_ms: int = 0


class Rule(NamedTuple):
    """What happens to messages of `kind` (None: of all kinds) on their way from one of `senders` to `receivers`."""

    hold: bool
    kind: str | None
    senders: tuple[str, ...]
    receivers: tuple[str, ...]


class Links(Network):
    """The links of the stage: messages pass, are lost, or are held until the script lets them pass."""

    def __init__(self, world: "Stage") -> None:
        super().__init__(world)
        self.delay_us = (MESSAGE_US, MESSAGE_US)
        self.rules: list[Rule] = []
        self._held: list[tuple[Machine, Machine, Message]] = []

    def _carry(self, sender: Machine, receiver: Machine, message: Message) -> None:
        for rule in self.rules:
            named = sender.name in rule.senders and receiver.name in rule.receivers
            if named and rule.kind in (None, kind_of(message)):
                if rule.hold:
                    self._held.append((sender, receiver, message))
                return
        super()._carry(sender, receiver, message)

    def let_pass(self) -> None:
        """No rule is left, and what was held is on its way."""
        self.rules.clear()
        held, self._held = self._held, []
        for sender, receiver, message in held:
            self._carry(sender, receiver, message)


class Player(Machine):
    """A machine that tells the story of what it does, and whose executor can hang."""

    world: "Stage"
    hangs = False
    write_ms = 0

    def start(self) -> None:
        """The process runs; what it says of itself is news again."""
        self.hangs = False
        self._decided_height = 0
        self._abstaining = ""
        self._status: ReplicaStatus | None = None
        super().start()

    def step(self, input_: Input) -> None:
        """Give one input to the replica; a tick is the moment at which its standing is looked at."""
        if isinstance(input_, Applied | Synced):
            input_ = type(input_)(self.world.with_members(input_.head))
        self._status = None
        super().step(input_)
        if self.up and isinstance(input_, Tick):
            self.look()

    def status(self) -> ReplicaStatus:
        """The replica's snapshot, made once a step: conditions ask for it all the time."""
        if self._status is None:
            self._status = self.replica.status()
        return self._status

    def look(self) -> None:
        """Tell when this member has begun or ceased to abstain; that it asks around after a start is no news."""
        status = self.status()
        if status.abstention is Abstention.CONFIRMING:
            return
        abstaining = status.abstaining
        if abstaining != self._abstaining:
            self._abstaining = abstaining
            if abstaining:
                self.world.story.tell(self.name, "abstains", "abstain", f": {abstaining}")
            else:
                self.world.story.tell(self.name, "may vote again", "may vote again", "")

    def _write(self, effect: Persist | PersistAbstention) -> None:
        until = self.disk.abstain_until
        super()._write(effect)
        if isinstance(effect, Persist):
            self.world.tell_record(self, effect.record)
        elif self.disk.abstain_until != until and effect.until != KEY_TWICE:
            self.world.story.tell(self.name, "promises", "promise", f" no vote up to height {effect.until}")

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Decide):
            self._decided_height = effect.height
            self.world.story.decided(
                self.name,
                effect.height,
                self.world.story.block(effect.height, effect.digest),
                effect.certificate.view,
            )
        if isinstance(effect, BuildPayload):  # a slow executor checks slowly; how much is built, limits say
            self.world.after(MESSAGE_US, self, self._build, effect)
        else:
            super()._perform(effect)

    def applied_by_itself(self, height: int) -> bool:
        """Whether this member decided `height` itself; otherwise it fetched the block."""
        return self._decided_height == height

    def _build(self, effect: BuildPayload) -> None:
        if not self.hangs:
            super()._build(effect)

    def _check(self, effect: CheckPayload, tries: int) -> None:
        if not self.hangs:
            super()._check(effect, tries)

    def _fault_in(self, effect: CheckPayload, payload: bytes, block: Block | None) -> str:
        """As the node's executor: a first proposal must not lie far behind the clock, a prepared block may."""
        first = effect.standing == BlockStanding.PROPOSED
        if block is not None and first and block.time_ms < self.clocks()[1] - DRIFT_MS:
            return "block_time_behind"
        return super()._fault_in(effect, payload, block)


class Stage(World):
    """The network on the stage. It has no chance in it: every draw is the lowest, nothing happens by itself."""

    machines: list[Machine]

    def __init__(self, settings: Settings) -> None:
        """Everybody has an initialised disk, and no process runs."""
        self.story = Story()
        self.settings = settings
        self.lists: dict[int, Members] = {}  # height -> the list that decides from height + 1 on

        def plan(world: World) -> Plan:
            return draw_plan(world)._replace(
                n=settings.n,
                base_timeout_ms=settings.timeout_ms,
                timeout_cap_ms=settings.cap_ms,
                status_interval_ms=settings.status_ms,
                rotation_heights=settings.rotation_heights,
                empty_block_interval_ms=settings.empty_ms,
                faulty=(),
            )

        super().__init__(0, plan=plan)
        self.links = Links(self)
        self.network = self.links

    def _people(self, factory: Callable[..., Replica]) -> list[Machine]:
        return [Player(self, LETTERS[index], index, self.replica) for index in range(self.plan.n)]

    def replica(self, config: object, head: Head, *rest: object) -> Replica:
        """A shipped replica; all that is changed is the member list, where the script has changed it."""
        return Replica(config, self.with_members(head), *rest)  # type: ignore[arg-type]

    def pick(self, low: int, high: int) -> int:
        """Always `low`."""
        return low

    def chance(self, permille: int) -> bool:
        """Never."""
        return False

    def sync_us(self, machine: Machine) -> int:
        """As slow as the script made the disk."""
        assert isinstance(machine, Player)
        return max(super().sync_us(machine), machine.write_ms * 1000)

    # --- members ------------------------------------------------------------------------------------------

    def machine(self, name: str) -> Player:
        """The machine called `name`; KeyError without one."""
        for machine in self.machines:
            if machine.name == name:
                assert isinstance(machine, Player)
                return machine
        raise KeyError(name)

    def with_members(self, head: Head) -> Head:
        """`head` with the list that decides the next height, and the one that decided it."""
        return msgspec.structs.replace(
            head, members=self._list_above(head.height), decided_by=self._list_above(head.height - 1)
        )

    def _list_above(self, height: int) -> Members:
        changes = [changed for changed in self.lists if changed <= height]
        return self.lists[max(changes)] if changes else self.members

    def copy_of(self, name: str) -> Player:
        """A second process with the key and the disk of `name`, on another machine; it does not run yet."""
        original = self.machine(name)
        original.faulty, original.honest = "twin", False
        twin = Player(self, name + "'", original.member, self.replica, "twin")
        twin.disk = original.disk.copy()
        self.machines.append(twin)
        return twin

    # --- time ---------------------------------------------------------------------------------------------

    def run(self, *, for_ms: int, until: Callable[[], bool] = lambda: False) -> bool:  # type: ignore[override]
        """Virtual time passes until `until` holds or `for_ms` are over; return whether it holds."""
        end_us = self.now_us + for_ms * 1000
        while not until():
            if not self._heap or self._heap[0][0] > end_us:
                self.now_us = end_us
                return until()
            self._one_step()
        return True

    # --- the story ----------------------------------------------------------------------------------------

    def on_height(self, machine: Machine) -> None:
        """Tell of a block that came from others."""
        assert isinstance(machine, Player)
        if not machine.applied_by_itself(machine.disk.height):
            self.story.fetched(machine.name, machine.disk.height)

    def on_accused(self, machine: Machine, effect: Accuse) -> None:
        """Tell of evidence."""
        super().on_accused(machine, effect)
        accused = self.letter(effect.member)
        self.story.tell(machine.name, "can prove", "can prove", f" that {accused} contradicted itself")

    def tell_record(self, machine: Machine, record: object) -> None:
        """Tell what a member made durable, and is about to say."""
        if isinstance(record, VoteRecord):
            vote = record.vote
            block = self.story.block(vote.height, vote.digest)
            if record.proposed:
                words = ("proposes", "propose")
            elif vote.kind is VoteKind.PREPARE:
                words = ("prepares", "prepare")
            else:
                words = ("commits", "commit")
            self.story.vote(machine.name, *words, f" block {block} in view {vote.view}")
        elif isinstance(record, ViewChangeRecord):
            asked = record.message
            assert isinstance(machine, Player)
            reason = self.readable(machine.replica.status().suspicion)
            self.story.tell(
                machine.name, "asks", "ask", f" for view {asked.view} at height {asked.height}: {reason}"
            )
        elif isinstance(record, NewViewRecord) and record.message.member == machine.member:
            message = record.message
            proofs = [asked.prepared for asked in message.view_changes if asked.prepared is not None]
            best = max(proofs, key=lambda proof: proof.view, default=None)
            bound = "nothing was prepared"
            if best is not None:
                bound = f"block {self.story.block(best.height, best.digest)} must be proposed again"
            text = f" view {message.view} at height {message.height}: {bound}"
            self.story.tell(machine.name, "opens", "open", text)

    def letter(self, member: str) -> str:
        """The letter of a member's id."""
        index = self.members.index(member)
        return LETTERS[index] if index is not None else member

    def readable(self, text: str) -> str:
        """`text` with letters in the place of ids."""
        for index, validator in enumerate(self.members):
            text = text.replace(validator.id, LETTERS[index])
        return text

    def honest(self) -> list[Player]:
        """The members whose process runs, who are no traitors, and whose key lives once."""
        running = [machine for machine in self.machines if machine.up and machine.honest]
        return [machine for machine in running if isinstance(machine, Player)]

    def agree(self) -> None:
        """Judge that all chains are prefixes of one another."""
        for one, other in itertools.pairwise(self.machines):
            pairs = zip(one.disk.chain, other.disk.chain, strict=False)
            same = all(left.digest == right.digest for left, right in pairs)
            self.checks.require("agreement", same, one.name, other.name)
