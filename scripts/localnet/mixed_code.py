"""What a network still does when one of its nodes runs other code under the same version: one load, by turns.

In each round the last node runs the network's code, then other bytes of a contract, then does not run. It is
started anew for each turn, and the load, at one rate for all, goes to the other nodes alone. A node with other
bytes follows and does not vote; one that is down leaves its share of this machine's cores to the others besides.
"""

import asyncio
import shutil
import time
from pathlib import Path

import msgspec
from rich.console import Console

from node.client import Client
from node.errors import HansaError
from scripts.localnet.document import Case, case_of
from scripts.localnet.figures import Spread, spread
from scripts.localnet.layout import ROOT, Member, TestnetError
from scripts.localnet.load_cases import HALF, LOAD_CASES, LoadCase
from scripts.localnet.measuring import Measuring, Run
from scripts.localnet.node_usage import Spent

SINGLE: LoadCase = LOAD_CASES["single"]
MODULE = "claims"
"""None of the load's own: what the node executes is the same."""
EQUAL, MIXED, ONE_DOWN = "equal-code", "mixed-code", "one-down"
NAMED_TIMEOUT_S = 60.0
POLL_S = 0.1


class Beside(msgspec.Struct, frozen=True):
    """A load, and its ratios to the same load under equal code, round by round.

    `others_cpu_ratio` is of the processor time that the other nodes spend on a transaction at the peak. Here all
    nodes share the cores; where each has a machine of its own, what they spend is what they can do.
    """

    case: Case
    peak_ratio: Spread
    others_cpu_ratio: Spread
    final_ratio: Spread
    p50_ratio: Spread
    p99_ratio: Spread


class MixedCode(msgspec.Struct, frozen=True):
    """The same load while all run one code, while the last node runs another one, and while it does not run."""

    equal: Case
    mixed: Beside
    one_down: Beside


def other_bytes(directory: Path) -> Path:
    """The code of this checkout with one more line in a contract's module, in a new `directory`."""
    directory.mkdir()
    for package in ("consensus", "node"):
        (directory / package).symlink_to(ROOT / package)
    shutil.copytree(ROOT / "contracts", directory / "contracts", ignore=shutil.ignore_patterns("__pycache__"))
    with (directory / "contracts" / f"{MODULE}.py").open("a") as module:
        module.write("# Another release under the same version.\n")
    return directory


async def measure(measuring: Measuring, console: Console) -> MixedCode:
    """The peak, and latency at half of the first peak, in each turn of each round."""
    last = measuring.nodes.network.members[-1]
    measuring.spared = last.id
    codes = {EQUAL: ROOT, MIXED: other_bytes(measuring.scratch / "other"), ONE_DOWN: None}
    peaks: dict[str, list[Spent]] = {name: [] for name in codes}
    runs: dict[str, list[Run]] = {name: [] for name in codes}
    for number in range(1, measuring.effort.repeats + 1):
        # Every other round goes the other way: what grows or slows down meanwhile favours neither.
        for name, code in list(codes.items())[:: 1 if number % 2 else -1]:
            await asyncio.to_thread(_arrange, measuring, last, code)
            await measuring.settled()
            peaks[name].append(await measuring.peak(SINGLE))
            await measuring.settled()
            rate = measuring.effort.rate or HALF * peaks[EQUAL][0].per_s
            runs[name].append(await measuring.open_loop(SINGLE, rate))
            await measuring.settled()
            if code not in {ROOT, None}:
                _require_named(measuring, last)
            found = runs[name][-1].report
            console.print(
                f"{name}: {number} of {measuring.effort.repeats}: peak {peaks[name][-1].per_s:,.0f}/s, offered"
                f" {found.offered_per_s:,.0f}/s, final {found.final_per_s:,.0f}/s,"
                f" p50 {found.latency_ms.p50:,.0f} ms, p99 {found.latency_ms.p99:,.0f} ms"
            )
    return MixedCode(
        _case(measuring, EQUAL, peaks, runs),
        _beside(measuring, MIXED, peaks, runs),
        _beside(measuring, ONE_DOWN, peaks, runs),
    )


def _arrange(measuring: Measuring, member: Member, code: Path | None) -> None:
    """The member's node was started anew with that code, and the others say what it is worth; None: it is down."""
    nodes = measuring.nodes
    nodes.end([nodes.network.member(member.id)], kill=False)
    if code is None:
        return
    nodes.wait_answers(nodes.start([nodes.network.member(member.id)], code))
    if code == ROOT:
        nodes.wait_agreement()
        return
    deadline = time.monotonic() + NAMED_TIMEOUT_S
    while True:
        try:
            _require_named(measuring, member)
            return
        except (TestnetError, HansaError):
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


def _require_named(measuring: Measuring, member: Member) -> None:
    """Raise TestnetError unless the node of other code has no vote, and every other node names the module."""
    for url in (*measuring.urls(), member.api):
        with Client(url) as client:
            said = " ".join(client.why().sentences)
            if member.id not in said or MODULE not in said:
                raise TestnetError(f"{url} does not say that {MODULE} differs at {member.id}: {said}", exit_code=1)
    with Client(member.api) as client:
        if client.status().voting:
            raise TestnetError(f"{member.id} votes with other code", exit_code=1)


def _case(measuring: Measuring, name: str, peaks: dict[str, list[Spent]], runs: dict[str, list[Run]]) -> Case:
    return case_of(name, len(measuring.nodes.network.members), measuring.limit_per_s, peaks[name], runs[name])


def _beside(measuring: Measuring, name: str, peaks: dict[str, list[Spent]], runs: dict[str, list[Run]]) -> Beside:
    def others_cpu_s(spent: Spent) -> float:
        return spent.per_transaction(sum(node.cpu_s for node in spent.nodes if node.member != measuring.spared))

    def ratios(now: list[float], equal: list[float]) -> Spread:
        return spread([one / max(other, 1e-9) for one, other in zip(now, equal, strict=True)], 3)

    reports = [run.report for run in runs[name]]
    before = [run.report for run in runs[EQUAL]]
    return Beside(
        _case(measuring, name, peaks, runs),
        ratios([one.per_s for one in peaks[name]], [one.per_s for one in peaks[EQUAL]]),
        ratios([others_cpu_s(one) for one in peaks[name]], [others_cpu_s(one) for one in peaks[EQUAL]]),
        ratios([one.final_per_s for one in reports], [one.final_per_s for one in before]),
        ratios([one.latency_ms.p50 for one in reports], [one.latency_ms.p50 for one in before]),
        ratios([one.latency_ms.p99 for one in reports], [one.latency_ms.p99 for one in before]),
    )
