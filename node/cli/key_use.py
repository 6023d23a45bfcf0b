"""Which of the keys that lie in a directory the ledger goes by: once one was rotated, several of its kind do."""

from collections.abc import Sequence
from typing import Any

import msgspec

from node.cli.founding import PublicKey, Use
from node.client import Client
from node.errors import HansaError


def with_uses(client: Client, member: str, keys: Sequence[PublicKey]) -> list[PublicKey]:
    """The same keys, each with its use after the node's last block.

    `in_force`: it signs (of links: it is shown). `former`: it was rotated, and serves beside its successor yet.
    `expected`: the members have decided on it, and the node's own word is waited for. `none`: the ledger does not
    know it, not yet or no more. Raise HansaError where the node does not answer.
    """
    now_ms = client.status().head_time_ms
    listed: dict[str, Any] = client.query("membership.member", {"member": member}).value
    policies = {name: _policy(client, name) for name in {key.id for key in keys if key.kind == "principal"}}

    def use(key: PublicKey) -> Use:
        if key.kind == "principal":
            policy = policies[key.id]
            if key.public_key in policy.get("keys", ()):
                return "in_force"
            rotated = policy.get("former", ())
            serves = any(item["key"] == key.public_key and now_ms < item["until_ms"] for item in rotated)
            return "former" if serves else "none"
        if key.id != member:
            return "none"
        if key.public_key == listed[f"{key.kind}_key"]:
            return "in_force"
        if key.kind == "tls":
            return "former" if key.public_key == listed["former_tls_key"] else "none"
        return "expected" if key.public_key == listed["next_voting_key"] else "none"

    return [msgspec.structs.replace(key, use=use(key)) for key in keys]


def _policy(client: Client, principal: str) -> dict[str, Any]:
    """The principal's policy, empty where the ledger has none."""
    try:
        policy: dict[str, Any] = client.query("membership.principal", {"principal": principal}).value
    except HansaError as error:
        if error.code != "principal_not_found":
            raise
        return {}
    return policy
