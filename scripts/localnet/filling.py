"""Fills the state with accounts, and measures what a transaction costs as the state grows."""

import asyncio
import tempfile
import time
from pathlib import Path

import msgspec
from rich.console import Console

from node.config import Parameters
from scripts.localnet import node_usage
from scripts.localnet.batches import batch_client
from scripts.localnet.figures import Percentiles
from scripts.localnet.layout import Layout, TestnetError
from scripts.localnet.load_cases import MANY_BITS
from scripts.localnet.loading import Loader
from scripts.localnet.nodes import Nodes
from scripts.localnet.open_loop import report, sending, sign
from scripts.localnet.plan import ExpectedCall, Group, Phase, bundles
from scripts.localnet.session import Session
from scripts.localnet.workload import CURRENCY, Shape

SIZES = (10_000, 100_000, 1_000_000)
BUNDLE_CALLS = 1_000
SLICE_ACCOUNTS = 100_000
"""So many are signed and opened at a time: their requests all expire an hour later."""
EXPIRES_MS = 60 * 60 * 1000
WARM_UP_S = 3.0


class Size(msgspec.Struct, frozen=True):
    """What a transaction costs (all nodes together) with so many accounts in the state, at the same rate."""

    accounts: int
    final_per_s: float
    latency_ms: Percentiles
    cpu_us_per_transaction: float
    rss_peak_mb: float
    disk_mb: float


def parameters() -> Parameters:
    """A network for a large state."""
    return Parameters(state_tree_bits=MANY_BITS)


async def measure(layout: Layout, nodes: Nodes, console: Console, shape: Shape) -> list[Size]:
    """The cost of a transaction with 10,000, 100,000 and a million accounts in the state."""
    session = Session(layout, nodes, console)
    traffic = await session.prepare_traffic()
    found: list[Size] = []
    there = 0
    for accounts in SIZES:
        console.print(f"state-size: {accounts:,} accounts")
        await open_accounts(session, accounts - there, first=there)
        there = accounts
        await asyncio.to_thread(nodes.wait_agreement)
        whole = msgspec.structs.replace(shape, seconds=WARM_UP_S + shape.seconds)
        with tempfile.TemporaryDirectory(prefix="load-", dir=layout.directory) as scratch:
            signed = await sign(Path(scratch), traffic, traffic.payments, whole)
            async with sending(signed, session.urls) as running:
                await asyncio.sleep(max(0.0, running.start_s + WARM_UP_S - time.monotonic()))
                node_usage.reset_peaks(nodes.network.members)
                before = await asyncio.to_thread(node_usage.look, nodes.network.members)
                await asyncio.sleep(max(0.0, running.start_s + whole.seconds - time.monotonic()))
                after = await asyncio.to_thread(node_usage.look, nodes.network.members)
                got = report(await running.answers(), whole, WARM_UP_S, whole.seconds)
        spent = node_usage.spent(before, after)
        found.append(
            Size(
                accounts=accounts,
                final_per_s=got.final_per_s,
                latency_ms=got.latency_ms,
                cpu_us_per_transaction=round(spent.per_transaction(spent.cpu_s * 1e6), 1),
                rss_peak_mb=round(max(node.rss_peak_mb for node in after.nodes), 1),
                disk_mb=round(max(node.disk_bytes for node in after.nodes) / 1e6, 1),
            )
        )
        console.print(
            f"state-size: {found[-1].cpu_us_per_transaction:,.0f} us a transaction, p99 {got.latency_ms.p99:.0f} ms"
        )
    return found


async def open_accounts(session: Session, count: int, first: int = 0) -> None:
    """`count` empty accounts more are in the state, `S-<number>` from `first` on. Raise TestnetError."""
    for start in range(first, first + count, SLICE_ACCOUNTS):
        await _open(session, start, min(first + count, start + SLICE_ACCOUNTS))


async def _open(session: Session, first: int, end: int) -> None:
    owners = session.members
    groups = []
    for number in range(first, end):
        owner = owners[number % len(owners)]
        args = {"account": f"S-{number:07d}", "owner": owner, "currency": CURRENCY}
        groups.append(Group(owner, (ExpectedCall("settlement", "open_account", args),)))
    phase = Phase("accounts", bundles(groups, f"state-{first}", BUNDLE_CALLS))
    async with batch_client(session.urls) as batches:
        expires_at_ms = time.time_ns() // 1_000_000 + EXPIRES_MS
        loader = Loader(batches, session.network_id, session.keys(owners), expires_at_ms)
        figures = await loader.run([phase], lambda what, calls: None)
    if not figures.ok:
        raise TestnetError(
            f"the accounts could not be opened: {figures.surprises or figures.without_fate}", exit_code=1
        )
