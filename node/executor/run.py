"""One block being executed: the same steps for the builder, the checker and the replay. Pure.

The order within a block: request ids that are due are forgotten, due scheduled calls run, then the transactions; at
the end, a contract that the members decided about changes its version.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from consensus.codec import check_plain, decode_own, encode, unpack
from consensus.members import Members, Validator
from contracts.brake import Brake, Standing, stopped_at
from contracts.engine import Emitted, Engine, Environment, Outcome, Scheduled, Session
from contracts.state_keys import encode_component, encode_key
from node.config import PROPOSER, Parameters, Recovery
from node.errors import InvalidBlock
from node.executor.activation import carry_out
from node.ledger import (
    EXPIRY_AHEAD_MS_MAX,
    TRANSACTION_SIZE_MAX,
    Call,
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


class FormerKey(Protocol):
    """A key that signs for its successor for a while."""

    @property
    def key(self) -> bytes:
        """The former public key."""

    @property
    def successor(self) -> bytes:
        """The key in whose place it signs."""

    @property
    def until_ms(self) -> int:
        """The time of blocks from which on it signs no more."""


class Policy(Protocol):
    """Which signatures let a principal act: any `threshold` of `keys`, of which a former one may take the place."""

    @property
    def threshold(self) -> int:
        """How many different keys must sign."""

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The public keys."""

    @property
    def former(self) -> Sequence[FormerKey]:
        """Keys that were rotated lately; one and its successor count once."""

    @property
    def tiers(self) -> Sequence[object]:
        """What asks for more than these signatures; none, and nothing else is looked at."""


class Registry(Protocol):
    """What the state says of principals and validators; contracts.membership.Membership is it."""

    def read_policy(self, state: Overlay, principal: str) -> Policy | None:
        """Return the key policy of `principal`, or None for a stranger."""

    def policy_key(self, principal: str) -> bytes:
        """Return the state key of the policy of `principal`."""

    def read_policy_at(self, state: Overlay, key: bytes) -> Policy | None:
        """Return the policy under a key that `policy_key` gave, or None."""

    def unmet_tier(
        self, state: Overlay, sender: str, calls: Sequence[Call], signers: Sequence[bytes], time_ms: int
    ) -> tuple[str | None, int]:
        """Return the name of a tier that the calls ask for and these keys' signatures leave open, or None.

        And the time of blocks up to which that is so, as long as nothing is written that `decides_tiers`.
        """

    def decides_tiers(self, key: bytes) -> bool:
        """Whether the value under the state key may decide what `unmet_tier` says."""

    def needs_keys_in_force(self, sender: str, calls: Sequence[Call]) -> bool:
        """Return whether a former key does not sign these calls in its successor's place."""

    def only_call(self, principal: str) -> tuple[str, str] | None:
        """Return the one call (contract, method) that such a principal makes; None: it makes any."""

    def read_limits(self, state: Overlay) -> tuple[tuple[str, int], ...]:
        """Return those of the network's parameters that the state has, as they hold for the next block."""

    def read_validators(self, state: Overlay) -> tuple[tuple[str, bytes], ...]:
        """Return (id, voting key) of the validators in their order."""


class Rules(msgspec.Struct, frozen=True):
    """All that decides outcomes besides the state: fixed for a release, and for as long as the members change none
    of the `parameters` and pull none of the `brakes`.
    """

    network: str
    parameters: Parameters
    engine: Engine
    registry: Registry
    brakes: tuple[Standing, ...] = ()

    def after(self, state: Overlay) -> "Rules":
        """Return these as they hold for the block after `state`: its limits and its brakes. The engine is kept.

        Read once for a block, so that none of its transactions pays for them.
        """
        limits, brakes = dict(self.registry.read_limits(state)), Brake.read_on(state)
        known = self.parameters
        if brakes == self.brakes and all(getattr(known, name) == value for name, value in limits.items()):
            return self
        return msgspec.structs.replace(self, parameters=msgspec.structs.replace(known, **limits), brakes=brakes)


class Settled(msgspec.Struct, frozen=True, array_like=True):
    """ledger.CallReceipt with its events still in the bytes in which the contract emitted them."""

    code: str
    events: tuple[Emitted, ...]


class Attempt(msgspec.Struct, frozen=True):
    """A transaction that was executed on the overlay and is not yet part of the block. `details` are for people."""

    calls: tuple[Settled, ...]
    scheduled: tuple[Scheduled, ...]
    operations: int
    details: tuple[str, ...] = ()

    def receipt(self, tx_id: bytes) -> bytes:
        """Return the encoded ledger.Receipt."""
        return encode(_Receipt(tx_id, self.calls))


BUDGET_SPENT = Outcome("limit_exceeded", detail="the transaction's calls together exceed a block's operations")
REVERTED = Settled("reverted", ())
QUARANTINED = Settled("quarantined", ())


class _Receipt(msgspec.Struct, frozen=True, array_like=True):
    """ledger.Receipt, ready to be encoded."""

    tx_id: bytes
    calls: tuple[Settled, ...]


class Sender(msgspec.Struct, frozen=True):
    """Where the state holds what is asked of a sender at each transaction."""

    requests: bytes
    policy_key: bytes

    def request_key(self, request_id: str) -> bytes:
        """As `request_key`."""
        return self.requests + encode_component(request_id)


class BlockRun:
    """The block in the making: its overlay and everything that its header and indexes are made of."""

    def __init__(
        self,
        rules: Rules,
        view: LedgerView,
        cache: ValueCache | None,
        height: int,
        time_ms: int,
        requests_from_ms: int = 0,
    ) -> None:
        """Stand on `view` without having done anything; `cache` belongs to the same state.

        No request id is left there that expired before `requests_from_ms`.
        """
        self._rules = rules
        self._view = view
        self.height = height
        self.time_ms = time_ms
        self.overlay = Overlay(view, cache)
        self._brakes = stopped_at(rules.brakes, time_ms)
        self._session = Session(rules.engine, self.overlay)
        self._senders: dict[str, Sender] = {}
        self._asked: tuple[Transaction, bytes] | None = None
        self.tx_ids: list[bytes] = []
        self.receipts: list[bytes] = []
        self.topics: dict[str, list[int]] = {}
        self.requests_added: list[tuple[int, bytes]] = []
        self.requests_removed: tuple[tuple[int, bytes], ...] = ()
        self._requests_from_ms = requests_from_ms
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
        before_ms = self.time_ms - parameters.retention_ms
        due = self._view.requests_due(self._requests_from_ms, before_ms, parameters.pruned_requests_max)
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
            outcome = self._session.execute(env, call.contract, call.method, args, parameters.call_operations_max)
            settled = Settled(outcome.code, outcome.emitted)
            again = outcome.scheduled
            if outcome.code == "braked" and self._brakes:
                # Not lost: its receipt says `braked`, and it is due again when the first of the brakes ends.
                again = (Scheduled(min(self._brakes.values()), call.contract, call.method, args),)
            self._accept(tx_id, Attempt((settled,), again, outcome.operations))

    def recover(self, recovery: Recovery) -> None:
        """The block does what survivors of a lost quorum have signed, and nothing else; raise InvalidBlock.

        What is due at its time is done in the block after it.
        """
        contract, method, args = recovery.call
        tx_id = sha256(b"hansa/recovery" + recovery.statement)
        env = self._environment(PROPOSER, tx_id)
        outcome = self._session.execute(env, contract, method, args, self._rules.parameters.block_operations_max)
        if outcome.code != "ok":
            raise InvalidBlock("recovery_refused", f"block {self.height}: {outcome.code}: {outcome.detail}")
        self._accept(tx_id, Attempt((Settled(outcome.code, outcome.emitted),), (), outcome.operations))

    def obstacle(self, transaction: Transaction) -> str | None:
        """Return why no block may contain `transaction` here and now, or None. Its signatures are verified."""
        sender = self._sender(transaction.body.sender)
        return (
            misplaced(self._rules, transaction, self.time_ms)
            or taken(self.overlay.get(self._request_key(transaction), RequestRecord), transaction)
            or self._unsatisfied(sender, transaction)
        )

    def _unsatisfied(self, sender: Sender, transaction: Transaction) -> str | None:
        registry, overlay = self._rules.registry, self.overlay
        policy = registry.read_policy_at(overlay, sender.policy_key)
        reason = unsatisfied(registry, policy, transaction, self.time_ms)
        if reason is None and policy is not None and policy.tiers:
            return unapproved(registry, overlay, transaction, self.time_ms)
        return reason

    def attempt(self, transaction: Transaction) -> Attempt:
        """Execute the calls on the overlay; the caller accepts the attempt or rolls the overlay back."""
        body = transaction.body
        env = self._environment(body.sender, transaction.tx_id)
        # A budget for the whole transaction, the same wherever in a block it stands.
        budget = self._rules.parameters.block_operations_max
        call_max = self._rules.parameters.call_operations_max
        execute = self._session.execute
        if len(body.calls) == 1:
            # Most transactions. A call that failed has left nothing: there is no other to be undone with it.
            [call] = body.calls
            outcome = execute(env, call.contract, call.method, call.args, min(call_max, budget))
            settled_call = Settled(outcome.code, outcome.emitted)
            return Attempt((settled_call,), outcome.scheduled, outcome.operations, (outcome.detail,))
        savepoint = self.overlay.savepoint()
        settled: list[Settled] = []
        scheduled: list[Scheduled] = []
        details: list[str] = []
        used = 0
        for position, call in enumerate(body.calls):
            outcome = BUDGET_SPENT
            if used < budget:
                outcome = execute(env, call.contract, call.method, call.args, min(call_max, budget - used))
            used += outcome.operations
            if outcome.code != "ok" and body.mode == "atomic":
                self.overlay.rollback(savepoint)
                failed = [REVERTED] * len(body.calls)
                failed[position] = Settled(outcome.code, ())
                return Attempt(tuple(failed), (), used, (outcome.detail,))
            settled.append(Settled(outcome.code, outcome.emitted))
            details.append(outcome.detail)
            scheduled.extend(outcome.scheduled)
        return Attempt(tuple(settled), tuple(scheduled), used, tuple(details))

    def quarantine(self, transaction: Transaction) -> Attempt:
        """Return the attempt that settles `transaction` unexecuted."""
        self.quarantined.append(len(self.tx_ids))
        return Attempt((QUARANTINED,) * len(transaction.body.calls), (), 0)

    def accept(self, transaction: Transaction, attempt: Attempt) -> None:
        """The transaction is part of the block and its request id is used."""
        body = transaction.body
        key = self._request_key(transaction)
        self.overlay.put(key, RequestRecord(transaction.tx_id, self.height, body.expires_at_ms))
        self.requests_added.append((body.expires_at_ms, key))
        self.transactions += 1
        self.calls += len(body.calls)
        self.size_bytes += len(transaction.data)
        self._accept(transaction.tx_id, attempt)

    def end(self, decided: bool = False) -> None:
        """What the members decided about a contract is done if it is due; nothing is executed after it.

        Raise InvalidBlock (`contract_not_here`) where this node cannot do it.
        """
        parameters = self._rules.parameters
        env = self._environment("@governance", sha256(b"hansa/activation" + encode_component(self.height)))
        operations = (parameters.call_operations_max, parameters.block_operations_max)
        self._schedule(carry_out(self._session, self._rules.engine, self.overlay, env, operations, decided))

    def members(self) -> Members:
        """Return the members that decide the next height."""
        rows = self._rules.registry.read_validators(self.overlay)
        return Members(tuple(Validator(member, key) for member, key in rows))

    def _accept(self, tx_id: bytes, attempt: Attempt) -> None:
        position = len(self.tx_ids)
        self.operations += attempt.operations
        self._schedule(attempt.scheduled)
        topics = self.topics
        for done in attempt.calls:
            for event in done.events:
                for topic in event.topics:
                    positions = topics.get(topic)
                    if positions is None:
                        topics[topic] = [position]
                    elif positions[-1] != position:
                        positions.append(position)
        self.tx_ids.append(tx_id)
        self.receipts.append(attempt.receipt(tx_id))

    def _schedule(self, calls: Sequence[Scheduled]) -> None:
        for call in calls:
            check_plain(call.args)
            key = SCHEDULE + encode_component(call.at_ms) + encode_component(self._sequence)
            self.overlay.put(key, ScheduledCall(call.contract, call.method, encode(call.args)))
            self._sequence += 1

    def _request_key(self, transaction: Transaction) -> bytes:
        """Where the state remembers the transaction's request id; it is accepted right after it was judged."""
        asked = self._asked
        if asked is None or asked[0] is not transaction:
            body = transaction.body
            asked = self._asked = (transaction, self._sender(body.sender).request_key(body.request_id))
        return asked[1]

    def _sender(self, principal: str) -> Sender:
        found = self._senders.get(principal)
        if found is None:
            found = Sender(request_prefix(principal), self._rules.registry.policy_key(principal))
            self._senders[principal] = found
        return found

    def _environment(self, sender: str, tx_id: bytes) -> Environment:
        return Environment(self._rules.network, self.height, self.time_ms, sender, tx_id, encode, self._brakes)


def misplaced(rules: Rules, transaction: Transaction, time_ms: int) -> str | None:
    """Return why a block at `time_ms` on this network may not contain `transaction`, whatever the state says."""
    body = transaction.body
    if body.network != rules.network:
        return "wrong_network"
    if time_ms > body.expires_at_ms:
        return "expired"
    if body.expires_at_ms > time_ms + EXPIRY_AHEAD_MS_MAX:
        return "expiry_too_far"
    only = rules.registry.only_call(body.sender)
    others = only is not None and any((item.contract, item.method) != only for item in body.calls)
    return "not_for_nodes" if others else None


def taken(used: RequestRecord | None, transaction: Transaction) -> str | None:
    """Return why the transaction's request id cannot be used: `used` is what the state remembers of it."""
    if used is None:
        return None
    return "already_final" if used.tx_id == transaction.tx_id else "request_conflict"


def unsatisfied(registry: Registry, policy: Policy | None, transaction: Transaction, time_ms: int) -> str | None:
    """Return why the signatures do not suffice at `time_ms` for the sender's `policy` (None: a stranger).

    Its tiers may ask for more: see `unapproved`.
    """
    if policy is None:
        return "unknown_principal"
    signed = 0
    for signature in transaction.signatures:
        signed += signature.key in policy.keys
    body = transaction.body
    if policy.former and not registry.needs_keys_in_force(body.sender, body.calls):
        signers = [signature.key for signature in transaction.signatures]
        for item in policy.former:
            signed += time_ms < item.until_ms and item.key in signers and item.successor not in signers
    return None if signed >= policy.threshold else "policy_unsatisfied"


def unapproved(registry: Registry, state: Overlay, transaction: Transaction, time_ms: int) -> str | None:
    """Return why the signatures do not suffice for the tiers that the transaction's calls ask for, or None."""
    return None if open_tier(registry, state, transaction, time_ms)[0] is None else "approval_required"


def open_tier(registry: Registry, state: Overlay, transaction: Transaction, time_ms: int) -> tuple[str | None, int]:
    """Return the tier that the transaction's calls ask for and its signatures leave open at `time_ms`, or None;
    and until when that is so (`Registry.unmet_tier`).
    """
    body = transaction.body
    signers = [signature.key for signature in transaction.signatures]
    return registry.unmet_tier(state, body.sender, body.calls, signers, time_ms)


def request_key(sender: str, request_id: str) -> bytes:
    """Return the state key of a request record."""
    return request_prefix(sender) + encode_component(request_id)


def request_prefix(sender: str) -> bytes:
    """Return what the keys of all of a sender's request records begin with."""
    return REQUESTS + encode_component(sender)


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
