"""The operator's two files: `network.toml`, the same at every member, and `node.toml`, this node's own.

What decides validity stands in network.toml and goes into the genesis hash; addresses stand there too, but
outside the hash, so that a member can move. What is local (directories, ports, limits of memory) stands in
node.toml. Every mistake is a ConfigError of one line: the file, the key, what is wrong there, what to do.
"""

from node.config.model import (
    BLOCK_BYTES_LIMIT,
    DiskSettings,
    Limits,
    LogLevel,
    MemberConfig,
    NetworkConfig,
    NodeConfig,
    Parameters,
    PrincipalConfig,
    Retention,
    Role,
    SnapshotSettings,
    SyncSettings,
)
from node.config.reading import load_network, load_node
from node.config.recoveries import NO_RECOVERIES, PROPOSER, Recoveries, Recovery
from node.config.rules import check_network, split_address
from node.config.writing import dump_network, dump_node

__all__ = [
    "BLOCK_BYTES_LIMIT",
    "NO_RECOVERIES",
    "PROPOSER",
    "DiskSettings",
    "Limits",
    "LogLevel",
    "MemberConfig",
    "NetworkConfig",
    "NodeConfig",
    "Parameters",
    "PrincipalConfig",
    "Recoveries",
    "Recovery",
    "Retention",
    "Role",
    "SnapshotSettings",
    "SyncSettings",
    "check_network",
    "dump_network",
    "dump_node",
    "load_network",
    "load_node",
    "split_address",
]
