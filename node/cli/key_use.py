"""Which of the keys that lie in a directory the ledger goes by: once one was rotated, several of its kind do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from node.cli.founding import PublicKey, Use
from node.cli.options import Directory, key_files, passphrase, principal_key_info
from node.cli.output import message
from node.client import Client
from node.errors import RejectedTransaction
from node.keys import SigningKey, read_key_file

_BEST_FIRST: Final[tuple[Use, ...]] = ("in_force", "former", "none")


def signer(files: Sequence[Path], principal: str | None, directory: Directory) -> str:
    """Who signs, without opening a key: the principal that is named, else whose the first key file is."""
    return principal or principal_key_info((files or key_files(principal, directory))[0]).id


def signing_keys(
    client: Client, files: Sequence[Path], principal: str | None, directory: Directory
) -> tuple[str, list[SigningKey]]:
    """Who signs, and the opened keys. Without key files, one that lies in the directory is taken.

    Never more than one, whatever the policy's threshold is: each further signature is somebody's decision.
    """
    found = files or key_files(principal, directory)
    infos = [principal_key_info(path) for path in found]
    who = principal or infos[0].id
    if not files and len(found) > 1:
        keys = [info.public_key.hex() for info in infos]
        found = [_best(client, who, dict(zip(found, keys, strict=True)))]
    phrase = passphrase(directory)
    return who, [read_key_file(path, phrase, kind="principal")[1] for path in found]


def _best(client: Client, principal: str, keys: Mapping[Path, str]) -> Path:
    """The file whose key (hex) is in force; else one that serves yet, else the first: that is told."""
    now_ms, policy = client.status().head_time_ms, _policy(client, principal)
    uses = {path: _use_in(policy, key, now_ms) for path, key in keys.items()}
    best = min(uses, key=lambda path: _BEST_FIRST.index(uses[path]))
    if uses[best] != "in_force":
        lasts = ", while its overlap lasts" if uses[best] == "former" else ""
        message(f"hansa: no key of {principal} here is in force; {best} signs{lasts}")
    return best


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
            return _use_in(policies[key.id], key.public_key, now_ms)
        if key.id != member:
            return "none"
        if key.public_key == listed[f"{key.kind}_key"]:
            return "in_force"
        if key.kind == "tls":
            return "former" if key.public_key == listed["former_tls_key"] else "none"
        return "expected" if key.public_key == listed["next_voting_key"] else "none"

    return [msgspec.structs.replace(key, use=use(key)) for key in keys]


def _use_in(policy: dict[str, Any], key: str, now_ms: int) -> Use:
    """What a principal's policy does with the key (hex) after a block of that time."""
    if key in policy.get("keys", ()):
        return "in_force"
    serves = any(item["key"] == key and now_ms < item["until_ms"] for item in policy.get("former", ()))
    return "former" if serves else "none"


def _policy(client: Client, principal: str) -> dict[str, Any]:
    """The principal's policy, empty where the ledger has none."""
    try:
        policy: dict[str, Any] = client.query("membership.principal", {"principal": principal}).value
    except RejectedTransaction as error:
        if error.details.get("reason") != "principal_not_found":
            raise
        return {}
    return policy
