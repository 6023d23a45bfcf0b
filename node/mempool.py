"""Transactions that wait for a block: admitted, verified, bounded, and never without a fate. Pure.

Nothing that waits is pushed out by what comes later: a full pool refuses. A transaction leaves because it is final,
because a decided block's time reached its expiry, or because another one used its request id.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import islice

import msgspec

from node.errors import Unavailable
from node.ledger import SIGNATURES_MAX, Ending, Transaction, request_conflict

VARIANTS_MAX = 4
ENDINGS_MAX = 20_000
EXPIRIES_SPARE = 4_096
"""So many expiries of what waits no longer are kept besides as many as wait: then they are swept out."""
RECENT_BYTES_MAX = 8 * 1024 * 1024
RETRY_AFTER_MS = 1_000
"""A full pool empties block by block; a second later there is room for a second's worth."""
PROMISED_ROOM = 2
"""What a member has promised finds so many times the room that clients find.

Else, under more load than the network takes, every node is full of what its own clients sent and has no room for
what the others took: no proposal is at hand anywhere, each has to be fetched and verified while the network waits.
"""
JUDGED_MAX = 256
RELEASED_MAX = 64


class Added(Enum):
    """What became of a transaction given to the pool."""

    NEW = "new"
    KNOWN = "known"
    MERGED = "merged"
    FINAL = "final"


class Work(msgspec.Struct, frozen=True):
    """Whether a block could contain something, and how many blocks with room left out the oldest such."""

    waiting: bool
    passed_over: int


class _Entry:
    """A waiting transaction with the signature variants that were seen of it; `best` has all their signatures."""

    __slots__ = ("best", "head_height", "passed_over", "received_ms", "sequence", "variants")

    def __init__(self, transaction: Transaction, received_ms: int, sequence: int, head_height: int) -> None:
        self.best = transaction
        self.received_ms = received_ms
        self.sequence = sequence
        self.head_height = head_height
        self.passed_over = 0
        self.variants = [transaction]

    @property
    def size_bytes(self) -> int:
        return sum([len(variant.data) for variant in self.variants])


class Mempool:
    """The waiting transactions of one node. Signatures and admission were judged before `add`."""

    def __init__(self, transactions_max: int, bytes_max: int) -> None:
        """Clients find room as long as fewer than that wait; what is promised, up to twice that."""
        self._transactions_max = transactions_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._sequence = 0
        self._height = 0
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._senders: dict[str, OrderedDict[bytes, _Entry]] = {}
        self._sender_bytes: dict[str, int] = {}
        self._requests: dict[tuple[str, str], bytes] = {}
        self._wires: dict[bytes, Transaction] = {}
        self._expiries: list[tuple[int, bytes]] = []
        self._held: OrderedDict[bytes, None] = OrderedDict()
        self._oldest: bytes | None = None
        self._endings: OrderedDict[bytes, Ending] = OrderedDict()
        self._recent: OrderedDict[bytes, tuple[bytes, bytes]] = OrderedDict()
        self._recent_tx_ids: dict[bytes, bytes] = {}
        self._recent_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """How many bytes of transactions wait."""
        return self._bytes

    @property
    def is_half_full(self) -> bool:
        """Whether half of what clients find is taken: below, no sender holds as much as it may."""
        return 2 * len(self._entries) >= self._transactions_max or 2 * self._bytes >= self._bytes_max

    def add(self, transaction: Transaction, now_ms: int, *, promised: bool = False) -> Added:
        """The transaction waits (NEW, MERGED into a variant of it, KNOWN before) or is just FINAL.

        `promised`: a member, this one or another, has told a client that it was accepted.
        Raise RejectedTransaction("request_conflict") when another one waits under its request id, and Unavailable
        ("queue_full", "too_many_from_sender") when there is no room.
        """
        tx_id, body = transaction.tx_id, transaction.body
        if tx_id in self._recent_tx_ids:
            return Added.FINAL
        entry = self._entries.get(tx_id)
        if entry is not None:
            return self._add_variant(entry, transaction, promised=promised)
        sender, size_bytes = body.sender, len(transaction.data)
        request = (sender, body.request_id)
        if request in self._requests:
            raise request_conflict(body.request_id, self._requests[request])
        refusal = self.refusal(sender, size_bytes, promised=promised)
        if refusal is not None:
            raise refusal
        entry = _Entry(transaction, now_ms, self._sequence, self._height)
        self._sequence += 1
        self._entries[tx_id] = entry
        entries = self._senders.get(sender)
        if entries is None:
            entries = self._senders[sender] = OrderedDict()
        entries[tx_id] = entry
        self._requests[request] = tx_id
        heapq.heappush(self._expiries, (body.expires_at_ms, tx_id))
        if self._endings:
            self._endings.pop(tx_id, None)
        self._wires[transaction.wire_id] = transaction
        self._count(sender, size_bytes)
        return Added.NEW

    def get(self, wire_id: bytes) -> Transaction | None:
        """Return the waiting transaction of that name: this very variant."""
        return self._wires.get(wire_id)

    def data(self, wire_id: bytes) -> bytes | None:
        """Return the bytes of a transaction that waits or became final a short while ago."""
        waiting = self._wires.get(wire_id)
        if waiting is not None:
            return waiting.data
        recent = self._recent.get(wire_id)
        return None if recent is None else recent[1]

    def waiting(self, tx_id: bytes) -> Transaction | None:
        """Return the waiting transaction with all known signatures, by its tx_id."""
        entry = self._entries.get(tx_id)
        return None if entry is None else entry.best

    def received_ms(self, tx_id: bytes) -> int | None:
        """Return when the waiting transaction came, in the time that `add` was given."""
        entry = self._entries.get(tx_id)
        return None if entry is None else entry.received_ms

    def is_waiting(self, wire_id: bytes) -> bool:
        """Whether this very variant waits."""
        return wire_id in self._wires

    def missing(self, wire_ids: Sequence[bytes]) -> list[bytes]:
        """Return those of `wire_ids` that do not wait, in their order."""
        waiting = self._wires
        return [wire_id for wire_id in wire_ids if wire_id not in waiting]

    def wire_ids(self, now_ms: int, age_ms_min: int, first: int, limit: int) -> list[bytes]:
        """Return the best variant's wire id of those that have waited at least `age_ms_min`, oldest first.

        The `first` oldest are left out; at most `limit` are returned.
        """
        found: list[bytes] = []
        for entry in islice(self._entries.values(), first, first + limit):
            if now_ms - entry.received_ms < age_ms_min:
                break
            found.append(entry.best.wire_id)
        return found

    def tx_ids(self, limit: int) -> list[bytes]:
        """Return the newest `limit` waiting transactions' tx_ids, newest first."""
        newest = reversed(self._entries)
        return [tx_id for tx_id, _ in zip(newest, range(limit), strict=False)]

    def ending(self, tx_id: bytes) -> Ending | None:
        """Return how a transaction left without becoming final; of the last 20,000 such."""
        return self._endings.get(tx_id)

    def remember(self, ended: Mapping[bytes, Ending]) -> None:
        """`ending` tells of these transactions, by tx_id, how they ended; they do not wait here."""
        for tx_id, ending in ended.items():
            if len(self._endings) >= ENDINGS_MAX:
                self._endings.popitem(last=False)
            self._endings[tx_id] = ending

    def candidates(self, limit: int) -> list[Transaction]:
        """Return up to `limit` transactions for a block: always one of the sender with the fewest calls so far.

        Within a sender the oldest comes first, and so does the sender whose turn it is to have the oldest.
        """
        found: list[Transaction] = []
        queues: list[tuple[int, int, str, Iterator[_Entry], _Entry]] = []
        for sender, entries in self._senders.items():
            rest = iter(entries.values())
            first = self._next(rest)
            if first is not None:
                queues.append((0, first.sequence, sender, rest, first))
        heapq.heapify(queues)
        while queues and len(found) < limit:
            calls, _, sender, rest, entry = queues[0]
            found.append(entry.best)
            following = self._next(rest)
            if following is None:
                heapq.heappop(queues)
            else:
                calls += len(entry.best.body.calls)
                heapq.heapreplace(queues, (calls, following.sequence, sender, rest, following))
        return found

    def work(self, includable: Callable[[Transaction], bool]) -> Work:
        """Return what waits by the judgement of `includable` (transaction, on the present head).

        What is not includable is set aside from candidates until a later block; at most 256 are judged a call.
        """
        self._oldest = None
        judged: list[bytes] = []
        for tx_id, entry in self._entries.items():
            if tx_id in self._held:
                continue
            if len(judged) == JUDGED_MAX:
                break
            if includable(entry.best):
                self._oldest = tx_id
                break
            judged.append(tx_id)
        for tx_id in judged:
            self._held[tx_id] = None
        return Work(
            self._oldest is not None, 0 if self._oldest is None else self._entries[self._oldest].passed_over
        )

    def applied(
        self, height: int, time_ms: int, transactions: Sequence[Transaction], calls_free: int, bytes_free: int
    ) -> dict[bytes, Ending]:
        """The block's transactions are gone from the pool; return what else ended with it, by tx_id.

        `time_ms` is the block's. `calls_free` and `bytes_free` say for what the block had room: the oldest
        includable transaction counts it as having been passed over when it would have fitted.
        """
        self._height = height
        ended: dict[bytes, Ending] = {}
        for transaction in transactions:
            body = transaction.body
            waiting = self._requests.get((body.sender, body.request_id))
            if waiting is not None:
                self._remove(waiting)
                if waiting != transaction.tx_id:
                    ended[waiting] = Ending("dropped", "request_conflict", height)
            self._remember(transaction)
        while self._expiries and self._expiries[0][0] <= time_ms:
            # Every later block's time is greater, so none can contain it.
            _, tx_id = heapq.heappop(self._expiries)
            if tx_id in self._entries:
                self._remove(tx_id)
                ended[tx_id] = Ending("expired", "expired", height)
        if len(self._expiries) > 2 * len(self._entries) + EXPIRIES_SPARE:
            # What became final would stay among them for as long as its client let it live.
            self._expiries = [(entry.best.body.expires_at_ms, tx_id) for tx_id, entry in self._entries.items()]
            heapq.heapify(self._expiries)
        self.remember(ended)
        oldest = None if self._oldest is None else self._entries.get(self._oldest)
        # What came while the block was in the making may not have reached the proposer.
        if oldest is not None and oldest.head_height + 1 < height:
            best = oldest.best
            if len(best.body.calls) <= calls_free and len(best.data) <= bytes_free:
                oldest.passed_over += 1
        for _ in range(min(RELEASED_MAX, len(self._held))):
            self._held.popitem(last=False)
        return ended

    def _add_variant(self, entry: _Entry, transaction: Transaction, *, promised: bool) -> Added:
        """Keep another signature set of a waiting transaction; unknown keys are joined to the best one."""
        if transaction.wire_id in self._wires or len(entry.variants) >= VARIANTS_MAX:
            return Added.KNOWN
        known = {signature.key: signature for signature in entry.best.signatures}
        new = [signature for signature in transaction.signatures if signature.key not in known]
        merged = None
        if new and len(known) + len(new) <= SIGNATURES_MAX:
            if len(new) == len(transaction.signatures) - len(known):
                merged = transaction
            else:
                merged = Transaction.assemble(entry.best.body, [*known.values(), *new])
        sender = transaction.body.sender
        fresh = [transaction]
        if merged is not None and merged.wire_id not in (transaction.wire_id, entry.best.wire_id):
            fresh.append(merged)
        size_bytes = sum(len(variant.data) for variant in fresh)
        if self.refusal(sender, size_bytes, 0, promised=promised) is not None:
            # The transaction waits already: who sends it again must not read that it was refused.
            return Added.KNOWN
        for variant in fresh:
            entry.variants.append(variant)
            self._wires[variant.wire_id] = variant
        self._count(sender, size_bytes)
        if merged is None:
            return Added.KNOWN
        entry.best = merged
        return Added.MERGED

    def room(self, *, promised: bool = False) -> "Room":
        """Return the room that there is now, for the transactions of one request to be counted into."""
        return Room(self, promised=promised)

    def refusal(
        self,
        sender: str,
        size_bytes: int,
        transactions: int = 1,
        others: tuple[int, int] = (0, 0),
        *,
        promised: bool = False,
    ) -> Unavailable | None:
        """Return why there is no room for so much more of `sender`, or None.

        `others` come in before: so many transactions of other senders, so many bytes. `promised`: see `add`.

        A sender may hold as much as is left free: one alone half of the pool, each of n greedy ones the (n + 1)-th
        part of it. So whoever comes finds room, however many others fill theirs; and the last room is for those
        who have nothing here yet.
        """
        total, total_bytes = len(self._entries) + transactions + others[0], self._bytes + size_bytes + others[1]
        times = PROMISED_ROOM if promised else 1
        free, free_bytes = self._transactions_max * times - total, self._bytes_max * times - total_bytes
        if free < 0 or free_bytes < 0:
            text = f"{len(self._entries)} transactions of {self._bytes} bytes wait"
            return Unavailable("queue_full", text, retry_after_ms=RETRY_AFTER_MS)
        waiting = len(self._senders.get(sender, ()))
        held_bytes = self._sender_bytes.get(sender, 0) + size_bytes
        if (waiting or transactions > 1) and (waiting + transactions > free or held_bytes > free_bytes):
            text = f"{waiting + max(0, transactions - 1)} transactions of {sender} wait"
            return Unavailable("too_many_from_sender", text, retry_after_ms=RETRY_AFTER_MS)
        return None

    def _count(self, sender: str, size_bytes: int) -> None:
        self._bytes += size_bytes
        self._sender_bytes[sender] = self._sender_bytes.get(sender, 0) + size_bytes

    def _next(self, rest: Iterator[_Entry]) -> _Entry | None:
        for entry in rest:
            if entry.best.tx_id not in self._held:
                return entry
        return None

    def _remove(self, tx_id: bytes) -> None:
        entry = self._entries.pop(tx_id)
        body = entry.best.body
        entries = self._senders[body.sender]
        del entries[tx_id], self._requests[body.sender, body.request_id]
        self._count(body.sender, -entry.size_bytes)
        if not entries:
            del self._senders[body.sender], self._sender_bytes[body.sender]
        for variant in entry.variants:
            del self._wires[variant.wire_id]
        self._held.pop(tx_id, None)

    def _remember(self, transaction: Transaction) -> None:
        """Keep a final transaction for a while: members that lag still fetch it."""
        if transaction.tx_id in self._recent_tx_ids:
            return
        self._recent[transaction.wire_id] = (transaction.tx_id, transaction.data)
        self._recent_tx_ids[transaction.tx_id] = transaction.wire_id
        self._recent_bytes += len(transaction.data)
        while self._recent_bytes > RECENT_BYTES_MAX:
            _, (tx_id, data) = self._recent.popitem(last=False)
            del self._recent_tx_ids[tx_id]
            self._recent_bytes -= len(data)


class Room:
    """The room of a pool, less what one request has taken of it so far. Nothing is held back in the pool itself.

    Why each request counts only its own: before signatures are verified nobody knows whose a transaction is. Were
    what is under way elsewhere counted too, whoever forges a sender's name could use up that sender's room.
    """

    def __init__(self, pool: Mempool, *, promised: bool) -> None:
        """All of the pool's room: for what clients send, or for what is promised."""
        self._pool = pool
        self._promised = promised
        self._taken: dict[str, tuple[int, int]] = {}
        self._transactions = 0
        self._bytes = 0

    def take(self, sender: str, size_bytes: int) -> Unavailable | None:
        """One more of `sender` is counted in, and None returned; or why `Mempool.add` would have no room for it."""
        count, held_bytes = self._taken.get(sender, (0, 0))
        count, held_bytes = count + 1, held_bytes + size_bytes
        others = (self._transactions + 1 - count, self._bytes + size_bytes - held_bytes)
        refused = self._pool.refusal(sender, held_bytes, count, others, promised=self._promised)
        if refused is None:
            self._taken[sender] = (count, held_bytes)
            self._transactions += 1
            self._bytes += size_bytes
        return refused
