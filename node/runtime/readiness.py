"""This node's word that it runs and would go on under a decided change of the members: a transaction of its own.

A change of the list that decides blocks takes effect once a quorum of the new list has said so lately (the quorum
guard of contracts/governance.py). No person says it: a person does not know whether the node runs. So the node
signs, with its voting key, as "<member>/node"; that principal calls nothing else.

Invariant: it is said only by a node that votes, or, coming back, that has caught up; and never on behalf of a key
that is not at hand.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import structlog

from contracts.governance import (
    CONTRACT_SUBJECT,
    OWN_KINDS,
    Governance,
    Proposal,
    heard_for,
    lasting_blocks,
)
from contracts.lifecycle import Target
from contracts.membership import Membership
from node.client.answers import Submission
from node.errors import HansaError
from node.ledger import Body, Call, KeySignature, Transaction, transaction_signing_bytes
from node.runtime.clock import Clock
from node.runtime.voting_keys import VotingKeys
from node.state import LedgerView, Overlay

RETRY_MS = 10_000
"""What was said and is not on the ledger yet is not said again before."""
APART_MS = 1_000
"""Nothing is said sooner after the last word, however fast blocks come."""
EXPIRES_MS = 20_000
"""It is said again before; one that a new key has overtaken goes by itself."""
CALLS_MAX = 16
"""For so many changes it is said in one transaction."""

Submit = Callable[[Sequence[bytes]], Awaitable[list[Submission | HansaError]]]


class Said(NamedTuple):
    """When it was said last of a proposal, on which head, and while who decided."""

    time_ms: int
    height: int
    deciding: tuple[str, ...]


class Readiness:
    """Says it where a decided proposal waits for it. Runs on the event loop."""

    def __init__(
        self,
        network_id: str,
        member: str,
        keys: VotingKeys,
        tls_keys: frozenset[bytes],
        clock: Clock,
        submit: Submit,
        may: Callable[[bool], bool],
        has: Callable[[str, int], bytes | None],
    ) -> None:
        """`may(own_key)` says whether this node would do its part after the change, or has a new key of its own.

        `has(contract, version)` gives the digest of that version's sources here (None: it is not here).

        `tls_keys` are those at hand.
        """
        self._network_id = network_id
        self._member = member
        self._keys = keys
        self._tls_keys = tls_keys
        self._clock = clock
        self._submit = submit
        self._may = may
        self._has = has
        self._said: dict[int, Said] = {}
        self._last_ms: int | None = None
        self._log = structlog.get_logger("governance").bind(member=member)

    async def look(self, view: LedgerView) -> None:
        """Say what is due by the state of `view`."""
        state = Overlay(view)
        waiting = Governance.read_waiting(state, view.head.time_ms)
        self._said = {number: said for number, said in self._said.items() if number in dict(waiting)}
        policy = Membership.read_policy(state, f"{self._member}/node")
        now_ms, height = self._clock.now_ms(), view.head.height
        early = self._last_ms is not None and now_ms - self._last_ms < APART_MS
        sign = None if policy is None else self._keys.signer(policy.keys[0])
        if not waiting or policy is None or sign is None or early:
            return
        rules, rows = Governance.read_rules(state), Membership.read_rows(state)
        if rules is None:
            return
        deciding = tuple(row.id for row in rows if row.votes)
        due: list[int] = []
        others: list[int] = []
        for number, proposal in waiting:
            shown = Governance.read_readiness(state, number, self._member)
            said = self._said.get(number)
            # What has arrived and grown old is said again at once: on a quick chain that may be soon.
            arrived = said is None or (shown is not None and shown > said.height)
            lost = said is not None and now_ms - said.time_ms >= RETRY_MS
            heard = heard_for(rows, proposal)
            if not (arrived or lost) or not self._concerns(proposal, heard):
                continue
            # Half of the time for which it counts: what is late by a few blocks must not lapse.
            fresh = shown is not None and 2 * (height - shown) < lasting_blocks(rules, len(heard))
            # Of another list others may be a quorum, and the ledger counts when somebody says so.
            fresh = fresh and (said is None or said.deciding == deciding)
            (others if fresh else due).append(number)
        if due:
            # One word for all: each makes a block, and with each block the words of all grow older.
            numbers = [*due, *others][:CALLS_MAX]
            self._said.update(dict.fromkeys(numbers, Said(now_ms, height, deciding)))
            self._last_ms = now_ms
            await self._say(numbers, policy.keys[0], sign, height)

    def _concerns(self, proposal: Proposal, heard: tuple[str, ...]) -> bool:
        """Whether the ledger waits for this member's word on it, and the member can give it."""
        own_key = proposal.kind in OWN_KINDS and proposal.subject == self._member
        if not own_key and self._member not in heard:
            return False
        if proposal.code is not None and not self._can_run(proposal, proposal.code):
            return False
        if own_key and proposal.kind == "rotate_tls_key" and proposal.after.tls_key not in self._tls_keys:
            return False
        return self._may(own_key)

    def _can_run(self, proposal: Proposal, code: Target) -> bool:
        """Whether this node has exactly what the proposal makes of the contract; to stop it nothing is needed."""
        contract = proposal.subject.removeprefix(CONTRACT_SUBJECT)
        return proposal.kind == "deactivate_contract" or self._has(contract, code.version) == code.source

    async def _say(self, numbers: list[int], key: bytes, sign: Callable[[bytes], bytes], height: int) -> None:
        time_ms = self._clock.time_ms()
        body = Body(
            network=self._network_id,
            sender=f"{self._member}/node",
            # Said again on the same head it is another request: it expires at another time.
            request_id=f"ready-{numbers[0]}-{time_ms}",
            expires_at_ms=time_ms + EXPIRES_MS,
            mode="each",
            calls=tuple(Call("governance", "ready", {"proposal": number}) for number in numbers),
        )
        unsigned = Transaction.assemble(body, [KeySignature(key, bytes(64))])
        signature = sign(transaction_signing_bytes(unsigned.body_bytes))
        [answer] = await self._submit([Transaction.assemble(body, [KeySignature(key, signature)]).data])
        if isinstance(answer, HansaError):
            self._log.warning("its readiness was not taken", proposals=numbers, reason=answer.message)
        else:
            self._log.info("says that it is ready", proposals=numbers, height=height)
