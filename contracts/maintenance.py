"""When members' nodes rest: a calendar of windows in which a member's turn as primary is skipped.

A window says (member, from, until) in block time. In a block whose parent's time lies within it, the member
proposes nothing: its turn goes to another, without a time-out. That is all it does. The member is asked for its
vote as ever, counts in every quorum, and votes where its node is up.

Invariant: when a window is booked, at each moment of it the validators without a window are a quorum. The list of
validators may change later so that they are not: windows stay as they are, since nobody's plan is another's to
strike out, and consensus then skips nobody for as long as that is so (consensus/README.md 1.4). No window skips
anybody in a block at or after its end, whatever else happens; no call has to come for that, since a scheduled call
may be settled unexecuted.
"""

from typing import Annotated

from contracts.governance import quorum_of
from contracts.membership import Membership
from contracts.sdk import (
    Code,
    Context,
    Contract,
    Event,
    Item,
    Map,
    Meta,
    QueryContext,
    Revert,
    State,
    TimeMs,
    Value,
    call,
    invariant,
    query,
    replace,
    require,
    scheduled,
)
from contracts.waking import HOUR_MS, wake_ms, wakes_max

WINDOW_MS_MAX = 24 * HOUR_MS
AHEAD_MS_MAX = 90 * 24 * HOUR_MS
WINDOWS_PER_MEMBER = 4
WINDOWS_MAX = 512
"""4 for each of 128 validators."""
WAKES_MAX = wakes_max(AHEAD_MS_MAX + WINDOW_MS_MAX)

Number = Annotated[int, Meta(ge=1, le=9_007_199_254_740_991, description="the window's number")]
Reason = Annotated[str, Meta(max_length=200)]


class Window(Value):
    """In blocks whose parent's time is from_ms <= time < until_ms, the member's turn as primary is skipped.

    `told`: an event has said that it has begun.
    """

    member: str
    from_ms: int
    until_ms: int
    reason: str
    booked_height: int
    told: bool = False


class WindowRow(Value):
    """A window in a list; `on` says whether it is on at the time of the head."""

    number: int
    member: str
    from_ms: int
    until_ms: int
    reason: str
    booked_height: int
    on: bool


class Booked(Event):
    """The window stands in the calendar, or stands there with other times from now on."""

    window: int
    member: str
    from_ms: int
    until_ms: int
    reason: str

    topics = ("window/{window}", "member/{member}")


class Began(Event):
    """The member rests from the next block on."""

    window: int
    member: str
    until_ms: int

    topics = ("window/{window}", "member/{member}")


class Ended(Event):
    """The window is over, or was cancelled before that, and stands in the calendar no more."""

    window: int
    member: str
    cancelled: bool

    topics = ("window/{window}", "member/{member}")


class Maintenance(Contract):
    """The members' calendar of maintenance windows, in which a resting member's turn as primary is skipped."""

    uses = (Membership.roster,)
    codes = (
        Code("window_not_found", "The calendar has no window of that number: it is over, or was cancelled."),
        Code("not_a_validator", "Only the root principal of an active validator books a window, for its own node."),
        Code("window_over", "The window would end before it begins, or is over already."),
        Code("window_too_long", "A window lasts at most 24 hours."),
        Code("window_too_far", "A window begins within 90 days."),
        Code("window_begun", "The window has begun: its beginning stays."),
        Code("windows_overlap", "Two windows of one member do not overlap: move the one that is booked."),
        Code("too_many_windows", "A member has at most 4 windows booked, all together 512."),
        Code("breaks_quorum", "At some moment too few validators for a quorum would be without a window."),
    )

    last: Item[int] = Item()
    # Those that are not over, by number.
    windows: Map[int, Window] = Map(missing="window_not_found")
    # At which times `tidy` is scheduled, and at which height that was done.
    wakes: Map[int, int] = Map()

    @call
    def book(self, ctx: Context, from_ms: TimeMs, until_ms: TimeMs, reason: Reason = "") -> None:
        """Book a window for the sender's own member; one whose beginning has passed begins now."""
        number = (self.last.get() or 0) + 1
        self._keep_up(ctx)
        every = [row for _, row in self.windows.scan(limit=WINDOWS_MAX)]
        own = [row for row in every if row.member == ctx.sender]
        # So that no scan ever misses one.
        require(len(own) < WINDOWS_PER_MEMBER and len(every) < WINDOWS_MAX, "too_many_windows", ctx.sender)
        self._enter(ctx, number, Window(ctx.sender, max(from_ms, ctx.time_ms), until_ms, reason, ctx.height))
        self.last.set(number)

    @call
    def move(self, ctx: Context, window: Number, from_ms: TimeMs, until_ms: TimeMs) -> None:
        """Give the sender's own window other times. Where it has begun, `from_ms` is as it was."""
        found = self._own(ctx, window)
        begun = found.from_ms <= ctx.time_ms
        require(not begun or from_ms == found.from_ms, "window_begun", f"it began at {found.from_ms}")
        start = found.from_ms if begun else max(from_ms, ctx.time_ms)
        self._keep_up(ctx)
        self._enter(ctx, window, replace(self.windows[window], from_ms=start, until_ms=until_ms))

    @call
    def cancel(self, ctx: Context, window: Number) -> None:
        """Take the sender's own window out of the calendar; if it is on, the member has its turn again."""
        self._end(ctx, window, self._own(ctx, window), cancelled=True)

    @scheduled
    def tidy(self, ctx: Context) -> None:
        """Tell that windows begin or are over: so there is a block by then, on a quiet ledger too."""
        for at_ms, _ in self.wakes.scan(limit=WAKES_MAX):
            if at_ms <= ctx.time_ms:
                del self.wakes[at_ms]
        self._keep_up(ctx)
        self._wake(ctx)

    def _wake(self, ctx: Context) -> None:
        """Let `tidy` be called on the way to the next beginning or end; once for each time."""
        rows = self.windows.scan(limit=WINDOWS_MAX)
        moments = [row.until_ms if row.told else row.from_ms for _, row in rows]
        if moments:
            at_ms = wake_ms(min(moments), ctx.time_ms)
            if at_ms not in self.wakes:
                self.wakes[at_ms] = ctx.height
                ctx.schedule(at_ms, Maintenance.tidy)

    def _own(self, ctx: Context, number: int) -> Window:
        found = self.windows[number]
        ctx.authorize(found.member)
        require(ctx.time_ms < found.until_ms, "window_over", f"it ended at {found.until_ms}")
        return found

    def _keep_up(self, ctx: Context) -> None:
        """Tell of windows that have begun, and take those that are over out of the calendar."""
        for number, found in self.windows.scan(limit=WINDOWS_MAX):
            if found.until_ms <= ctx.time_ms:
                self._end(ctx, number, found, cancelled=False)
            elif found.from_ms <= ctx.time_ms and not found.told:
                self.windows[number] = replace(found, told=True)
                ctx.emit(Began(number, found.member, found.until_ms))

    def _end(self, ctx: Context, number: int, found: Window, cancelled: bool) -> None:
        del self.windows[number]
        ctx.emit(Ended(number, found.member, cancelled))

    def _enter(self, ctx: Context, number: int, wanted: Window) -> None:
        """The window stands in the calendar; revert unless its times fit beside all others."""
        voters = tuple([row.id for row in ctx.call(Membership.roster) if row.votes])
        require(wanted.member in voters, "not_a_validator", wanted.member)
        require(max(wanted.from_ms, ctx.time_ms) < wanted.until_ms, "window_over", f"until {wanted.until_ms}")
        require(wanted.until_ms - wanted.from_ms <= WINDOW_MS_MAX, "window_too_long")
        require(wanted.from_ms <= ctx.time_ms + AHEAD_MS_MAX, "window_too_far")
        beside = [
            row
            for key, row in self.windows.scan(limit=WINDOWS_MAX)
            if key != number and row.from_ms < wanted.until_ms and wanted.from_ms < row.until_ms
        ]
        require(all(row.member != wanted.member for row in beside), "windows_overlap")
        require_quorum(wanted, tuple([row for row in beside if row.member in voters]), len(voters))
        self.windows[number] = wanted
        ctx.emit(Booked(number, wanted.member, wanted.from_ms, wanted.until_ms, wanted.reason))
        self._keep_up(ctx)
        self._wake(ctx)

    @query
    def calendar(self, ctx: QueryContext) -> tuple[WindowRow, ...]:
        """The windows that are not over, by their beginning."""
        found = sorted(self.windows.scan(limit=WINDOWS_MAX), key=lambda item: (item[1].from_ms, item[0]))
        return tuple([_row(number, row, ctx.time_ms) for number, row in found if ctx.time_ms < row.until_ms])

    @query
    def window(self, ctx: QueryContext, window: Number) -> WindowRow:
        """One window."""
        return _row(window, self.windows[window], ctx.time_ms)

    @staticmethod
    def read_resting(state: State, time_ms: int) -> tuple[str, ...]:
        """Return the members with a window that is on at `time_ms`, each once and in the order of their ids."""
        found = Maintenance.windows.scan_from(state, WINDOWS_MAX)
        return tuple(sorted([row.member for _, row in found if row.from_ms <= time_ms < row.until_ms]))

    @invariant
    def windows_are_bounded(self) -> bool:
        """No window is longer than allowed, and no member has two that overlap or more than its share."""
        every = [row for _, row in self.windows.scan(limit=None)]
        own = sorted([(row.member, row.from_ms, row.until_ms) for row in every])
        return all(
            0 < row.until_ms - row.from_ms <= WINDOW_MS_MAX
            and len([item for item in every if item.member == row.member]) <= WINDOWS_PER_MEMBER
            for row in every
        ) and all(
            one[0] != two[0] or one[2] <= two[1]
            for one, two in zip(own, own[1:], strict=False)  # noqa: RUF007
        )


def require_quorum(wanted: Window, beside: tuple[Window, ...], validators: int) -> None:
    """Revert with `breaks_quorum` unless a quorum of the validators is without a window at each moment of `wanted`.

    `beside` are the other validators' windows that overlap with it.
    """
    quorum = quorum_of(validators)
    # At one time what ends goes before what begins: a window does not hold at its end.
    begins = [(max(wanted.from_ms, row.from_ms), 1) for row in beside]
    resting = 1
    for moment, change in [(wanted.from_ms, 0), *sorted([*begins, *[(row.until_ms, -1) for row in beside]])]:
        resting += change
        if validators - resting < quorum:
            others = [row.member for row in beside if row.from_ms <= moment < row.until_ms]
            told = wanted.member
            for name in others:
                told = f"{told}, {name}"
            raise Revert(
                "breaks_quorum",
                f"at {moment} there would rest {told}: {validators - 1 - len(others)} of {validators} validators "
                f"are left, and a quorum is {quorum}",
            )


def _row(number: int, found: Window, time_ms: int) -> WindowRow:
    on = found.from_ms <= time_ms < found.until_ms
    return WindowRow(number, found.member, found.from_ms, found.until_ms, found.reason, found.booked_height, on)
