"""When this member asks for another primary, and why: every clock that accuses somebody (README 6)."""

from consensus.context import Context
from consensus.height import HeightInWork
from consensus.pace import Pace

HEARTBEATS_MISSED = 4
PASSES_OVER = "passes over the oldest transaction"
SLOW = "is slow"


class Suspicion:
    """The timers of the open view. They are judged on ticks only."""

    def __init__(self, context: Context) -> None:
        """No timer runs."""
        self._context = context
        self._slot: tuple[int, int, int | None] | None = None
        self._silence_ms: int | None = None
        self._new_view_ms: int | None = None
        self._quiet_since_ms = context.now_ms
        self._primary: str | None = None
        self._passed_over_base = 0
        self._pace = Pace(context.config.base_timeout_ms)

    def restart(self) -> None:
        """Start every clock afresh: this process was paused, so the silence it sees is its own."""
        now_ms = self._context.now_ms
        self._silence_ms = None
        self._new_view_ms = None
        self._quiet_since_ms = now_ms
        self._pace.restart()

    def decided(self, *, followed: bool) -> None:
        """A height was decided. `followed`: this member saw its proposal, so it knows something of the pace."""
        if followed:
            self._pace.decided(self._context.now_ms)
        else:
            self._pace.restart()

    def judge(self, work: HeightInWork, passed_ms: int) -> tuple[int, str] | None:
        """Return the view to ask for and the reason, or None. Call on every tick."""
        asked = work.pledge.view_change
        slot = (work.height, work.view, asked.view if asked is not None else None)
        if slot != self._slot:
            self._slot = slot
            self._silence_ms = None
            self._new_view_ms = None
        primary = work.members.id(work.primary(work.view))
        if primary != self._primary:
            self._primary = primary
            self._passed_over_base = self._context.passed_over
            self._pace.replaced()
        # What was passed over may have been decided meanwhile: then counting starts below.
        self._passed_over_base = min(self._passed_over_base, self._context.passed_over)
        if work.outcome is not None:
            return None
        if work.changing or not work.pledge.may_sign:
            # No wait is measured now, and a window with a part unmeasured would make every later one look slow.
            self._pace.restart()
        if not work.pledge.may_sign:
            return None
        return self._judge_change(work) if work.changing else self._judge_view(work, primary, passed_ms)

    def next_event(self, work: HeightInWork) -> tuple[str, int] | None:
        """What this member does by itself next, and when (monotonic ms)."""
        if self._new_view_ms is not None and work.pledge.asked is not None:
            return _asking(work, work.pledge.asked + 1), self._new_view_ms
        if self._silence_ms is not None:
            return _asking(work, work.view + 1), self._silence_ms
        return None

    def _judge_change(self, work: HeightInWork) -> tuple[int, str] | None:
        """We asked for a view. Its primary's clock runs only while a quorum asks for it or for a higher one."""
        asked = work.pledge.asked
        if asked is None or not work.quorum_asks():
            self._new_view_ms = None
            return None
        now_ms = self._context.now_ms
        if self._new_view_ms is None:
            self._new_view_ms = now_ms + self._context.config.timeout_ms(work.failed_views(asked))
            return None
        if now_ms < self._new_view_ms:
            return None
        return asked + 1, f"{work.members.id(work.primary(asked))} did not open view {asked}"  # [6.5]

    def _judge_view(self, work: HeightInWork, primary: str, passed_ms: int) -> tuple[int, str] | None:
        context = self._context
        following = primary != context.config.member
        slow = self._pace.tick(
            context.now_ms,
            passed_ms,
            full=context.full,
            waiting=context.waiting and work.proposal is None and not work.checks.running,
            checking=work.checks.running,
        )
        if not following:
            self._pace.restart()
        reason = ""
        if work.checks.excuses or context.building is not None:  # [6.2]
            # Our own executor is busy: whatever is late may be late because of us.
            self._silence_ms = None
        elif self._is_work_in_hand(work):
            if self._silence_ms is None:
                self._silence_ms = context.now_ms + context.config.timeout_ms(work.failed_views(work.view))
            elif context.now_ms >= self._silence_ms:  # [6.1]
                reason = f"no decision in time under {primary}" if work.proposal else f"no proposal from {primary}"
        else:
            self._silence_ms = None
            if following and self._misses_heartbeats(work, primary):
                reason = f"no heartbeat from {primary}"  # [6.3]
        if not reason and following:
            if context.passed_over - self._passed_over_base >= context.config.passed_over_max:
                self._passed_over_base = context.passed_over
                reason = f"{primary} {PASSES_OVER}"  # [6.7]
            elif slow:
                reason = f"{primary} {SLOW}"  # [6.8]
        return (work.view + 1, reason) if reason else None

    def _is_work_in_hand(self, work: HeightInWork) -> bool:
        """Whether something must be decided: then silence counts, the primary's own included."""
        return (
            self._context.waiting
            or work.proposal is not None
            or work.pledge.prepared is not None
            or work.required is not None
            or self._context.empty_is_due(grace_ms=self._context.config.base_timeout_ms)
        )

    def _misses_heartbeats(self, work: HeightInWork, primary: str) -> bool:
        """Whether the primary is silent while a quorum (with us) is not: then it is not our own link."""
        context = self._context
        config = context.config
        patience_ms = max(
            config.timeout_ms(work.failed_views(work.view)), HEARTBEATS_MISSED * config.status_interval_ms
        )
        since_ms = max(self._quiet_since_ms, work.entered_ms, context.heard_ms.get(primary, 0))
        if context.now_ms - since_ms < patience_ms:
            return False
        alive = 1
        for validator in work.members:
            heard_ms = context.heard_ms.get(validator.id)
            if validator.id != config.member and heard_ms is not None and context.now_ms - heard_ms < patience_ms:
                alive += 1
        return alive >= work.members.quorum


def _asking(work: HeightInWork, view: int) -> str:
    return f"ask for view {view} with primary {work.members.id(work.primary(view))}"
