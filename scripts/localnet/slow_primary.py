"""What a primary costs that is alive and slow: everything that it sends is delayed, while all queues are full.

The network's blocks are small (BLOCK_TRANSACTIONS_MAX), so that its delay decides the throughput: with blocks that
take a second to execute, 50 ms are no reason to replace anybody, and nobody is.
"""

import asyncio
import itertools
import time
from collections.abc import Sequence

import httpx
import msgspec
from rich.console import Console

from node.client.answers import BlockAnswer
from node.config import Parameters
from scripts.localnet.batches import batch
from scripts.localnet.generator import Traffic
from scripts.localnet.layout import Layout, TestnetError
from scripts.localnet.nodes import Nodes
from scripts.localnet.session import Session
from scripts.localnet.watch import Watch

BLOCK_TRANSACTIONS_MAX = 10
DELAY_MS = 50
QUEUE = 2_000
"""So many transactions are kept waiting: queues are full, and no processor time goes into what is not decided."""
PER_REQUEST = 50
FILLED_WITHIN_S = 30.0
BEFORE_S = 20.0
REPLACED_WITHIN_S = 40.0
AFTER_S = 12.0
MEASURED_S = 10.0
SETTLING_S = 1.0


class SlowPrimary(msgspec.Struct, frozen=True):
    """One primary slowed under full load. Transactions a second; `replaced_s` is None when nobody replaced it.

    `before_per_s`: in the last ten seconds before; `during_per_s`: while it was slow and primary; `after_per_s`: in
    the ten seconds from a second after its replacement, still slow. `share`: after as a part of before.
    """

    primary: str
    delay_ms: int
    block_transactions_max: int
    replaced_s: float | None
    successor: str
    before_per_s: float
    during_per_s: float
    after_per_s: float
    share: float


class _Block(msgspec.Struct, frozen=True):
    time_s: float
    proposer: str
    transactions: int


def parameters() -> Parameters:
    """A network whose blocks are so small that a load of this machine's keeps them full."""
    return Parameters(block_transactions_max=BLOCK_TRANSACTIONS_MAX)


async def measure(layout: Layout, nodes: Nodes, console: Console) -> SlowPrimary:
    """The primary of the moment was slowed under full queues until it was replaced; its links are whole again."""
    wiring = nodes.wiring
    if wiring is None:
        raise TestnetError("a slow primary needs a network with a proxy")
    traffic = await Session(layout, nodes, console).prepare_traffic()
    apis = {member.id: member.api for member in nodes.network.members}
    async with httpx.AsyncClient(trust_env=False, timeout=20.0) as http:
        watch = Watch(http, apis)
        watching = asyncio.create_task(watch.run())
        loading = asyncio.create_task(_keep_full(http, list(apis.values()), traffic, watch))
        try:
            if not await watch.until(lambda: _pending(watch) >= QUEUE, FILLED_WITHIN_S):
                raise TestnetError("the queues do not fill", exit_code=1)
            console.print(f"slow-primary: full load for {BEFORE_S:.0f} s")
            await asyncio.sleep(BEFORE_S)
            primary = _primary(watch)
            first = watch.height
            slowed_s = time.time()
            wiring.slow(primary, DELAY_MS)
            console.print(f"slow-primary: {primary} sends {DELAY_MS} ms later")
            replaced = await watch.until(lambda: _primary(watch) != primary, REPLACED_WITHIN_S)
            await asyncio.sleep(AFTER_S)
        finally:
            wiring.heal()
            for task in (loading, watching):
                task.cancel()
            await asyncio.gather(loading, watching, return_exceptions=True)
        blocks = await _blocks(http, next(iter(apis.values())), first, watch.height)
    return _judged(blocks, primary, slowed_s, replaced)


def _judged(blocks: Sequence[_Block], primary: str, slowed_s: float, replaced: bool) -> SlowPrimary:
    successor = next((b for b in blocks if replaced and b.time_s > slowed_s and b.proposer != primary), None)
    replaced_s = successor.time_s if successor is not None else slowed_s + REPLACED_WITHIN_S
    before = _rate(blocks, slowed_s - MEASURED_S, slowed_s)
    after = _rate(blocks, replaced_s + SETTLING_S, replaced_s + SETTLING_S + MEASURED_S)
    return SlowPrimary(
        primary=primary,
        delay_ms=DELAY_MS,
        block_transactions_max=BLOCK_TRANSACTIONS_MAX,
        replaced_s=round(replaced_s - slowed_s, 2) if successor is not None else None,
        successor=successor.proposer if successor is not None else "",
        before_per_s=round(before, 1),
        during_per_s=round(_rate(blocks, slowed_s, replaced_s), 1),
        after_per_s=round(after, 1),
        share=round(after / max(before, 0.1), 2),
    )


def _rate(blocks: Sequence[_Block], since_s: float, until_s: float) -> float:
    """Transactions a second in blocks of that time."""
    return sum(b.transactions for b in blocks if since_s <= b.time_s < until_s) / max(until_s - since_s, 0.001)


def _primary(watch: Watch) -> str:
    """The primary, as most nodes see it."""
    named = [status.primary for status in watch.latest.values() if status is not None]
    return max(sorted(named), key=named.count, default="")


def _pending(watch: Watch) -> int:
    """How many transactions wait at every node that answers."""
    return min((status.pending_transactions for status in watch.latest.values() if status is not None), default=0)


async def _keep_full(http: httpx.AsyncClient, urls: Sequence[str], traffic: Traffic, watch: Watch) -> None:
    """QUEUE transactions wait, until cancelled; nobody waits for their finality."""
    places = itertools.cycle(urls)
    while True:
        if _pending(watch) >= QUEUE:
            await watch.until(lambda: _pending(watch) < QUEUE, FILLED_WITHIN_S)
        body = batch([traffic.transaction() for _ in range(PER_REQUEST)])
        await _post(http, next(places), body)


async def _post(http: httpx.AsyncClient, url: str, body: bytes) -> None:
    try:
        await http.post(f"{url}/v1/transactions", content=body, headers={"content-type": "application/msgpack"})
    except httpx.HTTPError:
        return  # an overloaded node may leave a request unanswered: the queues are full all the same


async def _blocks(http: httpx.AsyncClient, api: str, before: int, last: int) -> list[_Block]:
    """The blocks up to `last`, from long enough before the height `before` on."""
    blocks: list[_Block] = []
    earliest_s = None
    for height in range(last, 0, -1):
        response = await http.get(f"{api}/v1/blocks/{height}")
        response.raise_for_status()
        block = msgspec.json.decode(response.content, type=BlockAnswer)
        time_s = block.header.time_ms / 1000
        blocks.append(_Block(time_s, block.header.proposer, len(block.transactions)))
        if height == before:
            earliest_s = time_s - MEASURED_S - SETTLING_S
        if earliest_s is not None and time_s < earliest_s:
            break
    return blocks[::-1]
