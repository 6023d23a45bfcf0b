"""The proxy between nodes: what is cut, swallowed and delayed, on real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from scripts.localnet.layout import Member, TestnetError
from scripts.localnet.proxy import Proxy
from scripts.localnet.wiring import Plan, Way, Wire, Wiring, plan

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextmanager
def free_ports(count: int) -> Iterator[list[int]]:
    """Ports that nobody used a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    yield ports


class Pair:
    """bank-b dials bank-a through the proxy; `wiring` is the operator."""

    def __init__(self, plan_: Plan) -> None:
        self.wiring = Wiring(plan_)
        self._port = plan_.wires[0].port
        self._accepted: asyncio.Queue[Streams] = asyncio.Queue()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """bank-a was dialled."""
        self._accepted.put_nowait((reader, writer))

    async def dial(self) -> Streams:
        """bank-b's end of a new connection."""
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def connect(self) -> tuple[Streams, Streams]:
        """bank-b's and bank-a's end of a new connection."""
        dialled = await self.dial()
        return dialled, await self._accepted.get()

    async def set(self, *ways: Way) -> None:
        """What the operator says, from another thread: the proxy shares this one."""
        await asyncio.to_thread(self.wiring.set, *ways)


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    """A running proxy with one wire."""
    with free_ports(3) as (control, port, target):
        plan_ = Plan(control, (Wire("bank-b", "bank-a", f"127.0.0.1:{target}", port),))
    found = Pair(plan_)
    server = await asyncio.start_server(found.accept, "127.0.0.1", target)
    running = asyncio.create_task(Proxy(plan_).run())
    try:
        await asyncio.wait_for(_until_it_listens(control), 10)
        yield found
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        server.close()


async def _until_it_listens(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0)
        else:
            writer.close()
            return


async def say(sender: Streams, receiver: Streams, data: bytes) -> bytes:
    """What `receiver` reads of `data`."""
    sender[1].write(data)
    return await asyncio.wait_for(receiver[0].readexactly(len(data)), 10)


async def is_quiet(streams: Streams) -> bool:
    """Whether nothing comes for a moment."""
    try:
        await asyncio.wait_for(streams[0].read(1), 0.2)
    except TimeoutError:
        return True
    return False


async def test_open_ways_carry_both_ways() -> None:
    async with pair() as wire:
        dialled, listening = await wire.connect()
        assert await say(dialled, listening, b"x" * 300_000) == b"x" * 300_000
        assert await say(listening, dialled, b"yes") == b"yes"
        dialled[1].close()
        assert await asyncio.wait_for(listening[0].read(), 10) == b""


async def test_a_cut_resets_connections_old_and_new() -> None:
    async with pair() as wire:
        dialled, listening = await wire.connect()
        await wire.set(Way("bank-a", "bank-b", "cut"))
        for end in (dialled, listening):
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(end[0].read(1), 10)
        refused = await wire.dial()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(refused[0].read(1), 10)
        await wire.set(Way("bank-a", "bank-b"))
        dialled, listening = await wire.connect()
        assert await say(dialled, listening, b"again") == b"again"


async def test_a_hole_swallows_one_way_until_it_is_open_again() -> None:
    async with pair() as wire:
        dialled, listening = await wire.connect()
        await wire.set(Way("bank-b", "bank-a", "hole"))
        dialled[1].write(b"lost?")
        assert await is_quiet(listening)
        assert await say(listening, dialled, b"the other way") == b"the other way"
        await wire.set(Way("bank-b", "bank-a"))
        assert await asyncio.wait_for(listening[0].readexactly(5), 10) == b"lost?"


async def test_an_end_in_a_hole_leaves_the_other_side_half_open() -> None:
    async with pair() as wire:
        dialled, listening = await wire.connect()
        await wire.set(Way("bank-b", "bank-a", "hole"))
        dialled[1].transport.abort()
        listening[1].write(b"nobody hears this")
        assert await is_quiet(listening)
        await wire.set(Way("bank-b", "bank-a"))
        assert await asyncio.wait_for(listening[0].read(), 10) == b""


async def test_a_delay_is_added_one_way() -> None:
    async with pair() as wire:
        dialled, listening = await wire.connect()
        await wire.set(Way("bank-b", "bank-a", delay_ms=300))
        clock = asyncio.get_running_loop().time
        started = clock()
        await say(dialled, listening, b"late")
        assert clock() - started >= 0.3


async def test_unknown_ways_are_refused_by_name() -> None:
    async with pair() as wire:
        with pytest.raises(TestnetError, match="no way from 'bank-x'"):
            await wire.set(Way("bank-x", "bank-a"))
        with pytest.raises(TestnetError, match="0 to 10000 ms"):
            await wire.set(Way("bank-b", "bank-a", delay_ms=-1))


def test_whoever_of_a_pair_dials_has_a_port_of_its_own() -> None:
    members = [Member(f"bank-{letter}", f"127.0.0.1:{n}", "", "") for n, letter in enumerate("abcdefghijklmnop")]
    wires = plan(members, 20_000).wires
    assert len({wire.port for wire in wires}) == len(wires) == 240
    assert {(wire.dialler, wire.listener) for wire in wires} == {
        (dialler.id, listener.id) for dialler in members for listener in members if dialler is not listener
    }
    assert len(Wiring(plan(members, 20_000)).pairs) == 120
    assert plan(members, 20_000).control_port not in {wire.port for wire in wires}
