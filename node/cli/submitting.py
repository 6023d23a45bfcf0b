"""`hansa tx`: submit transactions, look at them."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import click

from node.cli.files import write_new
from node.cli.key_use import signing_keys
from node.cli.options import Directory, Duration, calls_options, connect, node_option, output_option
from node.cli.output import Output, message, show_failure
from node.cli.reading import named
from node.cli.refusals import explain_fate
from node.cli.tiers import request_command, required
from node.cli.transaction_files import known_policy, read_transaction_file
from node.client import Client, ContractAnswer, DryRun, Fate, TransactionAnswer
from node.client import call as make_call
from node.client.arguments import arguments_from_json, arguments_from_text, find_method
from node.client.transaction_file import TransactionFile
from node.errors import ConfigError, NotFinal, RejectedTransaction
from node.ledger import CALLS_MAX, EXPIRY_AHEAD_MS_MAX, TRANSACTION_SIZE_MAX, Call, Transaction

FILE_SIZE_MAX = 4 * TRANSACTION_SIZE_MAX
FAILED = 1


@click.group()
def tx() -> None:
    """Submit transactions and follow them."""


@tx.command()
@calls_options
@click.option("--as", "sender", metavar="PRINCIPAL", help="Who acts (default: whose key it is).")
@click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="A key file; again for another.",
)
@click.option(
    "--signed",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Send the transaction that `hansa tx build` wrote to FILE, with the signatures of `hansa tx sign`.",
)
@click.option(
    "--request-id",
    metavar="ID",
    help="Your own id: one transaction at most has an effect under it; a second one is refused.",
)
@click.option("--expires", type=Duration(), default="10m", show_default=True, help="At most 24h.")
@click.option("--wait/--no-wait", default=True, help="Wait until it is final (default), or only until it is taken.")
@click.option("--timeout", "timeout_ms", type=Duration(), default="30s", show_default=True, help="Of the wait.")
@click.option("--dry-run", is_flag=True, help="Show what it would do; change nothing.")
@click.option(
    "--save",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the signed transaction to FILE before it is sent: it proves non-execution if it expires.",
)
@node_option
@output_option
def submit(
    method: str | None,
    arguments: Sequence[str],
    calls_file: Path | None,
    mode: Literal["atomic", "each"],
    sender: str | None,
    keys: Sequence[Path],
    signed: Path | None,
    request_id: str | None,
    expires: int,
    wait: bool,
    timeout_ms: int,
    dry_run: bool,
    save: Path | None,
    nodes: Sequence[str],
    directory: Directory,
    output: Output,
) -> int:
    """Sign and submit one transaction; or submit one that others have signed, with --signed.

    Values are read by the method's schema: integers (minor units), bytes in hex, true/false, lists as JSON.
    """
    if not 0 < expires <= EXPIRY_AHEAD_MS_MAX:
        raise ConfigError("invalid_usage", "--expires is more than nothing and at most 24h")
    with connect(nodes, directory) as client:
        if signed is not None:
            _require_alone("signed", allowed=("wait", "timeout_ms", "dry_run", "save"))
            found = read_transaction_file(signed)
            _require_sendable(client, found, signed)
            transaction = found.transaction()
        else:
            found = None
            calls = calls_of(client, method, arguments, calls_file)
            who, signers = signing_keys(client, keys, sender, directory)
            transaction = client.transaction(
                calls, sender=who, signers=signers, request_id=request_id, expires_in_ms=expires, mode=mode
            )
        words = () if signed is not None else (method, *arguments) if method else ("--file", str(calls_file))
        with _naming_the_missing(client, found, transaction, words):
            if dry_run:
                return _show_dry_run(output, client.dry_run(transaction))
            if save is not None:
                write_new(save, transaction.data, "transaction_not_saved")
            if wait:
                fate: Fate = client.submit_and_wait(transaction, timeout_ms / 1000)
            else:
                taken = client.submit(transaction)
                # What was sent before has a fate already, and may have failed.
                decided = taken.status != "pending"
                fate = client.fate(taken.tx_id) if decided else Fate(tx_id=taken.tx_id, status="pending")
        show_fate(output, fate)
        explain_fate(client, fate, [call.contract for call in transaction.body.calls])
    return exit_code(fate, timeout_ms if wait else None)


def calls_of(client: Client, method: str | None, arguments: Sequence[str], calls_file: Path | None) -> list[Call]:
    """The calls that a command line names, by the schemas of the contracts."""
    if (method is None) == (calls_file is None):
        raise ConfigError("invalid_usage", "give either CONTRACT.METHOD with its arguments, or --file")
    contracts = client.contracts()
    if method is None:
        return read_calls(calls_file or Path("-"), contracts)
    schema = find_method(contracts, method, query=False).arguments
    return [make_call(method, arguments_from_text(schema, named(arguments)))]


def _require_alone(option: str, allowed: Sequence[str]) -> None:
    """Return when nothing was given that would say again what the file of `option` says."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if given and name not in (option, "nodes", "directory", "output", *allowed):
            shown = parameter.opts[0] if parameter.opts[0].startswith("-") else "CONTRACT.METHOD"
            raise ConfigError("invalid_usage", f"--{option} says what is sent, so {shown} has nothing to say")


def _require_sendable(client: Client, found: TransactionFile, file: Path) -> None:
    """Return when the network is the node's and somebody has signed; the rest is the node's to judge."""
    network = client.network()
    if found.body.network != network:
        raise RejectedTransaction(
            "wrong_network", f"{file}: is for {found.body.network}, and the node is of {network}"
        )
    if not found.signatures:
        policy = known_policy(client, found.body.sender)
        raise RejectedTransaction("policy_unsatisfied", f"{file}: {found.standing(policy)}")


@contextlib.contextmanager
def _naming_the_missing(
    client: Client, found: TransactionFile | None, transaction: Transaction, words: Sequence[str]
) -> Iterator[None]:
    """Where signatures do not suffice, the failure says whose are missing, by policy and tiers as they are now.

    `words` name the calls on a command line that asks for approval.

    Only after the node's refusal: it knows a final transaction again, whatever became of the policy since.
    """
    try:
        yield
    except RejectedTransaction as error:
        sender = transaction.body.sender
        if error.code == "approval_required":
            asked = f"{sender}'s signatures do not suffice; {required(client, sender, transaction.body.calls)}"
            command = f"`{request_command(words, sender)}`" if words else "hansa tx sign, with the keys of these"
            raise RejectedTransaction(error.code, f"{asked}. Next: {command}", **error.details) from error
        if found is None or error.code != "policy_unsatisfied":
            raise
        missing = found.standing(known_policy(client, sender))
        raise RejectedTransaction(error.code, missing, **error.details) from error


def read_calls(path: Path, contracts: tuple[ContractAnswer, ...]) -> list[Call]:
    """The calls of a JSON Lines file, arguments by their schemas."""
    try:
        with click.open_file(str(path), "rb") as file:
            data: bytes = file.read(FILE_SIZE_MAX + 1)
    except OSError as error:
        raise ConfigError("invalid_usage", f"{path}: {error.strerror or error}") from error
    if len(data) > FILE_SIZE_MAX:
        raise RejectedTransaction("transaction_too_large", f"{path}: has more than {FILE_SIZE_MAX} bytes")
    calls: list[Call] = []
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        if len(calls) == CALLS_MAX:
            raise RejectedTransaction("too_many_calls", f"{path}: has more than {CALLS_MAX} calls")
        name, args = _read_call(line, f"{path}, line {number}")
        schema = find_method(contracts, name, query=False).arguments
        try:
            calls.append(make_call(name, arguments_from_json(schema, args)))
        except RejectedTransaction as error:
            raise RejectedTransaction(error.code, f"{path}, line {number}: {error.message}") from error
    if not calls:
        raise RejectedTransaction("too_many_calls", f"{path}: has no calls")
    return calls


def _read_call(line: bytes, where: str) -> tuple[str, dict[str, Any]]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError("invalid_usage", f"{where}: is not JSON: {error}") from error
    if isinstance(value, dict):
        name, args = value.get("call"), value.get("args", {})
        if isinstance(name, str) and isinstance(args, dict) and set(value) <= {"call", "args"}:
            return name, args
    raise ConfigError("invalid_usage", f'{where}: write {{"call": "CONTRACT.METHOD", "args": {{…}}}}')


def exit_code(fate: Fate | TransactionAnswer, waited_ms: int | None) -> int:
    """The exit code that a fate which was shown deserves; what is pending fails where somebody waited for it."""
    if fate.status != "pending":
        return 0 if fate.ok else FAILED
    if waited_ms is None:
        return 0
    # The result is shown already; the failure only says on stderr that the wait has ended.
    late = NotFinal("not_final_in_time", f"{fate.tx_id} is not final after {waited_ms} ms")
    show_failure(late, as_json=False)
    return late.exit_code


def show_fate(output: Output, fate: Fate) -> None:
    if output.as_json:
        output.document(fate)
        return
    output.facts([("transaction", fate.tx_id), ("status", fate.status), ("height", fate.height)])
    if fate.code is not None:
        output.facts([("reason", fate.code)])
    if fate.receipts:
        output.table(
            ["call", "code", "events"],
            [
                [place, receipt.code, ", ".join(f"{event.contract}.{event.name}" for event in receipt.events)]
                for place, receipt in enumerate(fate.receipts, start=1)
            ],
        )


def _show_dry_run(output: Output, result: DryRun) -> int:
    if output.as_json:
        output.document(result)
    else:
        output.text(f"On the state after block {result.height}; nothing was changed.")
        output.table(
            ["call", "code", "events"],
            [
                [place, receipt.code, ", ".join(event.name for event in receipt.events)]
                for place, receipt in enumerate(result.receipts, start=1)
            ],
        )
        for detail in result.details:
            output.text(detail)
        if result.changes:
            output.table(
                ["changed", "before", "after"],
                [["/".join(map(str, change.key)), change.before, change.after] for change in result.changes],
            )
    return FAILED if result.refusal else 0


@tx.command()
@click.argument("tx_id")
@click.option("--wait", is_flag=True, help="Wait until it is no longer pending.")
@click.option("--timeout", "timeout_ms", type=Duration(), default="30s", show_default=True, help="Of the wait.")
@node_option
@output_option
def show(
    tx_id: str, wait: bool, timeout_ms: int, nodes: Sequence[str], directory: Directory, output: Output
) -> int:
    """What became of a transaction, and what was signed."""
    with connect(nodes, directory) as client:
        answer = client.wait(tx_id, timeout_ms / 1000) if wait else client.fate(tx_id)
    show_fate(output, answer)
    if not output.as_json:
        _show_content(output, answer)
    return exit_code(answer, timeout_ms if wait else None)


def _show_content(output: Output, answer: TransactionAnswer) -> None:
    content = answer.content
    if content is None:
        message("hansa: this node does not keep the transaction's content")
        return
    output.facts(
        [
            ("sender", content.sender),
            ("request", content.request_id),
            ("mode", content.mode),
            ("expires ms", content.expires_at_ms),
            ("signed by", ", ".join(content.keys)),
        ]
    )
    output.table(
        ["call", "method", "arguments"],
        [[place, f"{call.contract}.{call.method}", call.args] for place, call in enumerate(content.calls, start=1)],
    )


@tx.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--before", metavar="CURSOR", help="Older ones than an earlier list ended with.")
@node_option
@output_option
def list_(limit: int, before: str | None, nodes: Sequence[str], directory: Directory, output: Output) -> None:
    """Pending and recent transactions."""
    with connect(nodes, directory) as client:
        page = client.transactions(limit, before)
    if output.as_json:
        output.document(page)
        return
    output.table(
        ["transaction", "status", "height", "sender", "request", "calls", "failed"],
        [[t.tx_id, t.status, t.height, t.sender, t.request_id, t.calls, t.failed] for t in page.transactions],
    )
    if page.before is not None:
        output.text(f"more: --before {page.before}")
