"""The node: makes its parts, joins them, runs them, and stops them in order.

Why a failure stops everything: a broken disk or an exception nobody expected means that this process can no longer
be trusted to vote. It stops cleanly, keeps its data as it is and says why; the other members go on without it. An
execution that differs from a certified block (divergence.py), or other code (code_agreement.py), takes its vote.

More than 500 lines because all parts are made and joined here, and nowhere else.
"""

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from consensus.config import Config
from consensus.effects import (
    Accuse,
    Applied,
    BuildPayload,
    CatchUp,
    CheckPayload,
    Decide,
    Head,
    Input,
    Memory,
    Synced,
    ViewChangeRecord,
    VoteRecord,
    Withhold,
)
from consensus.messages import TwoInstances
from consensus.replica import Replica
from consensus.status import Abstention, ReplicaStatus
from contracts import CONTRACTS, FURTHER
from contracts.engine import Engine
from contracts.membership import Membership
from node import sync
from node.config import MemberConfig, NetworkConfig, NodeConfig
from node.errors import ConfigError, HansaError, InvalidBlock, StoreError
from node.executor import Executor
from node.gossip import Gossip
from node.ledger import CertifiedBlock
from node.mempool import Mempool
from node.rescue import perform_recoveries
from node.runtime.backing_up import BackingUp
from node.runtime.bodies import Bodies
from node.runtime.catching_up import add_sync_gauges
from node.runtime.chain import Chain
from node.runtime.code_agreement import CodeAgreement
from node.runtime.diagnostics import Diagnostics
from node.runtime.disk_space import DiskSpace
from node.runtime.divergence import Divergence
from node.runtime.driver import Driver
from node.runtime.governing import Governing
from node.runtime.health import Health
from node.runtime.intake import Intake
from node.runtime.joining import join_by
from node.runtime.metrics import Metrics
from node.runtime.opening import open_store
from node.runtime.proving import Proving
from node.runtime.recorder import Recorder
from node.runtime.reports import Reports
from node.runtime.retention import Retention
from node.runtime.roster import Roster
from node.runtime.router import Router
from node.runtime.served_blocks import ServedBlocks
from node.runtime.service import VERSION, Service
from node.runtime.snapshots import Snapshots, add_gauges
from node.runtime.surroundings import Surroundings
from node.runtime.voting_keys import VotingKeys
from node.runtime.whereabouts import Whereabouts
from node.runtime.work import Work
from node.state import ExecutedBlock, Overlay
from node.store import StoreView

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
        self._tls_keys = outside.tls_keys
        self._stopping = asyncio.Event()
        self.begins_anew = False
        """After `run`: this process is to make another node on the same directory, and run that."""
        self._failure: BaseException | None = None
        self._active: tuple[Engine, tuple[str, ...]] | None = None
        self._catching_up: sync.CatchUp
        self._executor = Executor(network, Engine(CONTRACTS, FURTHER), Membership)
        opened = (outside.open_database, outside.verify, outside.disk_free)
        self._store = open_store(config, network, self._executor, *opened)
        # No part may keep a view for long: what a view may show, the disk cannot give back.
        self._executor.open(self._store.snapshot())
        perform_recoveries(config, network, self._store, self._executor)
        # A recovery is signed while the node is stopped alone. Its block may still come from the others meanwhile;
        # then the next start ends the silence.
        self._owes_recovery = self._store.owed_recovery() is not None
        self._metrics = Metrics()
        self._keys_made_ms = outside.keys_made_ms
        self._disk = DiskSpace(
            config.disk, lambda: outside.disk_free(config.data_dir), self._threads, self._judge_standing
        )
        self._mempool = Mempool(config.limits.mempool_transactions_max, config.limits.mempool_bytes_max)
        self._bodies = Bodies(
            self._mempool,
            self._executor,
            self._threads,
            self._clock,
            self._report,
        )
        self._chain = Chain(
            self._store,
            self._executor,
            self._bodies,
            self._threads,
            self._clock,
            config.member,
            parameters.base_timeout_ms,
            self._on_durable,
            self._on_applied,
            self._on_divergence,
            self._disk.room,
            network.recoveries,
        )
        self._work = Work(
            self._bodies,
            self._executor,
            self._clock,
            lambda: self._chain.last_block_transactions,
            lambda known: self._driver.give(known),
        )
        self._intake = Intake(
            self._mempool,
            self._executor,
            self._bodies,
            self._store,
            self._threads,
            self._clock,
            self._work.on_new,
            self._disk.refusal,
            parameters.retention_ms,
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
            self._on_unservable,
            network.recoveries,
        )
        self._divergence = Divergence(
            self._store, self._threads, self._peers, self._clock, self._judge_standing, self._fail
        )
        self._code = CodeAgreement(
            network,
            config.member,
            self._executor.engine.manifest(),
            self._last_code(),
            self._peers,
            self._clock,
            self._judge_standing,
            self._fail,
            self._executor.former_contracts_hash,
        )
        self._block_server = sync.BlockServer(self._peers, ServedBlocks(self._store, self._chain), self._fail)
        self._snapshots = Snapshots(
            config.snapshots_dir,
            config.snapshots.keep,
            network,
            self._threads,
            self._clock,
            lambda: self._disk.low,
            outside.cut_snapshot,
        )
        self._backing_up = BackingUp(
            config.backup_dir, network, self._store, self._threads, self._disk, outside.cut_snapshot
        )
        self._snapshot_server = sync.SnapshotServer(self._peers, self._snapshots, self._fail)
        self._retention = Retention(config.retention, network, self._store, self._threads)
        self._recorder = Recorder()
        now_ms, time_ms = self._clock.now_ms(), self._clock.time_ms()
        members = self._chain.head.members
        keys = VotingKeys(config.member, own.voting_key, outside.sign, outside.further_keys, members)
        row = Membership.registered.read_from(Overlay(self._executor.view), config.member)
        self._store.begin_with_key(keys.listed or (own if row is None else row).voting_key)
        memory = self._store.memory()
        replica = Replica(
            self._replica_config(outside.instance),
            self._chain.head,
            msgspec.structs.replace(memory, withheld=self._withheld()),
            self._recorder.signing(keys.sign),
            outside.verify,
            now_ms,
            time_ms,
        )
        self._driver = Driver(
            replica, self, self._router, self._chain.persist, self._clock, self._recorder, self._fail
        )
        self._reports = reports = Reports(
            network, config.member, keys.signer, outside.verify, self._peers, self._clock
        )
        self._health = Health(
            network,
            config.member,
            VERSION,
            lambda: (self._code.own, *self._code.former),
            self._peers,
            self._clock,
            self._driver.status,
            reports,
            lambda: len(self._mempool),
            config.limits.mempool_transactions_max,
            lambda: self._disk.free_bytes,
            self._store.head.time_ms if self._store.head.height else None,
        )
        self._governing = Governing(
            network,
            config.member,
            self._store.snapshot,
            self._peers,
            self._clock,
            keys,
            self._intake.submit,
            self._driver.status,
            lambda: bool(self._withheld()),
            _remembers(memory),
            outside.tls_keys,
            self._on_roster,
            self._driver.spawn,
            lambda contract, version: self._executor.engine.source_digest(contract, version),
        )
        self._joining = join_by(
            config,
            network,
            self._peers,
            self._store,
            outside.verify,
            self._clock,
            self._report,
            self._disk.require_room,
            lambda: self._chain.head.height,
            lambda: bool(self._divergence.height) or self._disk.short,
            self._catching_up.catch_up,
            self._catching_up.rest,
            self._health.set_condition,
            self._begin_anew,
            self._fail,
        )
        diagnostics = Diagnostics(
            config,
            network,
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
            self._mempool,
            self._bodies,
            self._intake,
            self._peers,
            self._health,
            self._divergence,
            self._joining,
            self._clock,
            self._metrics.text,
            diagnostics,
            Proving(network, self._executor.engine, self._store, self._chain.between_blocks, self._clock),
            self._backing_up,
            self._catching_up.progress,
            Whereabouts(self._store, self._retention.shelf),
            lambda: self._governing.roster,
        )
        self._api = outside.open_api(self._service)
        self._bodies.connect(self._gossip, self._peers, self._chain.body)
        self._intake.connect(self._gossip)
        self._router.connect(self._peers, self._gossip, self._block_server, self._driver.give)
        self._router.connect_health(self._health, reports)
        self._router.connect_code(self._code)
        self._router.connect_snapshots(self._snapshot_server)
        self._take_code()
        self._judge_standing()
        self._add_gauges()

    def _add_gauges(self) -> None:
        gauge, status, server, join = self._metrics.gauge, self._driver.status, self._snapshot_server, self._joining
        gauge("hansa_height", "Height of the last applied block", lambda: self._chain.head.height)
        gauge("hansa_view", "View of the height in work", lambda: status().view)
        gauge("hansa_ready", "1 when ready, else 0", lambda: int(self._health.ready()[0]))
        gauge("hansa_voting", "1 when this node votes, else 0", lambda: int(not status().abstaining))
        gauge("hansa_diverged", "Height of the block that differs here, or 0", lambda: self._divergence.height)
        gauge("hansa_code_differs", "1 when other code runs here than agreed", lambda: int(self._code.differs))
        gauge("hansa_key_twice", "1 when the key was seen in two places", lambda: int(_key_twice(status())))
        gauge("hansa_disk_free_bytes", "Bytes left on the disk; -1: unknown", lambda: _known(self._disk.free_bytes))
        gauge("hansa_disk_low", "1 when the disk fills up, 2 when its reserve is reached", self._disk_level)
        gauge("hansa_peers_connected", "Peers connected now", lambda: len(self._peers.connected))
        gauge("hansa_mempool_transactions", "Transactions that wait", lambda: len(self._mempool))
        gauge("hansa_mempool_bytes", "Bytes of waiting transactions", lambda: self._mempool.size_bytes)
        add_sync_gauges(gauge, self._catching_up.progress)
        add_gauges(gauge, self._snapshots, lambda: server.bytes_served, join.status, lambda: join.replays)
        self._retention.add_gauges(gauge)
        gauge("hansa_peer_sent_bytes", "Bytes sent to peers since the start", self._sent_bytes)
        gauge("hansa_synced_writes", "Writes that waited for the disk", lambda: self._store.synced_writes)
        gauge("hansa_store_bytes", "About how many bytes the data takes", lambda: self._store.size_bytes())
        if self._keys_made_ms:
            made = self._keys_made_ms.get
            self._metrics.key_age("voting", lambda: made(self._listed().voting_key), self._clock.time_ms)
            self._metrics.key_age("tls", lambda: made(self._listed().tls_key), self._clock.time_ms)

    def _listed(self) -> MemberConfig:
        """This member as the ledger has it now."""
        return next(item for item in self._governing.roster.members if item.id == self._config.member)

    def _sent_bytes(self) -> int:
        return sum(peer.sent_bytes for peer in self._peers.peers())

    def _disk_level(self) -> int:
        return 2 if self._disk.short else int(self._disk.low)

    def _last_code(self) -> bytes | None:
        """The contracts hash of the last block; None at genesis, whose header nobody agreed on."""
        height = self._store.head.height
        return self._store.snapshot().header(height).contracts_hash if height else None

    def _replica_config(self, instance: bytes) -> Config:
        parameters = self._parameters
        return Config(
            network=self._network.network_id,
            # Whether it votes is for the list of each height to say: roles change.
            member=self._config.member,
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
        self.begins_anew = False
        self._stopping.set()

    def _begin_anew(self) -> None:
        """`run` ends, and whoever called it makes another node: it takes over a snapshot that lies whole, or is
        what the list of members names now.
        """
        # Once that was decided, nothing that comes while this process ends takes it back, but `stop`.
        self.begins_anew = self.begins_anew or not self._stopping.is_set()
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
            self._snapshots.start(self._store.snapshot())
            self._driver.spawn(self._watch_for_work())
            self._driver.spawn(self._health.watch())
            self._driver.spawn(self._retention.watch())
            self._driver.spawn(self._disk.watch())
            await self._stopping.wait()
        finally:
            await self._close()
        return self._exit_code()

    async def _close(self) -> None:
        """Catch-up ends first, or it might apply what the driver was applying; then votes, feeders and the disk."""
        self._disk.close()
        await self._joining.close()
        await self._catching_up.close()
        await self._divergence.close()
        await self._code.close()
        await self._driver.close()
        await self._retention.close()
        await self._api.stop()
        await self._block_server.close()
        await self._snapshot_server.close()
        await self._snapshots.close()
        await self._backing_up.close()
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
        if error.code in ("recovery_not_trusted", "other_history"):
            self._health.set_condition("other_history", f"by {peer}: {error.message}")

    # --- work ------------------------------------------------------------------------------------------------

    async def _watch_for_work(self) -> None:
        while True:
            await asyncio.sleep(WORK_INTERVAL_MS * 0.001)
            self._work.look()
            target, head = self._driver.catch_up_target(), self._chain.head.height
            # Whoever is behind runs the versions of the height where it is, and the others theirs.
            if target is None or target <= head or self._divergence.height or self._code.differs:
                self._code.judge()
            self._governing.look()

    # --- whether this node may vote --------------------------------------------------------------------------

    def _withheld(self) -> str:
        """Why this node must sign nothing, whatever its key and memory say; empty: it may."""
        if self._divergence.height:
            return f"its execution differs from the network's at {self._divergence.sentence}"
        if self._code.differs:
            return f"it runs other contract code than the network: {self._code.sentence}"
        if self._owes_recovery:
            return (
                "it has signed a recovery of the network, which its chain does not have: run `hansa recovery apply`"
                " with the recovery file (docs/recovery.md)"
            )
        if self._disk.short:
            return f"its disk is full up to the reserve: {self._disk.sentence}"
        return ""

    def _judge_standing(self) -> None:
        """The replica signs or is silent as the findings say now, and whoever asks why is told."""
        self._driver.give(Withhold(self._withheld()))
        self._health.set_condition("diverged", self._divergence.sentence or None)
        self._health.set_condition("contracts_differ", self._code.sentence or None)
        self._health.set_condition("disk_full", self._disk.sentence or None)
        self._health.set_condition("disk_low", self._disk.warning or None)

    def _on_roster(self, roster: Roster) -> None:
        """The ledger has these members now."""
        self._reports.set_members(roster.present)
        self._code.set_validators(roster.validators)
        self._health.set_roster(roster)
        named = [item.tls_key for item in roster.present if item.id == self._config.member]
        missing = [key.hex() for key in named if key not in self._tls_keys]
        self._health.set_condition("tls_key_missing", missing[0] if missing else None)

    def _take_code(self) -> None:
        """The versions of contracts that the ledger names are active at this node, as far as it has them."""
        active = (self._executor.engine, self._executor.lacking)
        if active != self._active:
            self._active = active
            self._code.on_active(active[0].manifest(), active[1])
            self._peers.set_contracts(self._code.own)

    def _on_divergence(self, block: CertifiedBlock, error: InvalidBlock) -> None:
        if error.code == "contract_not_here":
            # Nothing was computed otherwise: the node stays where it is, and goes on once it has the release.
            self._code.on_missing(error.message)
        else:
            self._divergence.found(block, error, self._chain)

    def _on_durable(self, executed: ExecutedBlock, view: StoreView) -> None:
        self._work.on_durable()
        self._service.on_applied(executed, view, ())

    def _on_applied(self, executed: ExecutedBlock, view: StoreView) -> None:
        now_ms = self._clock.now_ms()
        transactions = executed.transactions
        for transaction in transactions:
            received_ms = self._mempool.received_ms(transaction.tx_id)
            if received_ms is not None:
                self._metrics.on_final(now_ms - received_ms)
        # A block that was made while this node was away or behind passed over nothing that came here meanwhile.
        target = self._driver.catch_up_target()
        behind = target is not None and target > executed.header.height
        room = (0, 0) if behind else self._chain.room(executed)
        ended = self._mempool.applied(executed.header.height, executed.header.time_ms, transactions, *room)
        ended.update(self._intake.readmit())
        # Clients wait for it: before all that only this node cares for.
        self._service.on_applied(executed, view, tuple(ended))
        if ended:
            self._driver.spawn(self._threads.write(self._store.end_pending, ended))
        self._metrics.on_applied(executed)
        self._code.on_applied(executed.header.contracts_hash)
        self._take_code()
        self._divergence.on_applied(executed.header.height)
        self._health.on_applied()
        self._governing.on_applied(view)
        self._snapshots.on_applied(view, target or 0)
        if not behind:
            self._joining.on_caught_up()
        self._work.on_applied()

    # --- what the replica asks for (driver.Performer) --------------------------------------------------------

    async def build(self, effect: BuildPayload) -> Input:
        """Build a block."""
        return await self._chain.build(effect)

    async def check(self, effect: CheckPayload) -> Input:
        """Judge a block."""
        return await self._chain.check(effect)

    async def decide(self, effect: Decide) -> Input | None:
        """Apply a decided block."""
        answer = await self._work.while_applying(self._chain.decide(effect))
        ended = isinstance(answer, Applied | Synced) and self._ends_with(answer.head)
        return None if ended else answer

    def _ends_with(self, head: Head) -> bool:
        """Whether the replica hears of nothing any more, for another node has to go on from that head.

        The list names this member anew; or the survivors of a recovery that is trusted here have decided the next
        height: nobody here votes there or decides it again, and the node that begins applies what they decided.
        """
        anew = self._governing.adopt(head.members) or self._network.recoveries.at(head.height + 1) is not None
        if anew:
            # In the same turn of the loop: whoever ends must neither sign nor record what it could not sign.
            self._driver.halt()
            self._begin_anew()
        return anew

    def catch_up(self, effect: CatchUp) -> None:
        """Fetch what the others have decided."""
        self._joining.catch_up(effect.target, effect.peers)

    async def accuse(self, effect: Accuse) -> None:
        """Store and show a proof of misbehaviour."""
        if await self._threads.write(self._store.put_evidence, effect.member, effect.evidence):
            self._metrics.on_evidence()
            twice = isinstance(effect.evidence, TwoInstances)
            what = "a member's key lives in two places" if twice else "a member signed two things for one slot"
            self._log.error(what, accused=effect.member)

    def _on_unservable(self, next_height: int, first_served: int) -> None:
        """Nobody serves the next block any more: this node cannot go on by itself, and whoever asks why is told."""
        text = f"block {next_height} is needed, {first_served} is the lowest that one of them serves"
        self._health.set_condition("blocks_pruned", text)
        self._joining.on_unservable(next_height, first_served)

    def _on_synced(self, head: Head) -> None:
        self._health.set_condition("blocks_pruned", None)
        self._health.set_condition("other_history", None)
        if not self._ends_with(head):
            self._driver.give(Synced(head))


def _remembers(memory: Memory) -> bool:
    """Whether the disk knows what this member signed, or what it must not sign (consensus/README.md, 9.1)."""
    signed = any(isinstance(record, VoteRecord | ViewChangeRecord) for record in memory.records)
    return memory.never_voted or memory.voted or signed or memory.abstain_until > 0


def _known(count: int | None) -> int:
    return -1 if count is None else count


def _key_twice(status: ReplicaStatus) -> bool:
    return status.abstention is Abstention.KEY_TWICE
