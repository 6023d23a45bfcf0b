"""Blocks of the height in work that are being executed, and those that were found good."""

import msgspec

from consensus.context import Context
from consensus.effects import BlockStanding, CheckPayload, PayloadChecked
from consensus.members import Members

# An executor that is busy for this many capped time-outs accuses again: the blocks are too large for everybody.
PATIENCE_TIMEOUTS = 3


class Check(msgspec.Struct, frozen=True):
    """A `CheckPayload` without an answer yet."""

    standing: int  # plain, for an image holds no enumerations of effects
    payload: bytes | None
    started_ms: int


class Checks:
    """Asks for executions, one at a time for each view and digest, and keeps what was found good."""

    def __init__(self, context: Context, members: Members, height: int, quarantine_view: int) -> None:
        """From `quarantine_view` on two views have failed: quarantined transactions are accepted."""
        self._context = context
        self._members = members
        self._height = height
        self._quarantine_view = quarantine_view
        self._running: dict[tuple[int, bytes], Check] = {}
        self._good: dict[bytes, bytes | None] = {}
        # With which standing a block was refused in a view: there it is asked about again when it stands better.
        self._refused: dict[tuple[int, bytes], int] = {}
        # Something was not available: ask again when `retry` is called, not before.
        self.unavailable = False
        # What was once not available: waiting for its bytes is no execution, and excuses nobody.
        self._starved: set[tuple[int, bytes]] = set()

    @property
    def running(self) -> bool:
        """Whether our executor is at work, as far as we know: a block whose bytes never came keeps it idle."""
        return bool(self._running) and any(slot not in self._starved for slot in self._running)

    @property
    def excuses(self) -> bool:
        """Whether our own executor is at work, within patience: then we accuse nobody."""
        if not self._running:
            return False
        patience_ms = PATIENCE_TIMEOUTS * self._context.config.timeout_cap_ms
        return any(
            self._context.now_ms - check.started_ms < patience_ms
            for slot, check in self._running.items()
            if slot not in self._starved
        )

    def is_running(self, digest: bytes) -> bool:
        """Whether the block `digest` is being executed."""
        return any(running == digest for _, running in self._running)

    def is_good(self, digest: bytes) -> bool:
        """Whether the block was executed, agrees, and is at hand."""
        return digest in self._good

    def payload(self, digest: bytes) -> bytes | None:
        """The payload of a good block, as far as it was given."""
        return self._good.get(digest)

    def note_built(self, digest: bytes, payload: bytes) -> None:
        """Our own builder made this block: it is good."""
        self._good[digest] = payload

    def forget_but(self, digests: list[bytes]) -> None:
        """A view begins: drop what was found good, except `digests`, and what was refused in views before it."""
        self._good = {digest: payload for digest, payload in self._good.items() if digest in digests}
        self._refused = {}
        self.unavailable = False

    def ask(
        self,
        digest: bytes,
        view: int,
        payload: bytes | None,
        standing: BlockStanding,
        proposer: int,
        holders: tuple[int, ...],
    ) -> None:
        """Have a block executed, unless that is under way, it was refused in this view as what it is, or was
        answered with `not available` since `retry`.
        """
        slot = (view, digest)
        if slot in self._running or self.unavailable or self._refused.get(slot, -1) >= standing:  # [11.3]
            return
        self._running[slot] = Check(int(standing), payload, self._context.now_ms)
        self._context.emit(
            CheckPayload(
                height=self._height,
                view=view,
                digest=digest,
                payload=payload,
                standing=standing,
                # What a quorum has prepared is settled: it is never refused for how its view began.
                allow_quarantine=standing > BlockStanding.PROPOSED or view >= self._quarantine_view,
                proposer=self._members.id(proposer),
                holders=tuple(
                    self._members.id(index)
                    for index in holders
                    if self._members.id(index) != self._context.config.member
                ),
            )
        )

    def answered(self, answer: PayloadChecked) -> Check | None:
        """Take an answer; return the check that it answers, or None for a stale one."""
        check = self._running.pop((answer.view, answer.digest), None)
        if check is None:
            return None
        if answer.valid:
            payload = answer.payload if answer.payload is not None else check.payload
            if payload is not None or answer.digest not in self._good:
                self._good[answer.digest] = payload
            self.unavailable = self.unavailable or payload is None
        elif answer.valid is False:
            self._refused[(answer.view, answer.digest)] = check.standing
        else:
            self.unavailable = True
            self._starved.add((answer.view, answer.digest))
        return check
