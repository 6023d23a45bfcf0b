"""The versions of contracts for people: which one executes, which are shipped, whose nodes have what is decided."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from node.cli.output import Output
from node.cli.paging import numbered_rows
from node.client import Client
from node.client.answers import ContractAnswer
from node.diagnosis.wording import names
from node.errors import ConfigError, NotFound

Waiting: TypeAlias = dict[str, tuple[int, str, tuple[str, ...]]]
"""By contract: the proposal, what it makes of it, and whose nodes have said that they have it."""
CONTRACT_SUBJECT = "contract/"
KINDS = ("activate_contract", "deactivate_contract", "upgrade_contract")
HEIGHTS_AHEAD = 5
"""A change that names no height may happen so soon: blocks go by until its proposal stands in one, and it is
carried out in a later one.
"""
DIGITS = 16


def contract_arguments(
    client: Client, kind: str, contract: str, version: int | None, at_height: int | None
) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """Return the arguments of a proposal about a contract, and of each thing that it changes before and after.

    The digest is that of the asked node's own sources. Raise ConfigError where it does not have the version.
    """
    found = next((item for item in client.contracts() if item.name == contract), None)
    if found is None:
        raise ConfigError("invalid_usage", f"the asked node knows no contract {contract[:40]!r}")
    if version is None:
        shipped = [item.version for item in found.shipped]
        never = min(shipped, default=1) if found.since == 0 else found.version
        version = found.version + 1 if kind == "upgrade_contract" else never
    source = next((item.source for item in found.shipped if item.version == version), None)
    if source is None:
        versions = ", ".join(str(item.version) for item in found.shipped) or "none"
        raise ConfigError(
            "invalid_usage",
            f"the asked node does not have {contract} {version} (it has: {versions}): ask one that does (--node)",
        )
    height = client.status().height + HEIGHTS_AHEAD if at_height is None else at_height
    args = {
        "kind": kind,
        "contract": contract,
        "version": version,
        "source": bytes.fromhex(source),
        "at_height": height,
    }
    before = f"{found.version}" if found.active else "not active"
    after = "not active" if kind == "deactivate_contract" else f"{version}"
    changes = [
        ("version", before, after),
        ("source", found.source[:DIGITS] if found.active else "", "" if after == "not active" else source[:DIGITS]),
        ("from height", f"{found.since}", f"{height} on"),
    ]
    return args, changes


def stands_against(contracts: Sequence[ContractAnswer], kind: str, contract: str) -> str:
    """Return who would use what is not active if the change were made now; empty: nobody.

    By the versions that are active, or were last: what a later version uses, its own node says when it begins.
    """
    active = {item.name: item for item in contracts if item.active}
    if kind == "deactivate_contract":
        users = [name for name, item in active.items() if contract in item.uses and name != contract]
        return f"{names(users)} {'uses' if len(users) == 1 else 'use'} {contract}" if users else ""
    if kind != "activate_contract":
        return ""
    used = next((item.uses for item in contracts if item.name == contract), ())
    lacking = [name for name in used if name not in active]
    return (
        f"{contract} uses {names(lacking)}, which {'is' if len(lacking) == 1 else 'are'} not active"
        if lacking
        else ""
    )


def show_code(subject: str, code: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Return what a proposal says of a contract's version, as rows of facts."""
    name = subject.removeprefix(CONTRACT_SUBJECT)
    return [
        ("contract", f"{name} {code['version']}, source {code['source']}"),
        ("from height", f"{code['at_height']} on, once a quorum of the nodes has it"),
    ]


def readiness(client: Client) -> Waiting:
    """Return of each contract whose change waits: the proposal, what it waits for, and whose nodes have it."""
    found: Waiting = {}
    try:
        rows = numbered_rows(client, "governance.pending")
    except NotFound:
        return found  # without governance nothing is decided
    for row in rows:
        proposal, number = row["proposal"], row["number"]
        if proposal["kind"] in KINDS and proposal["status"] == "waiting":
            view = client.query("governance.proposal", {"proposal": number}).value
            members = tuple(item["member"] for item in view["ready"])
            what = f"{proposal['kind'].partition('_')[0]} to {proposal['code']['version']}"
            found[proposal["subject"].removeprefix(CONTRACT_SUBJECT)] = (number, what, members)
    return found


def show_versions(output: Output, client: Client, contracts: Sequence[ContractAnswer]) -> None:
    """The table of the contracts."""
    waiting = readiness(client)
    output.table(
        ["contract", "version", "source", "active since", "also here", "decided", "ready", ""],
        [
            [
                item.name,
                item.version or "-",
                item.source[:DIGITS] or ("not here" if item.active else "-"),
                f"block {item.since}" if item.active else "not active",
                ", ".join(str(other.version) for other in item.shipped if other.version != item.version),
                _decided(waiting.get(item.name)),
                ", ".join(waiting[item.name][2]) if item.name in waiting else "",
                item.doc.partition("\n")[0],
            ]
            for item in contracts
        ],
    )


def _decided(waiting: tuple[int, str, tuple[str, ...]] | None) -> str:
    return "" if waiting is None else f"{waiting[1]} (proposal {waiting[0]})"
