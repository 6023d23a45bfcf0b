"""An open-loop load: signed transfers sent at their due times whether or not the earlier ones are final.

Everything is signed before the clock starts. A transaction's finality is measured from the time when it was due to
be sent (so a generator or a node that falls behind shows in the figures) to the answer that it is final; the
transactions of one request are answered together, when the last of them is final.
"""

import asyncio
import itertools
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from node.client import AsyncClient, call, draft, sign
from node.errors import HansaError
from node.keys import SigningKey
from node.ledger import Call, Transaction
from scripts.localnet.batches import BatchClient, Result, batch
from scripts.localnet.figures import Percentiles, percentiles_ms
from scripts.localnet.loading import Loader
from scripts.localnet.plan import ExpectedCall, Group, Phase, bundles

ACCOUNTS_PER_MEMBER = 50
FUNDING_CENTS = 10**12
CURRENCY = "USD"
SETUP_EXPIRES_MS = 30 * 60 * 1000


class Shape(msgspec.Struct, frozen=True):
    """What is sent: transactions a second for some seconds, their calls, and how many go into one request."""

    rate: float
    seconds: float
    calls: int = 1
    transactions_per_request: int = 50

    @property
    def requests(self) -> int:
        """How many requests that makes."""
        return max(1, round(self.rate * self.seconds / self.transactions_per_request))


class LoadReport(msgspec.Struct, frozen=True):
    """What came of it. `refused` counts refusals and fates but final by code; `failed_calls` outcomes but ok.

    `without_fate`: neither final nor refused in time. `seconds`: from the first request to the last answer.
    `behind_ms`: how late requests left (p99).
    """

    offered_per_s: float
    sent: int
    final: int
    refused: dict[str, int]
    without_fate: int
    failed_calls: int
    seconds: float
    final_per_s: float
    calls_per_s: float
    latency_ms: Percentiles
    behind_ms: float


class Traffic:
    """Transfers among load accounts, `L-<member>-<number>`, that have more money than any run moves."""

    def __init__(self, network: str, keys: Mapping[str, SigningKey], issuer: str) -> None:
        """`keys` are those of the members' root principals."""
        self._network = network
        self._keys = keys
        self._issuer = issuer
        self._members = sorted(keys)
        self._tag = secrets.token_hex(6)
        self._numbers = itertools.count()

    async def prepare(
        self, client: AsyncClient, batches: BatchClient, expires_in_ms: int = SETUP_EXPIRES_MS
    ) -> None:
        """The load accounts exist and are funded; raise RuntimeError when the network refuses them."""
        missing = [owner for owner in self._members if not await _exists(client, load_account(owner, 0))]
        accounts = [(owner, load_account(owner, n)) for owner in missing for n in range(ACCOUNTS_PER_MEMBER)]
        opened = [
            _group(owner, "open_account", account=account, owner=owner, currency=CURRENCY)
            for owner, account in accounts
        ]
        funded = [_group(self._issuer, "issue", account=account, amount=FUNDING_CENTS) for _, account in accounts]
        phases = [
            Phase(what, bundles(groups, f"load-{self._tag}/{what}"))
            for what, groups in (("accounts", opened), ("money", funded))
        ]
        expires_at_ms = time.time_ns() // 1_000_000 + expires_in_ms
        loader = Loader(batches, self._network, self._keys, expires_at_ms)
        figures = await loader.run(phases, lambda what, calls: None)
        if not figures.ok:
            raise RuntimeError(f"the load accounts could not be made: {figures.surprises or figures.without_fate}")

    def transaction(self, calls: int = 1) -> bytes:
        """The next signed transaction; the members take turns as its sender."""
        return self.signed(calls).data

    def signed(self, calls: int = 1, expires_in_ms: int = SETUP_EXPIRES_MS) -> Transaction:
        """The next transaction, as a value."""
        number = next(self._numbers)
        sender = self._members[number % len(self._members)]
        body = draft(
            self._network,
            sender,
            [self._transfer(sender, number + place) for place in range(calls)],
            request_id=f"load-{self._tag}-{number}",
            expires_in_ms=expires_in_ms,
            mode="each",
        )
        return sign(body, [self._keys[sender]])

    def requests(self, shape: Shape) -> list[bytes]:
        """The bodies of all requests of a run, signed."""
        return [
            batch([self.transaction(shape.calls) for _ in range(shape.transactions_per_request)])
            for _ in range(shape.requests)
        ]

    def _transfer(self, sender: str, number: int) -> Call:
        other = self._members[(number // 7) % len(self._members)]
        debtor = load_account(sender, number % ACCOUNTS_PER_MEMBER)
        creditor = load_account(other, (number + 1) % ACCOUNTS_PER_MEMBER)
        return call("settlement.transfer", {"debtor": debtor, "creditor": creditor, "amount": 1})


async def run(batches: BatchClient, bodies: Sequence[bytes], shape: Shape) -> LoadReport:
    """Send the requests to the nodes in turn, each at its time, and report when all have their answers."""
    run_ = _Run(batches, shape)
    await run_.send(bodies)
    return run_.report(len(bodies) * shape.transactions_per_request)


class _Run:
    def __init__(self, batches: BatchClient, shape: Shape) -> None:
        self._batches = batches
        self._shape = shape
        self._latencies: list[float] = []
        self._behind: list[float] = []
        self._refused: Counter[str] = Counter()
        self._without_fate = 0
        self._calls_ok = 0
        self._calls_failed = 0
        self._last_answer = 0.0
        self._started = 0.0

    async def send(self, bodies: Sequence[bytes]) -> None:
        interval = self._shape.transactions_per_request / self._shape.rate
        self._started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number, body in enumerate(bodies):
                due = self._started + number * interval
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(self._post(number, body, due))

    async def _post(self, place: int, body: bytes, due: float) -> None:
        self._behind.append(time.perf_counter() - due)
        results = await self._batches.post(place, body, self._shape.transactions_per_request)
        now = time.perf_counter()
        for result in results:
            self._count(result, now - due)
        self._last_answer = max(self._last_answer, now)

    def _count(self, result: Result, latency: float) -> None:
        if result.error is not None:
            self._refused[result.error.code] += 1
        elif result.status == "pending":
            self._without_fate += 1
        elif result.status != "final":
            self._refused[str(result.status)] += 1
        else:
            self._latencies.append(latency)
            ok = sum(outcome.code == "ok" for outcome in result.receipts)
            self._calls_ok += ok
            self._calls_failed += len(result.receipts) - ok

    def report(self, sent: int) -> LoadReport:
        # A run lasts at least as long as its requests were spread over, the last one's interval included.
        seconds = max(self._last_answer - self._started, sent / self._shape.rate)
        return LoadReport(
            offered_per_s=round(self._shape.rate, 1),
            sent=sent,
            final=len(self._latencies),
            refused=dict(self._refused),
            without_fate=self._without_fate,
            failed_calls=self._calls_failed,
            seconds=round(seconds, 2),
            final_per_s=round(len(self._latencies) / seconds, 1),
            calls_per_s=round(self._calls_ok / seconds, 1),
            latency_ms=percentiles_ms(self._latencies),
            behind_ms=percentiles_ms(self._behind).p99,
        )


async def one_at_a_time(client: AsyncClient, traffic: Traffic, count: int) -> list[float]:
    """Seconds from submit to final of `count` transactions, each sent when the one before was final."""
    latencies = []
    for _ in range(count):
        transaction = traffic.transaction()
        started = time.perf_counter()
        fate = await client.submit_and_wait(transaction)
        latencies.append(time.perf_counter() - started)
        if not fate.ok:
            raise RuntimeError(f"a transaction of an idle network is {fate.status}")
    return latencies


async def _exists(client: AsyncClient, account: str) -> bool:
    try:
        await client.query("settlement.balance", {"account": account})
    except HansaError as error:
        if error.code == "query_refused":
            return False
        raise
    return True


def load_account(owner: str, number: int) -> str:
    """An account of the load."""
    return f"L-{owner}-{number}"


def _group(sender: str, method: str, **args: str | int) -> Group:
    return Group(sender, (ExpectedCall("settlement", method, args),))
