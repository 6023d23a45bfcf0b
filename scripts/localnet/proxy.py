"""The process between the nodes of a test network: carries what they send, later, or not at all, as it is told.

Every pair of nodes has two ways, whichever of the two has dialled. A way is open (with or without a delay), cut
(connections are reset, new ones too) or a hole (nothing arrives and nobody is told, as when packets are lost; TCP
would send them again, so what was sent into a hole arrives when it is open again). A connection that one side ends
while its way is a hole stays half-open for the other, as it does in a real network.

Listens on the loopback interface only. Ends by SIGTERM.
"""

import asyncio
import contextlib
import signal
import socket
import struct
import sys
from pathlib import Path

import msgspec
import uvloop

from node.config import split_address
from scripts.localnet.wiring import DELAY_MS_MAX, Answer, Plan, Way, Wire, read_plan

HOST = "127.0.0.1"
CHUNK_BYTES = 64 * 1024
CHUNKS_IN_FLIGHT_MAX = 64
"""How much of one way may wait in the proxy; then the sender's own socket fills, as on a slow line."""
CONTROL_LINE_BYTES_MAX = 1024 * 1024

Pair = tuple[str, str]


class Lane:
    """One way as it is now. `opened` is set while it carries."""

    def __init__(self, sender: str, receiver: str) -> None:
        self.way = Way(sender, receiver)
        self.opened = asyncio.Event()
        self.opened.set()

    def become(self, way: Way) -> None:
        """The way is as said."""
        self.way = way
        if way.state == "open":
            self.opened.set()
        else:
            self.opened.clear()


class Connection:
    """One connection of a wire: what comes in at either end leaves at the other, as the lanes allow."""

    def __init__(self, dialled: socket.socket, listening: socket.socket) -> None:
        self._sockets = (dialled, listening)

    async def carry(self, forth: Lane, back: Lane) -> None:
        """Return when either end is closed and the other side was told, or the connection was reset."""
        dialled, listening = self._sockets
        tasks = [
            asyncio.ensure_future(_carry(dialled, listening, forth)),
            asyncio.ensure_future(_carry(listening, dialled, back)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._close()

    def will_reset(self) -> None:
        """Closing it resets it: both sides learn at once that it is gone, and what was under way is lost."""
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _close(self) -> None:
        for end in self._sockets:
            end.close()


async def _carry(source: socket.socket, sink: socket.socket, lane: Lane) -> None:
    """What `source` says arrives at `sink`, in order, after the lane's delay, while the lane is open."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_IN_FLIGHT_MAX)

    async def take() -> None:
        while True:
            try:
                data = await loop.sock_recv(source, CHUNK_BYTES)
            except OSError:
                data = b""
            await waiting.put((loop.time() + lane.way.delay_ms / 1000, data))
            if not data:
                return

    taking = asyncio.ensure_future(take())
    try:
        while True:
            due, data = await waiting.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            await lane.opened.wait()
            if not data:
                return
            # A sink that is gone says so on its own way, which may be a hole; what is sent to it is lost.
            with contextlib.suppress(OSError):
                await loop.sock_sendall(sink, data)
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)


class Line:
    """One wire: its port, its two lanes, and the connections on it."""

    def __init__(self, wire: Wire, lanes: dict[Pair, Lane]) -> None:
        self._wire = wire
        self._forth = lanes[wire.dialler, wire.listener]
        self._back = lanes[wire.listener, wire.dialler]
        self._carrying: dict[asyncio.Task[None], Connection] = {}

    async def serve(self) -> None:
        """Accept and carry connections until cancelled."""
        loop = asyncio.get_running_loop()
        with _listening(self._wire.port) as server:
            while True:
                dialled, _ = await loop.sock_accept(server)
                dialled.setblocking(False)
                task = asyncio.create_task(self._connect(dialled))
                task.add_done_callback(lambda done: self._carrying.pop(done, None))

    @property
    def is_cut(self) -> bool:
        """Whether connections are reset."""
        return "cut" in (self._forth.way.state, self._back.way.state)

    def judge(self) -> None:
        """If the wire is cut now, its connections are reset."""
        if self.is_cut:
            for task, connection in self._carrying.items():
                connection.will_reset()
                task.cancel()

    async def _connect(self, dialled: socket.socket) -> None:
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setblocking(False)
        for end in (dialled, listening):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(dialled, listening)
        task = asyncio.current_task()
        assert task is not None
        self._carrying[task] = connection
        try:
            if self.is_cut:
                raise ConnectionResetError
            await asyncio.get_running_loop().sock_connect(listening, split_address(self._wire.target))
            await connection.carry(self._forth, self._back)
        except OSError:
            # Nobody listens there, or the wire is cut: the dialler sees the same as without a proxy.
            connection.will_reset()
        finally:
            dialled.close()
            listening.close()


class Proxy:
    """All lines of a network, and the port on which it is told what to do with them."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        pairs = dict.fromkeys(pair for wire in plan.wires for pair in _both(wire.dialler, wire.listener))
        self._lanes = {pair: Lane(*pair) for pair in pairs}
        self._lines = [Line(wire, self._lanes) for wire in plan.wires]

    async def run(self) -> None:
        """Carry until cancelled."""
        control = await asyncio.start_server(
            self._control, HOST, self._plan.control_port, limit=CONTROL_LINE_BYTES_MAX
        )
        async with control, asyncio.TaskGroup() as group:
            for line in self._lines:
                group.create_task(line.serve())

    async def _control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            writer.write(msgspec.json.encode(self._obey(line)) + b"\n")
            await writer.drain()
        except (OSError, ValueError):
            return
        finally:
            writer.close()

    def _obey(self, line: bytes) -> Answer:
        try:
            ways = msgspec.json.decode(line, type=list[Way])
        except msgspec.DecodeError as error:
            return Answer(error=f"not understood: {error}")
        for way in ways:
            if (way.sender, way.receiver) not in self._lanes:
                return Answer(error=f"there is no way from {way.sender!r} to {way.receiver!r}")
            if not 0 <= way.delay_ms <= DELAY_MS_MAX:
                return Answer(error=f"a delay is 0 to {DELAY_MS_MAX} ms")
        for way in ways:
            self._lanes[way.sender, way.receiver].become(way)
        for wire in self._lines:
            wire.judge()
        return Answer(tuple(lane.way for lane in self._lanes.values()))


def _both(first: str, second: str) -> tuple[Pair, Pair]:
    return (first, second), (second, first)


def _listening(port: int) -> socket.socket:
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((HOST, port))
    server.listen(64)
    server.setblocking(False)
    return server


async def _until_interrupted(plan: Plan) -> None:
    running = asyncio.ensure_future(Proxy(plan).run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running


if __name__ == "__main__":
    uvloop.run(_until_interrupted(read_plan(Path(sys.argv[1]))))
