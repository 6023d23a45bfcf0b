"""A complete recovery becomes this node's: its file is trusted here, and its blocks follow the head they stand on.

Invariants: nothing is applied whose file a person has not put here; a node that has another block at a height that
survivors decided refuses to start, for these are two histories. A crash at any point leaves the file or not, and
the head at the base, at the kept block or at the recovery block; the next start goes on from there before it votes.
"""

import contextlib
from pathlib import Path

import structlog

from consensus.messages import Certificate
from contracts import CONTRACTS, FURTHER
from contracts.engine import Engine
from contracts.membership import Membership
from node.config import NetworkConfig, NodeConfig, load_network
from node.errors import ConfigError, NotFound
from node.executor import Executor
from node.recovery import RecoveryFile, read_recovery_file, trusted
from node.rescue.execution import execute_kept, execute_recovery
from node.state import ExecutedBlock
from node.store import Store
from node.store.durable import replace_durably
from node.store.stopped import open_stopped


def apply_recovery(node: NodeConfig, path: Path) -> tuple[RecoveryFile, int]:
    """Return the recovery in the file at `path` and the height of this stopped node's head afterwards.

    The file is trusted here from now on. Where the head is the block that it goes on from, its blocks are applied;
    a node below fetches what is missing when it runs. Raise ConfigError, and nothing changes: `recovery_differs`
    where this node has another history, `recovery_signed_other` where its member has signed another recovery.
    """
    present = sorted(node.recoveries_dir.glob("*.json"))
    network = trusted(load_network(node.network_file), [*present, path])
    file = read_recovery_file(path)
    with contextlib.closing(open_stopped(node, network)) as store:
        if not store.initialised:
            raise ConfigError("ledger_not_here", "start the node once, and stop it, before a recovery is applied")
        require_history(store, network)
        _require_base(store, file)
        _require_terms(network, store, file)
        owed = store.owed_recovery()
        if owed is not None and owed.digest != file.digest:
            raise ConfigError(
                "recovery_signed_other",
                f"{node.member} has signed the recovery {owed.digest.hex()} of block {owed.height}",
            )
        _install(node.recoveries_dir, file)
        executor = _opened(network, store)
        perform_recoveries(node, network, store, executor)
        return file, store.head.height


def perform_recoveries(node: NodeConfig, network: NetworkConfig, store: Store, executor: Executor) -> None:
    """What is trusted here and stands right above the head is applied; the executor stands on the head.

    Raise ConfigError("recovery_differs") where the store has another history than the one trusted.
    """
    require_history(store, network)
    files = {file.digest: file for file in map(read_recovery_file, sorted(node.recoveries_dir.glob("*.json")))}
    for recovery in network.recoveries.items:
        file = files.get(recovery.digest)
        if file is None:
            # It was there when this process began: what its survivors decided must not be decided here by others.
            raise ConfigError("recovery_file_unreadable", f"{node.recoveries_dir}: {recovery.digest.hex()} is gone")
        _require_base(store, file)
        _prove_kept(store, file)
        if (store.head.height, store.head.digest) in _below(file):
            _perform(store, executor, file)
            structlog.get_logger("recovery").warning(
                "the network is recovered",
                height=recovery.height,
                number=recovery.digest.hex(),
                members=[validator.id for validator in recovery.validators],
            )


def require_history(store: Store, network: NetworkConfig) -> None:
    """No block of the store is another one than the recoveries trusted here have; else raise ConfigError."""
    for recovery in network.recoveries.items:
        for height in range(recovery.first, min(recovery.height, store.head.height) + 1):
            digest = _digest_at(store, height)
            if digest is None and height == recovery.height:
                # A recovery changes the members, so its head record would be here even after a join from above it.
                raise ConfigError(
                    "recovery_differs",
                    f"no block {height} changed the members here, and the recovery {recovery.digest.hex()} did:"
                    " these are two histories, and this node has the other one",
                )
            if digest is not None and not recovery.names(height, digest):
                raise ConfigError(
                    "recovery_differs",
                    f"block {height} is {digest.hex()} here, and another one in the recovery"
                    f" {recovery.digest.hex()}: these are two histories, and this node has the other one",
                )


def _require_base(store: Store, file: RecoveryFile) -> None:
    """The block that the recovery goes on from is here, or none of its height; else raise ConfigError."""
    digest = _digest_at(store, file.base_height) if file.base_height <= store.head.height else None
    if digest is not None and digest != file.base_digest:
        raise ConfigError(
            "recovery_differs",
            f"block {file.base_height} is {digest.hex()} here, and the recovery {file.digest.hex()} goes on from"
            " another one: these are two histories, and this node has the other one",
        )


def _require_terms(network: NetworkConfig, store: Store, file: RecoveryFile) -> None:
    """What the file says is what its survivors have signed, as far as this ledger tells; else raise ConfigError.

    Their signatures cover it by the recovery block's digest alone, which only who executes that block can judge.
    """
    height = file.header.height
    if (store.head.height, store.head.digest) in _below(file):
        _execute(_opened(network, store), file)
    elif height <= store.head.height and store.has_receipts(height):
        [call] = store.receipt(height, 0).calls
        if call.events[-1].data["statement"] != file.recovery.statement:
            raise ConfigError(
                "recovery_differs",
                f"block {height} has this number, and was made under other terms than the file's",
            )


def _prove_kept(store: Store, file: RecoveryFile) -> None:
    """A kept block that is here already has the survivors' certificate, as it has everywhere else.

    A node to which the former members had decided it has one of theirs, which proves nothing to who trusts the
    recovery: only the survivors decide what stands there.
    """
    if file.kept is None or store.head.height <= file.base_height:
        return
    certificate = file.certificate(kept=True)
    with contextlib.suppress(NotFound):
        if store.head_at(certificate.height).certificate != certificate:
            store.replace_certificate(certificate)


def _digest_at(store: Store, height: int) -> bytes | None:
    """The digest of the block at `height`; None where a snapshot was joined above it."""
    try:
        return store.head_at(height).digest
    except NotFound:
        return None


def _below(file: RecoveryFile) -> list[tuple[int, bytes]]:
    """The heads on which a block of the recovery stands."""
    heads = [(file.base_height, file.base_digest)]
    return heads if file.kept is None else [*heads, (file.base_height + 1, file.kept_digest)]


def _opened(network: NetworkConfig, store: Store) -> Executor:
    """An executor on the store's head."""
    executor = Executor(network, Engine(CONTRACTS, FURTHER), Membership)
    executor.open(store.snapshot())
    return executor


def _execute(executor: Executor, file: RecoveryFile) -> list[tuple[ExecutedBlock, Certificate]]:
    """Return the recovery's blocks above the executor's head, with their certificates; nothing is written.

    The executor stands below the last of them then. Raise ConfigError where this node comes to another block.
    """
    blocks: list[tuple[ExecutedBlock, Certificate]] = []
    if file.kept is not None and executor.head.height == file.base_height:
        certificate = file.certificate(kept=True)
        blocks.append((execute_kept(executor, file.kept.body, certificate), certificate))
    executed = execute_recovery(executor, file.recovery, file.time_ms)
    if executed.digest != file.digest:
        raise ConfigError(
            "recovery_differs",
            f"this node comes to the recovery block {executed.digest.hex()}, and {file.digest.hex()} was signed:"
            " use the release that the survivors use, and the file as they have it",
        )
    return [*blocks, (executed, file.certificate())]


def _perform(store: Store, executor: Executor, file: RecoveryFile) -> None:
    """The recovery's blocks are durable, each in one batch, and the executor stands on the last."""
    blocks = _execute(executor, file)
    for executed, certificate in blocks:
        store.apply(executed, certificate, file.view)
    executor.advance(blocks[-1][0], store.snapshot())


def _install(directory: Path, file: RecoveryFile) -> None:
    """The file lies in the directory, whole and durable, under a name of its own; raise ConfigError otherwise."""
    target = directory / f"{file.header.height:012d}-{file.digest.hex()[:16]}.json"
    try:
        replace_durably(target, file.encode())
    except OSError as error:
        raise ConfigError("recovery_not_written", f"{target}: {error.strerror or error}") from error
