"""A primary rests while whole nodes run: nobody waits for it, and who was away or lost its disk knows it too."""

import pytest

from tests.simulation.nodes.host import Host
from tests.simulation.nodes.test_governing import Assembly
from tests.simulation.nodes.test_scenes import SHAPE, everybody_votes, final_at, primary_of, scene
from tests.simulation.nodes.timeline import START_MS

pytestmark = pytest.mark.slow

WINDOW_MS = 90_000


def primary_by(host: Host) -> str:
    """Whom this node takes for the primary; "" while it serves nobody."""
    return host.door.service.status().primary if host.door is not None else ""


def test_a_resting_primary_costs_no_view_and_whoever_starts_meanwhile_skips_it_too() -> None:
    world = scene(shape=SHAPE._replace(n=5))
    with world.staged() as until:
        assembly = Assembly(world, until)
        until(everybody_votes(world), 20_000)
        resting = primary_of(world)
        others = [host for host in world.hosts if host is not resting]
        from_ms = START_MS + world.timeline.now_us // 1000
        window = {"from_ms": from_ms, "until_ms": from_ms + WINDOW_MS}
        booked = assembly.say(resting.id, "book", window, "maintenance")
        until(final_at(*world.hosts, transactions=[booked]), 30_000)
        until(lambda: all(primary_by(host) not in ("", resting.id) for host in world.hosts), 10_000)
        first, instead = resting.height, primary_by(resting)
        resting.crash(power=True)
        for _ in range(3):
            assembly.goes_on(*others)
        # It is back within its window, and votes: another one restarts, and a third has lost its disk.
        resting.start()
        until(everybody_votes(world), 30_000)
        assembly.goes_on(*world.hosts)
        restarted, wiped = [host for host in others if host.id != instead][:2]
        restarted.crash(power=True)
        assembly.goes_on(*[host for host in world.hosts if host is not restarted])
        restarted.start()
        until(lambda: primary_by(restarted) != "", 30_000)
        # From its own disk, before any new block.
        assert primary_by(restarted) == instead
        until(everybody_votes(world), 30_000)
        wiped.crash(power=True)
        wiped.lose_disk(None)
        wiped.start()
        assembly.goes_on(*world.hosts)
        assert {primary_by(host) for host in world.hosts} == {instead}
        last = min(host.height for host in world.hosts)
        assert {world.rules.decided[height].view for height in range(first, last + 1)} == {0}
        # Its window ends by the time of blocks, and its turn is its own again.
        until(lambda: all(primary_by(host) == resting.id for host in world.hosts), 2 * WINDOW_MS)
        assembly.goes_on(*world.hosts)
