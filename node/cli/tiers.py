"""What tiers ask for, as commands tell it: asked of the ledger, in words, and with the command that goes on."""

import shlex
from collections.abc import Sequence
from typing import Any

from node.client import Client
from node.ledger import Call


def standing(
    client: Client, requester: dict[str, Any], calls: Sequence[Call], spoken: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Which tiers the calls of the requester ask for, and how far they are, as `membership.lacking` answers."""
    planned = [{"contract": call.contract, "method": call.method, "args": call.args} for call in calls]
    args = {"requester": requester, "calls": planned, "spoken": list(spoken)}
    answer: dict[str, Any] = client.query("membership.lacking", args).value
    return answer


def mandate(row: dict[str, Any]) -> dict[str, Any]:
    """An answer's mandate as an argument."""
    keys = [bytes.fromhex(key) for key in row["keys"]]
    return {"principal": row["principal"], "threshold": row["threshold"], "keys": keys}


def wanted(progress: dict[str, Any]) -> list[str]:
    """A line for each tier: how many of whom it asks for, and who has spoken."""
    return [f"{tier['tier']}: {' and '.join(map(_group, tier['groups']))}" for tier in progress["tiers"]]


def required(client: Client, sender: str, calls: Sequence[Call]) -> str:
    """What the sender's tiers ask for these calls, in one line."""
    row = client.query("membership.principal", {"principal": sender}).value
    return "; ".join(wanted(standing(client, mandate({**row, "principal": sender}), calls)))


def described(tier: dict[str, Any]) -> str:
    """What a tier asks for, and of which calls, in one line."""
    calls = f"{tier['contract']}.{tier['method']}" if tier["method"] else f"all of {tier['contract']}"
    where = f" with {tier['where']}={tier['equals']}" if tier["where"] else ""
    over = f" above {tier['argument']}={tier['over']}" if tier["argument"] else ""
    groups = [f"{group['threshold']} of {', '.join(group['persons'])}" for group in tier["groups"]]
    return f"{tier['principal']}, {calls}{where}{over}: {' and '.join(groups)}"


def request_command(words: Sequence[str], sender: str) -> str:
    """The command line that asks for the approval of what `words` name."""
    return shlex.join(["hansa", "approvals", "request", *words, "--as", sender])


def _group(group: dict[str, Any]) -> str:
    return f"{group['threshold']} of {', '.join(map(_seat, group['seats']))}"


def _seat(seat: dict[str, str]) -> str:
    if not seat["by"]:
        return seat["person"]
    return f"{seat['person']} (yes)" if seat["by"] == seat["person"] else f"{seat['person']} (yes, by {seat['by']})"
