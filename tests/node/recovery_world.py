"""Four banks with real keys, votes and disks, of which two or more are lost; and what the others do then."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from consensus.effects import PreparedRecord
from consensus.messages import Certificate, VoteKind, vote_bytes
from node.config import NetworkConfig, NodeConfig, dump_network
from node.ledger import Transaction
from node.recovery import RecoveryFile, load_trusted
from node.rescue import Survivor, Terms, apply_recovery
from node.state import ExecutedBlock
from node.store import Store
from tests.node.evidence_world import VOTING, ProvableLedger, provable_network
from tests.node.ledger_world import BANKS

REASON = "the data centre of bank-c and bank-d burnt down"


class RecoveryWorld:
    """The banks' directories; nodes are stopped unless a test opens the ledger of one."""

    def __init__(self, base: Path, blocks: int = 3) -> None:
        """All four stand at the same block."""
        self.base = base
        self.network = provable_network()
        self.network_file = base / "network.toml"
        base.mkdir(parents=True, exist_ok=True)
        self.network_file.write_text(dump_network(self.network))
        first = ProvableLedger(self.node("bank-a").data_dir, self.network)
        first.open_accounts("ACC-1", "ACC-2", funds=1_000)
        for _ in range(blocks - 1):
            first.settle(first.transaction("bank-a"))
        self.now_ms = first.now_ms
        first.close()
        for bank in BANKS[1:]:
            shutil.copytree(self.node("bank-a").data_dir, self.node(bank).data_dir)

    def node(self, bank: str) -> NodeConfig:
        """The configuration of the bank's node."""
        where = self.base / bank
        return NodeConfig(
            bank, where / "data", where / "keys", self.network_file, "127.0.0.1:7600", "127.0.0.1:7700"
        )

    def trusted(self, bank: str) -> NetworkConfig:
        """The network as the bank's node knows it."""
        return load_trusted(self.node(bank))

    def ledger(self, bank: str) -> ProvableLedger:
        """The bank's ledger, to go on with; close it."""
        opened = ProvableLedger(self.node(bank).data_dir, self.trusted(bank))
        opened.requests = self.now_ms % 1_000_003
        return opened

    def store(self, bank: str) -> Store:
        """The bank's store; close it."""
        node = self.node(bank)
        named = (self.network.network_id, self.network.genesis_hash)
        return Store(node.data_dir, *named, signed=node.signed_file)

    def draft(self, bank: str, survivors: Sequence[str], **terms: Any) -> RecoveryFile:
        """What the bank drafts."""
        options: dict[str, Any] = {"reason": REASON, "time_ms": self.now_ms + 60_000, "accepts_few": True, **terms}
        with Survivor.opened(self.node(bank), self.trusted(bank)) as survivor:
            return survivor.draft(Terms(tuple(survivors), **options))

    def sign(
        self, bank: str, file: RecoveryFile, now_ms: int | None = None, instead_of: bytes = b""
    ) -> RecoveryFile:
        """The file with the bank's signature."""
        with Survivor.opened(self.node(bank), self.trusted(bank)) as survivor:
            return survivor.sign(file, VOTING[bank], now_ms or self.now_ms + 70_000, instead_of)

    def complete(self, *survivors: str, **terms: Any) -> RecoveryFile:
        """A recovery that the first of them drafts and all of them sign."""
        file = self.draft(survivors[0], survivors, **terms)
        for bank in survivors:
            file = self.sign(bank, file)
        return file

    def path(self, file: RecoveryFile) -> Path:
        """Where the file lies on disk."""
        path = self.base / f"recovery-{file.digest.hex()[:8]}-{len(file.signatures)}.json"
        path.write_bytes(file.encode())
        return path

    def apply(self, file: RecoveryFile, *banks: str) -> list[int]:
        """The heights at which the banks' nodes stand once they have applied the file."""
        path = self.path(file)
        return [apply_recovery(self.node(bank), path)[1] for bank in banks]

    def grow(self, bank: str, blocks: int = 2) -> None:
        """The bank's chain has so many blocks more, decided by whoever its list names."""
        ledger = self.ledger(bank)
        ledger.now_ms = max(ledger.now_ms, ledger.store.head.time_ms)
        for _ in range(blocks):
            ledger.settle(ledger.transaction("bank-a"))
        ledger.close()

    def built(self, bank: str, *transactions: Transaction) -> ExecutedBlock:
        """A next block that nobody has decided."""
        ledger = self.ledger(bank)
        made = ledger.build(*(transactions or (ledger.transaction("bank-a"),)))
        ledger.close()
        assert made is not None
        return made

    def prepare(self, executed: ExecutedBlock, *banks: str, view: int = 0, with_body: bool = True) -> None:
        """The banks know that a quorum has prepared the block."""
        record = PreparedRecord(self.certificate(VoteKind.PREPARE, executed, BANKS[:3], view))
        for bank in banks:
            store = self.store(bank)
            store.put_records([record], {executed.digest: executed.body} if with_body else None)
            store.close()

    def decide(self, executed: ExecutedBlock, bank: str) -> None:
        """The former members have decided the block, and this bank has applied it."""
        store = self.store(bank)
        store.apply(executed, self.certificate(VoteKind.COMMIT, executed, BANKS[:3], 0), 0)
        store.close()

    def certificate(self, kind: VoteKind, executed: ExecutedBlock, banks: Iterable[str], view: int) -> Certificate:
        """The votes of these banks by the list of genesis."""
        message = vote_bytes(self.network.network_id, kind, view, executed.height, executed.digest)
        votes = tuple((BANKS.index(bank), VOTING[bank].sign(message)) for bank in banks)
        return Certificate(kind, view, executed.height, executed.digest, votes)


def altered(file: RecoveryFile, **changes: Any) -> RecoveryFile:
    """The file with other parts, its signatures as they are."""
    return msgspec.structs.replace(file, **changes)
