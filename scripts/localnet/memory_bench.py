"""Whether the memory of a node stays flat: a steady load, and what each node takes meanwhile."""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from node.config import Parameters
from scripts.localnet import processes
from scripts.localnet.figures import Percentiles, medians
from scripts.localnet.layout import Layout, TestnetError
from scripts.localnet.nodes import Nodes
from scripts.localnet.open_loop import LoadReport, Signed, report, sending, sign
from scripts.localnet.session import Session
from scripts.localnet.workload import Shape

ROUND_S = 60.0
"""What is sent in the next minute is signed in this one: an hour's load takes no hour's files."""
SAMPLES = 600
LIMIT_MB = 300.0
EXPIRES_MS = 5 * 60 * 1000
RETENTION_MS = 60 * 1000
"""So request ids are forgotten after six minutes, as many as come: the state has its size by the second half, and
what still grows is the node's own. With the usual day the ledger would grow, by 64 bytes a transaction in memory.
"""


class Sample(msgspec.Struct, frozen=True):
    """Seconds since the load began, and the resident memory of each node: all of it, and its own without files."""

    seconds: float
    rss_mb: tuple[float, ...]
    own_mb: tuple[float, ...]


class Memory(msgspec.Struct, frozen=True):
    """Memory of the nodes over a steady load; of the second half the growth is told, of the worst node.

    The growth is the difference between the medians of the first and the last fifth of the second half: a snapshot
    made in one of them is told by the peaks and is no growth. `own_…` leaves out pages of files: LevelDB maps its
    tables, and what of them was read stays resident until the system wants it back.
    """

    nodes: int
    seconds: float
    transactions: int
    final_per_s: float
    latency_ms: Percentiles
    peak_mb: float
    limit_mb: float
    second_half_growth_mb: float
    second_half_growth_percent: float
    own_peak_mb: float
    own_second_half_growth_mb: float
    own_second_half_growth_percent: float
    samples: tuple[Sample, ...]


def parameters() -> Parameters:
    """A network that soon forgets request ids."""
    return Parameters(retention_ms=RETENTION_MS)


async def measure(layout: Layout, nodes: Nodes, console: Console, shape: Shape) -> Memory:
    """Memory of the nodes over --seconds of a steady load, growth of the second half; with --out a plot."""
    session = Session(layout, nodes, console)
    traffic = await session.prepare_traffic(EXPIRES_MS)
    part = msgspec.structs.replace(shape, seconds=min(ROUND_S, shape.seconds))
    reports: list[LoadReport] = []
    with tempfile.TemporaryDirectory(prefix="load-", dir=layout.directory) as scratch:

        async def sign_next() -> Signed:
            return await sign(Path(scratch), traffic, traffic.payments, part, expires_in_ms=EXPIRES_MS)

        began = time.monotonic()
        sampler = asyncio.create_task(_sample(nodes, began, max(0.1, shape.seconds / SAMPLES)))
        signed = await sign_next()
        rounds = max(1, round(shape.seconds / part.seconds))
        for number in range(1, rounds + 1):
            next_one = asyncio.create_task(sign_next()) if number < rounds else None
            async with sending(signed, session.urls) as running:
                reports.append(report(await running.answers(), part))
            signed.remove()
            if next_one is not None:
                signed = await next_one
        sampler.cancel()
        samples = (await asyncio.gather(sampler, return_exceptions=True))[0]
    if not isinstance(samples, tuple):
        raise TestnetError(f"the memory could not be measured: {samples}", exit_code=1)
    found = _memory(reports, samples)
    console.print(
        f"memory: at most {found.peak_mb:.0f} MB, second half {found.second_half_growth_mb:+.1f} MB"
        f" ({found.second_half_growth_percent:+.1f} %); without pages of files at most {found.own_peak_mb:.0f} MB,"
        f" {found.own_second_half_growth_mb:+.1f} MB ({found.own_second_half_growth_percent:+.1f} %)"
    )
    return found


async def _sample(nodes: Nodes, began: float, interval_s: float) -> tuple[Sample, ...]:
    """Samples until this is cancelled."""
    samples: list[Sample] = []
    try:
        while True:
            used = [processes.usage(member.pid) for member in nodes.network.members if member.pid is not None]
            alive = [usage for usage in used if usage is not None]
            rss = tuple(round(usage.rss_mb, 1) for usage in alive)
            own = tuple(round(usage.rss_mb - usage.mapped_mb, 1) for usage in alive)
            samples.append(Sample(round(time.monotonic() - began, 1), rss, own))
            await asyncio.sleep(interval_s)
    except asyncio.CancelledError:
        return tuple(samples)


def growth_mb(values: Sequence[float]) -> float:
    """How much the median of the last fifth lies above that of the first fifth."""
    fifth = max(1, len(values) // 5)
    return statistics.median(values[-fifth:]) - statistics.median(values[:fifth])


def _memory(reports: Sequence[LoadReport], samples: tuple[Sample, ...]) -> Memory:
    peak_mb, growth, percent = course([sample.rss_mb for sample in samples])
    own_peak_mb, own_growth, own_percent = course([sample.own_mb for sample in samples])
    return Memory(
        nodes=len(samples[0].rss_mb),
        seconds=samples[-1].seconds,
        transactions=sum(found.final for found in reports),
        final_per_s=round(statistics.median(found.final_per_s for found in reports), 1),
        latency_ms=medians([found.latency_ms for found in reports]),
        peak_mb=peak_mb,
        limit_mb=LIMIT_MB,
        second_half_growth_mb=growth,
        second_half_growth_percent=percent,
        own_peak_mb=own_peak_mb,
        own_second_half_growth_mb=own_growth,
        own_second_half_growth_percent=own_percent,
        samples=samples,
    )


def course(samples: Sequence[tuple[float, ...]]) -> tuple[float, float, float]:
    """The peak of all nodes, and of the worst one the growth over the second half, in MB and percent."""
    by_node = list(zip(*samples, strict=True))
    second_halves = [values[len(values) // 2 :] for values in by_node]
    growth, values = max((growth_mb(half), half) for half in second_halves)
    peak_mb = max(max(values) for values in by_node)
    return peak_mb, round(growth, 2), round(100 * growth / statistics.fmean(values), 2)
