"""`hansa approvals`: calls above a tier's limit are requested, looked at, approved or refused on the ledger."""

import hashlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from consensus.codec import encode, unpack
from node.cli.acting import WAIT_S, signed
from node.cli.confirming import require_yes
from node.cli.key_use import signer
from node.cli.options import Directory, Duration, calls_options, connect, node_option, output_option
from node.cli.output import Output
from node.cli.refusals import explain_fate
from node.cli.submitting import calls_of, exit_code, show_fate
from node.cli.tiers import mandate, standing, wanted
from node.client import Client, Fate
from node.client.transaction_file import call_words, printable
from node.errors import ConfigError, RejectedTransaction, Unavailable
from node.ledger import TRANSACTION_SIZE_MAX, Call, Transaction

DOMAIN: Final = "hansa/approval"
PAGE: Final = 100
PAGES_MAX: Final = 50
FAILED: Final = 1


class Shown(msgspec.Struct, frozen=True):
    """A request as this program understood it: `calls` are what the digest that it made itself is made of."""

    number: int
    calls: tuple[Call, ...]
    digest: bytes
    view: dict[str, Any]
    age_ms: int
    """Since the block after which the node's answer holds."""


@click.group()
def approvals() -> None:
    """Request and give the approval that a tier asks for, above a member's limits."""


as_option = click.option("--as", "sender", metavar="PRINCIPAL", help="Who acts (default: whose key it is).")
key_option = click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="A key file of that principal; again for another.",
)
number_argument = click.argument("number", type=click.IntRange(min=1))
yes_option = click.option("--yes", is_flag=True, help="Without asking; what it is about is shown all the same.")


@approvals.command()
@calls_options
@as_option
@key_option
@click.option("--expires", type=Duration(), default="3d", show_default=True, help="At most 30d.")
@click.option("--note", default="", help="For those who are to approve, on the ledger.")
@node_option
@output_option
def request(
    method: str | None,
    arguments: Sequence[str],
    calls_file: Path | None,
    mode: str,
    sender: str | None,
    keys: Sequence[Path],
    expires: int,
    note: str,
    nodes: Sequence[str],
    directory: Directory,
    output: Output,
) -> int:
    """Ask for the approval of one call, or of the calls of a file; they run together, all or none.

    Signed with the sender's ordinary keys. The calls run in the sender's name with the last approval they need.
    """
    if mode != "atomic":
        raise ConfigError("invalid_usage", "what is approved together runs all or none")
    with connect(nodes, directory) as client:
        calls = calls_of(client, method, arguments, calls_file)
        args = {
            "calls": [{"contract": call.contract, "method": call.method, "args": call.args} for call in calls],
            "expires_at_ms": time.time_ns() // 1_000_000 + expires,
            "note": note,
        }
        transaction = signed(client, "approvals.request", args, sender, keys, directory)
        fate = client.submit_and_wait(transaction, WAIT_S)
        if output.as_json:
            output.document(fate)
        else:
            for event in (event for receipt in fate.receipts for event in receipt.events):
                if event.name == "Requested":
                    number, tiers = event.data["request"], ", ".join(event.data["tiers"])
                    output.text(
                        f"Request {number} waits for {tiers}. Who sits there: hansa approvals approve {number}"
                    )
        return _result(client, fate)


@approvals.command("list")
@click.option("--member", help="Whose requests (default: the node's member).")
@node_option
@output_option
def list_(member: str | None, nodes: Sequence[str], directory: Directory, output: Output) -> None:
    """A member's pending requests, and those that have expired since the last block."""
    with connect(nodes, directory) as client:
        status = client.status()
        rows = _pending(client, member or status.member, status.head_time_ms)
    if output.as_json:
        output.document({"requests": rows})
        return
    output.table(
        ["number", "status", "by", "calls", "approved by", "expires", "note"],
        [
            [
                row["request"],
                row["status"],
                row["requester"],
                _counted(row["calls"]),
                ", ".join(row["approved_by"]),
                _time(row["expires_at_ms"]),
                printable(row["note"]),
            ]
            for row in rows
        ],
    )


@approvals.command()
@number_argument
@node_option
@output_option
def show(number: int, nodes: Sequence[str], directory: Directory, output: Output) -> None:
    """A request with its calls, who has approved, and whom it waits for."""
    with connect(nodes, directory) as client:
        found = _request_now(client, number)
        progress = _progress(client, found)
    if output.as_json:
        output.document({**found.view, "progress": progress})
    else:
        _show(output, found, progress)


@approvals.command()
@number_argument
@yes_option
@as_option
@key_option
@node_option
@output_option
def approve(
    number: int,
    yes: bool,
    sender: str | None,
    keys: Sequence[Path],
    nodes: Sequence[str],
    directory: Directory,
    output: Output,
) -> int:
    """Approve request NUMBER, after showing what it says; the last approval that is missing makes its calls run.

    What is signed names the very calls that are shown: another node's lie about them is approved by nobody.
    """
    with connect(nodes, directory) as client:
        found = _open_request(client, number)
        _require_new_word(client, found, signer(keys, sender, directory))
        _confirm(output, client, found, yes, "Approve it?")
        args = {"request": number, "digest": found.digest}
        transaction = signed(client, "approvals.approve", args, sender, keys, directory)
        return _outcome(output, client, found, transaction)


@approvals.command()
@number_argument
@yes_option
@as_option
@key_option
@node_option
@output_option
def reject(
    number: int,
    yes: bool,
    sender: str | None,
    keys: Sequence[Path],
    nodes: Sequence[str],
    directory: Directory,
    output: Output,
) -> int:
    """End request NUMBER: whoever could approve it may refuse it."""
    with connect(nodes, directory) as client:
        found = _open_request(client, number)
        _confirm(output, client, found, yes, "Reject it?")
        transaction = signed(client, "approvals.reject", {"request": number}, sender, keys, directory)
        return _outcome(output, client, found, transaction)


@approvals.command()
@number_argument
@as_option
@key_option
@node_option
@output_option
def withdraw(
    number: int,
    sender: str | None,
    keys: Sequence[Path],
    nodes: Sequence[str],
    directory: Directory,
    output: Output,
) -> int:
    """Take one's own request NUMBER back."""
    with connect(nodes, directory) as client:
        found = _open_request(client, number)
        transaction = signed(client, "approvals.withdraw", {"request": number}, sender, keys, directory)
        return _outcome(output, client, found, transaction)


def read_request(client: Client, number: int) -> Shown:
    """The request as the node shows it, its calls unpacked and their digest made here.

    Raise RejectedTransaction (`digest_differs`) where the node's digest is one of something else.
    """
    answer = client.query("approvals.show", {"request": number})
    view = answer.value
    try:
        packed = [(item["contract"], item["method"], bytes.fromhex(item["packed"])) for item in view["calls"]]
        calls = tuple(
            Call(contract, method, unpack(data, size_max=TRANSACTION_SIZE_MAX)) for contract, method, data in packed
        )
        content = (DOMAIN, number, view["requester"]["principal"], tuple(packed))
        digest = hashlib.sha256(encode(content)).digest()
        theirs = bytes.fromhex(view["digest"])
        if not all(isinstance(call.args, dict) for call in calls):
            raise ValueError("arguments that are no map")
    except (KeyError, TypeError, ValueError) as error:
        raise Unavailable("unexpected_answer", f"the node's answer is not understood: {error}") from error
    if digest != theirs:
        raise RejectedTransaction("digest_differs", f"request {number}: the node shows other calls than it names")
    return Shown(number, calls, digest, view, answer.age_ms)


def _request_now(client: Client, number: int) -> Shown:
    """The request, `expired` as soon as that is so by the node's clock: on an idle ledger the next block is far."""
    # Asked for first: a block that comes between the two makes the clock late, never early.
    head_time_ms = client.status().head_time_ms
    found = read_request(client, number)
    status = _status(found.view, head_time_ms + found.age_ms)
    return msgspec.structs.replace(found, view={**found.view, "status": status})


def _open_request(client: Client, number: int) -> Shown:
    """The request; raise RejectedTransaction (`request_ended`) where nothing can be said to it any more."""
    found = _request_now(client, number)
    if found.view["status"] != "pending":
        raise RejectedTransaction("request_ended", f"request {number} is {found.view['status']}")
    return found


def _require_new_word(client: Client, found: Shown, who: str) -> None:
    """Raise RejectedTransaction (`approved_already`) where the word of `who` counts and no rotation ends that.

    Not where the tiers ask for nobody more, as they do when they were changed: with the next word the calls run.
    """
    tiers = (_progress(client, found) or {"tiers": []})["tiers"]
    if all(tier["met"] for tier in tiers):
        return
    seats = [seat for tier in tiers for group in tier["groups"] for seat in group["seats"]]
    given = [word["mandate"] for word in found.view["approvals"] if word["mandate"]["principal"] == who]
    if given and any(seat["by"] == who for seat in seats):
        policy = client.query("membership.principal", {"principal": who}).value
        if set(given[0]["keys"]) <= set(policy["keys"]):
            raise RejectedTransaction("approved_already", f"{who} has approved request {found.number}")


def _status(row: dict[str, Any], now_ms: int) -> str:
    over = row["status"] == "pending" and row["expires_at_ms"] <= now_ms
    return "expired" if over else str(row["status"])


def _pending(client: Client, member: str, head_time_ms: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for _ in range(PAGES_MAX):
        after = rows[-1]["request"] if rows else 0
        answer = client.query("approvals.pending", {"member": member, "after": after, "limit": PAGE})
        now_ms = head_time_ms + answer.age_ms
        rows.extend({**row, "status": _status({**row, "status": "pending"}, now_ms)} for row in answer.value)
        if len(answer.value) < PAGE:
            break
    return rows


def _progress(client: Client, found: Shown) -> dict[str, Any] | None:
    """What the request waits for, by the policies as they are now; None when it waits no more."""
    if found.view["status"] != "pending":
        return None
    spoken = [mandate(word["mandate"]) for word in found.view["approvals"]]
    return standing(client, mandate(found.view["requester"]), found.calls, spoken)


def _show(output: Output, found: Shown, progress: dict[str, Any] | None) -> None:
    view = found.view
    ending = view["ending"]
    output.facts(
        [
            ("request", found.number),
            ("by", view["requester"]["principal"]),
            *([("note", printable(view["note"]))] if view["note"] else []),
            *[(f"call {place}", call_words(call)) for place, call in enumerate(found.calls, start=1)],
            ("digest", found.digest.hex()),
            ("status", view["status"]),
            ("expires", _time(view["expires_at_ms"])),
            ("approved by", ", ".join(word["mandate"]["principal"] for word in view["approvals"]) or "nobody"),
            *[("waits for", line) for line in (wanted(progress) if progress else [])],
        ]
    )
    if progress and not progress["speaks"]:
        output.text("The requester's keys were changed since: it cannot be approved any more.")
    if ending:
        failed = f": call {ending['call']} ended with {ending['code']}" if ending["code"] else ""
        output.facts(
            [
                ("ended", f"{view['status']} by {ending['by'] or 'its time'} at height {ending['height']}{failed}"),
                ("transaction", ending["tx_id"]),
            ]
        )


def _confirm(output: Output, client: Client, found: Shown, yes: bool, question: str) -> None:
    """Return on a yes, after everything was shown."""
    if output.as_json:
        for place, call in enumerate(found.calls, start=1):
            click.echo(f"{place}. {call_words(call)}", err=True)
    else:
        _show(output, found, _progress(client, found))
    if not yes:
        require_yes(question)


def _result(client: Client, fate: Fate) -> int:
    explain_fate(client, fate, ["approvals"])
    return exit_code(fate, round(WAIT_S * 1_000))


def _outcome(output: Output, client: Client, found: Shown, transaction: Transaction) -> int:
    """Send it, and show what became of the request; a call of it that failed is a no of the ledger too."""
    fate = client.submit_and_wait(transaction, WAIT_S)
    ended = [event for receipt in fate.receipts for event in receipt.events if event.name == "Ended"]
    if output.as_json:
        output.document(fate)
    else:
        show_fate(output, fate)
        if fate.ok:
            now = _request_now(client, found.number)
            _show(output, now, _progress(client, now))
    failed = any(event.data["status"] == "failed" for event in ended)
    return _result(client, fate) or (FAILED if failed else 0)


def _counted(calls: Sequence[str]) -> str:
    return ", ".join(f"{calls.count(name)} × {name}" for name in dict.fromkeys(calls))


def _time(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms // 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
