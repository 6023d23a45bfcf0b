"""How far catch-up has come and how fast: what status, metrics and the progress bar show."""

from collections import deque

import msgspec

RATE_WINDOW_S = 10.0
SAMPLE_S = 0.25


class PeerAside(msgspec.Struct, frozen=True):
    """A peer that is not asked for now: why, and for how long."""

    peer: str
    reason: str
    remaining_s: float


class PeerAtWork(msgspec.Struct, frozen=True):
    """A peer that was asked for blocks `first` to `last`, `for_s` seconds ago, and has not answered yet."""

    peer: str
    first: int
    last: int
    for_s: float


class Progress(msgspec.Struct, frozen=True):
    """A snapshot for status and metrics. Heights, times and rates are of the current run, or of the last one.

    `height` is this node's own head, `target` what others are known to have decided. The rates are those of the
    last ten seconds; `eta_s` follows from them (None: not running, or nothing moved yet). `waited_s` of `elapsed_s`
    passed with no block at hand to execute: the network's share. `held_bytes` are fetched and not yet applied. The
    totals count since the start of the process. `unservable` is the lowest height that any connected peer serves
    when none of them serves the next block any more, else 0.
    """

    running: bool
    from_height: int
    height: int
    target: int
    blocks_per_s: float
    transactions_per_s: float
    blocks_total: int
    transactions_total: int
    bytes_total: int
    faults_total: int
    held_bytes: int
    asks: tuple[PeerAtWork, ...]
    waited_s: float
    elapsed_s: float
    eta_s: float | None
    aside: tuple[PeerAside, ...]
    problem: str | None
    unservable: int


class Pace:
    """Blocks and transactions applied, and their rate over the last RATE_WINDOW_S of a run."""

    def __init__(self) -> None:
        self.blocks = 0
        self.transactions = 0
        self._samples: deque[tuple[float, int, int]] = deque()

    def begin(self, now_s: float) -> None:
        """A run begins: rates count from now; the totals go on."""
        self._samples = deque([(now_s, self.blocks, self.transactions)])

    def note(self, now_s: float, transactions: int) -> None:
        """A block with so many transactions was applied."""
        self.blocks += 1
        self.transactions += transactions
        if now_s - self._samples[-1][0] >= SAMPLE_S:
            self._samples.append((now_s, self.blocks, self.transactions))
            while len(self._samples) > 2 and now_s - self._samples[1][0] >= RATE_WINDOW_S:
                self._samples.popleft()

    def rates(self, now_s: float) -> tuple[float, float]:
        """Return (blocks, transactions) a second."""
        if not self._samples or now_s <= self._samples[0][0]:
            return 0.0, 0.0
        since_s, blocks, transactions = self._samples[0]
        elapsed_s = now_s - since_s
        return (self.blocks - blocks) / elapsed_s, (self.transactions - transactions) / elapsed_s
