"""Looking for work: when the replica is told, and when nobody looks."""

import asyncio
from pathlib import Path
from typing import cast

from consensus.effects import WorkWaiting
from node.mempool import Mempool
from node.runtime.bodies import Bodies
from node.runtime.threads import Threads
from node.runtime.work import Work
from tests.node.ledger_world import Ledger, LedgerClock
from tests.node.signed_ledger import signed, signed_network


class World:
    """A ledger, a mempool, and what the replica was told."""

    def __init__(self, path: Path) -> None:
        self.ledger = Ledger(path, signed_network())
        self.pool = Mempool(100, 2**20)
        self.told: list[WorkWaiting] = []
        clock = LedgerClock(self.ledger)
        executor = self.ledger.executor
        bodies = Bodies(self.pool, executor, cast(Threads, None), clock, lambda peer, error: None)
        self.work = Work(bodies, executor, clock, lambda: 2, self.told.append)

    def arrives(self) -> None:
        assert self.pool.add(signed(self.ledger.transaction("bank-a")), 0)
        self.work.on_new()


def test_the_replica_is_told_when_the_answer_changes(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    for _ in range(3):
        world.arrives()
    assert world.told == [WorkWaiting(True, 0), WorkWaiting(True, 0, True)], (
        "once that work waits, once that it is much"
    )
    world.pool.applied(1, world.ledger.now_ms, world.pool.candidates(10), 0, 0)
    world.work.look()
    assert world.told[-1] == WorkWaiting(False, 0)
    world.ledger.store.close()


def test_nobody_looks_while_a_block_is_durable_and_not_yet_the_head(tmp_path: Path) -> None:
    """Its transactions still wait and are final by its state: another would pass for the oldest, and be counted."""
    world = World(tmp_path / "data")
    world.arrives()
    world.work.on_durable()
    world.pool.applied(1, world.ledger.now_ms, world.pool.candidates(10), 0, 0)
    world.work.look()
    assert world.told == [WorkWaiting(True, 0)]
    world.work.on_applied()
    assert world.told[1:] == [WorkWaiting(False, 0)]
    world.ledger.store.close()


async def test_what_comes_while_a_block_is_applied_is_looked_at_after_it(tmp_path: Path) -> None:
    world = World(tmp_path / "data")
    durable = asyncio.Event()

    async def applied() -> int:
        await durable.wait()
        assert world.told == []
        world.work.look()
        return 7

    applying = asyncio.create_task(world.work.while_applying(applied()))
    await asyncio.sleep(0)
    world.arrives()
    assert world.told == []
    durable.set()
    assert await applying == 7
    assert world.told == [WorkWaiting(True, 0)]
    world.arrives()
    assert world.told[1:] == [WorkWaiting(True, 0, True)], "and what comes later is looked at when it comes"
    world.ledger.store.close()


async def test_a_block_that_cannot_be_applied_does_not_end_the_looking(tmp_path: Path) -> None:
    world = World(tmp_path / "data")

    async def fails() -> None:
        raise LookupError

    outcome = await asyncio.gather(world.work.while_applying(fails()), return_exceptions=True)
    assert isinstance(outcome[0], LookupError)
    world.arrives()
    assert world.told == [WorkWaiting(True, 0)]
    world.ledger.store.close()
