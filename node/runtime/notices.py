"""What the members have planned and stopped, as the ledger has it now: who rests, and what a brake stops."""

from collections.abc import Sequence

from contracts.brake import Brake, stopped_at
from contracts.maintenance import WINDOWS_MAX, Maintenance
from node.client.answers import BrakeAnswer, RestAnswer
from node.state import LedgerView, Overlay


def resting_at(view: LedgerView, skipped: Sequence[str]) -> tuple[RestAnswer, ...]:
    """The members in a window at the view's head; `skipped` are those whose turns consensus gives to others."""
    time_ms = view.head.time_ms
    rows = [row for _, row in Maintenance.windows.scan_from(Overlay(view), WINDOWS_MAX)]
    return tuple(
        RestAnswer(member=row.member, until_ms=row.until_ms, skipped=row.member in skipped)
        for row in rows
        if row.from_ms <= time_ms < row.until_ms
    )


def brakes_on(view: LedgerView, now_ms: int) -> tuple[BrakeAnswer, ...]:
    """What is stopped in a block that was made on the view's head now."""
    stopped = stopped_at(Brake.read_on(Overlay(view)), max(now_ms, view.head.time_ms + 1))
    return tuple(
        BrakeAnswer(scope=scope, subject=subject, until_ms=until_ms)
        for (scope, subject), until_ms in sorted(stopped.items())
    )
