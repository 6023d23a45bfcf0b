"""Evidence packs of every kind, made by the node's own code over real ledgers with real keys.

The ledger changes its validators twice: bank-e takes the place of bank-a, then it leaves. So there are three
epochs, whose quorums differ in who signs, and blocks which themselves are a change. Every block changes the state,
so that no two have the same roots.
"""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from node.config import NetworkConfig
from node.evidence import account_key
from node.ledger import Call, Transaction
from tests.node.evidence_world import ProvableLedger, provable_network
from tests.node.ledger_world import transfer

ABSENT_KEY = account_key("NOBODY")
EPOCHS = (
    ("bank-a", "bank-b", "bank-c", "bank-d"),
    ("bank-e", "bank-b", "bank-c", "bank-d"),
    ("bank-b", "bank-c", "bank-d"),
)


class MadePack(msgspec.Struct, frozen=True):
    """A good pack with what its reader knows besides: genesis file, checkpoint, and what it should be about."""

    name: str
    kind: str
    data: bytes
    genesis: bytes
    checkpoint: str | None
    expect: str


class World:
    """A ledger with a past, and its packs."""

    def __init__(self, path: Path, config: NetworkConfig | None = None) -> None:
        self.ledger = ProvableLedger(path, config or provable_network(state_tree_bits=4))
        self.packs: list[MadePack] = []
        self._live()

    @property
    def genesis(self) -> bytes:
        """The network definition as an auditor has it."""
        return self.ledger.genesis

    def _live(self) -> None:
        ledger = self.ledger
        ledger.open_accounts("ACC-1", "ACC-2", funds=1_000_000)
        calls = [Call("settlement", "open_account", self._account(number)) for number in range(600)]
        ledger.settle(ledger.transaction("bank-a", *calls))
        self.several = [self._transfer(number) for number in range(5)]
        ledger.settle(*self.several)
        self.first_change = self._change(*EPOCHS[1])
        self.never = self._transfer(50, request="never", expires_in_ms=5_000)
        self.replaced = self._transfer(51, request="twice", expires_in_ms=5_000)
        self.replacement = self._transfer(52, request="twice", expires_in_ms=5_000)
        ledger.settle(self.replacement)
        self.middle = self._transfer(60)
        ledger.settle(self.middle)
        self.second_change = self._change(*EPOCHS[2])
        ledger.now_ms += 10_000
        self.late = self._transfer(70)
        ledger.settle(self.late)
        ledger.settle(self._transfer(71))
        ledger.settle(self._transfer(72))
        self._make()

    @staticmethod
    def _account(number: int) -> dict[str, object]:
        return {"account": f"MANY-{number}", "owner": "bank-a", "currency": "USD"}

    def _transfer(self, number: int, request: str | None = None, expires_in_ms: int = 600_000) -> Transaction:
        call = transfer("ACC-1", "ACC-2", 10 + number, number)
        expires_at_ms = self.ledger.now_ms + expires_in_ms
        return self.ledger.transaction("bank-a", call, request=request, expires_at_ms=expires_at_ms)

    def _change(self, *banks: str) -> Transaction:
        """A transaction in the block after which `banks` decide."""
        self.ledger.appoint(*banks)
        transaction = self._transfer(100 + self.ledger.store.head.height)
        self.ledger.settle(transaction)
        return transaction

    def _make(self) -> None:
        head = self.ledger.store.head.height
        proving = self.ledger.proving

        def add(name: str, data: bytes, subject: str, checkpoint: int | None = None) -> None:
            kind = name.split(" ")[0]
            digest = self.ledger.store.head_at(checkpoint or head).digest
            mark = None if checkpoint is None else f"{checkpoint}:{digest.hex()}"
            self.packs.append(MadePack(name, kind, data, self.genesis, mark, f"{kind}:{subject}"))

        async def make() -> None:
            for name, item, checkpoint in (
                ("of the first epoch", self.several[2], None),
                ("at the odd end of its block", self.several[4], None),
                ("in a block that is a change", self.first_change, None),
                ("of the second epoch", self.middle, None),
                ("of the third epoch", self.late, None),
                ("up to a checkpoint", self.middle, head),
            ):
                data = await proving.transaction(item.tx_id, checkpoint)
                add(f"transaction {name}", data, item.tx_id.hex(), checkpoint)
            key = account_key("ACC-1")
            for name, height, mark in (("now", head, None), ("long ago", 2, None), ("linked", head - 2, head)):
                add(f"state {name}", await proving.state(key, height, mark), key.hex(), mark)
                add(f"absence {name}", await proving.state(ABSENT_KEY, height, mark), ABSENT_KEY.hex(), mark)
            for name, item, mark in (("unused", self.never, None), ("replaced", self.replaced, head)):
                data = await proving.not_executed(item.body_bytes, head - 1, mark)
                add(f"not_executed {name}", data, item.tx_id.hex(), mark)
            for name, account, first, last, mark in (
                ("of an epoch", "ACC-1", 2, 3, None),
                ("over all epochs", "ACC-2", 2, head, None),
                ("from before the account", "MANY-7", 1, head - 1, head),
                ("from its opening on", "ACC-1", 1, head - 3, head),
            ):
                data = await proving.statement(account, first, last, mark)
                add(f"statement {name}", data, account, mark)

        asyncio.run(make())

    def close(self) -> None:
        """Its directory is free."""
        self.ledger.close()


@contextmanager
def made_packs() -> Iterator[World]:
    """A world in a directory of its own, which goes away with it."""
    with tempfile.TemporaryDirectory(prefix="evidence-") as directory:
        world = World(Path(directory) / "data")
        try:
            yield world
        finally:
            world.close()
