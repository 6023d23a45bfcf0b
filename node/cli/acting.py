"""One call in a member's name, signed, tried first and then sent: what the commands by which members act share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from node.cli.key_use import signing_keys
from node.cli.options import Directory
from node.cli.output import Output
from node.cli.refusals import explain_fate, explain_trial
from node.client import Client, DryRun, Fate
from node.client import call as make_call
from node.errors import NotFinal
from node.ledger import Transaction

WAIT_S = 30.0
FAILED = 1

as_option = click.option("--as", "sender", metavar="PRINCIPAL", help="Who acts (default: the directory's member).")
key_option = click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="A key file of that principal; again for another.",
)


def signed(
    client: Client,
    method: str,
    args: dict[str, Any],
    sender: str | None,
    keys: Sequence[Path],
    directory: Directory,
) -> Transaction:
    """The call, signed by the sender (default: whose key it is) with these keys, or one of the directory's."""
    who, signers = signing_keys(client, keys, sender, directory)
    return client.transaction([make_call(method, args)], sender=who, signers=signers)


def tried(client: Client, transaction: Transaction) -> DryRun:
    """What the node says that the transaction would do; a refusal is told, with all that it says of it."""
    result = client.dry_run(transaction)
    explain_trial(client, result, _called(transaction))
    return result


def act(client: Client, transaction: Transaction, output: Output) -> Fate | None:
    """Its fate where it did what it should; None where it did not: that is told.

    A receipt has the code of a refusal alone, so it is tried at the node before it is sent. Programs get one
    document: its fate, or what the node said where it was not sent.
    """
    trial = tried(client, transaction)
    if trial.refusal:
        if output.as_json:
            output.document(trial)
        return None
    fate = client.submit_and_wait(transaction, WAIT_S)
    if fate.status == "pending":
        raise NotFinal("not_final_in_time", f"{fate.tx_id} is not final after {WAIT_S:g} s")
    if output.as_json:
        output.document(fate)
    explain_fate(client, fate, _called(transaction))
    return fate if fate.ok else None


def exit_code(fate: Fate | None) -> int:
    """0 where `act` did what it should."""
    return FAILED if fate is None else 0


def event_data(fate: Fate, name: str) -> dict[str, Any]:
    """The data of the event `name` that the call emitted; empty where it emitted none."""
    return next((item.data for receipt in fate.receipts for item in receipt.events if item.name == name), {})


def _called(transaction: Transaction) -> list[str]:
    return [call.contract for call in transaction.body.calls]
