"""The command `scripts/testnet`: a network of real nodes on this machine (DESIGN §8 fixes its interface)."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click
import msgspec
from rich.console import Console

from node.config import load_node
from node.errors import HansaError
from scripts.localnet import show
from scripts.localnet.datasets import DataError
from scripts.localnet.founding import found, read_parameters, require_parameters
from scripts.localnet.generator import Shape
from scripts.localnet.layout import ROOT, Layout, Member, TestnetError
from scripts.localnet.nodes import Nodes, node_status
from scripts.localnet.numbers import Number, Whole
from scripts.localnet.open_loop import LoadReport
from scripts.localnet.replay import SAMPLE_CLAIMS, SAMPLE_PAYMENTS
from scripts.localnet.session import Loaded, Session
from scripts.localnet.wiring import DELAY_MS_MAX, State, Way

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_DIRECTORY = ROOT / "testnet"
NODES_DEFAULT = 4
NOT_RUNNING = "was not running"
FILE_COLUMNS = 110
"""Tables in a file or pipe are this wide."""


def directory_option(command: F) -> F:
    """--dir, as `layout`."""
    return click.option(
        "--dir",
        "layout",
        type=click.Path(path_type=Path, file_okay=False),
        default=DEFAULT_DIRECTORY,
        callback=lambda _context, _parameter, value: Layout(value),
        help="Where the network lies (default: testnet/ in the repository).",
    )(command)


def json_option(command: F) -> F:
    """--json, as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")(command)


def founding_options(command: F) -> F:
    """--nodes, --base-port and --parameter, for a network that is founded by this command."""
    nodes = click.option("--nodes", type=Whole(1, 16), help=f"How many (default {NODES_DEFAULT}).")
    port = click.option("--base-port", type=Whole(1024, 65_000), default=7600, show_default=True)
    parameter = click.option(
        "--parameter",
        "parameters",
        multiple=True,
        metavar="NAME=VALUE",
        help="Found it with this parameter of network.toml; again for others.",
    )
    return nodes(port(parameter(command)))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Run a whole network on this machine: real nodes, real data."""


@cli.command()
@founding_options
@directory_option
@click.option("--detach", is_flag=True, help="Return when it is up; end it with: scripts/testnet down.")
@click.option(
    "--proxied", is_flag=True, help="Found it so that links can be cut and slowed (scripts/testnet link)."
)
@click.option(
    "--load",
    "transfers_max",
    type=Whole(0),
    metavar="N",
    help="Load N of the sample's transfers (0: none).",
)
@json_option
def up(
    nodes: int | None,
    base_port: int,
    parameters: Sequence[str],
    layout: Layout,
    detach: bool,
    proxied: bool,
    transfers_max: int | None,
    as_json: bool,
) -> None:
    """Found or restart a network, load the sample once, and show where everybody stands."""
    console = _console(as_json)
    running = _run_nodes(layout, nodes, base_port, parameters, console, proxied=proxied)
    try:
        loaded = Session(layout, running, console).load(SAMPLE_PAYMENTS, SAMPLE_CLAIMS, transfers_max, singles=0)
        _show_loaded(console, layout, loaded, as_json)
        if not detach:
            console.print("Ctrl-C stops the nodes.")
            _wait_for_interrupt()
    except BaseException:
        if not detach:
            _stop(running, console)
        raise
    if not detach:
        _stop(running, console)
    if not loaded.ok:
        sys.exit(1)


@cli.command()
@click.option("--payments", type=click.Path(path_type=Path, dir_okay=False), required=True, help="transactions.csv")
@click.option("--claims", type=click.Path(path_type=Path, dir_okay=False), required=True, help="ausautoBI8999.csv")
@click.option(
    "--singles", type=Whole(0), default=10_000, show_default=True, help="Transactions of one call besides."
)
@founding_options
@directory_option
@json_option
def replay(
    payments: Path,
    claims: Path,
    singles: int,
    nodes: int | None,
    base_port: int,
    parameters: Sequence[str],
    layout: Layout,
    as_json: bool,
) -> None:
    """Load the full files into the network (founded if need be), and compare the ledger with a plain loop."""
    console = _console(as_json)
    running = _run_nodes(layout, nodes, base_port, parameters, console)
    loaded = Session(layout, running, console).load(payments.absolute(), claims.absolute(), None, singles)
    _show_loaded(console, layout, loaded, as_json)
    if not loaded.ok:
        sys.exit(1)


@cli.command()
@directory_option
@json_option
def status(layout: Layout, as_json: bool) -> None:
    """Where each node stands."""
    rows = Nodes(layout).statuses()
    if as_json:
        _document({"members": rows})
    else:
        show.status_table(_console(as_json), rows)


@cli.command()
@directory_option
@json_option
def audit(layout: Layout, as_json: bool) -> None:
    """Read every balance and payout back, and compare them with supply and with what was loaded."""
    console = _console(as_json)
    checked = Session(layout, Nodes(layout), console).check()
    _show_loaded(console, layout, checked, as_json)
    if not checked.ok:
        sys.exit(1)


@cli.command()
@click.argument("node", required=False)
@directory_option
def start(node: str | None, layout: Layout) -> None:
    """Start the node, or all that are not running, and return when they answer."""
    running = Nodes(layout)
    chosen = _chosen(running, node)
    for member in chosen:
        if not running.runs(member):
            # A mistake in a configuration is told as what it is, and not as a node that ended.
            load_node(layout.node_file(member.id))
    started = running.start(chosen)
    running.wait_answers(started)
    pids = {member.id: member.pid for member in started}
    for member in chosen:
        _say(member, f"started, pid {pids[member.id]}" if member.id in pids else "runs already")


@cli.command()
@click.argument("node", required=False)
@directory_option
def stop(node: str | None, layout: Layout) -> None:
    """Stop the node, or all, in good order."""
    running = Nodes(layout)
    _end(running, _chosen(running, node), kill=False)


@cli.command()
@click.argument("node", required=False)
@directory_option
def kill(node: str | None, layout: Layout) -> None:
    """Kill the node, or all, as a power cut would (SIGKILL)."""
    running = Nodes(layout)
    _end(running, _chosen(running, node), kill=True)


@cli.command()
@click.argument("node")
@click.option("--force", is_flag=True, help="Even if the network may then never make a block again.")
@directory_option
def wipe(node: str, force: bool, layout: Layout) -> None:
    """Kill the node, delete its data (not its keys), start it again, and return when it answers.

    Refused while so many others abstain that fewer than a quorum might be left with a memory of their votes.
    """
    running = Nodes(layout)
    member = running.network.member(node)
    if not force:
        _require_memory(running, member)
    started = running.wipe(member)
    running.wait_answers([started])
    _say(started, f"wiped and started again, pid {started.pid}")


@cli.command()
@click.argument("node")
@directory_option
def pause(node: str, layout: Layout) -> None:
    """Stop the node's process where it stands, its connections open (SIGSTOP)."""
    running = Nodes(layout)
    member = running.network.member(node)
    _say(member, "paused" if running.pause(member) else NOT_RUNNING)


@cli.command()
@click.argument("node")
@directory_option
def resume(node: str, layout: Layout) -> None:
    """Let a paused node go on."""
    running = Nodes(layout)
    member = running.network.member(node)
    _say(member, "goes on" if running.resume(member) else NOT_RUNNING)


@cli.command()
@click.argument("first", required=False)
@click.argument("second", required=False)
@click.option("--cut", "state", flag_value="cut", help="Reset the connection, and every new one.")
@click.option(
    "--hole", "state", flag_value="hole", help="Let nothing arrive and tell nobody, as if packets were lost."
)
@click.option("--open", "state", flag_value="open", help="Let everything arrive.")
@click.option("--one-way", is_flag=True, help="Only what FIRST sends.")
@click.option(
    "--delay",
    "delay_ms",
    type=Whole(0, DELAY_MS_MAX),
    default=0,
    metavar="MS",
    help="Let it arrive later.",
)
@directory_option
@json_option
def link(
    first: str | None,
    second: str | None,
    state: State | None,
    one_way: bool,
    delay_ms: int,
    layout: Layout,
    as_json: bool,
) -> None:
    """Cut, slow or heal the links of a network that was founded with `up --proxied`, and show them.

    With FIRST and SECOND: the link between the two nodes. With FIRST alone: all its links. With neither: all links.
    Without an option nothing is changed.
    """
    running = Nodes(layout)
    wiring = running.wiring
    if wiring is None:
        raise TestnetError(
            f"{layout.directory} holds a network whose nodes reach each other directly; "
            "found one in another --dir: scripts/testnet up --proxied"
        )
    if one_way and first is None:
        raise TestnetError("--one-way needs to know whose way: name FIRST")
    for name in (first, second):
        if name is not None:
            running.network.member(name)
    ways = [
        Way(sender, receiver, state or "open", delay_ms)
        for pair in wiring.pairs
        for sender, receiver in (pair, pair[::-1])
        if (state is not None or delay_ms)
        and {first, second} - {None} <= {sender, receiver}
        and not (one_way and sender != first)
    ]
    known = wiring.set(*ways)
    if as_json:
        _document({"ways": known})
    else:
        show.ways_table(_console(as_json), known)


@cli.command()
@click.argument("node", required=False)
@click.option("--lines", type=Whole(1), default=20, show_default=True)
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")
@directory_option
def logs(node: str | None, lines: int, follow: bool, layout: Layout) -> NoReturn:
    """The last lines that the node wrote, or all nodes."""
    files = [str(layout.log_file(member.id)) for member in _chosen(Nodes(layout), node)]
    os.execvp("tail", ["tail", "-n", str(lines), *(["-F"] if follow else []), *files])


@cli.command()
@click.option("--delete", is_flag=True, help="And delete the directory with everything in it.")
@directory_option
def down(delete: bool, layout: Layout) -> None:
    """Stop all nodes. Their data stays, and `up` goes on with it."""
    running = Nodes(layout)
    running.end(running.network.members, kill=False)
    running.end_proxy()
    if delete:
        shutil.rmtree(layout.directory)


@cli.command()
@click.option("--rate", type=Number(0.1), default=200.0, show_default=True, help="Transactions a second.")
@click.option("--seconds", type=Number(0.1, 3600), default=10.0, show_default=True)
@click.option("--calls", type=Whole(1, 10_000), default=1, show_default=True, help="Calls a transaction.")
@click.option("--batch", type=Whole(1, 5_000), help="Transactions a request (default 50; 1 with several calls).")
@directory_option
@json_option
def load(rate: float, seconds: float, calls: int, batch: int | None, layout: Layout, as_json: bool) -> None:
    """Send signed transfers to the nodes in turn, each at its time, and report when all are final."""
    console = _console(as_json)
    per_request = batch or (50 if calls == 1 else 1)
    shape = Shape(rate, seconds, calls, max(1, min(per_request, round(rate * seconds))))
    report: LoadReport = asyncio.run(Session(layout, Nodes(layout), console).traffic(shape))
    if as_json:
        _document(report)
    else:
        show.load_report(console, report)
    if report.without_fate or report.final < report.sent:
        sys.exit(1)


def _run_nodes(
    layout: Layout,
    count: int | None,
    base_port: int,
    parameters: Sequence[str],
    console: Console,
    *,
    proxied: bool = False,
) -> Nodes:
    """The network of the directory, founded if there is none, with all nodes running and agreeing."""
    if layout.exists():
        known = len(layout.load().members)
        if count is not None and count != known:
            raise TestnetError(f"{layout.directory} holds a network of {known} nodes, not {count}")
        require_parameters(layout, parameters)
        if proxied and not layout.proxy_file.exists():
            raise TestnetError(
                f"{layout.directory} holds a network that was founded without --proxied; take another --dir"
            )
    else:
        chosen = read_parameters(parameters)
        console.print(f"founding a network of {count or NODES_DEFAULT} nodes in {layout.directory}")
        found(layout, count or NODES_DEFAULT, base_port, proxied=proxied, parameters=chosen)
    running = Nodes(layout)
    started = running.start(running.network.members)
    with console.status("waiting until all nodes agree") as waiting:
        running.wait_agreement(on_wait=lambda why: waiting.update(f"waiting until all nodes agree: {why}"))
    console.print(f"{len(started)} nodes started; all {len(running.network.members)} agree")
    return running


def _show_loaded(console: Console, layout: Layout, loaded: Loaded, as_json: bool) -> None:
    if as_json:
        _document(loaded)
    if loaded.figures is not None:
        show.figures_table(console, loaded.figures)
    if loaded.audit is None:
        show.status_table(console, loaded.members)
    else:
        show.result_table(console, loaded.members, loaded.audit)
    show.places(console, loaded.members, layout.directory)


def _chosen(running: Nodes, node: str | None) -> Sequence[Member]:
    return running.network.members if node is None else [running.network.member(node)]


def _require_memory(running: Nodes, wiped: Member) -> None:
    """Raise TestnetError where, with this member wiped, more may have lost their memory than the network bears."""
    members = running.network.members
    answers = {member.id: node_status(member) for member in members if member.id != wiped.id}
    silent = [name for name, answer in answers.items() if answer is not None and not answer.voting]
    disks_lost_max = (len(members) - 1) // 3
    if silent and len(silent) >= disks_lost_max:
        verb = "abstains" if len(silent) == 1 else "abstain"
        raise TestnetError(
            f"{' and '.join(silent)} {verb} from voting; with {wiped.id} wiped too, fewer than a quorum may"
            " remember their votes, and then no block is ever made again. Wait until it votes (`hansa sync`),"
            " or say --force"
        )


def _end(running: Nodes, members: Sequence[Member], *, kill: bool) -> None:
    """None of the members runs, and one line for each has said so."""
    ended = {member.id for member in running.end(members, kill=kill)}
    for member in members:
        _say(member, ("killed" if kill else "stopped") if member.id in ended else NOT_RUNNING)


def _say(member: Member, what: str) -> None:
    """One line for people; stdout is for documents."""
    click.echo(f"{member.id}: {what}", err=True)


def _stop(running: Nodes, console: Console) -> None:
    console.print("stopping the nodes")
    running.end(running.network.members, kill=False)
    running.end_proxy()


def _wait_for_interrupt() -> None:
    """Return at Ctrl-C or SIGTERM."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        signal.pause()
    except KeyboardInterrupt:
        return


def _console(as_json: bool) -> Console:
    """Where people read: stderr when stdout carries a document."""
    console = Console(stderr=as_json, highlight=False)
    if not console.is_terminal:
        console.width = FILE_COLUMNS
    return console


def _document(value: object) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")


def main() -> int:
    """Run one command line; every expected failure is one line on stderr."""
    try:
        cli.main(prog_name="scripts/testnet", standalone_mode=False)
    except TestnetError as error:
        return _failed(str(error), error.exit_code)
    except DataError as error:
        return _failed(str(error), 2)
    except HansaError as error:
        stop = "" if str(error).endswith((".", "?", "!")) else "."
        return _failed(f"{error}{stop} {error.entry.action}", error.exit_code)
    except click.ClickException as error:
        return _failed(f"{error.format_message()} (scripts/testnet --help)", 2)
    except (KeyboardInterrupt, click.Abort):
        return _failed("interrupted", 130)
    return 0


def _failed(message: str, exit_code: int) -> int:
    click.echo(f"testnet: {message}", err=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
