"""The head that the runtime gives to consensus: who decides the next height, and who decided this one."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from consensus.effects import Decide
from consensus.members import Members, Validator
from node.config import NO_RECOVERIES, Recoveries, Recovery
from node.errors import ConfigError
from node.ledger import CertifiedBlock, Transaction
from node.runtime.chain import Chain
from node.runtime.clock import Clock
from node.runtime.threads import WorkerThreads
from tests.node.ledger_world import Ledger, certificate, key_of


class VerifiedBodies:
    """Bodies whose signatures nobody has to verify."""

    async def verified(self, data: Sequence[bytes]) -> list[Transaction]:
        return [Transaction.decode(item) for item in data]


@pytest.fixture
def threads() -> Iterator[WorkerThreads]:
    pool = WorkerThreads(1)
    yield pool
    pool.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path)
    yield opened
    opened.close()


def started(ledger: Ledger, threads: WorkerThreads, recoveries: Recoveries = NO_RECOVERIES) -> Chain:
    """The chain of a node that has just started on the ledger's store."""
    bodies: Any = VerifiedBodies()

    def on_divergence(*told: object) -> None:
        raise AssertionError(told)

    async def room() -> None:
        return

    return Chain(
        ledger.store,
        ledger.executor,
        bodies,
        threads,
        Clock(),
        "bank-a",
        1_000,
        lambda executed, view: None,
        on_divergence,
        room,
        recoveries,
    )


async def test_the_head_names_the_list_that_decided_it_after_a_start_and_after_a_block(
    ledger: Ledger, threads: WorkerThreads
) -> None:
    first = ledger.store.head.members
    other = Members((*first.validators[:3], Validator("bank-e", key_of("bank-e", 8))))
    assert started(ledger, threads).head.decided_by == first

    change = ledger.build(ledger.transaction("bank-a"))
    assert change is not None
    ledger.decide(msgspec.structs.replace(change, members=other))
    chain = started(ledger, threads)
    assert (chain.head.height, chain.head.decided_by, chain.head.members) == (1, first, other)

    block = ledger.build(ledger.transaction("bank-a"))
    assert block is not None
    transactions = await chain.verified(block.body.transactions)
    blocks = iter([(CertifiedBlock(block.body, certificate(block)), transactions)])

    async def take() -> tuple[CertifiedBlock, Sequence[Transaction]] | None:
        return next(blocks, None)

    await chain.replay(take)
    head = chain.head
    # The state still names the first list: this block changes the members back.
    assert (head.height, head.decided_by, head.members) == (2, other, first)
    assert chain.head == head
    assert started(ledger, threads).head == head


async def test_a_block_that_the_former_members_decide_in_the_place_of_a_recovery_ends_the_node(
    ledger: Ledger, threads: WorkerThreads
) -> None:
    """It would stand still for ever without a word otherwise."""
    block = ledger.build(ledger.transaction("bank-a"))
    assert block is not None
    survivors = ledger.store.head.validators[:2]
    chain = started(ledger, threads, Recoveries((Recovery(1, bytes(32), b"", survivors, "lost", bytes(32)),)))
    with pytest.raises(ConfigError, match="the recovery 0000") as refused:
        await chain.decide(Decide(1, block.digest, certificate(block), 0))
    assert refused.value.code == "recovery_differs"
    assert (chain.head.height, ledger.store.head.height) == (0, 0)
