"""One block being executed: the same steps for the builder, the checker and the replay. Pure.

The order within a block: request ids that are due are forgotten, due scheduled calls run, then the transactions.
"""

from collections.abc import Callable
from typing import Protocol

import msgspec

from consensus.codec import check_plain, decode_own, encode, unpack
from consensus.members import Members, Validator
from contracts.engine import Engine, Environment, EventRecord, Outcome, Scheduled
from contracts.state_keys import encode_component, encode_key
from node.config import Parameters
from node.ledger import (
    EXPIRY_AHEAD_MS_MAX,
    TRANSACTION_SIZE_MAX,
    Call,
    CallReceipt,
    EventData,
    Receipt,
    RequestRecord,
    ScheduledCall,
    Transaction,
    sha256,
)
from node.state import VALUE_SIZE_MAX, LedgerView, Overlay, StateReader, ValueCache

LEDGER = "ledger"
SEQUENCES_PER_BLOCK = 1 << 24

REQUESTS = encode_key((LEDGER, "request"))
SCHEDULE = encode_key((LEDGER, "schedule"))

REVERTED = CallReceipt("reverted", ())
QUARANTINED = CallReceipt("quarantined", ())


class Policy(Protocol):
    """Which signatures let a principal act: any `threshold` of `keys`."""

    @property
    def threshold(self) -> int:
        """How many different keys must sign."""

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The public keys."""


class Registry(Protocol):
    """What the state says of principals and validators; contracts.membership.Membership is it."""

    def read_policy(self, state: Overlay, principal: str) -> Policy | None:
        """Return the key policy of `principal`, or None for a stranger."""

    def read_validators(self, state: Overlay) -> tuple[tuple[str, bytes], ...]:
        """Return (id, voting key) of the validators in their order."""


class Rules(msgspec.Struct, frozen=True):
    """All that decides outcomes besides the state: fixed for the life of a network and a release."""

    network: str
    parameters: Parameters
    engine: Engine
    registry: Registry


class Attempt(msgspec.Struct, frozen=True):
    """A transaction that was executed on the overlay and is not yet part of the block. `details` are for people."""

    calls: tuple[CallReceipt, ...]
    scheduled: tuple[Scheduled, ...]
    operations: int
    details: tuple[str, ...] = ()


class BlockRun:
    """The block in the making: its overlay and everything that its header and indexes are made of."""

    def __init__(self, rules: Rules, view: LedgerView, cache: ValueCache | None, height: int, time_ms: int) -> None:
        """Stand on `view` without having done anything; `cache` belongs to the same state."""
        self._rules = rules
        self._view = view
        self.height = height
        self.time_ms = time_ms
        self.overlay = Overlay(view, cache)
        self.tx_ids: list[bytes] = []
        self.receipts: list[bytes] = []
        self.topics: dict[str, list[int]] = {}
        self.requests_added: list[tuple[int, bytes]] = []
        self.requests_removed: tuple[tuple[int, bytes], ...] = ()
        self.quarantined: list[int] = []
        self.calls = 0
        self.size_bytes = 0
        self.operations = 0
        self.transactions = 0
        self._sequence = height * SEQUENCES_PER_BLOCK

    def begin(self, is_quarantined: Callable[[int, bytes], bool]) -> None:
        """Due request ids are forgotten and due scheduled calls executed, both up to their limits a block.

        `is_quarantined(position, tx_id)` says which scheduled calls are settled unexecuted.
        """
        parameters = self._rules.parameters
        due = self._view.requests_due(self.time_ms - parameters.retention_ms, parameters.pruned_requests_max)
        self.requests_removed = tuple(due)
        for _, key in due:
            self.overlay.delete(key)
        # Scheduled calls leave at least half of the block's operations to transactions.
        operations_max = parameters.block_operations_max // 2
        for key, call in due_calls(self.overlay, self.time_ms, parameters.scheduled_calls_max):
            if self.operations >= operations_max:
                break
            tx_id = sha256(b"hansa/scheduled" + key)
            self.overlay.delete(key)
            if is_quarantined(len(self.tx_ids), tx_id):
                self.quarantined.append(len(self.tx_ids))
                self._accept(tx_id, Attempt((QUARANTINED,), (), 0))
                continue
            args = unpack(call.args, size_max=TRANSACTION_SIZE_MAX)
            env = self._environment(f"@{call.contract}", tx_id)
            outcome = self._rules.engine.execute(
                self.overlay, env, call.contract, call.method, args, parameters.call_operations_max
            )
            self._accept(tx_id, Attempt((_receipt(outcome),), outcome.scheduled, outcome.operations))

    def obstacle(self, transaction: Transaction) -> str | None:
        """Return why no block may contain `transaction` here and now, or None. Its signatures are verified."""
        return obstacle(self._rules, self.overlay, transaction, self.time_ms)

    def attempt(self, transaction: Transaction) -> Attempt:
        """Execute the calls on the overlay; the caller accepts the attempt or rolls the overlay back."""
        body = transaction.body
        env = self._environment(body.sender, transaction.tx_id)
        # A budget for the whole transaction, the same wherever in a block it stands.
        budget = self._rules.parameters.block_operations_max
        savepoint = self.overlay.savepoint()
        receipts: list[CallReceipt] = []
        scheduled: list[Scheduled] = []
        details: list[str] = []
        used = 0
        for position, call in enumerate(body.calls):
            outcome = self._execute(env, call, budget - used)
            used += outcome.operations
            if outcome.code != "ok" and body.mode == "atomic":
                self.overlay.rollback(savepoint)
                failed = [REVERTED] * len(body.calls)
                failed[position] = CallReceipt(outcome.code, ())
                return Attempt(tuple(failed), (), used, (outcome.detail,))
            receipts.append(_receipt(outcome))
            details.append(outcome.detail)
            scheduled.extend(outcome.scheduled)
        return Attempt(tuple(receipts), tuple(scheduled), used, tuple(details))

    def quarantine(self, transaction: Transaction) -> Attempt:
        """Return the attempt that settles `transaction` unexecuted."""
        self.quarantined.append(len(self.tx_ids))
        return Attempt((QUARANTINED,) * len(transaction.body.calls), (), 0)

    def accept(self, transaction: Transaction, attempt: Attempt) -> None:
        """The transaction is part of the block and its request id is used."""
        body = transaction.body
        key = request_key(body.sender, body.request_id)
        self.overlay.put(key, RequestRecord(transaction.tx_id, self.height, body.expires_at_ms))
        self.requests_added.append((body.expires_at_ms, key))
        self.transactions += 1
        self.calls += len(body.calls)
        self.size_bytes += len(transaction.data)
        self._accept(transaction.tx_id, attempt)

    def members(self) -> Members:
        """Return the members that decide the next height."""
        rows = self._rules.registry.read_validators(self.overlay)
        return Members(tuple(Validator(member, key) for member, key in rows))

    def _accept(self, tx_id: bytes, attempt: Attempt) -> None:
        position = len(self.tx_ids)
        self.operations += attempt.operations
        for call in attempt.scheduled:
            check_plain(call.args)
            key = SCHEDULE + encode_component(call.at_ms) + encode_component(self._sequence)
            self.overlay.put(key, ScheduledCall(call.contract, call.method, encode(call.args)))
            self._sequence += 1
        for receipt in attempt.calls:
            for event in receipt.events:
                for topic in event.topics:
                    positions = self.topics.setdefault(topic, [])
                    if not positions or positions[-1] != position:
                        positions.append(position)
        self.tx_ids.append(tx_id)
        self.receipts.append(encode(Receipt(tx_id, attempt.calls)))

    def _execute(self, env: Environment, call: Call, budget: int) -> Outcome:
        if budget <= 0:
            return Outcome("limit_exceeded", detail="the transaction's calls together exceed a block's operations")
        operations_max = min(self._rules.parameters.call_operations_max, budget)
        return self._rules.engine.execute(self.overlay, env, call.contract, call.method, call.args, operations_max)

    def _environment(self, sender: str, tx_id: bytes) -> Environment:
        return Environment(self._rules.network, self.height, self.time_ms, sender, tx_id, encode)


def obstacle(rules: Rules, state: Overlay, transaction: Transaction, time_ms: int) -> str | None:
    """Return the first reason, in a fixed order, why no block at `time_ms` on `state` may contain `transaction`."""
    body = transaction.body
    if body.network != rules.network:
        return "wrong_network"
    if time_ms > body.expires_at_ms:
        return "expired"
    if body.expires_at_ms > time_ms + EXPIRY_AHEAD_MS_MAX:
        return "expiry_too_far"
    used = read_request(state, body.sender, body.request_id)
    if used is not None:
        return "already_final" if used.tx_id == transaction.tx_id else "request_conflict"
    policy = rules.registry.read_policy(state, body.sender)
    if policy is None:
        return "unknown_principal"
    signed = 0
    for signature in transaction.signatures:
        signed += signature.key in policy.keys
    return None if signed >= policy.threshold else "policy_unsatisfied"


def request_key(sender: str, request_id: str) -> bytes:
    """Return the state key of a request record."""
    return REQUESTS + encode_component(sender) + encode_component(request_id)


def read_request(state: Overlay, sender: str, request_id: str) -> RequestRecord | None:
    """Return what the state remembers of a request id."""
    return state.get(request_key(sender, request_id), RequestRecord)


def request_of(key: bytes, value: bytes) -> RequestRecord | None:
    """Return the request record that the state holds under `key`; None where the key is something else's."""
    return decode_own(value, RequestRecord, size_max=VALUE_SIZE_MAX) if key.startswith(REQUESTS) else None


def due_calls(state: Overlay, time_ms: int, limit: int) -> list[tuple[bytes, ScheduledCall]]:
    """Return up to `limit` (key, call) scheduled for `time_ms` or earlier, in the order (at_ms, sequence)."""
    return state.scan(SCHEDULE, SCHEDULE + encode_component(time_ms + 1), ScheduledCall, limit)


def next_due_ms(base: StateReader) -> int | None:
    """Return the time of the earliest scheduled call, or None."""
    for key, _ in base.scan(SCHEDULE, SCHEDULE + b"\xff"):
        return int.from_bytes(key[len(SCHEDULE) + 1 : len(SCHEDULE) + 9], "big")
    return None


def _receipt(outcome: Outcome) -> CallReceipt:
    if not outcome.events:
        return CallReceipt(outcome.code, ())
    return CallReceipt(outcome.code, tuple([_event(event) for event in outcome.events]))


def _event(event: EventRecord) -> EventData:
    return EventData(event.contract, event.name, event.topics, event.data)
