"""The data directory at a start: this network's, with genesis in it, and no snapshot's adoption left half done.

Invariant: nobody gets the store while an adoption is unfinished; a crash within it is finished here. So is a repair
that was killed while its copy took the place of the data directory: a node without it would have lost its votes.
"""

from collections.abc import Callable
from pathlib import Path

import structlog

from node.config import NetworkConfig, NodeConfig
from node.errors import StoreError, Unavailable
from node.executor import Executor, request_of
from node.repair.replacing import drop_stale, finish_replacing
from node.runtime.snapshots import keep_joined
from node.snapshot import pending_adoption
from node.store import Database, Store
from node.store.room import require_room, resume_bytes

TOLD_PARTS = 10
"""So often the log says how far a taking over is."""

Verify = Callable[[bytes, bytes, bytes], bool]


def open_store(
    config: NodeConfig,
    network: NetworkConfig,
    executor: Executor,
    open_database: Callable[[Path], Database],
    verify: Verify,
    disk_free: Callable[[Path], int | None],
) -> Store:
    """Return the opened store; a whole snapshot in the joining directory is its head now, if there is room for it.

    Raise ConfigError or StoreError as `Store` and `Adoption.perform` do.
    """
    log = structlog.get_logger("node").bind(member=config.member)
    kept = finish_replacing(config.data_dir)
    if kept is not None:
        log.warning("a repair that was broken off is finished: its copy is the data directory", damaged=str(kept))
    database = open_database(config.data_dir)

    def opened() -> Store:
        # A store that refuses the database has closed it.
        return Store(
            config.data_dir,
            network.network_id,
            network.genesis_hash,
            config.retention.history_blocks,
            open_database=lambda _: database,
            signed=config.signed_file,
        )

    store = opened()
    try:
        if not store.initialised:
            # Whoever has no data here may have voted elsewhere: only `hansa init` knows that a key is new.
            log.warning("no data found: this node joins again and abstains until it has caught up")
            store.initialise(executor.genesis(), never_voted=False)
        if _adopt(config, network, store, database, verify, disk_free):
            store = opened()
        drop_stale(config.data_dir)
        _tidy(config, store.head.height)
    except BaseException:
        database.close()
        raise
    return store


def _adopt(
    config: NodeConfig,
    network: NetworkConfig,
    store: Store,
    database: Database,
    verify: Verify,
    disk_free: Callable[[Path], int | None],
) -> bool:
    """Whether a snapshot's state is now this node's. One for which the disk has no room is left where it is."""
    log = structlog.get_logger("joining").bind(member=config.member)

    def room_for(needed_bytes: int, what: str) -> None:
        require_room(resume_bytes(config.disk), disk_free(config.data_dir), needed_bytes, what)

    try:
        adoption = pending_adoption(
            database,
            config.joining_dir,
            network.network_id,
            network.genesis_hash,
            store.head_at(0).members,
            network.parameters.state_tree_bits,
            verify,
            room_for,
            network.recoveries,
        )
    except Unavailable as error:
        log.error("a snapshot is not taken over", reason=error.message)
        return False
    if adoption is None:
        return False
    height = adoption.content.height
    log.info("taking over a snapshot's state", height=height, keys=adoption.content.keys, before=store.head.height)

    def tell(done: int, total: int) -> None:
        if done * TOLD_PARTS // total > (done - 1) * TOLD_PARTS // total:
            log.info("taking over", chunks=done, of=total)

    adoption.perform(request_of, tell)
    log.info("the snapshot is this node's state", height=height)
    return True


def _tidy(config: NodeConfig, head_height: int) -> None:
    """What was joined from is offered to others; what cannot be moved or removed costs room and nothing else."""
    try:
        keep_joined(config.joining_dir, config.snapshots_dir, head_height, config.snapshots.keep)
    except StoreError as error:
        structlog.get_logger("joining").warning("a joined snapshot is not kept", reason=error.message)
