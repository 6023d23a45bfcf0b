"""A node with three blocks that can be backed up, and places for the backup and for what is restored of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.backup import Backup, BackupReport, Restore, RestoreReport
from node.backup.pages import make_page
from node.client.answers import BackupStatus
from node.config import NodeConfig, dump_network, dump_node, load_node
from node.snapshot import finished_heights, make_snapshot
from node.store import Store
from tests.node.ledger_world import Ledger
from tests.node.signed_ledger import block, certified, make_ledger, signed_network


class RunningNode:
    """bank-a's node with three blocks, answering as its HTTP interface would."""

    def __init__(self, base: Path) -> None:
        self.directory = base / "bank-a"
        (self.directory / "keys").mkdir(parents=True)
        (self.directory / "network.toml").write_text(dump_network(signed_network()))
        config = NodeConfig(
            "bank-a", Path("data"), Path("keys"), Path("network.toml"), "127.0.0.1:7600", "127.0.0.1:7700"
        )
        self.node_file = self.directory / "node.toml"
        self.node_file.write_text(dump_node(config))
        self.node = load_node(self.node_file)
        self.ledger: Ledger = make_ledger(self.node.data_dir)
        self.store: Store = self.ledger.store
        self.failed = ""

    def grow(self, blocks: int) -> None:
        """So many more blocks are decided."""
        for _ in range(blocks):
            executed = block(self.ledger)
            self.store.apply(executed, certified(executed), 0)
            self.ledger.executor.advance(executed, self.store.snapshot())

    def backup_status(self) -> BackupStatus:
        heights = finished_heights(self.node.backup_dir)
        height = heights[-1] if heights else 0
        size_bytes = self.store.size_bytes()
        return BackupStatus(self.store.head.height, self.store.first_block, height, 0, self.failed, size_bytes)

    def make_backup_snapshot(self) -> BackupStatus:
        network = self.ledger.network
        if not self.failed:
            steps = make_snapshot(
                self.store.snapshot(), network.network_id, network.genesis_hash, 8, self.node.backup_dir
            )
            for _ in steps:
                pass
        return self.backup_status()

    def backup_blocks(self, first: int) -> bytes:
        network = self.ledger.network
        return make_page(self.store.snapshot(), network.network_id, network.genesis_hash, first)


class World:
    """A running node and places for a backup and for what is restored."""

    def __init__(self, base: Path) -> None:
        self.node = RunningNode(base)
        self.backup_directory = base / "backup"
        self.restored = base / "restored"

    def backup(
        self,
        *,
        snapshot: bool = False,
        blocks: int = 10_000,
        keys: bool = False,
        free: Callable[[Path], int | None] = lambda place: 10**12,
    ) -> BackupReport:
        work = Backup(self.node.node_file, self.node, self.backup_directory, lambda what, done, total: None, free)
        return work.run(snapshot=snapshot, snapshot_blocks=blocks, keys=keys)

    def restore(self) -> RestoreReport:
        return Restore(self.backup_directory, self.restored, lambda what, done, total: None).run()

    def files(self) -> dict[str, bytes]:
        """Every file of the backup but its manifest and lock."""
        paths = [path for path in self.backup_directory.rglob("*") if path.is_file()]
        names = {path.relative_to(self.backup_directory).as_posix(): path.read_bytes() for path in paths}
        return {name: data for name, data in names.items() if "/" in name}

    def restored_store(self) -> Store:
        network = self.node.ledger.network
        return Store(self.restored / "data", network.network_id, network.genesis_hash)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.node.ledger.close()


def shelf_notes(report: RestoreReport) -> list[str]:
    return [note for note in report.notes if note.startswith("block")]


def prune(store: Store, last: int) -> None:
    """Blocks up to that height are gone from the node, and nobody has archived them."""
    pruning = store.pruning()
    pruning.release(last)
    for removal in list(pruning.removals()):
        pruning.remove(removal)
