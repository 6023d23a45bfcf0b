"""The threads beside the loop: order, outcomes, cancellation and the end."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from node.keys import SigningKey
from node.runtime.lane import Lane
from node.runtime.threads import (
    SIGNATURES_AT_ONCE_MAX,
    SIGNATURES_PER_JOB_MAX,
    SIGNATURES_PER_JOB_MIN,
    WorkerThreads,
)
from node.signatures import Signed
from node.signatures.apart import VerifyingProcess

KEY = SigningKey(bytes(32))


@pytest.fixture
def lane() -> Iterator[Lane]:
    made = Lane(1, "test")
    yield made
    made.close()


async def test_a_lane_of_one_thread_keeps_the_order(lane: Lane) -> None:
    order: list[int] = []
    await asyncio.gather(*(lane.call(partial(order.append, number)) for number in range(200)))
    assert order == list(range(200))


async def test_what_a_call_raises_is_raised_where_it_is_awaited(lane: Lane) -> None:
    def fails() -> None:
        raise LookupError("not here")

    with pytest.raises(LookupError, match="not here"):
        await lane.call(fails)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await lane.call(lambda: next(iter(())))
    assert await lane.call(lambda: 7) == 7, "the thread has outlived both"


async def test_who_is_cancelled_before_its_turn_is_never_called(lane: Lane) -> None:
    begun, go_on = threading.Event(), threading.Event()
    called: list[str] = []

    def slow() -> None:
        begun.set()
        go_on.wait()

    first = lane.call(slow)
    second = lane.call(partial(called.append, "second"))
    third = lane.call(partial(called.append, "third"))
    await asyncio.to_thread(begun.wait)
    second.cancel()
    go_on.set()
    await asyncio.gather(first, third)
    assert called == ["third"]


async def test_closing_ends_what_runs_and_cancels_what_waits() -> None:
    lane = Lane(1, "test")
    begun, done, given = threading.Event(), list[str](), list[asyncio.Future[None]]()

    def slow() -> None:
        begun.set()
        # `close` cancels what waits before it waits for what runs.
        while not given or not given[0].cancelled():
            time.sleep(0)
        done.append("slow")

    running = lane.call(slow)
    given.append(lane.call(partial(done.append, "waiting")))
    await asyncio.to_thread(begun.wait)
    lane.close()
    await running
    assert done == ["slow"]
    with pytest.raises(RuntimeError, match="shutdown"):
        lane.call(lambda: None)


async def test_a_lane_keeps_nothing_of_a_call_that_has_ended(lane: Lane) -> None:
    class Block:
        """Something large."""

    block = Block()
    alive = weakref.ref(block)
    await lane.call(partial(id, block))
    await lane.call(lambda: None)
    del block
    gc.collect()
    assert alive() is None


async def test_a_lane_keeps_nothing_of_a_call_that_was_cancelled(lane: Lane) -> None:
    class Block:
        """Something large."""

    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        go_on.wait()

    block = Block()
    alive = weakref.ref(block)
    first, second = lane.call(slow), lane.call(partial(id, block))
    await asyncio.to_thread(begun.wait)
    second.cancel()
    del block, second
    go_on.set()
    await first
    while alive() is not None:  # the lane's thread comes to it in its own time
        gc.collect()
        await asyncio.sleep(0)


async def test_a_thread_that_cannot_be_started_is_started_at_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = Lane(1, "test")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", _refused)
        with pytest.raises(RuntimeError, match="can't start"):
            lane.call(lambda: None)
    assert await lane.call(lambda: 7) == 7
    lane.close()


def _refused(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def verifying_processes() -> list[str]:
    """What this process has started to verify signatures."""
    found = []
    for file in Path("/proc/self/task").glob("*/children"):
        for pid in file.read_text().split():
            command = Path(f"/proc/{pid}/cmdline").read_text()
            if "node.signatures" in command:
                found.append(command)
    return found


async def test_a_large_request_does_not_hold_up_what_comes_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may send 80,000 signatures at once: in one piece they outlast the patience, and all else waits."""
    asked: list[int] = []

    def noted(self: VerifyingProcess, items: Sequence[Signed]) -> list[bool]:
        asked.append(len(items))
        return [True] * len(items)

    monkeypatch.setattr(VerifyingProcess, "verify_many", noted)
    threads = WorkerThreads(1)
    item = (KEY.public, b"a message", bytes(64))
    try:
        large = asyncio.create_task(threads.verify([item] * 80_000))
        await asyncio.sleep(0)
        assert all(await threads.verify([item] * 5))
        assert len(await large) == 80_000
    finally:
        threads.close()
    assert max(asked) <= 2_000, "a tenth of a second, or not much more"
    assert sum(asked) == 80_005
    assert asked.index(5) < 3
    threads.close()


@pytest.mark.parametrize(
    "count",
    [
        0,
        1,
        SIGNATURES_AT_ONCE_MAX,
        SIGNATURES_AT_ONCE_MAX + 1,
        3 * SIGNATURES_PER_JOB_MIN + 1,
        3 * SIGNATURES_PER_JOB_MAX + 1,
    ],
)
async def test_verdicts_come_in_the_order_of_the_signatures(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[OSError] = []
    monkeypatch.setattr("node.runtime.threads._verified_here", failed.append)
    threads = WorkerThreads(2)
    good = KEY.sign(b"a message")
    items = [(KEY.public, b"a message" if number % 3 else b"another", good) for number in range(count)]
    try:
        assert await threads.verify(items) == [bool(number % 3) for number in range(count)]
        jobs = 0 if count <= SIGNATURES_AT_ONCE_MAX else 1 if count < 2 * SIGNATURES_PER_JOB_MIN else 2
        assert len(verifying_processes()) == jobs
        assert not failed
    finally:
        threads.close()
