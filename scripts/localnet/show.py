"""Tables and sentences for the operator's terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from scripts.localnet.audit import Audit
from scripts.localnet.loading import LoadFigures
from scripts.localnet.nodes import MemberStatus
from scripts.localnet.open_loop import LoadReport
from scripts.localnet.rehearsal import Outcome
from scripts.localnet.wiring import Way

ROOT_DIGITS = 12


def status_table(console: Console, rows: Sequence[MemberStatus]) -> None:
    """One row a node: is it there, where does it stand."""
    table = Table(title="nodes", title_justify="left")
    for heading in ("member", "pid", "height", "view", "state root", "ready", "memory"):
        table.add_column(heading, justify="right" if heading in ("pid", "height", "view", "memory") else "left")
    for row in rows:
        table.add_row(
            row.id,
            str(row.pid) if row.alive else "-",
            _known(row.height),
            _known(row.view),
            (row.state_root or "-")[:ROOT_DIGITS],
            "yes" if row.ready else "no" if row.alive else "stopped",
            "-" if row.rss_mb is None else f"{row.rss_mb:.0f} MB",
        )
    console.print(table)


def ways_table(console: Console, ways: Sequence[Way]) -> None:
    """One row for each direction between two nodes."""
    table = Table(title="links", title_justify="left")
    for heading in ("from", "to", "state", "delay"):
        table.add_column(heading, justify="right" if heading == "delay" else "left")
    for way in ways:
        table.add_row(way.sender, way.receiver, way.state, f"{way.delay_ms} ms" if way.delay_ms else "-")
    console.print(table)


def result_table(console: Console, rows: Sequence[MemberStatus], found: Audit) -> None:
    """One row a member: height, state root, and what the accounts at this member hold."""
    currencies = sorted(found.supplies)
    table = Table(title="after the load", title_justify="left")
    for heading in ("member", "height", "state root", "accounts", *currencies, "peak memory"):
        table.add_column(heading, justify="left" if heading in ("member", "state root") else "right", no_wrap=True)
    for row in rows:
        held = [value for principal, value in found.holdings.items() if principal.partition("/")[0] == row.id]
        table.add_row(
            row.id,
            _known(row.height),
            (row.state_root or "-")[:ROOT_DIGITS],
            f"{sum(holding.accounts for holding in held):,}",
            *(money(sum(holding.balances.get(currency, 0) for holding in held)) for currency in currencies),
            "-" if row.rss_peak_mb is None else f"{row.rss_peak_mb:.0f} MB",
        )
    console.print(table)
    for currency, outstanding in sorted(found.supplies.items()):
        console.print(f"{currency}: balances of all members together = issued - redeemed = {money(outstanding)}")
    for product, paid in sorted(found.payouts.items()):
        console.print(f"{product}: claims paid {money(paid)}, as a plain loop over the file computes")
    for problem in found.problems:
        console.print(f"[red]wrong:[/red] {problem}")


def places(console: Console, rows: Sequence[MemberStatus], directory: Path) -> None:
    """Where to go on: the nodes' URLs and files."""
    console.print("nodes: " + "  ".join(f"{row.id} {row.api}" for row in rows), soft_wrap=True)
    console.print(f"files, keys and logs: {directory}", soft_wrap=True)


def figures_table(console: Console, figures: LoadFigures) -> None:
    """One row a phase of the load."""
    table = Table(title="load", title_justify="left")
    for heading in ("phase", "tx", "calls", "seconds", "tx/s", "calls/s", "final p50", "final p99"):
        table.add_column(heading, justify="left" if heading == "phase" else "right", no_wrap=True)
    for phase in (*figures.phases, figures.total):
        table.add_row(
            phase.what,
            f"{phase.transactions:,}",
            f"{phase.calls:,}",
            f"{phase.seconds:.1f}",
            f"{phase.transactions_per_s:,.0f}",
            f"{phase.calls_per_s:,.0f}",
            f"{phase.finality_ms.p50:,.0f} ms",
            f"{phase.finality_ms.p99:,.0f} ms",
        )
    console.print(table)
    outcomes = ", ".join(f"{code} {count:,}" for code, count in sorted(figures.codes.items()))
    console.print(f"outcomes of calls: {outcomes}; transactions without a fate: {len(figures.without_fate)}")
    for surprise in figures.surprises:
        console.print(f"[red]not expected:[/red] {surprise}", soft_wrap=True)


def load_report(console: Console, report: LoadReport) -> None:
    """The result of an open-loop load in a few lines."""
    console.print(
        f"offered {report.offered_per_s:,.0f} transactions/s, {report.sent:,} in all; final {report.final:,} in"
        f" {report.seconds:.1f} s: {report.final_per_s:,.0f} transactions/s, {report.calls_per_s:,.0f} calls/s"
    )
    latency = report.latency_ms
    console.print(
        f"due to final: p50 {latency.p50:,.0f} ms, p90 {latency.p90:,.0f} ms, p99 {latency.p99:,.0f} ms;"
        f" failed calls {report.failed_calls}, without a fate {report.without_fate}, refused {report.refused or 0}"
    )


def money(minor: int) -> str:
    """Cents as a decimal amount."""
    sign = "-" if minor < 0 else ""
    return f"{sign}{abs(minor) // 100:,}.{abs(minor) % 100:02d}"


def _known(value: int | None) -> str:
    return "-" if value is None else str(value)


def outcome_line(console: Console, outcome: Outcome) -> None:
    """One schedule, as soon as it is judged."""
    verdict = "[red]failed[/red]" if outcome.problems else "ok"
    console.print(
        f"seed {outcome.seed}: {verdict}; next block after {_seconds(outcome.next_block_s)}, "
        f"longest stall {_seconds(outcome.stall_s)}, ready after {_seconds(outcome.ready_s)}; "
        f"{'; '.join(outcome.faults)}",
        soft_wrap=True,
    )
    for problem in outcome.problems:
        console.print(f"  [red]wrong:[/red] {problem}", soft_wrap=True)


def outcomes_table(console: Console, outcomes: Sequence[Outcome]) -> None:
    """One row a schedule."""
    table = Table(title="schedules", title_justify="left")
    headings = ("seed", "next block", "stall", "no quorum", "ready", "blocks", "accepted", "final", "expired", "ok")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("faults", justify="left")
    for outcome in outcomes:
        table.add_row(
            str(outcome.seed),
            _seconds(outcome.next_block_s),
            _seconds(outcome.stall_s),
            _seconds(outcome.without_quorum_s),
            _seconds(outcome.ready_s),
            f"{outcome.blocks:,}",
            f"{outcome.accepted:,}",
            f"{outcome.final:,}",
            f"{outcome.expired:,}",
            "no" if outcome.problems else "yes",
            "\n".join(outcome.faults),
        )
    console.print(table)


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f} s"
