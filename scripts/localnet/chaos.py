"""The command `scripts/chaos`: random faults on real processes under load, from one seed each."""

import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
from rich.console import Console

from node.errors import HansaError
from scripts.localnet import processes, show
from scripts.localnet.faults import Schedule, draw
from scripts.localnet.founding import found
from scripts.localnet.layout import ROOT, Layout, TestnetError, member_names
from scripts.localnet.nodes import Nodes
from scripts.localnet.numbers import Number, Whole
from scripts.localnet.rehearsal import Outcome, Rehearsal
from scripts.localnet.session import Session

FRESH_EVERY = 6
"""A network serves for so many schedules: a wiped node executes the whole chain again."""
BOUND_S = 10.0


class Report(msgspec.Struct, frozen=True):
    """What `--json` prints. Seconds; the longest over all schedules."""

    schedules: list[Outcome]
    seconds: float
    bound_s: float
    next_block_s: float
    stall_s: float
    failed: list[int]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seed", type=Whole(0), help="Perform this schedule alone.")
@click.option("--schedules", type=Whole(1), default=60, show_default=True, help="How many.")
@click.option("--first", type=Whole(0), default=1, show_default=True, help="The seed of the first.")
@click.option("--brief", is_flag=True, help="At most two faults a schedule, of some seconds.")
@click.option("--nodes", "count", type=Whole(4, 16), default=4, show_default=True)
@click.option("--base-port", type=Whole(1024, 65_000), default=8200, show_default=True)
@click.option(
    "--bound",
    "bound_s",
    type=Number(1),
    default=BOUND_S,
    show_default=True,
    help="Seconds from a heal to the next block.",
)
@click.option("--list", "only_list", is_flag=True, help="Show the schedules, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def cli(
    seed: int | None,
    schedules: int,
    first: int,
    brief: bool,
    count: int,
    base_port: int,
    bound_s: float,
    only_list: bool,
    as_json: bool,
) -> None:
    """Kill, pause, wipe and cut off real nodes under load, and judge what they make of it.

    Exits 0 when every heal was followed by a block in time, all nodes agreed in the end, and every promised
    transaction had exactly one fate; 1 otherwise, with the line that performs the failed schedule again.
    """
    console = Console(stderr=True, highlight=False)
    seeds = [seed] if seed is not None else list(range(first, first + schedules))
    drawn = [draw(number, member_names(count), brief=brief) for number in seeds]
    if only_list:
        for schedule in drawn:
            click.echo(f"{schedule.seed}: " + "; ".join(str(fault) for fault in schedule.faults))
        return
    started = time.monotonic()
    outcomes = perform(drawn, count, base_port, bound_s, console)
    failed = [outcome.seed for outcome in outcomes if outcome.problems]
    report = Report(
        outcomes,
        round(time.monotonic() - started, 1),
        bound_s,
        max((outcome.next_block_s or 0.0 for outcome in outcomes), default=0.0),
        max((outcome.stall_s for outcome in outcomes), default=0.0),
        failed,
    )
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    else:
        show.outcomes_table(Console(width=None if sys.stdout.isatty() else 160, highlight=False), report.schedules)
        schedules_run = "1 schedule" if len(outcomes) == 1 else f"{len(outcomes)} schedules"
        click.echo(
            f"{schedules_run} in {report.seconds:.0f} s, {len(failed)} failed; after a heal the next "
            f"block came within {report.next_block_s:.2f} s, longest stall with a quorum: {report.stall_s:.2f} s"
        )
    for number in failed:
        options = f" --nodes {count}" * (count != 4) + " --brief" * brief
        click.echo(f"again: scripts/chaos --seed {number}{options}", err=True)
    if failed:
        sys.exit(1)


def perform(
    drawn: list[Schedule],
    count: int,
    base_port: int,
    bound_s: float,
    console: Console,
    on_outcome: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """The outcome of each schedule, on networks made for them. The directory of a network that failed is kept."""
    outcomes: list[Outcome] = []
    place = ROOT / "build"
    place.mkdir(exist_ok=True)
    waiting = list(drawn)
    while waiting:
        layout = Layout(Path(tempfile.mkdtemp(prefix="chaos-", dir=place)))
        found(layout, count, base_port, proxied=True)
        nodes = Nodes(layout)
        failed = False
        try:
            nodes.start(nodes.network.members)
            nodes.wait_agreement()
            for outcome in asyncio.run(_perform(layout, nodes, waiting[:FRESH_EVERY], bound_s, console)):
                waiting.pop(0)
                outcomes.append(outcome)
                on_outcome(outcome)
                failed = failed or bool(outcome.problems)
        except BaseException:
            failed = True
            raise
        finally:
            nodes.end(nodes.network.members, kill=True)
            nodes.end_proxy()
            if failed:
                console.print(f"the nodes' logs and data are kept in {layout.directory}")
            else:
                shutil.rmtree(layout.directory, ignore_errors=True)
    return outcomes


async def _perform(
    layout: Layout, nodes: Nodes, schedules: list[Schedule], bound_s: float, console: Console
) -> list[Outcome]:
    """The outcomes until the first that failed: what comes after it would say nothing of the network."""
    wiring = nodes.wiring
    if wiring is None:
        raise TestnetError(f"{layout.directory} was founded without a proxy")
    traffic = await Session(layout, nodes, console).prepare_traffic()
    rehearsal = Rehearsal(layout, nodes, wiring, traffic, bound_s)
    outcomes: list[Outcome] = []
    try:
        for schedule in schedules:
            outcomes.append(await rehearsal.perform(schedule))
            show.outcome_line(console, outcomes[-1])
            if outcomes[-1].problems:
                break
    finally:
        await rehearsal.close()
    return outcomes


def main() -> int:
    """Run one command line; every expected failure is one line on stderr."""
    processes.end_on_sigterm()
    try:
        cli.main(prog_name="scripts/chaos", standalone_mode=False)
    except TestnetError as error:
        return _failed(str(error), error.exit_code)
    except HansaError as error:
        return _failed(f"{error}. {error.entry.action}", error.exit_code)
    except click.ClickException as error:
        return _failed(f"{error.format_message()} (scripts/chaos --help)", 2)
    except (KeyboardInterrupt, click.Abort):
        return _failed("interrupted", 130)
    return 0


def _failed(message: str, exit_code: int) -> int:
    click.echo(f"chaos: {message}", err=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
