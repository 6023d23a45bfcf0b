"""What goes wrong in one seed: the shape of the network, and faults that begin and end at random times."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from tests.simulation.disk import Disk
from tests.simulation.machine import Machine
from tests.simulation.network import KINDS

if TYPE_CHECKING:
    from tests.simulation.world import World

MOMENTS = ("VoteRecord", "PreparedRecord", "ViewChangeRecord", "NewViewRecord", *KINDS, "Decide", "applied")
KINDS_OF_FAULTY = ("wipe", "wipe", "restore", "restore", "rollback", "twin", "liar", "liar")
SIZES = (4,) * 9 + (7,) * 4 + (5, 5, 6, 6, 1)


class Plan(NamedTuple):
    """The constants of one run, all drawn from its seed. Times are virtual."""

    n: int
    base_timeout_ms: int
    timeout_cap_ms: int
    status_interval_ms: int
    rotation_heights: int
    empty_block_interval_ms: int
    delay_us: tuple[int, int]
    drop_permille: int
    duplicate_permille: int
    late_permille: int
    request_every_us: int
    faults_end_us: int
    fault_every_us: int
    faulty: tuple[str, ...]
    """One of `KINDS_OF_FAULTY` for each member that may be faulty; at most f of them."""


class Faults:
    """Injects faults until `plan.faults_end_us`, then mends everything that still is broken."""

    def __init__(self, world: "World", plan: Plan) -> None:
        self.world = world
        self.plan = plan
        self.healed = False
        self._backups: dict[str, Disk] = {}
        kinds: tuple[tuple[int, Callable[[], None]], ...] = (
            (6, self._crash_one),
            (2, self._crash_several),
            (1, self._power_cut),
            (5, self._crash_at),
            (4, self._pause),
            (4, self._split),
            (4, self._isolate),
            (4, self._one_way),
            (8, self._withhold),
            (3, self._loss),
            (3, self._slow_network),
            (2, self._slow_executor),
            (2, self._clock),
            (5, self._forget),
        )
        # Every seed has its own mix: faults that never meet in an even mix meet often in an odd one.
        self._kinds = [(weight * (0, 1, 1, 4)[world.pick(0, 4)], act) for weight, act in kinds] + [(1, self._pause)]
        self._weight = sum(weight for weight, _ in self._kinds)

    def begin(self) -> None:
        """The network has its everyday faults, and the first event is due."""
        network = self.world.network
        network.delay_us = self.plan.delay_us
        network.drop_permille = self.plan.drop_permille
        network.duplicate_permille = self.plan.duplicate_permille
        network.late_permille = self.plan.late_permille
        self._part_twins()
        self.world.after(self.world.pick(0, self.plan.fault_every_us), None, self._inject)
        self.world.after(self.plan.faults_end_us, None, self._heal)

    def _inject(self) -> None:
        if self.healed:
            return
        ticket = self.world.pick(0, self._weight)
        for weight, act in self._kinds:
            ticket -= weight
            if ticket < 0:
                act()
                break
        self.world.after(self.world.pick(1_000, 2 * self.plan.fault_every_us), None, self._inject)

    def _count(self, kind: str, *detail: object) -> None:
        self.world.faults[kind] += 1
        self.world.note(None, "fault: " + " ".join((kind, *map(str, detail))))

    def _some_time(self) -> int:
        """Mostly shorter than a time-out, sometimes many of them."""
        span = self.plan.base_timeout_ms * 1000 * (6 if self.world.chance(250) else 1)
        return self.world.pick(1_000, span)

    def _later(self, act: Callable[[], None]) -> None:
        """Call `act` after some time, unless everything was mended before."""

        def unless_healed() -> None:
            if not self.healed:
                act()

        self.world.after(self._some_time(), None, unless_healed)

    def _any(self) -> Machine:
        """Any machine; every third time the primary of the moment, on which most depends."""
        if self.world.chance(330):
            primary = self.world.primary_now()
            if primary is not None:
                return primary
        return self.world.machines[self.world.pick(0, len(self.world.machines))]

    # --- processes ---------------------------------------------------------------------------------------

    def _crash(self, machine: Machine) -> None:
        if machine.up:
            machine.crash()
            self._later(lambda: self._restart(machine))

    def _restart(self, machine: Machine) -> None:
        if not machine.up:
            machine.start()

    def _crash_one(self) -> None:
        machine = self._any()
        self._count("crash", machine.name)
        self._crash(machine)

    def _crash_at(self) -> None:
        """A member crashes at its next effect of one kind: just before it, or just after."""
        machine = self._any()
        kind = MOMENTS[self.world.pick(0, len(MOMENTS))]
        before = self.world.chance(500)
        self._count("crash at", machine.name, "before" if before else "after", kind)
        machine.crash_at = (kind, before, lambda: self._crash(machine))

    def _crash_several(self) -> None:
        self._count("crash several")
        for machine in self.world.machines:
            if self.world.chance(500):
                self._crash(machine)

    def _power_cut(self) -> None:
        self._count("power cut")
        for machine in self.world.machines:
            self._crash(machine)

    def _pause(self) -> None:
        machine = self._any()
        if machine.up and not machine.paused:
            self._count("pause", machine.name)
            machine.paused = True
            life = machine.life

            def resume() -> None:
                if machine.life == life and machine.paused:
                    machine.pause_ends()

            self._later(resume)

    def _forget(self) -> None:
        """A member of the faulty ones loses its disk or its votes, often just after a vote."""
        chosen = [machine for machine in self.world.machines if machine.faulty in ("wipe", "restore", "rollback")]
        if not chosen:
            return
        machine = chosen[self.world.pick(0, len(chosen))]
        if machine.faulty != "wipe" and self.world.chance(300):
            self._count("backup", machine.name)
            self._backups[machine.name] = machine.disk.copy()
        elif machine.up and self.world.chance(500):
            kind = ("PREPARE", "COMMIT", "PrePrepare", "ViewChange")[self.world.pick(0, 4)]
            machine.crash_at = (kind, False, lambda: self._lose(machine))
        else:
            self._lose(machine)

    def _lose(self, machine: Machine) -> None:
        self._count(machine.faulty, machine.name)
        if machine.up:
            machine.crash()
        backup = None if machine.faulty == "wipe" else self._backups.pop(machine.name, None) or machine.disk.copy()
        if backup is not None and machine.faulty == "rollback":
            machine.disk = backup
        else:
            machine.wipe(backup)
        if self.world.chance(400):  # once more, before it has learnt what it must not do
            moment = MOMENTS[self.world.pick(0, len(MOMENTS))]
            machine.crash_at = (moment, False, lambda: self._crash(machine))
        if self.world.chance(500):
            self.world.after(self.world.pick(100, 20_000), None, self._restart, machine)
        else:
            self._later(lambda: self._restart(machine))

    def _slow_executor(self) -> None:
        machine = self._any()
        self._count("slow executor", machine.name)
        machine.slow = self.world.pick(5, 100)
        self._later(lambda: setattr(machine, "slow", 1))

    def _clock(self) -> None:
        machine = self._any()
        machine.skew_ms = self.world.pick(-2_000, 2_000)
        self._count("clock", machine.name, machine.skew_ms)

    # --- the network -------------------------------------------------------------------------------------

    def _cut_pairs(self, pairs: list[tuple[Machine, Machine]]) -> None:
        network = self.world.network
        reconnect = self.world.chance(500)
        for sender, receiver in pairs:
            network.cut(sender, receiver)

        def mend() -> None:
            for sender, receiver in pairs:
                network.mend(sender, receiver, reconnect=reconnect)

        self._later(mend)

    def _split(self) -> None:
        sides = [self.world.chance(500) for _ in self.world.machines]
        machines = list(zip(self.world.machines, sides, strict=True))
        self._count("split", "".join("ab"[side] for side in sides))
        self._cut_pairs([(one, other) for one, side in machines for other, where in machines if side != where])

    def _isolate(self) -> None:
        machine = self._any()
        self._count("isolate", machine.name)
        others = [other for other in self.world.machines if other is not machine]
        self._cut_pairs([(machine, other) for other in others] + [(other, machine) for other in others])

    def _one_way(self) -> None:
        machine = self._any()
        others = [other for other in self.world.machines if other is not machine and self.world.chance(600)]
        if self.world.chance(500):
            self._count("one-way cut", "from", machine.name, "to", *(other.name for other in others))
            self._cut_pairs([(machine, other) for other in others])
        else:
            self._count("one-way cut", "to", machine.name, "from", *(other.name for other in others))
            self._cut_pairs([(other, machine) for other in others])

    def _loss(self) -> None:
        network = self.world.network
        network.drop_permille = self.world.pick(100, 700)
        self._count("loss", network.drop_permille, "permille")
        self._later(lambda: setattr(network, "drop_permille", self.plan.drop_permille))

    def _withhold(self) -> None:
        """One kind of message is late or lost on its way to some of the members."""
        network = self.world.network
        kind = KINDS[self.world.pick(0, len(KINDS))]
        late_us = 0 if self.world.chance(400) else self.plan.base_timeout_ms * self.world.pick(500, 3_000)
        victims = [machine for machine in self.world.machines if self.world.chance(700)]
        self._count("withhold", kind, late_us // 1000, "ms", *(machine.name for machine in victims))
        for machine in victims:
            network.withheld[(kind, machine.name)] = late_us

        def pass_on() -> None:
            for machine in victims:
                network.withheld.pop((kind, machine.name), None)

        self._later(pass_on)

    def _slow_network(self) -> None:
        network = self.world.network
        network.delay_us = (50_000, self.world.pick(100_000, 2_000_000))
        self._count("slow network", network.delay_us[1] // 1000, "ms")
        self._later(lambda: setattr(network, "delay_us", self.plan.delay_us))

    def _part_twins(self) -> None:
        """Two processes with one key: each reaches only one half of the others, until everything heals."""
        twins = [machine for machine in self.world.machines if machine.faulty == "twin"]
        sides = [self.world.chance(500) for _ in self.world.machines]
        for one, side in zip(self.world.machines, sides, strict=True):
            if one in twins:
                self._count("twin", one.name)
                side = one.name.endswith("'")
            for twin in twins:
                if side != twin.name.endswith("'"):
                    self.world.network.cut(one, twin)
                    self.world.network.cut(twin, one)

    # --- the end of it -----------------------------------------------------------------------------------

    def _heal(self) -> None:
        """Every process runs, every link is open and lossless; from here on the bound on progress counts."""
        self.healed = True
        world, network = self.world, self.world.network
        network.drop_permille = network.duplicate_permille = network.late_permille = 0
        network.delay_us = self.plan.delay_us
        network.withheld.clear()
        reconnect = world.chance(500)
        for sender in world.machines:
            for receiver in world.machines:
                if network.cuts.pop((sender.name, receiver.name), 0):
                    network.mend(sender, receiver, reconnect=reconnect)
        for machine in world.machines:
            machine.slow = 1
            machine.crash_at = None
            if machine.paused:
                machine.pause_ends()
            if not machine.up:
                machine.start()
        world.on_healed()


def draw_plan(world: "World") -> Plan:
    """The plan of the world's seed."""
    n = SIZES[world.pick(0, len(SIZES))]
    base = (500, 1_000, 1_000, 2_000)[world.pick(0, 4)]
    fastest = world.pick(500, 20_000)
    f = (n - 1) // 3
    faulty = []
    for _ in range(f):
        if world.chance(700):
            faulty.append(KINDS_OF_FAULTY[world.pick(0, len(KINDS_OF_FAULTY))])
    calm = world.chance(200)
    return Plan(
        n=n,
        base_timeout_ms=base,
        timeout_cap_ms=base * (2, 4, 5)[world.pick(0, 3)],
        status_interval_ms=(300, 500, 1_000)[world.pick(0, 3)],
        rotation_heights=(3, 10, 10_000)[world.pick(0, 3)],
        empty_block_interval_ms=(0, 3_000, 60_000)[world.pick(0, 3)],
        delay_us=(fastest, fastest + world.pick(1_000, 60_000)),
        drop_permille=0 if calm else world.pick(0, 80),
        duplicate_permille=world.pick(0, 60),
        late_permille=0 if calm else world.pick(0, 60),
        request_every_us=world.pick(200_000, 1_500_000),
        faults_end_us=base * 1000 * world.pick(5, 15),
        fault_every_us=base * 1000 * world.pick(2, 10) // 10,
        faulty=tuple(faulty),
    )
