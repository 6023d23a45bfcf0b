"""Making evidence packs beside running commits: head proofs in a turn between two blocks, past ones on a copy.

Invariants: a proof's tree and its state are of one moment, taken between two blocks. What takes long (undoing
later blocks, reading entries and headers) runs in other threads, and the undoing in slices with pauses as long as
the work, so that commits go on. One past state is rebuilt at a time, for it takes the memory of a whole tree. All
work in threads is charged to the client that asked (proof_budget.py), also of what was refused in the end; who has
spent its budget, or finds too many waiting, is told when to come again.

Why no rebuilt state is kept for the next question about its height: it is a whole tree, tens of megabytes, and
stands on a view of the database, under which rows that are pruned meanwhile keep their room on the disk.
"""

import asyncio
import contextlib
import copy
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from contracts.engine import Engine
from node.config import NetworkConfig
from node.errors import NotFound, Unavailable
from node.evidence import (
    PastTree,
    StateProof,
    account_key,
    assemble,
    certified_height,
    check_checkpoint,
    judge_request,
    named_key,
    proof_height,
    read_body,
    request_key_of,
    state_kind,
    state_proof,
    statement_item,
    statement_range,
    transaction_item,
)
from node.ledger import sha256
from node.runtime.clock import Clock
from node.runtime.proof_budget import ProofBudget
from node.state_tree import StateTree
from node.store import Store, StoreView

T = TypeVar("T")

BUSY_RETRY_MS = 1_000
MAKING_MAX = 2
"""So many packs are put together at a time: with its links and entries one may take a hundred megabytes."""
LOOKING_MAX = 2
"""So many stand in the queue for a turn between two blocks: a block waits for these, however many clients ask."""
ASKING_MAX = 64
"""So many are answered or wait at a time; each holds its question, its answer or both."""
CLIENT_ASKING_MAX = 8
"""So many of them may be one client's."""
NOBODY = ""
"""The client in whose name this node itself asks: it has no budget."""


class BetweenBlocks(Protocol):
    """Runs a function on the head's state and tree while no block is executed or applied."""

    def __call__(self, look: Callable[[StoreView, StateTree], T], /) -> Awaitable[T]:
        """Return what `look` returns; it takes milliseconds and keeps neither of its arguments' tree."""


class Proving:
    """Implements node.api.Proofs over the node's store and state tree. All methods run on the event loop."""

    def __init__(
        self,
        network: NetworkConfig,
        engine: Engine,
        store: Store,
        between_blocks: BetweenBlocks,
        clock: Clock,
    ) -> None:
        self._network = network.network_id
        self._recoveries = network.recoveries
        self._retention_ms = network.parameters.retention_ms
        self._engine = engine
        self._store = store
        self._between_blocks = between_blocks
        self._clock = clock
        self._looking = asyncio.Semaphore(LOOKING_MAX)
        self._undoing = asyncio.Lock()
        self._making = asyncio.Semaphore(MAKING_MAX)
        self._budget = ProofBudget()
        self._asking: Counter[str] = Counter()
        self._client = NOBODY

    def for_client(self, client: str) -> "Proving":
        """The same, in the name of `client`, who pays for what it asks."""
        named = copy.copy(self)
        named._client = client
        return named

    async def transaction(self, tx_id: bytes, checkpoint: int | None) -> bytes:
        """The pack that proves a final transaction and its receipt."""
        with self._admitted():
            return await self._transaction(tx_id, checkpoint)

    async def _transaction(self, tx_id: bytes, checkpoint: int | None) -> bytes:
        view = self._store.snapshot()

        def make() -> bytes:
            height, item = transaction_item(view, tx_id)
            return self._assemble(view, "transaction", [height], item, checkpoint)

        return await self._make(make)

    async def state(self, key: bytes, at_height: int | None, checkpoint: int | None) -> bytes:
        """The pack that proves the value under `key`, or that there is none, after block `at_height`."""

        def choose(view: StoreView) -> list[tuple[int, bytes]]:
            return [(certified_height(view, at_height), key)]

        with self._admitted():
            view, [height], [proof] = await self._prove(choose, checkpoint)
            return await self._make(lambda: self._assemble(view, state_kind(proof), [height], (proof,), checkpoint))

    def key(self, contract: str, field: str, parts: Sequence[str]) -> bytes:
        """The state key that the names mean."""
        return named_key(tuple(self._engine.shipped.values()), contract, field, parts)

    async def not_executed(self, data: bytes, at_height: int | None, checkpoint: int | None) -> bytes:
        """The pack that proves that the transaction (signed, or its body) was not executed and never will be."""
        body, body_bytes = read_body(data, self._network)
        tx_id, key = sha256(b"hansa/tx" + body_bytes), request_key_of(body)

        def choose(view: StoreView) -> list[tuple[int, bytes]]:
            return [(proof_height(view, body, tx_id, self._retention_ms, at_height), key)]

        with self._admitted():
            view, [height], [proof] = await self._prove(choose, checkpoint)
            judge_request(view, proof, tx_id)
            item = (body_bytes, proof)
            return await self._make(lambda: self._assemble(view, "not_executed", [height], item, checkpoint))

    async def not_executed_by_id(self, tx_id: bytes, at_height: int | None, checkpoint: int | None) -> bytes:
        """As `not_executed`, of a transaction that this node accepted and still has."""
        data = self._store.transaction(tx_id)
        if data is None:
            raise NotFound("transaction_not_kept", f"this node does not have the bytes of {tx_id.hex()}")
        return await self.not_executed(data, at_height, checkpoint)

    async def statement(
        self, account: str, from_height: int, to_height: int | None, checkpoint: int | None
    ) -> bytes:
        """The pack that proves every entry of the account after `from_height` up to `to_height`."""
        key = account_key(account)

        def choose(view: StoreView) -> list[tuple[int, bytes]]:
            first, last = statement_range(view, from_height, to_height)
            return [(last, key), (first, key)]

        with self._admitted():
            view, [last, first], [closing, opening] = await self._prove(choose, checkpoint)

            def make() -> bytes:
                item = statement_item(view, account, (first, last), opening, closing)
                return self._assemble(view, "statement", [first, last], item, checkpoint)

            return await self._make(make)

    @contextlib.contextmanager
    def _admitted(self) -> Iterator[None]:
        """One more is being answered. Raise Unavailable (proofs_spent, node_busy) where none may be."""
        many = self._asking.total() >= ASKING_MAX
        if self._client != NOBODY:
            self._budget.require(self._client, self._clock.now_ms())
            many = many or self._asking[self._client] >= CLIENT_ASKING_MAX
        if many:
            raise Unavailable("node_busy", "too many proofs are asked for at a time", retry_after_ms=BUSY_RETRY_MS)
        self._asking[self._client] += 1
        try:
            yield
        finally:
            self._asking[self._client] -= 1
            if not self._asking[self._client]:
                del self._asking[self._client]

    async def _work(self, work: Callable[[], T]) -> T:
        """What `work` returns, done in a thread and charged to the client."""
        started_ms = self._clock.now_ms()
        try:
            return await asyncio.to_thread(work)
        finally:
            now_ms = self._clock.now_ms()
            if self._client != NOBODY:
                self._budget.charge(self._client, now_ms - started_ms, now_ms)

    async def _make(self, make: Callable[[], bytes]) -> bytes:
        async with self._making:
            return await self._work(make)

    def _assemble(
        self, view: StoreView, kind: str, heights: Sequence[int], item: tuple[Any, ...], checkpoint: int | None
    ) -> bytes:
        return assemble(view, kind, heights, item, checkpoint, self._recoveries)

    async def _prove(
        self, choose: Callable[[StoreView], Sequence[tuple[int, bytes]]], checkpoint: int | None
    ) -> tuple[StoreView, list[int], list[StateProof]]:
        """The proofs of the (height, key) that `choose` names of a view's history, from the highest height down."""

        def at_head(view: StoreView, tree: StateTree) -> tuple[StoreView, list[int], list[StateProof]] | None:
            wanted = choose(view)
            check_checkpoint(view, wanted[0][0], checkpoint)
            if any(height != view.head.height for height, _ in wanted):
                return None
            proofs = [state_proof(tree, key, view.get(key)) for _, key in wanted]
            return view, [height for height, _ in wanted], proofs

        async with self._looking:
            found = await self._between_blocks(at_head)
        if found is not None:
            return found
        if self._undoing.locked():
            raise Unavailable(
                "node_busy", "another proof of a past height is being made", retry_after_ms=BUSY_RETRY_MS
            )
        async with self._undoing:
            return await self._prove_past(choose)

    async def _prove_past(
        self, choose: Callable[[StoreView], Sequence[tuple[int, bytes]]]
    ) -> tuple[StoreView, list[int], list[StateProof]]:
        def take(view: StoreView, tree: StateTree) -> tuple[StoreView, Sequence[tuple[int, bytes]], PastTree]:
            return view, choose(view), PastTree(view, tree)

        view, wanted, past = await self._between_blocks(take)
        proofs: list[StateProof] = []
        for height, key in wanted:
            steps = past.back_to(height)
            while True:
                started_ms = self._clock.now_ms()
                if await self._work(lambda steps=steps: next(steps, self)) is self:  # type: ignore[misc]
                    break
                # As long a pause as the work took: whoever executes and votes needs the interpreter too.
                await asyncio.sleep((self._clock.now_ms() - started_ms) * 0.001)
            proofs.append(await self._work(lambda key=key: past.prove(key)))  # type: ignore[misc]
        return view, [height for height, _ in wanted], proofs
