"""When a contract that waits for a moment is called next, so that few such calls wait at once.

A scheduled call is not taken back. A contract that scheduled one at each moment that it is told (the end of a
brake, of a window) would leave one behind for each time that somebody moves it, or takes it back and asks anew. So
the call comes at the last full day before the moment, from there at the last full hour, then minute, and then at
the moment itself, rounded up to a second.

Invariant: whoever schedules one call for each such time, and never two, has at most one waiting for each day ahead,
each hour of this day, each minute of this hour and each second of this minute; however often moments change.
"""

SECOND_MS = 1_000
MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 86_400_000


def wake_ms(moment_ms: int, now_ms: int) -> int:
    """Return the time after `now_ms` to be called at next by who waits for `moment_ms`, which is later too."""
    for grid_ms in (DAY_MS, HOUR_MS, MINUTE_MS):
        at_ms = moment_ms // grid_ms * grid_ms
        if at_ms > now_ms:
            return at_ms
    return (moment_ms + SECOND_MS - 1) // SECOND_MS * SECOND_MS


def wakes_max(ahead_ms: int) -> int:
    """Return how many calls wait at most, where no moment lies further ahead than that."""
    return ahead_ms // DAY_MS + 1 + 24 + 60 + 60
