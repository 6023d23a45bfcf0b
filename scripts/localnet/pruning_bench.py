"""Whether the disk stays flat: a steady load with retention on, and what the data directories take meanwhile.

Requests expire soon here, so that blocks may go soon; everything else is as shipped.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from node.config import Parameters, Retention, dump_node, load_node
from scripts.localnet.figures import Percentiles
from scripts.localnet.generator import Shape
from scripts.localnet.layout import Layout, TestnetError
from scripts.localnet.node_usage import disk_usage
from scripts.localnet.nodes import Nodes, node_status
from scripts.localnet.open_loop import LoadReport
from scripts.localnet.session import Session

EXPIRES_MS = 20_000
"""A block stays at least as long as a transaction of it may be sent again."""
KEPT_BLOCKS = 100
STEP_BLOCKS = 20
ROUND_S = 5.0
SAMPLE_INTERVAL_S = 0.5
ROWS = 24
COLUMNS = 60


class Sample(msgspec.Struct, frozen=True):
    """One look: seconds since the load began, bytes on disk of all nodes together, blocks of the first node."""

    seconds: float
    data_mb: float
    archive_mb: float
    height: int
    first_block: int


class PruningBench(msgspec.Struct, frozen=True):
    """Bytes on disk (of all nodes' data directories, as the file system counts them) over a steady load.

    `first_half_growth_mb` and `last_half_growth_mb` are the differences between the means of the first and the last
    fifth of each half, the peaks the most in each half (LevelDB's write buffers make it a saw). `latency_ms.p99`
    is the worst of all rounds, the others are medians.
    """

    nodes: int
    transactions: int
    final_per_s: float
    latency_ms: Percentiles
    height: int
    first_block: int
    first_half_growth_mb: float
    last_half_growth_mb: float
    last_half_growth_percent: float
    mean_mb: float
    first_half_peak_mb: float
    last_half_peak_mb: float
    archive_mb: float
    samples: tuple[Sample, ...]


def parameters() -> Parameters:
    """A network that forgets request ids after a second."""
    return Parameters(retention_ms=1_000)


async def measure(layout: Layout, nodes: Nodes, console: Console, shape: Shape) -> PruningBench:
    """Samples of the disk over a load of `shape`; a plot of them is printed."""
    _configure(layout, nodes)
    session = Session(layout, nodes, console)
    traffic = await session.prepare_traffic(EXPIRES_MS)
    console.print(
        f"pruning: {shape.rate:g} transactions a second for {shape.seconds:g} s, {KEPT_BLOCKS} blocks kept"
    )
    sampler = asyncio.create_task(_sample(nodes))
    reports = []
    try:
        for _ in range(max(1, round(shape.seconds / ROUND_S))):
            part = Shape(shape.rate, min(ROUND_S, shape.seconds))
            reports.append(await session.send(traffic, part, EXPIRES_MS))
    finally:
        sampler.cancel()
        samples = (await asyncio.gather(sampler, return_exceptions=True))[0]
    if not isinstance(samples, tuple):
        raise TestnetError(f"the disk could not be measured: {samples}", exit_code=1)
    console.print(plot(samples), soft_wrap=True)
    return _report(nodes, reports, samples)


def _configure(layout: Layout, nodes: Nodes) -> None:
    """All nodes run with a short retention."""
    members = nodes.network.members
    nodes.end(members, kill=False)
    for member in members:
        path = layout.node_file(member.id)
        policy = Retention(
            blocks=KEPT_BLOCKS,
            history_blocks=KEPT_BLOCKS,
            step_blocks=STEP_BLOCKS,
            archive_dir=layout.member_dir(member.id) / "archive",
        )
        path.write_text(dump_node(msgspec.structs.replace(load_node(path), retention=policy)))
    nodes.start(members)
    nodes.wait_agreement()


async def _sample(nodes: Nodes) -> tuple[Sample, ...]:
    """Samples until this is cancelled."""
    began = time.monotonic()
    samples: list[Sample] = []
    try:
        while True:
            samples.append(await asyncio.to_thread(_look, nodes, began))
            await asyncio.sleep(SAMPLE_INTERVAL_S)
    except asyncio.CancelledError:
        return tuple(samples)


def _look(nodes: Nodes, began: float) -> Sample:
    members = nodes.network.members
    directories = [Path(member.data_dir) for member in members]
    data = sum(disk_usage(item) for item in directories)
    archives = sum(disk_usage(item.parent / "archive") for item in directories)
    status = node_status(members[0])
    height, first = (0, 0) if status is None else (status.height, status.first_block)
    seconds = time.monotonic() - began
    return Sample(round(seconds, 1), round(data / 1e6, 2), round(archives / 1e6, 2), height, first)


def growth_mb(samples: Sequence[Sample]) -> float:
    """Return how much the mean of the last fifth lies above that of the first fifth."""
    fifth = max(1, len(samples) // 5)
    first = statistics.fmean(item.data_mb for item in samples[:fifth])
    return statistics.fmean(item.data_mb for item in samples[-fifth:]) - first


def plot(samples: Sequence[Sample]) -> str:
    """Return a plot in text: time downwards, bytes on disk to the right."""
    peak = max(item.data_mb for item in samples) or 1.0
    lines = [f"{'s':>7} {'MB':>9}  first..head"]
    for place in range(min(ROWS, len(samples))):
        item = samples[place * (len(samples) - 1) // max(1, min(ROWS, len(samples)) - 1)]
        bar = "#" * round(item.data_mb / peak * COLUMNS)
        lines.append(f"{item.seconds:7.1f} {item.data_mb:9.2f}  {item.first_block:>5}..{item.height:<6} {bar}")
    return "\n".join(lines)


def _report(nodes: Nodes, reports: Sequence[LoadReport], samples: tuple[Sample, ...]) -> PruningBench:
    middle = len(samples) // 2
    last_half = samples[middle:]
    mean = statistics.fmean(item.data_mb for item in last_half)
    growth = growth_mb(last_half)
    return PruningBench(
        nodes=len(nodes.network.members),
        transactions=sum(report.final for report in reports),
        final_per_s=round(statistics.median(report.final_per_s for report in reports), 1),
        latency_ms=Percentiles(
            p50=statistics.median(report.latency_ms.p50 for report in reports),
            p90=statistics.median(report.latency_ms.p90 for report in reports),
            p99=max(report.latency_ms.p99 for report in reports),
        ),
        height=samples[-1].height,
        first_block=samples[-1].first_block,
        first_half_growth_mb=round(growth_mb(samples[: middle + 1]), 2),
        last_half_growth_mb=round(growth, 2),
        last_half_growth_percent=round(100 * growth / mean, 1),
        mean_mb=round(mean, 2),
        first_half_peak_mb=max(item.data_mb for item in samples[: middle + 1]),
        last_half_peak_mb=max(item.data_mb for item in last_half),
        archive_mb=samples[-1].archive_mb,
        samples=samples,
    )
