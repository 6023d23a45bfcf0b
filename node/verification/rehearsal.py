"""The last blocks of a ledger executed under another version of a contract, and every outcome that differs.

Nothing of the data is touched: a stopped node's database is copied while nobody may open it, and the state before
the first of those blocks is made by undoing them in memory. There the version begins, with its migration, as if the
members' change had taken effect at that block. What the blocks did in fact is what their receipts and today's state
say, so the version that executed them is not run again.

Not compared: request ids, which no contract reads or writes, and the rows that say which version is active.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from consensus.codec import decode, encode
from contracts import CONTRACTS, FURTHER
from contracts.engine import Engine, Environment
from contracts.lifecycle import Lifecycle
from contracts.membership import Membership
from contracts.sdk import Contract
from contracts.state_keys import decode_key
from node.config import NetworkConfig, NodeConfig
from node.errors import ConfigError
from node.executor.activation import ActiveCode, active_code, try_version
from node.executor.difference import RECEIPT_SIZE_MAX
from node.executor.run import REQUESTS, BlockRun, Rules, due_calls
from node.ledger import CallReceipt, Receipt, Transaction
from node.recovery import load_trusted
from node.state import Overlay
from node.store import LevelDatabase
from node.store.copying import copy_files, held
from node.store.database import Reader, holds_database
from node.store.view import StoreView
from node.verification.tried_state import TriedState

OnProgress = Callable[[int, int], None]
NO_RECEIPT = "no_receipt"
NOT_COMPARED = (Lifecycle.versions.prefix, Lifecycle.previous.prefix)


class ReceiptDifference(msgspec.Struct, frozen=True):
    """A call whose outcome differs: what it was, what it would be, and the new version's words where it refuses.

    Events are those of the call, by name with their data; a call without `tx_id` in one of both has no receipt
    there.
    """

    height: int
    tx_id: str
    call: int
    contract: str
    method: str
    was: str
    would_be: str
    detail: str
    events_were: tuple[dict[str, Any], ...]
    events_would_be: tuple[dict[str, Any], ...]


class ValueDifference(msgspec.Struct, frozen=True):
    """A state value that differs after the last block: its key's parts, as it is and as it would be (None:
    absent).
    """

    key: tuple[str | int, ...]
    is_now: Any
    would_be: Any


class Rehearsal(msgspec.Struct, frozen=True):
    """What came of it. `begun` is the outcome of the version's beginning; unless "ok" no block was executed.

    `asked` of the ledger's blocks were wanted, fewer than the command names where the chain has no more; those from
    `first` to `last` are fewer still where this copy cannot take so many back.
    """

    contract: str
    before: int
    version: int
    asked: int
    first: int
    last: int
    transactions: int
    begun: str
    begun_detail: str
    begun_operations: int
    receipts: tuple[ReceiptDifference, ...]
    values: tuple[ValueDifference, ...]

    @property
    def whole(self) -> bool:
        """Whether all blocks that were asked for could be taken back."""
        return self.last - self.first + 1 == self.asked

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return self.begun == "ok" and not self.receipts and not self.values


def rehearse_directory(
    node: NodeConfig, contract: type[Contract], last_blocks: int, on_progress: OnProgress = lambda done, of: None
) -> Rehearsal:
    """Return what the last blocks of the stopped node's ledger would have done with `contract` active.

    Raise ConfigError when the directory holds no ledger or a running node holds it, NotFound where the state before
    those blocks is no longer kept, Unavailable (`disk_low`) without room for a copy.
    """
    network = load_trusted(node)
    if not holds_database(node.data_dir):
        raise ConfigError("data_dir_unusable", f"{node.data_dir} holds no ledger")
    with tempfile.TemporaryDirectory(prefix="rehearsal-", dir=node.data_dir.parent) as scratch:
        copy = Path(scratch) / "data"
        with held(node.data_dir):
            copy_files(node.data_dir, copy, "the copy in which is rehearsed")
        with contextlib.closing(LevelDatabase(copy)) as database:
            return rehearse(database, network, contract, last_blocks, on_progress)


def rehearse(
    rows: Reader, network: NetworkConfig, contract: type[Contract], last_blocks: int, on_progress: OnProgress
) -> Rehearsal:
    """Return what the last blocks of the ledger `rows` would have done with `contract` active."""
    return _Rehearsing(StoreView(rows), network, contract).run(last_blocks, on_progress)


class _Rehearsing:
    def __init__(self, view: StoreView, network: NetworkConfig, contract: type[Contract]) -> None:
        self._view = view
        self._network = network
        self._contract = contract
        self._shipped = _engine_with(contract)
        self._code = ActiveCode((), self._shipped)
        self._receipts: list[ReceiptDifference] = []

    def run(self, last_blocks: int, on_progress: OnProgress) -> Rehearsal:
        view, last = self._view, self._view.head.height
        first = max(view.first_block, last - last_blocks + 1)
        if first > last:
            raise ConfigError("invalid_usage", "the ledger has no block to rehearse with")
        state = TriedState(view.at(first - 1))
        before = self._known(first, state)
        outcome = self._begin(state)
        transactions = 0
        if outcome.code == "ok":
            for height in range(first, last + 1):
                transactions += self._execute(height, state)
                on_progress(height - first + 1, last - first + 1)
        values = tuple(self._values(first, state)) if outcome.code == "ok" else ()
        return Rehearsal(
            contract=self._contract.name,
            before=before,
            version=self._contract.version,
            asked=min(last_blocks, last),
            first=first,
            last=last,
            transactions=transactions,
            begun=outcome.code,
            begun_detail=outcome.detail,
            begun_operations=outcome.operations,
            receipts=tuple(self._receipts),
            values=values,
        )

    def _known(self, first: int, state: TriedState) -> int:
        """The version before (0: none); raise ConfigError where the new one cannot follow it there."""
        name, version = self._contract.name, self._contract.version
        rows = [row for row in Lifecycle.read_versions(Overlay(self._view)) if row.contract == name]
        if any(row.since > first for row in rows):
            raise ConfigError(
                "invalid_usage",
                f"{name} has changed with block {rows[0].since}: rehearse with the blocks from there on (--last)",
            )
        known = next((row.version for row in Lifecycle.read_versions(Overlay(state)) if row.contract == name), 0)
        if known and version not in (known, known + 1):
            raise ConfigError("invalid_usage", f"{name} {version} does not follow {known}, which is active")
        return known

    def _begin(self, state: TriedState) -> Any:
        """The version is active on `state`; return the outcome of its beginning."""
        overlay, head = Overlay(state), state.head
        network_id = self._network.network_id
        env = Environment(network_id, head.height, head.time_ms, "@governance", bytes(32), encode)
        rules = self._rules(state)
        outcome = try_version(self._shipped, overlay, env, self._contract, rules.parameters.block_operations_max)
        state.apply(overlay.write_set().after, head)
        return outcome

    def _rules(self, state: TriedState) -> Rules:
        """What the next block is executed by, as the executor takes it from each head."""
        overlay = Overlay(state)
        self._code = active_code(self._shipped, overlay, self._code)
        if self._code.absent:
            raise ConfigError("invalid_usage", f"not shipped here: {', '.join(self._code.absent)}")
        network = self._network
        return Rules(network.network_id, network.parameters, self._code.engine, Membership).after(overlay)

    def _execute(self, height: int, state: TriedState) -> int:
        """The block's calls are executed on `state`, and compared with what they did; return how many
        transactions.
        """
        body, real = self._view.block(height).body, self._view.receipts(height)
        rules, header = self._rules(state), body.header
        known = [_receipt(data) for data in real.receipts]
        quarantined = [known[position].tx_id for position in body.quarantined]
        calls: dict[bytes, Sequence[tuple[str, str]]] = {}
        run = BlockRun(rules, state, None, height, header.time_ms)
        scheduled = due_calls(Overlay(state), header.time_ms, rules.parameters.scheduled_calls_max)
        recovery = self._network.recoveries.of_block(height, header.digest)
        if recovery is None:
            run.begin(lambda _, tx_id: tx_id in quarantined)
            for tx_id, (_, item) in zip(run.tx_ids, scheduled, strict=False):
                calls[tx_id] = [(item.contract, item.method)]
        else:
            run.recover(recovery)
            calls[run.tx_ids[0]] = [recovery.call[:2]]
        details: dict[bytes, str] = {}
        for data in body.transactions:
            transaction = Transaction.decode(data)
            calls[transaction.tx_id] = [(call.contract, call.method) for call in transaction.body.calls]
            alone = transaction.tx_id in quarantined
            attempt = run.quarantine(transaction) if alone else run.attempt(transaction)
            details[transaction.tx_id] = "; ".join(text for text in attempt.details if text)
            run.accept(transaction, attempt)
        if recovery is None:
            run.end(decided=True)
        self._compare(height, known, [_receipt(data) for data in run.receipts], calls, details)
        state.apply(run.overlay.write_set().after, self._view.head_at(height))
        return len(body.transactions)

    def _compare(
        self,
        height: int,
        real: Sequence[Receipt],
        tried: Sequence[Receipt],
        calls: dict[bytes, Sequence[tuple[str, str]]],
        details: dict[bytes, str],
    ) -> None:
        were, would = ({receipt.tx_id: receipt.calls for receipt in side} for side in (real, tried))
        for tx_id in dict.fromkeys((*were, *would)):
            left, right = were.get(tx_id, ()), would.get(tx_id, ())
            for index in range(max(len(left), len(right))):
                was = left[index] if index < len(left) else None
                now = right[index] if index < len(right) else None
                if was == now:
                    continue
                named = calls.get(tx_id, ())
                contract, method = named[index] if index < len(named) else ("", "scheduled")
                self._receipts.append(
                    ReceiptDifference(
                        height=height,
                        tx_id=tx_id.hex(),
                        call=index,
                        contract=contract,
                        method=method,
                        was=NO_RECEIPT if was is None else was.code,
                        would_be=NO_RECEIPT if now is None else now.code,
                        detail=details.get(tx_id, ""),
                        events_were=_events(was),
                        events_would_be=_events(now),
                    )
                )

    def _values(self, first: int, state: TriedState) -> Iterator[ValueDifference]:
        """Every value after the last block that is another one, by its key."""
        changed = self._view.undone(first - 1, self._view.head.height)
        for key in sorted({*changed, *state.changed}):
            if key.startswith(REQUESTS) or key in NOT_COMPARED:
                continue
            now, tried = self._view.get(key), state.get(key)
            if now != tried:
                yield ValueDifference(_parts(key), _plain(now), _plain(tried))


def _engine_with(contract: type[Contract]) -> Engine:
    """Everything that is shipped, and the contract in the place of its like."""
    name = (contract.name, contract.version)
    others = [item for item in (*CONTRACTS, *FURTHER) if (item.name, item.version) != name]
    return Engine((), (*others, contract))


def _receipt(data: bytes) -> Receipt:
    found: Receipt = decode(data, Receipt, size_max=RECEIPT_SIZE_MAX)
    return found


def _events(call: CallReceipt | None) -> tuple[dict[str, Any], ...]:
    return () if call is None else tuple({"name": event.name, **_text(event.data)} for event in call.events)


def _parts(key: bytes) -> tuple[str | int, ...]:
    return tuple(part.hex() if isinstance(part, bytes) else part for part in decode_key(key))


def _plain(data: bytes | None) -> Any:
    return None if data is None else _text(msgspec.msgpack.decode(data))


def _text(value: Any) -> Any:
    """The value with bytes in hex, for people and for JSON."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: _text(item) for name, item in value.items()}
    return [_text(item) for item in value] if isinstance(value, list | tuple) else value
