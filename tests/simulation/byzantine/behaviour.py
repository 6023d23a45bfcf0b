"""What a behaviour may bend: what it says to whom, what it adds, its blocks, its clock and its speed."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from consensus.messages import (
    Message,
    NewView,
    PrePrepare,
    ViewChange,
    Vote,
)

if TYPE_CHECKING:
    from tests.simulation.byzantine.traitor import Traitor


class Behaviour:
    """Bends nothing. Each subclass overrides what it is for, and draws all chance from the traitor's world."""

    def __init__(self, traitor: "Traitor") -> None:
        """One object for all lives of the traitor: what it remembers survives its crashes."""
        self.traitor = traitor
        self.world = traitor.world

    def begins(self) -> None:
        """The traitor's process starts: a mood for this life is drawn."""

    def hears(self, message: Message) -> None:
        """A message came in; the traitor's own replica has answered it already."""

    def tells(self, message: Message, receiver: int) -> Iterable[Message]:
        """What the member at index `receiver` is told in the place of `message`."""
        return (message,)

    def ticks(self) -> None:
        """A tenth of a second went by."""

    def leaves_out(self, requests: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the waiting `requests` that the traitor's own block shall not contain."""
        return ()

    def clock_lie_ms(self) -> int:
        """By how much the traitor's wall clock is wrong, in its blocks and in its status."""
        return 0

    def delay_us(self) -> int:
        """How much later than it could the traitor says the next thing."""
        return 0


def slot_of(message: Message) -> tuple[int, int] | None:
    """(height, view) of a protocol message; None for a status, a proof or an answer."""
    if isinstance(message, PrePrepare):
        return message.vote.height, message.vote.view
    if isinstance(message, Vote | ViewChange | NewView):
        return message.height, message.view
    return None
