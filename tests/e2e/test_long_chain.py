"""A short "long chain": made, verified, opened by real nodes that go on with it, joined and replayed."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from scripts.localnet.chain_plan import Size
from scripts.localnet.long_chain import measure

pytestmark = pytest.mark.slow

PORT_OFFSET = 20
"""Beside the networks of the other modules, which take the first ports of each range."""
SIZE = Size(transactions=2_000, keys=1_000)
BLOCKS = 20


def test_a_chain_that_was_made_is_a_ledger_that_nodes_go_on_with(base_port: int, tmp_path: Path) -> None:
    told = io.StringIO()
    # The measurement itself fails where the chain is refused, roots differ, or a member comes up in another way.
    report = measure(tmp_path / "net", Console(file=told), SIZE, base_port + PORT_OFFSET)
    assert (report.built.height, report.built.transactions) == (BLOCKS, SIZE.transactions)
    assert [part.transactions for part in report.built.parts] == list(range(200, 2_001, 200))
    assert report.built.keys >= SIZE.keys
    assert report.snapshot.height == BLOCKS + 1
    assert report.snapshot.keys >= SIZE.keys
    for found in (report.verify_quick, report.verify_full, report.join, report.replay):
        assert found.seconds > 0
        assert found.used.rss_mb > found.used.memory_mb > 0
    assert report.join_times_faster > 0
    assert "us each" in told.getvalue()
