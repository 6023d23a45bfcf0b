"""Two hours without a quorum, and how soon the next block comes when it is back.

More than f members are gone, everybody is cut off from everybody, or the links of f + 1 members come and go, for
two simulated hours in which the rest keeps asking for views. Time-outs double up to the cap and no further, and a
view asked for grows only while a quorum asks (rules 6.4 and 6.5), so the members that are back must find one view
within two capped time-outs: one for the silence, one for the new view.
"""

import json
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from typing import NamedTuple

from consensus.replica import Replica
from tests.simulation.faults import Plan
from tests.simulation.machine import Machine
from tests.simulation.world import Failure, World

OUTAGE_US = 2 * 3600 * 1_000_000
STEPS_MAX = 10_000_000
KINDS = ("gone", "partitioned", "flapping")
SIZES = (4, 4, 5, 7)
BASE_TIMEOUT_MS = 2_000
TIMEOUT_CAP_MS = 10_000


class Recovery(NamedTuple):
    """One outage: from the quorum's return to the next block of anybody, and to the promises kept at everybody."""

    seed: int
    kind: str
    n: int
    next_block_ms: int
    everybody_ms: int
    failure: Failure | None


class Outage(World):
    """A network that is well, then without a quorum for `outage_us`, then well again."""

    def __init__(
        self, seed: int, *, outage_us: int = OUTAGE_US, trace: Callable[[str], None] | None = None
    ) -> None:
        """`seed` draws the kind of outage, who is hit by it, and every delay."""
        self.kind = KINDS[seed % len(KINDS)]
        self._outage_us = outage_us
        self._height_at_return = 0
        self._returned_us = 0
        self.next_block_ms: int | None = None
        super().__init__(seed, factory=Replica, plan=lambda world: self._plan(world), trace=trace)
        self.watches_phases = False

    def _plan(self, world: World) -> Plan:
        begins_us = world.pick(3_000_000, 8_000_000)
        world.after(begins_us, None, self._begin)
        return Plan(
            n=SIZES[world.pick(0, len(SIZES))],
            base_timeout_ms=BASE_TIMEOUT_MS,
            timeout_cap_ms=TIMEOUT_CAP_MS,
            status_interval_ms=500,
            rotation_heights=10_000,
            empty_block_interval_ms=60_000,
            delay_us=(1_000, 60_000),
            drop_permille=10,
            duplicate_permille=10,
            late_permille=10,
            request_every_us=60_000_000,
            faults_end_us=begins_us + self._outage_us,
            fault_every_us=10**15,  # nothing else goes wrong
            faulty=(),
        )

    def _victims(self) -> list[Machine]:
        """f + 1 members, drawn: without them there is no quorum."""
        order = sorted(self.machines, key=lambda _: self._random())
        return order[: self.members.f + 1]

    def _begin(self) -> None:
        victims = self._victims()
        self.faults[f"outage: {self.kind}"] += 1
        if self.kind == "gone":
            for machine in victims:
                machine.crash()
        elif self.kind == "partitioned":
            for one in self.machines:
                for other in self.machines:
                    if one is not other:
                        self.network.cut(one, other)
        else:
            for machine in victims:
                self._flap(machine, cut=True)

    def _flap(self, machine: Machine, *, cut: bool) -> None:
        """The links of `machine` go away and come back, for a moment or for minutes."""
        if self._returned_us:
            return
        for other in self.machines:
            if other is not machine:
                for pair in ((machine, other), (other, machine)):
                    if cut:
                        self.network.cut(*pair)
                    else:
                        self.network.mend(*pair, reconnect=True)
        longest_us = 120_000_000 if cut else 5_000_000
        self.after(self.pick(100_000, longest_us), None, lambda: self._flap(machine, cut=not cut))

    def on_healed(self) -> None:
        """The quorum is back, and there is work: what is measured is no idle network's patience."""
        self._returned_us = self.now_us
        self._height_at_return = max(machine.disk.height for machine in self.machines)
        super().on_healed()
        self.request()

    def on_height(self, machine: Machine) -> None:
        """The first block after the quorum's return is what is measured."""
        super().on_height(machine)
        if self._returned_us and self.next_block_ms is None and machine.disk.height > self._height_at_return:
            self.next_block_ms = (self.now_us - self._returned_us) // 1000
            self.checks.require(
                "next block within twice the cap", self.next_block_ms <= 2 * TIMEOUT_CAP_MS, self.next_block_ms
            )


def measure(seed: int) -> Recovery:
    """One outage, played to its end."""
    world = Outage(seed)
    outcome = world.run(STEPS_MAX)
    after = world.next_block_ms if world.next_block_ms is not None else sys.maxsize
    return Recovery(seed, world.kind, world.plan.n, after, outcome.recovery_ms, outcome.failure)


def main(count: int, first: int, jobs: int, *, as_json: bool) -> int:
    """Measure `count` outages and print them; 0 when the next block always came in time, else 1."""
    seeds = range(first, first + count)
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        recoveries = pool.map(measure, seeds, chunksize=1)
    failed = [recovery.failure for recovery in recoveries if recovery.failure is not None]
    waits = [recovery.next_block_ms for recovery in recoveries]
    if as_json:
        document = {
            "outages": len(recoveries),
            "outage_seconds": OUTAGE_US // 1_000_000,
            "timeout_cap_ms": TIMEOUT_CAP_MS,
            "next_block_ms": {"median": statistics.median(waits), "worst": max(waits)},
            "everybody_ms_worst": max(recovery.everybody_ms for recovery in recoveries),
            "failed": [{"seed": failure.seed, "step": failure.step, "rule": failure.rule} for failure in failed],
        }
        print(json.dumps(document))
        return 1 if failed else 0
    for kind in KINDS:
        times = sorted(recovery.next_block_ms for recovery in recoveries if recovery.kind == kind)
        if times:
            median = statistics.median(times)
            print(f"{kind:<12} {len(times):4d} outages: median {median:.0f} ms, worst {times[-1]} ms")
    print(
        f"{len(recoveries)} outages of two hours; from the quorum's return to the next block: median "
        f"{statistics.median(waits):.0f} ms, worst {max(waits)} ms; allowed {2 * TIMEOUT_CAP_MS} ms; "
        f"{len(failed)} failed"
        + "".join(f"\nseed {failure.seed}: {failure.rule}: {failure.detail}" for failure in failed)
    )
    return 1 if failed else 0
