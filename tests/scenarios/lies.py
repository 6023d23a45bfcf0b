"""What a traitor says: messages signed with a member's genuine key that no honest replica would send."""

import msgspec

from consensus.messages import (
    Certificate,
    Decided,
    Message,
    Status,
    ViewChange,
    VoteKind,
    status_bytes,
    view_change_bytes,
    vote_bytes,
)
from tests.scenarios.stage import Player, Stage
from tests.simulation.checks import NETWORK

SILLY_TIME_MS = 1


class Traitor:
    """Signs for one member whose process is gone."""

    def __init__(self, stage: Stage, player: Player) -> None:
        """From now on the member is dishonest: its replica stops, and owes nothing."""
        self._stage = stage
        self._player = player
        self._sign = stage.signer.sign_as(player.member)
        player.faulty, player.honest = "liar", False
        if player.up:
            player.crash()

    @property
    def _height(self) -> int:
        return max(machine.disk.height for machine in self._stage.honest()) + 1

    @property
    def _parent(self) -> Certificate | None:
        chain = max((machine.disk.chain for machine in self._stage.honest()), key=len)
        return chain[-1].certificate if chain else None

    def say(self, message: Message, receivers: list[Player]) -> None:
        """`message` is on its way to each of `receivers`."""
        for receiver in receivers:
            if receiver.up:
                self._stage.links.send(self._player, receiver.id, message)

    def view_change(self, view: int, *, forged: bool) -> ViewChange:
        """A view change to `view`; `forged` adds a prepared certificate in which all signatures are its own."""
        prepared = self._certificate(VoteKind.PREPARE, self._height, view - 1) if forged else None
        unsigned = ViewChange(self._height, view, self._parent, prepared, self._player.member, b"")
        return msgspec.structs.replace(unsigned, signature=self._sign(view_change_bytes(NETWORK, unsigned)))

    def status(self, height: int, view: int) -> Status:
        """A heartbeat that claims to work on `height` in `view`."""
        unsigned = Status(height, view, bytes(32), SILLY_TIME_MS, self._player.member, b"")
        return msgspec.structs.replace(unsigned, signature=self._sign(status_bytes(NETWORK, unsigned)))

    def decided(self, height: int) -> Decided:
        """A proof that `height` is decided, in which all signatures are its own."""
        return Decided(self._certificate(VoteKind.COMMIT, height, 0))

    def _certificate(self, kind: VoteKind, height: int, view: int) -> Certificate:
        own = self._sign(vote_bytes(NETWORK, kind, view, height, bytes(32)))
        quorum = self._stage.members.quorum
        return Certificate(kind, view, height, bytes(32), tuple((index, own) for index in range(quorum)))
