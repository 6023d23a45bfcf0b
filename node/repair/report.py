"""What a repair did, in sentences; and why it did nothing where something could not be proven."""

from typing import Literal, TypeAlias

import msgspec

from node.errors import StoreError

Outcome: TypeAlias = Literal["nothing_wrong", "repaired", "ledger_lost", "not_repaired"]

KIND_NAMES: dict[str, str] = {
    "b": "bodies of blocks",
    "c": "consensus records",
    "d": "parted buckets of the state tree",
    "e": "index of events",
    "f": "endings, in their order",
    "g": "endings, by their expiry",
    "h": "head records",
    "j": "transactions that ended",
    "k": "headers of pruned blocks",
    "l": "changes of the members",
    "m": "markers",
    "p": "transactions that wait",
    "q": "requests to forget",
    "r": "receipts",
    "s": "values of the state",
    "t": "state tree",
    "u": "undo records",
    "v": "evidence",
    "w": "blocks in work",
    "x": "index of transactions",
    "y": "pruned blocks that are kept",
}
"""What the rows of each letter are called in a report; node/store/layout.py says what lies in them."""


class RepairReport(msgspec.Struct, frozen=True):
    """How the repair of one data directory ended.

    `ledger_lost`: the directory can be used again, and no block of the ledger that it held is left in it.

    `did` are sentences in their order. `fetched` blocks or receipts came from peers, each proven. `abstains`: the
    node does not know any more what it signed, so it will not vote until it has learnt from the others. `kept_at`
    is where the damaged directory lies now (None: it was not replaced). `reason` says why nothing was done,
    `remedy` what to do then.
    """

    outcome: Outcome
    height: int
    did: tuple[str, ...] = ()
    fetched: int = 0
    abstains: bool = False
    kept_at: str | None = None
    reason: str | None = None
    remedy: str | None = None


class Journal:
    """What a repair has done so far."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.fetched = 0
        self.abstains = False
        self._counts: dict[str, int] = {}

    def say(self, sentence: str) -> None:
        """The sentence is part of the report."""
        self.did.append(sentence)

    def count(self, what: str) -> None:
        """One more of what was mended: they are told together."""
        self._counts[what] = self._counts.get(what, 0) + 1

    def count_row(self, what: str, key: bytes) -> None:
        """One more row, that of `key`, was mended: rows of a kind are told together, by the kind's name."""
        self.count(f"{what} ({KIND_NAMES[chr(key[0])]})")

    def drop_counts(self) -> None:
        """No row of those that were counted is left."""
        self._counts.clear()

    def sentences(self) -> tuple[str, ...]:
        """All that was done."""
        return (*(f"{what}: {count}" for what, count in self._counts.items()), *self.did)


def unproven(what: str) -> StoreError:
    """Return the error that says what cannot be proven, so that nothing is replaced."""
    return StoreError("repair_impossible", what)
