"""A certified block that this node executes otherwise than the network: what it finds out about it, and remembers.

Invariant: from the moment it is noticed until the block is applied here with the certified roots, this node signs
nothing; it stays at the block before, whose state is certified, and serves reads marked as diverged. The finding is
kept on disk and goes with the batch that applies its block, so a release that executes alike clears it by itself.
Nothing wrong was ever signed (a vote follows an equal execution), and silence forgets no vote: clearing it needs no
wait beyond the one of every start.
"""

import asyncio
from collections.abc import Callable

import structlog

from consensus.codec import decode, encode
from contracts.state_keys import StateKeyError, decode_key
from node.client.answers import DivergenceAnswer
from node.errors import HansaError, InvalidBlock, InvalidFrame
from node.executor import Claim, Difference
from node.ledger import CertifiedBlock
from node.peers import Transport
from node.runtime.chain import Chain
from node.runtime.clock import Clock
from node.runtime.threads import Threads
from node.store import DivergenceRecord, Store
from node.sync import fetch_execution
from node.wording import agreeing, counted

PAUSE_S = 1.0
PAUSE_S_MAX = 30.0
DIFFERENCE_SIZE_MAX = 64 * 1024
NOTHING_TO_COMPARE = Difference(None, None, "", "", "", "", None, None, None, 0, False)


class Divergence:
    """The one divergence that this node may have. Runs on the event loop."""

    def __init__(
        self,
        store: Store,
        threads: Threads,
        transport: Transport,
        clock: Clock,
        on_change: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """What the disk remembers holds from the start; `on_change` is called whenever that changes."""
        self._store = store
        self._threads = threads
        self._transport = transport
        self._clock = clock
        self._on_change = on_change
        self._on_failure = on_failure
        self._record = store.divergence()
        self._task: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("divergence")

    @property
    def height(self) -> int:
        """The height of the block that is executed otherwise here; 0 where there is none."""
        return 0 if self._record is None else self._record.height

    @property
    def sentence(self) -> str:
        """What is known of it, for people; empty where there is none."""
        return "" if self._record is None else _sentence(self._record)

    def answer(self) -> DivergenceAnswer | None:
        """What is known of it, for programs; None where there is none."""
        return None if self._record is None else _answer(self._record)

    def found(self, block: CertifiedBlock, error: InvalidBlock, chain: Chain) -> None:
        """This node signs nothing from now on; what exactly differs is found out with the others' proof."""
        height = block.body.header.height
        if self._task is not None or height != chain.head.height + 1:
            return
        known, reason = self._record, str(error)[:500]
        finding = (height, block.certificate.digest, error.code, reason)
        if known is None or (known.height, known.digest, known.code, known.reason) != finding:
            # What another release found out about the same block is not what this one does otherwise.
            known = DivergenceRecord(height, block.certificate.digest, self._clock.time_ms(), error.code, reason)
            self._record = known
            self._on_change()
        self._log.critical(
            "this node computes another outcome than the network and stops voting",
            height=height,
            code=known.code,
            reason=known.reason,
        )
        self._task = asyncio.get_running_loop().create_task(self._investigate(block, known, chain))
        self._task.add_done_callback(self._finished)

    def on_applied(self, height: int) -> None:
        """The block at `height` is applied: this node agrees with the network at least so far."""
        if self._record is not None and height >= self._record.height:
            self._log.warning("agrees with the network again", height=height)
            self._record = None
            if self._task is not None:
                # What it would still find out is over, and the next divergence needs its place.
                self._task.cancel()
                self._task = None
            self._on_change()

    async def close(self) -> None:
        """Nothing is asked or written any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _investigate(self, block: CertifiedBlock, record: DivergenceRecord, chain: Chain) -> None:
        """Store the finding; then ask peers for their account of the block until one of them proves it."""
        await self._threads.write(self._store.put_divergence, record)
        pause_s = PAUSE_S
        while record.difference is None:
            best: tuple[str, Difference] | None = None
            for peer in sorted(self._transport.connected):
                answer = await self._ask(peer, block, chain)
                if answer is not None:
                    found, whole = answer
                    # Receipts alone name no key: whoever says that it keeps no more does not have the last word.
                    best = (peer, found) if whole or best is None else best
                    if whole:
                        break
            if best is not None:
                peer, found = best
                record = DivergenceRecord(
                    record.height,
                    record.digest,
                    record.found_time_ms,
                    record.code,
                    record.reason,
                    peer,
                    encode(found),
                )
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)
        await self._threads.write(self._store.put_divergence, record)
        self._record = record
        self._log.critical("what this node computes otherwise", height=record.height, found=_sentence(record))
        self._on_change()

    async def _ask(self, peer: str, block: CertifiedBlock, chain: Chain) -> tuple[Difference, bool] | None:
        """What differs, and whether the peer proved the written values too; None: it proved nothing."""
        height = block.body.header.height
        try:
            receipts, writes = await fetch_execution(self._transport, peer, height)
            return await chain.compare(block, Claim(receipts, writes)), writes is not None
        except InvalidBlock as error:
            # This node's rules forbid the block altogether: there is nothing to compare, and the error names it.
            self._log.info("the block cannot be executed here at all", height=height, reason=str(error))
            return NOTHING_TO_COMPARE, True
        except HansaError as error:
            level = self._log.warning if isinstance(error, InvalidFrame) else self._log.info
            level("no proof of the block from this peer", peer=peer, height=height, reason=str(error))
            return None

    def _finished(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)


def _difference(record: DivergenceRecord) -> Difference | None:
    if record.difference is None:
        return None
    found: Difference = decode(record.difference, Difference, size_max=DIFFERENCE_SIZE_MAX)
    return found


def _key_parts(key: bytes | None) -> tuple[str | int, ...]:
    """A state key for people and JSON: bytes in hex."""
    if key is None:
        return ()
    try:
        parts = decode_key(key)
    except StateKeyError:
        return (key.hex(),)
    return tuple(part.hex() if isinstance(part, bytes) else part for part in parts)


def _answer(record: DivergenceRecord) -> DivergenceAnswer:
    found = _difference(record) or NOTHING_TO_COMPARE
    return DivergenceAnswer(
        height=record.height,
        digest=record.digest.hex(),
        code=record.code,
        since_time_ms=record.found_time_ms,
        sentence=_sentence(record),
        compared_with=record.compared_with or None,
        tx_id=None if found.tx_id is None else found.tx_id.hex(),
        position=found.position,
        contract=found.contract or None,
        method=found.method or None,
        our_code=found.our_code or None,
        their_code=found.their_code or None,
        key=_key_parts(found.key),
        our_value_hash=None if found.ours is None else found.ours.hex(),
        their_value_hash=None if found.theirs is None else found.theirs.hex(),
        differing_keys=found.keys,
        exact=found.exact,
    )


def _sentence(record: DivergenceRecord) -> str:
    found = _difference(record)
    start = f"height {record.height}: {record.code}"
    if found is None:
        return f"{start}; a peer's proof is being fetched to name the transaction and the key"
    if found.position is None and found.key is None:
        return f"{start}; {record.reason}"
    parts = [start]
    if found.tx_id is not None:
        which = "first" if found.exact else "at the latest"
        parts.append(f"{which} in {found.contract}.{found.method} of transaction {found.tx_id.hex()[:16]}")
    if found.our_code:
        parts.append(f"outcome {found.our_code} here, {found.their_code} there")
    if found.key is not None:
        key = "/".join(str(part) for part in _key_parts(found.key))
        ours, theirs = (_short(value) for value in (found.ours, found.theirs))
        differ = f"{counted(found.keys, 'key')} {agreeing(found.keys, 'differs', 'differ')}"
        parts.append(f"key {key} holds {ours} here, {theirs} there ({differ})")
    parts.append(f"proven by {record.compared_with}")
    return "; ".join(parts)


def _short(value: bytes | None) -> str:
    return "nothing" if value is None else value.hex()[:12]
