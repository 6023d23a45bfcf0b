"""`hansa sync`: looks on while a node catches up, until it stands where the network does and votes.

Invariant: it never returns 0 for a validator that abstains. A member without its memory counts as one that is away,
so whoever restores or wipes the next one by this exit code would take away the quorum's memory, and for good.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from node.cli.options import Directory, connect, node_option, output_option
from node.cli.output import Output, message
from node.client import Client
from node.client.answers import NodeStatus, SyncStatus
from node.diagnosis.wording import duration, size
from node.errors import Unavailable
from node.wording import counted

POLL_S = 0.5
LINE_S = 5.0
"""Where no person looks on, so often a line tells how far it is."""
VALIDATOR = "validator"
HOPELESS = frozenset({"key_twice", "memory_gone", "other_key"})
"""Causes of the table of `hansa why` that no waiting ends."""
AWAY_S_MAX = 15.0
"""A node that joins from a snapshot starts itself anew on it; for so long it may not answer."""


@click.command()
@node_option
@output_option
def sync(nodes: Sequence[str], directory: Directory, output: Output) -> None:
    """Wait until the node has caught up with the network and votes; show how far it is, as a bar or in lines.

    An observer has no vote to wait for. Of a member that will not vote again by itself it says so and exits with 4.
    Ends at once where nothing is missing. With --json the node's status is printed at the end as one document, with
    `sync` in it; the bar goes to stderr.
    """
    with connect(nodes, directory) as client, _shown() as show:
        answer = _watched(client, show)
    if output.as_json:
        output.document(answer)
        return
    votes = " and votes" if answer.voting else ""
    output.text(f"caught up: {answer.member} is at height {answer.height}{votes}")
    output.facts(sync_facts(answer))


def sync_facts(answer: NodeStatus) -> list[tuple[str, object]]:
    """What of catch-up an operator wants to read, in `hansa status` too; nothing where there is nothing to tell."""
    now = answer.sync
    if now is None:
        return []
    rows: list[tuple[str, object]] = []
    if answer.network_height > answer.height:
        rows.append(("network", f"at height {answer.network_height}, by what others say"))
    if now.running:
        rows.append(("catching up", f"to {now.target}: {_line(now)}"))
        rows += [("", f"{peer.id} sends {peer.first} to {peer.last}") for peer in now.asked]
        rows += [("", f"{peer.id} is left out: {peer.reason}") for peer in now.left_out]
    elif now.blocks:
        rows.append(("caught up", f"{counted(now.blocks, 'block')}, {size(now.bytes)} since its start"))
    if now.problem is not None:
        rows.append(("", now.problem))
    return rows


def _watched(client: Client, show: Callable[[NodeStatus], None]) -> NodeStatus:
    """The node's status once it has caught up and votes, as far as it has a vote.

    Raise Unavailable for a node that does not answer for long, and for one that never votes again by itself.
    """
    answered_s = time.monotonic()
    while True:
        try:
            answer = client.status()
        except Unavailable:
            if time.monotonic() - answered_s > AWAY_S_MAX:
                raise
        else:
            answered_s = time.monotonic()
            if _caught_up(answer):
                if answer.voting or answer.role != VALIDATOR:
                    return answer
                _require_hope(client, answer)
            show(answer)
        time.sleep(POLL_S)


def _caught_up(answer: NodeStatus) -> bool:
    return answer.sync is None or (answer.sync.caught_up and answer.joining is None)


def _require_hope(client: Client, answer: NodeStatus) -> None:
    """Return when the vote of a node that has caught up may come back by itself, else raise Unavailable."""
    for culprit in client.why().culprits:
        if culprit.member == answer.member and culprit.cause in HOPELESS:
            why = f"{answer.member} has caught up and does not vote again by itself"
            raise Unavailable("not_ready", f"{why}: {culprit.sentence}")


@contextmanager
def _shown() -> Iterator[Callable[[NodeStatus], None]]:
    """Give what shows one status after the other on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines().show
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None, told="")

        def show(answer: NodeStatus) -> None:
            bar.update(task, **_bar(answer))  # type: ignore[arg-type]

        yield show


class _Lines:
    """A line now and then."""

    def __init__(self) -> None:
        self._due_s = 0.0

    def show(self, answer: NodeStatus) -> None:
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + LINE_S
            now = _bar(answer)
            message(f"hansa: {now['description']} {now['completed']} of {now['total']} {now['told']}")
            sys.stderr.flush()


def _bar(answer: NodeStatus) -> dict[str, str | int]:
    joining, now = answer.joining, answer.sync
    if joining is not None:
        mib = 1024 * 1024
        told = f"of the snapshot of height {joining.height}, {size(joining.bytes_per_s)}/s"
        done, total = joining.size_bytes // mib, joining.size_bytes_total // mib
        return {"description": f"{joining.step}, MiB", "completed": done, "total": total, "told": told}
    if now is None or not now.running:
        told = "; ".join(answer.reasons) or "waiting to hear from the others"
        return {
            "description": "caught up, awaiting its vote: height" if _caught_up(answer) else "height",
            "completed": answer.height,
            "total": max(answer.network_height, 1),
            "told": told,
        }
    return {"description": "height", "completed": now.height, "total": now.target, "told": _line(now)}


def _line(now: SyncStatus) -> str:
    """Rates and what is left, in a few words."""
    left = "" if now.eta_ms is None else f", {duration(now.eta_ms)} left"
    problem = "" if now.problem is None else f" ({now.problem})"
    return f"{now.blocks_per_s:g} blocks/s, {now.transactions_per_s:g} transactions/s{left}{problem}"
