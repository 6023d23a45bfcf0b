"""What Prometheus reads of this node. Every number is read when asked for, or counted when it happens."""

import math
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from node.state import ExecutedBlock

FINALITY_BUCKETS_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counters of this process, and gauges over functions of the node."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._blocks = Counter("hansa_blocks_applied", "Blocks applied since the start", registry=self._registry)
        self._transactions = Counter(
            "hansa_transactions_applied", "Transactions in applied blocks", registry=self._registry
        )
        self._calls = Counter("hansa_calls_applied", "Calls in applied blocks", registry=self._registry)
        self._finality = Histogram(
            "hansa_finality_seconds",
            "From the arrival of a transaction at this node to its finality here",
            buckets=FINALITY_BUCKETS_S,
            registry=self._registry,
        )
        self._evidence = Counter("hansa_evidence", "Proofs of equivocation stored", registry=self._registry)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """`name` shows what `read` returns at the time of asking."""
        Gauge(name, text, registry=self._registry).set_function(read)

    def key_age(self, kind: str, made_ms: Callable[[], int | None], time_ms: Callable[[], int]) -> None:
        """`hansa_KIND_key_age_seconds` shows how long ago the key was made that is in force when it is asked for.

        `made_ms` says when that was (Unix milliseconds); None: no such key is at hand, and nothing (NaN) is shown.
        """

        def age_s() -> float:
            made = made_ms()
            return math.nan if made is None else max(0, time_ms() - made) / 1000

        self.gauge(
            f"hansa_{kind}_key_age_seconds", f"Seconds since this node's {kind} key in force was made", age_s
        )

    def on_applied(self, executed: ExecutedBlock) -> None:
        """A block was applied."""
        self._blocks.inc()
        self._transactions.inc(len(executed.proposal.wire_ids))
        self._calls.inc(executed.calls)

    def on_final(self, waited_ms: int) -> None:
        """A transaction that arrived here `waited_ms` ago is final."""
        self._finality.observe(waited_ms / 1000)

    def on_evidence(self) -> None:
        """A proof of equivocation was stored."""
        self._evidence.inc()

    def text(self) -> bytes:
        """Prometheus text exposition."""
        return generate_latest(self._registry)
