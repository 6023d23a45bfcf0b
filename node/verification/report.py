"""What a verification says: one report, and one shape for what is wrong."""

from typing import TypeVar

import msgspec

from node.errors import HansaError, StoreError
from node.store.reading import stored

T = TypeVar("T")


class LedgerReport(msgspec.Struct, frozen=True):
    """What was read: `blocks` and `transactions` found right up to the first error, of `height` blocks in all.

    A block counts where its body is here; of one that was pruned only header and certificate are judged.

    `first_error` names the place, the code and what is wrong there; `entry` the row of the store that it was found
    in (kind and key in hex, "" where several disagree); `remedy` what to do. `first_block` is the first block whose
    body has to be here. `executed_from` is the first block that was executed again (None: none was); of the blocks
    before it hashes, signatures, certificates and indexes were checked. `notes` say this and more in sentences.
    """

    ok: bool
    height: int
    blocks: int
    transactions: int
    first_error: str | None
    quick: bool = False
    first_block: int = 1
    executed_from: int | None = None
    entry: str | None = None
    remedy: str | None = None
    notes: tuple[str, ...] = ()


class Progress:
    """Where a verification stands: what it looks at now, and what it has found right so far."""

    def __init__(self) -> None:
        self.where = "the store"
        self.height = 0
        self.blocks = 0
        self.transactions = 0
        self.first_block = 1
        self.executed_from: int | None = None
        self.notes: list[str] = []

    def report(self, error: HansaError | None, quick: bool) -> LedgerReport:
        """What is to be said now; `error` is the first thing that is wrong (None: all is right)."""
        entry = remedy = first_error = None
        if error is not None:
            where = error.details.get("where") or self.where
            first_error = f"{where}: {error}"
            entry = str(error.details.get("entry") or "")
            remedy = error.entry.action
        return LedgerReport(
            error is None,
            self.height,
            self.blocks,
            self.transactions,
            first_error,
            quick,
            self.first_block,
            self.executed_from,
            entry,
            remedy,
            tuple(self.notes),
        )


def differs(what: str, entry: bytes = b"", where: str | None = None) -> StoreError:
    """Return the error that says `what` of the stored row `entry`; `where` when it is not where the progress is."""
    return StoreError("ledger_differs", what, entry=shown(entry), where=where)


def require(condition: bool, what: str, entry: bytes = b"") -> None:
    """Raise the error that says `what` of `entry` unless `condition`."""
    if not condition:
        raise differs(what, entry)


def read(data: bytes, type_: type[T], what: str, entry: bytes) -> T:
    """Return the value in `data`; raise the error that names the stored row `entry` when it is damaged."""
    try:
        return stored(data, type_, what)
    except StoreError as error:
        raise StoreError(error.code, error.message, entry=shown(entry)) from error


def shown(key: bytes) -> str:
    """A row's key for people: its letter and the rest in hex."""
    return f"{chr(key[0])} {key[1:].hex()}".rstrip() if key else ""
