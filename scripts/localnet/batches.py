"""Many transactions in one request, answered when all of them are final.

The Python client waits for one transaction a request, which is right for applications and costs a load generator
more processor time than the nodes have left on the same machine.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx
import msgspec

from consensus.codec import encode

WAIT_S = 60
CONNECTIONS_MAX = 240
RETRY_PAUSE_S = 0.2
RETRY_FOR_S = 120.0


class Outcome(msgspec.Struct):
    """A call's outcome; its events are not read."""

    code: str


class RefusalDetails(msgspec.Struct):
    """When to come again, where the node says so."""

    retry_after_ms: int | None = None


class Refusal(msgspec.Struct):
    """Why a transaction was refused."""

    code: str
    retryable: bool = False
    details: RefusalDetails | None = None


class Result(msgspec.Struct):
    """A transaction's fate, or the error for which it was refused."""

    status: str | None = None
    receipts: tuple[Outcome, ...] = ()
    error: Refusal | None = None

    @property
    def is_open(self) -> bool:
        """Whether sending it again may still give another answer."""
        return self.status == "pending" if self.error is None else self.error.retryable


class _Answer(msgspec.Struct):
    results: tuple[Result, ...] = ()
    error: Refusal | None = None


_read = msgspec.json.Decoder(_Answer).decode


class BatchClient:
    """Posts batches to nodes. `place` counts through the nodes, so that callers spread their work."""

    def __init__(self, http: httpx.AsyncClient, urls: Sequence[str]) -> None:
        self._http = http
        self._urls = urls

    async def post(self, place: int, body: bytes, count: int) -> tuple[Result, ...]:
        """The results of the `count` transactions in `body` (see `batch`), from one attempt at one node.

        A node that does not answer, or refuses the whole request, gives every transaction that refusal.
        """
        try:
            response = await self._http.post(
                f"{self._urls[place % len(self._urls)]}/v1/transactions",
                params={"wait": "final", "timeout_s": str(WAIT_S)},
                content=body,
                headers={"content-type": "application/msgpack"},
            )
            answer = _read(response.content)
        except (httpx.TransportError, msgspec.DecodeError) as error:
            answer = _Answer(error=Refusal(type(error).__name__, retryable=True))
        if len(answer.results) == count:
            return answer.results
        return (Result(error=answer.error or Refusal("unexpected_answer")),) * count

    async def settle(self, place: int, transactions: Sequence[bytes]) -> list[Result]:
        """The result of each transaction, sent again to the next node while that may change it (two minutes)."""
        results = [Result(status="pending")] * len(transactions)
        deadline = time.monotonic() + RETRY_FOR_S
        while True:
            again = [index for index, result in enumerate(results) if result.is_open]
            answers = await self.post(place, batch([transactions[index] for index in again]), len(again))
            for index, answer in zip(again, answers, strict=True):
                results[index] = answer
            if not any(result.is_open for result in results) or time.monotonic() > deadline:
                return results
            place += 1
            await asyncio.sleep(RETRY_PAUSE_S)


def batch(transactions: Sequence[bytes]) -> bytes:
    """The body of a request with these transactions."""
    return encode(tuple(transactions))


@asynccontextmanager
async def batch_client(urls: Sequence[str]) -> AsyncIterator[BatchClient]:
    """A client for a block of code."""
    limits = httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX)
    async with httpx.AsyncClient(trust_env=False, limits=limits, timeout=httpx.Timeout(WAIT_S + 10)) as http:
        yield BatchClient(http, urls)
