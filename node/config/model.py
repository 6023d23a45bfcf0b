"""What the two files define, as values: the network, its members and parameters, and this node."""

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from consensus.codec import encode
from consensus.members import Members, Validator
from node.config.recoveries import Recoveries
from node.errors import ConfigError

BLOCK_BYTES_LIMIT = 16 * 1024 * 1024
"""No network may allow larger blocks: the frames that carry them during catch-up are sized for this."""

HISTORY_BLOCKS_MAX = 10_000
"""A query at a past height undoes block by block: further back than this none reaches."""

GOVERNED = ("block_transactions_max", "block_calls_max", "block_operations_max")
"""Parameters with which a network begins, and which its members may change (contracts/governance.py)."""

Role: TypeAlias = Literal["validator", "observer", "regulator"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]


def _between(low: int, high: int) -> msgspec.Meta:
    return msgspec.Meta(ge=low, le=high)


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rules of the network's blocks and clocks; part of genesis, so the same at every member for ever.

    Times are milliseconds, sizes bytes. `block_transactions_max`, `block_calls_max`, `block_bytes_max` and
    `block_operations_max` bound one block (its first transaction always fits); `scheduled_calls_max` and
    `pruned_requests_max` bound what a block may settle and tidy besides; `call_operations_max` is one call's
    budget of metered operations. After a quarter of `base_timeout_ms` a builder begins no further transaction.
    `retention_ms` is how long a request id is remembered after its expiry. At every
    height that is a multiple of `snapshot_blocks` the nodes make a snapshot to join from (0: never).
    """

    state_tree_bits: Annotated[int, msgspec.Meta(ge=4, le=24, multiple_of=4)] = 16
    rotation_heights: Annotated[int, _between(1, 1_000_000_000)] = 10_000
    base_timeout_ms: Annotated[int, _between(100, 60_000)] = 2_000
    timeout_cap_ms: Annotated[int, _between(100, 600_000)] = 10_000
    status_interval_ms: Annotated[int, _between(20, 30_000)] = 500
    empty_block_interval_ms: Annotated[int, _between(100, 86_400_000)] = 60_000
    drift_ms: Annotated[int, _between(10, 3_600_000)] = 5_000
    block_transactions_max: Annotated[int, _between(1, 100_000)] = 2_000
    block_calls_max: Annotated[int, _between(1, 1_000_000)] = 4_000
    block_bytes_max: Annotated[int, _between(2 * 1024 * 1024, BLOCK_BYTES_LIMIT)] = 2 * 1024 * 1024
    block_operations_max: Annotated[int, _between(10_000, 10**12)] = 2_000_000
    call_operations_max: Annotated[int, _between(1_000, 10**12)] = 100_000
    scheduled_calls_max: Annotated[int, _between(1, 100_000)] = 200
    retention_ms: Annotated[int, _between(1_000, 10 * 366 * 86_400_000)] = 86_400_000
    pruned_requests_max: Annotated[int, _between(1, 1_000_000)] = 2_000
    censorship_blocks: Annotated[int, _between(1, 1_000_000)] = 20
    snapshot_blocks: Annotated[int, _between(0, 1_000_000_000)] = 10_000


class MemberConfig(msgspec.Struct, frozen=True):
    """An institution: its id, its role, where its node listens for peers, and its two public keys (32 bytes).

    `former_tls_key` proves its node too while a rotation overlaps; empty: nothing does.
    """

    id: str
    role: Role
    address: str
    voting_key: bytes
    tls_key: bytes
    former_tls_key: bytes = b""

    @property
    def tls_keys(self) -> tuple[bytes, ...]:
        """All that prove its node."""
        return (self.tls_key, self.former_tls_key) if self.former_tls_key else (self.tls_key,)


class PrincipalConfig(msgspec.Struct, frozen=True):
    """Who may act for a member: any `threshold` of `keys` (32 bytes each) sign for `id`."""

    id: str
    keys: tuple[bytes, ...]
    threshold: int


class NetworkConfig(msgspec.Struct, frozen=True, dict=True):
    """The definition of a network. The order of `members` is the order in which they become primary.

    `peers` are no part of the definition: members as they are linked at the height `as_of`, where that differs from
    it. Whoever joins knows them from its invitation, until its own ledger has come that far. `recoveries` are no
    part of it either: who loads the definition adds those that its user trusts (node/recovery).
    """

    name: str
    members: tuple[MemberConfig, ...]
    principals: tuple[PrincipalConfig, ...] = ()
    parameters: Parameters = Parameters()
    contracts: dict[str, dict[str, Any]] = {}
    peers: tuple[MemberConfig, ...] = ()
    as_of: int = 0
    recoveries: Recoveries = Recoveries()

    @cached_property
    def known(self) -> tuple[MemberConfig, ...]:
        """The members of the definition, as `peers` has them where it does, and then the later ones."""
        later = {peer.id: peer for peer in self.peers}
        return (*(later.pop(member.id, member) for member in self.members), *later.values())

    @cached_property
    def genesis_hash(self) -> bytes:
        """SHA-256 over the canonical definition without addresses: equal at all who run the same network."""
        members = tuple((m.id, m.role, m.voting_key, m.tls_key) for m in self.members)
        principals = tuple((p.id, tuple(sorted(p.keys)), p.threshold) for p in _by_id(self.principals))
        definition = ("hansa/genesis", self.name, members, principals, self.parameters, self.contracts)
        return hashlib.sha256(encode(definition)).digest()

    @cached_property
    def network_id(self) -> str:
        """What transactions and votes name: `<name>-<first 12 hex digits of the genesis hash>`."""
        return f"{self.name}-{self.genesis_hash.hex()[:12]}"

    @cached_property
    def validators(self) -> Members:
        """The members with a vote at genesis, in file order."""
        voting = (m for m in self.members if m.role == "validator")
        return Members(tuple(Validator(m.id, m.voting_key) for m in voting))

    @cached_property
    def genesis_arguments(self) -> dict[str, dict[str, Any]]:
        """All contracts' genesis arguments; those of membership come from members and principals."""
        membership = {
            "members": [
                {"id": m.id, "role": m.role, "voting_key": m.voting_key, "tls_key": m.tls_key} for m in self.members
            ],
            "limits": [{"name": name, "value": getattr(self.parameters, name)} for name in GOVERNED],
            "principals": [
                {"id": p.id, "keys": sorted(p.keys), "threshold": p.threshold} for p in _by_id(self.principals)
            ],
        }
        return {**self.contracts, "membership": membership}

    def member(self, member_id: str) -> MemberConfig:
        """Return the member named `member_id`, as the definition has it if it does; raise ConfigError
        (`unknown_member`) for a stranger.
        """
        for member in (*self.members, *self.peers):
            if member.id == member_id:
                return member
        known = ", ".join(m.id for m in self.members)
        raise ConfigError("unknown_member", f"{member_id!r} is not a member of {self.name!r}; members are: {known}")


def _by_id(principals: Iterable[PrincipalConfig]) -> list[PrincipalConfig]:
    return sorted(principals, key=lambda principal: principal.id)


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What this node spends on others: counts, bytes of memory, processes. Local: it decides no validity.

    `mempool_transactions_max` and `mempool_bytes_max`: what may wait when a client sends more; what other members
    have promised finds room up to twice that. `verify_processes`: so many beside the node verify signatures, each
    with some 15 MB; one keeps up with what a node can execute of transactions with one or two signatures.
    """

    mempool_transactions_max: Annotated[int, _between(1, 10_000_000)] = 10_000
    mempool_bytes_max: Annotated[int, _between(4 * 1024 * 1024, 64 * 1024**3)] = 64 * 1024 * 1024
    peer_queue_bytes_max: Annotated[int, _between(1024 * 1024, 1024**3)] = 16 * 1024 * 1024
    api_request_bytes_max: Annotated[int, _between(64 * 1024, 1024**3)] = 16 * 1024 * 1024
    api_connections_max: Annotated[int, _between(1, 100_000)] = 256
    verify_processes: Annotated[int, _between(1, 64)] = 1


class DiskSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When the node speaks of a disk that fills up, and when it stops writing: bytes free for the data directory.

    Below `low_bytes` it warns. Below `reserve_bytes` it neither votes nor takes transactions nor applies blocks,
    until five quarters of that are free. The reserve must hold what LevelDB has under way: 128 MB under full load.
    """

    low_bytes: Annotated[int, _between(16 * 1024 * 1024, 1024**5)] = 1024 * 1024 * 1024
    reserve_bytes: Annotated[int, _between(16 * 1024 * 1024, 1024**5)] = 256 * 1024 * 1024


class SnapshotSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many finished snapshots this node keeps on disk and offers to others (0: it makes none)."""

    keep: Annotated[int, _between(0, 100)] = 2


class SyncSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a node that is far behind comes up to the others.

    `join` = "snapshot": from a snapshot where that saves at least `join_blocks_min` blocks, or where the next block
    is served by nobody any more; "replay": always by executing every block.
    """

    join: Literal["snapshot", "replay"] = "snapshot"
    join_blocks_min: Annotated[int, _between(1, 1_000_000_000)] = 1_000


class Retention(msgspec.Struct, frozen=True):
    """What this node keeps of decided blocks: their bodies, receipts and indexes. Local: it decides no validity.

    Without `blocks` and `days` everything stays. A block goes when both allow it: it lies more than `blocks` below
    the head, and its time more than `days` before the head's. `step_blocks` go at a time, into one archive file in
    `archive_dir` before anything is removed; without `archive` they are gone for this node. `hold` names accounts,
    claims or other topics whose blocks stay. For `history_blocks` the state of past heights can be asked for.
    """

    blocks: int | None = None
    days: int | None = None
    history_blocks: int = HISTORY_BLOCKS_MAX
    step_blocks: int = 1_000
    archive: bool = True
    archive_dir: Path | None = None
    hold: tuple[str, ...] = ()

    @property
    def prunes(self) -> bool:
        """Whether any block ever goes."""
        return self.blocks is not None or self.days is not None


class NodeConfig(msgspec.Struct, frozen=True):
    """This node: which member it is, where its files lie, where it listens ("host:port"), what it may spend.

    `passphrase_file` opens the key files in `keys_dir` when the environment gives no passphrase.
    """

    member: str
    data_dir: Path
    keys_dir: Path
    network_file: Path
    listen: str
    api: str
    log_level: LogLevel = "info"
    passphrase_file: Path | None = None
    limits: Limits = Limits()
    retention: Retention = Retention()
    disk: DiskSettings = DiskSettings()
    snapshots: SnapshotSettings = SnapshotSettings()
    sync: SyncSettings = SyncSettings()

    @property
    def snapshots_dir(self) -> Path:
        """Where finished snapshots lie, beside the data: wiping the data does not touch them."""
        return self.data_dir.parent / "snapshots"

    @property
    def backup_dir(self) -> Path:
        """Where the node puts the snapshot that `hansa backup` asks it for; the command takes it from there."""
        return self.data_dir.parent / "backup-snapshot"

    @property
    def recoveries_dir(self) -> Path:
        """Where the recovery files lie that this node's operator has said to trust."""
        return self.data_dir.parent / "recoveries"

    @property
    def signed_file(self) -> Path:
        """Which recoveries this member has signed, besides the data: deleting that frees nobody from them."""
        return self.recoveries_dir / "signed"

    @property
    def joining_dir(self) -> Path:
        """Where a snapshot is gathered that this node joins from; a download goes on there after a restart."""
        return self.data_dir.parent / "joining"
