"""A network whose faults are written down instead of drawn: one danger, played with the shipped replica.

A scene says which message passes, what happens when, and what it expects besides the rules of checks.py. It is run
with the shipped replica, where every rule holds, and with a planted bug, where one of them must not.
"""

from collections.abc import Callable
from typing import ClassVar

from consensus.effects import Record
from consensus.messages import Message
from consensus.replica import Replica
from tests.simulation.byzantine.roles import ROLES
from tests.simulation.byzantine.traitor import Traitor
from tests.simulation.faults import Plan
from tests.simulation.machine import Machine, ReplicaFactory
from tests.simulation.network import Network
from tests.simulation.world import World

NEVER_US = 10**15


class _Scripted(Network):
    """Asks the scene about every message and every link."""

    def __init__(self, stage: "Stage") -> None:
        super().__init__(stage)
        self._stage = stage

    def _carry(self, sender: Machine, receiver: Machine, message: Message) -> None:
        if self._stage.healed or self._stage.passes(sender, receiver, message):
            super()._carry(sender, receiver, message)

    def _open(self, one: Machine, other: Machine) -> bool:
        return super()._open(one, other) and (self._stage.healed or self._stage.linked(one, other))


class Stage(World):
    """Calm but for its script; at `faults_end_ms` the script ends and progress is due within the bound."""

    n: ClassVar[int] = 4
    faulty: ClassVar[dict[int, str]] = {}
    base_timeout_ms: ClassVar[int] = 500
    timeout_cap_ms: ClassVar[int] = 1_000
    rotation_heights: ClassVar[int] = 10_000
    request_every_us: ClassVar[int] = 100_000
    faults_end_ms: ClassVar[int] = 5_000
    empty_block_interval_ms: ClassVar[int] = 0

    def __init__(
        self, seed: int = 0, *, factory: ReplicaFactory = Replica, trace: Callable[[str], None] | None = None
    ) -> None:
        """`seed` draws delays only."""
        self.healed = False
        super().__init__(seed, factory=factory, plan=lambda _: self._plan(), trace=trace)
        self.network = _Scripted(self)
        self.after(0, None, self.begins)

    def _plan(self) -> Plan:
        return Plan(
            n=self.n,
            base_timeout_ms=self.base_timeout_ms,
            timeout_cap_ms=self.timeout_cap_ms,
            status_interval_ms=300,
            rotation_heights=self.rotation_heights,
            empty_block_interval_ms=self.empty_block_interval_ms,
            delay_us=(1_000, 5_000),
            drop_permille=0,
            duplicate_permille=0,
            late_permille=0,
            request_every_us=self.request_every_us,
            faults_end_us=self.faults_end_ms * 1_000,
            fault_every_us=NEVER_US,
            faulty=(),
        )

    def _people(self, factory: ReplicaFactory) -> list[Machine]:
        machines: list[Machine] = []
        for member in range(self.n):
            role = self.faulty.get(member, "")
            make = Traitor if role in ROLES else Machine
            machines.append(make(self, f"m{member}", member, factory, role))
            if role == "twin":
                machines.append(make(self, f"m{member}'", member, factory, role))
        return machines

    def sync_us(self, machine: Machine) -> int:
        """Every write takes about as long as the next."""
        return self.pick(200, 2_000)

    def on_healed(self) -> None:
        """The script is over: every message passes."""
        self.healed = True
        self.ends()
        super().on_healed()

    # --- the script --------------------------------------------------------------------------------------

    def begins(self) -> None:
        """The scene's own events are planned."""

    def passes(self, sender: Machine, receiver: Machine, message: Message) -> bool:
        """Whether `message` arrives. Called once for each receiver."""
        return True

    def linked(self, one: Machine, other: Machine) -> bool:
        """Whether the two can fetch blocks from one another and notice a new link."""
        return True

    def ends(self) -> None:
        """The scene's last moment before everything heals: what it expects may be required here."""

    # --- what scenes need --------------------------------------------------------------------------------

    def traitor(self, member: int) -> Traitor:
        """The traitor at the index `member`."""
        machine = self.machines[member]
        assert isinstance(machine, Traitor)
        return machine

    def records(self, member: int, kind: type[Record]) -> int:
        """How many records of `kind` lie on that member's disk now."""
        return sum(isinstance(record, kind) for record in self.machines[member].disk.records)
