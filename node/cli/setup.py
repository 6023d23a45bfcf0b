"""Commands of the operator at the machine: make a node, its keys, run it."""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import msgspec

from node.cli.founding import Founded, PublicKey, join_network, list_keys, make_keys, member_tables, public_key
from node.cli.joining import REQUEST_FILE, join_by_invitation
from node.cli.key_use import with_uses
from node.cli.options import (
    NODE_FILE,
    Directory,
    connect,
    directory_option,
    output_option,
    passphrase,
    rotated_file,
    token_key,
)
from node.cli.output import Output, message
from node.config import Role
from node.errors import ConfigError, HansaError
from node.hardware import names_device
from node.keys import KeyKind, SigningKey, find_passphrase, write_key_file
from node.wording import counted

_MEMBER_ID = re.compile(r"[a-z][a-z0-9-]{0,31}")
_UNITS: Final = ((86_400_000, "day"), (3_600_000, "hour"), (60_000, "minute"))
_USES: Final = {"in_force": "in force", "former": "former", "expected": "expected", "none": "-"}
_PRINCIPAL_ID = re.compile(r"[a-z][a-z0-9-]{0,31}(/[a-z][a-z0-9-]{0,31})?")


@click.command()
@click.option("--member", required=True, metavar="ID", help="This institution's id in the network.")
@click.option(
    "--network", "network_file", type=click.Path(path_type=Path, dir_okay=False), help="The network's network.toml."
)
@click.option(
    "--join",
    "invitation",
    type=click.Path(path_type=Path, dir_okay=False),
    help="An invitation (hansa invite) to a network that runs.",
)
@click.option(
    "--role", type=click.Choice(["validator", "observer", "regulator"]), default="validator", help="With --join."
)
@click.option("--address", metavar="HOST:PORT", help="With --join: where the others reach it (default: --listen).")
@click.option("--principal", "principals", multiple=True, metavar="ID", help="Make a signing key for it too.")
@click.option("--listen", metavar="HOST:PORT", help="For peers (default: the address in network.toml).")
@click.option("--api", metavar="HOST:PORT", help="For HTTP (default: 127.0.0.1:7700).")
@click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Opens the keys whenever the node starts; noted in node.toml.",
)
@directory_option
@output_option
def init(
    member: str,
    network_file: Path | None,
    invitation: Path | None,
    role: Role,
    address: str | None,
    principals: Sequence[str],
    listen: str | None,
    api: str | None,
    passphrase_file: Path | None,
    directory: Directory,
    output: Output,
) -> None:
    """Make a node's directory; nothing that is there is overwritten.

    First without --network: makes the keys and prints what network.toml needs of this member. Then, with the
    network.toml that everybody agreed on: checks it, writes node.toml and genesis.

    With --join: makes all of that for a new member, and writes the request on which the members vote.
    """
    if not _MEMBER_ID.fullmatch(member):
        raise ConfigError("invalid_usage", f"{member!r} is no member id: use lower-case letters, digits and '-'")
    base = directory.path
    if invitation is not None:
        if network_file is not None or listen is None:
            raise ConfigError("invalid_usage", "--join goes with --listen HOST:PORT, and without --network")
        phrase = passphrase_from(directory, passphrase_file)
        made_keys = make_keys(base, member, (member, *principals), phrase)
        reached = address or listen
        joined, request = join_by_invitation(
            base, member, role, invitation, made_keys, reached, listen, api, passphrase_file
        )
        if output.as_json:
            output.document({**msgspec.to_builtins(joined), "request": request})
            return
        show_keys(output, joined.keys)
        output.text(f"A member proposes it: hansa propose add_member {member} --request {base / REQUEST_FILE}")
        output.text(f"Its node may run from now on, and is let in when enough voted: hansa run --dir {base}")
        return
    owners = principals or (() if network_file else (member,))
    has_keys = (base / "keys" / "voting.key").exists()
    if owners or not has_keys:
        if network_file and not has_keys:
            raise ConfigError(
                "key_file_unreadable",
                f"{base / 'keys'}: has no voting key for network.toml to name; first run this without --network",
            )
        phrase = passphrase_from(directory, passphrase_file)
        made = Founded(member, str(base), tuple(make_keys(base, member, owners, phrase)))
    if network_file is not None:
        made = join_network(base, member, network_file, listen=listen, api=api, passphrase_file=passphrase_file)
    if output.as_json:
        output.document(made)
        return
    show_keys(output, made.keys)
    if made.network is None:
        message("For network.toml:")
        click.echo(member_tables(member, made.keys, listen or "HOST:PORT"))
        return
    output.text(f"{base / NODE_FILE} runs {member} in {made.network}: hansa run --dir {base}")
    if not made.may_vote:
        output.text("Its key may have voted before, so the node abstains until it has caught up with the others.")


def passphrase_from(directory: Directory, file: Path | None) -> str:
    """The passphrase of a file that was named on the command line, else as for every command."""
    if file is None:
        return passphrase(directory, confirm=True)
    return find_passphrase({}, file)


def show_keys(output: Output, found: Sequence[PublicKey]) -> None:
    """The keys are shown as a table: whose, how old, how kept."""
    now_ms = time.time_ns() // 1_000_000
    asked = any(key.use is not None for key in found)
    output.table(
        ["kind", "id", "age", "encrypted", *(["use"] if asked else []), "public key", "file"],
        [
            [k.kind, k.id, _age(k, now_ms), k.encrypted, *([_USES[k.use]] if k.use else []), k.public_key, k.file]
            for k in found
        ],
    )


def _age(key: PublicKey, now_ms: int) -> str:
    """How old the key is, in the largest unit of which it has one."""
    age_ms = max(0, now_ms - key.created_at_ms)
    length_ms, unit = next((row for row in _UNITS if age_ms >= row[0]), _UNITS[-1])
    words = counted(age_ms // length_ms, unit)
    return words if key.created_from == "key" else f"at least {words}"


@click.group()
def keys() -> None:
    """Look at key files, make signing keys, carry keys from one place to another."""


@keys.command("list")
@directory_option
@output_option
def keys_list(directory: Directory, output: Output) -> None:
    """The key files of a node's directory: whose, how old, how kept; of a node that runs, which are in force."""
    node = directory.found()
    keys_dir = node.keys_dir if node else directory.path / "keys"
    if not keys_dir.is_dir():
        raise ConfigError("key_file_unreadable", f"{keys_dir}: there is no such directory", path=str(keys_dir))
    found = list_keys(keys_dir)
    if node is not None:
        try:
            with connect((), directory, patience_s=0.0) as client:
                found = with_uses(client, node.member, found)
        except HansaError as error:
            message(f"hansa: which of them are in force is not known: {error}")
    if output.as_json:
        output.document({"keys": found})
    else:
        show_keys(output, found)


@keys.command("show")
@click.argument("key", metavar="FILE|URI")
@output_option
def keys_show(key: str, output: Output) -> None:
    """What a key file says about itself, without a passphrase. Of a key in a device (pkcs11:…) the public key."""
    if names_device(key):
        public = token_key(key).public.hex()
        if output.as_json:
            output.document({"public_key": public})
        else:
            output.facts([("public key", public)])
        return
    found = public_key(Path(key))
    if output.as_json:
        output.document(found)
    else:
        show_keys(output, [found])


@keys.command("new")
@click.option("--principal", required=True, metavar="ID", help="Who signs with it: bank-a or bank-a/treasury.")
@click.option("--file", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Where it is written.")
@directory_option
@output_option
def keys_new(principal: str, file: Path, directory: Directory, output: Output) -> None:
    """Make a signing key; its public key goes into the principal's policy."""
    if not _PRINCIPAL_ID.fullmatch(principal):
        raise ConfigError("invalid_usage", f"{principal!r} is no principal: write MEMBER or MEMBER/NAME")
    key = SigningKey.generate()
    write_key_file(file, key, kind="principal", id=principal, passphrase=passphrase(directory, confirm=True))
    made = public_key(file)
    if output.as_json:
        output.document(made)
    else:
        show_keys(output, [made])


@keys.command("rotate")
@click.option("--kind", type=click.Choice(["voting", "tls", "principal"]), default="voting", show_default=True)
@click.option("--principal", metavar="ID", help="With --kind principal (default: the member's root).")
@directory_option
@output_option
def keys_rotate(kind: KeyKind, principal: str | None, directory: Directory, output: Output) -> None:
    """Make the key that comes in the place of one in use; the keys that are there stay.

    voting, tls: restart the node, so that it has the key at hand; then `hansa propose rotate_voting_key`, or
    `rotate_tls_key`. principal: `hansa tx submit membership.rotate_key principal=… former=… key=…`.
    """
    node = directory.required()
    if principal is not None and (kind != "principal" or not _PRINCIPAL_ID.fullmatch(principal)):
        raise ConfigError("invalid_usage", "--principal ID goes with --kind principal: write MEMBER or MEMBER/NAME")
    key = SigningKey.generate()
    owner = (principal or node.member) if kind == "principal" else node.member
    file = rotated_file(node.keys_dir, kind, owner, key.public)
    write_key_file(file, key, kind=kind, id=owner, passphrase=passphrase(directory))
    made = public_key(file)
    if output.as_json:
        output.document(made)
    else:
        show_keys(output, [made])


@click.command()
@directory_option
def run(directory: Directory) -> int:
    """Run the node of a directory until it is told to stop (SIGTERM, SIGINT)."""
    directory.required()
    # Imported here: the whole node is loaded only by the command that runs it.
    from node.runtime import run as run_node

    return run_node(directory.path, lambda: passphrase(directory))
