"""What goes wrong in one seed: the shape of the network, and faults that begin and end at random times."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from tests.simulation.byzantine.roles import ROLES
from tests.simulation.disk import Disk
from tests.simulation.instances import DRAWN, OF_SEEDS
from tests.simulation.link_faults import LinkFaults
from tests.simulation.machine import Machine
from tests.simulation.network import KINDS

if TYPE_CHECKING:
    from tests.simulation.world import World

MOMENTS = ("VoteRecord", "PreparedRecord", "ViewChangeRecord", "NewViewRecord", *KINDS, "Decide", "applied")
KINDS_OF_FAULTY = (*("wipe", "restore") * 4, *("rollback", "twin") * 3, *ROLES, *("equivocator", "turncoat") * 2)
HALF_AN_HOUR_US = 30 * 60 * 1_000_000
CLOCK_ERROR_MS = 3_600_000
FULL_LOAD_REQUESTS = 400
WINDOWS_ONE_SEED_IN = 3
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
    spares: int = 0
    """Members that are not in the list of genesis and may join it."""
    observers: int = 0
    poison_permille: int = 0
    """How many of a thousand requests cannot be executed in time, or not at all."""
    long_pause: bool = False
    """One process stands still for half an hour of the others' time."""
    instances: str = DRAWN
    """Which instances the processes have: a kind of instances.py."""
    full_load: bool = False
    """Work waits all the time and little else goes wrong, so that a slow primary can be told from slow others."""
    windows: bool = False
    """Members rest (windows.py)."""


class Faults:
    """Injects faults until `plan.faults_end_us`, then mends everything that still is broken."""

    def __init__(self, world: "World", plan: Plan) -> None:
        self.world = world
        self.plan = plan
        self.healed = False
        self._backups: dict[str, Disk] = {}
        self._links = links = LinkFaults(world, plan, self)
        kinds: tuple[tuple[int, Callable[[], None]], ...] = (
            (6, self._crash_one),
            (2, self._crash_several),
            (1, self._power_cut),
            (5, self._crash_at),
            (4, self._pause),
            (1, self._suspend),
            (4, links.split),
            (4, links.isolate),
            (4, links.one_way),
            (4, links.flap),
            (8, links.withhold),
            (3, links.loss),
            (3, links.slow_network),
            (3, links.slow_link),
            (2, self._slow_executor),
            (2, self._slow_builder),
            (2, self._clock),
            (2, self._drift),
            (5, self._forget),
            (2, self._withhold_signature),
            (3, self._odd_release),
            (2, self._new_release),
            (6, self._change_members),
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
        self._links.part_twins()
        if self.plan.long_pause:
            self.world.after(self.world.pick(1_000, 10_000_000), None, self._long_pause)
        if self.plan.full_load:
            self._load_fully()
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

    def count(self, kind: str, *detail: object) -> None:
        """One more fault of `kind`."""
        self.world.faults[kind] += 1
        self.world.note(None, "fault: " + " ".join((kind, *map(str, detail))))

    def _some_time(self) -> int:
        """Mostly shorter than a time-out, sometimes many of them."""
        span = self.plan.base_timeout_ms * 1000 * (6 if self.world.chance(250) else 1)
        return self.world.pick(1_000, span)

    def later(self, act: Callable[[], None]) -> None:
        """Call `act` after some time, unless everything was mended before."""

        def unless_healed() -> None:
            if not self.healed:
                act()

        self.world.after(self._some_time(), None, unless_healed)

    def any(self) -> Machine:
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
            self.later(lambda: self._restart(machine))

    def _restart(self, machine: Machine) -> None:
        if not machine.up:
            machine.start()

    def _crash_one(self) -> None:
        machine = self.any()
        self.count("crash", machine.name)
        self._crash(machine)

    def _crash_at(self) -> None:
        """A member crashes at its next effect of one kind: just before it, or just after."""
        machine = self.any()
        kind = MOMENTS[self.world.pick(0, len(MOMENTS))]
        before = self.world.chance(500)
        self.count("crash at", machine.name, "before" if before else "after", kind)
        machine.crash_at = (kind, before, lambda: self._crash(machine))

    def _crash_several(self) -> None:
        self.count("crash several")
        for machine in self.world.machines:
            if self.world.chance(500):
                self._crash(machine)

    def _power_cut(self) -> None:
        self.count("power cut")
        for machine in self.world.machines:
            self._crash(machine)

    def _pause(self) -> None:
        machine = self.any()
        if machine.up and not machine.paused:
            self.count("pause", machine.name)
            self._pause_for(machine, self._some_time())

    def _pause_for(self, machine: Machine, span_us: int) -> None:
        machine.paused = True
        life = machine.life

        def resume() -> None:
            if machine.life == life and machine.paused:
                machine.pause_ends()

        self.world.after(span_us, None, resume)

    def _forget(self) -> None:
        """A member of the faulty ones loses its disk or its votes, often just after a vote."""
        chosen = [machine for machine in self.world.machines if machine.faulty in ("wipe", "restore", "rollback")]
        if not chosen:
            return
        machine = chosen[self.world.pick(0, len(chosen))]
        if machine.faulty != "wipe" and self.world.chance(300):
            self.count("backup", machine.name)
            self._backups[machine.name] = machine.disk.copy()
        elif machine.up and self.world.chance(500):
            kind = ("PREPARE", "COMMIT", "PrePrepare", "ViewChange")[self.world.pick(0, 4)]
            machine.crash_at = (kind, False, lambda: self._lose(machine))
        else:
            self._lose(machine)

    def _lose(self, machine: Machine) -> None:
        self.count(machine.faulty, machine.name)
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
            self.later(lambda: self._restart(machine))

    def _slow_executor(self) -> None:
        machine = self.any()
        self.count("slow executor", machine.name)
        machine.slow = self.world.pick(5, 100)
        self.later(lambda: setattr(machine, "slow", 1))

    def _clock(self) -> None:
        machine = self.any()
        machine.clock.skew_ms += self.world.pick(-2_000, 2_000)
        if self.world.chance(100):
            machine.clock.skew_ms += (-CLOCK_ERROR_MS, CLOCK_ERROR_MS)[self.world.pick(0, 2)]
            self.count("clock far off", machine.name, machine.clock.skew_ms)
        self.count("clock", machine.name, machine.clock.skew_ms)

    def _drift(self) -> None:
        """One machine's clocks run too fast or too slow."""
        machine = self.any()
        permille = self.world.pick(-50, 50)
        machine.clock.set_drift(permille)
        self.count("clock drift", machine.name, permille, "permille")

    def _withhold_signature(self) -> None:
        """One member may sign nothing for a while, and does all else."""
        machine = self.any()
        if machine.honest and not machine.paused:
            machine.withhold("its disk is full")
            self.count("signature withheld", machine.name)
            self.later(lambda: machine.withhold(""))

    def _odd_release(self) -> None:
        """One member runs other code than the rest for a while."""
        machine = self.any()
        if machine.up and not machine.paused:
            self.count("other release at one", machine.name)
            self.world.releases.install_odd(machine)
            self.later(lambda: self.world.releases.mend(machine))

    def _new_release(self) -> None:
        """Everybody changes to a new release, one after the other or all at once."""
        releases = self.world.releases
        releases.newest += 1
        at_once = self.world.chance(400)
        self.count("new release", "at once" if at_once else "by and by")
        for machine in self.world.machines:
            if at_once:
                releases.mend(machine)
            else:
                self.later(partial(releases.mend, machine))

    def _slow_builder(self) -> None:
        """One member takes long to build its blocks, and nobody else's executor is to blame."""
        machine = self.any()
        machine.build_late_us = self.plan.base_timeout_ms * self.world.pick(200, 900)
        self.count("slow builder", machine.name, machine.build_late_us // 1000, "ms")
        self.later(lambda: setattr(machine, "build_late_us", 0))

    def _suspend(self) -> None:
        """All machines are virtual, and their host sleeps for half an hour."""
        if self.world.chance(200):
            self.count("all paused for 30 min")
            self.world.leap(HALF_AN_HOUR_US)

    def _long_pause(self) -> None:
        """One process stands still for half an hour while the others go on."""
        machine = self.any()
        if machine.up and not machine.paused:
            self.count("one paused for 30 min", machine.name)
            self._pause_for(machine, HALF_AN_HOUR_US)

    def _load_fully(self) -> None:
        """More requests than fit wait all the time; once the pace is known, the primary of the moment is slow."""
        for request in range(FULL_LOAD_REQUESTS):
            number = self.world.issue()
            for machine in self.world.machines:
                self.world.after(300_000 + request, None, machine.learn, number)  # when all of them run
        base_us = self.plan.base_timeout_ms * 1000

        def slow_down() -> None:
            machine = self.world.primary_now()
            if machine is not None and not self.healed:
                machine.build_late_us = base_us * self.world.pick(400, 600) // 1000
                self.count("slow primary under full load", machine.name)

        self.world.after(self.world.pick(7, 9) * base_us, None, slow_down)

    # --- members -----------------------------------------------------------------------------------------

    def _change_members(self) -> None:
        """A member joins (with an empty disk, or with what it had when it left), leaves, or gets a new key."""
        if not self.plan.spares:
            return
        world = self.world
        machine = world.machines[world.pick(0, len(world.machines))]
        if machine.member >= self.plan.n + self.plan.spares:
            return
        best = max(world.machines, key=lambda one: one.disk.height)
        listed = best.disk.members(world.members).index(machine.id) is not None
        kind = "join" if not listed else "rotate" if machine.honest and world.chance(300) else "leave"
        version = machine.key_version + (kind == "rotate")
        self.count(
            "member " + {"join": "joins", "leave": "leaves", "rotate": "rotates its key"}[kind], machine.name
        )
        world.change(kind, machine.member, version)
        if kind == "join":
            self.world.after(self._some_time(), None, self._restart, machine)

    # --- the end of it -----------------------------------------------------------------------------------

    def _heal(self) -> None:
        """Every process runs, every link is open and lossless; from here on the bound on progress counts."""
        self.healed = True
        world = self.world
        self._links.heal()
        for machine in world.machines:
            world.releases.mend(machine)
            machine.slow = 1
            machine.build_late_us = 0
            machine.clock.mend(world.pick(-2_000, 2_000))
            machine.disk.withheld = ""
            machine.crash_at = None
            if machine.paused:
                machine.pause_ends()
            if not machine.up:
                machine.start()
            elif machine.honest:
                machine.withhold("")
        world.on_healed()


def draw_plan(world: "World") -> Plan:
    """The plan of the world's seed."""
    n = SIZES[world.pick(0, len(SIZES))]
    base = (500, 500, 750, 1_000)[world.pick(0, 4)]
    fastest = world.pick(500, 20_000)
    f = (n - 1) // 3
    faulty = []
    for _ in range(f):
        if world.chance(700):
            faulty.append(KINDS_OF_FAULTY[world.pick(0, len(KINDS_OF_FAULTY))])
    calm = world.chance(200)
    plan = Plan(
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
        spares=world.pick(1, 3) if n > 1 and world.chance(300) else 0,
        observers=1 if world.chance(150) else 0,
        poison_permille=world.pick(10, 200) if world.chance(150) else 0,
        instances=OF_SEEDS[world.seed % len(OF_SEEDS)],
        windows=world.seed % WINDOWS_ONE_SEED_IN == 1,
    )
    return _rare(world, plan)


def _rare(world: "World", plan: Plan) -> Plan:
    """`plan`, or one of the long and expensive kinds that few seeds have."""
    ticket = world.pick(0, 1_000)
    if ticket < 2:
        return plan._replace(
            n=4,
            faulty=(),
            spares=0,
            long_pause=True,
            status_interval_ms=1_000,
            request_every_us=8_000_000,
            fault_every_us=60_000_000,
            faults_end_us=HALF_AN_HOUR_US + 15_000_000,
        )
    if ticket < 10:
        return plan._replace(
            faulty=(),
            spares=0,
            full_load=True,
            base_timeout_ms=1_000,
            timeout_cap_ms=4_000,
            delay_us=(15_000, 30_000),
            drop_permille=0,
            late_permille=0,
            poison_permille=0,
            rotation_heights=10_000,
            fault_every_us=8_000_000,
            faults_end_us=15_000_000,
        )
    return plan
