"""Measures load cases on a running network: the peak, then a load in open loop, warm, again and again.

The peak is what becomes final a second while enough requests are under way to fill every block (a closed loop). All
latencies come from the open loop, at a given rate or at half the peak. What the first seconds bring is not counted.
"""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from rich.console import Console

from scripts.localnet import node_usage
from scripts.localnet.batches import batch_client
from scripts.localnet.document import Case, case_of
from scripts.localnet.generator import Traffic
from scripts.localnet.layout import Layout, Member, TestnetError
from scripts.localnet.load_cases import HALF, LoadCase
from scripts.localnet.loading import Loader
from scripts.localnet.node_usage import Spent
from scripts.localnet.nodes import Nodes
from scripts.localnet.open_loop import LoadReport, Signed, report, sending, sign
from scripts.localnet.plan import ExpectedCall, Group, Phase, bundles
from scripts.localnet.sender import Answered
from scripts.localnet.session import Session
from scripts.localnet.workload import (
    CLAIMS_ACCOUNT,
    CURRENCY,
    LIMIT_CENTS,
    PERIL,
    POLICIES,
    POLICY_DAYS,
    PRODUCT,
    ClaimWork,
    Shape,
    Workload,
    load_account,
    policy_of,
)

T = TypeVar("T")

WINDOW_CALLS = 8_000
"""So many calls are under way when the peak is sought: two blocks' worth, or more by WINDOW_REQUESTS_MIN."""
WINDOW_REQUESTS_MIN = 4
"""To each node, however many calls each holds: with two, a block may wait for the answers to the last."""
PEAK_SHARE = 0.7
"""No network has been seen to do more than this share of the limit: so many are signed for a peak."""
CALLS_PER_S_MAX = 40_000
WARM_UP_S = 5.0
WARM_UP_SHARE = 0.25
FUNDS_CENTS = 10**15
QUESTION_PATIENCE_S = 10.0
STOLEN_MAX = 0.1
"""Of the machine's time in a run: with more taken away the figure is of the host and not of the ledger."""
SETTLE_TIMEOUT_S = 180.0


class Effort(msgspec.Struct, frozen=True):
    """How thoroughly is measured: seconds of each run, repeats, and a rate instead of the cases' own.

    A run of which the machine's host took more than STOLEN_MAX for others is done `again` so many times at most.
    """

    seconds: float
    repeats: int
    rate: float | None = None
    again: int = 0

    @property
    def warm_up_s(self) -> float:
        """What goes before each run uncounted."""
        return min(WARM_UP_S, self.seconds * WARM_UP_SHARE)


class Run(msgspec.Struct, frozen=True):
    """One repeat in open loop. `queries`: those asked beside it. `bytes_each`: of a transaction as it was sent."""

    report: LoadReport
    spent: Spent
    bytes_each: int
    queries: LoadReport | None = None

    @property
    def rss_peak_mb(self) -> float:
        """Of the largest node."""
        return max((node.rss_peak_mb for node in self.spent.nodes), default=0.0)


class Measuring:
    """A network and the traffic on it. `limit_per_s`: the most single-call transactions to be verified here."""

    def __init__(
        self, layout: Layout, nodes: Nodes, console: Console, scratch: Path, effort: Effort, limit_per_s: float
    ) -> None:
        self.session = Session(layout, nodes, console)
        self.nodes = nodes
        self.effort = effort
        self.scratch = scratch
        self.limit_per_s = limit_per_s
        self.spared = ""
        """This member's node is sent nothing."""
        self._console = console
        self._traffic: dict[int, Traffic] = {}
        self._claims: ClaimWork | None = None

    async def case(self, case: LoadCase) -> Case:
        """The medians of the case over its repeats."""
        down = self._stop_last(case.down)
        try:
            peaks: list[Spent] = []
            runs: list[Run] = []
            for number in range(1, self.effort.repeats + 1):
                rate = case.rate if self.effort.rate is None else self.effort.rate
                if rate is None:
                    peaks.append(await self.peak(case))
                    rate = HALF * peaks[-1].per_s
                runs.append(await self.open_loop(case, rate))
                self._say(case, number, peaks, runs[-1])
                await self.settled()
        finally:
            if down:
                self.nodes.start([self.nodes.network.member(member.id) for member in down])
                await asyncio.to_thread(self.nodes.wait_agreement)
        return case_of(case.name, len(self.nodes.network.members), self.limit_per_s, peaks, runs)

    async def peak(self, case: LoadCase) -> Spent:
        """What the nodes spend, and do a second, while the blocks are full."""
        return await self._least_disturbed(case, functools.partial(self._peak, case), lambda spent: spent)

    async def open_loop(self, case: LoadCase, rate: float) -> Run:
        """One run of the case at that rate."""
        return await self._least_disturbed(
            case, functools.partial(self._open_loop, case, rate), lambda run: run.spent
        )

    async def _least_disturbed(
        self, case: LoadCase, run: Callable[[], Awaitable[T]], spent: Callable[[T], Spent]
    ) -> T:
        async def again() -> T:
            self._console.print(f"{case.name}: the machine's host took too much of it, so this is done again")
            await self.settled()
            return await run()

        return await least_disturbed(run, again, lambda found: spent(found).stolen, self.effort.again)

    async def _peak(self, case: LoadCase) -> Spent:
        traffic, workload = await self.work(case)
        seconds = self.effort.warm_up_s + self.effort.seconds
        guess = min(PEAK_SHARE * self.limit_per_s, CALLS_PER_S_MAX / case.calls)
        shape = msgspec.structs.replace(case.shape(guess, seconds), transactions_per_request=case.per_request)
        window = max(WINDOW_REQUESTS_MIN * len(self.urls()), WINDOW_CALLS // (case.calls * case.per_request))
        signed = await sign(self.scratch, traffic, workload, shape)
        try:
            _, spent = await self._sent(signed, window)
        finally:
            signed.remove()
        if not spent.transactions:
            raise TestnetError(f"nothing became final within {seconds:g} s: take more --seconds", exit_code=1)
        return spent

    async def _open_loop(self, case: LoadCase, rate: float) -> Run:
        traffic, workload = await self.work(case)
        shape = case.shape(rate, self.effort.warm_up_s + self.effort.seconds)
        signed = await sign(self.scratch, traffic, workload, shape)
        questions = await self._questions(case, traffic)
        try:
            if questions is None:
                return await self.send(signed)
            async with sending(questions, self.urls()[:1], patience_s=QUESTION_PATIENCE_S) as asking:
                run = await self.send(signed)
                answers = await asking.answers()
            asked = report(answers, questions.shape, self.effort.warm_up_s, questions.shape.seconds)
            return msgspec.structs.replace(run, queries=asked)
        finally:
            for laid in (signed, questions):
                if laid is not None:
                    laid.remove()

    async def send(self, signed: Signed) -> Run:
        """The load was sent, and its figures after the warm-up."""
        answers, spent = await self._sent(signed)
        return Run(
            report=report(answers, signed.shape, self.effort.warm_up_s, signed.shape.seconds),
            spent=spent,
            bytes_each=signed.bytes_each,
        )

    async def _sent(self, signed: Signed, window: int = 0) -> tuple[list[Answered], Spent]:
        """What became of each request, and what the nodes spent after the warm-up while it was sent."""
        members = self._running()
        async with sending(signed, self.urls(), window=window) as running:
            await _until(running.start_s + self.effort.warm_up_s)
            await asyncio.to_thread(node_usage.reset_peaks, members)
            before = await asyncio.to_thread(node_usage.look, members)
            await _until(running.start_s + signed.shape.seconds)
            after = await asyncio.to_thread(node_usage.look, members)
            return await running.answers(), node_usage.spent(before, after)

    async def work(self, case: LoadCase) -> tuple[Traffic, Workload]:
        """What the case sends; its accounts exist."""
        per_member = max(2, case.accounts // len(self.nodes.network.members))
        if per_member not in self._traffic:
            self._console.print(f"{case.name}: {case.accounts:,} accounts")
            self._traffic[per_member] = await self.session.prepare_traffic(accounts_per_member=per_member)
        traffic = self._traffic[per_member]
        if case.work == "payments":
            return traffic, traffic.payments
        if self._claims is None:
            self._claims = await _insure(self.session, traffic.tag)
        return traffic, self._claims

    async def settled(self) -> None:
        """The nodes that run agree, and nothing waits."""
        await asyncio.to_thread(self.nodes.wait_agreement, SETTLE_TIMEOUT_S)

    def urls(self) -> list[str]:
        """The nodes that run and are sent something."""
        return [member.api for member in self._running() if member.id != self.spared]

    async def _questions(self, case: LoadCase, traffic: Traffic) -> Signed | None:
        if not case.queries_per_s:
            return None
        seconds = self.effort.warm_up_s + self.effort.seconds
        shape = Shape(rate=case.queries_per_s, seconds=seconds, transactions_per_request=1)
        return await sign(self.scratch, traffic, traffic.questions, shape)

    def _running(self) -> list[Member]:
        return [member for member in self.nodes.network.members if self.nodes.runs(member)]

    def _stop_last(self, count: int) -> list[Member]:
        last = list(self.nodes.network.members[-count:]) if count else []
        self.nodes.end(last, kill=True)
        return last

    def _say(self, case: LoadCase, number: int, peaks: Sequence[Spent], run: Run) -> None:
        peak = f"peak {peaks[-1].per_s:,.0f}/s, then " if peaks else ""
        latency = run.report.latency_ms
        self._console.print(
            f"{case.name}: {number} of {self.effort.repeats}: {peak}offered {run.report.offered_per_s:,.0f}/s,"
            f" final {run.report.final_per_s:,.0f}/s, p50 {latency.p50:,.0f} ms, p99 {latency.p99:,.0f} ms"
        )


async def least_disturbed(
    run: Callable[[], Awaitable[T]], again: Callable[[], Awaitable[T]], stolen: Callable[[T], float], times: int
) -> T:
    """What `run` finds, or `again`, at most `times`, while more than STOLEN_MAX is stolen: the least disturbed."""
    found = [await run()]
    while stolen(found[-1]) > STOLEN_MAX and len(found) <= times:
        found.append(await again())
    return min(found, key=stolen)


async def _until(at_s: float) -> None:
    await asyncio.sleep(max(0.0, at_s - time.monotonic()))


async def _insure(session: Session, tag: str) -> ClaimWork:
    """An insurer with money, a product and policies; its claims can be made. Raise RuntimeError."""
    insurer = session.members[-1]
    account = {"account": CLAIMS_ACCOUNT, "owner": insurer, "currency": CURRENCY, "operators": ("@claims",)}
    product = {
        "product": PRODUCT,
        "insurer": insurer,
        "account": CLAIMS_ACCOUNT,
        "perils": (PERIL,),
        "limit": LIMIT_CENTS,
        "deductible": 0,
        "coinsurance_bp": 0,
        "waiting_days": 0,
        "notice_days": 0,
        "authority_limit": LIMIT_CENTS,
        "evidence_required": False,
        "staff": (),
    }
    policies = [
        ExpectedCall(
            "claims",
            "bind_policy",
            {
                "policy": policy_of(tag, number),
                "product": PRODUCT,
                "payee": load_account(insurer, number % 2),
                "inception_day": 0,
                "expiry_day": POLICY_DAYS,
            },
        )
        for number in range(POLICIES)
    ]
    setup = (
        ExpectedCall("settlement", "open_account", account),
        ExpectedCall("claims", "create_product", product),
        *policies,
    )
    funds = ExpectedCall("settlement", "issue", {"account": CLAIMS_ACCOUNT, "amount": FUNDS_CENTS})
    issuer = session.issuer
    phases = [
        Phase("insurance", bundles([Group(insurer, setup)], f"load-{tag}/insurance")),
        Phase("reserve", bundles([Group(issuer, (funds,))], f"load-{tag}/reserve")),
    ]
    async with batch_client(session.urls) as batches:
        expires_at_ms = time.time_ns() // 1_000_000 + 30 * 60 * 1000
        keys = session.keys(dict.fromkeys((insurer, issuer)))
        figures = await Loader(batches, session.network_id, keys, expires_at_ms).run(
            phases, lambda what, calls: None
        )
    if not figures.ok:
        raise RuntimeError(f"the insurer could not be set up: {figures.surprises or figures.without_fate}")
    return ClaimWork(insurer, tag)
