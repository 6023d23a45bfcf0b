"""The links between simulated members: every message really encoded, then dropped, delayed, doubled or cut off."""

from collections import Counter
from typing import TYPE_CHECKING

from consensus.codec import CodecError, decode, encode
from consensus.messages import Message, Vote
from tests.simulation.machine import Machine

if TYPE_CHECKING:
    from tests.simulation.world import World

MESSAGE_SIZE_MAX = 8 * 1024 * 1024
CODEC_PERMILLE = 250
KINDS = ("PREPARE", "COMMIT", "PrePrepare", "ViewChange", "NewView", "Status", "Decided", "LatestVote")


def kind_of(message: Message) -> str:
    """The name of the message's kind, one of `KINDS`."""
    return message.kind.name if isinstance(message, Vote) else type(message).__name__


class Network:
    """Full mesh. `cuts` holds directed pairs of machine names that currently lose everything.

    `withheld` holds back one kind of message on its way to one machine: (kind, name) -> by how long (us), or
    for ever (0). It reaches the interleavings that loss of everything alike almost never does: all commits
    late, a new view that only one member sees, a proposal without its votes.
    """

    def __init__(self, world: "World") -> None:
        self.world = world
        self.cuts: dict[tuple[str, str], int] = {}
        self.drop_permille = 0
        self.duplicate_permille = 0
        self.delay_us = (1_000, 10_000)
        self.late_permille = 0
        self.late_us = 1_000_000
        self.withheld: dict[tuple[str, str], int] = {}
        self.slow_links: dict[str, int] = {}  # machine -> how much later (us) all is that it says and hears
        self.counts: Counter[str] = Counter()

    # --- messages ----------------------------------------------------------------------------------------

    def broadcast(self, sender: Machine, message: Message) -> None:
        """`message` is on its way to every other machine."""
        copy = self._over_the_wire(sender, message)
        if copy is None:
            return
        for receiver in self.world.machines:
            if receiver.up and receiver.member != sender.member:
                self._carry(sender, receiver, copy)

    def send(self, sender: Machine, peer: str, message: Message) -> None:
        """`message` is on its way to the machine (or, for a doubled key, the machines) of the member `peer`."""
        copy = self._over_the_wire(sender, message)
        if copy is None:
            return
        for receiver in self.world.machines:
            if receiver.id == peer and receiver.up and receiver is not sender:
                self._carry(sender, receiver, copy)

    def _over_the_wire(self, sender: Machine, message: Message) -> Message | None:
        """The message as its receivers decode it; None where it has no type that they know.

        Of what honest members say only some goes through bytes: it costs a fifth of a run.
        """
        if sender.honest and not self.world.chance(CODEC_PERMILLE):
            return message
        try:
            data = encode(message)
            return decode(data, Message, size_max=MESSAGE_SIZE_MAX)  # type: ignore[arg-type]  # a union is no class
        except CodecError:
            if sender.honest:
                raise
            self.counts["undecodable"] += 1
            return None

    def _carry(self, sender: Machine, receiver: Machine, message: Message) -> None:
        world = self.world
        if self.cuts and (sender.name, receiver.name) in self.cuts:
            self.counts["cut"] += 1
            return
        if self.drop_permille and world.chance(self.drop_permille):
            self.counts["drop"] += 1
            return
        delay_us = self._delay_us()
        if self.withheld:
            held_us = self.withheld.get((kind_of(message), receiver.name))
            if held_us is not None:
                self.counts["withheld"] += 1
                if held_us == 0:
                    return
                delay_us += world.pick(0, held_us)
        if self.slow_links:
            delay_us += self.slow_links.get(sender.name, 0) + self.slow_links.get(receiver.name, 0)
        world.after(delay_us, receiver, receiver.receive, sender.id, message)
        if self.duplicate_permille and world.chance(self.duplicate_permille):
            self.counts["duplicate"] += 1
            world.after(self._delay_us(), receiver, receiver.receive, sender.id, message)

    def _delay_us(self) -> int:
        if self.late_permille and self.world.chance(self.late_permille):
            self.counts["late"] += 1
            return self.world.pick(self.delay_us[1], self.late_us)
        return self.world.pick(*self.delay_us)

    # --- links -------------------------------------------------------------------------------------------

    def reach(self, asker: Machine, peer: str) -> Machine | None:
        """The machine of member `peer` if a request and its answer get through now."""
        for machine in self.world.machines:
            if machine.id == peer and machine is not asker and self._open(asker, machine) and not machine.paused:
                return machine
        return None

    def _open(self, one: Machine, other: Machine) -> bool:
        names = (one.name, other.name)
        return one.up and other.up and names not in self.cuts and names[::-1] not in self.cuts

    def on_start(self, machine: Machine) -> None:
        """A process came up: its links to everybody reachable follow."""
        for other in self.world.machines:
            if other.member != machine.member:
                self.world.after(self.world.pick(1_000, 60_000), machine, self._link, machine, other, other.life)

    def _link(self, one: Machine, other: Machine, life: int) -> None:
        if self._open(one, other) and other.life == life:
            one.connected(other)
            self.world.after(0, other, other.connected, one)

    def cut(self, sender: Machine, receiver: Machine) -> None:
        """Nothing from `sender` reaches `receiver` until it is mended as often as it was cut."""
        pair = (sender.name, receiver.name)
        self.cuts[pair] = self.cuts.get(pair, 0) + 1

    def mend(self, sender: Machine, receiver: Machine, *, reconnect: bool) -> None:
        """One cut less; with `reconnect` the transport notices, otherwise messages just pass again."""
        pair = (sender.name, receiver.name)
        if pair in self.cuts:
            self.cuts[pair] -= 1
            if self.cuts[pair] == 0:
                del self.cuts[pair]
        if reconnect and sender.name < receiver.name:
            self.world.after(self.world.pick(1_000, 60_000), sender, self._link, sender, receiver, receiver.life)
