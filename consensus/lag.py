"""What lies ahead of the height in work: messages of the next height, and how far others are.

A peer speaks for itself only: what is kept unverified is kept under the peer's own authenticated name, so a
liar displaces nobody else's messages and counts once.
"""

from consensus.effects import CatchUp
from consensus.members import Members
from consensus.messages import VALIDATORS_MAX, Message, NewView, PrePrepare, ViewChange, Vote

CATCH_UP_CAP_MS = 8_000
PROBE_AFTER_INTERVALS = 4
_OF_ONE_HEIGHT = (Vote, ViewChange, NewView)


def height_of(message: Message) -> int | None:
    """The height that a protocol message speaks about; None for a status, an answer or a proof."""
    if isinstance(message, _OF_ONE_HEIGHT):
        return message.height
    if isinstance(message, PrePrepare):
        return message.vote.height
    return None


def _place(message: Message) -> int:
    """Kinds in the order in which they are judged: what opens a view comes before what happens in it."""
    if isinstance(message, ViewChange):
        return 0
    if isinstance(message, NewView):
        return 1
    if isinstance(message, PrePrepare):
        return 2
    return 2 + int(message.kind) if isinstance(message, Vote) else 5


class Held:
    """Messages of the next height: one per peer and kind, the newest."""

    def __init__(self) -> None:
        """Nothing is held."""
        self._messages: dict[str, dict[int, Message]] = {}

    def keep(self, peer: str, message: Message) -> None:
        """Hold `message` in place of the peer's earlier one of its kind."""
        if peer in self._messages or len(self._messages) < VALIDATORS_MAX:
            self._messages.setdefault(peer, {})[_place(message)] = message

    def take(self, height: int) -> list[tuple[str, Message]]:
        """Return what is held for `height`, in the order to judge it, and drop all that is not later."""
        found: list[tuple[int, str, Message]] = []
        kept: dict[str, dict[int, Message]] = {}
        for peer in sorted(self._messages):
            for place, message in self._messages[peer].items():
                of = height_of(message)
                if of == height:
                    found.append((place, peer, message))
                elif of is not None and of == height + 1:
                    kept.setdefault(peer, {})[place] = message
        self._messages = kept
        return [(peer, message) for _, peer, message in sorted(found, key=lambda entry: entry[:2])]


class Lag:
    """How far the other members are, by their own word, and when to ask for blocks."""

    def __init__(self, interval_ms: int) -> None:
        """The first request is repeated after `interval_ms`, later ones less and less often."""
        self._interval_ms = interval_ms
        self._working_on: dict[str, int] = {}
        self._highest = 0  # nobody ever worked above it
        self._certified = 0
        self._certified_by: tuple[str, ...] = ()
        # What anybody says, be it in a list or under a key that we do not know yet: worth a question, no more.
        self._hints: dict[str, int] = {}
        self._probe_ms: int | None = None
        self._probes = 0
        self._behind_since_ms: int | None = None
        self._next_ms: int | None = None
        self._delay_ms = interval_ms

    def note(self, peer: str, height: int) -> None:
        """A member's peer works on `height`."""
        self._working_on[peer] = height  # [7.6]
        self._highest = max(self._highest, height)

    def hint(self, peer: str, height: int) -> None:
        """A peer, member or not, speaks about a later height than we work on."""
        if peer in self._hints or len(self._hints) < VALIDATORS_MAX:
            self._hints[peer] = height

    def is_news(self, height: int) -> bool:
        """Whether a certificate of `height` would say more than those seen before."""
        return height > self._certified

    def note_certificate(self, peers: tuple[str, ...], height: int) -> None:
        """A genuine certificate of `height` was seen; `peers` have its block."""
        if height > self._certified:
            self._certified = height
            self._certified_by = peers

    def target(self, members: Members, head_height: int) -> int | None:
        """The height that is certainly decided elsewhere and not here; None when there is none.

        A certificate proves it; so do f + 1 members that work above it, one of whom is honest.
        """
        if max(self._highest - 1, self._certified) <= head_height:
            return None
        heights = sorted(
            (height for peer, height in self._working_on.items() if members.index(peer) is not None), reverse=True
        )
        claimed = heights[members.f] - 1 if len(heights) > members.f else 0
        target = max(claimed, self._certified)
        return target if target > head_height else None

    def catch_up(self, members: Members, head_height: int, now_ms: int, patience_ms: int) -> CatchUp | None:
        """The catch-up that is due now: at once when far behind; one height behind is normal for `patience_ms`."""
        target = self.target(members, head_height)
        if target is None:
            self._behind_since_ms = None
            return self._probe(head_height, now_ms)
        if self._behind_since_ms is None:
            self._behind_since_ms = now_ms
            self._next_ms = None
            self._delay_ms = self._interval_ms
        due_ms = self._next_ms
        if due_ms is None:
            due_ms = self._behind_since_ms + (patience_ms if target == head_height + 1 else 0)
        if now_ms < due_ms:
            return None
        self._next_ms = now_ms + self._delay_ms  # [7.5]
        self._delay_ms = min(self._delay_ms * 2, CATCH_UP_CAP_MS)
        peers = [peer for peer, height in self._working_on.items() if height > head_height + 1]
        if self._certified > head_height:
            peers += [peer for peer in self._certified_by if peer not in peers]
        return CatchUp(target, tuple(sorted(peers)))

    def _probe(self, head_height: int, now_ms: int) -> CatchUp | None:
        """The question that is due to one of those that may be ahead, for the next block alone, by turns."""
        ahead = [peer for peer in sorted(self._hints) if self._hints[peer] > head_height + 1]
        if not ahead:
            self._probe_ms = None
            return None
        if self._probe_ms is None:
            self._probe_ms = now_ms + PROBE_AFTER_INTERVALS * self._interval_ms
            self._delay_ms = self._interval_ms
        if now_ms < self._probe_ms:
            return None
        self._probe_ms = now_ms + self._delay_ms  # [7.7]
        self._delay_ms = min(self._delay_ms * 2, CATCH_UP_CAP_MS)
        self._probes += 1
        return CatchUp(head_height + 1, (ahead[self._probes % len(ahead)],))

    def moved(self) -> None:
        """The head moved: patience and back-off start afresh."""
        self._behind_since_ms = None
        self._probe_ms = None
        self._hints = {}

    def forget_strangers(self, members: Members) -> None:
        """Drop the word of peers that are no members any more."""
        self._working_on = {
            peer: height for peer, height in self._working_on.items() if members.index(peer) is not None
        }
