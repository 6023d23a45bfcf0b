"""Where transactions and payloads are found: in the mempool, in recent blocks, or at those who have them."""

import asyncio
from collections.abc import Callable, Collection, Sequence

from node.errors import HansaError, InvalidBlock, RejectedTransaction
from node.executor import Executor
from node.gossip import Gossip
from node.ledger import Transaction, transaction_signing_bytes
from node.mempool import Mempool, Work
from node.peers import Transport
from node.runtime.clock import Clock
from node.runtime.threads import Threads
from node.sync import fetch_payload


class Bodies:
    """Transactions by name, verified once; the candidates for a block. Used on the event loop alone."""

    def __init__(
        self,
        mempool: Mempool,
        executor: Executor,
        threads: Threads,
        clock: Clock,
        report: Callable[[str, HansaError], None],
    ) -> None:
        """`report` is told of peers at fault."""
        self._mempool = mempool
        self._executor = executor
        self._threads = threads
        self._clock = clock
        self._report = report
        self._gossip: Gossip | None = None
        self._transport: Transport | None = None
        self._chain_body: Callable[[bytes], bytes | None] | None = None

    def connect(self, gossip: Gossip, transport: Transport, chain_body: Callable[[bytes], bytes | None]) -> None:
        """Missing bodies are fetched through `gossip` and `transport` from now on."""
        self._gossip = gossip
        self._transport = transport
        self._chain_body = chain_body

    # --- what gossip reads (its Pool) ------------------------------------------------------------------------

    def body(self, wire_id: bytes) -> bytes | None:
        """The raw bytes of a transaction at hand: waiting, recently final, or in a block in work."""
        data = self._mempool.data(wire_id)
        if data is None and self._chain_body is not None:
            data = self._chain_body(wire_id)
        return data

    def missing(self, wire_ids: Sequence[bytes]) -> list[bytes]:
        """Those of `wire_ids` that do not wait for a block, in their order."""
        return self._mempool.missing(wire_ids)

    def waiting(self, age_ms_min: int, first: int, limit: int) -> Sequence[bytes]:
        """The wire ids of transactions that have waited at least so long: `limit` from the `first` oldest on."""
        return self._mempool.wire_ids(self._clock.now_ms(), age_ms_min, first, limit)

    # --- what the chain needs --------------------------------------------------------------------------------

    def candidates(self) -> list[Transaction]:
        """The transactions that a builder may choose from, in its order."""
        return self._mempool.candidates(self._executor.parameters.block_transactions_max)

    def waiting_count(self) -> int:
        """How many transactions wait."""
        return len(self._mempool)

    def work(self) -> Work:
        """Whether a non-empty block could be built now, and how often the oldest was passed over."""
        return self._mempool.work(lambda item: self._executor.obstacle(item, self._clock.time_ms()) is None)

    async def transactions(
        self, wire_ids: Sequence[bytes], holders: Sequence[str], timeout_s: float
    ) -> list[Transaction] | None:
        """The transactions of a proposal, verified, in order; None when some were not found in time.

        Raise InvalidBlock when one of them can never be valid: its name is that of bytes nobody may propose.
        """
        found = {wire_id: self._mempool.get(wire_id) for wire_id in wire_ids}
        missing = [wire_id for wire_id, transaction in found.items() if transaction is None]
        if missing and self._gossip is not None:
            bodies = await self._gossip.fetch(missing, holders, timeout_s)
            try:
                fetched = [Transaction.decode(data) for data in bodies.values()]
                fresh = [item for item in fetched if not self._mempool.is_waiting(item.wire_id)]
                await self.verify(fresh)
            except RejectedTransaction as error:
                # Not its words: they may quote the transaction, and refusals are shown and go into diagnostics.
                raise InvalidBlock("block_content_differs", f"{error.code}: {error.entry.cause}") from error
            found.update({transaction.wire_id: transaction for transaction in fetched})
        ordered = [transaction for wire_id in wire_ids if (transaction := found[wire_id]) is not None]
        return ordered if len(ordered) == len(wire_ids) else None

    async def payload(
        self, height: int, digest: bytes, holders: Sequence[str], timeout_s: float, refused: Collection[bytes]
    ) -> bytes | None:
        """The payload of the block `digest` from one of `holders`, or None; none of `refused`, which are wrong."""
        if self._transport is None:
            return None
        return await fetch_payload(self._transport, height, digest, holders, timeout_s, self._report, refused)

    async def verified(self, data: Sequence[bytes]) -> list[Transaction]:
        """The transactions with these bytes, in order; those that wait here have been verified before.

        Raise RejectedTransaction for the first that is malformed or has a bad signature.
        """
        decoded, items = await asyncio.to_thread(_opened, data)
        # What waits under a transaction's wire id is the very same, for the name covers the signatures.
        fresh = [item for item in decoded if not self._mempool.is_waiting(item.wire_id)]
        if len(fresh) < len(decoded) or not all(await self._threads.verify(items)):
            await self.verify(fresh)
        return decoded

    async def verify(self, transactions: Sequence[Transaction]) -> None:
        """Every signature of `transactions` verifies; raise RejectedTransaction("bad_signature") otherwise."""
        verdicts = await self.verdicts(transactions)
        for transaction, good in zip(transactions, verdicts, strict=True):
            if not good:
                raise RejectedTransaction("bad_signature", f"transaction {transaction.tx_id.hex()}")

    async def verdicts(self, transactions: Sequence[Transaction]) -> list[bool]:
        """Whether all signatures of each transaction verify."""
        good = await self._threads.verify(_signatures(transactions))
        verdicts: list[bool] = []
        start = 0
        for transaction in transactions:
            end = start + len(transaction.signatures)
            verdicts.append(all(good[start:end]))
            start = end
        return verdicts


def _opened(data: Sequence[bytes]) -> tuple[list[Transaction], list[tuple[bytes, bytes, bytes]]]:
    """The transactions with these bytes, and what there is to verify of them: for a thread."""
    decoded = list(map(Transaction.decode, data))
    return decoded, _signatures(decoded)


def _signatures(transactions: Sequence[Transaction]) -> list[tuple[bytes, bytes, bytes]]:
    """Each signature of `transactions`, in order: (key, message, signature)."""
    items: list[tuple[bytes, bytes, bytes]] = []
    for transaction in transactions:
        message = transaction_signing_bytes(transaction.body_bytes)
        for item in transaction.signatures:
            items.append((item.key, message, item.signature))
    return items
