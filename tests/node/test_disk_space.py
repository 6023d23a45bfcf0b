"""The disk fills up: who is told when, what stops, and that it goes on by itself."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from node.config import DiskSettings
from node.errors import Unavailable
from node.runtime import disk_space
from node.runtime.disk_space import DiskSpace
from node.store.room import free_bytes

MB = 1024 * 1024
SETTINGS = DiskSettings(low_bytes=400 * MB, reserve_bytes=100 * MB)


class Inline:
    """Work is done at once, where it is asked for."""

    async def write(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


class Disk:
    """A disk whose room a test sets; `changes` are what was told."""

    def __init__(self, free: int | None) -> None:
        self.free = free
        self.changes: list[tuple[bool, bool]] = []
        threads: Any = Inline()
        self.space = DiskSpace(SETTINGS, lambda: self.free, threads, self._changed)

    def _changed(self) -> None:
        self.changes.append((self.space.low, self.space.short))

    async def look(self, free: int | None) -> None:
        self.free = free
        looking = asyncio.create_task(self.space.watch())
        for _ in range(5):
            await asyncio.sleep(0)
        looking.cancel()
        assert self.space.free_bytes == free


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space, "LOOK_INTERVAL_MS", 0)


async def test_it_warns_first_then_stops_and_goes_on_only_well_above_the_reserve() -> None:
    disk = Disk(900 * MB)
    seen = []
    for free in (400, 399, 100, 99, 110, 124, 125, 401):
        await disk.look(free * MB)
        seen.append((free, disk.space.low, disk.space.short))
    assert seen == [
        (400, False, False),
        (399, True, False),
        (100, True, False),
        (99, True, True),
        (110, True, True),
        (124, True, True),
        (125, True, False),
        (401, False, False),
    ]
    assert disk.changes == [(True, False), (True, True), (True, False), (False, False)]


async def test_a_node_that_starts_below_the_reserve_is_short_from_the_start() -> None:
    disk = Disk(20 * MB)
    assert disk.space.short
    assert disk.changes == []
    assert disk.space.sentence == (
        "20 MB free, 104 MB kept in reserve; free disk: it goes on by itself from 131 MB on, without a restart"
    )
    refusal = disk.space.refusal()
    assert refusal is not None
    assert (refusal.code, refusal.entry.retryable) == ("disk_low", True)


async def test_whoever_waits_for_room_goes_on_when_there_is_some() -> None:
    disk = Disk(20 * MB)
    waiting = asyncio.create_task(disk.space.room())
    await disk.look(110 * MB)
    await asyncio.sleep(0)
    assert not waiting.done()
    await disk.look(130 * MB)
    await waiting
    await disk.space.room()
    assert disk.space.refusal() is None


async def test_a_node_that_closes_does_not_wait_for_room() -> None:
    disk = Disk(20 * MB)
    waiting = asyncio.create_task(disk.space.room())
    await asyncio.sleep(0)
    disk.space.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_look_that_fails_once_neither_ends_the_watch_nor_opens_the_room() -> None:
    """One failing system call, and a node on a full disk voted until a write failed, watched by nobody."""
    disk = Disk(20 * MB)
    waiting = asyncio.create_task(disk.space.room())
    watching = asyncio.create_task(disk.space.watch())
    disk.free = None
    for _ in range(5):
        await asyncio.sleep(0)
    assert not watching.done()
    assert not waiting.done()
    assert (disk.space.short, disk.space.free_bytes, disk.changes) == (True, 20 * MB, [])
    with pytest.raises(Unavailable, match="disk_low"):
        disk.space.require_room(1, "a snapshot")
    disk.free = 900 * MB
    await waiting
    assert disk.changes == [(False, False)]
    watching.cancel()


async def test_a_disk_found_full_while_the_node_closes_holds_nobody_up() -> None:
    """Catch-up waits for the block in its hand: had it to wait for room, the node would never end."""
    disk = Disk(900 * MB)
    disk.space.close()
    await disk.look(20 * MB)
    async with asyncio.timeout(5):
        await disk.space.room()


async def test_of_an_unknown_disk_nothing_is_concluded(tmp_path: Any) -> None:
    disk = Disk(None)
    assert (disk.space.low, disk.space.short) == (False, False)
    await disk.space.watch()  # ends: there is nothing to watch
    assert free_bytes(tmp_path / "nothing" / "here") is None
    assert (free_bytes(tmp_path) or 0) > 0
