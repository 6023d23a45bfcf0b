"""Carries out phases of work through the nodes' HTTP interfaces and keeps account of every outcome."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import msgspec

from node.client import AsyncClient, Fate, sign
from node.errors import HansaError
from node.keys import SigningKey
from scripts.localnet.figures import Percentiles, percentiles_ms
from scripts.localnet.plan import Bundle, Phase

OnProgress: TypeAlias = Callable[[str, int], None]
"""Is told the phase and the number of its calls that ended just now."""

IN_FLIGHT_MAX = 8
IN_FLIGHT_SINGLES_MAX = 192
FATE_TIMEOUT_S = 120.0
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
        self, clients: Sequence[AsyncClient], network: str, keys: Mapping[str, SigningKey], expires_at_ms: int
    ) -> None:
        """`keys` holds the key of every sender. The same work with the same expiry makes the same transactions."""
        self._clients = clients
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
        waiting = iter(enumerate(phase.bundles))
        singles = phase.calls == len(phase.bundles)
        workers = IN_FLIGHT_SINGLES_MAX if singles else IN_FLIGHT_MAX
        async with asyncio.TaskGroup() as group:
            for _ in range(min(workers, len(phase.bundles))):
                group.create_task(self._work(waiting, lambda calls: on_progress(phase.what, calls)))

    async def _work(self, waiting: Iterator[tuple[int, Bundle]], on_done: Callable[[int], None]) -> None:
        for number, bundle in waiting:
            await self._settle(self._clients[number % len(self._clients)], bundle)
            on_done(len(bundle.calls))

    async def _settle(self, client: AsyncClient, bundle: Bundle) -> None:
        """The bundle has its fate, or is noted as a surprise."""
        body = bundle.body(self._network, self._expires_at_ms)
        transaction = sign(body, [self._keys[bundle.sender]])
        started = time.perf_counter()
        try:
            fate = await client.submit_and_wait(transaction, FATE_TIMEOUT_S)
        except HansaError as error:
            self._surprise(f"{bundle.request_id}: {error}")
            return
        self._latencies.append(time.perf_counter() - started)
        if fate.status == "pending":
            self._without_fate.append(transaction.tx_id.hex())
        elif fate.status != "final":
            self._surprise(f"{bundle.request_id}: {fate.status} {fate.code or ''}".rstrip())
        else:
            self._compare(bundle, fate)

    def _compare(self, bundle: Bundle, fate: Fate) -> None:
        self._codes.update(outcome.code for outcome in fate.receipts)
        if len(fate.receipts) != len(bundle.calls):
            self._surprise(f"{bundle.request_id}: {len(fate.receipts)} receipts for {len(bundle.calls)} calls")
        for call, outcome in zip(bundle.calls, fate.receipts, strict=False):
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


@contextlib.asynccontextmanager
async def node_clients(urls: Sequence[str]) -> AsyncIterator[list[AsyncClient]]:
    """One client a node, each of which goes on with the other nodes when its own is down or busy."""
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(AsyncClient([*urls[place:], *urls[:place]], patience_s=60.0))
            for place in range(len(urls))
        ]
