"""Whether commits are slower while snapshots are made: one load on one network, with and without, in turn.

Both halves of the comparison come from one run, phase after phase, so that whatever else the machine does falls on
both. The nodes start anew for each phase, with `keep` of node.toml's [snapshots] at 2 or at 0, and warm up; in a
phase with snapshots only those transactions count that began and ended while some node was making one.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from node.config import Parameters, SnapshotSettings, dump_node, load_node
from node.snapshot import finished_heights, read_manifest
from node.snapshot.folder import snapshot_at
from scripts.localnet.batches import BatchClient, batch, batch_client
from scripts.localnet.figures import Percentiles, percentiles_ms
from scripts.localnet.filling import open_accounts
from scripts.localnet.generator import Shape, Traffic
from scripts.localnet.layout import Layout, TestnetError
from scripts.localnet.metrics import gauges_of_all
from scripts.localnet.nodes import Nodes
from scripts.localnet.session import Session

ACCOUNTS = 100_000
"""Two state keys each."""
SNAPSHOT_BLOCKS = 20
"""So often that the next making begins soon after the one before."""
ROUNDS = 3
"""One phase with and one without in each."""
WARM_UP_S = 3.0
PHASE_TIMEOUT_S = 900.0
LOOK_INTERVAL_S = 0.5
REQUESTS_PER_S = 20


class Sample(msgspec.Struct, frozen=True):
    """Transactions of one request: when it was due, and when they were final (seconds of one clock)."""

    due_s: float
    final_s: float
    transactions: int


class Making(msgspec.Struct, frozen=True):
    """A time in which some node was making a snapshot (or none was), less what lies between two looks."""

    begin_s: float
    end_s: float
    making: bool


class Side(msgspec.Struct, frozen=True):
    """One half of the comparison: seconds and transactions that count, their latency submit -> final."""

    phases: int
    seconds: float
    transactions: int
    latency_ms: Percentiles
    p99_ms_by_phase: tuple[float, ...]


class SnapshotLoad(msgspec.Struct, frozen=True):
    """Latency of commits while snapshots are made (`making`) and without any (`resting`), and the ratios.

    `made` snapshots became whole in the phases, all nodes together; the slowest of the last took `made_ms`.
    """

    keys: int
    offered_per_s: float
    made: int
    made_ms: int
    making: Side
    resting: Side
    p50_ratio: float
    p99_ratio: float
    refused: int


def parameters() -> Parameters:
    """A network in which one snapshot follows the other."""
    return Parameters(snapshot_blocks=SNAPSHOT_BLOCKS)


async def measure(
    layout: Layout, nodes: Nodes, console: Console, shape: Shape, accounts: int = ACCOUNTS
) -> SnapshotLoad:
    """ROUNDS times a phase with snapshots and one without, at least the seconds of `shape` in all."""
    configure(layout, nodes, keep=0)
    session = Session(layout, nodes, console)
    traffic = await session.prepare_traffic()
    console.print(f"snapshot-load: opening {accounts:,} accounts")
    await open_accounts(session, accounts)
    sides: dict[bool, list[_Phase]] = {True: [], False: []}
    keys = 0
    seconds = shape.seconds / ROUNDS / 2
    for making in (True, False) * ROUNDS:
        configure(layout, nodes, keep=2 if making else 0)
        phase = _Phase(session.urls, traffic, shape.rate, making)
        # All phases are as long as the first, in which every step of the making is seen at every node.
        seconds = await phase.run(seconds, whole=not sides[True])
        sides[making].append(phase)
        # Nodes that keep none remove those they have when they start.
        keys = _keys(nodes) if phase.made else keys
        p99 = percentiles_ms(phase.latencies()).p99
        what = f"making, {phase.made} made" if making else "no snapshots"
        console.print(f"snapshot-load: {seconds:.0f} s, {what}, p99 {p99:.0f} ms")
    return _report(keys, shape.rate, sides[True], sides[False])


def configure(layout: Layout, nodes: Nodes, keep: int) -> None:
    """All nodes run, started anew, and keep that many snapshots."""
    members = nodes.network.members
    nodes.end(members, kill=False)
    for member in members:
        path = layout.node_file(member.id)
        path.write_text(dump_node(msgspec.structs.replace(load_node(path), snapshots=SnapshotSettings(keep=keep))))
    nodes.start(members)
    nodes.wait_agreement()


class _Phase:
    """A steady load beside which the nodes make snapshots, or make none."""

    def __init__(self, urls: Sequence[str], traffic: Traffic, rate: float, making: bool) -> None:
        self._urls = urls
        self._traffic = traffic
        self._size = max(1, round(rate / REQUESTS_PER_S))
        self._interval_s = self._size / rate
        self._making = making
        self._stop = asyncio.Event()
        self._samples: list[Sample] = []
        self._looks: list[tuple[float, bool]] = []
        self._counts_from_s = 0.0
        self.made = 0
        self.made_ms = 0
        self.refused = 0

    async def run(self, seconds: float, whole: bool) -> float:
        """The load went on for so long after it was warm, and with `whole` until there was a snapshot a node.

        Return for how long it did. Raise TestnetError when no snapshot comes.
        """
        began = time.monotonic()
        self._counts_from_s = began + WARM_UP_S
        async with batch_client(self._urls) as batches, asyncio.TaskGroup() as group:
            group.create_task(self._load(batches, began))
            try:
                while True:
                    await self._look()
                    elapsed = time.monotonic() - self._counts_from_s
                    if elapsed >= seconds and (self.made >= len(self._urls) or not whole):
                        return elapsed
                    if elapsed > PHASE_TIMEOUT_S:
                        raise TestnetError(f"no snapshot within {PHASE_TIMEOUT_S:g} s", exit_code=1)
                    await asyncio.sleep(LOOK_INTERVAL_S)
            finally:
                self._stop.set()

    async def _load(self, batches: BatchClient, began: float) -> None:
        """Requests at their due times, signed just before."""
        place = 0
        async with asyncio.TaskGroup() as group:
            while not self._stop.is_set():
                body = batch([self._traffic.transaction() for _ in range(self._size)])
                due = began + place * self._interval_s
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                group.create_task(self._post(batches, place, body, due))
                place += 1

    async def _post(self, batches: BatchClient, place: int, body: bytes, due: float) -> None:
        results = await batches.post(place, body, self._size)
        final = sum(result.status == "final" for result in results)
        self.refused += len(results) - final
        if final:
            self._samples.append(Sample(due, time.monotonic(), final))

    async def _look(self) -> None:
        """What the nodes say of their snapshots is noted; both kinds of phases look alike often."""
        begun = time.monotonic()
        told = await asyncio.to_thread(gauges_of_all, self._urls)
        making = any(numbers["hansa_snapshot_making_height"] for numbers in told)
        self._looks += [(begun, making), (time.monotonic(), making)]
        self.made = round(sum(numbers["hansa_snapshots_made"] for numbers in told))
        self.made_ms = round(max(numbers["hansa_snapshot_last_ms"] for numbers in told))

    def spans(self) -> list[Making]:
        """The times of this phase that count."""
        return [span for span in spans_of(self._looks, self._counts_from_s) if span.making is self._making]

    def latencies(self) -> list[float]:
        """Seconds from due to final of all transactions that count."""
        return latencies_within(self._samples, self.spans())


def spans_of(looks: Sequence[tuple[float, bool]], from_s: float) -> list[Making]:
    """The times from the first to the last of each unbroken series of equal looks, from `from_s` on."""
    found: list[Making] = []
    for at, making in looks:
        if found and found[-1].making is making:
            found[-1] = Making(found[-1].begin_s, at, making)
        else:
            found.append(Making(at, at, making))
    cut = [Making(max(span.begin_s, from_s), span.end_s, span.making) for span in found]
    return [span for span in cut if span.begin_s < span.end_s]


def latencies_within(samples: Sequence[Sample], spans: Sequence[Making]) -> list[float]:
    """Seconds from due to final of each transaction that began and ended within one of `spans`."""
    return [
        sample.final_s - sample.due_s
        for span in spans
        for sample in samples
        if span.begin_s <= sample.due_s and sample.final_s <= span.end_s
        for _ in range(sample.transactions)
    ]


def _report(keys: int, rate: float, making: Sequence[_Phase], resting: Sequence[_Phase]) -> SnapshotLoad:
    during, between = _side(making), _side(resting)
    return SnapshotLoad(
        keys=keys,
        offered_per_s=rate,
        made=sum(phase.made for phase in making),
        made_ms=max(phase.made_ms for phase in making),
        making=during,
        resting=between,
        p50_ratio=round(during.latency_ms.p50 / max(between.latency_ms.p50, 0.1), 3),
        p99_ratio=round(during.latency_ms.p99 / max(between.latency_ms.p99, 0.1), 3),
        refused=sum(phase.refused for phase in (*making, *resting)),
    )


def _side(phases: Sequence[_Phase]) -> Side:
    parts = [phase.latencies() for phase in phases]
    latencies = [latency for part in parts for latency in part]
    return Side(
        phases=len(phases),
        seconds=round(sum(span.end_s - span.begin_s for phase in phases for span in phase.spans()), 1),
        transactions=len(latencies),
        latency_ms=percentiles_ms(latencies),
        p99_ms_by_phase=tuple(percentiles_ms(part).p99 for part in parts),
    )


def _keys(nodes: Nodes) -> int:
    """How many keys the newest snapshot holds."""
    roots = [Path(member.data_dir).parent / "snapshots" for member in nodes.network.members]
    height, root = max((max(finished_heights(root), default=0), root) for root in roots)
    return read_manifest(snapshot_at(root, height).manifest_bytes()).content.keys
