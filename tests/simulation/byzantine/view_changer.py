"""A member that asks for views nobody should go to: absurd, old, without end, with forged proof, at every tick."""

from collections.abc import Iterable

from consensus.messages import Certificate, Message, NewView, ViewChange, VoteKind
from tests.simulation.block import digest_of
from tests.simulation.byzantine.behaviour import Behaviour

VIEW_MAX = 2**63 - 1
NO_SIGNATURE = bytes(64)


class FalseViewChanger(Behaviour):
    """Never opens a view that others ask it for, and wants another one all the time."""

    def begins(self) -> None:
        """How often it speaks, and which view it is fond of in this life."""
        self._permille = (200, 600)[self.world.pick(0, 2)]
        self._opens = self.world.chance(300)
        self._fond = self.world.pick(0, 6)

    def tells(self, message: Message, receiver: int) -> Iterable[Message]:
        """The truth, except that new views are kept back."""
        return () if isinstance(message, NewView) and not self._opens else (message,)

    def ticks(self) -> None:
        """Ask again, in the own name or in a mate's; sometimes with a new view that no quorum asked for."""
        if not self.traitor.craft.ring or not self.world.chance(self._permille):
            return
        message: Message = self._ask(self._pick_member())
        if self.world.chance(150):
            message = self._new_view()
        for receiver in self.traitor.others():
            self.traitor.lie(message, receiver)

    def _pick_member(self) -> int:
        ring = self.traitor.craft.ring
        return ring[self.world.pick(0, len(ring))]

    def _view(self, height: int) -> int:
        """Mostly the view this life is fond of: the last ones, its own last one, the next, an old one."""
        now = self.traitor.replica.status().view
        rotation, n = self.world.plan.rotation_heights, self.traitor.craft.members.n
        own_turn = VIEW_MAX - 1 - (VIEW_MAX - 1 + height // rotation - self.traitor.place) % n
        views = (VIEW_MAX, VIEW_MAX - 1, own_turn, now + 1, now + 2 + self.world.pick(0, 5), max(1, now - 1))
        fond = self._fond if self.world.chance(700) else self.world.pick(0, len(views))
        return min(max(views[fond], 1), VIEW_MAX)

    def _ask(self, member: int) -> ViewChange:
        disk = self.traitor.disk
        height = disk.height + (1 if self.world.chance(800) else self.world.pick(0, 3))
        view = self._view(height)
        decided: Certificate | None = disk.chain[-1].certificate if disk.chain else None
        prepared: Certificate | None = None
        if self.world.chance(150) and disk.chain:
            decided = self.traitor.craft.forged_certificate(VoteKind.COMMIT, view, height - 1, disk.head_digest)
        if self.world.chance(250):
            claimed = max(0, view - 1 - self.world.pick(0, 2))
            digest = digest_of(disk.head_digest)
            prepared = self.traitor.craft.forged_certificate(VoteKind.PREPARE, claimed, height, digest)
        return self.traitor.craft.signed(ViewChange(height, view, decided, prepared, member, NO_SIGNATURE))

    def _new_view(self) -> NewView:
        """A new view out of the ring's own wishes, some of them twice."""
        asks = [self._ask(member) for member in sorted(self.traitor.craft.ring)]
        while len(asks) < self.traitor.craft.members.quorum:
            asks.append(asks[self.world.pick(0, len(asks))])
        view = asks[0].view
        return self.traitor.craft.signed(
            NewView(asks[0].height, view, tuple(asks), self.traitor.place, NO_SIGNATURE)
        )
