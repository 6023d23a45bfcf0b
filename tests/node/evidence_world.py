"""A one-node ledger of which evidence packs are made: real certificates, and the node's own `Proving`.

Blocks are decided by decree as in `ledger_world`, but each carries the commit votes of all who decide its height,
and tests may appoint other validators from a height on.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from consensus.messages import Certificate, VoteKind, vote_bytes
from node.client import sign
from node.config import MemberConfig, NetworkConfig, Parameters, PrincipalConfig, dump_network
from node.keys import SigningKey
from node.ledger import Call, HeadRecord, Transaction
from node.runtime.clock import Clock
from node.runtime.proving import Proving
from node.state import ExecutedBlock
from node.state_tree import StateTree
from node.store import StoreView
from node.store.view import PAST_BLOCKS_MAX
from tests.node.archive_world import Appointed
from tests.node.ledger_world import BANKS, ENGINE, Ledger

T = TypeVar("T")

VOTING = {bank: SigningKey(f"voting {bank}".encode().ljust(32, b".")) for bank in (*BANKS, "bank-e")}
SIGNING = SigningKey(b"signing bank-a".ljust(32, b"."))


def provable_network(**parameters: int) -> NetworkConfig:
    """Four validators with real keys; bank-a signs with one key and issues USD; a minute of retention."""
    return NetworkConfig(
        "evidence",
        tuple(
            MemberConfig(
                bank, "validator", f"127.0.0.1:{7600 + index}", VOTING[bank].public, bytes((index + 1,)) * 32
            )
            for index, bank in enumerate(BANKS)
        ),
        principals=(PrincipalConfig("bank-a", (SIGNING.public,), 1),),
        parameters=Parameters(**{"state_tree_bits": 8, "retention_ms": 60_000, **parameters}),
        contracts={"settlement": {"currencies": [{"code": "USD", "exponent": 2, "issuer": "bank-a"}]}},
    )


class ProvableLedger(Ledger):
    """A ledger with certificates that anybody can check, and with a `Proving` over it."""

    def __init__(
        self, path: Path, config: NetworkConfig | None = None, *, history_blocks: int = PAST_BLOCKS_MAX
    ) -> None:
        self.appointed = Appointed()
        self.registry = self.appointed  # type: ignore[assignment]
        super().__init__(path, config or provable_network(), history_blocks=history_blocks)
        self.proving = Proving(self.network, ENGINE, self.store, self.between_blocks, Clock())

    async def between_blocks(self, look: Callable[[StoreView, StateTree], T]) -> T:
        """There is nobody here to wait for."""
        return look(self.store.snapshot(), self.executor.tree)

    @property
    def genesis(self) -> bytes:
        """The network definition as an auditor has it."""
        return dump_network(self.network).encode()

    def appoint(self, *banks: str) -> None:
        """From the block after the next one on, these decide."""
        self.appointed.validators = tuple((bank, VOTING[bank].public) for bank in banks)

    def transaction(self, sender: str, *calls: Call, **options: Any) -> Transaction:
        """A transaction that bank-a's key has really signed."""
        body = super().transaction(sender, *calls, **{"keys": [SIGNING.public], **options}).body
        return sign(body, [SIGNING])

    def decide(self, executed: ExecutedBlock) -> HeadRecord:
        """The block is applied with the votes of all who decide it."""
        head = self.store.apply(executed, self.certificate(executed), start_view=0)
        self.executor.advance(executed, self.store.snapshot())
        return head

    def certificate(self, executed: ExecutedBlock) -> Certificate:
        """The votes of all who decide this height for the block."""
        height, digest = executed.height, executed.digest
        message = vote_bytes(self.network.network_id, VoteKind.COMMIT, 0, height, digest)
        votes = tuple(
            (index, VOTING[validator.id].sign(message)) for index, validator in enumerate(self.store.head.members)
        )
        return Certificate(VoteKind.COMMIT, 0, height, digest, votes)
