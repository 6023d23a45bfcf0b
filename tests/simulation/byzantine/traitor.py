"""A traitor: a member that runs the shipped replica to stay plausible, and bends what goes out of it."""

from typing import TYPE_CHECKING

from consensus.effects import BuildPayload
from consensus.messages import Message, Vote
from consensus.replica import Replica
from tests.simulation.byzantine.craft import Craft
from tests.simulation.byzantine.roles import ROLES
from tests.simulation.machine import Machine, ReplicaFactory

if TYPE_CHECKING:
    from tests.simulation.world import World

NO_PLACE = 127


class Traitor(Machine):
    """Runs one of the behaviours in `ROLES`. All traitors of a world know each other and share their keys."""

    def __init__(self, world: "World", name: str, member: int, factory: ReplicaFactory, faulty: str = "") -> None:
        """`faulty` is the name of its behaviour."""
        super().__init__(world, name, member, shameless(factory), faulty)
        self.behaviour = ROLES[faulty](self)
        self.craft = Craft(self)
        self.plot: dict[object, object] = {}  # what the ring agreed on; only its first member's is used

    # --- the ring ----------------------------------------------------------------------------------------

    def ring(self) -> "list[Traitor]":
        """All traitors of this world, this one included."""
        return [machine for machine in self.world.machines if isinstance(machine, Traitor)]

    @property
    def place(self) -> int:
        """Its place in the list that decides its height in work; a place that nobody has while it is not in it."""
        place = self.craft.members.index(self.id)
        return place if place is not None else NO_PLACE

    def others(self) -> list[int]:
        """The numbers of all other members and observers."""
        return [machine.member for machine in self.world.machines if machine.member != self.member]

    def any_other(self) -> int:
        """The number of some other member; its own where it is alone."""
        others = self.others()
        return others[self.world.pick(0, len(others))] if others else self.member

    # --- what it says ------------------------------------------------------------------------------------

    def say(self, message: Message, receiver: int) -> None:
        """`message`, bent or not, goes to one member now."""
        if isinstance(message, Vote) and message.member in self.craft.ring:
            self.world.checks.on_foreign_commit(message)
        self.world.network.send(self, self.world.signer.name(receiver), message)

    def lie(self, message: Message, receiver: int) -> None:
        """Say something that this member's replica did not say, and count it."""
        self.world.faults["lie"] += 1
        self.world.faults[f"lie: {self.faulty}"] += 1
        self.say(message, receiver)

    def _emit(self, message: Message, peer: str | None) -> None:
        for receiver in self.others():
            if peer is None or self.world.signer.name(receiver) == peer:
                self._tell(message, receiver)

    def _tell(self, message: Message, receiver: int) -> None:
        told = tuple(self.behaviour.tells(message, receiver))
        if told != (message,):
            self.world.faults["lie"] += 1
            self.world.faults[f"lie: {self.faulty}"] += 1
        delay_us = self.behaviour.delay_us()
        for word in told:
            if delay_us:
                self.world.after(delay_us, self, self.say, word, receiver)
            else:
                self.say(word, receiver)

    # --- what its behaviour bends ------------------------------------------------------------------------

    def start(self) -> None:
        """The process runs, with a mood for this life."""
        self.behaviour.begins()
        super().start()

    def receive(self, peer: str, message: Message) -> None:
        """The replica answers first, then the behaviour may add something."""
        super().receive(peer, message)
        if self.up:
            self.behaviour.hears(message)

    def _tick(self) -> None:
        super()._tick()
        if self.up:
            self.behaviour.ticks()

    def clocks(self) -> tuple[int, int]:
        """(monotonic ms, wall clock ms); the second one as the behaviour wants it to be."""
        now_ms, time_ms = super().clocks()
        return now_ms, max(0, time_ms + self.behaviour.clock_lie_ms())

    def _build(self, effect: BuildPayload) -> None:
        hidden = self.behaviour.leaves_out(tuple(sorted(self.known)))
        if hidden:
            self.world.faults["lie"] += 1
            self.world.faults[f"lie: {self.faulty}"] += 1
        for request in hidden:
            del self.known[request]
        super()._build(effect)
        for request in hidden:
            if self.up and request not in self.disk.applied_requests:
                self.known[request] = None

    def keep_body(self, digest: bytes, payload: bytes) -> None:
        """Whoever asks for the block `digest` gets it from here."""
        self._bodies[digest] = payload


def shameless(factory: ReplicaFactory) -> ReplicaFactory:
    """A replica that goes on signing when others show it what its own key has signed elsewhere."""

    def make(*arguments: object) -> Replica:
        replica = factory(*arguments)
        context = replica._context
        setattr(context, "own_vote_unknown", lambda height: None)  # noqa: B010  # replaces a method of one object
        setattr(context, "own_key_equivocates", lambda: None)  # noqa: B010
        return replica

    return make
