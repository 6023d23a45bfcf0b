"""A real node on a small disk (a tmpfs of its own) that is filled at random moments under load, and freed again.

Two kinds of point. `reserve`: somebody fills the disk up to less than the reserve; the node must stop voting, say
so (`/readyz`, `why`, at itself and by its report at the others), take no transactions, serve reads, and vote again
by itself after space was freed. `full`: all but some kilobytes are taken at once, so that a write fails, whichever
comes first (a record, the journal, a block, LevelDB's log or a compaction); the node must end with exit code 3, or
have stopped before as above; after space was freed it starts, agrees with the others and votes. Nothing may be
lost.
"""

import asyncio
import contextlib
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec

from consensus.codec import encode
from node.client.answers import Diagnosis, NodeStatus
from scripts.localnet import processes
from scripts.localnet.generator import Traffic
from scripts.localnet.kills import beside
from scripts.localnet.layout import Layout, Member, TestnetError
from scripts.localnet.nodes import Nodes
from scripts.localnet.promises import Book, SteadyLoad, compare
from scripts.localnet.watch import Watch

MIB = 1024 * 1024
DISK_BYTES = 160 * MIB
RESERVE_BYTES = 32 * MIB
LOW_BYTES = 48 * MIB
LEFT_BYTES_MAX = 16 * 1024
"""Of a disk that is filled at once at most so much is left: a few writes find room, one does not."""
RATE = 60.0
CALM_S_MAX = 1.5
STOPS_S_MAX = 20.0
BACK_S_MAX = 120.0
PATIENCE_S = 90.0
STORE_EXIT = 3
ATTEMPTS = 50


class DiskPoint(msgspec.Struct, frozen=True):
    """One full disk. `ended` with that exit code, or None: it stopped voting and went on. Seconds."""

    kind: str
    free_bytes: int
    stopped_s: float | None
    ended: int | None
    reason: str
    back_s: float | None
    problems: tuple[str, ...]


class DiskReport(msgspec.Struct, frozen=True):
    """All points of a run, and how all promises were kept."""

    seed: int
    points: list[DiskPoint]
    accepted: int
    final: int
    expired: int
    problems: list[str]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every stop was clean and nothing was lost."""
        return not self.problems and not any(point.problems for point in self.points)


class SmallDisk:
    """The whole directory of one member, its log included, on a tmpfs of its own."""

    def __init__(self, directory: Path, size_bytes: int = DISK_BYTES) -> None:
        self._directory = directory
        self._filler = directory / "somebody-elses-file"
        self._size_bytes = size_bytes

    def mount(self) -> None:
        """The directory lies on a small disk; raise TestnetError where this user may not mount."""
        aside = self._directory.with_name(self._directory.name + ".aside")
        self._directory.rename(aside)
        self._directory.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={self._size_bytes}", "tmpfs", str(self._directory)]
        done = subprocess.run(command, capture_output=True, check=False, text=True)
        if done.returncode:
            self._directory.rmdir()
            aside.rename(self._directory)
            raise TestnetError(f"no small disk can be mounted here: {done.stderr.strip()}")
        shutil.copytree(aside, self._directory, dirs_exist_ok=True)
        shutil.rmtree(aside)

    def unmount(self) -> None:
        """Nothing is mounted any more, and what lay there is gone."""
        subprocess.run(["umount", "--lazy", str(self._directory)], capture_output=True, check=False)

    def free_bytes(self) -> int:
        """What is left for the node."""
        return shutil.disk_usage(self._directory).free

    def fill(self, left_bytes: int) -> None:
        """Somebody else takes all but about `left_bytes`."""
        with self._filler.open("ab") as file:
            for _ in range(ATTEMPTS):
                grow = self.free_bytes() - left_bytes
                if grow <= 0:
                    return
                # What the node takes meanwhile is not there any more: then for what is left once more.
                with contextlib.suppress(OSError):
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, grow)
                    return

    def free(self) -> None:
        """Somebody else has gone."""
        self._filler.unlink(missing_ok=True)


def use_small_disk(layout: Layout, member: Member) -> SmallDisk:
    """The member, which does not run, lies on a small disk and keeps a reserve that fits it."""
    disk = SmallDisk(layout.member_dir(member.id))
    disk.mount()
    file = layout.node_file(member.id)
    text = file.read_text()
    text = re.sub(r"(?m)^low_bytes = \d+$", f"low_bytes = {LOW_BYTES}", text)
    text = re.sub(r"(?m)^reserve_bytes = \d+$", f"reserve_bytes = {RESERVE_BYTES}", text)
    file.write_text(text)
    return disk


class DiskFiller:
    """Fills the disk of one member of a network that runs, and watches."""

    def __init__(self, nodes: Nodes, traffic: Traffic, member: str, disk: SmallDisk, seed: int) -> None:
        self._nodes = nodes
        self._traffic = traffic
        self._member = member
        self._disk = disk
        self._apis = {item.id: item.api for item in nodes.network.members}
        self._chance = random.Random(seed)
        self._seed = seed
        self._http = httpx.AsyncClient(trust_env=False, timeout=5.0, limits=httpx.Limits(max_connections=300))
        self._watch = Watch(self._http, self._apis)
        self._load = SteadyLoad(self._http, traffic, self._apis, random.Random(seed + 1))

    async def run(self, count: int, on_point: Callable[[DiskPoint], None]) -> DiskReport:
        """`count` points, kind by kind in turn; `on_point` hears of each."""
        started = time.monotonic()
        points: list[DiskPoint] = []
        async with self._http, beside(self._watch.run()):
            async with beside(self._load.run(RATE)):
                for number in range(count):
                    if not await self._watch.until(self._watch.ready, PATIENCE_S):
                        raise TestnetError("the network is not ready again", exit_code=1)
                    await asyncio.sleep(self._chance.uniform(0.0, CALM_S_MAX))
                    points.append(await self._point("reserve" if number % 3 == 2 else "full"))
                    on_point(points[-1])
            height = await asyncio.to_thread(self._nodes.wait_agreement, PATIENCE_S)
            book = Book(self._http, list(self._apis))
            await book.read_on(self._apis[self._member], height)
            await book.compare_balances(self._apis[self._member])
            fates = await compare(self._http, book, self._load, self._apis, [])
        return DiskReport(
            seed=self._seed,
            points=points,
            accepted=fates.accepted,
            final=fates.final,
            expired=fates.expired,
            problems=list(fates.problems),
            seconds=round(time.monotonic() - started, 1),
        )

    async def _point(self, kind: str) -> DiskPoint:
        problems: list[str] = []
        if kind == "reserve":
            left = self._chance.randrange(RESERVE_BYTES // 2, RESERVE_BYTES - 2 * MIB)
        else:
            left = self._chance.randrange(0, LEFT_BYTES_MAX)
        filled = time.monotonic()
        self._disk.fill(left)
        free = self._disk.free_bytes()
        ended, reason = await self._stopped()
        stopped_s = round(time.monotonic() - filled, 2) if reason else None
        if stopped_s is None:
            problems.append(f"it neither ended nor stopped voting within {STOPS_S_MAX:g} s")
        elif ended is None:
            try:
                problems += await self._still_serves()
            except httpx.TransportError:
                # On a full disk a write that was under way fails after the node has stopped voting.
                ended = await self._end()
                if kind == "reserve" or ended != STORE_EXIT:
                    problems.append(f"it stopped voting and then ended with {ended}")
        elif ended != STORE_EXIT or "disk_full" not in reason:
            problems.append(f"it ended with {ended}: {reason}")
        elif self._chance.random() < 0.3:
            problems += await self._start_on_full()
        back_s = await self._back(restart=ended is not None)
        if back_s is None:
            problems.append(f"it does not vote again within {BACK_S_MAX:g} s: {self._reasons()}")
        return DiskPoint(kind, free, stopped_s, ended, reason, back_s, tuple(problems))

    async def _stopped(self) -> tuple[int | None, str]:
        """(exit code, what it said) of a node that ended; (None, its reason) of one that stopped voting; "":
        neither."""
        member = self._nodes.network.member(self._member)
        deadline = time.monotonic() + STOPS_S_MAX
        while time.monotonic() < deadline:
            ended = exit_code(member)
            if ended is not None:
                return ended, await self._last_word()
            status = await self._status()
            if status is not None and not status.voting:
                return None, "; ".join(status.reasons)
            await asyncio.sleep(0.05)
        return None, ""

    async def _end(self) -> int | None:
        """The exit code of a node that answers no more; None when it runs on all the same."""
        deadline = time.monotonic() + STOPS_S_MAX
        while (ended := exit_code(self._nodes.network.member(self._member))) is None:
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(0.05)
        return ended

    async def _last_word(self) -> str:
        """Why the node stopped, by its report at another member: its own log had no room left."""
        other = next(api for name, api in self._apis.items() if name != self._member)
        deadline = time.monotonic() + 3.0
        while time.monotonic() < deadline:
            for culprit in (await self._why(other)).culprits:
                if culprit.member == self._member and culprit.cause == "disk_failing":
                    return culprit.sentence
            await asyncio.sleep(0.1)
        return self._nodes.last_log_line(self._nodes.network.member(self._member))

    async def _still_serves(self) -> list[str]:
        """What is missing of the behaviour of a node at its reserve."""
        problems: list[str] = []
        api = self._apis[self._member]
        ready = await self._http.get(f"{api}/readyz")
        if ready.status_code != 503 or "free disk" not in ready.text:
            problems.append(f"/readyz says {ready.status_code}: {ready.text[:200]}")
        own = await self._why(api)
        if "disk_full" not in [item.cause for item in own.culprits if item.member == self._member]:
            problems.append(f"its why does not name its disk: {own.headline}")
        reads = await self._http.get(f"{api}/v1/blocks/latest")
        if reads.status_code != 200:
            problems.append(f"it serves no reads: {reads.status_code}")
        refused = await self._http.post(
            f"{api}/v1/transactions",
            content=encode(self._traffic.transaction()),
            headers={"content-type": "application/msgpack"},
        )
        if refused.status_code != 503 or "disk_low" not in refused.text:
            problems.append(f"it answers {refused.status_code} to a transaction: {refused.text[:200]}")
        problems += await self._named_by_others()
        return problems

    async def _named_by_others(self) -> list[str]:
        other = next(api for name, api in self._apis.items() if name != self._member)
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline:
            causes = [item.cause for item in (await self._why(other)).culprits if item.member == self._member]
            if "disk_full" in causes:
                return []
            await asyncio.sleep(0.1)
        return [f"the others do not name its disk: {causes}"]

    async def _start_on_full(self) -> list[str]:
        """A start while nothing is free ends with exit code 3 too, or runs at the reserve."""
        [started] = self._nodes.start([self._nodes.network.member(self._member)])
        deadline = time.monotonic() + STOPS_S_MAX
        while time.monotonic() < deadline:
            ended = exit_code(started)
            if ended is not None:
                return [] if ended == STORE_EXIT else [f"a start on the full disk ends with {ended}"]
            status = await self._status()
            if status is not None:
                self._nodes.end([started], kill=False)
                return [] if not status.voting else ["a start on the full disk votes"]
            await asyncio.sleep(0.1)
        return ["a start on the full disk neither ends nor answers"]

    async def _back(self, restart: bool) -> float | None:
        """Seconds from freeing the disk until the node votes, after a start where it had ended."""
        freed = time.monotonic()
        self._disk.free()
        self._watch.latest[self._member] = None
        member = self._nodes.network.member(self._member)
        if restart:
            self._nodes.start([member])

        def votes() -> bool:
            status = self._watch.latest[self._member]
            return status is not None and status.voting and status.ready

        deadline = freed + BACK_S_MAX
        while not await self._watch.until(votes, 1.0):
            if time.monotonic() > deadline:
                return None
            if exit_code(self._nodes.network.member(self._member)) is not None:
                # A write had failed before the room was there, and the node saw it only now.
                self._nodes.start([self._nodes.network.member(self._member)])
        return round(time.monotonic() - freed, 2)

    async def _status(self) -> NodeStatus | None:
        try:
            response = await self._http.get(f"{self._apis[self._member]}/v1/status", timeout=2.0)
            return msgspec.json.decode(response.content, type=NodeStatus)
        except (httpx.HTTPError, msgspec.DecodeError):
            return None

    async def _why(self, api: str) -> Diagnosis:
        response = await self._http.get(f"{api}/v1/why")
        return msgspec.json.decode(response.content, type=Diagnosis)

    def _reasons(self) -> str:
        status = self._watch.latest[self._member]
        return "no answer" if status is None else "; ".join(status.reasons)


def exit_code(member: Member) -> int | None:
    """The exit code of the member's last process, a child of this one; None while it runs."""
    return processes.exit_code(member.pid, member.started_ticks)
