"""One process of a load generator: sends prepared HTTP requests at their due times, and notes what is answered.

Open loop: a request leaves when it is due, whether or not the earlier ones are answered, and its latency counts
from then; so neither a node that stands still nor this process hides what it delays (no coordinated omission). With
a `window` the loop is closed: so many requests are under way at any time, which finds the most that nodes take.

Everything is signed and laid out in files before, and there is no HTTP library here, for the generator shares its
machine with the nodes it measures: what it spends is taken from them.

    python -m scripts.localnet.sender     the plan as one line of JSON on stdin; "ready" on stdout; then the time to
                                          start on stdin; "done" when the answers lie in the plan's file
"""

import asyncio
import gc
import mmap
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import uvloop

from scripts.localnet.batches import Refusal, Result

CONNECTIONS_MAX = 200
"""To one node; a node's own limit is 256 by default."""


class Part(msgspec.Struct, frozen=True):
    """A file of whole HTTP requests, one after the other, and the size of each."""

    path: str
    sizes: tuple[int, ...]


class Plan(msgspec.Struct, frozen=True):
    """What one process sends: of all requests every `stride`-th from `first` on, to the nodes in turn.

    Request i is due i * `interval_s` after the start; with `window` > 0 requests follow one another instead, so
    many at a time, until `seconds` are over. What is not answered `patience_s` after the last was due (or after
    `seconds`) is given up. `addresses`: host and port of each node. `answers`: the file to write.
    """

    addresses: tuple[tuple[str, int], ...]
    parts: tuple[Part, ...]
    interval_s: float
    seconds: float
    answers: str
    transactions_per_request: int = 1
    first: int = 0
    stride: int = 1
    window: int = 0
    patience_s: float = 60.0


class Answered(msgspec.Struct, frozen=True, array_like=True):
    """One request: when it was due, left and was answered (0.0: never), in seconds after the start.

    `final`, `pending` and `refused` (by code) count its transactions; a query that was answered counts as final.
    `told_when` of the refused heard when to come again.
    """

    due_s: float
    left_s: float
    answered_s: float
    final: int = 0
    pending: int = 0
    refused: dict[str, int] = {}
    calls_ok: int = 0
    calls_failed: int = 0
    told_when: int = 0


class _Fates(msgspec.Struct):
    """A batch's answer, or any other: a query's has neither field."""

    results: tuple[Result, ...] = ()
    error: Refusal | None = None


_read_fates = msgspec.json.Decoder(_Fates).decode


class Connections:
    """Connections to one node, opened when needed and used again."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._room = asyncio.Semaphore(CONNECTIONS_MAX)

    async def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Send one HTTP/1.1 request; return status and body of its answer. Raise OSError or EOFError."""
        async with self._room:
            reader, writer = await self._take()
            try:
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
                body = await reader.readexactly(int(length))
            except BaseException:
                writer.close()
                raise
            if b"\r\nconnection: close" in head:
                writer.close()
            else:
                self._free.append((reader, writer))
            return int(head[9:12]), body

    async def _take(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(*self._address)

    def close(self) -> None:
        """No connection is open."""
        for _, writer in self._free:
            writer.close()


class Sender:
    """Carries out a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._nodes = [Connections(host, port) for host, port in plan.addresses]
        self._answers: list[Answered] = []
        self._open: dict[int, tuple[float, float]] = {}
        self._start_s = 0.0

    async def run(self, requests: list[tuple[int, memoryview]], start_s: float) -> list[Answered]:
        """Return what became of each request that left; `start_s` is a time of the monotonic clock."""
        plan = self._plan
        self._start_s = start_s
        await asyncio.sleep(max(0.0, start_s - time.monotonic()))
        sending = self._closed_loop(requests) if plan.window else self._open_loop(requests)
        last_s = plan.seconds if plan.window else requests[-1][0] * plan.interval_s if requests else 0.0
        give_up_s = start_s + last_s + plan.patience_s
        try:
            async with asyncio.timeout(max(0.0, give_up_s - time.monotonic())):
                await sending
        except TimeoutError:
            pass
        finally:
            for connections in self._nodes:
                connections.close()
        lost = [Answered(due, left, 0.0) for due, left in self._open.values()]
        return sorted([*self._answers, *lost], key=lambda answer: answer.due_s)

    async def _open_loop(self, requests: list[tuple[int, memoryview]]) -> None:
        interval_s = self._plan.interval_s
        async with asyncio.TaskGroup() as group:
            for index, data in requests:
                due_s = index * interval_s
                wait_s = due_s - self._now_s()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                # In the table at once: what never gets a connection was due all the same.
                self._open[index] = due_s, self._now_s()
                group.create_task(self._send(index, data, due_s))

    async def _closed_loop(self, requests: list[tuple[int, memoryview]]) -> None:
        waiting = iter(requests)
        async with asyncio.TaskGroup() as group:
            for _ in range(self._plan.window):
                group.create_task(self._follow(waiting))

    async def _follow(self, waiting: Iterator[tuple[int, memoryview]]) -> None:
        for index, data in waiting:
            now_s = self._now_s()
            if now_s >= self._plan.seconds:
                return
            self._open[index] = now_s, now_s
            await self._send(index, data, now_s)

    async def _send(self, index: int, data: memoryview, due_s: float) -> None:
        left_s = self._now_s()
        try:
            status, body = await self._nodes[index % len(self._nodes)].exchange(bytes(data))
            outcome = read_answer(status, body, self._plan.transactions_per_request)
        except (OSError, EOFError, ValueError, msgspec.DecodeError) as error:
            refused = {type(error).__name__: self._plan.transactions_per_request}
            outcome = Answered(0.0, 0.0, 0.0, refused=refused)
        del self._open[index]
        self._answers.append(msgspec.structs.replace(outcome, due_s=due_s, left_s=left_s, answered_s=self._now_s()))

    def _now_s(self) -> float:
        return time.monotonic() - self._start_s


def read_answer(status: int, body: bytes, transactions: int) -> Answered:
    """What an answer says of its transactions; one without results is a query's, or refuses the whole request."""
    answer = _read_fates(body)
    if not answer.results:
        if answer.error is None:
            return Answered(0.0, 0.0, 0.0, final=1)
        told = transactions if _told_when(answer.error) else 0
        return Answered(0.0, 0.0, 0.0, refused={f"{status} {answer.error.code}": transactions}, told_when=told)
    final = pending = ok = failed = told = 0
    refused: Counter[str] = Counter()
    for result in answer.results:
        if result.error is not None:
            refused[result.error.code] += 1
            told += _told_when(result.error)
        elif result.status == "final":
            final += 1
            good = sum(outcome.code == "ok" for outcome in result.receipts)
            ok += good
            failed += len(result.receipts) - good
        elif result.status == "pending":
            pending += 1
        else:
            refused[str(result.status)] += 1
    return Answered(0.0, 0.0, 0.0, final, pending, dict(refused), ok, failed, told)


def _told_when(refusal: Refusal) -> bool:
    return refusal.details is not None and refusal.details.retry_after_ms is not None


def read_requests(plan: Plan) -> list[tuple[int, memoryview]]:
    """The requests of this process with their numbers; the files stay on disk and in the system's cache."""
    found: list[tuple[int, memoryview]] = []
    index = 0
    for part in plan.parts:
        with Path(part.path).open("rb") as file:
            if not part.sizes:
                continue
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        at = 0
        for size in part.sizes:
            if index % plan.stride == plan.first:
                found.append((index, content[at : at + size]))
            at += size
            index += 1
    return found


async def _main() -> None:
    plan = msgspec.json.decode(sys.stdin.readline(), type=Plan)
    requests = read_requests(plan)
    gc.freeze()
    print("ready", flush=True)
    start_s = float(await asyncio.to_thread(sys.stdin.readline))
    answers = await Sender(plan).run(requests, start_s)
    await asyncio.to_thread(Path(plan.answers).write_bytes, msgspec.msgpack.encode(answers))
    print("done", flush=True)


if __name__ == "__main__":
    uvloop.run(_main())
