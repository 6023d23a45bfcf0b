"""The running node as the API sees it: reads from the store's snapshots, submissions to the intake."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import msgspec

from consensus.codec import encode, unpack
from consensus.messages import TwoInstances, VoteEquivocation
from contracts.engine import Engine
from contracts.lifecycle import Lifecycle
from contracts.state_keys import decode_key
from node.api.service import Backups, EventCursor, EventFilter, Proofs, StoredBlock
from node.client.answers import (
    CallOutcome,
    ChangedValue,
    ContractAnswer,
    Diagnosis,
    DryRun,
    EventPage,
    EvidenceItem,
    Fate,
    FateStatus,
    MemberStatus,
    NodeStatus,
    PeerStatus,
    QueryAnswer,
    Submission,
    TransactionPage,
    TransactionSummary,
)
from node.client.rendering import outcomes, plain_json
from node.config import NetworkConfig
from node.diagnosis.notices import notices
from node.errors import HansaError, NotFound, Unavailable
from node.executor import Executor, NotBrief
from node.ledger import Receipt, Transaction
from node.mempool import Mempool
from node.peers import Transport
from node.runtime.bodies import Bodies
from node.runtime.catching_up import network_height, sync_status
from node.runtime.clock import Clock
from node.runtime.describing import describe
from node.runtime.diagnostics import Diagnostics
from node.runtime.divergence import Divergence
from node.runtime.event_pages import event_page
from node.runtime.health import Health
from node.runtime.intake import Intake
from node.runtime.joining import Joining
from node.runtime.notices import brakes_on, resting_at
from node.runtime.roster import Roster
from node.runtime.waiting import Waiters
from node.runtime.whereabouts import Whereabouts
from node.state import VALUE_SIZE_MAX, ExecutedBlock, Overlay
from node.store import ReceiptsRecord, Store, StoreView
from node.store.reading import read_receipt
from node.sync import Progress

VERSION = "0.1.0"

_Answer: TypeAlias = Callable[[StoreView, str, str, dict[str, Any]], Any]


class Service:
    """Implements node.api.NodeService. All methods run on the node's event loop."""

    def __init__(
        self,
        config: NetworkConfig,
        member: str,
        store: Store,
        executor: Executor,
        mempool: Mempool,
        bodies: Bodies,
        intake: Intake,
        transport: Transport,
        health: Health,
        divergence: Divergence,
        joining: Joining,
        clock: Clock,
        metrics: Callable[[], bytes],
        diagnostics: Diagnostics,
        proofs: Proofs,
        backups: Backups,
        catching_up: Callable[[], Progress],
        whereabouts: Whereabouts,
        roster: Callable[[], Roster],
    ) -> None:
        self._config = config
        self._member = member
        self._store = store
        self._executor = executor
        self._mempool = mempool
        self._bodies = bodies
        self._intake = intake
        self._transport = transport
        self._health = health
        self._divergence = divergence
        self._joining = joining
        self._clock = clock
        self._metrics = metrics
        self._diagnostics = diagnostics
        self._proofs = proofs
        self._backups = backups
        self._catching_up = catching_up
        self._whereabouts = whereabouts
        self._roster = roster
        self._view: StoreView = store.snapshot()
        self._waiters = Waiters()
        self._moved = asyncio.Event()
        self._receipts_read: tuple[int, ReceiptsRecord] | None = None
        self._described: tuple[Engine, tuple[ContractAnswer, ...]] | None = None

    # --- told by the runtime ---------------------------------------------------------------------------------

    def on_applied(self, executed: ExecutedBlock, view: StoreView, ended: Sequence[bytes]) -> None:
        """The block is durable; whoever waits for it or for its transactions is woken.

        Told once more when it is the head, for what waited in the mempool was looked for there until then.
        """
        self._view = view
        self._waiters.on_applied(executed, ended)
        self._moved.set()
        self._moved = asyncio.Event()

    # --- the network -----------------------------------------------------------------------------------------

    @property
    def network(self) -> str:
        """The network id that transactions carry."""
        return self._config.network_id

    @property
    def genesis_hash(self) -> bytes:
        """The hash of the network's definition (32 bytes)."""
        return self._config.genesis_hash

    # --- transactions ----------------------------------------------------------------------------------------

    async def submit(self, transactions: Sequence[bytes]) -> list[Submission | HansaError]:
        """Judge raw transactions and take the good ones; one outcome each, in order."""
        if self._divergence.height:
            # What it would admit by its own state might be nonsense, and it would never learn the fate.
            error = Unavailable("diverged", f"this node does not follow the network: {self._divergence.sentence}")
            return [error] * len(transactions)
        return await self._intake.submit(transactions)

    async def wait_final(self, tx_id: bytes, timeout_s: float) -> Fate:
        """The fate of `tx_id` once it is no longer pending, or after `timeout_s` as it then is."""
        found = (await self.wait_all((tx_id,), timeout_s))[0]
        if isinstance(found, NotFound):
            raise found
        return found

    async def wait_all(self, tx_ids: Sequence[bytes], timeout_s: float) -> list[Fate | NotFound]:
        """For each of `tx_ids`, in order, what `wait_final` returns or raises; they are waited for together."""
        known = {tx_id: self._known(tx_id) for tx_id in tx_ids}
        waited = [tx_id for tx_id, fate in known.items() if fate is None]
        places = await self._waiters.wait(waited, timeout_s)
        for tx_id in waited:
            place = places.get(tx_id)
            known[tx_id] = self._fate_now(tx_id) if place is None else _final(tx_id, *place)
        return [fate for tx_id in tx_ids if (fate := known[tx_id]) is not None]

    def _known(self, tx_id: bytes) -> Fate | NotFound | None:
        """The fate of `tx_id` where there is nothing to wait for, else None."""
        if self._mempool.waiting(tx_id) is not None:
            return None
        fate = self._fate_now(tx_id)
        return None if isinstance(fate, Fate) and fate.status in ("pending", "unknown") else fate

    def _fate_now(self, tx_id: bytes) -> Fate | NotFound:
        try:
            return self.fate(tx_id)
        except NotFound as error:
            return error

    def fate(self, tx_id: bytes) -> Fate:
        """What became of `tx_id`; status `unknown` when this node has never seen it, or not kept it.

        Raise NotFound (`block_pruned`) where it is final in a block that is not here any more.
        """
        place = self._store.locate(tx_id)
        if place is not None:
            height, position = place
            if height < self._store.first_block and not self._store.has_receipts(height):
                raise self._whereabouts.transaction(tx_id, height)
            return _final(tx_id, height, self._receipt(height, position))
        if self._mempool.waiting(tx_id) is not None:
            return Fate(tx_id=tx_id.hex(), status="pending")
        ending = self._mempool.ending(tx_id) or self._store.ending(tx_id)
        if ending is not None:
            return Fate(tx_id=tx_id.hex(), status=ending.status, height=ending.height, code=ending.code)
        # After a restart a transaction may lie in the journal while the mempool has no room for it yet.
        return Fate(tx_id=tx_id.hex(), status="pending" if self._store.is_pending(tx_id) else "unknown")

    async def missing(self, tx_id: bytes) -> NotFound:
        """Why `tx_id` is unknown here, and where it may be found."""
        return await self._whereabouts.unknown(tx_id)

    def _receipt(self, height: int, position: int) -> Receipt:
        """The receipt at a place; whoever waits for a batch asks for many of one block, which is read once."""
        if self._receipts_read is None or self._receipts_read[0] != height:
            self._receipts_read = (height, self._store.receipts(height))
        return read_receipt(self._receipts_read[1].receipts, height, position)

    def transaction(self, tx_id: bytes) -> bytes | None:
        """The raw transaction, pending or final, or None when this node does not have it."""
        waiting = self._mempool.waiting(tx_id)
        return waiting.data if waiting is not None else self._store.transaction(tx_id)

    def transactions(self, limit: int, before: str | None) -> TransactionPage:
        """At most `limit` transactions: pending ones, then final ones from the newest block down."""
        rows: list[TransactionSummary] = []
        if before is None:
            for tx_id in self._mempool.tx_ids(limit):
                waiting = self._mempool.waiting(tx_id)
                # Of a block that is on the disk and not yet the head they are there as well.
                if waiting is not None and self._store.locate(tx_id) is None:
                    rows.append(_summary(waiting, "pending"))
            height, position = self._view.head.height, None
        else:
            height, position = _read_cursor(before)
            height = min(height, self._view.head.height)
        while height >= self._view.first_block:
            block = self._view.block(height)
            receipts = self._view.receipts(height)
            count = len(block.body.transactions)
            index = count - 1 if position is None else min(position, count) - 1
            while index >= 0:
                if len(rows) >= limit:
                    return TransactionPage(transactions=tuple(rows), before=f"{height}:{index + 1}")
                transaction = Transaction.decode(block.body.transactions[index])
                receipt = read_receipt(receipts.receipts, height, receipts.scheduled + index)
                failed = sum(call.code != "ok" for call in receipt.calls)
                rows.append(_summary(transaction, "final", height, failed))
                index -= 1
            height, position = height - 1, None
        return TransactionPage(transactions=tuple(rows))

    async def dry_run(self, data: bytes) -> DryRun:
        """What the raw transaction would do on the head's state; nothing is changed, stored or gossiped."""
        transaction = Transaction.decode(data)
        await self._bodies.verify([transaction])
        tried = await asyncio.to_thread(self._executor.dry_run, transaction, self._clock.time_ms())
        calls = outcomes(tried.receipt)
        changes = [
            ChangedValue(
                key=tuple(part if isinstance(part, str | int) else part.hex() for part in decode_key(key)),
                before=_plain(tried.writes.before[key]),
                after=_plain(after),
            )
            for key, after in tried.writes.after.items()
        ]
        return DryRun(
            tx_id=transaction.tx_id.hex(),
            height=self._view.head.height,
            receipts=tuple(CallOutcome(code=call.code, events=call.events) for call in calls),
            changes=tuple(changes),
            details=tried.details,
            operations=tried.operations,
        )

    # --- reads -----------------------------------------------------------------------------------------------

    async def query(self, contract: str, name: str, args: dict[str, Any], at_height: int | None) -> QueryAnswer:
        """The answer of a contract's query on the head's state, or on that after block `at_height`."""
        view = self._view
        queries = self._executor.queries

        def read(answer: _Answer) -> QueryAnswer:
            past = view if at_height is None else view.at(at_height)
            return QueryAnswer(
                value=answer(past, contract, name, args),
                height=past.head.height,
                state_root=past.head.state_root.hex(),
                age_ms=max(0, self._clock.time_ms() - past.head.time_ms) if past.head.height else 0,
                diverged_at=self.diverged_at(),
            )

        if at_height is None:
            # What reads a value or two takes less time than a thread takes to be asked, and to be heard.
            with contextlib.suppress(NotBrief):
                return read(queries.brief_answer)
        return await asyncio.to_thread(read, queries.answer)

    @property
    def backups(self) -> Backups:
        """What a backup of this node is made of."""
        return self._backups

    @property
    def proofs(self) -> Proofs:
        """What makes evidence packs of this node's ledger."""
        return self._proofs

    def block(self, height: int | None) -> StoredBlock:
        """The decided block at `height` (None: the newest)."""
        view = self._view
        height = view.head.height if height is None else height
        try:
            block, receipts = view.block(height), view.receipts(height)
        except NotFound as error:
            raise self._whereabouts.explained(error) from None
        count = len(block.body.transactions)
        return StoredBlock(
            block,
            tuple(read_receipt(receipts.receipts, height, receipts.scheduled + index) for index in range(count)),
        )

    def events(self, after: EventCursor, limit: int, wanted: EventFilter) -> EventPage:
        """At most `limit` matching events after `after`, in ledger order."""
        try:
            return event_page(self._view, after, limit, wanted)
        except NotFound as error:
            raise self._whereabouts.explained(error) from None

    async def wait_height(self, above: int) -> int:
        """The head's height, once it is greater than `above`."""
        while self._view.head.height <= above:
            await self._moved.wait()
        return self._view.head.height

    def height(self) -> int:
        """The height of the last block that is on the disk."""
        return self._view.head.height

    def contracts(self) -> tuple[ContractAnswer, ...]:
        """The contracts with the JSON Schemas of their arguments, as the ledger has them and this node ships
        them.
        """
        # Every query reads its arguments by these schemas, and making them takes milliseconds.
        engine = self._executor.engine
        if self._described is None or self._described[0] is not engine:
            self._described = (engine, describe(engine, Lifecycle.read_versions(Overlay(self._view))))
        return self._described[1]

    # --- the node --------------------------------------------------------------------------------------------

    def status(self) -> NodeStatus:
        """Where this node stands now."""
        replica = self._health.replica()
        head = self._view.head
        ready, reasons = self._health.ready()
        heights = {peer.member: peer.height - 1 for peer in replica.peers}
        connected = frozenset(self._transport.connected)
        roster = self._roster()
        return NodeStatus(
            member=self._member,
            role=next(item.role for item in roster.members if item.id == self._member),
            standing=roster.standings.get(self._member, "active"),
            network=self.network,
            genesis_hash=self.genesis_hash.hex(),
            version=VERSION,
            height=head.height,
            first_block=self._store.first_block,
            view=replica.view,
            primary=replica.primary,
            head=head.digest.hex(),
            state_root=head.state_root.hex(),
            head_time_ms=head.time_ms,
            ready=ready,
            reasons=tuple(reasons),
            voting=not replica.abstaining and replica.member is not None,
            peers=tuple(
                PeerStatus(id=member.id, connected=member.id in connected, height=heights.get(member.id))
                for member in roster.present
                if member.id != self._member
            ),
            pending_transactions=len(self._mempool),
            pending_bytes=self._mempool.size_bytes,
            diverged=self._divergence.answer(),
            joining=self._joining.status(),
            network_height=network_height(head.height, replica),
            sync=sync_status(head.height, self._catching_up(), replica, head.members),
            resting=resting_at(self._view, replica.resting),
            brakes=brakes_on(self._view, self._clock.time_ms()),
        )

    def diverged_at(self) -> int | None:
        """The height of the block that this node executes otherwise than the network; None: there is none."""
        return self._divergence.height or None

    def members(self) -> tuple[MemberStatus, ...]:
        """The members of the network, in their order, as last heard."""
        replica = self._health.replica()
        heard = {peer.member: peer for peer in replica.peers}
        offsets = self._health.clock_offsets()
        connected = frozenset(self._transport.connected)
        rows: list[MemberStatus] = []
        roster = self._roster()
        for member in roster.members:
            last = heard.get(member.id)
            own = member.id == self._member
            rows.append(
                MemberStatus(
                    id=member.id,
                    role=member.role,
                    standing=roster.standings[member.id],
                    address=member.address,
                    voting_key=member.voting_key.hex(),
                    tls_key=member.tls_key.hex(),
                    connected=own or member.id in connected,
                    height=self._view.head.height if own else (None if last is None else last.height - 1),
                    view=replica.view if own else (None if last is None else last.view),
                    clock_offset_ms=offsets.get(member.id),
                    last_seen_ms=None if last is None else last.heard_ms_ago,
                )
            )
        return tuple(rows)

    def why(self) -> Diagnosis:
        """Why blocks are made or not made, and who is missing; and what the members have planned or stopped."""
        answer = self._health.why()
        told = notices(
            resting_at(self._view, self._health.replica().resting), brakes_on(self._view, self._clock.time_ms())
        )
        return msgspec.structs.replace(answer, sentences=(*answer.sentences, *told)) if told else answer

    def ready(self) -> tuple[bool, list[str]]:
        """Whether the node follows the network and blocks can be made; else sentences that name who is missing."""
        return self._health.ready()

    def evidence(self) -> tuple[EvidenceItem, ...]:
        """Proofs of equivocation that this node holds, oldest first."""
        items: list[EvidenceItem] = []
        for record in self._store.evidence():
            proof = record.evidence
            kind, height, view = "two_instances", 0, 0
            if not isinstance(proof, TwoInstances):
                kind = "vote" if isinstance(proof, VoteEquivocation) else "new_view"
                height, view = proof.first.height, proof.first.view
            items.append(EvidenceItem(record.member, kind, height, view, encode(proof).hex()))
        return tuple(items)

    def metrics(self) -> bytes:
        """Prometheus text exposition."""
        return self._metrics()

    async def diagnostics(self) -> bytes:
        """The diagnostics bundle of this moment: a zip without keys, transactions or their arguments."""
        return await self._diagnostics.bundle(self)


def _final(tx_id: bytes, height: int, receipt: Receipt) -> Fate:
    return Fate(tx_id=tx_id.hex(), status="final", height=height, receipts=outcomes(receipt))


def _plain(data: bytes | None) -> Any:
    """The value in a state key's canonical bytes, as JSON can hold it."""
    return None if data is None else plain_json(unpack(data, size_max=VALUE_SIZE_MAX))


def _summary(
    transaction: Transaction, status: FateStatus, height: int | None = None, failed: int = 0
) -> TransactionSummary:
    return TransactionSummary(
        tx_id=transaction.tx_id.hex(),
        status=status,
        sender=transaction.body.sender,
        request_id=transaction.body.request_id,
        calls=len(transaction.body.calls),
        height=height,
        failed=failed,
    )


def _read_cursor(text: str) -> tuple[int, int]:
    """Return (height, position) of a page cursor; raise NotFound when it is none."""
    height, _, position = text.partition(":")
    if not (height.isdigit() and position.isdigit() and len(text) <= 40):
        raise NotFound("invalid_cursor", f"{text[:40]!r} is no cursor of this list")
    return int(height), int(position)
