"""`hansa keys export` and `hansa keys import`: a key goes to another place, encrypted on the way, and is not lost.

Neither overwrites anything or removes the key that it read, and each opens again what it has written before it says
that it is done. A voting key that was imported may have voted elsewhere: it gets no right to vote from genesis.
"""

import sys
from pathlib import Path

import click

from node.cli.founding import forget_unused, public_key
from node.cli.options import Directory, directory_option, key_file_name, output_option, passphrase, rotated_file
from node.cli.output import Output, message
from node.cli.setup import show_keys
from node.config import NetworkConfig, load_network
from node.errors import ConfigError
from node.keys import (
    KeyInfo,
    SigningKey,
    find_passphrase,
    key_made_ms,
    read_key_file,
    read_key_info,
    write_key_file,
)

_export_option = click.option(
    "--export-passphrase-file",
    "export_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Holds the passphrase of the exported file (default: it is asked for).",
)


@click.command("export")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The new file.")
@_export_option
@directory_option
@output_option
def keys_export(file: Path, out: Path, export_file: Path | None, directory: Directory, output: Output) -> None:
    """Write a key to a file for another place, under a passphrase of its own.

    That passphrase should go another way than the file. The key stays where it is.
    """
    if not out.parent.is_dir():
        # A directory would be made, and the key lie on this machine where somebody meant a stick.
        raise ConfigError("key_file_unreadable", f"{out.parent}: there is no such directory", path=str(out.parent))
    if out.exists():
        raise ConfigError("key_file_exists", f"{out}: exists", path=str(out))
    info, key = read_key_file(file, passphrase(directory))
    _write(out, key, info, _export_passphrase(export_file, confirm=True), key_made_ms(file, info), travels=True)
    _done(out, output)


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The new key file (default: where the node of --dir looks for it).",
)
@click.option(
    "--network",
    "network_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The network's network.toml, where --dir has no node yet: it names the keys that came first.",
)
@_export_option
@directory_option
@output_option
def keys_import(
    file: Path,
    out: Path | None,
    network_file: Path | None,
    export_file: Path | None,
    directory: Directory,
    output: Output,
) -> None:
    """Put an exported key into its place, under the passphrase of the keys there.

    The exported file stays where it is: destroy it when the key is known to work.
    """
    info = read_key_info(file)
    target = out or _place(info, directory, network_file)
    if target.exists():
        raise ConfigError("key_file_exists", f"{target}: exists", path=str(target))
    info, key = read_key_file(file, _export_passphrase(export_file, confirm=False))
    phrase = passphrase(directory, confirm=True)
    if info.kind == "voting":
        # Before the key is there: between the two no right must exist that a key could take.
        forget_unused(target.parent)
    _write(target, key, info, phrase, key_made_ms(file, info), travels=False)
    _done(target, output)
    if info.kind == "voting":
        message("hansa: a voting key votes in one place only: never run two nodes with it")
        message("hansa: here it abstains until the node has caught up with what it may have voted for elsewhere")


def _place(info: KeyInfo, directory: Directory, network_file: Path | None) -> Path:
    """Where the directory's node looks for such a key; raise ConfigError where it is another member's.

    The kind alone is the name of the key which network.toml names; a later one has its first digits in its name.
    Where no network.toml says which one this is, as of a principal's, whichever is imported first is the first.
    """
    node = directory.found()
    if node is not None and info.id.partition("/")[0] != node.member:
        raise ConfigError(
            "wrong_key",
            f"it is the {info.kind} key of {info.id}, and the node in {directory.path} is {node.member}",
        )
    keys_dir = node.keys_dir if node else directory.path / "keys"
    first = keys_dir / (key_file_name(info.id) if info.kind == "principal" else f"{info.kind}.key")
    if network_file is None and node is not None and node.network_file.exists():
        network_file = node.network_file
    named = None if network_file is None else _named(load_network(network_file), info)
    if named is not None:
        is_first = info.public_key == named
    else:
        is_first = not first.exists() or read_key_info(first).public_key == info.public_key
    return first if is_first else rotated_file(keys_dir, info.kind, info.id, info.public_key)


def _named(network: NetworkConfig, info: KeyInfo) -> bytes | None:
    """The member's key of that kind in network.toml; None where it is no member there, or the key a principal's."""
    member = next((item for item in (*network.members, *network.peers) if item.id == info.id), None)
    if member is None or info.kind == "principal":
        return None
    return member.voting_key if info.kind == "voting" else member.tls_key


def _export_passphrase(file: Path | None, *, confirm: bool) -> str:
    def prompt() -> str:
        if not sys.stdin.isatty():
            raise ConfigError("export_passphrase_missing", "there is no terminal to ask at")
        typed: str = click.prompt(
            "Passphrase of the exported file", hide_input=True, confirmation_prompt=confirm, err=True
        )
        return typed

    return find_passphrase({}, file, prompt)


def _write(path: Path, key: SigningKey, info: KeyInfo, phrase: str, made_ms: int, *, travels: bool) -> None:
    """The key lies in the new file and comes out of it again."""
    write_key_file(path, key, kind=info.kind, id=info.id, passphrase=phrase, created_at_ms=made_ms, travels=travels)
    _, again = read_key_file(path, phrase, kind=info.kind, id=info.id)
    if again.public != key.public:
        raise ConfigError("key_file_invalid", f"{path}: does not hold what was written", path=str(path))


def _done(path: Path, output: Output) -> None:
    found = public_key(path)
    if output.as_json:
        output.document(found)
    else:
        show_keys(output, [found])
