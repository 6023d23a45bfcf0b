"""A complete recovery becomes this node's: its file is trusted here, and its blocks follow the head they stand on.

Invariants: nothing is applied whose file a person has not put here; a node that has another block at a height that
survivors decided refuses to start, for these are two histories. A crash at any point leaves the file or not, and
the head at the base, at the kept block or at the recovery block; the next start goes on from there before it votes.
"""

import contextlib
import os
import tempfile
from pathlib import Path

import structlog

from contracts import CONTRACTS, FURTHER
from contracts.engine import Engine
from contracts.membership import Membership
from node.config import NetworkConfig, NodeConfig, load_network
from node.errors import ConfigError, NotFound
from node.executor import Executor
from node.recovery import RecoveryFile, read_recovery_file, trusted
from node.rescue.execution import execute_kept, execute_recovery
from node.rescue.survivor import open_ledger
from node.store import Store


def apply_recovery(node: NodeConfig, path: Path) -> tuple[RecoveryFile, int]:
    """Return the recovery in the file at `path` and the height of this stopped node's head afterwards.

    The file is trusted here from now on. Where the head is the block that it goes on from, its blocks are applied;
    a node below fetches what is missing when it runs. Raise ConfigError, and nothing changes: `recovery_differs`
    where this node has another history, `recovery_signed_other` where its member has signed another recovery.
    """
    present = sorted(node.recoveries_dir.glob("*.json"))
    network = trusted(load_network(node.network_file), [*present, path])
    file = read_recovery_file(path)
    with contextlib.closing(open_ledger(node, network)) as store:
        executor = Executor(network, Engine(CONTRACTS, FURTHER), Membership)
        if not store.initialised:
            raise ConfigError("ledger_not_here", "start the node once, and stop it, before a recovery is applied")
        require_history(store, network)
        _require_base(store, file)
        owed = store.owed_recovery()
        if owed is not None and owed.digest != file.digest:
            raise ConfigError(
                "recovery_signed_other",
                f"{node.member} has signed the recovery {owed.digest.hex()} of block {owed.height}",
            )
        _install(node.recoveries_dir, file)
        executor.open(store.snapshot())
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


def _perform(store: Store, executor: Executor, file: RecoveryFile) -> None:
    """The recovery's blocks are durable, each in one batch, and the executor stands on the last."""
    if file.kept is not None and store.head.height == file.base_height:
        certificate = file.certificate(kept=True)
        store.apply(execute_kept(executor, file.kept.body, certificate), certificate, file.view)
        executor.settle(store.snapshot())
    executed = execute_recovery(executor, file.recovery, file.time_ms)
    if executed.digest != file.digest:
        raise ConfigError(
            "recovery_differs",
            f"this node comes to the recovery block {executed.digest.hex()}, and {file.digest.hex()} was signed:"
            " use the release that the survivors use",
        )
    store.apply(executed, file.certificate(), file.view)
    executor.advance(executed, store.snapshot())


def _install(directory: Path, file: RecoveryFile) -> None:
    """The file lies in the directory, whole and durable, under a name of its own; raise ConfigError otherwise."""
    target = directory / f"{file.header.height:012d}-{file.digest.hex()[:16]}.json"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, beside = tempfile.mkstemp(prefix=".recovery.", dir=directory)
        with open(descriptor, "wb") as opened:
            opened.write(file.encode())
            opened.flush()
            os.fsync(descriptor)
        Path(beside).replace(target)
        for path in (directory, directory.parent):
            name = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(name)
            finally:
                os.close(name)
    except OSError as error:
        raise ConfigError("recovery_not_written", f"{target}: {error.strerror or error}") from error
