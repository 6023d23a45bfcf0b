"""Archive files and snapshots judged alone, with nothing but the network's definition."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from node.archive import ArchiveReader, require_no_gap, verify_archive
from node.config import NetworkConfig
from node.errors import ConfigError, HansaError
from node.signatures import verify
from node.snapshot import SnapshotFolder, verify_snapshot
from node.verification.directory import OnProgress


class FileReport(msgspec.Struct, frozen=True):
    """What a file, or a snapshot's directory, was found to hold; `first_error` and `remedy` where it is not right.

    Of an archive: the blocks `first` … `last` and their `transactions`. Of a snapshot: `last` is its height.
    """

    ok: bool
    path: str
    first: int | None = None
    last: int | None = None
    transactions: int | None = None
    first_error: str | None = None
    remedy: str | None = None


def verify_archives(paths: Sequence[Path], network: NetworkConfig, progress: OnProgress) -> list[FileReport]:
    """Return a report of each archive, ascending; each has to follow the one before: no block may be missing.

    A file that cannot be opened comes first. Every certificate, signature, hash, root and index is verified.
    """
    reports: list[FileReport] = []
    readers: list[ArchiveReader] = []
    try:
        for path in paths:
            try:
                readers.append(ArchiveReader(path))
            except HansaError as error:
                reports.append(_failed(path, error))
        readers.sort(key=lambda reader: (reader.first, reader.last))
        last, digest, reach = 0, None, 0
        for reader in readers:
            parent = digest if reader.first == last + 1 else None
            try:
                if reach:
                    require_no_gap(reach, reader)
                proof = verify_archive(reader, network, None, progress, parent=parent)
            except HansaError as error:
                reports.append(_failed(reader.path, error))
                digest, last = None, 0
                continue
            finally:
                reach = max(reach, reader.last)
            last, digest = proof.last, proof.digest
            reports.append(FileReport(True, str(reader.path), proof.first, proof.last, proof.transactions))
    finally:
        for reader in readers:
            reader.close()
    return reports


def verify_snapshot_directory(path: Path, network: NetworkConfig, progress: OnProgress) -> FileReport:
    """Return what the snapshot in the directory at `path` holds, every chunk proven; ConfigError without one."""
    if not (path / "manifest").is_file():
        raise ConfigError("invalid_usage", f"{path} holds no snapshot: there is no file `manifest`")
    bits = network.parameters.state_tree_bits
    try:
        content = verify_snapshot(
            SnapshotFolder(path),
            network.network_id,
            network.genesis_hash,
            network.validators,
            bits,
            verify,
            progress,
            network.recoveries,
        )
    except HansaError as error:
        return _failed(path, error)
    return FileReport(True, str(path), None, content.height)


def _failed(path: Path, error: HansaError) -> FileReport:
    return FileReport(False, str(path), first_error=str(error), remedy=error.entry.action)
