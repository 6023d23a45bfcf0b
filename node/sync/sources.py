"""What is known of the peers that blocks are fetched from: how quick they are, what they serve, who is left out.

A peer's word about what it has only says whom to ask; it never stands for this node's own height.
"""

import statistics
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec
import structlog

from node.sync.progress import PeerAside

RANGE_START = 32
RANGE_MAX = 256
ASIDE_S = 1.0
ASIDE_S_MAX = 30.0
BEHIND_ASIDE_S = 0.2
FAULT_ASIDE_S = 10.0
TOLD_S_MAX = 10.0
"""For so long a peer's word that it lacks a height is believed; then it is asked again."""
FAILURES_GONE = 2
"""A peer that failed so often in a row is not waited for before the others' word counts as everybody's."""
OVERDUE_FACTOR = 4.0
OVERDUE_S_MIN = 0.1
OVERDUE_S_FIRST = 1.0
"""An answer is overdue after so many times the median of the last ones; OVERDUE_S_FIRST stands for it at first."""
DURATIONS_KEPT = 15


class _Record(msgspec.Struct):
    """One peer: what it told of itself and when, seconds a block of its last answer, and its failures in a row.

    `range_size` blocks are asked of it at once: more after each whole answer, fewer after a cut or a missing one.

    `lagging`: it is aside because it was overtaken, not because it failed; with nobody else it is asked still.
    """

    head_height: int = 0
    head_told_s: float = float("-inf")
    first_height: int = 0
    first_told_s: float = float("-inf")
    cost_s: float = 0.0
    range_size: int = RANGE_START
    failures: int = 0
    lagging: bool = False
    aside_until_s: float = float("-inf")
    reason: str = ""


class Sources:
    """The peers' records. Used on the event loop alone; `now_s` is its clock."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.hints: tuple[str, ...] = ()
        """Peers that are known to be ahead: asked first among equals."""
        self.problem: str | None = None
        """What went wrong last, until something goes right."""
        self._now_s = now_s
        self._records: dict[str, _Record] = {}
        self._durations_s: deque[float] = deque(maxlen=DURATIONS_KEPT)
        self._log = structlog.get_logger("sync")

    # --- what is learnt --------------------------------------------------------------------------------------

    def told(self, peer: str, first_height: int, head_height: int) -> None:
        """`peer` says that it serves the blocks `first_height` … `head_height`."""
        record, now_s = self._record(peer), self._now_s()
        record.head_height, record.head_told_s = head_height, now_s
        record.first_height, record.first_told_s = first_height, now_s

    def answered(self, peer: str, duration_s: float, blocks: int, whole: bool) -> None:
        """`peer` sent so many blocks after so long: as many as it was asked for (`whole`) or fewer."""
        record = self._record(peer)
        record.cost_s = duration_s / blocks
        record.range_size = min(2 * record.range_size, RANGE_MAX) if whole else blocks
        if record.lagging and duration_s <= self.overdue_s():
            record.lagging, record.aside_until_s = False, self._now_s()
        self._durations_s.append(duration_s)

    def failed(self, peer: str, reason: str) -> None:
        """`peer` is gone or did not answer in time. The answer may have been too big for the link: ask for less."""
        record = self._record(peer)
        record.range_size = max(1, record.range_size // 2)
        self.put_aside(peer, reason, ASIDE_S)

    def helped(self, peer: str) -> None:
        """Blocks of `peer` were applied: what it did wrong before is forgiven."""
        record = self._record(peer)
        if not record.lagging:
            record.failures = 0
        self.problem = None

    def overtaken(self, peer: str, by: str) -> None:
        """`peer` is slow: another one, asked later, has sent the same before."""
        self._leave_out(peer, f"slow: overtaken by {by}", ASIDE_S, lagging=True)

    def put_aside(self, peer: str, reason: str, aside_s: float) -> None:
        """`peer` is not asked for `aside_s` seconds, doubled for each failure since it last helped."""
        self._leave_out(peer, reason, aside_s, lagging=False)
        self.problem = f"{peer}: {reason}"

    def lacks(self, peer: str, height: int) -> None:
        """`peer` sent no block for `height`, though it answered: it has not got it yet, or not any more."""
        record = self._record(peer)
        if record.first_height > height:
            return
        if record.head_height < height:
            record.aside_until_s, record.reason = self._now_s() + BEHIND_ASIDE_S, f"has no block {height}"
        else:
            self.put_aside(peer, f"does not serve block {height}", ASIDE_S)

    # --- what is asked ---------------------------------------------------------------------------------------

    def free(self, connected: Iterable[str], busy: Iterable[str]) -> list[str]:
        """The connected peers that may be asked now; those that are aside for slowness if there are no others."""
        now_s, taken = self._now_s(), frozenset(busy)
        known = [(peer, self._record(peer)) for peer in connected if peer not in taken]
        found = [peer for peer, record in known if record.aside_until_s <= now_s]
        return found or ([] if taken else [peer for peer, record in known if record.lagging])

    def choose(self, free: Sequence[str], first: int) -> str | None:
        """The peer to ask for blocks from `first` on: quickest a block, untried ones early; None: none has them."""
        now_s = self._now_s()
        best: tuple[tuple[float, int, str], str] | None = None
        for peer in free:
            record = self._record(peer)
            lacks_old = record.first_height > first and now_s - record.first_told_s < TOLD_S_MAX
            lacks_new = record.head_height < first and now_s - record.head_told_s < BEHIND_ASIDE_S
            if lacks_old or lacks_new:
                continue
            place = self.hints.index(peer) if peer in self.hints else len(self.hints)
            rank = (record.cost_s, place, peer)
            if best is None or rank < best[0]:
                best = (rank, peer)
        return None if best is None else best[1]

    def range_size(self, peer: str) -> int:
        """How many blocks are asked of `peer` at once."""
        return self._record(peer).range_size

    def overdue_s(self) -> float:
        """After how many seconds without an answer another peer may be asked for the same."""
        if not self._durations_s:
            return OVERDUE_S_FIRST
        return max(OVERDUE_S_MIN, OVERDUE_FACTOR * statistics.median(self._durations_s))

    def unservable(self, connected: Iterable[str], height: int) -> int:
        """The lowest height that any connected peer serves when none of them serves `height` any more, else 0.

        It takes every peer's own recent word, of those that answer at all, and one at least.
        """
        now_s, lowest = self._now_s(), 0
        for peer in connected:
            record = self._record(peer)
            if record.first_height > height and now_s - record.first_told_s < 3 * TOLD_S_MAX:
                lowest = min(lowest or record.first_height, record.first_height)
            elif record.aside_until_s <= now_s or record.lagging or record.failures < FAILURES_GONE:
                return 0
        return lowest

    def aside(self) -> tuple[PeerAside, ...]:
        """The peers that are not asked now, by name."""
        now_s = self._now_s()
        return tuple(
            PeerAside(peer, record.reason, record.aside_until_s - now_s)
            for peer, record in sorted(self._records.items())
            if record.aside_until_s > now_s
        )

    def _leave_out(self, peer: str, reason: str, aside_s: float, *, lagging: bool) -> None:
        record = self._record(peer)
        record.reason, record.lagging = reason, lagging
        record.aside_until_s = self._now_s() + min(aside_s * 2**record.failures, ASIDE_S_MAX)
        record.failures = min(record.failures + 1, 8)
        self._log.info("peer put aside", peer=peer, reason=reason)

    def _record(self, peer: str) -> _Record:
        return self._records.setdefault(peer, _Record())
