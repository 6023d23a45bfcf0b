"""The one JSON document of `scripts/bench`: what was measured, on what, and how it compares with an earlier one."""

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.table import Table

from scripts.localnet.figures import Percentiles, Spread, medians, spread
from scripts.localnet.layout import ROOT, TestnetError
from scripts.localnet.node_usage import NodeSpent, Spent
from scripts.localnet.open_loop import LoadReport

if TYPE_CHECKING:
    from scripts.localnet.measuring import Run

LIBRARIES = ("httptools", "msgpack", "msgspec", "pynacl", "plyvel", "uvloop", "litestar", "uvicorn")
RATIOS: dict[str, Callable[["Case"], float]] = {
    "final/s": lambda case: case.final_per_s,
    "peak/s": lambda case: 0.0 if case.peak_per_s is None else case.peak_per_s.median,
    "p50": lambda case: case.latency_ms.p50,
    "p99": lambda case: case.latency_ms.p99,
    "cpu/tx": lambda case: case.cpu_us_per_transaction,
    "memory": lambda case: case.rss_mb,
}
"""What is compared; for the last four, less is better."""


class Queries(msgspec.Struct, frozen=True):
    """Queries beside a load, medians over the repeats."""

    offered_per_s: float
    answered_per_s: float
    latency_ms: Percentiles
    refused: int


class Case(msgspec.Struct, frozen=True):
    """One case: medians over its repeats, the spreads with least and greatest.

    Everything but `peak_per_s` is of the open loop at `offered_per_s`, after the warm-up.

    `share_of_limit` and `peak_share_of_limit`: of the single-call transactions a second that the machine could
    verify. CPU, bytes and writes are the sums over all nodes; `rss_mb` is the largest node's peak. `sent_bytes`: to
    peers. `synced_writes`: of the database; each waits for the disk. `last_run`: each node in the last run.
    `stolen`: the share of the machine's processor time, of 1, that its host gave to others during peaks and runs;
    absent in older documents.
    """

    name: str
    nodes: int
    offered_per_s: float
    final_per_s: float
    calls_per_s: float
    latency_ms: Percentiles
    cpu_us_per_transaction: float
    rss_mb: float
    share_of_limit: float
    peak_per_s: Spread | None
    peak_share_of_limit: float | None
    final_per_s_spread: Spread
    latency_p50_ms_spread: Spread
    latency_p99_ms_spread: Spread
    cpu_us_per_transaction_spread: Spread
    request_bytes_per_transaction: float
    sent_bytes_per_transaction: float
    written_bytes_per_transaction: float
    disk_bytes_per_transaction: float
    synced_writes_per_s: float
    blocks_per_s: float
    transactions_per_block: float
    refused: dict[str, int]
    failed_calls: int
    without_fate: int
    view_changes: int
    behind_ms: float
    runs: int
    queries: Queries | None
    last_run: tuple[NodeSpent, ...]
    stolen: Spread | None = None


class Saved(msgspec.Struct, frozen=True):
    """What is read of another document."""

    commit: str
    cases: list[Case]


def case_of(name: str, nodes: int, limit_per_s: float, peaks: Sequence[Spent], runs: Sequence["Run"]) -> Case:
    """The medians of at least one run."""

    def median(value: Callable[["Run"], float], digits: int = 1) -> float:
        return spread([value(run) for run in runs], digits).median

    def total(value: Callable[[NodeSpent], float], run: "Run") -> float:
        return sum(value(node) for node in run.spent.nodes)

    final_per_s = spread([run.report.final_per_s for run in runs])
    cpu_us = spread([run.spent.per_transaction(run.spent.cpu_s * 1e6) for run in runs])
    peak = spread([found.per_s for found in peaks]) if peaks else None
    refused: Counter[str] = Counter()
    for run in runs:
        refused.update(run.report.refused)
    return Case(
        name=name,
        nodes=nodes,
        offered_per_s=median(lambda run: run.report.offered_per_s),
        final_per_s=final_per_s.median,
        calls_per_s=median(lambda run: run.report.calls_per_s),
        latency_ms=medians([run.report.latency_ms for run in runs]),
        cpu_us_per_transaction=cpu_us.median,
        rss_mb=median(lambda run: run.rss_peak_mb),
        share_of_limit=share(final_per_s.median, limit_per_s),
        peak_per_s=peak,
        peak_share_of_limit=None if peak is None else share(peak.median, limit_per_s),
        final_per_s_spread=final_per_s,
        latency_p50_ms_spread=spread([run.report.latency_ms.p50 for run in runs]),
        latency_p99_ms_spread=spread([run.report.latency_ms.p99 for run in runs]),
        cpu_us_per_transaction_spread=cpu_us,
        request_bytes_per_transaction=median(lambda run: run.bytes_each),
        sent_bytes_per_transaction=median(lambda r: r.spent.per_transaction(total(lambda n: n.sent_mb * 1e6, r))),
        written_bytes_per_transaction=median(
            lambda r: r.spent.per_transaction(total(lambda n: n.written_mb * 1e6, r))
        ),
        disk_bytes_per_transaction=median(
            lambda r: r.spent.per_transaction(total(lambda n: n.disk_growth_mb * 1e6, r))
        ),
        synced_writes_per_s=median(lambda r: total(lambda n: n.synced_writes, r) / max(r.spent.seconds, 1e-6)),
        blocks_per_s=median(lambda run: run.spent.blocks / max(run.spent.seconds, 1e-6)),
        transactions_per_block=median(lambda run: run.spent.transactions / max(1, run.spent.blocks)),
        refused=dict(refused),
        failed_calls=sum(run.report.failed_calls for run in runs),
        without_fate=sum(run.report.without_fate for run in runs),
        view_changes=sum(run.spent.view_changes for run in runs),
        behind_ms=median(lambda run: run.report.behind_ms),
        runs=len(runs),
        queries=_queries([run.queries for run in runs if run.queries is not None]),
        last_run=runs[-1].spent.nodes,
        stolen=spread([spent.stolen for spent in (*peaks, *(run.spent for run in runs))], 3),
    )


def _queries(reports: Sequence[LoadReport]) -> Queries | None:
    if not reports:
        return None
    return Queries(
        offered_per_s=spread([found.offered_per_s for found in reports]).median,
        answered_per_s=spread([found.final_per_s for found in reports]).median,
        latency_ms=medians([found.latency_ms for found in reports]),
        refused=sum(sum(found.refused.values()) for found in reports),
    )


def share(rate: float, limit_per_s: float) -> float:
    """`rate` as a share of the limit."""
    return round(rate / max(limit_per_s, 1e-9), 3)


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


def versions() -> dict[str, str]:
    """The libraries that do the work."""
    return {name: version(name) for name in LIBRARIES}


def commit() -> str:
    """The commit that is measured, with `-dirty` when the checkout differs; `unknown` outside a git checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def read(path: Path) -> Saved:
    """A document that an earlier run wrote; raise TestnetError when it is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Saved)
    except OSError as error:
        raise TestnetError(f"{path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise TestnetError(f"{path} is no document of scripts/bench: {error}") from error


def ratios(cases: Sequence[Case], earlier: Sequence[Case]) -> dict[str, dict[str, float | None]]:
    """Of each case that is in both: what it has now for each 1 that it had. None: one of the two has none."""
    before = {case.name: case for case in earlier}
    return {
        case.name: {what: _ratio(value(case), value(before[case.name])) for what, value in RATIOS.items()}
        for case in cases
        if case.name in before
    }


def _ratio(now: float, before: float) -> float | None:
    return round(now / before, 3) if now and before else None


def print_cases(console: Console, cases: Sequence[Case], limit: Callable[[int], float]) -> None:
    """A table of the cases; `limit`: of single-call transactions a second, by the number of nodes."""
    table = Table(title="medians (least to greatest)", title_justify="left")
    for heading in ("case", "nodes", "offered/s", "final/s", "peak/s", "of limit", "calls/s"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for heading in ("p50 ms", "p99 ms", "p99.9 ms", "cpu us/tx", "MB", "stolen"):
        table.add_column(heading, justify="right")
    for case in cases:
        best = case.final_per_s if case.peak_per_s is None else case.peak_per_s.median
        stolen = case.stolen
        table.add_row(
            case.name,
            str(case.nodes),
            f"{case.offered_per_s:,.0f}",
            _with_range(case.final_per_s_spread),
            "-" if case.peak_per_s is None else _with_range(case.peak_per_s),
            f"{share(best, limit(case.nodes)):.1%}",
            f"{case.calls_per_s:,.0f}",
            _with_range(case.latency_p50_ms_spread),
            _with_range(case.latency_p99_ms_spread),
            f"{case.latency_ms.p999:,.0f}",
            f"{case.cpu_us_per_transaction:,.0f}",
            f"{case.rss_mb:,.0f}",
            "" if stolen is None else f"{stolen.median:.0%} ({stolen.min:.0%}-{stolen.max:.0%})",
        )
        for what, count in (("failed calls", case.failed_calls), ("without fate", case.without_fate)):
            if count:
                table.add_row(f"  {what}: {count}")
        if case.refused:
            table.add_row(f"  refused: {', '.join(f'{code} {count}' for code, count in case.refused.items())}")
        if case.queries is not None:
            asked = case.queries
            table.add_row(
                "  queries",
                "1",
                f"{asked.offered_per_s:,.0f}",
                f"{asked.answered_per_s:,.0f}",
                *("", "", ""),
                f"{asked.latency_ms.p50:,.1f}",
                f"{asked.latency_ms.p99:,.1f}",
                f"{asked.latency_ms.p999:,.1f}",
            )
    console.print(table)


def print_ratios(console: Console, found: dict[str, dict[str, float | None]], commit_: str) -> None:
    """A table of what became of each figure."""
    table = Table(title=f"now for each 1.00 at {commit_}", title_justify="left")
    table.add_column("case")
    for heading in RATIOS:
        table.add_column(heading, justify="right")
    for name, row in found.items():
        table.add_row(name, *("-" if value is None else f"{value:.2f}" for value in row.values()))
    console.print(table)


def encode(document: dict[str, Any]) -> str:
    """The document as text."""
    return msgspec.json.format(msgspec.json.encode(document)).decode() + "\n"


def _with_range(values: Spread) -> str:
    return f"{values.median:,.0f} ({values.min:,.0f}-{values.max:,.0f})"
