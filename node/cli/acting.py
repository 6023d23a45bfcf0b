"""One call in a member's name, tried first and then sent: what the commands by which members act have in common."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from node.cli.key_use import signing_keys
from node.cli.options import Directory
from node.cli.output import message
from node.client import Client, Fate
from node.client import call as make_call
from node.diagnosis.wording import moment
from node.errors import NotFinal

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


def act(
    client: Client,
    method: str,
    args: dict[str, Any],
    sender: str | None,
    keys: Sequence[Path],
    directory: Directory,
) -> Fate | None:
    """Its fate once it is final; None where the ledger would refuse it: that is told, with all that it says of it.

    A receipt has the code of a refusal alone, so the call is tried at the node before it is sent.
    """
    who, signers = signing_keys(client, keys, sender, directory)
    transaction = client.transaction([make_call(method, args)], sender=who, signers=signers)
    tried = client.dry_run(transaction)
    if any(receipt.code != "ok" for receipt in tried.receipts):
        for receipt, detail in zip(tried.receipts, tried.details, strict=False):
            _tell(client, receipt.code, detail)
        return None
    fate = client.submit_and_wait(transaction, WAIT_S)
    if fate.status == "pending":
        raise NotFinal("not_final_in_time", f"{fate.tx_id} is not final after {WAIT_S:g} s")
    for outcome in fate.receipts:
        if outcome.code != "ok":
            _tell(client, outcome.code, "")
    return fate


def send(
    client: Client,
    method: str,
    args: dict[str, Any],
    sender: str | None,
    keys: Sequence[Path],
    directory: Directory,
) -> Fate:
    """The call's fate, once it is final or WAIT_S are over."""
    who, signers = signing_keys(client, keys, sender, directory)
    transaction = client.transaction([make_call(method, args)], sender=who, signers=signers)
    return client.submit_and_wait(transaction, WAIT_S)


def exit_code(fate: Fate | None) -> int:
    """0 where the call did what it should."""
    return 0 if fate is not None and fate.ok else FAILED


def event_data(fate: Fate, name: str) -> dict[str, Any]:
    """The data of the event `name` that the call emitted; empty where it emitted none."""
    return next((item.data for receipt in fate.receipts for item in receipt.events if item.name == name), {})


def _tell(client: Client, code: str, detail: str) -> None:
    meanings = {item.code: item.meaning for contract in client.contracts() for item in contract.codes}
    # Contracts know times of blocks as numbers alone.
    readable = re.sub(r"\b[0-9]{13}\b", lambda found: moment(int(found[0])), detail)
    message(f"hansa: the ledger said no: {code}. {meanings.get(code, '')} {readable}".rstrip())
