"""Where this node's execution of a certified block parts from the network's: proven, not believed. Pure.

The header of a certified block commits to its receipts and to the whole state after it. So a peer's receipts are
right when their tree has the header's root, and its written values are right when they lead this node's own state
before the block, which has the certified root, to exactly the header's state root. Nothing else has to be trusted.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from consensus.codec import CodecError, decode
from contracts.state_keys import StateKeyError, decode_key
from node.config import Recovery
from node.errors import InvalidFrame
from node.executor.run import Attempt, BlockRun, Rules, due_calls
from node.ledger import Header, Receipt, Transaction, merkle_root, sha256
from node.state import ExecutedBlock, LedgerView, Overlay

RECEIPT_SIZE_MAX = 64 * 1024 * 1024


class Claim(msgspec.Struct, frozen=True):
    """What a peer says that a block did: its encoded receipts, and the values after it under the keys it wrote.

    `writes` None: the peer no longer keeps them, and only receipts can be compared.
    """

    receipts: tuple[bytes, ...]
    writes: dict[bytes, bytes | None] | None


class Difference(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The first transaction of a block whose outcome differs, and a state key that differs by it.

    `position` counts the block's scheduled calls first (None: no single transaction can be named); `tx_id`,
    `contract` and `method` are those of the call there. `our_code` and `their_code` are the outcomes where the
    receipts differ. `key` is an encoded state key, `ours` and `theirs` the SHA-256 of its value (None: absent).
    `keys` counts the keys that differ. `exact` is False when several transactions wrote the key: the one named is
    then the last of them.
    """

    position: int | None
    tx_id: bytes | None
    contract: str
    method: str
    our_code: str
    their_code: str
    key: bytes | None
    ours: bytes | None
    theirs: bytes | None
    keys: int
    exact: bool


class TracedRun(BlockRun):
    """A block's run that remembers which transaction wrote which key, and whose call a scheduled one is."""

    def __init__(self, rules: Rules, view: LedgerView, height: int, time_ms: int) -> None:
        """Stand on `view` without having done anything."""
        super().__init__(rules, view, None, height, time_ms)
        self.writers: dict[bytes, list[int]] = {}
        limit = rules.parameters.scheduled_calls_max
        due = due_calls(Overlay(view), time_ms, limit)
        self.scheduled_calls = [(call.contract, call.method) for _, call in due]
        self._noted = 0

    def recover(self, recovery: Recovery) -> None:
        """As in a block's run; its one call stands where scheduled calls do."""
        self.scheduled_calls = [recovery.call[:2]]
        super().recover(recovery)

    def _accept(self, tx_id: bytes, attempt: Attempt) -> None:
        position = len(self.tx_ids)
        super()._accept(tx_id, attempt)
        # Request ids that are forgotten by age were deleted before anything ran.
        forgotten = dict.fromkeys(key for _, key in self.requests_removed) if position == 0 else {}
        for key in self.overlay.written_since(self._noted):
            if key in forgotten:
                continue
            positions = self.writers.setdefault(key, [])
            if not positions or positions[-1] != position:
                positions.append(position)
        self._noted = self.overlay.savepoint()


def verify_claim(header: Header, claim: Claim, root_after: Callable[[Mapping[bytes, bytes | None]], bytes]) -> None:
    """Return when `claim` is what the certified `header` commits to; raise InvalidFrame("bad_proof") otherwise."""
    if merkle_root(claim.receipts) != header.receipts_root:
        raise InvalidFrame("bad_proof", f"the receipts are not those of block {header.height}")
    if claim.writes is not None and root_after(claim.writes) != header.state_root:
        raise InvalidFrame("bad_proof", f"the values do not lead to the state of block {header.height}")


def find_difference(
    view: LedgerView, run: TracedRun, executed: ExecutedBlock, transactions: Sequence[Transaction], claim: Claim
) -> Difference:
    """Return the first difference between `executed`, traced by `run` on `view`, and a proven `claim`."""
    receipt = _first_receipt(executed.receipts, claim.receipts)
    keys = _differing_keys(view, executed.writes.after, claim.writes)
    # A key with one writer names its transaction for certain; of one with several nobody can tell which it was.
    certain = {run.writers[key][0]: key for key in reversed(keys) if len(run.writers.get(key, ())) == 1}
    positions = [*certain] if receipt is None else [receipt, *certain]
    exact = bool(positions)
    if not positions:
        positions = [run.writers[key][-1] for key in keys if key in run.writers]
    position = min(positions) if positions else None
    key = next((key for key in keys if position in run.writers.get(key, ())), keys[0] if keys else None)
    ours, theirs = _outcomes(executed.receipts, claim.receipts, position)
    tx_id, contract, method = _call(run, executed, transactions, position, key, ours, theirs)
    after = executed.writes.after
    differing = ours != theirs
    return Difference(
        position=position,
        tx_id=tx_id,
        contract=contract,
        method=method,
        our_code=_code(ours, theirs) if differing else "",
        their_code=_code(theirs, ours) if differing else "",
        key=key,
        ours=None if key is None else _digest(after[key] if key in after else view.get(key)),
        theirs=None if key is None else _digest(_claimed(view, claim, key)),
        keys=len(keys),
        exact=exact,
    )


def _first_receipt(ours: Sequence[bytes], theirs: Sequence[bytes]) -> int | None:
    for position, (left, right) in enumerate(zip(ours, theirs, strict=False)):
        if left != right:
            return position
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def _differing_keys(
    view: LedgerView, ours: Mapping[bytes, bytes | None], theirs: Mapping[bytes, bytes | None] | None
) -> list[bytes]:
    if theirs is None:
        return []
    differing: list[bytes] = []
    for key in sorted({**ours, **theirs}):
        left = ours[key] if key in ours else view.get(key)
        right = theirs[key] if key in theirs else view.get(key)
        if left != right:
            differing.append(key)
    return differing


def _claimed(view: LedgerView, claim: Claim, key: bytes) -> bytes | None:
    writes = claim.writes or {}
    return writes[key] if key in writes else view.get(key)


def _digest(value: bytes | None) -> bytes | None:
    return None if value is None else sha256(value)


def _outcomes(
    ours: Sequence[bytes], theirs: Sequence[bytes], position: int | None
) -> tuple[Receipt | None, Receipt | None]:
    return _receipt(ours, position), _receipt(theirs, position)


def _receipt(receipts: Sequence[bytes], position: int | None) -> Receipt | None:
    if position is None or position >= len(receipts):
        return None
    try:
        return decode(receipts[position], Receipt, size_max=RECEIPT_SIZE_MAX)
    except CodecError:
        return None


def _code(receipt: Receipt | None, other: Receipt | None) -> str:
    """The outcome of the first call that the two receipts differ in."""
    if receipt is None:
        return "no_receipt"
    index = _differing_call(receipt, other)
    return receipt.calls[index].code if index < len(receipt.calls) else "no_receipt"


def _differing_call(receipt: Receipt, other: Receipt | None) -> int:
    theirs = () if other is None else other.calls
    for index, call in enumerate(receipt.calls):
        if index >= len(theirs) or theirs[index] != call:
            return index
    return len(receipt.calls)


def _call(
    run: TracedRun,
    executed: ExecutedBlock,
    transactions: Sequence[Transaction],
    position: int | None,
    key: bytes | None,
    ours: Receipt | None,
    theirs: Receipt | None,
) -> tuple[bytes | None, str, str]:
    """The transaction at `position` and that one of its calls that the receipts or the key point to."""
    if position is None or position >= len(executed.tx_ids):
        return None, "", ""
    tx_id = executed.tx_ids[position]
    if position < executed.scheduled:
        return tx_id, *run.scheduled_calls[position]
    calls = transactions[position - executed.scheduled].body.calls
    index = 0
    if ours is not None and ours != theirs:
        index = _differing_call(ours, theirs)
    elif key is not None:
        index = next((at for at, call in enumerate(calls) if call.contract == _owner(key)), 0)
    call = calls[index if index < len(calls) else 0]
    return tx_id, call.contract, call.method


def _owner(key: bytes) -> str:
    """The contract that a state key belongs to."""
    try:
        parts = decode_key(key)
    except StateKeyError:
        return ""
    return parts[0] if parts and isinstance(parts[0], str) else ""
