"""Commands that read from a node."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from node.cli.diagnosis import absent_node, show_diagnosis
from node.cli.diagnostics import save_bundle
from node.cli.options import Directory, connect, node_option, output_option
from node.cli.output import Output, show_failure, shown
from node.cli.syncing import sync_facts
from node.cli.versions import Waiting, readiness, show_versions
from node.client.answers import ContractAnswer, LedgerEvent, QueryAnswer
from node.client.arguments import arguments_from_text, find_method
from node.diagnosis.notices import notices
from node.diagnosis.wording import duration
from node.errors import ConfigError, Unavailable
from node.wording import counted

_BELOW_FIRST = "of those below only what is under legal hold or was put back from an archive is here"


@click.command()
@node_option
@output_option
def status(nodes: Sequence[str], directory: Directory, output: Output) -> None:
    """Where the node stands."""
    with connect(nodes, directory) as client:
        answer = client.status()
    if output.as_json:
        output.document(answer)
        return
    output.facts(
        [
            ("member", f"{answer.member} ({answer.role}{_out(answer.standing)})"),
            ("network", answer.network),
            ("height", answer.height),
            *([("first block", f"{answer.first_block}: {_BELOW_FIRST}")] if answer.first_block > 1 else []),
            *sync_facts(answer),
            ("view", f"{answer.view}, primary {answer.primary}"),
            ("state root", answer.state_root),
            ("ready", answer.ready),
            *(("", reason) for reason in answer.reasons),
            ("votes", answer.voting),
            *([("diverged", answer.diverged.sentence)] if answer.diverged is not None else []),
            *(("resting", sentence) for sentence in notices(answer.resting, ())),
            *(("brake", sentence) for sentence in notices((), answer.brakes)),
            ("pending", f"{counted(answer.pending_transactions, 'transaction')}, {answer.pending_bytes:,} bytes"),
        ]
    )
    if answer.peers:
        output.table(
            ["peer", "connected", "height"], [[peer.id, peer.connected, peer.height] for peer in answer.peers]
        )


def _out(standing: str) -> str:
    return "" if standing == "active" else f", {standing}"


@click.command()
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write a diagnostics bundle to FILE, for whoever looks into it: no keys, no transactions.",
)
@node_option
@output_option
def why(bundle: Path | None, nodes: Sequence[str], directory: Directory, output: Output) -> None:
    """Why blocks are made or not made: who is missing, what comes next, what can safely be done.

    Where the directory's own node does not answer, what its directory shows is told, and the exit code is 4.
    """
    answered = True
    try:
        with connect(nodes, directory) as client:
            answer = client.why()
    except Unavailable as error:
        node = None if nodes else directory.node()
        if node is None:
            raise
        show_failure(error, False)
        answer, answered = absent_node(node), False
    if answered and bundle is not None:
        with connect(nodes, directory) as client:
            save_bundle(client, bundle)
    if output.as_json:
        output.document(answer)
    else:
        show_diagnosis(output, answer)
    if not answered:
        click.get_current_context().exit(Unavailable.exit_code)


@click.command()
@node_option
@output_option
def members(nodes: Sequence[str], directory: Directory, output: Output) -> None:
    """The members of the network as the node last heard of them."""
    with connect(nodes, directory) as client:
        answer = client.members()
    if output.as_json:
        output.document({"members": answer})
        return
    output.table(
        ["member", "role", "standing", "address", "connected", "height", "view", "clock", "last heard"],
        [
            [
                m.id,
                m.role,
                m.standing,
                m.address,
                m.connected,
                m.height,
                m.view,
                None if m.clock_offset_ms is None else f"{m.clock_offset_ms:+d} ms",
                None if m.last_seen_ms is None else f"{duration(m.last_seen_ms)} ago",
            ]
            for m in answer
        ],
    )


@click.command()
@click.argument("name", required=False)
@node_option
@output_option
def contracts(name: str | None, nodes: Sequence[str], directory: Directory, output: Output) -> None:
    """The contracts and their versions; with CONTRACT its methods, with CONTRACT.METHOD the arguments."""
    with connect(nodes, directory) as client:
        found = client.contracts()
        if not name:
            if output.as_json:
                waiting = readiness(client)
                rows = [{**msgspec.to_builtins(item), "waiting": _waiting(waiting, item.name)} for item in found]
                output.document({"contracts": rows})
            else:
                show_versions(output, client, found)
            return
    contract_name, dot, method = (name or "").partition(".")
    if contract_name:
        wanted = tuple(contract for contract in found if contract.name == contract_name)
        if not wanted or dot:
            # For its error, which lists what comes close.
            kinds = {query.name for contract in wanted for query in contract.queries}
            find_method(found, name or "", query=method in kinds)
        found = wanted
    if output.as_json:
        output.document({"contracts": found})
    else:
        _show_contract(output, found[0], method)


def _waiting(waiting: Waiting, name: str) -> dict[str, Any] | None:
    """The decided change of the contract, for programs."""
    if name not in waiting:
        return None
    proposal, what, ready = waiting[name]
    return {"proposal": proposal, "change": what, "ready": ready}


def _show_contract(output: Output, contract: ContractAnswer, method: str) -> None:
    methods = [("call", item) for item in contract.calls] + [("query", item) for item in contract.queries]
    if not method:
        output.text(contract.doc)
        output.table(
            ["", "method", "arguments", ""],
            [
                [kind, item.name, ", ".join(item.arguments.get("properties", {})), item.doc.partition("\n")[0]]
                for kind, item in methods
            ],
        )
        if contract.codes:
            output.table(["reason", "meaning", "ISO"], [[c.code, c.meaning, c.iso] for c in contract.codes])
        return
    item = next(item for _, item in methods if item.name == method)
    output.text(item.doc)
    required = item.arguments.get("required", [])
    output.table(
        ["argument", "required", "schema"],
        [[name, name in required, shown(schema)] for name, schema in item.arguments.get("properties", {}).items()],
    )


@click.command()
@click.argument("name", metavar="CONTRACT.NAME")
@click.argument("arguments", nargs=-1, metavar="[NAME=VALUE …]")
@click.option("--at", "at_height", type=click.IntRange(min=0), metavar="HEIGHT", help="Ask the state after HEIGHT.")
@node_option
@output_option
def query(
    name: str,
    arguments: Sequence[str],
    at_height: int | None,
    nodes: Sequence[str],
    directory: Directory,
    output: Output,
) -> None:
    """Ask a contract."""
    with connect(nodes, directory) as client:
        method = find_method(client.contracts(), name, query=True)
        answer = client.query(name, arguments_from_text(method.arguments, named(arguments)), at_height=at_height)
    if output.as_json:
        output.document(answer)
    else:
        _show_value(output, answer)


def _show_value(output: Output, answer: QueryAnswer) -> None:
    value = answer.value
    if isinstance(value, dict):
        tables = {name: item for name, item in value.items() if _is_table(item)}
        output.facts((name, item) for name, item in value.items() if name not in tables)
        for name, rows in tables.items():
            output.text(f"{name}:")
            _show_rows(output, rows)
    elif _is_table(value):
        _show_rows(output, value)
    else:
        output.text(shown(value))
    output.text(f"at height {answer.height}, {duration(answer.age_ms)} old")
    if answer.diverged_at is not None:
        output.text(f"this node diverged at height {answer.diverged_at} and does not follow the network beyond it")


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _show_rows(output: Output, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    output.table(columns, [[row.get(column) for column in columns] for row in rows])


def named(arguments: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE texts by name; raise ConfigError for one that is none or comes twice."""
    found: dict[str, str] = {}
    for argument in arguments:
        name, sign, value = argument.partition("=")
        if not sign or not name:
            raise ConfigError("invalid_usage", f"{argument!r} is not written as NAME=VALUE")
        if name in found:
            raise ConfigError("invalid_usage", f"{name} is given twice")
        found[name] = value
    return found


@click.group()
def block() -> None:
    """Look at blocks."""


@block.command("show")
@click.argument("height", metavar="HEIGHT|latest")
@node_option
@output_option
def block_show(height: str, nodes: Sequence[str], directory: Directory, output: Output) -> None:
    """A block with its certificate and the outcome of each transaction."""
    if height != "latest" and not (height.isascii() and height.isdigit()):
        raise ConfigError("invalid_usage", f"{height!r} is no height: write a number, or latest")
    with connect(nodes, directory) as client:
        answer = client.block(None if height == "latest" else int(height))
    if output.as_json:
        output.document(answer)
        return
    certificate = answer.certificate
    output.facts(
        [
            ("height", answer.height),
            ("digest", answer.digest),
            ("parent", answer.header.parent),
            ("time ms", answer.header.time_ms),
            ("proposer", answer.header.proposer),
            ("state root", answer.header.state_root),
            ("certificate", f"view {certificate.view}, votes of {', '.join(certificate.signatures)}"),
        ]
    )
    if answer.transactions:
        output.table(
            ["transaction", "sender", "request", "calls", "failed"],
            [
                [
                    item.tx_id,
                    item.content.sender,
                    item.content.request_id,
                    len(item.content.calls),
                    sum(receipt.code != "ok" for receipt in item.receipts),
                ]
                for item in answer.transactions
            ],
        )


@click.command()
@click.option("--follow", is_flag=True, help="Go on for ever; with --json one document a line.")
@click.option(
    "--after", metavar="CURSOR", help="Start behind this cursor (default: the first block; --follow: now)."
)
@click.option("--contract", metavar="NAME", help="Only events of this contract.")
@click.option("--topic", metavar="TOPIC", help="Only events with this topic, for example settlement/account/ACC-1.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="Without --follow.")
@node_option
@output_option
def events(
    follow: bool,
    after: str | None,
    contract: str | None,
    topic: str | None,
    limit: int,
    nodes: Sequence[str],
    directory: Directory,
    output: Output,
) -> None:
    """Events of contracts, in ledger order."""
    with connect(nodes, directory) as client:
        if follow:
            for event in client.events(after, contract=contract, topic=topic):
                if output.as_json:
                    output.line(event)
                else:
                    output.text(_event_line(event))
            return
        page = client.event_page(after, contract=contract, topic=topic, limit=limit)
    if output.as_json:
        output.document(page)
        return
    for event in page.events:
        output.text(_event_line(event))
    if not page.complete:
        output.text(f"more: --after {page.next}")


def _event_line(event: LedgerEvent) -> str:
    data = " ".join(f"{name}={shown(value)}" for name, value in event.data.items())
    return f"{event.cursor}  {event.contract}.{event.name}  {data}"
