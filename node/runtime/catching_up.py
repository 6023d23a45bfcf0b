"""Catch-up as status and metrics show it."""

from collections.abc import Callable

from consensus.members import Members
from consensus.status import ReplicaStatus
from node.client.answers import PeerAsked, PeerLeftOut, SyncStatus
from node.sync import Progress


def network_height(height: int, replica: ReplicaStatus) -> int:
    """Return what the network has certainly decided, as far as this node has heard: at least its own `height`."""
    return max(height, replica.catch_up_target or 0)


def sync_status(height: int, progress: Progress, replica: ReplicaStatus, members: Members) -> SyncStatus:
    """Return how catch-up stands; `height` is this node's own, `members` decide the next one."""
    others = [peer.member for peer in replica.peers if members.index(peer.member) is not None]
    known = len(others) >= min(members.f + 1, members.n - 1)
    target = max(network_height(height, replica), progress.target if progress.running else 0)
    return SyncStatus(
        running=progress.running,
        caught_up=known and target <= height,
        from_height=progress.from_height,
        height=height,
        target=target,
        blocks_per_s=round(progress.blocks_per_s, 1),
        transactions_per_s=round(progress.transactions_per_s, 1),
        eta_ms=None if progress.eta_s is None else _ms(progress.eta_s),
        elapsed_ms=_ms(progress.elapsed_s),
        waited_ms=_ms(progress.waited_s),
        blocks=progress.blocks_total,
        transactions=progress.transactions_total,
        bytes=progress.bytes_total,
        held_bytes=progress.held_bytes,
        faults=progress.faults_total,
        asked=tuple(
            PeerAsked(id=ask.peer, first=ask.first, last=ask.last, for_ms=_ms(ask.for_s)) for ask in progress.asks
        ),
        left_out=tuple(
            PeerLeftOut(id=item.peer, reason=item.reason, for_ms=_ms(item.remaining_s)) for item in progress.aside
        ),
        problem=progress.problem,
        lowest_served=progress.unservable or None,
    )


def add_sync_gauges(
    gauge: Callable[[str, str, Callable[[], float]], None], progress: Callable[[], Progress]
) -> None:
    """The metrics `hansa_sync_…` show what `progress` returns."""
    shown: tuple[tuple[str, str, Callable[[Progress], float]], ...] = (
        ("running", "1 while blocks are fetched, else 0", lambda now: int(now.running)),
        ("target_height", "Height that catch-up is on its way to, or was last", lambda now: now.target),
        ("blocks_per_second", "Blocks a second of the last ten seconds", lambda now: now.blocks_per_s),
        ("transactions_per_second", "Transactions a second, likewise", lambda now: now.transactions_per_s),
        ("peers_asked", "Peers that are asked for blocks now", lambda now: len(now.asks)),
        (
            "peers_left_out",
            "Peers that are not asked for a while: slow, at fault or gone",
            lambda now: len(now.aside),
        ),
        ("held_bytes", "Bytes of blocks that are fetched and not yet applied", lambda now: now.held_bytes),
        ("blocks", "Blocks that came by catch-up since the start", lambda now: now.blocks_total),
        ("transactions", "Transactions in them", lambda now: now.transactions_total),
        ("bytes", "Bytes of blocks that were fetched since the start", lambda now: now.bytes_total),
        ("faults", "Answers that were no good since the start", lambda now: now.faults_total),
        ("waited_seconds", "Of this run, or the last: without a block at hand", lambda now: now.waited_s),
        (
            "lowest_served",
            "Lowest height that a peer serves when none serves the next block, else 0",
            lambda now: now.unservable,
        ),
    )
    for name, text, read in shown:
        gauge(f"hansa_sync_{name}", text, lambda read=read: read(progress()))  # type: ignore[misc]


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
