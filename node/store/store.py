"""The node's disk: blocks, state, consensus records and the journal of accepted transactions.

Everything a block does is one synced batch, so after a crash the head is h or h - 1 and nothing between. A body
lies under its digest since it was voted for; the batch of its height only refers to it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from consensus.amnesia import HEIGHT_MAX
from consensus.codec import encode
from consensus.effects import Memory, Record, ViewChangeRecord, VoteRecord
from consensus.messages import Certificate, Evidence
from node.errors import ConfigError, StoreError
from node.ledger import BlockBody, CertifiedBlock, Ending, EventData, Header, HeadRecord, Receipt
from node.state import ExecutedBlock
from node.store import promises
from node.store.database import Database, LevelDatabase
from node.store.forgetting import forget_votes
from node.store.layout import (
    FORMAT,
    META_ABSTAIN,
    META_DIVERGED,
    META_ENDINGS,
    META_FORMAT,
    META_HEAD,
    META_NETWORK,
    META_NEVER_VOTED,
    META_SILENCED,
    META_VOTED,
    META_VOTING_KEY,
    DivergenceRecord,
    EvidenceRecord,
    ReceiptsRecord,
    RecoveryPromise,
    UndoRecord,
    body_key,
    number,
    place,
    record_slot,
    topic_prefix,
)
from node.store.log_tail import lost_memory, memory_settled
from node.store.pruning import Pruning
from node.store.reading import (
    read_block,
    read_body,
    read_first,
    read_head,
    read_header,
    read_height,
    read_receipt,
    read_receipts,
    read_transaction_location,
    stored,
)
from node.store.signed_file import SignedFile, settle
from node.store.tree_rows import staged_rows
from node.store.view import PAST_BLOCKS_MAX, StoreView

EVIDENCE_MAX = 1_000
ENDINGS_MAX = 100_000
ENDED_BYTES_MAX = 16 * 1024
"""A larger transaction that ends without becoming final is not kept: with all endings that is 1.6 GB at most."""

_Rows = list[tuple[bytes, bytes | None]]


class Store:
    """One data directory, held by this process alone. Calls that write must not overlap."""

    def __init__(
        self,
        path: Path,
        network: str,
        genesis_hash: bytes,
        history_blocks: int = PAST_BLOCKS_MAX,
        open_database: Callable[[Path], Database] = LevelDatabase,
        signed: Path | None = None,
    ) -> None:
        """Open or create the store of `network` at `path`; undo records of `history_blocks` blocks are kept.

        `signed`: the file that holds the member's promises too (signed_file.py); None: nobody signs with this one.
        Raise ConfigError for a directory that is in use, of another network or of an unknown format, StoreError
        for one that is damaged or on a failing disk.
        """
        self._path = path
        self._history_blocks = history_blocks
        self._database = open_database(path)
        self._signed = None if signed is None else SignedFile(signed, network, genesis_hash)
        try:
            self._claim(network, genesis_hash)
            if lost_memory(path):
                # Its last record may be among what cannot be read.
                forget_votes(self._database)
                memory_settled(path)
            if self._signed is not None:
                settle(self._database, self._signed)
            self._head = read_head(self._database, read_height(self._database)) if self.initialised else None
            self._journaled = {key[1:] for key, _ in self._database.scan(b"p", b"q")}
            self._records: dict[bytes, tuple[int, Record]] = {}
            self._endings = int.from_bytes(self._database.get(META_ENDINGS) or b"", "big")
            self._sequence = 0
            self._voting_key = b""
            for key, value in self._database.scan(b"c", b"d"):
                sequence = int.from_bytes(value[:8], "big")
                self._records[key] = (sequence, stored(value[8:], Record, "consensus record"))  # type: ignore[arg-type]
                self._sequence = max(self._sequence, sequence)
            # A snapshot may have led past the block of a recovery.
            if self._head is not None and (noted := promises.passed(self.recovery_promises(), self._head.height)):
                self._database.write(noted)
        except BaseException:
            self._database.close()
            raise

    def _claim(self, network: str, genesis_hash: bytes) -> None:
        """The directory is marked as this network's."""
        marker = encode((network, genesis_hash))
        known = self._database.get(META_FORMAT)
        if known is None:
            if next(self._database.scan(b"", b"\xff"), None) is not None:
                raise StoreError("store_corrupt", f"{self._path} has entries but no format marker")
            self._database.write([(META_FORMAT, FORMAT), (META_NETWORK, marker)])
        elif known != FORMAT:
            raise ConfigError("data_format_unknown", f"{self._path} has format {known[:16]!r}")
        elif self._database.get(META_NETWORK) != marker:
            raise ConfigError("data_of_another_network", f"{self._path} does not belong to network {network}")

    @property
    def initialised(self) -> bool:
        """Whether genesis was applied."""
        return self._database.get(META_HEAD) is not None

    def initialise(self, genesis: ExecutedBlock, never_voted: bool) -> None:
        """Genesis is applied. `never_voted` says that this member's key is new: only `hansa init` may know that."""
        if self.initialised:
            raise ValueError("genesis is applied already")
        header = genesis.header
        head = HeadRecord(0, genesis.digest, header.time_ms, header.state_root, None, 0, genesis.members.validators)
        rows = [*self._state_rows(genesis), (b"h" + number(0), encode(head)), (META_HEAD, number(0))]
        if never_voted and not self.recovery_promises():
            rows.append((META_NEVER_VOTED, b"1"))
        self._database.write(rows)
        self._head = head

    # --- blocks ------------------------------------------------------------------------------------------

    @property
    def head(self) -> HeadRecord:
        """The last applied block (height 0: genesis)."""
        if self._head is None:
            raise StoreError("store_corrupt", f"{self._path} holds no genesis")
        return self._head

    def apply(self, executed: ExecutedBlock, certificate: Certificate, start_view: int) -> HeadRecord:
        """Return the new head; the block and all that follows from it are durable, in one synced batch.

        `start_view` is the view in which the next height starts. ValueError when the block is not the next one or
        the certificate names another; StoreError when the disk refused, and then nothing has changed.
        """
        head, header = self.head, executed.header
        if header.height != head.height + 1 or header.parent != head.digest:
            raise ValueError(f"block {header.height} does not follow the head {head.height}")
        if (certificate.height, certificate.digest) != (header.height, executed.digest):
            raise ValueError(f"the certificate is not that of block {header.height}")
        height = number(header.height)
        following = HeadRecord(
            header.height,
            executed.digest,
            header.time_ms,
            header.state_root,
            certificate,
            start_view,
            executed.members.validators,
        )
        rows = self._state_rows(executed)
        if self._database.get(b"w" + height + executed.digest) is None:
            rows.append((body_key(header.height, executed.digest), encode(executed.body)))
        rows.append((b"r" + height, encode(ReceiptsRecord(executed.scheduled, executed.receipts))))
        rows.append((b"u" + height, encode(UndoRecord(tuple(executed.writes.before.items())))))
        if header.height > self._history_blocks:
            rows.append((b"u" + number(header.height - self._history_blocks), None))
        places = [place(position) for position in range(len(executed.tx_ids))]
        # An entry of `x` is what layout.location says; the height's bytes are made once.
        rows += [(b"x" + tx_id, height + at) for tx_id, at in zip(executed.tx_ids, places, strict=True)]
        rows += [
            (topic_prefix(topic) + height, b"".join([places[position] for position in positions]))
            for topic, positions in executed.topics.items()
        ]
        final = [tx_id for tx_id in executed.tx_ids if tx_id in self._journaled]
        rows += [(b"p" + tx_id, None) for tx_id in final]
        pruned = [key for key in self._records if key[1:9] <= height]
        rows += [(key, None) for key in pruned]
        # From this height on: lower ones went with their blocks, and LevelDB would walk over all their graves.
        for key, _ in self._database.scan(b"w" + height, b"w" + number(header.height + 1)):
            rows.append((key, None))
            if key[9:] != executed.digest:
                rows.append((b"b" + key[1:], None))
        signed = self.recovery_promises()
        if any(item.digest == executed.digest and not item.passed for item in signed):
            rows += self._regained()
        rows += promises.passed(signed, header.height)
        if self._database.get(META_DIVERGED) is not None:
            # Whoever applies a block agrees with the network again: nothing beyond a divergence is ever applied.
            rows.append((META_DIVERGED, None))
        if following.validators != head.validators:
            rows.append((b"l" + height, b""))
        rows += [(b"h" + height, encode(following)), (META_HEAD, height)]
        self._database.write(rows)
        self._head = following
        self._journaled.difference_update(final)
        for key in pruned:
            del self._records[key]
        return following

    def replace_certificate(self, certificate: Certificate) -> None:
        """The block that is here at the certificate's height has this certificate in the place of its former one.

        ValueError where another block is here; NotFound where none is.
        """
        record = read_head(self._database, certificate.height)
        if record.digest != certificate.digest:
            raise ValueError(f"the certificate is not that of block {record.height}")
        start_view = max(record.start_view, certificate.view)
        proven = msgspec.structs.replace(record, certificate=certificate, start_view=start_view)
        self._database.write([(b"h" + number(record.height), encode(proven))])
        if record.height == self.head.height:
            self._head = proven

    def _state_rows(self, executed: ExecutedBlock) -> _Rows:
        """Return the rows of the write set, of the tree and of the request index."""
        rows: _Rows = [(b"s" + key, value) for key, value in executed.writes.after.items()]
        rows += staged_rows(executed.tree)
        rows += [(b"q" + number(expires_at_ms) + key, b"") for expires_at_ms, key in executed.requests_added]
        rows += [(b"q" + number(expires_at_ms) + key, None) for expires_at_ms, key in executed.requests_removed]
        return rows

    def pruning(self) -> Pruning:
        """Return what takes old blocks out of this store; its writes must not overlap with others."""
        return Pruning(self._database)

    def snapshot(self) -> StoreView:
        """Return a view of everything applied so far; later blocks do not show in it."""
        return StoreView(self._database.snapshot())

    def head_at(self, height: int) -> HeadRecord:
        """Return what stood as head after block `height`: digest, certificate, members of the next height."""
        return read_head(self._database, height)

    def block(self, height: int) -> CertifiedBlock:
        """Return the decided block at `height`, its hashes checked. Raise NotFound or StoreError."""
        return read_block(self._database, height)

    @property
    def first_block(self) -> int:
        """The lowest height from which on every block is here whole; below it most have only their headers."""
        return read_first(self._database)

    def header(self, height: int) -> Header:
        """Return the header of the decided block at `height`, pruned or not. Raise NotFound or StoreError."""
        return read_header(self._database, height)

    def body(self, height: int, digest: bytes) -> BlockBody | None:
        """Return the body that was voted for or decided under `digest` at `height`, or None."""
        return read_body(self._database, height, digest)

    def receipts(self, height: int) -> ReceiptsRecord:
        """Return the receipts of the block at `height`. Raise NotFound or StoreError."""
        return read_receipts(self._database, height)

    def has_receipts(self, height: int) -> bool:
        """Whether the receipts of the block at `height` are here, and with them all of the block."""
        return self._database.get(b"r" + number(height)) is not None

    def locate(self, tx_id: bytes) -> tuple[int, int] | None:
        """Return (height, position among the block's receipts) of a final transaction, or None."""
        return read_transaction_location(self._database, tx_id)

    def receipt(self, height: int, position: int) -> Receipt:
        """Return the receipt at a place that `locate` named."""
        return read_receipt(self.receipts(height).receipts, height, position)

    def transaction(self, tx_id: bytes) -> bytes | None:
        """Return the bytes of a final, a journaled or an ended transaction; None for others and scheduled calls."""
        place = self.locate(tx_id)
        if place is None:
            return self._database.get(b"p" + tx_id) or self._database.get(b"j" + tx_id)
        height, position = place
        index = position - self.receipts(height).scheduled
        return self.block(height).body.transactions[index] if index >= 0 else None

    def events(self, topic: str, from_height: int, to_height: int, limit: int) -> list[tuple[int, EventData]]:
        """Return up to `limit` (height, event) under `topic`, oldest first, from_height <= height <= to_height."""
        return self.snapshot().events(topic, from_height, to_height, limit)

    # --- consensus records -------------------------------------------------------------------------------

    def put_records(
        self,
        records: Sequence[Record],
        bodies: Mapping[bytes, BlockBody] | None = None,
        abstain_until: int | None = None,
    ) -> None:
        """The records, the `bodies` that they name (by digest) and the promise to abstain are durable: one sync."""
        rows: _Rows = []
        changed: dict[bytes, tuple[int, Record]] = {}
        for record in records:
            slot, height, view = record_slot(record)
            key = b"c" + number(height) + slot
            known = changed.get(key) or self._records.get(key)
            if height <= self.head.height or (known is not None and record_slot(known[1])[2] > view):
                continue
            self._sequence += 1
            changed[key] = (self._sequence, record)
            rows.append((key, number(self._sequence) + encode(record)))
        for digest, body in (bodies or {}).items():
            marker = b"w" + number(body.header.height) + digest
            if body.header.height > self.head.height and self._database.get(marker) is None:
                rows += [(body_key(body.header.height, digest), encode(body)), (marker, b"")]
        if abstain_until is not None:
            rows += self._promise(abstain_until)
        # Only what this member signed makes it one that has voted; others' certificates and new views do not.
        signed = any(isinstance(record, VoteRecord | ViewChangeRecord) for _, record in changed.values())
        if signed and self._database.get(META_VOTED) is None:
            rows += [(META_VOTED, b"1"), (META_NEVER_VOTED, None)]
        if rows:
            self._database.write(rows)
        self._records.update(changed)

    def begin_with_key(self, voting_key: bytes) -> None:
        """The list that this process begins with names this key for its member.

        A promise never to vote again was made for the key that was found in two places: it names that key, silences
        no other, and is never taken back. Before any key was known here there was but one.

        That a member never voted is taken at its word at genesis alone: later on the directory may be an image from
        before it did, so the others are heard first.
        """
        known = self._database.get(META_VOTING_KEY)
        rows: _Rows = [] if known == voting_key else [(META_VOTING_KEY, voting_key)]
        self._voting_key = voting_key
        if known is None and self._abstain_until() >= HEIGHT_MAX:
            rows += [(META_ABSTAIN, None), *self._promise(HEIGHT_MAX)]
        if self.head.height and self._database.get(META_NEVER_VOTED) is not None:
            rows += [(META_VOTED, b"1"), (META_NEVER_VOTED, None)]
        if rows:
            self._database.write(rows)

    def _promise(self, abstain_until: int) -> _Rows:
        """The rows that say so; of a key that is not known, that no key signs any more."""
        if abstain_until < HEIGHT_MAX or not self._voting_key:
            return [(META_ABSTAIN, number(max(abstain_until, self._abstain_until())))]
        silenced = self._database.get(META_SILENCED) or b""
        return [] if self._is_silenced() else [(META_SILENCED, silenced + self._voting_key)]

    def _is_silenced(self) -> bool:
        """Whether the key that this process began with never signs again."""
        silenced = self._database.get(META_SILENCED) or b""
        size = len(self._voting_key)
        return size > 0 and self._voting_key in [silenced[at : at + size] for at in range(0, len(silenced), size)]

    def memory(self) -> Memory:
        """Return what the disk says of this member's own votes; records in the order in which they were put."""
        current = sorted(self._records.values(), key=lambda item: item[0])
        return Memory(
            never_voted=self._database.get(META_NEVER_VOTED) is not None,
            voted=self._database.get(META_VOTED) is not None,
            abstain_until=HEIGHT_MAX if self._is_silenced() else self._abstain_until(),
            records=tuple(record for _, record in current),
        )

    def _abstain_until(self) -> int:
        return int.from_bytes(self._database.get(META_ABSTAIN) or b"", "big")

    def promise_recovery(self, promise: RecoveryPromise) -> None:
        """From now on this member votes only on a chain that has this recovery block: durable before it signs it.

        The promise takes the place of an earlier one. The database has it first (signed_file.py).
        """
        self._database.write(promises.promised(self.recovery_promises(), promise))
        if self._signed is not None:
            self._signed.write(self.recovery_promises())

    def recovery_promises(self) -> tuple[RecoveryPromise, ...]:
        """Return the recoveries that this member has signed, the one that holds last."""
        return promises.read_promises(self._database)

    def owed_recovery(self) -> RecoveryPromise | None:
        """Return the recovery that this member has signed and that its chain does not have: it must not vote."""
        return promises.owed(self._database, self.head.height)

    def _regained(self) -> _Rows:
        """Nothing that this member signed before can be confused with what it signs above its recovery block.

        That block's height is over, and the views above it are ones that no member has been in (docs/recovery.md):
        so a member that had lost its memory, and has signed the block from this directory, votes again. Once: when
        the chain comes to the block a second time, it may have signed there what it has forgotten since.
        """
        rows: _Rows = [(META_VOTED, b"1"), (META_NEVER_VOTED, None)]
        return rows if self._abstain_until() >= HEIGHT_MAX else [*rows, (META_ABSTAIN, None)]

    def put_divergence(self, record: DivergenceRecord) -> None:
        """The finding is durable until the block at its height is applied; nothing is kept of a height below."""
        if record.height == self.head.height + 1:
            self._database.write([(META_DIVERGED, encode(record))])

    def divergence(self) -> DivergenceRecord | None:
        """Return the block that this node executes otherwise than the network, if there is one."""
        data = self._database.get(META_DIVERGED)
        return None if data is None else stored(data, DivergenceRecord, "divergence")

    def put_evidence(self, member: str, evidence: Evidence) -> bool:
        """The evidence against `member` is durable; False when it is known already or 1,000 others are kept."""
        record = EvidenceRecord(member, evidence)
        known = self.evidence()
        if len(known) >= EVIDENCE_MAX or record in known:
            return False
        self._database.write([(b"v" + number(len(known)), encode(record))])
        return True

    def evidence(self) -> tuple[EvidenceRecord, ...]:
        """Return the stored proofs of equivocation with the names of the accused, oldest first."""
        return tuple(stored(data, EvidenceRecord, "evidence") for _, data in self._database.scan(b"v", b"w"))

    # --- accepted transactions ---------------------------------------------------------------------------

    def put_pending(self, transactions: Iterable[tuple[bytes, bytes]]) -> None:
        """The transactions, (tx_id, bytes), survive a crash until they are final or dropped. One sync for all."""
        rows: _Rows = []
        for tx_id, data in transactions:
            if tx_id not in self._journaled and self._database.get(b"x" + tx_id) is None:
                rows.append((b"p" + tx_id, data))
        if rows:
            self._database.write(rows)
            self._journaled.update(key[1:] for key, _ in rows)

    def forget_pending(self, tx_ids: Iterable[bytes]) -> None:
        """The transactions, final ones, are out of the journal."""
        known = [tx_id for tx_id in tx_ids if tx_id in self._journaled]
        if known:
            self._database.write([(b"p" + tx_id, None) for tx_id in known])
            self._journaled.difference_update(known)

    def end_pending(self, endings: Mapping[bytes, Ending]) -> None:
        """The transactions (by tx_id) are out of the journal and `ending` tells what became of them.

        Of those that were accepted here, the smaller ones are kept as long as their ending: it takes the
        transaction to prove that it was not executed.
        """
        rows: _Rows = []
        for tx_id, ending in endings.items():
            slot = b"g" + number(self._endings % ENDINGS_MAX)
            oldest = self._database.get(slot)
            if oldest is not None:
                rows += [(b"f" + oldest, None), (b"j" + oldest, None)]
            rows += [(slot, tx_id), (b"f" + tx_id, encode(ending)), (b"p" + tx_id, None)]
            data = self._database.get(b"p" + tx_id)
            if data is not None and len(data) <= ENDED_BYTES_MAX:
                rows.append((b"j" + tx_id, data))
            self._endings += 1
        if rows:
            rows.append((META_ENDINGS, number(self._endings)))
            self._database.write(rows)
            self._journaled.difference_update(endings)

    def ending(self, tx_id: bytes) -> Ending | None:
        """Return how an accepted transaction ended without becoming final; of the last 100,000 such."""
        data = self._database.get(b"f" + tx_id)
        return None if data is None else stored(data, Ending, f"ending of transaction {tx_id.hex()}")

    def is_pending(self, tx_id: bytes) -> bool:
        """Whether the transaction lies in the journal: accepted, and neither final nor ended."""
        return tx_id in self._journaled

    def pending(self) -> list[bytes]:
        """Return the bytes of the accepted transactions that are not final."""
        return [data for _, data in self._database.scan(b"p", b"q")]

    def rows(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield every stored (key, value) for start <= key < end, as layout.py has it: for who judges all of it."""
        return self._database.scan(start, end)

    def size_bytes(self) -> int:
        """Return about how many bytes the data takes on disk."""
        return self._database.size_bytes()

    @property
    def synced_writes(self) -> int:
        """How many batches this process has written, each of which has waited for the disk."""
        return self._database.synced_writes

    def state_size_bytes(self) -> int:
        """Return about how many bytes the values of the state take on disk."""
        return self._database.size_bytes(b"s", b"t")

    def close(self) -> None:
        """Everything is on disk and the directory is free for another process."""
        self._database.close()
