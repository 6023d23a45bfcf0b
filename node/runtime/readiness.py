"""This node's word that it runs and would go on under a decided change of the members: a transaction of its own.

A change of the list that decides blocks takes effect once a quorum of the new list has said so lately (the quorum
guard of contracts/governance.py). No person says it: a person does not know whether the node runs. So the node
signs, with its voting key, as "<member>/node"; that principal owns nothing and may do nothing else of weight.

Invariant: it is said only by a node that votes, or, coming back, that has caught up; and never on behalf of a key
that is not at hand.
"""

from collections.abc import Awaitable, Callable, Sequence

import structlog

from contracts.governance import Governance, Proposal
from contracts.membership import Membership
from node.client.answers import Submission
from node.errors import HansaError
from node.ledger import Body, Call, KeySignature, Transaction, transaction_signing_bytes
from node.runtime.clock import Clock
from node.runtime.voting_keys import VotingKeys
from node.state import LedgerView, Overlay

RETRY_MS = 10_000
"""What was said and is not on the ledger yet is not said again before."""
EXPIRES_MS = 20_000
"""It is said again before; one that a new key has overtaken goes by itself."""

Submit = Callable[[Sequence[bytes]], Awaitable[list[Submission | HansaError]]]


class Readiness:
    """Says it where a decided proposal waits for it. Runs on the event loop."""

    def __init__(
        self,
        network_id: str,
        member: str,
        keys: VotingKeys,
        clock: Clock,
        submit: Submit,
        may: Callable[[bool], bool],
    ) -> None:
        """`may(own_rotation)` says whether this node would do its part after the change."""
        self._network_id = network_id
        self._member = member
        self._keys = keys
        self._clock = clock
        self._submit = submit
        self._may = may
        # When it was said last, on which head, and while who decided.
        self._said: dict[int, tuple[int, int, tuple[str, ...]]] = {}
        self._log = structlog.get_logger("governance").bind(member=member)

    async def look(self, view: LedgerView) -> None:
        """Say what is due by the state of `view`."""
        state = Overlay(view)
        waiting = Governance.read_waiting(state)
        self._said = {number: said for number, said in self._said.items() if number in dict(waiting)}
        if not waiting:
            return
        rules = Governance.read_rules(state)
        deciding = tuple(name for name, _ in Membership.read_validators(state))
        votes = self._member in deciding
        policy = Membership.read_policy(state, f"{self._member}/node")
        if rules is None or policy is None:
            return
        now_ms = self._clock.now_ms()
        for number, proposal in waiting:
            shown = Governance.read_readiness(state, number, self._member)
            # Half of the time for which it counts: what is late by a few blocks must not lapse.
            fresh = shown is not None and 2 * (view.head.height - shown) < rules.ready_blocks
            said_ms, said_height, said_to = self._said.get(number, (now_ms - RETRY_MS, 0, deciding))
            # What has arrived and grown old is said again at once: on a quick chain that may be soon.
            arrived = shown is not None and shown > said_height
            # Of another list others may be a quorum, and the ledger counts when somebody says so.
            fresh = fresh and said_to == deciding
            if fresh or (now_ms - said_ms < RETRY_MS and not arrived):
                continue
            sign = self._keys.signer(policy.keys[0])
            own_rotation = proposal.kind == "rotate_voting_key" and proposal.subject == self._member
            if sign is None or not self._would_vote(proposal, votes) or not self._may(own_rotation):
                continue
            self._said[number] = now_ms, view.head.height, deciding
            await self._say(number, policy.keys[0], sign, view.head.height)

    def _would_vote(self, proposal: Proposal, votes: bool) -> bool:
        """Whether this member stands in the list after the change."""
        after = proposal.after
        return (
            after.standing == "active" and after.role == "validator" if proposal.subject == self._member else votes
        )

    async def _say(self, number: int, key: bytes, sign: Callable[[bytes], bytes], height: int) -> None:
        time_ms = self._clock.time_ms()
        body = Body(
            network=self._network_id,
            sender=f"{self._member}/node",
            # Said again on the same head it is another request: it expires at another time.
            request_id=f"ready-{number}-{time_ms}",
            expires_at_ms=time_ms + EXPIRES_MS,
            mode="atomic",
            calls=(Call("governance", "ready", {"proposal": number}),),
        )
        unsigned = Transaction.assemble(body, [KeySignature(key, bytes(64))])
        signature = sign(transaction_signing_bytes(unsigned.body_bytes))
        [answer] = await self._submit([Transaction.assemble(body, [KeySignature(key, signature)]).data])
        if isinstance(answer, HansaError):
            self._log.warning("its readiness was not taken", proposal=number, reason=answer.message)
        else:
            self._log.info("says that it is ready", proposal=number, height=height)
