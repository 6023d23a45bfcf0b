"""What a node knows of its own health: since when nothing moved."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from consensus.status import Abstention, ReplicaStatus
from node.runtime.clock import Clock
from node.runtime.health import Health
from tests.node.diagnosis_world import quiet
from tests.node.ledger_world import network
from tests.node.live_network import LiveNetwork

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
        network(),
        "bank-a",
        "1",
        lambda: (b"",),
        transport,
        clock,
        quiet,
        reports,
        lambda: 0,
        1,
        lambda: None,
        head_time_ms,
    )
    clock.ms += 7
    assert health._facts().idle_ms == before_ms + 7


def test_the_log_says_once_when_voting_ends_and_when_it_begins_again() -> None:
    """A restored node said nothing at all when it voted again."""
    clock = SetClock()
    transport: Any = SimpleNamespace(peers=list, connected=())
    reports: Any = SimpleNamespace(heard=dict, direct_ages=dict, publish=lambda report: None)
    status = quiet()

    def replica() -> ReplicaStatus:
        return status

    with capture_logs() as logs:
        health = Health(
            network(),
            "bank-a",
            "1",
            lambda: (b"",),
            transport,
            clock,
            replica,
            reports,
            lambda: 0,
            1,
            lambda: None,
            None,
        )
        for abstention in ("observer", "lost", "lost", "confirming", "until", "", "confirming", "", "key_twice"):
            clock.ms += 250
            status = msgspec.structs.replace(
                status, abstention=Abstention(abstention), abstaining=abstention, abstain_until=9
            )
            health._look()
    known = [(line["event"], line.get("abstention", line.get("before")), line.get("until")) for line in logs]
    assert known == [
        ("abstains from voting", "lost", None),
        ("abstains from voting", "until", 9),
        ("votes again", "until", None),
        ("abstains from voting", "key_twice", None),
    ]
    assert logs[2]["abstained_ms"] == 4 * 250


@pytest.mark.slow
async def test_a_node_at_genesis_does_not_take_the_time_of_genesis_for_that_of_a_block(tmp_path: Path) -> None:
    live = LiveNetwork(tmp_path)
    await live.start("bank-a")
    try:
        assert live.nodes["bank-a"]._health._facts().idle_ms < 365 * 24 * 3_600_000
    finally:
        await live.stop()
