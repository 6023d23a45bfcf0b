"""After a long outage of the quorum the next block comes within twice the cap of the time-outs."""

import pytest

from consensus.replica import Replica
from tests.simulation import outage
from tests.simulation.outage import KINDS, TIMEOUT_CAP_MS, Outage

TEN_MINUTES_US = 10 * 60 * 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(len(KINDS)))
def test_ten_minutes_without_a_quorum_cost_at_most_twice_the_cap(seed: int) -> None:
    """Ten minutes instead of two hours: within one all clocks reach the cap."""
    world = Outage(seed, outage_us=TEN_MINUTES_US)
    outcome = world.run(outage.STEPS_MAX)
    assert outcome.failure is None
    assert world.now_us > TEN_MINUTES_US
    assert world.next_block_ms is not None
    assert world.next_block_ms <= 2 * TIMEOUT_CAP_MS


@pytest.mark.slow
def test_members_that_say_nothing_again_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without resends (rule 7.2) who asked for a view in the dark is never heard."""
    monkeypatch.setattr(Replica, "_resend", lambda self: None)
    monkeypatch.setattr(Replica, "_send_own", lambda self, peer: None)
    failures = [Outage(seed, outage_us=TEN_MINUTES_US // 10).run(outage.STEPS_MAX).failure for seed in (1, 4)]
    assert any(failure is not None for failure in failures)
