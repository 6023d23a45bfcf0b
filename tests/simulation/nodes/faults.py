"""What goes wrong in one seed: the shape of the network, and faults that begin and end at random times."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from tests.simulation.nodes.disk import Contents
from tests.simulation.nodes.founding import Shape
from tests.simulation.nodes.host import Host
from tests.simulation.nodes.links import SlowLink

if TYPE_CHECKING:
    from tests.simulation.nodes.world import NodeWorld

KINDS_OF_FAULTY = ("wipe", "wipe", "restore", "withhold")
SIZES = (4,) * 9 + (7,)
GARBLED_ONE_SEED_IN = 5
"""By the seed's number: what is drawn in all other seeds, and on stages, does not change."""


class Plan(NamedTuple):
    """The constants of one run, all drawn from its seed. Times are virtual."""

    shape: Shape
    delay_us: tuple[int, int]
    mempool_transactions_max: int
    request_every_us: int
    faults_end_us: int
    fault_every_us: int
    faulty: tuple[str, ...]
    """One of KINDS_OF_FAULTY for each member that may be faulty; at most f of them."""
    governed: bool = False
    """Whether the members change their own list meanwhile."""


class Faults:
    """Injects faults until `plan.faults_end_us`, then mends everything that still is broken."""

    def __init__(self, world: "NodeWorld", plan: Plan) -> None:
        self.world = world
        self.plan = plan
        self.healed = False
        self._pick = world.timeline.pick
        self._chance = world.timeline.chance
        self._backups: dict[str, Contents] = {}
        kinds: tuple[tuple[int, Callable[[], None]], ...] = (
            (5, self._crash_one),
            (5, self._crash_at_write),
            (4, self._crash_at_step),
            (2, self._stop),
            (1, self._power_cut),
            (4, self._pause),
            (3, self._split),
            (4, self._isolate),
            (4, self._one_way),
            (2, self._flap),
            (3, self._reset),
            (2, self._slow_network),
            (2, self._slow_link),
            (2, self._slow_executor),
            (4, self._slow_disk),
            (3, self._clock),
            (3, self._disk_full),
            (1, self._disk_broken),
            (6, self._forget),
            (6, self._withhold),
        )
        # Every seed has its own mix: faults that never meet in an even mix meet often in an odd one.
        self._kinds = [(weight * (0, 1, 1, 4)[self._pick(0, 4)], act) for weight, act in kinds] + [(1, self._pause)]
        self._weight = sum(weight for weight, _ in self._kinds)

    def begin(self) -> None:
        """The first fault is due, and the end of all faults."""
        self.world.network.delay_us = self.plan.delay_us
        for host in self.world.hosts:
            if self._chance(300):
                host.clock.rate_ppm = self._pick(-500, 500)
        if self.world.seed % GARBLED_ONE_SEED_IN == 1:
            self._garble()
        self.world.timeline.after(self._pick(200_000, 200_000 + self.plan.fault_every_us), self._inject)
        self.world.timeline.after(self.plan.faults_end_us, self._heal)

    def _inject(self) -> None:
        if self.healed:
            return
        ticket = self._pick(0, self._weight)
        for weight, act in self._kinds:
            ticket -= weight
            if ticket < 0:
                act()
                break
        self.world.timeline.after(self._pick(1_000, 2 * self.plan.fault_every_us), self._inject)

    def _count(self, kind: str, *detail: object) -> None:
        self.world.faults[kind] += 1
        self.world.note(None, "fault: " + " ".join((kind, *map(str, detail))))

    def _later(self, act: Callable[[], None]) -> None:
        """Call `act` after some time, mostly shorter than a time-out, unless everything was mended before."""

        def unless_healed() -> None:
            if not self.healed:
                act()

        span = self.plan.shape.base_timeout_ms * 1000 * (4 if self._chance(200) else 1)
        self.world.timeline.after(self._pick(1_000, span), unless_healed)

    def _any(self) -> Host:
        """Any machine; every third time the primary of the moment, on which most depends."""
        if self._chance(330):
            primary = self.world.primary_now()
            if primary is not None:
                return primary
        return self.world.hosts[self._pick(0, len(self.world.hosts))]

    # --- processes ---------------------------------------------------------------------------------------

    def _restart_later(self, host: Host) -> None:
        self._later(host.start)

    def _crash(self, host: Host) -> None:
        if host.up:
            host.crash(power=self._chance(250))
            self._restart_later(host)

    def _crash_one(self) -> None:
        host = self._any()
        self._count("crash", host.id)
        self._crash(host)

    def _crash_at_write(self) -> None:
        """The power goes with one of the next batches: just before it is durable, or just after."""
        host = self._any()
        after = self._chance(500)
        self._count("crash after a write" if after else "crash before a write", host.id)
        host.disk.cut_in = (self._pick(1, 8), after)

    def _crash_at_step(self) -> None:
        """The process dies after some further callbacks: between any two awaits."""
        host = self._any()
        self._count("crash between awaits", host.id)
        process = host.process
        if process is not None:
            process.loop.steps_left = self._pick(1, 200)
            process.loop.on_exhausted = lambda: self._crash(host)

    def _stop(self) -> None:
        host = self._any()
        self._count("stop", host.id)
        host.stop()

    def _power_cut(self) -> None:
        self._count("power cut")
        for host in self.world.hosts:
            self._crash(host)

    def _pause(self) -> None:
        host = self._any()
        if host.up and host.process is not None and not host.process.loop.paused:
            self._count("pause", host.id)
            host.pause()
            process = host.process
            self._later(lambda: host.resume() if host.process is process else None)

    def _forget(self) -> None:
        """A member that may be faulty loses its disk, or an older copy of it comes back."""
        chosen = [host for host in self.world.hosts if host.faulty in ("wipe", "restore")]
        if not chosen:
            return
        host = chosen[0]
        if host.faulty == "restore" and host.id not in self._backups:
            self._count("backup", host.id)
            self._backups[host.id] = host.disk.copy()
            return
        self._count(host.faulty, host.id)
        if host.up:
            host.crash(power=self._chance(250))
        host.lose_disk(self._backups.pop(host.id, None))
        self._restart_later(host)

    def _withhold(self) -> None:
        """A member that may be faulty names transactions and sends nobody their bytes."""
        for host in self.world.hosts:
            if host.faulty == "withhold":
                self._count("withhold", host.id)
                self.world.network.withholding[host.id] = "silent" if self._chance(500) else "empty"

    def _garble(self) -> None:
        """A member that may be faulty says other things than it means, in some of its messages or in most."""
        for host in self.world.hosts:
            if host.faulty:
                self._count("garble", host.id)
                shares = (10, 100, 600)
                self.world.network.garbling[host.id] = shares[self.world.seed // GARBLED_ONE_SEED_IN % len(shares)]
                return

    def _slow_executor(self) -> None:
        host = self._any()
        self._count("slow executor", host.id)
        host.pace.processor = self._pick(5, 150)
        self._later(lambda: setattr(host.pace, "processor", 1))

    def _slow_disk(self) -> None:
        host = self._any()
        self._count("slow disk", host.id)
        host.pace.disk = self._pick(5, 100)
        self._later(lambda: setattr(host.pace, "disk", 1))

    def _clock(self) -> None:
        """A wall clock is wrong: sometimes by more than a block's time may be."""
        host = self._any()
        drift_ms = self.plan.shape.drift_ms
        host.clock.offset_ms = self._pick(-3 * drift_ms, 3 * drift_ms)
        self._count("clock", host.id, host.clock.offset_ms)
        self._later(lambda: setattr(host.clock, "offset_ms", 0))

    def _disk_full(self) -> None:
        host = self._any()
        self._count("disk full", host.id)
        host.disk.fail_in = self._pick(1, 8)

    def _disk_broken(self) -> None:
        host = self._any()
        self._count("disk broken", host.id)
        host.disk.broken = True

        def mend() -> None:
            host.disk.broken = False

        self._later(mend)

    def on_end(self, host: Host) -> None:
        """The process has ended by itself: somebody frees the disk and starts it again."""

        def start() -> None:
            host.disk.full = host.disk.broken = False
            host.start()

        if self.healed:
            start()
        else:
            self._later(start)

    # --- the network -------------------------------------------------------------------------------------

    def _cut_pairs(self, pairs: list[tuple[str, str]]) -> None:
        network = self.world.network
        for sender, receiver in pairs:
            network.cut(sender, receiver)

        def mend() -> None:
            for sender, receiver in pairs:
                network.mend(sender, receiver)

        self._later(mend)

    def _split(self) -> None:
        sides = [(host.id, self._chance(500)) for host in self.world.hosts]
        self._count("split", "".join("ab"[side] for _, side in sides))
        self._cut_pairs([(one, other) for one, side in sides for other, where in sides if side != where])

    def _isolate(self) -> None:
        host = self._any()
        self._count("isolate", host.id)
        others = [other.id for other in self.world.hosts if other is not host]
        self._cut_pairs([(host.id, other) for other in others] + [(other, host.id) for other in others])

    def _one_way(self) -> None:
        host = self._any()
        others = [other.id for other in self.world.hosts if other is not host and self._chance(600)]
        if self._chance(500):
            self._count("one-way stall", "from", host.id, "to", *others)
            self._cut_pairs([(host.id, other) for other in others])
        else:
            self._count("one-way stall", "to", host.id, "from", *others)
            self._cut_pairs([(other, host.id) for other in others])

    def _flap(self) -> None:
        """A machine's links come and go."""
        host = self._any()
        self._count("flapping", host.id)
        others = [other.id for other in self.world.hosts if other is not host]
        for _ in range(self._pick(3, 8)):
            due_us = self._pick(0, self.plan.shape.base_timeout_ms * 2_000)
            other = others[self._pick(0, len(others))]
            self.world.timeline.after(due_us, self.world.network.reset, host.id, other)

    def _reset(self) -> None:
        hosts = self.world.hosts
        one, other = hosts[self._pick(0, len(hosts))], hosts[self._pick(0, len(hosts))]
        if one is not other:
            self._count("reset", one.id, other.id)
            self.world.network.reset(one.id, other.id)

    def _slow_network(self) -> None:
        network = self.world.network
        network.delay_us = (20_000, self._pick(50_000, 800_000))
        self._count("slow network", network.delay_us[1] // 1000, "ms")
        self._later(lambda: setattr(network, "delay_us", self.plan.delay_us))

    def _slow_link(self) -> None:
        """What goes to or from one machine has little bandwidth and a short queue."""
        host = self._any()
        slow = SlowLink(self._pick(500, 20_000), self._pick(1_000, 8_000))
        self._count("slow links", host.id)
        pairs = [(host.id, other.id) for other in self.world.hosts if other is not host]
        pairs += [(other, one) for one, other in pairs]
        for pair in pairs:
            self.world.network.slow[pair] = slow

        def mend() -> None:
            for pair in pairs:
                self.world.network.slow.pop(pair, None)

        self._later(mend)

    # --- the end of it -----------------------------------------------------------------------------------

    def _heal(self) -> None:
        """Every process runs, every link is whole, every clock is right; from here on the bound counts."""
        self.healed = True
        world, network = self.world, self.world.network
        network.delay_us = self.plan.delay_us
        network.slow.clear()
        network.withholding.clear()
        network.garbling.clear()
        for sender in world.hosts:
            for receiver in world.hosts:
                while network.is_cut(sender.id, receiver.id):
                    network.mend(sender.id, receiver.id)
        for host in world.hosts:
            host.pace.disk = host.pace.processor = 1
            host.clock.offset_ms = 0
            host.disk.full = host.disk.broken = False
            host.disk.fail_in = host.disk.cut_in = None
            if host.process is not None:
                host.process.loop.steps_left = None
                host.resume()
            else:
                host.start()
        world.on_healed()


def draw_governed_plan(world: "NodeWorld") -> Plan:
    """As `draw_plan`, of at least five members, who change their own list meanwhile."""
    plan = draw_plan(world)
    return plan._replace(shape=plan.shape._replace(n=max(5, plan.shape.n)), governed=True)


def draw_plan(world: "NodeWorld") -> Plan:
    """The plan of the world's seed."""
    pick, chance = world.timeline.pick, world.timeline.chance
    n = SIZES[pick(0, len(SIZES))]
    base = (1_500, 2_000)[pick(0, 2)]
    fastest = pick(200, 10_000)
    f = (n - 1) // 3
    faulty = [KINDS_OF_FAULTY[pick(0, len(KINDS_OF_FAULTY))] for _ in range(f) if chance(600)]
    return Plan(
        shape=Shape(
            n=n,
            base_timeout_ms=base,
            timeout_cap_ms=base * (2, 4)[pick(0, 2)],
            status_interval_ms=(300, 500)[pick(0, 2)],
            rotation_heights=(3, 10, 10_000)[pick(0, 3)],
            empty_block_interval_ms=(1_500, 3_000)[pick(0, 2)],
            drift_ms=(300, 1_000)[pick(0, 2)],
            block_transactions_max=(3, 8)[pick(0, 2)],
        ),
        delay_us=(fastest, fastest + pick(1_000, 40_000)),
        mempool_transactions_max=(6, 20, 1_000)[pick(0, 3)],
        request_every_us=pick(150_000, 900_000),
        faults_end_us=base * 1000 * pick(2, 6),
        fault_every_us=base * 1000 * pick(1, 6) // 10,
        faulty=tuple(faulty),
    )
