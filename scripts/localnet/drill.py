"""The command `scripts/drill`: rehearse a lost disk on a test network, and write what was measured.

A network of its own is founded and loaded; one member is backed up while it works, loses its disk, is restored from
the backup and votes again. For comparison another member loses its disk and joins from its peers alone. The load
goes on all the time, and in the end every transaction of it must be final.
"""

import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

import click
import msgspec
from rich.console import Console

from node.backup import Backup, BackupReport
from node.client import Client
from node.config import load_node
from node.errors import HansaError
from node.verification import verify_directory
from scripts.localnet import processes
from scripts.localnet.exercise import Exercise, Recovery
from scripts.localnet.founding import found
from scripts.localnet.layout import ROOT, Layout, Member, TestnetError
from scripts.localnet.nodes import Nodes, node_status
from scripts.localnet.numbers import Number, Whole
from scripts.localnet.steady import SteadyLoad, SteadyReport

BEHIND_BLOCKS = 5
"""So many blocks are decided after the last backup before the disk is lost."""
POLL_S = 0.05


class DrillReport(msgspec.Struct, frozen=True):
    """What `--json` prints and the report tells. `problems` say what was not as it should be."""

    ok: bool
    machine: str
    nodes: int
    rate_per_s: float
    bound_s: float
    seconds: float
    backups: list[BackupReport]
    recoveries: list[Recovery]
    load: SteadyReport | None
    verified: bool
    problems: list[str]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--nodes", "count", type=Whole(4, 16), default=4, show_default=True)
@click.option("--rate", type=Number(1, 2000), default=50.0, show_default=True, help="Transactions a second.")
@click.option(
    "--warm-up",
    "warm_up_s",
    type=Number(0, 3600),
    default=10.0,
    show_default=True,
    help="Seconds of load before the first backup: how much ledger there is to recover.",
)
@click.option(
    "--bound",
    "bound_s",
    type=Number(5, 3600),
    default=120.0,
    show_default=True,
    help="Seconds from the loss until the member has to vote again.",
)
@click.option("--base-port", type=Whole(1024, 65_000), default=8600, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/drill"),
    show_default=True,
    help="Where report.md and report.json are written.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON document on stdout.")
def cli(
    count: int, rate: float, warm_up_s: float, bound_s: float, base_port: int, out: Path, as_json: bool
) -> None:
    """Back a member up under load, destroy its disk, restore it; measure until it votes again, and what was lost.

    Exits 0 when both members came back in time and nothing was lost; 1 otherwise. The report says what it took.
    """
    console = Console(stderr=True, highlight=False)
    report = rehearse(count, rate, warm_up_s, bound_s, base_port, console)
    out.mkdir(parents=True, exist_ok=True)
    document = msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"
    (out / "report.json").write_text(document)
    (out / "report.md").write_text(markdown(report))
    if as_json:
        sys.stdout.write(document)
    else:
        click.echo(markdown(report))
    console.print(f"written: {out / 'report.md'}, {out / 'report.json'}")
    if not report.ok:
        sys.exit(1)


def rehearse(
    count: int, rate: float, warm_up_s: float, bound_s: float, base_port: int, console: Console
) -> DrillReport:
    """Return what was measured on a network that was founded for it; it is deleted unless something went wrong."""
    place = ROOT / "build"
    place.mkdir(exist_ok=True)
    layout = Layout(Path(tempfile.mkdtemp(prefix="drill-", dir=place)))
    found(layout, count, base_port)
    nodes = Nodes(layout)
    ok = False
    try:
        nodes.start(nodes.network.members)
        nodes.wait_agreement()
        report = _Drill(layout, nodes, rate, warm_up_s, bound_s, console).run()
        ok = report.ok
        return report
    finally:
        nodes.end(nodes.network.members, kill=False)
        if ok:
            shutil.rmtree(layout.directory, ignore_errors=True)
        else:
            console.print(f"logs and data are kept in {layout.directory}")


class _Drill:
    def __init__(
        self, layout: Layout, nodes: Nodes, rate: float, warm_up_s: float, bound_s: float, console: Console
    ) -> None:
        self._layout = layout
        self._nodes = nodes
        self._rate = rate
        self._warm_up_s = warm_up_s
        self._bound_s = bound_s
        self._console = console
        self._backup = layout.directory / "backup"

    def run(self) -> DrillReport:
        """Both recoveries were done while the load went on."""
        started = time.monotonic()
        problems: list[str] = []
        backups: list[BackupReport] = []
        recoveries: list[Recovery] = []
        load = SteadyLoad(self._layout, self._nodes, self._rate, self._console)
        figures: SteadyReport | None = None
        try:
            load.start()
            self._recover(load, backups, recoveries)
            figures = load.finish()
        except TestnetError as error:
            problems.append(str(error))
        except HansaError as error:
            problems.append(f"{error}. {error.entry.action}")
        problems += [f"{found.member}: its ledger lacks blocks or differs" for found in recoveries if not found.ok]
        if figures is not None and figures.lost:
            problems.append("not every transaction of the load became final")
        verified = not problems and self._verify(problems)
        return DrillReport(
            ok=not problems,
            machine=f"{platform.machine()}, {platform.system()} {platform.release()}",
            nodes=len(self._nodes.network.members),
            rate_per_s=self._rate,
            bound_s=self._bound_s,
            seconds=round(time.monotonic() - started, 1),
            backups=backups,
            recoveries=recoveries,
            load=figures,
            verified=verified,
            problems=problems,
        )

    def _recover(self, load: SteadyLoad, backups: list[BackupReport], recoveries: list[Recovery]) -> None:
        victim, other = self._nodes.network.members[-1], self._nodes.network.members[-2]
        exercise = Exercise(self._layout, self._nodes, self._bound_s)
        load.wait(self._warm_up_s)
        backups.append(self._back_up(victim))
        self._await_blocks(victim, BEHIND_BLOCKS)
        backups.append(self._back_up(victim))
        self._await_blocks(victim, BEHIND_BLOCKS)
        self._console.print(
            f"{victim.id} loses its disk; restoring it from the backup of height {backups[-1].height}"
        )
        recoveries.append(exercise.restore(victim, self._backup, backups[-1].height))
        self._console.print(f"{other.id} loses its disk and joins from its peers")
        recoveries.append(exercise.join(other))

    def _back_up(self, member: Member) -> BackupReport:
        """The member is backed up while it works."""
        node_file = self._layout.node_file(member.id)
        with Client(member.api, patience_s=10.0) as client:
            work = Backup(node_file, client, self._backup, lambda what, done, total: None)
            report = work.run(snapshot=False, snapshot_blocks=10_000, keys=False)
        self._console.print(f"backup of {member.id}: height {report.height}, {report.took_ms} ms")
        return report

    def _await_blocks(self, member: Member, count: int) -> None:
        """So many more blocks were decided."""
        deadline = time.monotonic() + self._bound_s
        first = None
        while True:
            status = node_status(member)
            first = status.height if first is None and status is not None else first
            if status is not None and first is not None and status.height >= first + count:
                return
            if time.monotonic() > deadline:
                raise TestnetError(f"{member.id} applies no blocks under load", exit_code=1)
            time.sleep(POLL_S)

    def _verify(self, problems: list[str]) -> bool:
        """The restored member's whole ledger is right, executed again as far as it goes."""
        self._nodes.wait_agreement()
        victim = self._nodes.network.members[-1]
        self._nodes.end([victim], kill=False)
        report = verify_directory(load_node(self._layout.node_file(victim.id)))
        if not report.ok:
            problems.append(f"{victim.id} after its recovery: {report.first_error}")
        return report.ok


def markdown(report: DrillReport) -> str:
    """The report for people."""
    load = report.load
    lines = [
        "# Recovery exercise",
        "",
        f"{'Passed' if report.ok else 'FAILED'}: {report.nodes} nodes, {report.rate_per_s:g} transactions a second "
        f"offered all the time, {report.seconds:g} s in all ({report.machine}).",
        "",
        "| | " + " | ".join(found.way for found in report.recoveries) + " |",
        "|---|" + "---|" * len(report.recoveries),
    ]
    rows: list[tuple[str, list[object]]] = [
        ("member", [found.member for found in report.recoveries]),
        ("head of the lost disk", [found.lost_height for found in report.recoveries]),
        ("height of the backup", [found.backup_height or "–" for found in report.recoveries]),
        ("data directory made (s after the loss)", [found.restored_s or "–" for found in report.recoveries]),
        ("answers (s)", [found.answers_s for found in report.recoveries]),
        ("has caught up (s)", [found.caught_up_s for found in report.recoveries]),
        ("**votes again: recovery time, RTO (s)**", [found.voting_s for found in report.recoveries]),
        ("**blocks lost, RPO**", [found.lost_blocks for found in report.recoveries]),
        ("**transactions lost, RPO**", [found.lost_transactions for found in report.recoveries]),
        ("blocks that the backup alone lacks", [found.backup_alone_lost_blocks for found in report.recoveries]),
        (
            "transactions that the backup alone lacks",
            [found.backup_alone_lost_transactions for found in report.recoveries],
        ),
    ]
    lines += [f"| {name} | " + " | ".join(str(value) for value in values) + " |" for name, values in rows]
    lines += ["", "| backup | blocks | snapshot | bytes added | ms |", "|---|---|---|---|---|"]
    for number, made in enumerate(report.backups, 1):
        snapshot = f"{made.snapshot_height}{' (new)' if made.new_snapshot else ''}"
        lines.append(
            f"| {number} | {made.blocks} new, to {made.height} | {snapshot} "
            f"| {made.added_bytes:,} | {made.took_ms:,} |"
        )
    lines.append("")
    if load is not None:
        lines.append(
            f"Load: {load.sent:,} transactions sent in {load.seconds:g} s, {load.final:,} final, {load.lost} lost; "
            f"the longest wait for a fate, by a client that asks the next node, was {load.longest_s:g} s."
        )
    verified = "judged right by `hansa verify`" if report.verified else "not judged"
    lines.append(f"The restored ledger was {verified}. A member had to vote again within {report.bound_s:g} s.")
    lines += [f"- **{problem}**" for problem in report.problems]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run one command line; every expected failure is one line on stderr."""
    processes.end_on_sigterm()
    try:
        cli.main(prog_name="scripts/drill", standalone_mode=False)
    except TestnetError as error:
        return _failed(str(error), error.exit_code)
    except HansaError as error:
        return _failed(f"{error}. {error.entry.action}", error.exit_code)
    except click.ClickException as error:
        return _failed(f"{error.format_message()} (scripts/drill --help)", 2)
    except (KeyboardInterrupt, click.Abort):
        return _failed("interrupted", 130)
    return 0


def _failed(message: str, exit_code: int) -> int:
    click.echo(f"drill: {message}", err=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
