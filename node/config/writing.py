"""From values to TOML that an operator can read and edit."""

import json
import re

from node.config.model import (
    DiskSettings,
    Limits,
    MemberConfig,
    NetworkConfig,
    NodeConfig,
    Parameters,
    PrincipalConfig,
    Retention,
    SnapshotSettings,
    SyncSettings,
)
from node.config.rules import check_network
from node.errors import ConfigError


def dump_network(network: NetworkConfig) -> str:
    """Return the text of a network.toml that load_network reads back as `network`; check it first."""
    check_network(network)
    lines = [
        f"# The network {network.network_id}: every member runs with this file, unchanged but for addresses.",
        "",
        "[network]",
        f"name = {_toml(network.name)}",
        *([f"as_of = {network.as_of}"] if network.as_of else []),
    ]
    for member in network.members:
        lines += ["", "[[members]]", *_member(member)]
    for principal in network.principals:
        lines += ["", "[[principals]]"]
        lines += [f"{key} = {_toml(getattr(principal, key))}" for key in PrincipalConfig.__struct_fields__]
    lines += ["", "[parameters]"]
    lines += [f"{key} = {_toml(getattr(network.parameters, key))}" for key in Parameters.__struct_fields__]
    for name, arguments in network.contracts.items():
        lines += ["", f"[contracts.{name}]"]
        lines += [f"{_toml_key(key)} = {_toml(value)}" for key, value in arguments.items()]
    for peer in network.peers:
        lines += ["", "[[peers]]", *_member(peer)]
        lines += [f"former_tls_key = {_toml(peer.former_tls_key)}"] if peer.former_tls_key else []
    return "\n".join(lines) + "\n"


def dump_node(node: NodeConfig) -> str:
    """Return the text of a node.toml that load_node reads back as `node` (paths as they are given)."""
    lines = [
        f"# The node of {node.member}. Relative paths start at this file's directory.",
        f"member = {_toml(node.member)}",
        f"network = {_toml(str(node.network_file))}",
        f"data_dir = {_toml(str(node.data_dir))}",
        f"keys_dir = {_toml(str(node.keys_dir))}",
    ]
    if node.passphrase_file is not None:
        lines.append(f"passphrase_file = {_toml(str(node.passphrase_file))}")
    lines += [f"{key} = {_toml(getattr(node, key))}" for key in ("listen", "api", "log_level")]
    lines += ["", "[limits]"]
    lines += [f"{key} = {_toml(getattr(node.limits, key))}" for key in Limits.__struct_fields__]
    lines += ["", "[retention]"]
    for key in Retention.__struct_fields__:
        value = getattr(node.retention, key)
        if value is not None:
            lines.append(f"{key} = {_toml(str(value) if key == 'archive_dir' else value)}")
    lines += ["", "[disk]"]
    lines += [f"{key} = {_toml(getattr(node.disk, key))}" for key in DiskSettings.__struct_fields__]
    lines += ["", "[snapshots]"]
    lines += [f"{key} = {_toml(getattr(node.snapshots, key))}" for key in SnapshotSettings.__struct_fields__]
    lines += ["", "[sync]"]
    lines += [f"{key} = {_toml(getattr(node.sync, key))}" for key in SyncSettings.__struct_fields__]
    return "\n".join(lines) + "\n"


def _member(member: MemberConfig) -> list[str]:
    keys = [key for key in MemberConfig.__struct_fields__ if key != "former_tls_key"]
    return [f"{key} = {_toml(getattr(member, key))}" for key in keys]


def _toml(value: object) -> str:
    """Keys (bytes) become hex text; tables become inline tables."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case bytes():
            return f'"{value.hex()}"'
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case tuple() | list():
            return "[" + ", ".join(_toml(item) for item in value) + "]"
        case dict():
            return "{" + ", ".join(f"{_toml_key(key)} = {_toml(item)}" for key, item in value.items()) + "}"
        case _:
            raise ConfigError("config_invalid", f"{type(value).__name__} cannot be written to a TOML file")


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)
