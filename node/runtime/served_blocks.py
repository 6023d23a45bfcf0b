"""What this node serves to peers that catch up: its decided blocks, what they did, and payloads at hand."""

from collections.abc import Sequence

from consensus.codec import encode
from node.errors import NotFound
from node.runtime.chain import Chain
from node.store import Store


class ServedBlocks:
    """node.sync's `Archive`, over the store and the chain."""

    def __init__(self, store: Store, chain: Chain) -> None:
        self._store = store
        self._chain = chain

    @property
    def head_height(self) -> int:
        """The height of the last applied block."""
        return self._chain.head.height

    @property
    def first_height(self) -> int:
        """The lowest height from which on every block is here."""
        return self._store.first_block

    def certified_block(self, height: int) -> bytes | None:
        """The encoded ledger.CertifiedBlock of `height`; None when it is not here (yet, or any more)."""
        try:
            return encode(self._store.block(height))
        except NotFound:
            return None

    def execution(self, height: int) -> tuple[Sequence[bytes], Sequence[tuple[bytes, bytes | None]] | None] | None:
        """What the block at `height` did; None when it is not here."""
        try:
            found = self._store.snapshot().execution(height)
        except NotFound:
            return None
        return found.receipts, found.writes

    def payload(self, height: int, digest: bytes) -> bytes | None:
        """The payload of the block `digest` proposed at `height`, if it is at hand."""
        return self._chain.payload(height, digest)
