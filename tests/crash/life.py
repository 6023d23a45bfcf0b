"""A node's life with crashes in it: store, executor and chain as they are shipped, and every promise that they
made.

After each crash: the head is the last block that was applied or the one that was being applied, with the roots of
the undisturbed run; whatever a call had made durable when it returned (so that votes were sent, clients were
answered) is there again. At the end state, tree, blocks, receipts and index are those of the undisturbed run.
"""

import asyncio
import itertools
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consensus.codec import encode
from consensus.effects import BlockStanding, CheckPayload, Decide, Persist, PersistAbstention, Record
from consensus.messages import Evidence
from node.errors import HansaError
from node.executor import Executor
from node.ledger import Transaction
from node.runtime.chain import Chain
from node.runtime.clock import Clock
from node.store import Database, Store
from node.store.layout import record_slot
from node.store.log_tail import DAMAGED_TAIL
from tests.crash.dying import DyingDatabase, PowerCut, Wrap
from tests.crash.story import Height, Story, decided
from tests.node.ledger_world import ENGINE, Ledger, network

WRITES_MAX = 14
"""A process dies at the latest at so many writes after its start."""
WEIGHTS = {"before": 3, "after": 3, "cut": 5, "zeros": 4, "holes": 3, "garbage": 2}


class Loss(Exception):
    """Something that was promised is not there, or something is there that never was."""


@dataclass(frozen=True)
class Point:
    """One crash and what was found after it. `behind`: the block being applied was (0) or was not (1) there."""

    how: str
    doing: str
    height: int
    behind: int
    records: int
    abstains: bool


@dataclass
class Promises:
    """All that was durable when a call returned, as far as it is still owed."""

    applied: int = 0
    doing: str = "start"
    records: dict[tuple[bytes, int], tuple[int, Record]] = field(default_factory=dict)
    bodies: dict[int, bytes] = field(default_factory=dict)
    accepted: set[bytes] = field(default_factory=set)
    evidence: list[Evidence] = field(default_factory=list)
    abstain_until: int = 0
    diverged: int = 0
    voted: bool = False

    def add(self, *records: Record) -> None:
        """The records were durable before anything was sent."""
        for record in records:
            slot, height, view = record_slot(record)
            self.records[(slot, height)] = (view, record)
        self.voted = True

    def prune(self, height: int) -> None:
        """Nothing is owed of heights up to this one, which was applied."""
        self.records = {key: value for key, value in self.records.items() if key[1] > height}
        self.bodies = {at: digest for at, digest in self.bodies.items() if at > height}


class _Inline:
    """Every piece of work is done at once, where it is asked for."""

    async def execute(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return function(*args, **options)

    write = execute


class _Bodies:
    """Transactions whose signatures nobody has to verify."""

    def __init__(self, known: Sequence[Transaction]) -> None:
        self._known = {item.wire_id: item for item in known}

    async def verified(self, data: Sequence[bytes]) -> list[Transaction]:
        return [Transaction.decode(item) for item in data]

    async def transactions(self, wire_ids: Sequence[bytes], *_: object) -> list[Transaction]:
        return [self._known[wire_id] for wire_id in wire_ids]


async def _at_once() -> None:
    return


class Process:
    """One start of the node on a directory."""

    def __init__(
        self, place: Path, story: Story, promises: Promises, open_database: Callable[[Path], Database]
    ) -> None:
        self._story = story
        self._promises = promises
        config = network()
        self.store = Store(place, config.network_id, config.genesis_hash, open_database=open_database)
        self._executor = Executor(config, ENGINE, Ledger.registry)
        if not self.store.initialised:
            self.store.initialise(self._executor.genesis(), never_voted=True)
        self._executor.open(self.store.snapshot())
        transactions = [Transaction.decode(data) for item in story.heights for data in item.block.body.transactions]
        bodies: Any = _Bodies(transactions)
        threads: Any = _Inline()
        self._chain = Chain(
            self.store,
            self._executor,
            bodies,
            threads,
            Clock(),
            "bank-a",
            60_000,
            lambda executed, view: None,
            lambda executed, view: None,
            self._diverged,
            _at_once,
        )

    @staticmethod
    def _diverged(*told: object) -> None:
        raise Loss(f"an execution differs from that of the undisturbed run: {told}")

    async def run(self) -> None:
        """The story is lived from the head to its end."""
        for item in self._story.heights[self._chain.head.height :]:
            await self._live(item)

    async def _live(self, item: Height) -> None:
        store, promises, height = self.store, self._promises, item.block.height
        promises.doing = "accepting transactions"
        store.put_pending([(transaction.tx_id, transaction.data) for transaction in item.accepted])
        promises.accepted.update(transaction.tx_id for transaction in item.accepted)
        if item.abstain:
            promises.doing = "promising to abstain"
            await self._chain.persist([PersistAbstention(height)])
            promises.abstain_until = max(promises.abstain_until, height)
        if item.diverged is not None:
            promises.doing = "noting a divergence"
            store.put_divergence(item.diverged)
            promises.diverged = height
        if item.asked:
            await self._record("asking for a view", item.asked)
        await self._check(item)
        await self._record("voting prepare", (item.prepare,))
        promises.bodies[height] = item.block.digest
        await self._record("voting commit", item.commit)
        if item.evidence is not None:
            promises.doing = "storing evidence"
            store.put_evidence("bank-c", item.evidence)
            if item.evidence not in promises.evidence:
                promises.evidence.append(item.evidence)
        promises.doing = "applying"
        await self._chain.decide(Decide(height, item.block.digest, decided(item), item.view))
        promises.applied = height
        promises.prune(height)
        promises.doing = "ending transactions"
        store.end_pending(item.endings)
        store.forget_pending(item.forgotten)

    async def _check(self, item: Height) -> None:
        """The block is executed: from the bytes on disk where a vote was stored with them."""
        block = item.block
        at_hand = block.height in self._promises.bodies
        payload = None if at_hand else encode(block.proposal)
        effect = CheckPayload(
            block.height, item.view, block.digest, payload, BlockStanding.VOTED, False, "bank-a", ("bank-a",)
        )
        answer = await self._chain.check(effect)
        if answer.valid is not True:
            raise Loss(f"block {block.height} cannot be executed again: {answer.reason}")

    async def _record(self, doing: str, records: Sequence[Record]) -> None:
        self._promises.doing = doing
        await self._chain.persist([Persist(record) for record in records])
        self._promises.add(*records)

    # --- what must hold ----------------------------------------------------------------------------------

    def judge(self, how: str, place: Path) -> Point:
        """What the process found that started after a crash; raise Loss for what is not as promised."""
        store, promises = self.store, self._promises
        head = store.head
        if head.height not in (promises.applied, promises.applied + 1):
            raise Loss(f"the head is {head.height}, and {promises.applied} was applied")
        if head != self._story.heads[head.height]:
            raise Loss(f"the head record of block {head.height} differs from that of the undisturbed run")
        promises.prune(head.height)
        memory = store.memory()
        forgotten = not memory.voted and not memory.never_voted
        damaged = (place / DAMAGED_TAIL).exists() and how == "garbage"
        if forgotten and promises.voted and not damaged:
            raise Loss(f"the member forgot that it has voted after {how!r}")
        if not forgotten:
            for view, record in promises.records.values():
                if record not in memory.records:
                    raise Loss(f"{type(record).__name__} of height {head.height + 1}, view {view} is gone")
            for height, digest in promises.bodies.items():
                if store.body(height, digest) is None:
                    raise Loss(f"the body of block {height}, which was voted for, is gone")
        else:
            promises.voted = False
            promises.records.clear()
            promises.bodies = {at: digest for at, digest in promises.bodies.items() if store.body(at, digest)}
            if damaged:
                # It learns from the others anew until when to abstain: what it knew of that may be over.
                promises.abstain_until = 0
        self._judge_promises(memory.abstain_until)
        behind = promises.applied + 1 - head.height
        promises.applied = head.height
        return Point(how, promises.doing, head.height, behind, len(memory.records), forgotten)

    def _judge_promises(self, abstain_until: int) -> None:
        store, promises = self.store, self._promises
        if abstain_until < promises.abstain_until:
            raise Loss(f"the promise to abstain until {promises.abstain_until} is gone")
        if promises.diverged > store.head.height and store.divergence() is None:
            raise Loss(f"the divergence at {promises.diverged} is forgotten")
        waiting = {Transaction.decode(data).tx_id for data in store.pending()}
        for tx_id in promises.accepted:
            if tx_id not in waiting and store.locate(tx_id) is None and store.ending(tx_id) is None:
                raise Loss(f"the accepted transaction {tx_id.hex()[:16]} has no fate")
        known = [item.evidence for item in store.evidence()]
        for evidence in promises.evidence:
            if evidence not in known:
                raise Loss("evidence is gone")

    def judge_end(self) -> None:
        """Everything is as the undisturbed run left it."""
        store = self.store
        view = store.snapshot()
        found = {b"s" + key: value for key, value in view.scan(b"", b"\xff")}
        found |= dict(itertools.chain(store.rows(b"t", b"u"), store.rows(b"d", b"e")))
        if found != self._story.last:
            raise Loss("state or tree differ from those of the undisturbed run")
        for item in self._story.heights:
            block = item.block
            if store.block(block.height).body != block.body:
                raise Loss(f"block {block.height} differs")
            if store.receipts(block.height).receipts != block.receipts:
                raise Loss(f"the receipts of block {block.height} differ")
            if any(store.locate(tx_id) != (block.height, at) for at, tx_id in enumerate(block.tx_ids)):
                raise Loss(f"the index of block {block.height} differs")


def untouched(database: Database) -> Database:
    """The disk itself."""
    return database


def live(story: Story, place: Path, chance: random.Random, points: int, wrap: Wrap = untouched) -> list[Point]:
    """At most `points` crashes of one life in the empty directory `place`; raise Loss for the first broken promise.

    `wrap` puts something between the store and the disk: a control shows with it that a loss is found.
    """
    promises = Promises()
    found: list[Point] = []
    disks: list[DyingDatabase] = []
    directory = place / "0"
    how = ""
    while True:
        writes = chance.randint(1, WRITES_MAX) if len(found) + bool(how) < points else 0
        dies = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]

        def open_database(path: Path, writes: int = writes, dies: str = dies) -> Database:
            disks.append(DyingDatabase(path, writes, dies))
            return wrap(disks[-1])

        judged = False
        try:
            process = Process(directory, story, promises, open_database)
            if how:
                found.append(process.judge(how, directory))
                judged = True
            asyncio.run(process.run())
            process.judge_end()
            process.store.close()
            return found
        except PowerCut:
            crashed = place / str(len(disks))
            disks[-1].crashed(chance, crashed)
            shutil.rmtree(directory)
            # It may have died again before anybody looked: then the first way is the one that may cost memory.
            directory, how = crashed, "garbage" if how == "garbage" and not judged else dies
        except HansaError as error:
            doing = f"starting after {how!r} while {promises.doing}" if how else promises.doing
            raise Loss(f"{doing}: {error}") from error
