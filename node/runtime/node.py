"""The node: makes its parts, joins them, runs them, and stops them in order.

Why a failure stops everything: a broken disk or an exception nobody expected means that this process can no longer
be trusted to vote. It stops cleanly, keeps its data as it is and says why; the other members go on without it. An
execution that differs from a certified block (divergence.py), or other code (code_agreement.py), takes its vote.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import structlog

from consensus.codec import encode
from consensus.config import Config
from consensus.effects import (
    Accuse,
    BuildPayload,
    CatchUp,
    CheckPayload,
    Decide,
    Head,
    Input,
    Synced,
    Withhold,
    WorkWaiting,
)
from consensus.messages import TwoInstances
from consensus.replica import Replica
from consensus.status import Abstention, ReplicaStatus
from contracts import CONTRACTS
from contracts.engine import Engine
from contracts.membership import Membership
from node import sync
from node.config import NetworkConfig, NodeConfig
from node.errors import ConfigError, HansaError, InvalidBlock, NotFound, StoreError
from node.executor import Executor
from node.gossip import Gossip
from node.ledger import CertifiedBlock, Transaction
from node.mempool import Mempool
from node.runtime.bodies import Bodies
from node.runtime.chain import Chain
from node.runtime.code_agreement import CodeAgreement
from node.runtime.diagnostics import Diagnostics
from node.runtime.divergence import Divergence
from node.runtime.driver import Driver
from node.runtime.health import Health, free_bytes
from node.runtime.intake import Intake
from node.runtime.metrics import Metrics
from node.runtime.recorder import Recorder
from node.runtime.reports import Reports
from node.runtime.router import Router
from node.runtime.service import VERSION, Service
from node.runtime.surroundings import Surroundings
from node.state import ExecutedBlock
from node.store import Database, Store, StoreView

WORK_INTERVAL_MS = 200
"""How often work that becomes due by time alone (scheduled calls, held transactions) is looked for."""


class Node:
    """One member's running node. `run` returns when it was told to stop or failed."""

    def __init__(self, config: NodeConfig, network: NetworkConfig, outside: Surroundings) -> None:
        """Open the store and make all parts; raise ConfigError or StoreError where that cannot be."""
        # A hundred lines because every part gets its collaborators here and nowhere else.
        own = network.member(config.member)
        self._config = config
        self._network = network
        self._parameters = parameters = network.parameters
        self._log = structlog.get_logger("node").bind(member=config.member)
        self._clock = outside.clock
        self._threads = outside.threads
        self._stopping = asyncio.Event()
        self._failure: BaseException | None = None
        self._work = WorkWaiting(False, 0)
        self._catching_up: sync.CatchUp
        self._engine = Engine(CONTRACTS)
        self._executor = Executor(network, self._engine, Membership)
        self._store = self._open_store(outside.open_database)
        self._view = self._store.snapshot()
        self._executor.open(self._view)
        self._metrics = Metrics()
        self._mempool = Mempool(config.limits.mempool_transactions_max, config.limits.mempool_bytes_max)
        self._bodies = Bodies(
            self._mempool,
            self._executor,
            self._threads,
            self._clock,
            parameters.block_transactions_max,
            self._report,
        )
        self._chain = Chain(
            self._store,
            self._executor,
            self._bodies,
            self._threads,
            self._clock,
            config.member,
            parameters.base_timeout_ms // 2,
            self._on_applied,
            self._on_divergence,
        )
        self._intake = Intake(
            self._mempool,
            self._executor,
            self._bodies,
            self._store,
            self._threads,
            self._clock,
            self._look_for_work,
        )
        self._router = Router()
        self._peers = outside.open_transport(self._router, self._executor.contracts_hash)
        self._gossip = Gossip(self._peers, self._bodies, self._intake.from_peer, self._report, self._fail)
        self._catching_up = sync.CatchUp(
            self._peers,
            self._chain,
            network.network_id,
            outside.verify,
            self._on_synced,
            self._report,
            self._on_divergence,
            self._fail,
        )
        self._divergence = Divergence(
            self._store, self._threads, self._peers, self._clock, self._judge_standing, self._fail
        )
        self._code = CodeAgreement(
            network,
            config.member,
            self._engine.manifest(),
            self._last_code(),
            self._peers,
            self._clock,
            self._judge_standing,
            self._fail,
        )
        self._block_server = sync.BlockServer(self._peers, _Archive(self._store, self._chain), self._fail)
        self._recorder = Recorder()
        now_ms, time_ms = self._clock.now_ms(), self._clock.time_ms()
        replica = Replica(
            self._replica_config(own.role == "validator", outside.instance),
            self._chain.head,
            msgspec.structs.replace(self._store.memory(), withheld=self._withheld()),
            self._recorder.signing(outside.sign),
            outside.verify,
            now_ms,
            time_ms,
        )
        self._driver = Driver(
            replica, self, self._router, self._chain.persist, self._clock, self._recorder, self._fail
        )
        reports = Reports(network, config.member, outside.sign, outside.verify, self._peers, self._clock)
        self._health = Health(
            network,
            config.member,
            VERSION,
            self._executor.contracts_hash,
            self._peers,
            self._clock,
            self._driver.status,
            reports,
            lambda: len(self._mempool),
            config.limits.mempool_transactions_max,
            lambda: free_bytes(config.data_dir),
            self._store.head.time_ms,
        )
        diagnostics = Diagnostics(
            config,
            network,
            self._engine,
            self._executor,
            self._store,
            self._peers,
            self._recorder,
            self._driver.status,
            self._clock,
            VERSION,
        )
        self._service = Service(
            network,
            config.member,
            self._store,
            self._executor,
            self._engine,
            self._mempool,
            self._bodies,
            self._intake,
            self._peers,
            self._health,
            self._divergence,
            self._clock,
            self._metrics.text,
            diagnostics,
        )
        self._api = outside.open_api(self._service)
        self._bodies.connect(self._gossip, self._peers, self._chain.body)
        self._intake.connect(self._gossip)
        self._router.connect(self._peers, self._gossip, self._block_server, self._driver.give)
        self._router.connect_health(self._health, reports)
        self._router.connect_code(self._code)
        self._judge_standing()
        self._add_gauges()

    def _add_gauges(self) -> None:
        gauge, status = self._metrics.gauge, self._driver.status
        gauge("hansa_height", "Height of the last applied block", lambda: self._chain.head.height)
        gauge("hansa_view", "View of the height in work", lambda: status().view)
        gauge("hansa_ready", "1 when ready, else 0", lambda: int(self._health.ready()[0]))
        gauge("hansa_voting", "1 when this node votes, else 0", lambda: int(not status().abstaining))
        gauge("hansa_diverged", "Height of the block that differs here, or 0", lambda: self._divergence.height)
        gauge("hansa_code_differs", "1 when other code runs here than agreed", lambda: int(self._code.differs))
        gauge("hansa_key_twice", "1 when the key was seen in two places", lambda: int(_key_twice(status())))
        gauge("hansa_peers_connected", "Peers connected now", lambda: len(self._peers.connected))
        gauge("hansa_mempool_transactions", "Transactions that wait", lambda: len(self._mempool))
        gauge("hansa_mempool_bytes", "Bytes of waiting transactions", lambda: self._mempool.size_bytes)
        gauge("hansa_store_bytes", "About how many bytes the data takes", lambda: self._store.size_bytes())

    def _open_store(self, open_database: Callable[[Path], Database]) -> Store:
        store = Store(
            self._config.data_dir,
            self._network.network_id,
            self._network.genesis_hash,
            open_database=open_database,
        )
        try:
            if not store.initialised:
                # Whoever has no data here may have voted elsewhere: only `hansa init` knows that a key is new.
                self._log.warning("no data found: this node joins again and abstains until it has caught up")
                store.initialise(self._executor.genesis(), never_voted=False)
        except BaseException:
            store.close()
            raise
        return store

    def _last_code(self) -> bytes | None:
        """The contracts hash of the last block; None at genesis, whose header nobody agreed on."""
        height = self._store.head.height
        return self._store.block(height).body.header.contracts_hash if height else None

    def _replica_config(self, votes: bool, instance: bytes) -> Config:
        parameters = self._parameters
        return Config(
            network=self._network.network_id,
            member=self._config.member if votes else None,
            rotation_heights=parameters.rotation_heights,
            base_timeout_ms=parameters.base_timeout_ms,
            timeout_cap_ms=parameters.timeout_cap_ms,
            status_interval_ms=parameters.status_interval_ms,
            empty_block_interval_ms=parameters.empty_block_interval_ms,
            passed_over_max=parameters.censorship_blocks,
            instance=instance,
        )

    # --- life ------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """`run` is about to end as it should."""
        self._stopping.set()

    async def run(self, on_running: Callable[[], None] = lambda: None) -> int:
        """Run until `stop` or a failure; return the exit code (0, 2, 3 or 70).

        `on_running` is called once, when all parts run.
        """
        try:
            # First what is remembered, then whoever may ask about it: a replica without its records takes its own
            # votes for somebody else's, and a journal read late finds its places taken.
            restored = await self._intake.restore()
            self._gossip.start()
            self._driver.start()
            await self._peers.start()
            await self._api.start()
            self._log.info(
                "running",
                network=self._network.network_id,
                height=self._chain.head.height,
                peers=self._config.listen,
                api=self._api.url,
                restored=restored,
            )
            on_running()
            self._driver.spawn(self._watch_for_work())
            self._driver.spawn(self._health.watch())
            await self._stopping.wait()
        finally:
            await self._close()
        return self._exit_code()

    async def _close(self) -> None:
        """Catch-up ends first, or it might apply what the driver was applying; then votes, feeders and the disk."""
        await self._catching_up.close()
        await self._divergence.close()
        await self._code.close()
        await self._driver.close()
        await self._api.stop()
        await self._block_server.close()
        await self._gossip.close()
        await self._peers.close()
        self._threads.close()
        self._store.close()
        self._log.info("stopped", height=self._chain.head.height)

    def _exit_code(self) -> int:
        error = self._failure
        if error is None:
            return 0
        return error.exit_code if isinstance(error, ConfigError | StoreError) else 70

    def _fail(self, error: BaseException) -> None:
        """Stop the node: voting on could be wrong. The first failure is the one that counts."""
        if self._failure is not None:
            return
        self._failure = error
        self._stopping.set()
        what = str(error) if isinstance(error, HansaError) else f"{type(error).__name__}: {error}"
        self._log.critical("stopping", reason=what, exc_info=error)
        try:
            self._health.on_failure(what, disk=isinstance(error, StoreError))
        except Exception as told:
            # The others are not told: a replica that has just failed may not even say where it stands.
            self._log.error("its last word could not be said", exc_info=told)

    def _report(self, peer: str, error: HansaError) -> None:
        self._log.warning("peer at fault", peer=peer, code=error.code, reason=error.message)

    # --- work ------------------------------------------------------------------------------------------------

    def _look_for_work(self) -> None:
        """The replica knows whether a non-empty block could be built now."""
        work = self._bodies.work()
        due_ms = self._executor.next_due_ms()
        due = due_ms is not None and due_ms <= self._clock.time_ms()
        full = work.waiting and self._bodies.waiting_count() >= self._chain.last_block_transactions
        known = WorkWaiting(work.waiting or due, work.passed_over, full)
        if known != self._work:
            self._work = known
            self._driver.give(known)

    async def _watch_for_work(self) -> None:
        while True:
            await asyncio.sleep(WORK_INTERVAL_MS * 0.001)
            self._look_for_work()
            self._code.judge()

    # --- whether this node may vote --------------------------------------------------------------------------

    def _withheld(self) -> str:
        """Why this node must sign nothing, whatever its key and memory say; empty: it may."""
        if self._divergence.height:
            return f"its execution differs from the network's at {self._divergence.sentence}"
        if self._code.differs:
            return f"it runs other contract code than the network: {self._code.sentence}"
        return ""

    def _judge_standing(self) -> None:
        """The replica signs or is silent as the findings say now, and whoever asks why is told."""
        self._driver.give(Withhold(self._withheld()))
        self._health.set_condition("diverged", self._divergence.sentence or None)
        self._health.set_condition("contracts_differ", self._code.sentence or None)

    def _on_divergence(self, block: CertifiedBlock, error: InvalidBlock) -> None:
        self._divergence.found(block, error, self._chain)

    def _on_applied(self, executed: ExecutedBlock, view: StoreView) -> None:
        now_ms = self._clock.now_ms()
        transactions: list[Transaction] = []
        for wire_id, data in zip(executed.proposal.wire_ids, executed.body.transactions, strict=True):
            transaction = self._mempool.get(wire_id) or Transaction.decode(data)
            transactions.append(transaction)
            received_ms = self._mempool.received_ms(transaction.tx_id)
            if received_ms is not None:
                self._metrics.on_final(now_ms - received_ms)
        # A block that was made while this node was away or behind passed over nothing that came here meanwhile.
        target = self._driver.status().catch_up_target
        behind = target is not None and target > executed.header.height
        room = (0, 0) if behind else self._executor.room(executed)
        ended = self._mempool.applied(executed.header.height, executed.header.time_ms, transactions, *room)
        ended.update(self._intake.readmit())
        if ended:
            self._driver.spawn(self._threads.write(self._store.end_pending, ended))
        self._metrics.on_applied(executed)
        self._code.on_applied(executed.header.contracts_hash)
        self._divergence.on_applied(executed.header.height)
        self._health.on_applied()
        self._service.on_applied(executed, view, tuple(ended))
        self._look_for_work()

    # --- what the replica asks for (driver.Performer) --------------------------------------------------------

    async def build(self, effect: BuildPayload) -> Input:
        """Build a block."""
        return await self._chain.build(effect)

    async def check(self, effect: CheckPayload) -> Input:
        """Judge a block."""
        return await self._chain.check(effect)

    async def decide(self, effect: Decide) -> Input | None:
        """Apply a decided block."""
        return await self._chain.decide(effect)

    def catch_up(self, effect: CatchUp) -> None:
        """Fetch what the others have decided."""
        self._catching_up.catch_up(effect.target, effect.peers)

    async def accuse(self, effect: Accuse) -> None:
        """Store and show a proof of misbehaviour."""
        if await self._threads.write(self._store.put_evidence, effect.member, effect.evidence):
            self._metrics.on_evidence()
            twice = isinstance(effect.evidence, TwoInstances)
            what = "a member's key lives in two places" if twice else "a member signed two things for one slot"
            self._log.error(what, accused=effect.member)

    def _on_synced(self, head: Head) -> None:
        self._driver.give(Synced(head))


class _Archive:
    """What catching-up peers are served from."""

    def __init__(self, store: Store, chain: Chain) -> None:
        self._store = store
        self._chain = chain

    @property
    def head_height(self) -> int:
        """The height of the last applied block."""
        return self._chain.head.height

    def certified_block(self, height: int) -> bytes | None:
        """The encoded ledger.CertifiedBlock of `height`; None when it is not here (yet, or any more)."""
        try:
            return encode(self._store.block(height))
        except NotFound:
            return None

    def execution(self, height: int) -> tuple[Sequence[bytes], Sequence[tuple[bytes, bytes | None]] | None] | None:
        """What the block at `height` did; None when it is not here."""
        try:
            found = self._store.snapshot().execution(height)
        except NotFound:
            return None
        return found.receipts, found.writes

    def payload(self, height: int, digest: bytes) -> bytes | None:
        """The payload of the block `digest` proposed at `height`, if it is at hand."""
        return self._chain.payload(height, digest)


def _key_twice(status: ReplicaStatus) -> bool:
    return status.abstention is Abstention.KEY_TWICE
