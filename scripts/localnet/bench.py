"""The command `scripts/bench`: what the ledger does on this machine, beside what the machine can do at all."""

import asyncio
import functools
import shutil
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import click
from rich.console import Console

from node.config import Parameters
from node.errors import HansaError
from scripts.localnet import (
    catch_up,
    document,
    execute_bench,
    failover,
    filling,
    limits,
    long_chain,
    memory_bench,
    mixed_code,
    plots,
    processes,
    pruning_bench,
    slow_primary,
    snapshot_join,
    snapshot_load,
    state_bench,
    studies,
)
from scripts.localnet.chain_plan import Size
from scripts.localnet.document import Case
from scripts.localnet.founding import found
from scripts.localnet.layout import ROOT, Layout, TestnetError
from scripts.localnet.load_cases import GROUPS, LOAD_CASES, LoadCase, Place
from scripts.localnet.measuring import Effort, Measuring
from scripts.localnet.nodes import Nodes
from scripts.localnet.numbers import Number, Whole
from scripts.localnet.wiring import Way
from scripts.localnet.workload import Shape

CASES_DEFAULT = ("single", "bundle1000", "idle")
STUDIES: dict[str, Callable[[Measuring, Console], Coroutine[Any, Any, object]]] = {
    "sweep": studies.sweep,
    "overload": studies.overload,
    "greedy": studies.greedy,
    "mixed-code": mixed_code.measure,
}
"""They put several loads on one network and compare them; each one's report is one field of the document."""


Measure: TypeAlias = Callable[[Layout, Nodes, Console, Shape], Coroutine[Any, Any, object]]


class Scene(NamedTuple):
    """A case with a network of its own, of `parameters`, on which `measure` does all; its report is one field."""

    measure: Measure
    parameters: Callable[[], Parameters] = Parameters
    proxied: bool = False


def _own_load(measure: Callable[[Layout, Nodes, Console], Coroutine[Any, Any, object]]) -> Measure:
    """`measure`, which brings its own load and takes none."""

    @functools.wraps(measure)
    async def scene(layout: Layout, nodes: Nodes, console: Console, shape: Shape) -> object:
        return await measure(layout, nodes, console)

    return scene


SCENES: dict[str, Scene] = {
    "memory": Scene(memory_bench.measure, memory_bench.parameters),
    "state-size": Scene(filling.measure, filling.parameters),
    "kill": Scene(_own_load(failover.kill_primaries)),
    "quorum-loss": Scene(_own_load(failover.lose_quorum)),
    "catch-up": Scene(catch_up.wipe_and_catch_up),
    "snapshot-join": Scene(snapshot_join.measure, snapshot_join.parameters),
    "snapshot-load": Scene(snapshot_load.measure, snapshot_load.parameters),
    "pruning": Scene(pruning_bench.measure, pruning_bench.parameters),
    "slow-primary": Scene(_own_load(slow_primary.measure), slow_primary.parameters, proxied=True),
}
ALONE_CASES: dict[str, Callable[[Path, Console], object]] = {
    "state": state_bench.measure,
    "execute": execute_bench.measure,
}
"""They need no network of this script's: an empty directory (on the repository's disk) is enough; each one's report
is one field of the document.
"""
LONG_CHAIN = "long-chain"
"""It founds a network of its own, and --transactions and --keys say how long its chain is."""
LOG_COLUMNS = 150
SCENE_RATE = 500.0
"""Transactions a second, where a scene has a load and --rate does not say."""
CASES = (*LOAD_CASES, *GROUPS, *STUDIES, *SCENES, *ALONE_CASES, LONG_CHAIN)
ABOUT = {
    "sweep": "latency at seven rates from a tenth of the peak to a fifth above it; with --out a plot",
    "overload": "three times the peak: how much still becomes final, and what the refused are told",
    "greedy": "a modest client alone, and beside one that floods all nodes with three times the peak",
    "mixed-code": "one node of four runs other bytes of a contract: the others' load beside that of equal code",
    "memory": "memory of the nodes over --seconds of a steady load, and its growth; with --out a plot",
    "state-size": "the cost of a transaction with 10,000, 100,000 and a million accounts in the state",
    "kill": "each member's node is killed under load while it is the primary: how long nothing is decided",
    "quorum-loss": "one node more than may be away is killed, and one of them comes back: how long it takes",
    "catch-up": "a node loses its data after a load and fetches every block again: how long it takes",
    "snapshot-join": "a node loses its data and joins from a snapshot, then once more by executing every block",
    "snapshot-load": "latency of a load while snapshots are made, and while none is",
    "pruning": "bytes on disk over a load while old blocks are archived and pruned; with --out a plot",
    "slow-primary": "the primary is slowed under full queues: how long until another one takes its place",
    "state": "the state tree alone: a million keys, then the cost of a block that changes some of them",
    "execute": "executing alone, without a network: what a transaction of each load costs",
    LONG_CHAIN: "a long chain (--transactions, --keys): bytes on disk, verify, replay, start, and joining it",
}
"""What is measured by each case that is no load, in a line for people."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("what", required=False, type=click.Choice(["limits", "cases"]))
@click.option(
    "--case",
    "cases",
    multiple=True,
    type=click.Choice(CASES),
    metavar="NAME",
    help=f"Again for more (default: {', '.join(CASES_DEFAULT)}).",
)
@click.option("--nodes", type=Whole(1, 16), default=4, show_default=True)
@click.option("--seconds", type=Number(1, 86_400), default=20.0, show_default=True, help="Of each run.")
@click.option("--rate", type=Number(0.1), help="Transactions/s offered (default: half of the peak).")
@click.option("--repeat", type=Whole(1, 100), default=3, show_default=True, help="Runs of each load.")
@click.option(
    "--again",
    type=Whole(0, 100),
    default=0,
    show_default=True,
    help="So often at most is a run done again of which the machine's host gave more than a tenth to others.",
)
@click.option("--transactions", type=Whole(1), default=2_000_000, show_default=True, help="long-chain.")
@click.option("--keys", type=Whole(1), default=1_000_000, show_default=True, help="long-chain.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Document here, plots beside it.")
@click.option("--compare", type=click.Path(dir_okay=False, path_type=Path), help="Ratios to an earlier document.")
@click.option("--base-port", type=Whole(1024, 65_000), default=7800, show_default=True)
def cli(
    what: str | None,
    cases: tuple[str, ...],
    nodes: int,
    seconds: float,
    rate: float | None,
    repeat: int,
    again: int,
    transactions: int,
    keys: int,
    out: Path | None,
    compare: Path | None,
    base_port: int,
) -> None:
    """Measure on networks of its own; one JSON document, and a table on stderr.

    `limits`: only what the machine can do. `cases`: what there is to be measured.
    """
    try:
        size = Size(transactions, keys)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if what == "cases":
        for name in CASES:
            click.echo(f"{name:<24} {about(name)}")
        return
    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else LOG_COLUMNS)
    earlier = None if compare is None else document.read(compare)
    chosen = [] if what == "limits" else expand(cases or CASES_DEFAULT)
    effort = Effort(seconds, repeat, rate, again)
    bench = _Bench(console, nodes, effort, size, base_port)
    reports = bench.run(chosen)
    measured: list[Case] = reports["cases"]
    found_ratios = {} if earlier is None else document.ratios(measured, earlier.cases)
    whole = {
        "machine": document.machine(),
        "versions": document.versions(),
        "commit": document.commit(),
        "settings": {
            "nodes": nodes,
            "seconds": seconds,
            "repeats": repeat,
            "again": again,
            "rate": rate,
            "cases": chosen,
        },
        **reports,
        **({} if earlier is None else {"compared_with": earlier.commit, "ratios": found_ratios}),
    }
    if measured:
        document.print_cases(console, measured, bench.limit_per_s)
    if earlier is not None:
        document.print_ratios(console, found_ratios, earlier.commit)
    text = document.encode(whole)
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text)
        plots.draw(reports, out, console)


def expand(names: Sequence[str]) -> list[str]:
    """The cases that are meant, each once, in their order."""
    return list(dict.fromkeys(case for name in names for case in GROUPS.get(name, (name,))))


def about(name: str) -> str:
    """What is measured, in a line."""
    if name in LOAD_CASES:
        return LOAD_CASES[name].what
    if name in GROUPS:
        return f"all of {', '.join(GROUPS[name])}"
    return ABOUT[name]


class _Bench:
    """One run of the command: networks are founded, measured and removed."""

    def __init__(self, console: Console, nodes: int, effort: Effort, size: Size, base_port: int) -> None:
        self._console = console
        self._nodes = nodes
        self._effort = effort
        self._size = size
        self._base_port = base_port
        console.print("limits of this machine")
        with _directory() as directory:
            self._limits = limits.measure(directory)

    def limit_per_s(self, nodes: int) -> float:
        """The most single-call transactions a second that a network of that many nodes could verify here."""
        return limits.single_call_limit(self._limits, nodes)

    def run(self, chosen: Sequence[str]) -> dict[str, Any]:
        """The reports of all chosen cases by their fields' names, beside `limits` and `cases`."""
        measured: list[Case] = []
        reports: dict[str, Any] = {
            "limits": {**self._limits, "single_call_transactions_per_s": self.limit_per_s(self._nodes)},
            "cases": measured,
        }
        loads = [LOAD_CASES[name] for name in chosen if name in LOAD_CASES]
        for place in dict.fromkeys(case.place for case in loads):
            with self._measuring(place) as measuring:
                measured += asyncio.run(_all(measuring, [case for case in loads if case.place == place]))
        for name in chosen:
            field = name.replace("-", "_")
            if name in STUDIES:
                with self._measuring(Place()) as measuring:
                    reports[field] = asyncio.run(_awaited(STUDIES[name](measuring, self._console)))
            elif name in SCENES:
                scene = SCENES[name]
                with self._network(self._nodes, proxied=scene.proxied, parameters=scene.parameters()) as network:
                    load = Shape(self._effort.rate or SCENE_RATE, self._effort.seconds)
                    reports[field] = asyncio.run(_awaited(scene.measure(*network, self._console, load)))
            elif name in ALONE_CASES:
                with _directory() as directory:
                    reports[field] = ALONE_CASES[name](directory, self._console)
            elif name == LONG_CHAIN:
                with _directory() as directory:
                    reports[field] = long_chain.measure(directory, self._console, self._size, self._base_port)
        return reports

    @contextmanager
    def _measuring(self, place: Place) -> Iterator[Measuring]:
        """A network at `place`, and nothing on it but what the place has."""
        count = place.nodes or self._nodes
        with self._network(count, proxied=place.delay_ms > 0, parameters=place.parameters()) as (layout, running):
            if running.wiring is not None:
                pairs = [pair for one, other in running.wiring.pairs for pair in ((one, other), (other, one))]
                running.wiring.set(*(Way(*pair, "open", place.delay_ms) for pair in pairs))
            with tempfile.TemporaryDirectory(prefix="load-", dir=layout.directory) as scratch:
                measuring = Measuring(
                    layout, running, self._console, Path(scratch), self._effort, self.limit_per_s(count)
                )
                if place.filled:
                    self._console.print(f"{place.filled:,} accounts are being opened")
                    asyncio.run(filling.open_accounts(measuring.session, place.filled))
                yield measuring

    @contextmanager
    def _network(self, count: int, *, proxied: bool, parameters: Parameters) -> Iterator[tuple[Layout, Nodes]]:
        """A new network in a directory of its own; gone afterwards."""
        with _directory() as directory:
            layout = Layout(directory)
            found(layout, count, self._base_port, proxied=proxied, parameters=parameters)
            nodes = Nodes(layout)
            try:
                nodes.start(nodes.network.members)
                nodes.wait_agreement()
                yield layout, nodes
            finally:
                nodes.end(nodes.network.members, kill=False)
                nodes.end_proxy()


async def _all(measuring: Measuring, cases: Sequence[LoadCase]) -> list[Case]:
    return [await measuring.case(case) for case in cases]


async def _awaited(work: Coroutine[Any, Any, object]) -> object:
    return await work


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


def main() -> int:
    """Run one command line; every expected failure is one line on stderr."""
    processes.end_on_sigterm()
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
