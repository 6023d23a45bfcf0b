"""Commands that judge what lies on a disk: a data directory, archives, a snapshot."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from node.cli.options import Directory, anchor_option, directory_option, output_option, trusted_network
from node.cli.output import Output
from node.config import NetworkConfig
from node.errors import ConfigError
from node.wording import blocks_from

if TYPE_CHECKING:
    from node.verification.files import FileReport


class _Rate(TextColumn):
    """How many a second."""

    def __init__(self, unit: str) -> None:
        super().__init__("")
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {self._unit}/s")


@contextlib.contextmanager
def rated_bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function of (done, total) that moves a bar with its rate on stderr while a person looks on."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        last = 0

        def move(done: int, total: int) -> None:
            nonlocal last
            if done < last:
                progress.reset(task, total=total)
            last = done
            progress.update(task, completed=done, total=total)

        yield move


class FileReports(msgspec.Struct, frozen=True):
    """What `hansa verify` says of files; `files` are FileReports."""

    ok: bool
    files: tuple[object, ...]


@click.command()
@click.option("--quick", is_flag=True, help="Headers, certificates, contents, the state's root; execute nothing.")
@click.option(
    "--archive",
    "archives",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Judge this archive file instead, and those named behind it; each has to follow the one before.",
)
@click.argument("more_archives", nargs=-1, type=click.Path(path_type=Path, dir_okay=False), metavar="[FILE]...")
@click.option(
    "--snapshot",
    "snapshots",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Judge this snapshot instead.",
)
@click.option(
    "--network",
    "network_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The network.toml that archives and snapshots are judged by (default: that of the node's directory).",
)
@anchor_option
@directory_option
@output_option
def verify(
    quick: bool,
    archives: Sequence[Path],
    more_archives: Sequence[Path],
    snapshots: Sequence[Path],
    network_file: Path | None,
    anchors: Sequence[Path],
    directory: Directory,
    output: Output,
) -> int:
    """Judge the stopped node's whole ledger: certificates, hashes, receipts, indexes, state, by executing it again.

    Nothing is changed. Exits with 3 and names the first thing that is wrong: where, which row, and what to do.
    """
    if more_archives and not archives:
        raise ConfigError("invalid_usage", f"{more_archives[0]} is unexpected: archive files follow --archive")
    if archives or snapshots:
        network = trusted_network(network_file, directory, anchors)
        return _verify_files([*archives, *more_archives], snapshots, network, output)
    # Imported here: it loads the contracts, which takes longer than most commands.
    from node.verification import verify_directory

    with rated_bar("verifying", "blocks") as progress:
        report = verify_directory(directory.required(), progress, "quick" if quick else "whole", anchors)
    if output.as_json:
        output.document(report)
        return 0 if report.ok else 3
    output.facts(
        [
            ("ok", report.ok),
            ("height", report.height),
            ("blocks", report.blocks),
            ("transactions", report.transactions),
            ("first error", report.first_error),
            *((("row", report.entry),) if report.entry else ()),
            *((("what to do", report.remedy),) if report.remedy else ()),
        ]
    )
    for note in report.notes:
        output.text(note)
    return 0 if report.ok else 3


def _verify_files(
    archives: Sequence[Path], snapshots: Sequence[Path], network: NetworkConfig, output: Output
) -> int:
    from node.verification import verify_archives, verify_snapshot_directory

    with rated_bar("verifying", "blocks") as progress:
        reports = verify_archives(archives, network, progress)
    for path in snapshots:
        with rated_bar("verifying", "chunks") as progress:
            reports.append(verify_snapshot_directory(path, network, progress))
    ok = all(report.ok for report in reports)
    if output.as_json:
        output.document(FileReports(ok, tuple(reports)))
        return 0 if ok else 3
    for report in reports:
        output.text(
            f"{report.path}: {_held(report)}, right" if report.ok else f"{report.path}: {report.first_error}"
        )
        if report.remedy:
            output.text(report.remedy)
    return 0 if ok else 3


def _held(report: "FileReport") -> str:
    """What a file that is right holds: of a snapshot the one block after which its state was."""
    last = report.last or 0
    return blocks_from(last if report.first is None else report.first, last)
