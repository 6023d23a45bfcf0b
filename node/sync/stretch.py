"""The blocks of one range that are replayed one after the other, each handed on before the one under it is applied.

Invariant: a block is handed on only when it follows the head, or the block handed on before it, and a quorum of the
members of its height has signed it. Where a block's header names other members for the next height, the stretch
ends: who they are is known once it was executed. Blocks of another peer than the first one's are never in it.
"""

from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

from consensus.effects import Head
from node.config import NO_RECOVERIES, Recoveries
from node.ledger import CertifiedBlock, Transaction, members_hash
from node.sync.preparing import Preparing
from node.sync.proof import Candidate, require_proof
from node.sync.ranges import Range

ReadyBlock: TypeAlias = tuple[CertifiedBlock, Sequence[Transaction]]
"""A certified block and its transactions, decoded, their signatures verified."""

STRETCH_BLOCKS_MAX = 64
STRETCH_BYTES_MAX = 1024 * 1024
"""Consensus and whoever asks for a proof wait for the end of a stretch; one block is in it whatever its size."""


class Stretch:
    """Hands on blocks; used on the event loop."""

    def __init__(
        self, due: Range, head: Head, preparing: Preparing, recoveries: Recoveries = NO_RECOVERIES
    ) -> None:
        """`due` has the block above `head` at hand, judged by the head's members."""
        self.peer = due.peer
        """Who sent the blocks."""
        self._due = due
        self._head = head
        self._preparing = preparing
        self._recoveries = recoveries
        self._members_hash = members_hash(head.members)
        self._height, self._parent = head.height, head.digest
        self._size_bytes = 0
        self._ended = False
        self._begun: deque[Candidate] = deque()

    def stands_on(self, head: Head) -> bool:
        """Whether the stretch begins right above `head`."""
        return head == self._head

    async def next(self) -> ReadyBlock | None:
        """The next block, decoded and verified; None when the stretch ends.

        Raise InvalidFrame for one that was not decided in its place, InvalidBlock for a bad signature in it.
        """
        candidate = self._candidate()
        if candidate is None:
            self._ended = True
            return None
        require_proof(candidate, self._parent, self._head.members, self._recoveries)
        self._begun.append(candidate)
        transactions = await self._preparing.take(candidate)
        self._height, self._parent = candidate.height, candidate.digest
        self._size_bytes += sum(map(len, candidate.block.body.transactions))
        self._ended = candidate.block.body.header.members_hash != self._members_hash
        return candidate.block, transactions

    def _candidate(self) -> Candidate | None:
        """The next block, if it belongs to this stretch."""
        first = self._height == self._head.height
        if self._ended or self._due.peer != self.peer:
            return None
        candidate = self._due.block(self._height + 1)
        if candidate is None or first:
            return candidate
        full = (
            self._height - self._head.height >= STRETCH_BLOCKS_MAX
            or self._size_bytes >= STRETCH_BYTES_MAX
            or not self._preparing.has_room(candidate)
        )
        # One that is not proven may be judged by other members, when it is its turn to be the first.
        return None if full or candidate.proven_by != self._head.members else candidate

    def passed(self, height: int) -> list[int]:
        """The head has reached `height`: how many transactions each of the blocks up to it had, told once."""
        self._preparing.passed(height)
        counts: list[int] = []
        while self._begun and self._begun[0].height <= height:
            counts.append(len(self._begun.popleft().block.body.transactions))
        return counts

    def give_up(self) -> Candidate | None:
        """What was not applied is held no longer; return the lowest such block: it kept the others from it."""
        lowest = self._begun[0] if self._begun else None
        for candidate in self._begun:
            self._preparing.give_up(candidate.digest)
        self._begun.clear()
        return lowest
