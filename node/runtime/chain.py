"""This node's blocks: built, checked, applied, replayed; the head and the bodies at hand.

Invariants: the store's head and the executor's head move together, in one turn, and are one between two turns,
unless the disk failed; a block that was voted for is at hand by its digest until its height is applied; nothing is
executed twice while its outcome is at hand.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from consensus.codec import CodecError, decode, encode
from consensus.effects import (
    Applied,
    BlockStanding,
    BuildPayload,
    CheckPayload,
    Decide,
    Head,
    Input,
    PayloadBuilt,
    PayloadChecked,
    Persist,
    PersistAbstention,
    PreparedRecord,
    Synced,
    VoteRecord,
)
from consensus.members import Members
from consensus.messages import PAYLOAD_SIZE_MAX, Certificate
from contracts.maintenance import Maintenance
from node.config import NO_RECOVERIES, Recoveries
from node.errors import ConfigError, InvalidBlock, NotFound, RejectedTransaction, StoreError
from node.executor import Claim, Difference, Executor
from node.gossip import wire_id_of
from node.ledger import BlockBody, CertifiedBlock, HeadRecord, Proposal, Transaction
from node.runtime.bodies import Bodies
from node.runtime.clock import Clock
from node.runtime.replaying import Replaying
from node.runtime.threads import Threads
from node.state import ExecutedBlock, Overlay
from node.state_tree import StateTree
from node.store import Store, StoreView
from node.sync import ReadyBlock

T = TypeVar("T")

FETCH_TIMEOUT_S = 1.0
"""Shorter than the base time-out: a block whose bytes nobody has must not look like a long execution."""

SLOW_SHARE = 2
"""A block of a single transaction that takes longer than this part of the others' patience makes it suspect."""
BUILDING_SHARE = 4
"""No transaction but the first is begun for a block after this part of it, however many wait.

The limits of a block are counts, for all must agree on them, and know neither how fast this machine is nor what
else it does. Without a limit in time a primary with much to do is deposed for it, and so is the next one.
"""
LONG_SHARE = 2 * BUILDING_SHARE
"""Whose block took longer than this part of it to execute here may have come to that end: the block was full."""


class Chain:
    """Performs what the replica and catch-up ask of the ledger. All methods run on the event loop."""

    def __init__(
        self,
        store: Store,
        executor: Executor,
        bodies: Bodies,
        threads: Threads,
        clock: Clock,
        member: str,
        patience_ms: int,
        on_durable: Callable[[ExecutedBlock, StoreView], None],
        on_applied: Callable[[ExecutedBlock, StoreView], None],
        on_divergence: Callable[[CertifiedBlock, InvalidBlock], None],
        room: Callable[[], Awaitable[None]],
        recoveries: Recoveries = NO_RECOVERIES,
    ) -> None:
        """`patience_ms`: so long the others wait for a primary.

        `on_durable` is told of a block that consensus decided as soon as nothing can undo it and its state is what
        transactions are judged by; `on_applied` of each block when it is the head.
        `on_divergence` is told of a decided block that this node, having voted for it, now executes otherwise.
        `room()` waits until there is room on the disk for a block.
        """
        self._store = store
        self._executor = executor
        self._bodies = bodies
        self._threads = threads
        self._clock = clock
        self._member = member
        self._slow_execution_ms = patience_ms // SLOW_SHARE
        self._building_ms = patience_ms // BUILDING_SHARE
        self._long_ms = patience_ms // LONG_SHARE
        self._on_durable = on_durable
        self._on_applied = on_applied
        self._on_divergence = on_divergence
        self._room = room
        self._turn = asyncio.Lock()
        self._executed: dict[bytes, ExecutedBlock] = {}
        self._took_ms: dict[bytes, int] = {}
        self._suspects: set[bytes] = set()
        self._misfits: set[bytes] = set()
        self._recoveries = recoveries
        view = store.snapshot()
        self._head = self._head_of(store.head, deciders(view), view)
        self.last_block_transactions = 0
        """How many the head holds, of those that this node applied since its start."""
        self._log = structlog.get_logger("chain")

    @property
    def head(self) -> Head:
        """The last applied block."""
        return self._head

    @contextlib.asynccontextmanager
    async def _at_head(self) -> AsyncIterator[None]:
        """It is this caller's turn, and the executor stands on the head; raise StoreError where a write has failed.

        Then the executor is ahead of the disk: whatever it said of a block would be said of another state.
        """
        async with self._turn:
            if self._executor.head.digest != self._head.digest:
                raise StoreError("disk_failed", f"block {self._head.height + 1} could not be written")
            yield

    # --- building and checking -------------------------------------------------------------------------------

    async def build(self, effect: BuildPayload) -> PayloadBuilt:
        """A block on the head, at hand under its digest; without digest when there is nothing to build."""
        async with self._at_head():
            nothing = PayloadBuilt(effect.height, effect.view, None, None)
            if (effect.height, effect.parent) != (self._head.height + 1, self._head.digest):
                return nothing
            started_ms = self._clock.now_ms()
            executed = await self._threads.execute(
                self._executor.build,
                self._clock.time_ms(),
                self._member,
                self._bodies.candidates(),
                halvings=effect.halvings,
                allow_empty=effect.allow_empty,
                allow_quarantine=effect.allow_quarantine,
                suspects=frozenset(self._suspects),
                enough=_Allowance(self._clock, self._building_ms),
            )
            if executed is None:
                return nothing
            self._keep(executed, started_ms)
            return PayloadBuilt(effect.height, effect.view, executed.digest, encode(executed.proposal))

    async def check(self, effect: CheckPayload) -> PayloadChecked:
        """Whether the block `effect.digest` is what the rules make of its transactions; at hand when it is."""
        proposal: Proposal | None = None
        try:
            proposal = await self._proposal(effect)
            if proposal is None:
                return self._checked(effect, None, None, "nobody sent the payload")
            if effect.standing == BlockStanding.PROPOSED:
                await self._judge_first(proposal, effect.proposer)
            if effect.digest not in self._executed:
                transactions = await self._transactions(proposal, effect)
                if transactions is None:
                    return self._checked(effect, None, None, "nobody sent the transactions")
                async with self._at_head():
                    if effect.height != self._head.height + 1:
                        return self._checked(effect, None, None, "the height is over")
                    started_ms = self._clock.now_ms()
                    executed = await self._threads.execute(
                        self._executor.check,
                        proposal,
                        transactions,
                        allow_quarantine=effect.allow_quarantine,
                        standing=effect.standing,
                    )
                    self._keep(executed, started_ms)
            elif proposal.quarantined and not effect.allow_quarantine:
                raise InvalidBlock("quarantine_refused", "fewer than two views have failed at this height")
        except InvalidBlock as error:
            self._log.warning("block refused", height=effect.height, proposer=effect.proposer, reason=str(error))
            if error.code == "block_content_differs" and proposal is not None:
                # Not the block is bad but what was sent under its name: another holder may have the right one.
                self._misfits.add(encode(proposal))
                return self._checked(effect, None, None, str(error))
            return self._checked(effect, False, None, str(error))
        return self._checked(effect, True, encode(self._executed[effect.digest].proposal), "")

    def _checked(
        self, effect: CheckPayload, valid: bool | None, payload: bytes | None, reason: str
    ) -> PayloadChecked:
        return PayloadChecked(effect.height, effect.view, effect.digest, valid, payload, reason)

    async def _proposal(self, effect: CheckPayload) -> Proposal | None:
        """The proposal that the effect names: sent with it, at hand, on disk, or from a holder."""
        executed = self._executed.get(effect.digest)
        if executed is not None:
            return executed.proposal
        if effect.payload is not None and effect.payload not in self._misfits:
            try:
                return self._opened(effect, effect.payload)
            except InvalidBlock:
                # What came beside a vote may be anything: the decided block is elsewhere then.
                if effect.standing < BlockStanding.DECIDED:
                    raise
        body = self._store.body(effect.height, effect.digest)
        if body is not None:
            return proposal_of(body)
        payload = await self._bodies.payload(
            effect.height, effect.digest, effect.holders, FETCH_TIMEOUT_S, self._misfits
        )
        return None if payload is None else self._opened(effect, payload)

    def _opened(self, effect: CheckPayload, payload: bytes) -> Proposal:
        """The proposal in `payload`; raise InvalidBlock where it is not the one that the effect names."""
        try:
            proposal = decode(payload, Proposal, size_max=PAYLOAD_SIZE_MAX)
        except CodecError as error:
            raise InvalidBlock("malformed_block", str(error)) from error
        if (proposal.header.height, proposal.header.digest) != (effect.height, effect.digest):
            raise InvalidBlock("malformed_block", "the payload is that of another block")
        return proposal

    async def _judge_first(self, proposal: Proposal, proposer: str) -> None:
        """Clock and proposer suit a first proposal; a block a little ahead of the clock is held until it fits."""
        deadline_ms = self._clock.now_ms() + self._slow_execution_ms
        while True:
            try:
                self._executor.judge_first(proposal.header, self._clock.time_ms(), proposer)
                return
            except InvalidBlock as error:
                wait_ms = error.details.get("wait_ms")
                if not isinstance(wait_ms, int) or self._clock.now_ms() + wait_ms > deadline_ms:
                    raise
            await asyncio.sleep(max(wait_ms, 1) * 0.001)

    async def _transactions(self, proposal: Proposal, effect: CheckPayload) -> list[Transaction] | None:
        body = self._store.body(effect.height, effect.digest)
        if body is not None:
            return await self.verified(body.transactions)
        holders = tuple(dict.fromkeys((effect.proposer, *effect.holders)))
        return await self._bodies.transactions(proposal.wire_ids, holders, FETCH_TIMEOUT_S)

    async def verified(self, data: Sequence[bytes]) -> list[Transaction]:
        """The transactions of a block, their signatures verified; raise InvalidBlock for the first bad one."""
        try:
            return await self._bodies.verified(data)
        except RejectedTransaction as error:
            # Not its words: they may quote the transaction, and refusals are shown and go into diagnostics.
            raise InvalidBlock("transaction_not_includable", f"{error.code}: {error.entry.cause}") from error

    def _keep(self, executed: ExecutedBlock, started_ms: int) -> None:
        self._executed[executed.digest] = executed
        elapsed_ms = self._took_ms[executed.digest] = self._clock.now_ms() - started_ms
        if elapsed_ms > self._slow_execution_ms and len(executed.proposal.wire_ids) == 1:
            self._suspects.add(executed.proposal.wire_ids[0])
            self._log.warning(
                "a transaction executes slowly", tx_id=executed.transactions[0].tx_id.hex(), elapsed_ms=elapsed_ms
            )

    # --- records ---------------------------------------------------------------------------------------------

    async def persist(self, records: Sequence[Persist | PersistAbstention]) -> None:
        """All `records` are durable, each vote and certificate with the block that it names: one sync."""
        kept = [item.record for item in records if isinstance(item, Persist)]
        bodies: dict[bytes, BlockBody] = {}
        for record in kept:
            digest = b""
            if isinstance(record, VoteRecord):
                digest = record.vote.digest
            elif isinstance(record, PreparedRecord):
                digest = record.certificate.digest
            if digest in self._executed:
                bodies[digest] = self._executed[digest].body
        promises = [item.until for item in records if isinstance(item, PersistAbstention)]
        await self._threads.write(self._store.put_records, kept, bodies, max(promises) if promises else None)

    def payload(self, height: int, digest: bytes) -> bytes | None:
        """The payload of the block `digest` at `height` for whoever asks, if it is at hand or on disk."""
        executed = self._executed.get(digest)
        if executed is not None:
            return encode(executed.proposal)
        body = self._store.body(height, digest)
        return None if body is None else encode(proposal_of(body))

    def body(self, wire_id: bytes) -> bytes | None:
        """The bytes of a transaction in a block of the height in work."""
        for executed in self._executed.values():
            if wire_id in executed.proposal.wire_ids:
                return executed.body.transactions[executed.proposal.wire_ids.index(wire_id)]
        return None

    def room(self, executed: ExecutedBlock) -> tuple[int, int]:
        """(calls, bytes) for which the block that is being applied certainly had room: see `Executor.room`.

        (0, 0) where it took so long to execute here that its builder may have stopped for that (LONG_SHARE), or
        where that was not measured here: what it left out is held against nobody.
        """
        took_ms = self._took_ms.get(executed.digest)
        return (0, 0) if took_ms is None or took_ms > self._long_ms else self._executor.room(executed)

    # --- applying --------------------------------------------------------------------------------------------

    async def decide(self, effect: Decide) -> Input | None:
        """The decided block is durable: Applied; or what catch-up made of the height meanwhile.

        What the survivors of a trusted recovery have decided is decided by nobody else: the node begins anew below
        it, and the recovery comes with the start. Raise ConfigError, which ends the node, if it does decide it.
        """
        recovery = self._recoveries.at(effect.height)
        if recovery is not None:
            raise ConfigError(
                "recovery_differs",
                f"block {effect.height} {effect.digest.hex()} was decided here, and the recovery"
                f" {recovery.digest.hex()} that is trusted here says what stands there",
            )
        await self._room()
        async with self._at_head():
            if effect.height == self._head.height + 1:
                executed = self._executed.get(effect.digest)
                if executed is None:
                    executed = await self._execute_again(effect)
                if executed is None:
                    # Decided without its body: catch-up brings it with its certificate.
                    return None
                await self._apply(executed, effect.certificate, effect.start_view)
            return Applied(self._head) if effect.height == self._head.height else Synced(self._head)

    async def _execute_again(self, effect: Decide) -> ExecutedBlock | None:
        """The outcome of a block that was voted for before a restart; None when it is not to be had here."""
        body = self._store.body(effect.height, effect.digest)
        if body is None:
            return None
        try:
            return await self._execute_decided(body, await self.verified(body.transactions))
        except InvalidBlock as error:
            self._on_divergence(CertifiedBlock(body, effect.certificate), error)
            return None

    async def _execute_decided(self, body: BlockBody, transactions: Sequence[Transaction]) -> ExecutedBlock:
        proposal = Proposal(body.header, tuple(item.wire_id for item in transactions), body.quarantined)
        return await self._threads.execute(
            self._executor.check, proposal, transactions, standing=BlockStanding.DECIDED
        )

    async def compare(self, block: CertifiedBlock, claim: Claim) -> Difference:
        """Where this node's execution of the certified block parts from what `claim` proves that it does.

        Raise InvalidFrame when `claim` is not what the header commits to, InvalidBlock when this node's rules
        forbid the block altogether.
        """
        async with self._at_head():
            transactions = await self.verified(block.body.transactions)
            return await self._threads.execute(self._executor.compare, block.body, transactions, claim)

    async def replay(self, take: Callable[[], Awaitable[ReadyBlock | None]]) -> None:
        """The certified blocks that `take` gives, until it gives None, are executed, agree and are durable.

        While `take` is called the head moves by these blocks alone. They follow it one after the other, their
        certificates were verified, and their transactions are what `verified` made of their bodies. Raise
        InvalidBlock for the block above the head then, when execution gives other roots than its header, or what
        `take` raises. It must not be cancelled.
        """
        await self._room()
        async with self._at_head():
            replaying = Replaying(self._store, self._executor, self._threads, self._executed.get, self._moved)
            await replaying.run(take)

    async def between_blocks(self, look: Callable[[StoreView, StateTree], T]) -> T:
        """Return what `look` makes of the head's state and tree, while no block is executed or applied.

        Blocks wait meanwhile, so it takes milliseconds at most; of the tree it keeps no more than a copy.
        """
        async with self._at_head():
            return await self._threads.execute(lambda: look(self._store.snapshot(), self._executor.tree))

    async def _apply(self, executed: ExecutedBlock, certificate: Certificate, start_view: int) -> None:
        record, view = await self._threads.write(self._write, executed, certificate, start_view)
        # Who waits for the block need not wait until the next one may begin as well.
        self._on_durable(executed, view)
        await self._threads.execute(self._executor.advance, executed, view)
        self._moved(executed, record, view)

    def _write(
        self, executed: ExecutedBlock, certificate: Certificate, start_view: int
    ) -> tuple[HeadRecord, StoreView]:
        """In the writing thread: the block is durable, and what comes in is judged by it."""
        record = self._store.apply(executed, certificate, start_view)
        view = self._store.snapshot()
        self._executor.show(view, executed.writes)
        return record, view

    def _moved(self, executed: ExecutedBlock, record: HeadRecord, view: StoreView) -> None:
        """The block is durable: it is the head."""
        self._head = self._head_of(record, self._head.members, view)
        self.last_block_transactions = len(executed.proposal.wire_ids)
        self._executed.clear()
        self._suspects.clear()
        self._misfits.clear()
        self._on_applied(executed, view)
        self._took_ms.clear()

    def _head_of(self, record: HeadRecord, named_before: Members, view: StoreView) -> Head:
        """The head as consensus knows it, of which `view` is the state; the height before names `named_before`."""
        decided_by = self._recoveries.deciders(record.height, record.digest, named_before)
        return Head(
            record.height,
            record.digest,
            record.certificate,
            record.start_view,
            record.members,
            decided_by or named_before,
            resting_at(view),
        )


class _Allowance:
    """Whether a time is over that begins with the first question."""

    def __init__(self, clock: Clock, allowed_ms: int) -> None:
        self._clock = clock
        self._allowed_ms = allowed_ms
        self._until_ms: int | None = None

    def __call__(self) -> bool:
        now_ms = self._clock.now_ms()
        if self._until_ms is None:
            self._until_ms = now_ms + self._allowed_ms
        return now_ms >= self._until_ms


def deciders(view: StoreView) -> Members:
    """The members that the height before the view's head names: they decided it, unless it was recovered there.

    Where the head before it is not here, after a join from a snapshot, they are those of the last change below it.
    """
    height = view.head.height
    if height == 0:
        return view.head.members
    try:
        return view.head_at(height - 1).members
    except NotFound:
        below = [change for change in view.member_changes() if change < height]
        return view.head_at(below[-1] if below else 0).members


def resting_at(view: StoreView) -> tuple[str, ...]:
    """The members in a maintenance window at the view's head, by its state and its time.

    Kept nowhere else, so that a restart, a replay and a snapshot find the same ones.
    """
    return Maintenance.read_resting(Overlay(view), view.head.time_ms)


def proposal_of(body: BlockBody) -> Proposal:
    """The proposal that names the transactions of `body`."""
    return Proposal(body.header, tuple(map(wire_id_of, body.transactions)), body.quarantined)
