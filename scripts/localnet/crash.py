"""The command `scripts/crash`: nodes that die at every write, are killed under load, or have a disk that is
full."""

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import structlog
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from node.errors import HansaError
from scripts.localnet import processes
from scripts.localnet.founding import found
from scripts.localnet.full_disk import DiskFiller, DiskReport, SmallDisk, use_small_disk
from scripts.localnet.kills import Killer, KillsReport
from scripts.localnet.layout import ROOT, Layout, TestnetError
from scripts.localnet.nodes import Nodes
from scripts.localnet.numbers import Whole
from scripts.localnet.session import Session
from tests.crash.points import PointsReport, crash_points

PLACES_SHOWN_MAX = 10


class Report(msgspec.Struct, frozen=True):
    """What `--json` prints: what was asked for."""

    ok: bool
    points: PointsReport | None = None
    kills: KillsReport | None = None
    full_disk: DiskReport | None = None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--points", type=Whole(1), help="So many crashes in one process, at random writes.")
@click.option("--kills", type=Whole(1), help="So many kill -9 of real nodes under load (about 6 s each).")
@click.option("--full-disk", type=Whole(1), help="So many times a full disk under a real node (about 6 s each).")
@click.option("--seed", type=Whole(0), default=1, show_default=True, help="Of what is done, and when.")
@click.option("--nodes", "count", type=Whole(4, 16), default=4, show_default=True)
@click.option("--base-port", type=Whole(1024, 65_000), default=8400, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def cli(
    points: int | None,
    kills: int | None,
    full_disk: int | None,
    seed: int,
    count: int,
    base_port: int,
    as_json: bool,
) -> None:
    """Crash, and see that nothing is lost: heads, roots, votes, accepted transactions.

    Exits 0 when all was there again, 1 with the losses otherwise. --full-disk mounts a tmpfs and needs the right
    to.
    """
    if points is None and kills is None and full_disk is None:
        raise click.UsageError("say --points N, --kills N or --full-disk N")
    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 200)
    done = _points(points, seed, console) if points else None
    killed = _kills(kills, seed, count, base_port, console) if kills else None
    filled = _full_disk(full_disk, seed, count, base_port, console) if full_disk else None
    ok = all(part is None or part.ok for part in (done, killed, filled))
    if as_json:
        report = Report(ok, done, killed, filled)
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    else:
        shown = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
        for table in _tables(done, killed, filled):
            shown.print(table)
    for loss in _losses(done, killed, filled):
        click.echo(f"lost: {loss}", err=True)
    if not ok:
        sys.exit(1)


def _points(count: int, seed: int, console: Console) -> PointsReport:
    # What is cut off after each crash is what is asked for: the log lines that say so are many.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with Progress(console=console) as progress:
        task = progress.add_task("crashes", total=count)
        return crash_points(count, seed, lambda done: progress.update(task, completed=done))


def _kills(count: int, seed: int, members: int, base_port: int, console: Console) -> KillsReport:
    with _network(members, base_port, console) as (layout, nodes, _):

        async def perform() -> KillsReport:
            traffic = await Session(layout, nodes, console).prepare_traffic()
            with Progress(console=console) as progress:
                task = progress.add_task("kills", total=count)
                killer = Killer(layout, nodes, traffic, seed)
                return await killer.run(count, lambda _: progress.advance(task))

        return asyncio.run(perform())


def _full_disk(count: int, seed: int, members: int, base_port: int, console: Console) -> DiskReport:
    with _network(members, base_port, console, small=True) as (layout, nodes, disk):
        assert disk is not None

        async def perform() -> DiskReport:
            traffic = await Session(layout, nodes, console).prepare_traffic()
            with Progress(console=console) as progress:
                task = progress.add_task("full disks", total=count)
                filler = DiskFiller(nodes, traffic, nodes.network.members[1].id, disk, seed)
                return await filler.run(count, lambda _: progress.advance(task))

        return asyncio.run(perform())


@contextlib.contextmanager
def _network(
    members: int, base_port: int, console: Console, small: bool = False
) -> Iterator[tuple[Layout, Nodes, SmallDisk | None]]:
    """A network of its own that runs; its directory is kept when something raised. `small`: member 1's disk is."""
    place = ROOT / "build"
    place.mkdir(exist_ok=True)
    layout = Layout(Path(tempfile.mkdtemp(prefix="crash-", dir=place)))
    found(layout, members, base_port)
    nodes = Nodes(layout)
    disk: SmallDisk | None = None
    try:
        if small:
            disk = use_small_disk(layout, nodes.network.members[1])
        nodes.start(nodes.network.members)
        nodes.wait_agreement()
        yield layout, nodes, disk
    except BaseException:
        console.print(f"the nodes' logs and data are kept in {layout.directory}")
        nodes.end(nodes.network.members, kill=True)
        raise
    finally:
        nodes.end(nodes.network.members, kill=True)
        if disk is not None:
            disk.unmount()
    shutil.rmtree(layout.directory, ignore_errors=True)


def _tables(done: PointsReport | None, killed: KillsReport | None, filled: DiskReport | None) -> Iterator[Table]:
    if done is not None:
        title = (
            f"{done.points:,} crash points in {done.lives} lives, {done.seconds:.0f} s, {len(done.losses)} losses"
        )
        ways = [[way.how, way.points, way.head_there, way.head_behind, way.abstained] for way in done.ways]
        yield _table(title, ("the write at which it died", "points", "head h", "head h-1", "memory given up"), ways)
    if killed is not None:
        losses = len(killed.problems) + sum(len(kill.losses) for kill in killed.kills)
        title = (
            f"{len(killed.kills)} kills in {killed.seconds:.0f} s: {killed.blocks:,} blocks,"
            f" {killed.accepted:,} accepted, {killed.final:,} final, {killed.expired:,} expired, {losses} losses"
        )
        kills = [
            [kill.member, kill.shown, kill.head, kill.records, kill.accepted, _seconds(kill.votes_again_s)]
            for kill in killed.kills
        ]
        yield _table(title, ("member", "shown", "head on disk", "records", "had accepted", "votes again"), kills)
    if filled is not None:
        losses = len(filled.problems) + sum(len(point.problems) for point in filled.points)
        title = (
            f"{len(filled.points)} full disks in {filled.seconds:.0f} s: {filled.accepted:,} accepted,"
            f" {filled.final:,} final, {filled.expired:,} expired, {losses} problems"
        )
        rows = [
            [
                point.kind,
                f"{point.free_bytes:,}",
                _seconds(point.stopped_s),
                "votes withheld" if point.ended is None else f"exit {point.ended}",
                _seconds(point.back_s),
            ]
            for point in filled.points
        ]
        yield _table(title, ("filled up to", "bytes free", "stopped after", "how", "voted again"), rows)


def _table(title: str, headings: tuple[str, ...], rows: list[list[Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row))
    return table


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f} s"


def _losses(done: PointsReport | None, killed: KillsReport | None, filled: DiskReport | None) -> Iterator[str]:
    if done is not None:
        yield from done.losses
    if killed is not None:
        yield from killed.problems
        for kill in killed.kills:
            yield from (f"{kill.member}: {loss}" for loss in kill.losses)
    if filled is not None:
        yield from filled.problems
        for point in filled.points:
            yield from (f"disk filled up to {point.kind}: {problem}" for problem in point.problems)


def main() -> int:
    """Run one command line; every expected failure is one line on stderr."""
    processes.end_on_sigterm()
    try:
        cli.main(prog_name="scripts/crash", standalone_mode=False)
    except TestnetError as error:
        return _failed(str(error), error.exit_code)
    except HansaError as error:
        return _failed(f"{error}. {error.entry.action}", error.exit_code)
    except click.ClickException as error:
        return _failed(f"{error.format_message()} (scripts/crash --help)", 2)
    except (KeyboardInterrupt, click.Abort):
        return _failed("interrupted", 130)
    return 0


def _failed(message: str, exit_code: int) -> int:
    click.echo(f"crash: {message}", err=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
