"""Several loads on one network, compared with one another: rising, far too much, and one client against another."""

import itertools

import msgspec
from rich.console import Console

from scripts.localnet.document import share
from scripts.localnet.figures import Percentiles, Spread, spread
from scripts.localnet.load_cases import LOAD_CASES, LoadCase
from scripts.localnet.measuring import Measuring
from scripts.localnet.open_loop import LoadReport, report, sending, sign
from scripts.localnet.workload import Shape

SWEEP_SHARES = (0.1, 0.25, 0.5, 0.7, 0.85, 1.0, 1.2)
"""Of the peak."""
OVERLOAD = 3.0
THROUGHPUT_SHARE_MIN = 0.9
FAIR_RATE = 50.0
FAIR_PER_REQUEST = 5
SINGLE: LoadCase = LOAD_CASES["single"]


class Point(msgspec.Struct, frozen=True):
    """One rate of the sweep."""

    share_of_peak: float
    offered_per_s: float
    final_per_s: float
    latency_ms: Percentiles
    cpu_us_per_transaction: float
    refused: int


class Sweep(msgspec.Struct, frozen=True):
    """Latency against offered load, single-call transactions."""

    peak_per_s: float
    peak_share_of_limit: float
    points: tuple[Point, ...]


class Overload(msgspec.Struct, frozen=True):
    """What a network does with three times the load that it can take.

    `final_per_s`: whether or not their senders had heard of it by the end. `throughput_share`: of the mean of the
    peaks just before and after, and at least 0.9 is wanted (`holds`). `refused` by code; `told_when` of them heard
    when to come again. `rss_peak_mb`: the largest node's during the overload.
    """

    peak_per_s: Spread
    offered_per_s: float
    final_per_s: Spread
    throughput_share: Spread
    holds: bool
    refused: dict[str, int]
    told_when: int
    without_fate: int
    latency_ms: Percentiles
    rss_peak_mb: float
    view_changes: int


class Greedy(msgspec.Struct, frozen=True):
    """One principal at a modest rate: alone, and while another floods all nodes with three times the peak.

    `final_share`: of what the modest one sent, so much became final while the other flooded.
    """

    peak_per_s: float
    alone: LoadReport
    beside: LoadReport
    flood: LoadReport
    final_share: float
    p99_ratio: float


async def sweep(measuring: Measuring, console: Console) -> Sweep:
    """Latency at seven rates from a tenth of the peak to a fifth above it; with --out a plot."""
    peak = (await measuring.peak(SINGLE)).per_s
    points = []
    for part in SWEEP_SHARES:
        run = await measuring.open_loop(SINGLE, part * peak)
        found, latency = run.report, run.report.latency_ms
        console.print(
            f"sweep: {found.offered_per_s:,.0f}/s offered, {found.final_per_s:,.0f}/s final, "
            f"p50 {latency.p50:,.0f} ms, p99 {latency.p99:,.0f} ms"
        )
        points.append(
            Point(
                share_of_peak=part,
                offered_per_s=found.offered_per_s,
                final_per_s=found.final_per_s,
                latency_ms=latency,
                cpu_us_per_transaction=round(run.spent.per_transaction(run.spent.cpu_s * 1e6), 1),
                refused=sum(found.refused.values()),
            )
        )
        await measuring.settled()
    return Sweep(peak, share(peak, measuring.limit_per_s), tuple(points))


async def overload(measuring: Measuring, console: Console) -> Overload:
    """Three times the peak in open loop: what is still final a second, and what the others are told.

    The peak is sought before each run and after the last one, and a run is held against both of its neighbours: the
    ledger grows meanwhile, and what a transaction costs on a larger one is not the overload's.
    """
    peaks, runs = [(await measuring.peak(SINGLE)).per_s], []
    for _ in range(measuring.effort.repeats):
        run = await measuring.open_loop(SINGLE, OVERLOAD * peaks[-1])
        await measuring.settled()
        runs.append(run)
        peaks.append((await measuring.peak(SINGLE)).per_s)
        console.print(
            f"overload: peak {peaks[-2]:,.0f}/s and {peaks[-1]:,.0f}/s; {run.report.offered_per_s:,.0f}/s offered, "
            f"{run.spent.per_s:,.0f}/s final, refused {run.report.refused or 0}"
        )
    held = [
        run.spent.per_s / max((before + after) / 2, 1e-9)
        for run, (before, after) in zip(runs, itertools.pairwise(peaks), strict=True)
    ]
    shares = spread(held, 3)
    last = runs[-1].report
    return Overload(
        peak_per_s=spread(peaks),
        offered_per_s=last.offered_per_s,
        final_per_s=spread([run.spent.per_s for run in runs]),
        throughput_share=shares,
        holds=shares.median >= THROUGHPUT_SHARE_MIN,
        refused=last.refused,
        told_when=last.told_when,
        without_fate=last.without_fate,
        latency_ms=last.latency_ms,
        rss_peak_mb=max(run.rss_peak_mb for run in runs),
        view_changes=sum(run.spent.view_changes for run in runs),
    )


async def greedy(measuring: Measuring, console: Console) -> Greedy:
    """One client floods, another stays modest: what becomes of the modest one, alone and beside the flood."""
    peak = (await measuring.peak(SINGLE)).per_s
    await measuring.settled()
    traffic, _ = await measuring.work(SINGLE)
    members = traffic.payments.members
    flooding = msgspec.structs.replace(traffic.payments, senders=members[:1])
    modest = msgspec.structs.replace(traffic.payments, senders=members[-1:])
    seconds, warm_s = measuring.effort.warm_up_s + measuring.effort.seconds, measuring.effort.warm_up_s
    flood_shape = SINGLE.shape(OVERLOAD * peak, seconds)
    shape = Shape(FAIR_RATE, seconds, transactions_per_request=FAIR_PER_REQUEST)
    scratch, urls = measuring.scratch, measuring.urls()
    alone, beside = [await sign(scratch, traffic, modest, shape) for _ in range(2)]
    flood = await sign(scratch, traffic, flooding, flood_shape)
    async with sending(alone, urls) as running:
        alone_report = report(await running.answers(), shape, warm_s, seconds)
    await measuring.settled()
    async with sending(flood, urls) as flooding_now, sending(beside, urls) as running:
        beside_report = report(await running.answers(), shape, warm_s, seconds)
        flood_report = report(await flooding_now.answers(), flood_shape, warm_s, seconds)
    await measuring.settled()
    found = Greedy(
        peak_per_s=peak,
        alone=alone_report,
        beside=beside_report,
        flood=flood_report,
        final_share=round(beside_report.final / max(1, beside_report.sent), 3),
        p99_ratio=round(beside_report.latency_ms.p99 / max(alone_report.latency_ms.p99, 0.1), 2),
    )
    console.print(
        f"greedy: beside {flood_report.offered_per_s:,.0f}/s of another, {found.final_share:.1%} of the modest "
        f"client's are final, p99 {beside_report.latency_ms.p99:,.0f} ms (alone {alone_report.latency_ms.p99:,.0f})"
    )
    return found
