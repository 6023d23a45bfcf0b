"""What the loss of members costs: the primary killed under load, and so many killed that no quorum is left."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import msgspec
from rich.console import Console

from node.config import load_network
from scripts.localnet.batches import batch
from scripts.localnet.generator import Shape
from scripts.localnet.layout import Layout, Member, TestnetError
from scripts.localnet.nodes import Nodes
from scripts.localnet.open_loop import LoadReport
from scripts.localnet.session import Session
from scripts.localnet.watch import Watch

SHAPE = Shape(rate=100, seconds=8, transactions_per_request=5)
KILL_AFTER_HEIGHTS = 10
TIMEOUT_S = 30.0
POLL_S = 0.05


class Failover(msgspec.Struct, frozen=True):
    """One primary killed (SIGKILL) under load and started again.

    `next_block_s`: until the others had decided another block. `back_s`: from its start until all agreed.
    """

    killed: str
    next_block_s: float
    back_s: float
    load: LoadReport


class QuorumLoss(msgspec.Struct, frozen=True):
    """More than f members killed, then one of them started again.

    `named_s`: from the kill until every other member's /readyz said no and named all that were missing.
    `next_block_s`: from the start of one until the next block. `back_s`: of the rest until all agree.
    """

    killed: tuple[str, ...]
    named_s: float
    reason: str
    next_block_s: float
    back_s: float


async def kill_primaries(layout: Layout, nodes: Nodes, console: Console) -> list[Failover]:
    """The primary of the moment was killed under load, once for each member, one after the other."""
    session = Session(layout, nodes, console)
    traffic = await session.prepare_traffic()
    found = []
    for number in range(1, len(nodes.network.members) + 1):
        console.print(f"kill: {number} of {len(nodes.network.members)}")
        async with _watch(nodes) as watch, asyncio.TaskGroup() as group:
            before = watch.height
            load = group.create_task(session.send(traffic, SHAPE))
            await _until(watch, before + KILL_AFTER_HEIGHTS, "the load does not begin")
            victim = _primary(nodes, watch)
            nodes.end([victim], kill=True)
            killed = time.monotonic()
            # What was decided when the primary died may still arrive; the block after it needs a new primary.
            await _until(watch, watch.height + 2, f"nobody took over from {victim.id}")
            next_block_s = time.monotonic() - killed
        back_s = await _start(nodes, [victim])
        console.print(f"kill: {victim.id}, next block after {next_block_s:.2f} s, back after {back_s:.2f} s")
        found.append(Failover(victim.id, round(next_block_s, 2), round(back_s, 2), load.result()))
    return found


async def lose_quorum(layout: Layout, nodes: Nodes, console: Console) -> QuorumLoss:
    """One member more than may be away was killed, and one of them came back."""
    session = Session(layout, nodes, console)
    traffic = await session.prepare_traffic()
    members = nodes.network.members
    validators = load_network(layout.network_file).validators
    victims = list(members[-(validators.n - validators.quorum + 1) :])
    others = [member for member in members if member not in victims]
    async with _watch(nodes) as watch, httpx.AsyncClient(trust_env=False, timeout=5.0) as http:
        console.print(f"quorum-loss: killing {', '.join(member.id for member in victims)}")
        nodes.end(victims, kill=True)
        killed = time.monotonic()
        reason = await _until_named(http, others, victims)
        named_s = time.monotonic() - killed
        console.print(f"quorum-loss: named after {named_s:.2f} s: {reason}")
        for member in others:
            answer = await http.post(
                f"{member.api}/v1/transactions",
                content=batch([traffic.transaction()]),
                headers={"content-type": "application/msgpack"},
            )
            answer.raise_for_status()
        started = time.monotonic()
        nodes.start(victims[:1])
        await _until(watch, watch.height + 1, "no block came")
        next_block_s = time.monotonic() - started
        console.print(f"quorum-loss: {victims[0].id} started, next block after {next_block_s:.2f} s")
    back_s = await _start(nodes, victims[1:])
    return QuorumLoss(
        killed=tuple(member.id for member in victims),
        named_s=round(named_s, 2),
        reason=reason,
        next_block_s=round(next_block_s, 2),
        back_s=round(back_s, 2),
    )


async def _until_named(http: httpx.AsyncClient, asked: list[Member], missing: list[Member]) -> str:
    """What the last of `asked` says, once all of them are not ready and name all of `missing`."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        texts = []
        for member in asked:
            answer = await http.get(f"{member.api}/readyz")
            named = all(gone.id in answer.text for gone in missing)
            texts += ["; ".join(answer.json()["reasons"])] if answer.status_code == 503 and named else []
        if len(texts) == len(asked):
            return texts[-1]
        if time.monotonic() > deadline:
            raise TestnetError(f"/readyz does not name the missing after {TIMEOUT_S:.0f} s", exit_code=1)
        await asyncio.sleep(POLL_S)


async def _start(nodes: Nodes, members: list[Member]) -> float:
    """The members run again and all agree; seconds from their start."""
    started = time.monotonic()
    nodes.start([nodes.network.member(member.id) for member in members])
    await asyncio.to_thread(nodes.wait_agreement)
    return time.monotonic() - started


async def _until(watch: Watch, height: int, otherwise: str) -> None:
    if not await watch.until(lambda: watch.height >= height, TIMEOUT_S):
        raise TestnetError(f"{otherwise}: the height is {watch.height} after {TIMEOUT_S:.0f} s", exit_code=1)


def _primary(nodes: Nodes, watch: Watch) -> Member:
    newest = max((status for status in watch.latest.values() if status is not None), key=lambda s: s.height)
    return nodes.network.member(newest.primary)


@asynccontextmanager
async def _watch(nodes: Nodes) -> AsyncIterator[Watch]:
    """The nodes are watched; every one of them has answered once."""
    async with httpx.AsyncClient(trust_env=False) as http:
        watch = Watch(http, {member.id: member.api for member in nodes.network.members})
        watching = asyncio.create_task(watch.run())
        try:
            if not await watch.until(lambda: None not in watch.latest.values(), TIMEOUT_S):
                raise TestnetError("not every node answers", exit_code=4)
            yield watch
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
