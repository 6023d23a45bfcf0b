"""From TOML to values: the shape of the files, and where in them a mistake stands."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from node.config.model import (
    HISTORY_BLOCKS_MAX,
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
from node.config.rules import (
    MEMBER_ID,
    check_address,
    check_network,
    check_retention,
    convert,
    invalid,
    one_line,
    split_address,
)
from node.errors import ConfigError

T = TypeVar("T")

FILE_SIZE_MAX = 8 * 1024 * 1024

_HEX_KEY = re.compile(r"[0-9a-f]{64}")


class _NetworkTable(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    as_of: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)] = 0


class _MemberTable(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    role: Role
    address: str
    voting_key: str
    tls_key: str


class _PeerTable(_MemberTable, forbid_unknown_fields=True):
    former_tls_key: str | None = None


class _PrincipalTable(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    keys: list[str]
    threshold: int = 1


class _NetworkFile(msgspec.Struct, forbid_unknown_fields=True):
    network: _NetworkTable
    members: list[Any]
    principals: list[Any] = []
    peers: list[Any] = []
    parameters: Parameters = Parameters()
    contracts: dict[str, dict[str, Any]] = {}


class _RetentionTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    blocks: Annotated[int, msgspec.Meta(ge=10, le=10**12)] | None = None
    days: Annotated[int, msgspec.Meta(ge=1, le=36_600)] | None = None
    history_blocks: Annotated[int, msgspec.Meta(ge=10, le=HISTORY_BLOCKS_MAX)] = HISTORY_BLOCKS_MAX
    step_blocks: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1_000
    archive: bool = True
    archive_dir: str | None = None
    hold: tuple[str, ...] = ()


class _NodeFile(msgspec.Struct, forbid_unknown_fields=True):
    member: str
    listen: str
    api: str
    network: str = "network.toml"
    data_dir: str = "data"
    keys_dir: str = "keys"
    passphrase_file: str | None = None
    log_level: LogLevel = "info"
    limits: Limits = Limits()
    retention: _RetentionTable = _RetentionTable()
    disk: DiskSettings = DiskSettings()
    snapshots: SnapshotSettings = SnapshotSettings()
    sync: SyncSettings = SyncSettings()


def load_network(path: Path) -> NetworkConfig:
    """Return the network that `path` (network.toml) defines; raise ConfigError for the first mistake in it."""
    table = convert(path, _read_toml(path), _NetworkFile)

    def key(where: str, text: str) -> bytes:
        if not _HEX_KEY.fullmatch(text):
            raise invalid(
                path, where, "is not a public key", "write 64 lower-case hex digits as `hansa keys` prints them"
            )
        return bytes.fromhex(text)

    def rows(plain: list[Any], name: str, type_: type[T]) -> Iterator[T]:
        for position, row in enumerate(plain):
            yield convert(path, row, type_, f"{name}[{position}]")

    def member(where: str, row: _MemberTable, former: str | None = None) -> MemberConfig:
        return MemberConfig(
            id=row.id,
            role=row.role,
            address=row.address,
            voting_key=key(f"{where}.voting_key", row.voting_key),
            tls_key=key(f"{where}.tls_key", row.tls_key),
            former_tls_key=b"" if former is None else key(f"{where}.former_tls_key", former),
        )

    members = tuple(
        member(f"members[{position}]", row)
        for position, row in enumerate(rows(table.members, "members", _MemberTable))
    )
    peers = tuple(
        member(f"peers[{position}]", row, row.former_tls_key)
        for position, row in enumerate(rows(table.peers, "peers", _PeerTable))
    )
    principals = tuple(
        PrincipalConfig(
            id=row.id,
            keys=tuple(key(f"principals[{position}].keys[{place}]", text) for place, text in enumerate(row.keys)),
            threshold=row.threshold,
        )
        for position, row in enumerate(rows(table.principals, "principals", _PrincipalTable))
    )
    name, as_of = table.network.name, table.network.as_of
    network = NetworkConfig(name, members, principals, table.parameters, table.contracts, peers, as_of)
    check_network(network, path)
    return network


def load_node(path: Path) -> NodeConfig:
    """Return this node's configuration from `path` (node.toml); relative paths in it start at its directory."""
    table = convert(path, _read_toml(path), _NodeFile)
    if not MEMBER_ID.fullmatch(table.member):
        raise invalid(
            path, "member", f"{table.member!r} is no member id", "write the id that network.toml gives it"
        )
    for key in ("listen", "api"):
        check_address(path, key, getattr(table, key), port_min=0)
    if table.listen == table.api and split_address(table.api)[1]:
        raise invalid(path, "api", f"is the same address as listen ({table.api})", "choose another port")
    if table.disk.low_bytes < table.disk.reserve_bytes:
        raise invalid(path, "disk.low_bytes", "is below reserve_bytes: nobody would be warned", "raise it")
    if table.retention.archive_dir is not None and not table.retention.archive_dir.strip():
        # Joined with the file's directory it would be that directory itself.
        raise invalid(path, "retention.archive_dir", "is empty", "name a directory, or remove the line")
    base = path.parent
    retention = _retention(table.retention, base)
    check_retention(retention, base / table.data_dir, path)
    return NodeConfig(
        member=table.member,
        data_dir=base / table.data_dir,
        keys_dir=base / table.keys_dir,
        network_file=base / table.network,
        listen=table.listen,
        api=table.api,
        log_level=table.log_level,
        passphrase_file=None if table.passphrase_file is None else base / table.passphrase_file,
        limits=table.limits,
        retention=retention,
        disk=table.disk,
        snapshots=table.snapshots,
        sync=table.sync,
    )


def _retention(table: _RetentionTable, base: Path) -> Retention:
    directory = None if table.archive_dir is None else base / table.archive_dir
    return Retention(
        blocks=table.blocks,
        days=table.days,
        history_blocks=table.history_blocks,
        step_blocks=table.step_blocks,
        archive=table.archive,
        archive_dir=directory,
        hold=table.hold,
    )


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_SIZE_MAX + 1)
    except OSError as error:
        raise ConfigError("config_unreadable", f"{path}: {error.strerror or error}", path=str(path)) from error
    if len(data) > FILE_SIZE_MAX:
        raise ConfigError("config_unreadable", f"{path}: is larger than {FILE_SIZE_MAX} bytes", path=str(path))
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"{path}: is not UTF-8 text (at line {line})"
        raise ConfigError("config_syntax", message, path=str(path), line=line) from error
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found[1]) if found else data.count(b"\n") + 1
        message = f"{path}: {one_line(str(error))}" + ("" if found else f" (line {line})")
        raise ConfigError("config_syntax", message, path=str(path), line=line) from error
    except RecursionError as error:
        raise ConfigError("config_syntax", f"{path}: is nested too deeply", path=str(path)) from error
