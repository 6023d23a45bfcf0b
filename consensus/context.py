"""What outlives one height: identity, clock, what waits, what was heard, and the list of effects in the making."""

from collections.abc import Callable

from consensus.amnesia import Amnesia
from consensus.config import Config
from consensus.effects import Accuse, Effect, PersistAbstention
from consensus.members import Members
from consensus.messages import Evidence, Vote
from consensus.verification import Verifier

ACCUSED_MAX = 256


class Context:
    """The replica's part that is shared with the height in work. Plain data with a few rules."""

    def __init__(
        self,
        config: Config,
        verifier: Verifier,
        sign: Callable[[bytes], bytes],
        amnesia: Amnesia,
        now_ms: int,
    ) -> None:
        """Nothing waits, nobody was heard, no block is being built."""
        self.config = config
        self.verifier = verifier
        self.sign = sign
        self.amnesia = amnesia
        self.now_ms = now_ms
        self.effects: list[Effect] = []
        # Work: what WorkWaiting said last, and whether it spoke since the last BuildPayload.
        self.waiting = False
        self.full = False
        self.told_since_build = False
        self.passed_over = 0
        # The one BuildPayload without an answer: (height, view).
        self.building: tuple[int, int] | None = None
        self.build_after_ms = now_ms
        self.empty_due_ms: int | None = None
        # Members, by name, since lists change: when a member was heard last, and its newest vote.
        self.heard_ms: dict[str, int] = {}
        self.newest_votes: dict[str, Vote] = {}
        self.voted_since_start = False
        self.key_is_ours = True
        # Why the caller lets nothing be signed; empty: it does not forbid it.
        self.withheld = ""
        self.suspicion = ""
        # Kept across heights, for people: the primary that was suspected last, why, and when.
        self.last_suspicion: tuple[str, str, int] | None = None
        self.refusal = ""
        self._accused: dict[tuple[str, str, int, int], None] = {}

    def suspect(self, primary: str, reason: str) -> None:
        """Remember for whoever asks why that `primary` was suspected now."""
        self.suspicion = reason
        self.last_suspicion = (primary, reason, self.now_ms)

    def emit(self, *effects: Effect) -> None:
        """Append effects, in order, to those of the step in work."""
        self.effects.extend(effects)

    def may_sign(self, height: int) -> bool:
        """Whether memory and key allow a signature at `height`."""
        return self.key_is_ours and not self.withheld and self.amnesia.allows(height)

    def block_applied(self) -> None:
        """Restart the clock of the empty block; a builder that had nothing may have something now."""
        self.build_after_ms = self.now_ms
        interval_ms = self.config.empty_block_interval_ms
        self.empty_due_ms = self.now_ms + interval_ms if interval_ms > 0 else None

    def work_announced(self, waiting: bool, passed_over: int, *, full: bool) -> None:
        """Take what `WorkWaiting` says."""
        self.waiting = waiting
        self.full = full
        self.passed_over = passed_over
        if waiting:
            self.told_since_build = True
            self.build_after_ms = self.now_ms

    def empty_is_due(self, grace_ms: int = 0) -> bool:
        """Whether an empty block should be decided by now (give or take `grace_ms`)."""
        return self.empty_due_ms is not None and self.now_ms >= self.empty_due_ms + grace_ms

    def nothing_built(self) -> None:
        """The builder made no block: ask it again when work is announced, at a new head, or a little later."""
        if not self.told_since_build:
            self.build_after_ms = self.now_ms + self.config.status_interval_ms  # [3.2]

    def wants_block(self) -> bool:
        """Whether there is a reason to build now, and the builder is free."""
        if self.building is not None or self.now_ms < self.build_after_ms:
            return False
        return self.waiting or self.empty_is_due()

    def remember_vote(self, vote: Vote, members: Members) -> None:
        """Keep the newest verified vote of each member: it is shown to that member when it connects."""
        name = members.id(vote.member)
        known = self.newest_votes.get(name)
        if known is None or order(known) < order(vote):
            self.newest_votes[name] = vote

    def forget_strangers(self, members: Members) -> None:
        """Drop what is kept about names that are no members any more."""
        self.heard_ms = {name: ms for name, ms in self.heard_ms.items() if members.index(name) is not None}
        self.newest_votes = {
            name: vote for name, vote in self.newest_votes.items() if members.index(name) is not None
        }

    def accuse(self, member: str, kind: str, height: int, view: int, evidence: Evidence) -> None:
        """Emit evidence once per slot."""
        slot = (member, kind, height, view)
        if slot in self._accused:
            return
        if len(self._accused) >= ACCUSED_MAX:
            del self._accused[next(iter(self._accused))]
        self._accused[slot] = None
        self.emit(Accuse(member, evidence))

    def own_vote_unknown(self, height: int) -> None:
        """A genuine vote of ours exists that our records do not know: stop signing (README 9)."""
        if self.amnesia.stopped:
            return
        before = self.amnesia.until
        until = self.amnesia.shown(height, voted_since_start=self.voted_since_start)
        if until != before:
            self.emit(PersistAbstention(until))

    def own_key_equivocates(self) -> None:
        """Our key signed two things in one slot: it lives twice. Stop signing until it is rotated."""
        if not self.amnesia.stopped:
            self.emit(PersistAbstention(self.amnesia.stop()))


def order(vote: Vote) -> tuple[int, int, int]:
    """Votes of one member are made in ascending order of this."""
    return (vote.height, vote.view, int(vote.kind))
