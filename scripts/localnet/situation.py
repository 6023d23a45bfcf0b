"""Who can take part at a moment of a rehearsal, and so whether blocks must come, must not, or may.

Judged from what was done to processes and links alone, never from what nodes say; a member that lost its memory
counts as gone until it votes again.
"""

import itertools
from collections.abc import Iterable, Sequence

import msgspec

from scripts.localnet.faults import Fault
from scripts.localnet.wiring import State, Way


class Change(msgspec.Struct, frozen=True):
    """From `at_s` on: `able`, blocks must come while work waits; `unable`, none may. Neither: nobody can tell.

    `what` happened; `heals`: a fault ended.
    """

    at_s: float
    able: bool
    unable: bool
    what: str
    heals: bool = False


class Situation:
    """The faults that are in force."""

    def __init__(self, members: Sequence[str], quorum: int) -> None:
        """All is well. `quorum` members decide."""
        self._members = list(members)
        self._quorum = quorum
        self._active: list[Fault] = []
        self._forgetful: list[str] = []

    def begin(self, fault: Fault) -> None:
        """`fault` is in force."""
        self._active.append(fault)
        if fault.kind == "wipe":
            self._forgetful.append(fault.member)

    def end(self, fault: Fault) -> None:
        """`fault` is over; a member that lost its memory still abstains."""
        self._active.remove(fault)

    def votes_again(self, member: str) -> None:
        """A member that lost its memory votes."""
        if member in self._forgetful:
            self._forgetful.remove(member)

    @property
    def forgetful(self) -> tuple[str, ...]:
        """The members that lost their memory and have not voted since."""
        return tuple(self._forgetful)

    def ways(self, flap_open: bool) -> list[Way]:
        """What the proxy has to do now; links that flap are open or cut as `flap_open` says."""
        return [self._way(*pair, flap_open) for pair in itertools.permutations(self._members, 2)]

    def change(self, at_s: float, what: str, heals: bool = False) -> Change:
        """What can be expected from now on."""
        present = [member for member in self._members if not self._is_gone(member)]
        sure = [member for member in present if member not in self._forgetful]
        able = any(self._all_linked(group) for group in itertools.combinations(sure, self._quorum))
        return Change(at_s, able, self._largest_group(present) < self._quorum, what, heals)

    def _is_gone(self, member: str) -> bool:
        return any(
            fault.kind == "power cut" or (fault.kind in ("kill", "pause", "wipe") and fault.member == member)
            for fault in self._active
        )

    def _way(self, sender: str, receiver: str, flap_open: bool) -> Way:
        state: State = "open"
        delay_ms = 0
        for fault in self._active:
            both = {fault.member, fault.peer} == {sender, receiver}
            if both and (fault.kind == "cut" or (fault.kind == "flap" and not flap_open)):
                return Way(sender, receiver, "cut")
            if (
                (both and fault.kind == "hole")
                or (fault.kind == "half-open" and (fault.member, fault.peer) == (sender, receiver))
                or (fault.kind == "isolate" and fault.member in (sender, receiver))
            ):
                state = "hole"
            if fault.kind == "slow" and fault.member == sender:
                delay_ms = max(delay_ms, fault.delay_ms)
        return Way(sender, receiver, state, delay_ms)

    def _all_linked(self, group: Iterable[str]) -> bool:
        """Whether everybody in the group reaches everybody in it, all the time."""
        return all(self._way(*pair, flap_open=False).state == "open" for pair in itertools.permutations(group, 2))

    def _largest_group(self, present: Sequence[str]) -> int:
        """The size of the largest set of members that hear of each other in any way, by whatever detour."""
        left = set(present)
        largest = 0
        while left:
            group = {left.pop()}
            reached = group
            while reached:
                reached = {m for m in left if any(self._hears(m, known) for known in group)}
                group |= reached
                left -= reached
            largest = max(largest, len(group))
        return largest

    def _hears(self, first: str, second: str) -> bool:
        return any(self._way(*pair, flap_open=True).state == "open" for pair in ((first, second), (second, first)))
