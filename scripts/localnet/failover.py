"""What the death of a primary costs: killed under load, the time to the next block and until it is back."""

import asyncio
import threading
import time

import msgspec
from rich.console import Console

from scripts.localnet.generator import LoadReport, Shape
from scripts.localnet.layout import Layout, Member, TestnetError
from scripts.localnet.nodes import Nodes, node_status
from scripts.localnet.session import Session

SHAPE = Shape(rate=100, seconds=25, transactions_per_request=5)
KILL_AFTER_HEIGHTS = 10
TIMEOUT_S = 30.0


class Failover(msgspec.Struct, frozen=True):
    """One primary killed (SIGKILL) under load and started again.

    `next_block_s`: until the others had decided another block. `back_s`: from its start until all agreed.
    """

    killed: str
    next_block_s: float
    back_s: float
    load: LoadReport


def measure(layout: Layout, nodes: Nodes, console: Console) -> list[Failover]:
    """Kill the primary of the moment, once for each member of the network, one after the other."""
    return [_kill_primary(layout, nodes, console) for _ in nodes.network.members]


def _kill_primary(layout: Layout, nodes: Nodes, console: Console) -> Failover:
    session = Session(layout, nodes, console)
    reports: list[LoadReport] = []
    load = threading.Thread(target=lambda: reports.append(asyncio.run(session.traffic(SHAPE))))
    first = _height(nodes.network.members[0])
    load.start()
    _wait_height(nodes.network.members[0], first + KILL_AFTER_HEIGHTS)
    status = node_status(nodes.network.members[0])
    if status is None:
        raise TestnetError(f"{nodes.network.members[0].id} does not answer", exit_code=4)
    victim = nodes.network.member(status.primary)
    witness = next(member for member in nodes.network.members if member.id != victim.id)
    nodes.end([victim], kill=True)
    killed = time.perf_counter()
    # What was decided when the primary died may still arrive; the block after it needs a new primary.
    _wait_height(witness, _height(witness) + 2)
    next_block_s = time.perf_counter() - killed
    load.join()
    started = time.perf_counter()
    nodes.start([nodes.network.member(victim.id)])
    nodes.wait_agreement()
    back_s = time.perf_counter() - started
    console.print(f"kill: {victim.id}, next block after {next_block_s:.2f} s, back after {back_s:.2f} s")
    return Failover(victim.id, round(next_block_s, 2), round(back_s, 2), reports[0])


def _height(member: Member) -> int:
    status = node_status(member)
    return 0 if status is None else status.height


def _wait_height(member: Member, height: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while _height(member) < height:
        if time.monotonic() > deadline:
            raise TestnetError(f"{member.id} stands still below height {height}", exit_code=1)
        time.sleep(0.02)
