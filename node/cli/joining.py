"""`hansa invite`, and what `hansa init --join` makes of an invitation: a directory, and a request to the members.

An invitation is the network's definition with the members' links as they are now. It gives nobody any right: the
newcomer's node checks the ledger from genesis on by itself, and is refused until the members have voted for it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from node.cli.founding import NETWORK_FILE, Founded, PublicKey, join_network
from node.cli.options import Directory, connect, node_option
from node.config import MemberConfig, NetworkConfig, Role, check_network, dump_network, load_network
from node.errors import ConfigError

REQUEST_FILE = "request.json"
REQUEST_SIZE_MAX = 65_536


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the members need to vote on a newcomer: its public keys in hex, `keys` being its root principal's."""

    network: str
    member: str
    role: Role
    address: str
    voting_key: str
    tls_key: str
    keys: tuple[str, ...]
    threshold: int


@click.command()
@node_option
def invite(nodes: Sequence[str], directory: Directory) -> None:
    """Print an invitation to this network: its definition, and how the members are linked now.

    Give it to who is to join: hansa init --join FILE. It holds no secret.
    """
    network = load_network(directory.required().network_file)
    with connect(nodes, directory) as client:
        answer = client.query("membership.members")
        addresses = {member.id: member.address for member in client.members()}
    click.echo(dump_network(invitation(network, answer.value, addresses, answer.height)), nl=False)


def invitation(
    network: NetworkConfig, rows: Sequence[dict[str, Any]], addresses: dict[str, str], height: int
) -> NetworkConfig:
    """Return the network with the members as the ledger has them at `height`, where they differ from it."""
    founders = {member.id: member for member in network.members}
    now = [
        MemberConfig(
            row["id"],
            row["role"],
            addresses.get(row["id"], row["address"]),
            bytes.fromhex(row["voting_key"]),
            bytes.fromhex(row["tls_key"]),
            bytes.fromhex(row["former_tls_key"]),
        )
        for row in rows
        if row["standing"] != "removed"
    ]
    peers = tuple(
        member for member in now if member.id not in founders or member.tls_keys != founders[member.id].tls_keys
    )
    return msgspec.structs.replace(network, peers=peers, as_of=height)


def join_by_invitation(
    directory: Path,
    member: str,
    role: Role,
    file: Path,
    keys: Sequence[PublicKey],
    address: str,
    listen: str,
    api: str | None,
    passphrase_file: Path | None,
) -> tuple[Founded, Request]:
    """The directory holds a node that follows the network once its members voted for it, and the request to them.

    Raise ConfigError where the invitation is damaged, of another network than lies there, or names the member.
    """
    invited = load_network(file)
    target = directory / NETWORK_FILE
    if target.exists() and load_network(target).genesis_hash != invited.genesis_hash:
        raise ConfigError(
            "data_of_another_network",
            f"{directory} belongs to another network than {file}; use a directory of its own",
            path=str(directory),
        )
    public = {key.kind: key.public_key for key in keys}
    own = MemberConfig(member, role, address, bytes.fromhex(public["voting"]), bytes.fromhex(public["tls"]))
    if any(known.id == member and known.tls_keys != own.tls_keys for known in invited.known):
        raise ConfigError("invalid_usage", f"{member} is a member of {invited.network_id} already: take another id")
    peers = (*(peer for peer in invited.peers if peer.id != member), own)
    network = msgspec.structs.replace(invited, peers=peers)
    check_network(network, file)
    text = dump_network(network)
    target.write_text(text)
    made = join_network(directory, member, target, listen=listen, api=api, passphrase_file=passphrase_file)
    root = tuple(key.public_key for key in keys if (key.kind, key.id) == ("principal", member))
    request = Request(network.network_id, member, role, address, public["voting"], public["tls"], root, len(root))
    (directory / REQUEST_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(request)) + b"\n")
    return made, request


def read_request(file: Path, network: str, member: str) -> Request:
    """Return the request in `file`; raise ConfigError unless it is that of `member` to join `network`."""
    try:
        with file.open("rb") as source:
            data = source.read(REQUEST_SIZE_MAX + 1)
        found = msgspec.json.decode(data[:REQUEST_SIZE_MAX], type=Request)
        for key in (found.voting_key, found.tls_key, *found.keys):
            if len(bytes.fromhex(key)) != 32:
                raise ValueError(f"{key[:80]!r} is no public key")
    except OSError as error:
        raise ConfigError("config_unreadable", f"{file}: {error.strerror or error}", path=str(file)) from error
    except ValueError as error:  # msgspec's own are ValueErrors too
        raise ConfigError("invalid_usage", f"{file}: is no request to join ({error})", path=str(file)) from error
    if (found.network, found.member) != (network, member):
        text = f"{file}: {found.member} asks to join {found.network}, not {member} to join {network}"
        raise ConfigError("invalid_usage", text, path=str(file))
    return found
