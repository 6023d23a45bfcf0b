"""Why the ledger said no, for people: in the words of the contract that was called, with the brakes that are on."""

import contextlib
import re
from collections.abc import Sequence
from typing import Any

from node.cli.output import message
from node.client import Client, ContractAnswer, DryRun, Fate
from node.diagnosis.wording import moment
from node.errors import HansaError
from node.wording import counted

BRAKES_NAMED_MAX = 8


def explain_fate(client: Client, fate: Fate, called: Sequence[str]) -> None:
    """On stderr, why it did not do all that it should: each reason once, and the brakes where one is a reason.

    `called` names the contract of each call.
    """
    codes = [receipt.code for receipt in fate.receipts]
    _explain(client, called, codes, ("",) * len(codes))
    if fate.status not in ("final", "pending"):
        why = f": {fate.code}" if fate.code else ""
        message(f"hansa: transaction {fate.tx_id} was not executed, as far as the node knows: {fate.status}{why}")
    # Calls that were approved stand in no receipt of their own.
    inner = {event.data.get("code") for receipt in fate.receipts for event in receipt.events}
    if "braked" in codes or "braked" in inner:
        _name_brakes(client)


def explain_trial(client: Client, result: DryRun, called: Sequence[str]) -> None:
    """On stderr, why the ledger would refuse calls, with what the node says of each: a receipt has codes alone."""
    _explain(client, called, [receipt.code for receipt in result.receipts], result.details)


def meaning(contracts: Sequence[ContractAnswer], called: str, code: str) -> str:
    """The sentence for a code that a call of the contract `called` ended with; empty where nobody has one.

    Contracts share codes and mean different things by them. One that `called` does not have is of a contract that
    it calls.
    """
    own = [item for item in contracts if item.name == called]
    used = [item for item in contracts if any(item.name in known.uses for known in own)]
    return next(
        (known.meaning for item in (*own, *used, *contracts) for known in item.codes if known.code == code), ""
    )


def _explain(client: Client, called: Sequence[str], codes: Sequence[str], details: Sequence[str]) -> None:
    if all(code == "ok" for code in codes):
        return
    contracts = client.contracts()
    rows = zip(called, codes, details, strict=False)
    told = [(code, meaning(contracts, name, code), detail) for name, code, detail in rows if code != "ok"]
    for code, sentence, detail in dict.fromkeys(told):
        # Contracts know times of blocks as numbers alone.
        readable = re.sub(r"\b[0-9]{13}\b", lambda found: moment(int(found[0])), detail)
        named = f" ({readable})" if readable else ""
        message(f"hansa: the ledger said no: {code}{named}. {sentence}".rstrip())


def _name_brakes(client: Client) -> None:
    """On stderr, the brakes that are on now. A receipt names none, and it is told whether or not they can be."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(HansaError):
        rows = client.query("brake.pulled").value
    on = [(row["number"], row["brake"]) for row in rows if row["brake"]["status"] == "on"]
    for number, found in on[:BRAKES_NAMED_MAX]:
        stops, until = f"{found['scope']} {found['subject']}", moment(found["until_ms"])
        message(f"hansa: brake {number} stops {stops} until {until}: {found['reason']}")
    if len(on) > BRAKES_NAMED_MAX:
        message(f"hansa: and {counted(len(on) - BRAKES_NAMED_MAX, 'brake')} more: hansa brake list")
