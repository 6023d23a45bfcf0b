"""Pages of the ledger's events in ledger order, as the events route and its streams read them.

Invariant: a page leaves out no event that the filter wants. Pruned blocks are passed over only where the store
promises that every event under the wanted topic is here (legal hold, or put back from an archive); else they refuse
the page, as anybody would believe that nothing happened there.
"""

from typing import Any

from node.api.service import EventCursor, EventFilter
from node.client.answers import EventPage, LedgerEvent
from node.client.rendering import outcomes
from node.errors import NotFound
from node.store import StoreView
from node.store.reading import read_receipt

EVENT_BLOCKS_MAX = 200


def event_page(view: StoreView, after: EventCursor, limit: int, wanted: EventFilter) -> EventPage:
    """Return at most `limit` matching events after `after`, out of at most EVENT_BLOCKS_MAX blocks.

    Raise NotFound("block_pruned") where a block is gone that may have had one.
    """
    found = list[LedgerEvent]()
    head, cursor, first = view.head.height, after, max(1, after.height)
    whole_from = first if first >= view.first_block else _whole_from(view, first, wanted)
    for height in range(first, min(head, after.height + EVENT_BLOCKS_MAX) + 1):
        start = after.position + 1 if height == after.height else 0
        for position, (event, tx_id) in enumerate(_events_of(view, height, whole_from)):
            if position < start:
                continue
            if len(found) == limit:
                return EventPage(events=tuple(found), next=str(cursor), complete=False)
            cursor = EventCursor(height, position)
            if wanted.contract not in (None, event.contract):
                continue
            if wanted.topic is not None and wanted.topic not in event.topics:
                continue
            found.append(
                LedgerEvent(
                    contract=event.contract,
                    name=event.name,
                    topics=event.topics,
                    data=event.data,
                    cursor=str(cursor),
                    height=height,
                    tx_id=tx_id,
                )
            )
        if height < head:
            cursor = EventCursor(height + 1, -1)
    return EventPage(events=tuple(found), next=str(cursor), complete=cursor.height >= head)


def _whole_from(view: StoreView, first: int, wanted: EventFilter) -> int:
    """The lowest height from which on no wanted event is missing, whatever blocks are."""
    return view.first_block if wanted.topic is None else view.first_event(wanted.topic, first)


def _events_of(view: StoreView, height: int, whole_from: int) -> list[tuple[Any, str | None]]:
    """Every event of a block in order, with the transaction it came from (None: a scheduled call)."""
    try:
        receipts = view.receipts(height)
    except NotFound:
        if height < whole_from:
            raise
        return []
    rows: list[tuple[Any, str | None]] = []
    for index in range(len(receipts.receipts)):
        receipt = read_receipt(receipts.receipts, height, index)
        tx_id = None if index < receipts.scheduled else receipt.tx_id.hex()
        rows += [(event, tx_id) for call in outcomes(receipt) for event in call.events]
    return rows
