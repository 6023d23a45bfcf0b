"""Epochs of views: one for the time before any recovery, and one more from each recovery block on (README 16).

A recovery's certificate stands in the first view of a new epoch, and whoever stands on it votes in no lower view.
"""

from typing import Final

from consensus.effects import PreparedRecord, Record, VoteRecord

EPOCH_VIEWS: Final = 1 << 32
"""So many views lie between the first of one epoch and that of the next: failed views never reach it."""


def epoch(view: int) -> int:
    """The epoch that `view` belongs to; 0 before the first recovery."""
    return view // EPOCH_VIEWS


def next_epoch(view: int) -> int:
    """The first view of the epoch after that of `view`: no time-out leads a member there."""
    return (epoch(view) + 1) * EPOCH_VIEWS


def since_epoch(records: tuple[Record, ...], first_view: int) -> tuple[Record, ...]:
    """The records of the epoch of `first_view` and of later ones; those of older epochs are of another history."""
    return tuple([record for record in records if epoch(_view_of(record)) >= epoch(first_view)])


def _view_of(record: Record) -> int:
    if isinstance(record, VoteRecord):
        return record.vote.view
    return record.certificate.view if isinstance(record, PreparedRecord) else record.message.view
