"""Options that many commands share, and what they stand for: a client, a directory, keys, durations."""

import glob
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from node.cli.output import Output
from node.client import Client
from node.config import NetworkConfig, NodeConfig, load_network, load_node, split_address
from node.errors import ConfigError
from node.hardware import TokenAddress, TokenKey
from node.keys import KeyInfo, KeyKind, find_passphrase, read_key_info
from node.recovery import load_trusted, trusted

F = TypeVar("F", bound=Callable[..., Any])

NODE_FILE = "node.toml"
_ROTATED_DIGITS = 16
_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Duration(click.ParamType[int]):
    """A time like 500ms, 30s, 10m, 2h; a number alone means seconds. The value is milliseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]{1,9})(ms|s|m|h|d)?", str(value))
        if not found:
            self.fail(f"{value!r} is no duration: write 30s, 10m or 2h", param, ctx)
        return int(found[1]) * _UNITS_MS[found[2] or "s"]


class Directory:
    """The node directory that a command was pointed at, or the current one where it is one."""

    def __init__(self, path: Path | None) -> None:
        self.path = path or Path(".")
        self._given = path is not None

    def node(self) -> NodeConfig | None:
        """Its node.toml, or None where none lies and none was asked for."""
        file = self.path / NODE_FILE
        if not self._given and not file.exists():
            return None
        return load_node(file)

    def found(self) -> NodeConfig | None:
        """Its node.toml, or None where none lies: a directory may hold keys before its node is made."""
        file = self.path / NODE_FILE
        return load_node(file) if file.exists() else None

    def required(self) -> NodeConfig:
        """Its node.toml; raise ConfigError where none lies."""
        return load_node(self.path / NODE_FILE)


def output_option(command: F) -> F:
    """--json, as `output`."""
    return click.option(
        "--json",
        "output",
        is_flag=True,
        callback=lambda _context, _parameter, value: Output(value),
        help="Print one JSON document.",
    )(command)


def directory_option(command: F) -> F:
    """--dir, as `directory`."""
    return click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="HANSA_DIR",
        callback=lambda _context, _parameter, value: Directory(value),
        help="The node's directory (default: HANSA_DIR, or here).",
    )(command)


def node_option(command: F) -> F:
    """--node and --dir, as `nodes` and `directory`."""
    option = click.option(
        "--node",
        "nodes",
        multiple=True,
        envvar="HANSA_NODE",
        metavar="URL",
        help="A node's API; again for others to fall back to (default: HANSA_NODE, or the directory's node).",
    )
    return option(directory_option(command))


def anchor_option(command: F) -> F:
    """--anchor, as `anchors`."""
    return click.option(
        "--anchor",
        "anchors",
        multiple=True,
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="A recovery file that you trust, from a source of your own; again for each (docs/recovery.md).",
    )(command)


def trusted_network(network_file: Path | None, directory: Directory, anchors: Sequence[Path]) -> NetworkConfig:
    """The network of the file, or of the directory's node; with the recoveries that its user trusts.

    A node's own are trusted with its directory. Raise ConfigError (`invalid_usage`) where no network is named.
    """
    if network_file is not None:
        return trusted(load_network(network_file), anchors)
    node = directory.node()
    if node is None:
        raise ConfigError("invalid_usage", "no network is named: use --network FILE or --dir")
    return load_trusted(node, anchors)


def calls_options(command: F) -> F:
    """A call or a file of calls, as `method`, `arguments`, `calls_file` and `mode`."""
    options = (
        click.argument("method", required=False, metavar="[CONTRACT.METHOD]"),
        click.argument("arguments", nargs=-1, metavar="[NAME=VALUE …]"),
        click.option(
            "--file",
            "calls_file",
            type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
            help='Calls, one JSON object a line: {"call": "CONTRACT.METHOD", "args": {…}}; - is stdin.',
        ),
        click.option("--mode", type=click.Choice(["atomic", "each"]), default="atomic", show_default=True),
    )
    for option in reversed(options):
        command = option(command)
    return command


def connect(nodes: Sequence[str], directory: Directory, patience_s: float = 1.0) -> Client:
    """A client of the given nodes, or of the directory's own."""
    urls = list(nodes)
    if not urls:
        node = directory.node()
        if node is None:
            raise ConfigError("invalid_usage", "no node is named: use --node URL, HANSA_NODE or --dir")
        host, port = split_address(node.api)
        # A node that listens everywhere is reached here at this machine's own address.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        urls = [f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"]
    return Client(urls, patience_s=patience_s)


def passphrase(directory: Directory, *, confirm: bool = False) -> str:
    """The passphrase of the key files: environment, node.toml's file, or a prompt on a terminal."""

    def prompt() -> str:
        if not sys.stdin.isatty():
            return ""
        typed: str = click.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
        return typed

    node = directory.found()
    return find_passphrase(os.environ, node.passphrase_file if node else None, prompt)


def principal_key_info(path: Path) -> KeyInfo:
    """What the key file says of itself; raise ConfigError (`wrong_key`) for one that signs no transactions."""
    info = read_key_info(path)
    if info.kind != "principal":
        raise ConfigError("wrong_key", f"{path}: is a {info.kind} key, which signs no transactions")
    return info


def token_key(uri: str) -> TokenKey:
    """The key in a device that a `pkcs11:` URI names; its PIN comes from the URI's pin-source or a prompt."""
    address = TokenAddress.parse(uri)

    def pin() -> str:
        if address.pin_file is not None:
            return find_passphrase({}, address.pin_file)
        if not sys.stdin.isatty():
            raise ConfigError("pin_missing", f"{address.object or 'the key'}: there is no terminal to ask at")
        typed: str = click.prompt("PIN", hide_input=True, err=True)
        return typed

    return TokenKey(address, pin)


def key_files(principal: str | None, directory: Directory) -> list[Path]:
    """The files with keys of the principal (None: of its member) at the directory's node, the plain name first.

    Those that came in the place of an earlier one follow. Never empty: where none lies, the plain name is given.
    """
    node = directory.node()
    if node is None:
        raise ConfigError("invalid_usage", "no key is named: use --key FILE, or --dir with a node's directory")
    owner = principal or node.member
    first = node.keys_dir / key_file_name(owner)
    rotated = sorted(node.keys_dir.glob(f"{glob.escape(first.stem)}-{'[0-9a-f]' * _ROTATED_DIGITS}.key"))
    found = [path for path in rotated if _holds_key_of(owner, path)]
    return [first, *found] if first.exists() or not found else found


def _holds_key_of(principal: str, path: Path) -> bool:
    """Its content decides: a member may be called `bank-a-0123456789abcdef`."""
    info = read_key_info(path)
    return (info.kind, info.id) == ("principal", principal)


def key_file_name(principal: str) -> str:
    """The name of a principal's key file in a keys directory: `bank-a.treasury.key` for `bank-a/treasury`."""
    return principal.replace("/", ".") + ".key"


def rotated_file(keys_dir: Path, kind: KeyKind, owner: str, public_key: bytes) -> Path:
    """Where a key lies that came in the place of an earlier one, which stays: its first digits tell them apart."""
    name = key_file_name(owner).removesuffix(".key") if kind == "principal" else kind
    return keys_dir / f"{name}-{public_key.hex()[:_ROTATED_DIGITS]}.key"
