"""A decided chain in which blocks depend on one another, and the chain of a node that replays it."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from node.config import NetworkConfig
from node.executor import Executor
from node.ledger import Call, CertifiedBlock, HeadRecord, Transaction
from node.runtime.chain import Chain
from node.runtime.clock import Clock
from node.runtime.threads import WorkerThreads
from node.state import ExecutedBlock
from node.store import Database, LevelDatabase, Store, StoreView
from node.sync import ReadyBlock
from tests.node.ledger_world import ENGINE, Ledger, transfer, uetr
from tests.node.signed_ledger import certified, signed, signed_network

Take = Callable[[], Awaitable[ReadyBlock | None]]


def replayed_network() -> NetworkConfig:
    """Signatures are real; a request id is forgotten a few blocks after it was used, two of them a block."""
    config = signed_network()
    parameters = msgspec.structs.replace(config.parameters, retention_ms=1_000, pruned_requests_max=2)
    return msgspec.structs.replace(config, parameters=parameters)


class Decided:
    """`length` certified blocks with their executions. Most of what a block reads was written by the one before."""

    def __init__(self, path: Path, length: int) -> None:
        self.ledger = ledger = Ledger(path, replayed_network())
        self.blocks: list[CertifiedBlock] = []
        self.executed: list[ExecutedBlock] = []
        self.heads: list[HeadRecord] = [ledger.store.head]
        names = [f"A{number}" for number in range(4)]
        opening = [
            Call("settlement", "open_account", {"account": name, "owner": "bank-a", "currency": "USD"})
            for name in names
        ]
        issuing = [Call("settlement", "issue", {"account": name, "amount": 1_000}) for name in names]
        self._settle(self._transaction(*opening, *issuing))
        for height in range(2, length + 1):
            # Everything goes round: each transfer needs what the last block brought.
            debtor, creditor = names[height % 4], names[(height + 1) % 4]
            self._settle(
                self._transaction(transfer(debtor, creditor, 900 + height, height)),
                self._transaction(
                    Call(
                        "settlement",
                        "hold",
                        {
                            "uetr": uetr(1_000 + height),
                            "debtor": creditor,
                            "creditor": debtor,
                            "amount": 1,
                            # It falls due in the block after the next one, as a scheduled call.
                            "expires_at_ms": ledger.now_ms + 2_500,
                        },
                    )
                ),
            )

    def _transaction(self, *calls: Call) -> Transaction:
        return signed(
            self.ledger.transaction("bank-a", *calls, mode="each", expires_at_ms=self.ledger.now_ms + 2_000)
        )

    def _settle(self, *transactions: Transaction) -> None:
        ledger = self.ledger
        executed = ledger.build(*transactions)
        assert executed is not None
        assert len(executed.body.transactions) == len(transactions)
        certificate = certified(executed)
        self.heads.append(ledger.store.apply(executed, certificate, 0))
        ledger.executor.advance(executed, ledger.store.snapshot())
        self.executed.append(executed)
        self.blocks.append(CertifiedBlock(executed.body, certificate))

    def ready(self, height: int) -> ReadyBlock:
        """The block as whoever replays it wants it."""
        block = self.blocks[height - 1]
        return block, [Transaction.decode(data) for data in block.body.transactions]

    def giving(self, first: int, last: int) -> Take:
        """Gives the blocks from `first` to `last`."""
        heights = iter(range(first, last + 1))

        async def take() -> ReadyBlock | None:
            height = next(heights, None)
            return None if height is None else self.ready(height)

        return take

    def state(self, view: StoreView) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
        """State and tree as `view` has them."""
        return dict(view.scan(b"", b"\xff")), dict(view.pairs())


class _Bodies:
    """Transactions whose signatures nobody has to verify."""

    async def verified(self, data: Sequence[bytes]) -> list[Transaction]:
        return [Transaction.decode(item) for item in data]


async def _room() -> None:
    return


class Replayer:
    """A node's store, executor and chain in threads of their own; `applied` are the heights that it was told of."""

    def __init__(self, path: Path, open_database: Callable[[Path], Database] = LevelDatabase) -> None:
        config = replayed_network()
        self.threads = WorkerThreads(1)
        self.store = Store(path, config.network_id, config.genesis_hash, open_database=open_database)
        self.executor = Executor(config, ENGINE, Ledger.registry)
        if not self.store.initialised:
            self.store.initialise(self.executor.genesis(), never_voted=True)
        self.executor.open(self.store.snapshot())
        self.applied: list[int] = []
        bodies: Any = _Bodies()
        self.chain = Chain(
            self.store,
            self.executor,
            bodies,
            self.threads,
            Clock(),
            "bank-a",
            60_000,
            self._on_durable,
            self._on_applied,
            self._on_divergence,
            _room,
        )

    def _on_durable(self, executed: ExecutedBlock, view: StoreView) -> None:
        assert view.head.height == executed.height == self.store.head.height

    def _on_applied(self, executed: ExecutedBlock, view: StoreView) -> None:
        assert view.head.height == executed.height == self.chain.head.height
        self.applied.append(executed.height)

    @staticmethod
    def _on_divergence(*told: object) -> None:
        raise AssertionError(told)

    def stands_whole_at(self, height: int) -> None:
        """Store, executor and chain have one head, and nobody was told of more or less."""
        assert self.store.head.height == self.chain.head.height == self.executor.head.height == height
        assert isinstance(self.executor.view, StoreView), "what was ahead of the disk is let go of"
        assert self.executor.tree.root == self.store.head.state_root
        assert self.applied == list(range(height - len(self.applied) + 1, height + 1))

    def close(self) -> None:
        """Nothing runs, and the directory is free."""
        self.threads.close()
        self.store.close()
