"""Making a node's directory: keys first, then, once network.toml names them, configuration and genesis.

A member's voting key may vote from genesis only if it never voted before. That is known in one case: it was made
here and no data directory has used it since. A file beside the key says so until genesis is written; afterwards
the store says it. Whoever wipes `data/` therefore starts a node that abstains until it has caught up.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from node.cli.files import sync_directory
from node.cli.options import NODE_FILE, key_file_name
from node.config import NetworkConfig, NodeConfig, dump_node, load_network, load_node
from node.errors import ConfigError
from node.keys import KeyInfo, KeyKind, SigningKey, key_made_ms, read_key_info, write_key_file
from node.signatures import PUBLIC_KEY_SIZE

NETWORK_FILE = "network.toml"
API_DEFAULT = "127.0.0.1:7700"
_UNUSED = "voting.unused"
Use: TypeAlias = Literal["in_force", "former", "expected", "none"]


class PublicKey(msgspec.Struct, frozen=True):
    """A key file and what others need to know of it (hex).

    `created_at_ms` (Unix milliseconds) is when the key was made by its own record (`created_from` is `key`); where
    the file is of before that was kept, when the file was last written (`file`): the key is at least as old. What
    these files hold is `encrypted`, without exception: there is no other form. `use` is what the ledger does with
    the key (see node.cli.key_use); None: nobody was asked.
    """

    kind: KeyKind
    id: str
    public_key: str
    file: str
    created_at_ms: int
    created_from: Literal["key", "file"]
    encrypted: bool = True
    use: Use | None = None


class Founded(msgspec.Struct, frozen=True):
    """What a directory holds after `hansa init`. `network` is None until network.toml was given.

    `may_vote`: the node votes from its start; otherwise it abstains until it has caught up with the others.
    """

    member: str
    directory: str
    keys: tuple[PublicKey, ...]
    network: str | None = None
    may_vote: bool = False


def make_keys(directory: Path, member: str, principals: Sequence[str], passphrase: str) -> list[PublicKey]:
    """The directory has a voting key, a TLS key and a key for each principal; those that were there are kept."""
    keys_dir = directory / "keys"
    wanted: list[tuple[KeyKind, str, Path]] = [
        ("voting", member, keys_dir / "voting.key"),
        ("tls", member, keys_dir / "tls.key"),
        *(("principal", principal, keys_dir / key_file_name(principal)) for principal in principals),
    ]
    for kind, owner, path in wanted:
        if path.exists():
            _check_owner(path, read_key_info(path), kind, owner)
            continue
        key = SigningKey.generate()
        if kind == "voting":
            keys_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            _mark_unused(keys_dir, key.public)
        write_key_file(path, key, kind=kind, id=owner, passphrase=passphrase)
    return list_keys(keys_dir)


def list_keys(keys_dir: Path) -> list[PublicKey]:
    """The key files of a directory, by name; raise ConfigError for one that is damaged or open to others."""
    return [public_key(path) for path in sorted(keys_dir.glob("*.key"))]


def public_key(path: Path) -> PublicKey:
    """What one key file says; raise ConfigError where it is damaged or open to others."""
    info = read_key_info(path)
    source: Literal["key", "file"] = "file" if info.created_at_ms is None else "key"
    return PublicKey(info.kind, info.id, info.public_key.hex(), str(path), key_made_ms(path, info), source)


def _mark_unused(keys_dir: Path, public: bytes) -> None:
    """The mark names the key and is on the disk before the key is: without it there is no vote from genesis."""
    with (keys_dir / _UNUSED).open("wb") as mark:
        mark.write(public.hex().encode())
        mark.flush()
        os.fsync(mark.fileno())


def _is_unused(keys_dir: Path) -> bool:
    """Whether the voting key here is the one that was made here and never used; a mark speaks of no other key."""
    try:
        with (keys_dir / _UNUSED).open("rb") as mark:
            named = mark.read(2 * PUBLIC_KEY_SIZE + 1)
    except OSError:
        return False
    return named == read_key_info(keys_dir / "voting.key").public_key.hex().encode()


def forget_unused(keys_dir: Path) -> None:
    """Whatever voting key lies here from now on has no right to vote from genesis: it may have voted elsewhere."""
    unused = keys_dir / _UNUSED
    if unused.exists():
        unused.unlink()
        sync_directory(keys_dir)


def join_network(
    directory: Path,
    member: str,
    network_file: Path,
    listen: str | None = None,
    api: str | None = None,
    *,
    passphrase_file: Path | None = None,
) -> Founded:
    """The directory has network.toml, node.toml and, if its voting key is new, genesis with the right to vote.

    Raise ConfigError when network.toml names other keys than lie here, or another network than was there.
    """
    network = load_network(network_file)
    own = network.member(member)
    keys_dir = directory / "keys"
    for name, kind, public in (("voting.key", "voting", own.voting_key), ("tls.key", "tls", own.tls_key)):
        info = read_key_info(keys_dir / name)
        if info.public_key != public:
            raise ConfigError(
                "wrong_key",
                f"{network_file}: names another {kind} key for {member} than {keys_dir / name} holds",
                path=str(network_file),
            )
    _place_network_file(directory, network_file, network)
    node_file = directory / NODE_FILE
    if not node_file.exists():
        node = NodeConfig(
            member=member,
            data_dir=Path("data"),
            keys_dir=Path("keys"),
            network_file=Path(NETWORK_FILE),
            listen=listen or own.address,
            api=api or API_DEFAULT,
            passphrase_file=passphrase_file.absolute() if passphrase_file else None,
        )
        node_file.write_text(dump_node(node))
    node = load_node(node_file)
    may_vote = write_genesis(node, network, keys_dir)
    return Founded(member, str(directory), tuple(list_keys(keys_dir)), network.network_id, may_vote)


def write_genesis(node: NodeConfig, network: NetworkConfig, keys_dir: Path) -> bool:
    """Genesis is in the data directory if the voting key is unused; return whether the node may vote from it."""
    # Imported here: they load the contracts, which takes longer than most commands.
    from contracts import CONTRACTS, FURTHER
    from contracts.engine import Engine
    from contracts.membership import Membership
    from node.executor import Executor
    from node.store import Store

    if not _is_unused(keys_dir):
        return node.data_dir.exists()
    genesis = Executor(network, Engine(CONTRACTS, FURTHER), Membership).genesis()
    node.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = Store(node.data_dir, network.network_id, network.genesis_hash, signed=node.signed_file)
    try:
        # The mark goes first: if the machine stops between, the node abstains, which is safe.
        (keys_dir / _UNUSED).unlink()
        sync_directory(keys_dir)
        if not store.initialised:
            store.initialise(genesis, never_voted=True)
    finally:
        store.close()
    return True


def _place_network_file(directory: Path, given: Path, network: NetworkConfig) -> None:
    target = directory / NETWORK_FILE
    if target.exists():
        if target.samefile(given):
            return
        if load_network(target).genesis_hash != network.genesis_hash:
            raise ConfigError(
                "data_of_another_network",
                f"{directory} belongs to another network than {given}; use a directory of its own",
                path=str(directory),
            )
    shutil.copyfile(given, target)


def _check_owner(path: Path, info: KeyInfo, kind: KeyKind, owner: str) -> None:
    if (info.kind, info.id) != (kind, owner):
        raise ConfigError(
            "wrong_key", f"{path}: holds the {info.kind} key of {info.id}, not the {kind} key of {owner}"
        )


def member_tables(member: str, keys: Sequence[PublicKey], address: str) -> str:
    """What whoever writes network.toml needs of this member, as TOML."""
    voting = next(key.public_key for key in keys if key.kind == "voting")
    tls = next(key.public_key for key in keys if key.kind == "tls")
    lines = [
        "[[members]]",
        f'id = "{member}"',
        'role = "validator"',
        f'address = "{address}"',
        f'voting_key = "{voting}"',
        f'tls_key = "{tls}"',
    ]
    for key in keys:
        if key.kind == "principal":
            lines += ["", "[[principals]]", f'id = "{key.id}"', f'keys = ["{key.public_key}"]', "threshold = 1"]
    return "\n".join(lines)
