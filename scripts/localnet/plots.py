"""The plots of a measurement, as PNG files beside its document, if matplotlib (the extra `bench`) is here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from scripts.localnet.filling import Size
from scripts.localnet.memory_bench import Memory
from scripts.localnet.pruning_bench import PruningBench
from scripts.localnet.studies import Sweep

INCHES = (8.0, 5.0)


def draw(reports: Mapping[str, Any], out: Path, console: Console) -> list[Path]:
    """A PNG file for each of the reports that have one, named after `out`; without matplotlib none, and a hint."""
    wanted = {name: reports[name] for name in ("sweep", "memory", "state_size", "pruning") if name in reports}
    if not wanted:
        return []
    try:
        import matplotlib
    except ImportError:
        console.print("no plots: matplotlib is not installed; scripts/prepare --bench installs it")
        return []
    matplotlib.use("agg")
    drawn = []
    for name, found in wanted.items():
        path = out.with_name(f"{out.stem}-{name.replace('_', '-')}.png")
        _draw(found, path)
        console.print(f"{path}")
        drawn.append(path)
    return drawn


def _draw(found: Any, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained")
    axes = figure.subplots()
    if isinstance(found, Sweep):
        offered = [point.offered_per_s for point in found.points]
        for name in ("p50", "p90", "p99"):
            axes.plot(offered, [getattr(point.latency_ms, name) for point in found.points], "o-", label=name)
        axes.axvline(found.peak_per_s, linestyle="--", color="gray", label="peak")
        axes.set(xlabel="offered, transactions/s", ylabel="submit to final, ms", yscale="log")
    elif isinstance(found, Memory):
        seconds = [sample.seconds for sample in found.samples]
        for node in range(found.nodes):
            [line] = axes.plot(seconds, [sample.rss_mb[node] for sample in found.samples], label=f"node {node + 1}")
            own = [sample.own_mb[node] for sample in found.samples]
            axes.plot(seconds, own, linestyle=":", color=line.get_color(), label=f"node {node + 1}, without files")
        axes.axhline(found.limit_mb, linestyle="--", color="gray", label="limit")
        axes.set(xlabel="seconds", ylabel="resident memory, MB", ylim=(0, None))
    elif isinstance(found, PruningBench):
        seconds = [sample.seconds for sample in found.samples]
        axes.plot(seconds, [sample.data_mb for sample in found.samples], label="data of all nodes")
        axes.plot(seconds, [sample.archive_mb for sample in found.samples], label="archives of all nodes")
        axes.set(xlabel="seconds", ylabel="bytes on disk, MB", ylim=(0, None))
    else:
        sizes: list[Size] = found
        costs = [size.cpu_us_per_transaction for size in sizes]
        axes.plot([size.accounts for size in sizes], costs, "o-", label="all nodes")
        axes.set(xlabel="accounts in the state", xscale="log", ylabel="CPU a transaction, us", ylim=(0, None))
    axes.grid(True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
