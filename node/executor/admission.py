"""Whether a transaction may wait for a block, judged on one head's state. Pure.

The state of a head never changes, so what was read of it stays true as long as this judge is asked: the policies
of those who send are read once. Of a request id nothing is kept, for each is asked once.
"""

from functools import cached_property

from contracts.state_keys import encode_component
from node.errors import RejectedTransaction
from node.executor.run import (
    Policy,
    Rules,
    misplaced,
    next_due_ms,
    request_of,
    request_prefix,
    taken,
    unsatisfied,
)
from node.executor.tier_verdicts import TierVerdicts
from node.ledger import RequestRecord, Transaction, request_conflict
from node.state import LedgerView, Overlay

SENDERS_MAX = 10_000
"""How many senders are remembered. A stranger is one too: whoever invents names must not fill the memory."""


class Admission:
    """Judges (verified) transactions on one head. May be asked in several threads."""

    def __init__(self, rules: Rules, view: LedgerView, tiers: TierVerdicts) -> None:
        """`view` is the head's state; `tiers` hold on it."""
        self._rules = rules
        self._tiers = tiers
        self._view = view
        self._earliest_ms = view.head.time_ms + 1
        self._senders: dict[str, tuple[bytes, Policy | None]] = {}

    @property
    def tiers(self) -> TierVerdicts:
        """What is known of tiers on that state."""
        return self._tiers

    @property
    def view(self) -> LedgerView:
        """The state on which is judged."""
        return self._view

    @cached_property
    def next_due_ms(self) -> int | None:
        """The time of the earliest scheduled call, or None."""
        return next_due_ms(self._view)

    def obstacle(self, transaction: Transaction, now_ms: int) -> str | None:
        """Return why the next block could not contain `transaction`, or None: `already_final`, or as `admit`."""
        used, policy = self._read(transaction)
        time_ms = max(now_ms, self._earliest_ms)
        return (
            misplaced(self._rules, transaction, time_ms)
            or taken(used, transaction)
            or self._unsatisfied(policy, transaction, time_ms)
        )

    def admit(self, transaction: Transaction, now_ms: int) -> int | None:
        """Return None when `transaction` may wait for a block, or the height at which it is final.

        Raise RejectedTransaction for the first of: wrong_network, expired, expiry_too_far, not_for_nodes,
        request_conflict, unknown_principal, policy_unsatisfied, approval_required. A final
        transaction is recognised even after it expired.
        """
        body = transaction.body
        used, policy = self._read(transaction)
        if used is not None and used.tx_id == transaction.tx_id and body.network == self._rules.network:
            return used.height
        time_ms = max(now_ms, self._earliest_ms)
        reason = (
            misplaced(self._rules, transaction, time_ms)
            or taken(used, transaction)
            or self._unsatisfied(policy, transaction, time_ms)
        )
        if reason == "approval_required":
            tier = self._tiers.open_tier(Overlay(self._view), transaction, time_ms)
            raise RejectedTransaction(reason, f"{body.sender}'s tier {tier!r} asks for more signatures", tier=tier)
        if reason == "request_conflict" and used is not None:
            raise request_conflict(body.request_id, used.tx_id)
        if reason is not None:
            raise RejectedTransaction(reason, f"request {body.request_id} of {body.sender} on {body.network}")
        return None

    def _unsatisfied(self, policy: Policy | None, transaction: Transaction, time_ms: int) -> str | None:
        reason = unsatisfied(self._rules.registry, policy, transaction, time_ms)
        if reason is None and policy is not None and policy.tiers:
            tier = self._tiers.open_tier(Overlay(self._view), transaction, time_ms)
            return None if tier is None else "approval_required"
        return reason

    def _read(self, transaction: Transaction) -> tuple[RequestRecord | None, Policy | None]:
        """What the state knows of the transaction's request id, and of its sender."""
        body = transaction.body
        known = self._senders.get(body.sender)
        if known is None:
            if len(self._senders) >= SENDERS_MAX:
                self._senders.clear()
            prefix = request_prefix(body.sender)
            known = (prefix, self._rules.registry.read_policy(Overlay(self._view), body.sender))
            self._senders[body.sender] = known
        key = known[0] + encode_component(body.request_id)
        raw = self._view.get(key)
        return None if raw is None else request_of(key, raw), known[1]
