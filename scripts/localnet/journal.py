"""Which loads a test network has had: `DIR/loads.json`.

An entry is written before the first submission and fixes the expiry of its transactions. An interrupted load is
simply run again: it makes the very same transactions, and those that the ledger has are answered with their
results.
"""

import time
from pathlib import Path

import msgspec

from scripts.localnet.layout import TestnetError
from scripts.localnet.loading import LoadFigures

EXPIRES_IN_MS = 12 * 60 * 60 * 1000


class Entry(msgspec.Struct, frozen=True):
    """One load: the files, how much of them, and the figures once it is done."""

    name: str
    payments: str
    claims: str
    transfers_max: int | None
    singles: int
    expires_at_ms: int
    figures: LoadFigures | None = None


class Journal:
    """The loads of one directory, by name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries: dict[str, Entry] = {}
        if path.exists():
            try:
                self.entries = msgspec.json.decode(path.read_bytes(), type=dict[str, Entry])
            except msgspec.DecodeError as error:
                raise TestnetError(f"{path} is damaged ({error}); start again with a new --dir") from error

    def begin(self, name: str, payments: Path, claims: Path, transfers_max: int | None, singles: int) -> Entry:
        """The entry of that name, made now if it is new. One that can no longer be completed is a TestnetError."""
        now_ms = time.time_ns() // 1_000_000
        known = self.entries.get(name)
        if known is None:
            known = Entry(name, str(payments), str(claims), transfers_max, singles, now_ms + EXPIRES_IN_MS)
            self.put(known)
        if known.figures is None and known.expires_at_ms < now_ms:
            raise TestnetError(
                f"the load {name!r} was interrupted and its transactions have expired; start again with a new --dir"
            )
        return known

    def put(self, entry: Entry) -> None:
        """The entry is on the disk."""
        self.entries[entry.name] = entry
        temporary = self._path.with_suffix(".new")
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(self.entries)) + b"\n")
        temporary.replace(self._path)
