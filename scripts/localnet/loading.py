"""Carries out phases of work through the nodes' HTTP interfaces and keeps account of every outcome."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import msgspec

from node.client import sign
from node.keys import SigningKey
from scripts.localnet.batches import BatchClient, Result
from scripts.localnet.figures import Percentiles, percentiles_ms
from scripts.localnet.plan import Bundle, Phase

OnProgress: TypeAlias = Callable[[str, int], None]
"""Is told the phase and the number of its calls that ended just now."""

IN_FLIGHT_MAX = 8
SINGLES_PER_REQUEST = 50
SURPRISES_SHOWN_MAX = 20


class PhaseFigures(msgspec.Struct, frozen=True):
    """How one phase went. Finality is from the submission of a transaction to the answer that it is final."""

    what: str
    transactions: int
    calls: int
    seconds: float
    transactions_per_s: float
    calls_per_s: float
    finality_ms: Percentiles


class LoadFigures(msgspec.Struct, frozen=True):
    """How all the work went. `codes` counts the outcomes of calls; `surprises` are those that were not expected.

    `without_fate` names transactions that were neither final nor refused when the time was over.
    """

    phases: tuple[PhaseFigures, ...]
    total: PhaseFigures
    codes: dict[str, int]
    surprises: tuple[str, ...]
    without_fate: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every call ended as expected."""
        return not self.surprises and not self.without_fate


class Loader:
    """Submits bundles to all nodes in turn and waits for their fates, some at a time."""

    def __init__(
        self, batches: BatchClient, network: str, keys: Mapping[str, SigningKey], expires_at_ms: int
    ) -> None:
        """`keys` holds the key of every sender. The same work with the same expiry makes the same transactions."""
        self._batches = batches
        self._network = network
        self._keys = keys
        self._expires_at_ms = expires_at_ms
        self._codes: Counter[str] = Counter()
        self._surprises: list[str] = []
        self._without_fate: list[str] = []
        self._latencies: list[float] = []

    async def run(self, phases: Sequence[Phase], on_progress: OnProgress) -> LoadFigures:
        """All the work is done, phase after phase; `on_progress` hears of the phase and its calls as they end."""
        started = time.perf_counter()
        done = []
        for phase in phases:
            first = len(self._latencies)
            phase_started = time.perf_counter()
            await self._run_phase(phase, on_progress)
            seconds = time.perf_counter() - phase_started
            done.append(_figures(phase.what, len(phase.bundles), phase.calls, seconds, self._latencies[first:]))
        calls = sum(phase.calls for phase in phases)
        total = _figures("all", len(self._latencies), calls, time.perf_counter() - started, self._latencies)
        return LoadFigures(tuple(done), total, dict(self._codes), tuple(self._surprises), tuple(self._without_fate))

    async def _run_phase(self, phase: Phase, on_progress: OnProgress) -> None:
        size = SINGLES_PER_REQUEST if phase.calls == len(phase.bundles) else 1
        requests = [phase.bundles[start : start + size] for start in range(0, len(phase.bundles), size)]
        waiting = iter(enumerate(requests))
        async with asyncio.TaskGroup() as group:
            for _ in range(min(IN_FLIGHT_MAX, len(requests))):
                group.create_task(self._work(waiting, lambda calls: on_progress(phase.what, calls)))

    async def _work(
        self, waiting: Iterator[tuple[int, tuple[Bundle, ...]]], on_done: Callable[[int], None]
    ) -> None:
        for number, request in waiting:
            await self._settle(number, request)
            on_done(sum(len(bundle.calls) for bundle in request))

    async def _settle(self, place: int, request: tuple[Bundle, ...]) -> None:
        """The bundles have their fates; what is not as expected is noted as a surprise."""
        transactions = [
            sign(bundle.body(self._network, self._expires_at_ms), [self._keys[bundle.sender]]) for bundle in request
        ]
        started = time.perf_counter()
        results = await self._batches.settle(place, [transaction.data for transaction in transactions])
        seconds = time.perf_counter() - started
        for bundle, transaction, result in zip(request, transactions, results, strict=True):
            if result.status == "final":
                self._latencies.append(seconds)
                self._compare(bundle, result)
            elif result.is_open:
                self._without_fate.append(transaction.tx_id.hex())
            else:
                self._surprise(f"{bundle.request_id}: {result.error.code if result.error else result.status}")

    def _compare(self, bundle: Bundle, result: Result) -> None:
        self._codes.update(outcome.code for outcome in result.receipts)
        if len(result.receipts) != len(bundle.calls):
            self._surprise(f"{bundle.request_id}: {len(result.receipts)} receipts for {len(bundle.calls)} calls")
        for call, outcome in zip(bundle.calls, result.receipts, strict=False):
            if outcome.code != call.code:
                self._surprise(
                    f"{bundle.request_id}: {call.contract}.{call.method} {call.args}: "
                    f"{outcome.code} instead of {call.code}"
                )

    def _surprise(self, text: str) -> None:
        if len(self._surprises) < SURPRISES_SHOWN_MAX:
            self._surprises.append(text)


def _figures(what: str, transactions: int, calls: int, seconds: float, latencies: list[float]) -> PhaseFigures:
    return PhaseFigures(
        what=what,
        transactions=transactions,
        calls=calls,
        seconds=round(seconds, 2),
        transactions_per_s=round(transactions / max(seconds, 1e-9), 1),
        calls_per_s=round(calls / max(seconds, 1e-9), 1),
        finality_ms=percentiles_ms(latencies),
    )
