"""Who decides, and how many of them are enough: all threshold arithmetic of the project.

Invariant: two quorums of one member list share at least f + 1 members, so at least one honest one;
and n - f honest members can always form a quorum (checked for n = 1 … 16 in the tests).
"""

from collections.abc import Iterator

import msgspec


class Validator(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A member with a vote: `id` is its ASCII name, `voting_key` its Ed25519 public key (32 bytes)."""

    id: str
    voting_key: bytes


class Members:
    """The ordered list of validators that decides one height. A member's index is its place in the list."""

    __slots__ = ("_f", "_index", "_n", "_quorum", "validators")

    def __init__(self, validators: tuple[Validator, ...]) -> None:
        """Raise ValueError when the list is empty or names one id or one key twice."""
        if not validators:
            raise ValueError("a network needs at least one validator")
        self.validators = validators
        self._index = {validator.id: index for index, validator in enumerate(validators)}
        if len(self._index) != len(validators):
            raise ValueError("a validator id appears twice")
        if len({validator.voting_key for validator in validators}) != len(validators):
            raise ValueError("a voting key appears twice")
        # Asked for at every message, so computed once.
        self._n = len(validators)
        self._f = (self._n - 1) // 3
        self._quorum = (self._n + self._f) // 2 + 1

    @property
    def n(self) -> int:
        """How many members vote."""
        return self._n

    @property
    def f(self) -> int:
        """How many faulty members the list tolerates."""
        return self._f

    @property
    def quorum(self) -> int:
        """How many votes decide. Plain 2f + 1 would fork at n = 5 and 6."""
        return self._quorum

    @property
    def weak_quorum(self) -> int:
        """How many members contain at least one honest one: f + 1."""
        return self._f + 1

    def resting(self, named: tuple[str, ...]) -> tuple[int, ...]:
        """The indices of the members among `named`, who rest; none where the others are fewer than a quorum."""
        found = tuple([index for index, validator in enumerate(self.validators) if validator.id in named])
        return found if self._n - len(found) >= self._quorum else ()

    def primary(self, height: int, view: int, rotation_heights: int, resting: tuple[int, ...] = ()) -> int:
        """The index of the member that proposes at `height` in `view`.

        The turn of one that rests goes to the second after it that does not; of several that rest one after the
        other, each one's goes one further: so two turns in a row are not the same member's.
        """
        turn = (view + height // rotation_heights) % self._n
        if turn in resting:
            awake = [index for index in range(self._n) if index not in resting]
            further = 1  # [1.4]
            while (turn - further) % self._n in resting:
                further += 1
            after = len([index for index in awake if index < turn])
            turn = awake[(after + further) % len(awake)]
        return turn

    def index(self, member: str) -> int | None:
        """The index of the member named `member`, or None for a stranger."""
        return self._index.get(member)

    def id(self, index: int) -> str:
        """The name of the member at `index`."""
        return self.validators[index].id

    def key(self, index: int) -> bytes:
        """The voting key of the member at `index`."""
        return self.validators[index].voting_key

    def __iter__(self) -> Iterator[Validator]:
        return iter(self.validators)

    def __len__(self) -> int:
        return len(self.validators)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Members) and self.validators == other.validators

    def __hash__(self) -> int:
        raise TypeError("a member list is compared, never hashed")
