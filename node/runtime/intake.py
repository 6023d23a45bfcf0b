"""How transactions come in: decoded, verified, admitted, journalled, and told to the others.

Invariant: what a client was told is accepted lies synced in the journal and in the mempool, so it survives a crash
of this node and reaches the others when it is back.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

import structlog

from node.client.answers import FateStatus, Submission
from node.errors import HansaError, RejectedTransaction, Unavailable
from node.executor import Executor
from node.gossip import Gossip, Verdict, wire_id_of
from node.ledger import Ending, Transaction, opening, opens_with
from node.mempool import Added, Mempool, Room
from node.runtime.bodies import Bodies
from node.runtime.clock import Clock
from node.runtime.journal import Journal
from node.runtime.threads import Threads
from node.store import Store

# Never valid on any member in any state; everything else may be a matter of a block more or less.
NEVER_VALID = frozenset({"malformed_transaction", "wrong_network", "bad_signature"})
SENDERS_AT_SIGHT_MAX = 8
"""A request of more senders is judged one by one: a bank's own clients are few, and each costs a decoding."""


class Intake:
    """Judges transactions from clients and from peers. Runs on the event loop."""

    def __init__(
        self,
        mempool: Mempool,
        executor: Executor,
        bodies: Bodies,
        store: Store,
        threads: Threads,
        clock: Clock,
        on_work: Callable[[], None],
        refusal: Callable[[], HansaError | None],
        retention_ms: int,
    ) -> None:
        """`on_work` is called when something new waits; `refusal()` says why nothing new is taken from clients.

        `retention_ms`: so long the state remembers a request id after its expiry at least.
        """
        self._mempool = mempool
        self._executor = executor
        self._bodies = bodies
        self._store = store
        self._journal = Journal(store.put_pending, threads)
        self._threads = threads
        self._clock = clock
        self._on_work = on_work
        self._refusal = refusal
        self._retention_ms = retention_ms
        self._gossip: Gossip | None = None
        self._readmissions: deque[Transaction] = deque()
        self._log = structlog.get_logger("intake")

    def connect(self, gossip: Gossip) -> None:
        """Accepted transactions are told through `gossip` from now on."""
        self._gossip = gossip

    async def submit(self, transactions: Sequence[bytes]) -> list[Submission | HansaError]:
        """Judge raw transactions from clients; one outcome each, in order.

        The same for all where there is no room for any of a request of few senders: then each of them may be known
        all the same, and the request is to come again.
        """
        crowded_out = self._crowded_out_at_sight(transactions)
        if crowded_out is not None:
            return [crowded_out] * len(transactions)
        outcomes: list[Submission | HansaError] = []
        fresh: list[Transaction] = []
        promised: list[Transaction] = []
        judged = await self._judge(transactions, self._mempool.room())
        now_ms, time_ms = self._clock.now_ms(), self._clock.time_ms()
        for transaction in judged:
            if isinstance(transaction, HansaError):
                outcomes.append(transaction)
                continue
            try:
                if self._mempool.waiting(transaction.tx_id) is None:
                    self._executor.validate_calls(transaction)
                refusal = self._refusal()
                if refusal is not None and not self._is_known(transaction):
                    raise refusal
                added = self._admit(transaction, now_ms, time_ms)
            except HansaError as error:
                outcomes.append(error)
                continue
            status: FateStatus = "final" if added is Added.FINAL else "pending"
            outcomes.append(
                Submission(tx_id=transaction.tx_id.hex(), status=status, duplicate=added is not Added.NEW)
            )
            if added in (Added.NEW, Added.MERGED):
                fresh.append(transaction)
            if added is not Added.FINAL:
                promised.append(transaction)
        if fresh:
            # Told at once, so that the way through the network and the sync run side by side; answered after both.
            if self._gossip is not None:
                self._gossip.publish(fresh)
            self._on_work()
        if promised:
            # Also what was known: it may have come from a peer, or its first sync may not have ended yet.
            await self._journal.put([(item.tx_id, item.data) for item in promised])
        return outcomes

    async def from_peer(self, peer: str, transactions: Sequence[bytes]) -> list[Verdict]:
        """Judge raw transactions from a peer; one verdict each, in order."""
        verdicts: list[Verdict] = []
        fresh = False
        judged = await self._judge(transactions, self._mempool.room(promised=True))
        now_ms, time_ms = self._clock.now_ms(), self._clock.time_ms()
        for transaction in judged:
            try:
                if isinstance(transaction, HansaError):
                    raise transaction
                added = self._admit(transaction, now_ms, time_ms, promised=True)
                fresh = fresh or added in (Added.NEW, Added.MERGED)
                verdicts.append(Verdict.REFUSED if added is Added.FINAL else Verdict.ACCEPTED)
            except Unavailable:
                verdicts.append(Verdict.LATER)
            except RejectedTransaction as error:
                verdicts.append(Verdict.INVALID if error.code in NEVER_VALID else Verdict.REFUSED)
        if fresh:
            self._on_work()
        return verdicts

    async def restore(self) -> int:
        """What the journal holds waits again; returns how many.

        Only decided headers and another final use of its request id end a transaction here. One that the clock
        calls expired may lie in a block that this node has not caught up with. What nobody here can know any more
        is `unknown` from now on, as anything else that this node has not seen.
        """
        final: list[bytes] = []
        unknowable: list[bytes] = []
        for transaction in await self._judge(await self._threads.write(self._store.pending), None):
            if isinstance(transaction, HansaError):
                continue
            if self._settled(transaction) == "final":
                final.append(transaction.tx_id)
            elif self._is_unknowable(transaction):
                unknowable.append(transaction.tx_id)
            else:
                self._readmissions.append(transaction)
        if unknowable:
            self._log.warning(
                "accepted transactions whose fate a snapshot does not tell: ask a member that was there",
                tx_ids=[tx_id.hex() for tx_id in unknowable],
            )
        await self._threads.write(self._store.forget_pending, final + unknowable)
        ended = self.readmit()
        await self._threads.write(self._store.end_pending, ended)
        return len(self._mempool)

    def readmit(self) -> dict[bytes, Ending]:
        """Journalled transactions wait again as far as there is room; the rest is tried again with the next block.

        Return those that ended meanwhile, by tx_id: the journal must be told.
        """
        ended: dict[bytes, Ending] = {}
        conflicting: list[Transaction] = []
        while self._readmissions:
            transaction = self._readmissions[0]
            settled = self._settled(transaction)
            try:
                if isinstance(settled, Ending):
                    ended[transaction.tx_id] = settled
                elif settled is None:
                    self._mempool.add(transaction, self._clock.now_ms(), promised=True)
            except Unavailable:
                break
            except RejectedTransaction:
                # Another one waits under its request id; what becomes of that one decides on this one.
                conflicting.append(transaction)
            self._readmissions.popleft()
        self._readmissions.extend(conflicting)
        self._mempool.remember(ended)
        return ended

    def _settled(self, transaction: Transaction) -> Ending | Literal["final"] | None:
        """What the head says has become of a journalled transaction; None: it may still be decided."""
        head = self._store.head
        try:
            if self._executor.admission(transaction, self._clock.time_ms()) is not None:
                return "final"
        except RejectedTransaction as error:
            if error.code == "request_conflict":
                return Ending("dropped", error.code, head.height)
        if transaction.body.expires_at_ms <= head.time_ms:
            return Ending("expired", "expired", head.height)
        return None

    def _is_unknowable(self, transaction: Transaction) -> bool:
        """Whether the transaction, of which the state knows nothing, may have been executed all the same.

        So it is where a snapshot was just adopted: blocks were passed over unseen, and a request id that expired
        longer ago than the retention may be forgotten. To call that expired would invite a second payment.
        """
        head = self._store.head
        passed_over = self._store.first_block > max(1, head.height)
        return passed_over and transaction.body.expires_at_ms + self._retention_ms < head.time_ms

    async def _judge(self, transactions: Sequence[bytes], room: Room | None) -> list[Transaction | HansaError]:
        """Each transaction decoded and with good signatures, or what is wrong with it.

        What finds no place in `room` is not even worth its signatures' verification; None: all of them are.
        """
        judged: list[Transaction | HansaError] = []
        decoded: list[Transaction] = []
        for data in transactions:
            try:
                transaction = Transaction.decode(data)
            except RejectedTransaction as error:
                judged.append(error)
                continue
            # What waits under this name has been verified: the name covers the signatures.
            if self._mempool.is_waiting(transaction.wire_id):
                judged.append(transaction)
                continue
            refused = None if room is None else self._crowded_out(transaction, room)
            judged.append(transaction if refused is None else refused)
            if refused is None:
                decoded.append(transaction)
        verdicts = await self._bodies.verdicts(decoded)
        bad = {id(item) for item, good in zip(decoded, verdicts, strict=True) if not good}
        if not bad:
            return judged
        return [
            RejectedTransaction("bad_signature", f"transaction {item.tx_id.hex()}")
            if isinstance(item, Transaction) and id(item) in bad
            else item
            for item in judged
        ]

    def _crowded_out_at_sight(self, transactions: Sequence[bytes]) -> Unavailable | None:
        """Why a client's request is to come again as a whole; None: each of its transactions is judged.

        So it is where they are of few senders, none of whom has room for the smallest of them, none of them waits
        here under the same signatures, and the first of each sender is not final and may wait. Under overload that
        is what becomes of most requests, and it costs the decoding of one transaction a sender and not of all. Of
        the others nothing is said, for one may be final, or wait here with other signatures.
        """
        if len(transactions) < 2 or not self._mempool.is_half_full:
            return None
        smallest = min(map(len, transactions))
        firsts: list[Transaction] = []
        openings: list[bytes] = []
        refusals: list[Unavailable] = []
        try:
            for data in transactions:
                if opens_with(data, *openings):
                    continue
                if len(firsts) == SENDERS_AT_SIGHT_MAX:
                    return None
                first = Transaction.decode(data)
                refused = self._mempool.refusal(first.body.sender, smallest)
                if refused is None or self._mempool.waiting(first.tx_id) is not None:
                    return None
                firsts.append(first)
                openings.append(opening(first.body))
                refusals.append(refused)
            if any(self._mempool.data(wire_id_of(data)) is not None for data in transactions):
                return None
            # Last, for it reads the state.
            time_ms = self._clock.time_ms()
            if any(self._executor.admission(first, time_ms) is not None for first in firsts):
                return None
        except RejectedTransaction:
            return None
        refused = refusals[0]
        others = f", and {len(firsts) - 1} more senders have no room" if len(firsts) > 1 else ""
        said = f"{refused.message}{others}; nothing of this request was taken or looked at further"
        return Unavailable(
            refused.code, f"{said}: send all of it again", retry_after_ms=refused.details["retry_after_ms"]
        )

    def _crowded_out(self, transaction: Transaction, room: Room) -> HansaError | None:
        """Why there is no place in `room` for a transaction that neither waits nor is final here; None: it has one.

        Under overload most are refused. It must cost little, or the refusals would take the time of what is taken.
        """
        body = transaction.body
        refused = room.take(body.sender, len(transaction.data))
        if refused is None or self._mempool.waiting(transaction.tx_id) is not None:
            return None
        try:
            final = self._executor.admission(transaction, self._clock.time_ms()) is not None
        except RejectedTransaction as error:
            return error
        return None if final else refused

    def _is_known(self, transaction: Transaction) -> bool:
        """Whether the transaction is final, or was accepted here before: then nothing is written for it."""
        if self._store.is_pending(transaction.tx_id):
            return True
        return self._executor.admission(transaction, self._clock.time_ms()) is not None

    def _admit(self, transaction: Transaction, now_ms: int, time_ms: int, *, promised: bool = False) -> Added:
        """The transaction waits or is final; raise RejectedTransaction or Unavailable."""
        height = self._executor.admission(transaction, time_ms)
        if height is not None:
            return Added.FINAL
        return self._mempool.add(transaction, now_ms, promised=promised)
