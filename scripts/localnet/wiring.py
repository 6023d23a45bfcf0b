"""Which proxied ports stand between which two nodes, and how the proxy is told what to do to a link.

Of two members the one with the higher id dials, and when it was not reached for a while the other one does
(node/peers/mesh.py); so each way of dialling has a port of its own, and every member's view of the others'
addresses leads through the proxy. Addresses are outside the genesis hash: each member may have its own.
"""

import itertools
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from node.config import dump_network, load_network
from scripts.localnet.layout import API_PORT_OFFSET, MEMBERS_MAX, Layout, Member, TestnetError

State: TypeAlias = Literal["open", "cut", "hole"]
"""What becomes of what one member sends another: it arrives; the connection is reset; or nothing arrives, and
nobody is told (as if packets were lost: what was sent meanwhile arrives when the way is open again)."""

CONTROL_PORT_OFFSET = API_PORT_OFFSET + MEMBERS_MAX + 1
LINK_PORT_OFFSET = CONTROL_PORT_OFFSET + 1
CONTROL_TIMEOUT_S = 5.0
DELAY_MS_MAX = 10_000


class Wire(msgspec.Struct, frozen=True):
    """One way to connect a pair: who dials, who listens where ("host:port"), and the proxy's port between them."""

    dialler: str
    listener: str
    target: str
    port: int


class Plan(msgspec.Struct, frozen=True):
    """All that a proxy needs to know: its control port and its wires."""

    control_port: int
    wires: tuple[Wire, ...]


class Way(msgspec.Struct, frozen=True):
    """What `sender` sends to `receiver`: its state, and how much later than otherwise it arrives."""

    sender: str
    receiver: str
    state: State = "open"
    delay_ms: int = 0


class Answer(msgspec.Struct, frozen=True):
    """What the proxy says: every way as it is now, or why it did nothing."""

    ways: tuple[Way, ...] = ()
    error: str = ""


def plan(members: Sequence[Member], base_port: int) -> Plan:
    """The wires between all pairs of members, one for either that dials, with their ports."""
    pairs = itertools.permutations(sorted(members, key=lambda member: member.id), 2)
    wires = tuple(
        Wire(dialler.id, listener.id, listener.listen, port)
        for port, (dialler, listener) in enumerate(pairs, base_port + LINK_PORT_OFFSET)
    )
    return Plan(base_port + CONTROL_PORT_OFFSET, wires)


def lead_through(layout: Layout, wires: Sequence[Wire]) -> None:
    """Each member's own network.toml sends what it dials through the proxy."""
    ports = {(wire.dialler, wire.listener): wire.port for wire in wires}
    for dialler in sorted({wire.dialler for wire in wires}):
        path = layout.member_dir(dialler) / "network.toml"
        network = load_network(path)
        members = tuple(
            msgspec.structs.replace(member, address=f"127.0.0.1:{ports[dialler, member.id]}")
            if (dialler, member.id) in ports
            else member
            for member in network.members
        )
        path.write_text(dump_network(msgspec.structs.replace(network, members=members)))


def read_plan(path: Path) -> Plan:
    """The plan that a proxied network was founded with."""
    return msgspec.json.decode(path.read_bytes(), type=Plan)


class Wiring:
    """The running proxy of a test network, as its operator uses it."""

    def __init__(self, plan_: Plan) -> None:
        self._port = plan_.control_port
        pairs = (tuple(sorted((wire.dialler, wire.listener))) for wire in plan_.wires)
        self.pairs: list[tuple[str, str]] = [(first, second) for first, second in dict.fromkeys(pairs)]

    def set(self, *ways: Way) -> tuple[Way, ...]:
        """The ways are as said, at once; return all of them. Raise TestnetError when the proxy is not there."""
        line = msgspec.json.encode(ways) + b"\n"
        try:
            with socket.create_connection(("127.0.0.1", self._port), CONTROL_TIMEOUT_S) as connection:
                connection.sendall(line)
                with connection.makefile("rb") as answers:
                    answer = msgspec.json.decode(answers.readline(), type=Answer)
        except (OSError, msgspec.DecodeError) as error:
            raise TestnetError(f"the proxy on port {self._port} does not answer ({error})", exit_code=4) from error
        if answer.error:
            raise TestnetError(answer.error)
        return answer.ways

    def both(self, first: str, second: str, state: State, delay_ms: int = 0) -> None:
        """Both ways between the two are as said."""
        self.set(Way(first, second, state, delay_ms), Way(second, first, state, delay_ms))

    def slow(self, sender: str, delay_ms: int) -> None:
        """Everything that `sender` sends arrives `delay_ms` later; 0: no later than otherwise."""
        self.set(*(Way(sender, receiver, "open", delay_ms) for receiver in self._others(sender)))

    def isolate(self, member: str, state: State) -> None:
        """All ways from and to `member` are as said."""
        for other in self._others(member):
            self.both(member, other, state)

    def heal(self) -> None:
        """Every way is open and adds no delay."""
        for first, second in self.pairs:
            self.both(first, second, "open")

    def _others(self, member: str) -> list[str]:
        return sorted({name for pair in self.pairs if member in pair for name in pair if name != member})
