"""What each kind of pack proves: transaction, state, absence, non-execution, statement. Pure.

Invariants: an item is made only of what this node's own certified state says, and where it could mislead it is not
made: nothing about a request outside the window in which its absence means anything, no statement whose entries do
not hash to the account's certified chain.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from consensus.codec import CodecError, decode, encode
from contracts.settlement import NO_CHAIN, Account, Entry, Link
from contracts.state_keys import encode_key
from node.errors import NotFound, RejectedTransaction, StoreError
from node.evidence.pack import StateProof
from node.executor.run import request_key
from node.ledger import (
    TRANSACTION_SIZE_MAX,
    Body,
    EventData,
    RequestRecord,
    Transaction,
    content_leaves,
    merkle_path,
    sha256,
)
from node.state import VALUE_SIZE_MAX
from node.store import StoreView
from node.store.reading import read_receipt
from node.store.view import EVENTS_MAX, PAST_BLOCKS_MAX

ENTRIES_MAX = 100_000
_SIGNED_BODY = 0x92
"""The first byte of a signed transaction, an array of two; a body alone is an array of six."""


# --- transactions --------------------------------------------------------------------------------------------


def transaction_item(view: StoreView, tx_id: bytes) -> tuple[int, tuple[Any, ...]]:
    """Return the height of a final transaction, and its bytes and receipt with their ways to the header's roots.

    Raise NotFound: transaction_not_found, block_pruned.
    """
    place = view.locate(tx_id)
    if place is None:
        first = view.first_block
        pruned = f"; blocks before {first} were pruned here" if first > 1 else ""
        raise NotFound("transaction_not_found", f"{tx_id.hex()} is not final here{pruned}")
    height, position = place
    receipts = view.receipts(height)
    index = position - receipts.scheduled
    if index < 0:
        raise NotFound("transaction_not_found", f"{tx_id.hex()} is a scheduled call: nobody signed it")
    body = view.block(height).body
    leaves = content_leaves(body.transactions, body.quarantined)
    item = (
        leaves[index],
        merkle_path(leaves, index),
        receipts.receipts[position],
        merkle_path(receipts.receipts, position),
    )
    return height, item


# --- state ---------------------------------------------------------------------------------------------------


def certified_height(view: StoreView, height: int | None) -> int:
    """Return `height` (None: the head), whose block is decided here and has a certificate; else raise NotFound."""
    height = view.head.height if height is None else height
    if height < 1:
        raise NotFound("block_not_found", "genesis has no certificate: the first block that proves is block 1")
    view.head_at(height)
    return height


def state_kind(proof: StateProof) -> str:
    """Return the kind of pack that the proof makes: `state` or `absence`."""
    return "absence" if proof.value is None else "state"


# --- non-execution -------------------------------------------------------------------------------------------


def read_body(data: bytes, network: str) -> tuple[Body, bytes]:
    """Return the body of a transaction, given signed or as its body alone, and the body's bytes.

    Raise RejectedTransaction (malformed_transaction, wrong_network).
    """
    if data[:1] == bytes((_SIGNED_BODY,)):
        transaction = Transaction.decode(data)
        body, body_bytes = transaction.body, transaction.body_bytes
    else:
        try:
            body, body_bytes = decode(data, Body, size_max=TRANSACTION_SIZE_MAX), data
        except CodecError as error:
            raise RejectedTransaction("malformed_transaction", str(error)) from error
    if body.network != network:
        raise RejectedTransaction("wrong_network", f"the transaction names {body.network}; this is {network}")
    return body, body_bytes


def request_key_of(body: Body) -> bytes:
    """Return the state key under which the transaction would have left its trace."""
    return request_key(body.sender, body.request_id)


def proof_height(view: StoreView, body: Body, tx_id: bytes, retention_ms: int, at: int | None) -> int:
    """Return a height at which the absence of the request proves that it was not executed and never will be.

    That is `at` if given, else the head, else the last kept height of the window expires_at_ms < time_ms <=
    expires_at_ms + retention_ms: before it the transaction may still be executed, after it its trace may be gone.
    Raise RejectedTransaction transaction_executed, not_expired_yet or wrong_proof_height, NotFound retention_over.
    """
    place = view.locate(tx_id)
    if place is not None:
        raise _executed(view, tx_id, place[0])
    first_ms, last_ms = body.expires_at_ms, body.expires_at_ms + retention_ms
    head = view.head
    if head.time_ms <= first_ms:
        raise RejectedTransaction(
            "not_expired_yet",
            f"it can be executed until {first_ms} and the newest block is of {head.time_ms}; the proof can be made"
            f" from the first block after {first_ms} on",
            possible_after_ms=first_ms,
        )
    if at is not None:
        time_ms = view.head_at(certified_height(view, at)).time_ms
        if not first_ms < time_ms <= last_ms:
            raise RejectedTransaction(
                "wrong_proof_height",
                f"block {at} is of {time_ms}; the absence proves something only from {first_ms + 1} to {last_ms}",
            )
        return at
    if head.time_ms <= last_ms:
        return head.height
    found = _last_until(view, last_ms)
    if found == 0 or view.head_at(found).time_ms <= first_ms:
        raise NotFound(
            "retention_over",
            f"the proof could be made until {last_ms}; the newest block is of {head.time_ms}, and no kept height"
            " lies in the window",
            possible_until_ms=last_ms,
        )
    return found


def _last_until(view: StoreView, time_ms: int) -> int:
    """The highest height within reach of the history whose block is not after `time_ms`; 0: there is none."""
    low, high = max(0, view.head.height - PAST_BLOCKS_MAX - 1), view.head.height
    # The block at `high` is later; the one at `low` is not, or lies out of reach.
    while high - low > 1:
        middle = (low + high) // 2
        if _not_after(view, middle, time_ms):
            low = middle
        else:
            high = middle
    return low if low >= 1 and _not_after(view, low, time_ms) else 0


def _not_after(view: StoreView, height: int, time_ms: int) -> bool:
    try:
        return view.head_at(height).time_ms <= time_ms
    except NotFound:
        # Below where a snapshot was adopted there are no heads: that is further back than anything kept.
        return True


def judge_request(view: StoreView, proof: StateProof, tx_id: bytes) -> None:
    """Return when the request's record, absent or another transaction's, shows that `tx_id` was not executed."""
    if proof.value is None:
        return
    record = decode(proof.value, RequestRecord, size_max=VALUE_SIZE_MAX)
    if record.tx_id == tx_id:
        raise _executed(view, tx_id, record.height)


def _executed(view: StoreView, tx_id: bytes, height: int) -> RejectedTransaction:
    """The error about an executed transaction; where its receipt is here, with what its calls came to.

    Executed does not mean paid: if every call failed, whoever reads only the former would never pay.
    """
    said = f"{tx_id.hex()} was executed in block {height}"
    place = view.locate(tx_id)
    try:
        receipt = None if place is None else read_receipt(view.receipts(place[0]).receipts, *place)
    except NotFound:
        receipt = None
    if receipt is None:
        return RejectedTransaction("transaction_executed", f"{said}; its receipt is not here", height=height)
    counts = Counter(call.code for call in receipt.calls)
    told = ", ".join(code if count == 1 else f"{code} ({count} calls)" for code, count in counts.items())
    return RejectedTransaction(
        "transaction_executed",
        f"{said}; its calls came to: {told}",
        height=height,
        calls=len(receipt.calls),
        calls_ok=counts["ok"],
    )


# --- statements ----------------------------------------------------------------------------------------------


def account_key(account: str) -> bytes:
    """Return the state key of a settlement account."""
    return encode_key(("settlement", "accounts", account))


def statement_range(view: StoreView, from_height: int, to_height: int | None) -> tuple[int, int]:
    """Return the two heights of a statement (None: up to the head); raise where they are none."""
    to_height = view.head.height if to_height is None else to_height
    if not 1 <= from_height < to_height:
        raise RejectedTransaction(
            "malformed_request",
            f"a statement goes from a block (at least 1) to a later one, not from {from_height} to {to_height}",
        )
    view.head_at(to_height)
    return from_height, to_height


def statement_item(
    view: StoreView, account: str, heights: tuple[int, int], opening: StateProof, closing: StateProof
) -> tuple[Any, ...]:
    """Return the account's proofs at both heights and every entry after the first, up to the second.

    Raise NotFound (account_not_found, block_pruned), RejectedTransaction (proof_too_large), StoreError when the
    kept events do not hash to the account's certified chain.
    """
    before, after = _account(opening), _account(closing)
    if after is None:
        raise NotFound("account_not_found", f"there is no account {account!r} at height {heights[1]}")
    number, chain = (0, NO_CHAIN) if before is None else (before.entries, before.chain)
    if after.entries - number > ENTRIES_MAX:
        raise RejectedTransaction(
            "proof_too_large", f"the range has {after.entries - number} entries; {ENTRIES_MAX} fit a statement"
        )
    entries: list[bytes] = []
    for height, event in _movements(view, account, heights):
        entry = _entry(account, height, event.data)
        chain = sha256(encode(Link(chain, entry)))
        entries.append(encode(entry))
    if len(entries) != after.entries - number or chain != after.chain:
        if heights[0] + 1 < view.first_block:
            first = view.first_block
            text = f"blocks after {heights[0]} were pruned here; the first block kept is {first}"
            raise NotFound("block_pruned", text, first=first)
        raise StoreError("ledger_differs", f"the events kept of account {account} do not lead to its chain")
    return opening, closing, tuple(entries)


def _account(proof: StateProof) -> Account | None:
    return None if proof.value is None else decode(proof.value, Account, size_max=VALUE_SIZE_MAX)


def _movements(view: StoreView, account: str, heights: tuple[int, int]) -> list[tuple[int, EventData]]:
    """All movements of the account in the blocks after the first of `heights` and up to the second, in order."""
    topic = f"settlement/account/{account}"
    found: list[tuple[int, EventData]] = []
    start = heights[0] + 1
    while True:
        page = view.events(topic, start, heights[1], EVENTS_MAX)
        if len(page) < EVENTS_MAX:
            return found + page
        # The last height may go on beyond the page, so it is read again.
        start = page[-1][0]
        whole: Sequence[tuple[int, EventData]] = [row for row in page if row[0] < start]
        if not whole:
            raise RejectedTransaction("proof_too_large", f"block {start} alone has more events than a page")
        found += whole


def _entry(account: str, height: int, data: dict[str, Any]) -> Entry:
    """The account's side of a `Moved` event, as the contract put it into the chain."""
    debit = data["debtor"] == account
    side, other = ("debtor", "creditor") if debit else ("creditor", "debtor")
    return Entry(
        account,
        data[f"{side}_entry"],
        height,
        data["kind"],
        0 - data["amount"] if debit else data["amount"],
        data[other],
        data["uetr"],
        data["reference"],
        data[f"{side}_balance"],
    )
