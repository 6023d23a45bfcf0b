"""A whole node with a short retention, over HTTP and on real LevelDB: blocks go while it decides others."""

import asyncio
import dataclasses
import gc
import itertools
import weakref
from pathlib import Path

import msgspec
import pytest

from contracts import CONTRACTS
from contracts.engine import Engine
from contracts.membership import Membership
from node.archive import ArchiveReader, ArchiveShelf, verify_archive
from node.client import AsyncClient, call, draft, sign
from node.config import MemberConfig, NetworkConfig, NodeConfig, Parameters, PrincipalConfig, Retention
from node.errors import NotFound
from node.executor import Executor
from node.keys import SigningKey
from node.runtime import retention as retention_module
from node.runtime.node import Node
from node.runtime.surroundings import this_machine
from node.store import LevelDatabase, Store
from node.store.database import Reader
from node.store.layout import META_HEAD
from node.store.reading import read_height
from tests.node.mesh_kit import free_port


class Watched(LevelDatabase):
    """LevelDB that knows which views of it are still held."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._views: list[tuple[int, weakref.ref[Reader]]] = []

    def snapshot(self) -> Reader:
        view = super().snapshot()
        height = 0 if view.get(META_HEAD) is None else read_height(view)
        self._views = [item for item in self._views if item[1]() is not None]
        self._views.append((height, weakref.ref(view)))
        return view

    def oldest_view(self) -> int:
        """The head of the oldest view that somebody holds."""
        gc.collect()
        return min(height for height, view in self._views if view() is not None)


VOTING, TLS, SIGNING = (SigningKey(bytes((seed,)) * 32) for seed in (1, 2, 3))
KEPT = 10
WAIT_S = 60.0


@pytest.mark.slow
async def test_a_running_node_archives_prunes_and_gives_the_bytes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in it may hold a view of the store for long: LevelDB could give nothing back then."""
    monkeypatch.setattr(retention_module, "CHECK_INTERVAL_S", 0.1)
    monkeypatch.setattr(retention_module, "COMPACT_BYTES_MIN", 1)
    monkeypatch.setattr(retention_module, "COMPACT_SHARE", 10**9)
    network = NetworkConfig(
        "live",
        (MemberConfig("bank-a", "validator", f"127.0.0.1:{free_port()}", VOTING.public, TLS.public),),
        principals=(PrincipalConfig("bank-a", (SIGNING.public,), 1),),
        parameters=Parameters(state_tree_bits=8, retention_ms=1_000),
        contracts={"settlement": {"currencies": [{"code": "USD", "exponent": 2, "issuer": "bank-a"}]}},
    )
    api = f"127.0.0.1:{free_port()}"
    config = NodeConfig(
        "bank-a",
        tmp_path / "data",
        tmp_path,
        tmp_path / "network.toml",
        network.members[0].address,
        api,
        retention=Retention(blocks=KEPT, step_blocks=5, archive_dir=tmp_path / "archive"),
    )
    founding = Store(config.data_dir, network.network_id, network.genesis_hash)
    founding.initialise(Executor(network, Engine(CONTRACTS), Membership).genesis(), True)
    founding.close()
    databases: list[Watched] = []

    def opened(path: Path) -> Watched:
        databases.append(Watched(path))
        return databases[-1]

    machine = this_machine(config, network, VOTING, TLS)
    node = Node(config, network, dataclasses.replace(machine, open_database=opened))
    running = asyncio.Event()
    life = asyncio.create_task(node.run(running.set))
    await running.wait()
    requests = itertools.count(1)

    async def open_account(client: AsyncClient) -> str:
        name = f"A-{next(requests)}"
        body = draft(
            network.network_id,
            "bank-a",
            [call("settlement.open_account", {"account": name, "owner": "bank-a", "currency": "USD"})],
            request_id=name,
            expires_in_ms=1_500,
        )
        fate = await client.submit_and_wait(sign(body, [SIGNING]))
        assert fate.ok
        return fate.tx_id

    async with AsyncClient([f"http://{api}"]) as client, asyncio.timeout(WAIT_S):
        first = await open_account(client)
        store, retention = node._store, node._retention
        while store.first_block < 11:
            await open_account(client)
            await asyncio.sleep(0.05)
        for _ in range(2):
            await open_account(client)
        assert databases[0].oldest_view() >= store.head.height - 1
        status = await client.status()
        assert status.first_block >= 11
        with pytest.raises(NotFound, match="block_pruned") as told:
            await client.fate(first)
        assert told.value.details["height"] == 1
        assert told.value.details["archive"] == "blocks-000000000001-000000000005.hansa"
        with pytest.raises(
            NotFound, match=r"block_pruned: block 3 was pruned here; it lies in blocks-000000000001"
        ):
            await client.block(3)
        assert (await client.block(status.height)).height == status.height
        assert retention.failure == ""
    node.stop()
    assert await life == 0
    for item in ArchiveShelf(tmp_path / "archive").files():
        with ArchiveReader(item.path) as reader:
            assert verify_archive(reader, network).last == item.last
    # The next start goes on with it.
    again = Node(msgspec.structs.replace(config), network, this_machine(config, network, VOTING, TLS))
    assert again._store.first_block >= 11
    again._threads.close()
    again._store.close()
