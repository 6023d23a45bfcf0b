"""A load in the hands of processes of its own: signed by some, sent by others, and what came of it.

Nothing is signed while it is sent. A transaction's finality is measured from the time when its request was due
(so a sender or a node that falls behind shows in the figures) to the answer that it is final; the transactions of
one request are answered together, when the last of them is final.
"""

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from scripts.localnet.figures import Percentiles, percentiles_ms
from scripts.localnet.generator import Traffic
from scripts.localnet.layout import ROOT, TestnetError
from scripts.localnet.sender import Answered, Part, Plan
from scripts.localnet.signing import Order
from scripts.localnet.workload import SETUP_EXPIRES_MS, Shape, Workload

START_AFTER_S = 0.2
"""So long after the last sender is ready they all begin, by one clock."""
PATIENCE_S = 60.0
LINE_BYTES_MAX = 64 * 1024 * 1024


class LoadReport(msgspec.Struct, frozen=True):
    """What came of a load. `refused` counts refusals and fates but final by code; `failed_calls` outcomes but ok.

    `without_fate`: neither final nor refused in time. `seconds`: the time over which the rates are taken.
    `behind_ms`: how late requests left (p99). `told_when`: so many refusals said when to come again.
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
    told_when: int


class Signed(msgspec.Struct, frozen=True):
    """A load that can be sent: files of requests in their order. `bytes_each`: of a transaction's request part."""

    shape: Shape
    parts: tuple[Part, ...]

    @property
    def requests(self) -> int:
        """How many requests there are."""
        return sum(len(part.sizes) for part in self.parts)

    @property
    def bytes_each(self) -> int:
        """Bytes of a request for each of its transactions, on average."""
        total = sum(sum(part.sizes) for part in self.parts)
        return round(total / max(1, self.requests * self.shape.transactions_per_request))

    def remove(self) -> None:
        """The files are gone."""
        for part in self.parts:
            Path(part.path).unlink(missing_ok=True)


class Running:
    """A load that is being sent since `start_s`, a time of the monotonic clock."""

    def __init__(self, start_s: float, processes: Sequence[asyncio.subprocess.Process], files: Sequence[Path]):
        self.start_s = start_s
        self._processes = processes
        self._files = files

    async def answers(self) -> list[Answered]:
        """What became of every request, in the order of their due times, once all are answered or given up."""
        found: list[Answered] = []
        for process, file in zip(self._processes, self._files, strict=True):
            if await _line(process) != "done":
                raise TestnetError("a sender of the load ended early", exit_code=1)
            found += msgspec.msgpack.decode(file.read_bytes(), type=list[Answered])
        return sorted(found, key=lambda answer: answer.due_s)


async def sign(
    directory: Path,
    traffic: Traffic,
    workload: Workload,
    shape: Shape,
    *,
    requests: int | None = None,
    expires_in_ms: int = SETUP_EXPIRES_MS,
) -> Signed:
    """The requests of `shape` lie in `directory`, signed by as many processes as there are cores.

    `requests`: so many instead of the shape's own number.
    """
    total = shape.requests if requests is None else requests
    first = traffic.reserve(total * shape.transactions_per_request)
    count = max(1, min(os.cpu_count() or 1, total))
    bounds = [total * place // count for place in range(count + 1)]
    orders = [
        Order(
            workload,
            shape,
            traffic.seeds,
            first + bounds[place] * shape.transactions_per_request,
            bounds[place + 1] - bounds[place],
            str(directory / f"requests-{first}-{place}"),
            expires_in_ms,
        )
        for place in range(count)
    ]
    return Signed(shape, tuple(await asyncio.gather(*(_carry_out(order) for order in orders))))


@asynccontextmanager
async def sending(
    signed: Signed, urls: Sequence[str], *, senders: int = 1, window: int = 0, patience_s: float = PATIENCE_S
) -> AsyncIterator[Running]:
    """The load is on its way, in open loop or with `window` requests of each sender under way at a time.

    The senders are ended with the block of code.
    """
    addresses = tuple(_address(url) for url in urls)
    directory = Path(signed.parts[0].path).parent
    files = [directory / f"answers-{os.getpid()}-{time.monotonic_ns()}-{number}" for number in range(senders)]
    processes: list[asyncio.subprocess.Process] = []
    try:
        for number, file in enumerate(files):
            plan = Plan(
                addresses=addresses,
                parts=signed.parts,
                interval_s=signed.shape.interval_s,
                seconds=signed.shape.seconds,
                answers=str(file),
                transactions_per_request=signed.shape.transactions_per_request,
                first=number,
                stride=senders,
                window=window,
                patience_s=patience_s,
            )
            process = await _python("scripts.localnet.sender")
            processes.append(process)
            _tell(process, msgspec.json.encode(plan).decode())
        for process in processes:
            if await _line(process) != "ready":
                raise TestnetError("a sender of the load could not start", exit_code=1)
        start_s = time.monotonic() + START_AFTER_S
        for process in processes:
            _tell(process, repr(start_s))
        yield Running(start_s, processes, files)
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()
        for file in files:
            file.unlink(missing_ok=True)


def report(
    answers: Sequence[Answered], shape: Shape, begin_s: float = 0.0, end_s: float | None = None
) -> LoadReport:
    """The figures of those requests that were due from `begin_s` to `end_s`, seconds after the start.

    The rates are those of what was answered within that time, whenever it was due: work done, not work owed.
    Without an `end_s` it is the time of the last answer, but at least as long as the requests were spread over.
    """
    last_s = max((answer.answered_s for answer in answers), default=0.0)
    until_s = max(last_s, len(answers) * shape.interval_s) if end_s is None else end_s
    due = [answer for answer in answers if begin_s <= answer.due_s < until_s]
    done = [answer for answer in answers if begin_s <= answer.answered_s <= until_s and answer.answered_s]
    refused: Counter[str] = Counter()
    for answer in due:
        refused.update(answer.refused)
    sent = len(due) * shape.transactions_per_request
    final = sum(answer.final for answer in due)
    seconds = max(until_s - begin_s, 1e-6)
    return LoadReport(
        offered_per_s=round(sent / seconds, 1),
        sent=sent,
        final=final,
        refused=dict(refused),
        without_fate=sent - final - refused.total(),
        failed_calls=sum(answer.calls_failed for answer in due),
        seconds=round(seconds, 2),
        final_per_s=round(sum(answer.final for answer in done) / seconds, 1),
        calls_per_s=round(sum(answer.calls_ok for answer in done) / seconds, 1),
        latency_ms=percentiles_ms([a.answered_s - a.due_s for a in due for _ in range(a.final)]),
        behind_ms=percentiles_ms([a.left_s - a.due_s for a in due]).p99,
        told_when=sum(answer.told_when for answer in due),
    )


async def _carry_out(order: Order) -> Part:
    process = await _python("scripts.localnet.signing")
    try:
        _tell(process, msgspec.json.encode(order).decode())
        return msgspec.json.decode(await _line(process), type=Part)
    except msgspec.DecodeError as error:
        raise TestnetError("the load could not be signed", exit_code=1) from error
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _python(module: str) -> asyncio.subprocess.Process:
    """A Python process of this checkout; what it says on stderr is seen."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        module,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        limit=LINE_BYTES_MAX,
    )


def _tell(process: asyncio.subprocess.Process, line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line.encode() + b"\n")


async def _line(process: asyncio.subprocess.Process) -> str:
    """The next line that the process says, or an empty text when it has ended."""
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)
