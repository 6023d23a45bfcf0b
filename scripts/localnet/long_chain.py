"""What becomes of a ledger with millions of transactions: room, verification, start, snapshot, join, full replay.

The chain is made (chain_factory.py) in one member's directory and given to two others; the fourth member has
nothing. All that is measured from then on is what an operator runs: `hansa verify`, and nodes that open the chain,
vote on it, make a snapshot of it and serve it.
"""

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from node.client import Client, NodeStatus, draft, sign
from node.config import SyncSettings, dump_node, load_node
from node.snapshot import read_manifest
from node.snapshot.folder import snapshot_at
from scripts.localnet import processes
from scripts.localnet.chain_factory import Built, Part, build, chain_plan, signing_keys, spread_chain
from scripts.localnet.chain_plan import ChainPlan, Size, parameters
from scripts.localnet.founding import found
from scripts.localnet.layout import ROOT, Layout, Member, TestnetError
from scripts.localnet.metrics import gauge
from scripts.localnet.node_usage import disk_usage
from scripts.localnet.nodes import HANSA, Nodes, node_status

MEMBERS = 4
STARTS = 3
AFTER_SNAPSHOT = 2
"""So many blocks are decided above the snapshot: who joins from it has a little to catch up with."""
POLL_S = 0.1
STEP_TIMEOUT_S = 1_200.0
"""For a start, or a snapshot, of nodes with a chain of any length that this can measure."""
REPLAY_TIMEOUT_S = 4 * 3600.0
"""A full replay of millions of transactions takes its time."""
COLUMNS = 50


class Used(msgspec.Struct, frozen=True):
    """What a process has used: CPU seconds, and at its peak its own memory and all that it had resident (MB).

    LevelDB maps its tables: their pages are resident, and the kernel's to take back. `memory_mb` is without them.
    """

    cpu_s: float = 0.0
    memory_mb: float = 0.0
    rss_mb: float = 0.0


class Verified(msgspec.Struct, frozen=True):
    """One run of `hansa verify`, the start of its process included."""

    seconds: float
    transactions_per_s: float
    used: Used


class Started(msgspec.Struct, frozen=True):
    """From a process's start until its node is ready, two others running: median of `runs`; `used` by the last.

    `cold_s`: from the start of the first of three members that were all down until they agree.
    """

    cold_s: float
    ready_s: float
    runs: tuple[float, ...]
    used: Used


class SnapshotMade(msgspec.Struct, frozen=True):
    """The snapshot that every node made in the background: how long the slowest took, and its size."""

    height: int
    keys: int
    state_mb: float
    disk_mb: float
    made_s: float


class Joined(msgspec.Struct, frozen=True):
    """The empty member, from its start until it had the others' height and state root.

    `transactions_per_s` counts the whole chain, executed or not.
    """

    seconds: float
    transactions_per_s: float
    used: Used
    disk_mb: float


class LongChain(msgspec.Struct, frozen=True):
    """All of it. `join_times_faster`: seconds of the replay over those of the join from the snapshot."""

    size: Size
    built: Built
    verify_quick: Verified
    verify_full: Verified
    start: Started
    snapshot: SnapshotMade
    join: Joined
    replay: Joined
    join_times_faster: float


def measure(directory: Path, console: Console, size: Size, base_port: int) -> LongChain:
    """A chain of `size` was made in the empty `directory` and everything measured on it; no node runs any more.

    Raise TestnetError when anything is not as it has to be: the chain is refused, roots differ, a node does not
    come back.
    """
    layout = Layout(directory)
    made = found(layout, MEMBERS, base_port, parameters=parameters(size))
    plan = chain_plan(layout, size)
    built = build(layout, made.members[0], plan, console)
    if built.keys < size.keys:
        raise TestnetError(f"the chain has {built.keys:,} keys and not {size.keys:,}", exit_code=70)
    console.print(
        f"long-chain: {built.transactions:,} transactions in {built.height:,} blocks, {built.keys:,} keys, made in "
        f"{built.seconds:,.0f} s ({built.transactions_per_s:,.0f}/s), {built.disk_mb:,.0f} MB on disk",
        soft_wrap=True,
    )
    console.print(plot(built.parts), soft_wrap=True)
    spread_chain(made.members[0], made.members[1:-1])
    quick, full = (_verify(layout, made.members[0], built, console, quick=quick) for quick in (True, False))
    nodes = Nodes(layout)
    try:
        return _Measurement(layout, nodes, plan, built, console).run(quick, full)
    finally:
        nodes.end(nodes.network.members, kill=False)


class _Measurement:
    """Nodes on the chain: three that have it, and one that has nothing."""

    def __init__(self, layout: Layout, nodes: Nodes, plan: ChainPlan, built: Built, console: Console) -> None:
        self._layout = layout
        self._nodes = nodes
        self._plan = plan
        self._built = built
        self._console = console
        self._holders, self._empty = nodes.network.members[:-1], nodes.network.members[-1]

    def run(self, quick: Verified, full: Verified) -> LongChain:
        """Everything that takes nodes was measured; they run still."""
        started = self._start()
        snapshot = self._snapshot()
        join = self._come_up(SyncSettings(join_blocks_min=1), "snapshot", snapshot.height + 1)
        replay = self._come_up(SyncSettings(join="replay"), "replay", 1)
        faster = round(replay.seconds / join.seconds, 1)
        self._console.print(f"long-chain: the join from the snapshot is {faster:g} times faster than the replay")
        return LongChain(self._plan.size, self._built, quick, full, started, snapshot, join, replay, faster)

    def _start(self) -> Started:
        """Three nodes run on the chain that was made, and agree."""
        began = time.monotonic()
        self._nodes.start(self._holders)
        self._nodes.wait_agreement(STEP_TIMEOUT_S)
        cold_s = time.monotonic() - began
        name = self._holders[-1].id
        runs = []
        for _ in range(STARTS):
            self._nodes.end([self._nodes.network.member(name)], kill=False)
            began = time.monotonic()
            [member] = self._nodes.start([self._nodes.network.member(name)])
            _, used = self._wait(
                member, "ready", lambda answer: answer.ready and answer.height == self._built.height
            )
            runs.append(round(time.monotonic() - began, 2))
        ready_s = statistics.median(runs)
        self._console.print(f"long-chain: ready {ready_s:g} s after the start, all at once {cold_s:.2f} s")
        return Started(round(cold_s, 2), ready_s, tuple(runs), used)

    def _snapshot(self) -> SnapshotMade:
        """The next block is decided, every node has made its snapshot of it, and a few blocks stand above it."""
        height = self._built.height + 1
        keys = signing_keys(self._layout, self._plan.owners)
        with Client([member.api for member in self._holders]) as client:
            for number in range(1 + AFTER_SNAPSHOT):
                sender, call = self._plan.payment(self._plan.size.transactions + number)
                fate = client.submit_and_wait(sign(draft(self._plan.network, sender, [call]), [keys[sender]]))
                if fate.height != height + number:
                    raise TestnetError(f"a payment is {fate.status} in block {fate.height}, not {height + number}")
        apis = [member.api for member in self._holders]
        self._wait(
            self._nodes.network.member(self._holders[0].id),
            "snapshot",
            lambda _: all(gauge(api, "hansa_snapshot_height") >= height for api in apis),
        )
        made_s = max(gauge(api, "hansa_snapshot_last_ms") for api in apis) / 1000
        folder = snapshot_at(Path(self._holders[0].data_dir).parent / "snapshots", height)
        content = read_manifest(folder.manifest_bytes()).content
        made = SnapshotMade(
            height=height,
            keys=content.keys,
            state_mb=round(content.size_bytes / 1e6, 1),
            disk_mb=round(folder.size_bytes() / 1e6, 1),
            made_s=round(made_s, 1),
        )
        self._console.print(
            f"long-chain: a snapshot of {made.keys:,} keys, {made.disk_mb:g} MB, made in {made.made_s:g} s beside"
        )
        return made

    def _come_up(self, settings: SyncSettings, how: str, first_block: int) -> Joined:
        """The last member, which begins with nothing, stands where the others do, in the way of `settings`."""
        path = self._layout.node_file(self._empty.id)
        path.write_text(dump_node(msgspec.structs.replace(load_node(path), sync=settings)))
        target = node_status(self._holders[0])
        if target is None:
            raise TestnetError(f"{self._holders[0].id} does not answer")
        self._nodes.end([self._nodes.network.member(self._empty.id)], kill=False)
        self._nodes.delete_data(self._empty)
        began = time.monotonic()
        [member] = self._nodes.start([self._nodes.network.member(self._empty.id)])
        answer, used = self._wait(
            member, how, lambda answer: answer.height >= target.height and answer.joining is None, target.height
        )
        seconds = time.monotonic() - began
        if (answer.height, answer.state_root) != (target.height, target.state_root):
            raise TestnetError(f"{member.id} has come to another state than {target.member}", exit_code=70)
        if answer.first_block != first_block:
            raise TestnetError(f"{member.id} has its blocks from {answer.first_block} on, not {first_block}")
        transactions = self._built.transactions + 1 + AFTER_SNAPSHOT
        joined = Joined(
            seconds=round(seconds, 2),
            transactions_per_s=round(transactions / seconds, 1),
            used=used,
            disk_mb=round(disk_usage(Path(member.data_dir)) / 1e6, 1),
        )
        self._console.print(f"long-chain: by {how} in {joined.seconds:,.1f} s, {used.memory_mb:,.0f} MB of memory")
        return joined

    def _wait(
        self, member: Member, what: str, is_done: Callable[[NodeStatus], bool], target: int | None = None
    ) -> tuple[NodeStatus, Used]:
        """What the node says of itself once `is_done`, and what it was seen to use until then.

        With a `target`, a height that it comes up to, a bar shows its height and it has longer.
        """
        timeout_s = STEP_TIMEOUT_S if target is None else REPLAY_TIMEOUT_S
        deadline = time.monotonic() + timeout_s
        used, answer = Used(), None
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        ) as progress:
            task = progress.add_task(f"{member.id}: {what}", total=target)
            while time.monotonic() < deadline:
                answer = node_status(member)
                used = _look(member.pid, used)
                if answer is not None and is_done(answer):
                    return answer, used
                if answer is not None and target is not None:
                    progress.update(task, completed=answer.height)
                if not processes.is_alive(member.pid, member.started_ticks):
                    raise TestnetError(f"{member.id} ended: {self._nodes.last_log_line(member)}", exit_code=3)
                time.sleep(POLL_S)
        said = "it does not answer" if answer is None else "; ".join(answer.reasons)
        raise TestnetError(f"{member.id}: {what} not within {timeout_s:g} s: {said}", exit_code=1)


def plot(parts: Sequence[Part]) -> str:
    """Return a plot in text: the chain downwards, microseconds each to the right (#: execute, +: apply).

    The bytes that were written to disk are for a transaction too.
    """
    peak = max(part.total_us for part in parts)
    lines = [f"{'transactions':>12} {'keys':>10} {'MB':>8} {'us each':>8} {'us CPU':>8} {'written':>8}"]
    for part in parts:
        bars = (mark * round(us / peak * COLUMNS) for mark, us in (("#", part.execute_us), ("+", part.apply_us)))
        figures = (
            f"{part.transactions:12,} {part.keys:10,} {part.disk_mb:8,.0f} {part.total_us:8.1f} {part.cpu_us:8.1f}"
            f" {part.written_bytes:8,.0f}"
        )
        lines.append(f"{figures}  {''.join(bars)}")
    return "\n".join(lines)


def _verify(layout: Layout, member: Member, built: Built, console: Console, *, quick: bool) -> Verified:
    """`hansa verify` finds the whole chain right."""
    command = [*HANSA, "verify", *(["--quick"] if quick else []), "--json", "--dir"]
    began = time.monotonic()
    with console.status("hansa verify --quick" if quick else "hansa verify"):
        report, used = _run([*command, str(layout.member_dir(member.id))])
    seconds = time.monotonic() - began
    if not report["ok"] or (report["height"], report["transactions"]) != (built.height, built.transactions):
        raise TestnetError(f"the chain is refused: {report['first_error']}", exit_code=3)
    if not quick and report["executed_from"] != 1:
        raise TestnetError("the chain was not executed again", exit_code=70)
    verified = Verified(round(seconds, 2), round(built.transactions / seconds, 1), used)
    console.print(
        f"long-chain: hansa verify{' --quick' if quick else ''} in {verified.seconds:,.1f} s "
        f"({verified.transactions_per_s:,.0f} transactions/s), {used.memory_mb:,.0f} MB of memory",
        soft_wrap=True,
    )
    return verified


def _run(command: Sequence[str]) -> tuple[dict[str, Any], Used]:
    """Return the document that the command printed, and what it was seen to use."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    used = Used()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        # Not by wait4: what it says counts this process too, of which the child was for a moment a copy.
        while process.poll() is None:
            used = _look(process.pid, used)
            time.sleep(POLL_S)
        text = b"" if process.stdout is None else process.stdout.read()
    try:
        return json.loads(text), used
    except ValueError as error:
        raise TestnetError(f"{' '.join(command[-3:])} exited {process.returncode}", exit_code=3) from error


def _look(pid: int | None, before: Used) -> Used:
    """What the process has used by now, its peaks no lower than `before`; that itself when it is gone."""
    found = None if pid is None else processes.usage(pid)
    if found is None:
        return before
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return before
    own_kb = [int(line.split()[1]) for line in lines if line.startswith("RssAnon:")]
    memory_mb = round(max(own_kb, default=0) / 1024, 1)
    return Used(round(found.cpu_s, 1), max(before.memory_mb, memory_mb), round(found.rss_peak_mb, 1))
