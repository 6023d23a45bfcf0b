"""Which tier a transaction leaves open: judged once, until what the judgement has read may have changed. Pure.

A transaction may bring 10,000 calls for sixteen tiers, and one that its tiers leave open waits for as long as its
client lets it: judged anew with each block, and with each look at what waits, it would cost every node more than
what is executed. A verdict holds for a transaction with its signatures (its wire id), on every state that has the
same policies and stand-ins, and in blocks from the time for which it was made up to the next at which a key or a
stand-in begins or ends.

Only for what waits: who judges a block judges each transaction on the block's own state.
"""

from node.executor.run import Registry, open_tier
from node.ledger import Transaction
from node.state import Overlay, WriteSet

VERDICTS_MAX = 20_000


class TierVerdicts:
    """What was judged on states with the same policies and stand-ins. May be asked in several threads."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: dict[bytes, tuple[int, int, str | None]] = {}

    def after(self, writes: WriteSet) -> "TierVerdicts":
        """Return those that hold after a block with these writes: all of them, or none."""
        decides = self._registry.decides_tiers
        # Where none is known one may be on its way, in another thread that judges on the state before.
        if not self._known or any(decides(key) for key in writes.after):
            return TierVerdicts(self._registry)
        return self

    def open_tier(self, state: Overlay, transaction: Transaction, time_ms: int) -> str | None:
        """Return the tier that the transaction leaves open on `state` in a block at `time_ms`, or None."""
        name = transaction.wire_id
        known = self._known.get(name)
        if known is not None and known[0] <= time_ms < known[1]:
            return known[2]
        tier, until_ms = open_tier(self._registry, state, transaction, time_ms)
        if len(self._known) >= VERDICTS_MAX:
            self._known.clear()
        self._known[name] = (time_ms, until_ms, tier)
        return tier

    def leaves_open(self, transaction: Transaction, time_ms: int) -> bool:
        """Whether it is known that the transaction leaves a tier open then."""
        known = self._known.get(transaction.wire_id)
        return known is not None and known[0] <= time_ms < known[1] and known[2] is not None
