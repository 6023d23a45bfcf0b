"""A stage for stalls: whole nodes in virtual time, broken one thing at a time, and asked why.

Machines, disks, clocks, threads and links are those of tests/simulation/nodes. What is added here is what an
operator's machine shows of a broken link: the words with which a connection ended or was refused.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator
from unittest import mock

import msgspec

import node.cli.diagnosis
from node.client.answers import Diagnosis
from node.config import NetworkConfig, NodeConfig
from node.ledger import Call, Transaction
from node.peers import PeerHandler, PeerInfo, Transport
from node.runtime.node import Node
from node.runtime.surroundings import Surroundings
from node.wire import WireMessage
from tests.simulation.nodes.faults import Plan
from tests.simulation.nodes.founding import DATA, Shape, key_of, transaction
from tests.simulation.nodes.host import Host, Process
from tests.simulation.nodes.links import Link
from tests.simulation.nodes.timeline import START_MS
from tests.simulation.nodes.transport import SimTransport
from tests.simulation.nodes.world import NodeWorld

SHAPE = Shape(
    n=4,
    base_timeout_ms=2_000,
    timeout_cap_ms=10_000,
    status_interval_ms=500,
    rotation_heights=10_000,
    empty_block_interval_ms=60_000,
    drift_ms=5_000,
    block_transactions_max=100,
)
PAYMENT_US = 300_000
REFUSED = "unreachable: [Errno 111] Connection refused"
CLOSED = "lost: {peer}: the other side closed the connection"
SILENT = "silent: {peer}: nothing came for 10 s"
NO_ANSWER = "unreachable: no answer in time"


def quiet_plan(shape: Shape, world: NodeWorld) -> Plan:
    """Nothing fails by itself."""
    return Plan(
        shape=shape,
        delay_us=(300, 3_000),
        mempool_transactions_max=1_000,
        request_every_us=PAYMENT_US,
        faults_end_us=0,
        fault_every_us=1_000_000,
        faulty=(),
    )


class ToldTransport(SimTransport):
    """Simulated links that say how they ended, in the words of node.peers."""

    def __init__(
        self, stage: "Stage", genesis: bytes, contracts_hash: bytes, process: Process, handler: PeerHandler
    ) -> None:
        host = process.host
        super().__init__(stage.network, host.id, stage.founding.network.members, process.loop, handler)
        self.genesis = genesis
        self.contracts_hash = contracts_hash
        self._stage = stage
        self._errors: dict[str, str] = {}

    def end(self, link: Link, tell: bool = True) -> None:
        """The link is over at this end."""
        peer = link.other(self.id).id
        if self.links.get(peer) is link:
            alone = self._stage.network.is_cut(peer, self.id) or self._stage.is_paused(peer)
            self._errors[peer] = (SILENT if alone else CLOSED).format(peer=peer)
        super().end(link, tell)

    def _dial_later(self, peer: str) -> None:
        network = self._stage.network
        cut = network.is_cut(self.id, peer) or network.is_cut(peer, self.id)
        if cut or self._stage.is_paused(peer):
            self._errors[peer] = NO_ANSWER
        elif peer not in network.running:
            self._errors[peer] = REFUSED
        super()._dial_later(peer)

    def _greeted(self, peer: str) -> None:
        acceptor = self._stage.network.reachable(self.id, peer)
        if isinstance(acceptor, ToldTransport) and acceptor.genesis != self.genesis:
            ours, theirs = self.genesis.hex(), acceptor.genesis.hex()
            text = f"network sim-{ours[:12]} ({ours[:16]}) meets sim-{theirs[:12]}"
            acceptor._errors[self.id] = f"wrong_network: {self.id}: {text}"
            super()._dial_later(peer)
            self._errors[peer] = f"refused: {peer}: wrong_network: {text}"
            return
        super()._greeted(peer)

    def send(self, peer: str, message: WireMessage) -> bool:
        """Whether `message` was queued; a machine whose sends are late lets it go later."""
        late_us = self._stage.late_us.get(self.id, 0)
        if not late_us:
            return super().send(peer, message)
        send = super().send

        def leave() -> None:
            send(peer, message)

        self._stage.timeline.after(late_us, leave)
        return True

    def broadcast(self, message: WireMessage) -> None:
        """`message` is queued for every connected peer, later on a machine whose sends are late."""
        late_us = self._stage.late_us.get(self.id, 0)
        if late_us:
            self._stage.timeline.after(late_us, super().broadcast, message)
        else:
            super().broadcast(message)

    def peers(self) -> tuple[PeerInfo, ...]:
        """Every other member with the state of its link."""
        return tuple(
            msgspec.structs.replace(
                info,
                last_error=self._errors.get(info.id, ""),
                contracts_hash=self._code_of(info.id),
                round_trip_ms=3,
            )
            for info in super().peers()
        )

    def set_contracts(self, contracts_hash: bytes) -> None:
        """Whoever is greeted from now on is told this hash."""
        self.contracts_hash = contracts_hash

    def _code_of(self, peer: str) -> bytes | None:
        """What the peer said of its code when it connected."""
        link = self.links.get(peer)
        other = None if link is None else link.other(self.id)
        return other.contracts_hash if isinstance(other, ToldTransport) else None


class StageProcess(Process):
    """A process whose links say how they ended; `network` is the definition that its machine has."""

    def surroundings(self) -> Surroundings:
        """What the node is given instead of a machine."""
        host = self.host
        assert isinstance(host, StageHost)

        def open_transport(handler: PeerHandler, contracts_hash: bytes) -> Transport:
            self.transport = ToldTransport(host.stage, host.definition.genesis_hash, contracts_hash, self, handler)
            return self.transport

        given = super().surroundings()
        return dataclasses.replace(given, open_transport=open_transport)


class StageHost(Host):
    """A machine on the stage. `definition` is its network.toml, `make` how its release makes a node.

    `disk_free` bytes are left on its disk; None, as at first: its nodes cannot tell.
    """

    def __init__(self, stage: "Stage", index: int) -> None:
        super().__init__(stage, index, "")
        self.stage = stage
        self.definition = stage.founding.network
        self.make: Callable[[NodeConfig, NetworkConfig, Surroundings], Node] = Node
        self.disk_free: int | None = None

    def open_process(self) -> Process:
        """A process of this machine."""
        return StageProcess(self)

    def make_node(self, config: NodeConfig, outside: Surroundings) -> Node:
        """The node of this machine's release and definition."""
        outside = dataclasses.replace(outside, disk_free=lambda _: self.disk_free)
        return self.make(config, self.definition, outside)


class Stage(NodeWorld):
    """Four banks, a client that pays all the time, and whatever a scene does to them."""

    def __init__(self, seed: int = 1, shape: Shape = SHAPE) -> None:
        super().__init__(seed, plan=functools.partial(quiet_plan, shape))
        self.hosts = [StageHost(self, index) for index in range(SHAPE.n)]
        self._by_id = {host.id: host for host in self.hosts}
        self.network.delay_us = (300, 3_000)
        self.twins: list[StageHost] = []
        self.late_us: dict[str, int] = {}
        """How much later than they should the sends of a member leave its machine."""
        self.payments_at_once = 1
        """Of each payer, every PAYMENT_US."""
        self._payments = 0
        self._paying = True

    def host(self, member: str) -> StageHost:
        """The member's machine."""
        found = self._by_id[member]
        assert isinstance(found, StageHost)
        return found

    def is_paused(self, member: str) -> bool:
        """Whether the member's process stands still."""
        process = self._by_id[member].process
        return process is not None and process.loop.paused

    def restart(self, member: str, make: Callable[[NodeConfig, NetworkConfig, Surroundings], Node]) -> None:
        """The member's machine runs another release from now on."""
        host = self.host(member)
        host.crash()
        self.pass_time(100)
        host.make = make
        host.start()
        self.pass_time(1_000)

    # --- time ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def playing(self) -> Generator["Stage", None, None]:
        """All machines run and blocks are made."""
        with self._quiet():
            for host in self.hosts:
                host.start()
            self.pass_time(1_000)
            self._pay()
            self.pass_time(4_000)
            try:
                yield self
            finally:
                for host in (*self.hosts, *self.twins):
                    host.crash()
                self.pass_time(1)

    def pass_time(self, milliseconds: int) -> None:
        """So much virtual time goes by."""
        end_us = self.timeline.now_us + milliseconds * 1000
        ended = False

        def end() -> None:
            nonlocal ended
            ended = True

        self.timeline.at(end_us, end)
        while not ended:
            self.timeline.step()

    def pass_time_until(self, holds: Callable[[], bool], milliseconds_max: int) -> None:
        """Virtual time goes by until `holds()`, which is asked after every single event."""
        end_us = self.timeline.now_us + milliseconds_max * 1000
        while not holds():
            assert self.timeline.now_us < end_us, "it did not come to hold in time"
            self.timeline.step()

    # --- work ------------------------------------------------------------------------------------------------

    def stop_paying(self) -> None:
        """No further work comes."""
        self._paying = False

    def _pay(self) -> None:
        if self._paying:
            for _ in range(self.payments_at_once):
                self._payments += 1
                for payer, account in (("bank-1", "A-1"), ("bank-2", "A-2")):
                    payment = self._payment(f"pay-{self._payments}", payer, account)
                    for host in self.hosts:
                        self._submit(host, payment)
            self.timeline.after(PAYMENT_US, self._pay)

    def _payment(self, request_id: str, payer: str, account: str) -> Transaction:
        expires_at_ms = START_MS + self.timeline.now_us // 1000 + 3_600_000
        transfer = Call("settlement", "transfer", {"debtor": account, "creditor": "A-3", "amount": 1})
        network = self.founding.network
        return transaction(network, payer, request_id, [transfer], expires_at_ms, [key_of(payer)])

    @staticmethod
    def _submit(host: Host, payment: Transaction) -> None:
        """The client asks every node whose door is open; what it answers is not this stage's matter."""
        process = host.process
        if host.door is None or process is None or process.door is None:
            return
        service = process.door.service

        async def ask() -> None:
            await service.submit([payment.data])

        process.loop.call_soon(lambda: process.loop.create_task(ask()))

    # --- questions -------------------------------------------------------------------------------------------

    def why(self, member: str) -> Diagnosis:
        """What the member's node answers now, or its directory where no node runs."""
        host = self.host(member)
        if host.process is None:
            free = 0 if host.disk.full else None
            config = NodeConfig(member, DATA, DATA, DATA, host.member.address, "127.0.0.1:0")
            with mock.patch.object(node.cli.diagnosis, "_free_bytes", return_value=free):
                return node.cli.diagnosis.absent_node(config)
        assert host.door is not None, f"{member} does not answer"
        with host.process.loop.entered():
            return host.door.service.why()

    def ready(self, member: str) -> tuple[bool, list[str]]:
        """What /readyz of the member's node says now."""
        host = self.host(member)
        assert host.process is not None
        assert host.door is not None, f"{member} does not answer"
        with host.process.loop.entered():
            return host.door.service.ready()

    # --- no rules: what is broken here is broken on purpose --------------------------------------------------

    def _on_sent(self, member: str, message: WireMessage) -> None:
        """Nothing is judged."""

    def on_end(self, host: Host, code: int, expected: bool) -> None:
        """A node that stops by itself may be the scene."""
