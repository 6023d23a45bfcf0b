"""The names under which seeds draw a liar, and what each of them does."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from consensus.messages import Message
from tests.simulation.byzantine.behaviour import Behaviour
from tests.simulation.byzantine.equivocator import Equivocator
from tests.simulation.byzantine.evasions import Censor, Mute, Replayer, Selective, SlowPrimary, TimeLiar
from tests.simulation.byzantine.garbler import Garbler
from tests.simulation.byzantine.view_changer import FalseViewChanger

if TYPE_CHECKING:
    from tests.simulation.byzantine.traitor import Traitor

SINGLE: dict[str, type[Behaviour]] = {
    "mute": Mute,
    "equivocator": Equivocator,
    "replayer": Replayer,
    "garbler": Garbler,
    "false view-changer": FalseViewChanger,
    "selective sender": Selective,
    "slow primary": SlowPrimary,
    "censor": Censor,
    "time-liar": TimeLiar,
}


class Turncoat(Behaviour):
    """All of them in one member: another one for every word."""

    def __init__(self, traitor: "Traitor") -> None:
        """One of each."""
        super().__init__(traitor)
        self._parts = [make(traitor) for make in SINGLE.values()]

    def begins(self) -> None:
        """A mood for each part."""
        for part in self._parts:
            part.begins()

    def _part(self) -> Behaviour:
        return self._parts[self.world.pick(0, len(self._parts))]

    def hears(self, message: Message) -> None:
        """Some part listens."""
        self._part().hears(message)

    def tells(self, message: Message, receiver: int) -> Iterable[Message]:
        """Some part answers."""
        return self._part().tells(message, receiver)

    def ticks(self) -> None:
        """Some part's turn."""
        self._part().ticks()

    def leaves_out(self, requests: tuple[int, ...]) -> tuple[int, ...]:
        """Some part's wish."""
        return self._part().leaves_out(requests)

    def clock_lie_ms(self) -> int:
        """The time as the part sees it whose turn it is."""
        return self._part().clock_lie_ms()


ROLES: dict[str, type[Behaviour]] = {**SINGLE, "turncoat": Turncoat}
