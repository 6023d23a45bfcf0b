"""How fast a member without data stands where the others do: from a snapshot, and by executing every block."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from node.client import AsyncClient
from node.config import Parameters, SyncSettings, dump_node, load_node
from node.snapshot import SnapshotFolder, finished_heights, read_manifest
from node.snapshot.folder import snapshot_at
from scripts.localnet.generator import Shape, Traffic, one_at_a_time
from scripts.localnet.layout import Layout, Member, TestnetError
from scripts.localnet.metrics import gauge
from scripts.localnet.nodes import Nodes, node_status
from scripts.localnet.session import Session

SNAPSHOT_BLOCKS = 200
TIMEOUT_S = 7_200.0
"""A full replay of a long chain takes its time."""
POLL_S = 0.1


class SnapshotJoin(msgspec.Struct, frozen=True):
    """One member, wiped twice after a load. `snapshot_s` and `replay_s` run from its start until it has the others'
    height; `times_faster` is their ratio. `keys`, `state_mb` and `snapshot_mb` (on disk) are those of the snapshot,
    `made_ms` how long the slowest maker took in the background.
    """

    height: int
    transactions: int
    snapshot_height: int
    keys: int
    state_mb: float
    snapshot_mb: float
    made_ms: int
    snapshot_s: float
    replay_s: float
    times_faster: float


def parameters() -> Parameters:
    """A network that makes snapshots more often than a real one, so that a short load has some."""
    return Parameters(snapshot_blocks=SNAPSHOT_BLOCKS)


async def measure(layout: Layout, nodes: Nodes, console: Console, shape: Shape) -> SnapshotJoin:
    """The last member is wiped after a load of `shape` and joins from a snapshot, then by replay."""
    session = Session(layout, nodes, console)
    traffic = await session.prepare_traffic()
    console.print(f"snapshot-join: a load of {shape.rate:g} transactions a second for {shape.seconds:g} s")
    load = await session.send(traffic, shape)
    members = nodes.network.members
    others, victim = members[:-1], members[-1]
    await _to_the_next_snapshot(session, traffic, others[0])
    nodes.wait_agreement()
    snapshot = _newest(others)
    content = read_manifest(snapshot.manifest_bytes()).content
    console.print(f"snapshot-join: {content.keys:,} keys at height {content.height}; wiping {victim.id}")
    snapshot_s = _join(layout, nodes, victim, others[0], SyncSettings(join_blocks_min=1))
    console.print(f"snapshot-join: {snapshot_s:.2f} s from the snapshot; wiping it again for a replay")
    replay_s = _join(layout, nodes, victim, others[0], SyncSettings(join="replay"))
    console.print(f"snapshot-join: {replay_s:.2f} s by replay")
    return SnapshotJoin(
        height=_height(others[0]),
        transactions=load.final,
        snapshot_height=content.height,
        keys=content.keys,
        state_mb=round(content.size_bytes / 1e6, 1),
        snapshot_mb=round(snapshot.size_bytes() / 1e6, 1),
        made_ms=max(gauge(member.api, "hansa_snapshot_last_ms") for member in others),
        snapshot_s=round(snapshot_s, 2),
        replay_s=round(replay_s, 2),
        times_faster=round(replay_s / snapshot_s, 1),
    )


async def _to_the_next_snapshot(session: Session, traffic: Traffic, member: Member) -> None:
    """Blocks are made until a height is due, and every other member offers its snapshot."""
    async with AsyncClient(session.urls) as client:
        while (height := _height(member)) % SNAPSHOT_BLOCKS:
            await one_at_a_time(client, traffic, 1)
    deadline = time.monotonic() + TIMEOUT_S
    while gauge(member.api, "hansa_snapshot_height") < height:
        if time.monotonic() > deadline:
            raise TestnetError(f"no snapshot of height {height} within {TIMEOUT_S:g} s")
        await asyncio.sleep(POLL_S)


def _join(layout: Layout, nodes: Nodes, victim: Member, other: Member, settings: SyncSettings) -> float:
    """Seconds from the start of the wiped member until it has the others' height."""
    path = layout.node_file(victim.id)
    config = msgspec.structs.replace(load_node(path), sync=settings)
    path.write_text(dump_node(config))
    target = _height(other)
    began = time.monotonic()
    started = nodes.wipe(nodes.network.member(victim.id))
    while time.monotonic() - began < TIMEOUT_S:
        answer = node_status(started)
        if answer is not None and answer.height >= target and answer.joining is None:
            return time.monotonic() - began
        time.sleep(POLL_S)
    raise TestnetError(f"{victim.id} has not joined within {TIMEOUT_S:g} s")


def _newest(members: Sequence[Member]) -> SnapshotFolder:
    """The newest snapshot on the disk of one of `members`."""
    roots = [Path(member.data_dir).parent / "snapshots" for member in members]
    height, root = max((max(finished_heights(root), default=0), root) for root in roots)
    return snapshot_at(root, height)


def _height(member: Member) -> int:
    answer = node_status(member)
    if answer is None:
        raise TestnetError(f"{member.id} does not answer")
    return answer.height
