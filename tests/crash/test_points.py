"""Crashes at every kind of write lose nothing, and a store that would lose something is found out."""

from collections.abc import Callable, Iterable

import pytest

from node.store import Database, database
from node.store.layout import META_HEAD
from tests.crash.dying import Rows
from tests.crash.points import crash_points


class Through:
    """Another database with nothing changed; a control changes what it writes."""

    def __init__(self, inner: Database) -> None:
        self._inner = inner
        self.get, self.scan, self.snapshot = inner.get, inner.scan, inner.snapshot
        self.size_bytes, self.compact, self.close = inner.size_bytes, inner.compact, inner.close
        self.synced_writes = 0

    def write(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        """All `rows` are durable."""
        self._inner.write(rows)
        self.synced_writes += 1


class HeadApart(Through):
    """Writes the head in a batch of its own, after the block."""

    def write(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        given = list(rows)
        head = [row for row in given if row[0] == META_HEAD]
        if head and len(given) > len(head):
            self._inner.write([row for row in given if row[0] != META_HEAD])
            given = head
        self._inner.write(given)


class Later(Through):
    """Says that rows of one letter are durable, and writes them with the next other batch."""

    letter = b"c"

    def __init__(self, inner: Database) -> None:
        super().__init__(inner)
        self._kept: Rows = []

    def write(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        given = list(rows)
        if any(key[:1] == self.letter and value is not None for key, value in given):
            self._kept += given
            return
        kept, self._kept = self._kept, []
        self._inner.write([*kept, *given])


class JournalLater(Later):
    """The same of accepted transactions."""

    letter = b"p"


def test_no_crash_at_any_write_loses_what_was_promised() -> None:
    report = crash_points(12, seed=1)
    assert report.losses == []
    assert report.points == 12


@pytest.mark.slow
def test_many_crashes_in_every_way_lose_nothing() -> None:
    report = crash_points(60, seed=50)
    assert report.losses == []
    assert all(way.points for way in report.ways)
    assert any(way.head_there for way in report.ways)
    assert any(way.abstained for way in report.ways)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("control", "told"),
    [
        (HeadApart, "corrupt_state_tree"),
        (Later, "Record of height"),
        (JournalLater, "has no fate"),
    ],
)
def test_a_store_that_breaks_its_promise_is_found_out(control: Callable[[Database], Database], told: str) -> None:
    report = crash_points(200, seed=3, wrap=control)
    assert any(told in loss for loss in report.losses), report.losses


@pytest.mark.slow
def test_leveldb_alone_does_not_open_after_every_torn_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of node.store.log_tail: without it a power cut may leave a database that nobody can open."""
    monkeypatch.setattr(database, "needs_mending", lambda path: False)
    monkeypatch.setattr(database, "_mend", lambda path, thoroughly: False)
    report = crash_points(100, seed=3)
    assert any("it does not start" in loss or "store_corrupt" in loss for loss in report.losses)
