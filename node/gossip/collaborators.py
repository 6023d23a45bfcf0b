"""What gossip needs of the rest of the node, and the name it gives to bytes before it trusts them."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from enum import Enum
from typing import Protocol, TypeAlias

from node.ledger import sha256
from node.wire import FetchTransactions, TransactionBatch, TransactionIds, Transactions


class Verdict(Enum):
    """What the intake says of one transaction from a peer."""

    ACCEPTED = "accepted"
    """It waits in this node's mempool, now or already before."""
    REFUSED = "refused"
    """Not now and not here (expired, unknown sender, final already); nobody's fault: states differ by a block."""
    LATER = "later"
    """No room: it may come again at once."""
    INVALID = "invalid"
    """Never valid anywhere (malformed, other network, wrong signature): no honest peer passes it on."""


class Pool(Protocol):
    """What gossip reads of the mempool and of recent blocks."""

    def body(self, wire_id: bytes) -> bytes | None:
        """The raw bytes of a transaction at hand, waiting or recently final."""

    def missing(self, wire_ids: Sequence[bytes]) -> list[bytes]:
        """Those of `wire_ids` that do not wait for a block, in their order."""

    def waiting(self, age_ms_min: int, first: int, limit: int) -> Sequence[bytes]:
        """The wire ids of transactions that have waited at least so long: `limit` from the `first` oldest on."""


class Transport(Protocol):
    """The links to peers, as gossip uses them."""

    @property
    def connected(self) -> Iterable[str]:
        """The peers with a link now."""

    def send(self, peer: str, message: TransactionIds | Transactions) -> bool:
        """Queue `message`; False when there is no link or no room."""

    def broadcast(self, message: TransactionBatch) -> None:
        """Queue `message` for every connected peer."""

    async def request(self, peer: str, message: FetchTransactions, timeout_s: float) -> object:
        """The peer's answer; raises HansaError when none comes in time."""


Intake: TypeAlias = Callable[[str, Sequence[bytes]], Awaitable[Sequence[Verdict]]]
"""Given the peer and the raw bytes of a chunk: decode, verify signatures, admit; one verdict each."""


def wire_id_of(data: bytes) -> bytes:
    """The name of a transaction's raw bytes, known before they are decoded or trusted."""
    return sha256(b"hansa/wire" + data)
