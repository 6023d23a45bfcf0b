"""Members that show one half of the network something else than the other half, in every kind of message.

Colluding ones agree on the halves and on the rival block, and vote for each block where it is shown: with enough
of them the chain forks, and with f of them it must not.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from consensus.messages import Certificate, Message, NewView, PrePrepare, ViewChange, Vote, VoteKind
from tests.simulation.block import digest_of
from tests.simulation.byzantine.behaviour import Behaviour, slot_of
from tests.simulation.network import kind_of

if TYPE_CHECKING:
    from tests.simulation.byzantine.traitor import Traitor


class Plot:
    """What a ring of equivocators agreed on: who is shown which block at each height."""

    def __init__(self, traitor: "Traitor") -> None:
        """Nothing is agreed."""
        self._world = traitor.world
        self._ring = [mate.member for mate in traitor.ring()]
        self._second: dict[int, dict[int, None]] = {}
        self.rivals: dict[tuple[int, int], PrePrepare] = {}

    def in_second_camp(self, height: int, member: int) -> bool:
        """Whether `member` is shown the rival block of `height`."""
        if height not in self._second:
            members = [one.member for one in self._world.machines if one.member not in self._ring]
            if self._world.chance(700):  # halves of equal size are the most dangerous
                drawn = sorted((self._world.pick(0, 1_000), index) for index in members)
                chosen = [index for _, index in drawn[: len(members) // 2]]
            else:
                chosen = [index for index in members if self._world.chance(500)]
            self._second[height] = dict.fromkeys(chosen)
        return member in self._second[height]


class Equivocator(Behaviour):
    """Tells the second camp another pre-prepare, prepare, commit, view change or new view."""

    def __init__(self, traitor: "Traitor") -> None:
        """No certificate seen yet."""
        super().__init__(traitor)
        self._prepared: dict[int, Certificate] = {}
        self._asks: dict[tuple[int, int], dict[int, ViewChange]] = {}

    def begins(self) -> None:
        """How often it dares in this life."""
        self._permille = (300, 800, 1_000)[self.world.pick(0, 3)]

    @property
    def plot(self) -> Plot:
        """The agreement of the whole ring."""
        shared = self.traitor.ring()[0].plot
        found = shared.setdefault("equivocators", None) or Plot(self.traitor)
        shared["equivocators"] = found
        assert isinstance(found, Plot)
        return found

    def hears(self, message: Message) -> None:
        """Collect view changes: other quorums of them make other new views."""
        if isinstance(message, ViewChange):
            self._asks.setdefault((message.height, message.view), {})[message.member] = message
            if message.prepared is not None:
                self._prepared.setdefault(message.height, message.prepared)

    def tells(self, message: Message, receiver: int) -> Iterable[Message]:
        """The truth for the first camp, the rival for the second, and the ring's votes for each."""
        slot = slot_of(message)
        if slot is None or not self.world.chance(self._permille):
            return (message,)
        second = self.plot.in_second_camp(slot[0], receiver)
        if second:
            self.world.faults[f"equivocation by {kind_of(message)}"] += 1
        if isinstance(message, PrePrepare):
            return self._proposal(message, second)
        if not second:
            return (message,)
        if isinstance(message, Vote):
            return self._vote(message)
        if isinstance(message, ViewChange):
            return (self._view_change(message),)
        if isinstance(message, NewView):
            return self._new_view(message)
        return (message,)

    def _proposal(self, message: PrePrepare, second: bool) -> Iterable[Message]:
        """One of two blocks, and with it the prepares and commits of the whole ring."""
        vote = message.vote
        slot = (vote.height, vote.view)
        if slot not in self.plot.rivals:
            rival = self.traitor.craft.rival(message)
            self.plot.rivals[slot] = rival
            self.traitor.keep_body(rival.vote.digest, rival.payload)
        shown = self.plot.rivals[slot] if second else message
        yield shown
        for mate in self.traitor.craft.ring:
            for kind in VoteKind:
                yield self.traitor.craft.vote(mate, kind, vote.view, vote.height, shown.vote.digest)

    def _vote(self, message: Vote) -> Iterable[Message]:
        rival = self.plot.rivals.get((message.height, message.view))
        digest = rival.vote.digest if rival is not None else digest_of(message.digest)
        yield self.traitor.craft.vote(message.member, message.kind, message.view, message.height, digest)
        if rival is None and self.world.chance(300):  # both to one member: it holds the proof
            yield message

    def _view_change(self, message: ViewChange) -> ViewChange:
        """The same wish with another past: nothing prepared, or something older."""
        older = self._prepared.get(message.height)
        prepared = older if older is not None and older.view < message.view and self.world.chance(500) else None
        return self.traitor.craft.signed(msgspec.structs.replace(message, prepared=prepared))

    def _new_view(self, message: NewView) -> Iterable[Message]:
        """Another genuine quorum for the same view, best one that hides what is prepared."""
        craft, quorum = self.traitor.craft, self.traitor.craft.members.quorum
        asks = dict(self._asks.get((message.height, message.view), {}))
        for change in message.view_changes:
            asks.setdefault(change.member, change)
        for mate in craft.ring:
            bare = ViewChange(
                message.height, message.view, message.view_changes[0].decided, None, mate, message.signature
            )
            asks[mate] = craft.signed(bare)
        innocent = sorted(asks.values(), key=lambda change: (change.prepared is not None, change.member))
        chosen = tuple(sorted(innocent[:quorum], key=lambda change: change.member))
        if len(chosen) < quorum:
            return (message,)
        return (craft.signed(msgspec.structs.replace(message, view_changes=chosen)),)
