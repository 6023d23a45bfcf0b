"""Catch-up is to rest while a block is being applied: the block comes to its end, and what it raises is told."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from node.errors import InvalidBlock
from node.sync import ReadyBlock
from tests.node.test_sync import CHAIN, Node, hurried, running, serving, until

__all__ = ["hurried"]


async def applying(node: Node) -> None:
    """The first block is being applied, and its end is in the test's hand: the chain's gate."""
    node.net.peers["m1"] = serving(CHAIN)
    node.chain.gate.clear()
    node.sync.catch_up(80, ["m1"])
    await until(lambda: node.chain.at_gate)


async def turns() -> None:
    """Every task has run until it waits for something else than its turn."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_second_rest_does_not_tear_the_block_that_is_being_applied() -> None:
    """Cancelled between the store's write and the executor's advance it parted the two heads: exit code 70."""
    async with running() as node:
        await applying(node)
        for resting in (True, False, True, True):
            node.sync.rest(resting)
            await turns()
        assert node.chain.head.height == 0
        node.chain.gate.set()
        await until(lambda: node.chain.head.height == 1 and not node.sync.progress().running)
        await turns()
        assert node.chain.head.height == 1, "the rest holds"
        assert node.failures == []
        node.sync.rest(False)
        await until(lambda: node.chain.head.height == 80)


async def test_whoever_closes_and_is_cancelled_does_not_tear_the_block_either() -> None:
    async with running() as node:
        await applying(node)
        closing = asyncio.create_task(node.sync.close())
        await turns()
        closing.cancel()
        await turns()
        assert not closing.done()
        node.chain.gate.set()
        await asyncio.gather(closing, return_exceptions=True)
        assert node.chain.head.height == 1


def failing(node: Node, error: Callable[[], Exception]) -> None:
    """Blocks are refused from now on, when the gate opens."""

    async def refused(take: Callable[[], Awaitable[ReadyBlock | None]]) -> None:
        await take()
        node.chain.at_gate = True
        await node.chain.gate.wait()
        raise error()

    node.chain.replay = refused  # type: ignore[method-assign]


async def test_a_disk_that_breaks_while_catch_up_is_to_rest_ends_the_node() -> None:
    """The error went with the cancellation, and the node went on with a store that had failed."""
    async with running() as node:
        failing(node, lambda: OSError("disk"))
        await applying(node)
        node.sync.rest(True)
        await turns()
        node.chain.gate.set()
        await until(lambda: not node.sync.progress().running)
        assert [str(error) for error in node.failures] == ["disk"]


@pytest.mark.usefixtures("hurried")
async def test_a_block_that_is_refused_while_catch_up_is_to_rest_is_reported_and_the_rest_holds() -> None:
    async with running() as node:
        failing(node, lambda: InvalidBlock("internal_error", "other roots"))
        await applying(node)
        node.sync.rest(True)
        await turns()
        node.chain.gate.set()
        await until(lambda: not node.sync.progress().running)
        assert node.reports["m1"] == ["internal_error"]
        assert node.failures == []
        asked = len(node.net.asked)
        await turns()
        assert len(node.net.asked) == asked
        node.sync.rest(False)
        assert node.sync.progress().running
