"""Nodes that join from snapshots of others, over real links and disks: while blocks go on, resumed, lied to."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from consensus.effects import Memory
from node.config import SyncSettings
from node.errors import NotFound, StoreError
from node.ledger import Transaction
from node.runtime.served_blocks import ServedBlocks
from node.runtime.snapshots import Snapshots
from node.snapshot import SnapshotFolder, cut, finished_heights
from node.store import LevelDatabase, Store
from node.store.layout import META_ADOPTING
from tests.node.live_network import LiveNetwork

JOINER = "bank-d"
OTHERS = ("bank-a", "bank-b", "bank-c")
BLOCKS = 4


@pytest.fixture
async def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LiveNetwork]:
    monkeypatch.setattr("node.snapshot.cutting.CHUNK_BYTES_TARGET", 300)
    # A process of its own would cut a state as small as this into one chunk.
    monkeypatch.setattr("node.runtime.surroundings.cut_apart", cut)
    monkeypatch.setattr("node.runtime.threads.BACKGROUND_REST", 0)
    network = LiveNetwork(tmp_path, snapshot_blocks=BLOCKS, empty_block_interval_ms=60_000)
    network.sync = SyncSettings(join_blocks_min=6)
    yield network
    await network.stop()


async def settle(network: LiveNetwork, count: int, by: str = "bank-b") -> list[Transaction]:
    """So many blocks, each with one transaction, are final at a member."""
    done: list[Transaction] = []
    async with network.client(by) as client:
        for _ in range(count):
            transaction = network.add("name", 1)
            await client.submit_many([transaction])
            assert (await client.wait(transaction.tx_id.hex(), timeout_s=30.0)).status == "final"
            done.append(transaction)
    return done


def snapshots(network: LiveNetwork, member: str) -> list[int]:
    return finished_heights(network.data_dir(member).parent / "snapshots")


async def offered(network: LiveNetwork, height: int, *members: str) -> None:
    """The members offer a snapshot of at least that height."""
    await network.until(
        lambda: all(network.nodes[member]._snapshots.height >= height for member in members or OTHERS)
    )


async def three_with_snapshots(network: LiveNetwork, blocks: int = 10) -> list[Transaction]:
    """Three nodes run and offer snapshots; the fourth has no data at all."""
    for member in OTHERS:
        await network.start(member)
    await network.until(lambda: all(len(node._peers.connected) == 2 for node in network.nodes.values()))
    done: list[Transaction] = []
    for height in range(1, blocks + 1):
        done += await settle(network, 1)
        await offered(network, height - height % BLOCKS)
    # They say so to the one that comes: an older height would be worth no snapshot to it.
    await network.until(
        lambda: all(network.nodes[member]._driver.status().height == blocks + 1 for member in OTHERS)
    )
    return done


def joined(network: LiveNetwork, member: str = JOINER) -> bool:
    """Whether the member stands on a snapshot and has reached the others' head."""
    node = network.nodes[member]
    return node._store.first_block > 1 and network.height(member) == network.height("bank-b")


@pytest.mark.slow
async def test_it_joins_while_blocks_go_on_and_is_a_whole_member_then(network: LiveNetwork) -> None:
    done = await three_with_snapshots(network)
    going_on = asyncio.create_task(settle(network, 6, by="bank-c"))
    await network.start(JOINER, wiped=True)
    await going_on
    await network.until(lambda: joined(network))
    node = network.nodes[JOINER]
    first = node._store.first_block
    assert first > 8
    # It replayed only what came after the snapshot, and offers what it joined from.
    assert node._store.head_at(first - 1).certificate is not None
    assert first - 1 in snapshots(network, JOINER)
    assert not (network.data_dir(JOINER).parent / "joining").exists()
    # A node without a memory of votes abstains until it knows the others' heights, and votes above H0 + 2.
    later = await settle(network, 4)
    await network.until(lambda: not node._driver.status().abstaining)
    await network.until(lambda: joined(network))
    async with network.client(JOINER) as client:
        # Blocks and receipts below are not here; what was executed before is known all the same.
        assert (await client.submit(done[0])).status == "final"
        with pytest.raises(NotFound, match="block_pruned") as told:
            await client.wait(done[0].tx_id.hex(), timeout_s=1.0)
        assert (told.value.details["height"], told.value.details["first"]) == (1, first)
        assert (await client.query("drifting.count", {"name": "name"})).value >= 20
        # It may have joined from a snapshot of the blocks that went on: only what came after it is surely here.
        assert (await client.wait(later[-1].tx_id.hex())).status == "final"
        status = await client.status()
        assert (status.joining, status.state_root) == (None, network.nodes["bank-a"]._store.head.state_root.hex())
    # The network goes on without one of the others: the vote of the joined one counts.
    await network.stop("bank-a")
    await settle(network, 1)
    # And it starts again as any other.
    await network.stop(JOINER)
    await network.start(JOINER)
    await network.until(lambda: joined(network))
    assert network.nodes[JOINER]._store.first_block == first


@pytest.mark.slow
async def test_a_download_goes_on_after_a_restart(network: LiveNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    await three_with_snapshots(network)
    genuine = SnapshotFolder.write_chunk
    kept: list[int] = []
    held = threading.Event()

    def three_only(self: SnapshotFolder, index: int, data: bytes) -> None:
        if len(kept) >= 3 and not held.is_set():
            held.wait(20)
        genuine(self, index, data)
        kept.append(index)

    monkeypatch.setattr(SnapshotFolder, "write_chunk", three_only)
    await network.start(JOINER, wiped=True)
    await network.until(lambda: len(kept) >= 3)
    async with network.client(JOINER) as client:
        joining = (await client.status()).joining
        assert joining is not None
        assert (joining.step, joining.height) == ("fetching", 8)
        assert 0 < joining.chunks < joining.chunks_total
        assert "from a snapshot" in " ".join((await client.why()).sentences)
    stopping = asyncio.create_task(network.stop(JOINER))
    await network.until(lambda: JOINER not in network.nodes)
    held.set()
    await stopping
    before = set(kept)
    await network.start(JOINER)
    await network.until(lambda: joined(network))
    again = kept[len(before) :]
    assert before
    assert not before & set(again)


@pytest.mark.slow
async def test_a_crash_while_taking_over_is_finished_at_the_next_start(
    network: LiveNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    await three_with_snapshots(network)
    genuine = LevelDatabase.write
    deaths = 0

    def dying(self: LevelDatabase, rows: Any, *options: Any, **named: Any) -> None:
        nonlocal deaths
        rows = list(rows)
        adopting = any(key == META_ADOPTING and value is not None for key, value in rows)
        if adopting and deaths < 4:
            deaths += 1
            if deaths % 2:
                genuine(self, rows, *options, **named)
            raise StoreError("disk_failed", "the power was cut")
        genuine(self, rows, *options, **named)

    monkeypatch.setattr(LevelDatabase, "write", dying)
    await network.start(JOINER, wiped=True)
    run = network._runs.pop(JOINER)
    with pytest.raises(StoreError, match="the power was cut"):
        await run
    for _ in range(3):
        # The marker stands: the node does not run before it has finished.
        with pytest.raises(StoreError, match="the power was cut"):
            await network.start(JOINER)
    assert deaths == 4
    await network.start(JOINER)
    await network.until(lambda: joined(network))


@pytest.mark.slow
async def test_a_lying_peer_is_named_and_put_aside(network: LiveNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    await three_with_snapshots(network)
    liar = network.nodes["bank-a"]._snapshots
    genuine = Snapshots.chunk
    lied = threading.Event()

    def lying(self: Snapshots, height: int, digest: bytes, index: int) -> bytes | None:
        if self is liar:
            lied.set()
            return b"lies"
        # Else the others may have sent all that there is before the liar is asked.
        lied.wait(20)
        return genuine(self, height, digest, index)

    monkeypatch.setattr(Snapshots, "chunk", lying)
    # Who was not linked with the liar yet when it first asked for offers asks it soon.
    monkeypatch.setattr("node.sync.snapshots.SEEK_S", 0.1)
    with structlog.testing.capture_logs() as log:
        await network.start(JOINER, wiped=True)
        await network.until(lambda: joined(network))
    faults = [line for line in log if line["event"] == "peer at fault"]
    assert [(line["peer"], line["code"]) for line in faults] == [("bank-a", "snapshot_corrupt")]


@pytest.mark.slow
async def test_who_finds_no_snapshot_says_so_and_replays(network: LiveNetwork) -> None:
    """Stale ones are none: what is offered saves fewer blocks than are worth it."""
    await three_with_snapshots(network, blocks=9)
    network.sync = SyncSettings(join_blocks_min=9)
    with structlog.testing.capture_logs() as log:
        await network.start(JOINER, wiped=True)
        await network.until(lambda: network.height(JOINER) == 9)
    node = network.nodes[JOINER]
    assert node._store.first_block == 1
    said = next(line for line in log if line["event"].startswith("no snapshot saves blocks"))
    assert "snapshot_stale: offers height 8" in said["reason"]
    assert b"hansa_join_replays 1.0" in node._metrics.text()
    # It is told until it is over.
    await settle(network, 1)
    await network.until(lambda: network.height(JOINER) == 10)
    assert "no_snapshot" not in node._health._conditions


@pytest.mark.slow
async def test_a_node_that_is_told_to_replay_asks_nobody(network: LiveNetwork) -> None:
    await three_with_snapshots(network)
    network.sync = SyncSettings(join="replay", join_blocks_min=1)
    await network.start(JOINER, wiped=True)
    await network.until(lambda: network.height(JOINER) == 10)
    assert network.nodes[JOINER]._store.first_block == 1


@pytest.mark.slow
async def test_a_member_with_votes_keeps_its_promises_and_its_older_blocks(network: LiveNetwork) -> None:
    await network.start_all()
    await settle(network, 2)
    await network.until(lambda: network.height(JOINER) == 2)
    await network.stop(JOINER)
    memory = stored_memory(network)
    assert memory.voted
    for height in range(3, 13):
        await settle(network, 1)
        await offered(network, height - height % BLOCKS)
    await network.start(JOINER)
    await network.until(lambda: joined(network))
    node = network.nodes[JOINER]
    assert node._store.first_block == 13
    # It has a memory, so nothing but the pause of every start keeps it from voting.
    await network.until(lambda: not node._driver.status().abstaining)
    assert node._store.memory().abstain_until == 0
    assert node._store.memory().voted
    await network.stop("bank-a")
    await settle(network, 1)


@pytest.mark.slow
async def test_who_is_served_no_next_block_any_more_joins_however_few_blocks_it_saves(
    network: LiveNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    await three_with_snapshots(network)
    genuine = ServedBlocks.certified_block
    monkeypatch.setattr(ServedBlocks, "first_height", property(lambda self: 7))
    monkeypatch.setattr(
        ServedBlocks, "certified_block", lambda self, height: genuine(self, height) if height >= 7 else None
    )
    network.sync = SyncSettings(join_blocks_min=1_000)
    await network.start(JOINER, wiped=True)
    await network.until(lambda: joined(network))
    assert network.nodes[JOINER]._store.first_block == 9


def stored_memory(network: LiveNetwork) -> Memory:
    config = network.network
    store = Store(network.data_dir(JOINER), config.network_id, config.genesis_hash)
    try:
        return store.memory()
    finally:
        store.close()
