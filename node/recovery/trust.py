"""Whom an operator or a verifier's user trusts besides the network's definition: the recovery files that they name.

A recovery file is read from where a person has put it, as network.toml is: from `recoveries/` beside a node's data,
where `hansa recovery apply` alone puts one, or from a path on the command line. Nothing else ever leads to one.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path

import msgspec

from node.config import NetworkConfig, NodeConfig, Recoveries, load_network
from node.errors import ConfigError
from node.recovery.file import FILE_SIZE_MAX, RecoveryFile


def read_recovery_file(path: Path) -> RecoveryFile:
    """Return the recovery in the file at `path`; raise ConfigError, which names the file."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_SIZE_MAX + 1)
    except OSError as error:
        raise ConfigError("recovery_file_unreadable", f"{path}: {error.strerror or error}") from error
    try:
        return RecoveryFile.decode(data)
    except ConfigError as error:
        raise ConfigError(error.code, f"{path}: {error.message}") from error


def trusted(network: NetworkConfig, paths: Iterable[Path]) -> NetworkConfig:
    """Return the network with the recoveries in the files at `paths`, which its user says to trust.

    Raise ConfigError for a file that is none of this network (`recovery_of_another_network`), that not every
    survivor has signed (`recovery_incomplete`), or for two of the same height, or of which the later one goes on
    from another block than the earlier one's (`recovery_differs`).
    """
    found: dict[bytes, RecoveryFile] = {}
    for path in paths:
        file = read_recovery_file(path)
        if (file.network, file.genesis_hash) != (network.network_id, network.genesis_hash):
            raise ConfigError("recovery_of_another_network", f"{path}: it recovers {file.network}")
        if file.missing:
            raise ConfigError(
                "recovery_incomplete", f"{path}: these survivors have not signed: {', '.join(file.missing)}"
            )
        found[file.digest] = file
    files = sorted(found.values(), key=lambda file: file.header.height)
    for below, above in itertools.pairwise(files):
        if above.base_height < below.header.height:
            how = "recover the network at one height"
        elif above.base_height == below.header.height and above.base_digest != below.digest:
            how = f"name two blocks {above.base_height}"
        else:
            continue
        raise ConfigError(
            "recovery_differs",
            f"{below.digest.hex()} and {above.digest.hex()} {how}: these are two histories, and only one of them"
            " can be followed",
        )
    return msgspec.structs.replace(network, recoveries=Recoveries(tuple([file.recovery for file in files])))


def load_trusted(node: NodeConfig, anchors: Iterable[Path] = ()) -> NetworkConfig:
    """Return the network that the node's files define, with the recoveries that its operator has applied here.

    And with those in the files at `anchors`, which raise as in `trusted`.
    """
    return trusted(load_network(node.network_file), [*sorted(node.recoveries_dir.glob("*.json")), *anchors])
