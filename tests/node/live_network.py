"""Four whole nodes in one process, over real TLS and real disks, of which one may execute otherwise than the rest.

The contract `drifting` passes for pure only because the test switches the check off: it reads two globals of its
module, as a contract might read the environment or a hash seed. Its source, and so the contracts hash, is the same
everywhere.
"""

import ast
import asyncio
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from contracts import CONTRACTS, loader
from contracts.engine import Engine
from contracts.membership import Membership
from contracts.sdk import Contract
from node.client import AsyncClient, call, draft, sign
from node.config import Limits, MemberConfig, NetworkConfig, NodeConfig, Parameters, PrincipalConfig, SyncSettings
from node.executor import Executor
from node.keys import SigningKey
from node.ledger import Transaction
from node.recovery import trusted
from node.runtime.node import Node
from node.runtime.surroundings import this_machine
from node.store import Store
from tests.node.mesh_kit import free_port

MEMBERS = ("bank-a", "bank-b", "bank-c", "bank-d")
WAIT_S = 30.0

SOURCE = '''
"""Counts, but not the same everywhere."""

from contracts.sdk import Context, Contract, Map, call, query, require

BIAS = 0
LIMIT = 100


class Drifting(Contract):
    """Counts."""

    counts: Map[str, int] = Map()

    @call
    def add(self, ctx: Context, name: str, amount: int) -> None:
        """Add `amount`; what is called odd gets BIAS more."""
        known = self.counts.get(name)
        before = 0 if known is None else known
        self.counts[name] = before + amount + (BIAS if name == "odd" else 0)

    @call
    def add_some(self, ctx: Context, name: str, amount: int) -> None:
        """Add `amount` if it is not too much."""
        require(amount < LIMIT, "too_much")
        self.counts[name] = amount

    @query
    def count(self, name: str) -> int:
        """How much."""
        known = self.counts.get(name)
        return 0 if known is None else known
'''


def drifting(bias: int = 0, limit: int = 100, source: str = SOURCE) -> type[Contract]:
    """The contract with these globals; all of them have one name and one source."""
    name = "tests_drifting"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "judge", lambda text: (ast.parse(text), []))
        module = loader.load_source(name, source)
    module.__dict__.update(BIAS=bias, LIMIT=limit)
    made: type[Contract] = module.__dict__["Drifting"]
    return made


class LiveNetwork:
    """Nodes by name, started and stopped by the test; `contracts` of a member replace `drifting()`."""

    def __init__(self, directory: Path, **parameters: int) -> None:
        self._directory = directory
        self._voting = {member: SigningKey.generate() for member in MEMBERS}
        self._tls = {member: SigningKey.generate() for member in MEMBERS}
        self._apis = {member: free_port() for member in MEMBERS}
        self.key = SigningKey.generate()
        self.network = NetworkConfig(
            "live",
            tuple(
                MemberConfig(
                    member,
                    "validator",
                    f"127.0.0.1:{free_port()}",
                    self._voting[member].public,
                    self._tls[member].public,
                )
                for member in MEMBERS
            ),
            principals=(PrincipalConfig("bank-a", (self.key.public,), 1),),
            parameters=Parameters(
                **{"state_tree_bits": 8, "base_timeout_ms": 500, "status_interval_ms": 100, **parameters}
            ),
            contracts={"settlement": {"currencies": [{"code": "USD", "exponent": 2, "issuer": "bank-a"}]}},
        )
        self.sync = SyncSettings()
        self.further: dict[str, Sequence[SigningKey]] = {}
        """Voting keys that lie at a member's node beside the one in the definition."""
        self.further_tls: dict[str, Sequence[SigningKey]] = {}
        """TLS keys that lie there so."""
        self.nodes: dict[str, Node] = {}
        self._runs: dict[str, asyncio.Task[int]] = {}
        self._requests = itertools.count(1)

    async def start(self, member: str, contract: type[Contract] | None = None, *, wiped: bool = False) -> None:
        """The member's node runs, on the data it left; `wiped`: it finds none, and does not know what it signed."""
        config = self.config(member)
        if not wiped:
            self._found(config)
        running = asyncio.Event()
        self._make(config, contract)
        self._runs[member] = asyncio.create_task(self._run(config, contract, running.set))
        waiting = asyncio.create_task(running.wait())
        await asyncio.wait([waiting, self._runs[member]], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        assert not self._runs[member].done(), self._runs[member].exception()

    def _make(self, config: NodeConfig, contract: type[Contract] | None) -> Node:
        network = trusted(self.network, sorted(config.recoveries_dir.glob("*.json")))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("node.runtime.node.CONTRACTS", (*CONTRACTS, contract or drifting()))
            node = Node(config, network, this_machine(config, network, *self._keys(config.member)))
        self.nodes[config.member] = node
        return node

    async def _run(
        self, config: NodeConfig, contract: type[Contract] | None, on_running: Callable[[], None]
    ) -> int:
        """What the process around a node does: it makes another one when that is asked for."""
        node = self.nodes[config.member]
        while (code := await node.run(on_running)) == 0 and node.begins_anew:
            node = self._make(config, contract)
        return code

    def config(self, member: str) -> NodeConfig:
        """The configuration of the member's node."""
        found = next(item for item in self.network.members if item.id == member)
        return NodeConfig(
            member=member,
            data_dir=self.data_dir(member),
            keys_dir=self._directory,
            network_file=self._directory / "network.toml",
            listen=found.address,
            api=f"127.0.0.1:{self._apis[member]}",
            limits=Limits(verify_processes=1),
            sync=self.sync,
        )

    def voting_key(self, member: str) -> SigningKey:
        """The key with which the member's node votes."""
        return self._voting[member]

    def data_dir(self, member: str) -> Path:
        """Where the member's data lies; its snapshots lie beside it."""
        return self._directory / member / "data"

    async def start_all(self, **contracts: type[Contract]) -> None:
        """All nodes run and are connected; `contracts` by member, with "_" for "-"."""
        for member in MEMBERS:
            await self.start(member, contracts.get(member.replace("-", "_")))
        await self.until(lambda: all(len(node._peers.connected) == 3 for node in self.nodes.values()))

    async def stop(self, *members: str) -> None:
        """The nodes (all, when none is named) have ended as they should."""
        for member in members or tuple(self.nodes):
            self.nodes.pop(member).stop()
            assert await self._runs.pop(member) == 0

    def urls(self, *members: str) -> list[str]:
        """Where these members' nodes listen for clients."""
        return [f"http://127.0.0.1:{self._apis[member]}" for member in members]

    def client(self, *members: str) -> AsyncClient:
        """A client of these members' nodes that signs as bank-a."""
        urls = self.urls(*members)
        return AsyncClient(urls, sender="bank-a", signers=[self.key], network=self.network.network_id)

    def add(self, name: str, amount: int, method: str = "add") -> Transaction:
        """A signed call of the contract."""
        calls = [call(f"drifting.{method}", {"name": name, "amount": amount})]
        request_id = f"request-{next(self._requests)}"
        return sign(draft(self.network.network_id, "bank-a", calls, request_id=request_id), [self.key])

    async def until(self, condition: Callable[[], bool]) -> None:
        """`condition` holds; fail when it does not in time."""
        async with asyncio.timeout(WAIT_S):
            while not condition():  # noqa: ASYNC110 (the condition spans several nodes)
                await asyncio.sleep(0.01)

    def height(self, member: str) -> int:
        """The height that the member's clients are answered from: no less than what any of them was told is final.

        The chain's own head moves a moment later, once the executor stands there too.
        """
        return self.nodes[member]._service.height()

    def _keys(self, member: str) -> tuple[SigningKey, SigningKey, Sequence[SigningKey], Sequence[SigningKey]]:
        further = self.further.get(member, ()), self.further_tls.get(member, ())
        return self._voting[member], self._tls[member], *further

    def _found(self, config: NodeConfig) -> None:
        """Genesis is in the data directory, with the right to vote, as `hansa init` leaves it."""
        store = Store(config.data_dir, self.network.network_id, self.network.genesis_hash)
        if not store.initialised:
            contracts = (*CONTRACTS, drifting())
            genesis = Executor(self.network, Engine(contracts), Membership).genesis()
            store.initialise(genesis, never_voted=True)
        store.close()
