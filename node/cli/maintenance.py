"""`hansa maintenance`: a member books when its node rests, and its turns as primary are skipped meanwhile."""

import datetime
import time
from collections.abc import Sequence
from pathlib import Path

import click

from node.cli.acting import act, as_option, event_data, exit_code, key_option, signed
from node.cli.options import Directory, Duration, connect, node_option, output_option
from node.cli.output import Output
from node.diagnosis.wording import moment
from node.errors import ConfigError

at_option = click.option("--at", metavar="TIME", help="When it begins, as 2026-11-23T22:00Z.")
in_option = click.option(
    "--in", "in_ms", type=Duration(unit_required=True), help="In how long it begins (default: now)."
)
for_option = click.option(
    "--for", "for_ms", type=Duration(unit_required=True), required=True, help="How long it lasts, at most 24h."
)


@click.group()
def maintenance() -> None:
    """The members' calendar of maintenance windows.

    In its window a member's turn as primary goes to another. It keeps its vote, and votes if its node is up.
    """


@maintenance.command()
@at_option
@in_option
@for_option
@click.option("--reason", default="", help="For the other members, on the ledger.")
@as_option
@key_option
@node_option
@output_option
def book(
    at: str | None,
    in_ms: int | None,
    for_ms: int,
    reason: str,
    sender: str | None,
    keys: Sequence[Path],
    nodes: Sequence[str],
    directory: Directory,
    output: Output,
) -> int:
    """Book a window for the member's own node; refused where too few others would be left for a quorum."""
    from_ms = _start(at, in_ms)
    with connect(nodes, directory) as client:
        args = {"from_ms": from_ms, "until_ms": from_ms + for_ms, "reason": reason}
        fate = act(client, signed(client, "maintenance.book", args, sender, keys, directory), output)
    if fate is not None and not output.as_json:
        found = event_data(fate, "Booked")
        output.text(f"Window {found['window']}: {moment(found['from_ms'])} to {moment(found['until_ms'])}.")
    return exit_code(fate)


@maintenance.command()
@click.argument("number", type=click.IntRange(min=1))
@at_option
@in_option
@for_option
@as_option
@key_option
@node_option
@output_option
def move(
    number: int,
    at: str | None,
    in_ms: int | None,
    for_ms: int,
    sender: str | None,
    keys: Sequence[Path],
    nodes: Sequence[str],
    directory: Directory,
    output: Output,
) -> int:
    """Give the member's window NUMBER other times; where it has begun, --for alone counts, from its beginning."""
    with connect(nodes, directory) as client:
        known = client.query("maintenance.window", {"window": number}).value
        from_ms = known["from_ms"] if known["on"] and at is None and in_ms is None else _start(at, in_ms)
        args = {"window": number, "from_ms": from_ms, "until_ms": from_ms + for_ms}
        fate = act(client, signed(client, "maintenance.move", args, sender, keys, directory), output)
    if fate is not None and not output.as_json:
        found = event_data(fate, "Booked")
        output.text(f"Window {number}: {moment(found['from_ms'])} to {moment(found['until_ms'])}.")
    return exit_code(fate)


@maintenance.command()
@click.argument("number", type=click.IntRange(min=1))
@as_option
@key_option
@node_option
@output_option
def cancel(
    number: int,
    sender: str | None,
    keys: Sequence[Path],
    nodes: Sequence[str],
    directory: Directory,
    output: Output,
) -> int:
    """Take the member's window NUMBER out of the calendar; if it is on, the member has its turns again."""
    with connect(nodes, directory) as client:
        transaction = signed(client, "maintenance.cancel", {"window": number}, sender, keys, directory)
        fate = act(client, transaction, output)
    if fate is not None and not output.as_json:
        output.text(f"Window {number} is cancelled.")
    return exit_code(fate)


@maintenance.command(name="list")
@node_option
@output_option
def calendar(nodes: Sequence[str], directory: Directory, output: Output) -> None:
    """The windows that are not over, by their beginning."""
    with connect(nodes, directory) as client:
        rows = client.query("maintenance.calendar").value
    if output.as_json:
        output.document({"windows": rows})
        return
    output.table(
        ["window", "member", "from", "until", "on", "reason"],
        [
            [
                row["number"],
                row["member"],
                moment(row["from_ms"]),
                moment(row["until_ms"]),
                row["on"],
                row["reason"],
            ]
            for row in rows
        ],
    )


def _start(at: str | None, in_ms: int | None) -> int:
    if at is None:
        return time.time_ns() // 1_000_000 + (in_ms or 0)
    if in_ms is not None:
        raise ConfigError("invalid_usage", "give --at or --in, not both")
    try:
        when = datetime.datetime.fromisoformat(at)
    except ValueError as error:
        raise ConfigError("invalid_usage", f"{at!r} is no time: write 2026-11-23T22:00Z") from error
    if when.tzinfo is None:
        raise ConfigError("invalid_usage", f"{at!r} names no time zone: write {at}Z for UTC")
    return int(when.timestamp()) * 1_000
