"""One member's machine: its disk, its clocks, and the shipped node as a process that runs on it, or does not."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.api import NodeService
from node.config import Limits, MemberConfig, NodeConfig
from node.errors import HansaError
from node.peers import PeerHandler, Transport
from node.runtime.node import Node
from node.runtime.surroundings import Surroundings
from node.store import Database
from tests.simulation.nodes.disk import Contents, Disk, MemoryDatabase, PowerCut, Rows
from tests.simulation.nodes.founding import DATA, next_key, next_tls_key, signer, verify
from tests.simulation.nodes.loop import ProcessLoop
from tests.simulation.nodes.rules import height_of
from tests.simulation.nodes.threads import Pace, VirtualClock, VirtualThreads
from tests.simulation.nodes.transport import SimTransport

if TYPE_CHECKING:
    from tests.simulation.nodes.world import NodeWorld

STOPPED_BY_DISK = 3
INSTANCE_SIZE = 16


class Door:
    """Where simulated clients reach a node (node.runtime.surroundings.Api): its service, while the door is open."""

    url = "simulated"

    def __init__(self, service: NodeService) -> None:
        self.service = service
        self.open = False

    async def start(self) -> None:
        """Clients are served."""
        self.open = True

    async def stop(self) -> None:
        """Clients are not served any more."""
        self.open = False


class Process:
    """One start of a node: its loop, its links, its door; `main` has its exit code when it ended by itself."""

    def __init__(self, host: "Host") -> None:
        world = host.world
        self.host = host
        # Whatever a loop has beside what is there, no node asks for.
        self.loop = ProcessLoop(world.timeline, self._on_error)  # type: ignore[abstract]
        self.instance = world.timeline.pick(1, 1 << 50).to_bytes(INSTANCE_SIZE, "big")
        self.database: MemoryDatabase | None = None
        self.transport: SimTransport | None = None
        self.door: Door | None = None
        self.node: Node | None = None
        self.main: asyncio.Task[None] | None = None
        self.asked: list[asyncio.Task[None]] = []
        """What clients asked of it: the loop itself keeps no task alive."""

    def _on_error(self, text: str) -> None:
        self.host.world.broken("no exception escapes", self.host.id, text)

    def surroundings(self) -> Surroundings:
        """What the node is given instead of a machine."""
        world, host = self.host.world, self.host

        def open_database(path: Path) -> Database:
            self.database = MemoryDatabase(host.disk)
            return self.database

        def open_transport(handler: PeerHandler, contracts_hash: bytes) -> Transport:
            members = world.founding.network.members
            self.transport = SimTransport(world.network, host.id, members, self.loop, handler)
            return self.transport

        def open_api(service: NodeService) -> Door:
            self.door = Door(service)
            return self.door

        return Surroundings(
            clock=host.clock,
            threads=VirtualThreads(world.timeline, self.loop, host.pace, verify, host.on_work),
            open_database=open_database,
            open_transport=open_transport,
            open_api=open_api,
            sign=signer(host.member.voting_key),
            verify=verify,
            instance=self.instance,
            further_keys={next_key(host.id): signer(next_key(host.id))},
            tls_keys=frozenset((host.member.tls_key, next_tls_key(host.id))),
        )


class Host:
    """A machine. `faulty` says what may happen to its disk or its honesty; "" is an honest member's."""

    def __init__(self, world: "NodeWorld", index: int, faulty: str) -> None:
        self.world = world
        self.index = index
        self.member: MemberConfig = world.founding.network.members[index]
        self.id = self.member.id
        self.faulty = faulty
        self.clock = VirtualClock(world.timeline)
        self.pace = Pace()
        self.disk = self._disk(world.founding.contents)
        self.height = height_of(self.disk.contents)
        self.generation = 0
        """How often the disk was lost or replaced: who was promised something before, was promised it by nobody."""
        self.forgetful = False
        """An older disk was put back, and the member cannot know it: it may say again what it said otherwise."""
        self.mempool_transactions_max = world.plan.mempool_transactions_max
        self.applying = 0
        """The height that was given to the writing thread last."""
        self.process: Process | None = None
        self.stopping = False
        self.starts = 0
        self.pauses = 0

    def _disk(self, contents: Contents) -> Disk:
        disk = Disk(Contents(), self._on_write, lambda: self.crash(power=True))
        disk.replace(contents)
        return disk

    def on_work(self, name: str, arguments: tuple[Any, ...]) -> None:
        """The node gave work to its threads."""
        if name in ("apply", "_write"):
            self.applying = arguments[0].height

    def _on_write(self, rows: Rows) -> None:
        before, self.height = self.height, height_of(self.disk.contents)
        self.world.rules.on_write(self.id, self.disk.contents, before, rows)
        if self.height != before:
            self.world.on_height(self)

    # --- the process -------------------------------------------------------------------------------------

    @property
    def up(self) -> bool:
        """Whether a process runs (maybe paused)."""
        return self.process is not None

    @property
    def door(self) -> Door | None:
        """Where clients reach the node now, or None."""
        process = self.process
        if process is None or process.loop.paused or process.door is None or not process.door.open:
            return None
        return process.door

    def open_process(self) -> Process:
        """A process of this machine, of which nothing runs yet."""
        return Process(self)

    def make_node(self, config: NodeConfig, outside: Surroundings) -> Node:
        """The node that this machine's release makes of its network's definition."""
        return self.world.make_node(config, self.world.founding.network, outside)

    def start(self) -> None:
        """The process runs, or has ended at once because of the disk."""
        if self.process is not None:
            return
        self.starts += 1
        self.applying = 0
        journal = list(self.disk.contents.scan(b"p", b"q"))
        if journal:
            self.world.reached["started with a journal"] += 1
        if len(journal) > self.mempool_transactions_max // 2:
            self.world.reached["started with a journal near or above the mempool"] += 1
        self.stopping = False
        self.world.note(self, f"starts at height {self.height}")
        process = self.process = self.open_process()
        config = NodeConfig(
            member=self.id,
            data_dir=DATA,
            keys_dir=DATA,
            network_file=DATA,
            listen=self.member.address,
            api="127.0.0.1:0",
            limits=Limits(mempool_transactions_max=self.mempool_transactions_max),
        )
        try:
            with process.loop.entered():
                process.node = self.make_node(config, process.surroundings())
        except PowerCut:
            return
        except HansaError as error:
            self._ended(process, error.exit_code)
            return

        process.loop.call_soon(self._run, process)

    def _run(self, process: Process) -> None:
        node = process.node
        assert node is not None

        async def main() -> None:
            self._ended(process, await node.run())

        process.main = process.loop.create_task(main())

    def _ended(self, process: Process, code: int) -> None:
        """The process has ended by itself."""
        if self.process is not process:
            return
        self.world.note(self, f"ends with {code}")
        refused = process.database is None or process.database.refused
        self._bury(power=False)
        if code == 0 and process.node is not None and process.node.begins_anew:
            self.world.reached["began anew"] += 1
            self.start()
            return
        expected = (code == 0 and self.stopping) or (code == STOPPED_BY_DISK and refused)
        self.world.on_end(self, code, expected)

    def crash(self, power: bool = False) -> None:
        """The process is gone between two instants; with `power`, its peers are not told by its machine."""
        if self.process is not None:
            self.world.note(self, "crashes")
            self._bury(power)

    def _bury(self, power: bool) -> None:
        process = self.process
        assert process is not None
        self.process = None
        process.loop.kill()
        if process.door is not None:
            process.door.open = False
        if process.transport is not None:
            process.transport.die(power)
        if process.database is not None:
            process.database.sever()
        self.disk.cut_in = None

    def stop(self) -> None:
        """The process was told to stop."""
        process = self.process
        if process is not None and process.node is not None and not process.loop.paused:
            self.stopping = True
            with process.loop.entered():
                process.node.stop()

    def pause(self) -> None:
        """The process does not run, and does not know it."""
        if self.process is not None:
            self.process.loop.paused = True
            self.pauses += 1
            self.world.network.is_paused(self.id, self.pauses)

    def resume(self) -> None:
        """The process runs again."""
        if self.process is not None and self.process.loop.paused:
            self.process.loop.resume()

    def lose_disk(self, backup: Contents | None) -> None:
        """The disk is empty, or an older one of its own states (`backup`); the process must not run."""
        assert self.process is None
        self.generation += 1
        self.forgetful = self.forgetful or backup is not None
        self.world.rules.forget(self.id)
        self.disk.replace(Contents() if backup is None else backup)
        self.height = height_of(self.disk.contents)
