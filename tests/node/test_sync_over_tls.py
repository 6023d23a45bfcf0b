"""Gossip and catch-up over real TLS links on this machine: what the in-memory tests assume of a transport holds."""

import asyncio
from collections.abc import Callable, Sequence

from node.errors import HansaError, InvalidBlock
from node.gossip import Gossip, Verdict, wire_id_of
from node.ledger import CertifiedBlock, Transaction
from node.sync import BlockServer, CatchUp
from node.wire import (
    FetchBlocks,
    FetchPayload,
    FetchTransactions,
    TransactionBatch,
    TransactionIds,
    WireMessage,
)
from tests.node.mesh_kit import Mesh, until
from tests.node.test_gossip import judge, transaction
from tests.node.test_sync import CHAIN, NETWORK, OwnChain, verify


class Member:
    """One member's pool, chain, gossip and catch-up behind a real transport."""

    def __init__(self, name: str, mesh: Mesh, chain: OwnChain) -> None:
        self.bodies: dict[bytes, bytes] = {}
        self.chain = chain
        self.failures: list[BaseException] = []
        self.reports: list[tuple[str, str]] = []
        transport = mesh.nodes[name]
        report: Callable[[str, HansaError], None] = lambda peer, error: self.reports.append((peer, error.code))  # noqa: E731
        self.gossip = Gossip(transport, self, self.intake, report, self.failures.append)
        self.server = BlockServer(transport, chain, self.failures.append)
        self.sync = CatchUp(
            transport,
            chain,
            NETWORK,
            verify,
            lambda head: None,
            report,
            self.diverged,
            self.failures.append,
            self.lost,
        )
        mesh.handlers[name].react = self.on_message
        self.gossip.start()

    def on_message(self, peer: str, message: WireMessage) -> None:
        if isinstance(message, TransactionBatch):
            self.gossip.on_batch(peer, message)
        elif isinstance(message, TransactionIds):
            self.gossip.on_ids(peer, message)
        elif isinstance(message, FetchTransactions):
            self.gossip.on_fetch(peer, message)
        elif isinstance(message, FetchBlocks):
            self.server.on_fetch_blocks(peer, message)
        elif isinstance(message, FetchPayload):
            self.server.on_fetch_payload(peer, message)

    def lost(self, next_height: int, first_served: int) -> None:
        self.failures.append(AssertionError((next_height, first_served)))

    def diverged(self, block: CertifiedBlock, error: InvalidBlock) -> None:
        self.failures.append(error)

    async def intake(self, peer: str, chunk: Sequence[bytes]) -> Sequence[Verdict]:
        verdicts = await asyncio.to_thread(lambda: [judge(data) for data in chunk])
        for data, verdict in zip(chunk, verdicts, strict=True):
            if verdict is Verdict.ACCEPTED:
                self.bodies[wire_id_of(data)] = data
        return verdicts

    def submit(self, transactions: Sequence[Transaction]) -> None:
        self.bodies.update({item.wire_id: item.data for item in transactions})
        self.gossip.publish(transactions)

    def body(self, wire_id: bytes) -> bytes | None:
        return self.bodies.get(wire_id)

    def missing(self, wire_ids: Sequence[bytes]) -> list[bytes]:
        return [wire_id for wire_id in wire_ids if wire_id not in self.bodies]

    def waiting(self, age_ms_min: int, first: int, limit: int) -> Sequence[bytes]:
        return list(self.bodies)[first : first + limit]

    async def close(self) -> None:
        await self.gossip.close()
        await self.sync.close()
        await self.server.close()


async def test_transactions_and_blocks_reach_a_member_that_joins_late_and_outlive_one_that_leaves() -> None:
    mesh = Mesh(["ma", "mb", "mc"])
    members: dict[str, Member] = {}
    try:
        for name in ("ma", "mb"):
            await mesh.start(name)
            members[name] = Member(name, mesh, OwnChain(CHAIN))
        await until(lambda: mesh.nodes["ma"].connected == ("mb",))
        early = [transaction(number) for number in range(300)]
        members["ma"].submit(early)
        await until(lambda: len(members["mb"].bodies) == 300)

        await mesh.start("mc")
        late = members["mc"] = Member("mc", mesh, OwnChain())
        await until(lambda: len(mesh.nodes["mc"].connected) == 2)
        found = await late.gossip.fetch([item.wire_id for item in early[:5]], ["ma"], 5.0)
        assert found == {item.wire_id: item.data for item in early[:5]}
        await until(lambda: len(late.bodies) == 300)

        late.sync.catch_up(40, ["ma"])
        await until(lambda: late.chain.head.height >= 40)
        await mesh.nodes["ma"].close()
        late.sync.catch_up(80, ["ma"])
        await until(lambda: late.chain.head.height == 80)
        assert not any(member.reports or member.failures for member in members.values())
    finally:
        for member in members.values():
            await member.close()
        await mesh.close()
