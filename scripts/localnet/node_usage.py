"""What the nodes of a test network spend between two looks: processor, memory, disk, bytes sent to each other."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from scripts.localnet import processes
from scripts.localnet.layout import Member
from scripts.localnet.metrics import gauges


class NodeLook(msgspec.Struct, frozen=True):
    """Totals of one node since its start, at one time of the monotonic clock; `rss_peak_mb` since `reset_peaks`."""

    member: str
    at_s: float
    cpu_s: float
    rss_mb: float
    rss_peak_mb: float
    written_bytes: int
    disk_bytes: int
    sent_bytes: int
    synced_writes: int
    transactions: int
    blocks: int
    view: int


class Look(msgspec.Struct, frozen=True):
    """All nodes that run, each as soon as it answered, and of the machine `machine_time()`."""

    nodes: tuple[NodeLook, ...]
    machine_ticks: int = 0
    stolen_ticks: int = 0


class NodeSpent(msgspec.Struct, frozen=True):
    """What one node spent: seconds of its processor time, the peak of its memory, bytes sent and written."""

    member: str
    cpu_s: float
    rss_peak_mb: float
    sent_mb: float
    synced_writes: int
    written_mb: float
    disk_growth_mb: float


class Spent(msgspec.Struct, frozen=True):
    """What all nodes spent while `transactions` became final in `blocks` blocks. Per transaction: of all nodes.

    `stolen` is the share of the machine's processor time that its host gave to other machines meanwhile, of 1.
    """

    seconds: float
    transactions: int
    blocks: int
    view_changes: int
    nodes: tuple[NodeSpent, ...]
    stolen: float = 0.0

    @property
    def per_s(self) -> float:
        """Transactions that became final a second, whether or not their senders had heard of it by the end."""
        return round(self.transactions / self.seconds, 1) if self.seconds else 0.0

    @property
    def cpu_s(self) -> float:
        """Of all nodes together."""
        return sum(node.cpu_s for node in self.nodes)

    def per_transaction(self, total: float) -> float:
        """`total`, shared out."""
        return total / max(1, self.transactions)


def look(members: Sequence[Member]) -> Look:
    """Ask each of `members` whose process runs, all at once, and the system about it as soon as it has answered.

    A node under load answers late, up to a second: its totals are of that time, not of when it was asked.
    """
    running = [member for member in members if member.pid is not None and processes.usage(member.pid) is not None]
    # Before the threads: whoever walks through a directory keeps the others from looking at the clock.
    disk_bytes = [disk_usage(Path(member.data_dir)) for member in running]
    with ThreadPoolExecutor(max(1, len(running))) as threads:
        found = list(threads.map(_node_look, running, disk_bytes))
    machine_ticks, stolen_ticks = machine_time()
    return Look(tuple(node for node in found if node is not None), machine_ticks, stolen_ticks)


def _node_look(member: Member, disk_bytes: int) -> NodeLook | None:
    """None: it is gone since it answered. Raise OSError when it does not answer."""
    told = gauges(member.api)
    at_s = time.monotonic()
    usage = None if member.pid is None else processes.usage(member.pid)
    if usage is None:
        return None
    return NodeLook(
        member=member.id,
        at_s=at_s,
        cpu_s=usage.cpu_s,
        rss_mb=usage.rss_mb,
        rss_peak_mb=usage.rss_peak_mb,
        written_bytes=usage.written_bytes,
        disk_bytes=disk_bytes,
        sent_bytes=int(told.get("hansa_peer_sent_bytes", 0)),
        synced_writes=int(told.get("hansa_synced_writes", 0)),
        transactions=int(told["hansa_transactions_applied_total"]),
        blocks=int(told["hansa_blocks_applied_total"]),
        view=int(told["hansa_view"]),
    )


def machine_time() -> tuple[int, int]:
    """The ticks of all cores since the machine's start, idle ones too, and those that its host gave to others."""
    _, *ticks = Path("/proc/stat").read_text().partition("\n")[0].split()
    # man 5 proc_stat: user nice system idle iowait irq softirq steal; guests' time is in user and nice already.
    return sum(map(int, ticks[:8])), int(ticks[7])


def reset_peaks(members: Sequence[Member]) -> None:
    """The peak of every node's memory is what it uses now."""
    for member in members:
        if member.pid is not None:
            processes.reset_peak(member.pid)


def spent(before: Look, after: Look) -> Spent:
    """What lies between two looks at the same nodes."""
    earlier = {node.member: node for node in before.nodes}
    pairs = [(earlier[node.member], node) for node in after.nodes if node.member in earlier]
    transactions, blocks, seconds = max(
        ((new.transactions - old.transactions, new.blocks - old.blocks, new.at_s - old.at_s) for old, new in pairs),
        default=(0, 0, 0.0),
    )
    return Spent(
        seconds=seconds,
        transactions=transactions,
        blocks=blocks,
        view_changes=max((new.view - old.view for old, new in pairs), default=0),
        nodes=tuple(
            NodeSpent(
                member=new.member,
                cpu_s=round(new.cpu_s - old.cpu_s, 2),
                rss_peak_mb=round(new.rss_peak_mb, 1),
                sent_mb=round((new.sent_bytes - old.sent_bytes) / 1e6, 2),
                synced_writes=new.synced_writes - old.synced_writes,
                written_mb=round((new.written_bytes - old.written_bytes) / 1e6, 2),
                disk_growth_mb=round((new.disk_bytes - old.disk_bytes) / 1e6, 2),
            )
            for old, new in pairs
        ),
        stolen=round(
            (after.stolen_ticks - before.stolen_ticks) / max(1, after.machine_ticks - before.machine_ticks), 3
        ),
    )


def disk_usage(directory: Path) -> int:
    """Return how many bytes of the disk the files in `directory` take; one that vanishes counts as none."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total
