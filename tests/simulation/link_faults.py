"""What goes wrong between machines: cuts of every shape, loss, delay, and messages that are held back."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from tests.simulation.machine import Machine
from tests.simulation.network import KINDS

if TYPE_CHECKING:
    from tests.simulation.faults import Plan
    from tests.simulation.world import World

Pairs = list[tuple[Machine, Machine]]


class Calendar(Protocol):
    """What a fault needs besides the world: its name counted, its end planned, its victim drawn."""

    healed: bool

    def count(self, kind: str, *detail: object) -> None:
        """One more fault of `kind`."""

    def later(self, act: Callable[[], None]) -> None:
        """Call `act` after some time, unless everything was mended before."""

    def any(self) -> Machine:
        """Some machine."""


class LinkFaults:
    """Each method begins one fault, and the calendar ends it."""

    def __init__(self, world: "World", plan: "Plan", calendar: Calendar) -> None:
        """Every link is open."""
        self._world = world
        self._plan = plan
        self._calendar = calendar

    def _cut(self, pairs: Pairs) -> None:
        """`pairs` are cut, and mended later."""
        network = self._world.network
        reconnect = self._world.chance(500)
        for sender, receiver in pairs:
            network.cut(sender, receiver)

        def mend() -> None:
            for sender, receiver in pairs:
                network.mend(sender, receiver, reconnect=reconnect)

        self._calendar.later(mend)

    def _halves(self) -> tuple[str, Pairs]:
        sides = [self._world.chance(500) for _ in self._world.machines]
        machines = list(zip(self._world.machines, sides, strict=True))
        pairs = [(one, other) for one, side in machines for other, where in machines if side != where]
        return "".join("ab"[side] for side in sides), pairs

    def split(self) -> None:
        """Two halves do not hear each other."""
        sides, pairs = self._halves()
        self._calendar.count("split", sides)
        self._cut(pairs)

    def _around(self, machine: Machine) -> Pairs:
        others = [other for other in self._world.machines if other is not machine]
        return [(machine, other) for other in others] + [(other, machine) for other in others]

    def isolate(self) -> None:
        """One machine hears nobody and is heard by nobody."""
        machine = self._calendar.any()
        self._calendar.count("isolate", machine.name)
        self._cut(self._around(machine))

    def one_way(self) -> None:
        """One machine is not heard by some, or does not hear some."""
        machine = self._calendar.any()
        others = [other for other in self._world.machines if other is not machine and self._world.chance(600)]
        if self._world.chance(500):
            self._calendar.count("one-way cut", "from", machine.name, "to", *(other.name for other in others))
            self._cut([(machine, other) for other in others])
        else:
            self._calendar.count("one-way cut", "to", machine.name, "from", *(other.name for other in others))
            self._cut([(other, machine) for other in others])

    def flap(self) -> None:
        """A link, a machine or a split goes away and comes back again and again."""
        machine, other = self._calendar.any(), self._calendar.any()
        shape = self._world.pick(0, 3)
        pairs = ([(machine, other), (other, machine)], self._around(machine), self._halves()[1])[shape]
        self._calendar.count("flapping", ("link", "machine", "split")[shape], machine.name)
        self._flap(pairs, self._world.pick(3, 20), self._plan.base_timeout_ms * self._world.pick(50, 800))

    def _flap(self, pairs: Pairs, times: int, span_us: int) -> None:
        """`pairs` are cut for up to `span_us` and open for as long, `times` times."""
        network, world = self._world.network, self._world
        if times == 0 or self._calendar.healed:
            return
        for sender, receiver in pairs:
            network.cut(sender, receiver)

        def mend() -> None:
            if not self._calendar.healed:
                for sender, receiver in pairs:
                    network.mend(sender, receiver, reconnect=True)
                world.after(world.pick(1_000, span_us), None, self._flap, pairs, times - 1, span_us)

        world.after(world.pick(1_000, span_us), None, mend)

    def loss(self) -> None:
        """Many messages are lost on every link."""
        network = self._world.network
        network.drop_permille = self._world.pick(100, 700)
        self._calendar.count("loss", network.drop_permille, "permille")
        self._calendar.later(lambda: setattr(network, "drop_permille", self._plan.drop_permille))

    def withhold(self) -> None:
        """One kind of message is late or lost on its way to some of the members."""
        network = self._world.network
        kind = KINDS[self._world.pick(0, len(KINDS))]
        late_us = 0 if self._world.chance(400) else self._plan.base_timeout_ms * self._world.pick(500, 3_000)
        victims = [machine for machine in self._world.machines if self._world.chance(700)]
        self._calendar.count("withhold", kind, late_us // 1000, "ms", *(machine.name for machine in victims))
        for machine in victims:
            network.withheld[(kind, machine.name)] = late_us

        def pass_on() -> None:
            for machine in victims:
                network.withheld.pop((kind, machine.name), None)

        self._calendar.later(pass_on)

    def slow_network(self) -> None:
        """Every message takes long, and they overtake one another."""
        network = self._world.network
        network.delay_us = (50_000, self._world.pick(100_000, 2_000_000))
        self._calendar.count("slow network", network.delay_us[1] // 1000, "ms")
        self._calendar.later(lambda: setattr(network, "delay_us", self._plan.delay_us))

    def slow_link(self) -> None:
        """What one machine says and hears is late; everybody else is quick."""
        network, machine = self._world.network, self._calendar.any()
        network.slow_links[machine.name] = self._plan.base_timeout_ms * self._world.pick(50, 1_000)
        self._calendar.count("slow link", machine.name, network.slow_links[machine.name] // 1000, "ms")

        def speed_up() -> None:
            network.slow_links.pop(machine.name, None)

        self._calendar.later(speed_up)

    def part_twins(self) -> None:
        """Two processes with one key: mostly each reaches only one half of the others, until everything heals."""
        twins = [machine for machine in self._world.machines if machine.faulty == "twin"]
        if self._world.chance(300):
            return
        sides = [self._world.chance(500) for _ in self._world.machines]
        for one, side in zip(self._world.machines, sides, strict=True):
            if one in twins:
                self._calendar.count("twin", one.name)
                side = one.name.endswith("'")
            for twin in twins:
                if side != twin.name.endswith("'"):
                    self._world.network.cut(one, twin)
                    self._world.network.cut(twin, one)

    def heal(self) -> None:
        """Every link is open and lossless again."""
        network = self._world.network
        network.drop_permille = network.duplicate_permille = network.late_permille = 0
        network.delay_us = self._plan.delay_us
        network.withheld.clear()
        network.slow_links.clear()
        reconnect = self._world.chance(500)
        for sender in self._world.machines:
            for receiver in self._world.machines:
                if network.cuts.pop((sender.name, receiver.name), 0):
                    network.mend(sender, receiver, reconnect=reconnect)
