"""A snapshot is read from one iterator after the other, and holds the same rows whatever one of them reads."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.snapshot import make_snapshot, making, read_manifest
from node.snapshot.cutting import ROWS_A_STEP
from node.store import LevelDatabase, StoreView
from tests.node.test_snapshot import SignedLedger, made, signed_network

ROWS = 3_000


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SignedLedger]:
    opened = SignedLedger(tmp_path / "data", signed_network())
    opened.open_accounts("A", "B", "C", funds=1_000)
    yield opened
    opened.close()


def test_the_snapshot_is_the_same_wherever_one_iterator_ends_and_the_next_begins(
    ledger: SignedLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_manifest(made(ledger, tmp_path / "one").manifest_bytes()).content
    assert expected.keys < making.ROWS_A_SCAN
    for rows in range(1, expected.keys + 2):
        monkeypatch.setattr(making, "ROWS_A_SCAN", rows)
        content = read_manifest(made(ledger, tmp_path / f"by-{rows}").manifest_bytes()).content
        assert content.digest == expected.digest


def test_tables_that_were_replaced_are_not_kept_until_all_rows_are_read(
    ledger: SignedLedger, tmp_path: Path
) -> None:
    ledger.store.close()
    data, config = tmp_path / "data", ledger.network

    def tables() -> set[Path]:
        return set(data.glob("*.ldb"))

    database = LevelDatabase(data)
    try:
        keys = [b"s" + number.to_bytes(4, "big") for number in range(ROWS)]
        database.write([(key, os.urandom(200)) for key in keys])
        database.compact(b"s", b"t")
        before = tables()
        bits = config.parameters.state_tree_bits
        steps = make_snapshot(
            StoreView(database.snapshot()), config.network_id, config.genesis_hash, bits, tmp_path / "snapshots"
        )
        next(steps)
        database.write([(key, os.urandom(200)) for key in keys])
        database.compact(b"s", b"t")
        assert before & tables(), "what an open iterator reads has to stay"
        for _ in range(2 * making.ROWS_A_SCAN // ROWS_A_STEP):
            next(steps)
        # LevelDB looks for what can go when it has replaced something.
        database.write([(keys[0], b"")])
        database.compact(b"s", b"t")
        assert not before & tables()
        steps.close()
    finally:
        database.close()
