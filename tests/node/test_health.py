"""What a node knows of its own health: since when nothing moved."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.runtime.clock import Clock
from node.runtime.health import Health
from tests.node.ledger_world import network
from tests.node.live_network import LiveNetwork
from tests.node.test_diagnosis import quiet

NOW_MS = 1_795_000_000_000


class SetClock(Clock):
    """Shows what the test says."""

    ms = 5_000

    def now_ms(self) -> int:
        return self.ms

    def time_ms(self) -> int:
        return NOW_MS


@pytest.mark.parametrize(("head_time_ms", "before_ms"), [(None, 0), (NOW_MS - 40, 40)])
def test_without_a_block_the_time_without_one_counts_from_the_start(
    head_time_ms: int | None, before_ms: int
) -> None:
    """`hansa why` said of a node at genesis, whose time is 0, that nothing had moved for 20779 days."""
    clock = SetClock()
    transport: Any = SimpleNamespace(peers=list, connected=())
    reports: Any = SimpleNamespace(heard=dict, direct_ages=dict)
    health = Health(
        network(), "bank-a", "1", b"", transport, clock, quiet, reports, lambda: 0, 1, lambda: None, head_time_ms
    )
    clock.ms += 7
    assert health._facts().idle_ms == before_ms + 7


@pytest.mark.slow
async def test_a_node_at_genesis_does_not_take_the_time_of_genesis_for_that_of_a_block(tmp_path: Path) -> None:
    live = LiveNetwork(tmp_path)
    await live.start("bank-a")
    try:
        assert live.nodes["bank-a"]._health._facts().idle_ms < 365 * 24 * 3_600_000
    finally:
        await live.stop()
