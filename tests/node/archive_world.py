"""A one-node ledger that can be archived and pruned: real signatures, members that change, short memories."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from consensus.messages import Certificate, VoteKind, vote_bytes
from contracts.membership import Membership
from contracts.policies import Policy
from node.config import NetworkConfig
from node.keys import SigningKey
from node.ledger import Call, HeadRecord, KeySignature, Transaction, transaction_signing_bytes
from node.state import ExecutedBlock, Overlay
from tests.node.ledger_world import BANKS, Ledger, network

KEYS = {bank: SigningKey(bank.encode().ljust(32, b"!")) for bank in (*BANKS, "bank-e")}
SIGNING = {bank: SigningKey(bank.encode().ljust(32, b"?")) for bank in BANKS}
EXPIRY_MS = 1_500
RETENTION_MS = 1_000


def signed_network(name: str = "archived", **parameters: int) -> NetworkConfig:
    """The test network, its validators and roots with keys that can sign; request ids are soon forgotten."""
    config = network(name, retention_ms=RETENTION_MS, **parameters)
    return msgspec.structs.replace(
        config,
        members=tuple(
            msgspec.structs.replace(member, voting_key=KEYS[member.id].public) for member in config.members
        ),
        principals=tuple(
            msgspec.structs.replace(principal, keys=(SIGNING[principal.id].public,))
            for principal in config.principals
            if principal.id in SIGNING
        ),
    )


class Appointed:
    """Says who validates: as in genesis until a test appoints others."""

    def __init__(self) -> None:
        self.validators: tuple[tuple[str, bytes], ...] | None = None

    def read_policy(self, state: Overlay, principal: str) -> Policy | None:
        """The contract's own."""
        return Membership.read_policy(state, principal)

    def policy_key(self, principal: str) -> bytes:
        """The contract's own."""
        return Membership.policy_key(principal)

    def read_policy_at(self, state: Overlay, key: bytes) -> Policy | None:
        """The contract's own."""
        return Membership.read_policy_at(state, key)

    def unmet_tier(
        self, state: Overlay, sender: str, calls: Sequence[Call], signers: Sequence[bytes], time_ms: int
    ) -> tuple[str | None, int]:
        """The contract's."""
        return Membership.unmet_tier(state, sender, calls, signers, time_ms)

    def needs_keys_in_force(self, sender: str, calls: Sequence[Call]) -> bool:
        """The contract's."""
        return Membership.needs_keys_in_force(sender, calls)

    def decides_tiers(self, key: bytes) -> bool:
        """The contract's."""
        return Membership.decides_tiers(key)

    def only_call(self, principal: str) -> tuple[str, str] | None:
        """The contract's."""
        return Membership.only_call(principal)

    def read_limits(self, state: Overlay) -> tuple[tuple[str, int], ...]:
        """The contract's."""
        return Membership.read_limits(state)

    def read_validators(self, state: Overlay) -> tuple[tuple[str, bytes], ...]:
        """Those appointed, or the contract's."""
        return Membership.read_validators(state) if self.validators is None else self.validators


class ArchivedLedger(Ledger):
    """As Ledger, with signatures of the banks' roots, certificates of all who decide, requests that expire soon."""

    def __init__(self, path: Path, config: NetworkConfig | None = None, **options: Any) -> None:
        self.appointed = Appointed()
        self.registry = self.appointed  # type: ignore[assignment]
        super().__init__(path, config or signed_network(), **options)

    def appoint(self, *banks: str) -> None:
        """The next block makes these the validators."""
        self.appointed.validators = tuple((bank, KEYS[bank].public) for bank in banks)

    def transaction(
        self, sender: str, *calls: Call, keys: Sequence[bytes] | None = None, **options: Any
    ) -> Transaction:
        """A transaction that the sender's root has signed."""
        options.setdefault("expires_at_ms", self.now_ms + EXPIRY_MS)
        drawn = super().transaction(sender, *calls, keys=keys, **options)
        key = SIGNING[sender]
        signature = key.sign(transaction_signing_bytes(drawn.body_bytes))
        return Transaction.assemble(drawn.body, [KeySignature(key.public, signature)])

    def decide(self, executed: ExecutedBlock) -> HeadRecord:
        """The block is applied with a certificate that proves it."""
        head = self.store.apply(executed, self.certificate(executed), start_view=0)
        self.executor.advance(executed, self.store.snapshot())
        return head

    def certificate(self, executed: ExecutedBlock) -> Certificate:
        """The votes of all who decide this height."""
        message = vote_bytes(executed.header.network, VoteKind.COMMIT, 0, executed.height, executed.digest)
        signatures = tuple(
            (index, KEYS[item.id].sign(message)) for index, item in enumerate(self.store.head.members)
        )
        return Certificate(VoteKind.COMMIT, 0, executed.height, executed.digest, signatures)

    def empty(self, count: int) -> None:
        """So many more blocks, without transactions."""
        for _ in range(count):
            executed = self.build(allow_empty=True)
            assert executed is not None
            self.decide(executed)
