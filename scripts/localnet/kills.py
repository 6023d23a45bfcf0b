"""Kill -9 of real nodes at random moments under load, and what each finds again when it is started.

Must hold after each kill: the dead node's disk opens, its head is one that the network decided, with the network's
state root, and not below what the node had shown before; every transaction that it had accepted lies there; started
again it agrees with its peers about what it had voted for, so it votes again without a time of abstention. In the
end every promise has one fate, the same at every node, no cent is made or lost, and `hansa verify` finds every
ledger good.
"""

import asyncio
import contextlib
import json
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import msgspec

from node.client.answers import BlockAnswer
from node.config import load_network
from node.errors import HansaError, NotFound
from node.ledger import Transaction
from node.store import Store
from scripts.localnet.generator import Traffic
from scripts.localnet.layout import Layout, Member, TestnetError
from scripts.localnet.nodes import HANSA, Nodes
from scripts.localnet.promises import Book, SteadyLoad, compare
from scripts.localnet.watch import Watch

RATE = 80.0
MOMENT_S_MAX = 0.8
"""A node is killed at the latest so long after all were well."""
AGAIN_S_MAX = 90.0
"""A killed node votes again within this, or it is a loss."""
PATIENCE_S = 90.0
FULL_VERIFY_BLOCKS_MAX = 2_000
CONNECTIONS_MAX = 300


class Kill(msgspec.Struct, frozen=True):
    """One kill. `shown`: the height that the node had shown; `head`: what its disk holds. Seconds until it
    voted."""

    member: str
    shown: int
    head: int
    records: int
    accepted: int
    votes_again_s: float | None
    losses: tuple[str, ...]


class KillsReport(msgspec.Struct, frozen=True):
    """All kills of a run; `problems` are what the comparison of all promises and `hansa verify` found at the
    end."""

    seed: int
    kills: list[Kill]
    blocks: int
    accepted: int
    final: int
    expired: int
    verified: dict[str, bool]
    problems: list[str]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing was lost."""
        return not self.problems and not any(kill.losses for kill in self.kills)


class Killer:
    """Kills the nodes of one network that runs and whose load accounts exist."""

    def __init__(self, layout: Layout, nodes: Nodes, traffic: Traffic, seed: int) -> None:
        self._layout = layout
        self._nodes = nodes
        self._network = load_network(layout.network_file)
        self._apis = {member.id: member.api for member in nodes.network.members}
        self._chance = random.Random(seed)
        self._seed = seed
        limits = httpx.Limits(max_connections=CONNECTIONS_MAX)
        self._http = httpx.AsyncClient(trust_env=False, limits=limits, timeout=10.0)
        self._watch = Watch(self._http, self._apis)
        self._load = SteadyLoad(self._http, traffic, self._apis, random.Random(seed + 1))

    async def run(self, count: int, on_kill: Callable[[Kill], None]) -> KillsReport:
        """`count` kills, one after the other; `on_kill` hears of each."""
        started = time.monotonic()
        kills: list[Kill] = []
        async with self._http, beside(self._watch.run()):
            async with beside(self._load.run(RATE)):
                for _ in range(count):
                    if not await self._watch.until(self._watch.ready, PATIENCE_S):
                        raise TestnetError("the network is not ready again", exit_code=1)
                    await asyncio.sleep(self._chance.uniform(0.0, MOMENT_S_MAX))
                    kills.append(await self._kill(self._chance.choice(self._nodes.network.members)))
                    on_kill(kills[-1])
            return await self._settle(kills, started)

    async def _kill(self, member: Member) -> Kill:
        status = self._watch.latest[member.id]
        shown = status.height if status is not None else 0
        taken = {tx_id for tx_id, promise in self._load.promises.items() if member.id in promise.taken_by}
        self._nodes.end([self._nodes.network.member(member.id)], kill=True)
        self._watch.latest[member.id] = None
        found = await asyncio.to_thread(self._open_copy, member, taken)
        head, root, records, losses = found
        if head < shown:
            losses.append(f"its head is {head}, and it had shown {shown}")
        elif head > 0:
            other = next(api for name, api in self._apis.items() if name != member.id)
            decided = await self._decided_root(other, head)
            if decided != root:
                losses.append(f"at height {head} it has the state root {root[:16]}, the network {decided[:16]}")
        again_s = await self._again(member)
        if again_s is None:
            losses.append(f"it does not vote again within {AGAIN_S_MAX:g} s: {self._reasons(member)}")
        return Kill(member.id, shown, head, records, len(taken), again_s, tuple(losses))

    def _open_copy(self, member: Member, taken: set[str]) -> tuple[int, str, int, list[str]]:
        """(height, state root, records, losses) of what the dead node left, read in a copy."""
        losses: list[str] = []
        with tempfile.TemporaryDirectory(prefix="crash-", dir=self._layout.directory) as name:
            copy = Path(name) / "data"
            shutil.copytree(member.data_dir, copy)
            try:
                store = Store(copy, self._network.network_id, self._network.genesis_hash)
            except HansaError as error:
                return 0, "", 0, [f"its disk does not open: {error}"]
            try:
                head, memory = store.head, store.memory()
                if not memory.voted and not memory.never_voted:
                    losses.append("it forgot that it has voted")
                waiting = {Transaction.decode(data).tx_id.hex() for data in store.pending()}
                for tx_id in taken - waiting:
                    key = bytes.fromhex(tx_id)
                    if store.locate(key) is None and store.ending(key) is None:
                        losses.append(f"the accepted transaction {tx_id[:16]} is gone")
                return head.height, head.state_root.hex(), len(memory.records), losses
            finally:
                store.close()

    async def _decided_root(self, api: str, height: int) -> str:
        """The state root of the block at `height`, at another node; it may be a block behind for a moment."""
        deadline = time.monotonic() + AGAIN_S_MAX
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError, NotFound):
                response = await self._http.get(f"{api}/v1/blocks/{height}")
                if response.status_code == 200:
                    return msgspec.json.decode(response.content, type=BlockAnswer).header.state_root
            await asyncio.sleep(0.1)
        return "nothing there"

    async def _again(self, member: Member) -> float | None:
        """Seconds from the start until the node votes, if it does in time and never has to abstain for long."""
        started = time.monotonic()
        # An answer that was on its way when the node died may have come since.
        self._watch.latest[member.id] = None
        self._nodes.start([self._nodes.network.member(member.id)])

        def votes() -> bool:
            status = self._watch.latest[member.id]
            return status is not None and status.voting and status.ready

        if not await self._watch.until(votes, AGAIN_S_MAX):
            return None
        return round(time.monotonic() - started, 2)

    def _reasons(self, member: Member) -> str:
        status = self._watch.latest[member.id]
        return "no answer" if status is None else "; ".join(status.reasons)

    # --- the end -----------------------------------------------------------------------------------------

    async def _settle(self, kills: list[Kill], started: float) -> KillsReport:
        book = Book(self._http, list(self._apis))
        problems: list[str] = []
        height = await asyncio.to_thread(self._nodes.wait_agreement, PATIENCE_S)
        await book.read_on(next(iter(self._apis.values())), height)
        await book.compare_balances(next(iter(self._apis.values())))
        fates = await compare(self._http, book, self._load, self._apis, [])
        problems += fates.problems
        await asyncio.to_thread(self._nodes.end, self._nodes.network.members, kill=False)
        verified: dict[str, bool] = {}
        for member in self._nodes.network.members:
            # One ledger is executed again, the killed one; of a long one that would take longer than all kills.
            full = height <= FULL_VERIFY_BLOCKS_MAX and member.id == kills[-1].member
            verified[member.id] = await asyncio.to_thread(self._verify, member, full)
        problems += [
            f"hansa verify finds the ledger of {name} wrong" for name, good in verified.items() if not good
        ]
        return KillsReport(
            seed=self._seed,
            kills=kills,
            blocks=height,
            accepted=fates.accepted,
            final=fates.final,
            expired=fates.expired,
            verified=verified,
            problems=problems,
            seconds=round(time.monotonic() - started, 1),
        )

    def _verify(self, member: Member, full: bool) -> bool:
        command = [*HANSA, "verify", "--json", "--dir", str(self._layout.member_dir(member.id))]
        command += [] if full else ["--quick"]
        done = subprocess.run(command, capture_output=True, check=False, text=True)
        with contextlib.suppress(json.JSONDecodeError):
            return done.returncode == 0 and json.loads(done.stdout).get("ok") is True
        return False


@contextlib.asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """`work` goes on beside the block of code and is cancelled after it; what it raised is raised here."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
