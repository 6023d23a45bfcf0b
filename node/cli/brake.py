"""`hansa brake`: two members together stop an account, a currency, a method or a member, for a while."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from node.cli.acting import act, as_option, event_data, exit_code, key_option, signed
from node.cli.options import Directory, Duration, connect, node_option, output_option
from node.cli.output import Output
from node.cli.paging import numbered_rows
from node.client import Client
from node.diagnosis.wording import moment, names
from node.errors import ConfigError

SCOPES = ("account", "currency", "method", "member")


@click.group()
def brake() -> None:
    """The emergency brake: scoped, pulled by two members together, and it ends by itself.

    It stops transactions, and never a member's vote.
    """


@brake.command()
@click.argument("scope", type=click.Choice(SCOPES))
@click.argument("subject")
@click.option(
    "--for",
    "for_ms",
    type=Duration(unit_required=True),
    default="1h",
    show_default=True,
    help="At most 6h, from now on.",
)
@click.option("--reason", required=True, help="For the other members, on the ledger.")
@as_option
@key_option
@node_option
@output_option
def ask(
    scope: str,
    subject: str,
    for_ms: int,
    reason: str,
    sender: str | None,
    keys: Sequence[Path],
    nodes: Sequence[str],
    directory: Directory,
    output: Output,
) -> int:
    """Ask for a brake on SUBJECT: ACC-1, EUR, settlement.transfer or bank-a. Another member confirms it in time."""
    until_ms = time.time_ns() // 1_000_000 + for_ms
    with connect(nodes, directory) as client:
        _require_subject(client, scope, subject)
        args = {"what": f"{scope}/{subject}", "until_ms": until_ms, "reason": reason}
        fate = act(client, signed(client, "brake.ask", args, sender, keys, directory), output)
    if fate is not None and not output.as_json:
        number = event_data(fate, "Asked")["brake"]
        output.text(
            f"Brake {number} on {scope} {subject} until {moment(until_ms)}: nothing is stopped yet. "
            f"Another member, within 15 minutes: hansa brake confirm {number}"
        )
    return exit_code(fate)


@brake.command()
@click.argument("number", type=click.IntRange(min=1))
@as_option
@key_option
@node_option
@output_option
def confirm(
    number: int,
    sender: str | None,
    keys: Sequence[Path],
    nodes: Sequence[str],
    directory: Directory,
    output: Output,
) -> int:
    """Confirm brake NUMBER, which another member asked for: from the next block on it stops its subject."""
    return _decide("confirm", number, sender, keys, nodes, directory, output)


@brake.command()
@click.argument("number", type=click.IntRange(min=1))
@as_option
@key_option
@node_option
@output_option
def lift(
    number: int,
    sender: str | None,
    keys: Sequence[Path],
    nodes: Sequence[str],
    directory: Directory,
    output: Output,
) -> int:
    """End brake NUMBER before its time: at once by one of the two who pulled it, else with a quorum's words."""
    return _decide("lift", number, sender, keys, nodes, directory, output)


def _decide(
    method: str,
    number: int,
    sender: str | None,
    keys: Sequence[Path],
    nodes: Sequence[str],
    directory: Directory,
    output: Output,
) -> int:
    with connect(nodes, directory) as client:
        if not output.as_json:
            _show(output, client.query("brake.brake", {"brake": number}).value)
        transaction = signed(client, f"brake.{method}", {"brake": number}, sender, keys, directory)
        fate = act(client, transaction, output)
        if fate is not None and not output.as_json:
            now = client.query("brake.brake", {"brake": number}).value
            # Once it has ended nobody asks any more.
            asking = now["lifters"] if now["brake"]["status"] == "on" else []
            lifters = f" ({names(asking)} {'asks' if len(asking) == 1 else 'ask'} for its end)" if asking else ""
            output.text(f"Brake {number} is {now['brake']['status']}{lifters}.")
    return exit_code(fate)


@brake.command(name="list")
@click.option("--all", "every", is_flag=True, help="Also those that have ended.")
@node_option
@output_option
def brakes(every: bool, nodes: Sequence[str], directory: Directory, output: Output) -> None:
    """The brakes that are on and those asked for, with who stands behind them."""
    with connect(nodes, directory) as client:
        rows = numbered_rows(client, "brake.page") if every else client.query("brake.pulled").value
    if output.as_json:
        output.document({"brakes": rows})
        return
    output.table(
        ["brake", "status", "stops", "until", "asked by", "confirmed by", "ended by", "reason"],
        [
            [
                row["number"],
                row["brake"]["status"],
                f"{row['brake']['scope']} {row['brake']['subject']}",
                moment(row["brake"]["until_ms"]),
                row["brake"]["asker"],
                row["brake"]["confirmer"] or None,
                ", ".join(row["brake"]["ended_by"]) or None,
                row["brake"]["reason"],
            ]
            for row in rows
        ],
    )


def _show(output: Output, row: dict[str, Any]) -> None:
    found = row["brake"]
    output.facts(
        [
            ("brake", row["number"]),
            ("stops", f"{found['scope']} {found['subject']}"),
            ("until", moment(found["until_ms"])),
            ("reason", found["reason"]),
            ("asked by", found["asker"]),
            ("confirmed by", found["confirmer"] or "nobody"),
            ("status", found["status"]),
        ]
    )


def _require_subject(client: Client, scope: str, subject: str) -> None:
    """Refuse what does not exist: a brake on a name with a slip in it would look like one and stop nothing."""
    if scope == "account":
        client.query("settlement.account", {"account": subject})
    elif scope == "currency":
        client.query("settlement.supply", {"currency": subject})
    elif scope == "method":
        contract, _, method = subject.partition(".")
        calls = [item.name for found in client.contracts() if found.name == contract for item in found.calls]
        if method not in calls:
            raise ConfigError("invalid_usage", f"no contract has the call {subject!r}: hansa contracts lists them")
