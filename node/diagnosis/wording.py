"""Numbers and names as an operator reads them."""

from collections.abc import Sequence
from datetime import UTC, datetime

_DAY_MS = 86_400_000
_HOUR_MS = 3_600_000
_MINUTE_MS = 60_000


def duration(milliseconds: int) -> str:
    """Return a time in the two units that matter: "3.2 s", "4 min 10 s", "2 h 5 min", "3 d 4 h"."""
    ms = max(0, milliseconds)
    if ms < _MINUTE_MS:
        return f"{ms // 1000}.{ms % 1000 // 100} s"
    if ms < _HOUR_MS:
        return f"{ms // _MINUTE_MS} min {ms % _MINUTE_MS // 1000} s"
    if ms < _DAY_MS:
        return f"{ms // _HOUR_MS} h {ms % _HOUR_MS // _MINUTE_MS} min"
    return f"{ms // _DAY_MS} d {ms % _DAY_MS // _HOUR_MS} h"


def moment(time_ms: int) -> str:
    """Return a time of blocks as the clock shows it: "2026-11-22 21:30:00 UTC"."""
    return datetime.fromtimestamp(time_ms // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def size(count: int) -> str:
    """Return a number of bytes in the largest unit that leaves a whole number: "730 MB"."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= 10 * scale:
            return f"{count // scale} {unit}"
    return f"{count} bytes"


def names(members: Sequence[str]) -> str:
    """Return "bank-a", "bank-a and bank-b", "bank-a, bank-b and bank-c"; "nobody" for none."""
    if not members:
        return "nobody"
    if len(members) == 1:
        return members[0]
    return f"{', '.join(members[:-1])} and {members[-1]}"


def sentence(text: str) -> str:
    """Return `text` with a capital in front, unless a member's name stands there, and a full stop behind."""
    first, _, _ = text.partition(" ")
    begun = text if "-" in first else text[:1].upper() + text[1:]
    return begun if begun.endswith((".", "?", "!")) else f"{begun}."
