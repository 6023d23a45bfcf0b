"""Who decides which height: member lists that decided blocks change, and keys that they replace.

A change travels as a request like any other, so it takes effect at the height after the block that has it, at every
member alike. What would leave more than f faulty members in a list is not applied: that is the assumption under
which consensus is judged at all.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from consensus.members import Members, Validator

if TYPE_CHECKING:
    from tests.simulation.world import World

MEMBERS_MIN = 3


class Change(NamedTuple):
    """`kind` is "join", "leave" or "rotate"; `version` is the version of the key from then on."""

    kind: str
    number: int
    version: int


class Membership:
    """The changes that were asked for, by the number of their request."""

    def __init__(self, world: "World") -> None:
        """Nothing changes."""
        self._world = world
        self.changes: dict[int, Change] = {}
        self.genesis = world.signer.members
        self._lists: dict[tuple[Validator, ...], Members] = {self.genesis.validators: self.genesis}

    def after(self, members: Members, requests: Iterable[int]) -> Members:
        """The list that decides the height after a block with `requests` that `members` decided."""
        for request in requests:
            change = self.changes.get(request)
            if change is not None:
                members = self._apply(members, change)
        return members

    def _apply(self, members: Members, change: Change) -> Members:
        signer = self._world.signer
        listed = members.index(signer.name(change.number))
        validators = list(members.validators)
        if change.kind == "join":
            if listed is None:
                # Not at the end: the places of others in the list change with it.
                validators.insert(change.number % len(validators), signer.validator(change.number, change.version))
        elif listed is not None and change.kind == "leave":
            del validators[listed]
        elif listed is not None:
            validators[listed] = signer.validator(change.number, change.version)
        if not self._tolerable(validators):
            return members
        key = tuple(validators)
        if key not in self._lists:
            self._lists[key] = Members(key)
        return self._lists[key]

    def _tolerable(self, validators: list[Validator]) -> bool:
        faulty = {machine.id for machine in self._world.machines if machine.faulty}
        return (
            len(validators) >= MEMBERS_MIN
            and sum(validator.id in faulty for validator in validators) <= (len(validators) - 1) // 3
        )
