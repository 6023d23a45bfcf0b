"""What came and is not judged yet, and the names of what was judged: both bounded."""

from collections import OrderedDict

import msgspec

QUEUE_SIZE_BYTES_MAX = 8 * 1024 * 1024
QUEUE_TRANSACTIONS_MAX = 16_384
CHUNK_TRANSACTIONS_MAX = 256
CHUNK_SIZE_BYTES_MAX = 512 * 1024


class Seen:
    """The names judged lately, at most `size_max`; the oldest are forgotten first."""

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._until_s: OrderedDict[bytes, float | None] = OrderedDict()

    def holds(self, wire_id: bytes, now_s: float) -> bool:
        """Whether `wire_id` was judged and its verdict still stands."""
        until_s = self._until_s.get(wire_id, float("-inf"))
        return until_s is None or until_s > now_s

    def mark(self, wire_id: bytes, until_s: float | None) -> bool:
        """`wire_id` is known until `until_s` (None: while there is room); True when it was not known for good."""
        fresh = self._until_s.get(wire_id, 0.0) is not None
        self._until_s[wire_id] = until_s
        self._until_s.move_to_end(wire_id)
        if len(self._until_s) > self._size_max:
            self._until_s.popitem(last=False)
        return fresh


class IntakeQueue:
    """Transactions that wait to be judged: a bounded share for each peer, chunks taken in turn.

    A peer that floods fills its own share and delays nobody by more than its one chunk a turn.
    """

    def __init__(self) -> None:
        self._shares: OrderedDict[str, _Share] = OrderedDict()
        self._owner: dict[bytes, str] = {}
        self.size_bytes = 0

    @property
    def transactions(self) -> int:
        """How many wait."""
        return len(self._owner)

    def __contains__(self, wire_id: bytes) -> bool:
        return wire_id in self._owner

    def put(self, peer: str, wire_id: bytes, data: bytes) -> bool:
        """The transaction waits in the share of `peer`; False when that is full."""
        share = self._shares.get(peer)
        if share is None:
            share = self._shares[peer] = _Share(OrderedDict())
        if len(share.bodies) >= QUEUE_TRANSACTIONS_MAX or share.size_bytes + len(data) > QUEUE_SIZE_BYTES_MAX:
            return False
        share.bodies[wire_id] = data
        share.size_bytes += len(data)
        self.size_bytes += len(data)
        self._owner[wire_id] = peer
        return True

    def take(self, wire_id: bytes) -> bytes | None:
        """The transaction's bytes, which no longer wait; None when it does not wait here."""
        peer = self._owner.pop(wire_id, None)
        if peer is None:
            return None
        share = self._shares[peer]
        data = share.bodies.pop(wire_id)
        share.size_bytes -= len(data)
        self.size_bytes -= len(data)
        if not share.bodies:
            del self._shares[peer]
        return data

    def next_chunk(self) -> tuple[str, dict[bytes, bytes]]:
        """The oldest of the peer whose turn it is, by wire id, removed from the queue; empty when nothing waits."""
        chunk: dict[bytes, bytes] = {}
        if not self._shares:
            return "", chunk
        peer = next(iter(self._shares))
        self._shares.move_to_end(peer)
        share = self._shares[peer]
        bodies, size_bytes = share.bodies, 0
        while bodies and len(chunk) < CHUNK_TRANSACTIONS_MAX and size_bytes < CHUNK_SIZE_BYTES_MAX:
            wire_id, data = bodies.popitem(last=False)
            del self._owner[wire_id]
            chunk[wire_id] = data
            size_bytes += len(data)
        share.size_bytes -= size_bytes
        self.size_bytes -= size_bytes
        if not bodies:
            del self._shares[peer]
        return peer, chunk

    def drop(self, peer: str) -> tuple[bytes, ...]:
        """Nothing of `peer` waits any more; returns the names of what did."""
        share = self._shares.get(peer)
        dropped = tuple(share.bodies) if share is not None else ()
        for wire_id in dropped:
            self.take(wire_id)
        return dropped


class _Share(msgspec.Struct):
    bodies: OrderedDict[bytes, bytes]
    size_bytes: int = 0
