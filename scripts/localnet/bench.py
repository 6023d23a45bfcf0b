"""The command `scripts/bench`: what the ledger does on this machine, beside what the machine can do at all."""

import asyncio
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import msgspec
from rich.console import Console

from node.client import AsyncClient
from node.config import Parameters
from node.errors import HansaError
from scripts.localnet import (
    catch_up,
    failover,
    limits,
    processes,
    pruning_bench,
    slow_primary,
    snapshot_join,
    state_bench,
)
from scripts.localnet.figures import Percentiles, Spread, percentiles_ms, spread
from scripts.localnet.founding import found
from scripts.localnet.generator import LoadReport, Shape, Traffic, one_at_a_time
from scripts.localnet.layout import ROOT, Layout, TestnetError
from scripts.localnet.nodes import Nodes
from scripts.localnet.session import Session

CASES_DEFAULT = ("single", "bundle500", "idle")
FAULT_CASES = ("kill", "quorum-loss", "slow-primary", "catch-up", "snapshot-join", "pruning")
"""Something is broken in these, and the time until it is whole again is measured."""
ALONE_CASES: dict[str, Callable[[Path, Console], object]] = {"state": state_bench.measure}
"""They need no network of this script's: an empty directory (on the repository's disk) is enough; each one's report
is one field of the document.
"""
REPETITIONS = 3
IDLE_TRANSACTIONS = 50


class Case(msgspec.Struct, frozen=True):
    """One case: medians over its repetitions. `cpu_us_per_transaction` is the sum over all nodes."""

    name: str
    nodes: int
    offered_per_s: float
    final_per_s: float
    calls_per_s: float
    latency_ms: Percentiles
    cpu_us_per_transaction: float
    rss_mb: float
    final_per_s_spread: Spread
    latency_p50_ms_spread: Spread
    refused: int
    without_fate: int
    view_changes: int
    runs: int


class Run(msgspec.Struct, frozen=True):
    """One repetition: the generator's report, CPU seconds of all nodes, the largest memory, and views gone by."""

    report: LoadReport
    cpu_s: float
    rss_mb: float
    view_changes: int


class Bench:
    """A network made for measuring, and the cases that are run on it one after the other."""

    def __init__(self, layout: Layout, nodes: Nodes, console: Console, seconds: float, rate: float, bundles: float):
        self._nodes = nodes
        self._console = console
        self._seconds = seconds
        self._rate = rate
        self._bundles = bundles
        self._session = Session(layout, nodes, console)

    async def case(self, name: str, traffic: Traffic) -> Case:
        """The case of that name, measured."""
        if name == "single":
            shape = Shape(self._rate, self._seconds)
        elif name == "bundle500":
            shape = Shape(self._bundles, self._seconds, calls=500, transactions_per_request=1)
        else:
            shape = None
        runs = []
        for number in range(1, REPETITIONS + 1):
            self._console.print(f"{name}: run {number} of {REPETITIONS}")
            runs.append(await (self._idle(traffic) if shape is None else self._load(traffic, shape)))
            self._nodes.wait_agreement()
        return _case(name, len(self._nodes.network.members), runs)

    async def prepare(self) -> Traffic:
        """The traffic that all cases are made of."""
        return await self._session.prepare_traffic()

    async def _load(self, traffic: Traffic, shape: Shape) -> Run:
        bodies = traffic.requests(shape)
        before, view = self._cpu_s(), self._view()
        report = await self._session.send(bodies, shape)
        return Run(report, self._cpu_s() - before, self._rss_mb(), self._view() - view)

    async def _idle(self, traffic: Traffic) -> Run:
        """One transaction at a time; the rates are what that comes to, and say little."""
        async with AsyncClient(self._session.urls) as client:
            await one_at_a_time(client, traffic, 3)
            before, view = self._cpu_s(), self._view()
            latencies = await one_at_a_time(client, traffic, IDLE_TRANSACTIONS)
        rate = round(len(latencies) / sum(latencies), 1)
        report = LoadReport(
            offered_per_s=rate,
            sent=len(latencies),
            final=len(latencies),
            refused={},
            without_fate=0,
            failed_calls=0,
            seconds=round(sum(latencies), 2),
            final_per_s=rate,
            calls_per_s=rate,
            latency_ms=percentiles_ms(latencies),
            behind_ms=0.0,
        )
        return Run(report, self._cpu_s() - before, self._rss_mb(), self._view() - view)

    def _view(self) -> int:
        """The view of the height in work: it grows with every primary that was replaced."""
        return max(row.view or 0 for row in self._nodes.statuses())

    def _usages(self) -> list[processes.Usage]:
        found_ = [processes.usage(member.pid) for member in self._nodes.network.members if member.pid is not None]
        return [usage for usage in found_ if usage is not None]

    def _cpu_s(self) -> float:
        return sum(usage.cpu_s for usage in self._usages())

    def _rss_mb(self) -> float:
        return max((usage.rss_mb for usage in self._usages()), default=0.0)


def _case(name: str, nodes: int, runs: Sequence[Run]) -> Case:
    def median(value: Callable[[Run], float]) -> float:
        return spread([value(run_) for run_ in runs]).median

    return Case(
        name=name,
        nodes=nodes,
        offered_per_s=median(lambda r: r.report.offered_per_s),
        final_per_s=median(lambda r: r.report.final_per_s),
        calls_per_s=median(lambda r: r.report.calls_per_s),
        latency_ms=Percentiles(
            p50=median(lambda r: r.report.latency_ms.p50),
            p90=median(lambda r: r.report.latency_ms.p90),
            p99=median(lambda r: r.report.latency_ms.p99),
        ),
        cpu_us_per_transaction=median(lambda r: r.cpu_s * 1e6 / max(1, r.report.final)),
        rss_mb=median(lambda r: r.rss_mb),
        final_per_s_spread=spread([r.report.final_per_s for r in runs]),
        latency_p50_ms_spread=spread([r.report.latency_ms.p50 for r in runs]),
        refused=sum(sum(r.report.refused.values()) for r in runs),
        without_fate=sum(r.report.without_fate for r in runs),
        view_changes=sum(r.view_changes for r in runs),
        runs=len(runs),
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--case",
    "cases",
    multiple=True,
    type=click.Choice([*CASES_DEFAULT, *FAULT_CASES, *ALONE_CASES]),
    help=f"Again for more (default: {', '.join(CASES_DEFAULT)}).",
)
@click.option("--nodes", type=click.IntRange(1, 16), default=4, show_default=True)
@click.option(
    "--seconds", type=click.FloatRange(1, 86_400), default=20.0, show_default=True, help="Of each repetition."
)
@click.option("--rate", type=click.FloatRange(1), default=900.0, show_default=True, help="single: transactions/s.")
@click.option(
    "--bundles", type=click.FloatRange(0.1), default=10.0, show_default=True, help="bundle500: bundles/s."
)
@click.option("--base-port", type=click.IntRange(1024, 65_000), default=7800, show_default=True)
def cli(cases: tuple[str, ...], nodes: int, seconds: float, rate: float, bundles: float, base_port: int) -> None:
    """Measure on a network of its own, and print one JSON document."""
    console = Console(stderr=True, highlight=False)
    chosen = list(dict.fromkeys(cases or CASES_DEFAULT))
    loads = [name for name in chosen if name in CASES_DEFAULT]
    reports: dict[str, object] = {}
    if set(chosen) & {*CASES_DEFAULT, "kill", "quorum-loss"}:
        with _network(nodes, base_port) as (layout, running):
            console.print("limits of this machine")
            reports["limits"] = limits.measure(layout.directory)
            bench = Bench(layout, running, console, seconds, rate, bundles)
            reports["cases"] = asyncio.run(_measure(bench, loads))
            if "kill" in chosen:
                reports["failovers"] = asyncio.run(failover.kill_primaries(layout, running, console))
            if "quorum-loss" in chosen:
                reports["quorum_loss"] = asyncio.run(failover.lose_quorum(layout, running, console))
    if "catch-up" in chosen:
        with _network(nodes, base_port) as (layout, running):
            load = Shape(rate, seconds)
            reports["catch_up"] = asyncio.run(catch_up.wipe_and_catch_up(layout, running, console, load))
    if "snapshot-join" in chosen:
        with _network(nodes, base_port, parameters=snapshot_join.parameters()) as (layout, running):
            load = Shape(rate, seconds)
            reports["snapshot_join"] = asyncio.run(snapshot_join.measure(layout, running, console, load))
    if "pruning" in chosen:
        with _network(nodes, base_port, parameters=pruning_bench.parameters()) as (layout, running):
            load = Shape(rate, seconds)
            reports["pruning"] = asyncio.run(pruning_bench.measure(layout, running, console, load))
    if "slow-primary" in chosen:
        small = Parameters(block_transactions_max=slow_primary.BLOCK_TRANSACTIONS_MAX)
        with _network(nodes, base_port, proxied=True, parameters=small) as (layout, running):
            reports["slow_primary"] = asyncio.run(slow_primary.measure(layout, running, console))
    for name in chosen:
        if name in ALONE_CASES:
            with _directory() as directory:
                reports[name] = ALONE_CASES[name](directory, console)
    document = {
        "machine": machine(),
        "commit": commit(),
        "settings": {"nodes": nodes, "seconds": seconds, "repetitions": REPETITIONS},
        "limits": {},
        "cases": [],
        **reports,
    }
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")


async def _measure(bench: Bench, names: Sequence[str]) -> list[Case]:
    if not names:
        return []
    traffic = await bench.prepare()
    return [await bench.case(name, traffic) for name in names]


@contextmanager
def _network(
    count: int, base_port: int, *, proxied: bool = False, parameters: Parameters | None = None
) -> Iterator[tuple[Layout, Nodes]]:
    """A new network in a directory of its own; gone afterwards."""
    with _directory() as directory:
        layout = Layout(directory)
        found(layout, count, base_port, proxied=proxied, parameters=parameters)
        nodes = Nodes(layout)
        try:
            nodes.start(nodes.network.members)
            nodes.wait_agreement()
            yield layout, nodes
        finally:
            nodes.end(nodes.network.members, kill=False)
            nodes.end_proxy()


@contextmanager
def _directory() -> Iterator[Path]:
    """An empty directory beside the repository's own files, on the same disk; gone afterwards."""
    place = ROOT / "build"
    place.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=place))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {
        "cpu": cpu,
        "cores": os.cpu_count() or 1,
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024**2,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit that is measured, with `-dirty` when the checkout differs; `unknown` outside a git checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> int:
    """Run one command line; every expected failure is one line on stderr."""
    try:
        cli.main(prog_name="scripts/bench", standalone_mode=False)
    except TestnetError as error:
        return _failed(str(error), error.exit_code)
    except HansaError as error:
        return _failed(f"{error}. {error.entry.action}", error.exit_code)
    except click.ClickException as error:
        return _failed(f"{error.format_message()} (scripts/bench --help)", 2)
    except (KeyboardInterrupt, click.Abort):
        return _failed("interrupted", 130)
    return 0


def _failed(message: str, exit_code: int) -> int:
    click.echo(f"bench: {message}", err=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
