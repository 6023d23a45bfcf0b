"""The journal: nobody is told that it is durable before it is, however many share a sync."""

import asyncio
import threading
from collections.abc import Iterator, Sequence

import pytest

from node.errors import StoreError
from node.runtime.journal import Entry, Journal
from node.runtime.threads import WorkerThreads

A, B, C, D = ((letter * 32, letter) for letter in (b"a", b"b", b"c", b"d"))


class Disk:
    """Writes when the test lets it; `fails` says which write (from 1 on) is refused."""

    def __init__(self) -> None:
        self.written: list[list[Entry]] = []
        self.fails = 0
        self.free = threading.Event()
        self.busy = threading.Event()

    def write(self, entries: Sequence[Entry]) -> None:
        self.busy.set()
        assert self.free.wait(30)
        self.written.append(list(entries))
        if len(self.written) == self.fails:
            raise StoreError("disk_full", "no room")


@pytest.fixture
def threads() -> Iterator[WorkerThreads]:
    made = WorkerThreads(1)
    yield made
    made.close()


async def _behind(journal: Journal, disk: Disk, *entries: Entry) -> list[asyncio.Task[None]]:
    """Puts of one entry each: the first is at the disk, the others wait behind it."""
    puts = [asyncio.create_task(journal.put([entries[0]]))]
    await asyncio.to_thread(disk.busy.wait, 30)
    puts += [asyncio.create_task(journal.put([entry])) for entry in entries[1:]]
    await asyncio.sleep(0)
    return puts


async def test_what_comes_during_a_sync_shares_the_next_one(threads: WorkerThreads) -> None:
    disk = Disk()
    puts = await _behind(Journal(disk.write, threads), disk, A, B, C, D)
    assert not any(put.done() for put in puts)
    disk.free.set()
    await asyncio.gather(*puts)
    assert disk.written == [[A], [B, C, D]]


async def test_nobody_returns_before_its_own_is_written(threads: WorkerThreads) -> None:
    disk = Disk()
    disk.free.set()
    journal = Journal(disk.write, threads)

    async def put(entry: Entry) -> None:
        await journal.put([entry])
        assert any(entry in batch for batch in disk.written)

    await asyncio.gather(*(put((bytes((number,)) * 32, b"x")) for number in range(100)))
    assert sum(map(len, disk.written)) == 100


async def test_a_write_that_fails_fails_for_all_that_were_in_it_and_for_no_other(threads: WorkerThreads) -> None:
    disk = Disk()
    disk.fails = 2
    journal = Journal(disk.write, threads)
    puts = await _behind(journal, disk, A, B, C)
    disk.free.set()
    outcomes = await asyncio.gather(*puts, return_exceptions=True)
    assert outcomes[0] is None
    assert [getattr(outcome, "code", None) for outcome in outcomes[1:]] == ["disk_full"] * 2
    await journal.put([D])
    assert disk.written[-1] == [D], "what failed is not tried again behind anybody's back"


async def test_who_gives_up_waiting_takes_nothing_from_the_others(threads: WorkerThreads) -> None:
    disk = Disk()
    puts = await _behind(Journal(disk.write, threads), disk, A, B, C)
    puts[1].cancel()
    disk.free.set()
    assert [type(outcome) for outcome in await asyncio.gather(*puts, return_exceptions=True)] == [
        type(None),
        asyncio.CancelledError,
        type(None),
    ]
    assert disk.written == [[A], [B, C]]
