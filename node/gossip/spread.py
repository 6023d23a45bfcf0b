"""The way of transactions between this node and its peers."""

import asyncio
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from node.errors import HansaError, InvalidFrame
from node.gossip.bodies import Bodies
from node.gossip.collaborators import Intake, Pool, Transport, Verdict, wire_id_of
from node.gossip.intake_queue import IntakeQueue, Seen
from node.ledger import TRANSACTION_SIZE_MAX, Transaction
from node.wire import FetchTransactions, TransactionBatch, TransactionIds

BATCH_DELAY_S = 0.003
BATCH_SIZE_BYTES_MAX = 256 * 1024
BATCH_TRANSACTIONS_MAX = 1_024
RELAY_DELAY_S = 0.1
RELAYS_MAX = 16_384
REPAIR_INTERVAL_S = 1.0
REPAIR_AGE_MS = 500
REPAIR_IDS_MAX = 1_024
CONNECT_IDS_MAX = 8_192
IDS_MAX = 1_024
WANTED_TIMEOUT_S = 2.0
WANTED_TOTAL_S = 10.0
WANTED_MAX = 16_384
SEEN_MAX = 65_536
REFUSED_SEEN_S = 10.0
WORKERS = 2
FAULTS_MAX = 16
MUTE_S = 60.0


class GossipStatus(msgspec.Struct, frozen=True):
    """Counts since the start, and what is queued now, for metrics and status."""

    received: int
    duplicates: int
    accepted: int
    refused: int
    invalid: int
    dropped: int
    published: int
    relayed: int
    fetched: int
    served: int
    queued: int
    queued_bytes: int
    muted: tuple[str, ...]


class Gossip:
    """Tells peers of transactions and hears of theirs. Everything runs on the event loop that called `start`."""

    def __init__(
        self,
        transport: Transport,
        pool: Pool,
        intake: Intake,
        report: Callable[[str, HansaError], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """`report` is told of a peer at fault; `on_failure` of an exception that is our own bug or the disk's."""
        self._transport = transport
        self._pool = pool
        self._intake = intake
        self._report = report
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()
        self._running = False
        self._bodies = Bodies(transport, pool, lambda peer, what: self._blame(peer, 1, what))
        self._count = _Counts()
        self._seen = Seen(SEEN_MAX)
        self._queue = IntakeQueue()
        self._work_waiting = asyncio.Event()
        self._judging: dict[bytes, _Judging] = {}
        self._faults: dict[str, _Faults] = {}
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        self._flush: asyncio.Handle | None = None
        self._flushed_s = 0.0
        self._known_to: dict[bytes, tuple[str, ...]] = {}
        self._relays: deque[tuple[float, bytes]] = deque()
        self._relay_due = asyncio.Event()
        self._wanted: dict[str, OrderedDict[bytes, None]] = {}
        self._asked: set[bytes] = set()
        self._repair_from = 0

    # --- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Transactions flow until `close`."""
        self._running = True
        for _ in range(WORKERS):
            self._spawn(self._judge())
        self._spawn(self._relay())
        self._spawn(self._repair())

    async def close(self) -> None:
        """Nothing of gossip runs any more; what was queued is dropped, peers have it."""
        self._running = False
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def status(self) -> GossipStatus:
        """A snapshot of the counts."""
        now_s = self._now_s()
        return GossipStatus(
            **msgspec.structs.asdict(self._count),
            fetched=self._bodies.fetched,
            served=self._bodies.served,
            queued=self._queue.transactions,
            queued_bytes=self._queue.size_bytes,
            muted=tuple(sorted(peer for peer, faults in self._faults.items() if faults.muted_until_s > now_s)),
        )

    # --- own transactions out --------------------------------------------------------------------------------

    def publish(self, transactions: Sequence[Transaction]) -> None:
        """Transactions that this node accepted from clients are on their way to every connected peer.

        At once when nothing was sent for BATCH_DELAY_S, else in that rhythm or when a batch is full.
        """
        if not self._running:
            return
        for transaction in transactions:
            if self._seen.mark(transaction.wire_id, None):
                self._outbox.append(transaction.data)
                self._outbox_bytes += len(transaction.data)
                self._count.published += 1
        if not self._outbox:
            return
        if self._outbox_bytes >= BATCH_SIZE_BYTES_MAX or len(self._outbox) >= BATCH_TRANSACTIONS_MAX:
            self._send_outbox()
        elif self._flush is None:
            # In an idle network this is "now"; under load the delay gathers a batch. A zero delay still waits for
            # the end of this turn of the event loop, so that transactions accepted together travel together.
            delay_s = max(0.0, self._flushed_s + BATCH_DELAY_S - self._now_s())
            self._flush = asyncio.get_running_loop().call_later(delay_s, self._send_outbox)

    def _send_outbox(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        self._flushed_s = self._now_s()
        outbox, self._outbox, self._outbox_bytes = self._outbox, [], 0
        for batch in _batches(outbox):
            self._transport.broadcast(TransactionBatch(batch))

    # --- others' transactions in -----------------------------------------------------------------------------

    def on_batch(self, peer: str, message: TransactionBatch) -> None:
        """What is unknown of the batch is queued for the intake.

        Like every `on_…` here it returns at once: a link's reader must get on to the votes behind. What finds no
        room in the peer's share of the queue is dropped; the repair brings it again.
        """
        if not self._is_muted(peer):
            self._take(peer, message.transactions)

    def on_ids(self, peer: str, message: TransactionIds) -> None:
        """What `peer` has and this node lacks is being fetched from it."""
        now_s = self._now_s()
        faults = self._faults.get(peer)
        if faults is not None and max(faults.muted_until_s, faults.unnamed_until_s) > now_s:
            return
        wanted = self._wanted.get(peer)
        wire_ids = message.wire_ids[:IDS_MAX]
        for wire_id in wire_ids:
            if wire_id in self._known_to:
                self._note_holder(wire_id, peer)
        # Nearly all that is ever named waits here already: so much is asked of the pool at once, not name by name.
        for wire_id in self._pool.missing(wire_ids):
            if wire_id in self._asked or self._is_known(wire_id, now_s) or self._pool.body(wire_id) is not None:
                continue
            if len(self._asked) >= WANTED_MAX:
                break
            if wanted is None:
                wanted = self._wanted[peer] = OrderedDict()
                self._spawn(self._fetch_wanted(peer, wanted))
            wanted[wire_id] = None
            self._asked.add(wire_id)

    def on_connected(self, peer: str) -> None:
        """`peer` is told the names of what waits here: it may have been away."""
        self._send_ids(peer, self._pool.waiting(0, 0, CONNECT_IDS_MAX))

    def _take(self, peer: str, transactions: Sequence[bytes]) -> None:
        now_s = self._now_s()
        holder, received, duplicates, dropped = (peer,), 0, 0, 0
        for data in transactions:
            received += 1
            if len(data) > TRANSACTION_SIZE_MAX:
                self._blame(peer, FAULTS_MAX, f"a transaction of {len(data)} bytes")
                break
            wire_id = wire_id_of(data)
            if self._is_known(wire_id, now_s):
                duplicates += 1
                self._note_holder(wire_id, peer)
            elif self._queue.put(peer, wire_id, data):
                # One tuple for the whole batch: few ever get a second holder.
                self._known_to[wire_id] = holder
            else:
                dropped += 1
        self._count.received += received
        self._count.duplicates += duplicates
        self._count.dropped += dropped
        if self._queue.transactions:
            self._work_waiting.set()

    def _note_holder(self, wire_id: bytes, peer: str) -> None:
        """`peer` need not be told of the transaction, if it is one that will be told of."""
        holders = self._known_to.get(wire_id)
        if holders is not None and peer not in holders:
            self._known_to[wire_id] = (*holders, peer)

    def _is_known(self, wire_id: bytes, now_s: float) -> bool:
        return wire_id in self._queue or wire_id in self._judging or self._seen.holds(wire_id, now_s)

    async def _judge(self) -> None:
        """One of WORKERS: while one chunk's signatures are verified the other is admitted."""
        while True:
            await self._work_waiting.wait()
            peer, chunk = self._queue.next_chunk()
            if not chunk:
                self._work_waiting.clear()
                continue
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._judging.update(dict.fromkeys(chunk, _Judging(chunk, done)))
            try:
                verdicts = await self._intake(peer, list(chunk.values()))
                self._settle(peer, list(zip(chunk, verdicts, strict=True)))
            finally:
                for wire_id in chunk:
                    del self._judging[wire_id]
                done.set_result(None)

    def _settle(self, peer: str, judged: Sequence[tuple[bytes, Verdict]]) -> None:
        now_s = self._now_s()
        due_s = now_s + RELAY_DELAY_S
        accepted = invalid = 0
        for wire_id, verdict in judged:
            if verdict is Verdict.ACCEPTED:
                accepted += 1
                self._seen.mark(wire_id, None)
                self._relays.append((due_s, wire_id))
                continue
            self._known_to.pop(wire_id, None)
            if verdict is Verdict.INVALID:
                invalid += 1
                self._seen.mark(wire_id, None)
            elif verdict is Verdict.REFUSED:
                self._count.refused += 1
                self._seen.mark(wire_id, now_s + REFUSED_SEEN_S)
            else:
                self._count.dropped += 1
        self._count.accepted += accepted
        while len(self._relays) > RELAYS_MAX:
            self._known_to.pop(self._relays.popleft()[1], None)
        if self._relays:
            self._relay_due.set()
        if invalid:
            self._count.invalid += invalid
            self._blame(peer, invalid, f"{invalid} transactions that can never be valid")

    def _blame(self, peer: str, faults: int, what: str) -> None:
        """Count `faults` of `peer`; at FAULTS_MAX within MUTE_S it is muted for MUTE_S and reported."""
        now_s = self._now_s()
        record = self._faults.setdefault(peer, _Faults())
        if record.since_s + MUTE_S < now_s:
            record.since_s, record.count = now_s, 0
        record.count += faults
        if record.count >= FAULTS_MAX and record.muted_until_s <= now_s:
            record.muted_until_s = now_s + MUTE_S
            for wire_id in self._queue.drop(peer):
                self._known_to.pop(wire_id, None)
            self._report(
                peer, InvalidFrame("bad_gossip", f"{peer} sent {what}; it is not heard for {MUTE_S:.0f} s")
            )

    def _is_muted(self, peer: str) -> bool:
        record = self._faults.get(peer)
        return record is not None and record.muted_until_s > self._now_s()

    # --- names: relay and repair -----------------------------------------------------------------------------

    async def _relay(self) -> None:
        """Name what peers gave us and still waits, to the peers not known to have it."""
        while True:
            await self._relay_due.wait()
            # The jitter lets one of a full mesh speak first; the others hear it and need not repeat it.
            await asyncio.sleep(RELAY_DELAY_S * random.uniform(0.5, 1.0))
            now_s = self._now_s()
            named: list[bytes] = []
            while self._relays and self._relays[0][0] <= now_s:
                named.append(self._relays.popleft()[1])
            gone = frozenset(self._pool.missing(named))
            holders = [self._known_to.pop(wire_id, ()) for wire_id in named]
            due = [
                (wire_id, known_to) for wire_id, known_to in zip(named, holders, strict=True) if wire_id not in gone
            ]
            if not self._relays:
                self._relay_due.clear()
            for peer in tuple(self._transport.connected):
                wire_ids = [wire_id for wire_id, known_to in due if peer not in known_to]
                self._count.relayed += len(wire_ids)
                self._send_ids(peer, wire_ids)

    async def _repair(self) -> None:
        """Name what waits for long, a bounded slice a round; the slice moves on, so that all get their turn."""
        while True:
            await asyncio.sleep(REPAIR_INTERVAL_S * random.uniform(0.75, 1.25))
            named = self._pool.waiting(REPAIR_AGE_MS, self._repair_from, REPAIR_IDS_MAX)
            if not named:
                self._repair_from = 0
                named = self._pool.waiting(REPAIR_AGE_MS, 0, REPAIR_IDS_MAX)
            self._repair_from += REPAIR_IDS_MAX
            for peer in tuple(self._transport.connected):
                self._send_ids(peer, named)

    def _send_ids(self, peer: str, wire_ids: Sequence[bytes]) -> None:
        for start in range(0, len(wire_ids), IDS_MAX):
            self._transport.send(peer, TransactionIds(tuple(wire_ids[start : start + IDS_MAX])))

    # --- bodies: fetch and serve -----------------------------------------------------------------------------

    def on_fetch(self, peer: str, message: FetchTransactions) -> None:
        """`peer` is answered with what is at hand of what it asks for."""
        self._bodies.serve(peer, message)

    async def fetch(
        self, wire_ids: Sequence[bytes], holders: Sequence[str], timeout_s: float
    ) -> dict[bytes, bytes]:
        """Return the raw bytes of those of `wire_ids` that were found within `timeout_s`, by wire id.

        For a proposal whose transactions are not all here. Looked for in what already came but was not judged yet,
        then at `holders` in their order (the proposer first), again and again until all are found. The bytes have
        the names asked for; nothing else about them is verified, and the intake does not get them: the caller
        passes them on. What the intake was judging may have reached the mempool when this returns: look there
        first and spare the signatures.
        """
        return await self._bodies.fetch(wire_ids, holders, timeout_s, self._find_here)

    async def _find_here(self, wire_ids: list[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        judging: list[asyncio.Future[None]] = []
        for wire_id in wire_ids:
            data = self._queue.take(wire_id) or self._pool.body(wire_id)
            if data is not None:
                self._known_to.pop(wire_id, None)
            elif wire_id in self._judging:
                data = self._judging[wire_id].chunk[wire_id]
                judging.append(self._judging[wire_id].done)
            if data is not None:
                found[wire_id] = data
        if judging:
            await asyncio.wait(judging)
        return found

    async def _fetch_wanted(self, peer: str, wanted: OrderedDict[bytes, None]) -> None:
        """Fetch what `peer` named until nothing is left; what it does not deliver, another's repair brings."""
        try:
            async with asyncio.timeout(WANTED_TOTAL_S):
                while wanted and not self._is_muted(peer):
                    asked = tuple(wanted)[:IDS_MAX]
                    found = await self._bodies.ask(peer, asked, WANTED_TIMEOUT_S)
                    self._take(peer, list(found.values()))
                    if not found:
                        break
                    for wire_id in found:
                        del wanted[wire_id]
                        self._asked.discard(wire_id)
        except (HansaError, TimeoutError):
            # While it is asked for a name nobody else is; one that names and does not deliver loses that right.
            self._faults.setdefault(peer, _Faults()).unnamed_until_s = self._now_s() + WANTED_TOTAL_S
        finally:
            self._asked.difference_update(wanted)
            del self._wanted[peer]

    # --- tasks -----------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


class _Counts(msgspec.Struct):
    received: int = 0
    duplicates: int = 0
    accepted: int = 0
    refused: int = 0
    invalid: int = 0
    dropped: int = 0
    published: int = 0
    relayed: int = 0


class _Faults(msgspec.Struct):
    """One peer's faults since `since_s`. Kept across reconnects; peers are pinned members, so they are few."""

    since_s: float = float("-inf")
    count: int = 0
    muted_until_s: float = float("-inf")
    unnamed_until_s: float = float("-inf")


class _Judging(msgspec.Struct, frozen=True):
    """A chunk with the intake, by wire id; `done` when it has its verdicts."""

    chunk: dict[bytes, bytes]
    done: asyncio.Future[None]


def _batches(transactions: Sequence[bytes]) -> list[tuple[bytes, ...]]:
    """Cut `transactions` into batches within the limits; a single one may exceed the bytes alone."""
    batches: list[tuple[bytes, ...]] = []
    batch: list[bytes] = []
    size_bytes = 0
    for data in transactions:
        if batch and (size_bytes + len(data) > BATCH_SIZE_BYTES_MAX or len(batch) == BATCH_TRANSACTIONS_MAX):
            batches.append(tuple(batch))
            batch, size_bytes = [], 0
        batch.append(data)
        size_bytes += len(data)
    if batch:
        batches.append(tuple(batch))
    return batches
