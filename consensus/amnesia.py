"""Whether this member may sign: a key whose memory was lost, or that lives twice, stays silent.

A member without its memory may have voted at any height that the others have begun. It learns the decided
height of a quorum of *other* members; the highest is H0, and what it may have signed before lies at H0 + 2 or
below (README 9). Until those heights have passed it signs nothing and counts as faulty.
"""

from consensus.effects import Memory, ViewChangeRecord, VoteRecord
from consensus.members import Members
from consensus.status import Abstention

HEIGHT_MAX = 2**63 - 1


class Amnesia:
    """Guards this member's signature. `until` is the last height at which it signs nothing."""

    def __init__(self, memory: Memory, started_time_ms: int) -> None:
        """What the disk remembers decides whether the memory is lost."""
        self.until = memory.abstain_until
        # Only what this member signed is memory; certificates and new views of others come to whoever listens.
        signed = any(isinstance(record, VoteRecord | ViewChangeRecord) for record in memory.records)
        self.lost = not (memory.never_voted or memory.voted or signed or memory.abstain_until)
        # Without any marker a durable promise would end the amnesia at the next start: `conclude` alone makes one.
        self._blank = self.lost
        self._reason = "no record of earlier votes" if self.lost else ""  # [9.1]
        self._shown_height = 0
        self._started_time_ms = started_time_ms
        # A disk image may be older than our last vote without any other sign of it: before the first signature
        # the others show the newest vote that they have from us.
        self.unconfirmed = not self.lost and (memory.voted or bool(memory.records))
        self._confirmed_by: dict[str, None] = {}
        self._claimed: dict[str, int] = {}
        self._proved: dict[str, int] = {}

    @property
    def stopped(self) -> bool:
        """Whether the key was seen alive in another place; only a new key ends this."""
        return self.until >= HEIGHT_MAX

    def allows(self, height: int) -> bool:
        """Whether this member may sign at `height`."""
        return not self.lost and not self.unconfirmed and height > self.until

    def state(self, height: int) -> Abstention:
        """Which rule of this guard forbids a signature at `height`."""
        if self.stopped:
            return Abstention.KEY_TWICE
        if self.lost:
            return Abstention.LOST
        if self.unconfirmed:
            return Abstention.CONFIRMING
        return Abstention.UNTIL if height <= self.until else Abstention.NONE

    def why(self, height: int) -> str:
        """Why nothing is signed at `height`; empty when signing is allowed."""
        if self.stopped:
            return "this key votes in another place too: stop that instance and rotate the key"
        if self.lost:
            return f"{self._reason}: asking the other members which heights are decided"
        if self.unconfirmed:
            return "just started: the others are showing the newest vote that they have from this member"
        if height <= self.until:
            return f"lost its memory of earlier votes: signs nothing up to height {self.until}"
        return ""

    def confirmed(self, member: str, members: Members, me: str) -> bool:
        """Another member has shown what it has from us; return whether that ends the wait after the start."""
        if not self.unconfirmed:
            return False
        if member != me and members.index(member) is not None:
            self._confirmed_by[member] = None
        self.unconfirmed = len(self._confirmed_by) < members.quorum - 1  # [9.3]
        return not self.unconfirmed

    def waited_enough(self) -> bool:
        """End the wait after the start; return whether there was one."""
        waited = self.unconfirmed
        self.unconfirmed = False
        return waited

    def shown(self, height: int, *, voted_since_start: bool) -> int:
        """Learn that a vote of ours exists at `height` that we do not remember; return the new `until`.

        Before this process has voted it means a lost memory; after that, another process with our key.
        """
        if voted_since_start:  # [9.4]
            self.until = HEIGHT_MAX
            return self.until
        if not self.lost:
            self.lost = True
            self._reason = "a vote of this member is newer than its records"  # [9.4]
        self._shown_height = max(self._shown_height, height)
        if not self._blank:
            self.until = max(self.until, min(height + 2, HEIGHT_MAX - 1))
        return self.until

    def stop(self) -> int:
        """Learn that two different votes of ours exist in one slot; return the new `until`."""
        self.until = HEIGHT_MAX  # [9.5]
        return self.until

    def clock_shows(self, time_ms: int) -> None:
        """Our wall clock shows less than at the start: it was wrong then, and what is said from now on is new."""
        self._started_time_ms = min(self._started_time_ms, time_ms)

    def claimed(self, member: str, height: int, time_ms: int) -> None:
        """Another member says that `height` is decided there. Its first word since this start counts."""
        if self.lost and time_ms >= self._started_time_ms:
            self._claimed.setdefault(member, height)

    def proved(self, member: str, height: int) -> None:
        """Another member showed a genuine certificate of `height`."""
        if self.lost:
            self._proved[member] = max(height, self._proved.get(member, 0))

    def conclude(self, head_height: int, members: Members, me: str) -> int | None:
        """Return the new `until` once a quorum of others has shown certified heights; None before.

        A claim counts when a certificate or this node's own chain confirms it: nobody can keep us silent by a
        mere number. With two members the other one is all there is; alone, nobody can tell.
        """
        needed = min(members.quorum, members.n - 1)
        if not self.lost or needed == 0:
            return None
        heights = [
            height
            for member, height in self._claimed.items()
            if member != me
            and members.index(member) is not None
            and height <= max(head_height, self._proved.get(member, 0))
        ]
        if len(heights) < needed:
            return None
        highest = max(*heights, self._shown_height, 0)
        self.until = max(self.until, min(highest + 2, HEIGHT_MAX - 1))
        self.lost = False  # [9.2]
        return self.until
