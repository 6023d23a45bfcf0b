"""What a configuration must fulfil beyond its shape, and how a mistake is told: file, key, wrong, remedy."""

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import msgspec.inspect

from consensus.codec import CodecError, check_plain
from consensus.messages import VALIDATORS_MAX
from node.config.model import NetworkConfig, Parameters, Retention
from node.errors import ConfigError
from node.wording import counted

T = TypeVar("T")

MEMBERS_MAX = 256
PRINCIPALS_MAX = 10_000
POLICY_KEYS_MAX = 16
HOLDS_MAX = 10_000
HOLD_LENGTH_MAX = 512

_NETWORK_NAME = re.compile(r"[a-z][a-z0-9-]{0,47}")
MEMBER_ID = re.compile(r"[a-z][a-z0-9-]{0,31}")
_PRINCIPAL_ID = re.compile(r"([a-z][a-z0-9-]{0,31})(/[a-z][a-z0-9-]{0,31})?")
_CONTRACT_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9]{1,15})?\]")


def check_network(network: NetworkConfig, path: Path | str = "network.toml") -> None:
    """Raise ConfigError for the first rule that `network` breaks; `path` names the file in the message."""
    if not _NETWORK_NAME.fullmatch(network.name):
        raise invalid(
            path,
            "network.name",
            f"{network.name!r} is no network name",
            "use lower-case letters, digits and '-', at most 48, first a letter",
        )
    _check_members(network, path)
    _check_peers(network, path)
    _check_principals(network, path)
    check_parameters(network.parameters, path)
    for name, arguments in network.contracts.items():
        where = f"contracts.{name}"
        if not _CONTRACT_NAME.fullmatch(name):
            raise invalid(path, where, "is no contract name", "name an existing contract")
        if name == "membership":
            raise invalid(path, where, "is derived from [[members]] and [[principals]]", "remove it")
        try:
            check_plain(arguments)
        except CodecError as error:
            raise invalid(
                path, where, f"holds a value without canonical form: {error}", "use text, integers, true, false"
            ) from error


def check_parameters(parameters: Parameters, path: Path | str = "network.toml") -> None:
    """Raise ConfigError for the first rule that `parameters` break; `path` names the file in the message."""
    convert(Path(path), {"parameters": msgspec.to_builtins(parameters)}, _ParametersFile)
    if parameters.timeout_cap_ms < parameters.base_timeout_ms:
        raise invalid(path, "parameters.timeout_cap_ms", "is below base_timeout_ms", "raise it")
    if parameters.status_interval_ms * 2 > parameters.base_timeout_ms:
        raise invalid(
            path,
            "parameters.status_interval_ms",
            "is more than half of base_timeout_ms, so that one lost heartbeat deposes a primary",
            "lower it or raise base_timeout_ms",
        )
    if parameters.call_operations_max > parameters.block_operations_max:
        raise invalid(path, "parameters.call_operations_max", "is above block_operations_max", "lower it")


def check_retention(retention: Retention, data_dir: Path, path: Path | str = "node.toml") -> None:
    """Raise ConfigError for the first rule that `retention` breaks; `path` names the file in the message."""
    directory = retention.archive_dir
    if retention.archive and directory is None and retention.prunes:
        raise invalid(
            path,
            "retention.archive_dir",
            "is missing, so that pruned blocks would be kept nowhere",
            'name a directory, or write "archive = false" if this node may forget them',
        )
    if not retention.archive and directory is not None:
        raise invalid(path, "retention.archive", "is false although archive_dir is given", "remove one of the two")
    if directory is not None and data_dir.resolve() in (directory.resolve(), *directory.resolve().parents):
        raise invalid(
            path, "retention.archive_dir", "lies in data_dir, which a repair wipes", "choose a directory outside"
        )
    if len(retention.hold) > HOLDS_MAX:
        raise invalid(path, "retention.hold", f"has more than {HOLDS_MAX} entries", "hold topics of more blocks")
    for place, word in enumerate(retention.hold):
        where = f"retention.hold[{place}]"
        if not 1 <= len(word) <= HOLD_LENGTH_MAX or not word.isprintable() or word != word.strip("/ "):
            raise invalid(
                path, where, f"{word[:60]!r} is no account, claim or topic", 'write it as it is, such as "C-14730"'
            )
        if word in retention.hold[:place]:
            raise invalid(path, where, f"repeats {word!r}", "remove it")


class _ParametersFile(msgspec.Struct):
    parameters: Parameters


def _check_members(network: NetworkConfig, path: Path | str) -> None:
    if not network.members:
        raise invalid(path, "members", "is empty", "add a [[members]] table for each institution")
    if len(network.members) > MEMBERS_MAX:
        raise invalid(path, "members", f"has more than {MEMBERS_MAX} entries", "remove some")
    voting = sum(member.role == "validator" for member in network.members)
    if not 1 <= voting <= VALIDATORS_MAX:
        raise invalid(
            path,
            "members",
            f"has {voting} validators, so that nobody could decide" if not voting else f"has {voting} validators",
            f'give at least one and at most {VALIDATORS_MAX} members role = "validator"',
        )
    unique = _Unique(path)
    for position, member in enumerate(network.members):
        where = f"members[{position}]"
        if not MEMBER_ID.fullmatch(member.id):
            raise invalid(
                path,
                f"{where}.id",
                f"{member.id!r} is no member id",
                "use lower-case letters, digits and '-', at most 32, first a letter",
            )
        check_address(path, f"{where}.address", member.address, port_min=1)
        unique.add(f"{where}.id", member.id, "every member needs its own id")
        unique.add(f"{where}.address", member.address.lower(), "give every node its own address")
        for field in ("voting_key", "tls_key"):
            key: bytes = getattr(member, field)
            _check_key(path, f"{where}.{field}", key)
            unique.add(f"{where}.{field}", key.hex(), "every member has a voting key and a TLS key of its own")


def _check_peers(network: NetworkConfig, path: Path | str) -> None:
    if len(network.peers) > 2 * MEMBERS_MAX:
        raise invalid(path, "peers", f"has more than {2 * MEMBERS_MAX} entries", "remove some")
    unique, linked = _Unique(path), _Unique(path)
    for position, peer in enumerate(network.peers):
        where = f"peers[{position}]"
        if not MEMBER_ID.fullmatch(peer.id):
            raise invalid(path, f"{where}.id", f"{peer.id!r} is no member id", "write the id that the ledger has")
        check_address(path, f"{where}.address", peer.address, port_min=1)
        unique.add(f"{where}.id", peer.id, "write each member once")
    for member in network.known:
        for key in member.tls_keys:
            linked.add(f"the TLS key of {member.id}", key.hex(), "a TLS key proves one member")


def _check_principals(network: NetworkConfig, path: Path | str) -> None:
    if len(network.principals) > PRINCIPALS_MAX:
        raise invalid(path, "principals", f"has more than {PRINCIPALS_MAX} entries", "add them by transactions")
    member_ids = [member.id for member in network.members]
    node_keys = {key: member.id for member in network.members for key in (member.voting_key, member.tls_key)}
    key_owner: dict[bytes, str] = {}
    unique = _Unique(path)
    for position, principal in enumerate(network.principals):
        where = f"principals[{position}]"
        found = _PRINCIPAL_ID.fullmatch(principal.id)
        if not found:
            raise invalid(
                path, f"{where}.id", f"{principal.id!r} is no principal", "write a member id, or <member id>/<name>"
            )
        if found[1] not in member_ids:
            close = difflib.get_close_matches(found[1], member_ids, n=1)
            remedy = f"did you mean {close[0]}?" if close else "add the member or correct the id"
            raise invalid(path, f"{where}.id", f"{principal.id!r} belongs to no member", remedy)
        unique.add(f"{where}.id", principal.id, "put all its keys into one [[principals]] table")
        if not 1 <= len(principal.keys) <= POLICY_KEYS_MAX:
            raise invalid(
                path, f"{where}.keys", f"has {len(principal.keys)} keys", f"give it 1 to {POLICY_KEYS_MAX} keys"
            )
        if not 1 <= principal.threshold <= len(principal.keys):
            raise invalid(
                path,
                f"{where}.threshold",
                f"is {principal.threshold}, but {principal.id} has {counted(len(principal.keys), 'key')}",
                f"choose 1 to {len(principal.keys)}",
            )
        for place, key in enumerate(principal.keys):
            spot = f"{where}.keys[{place}]"
            _check_key(path, spot, key)
            if key in principal.keys[:place]:
                raise invalid(path, spot, "repeats a key of the same principal", "remove it")
            if key in node_keys:
                raise invalid(path, spot, f"is a node key of {node_keys[key]}", "use a signing key of its own")
            if key_owner.setdefault(key, found[1]) != found[1]:
                raise invalid(path, spot, f"also signs for {key_owner[key]}", "members never share a key")


class _Unique:
    """Refuses the second use of one value under one name or another."""

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._seen: dict[str, str] = {}

    def add(self, where: str, value: str, remedy: str) -> None:
        """Note `value`, or raise ConfigError when it was noted before."""
        first = self._seen.setdefault(value, where)
        if first != where:
            shown = value if len(value) < 64 else value[:16] + "…"
            raise invalid(self._path, where, f"repeats {first} ({shown})", remedy)


def _check_key(path: Path | str, where: str, key: bytes) -> None:
    if len(key) != 32:
        raise invalid(path, where, f"has {len(key)} bytes", "a public key has 32 bytes (64 hex digits)")


def check_address(path: Path | str, where: str, address: str, port_min: int) -> None:
    try:
        _, port = split_address(address)
        if port < port_min:
            raise ValueError(f"has no port between {port_min} and 65535")
    except ValueError as error:
        remedy = 'write "host:port", for example "bank-a.example:7600" or "[::1]:7600"'
        raise invalid(path, where, f"{address!r} {error}", remedy) from error


def split_address(address: str) -> tuple[str, int]:
    """Return host (IPv6 without its brackets) and port of "host:port"; raise ValueError when it is none."""
    host, separator, port = address.rpartition(":")
    if not separator or not _HOST.fullmatch(host):
        raise ValueError("has no host")
    if not re.fullmatch(r"0|[1-9][0-9]{0,4}", port) or int(port) > 65_535:
        raise ValueError("has no port between 0 and 65535")
    return host.strip("[]"), int(port)


def convert(path: Path, plain: Any, type_: type[T], place: str = "") -> T:
    """Return `plain`, which stands at `place` in the file, strictly as `type_`; raise ConfigError with a remedy."""
    try:
        return msgspec.convert(plain, type_, strict=True)
    except msgspec.ValidationError as error:
        text, _, location = str(error).partition(" - at `")
        where = (place + location.rstrip("`").removeprefix("$")).removeprefix(".").replace("[...]", "[*]")
        missing = re.fullmatch(r"Object missing required field `(.*)`", text)
        if missing:
            raise invalid(path, _join(where, missing[1]), "is missing", "add it") from error
        unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL)
        if unknown:
            remedy = _remedy(unknown[1], location.rstrip("`").removeprefix("$").removeprefix("."), type_)
            raise invalid(path, _join(where, unknown[1]), "is not a known key", remedy) from error
        wrong = text[:1].lower() + text[1:]
        raise invalid(path, where, f"is wrong: {wrong}", "correct the value") from error


def _remedy(key: str, table: str, type_: type[Any]) -> str:
    """What to do about the unknown `key` in `table` ("": the top) of a file of `type_`; names only what exists."""
    tables = _tables(type_)
    close = [name for name in difflib.get_close_matches(key, tables.get(table, ()), n=1) if name != key]
    if close:
        return f"did you mean {close[0]}?"
    homes = [name for name, keys in tables.items() if key in keys and name != table]
    if len(homes) == 1:
        return f"it belongs in [{homes[0]}]" if homes[0] else "it belongs above the first table"
    return "remove it"


def _tables(type_: type[Any]) -> dict[str, list[str]]:
    """The keys of `type_` under "", and those of the tables inside it under their dotted names."""
    found: dict[str, list[str]] = {}
    pending: list[tuple[str, Any]] = [("", msgspec.inspect.type_info(type_))]
    while pending:
        name, info = pending.pop()
        if isinstance(info, msgspec.inspect.StructType):
            found[name] = [field.name for field in info.fields]
            pending += [(_join(name, field.name), field.type) for field in info.fields]
    return found


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def one_line(text: str) -> str:
    return " ".join(text.split())


def invalid(path: Path | str, key: str, wrong: str, remedy: str) -> ConfigError:
    message = one_line(f"{path}: {key or 'the file'} {wrong}; {remedy}")
    return ConfigError("config_invalid", message, path=str(path), key=key)
