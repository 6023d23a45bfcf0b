"""Members that say too little, too late, to too few, or with a wrong clock; and one that says it all again."""

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from consensus.messages import Message, Status
from tests.simulation.byzantine.behaviour import Behaviour, slot_of
from tests.simulation.network import kind_of

if TYPE_CHECKING:
    from tests.simulation.byzantine.traitor import Traitor

REMEMBERED_MAX = 300
CLOCK_LIES_MS = (-3_600_000, -6_000, -1_000, 1_000, 4_900, 6_000, 60_000, 3_600_000)


class Mute(Behaviour):
    """Says nothing for one life or for some heights of it; in some lives its heartbeat goes on."""

    def begins(self) -> None:
        """Draw for how many heights of each four it is silent, and whether it still seems alive."""
        self.silent_of_four = self.world.pick(1, 5)
        self._heartbeat = self.world.chance(500)

    def tells(self, message: Message, receiver: int) -> Iterable[Message]:
        """Nothing, or the status alone."""
        slot = slot_of(message)
        height = slot[0] if slot is not None else self.traitor.disk.height + 1
        silent = height % 4 < self.silent_of_four
        return () if silent and not (self._heartbeat and isinstance(message, Status)) else (message,)


class Selective(Behaviour):
    """Speaks to some members only: for each kind of message and each height to others."""

    def begins(self) -> None:
        """A new order of whom it despises."""
        self._spoken_to: dict[tuple[str, int], int] = {}

    def tells(self, message: Message, receiver: int) -> Iterable[Message]:
        """The message, for those who are spoken to."""
        slot = slot_of(message)
        key = (kind_of(message), slot[0] if slot is not None else self.traitor.disk.height // 4)
        if key not in self._spoken_to:
            self._spoken_to[key] = self.world.pick(0, 1 << len(self.world.machines))
        return (message,) if self._spoken_to[key] >> receiver & 1 else ()


class SlowPrimary(Behaviour):
    """Alive, correct, and late with everything while it is the primary: from a little to nearly a time-out."""

    def begins(self) -> None:
        """How late it is in this life."""
        base_us = self.world.plan.base_timeout_ms * 1000
        self._late_us = (50_000, base_us // 4, base_us * 8 // 10)[self.world.pick(0, 3)]
        self._is_primary = False

    def ticks(self) -> None:
        """Notice who is the primary now."""
        self._is_primary = self.traitor.replica.status().primary == self.traitor.id

    def delay_us(self) -> int:
        """The delay of a primary; a backup has none."""
        if self._is_primary:
            self.world.faults["lie: slow primary"] += 1
        return self._late_us if self._is_primary else 0


class Censor(Behaviour):
    """As the primary it leaves out the oldest request: while it has others to propose, or one request for ever."""

    def begins(self) -> None:
        """Draw which of the two."""
        self._stubborn = self.world.chance(500)
        self._victim: int | None = None

    def leaves_out(self, requests: tuple[int, ...]) -> tuple[int, ...]:
        """The oldest, where there is a second one; or the one that was the oldest once."""
        if not self._stubborn:
            return requests[:1] if len(requests) > 1 else ()
        if self._victim is None and requests:
            self._victim = requests[0]
        return tuple(request for request in requests if request == self._victim)


class TimeLiar(Behaviour):
    """The clock in its status and in its blocks is ahead or behind, by another amount after some time."""

    def begins(self) -> None:
        """The first lie."""
        self._lie_ms = CLOCK_LIES_MS[self.world.pick(0, len(CLOCK_LIES_MS))]

    def ticks(self) -> None:
        """Now and then another lie."""
        if self.world.chance(30):
            self.world.faults["lie: time-liar"] += 1
            self._lie_ms = CLOCK_LIES_MS[self.world.pick(0, len(CLOCK_LIES_MS))]

    def clock_lie_ms(self) -> int:
        """The lie of the hour."""
        return self._lie_ms


class Replayer(Behaviour):
    """Plays genuine messages of anybody again, also of other views, heights and lives."""

    def __init__(self, traitor: "Traitor") -> None:
        """Nothing heard yet."""
        super().__init__(traitor)
        self._heard: deque[Message] = deque(maxlen=REMEMBERED_MAX)

    def begins(self) -> None:
        """How busy it is in this life."""
        self._permille = (30, 200)[self.world.pick(0, 2)]

    def hears(self, message: Message) -> None:
        """Remember one in two, and sometimes play one back."""
        if self.world.chance(500):
            self._heard.append(message)
        if self.world.chance(self._permille):
            self._play()

    def tells(self, message: Message, receiver: int) -> Iterable[Message]:
        """The truth; what it said itself is worth repeating later, too."""
        self._heard.append(message)
        return (message,)

    def ticks(self) -> None:
        """Silence of the others is no reason to be silent."""
        if self._heard and self.world.chance(self._permille * 2):
            self._play()

    def _play(self) -> None:
        if self._heard:
            message = self._heard[self.world.pick(0, len(self._heard))]
            self.traitor.lie(message, self.traitor.any_other())
