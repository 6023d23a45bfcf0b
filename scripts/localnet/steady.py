"""A steady load in a thread of its own: transfers at a rate, each sent again to the next node until it has its
fate.

That is what a careful client does: a node that vanishes takes no transaction with it, because its client still has
it.
"""

import asyncio
import threading
import time

import msgspec
from rich.console import Console

from scripts.localnet.batches import batch_client
from scripts.localnet.generator import Traffic
from scripts.localnet.layout import Layout, TestnetError
from scripts.localnet.nodes import Nodes
from scripts.localnet.session import Session

REQUESTS_PER_S = 10


class SteadyReport(msgspec.Struct, frozen=True):
    """What came of it: transactions `sent`, `final`, `lost` (no fate, or another). `longest_s`: until a fate."""

    sent: int
    final: int
    lost: int
    seconds: float
    longest_s: float


class SteadyLoad:
    """Signed transfers to all nodes in turn, from `start` to `finish`."""

    def __init__(self, layout: Layout, nodes: Nodes, rate: float, console: Console) -> None:
        """`rate`: transactions a second."""
        self._session = Session(layout, nodes, console)
        self._batch = max(1, round(rate / REQUESTS_PER_S))
        self._interval_s = self._batch / rate
        self._stop = threading.Event()
        self._begun = threading.Event()
        self._failure: BaseException | None = None
        self._sent = self._final = 0
        self._seconds = self._longest_s = 0.0
        self._thread = threading.Thread(target=self._run, name="steady load", daemon=True)

    def start(self) -> None:
        """The load accounts exist, and transfers are being sent. Raise TestnetError when they cannot be."""
        self._thread.start()
        self._begun.wait()
        self._raise()

    def wait(self, seconds: float) -> None:
        """So many seconds of load have passed; raise TestnetError when it has ended."""
        self._stop.wait(seconds)
        self._raise()

    def finish(self) -> SteadyReport:
        """Return what came of it, once every transaction has its fate or two minutes have passed."""
        self._stop.set()
        self._thread.join()
        self._raise()
        lost = self._sent - self._final
        return SteadyReport(self._sent, self._final, lost, round(self._seconds, 1), round(self._longest_s, 2))

    def _raise(self) -> None:
        if self._failure is not None:
            raise TestnetError(f"the load failed: {self._failure}", exit_code=1)

    def _run(self) -> None:
        try:
            asyncio.run(self._send())
        except Exception as failure:
            self._failure = failure
        finally:
            self._begun.set()

    async def _send(self) -> None:
        traffic = await self._session.prepare_traffic()
        self._begun.set()
        started = time.monotonic()
        async with batch_client(self._session.urls) as batches, asyncio.TaskGroup() as group:

            async def settle(place: int, traffic: Traffic) -> None:
                sent = time.monotonic()
                transactions = [traffic.transaction() for _ in range(self._batch)]
                self._sent += len(transactions)
                results = await batches.settle(place, transactions)
                self._final += sum(result.status == "final" for result in results)
                self._longest_s = max(self._longest_s, time.monotonic() - sent)

            place = 0
            while not self._stop.is_set():
                group.create_task(settle(place, traffic))
                place += 1
                await asyncio.sleep(max(0.0, started + place * self._interval_s - time.monotonic()))
        self._seconds = time.monotonic() - started
