"""One schedule of faults on a running network under load: what is done, what is measured, what must hold.

Must hold (every violation is a sentence in `problems`): while no quorum can meet, no block comes; after every heal
the next block comes within the bound; in the end all nodes are ready with one state root at one height; every
promised transaction has exactly one fate, the same at every node; no cent is made or lost.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import msgspec

from node.config import load_network
from scripts.localnet.faults import Fault, Schedule
from scripts.localnet.generator import Traffic
from scripts.localnet.layout import Layout, TestnetError
from scripts.localnet.nodes import Nodes
from scripts.localnet.promises import Book, Fates, SteadyLoad, compare
from scripts.localnet.situation import Change, Situation
from scripts.localnet.watch import Watch
from scripts.localnet.wiring import Wiring

RATE = 50.0
TRICKLE_RATE = 10.0
AFTERWARDS_S = 2.0
"""The load goes on for so long when all is whole again."""
PATIENCE_S = 90.0
"""How long the end is waited for before a schedule is given up; the bound on the next block is the caller's."""
UNDER_WAY_S = 2.0
"""So long after the last quorum fell apart, a block may still come: its votes were cast before."""
FLAP_EVERY_S = 0.7
CLIENT_CONNECTIONS_MAX = 400


class Outcome(msgspec.Struct, frozen=True):
    """What came of a schedule. Seconds; None: it did not come.

    `next_block_s`: the longest time from the end of a fault to the next block. `stall_s`: the longest time without
    a block while a quorum was whole, whoever was the primary. `without_quorum_s`: how long none could meet.
    `ready_s`: from the last heal until every node was ready.
    """

    seed: int
    faults: tuple[str, ...]
    next_block_s: float | None
    stall_s: float
    without_quorum_s: float
    ready_s: float | None
    blocks: int
    accepted: int
    final: int
    expired: int
    unanswered: int
    problems: tuple[str, ...]


class Rehearsal:
    """Performs schedules, one after the other, on one proxied network whose load accounts exist."""

    def __init__(self, layout: Layout, nodes: Nodes, wiring: Wiring, traffic: Traffic, bound_s: float) -> None:
        """A heal after which no block comes within `bound_s` is a problem."""
        self._nodes = nodes
        self._wiring = wiring
        self._traffic = traffic
        self._bound_s = bound_s
        self._members = [member.id for member in nodes.network.members]
        self._apis = {member.id: member.api for member in nodes.network.members}
        self._quorum = load_network(layout.network_file).validators.quorum
        limits = httpx.Limits(max_connections=CLIENT_CONNECTIONS_MAX)
        self._http = httpx.AsyncClient(trust_env=False, limits=limits, timeout=10.0)
        self._book = Book(self._http, self._members)

    async def close(self) -> None:
        """No connection is open."""
        await self._http.aclose()

    async def perform(self, schedule: Schedule) -> Outcome:
        """The schedule was carried out and judged. Processes and links are whole again, whatever happened."""
        chance = random.Random(schedule.seed)
        watch = Watch(self._http, self._apis)
        load = SteadyLoad(self._http, self._traffic, self._apis, chance)
        situation = Situation(self._members, self._quorum)
        stage = _Stage(self._nodes, self._wiring, situation, watch)
        first = self._book.height
        async with _beside(watch.run()), _beside(stage.look_after()):
            try:
                async with _beside(load.run(RATE)):
                    await stage.perform(schedule.faults)
                    whole_at = time.monotonic()
                    ready = await watch.until(lambda: watch.ready() and not situation.forgetful, PATIENCE_S)
                    ready_s = time.monotonic() - whole_at
                    await asyncio.sleep(AFTERWARDS_S)
                async with _beside(load.run(TRICKLE_RATE)):
                    fates_known = await self._all_fates(watch, load)
            finally:
                await stage.heal()
            problems = list(judge(stage.changes, watch.blocks, self._bound_s))
            if not ready:
                problems.append(f"not ready {PATIENCE_S:g} s after the heal: {_lacking(watch)}")
            fates = await self._settle(load, schedule) if ready and fates_known else Fates(0, 0, 0, 0)
            if not fates_known:
                problems.append(f"promises without a fate {PATIENCE_S:g} s after the heal")
        heals = list(heal_times(stage.changes, watch.blocks))
        return Outcome(
            seed=schedule.seed,
            faults=tuple(str(fault) for fault in schedule.faults),
            next_block_s=round(max(heals), 2) if heals else None,
            stall_s=round(longest_stall(stage.changes, watch.blocks), 2),
            without_quorum_s=round(sum(until - since for since, until in _unable(stage.changes)), 1),
            ready_s=round(ready_s, 2) if ready else None,
            blocks=watch.height - first,
            accepted=fates.accepted,
            final=fates.final,
            expired=fates.expired,
            unanswered=fates.unanswered,
            problems=(*problems, *fates.problems),
        )

    async def _all_fates(self, watch: Watch, load: SteadyLoad) -> bool:
        """Whether, in time, every promise made until now lies in a block or is past its expiry."""
        made = dict(load.promises)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            api = watch.best_api()
            if api is not None:
                try:
                    await self._book.read_on(api, watch.height)
                except httpx.HTTPError:
                    continue
                if not self._book.open(made):
                    return True
            before = watch.height
            await watch.until(lambda: watch.height > before, 2.0)  # noqa: B023 (awaited within the turn)
        return False

    async def _settle(self, load: SteadyLoad, schedule: Schedule) -> Fates:
        """All nodes agree, and the ledger is compared with what was promised."""
        try:
            height = await asyncio.to_thread(self._nodes.wait_agreement, PATIENCE_S)
        except TestnetError as error:
            return Fates(0, 0, 0, 0, (str(error),))
        chance = random.Random(schedule.seed)
        await self._book.read_on(self._apis[chance.choice(self._members)], height)
        await self._book.compare_balances(self._apis[chance.choice(self._members)])
        forgot = [fault.member for fault in schedule.faults if fault.kind == "wipe"]
        return await compare(self._http, self._book, load, self._apis, forgot)


class _Stage:
    """Does to processes and links what the faults say, and writes down when."""

    def __init__(self, nodes: Nodes, wiring: Wiring, situation: Situation, watch: Watch) -> None:
        self._nodes = nodes
        self._wiring = wiring
        self._situation = situation
        self._watch = watch
        self._flap_open = True
        self.changes: list[Change] = [situation.change(time.monotonic(), "the start")]

    async def perform(self, faults: Sequence[Fault]) -> None:
        """All faults began and ended, each at its time."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                group.create_task(self._perform(fault))

    async def heal(self) -> None:
        """Everything runs and every link is whole: also when the schedule was interrupted."""
        self._wiring.heal()
        for member in self._nodes.network.members:
            self._nodes.resume(member)
        await asyncio.to_thread(self._nodes.start, self._nodes.network.members)

    async def look_after(self) -> None:
        """Until cancelled: links flap, and a member that lost its memory is noticed when it votes again."""
        while True:
            await asyncio.sleep(FLAP_EVERY_S)
            self._flap_open = not self._flap_open
            self._wire()
            for member in self._situation.forgetful:
                status = self._watch.latest[member]
                if status is not None and status.voting:
                    self._situation.votes_again(member)
                    self._note(f"{member} votes again")

    async def _perform(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_s)
        self._situation.begin(fault)
        self._wire()
        victims = [m for m in self._nodes.network.members if fault.kind == "power cut" or m.id == fault.member]
        if fault.kind in ("kill", "power cut", "wipe"):
            self._nodes.end(victims, kill=True)
        if fault.kind == "wipe":
            self._nodes.delete_data(victims[0])
            self._watch.latest[fault.member] = None
        if fault.kind == "pause":
            self._nodes.pause(victims[0])
        self._note(f"{fault.kind} begins")
        await asyncio.sleep(fault.lasts_s)
        self._situation.end(fault)
        self._wire()
        if fault.kind in ("kill", "power cut", "wipe"):
            self._nodes.start([self._nodes.network.member(victim.id) for victim in victims])
        if fault.kind == "pause":
            self._nodes.resume(self._nodes.network.member(fault.member))
        self._note(f"{fault.kind} ends", heals=True)

    def _wire(self) -> None:
        self._wiring.set(*self._situation.ways(self._flap_open))

    def _note(self, what: str, heals: bool = False) -> None:
        self.changes.append(self._situation.change(time.monotonic(), what, heals))


def judge(changes: Sequence[Change], blocks: Sequence[tuple[float, int]], bound_s: float) -> Iterator[str]:
    """The sentences on blocks that came where none could, or did not come where they had to."""
    for since, until in _unable(changes):
        for at_s, height in blocks:
            if since + UNDER_WAY_S < at_s < until:
                yield f"block {height} came {at_s - since:.1f} s after the last quorum had fallen apart"
    for change, until in _with_ends(changes):
        if not change.able:
            continue
        came = next((at_s for at_s, _ in blocks if at_s > change.at_s), None)
        waited_s = (until if came is None else min(came, until)) - change.at_s
        if waited_s > bound_s:
            yield f"no block within {bound_s:g} s of: {change.what} ({waited_s:.1f} s)"


def heal_times(changes: Sequence[Change], blocks: Sequence[tuple[float, int]]) -> Iterator[float]:
    """For each end of a fault that left a quorum whole: the seconds to the next block, if no change was first."""
    for change, until in _with_ends(changes):
        came = next((at_s for at_s, _ in blocks if at_s > change.at_s), None)
        if change.heals and change.able and came is not None and came <= until:
            yield came - change.at_s


def longest_stall(changes: Sequence[Change], blocks: Sequence[tuple[float, int]]) -> float:
    """The longest time without a block, in which a quorum was whole throughout."""
    longest = 0.0
    since = changes[0].at_s
    able = changes[0].able
    marks = [(at_s, None) for at_s, _ in blocks] + [(change.at_s, change.able) for change in changes]
    for at_s, now_able in sorted(marks, key=lambda mark: mark[0]):
        if able:
            longest = max(longest, at_s - since)
        if now_able is None:
            since = at_s
        else:
            if now_able and not able:
                since = at_s
            able = now_able
    return longest


def _unable(changes: Sequence[Change]) -> Iterator[tuple[float, float]]:
    """The times in which no quorum could meet."""
    since: float | None = None
    for change in changes:
        if change.unable and since is None:
            since = change.at_s
        elif not change.unable and since is not None:
            yield since, change.at_s
            since = None


def _with_ends(changes: Sequence[Change]) -> Iterator[tuple[Change, float]]:
    ends = [change.at_s for change in changes[1:]]
    yield from zip(changes, [*ends, float("inf")], strict=True)


def _lacking(watch: Watch) -> str:
    return "; ".join(
        f"{member}: {'no answer' if status is None else ', '.join(status.reasons) or 'ready'}"
        for member, status in watch.latest.items()
    )


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """`work` goes on beside the block of code and is cancelled after it; what it raised is raised here."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
