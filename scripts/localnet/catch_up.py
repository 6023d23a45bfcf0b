"""How fast a member that lost its data gets it back: the whole chain fetched from the others and executed again."""

import time

import msgspec
from rich.console import Console

from node.client import NodeStatus
from scripts.localnet.generator import Shape
from scripts.localnet.layout import Layout, Member, TestnetError
from scripts.localnet.nodes import Nodes, node_status
from scripts.localnet.session import Session

TIMEOUT_S = 120.0
POLL_S = 0.1


class CatchUp(msgspec.Struct, frozen=True):
    """One member wiped after a load, and what it took until it stood where the others do.

    `seconds` is the time of catch-up itself, `back_s` that from its start, with everything. `waited_share` is the
    part of `seconds` without a block at hand to execute: the network's; the rest is execution, signatures and disk.
    `fetched_mb` is what the peers sent, `height` where the others stood.
    """

    wiped: str
    height: int
    blocks: int
    transactions: int
    seconds: float
    blocks_per_s: float
    transactions_per_s: float
    waited_share: float
    fetched_mb: float
    back_s: float
    faults: int


async def wipe_and_catch_up(layout: Layout, nodes: Nodes, console: Console, shape: Shape) -> CatchUp:
    """The last member lost its data after a load of `shape`, and has them again."""
    session = Session(layout, nodes, console)
    traffic = await session.prepare_traffic()
    console.print(f"catch-up: a load of {shape.rate:g} transactions a second for {shape.seconds:g} s")
    await session.send(traffic, shape)
    nodes.wait_agreement()
    victim = nodes.network.members[-1]
    console.print(f"catch-up: wiping {victim.id}")
    began = time.monotonic()
    answer = _caught_up(nodes.wipe(victim))
    back_s = time.monotonic() - began
    sync = answer.sync
    if sync is None:
        raise TestnetError("the node does not tell how it catches up")
    seconds = max(sync.elapsed_ms, 1) / 1000
    console.print(f"catch-up: {sync.blocks} blocks in {seconds:.2f} s, back after {back_s:.2f} s")
    return CatchUp(
        wiped=victim.id,
        height=answer.network_height,
        blocks=sync.blocks,
        transactions=sync.transactions,
        seconds=round(seconds, 2),
        blocks_per_s=round(sync.blocks / seconds, 1),
        transactions_per_s=round(sync.transactions / seconds, 1),
        waited_share=round(sync.waited_ms / max(sync.elapsed_ms, 1), 3),
        fetched_mb=round(sync.bytes / 1e6, 1),
        back_s=round(back_s, 2),
        faults=sync.faults,
    )


def _caught_up(member: Member) -> NodeStatus:
    """The node's status once nothing is missing; the load has ended, so that is one run of catch-up."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        answer = node_status(member)
        if answer is not None and answer.sync is not None and answer.sync.caught_up and answer.joining is None:
            return answer
        time.sleep(POLL_S)
    raise TestnetError(f"{member.id} has not caught up within {TIMEOUT_S:g} s")
