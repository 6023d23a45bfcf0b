"""A member that says well-formed nonsense: every field of every message, one or two at a time, made absurd."""

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from consensus.messages import INSTANCE_SIZE, Certificate, Message, ViewChange, Vote, VoteKind
from tests.simulation.byzantine.behaviour import Behaviour

EXTREMES = (0, 1, 2**31, 2**62, 2**63 - 2, 2**63 - 1)
INDICES = (0, 1, 2, 3, 7, 127)
TIMES_MS = (0, 1, 2**53 - 1)

Choice = TypeVar("Choice")
StructT = TypeVar("StructT", bound=msgspec.Struct)


class Garbler(Behaviour):
    """Garbles some of what it says; half of it is signed afterwards, so that it passes for its own words."""

    def begins(self) -> None:
        """How much of it is nonsense in this life."""
        self._permille = (100, 500)[self.world.pick(0, 2)]

    def tells(self, message: Message, receiver: int) -> Iterable[Message]:
        """The message, or garbled with or instead of it."""
        if not self.world.chance(self._permille):
            return (message,)
        garbled = self.garbled(message)
        return (garbled, message) if self.world.chance(500) else (garbled,)

    def garbled(self, message: Message) -> Message:
        """`message` with one to three fields made absurd."""
        for _ in range(self.world.pick(1, 4)):
            message = self._garble(message)
        return self.traitor.craft.signed(message) if self.world.chance(500) else message

    def _pick(self, choices: tuple[Choice, ...]) -> Choice:
        return choices[self.world.pick(0, len(choices))]

    def _garble(self, struct: StructT) -> StructT:
        """`struct` with one field replaced, or one field of what it contains."""
        name = self._pick(struct.__struct_fields__)
        value = self._value(name, getattr(struct, name), struct)
        return msgspec.structs.replace(struct, **{name: value})

    def _value(self, name: str, value: object, owner: object) -> object:
        if isinstance(value, VoteKind):
            return self._pick((VoteKind.PREPARE, VoteKind.COMMIT))
        if name == "member":
            return self._pick(INDICES)
        if name == "time_ms":
            return self._pick(TIMES_MS)
        if isinstance(value, int):
            return min(self._pick((*EXTREMES, value + 1, max(0, value - 1))), 2**63 - 1)
        if name == "payload" and isinstance(value, bytes):
            return self._pick((b"", value[:-1], value + b"\x00", b"\xc1 no block"))
        if isinstance(value, bytes):
            return self._pick((bytes(len(value)), value[::-1], value[:-1] + bytes((value[-1] ^ 1,))))
        if isinstance(value, Vote | ViewChange | Certificate):
            nothing = name in ("parent", "decided", "prepared") and self.world.chance(300)
            return None if nothing else self._garble(value)
        if value is None:
            return self._invented(name, owner)
        if isinstance(value, tuple):
            return self._shuffled(value)
        return value

    def _shuffled(self, items: tuple[object, ...]) -> tuple[object, ...]:
        """Indices out of order, doubled, missing; signatures exchanged; all of it or nothing."""
        first = items[:1]
        choices: tuple[tuple[object, ...], ...] = (
            items[::-1],
            items[:-1],
            first + items,
            items + items[-1:],
            first * len(items),
            (),
        )
        if len(items) > 1 and isinstance(items[0], tuple) and isinstance(items[1], tuple):
            swapped = ((items[0][0], items[1][1]), (items[1][0], items[0][1]), *items[2:])
            choices = (*choices, swapped, ((127, items[0][1]), *items[1:]))
        if isinstance(items[0] if items else None, ViewChange):
            changed = tuple(self._garble(item) if isinstance(item, ViewChange) else item for item in items)
            choices = (*choices, changed, (*items[:-1], *changed[-1:]))
        return self._pick(choices)

    def _invented(self, name: str, owner: object) -> object:
        """A certificate, or a vote, where there was none."""
        height = self._pick((1, self.traitor.disk.height, self.traitor.disk.height + 1))
        view = getattr(owner, "view", 0)
        digest = self.traitor.disk.head_digest
        if name == "vote":
            return self.traitor.craft.vote(self.traitor.any_other(), VoteKind.COMMIT, view, height, digest)
        if name in ("instance", "met"):
            return bytes(INSTANCE_SIZE)
        kind = VoteKind.PREPARE if name == "prepared" else VoteKind.COMMIT
        return self.traitor.craft.forged_certificate(kind, view, height, digest)
