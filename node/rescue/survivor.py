"""What one survivor's stopped node knows, proposes and signs.

Invariants, each kept by `sign` before a signature exists:

1. Nothing final is lost that a survivor with memory can know of. Whatever was decided above the base block was
   prepared by a quorum before; while the lost members are fewer than a quorum, one of the survivors has that on its
   disk (records are durable before a commit vote leaves). So no survivor signs a recovery from a block below its
   own head, or one that leaves out a block that it knows to be prepared, unless one of a higher view is kept.
2. Every survivor has executed what it signs and has come to the same bytes.
3. Whoever has signed votes only on a chain that has the recovery block: the promise is durable first. Otherwise a
   lost member that comes back could complete a quorum of the former members.
4. Of two recoveries that one survivor has signed the later one has views of a later epoch: no two of its votes
   share a slot, and nobody has a reason to accuse it.
"""

import contextlib
from collections.abc import Iterator, Sequence

import msgspec

from consensus.amnesia import Amnesia
from consensus.effects import Memory, PreparedRecord, VoteRecord
from consensus.epochs import EPOCH_VIEWS, next_epoch, since_epoch
from consensus.members import Members
from consensus.messages import Certificate
from contracts import CONTRACTS, FURTHER
from contracts.engine import Engine
from contracts.governance import Governance
from contracts.membership import Membership
from node.config import NetworkConfig, NodeConfig, Recovery
from node.errors import ConfigError
from node.executor import Executor
from node.keys import SigningKey
from node.ledger import CertifiedBlock, HeadRecord
from node.recovery import Countersignature, RecoveryFile
from node.recovery.file import statement_hash
from node.rescue.execution import execute_kept, execute_recovery, survivors_of
from node.state import Overlay
from node.store import RecoveryPromise, Store
from node.store.stopped import open_stopped

REPLACED_MAX = 1_000
"""A recovery lies at most so many epochs above the base block's and all that the member has signed: one for each
that was signed and given up elsewhere. The file's views end at 2^53: no single draft may use them up, and whoever
has signed one can always sign another in its place."""


class Terms(msgspec.Struct, frozen=True):
    """What the survivors decide among themselves; the rest of a recovery follows from the ledger.

    `accepts_unseen`: blocks that the lost members alone may have decided are given up. `accepts_few`: fewer members
    go on than genesis lets any vote leave. `replaces`: recoveries that somebody has signed and that will never be
    complete.
    """

    survivors: tuple[str, ...]
    reason: str
    time_ms: int
    without_memory: tuple[str, ...] = ()
    accepts_unseen: bool = False
    accepts_few: bool = False
    replaces: tuple[RecoveryFile, ...] = ()


class Survivor:
    """One stopped node's data directory, opened by `opened`."""

    def __init__(self, node: NodeConfig, network: NetworkConfig, store: Store) -> None:
        """`network` with the recoveries that are trusted here already."""
        self._node = node
        self._network = network
        self._store = store

    @classmethod
    @contextlib.contextmanager
    def opened(cls, node: NodeConfig, network: NetworkConfig) -> Iterator["Survivor"]:
        """Give the survivor; its directory is free again afterwards.

        Raise ConfigError where a running node holds it, or where it has no block yet (`ledger_not_here`).
        """
        with contextlib.closing(open_stopped(node, network)) as store:
            if not store.initialised or store.head.certificate is None:
                raise ConfigError("ledger_not_here", "there is no certified block: start the node and let it fetch")
            yield cls(node, network, store)

    @property
    def head(self) -> HeadRecord:
        """The highest block of which this node has a certificate."""
        return self._store.head

    @property
    def prepared(self) -> Certificate | None:
        """The proof of the highest view that a block above the head was prepared, as far as this node knows."""
        found = [
            record.certificate
            for record in self._memory.records
            if isinstance(record, PreparedRecord) and record.certificate.height == self.head.height + 1
        ]
        return max(found, key=lambda certificate: certificate.view, default=None)

    @property
    def remembers(self) -> bool:
        """Whether this node knows all that its member has signed above the head.

        Where it has voted at a height that the head does not decide, somebody put an older chain back.
        """
        memory, height = self._memory, self.head.height
        voted = [record.vote.height for record in memory.records if isinstance(record, VoteRecord)]
        amnesia = Amnesia(memory, 0)
        return not amnesia.lost and height >= amnesia.until and max(voted, default=0) <= height + 1

    @property
    def _memory(self) -> Memory:
        """What the disk says of the history that the head is in, as the replica reads it (consensus 16)."""
        memory = self._store.memory()
        return msgspec.structs.replace(memory, records=since_epoch(memory.records, self.head.first_view))

    def draft(self, terms: Terms) -> RecoveryFile:
        """Return the recovery from this node's head under `terms`, signed by nobody.

        Raise ConfigError: `recovery_refused` for survivors that are none, `recovery_may_lose_blocks` and
        `recovery_too_few` for what the terms do not accept.
        """
        former = self.head.members
        if len({*terms.survivors}) != len(terms.survivors):
            raise ConfigError("recovery_refused", "a survivor is named twice")
        for replaced in terms.replaces:
            self._require_network(replaced)
        signed = [item.view for item in self._store.recovery_promises()]
        view = next_epoch(max([self.head.first_view, *signed, *(file.view for file in terms.replaces)]))
        self._require_view(view)
        file = self._built(former, terms, self._prepared_block(), view)
        self._require_accepted(file, terms)
        return file

    def _require_network(self, file: RecoveryFile) -> None:
        if (file.network, file.genesis_hash) != (self._network.network_id, self._network.genesis_hash):
            raise ConfigError("recovery_of_another_network", f"it recovers {file.network}")

    def _require_view(self, view: int) -> None:
        known = max([self.head.first_view, *(item.view for item in self._store.recovery_promises())])
        first, last = next_epoch(self.head.first_view), next_epoch(known) + REPLACED_MAX * EPOCH_VIEWS
        if not first <= view <= last:
            raise ConfigError(
                "recovery_refused",
                f"its view {view} is not among the first {REPLACED_MAX:,} epochs above that of block"
                f" {self.head.height} and of what this member has signed",
            )

    def _prepared_block(self) -> CertifiedBlock | None:
        certificate = self.prepared
        if certificate is None:
            return None
        body = self._store.body(certificate.height, certificate.digest)
        if body is None:
            raise ConfigError(
                "recovery_block_missing",
                f"block {certificate.height} {certificate.digest.hex()} was prepared, and its content is not here:"
                " draft at a survivor that has it",
            )
        return CertifiedBlock(body, certificate)

    def _require_accepted(self, file: RecoveryFile, terms: Terms) -> None:
        former, remembering = self.head.members, len(file.survivors) - len(file.without_memory)
        if file.may_lose_blocks and not terms.accepts_unseen:
            raise ConfigError(
                "recovery_may_lose_blocks",
                f"of {former.n} members {remembering} go on with their memory; the other {former.n - remembering}"
                f" are a quorum ({former.quorum}) and may have decided blocks that no survivor knows of: look for"
                " their disks, backups and archives first, and say --accept-unseen when there is nothing",
            )
        rules = Governance.read_rules(Overlay(self._store.snapshot()))
        least = 1 if rules is None else rules.validators_min
        if len(file.survivors) < least and not terms.accepts_few:
            raise ConfigError(
                "recovery_too_few",
                f"{len(file.survivors)} go on, and the members have agreed on {least} at least",
            )

    def _built(self, former: Members, terms: Terms, kept: CertifiedBlock | None, view: int) -> RecoveryFile:
        """Return the recovery in `view` that follows from the head, `terms` and the kept block, by executing it."""
        network, head = self._network, self.head
        executor = Executor(network, Engine(CONTRACTS, FURTHER), Membership)
        executor.open(self._store.snapshot())
        members = head.members
        if kept is not None:
            members = execute_kept(executor, kept.body, kept.certificate).members
        survivors = survivors_of(members, terms.survivors)
        if not set(terms.without_memory) <= set(terms.survivors):
            raise ConfigError("recovery_refused", "somebody without memory is none of the survivors")
        kept_digest = b"" if kept is None else kept.body.header.digest
        statement = statement_hash(
            network.network_id,
            network.genesis_hash,
            head.height,
            head.digest,
            kept_digest,
            view,
            former.validators,
            survivors,
            terms.without_memory,
            terms.reason,
            terms.time_ms,
        )
        # Where it stands, and under which digest, is what executing it tells.
        unplaced = Recovery(0, b"", kept_digest, survivors, terms.reason, statement)
        executed = execute_recovery(executor, unplaced, terms.time_ms)
        return RecoveryFile(
            network=network.network_id,
            genesis_hash=network.genesis_hash,
            base_height=head.height,
            base_digest=head.digest,
            view=view,
            former=former.validators,
            survivors=survivors,
            without_memory=terms.without_memory,
            reason=terms.reason,
            time_ms=terms.time_ms,
            header=executed.header,
            kept=kept,
        )

    def require_signable(self, file: RecoveryFile, now_ms: int, instead_of: bytes = b"") -> None:
        """Return when this member may sign `file` at the time `now_ms`; raise ConfigError with the reason.

        `instead_of` is the digest of a recovery that this member has signed before and that will never be complete.
        """
        member, names = self._node.member, [item.id for item in file.survivors]
        self._require_network(file)
        if member not in names:
            raise ConfigError("recovery_refused", f"{member} is none of its survivors: {', '.join(names)}")
        self._require_base(file)
        self._require_prepared_kept(file)
        if file.time_ms > now_ms + self._network.parameters.drift_ms:
            raise ConfigError(
                "recovery_refused",
                "its time lies ahead of this machine's clock: until then no block could follow it",
            )
        if not self.remembers and member not in file.without_memory:
            raise ConfigError(
                "recovery_memory_lost",
                f"{member} does not know all that it has signed above block {self.head.height}: the draft has to"
                f" say --without-memory {member}, or leave it out and resume it by vote afterwards",
            )
        self._require_unpromised(file, instead_of)
        self._require_view(file.view)
        terms = Terms(tuple(names), file.reason, file.time_ms, file.without_memory)
        ours = self._built(self.head.members, terms, file.kept, file.view)
        if ours != file.unsigned():
            same_code = ours.header.contracts_hash == file.header.contracts_hash
            why = "" if same_code else ": it runs other contract code, so use the same release"
            raise ConfigError(
                "recovery_differs",
                f"this node comes to the recovery block {ours.digest.hex()}, the file names"
                f" {file.digest.hex()}{why}",
            )

    def _require_base(self, file: RecoveryFile) -> None:
        head = self.head
        if head.height < file.base_height:
            raise ConfigError(
                "recovery_base_differs",
                f"this node's last certified block is {head.height}, the file goes on from {file.base_height}:"
                " run this node together with one that has the block, let it catch up, stop it, and sign then",
            )
        if head.height > file.base_height:
            raise ConfigError(
                "recovery_base_differs",
                f"this node has the certified block {head.height}, and the file goes on from {file.base_height}:"
                " blocks that are final would be lost; draft from this node",
            )
        if head.digest != file.base_digest:
            raise ConfigError(
                "recovery_base_differs",
                f"block {head.height} is {head.digest.hex()} here and {file.base_digest.hex()} in the file: these"
                " are two histories, and nobody may go on before it is known why",
            )

    def _require_unpromised(self, file: RecoveryFile, instead_of: bytes) -> None:
        member, signed = self._node.member, self._store.recovery_promises()
        owed = self._store.owed_recovery()
        if owed is not None and owed.digest not in (file.digest, instead_of):
            raise ConfigError(
                "recovery_signed_other",
                f"{member} has signed the recovery {owed.digest.hex()} of block {owed.height}",
            )
        if any(item.digest == file.digest for item in signed):
            return
        last = max(signed, key=lambda item: item.view, default=None)
        if last is not None and file.view <= last.view:
            raise ConfigError(
                "recovery_signed_other",
                f"{member} has signed the recovery {last.digest.hex()} in view {last.view}, and this one is in view"
                f" {file.view}: two votes in one slot would be held against it for ever. Draft the one to sign at"
                f" this node, or with --replaces and the file of {last.digest.hex()}",
            )

    def _require_prepared_kept(self, file: RecoveryFile) -> None:
        known, kept = self.prepared, file.kept
        if known is None or (kept is not None and kept.certificate.digest == known.digest):
            return
        if kept is None or kept.certificate.view <= known.view:
            raise ConfigError(
                "recovery_leaves_out_prepared",
                f"block {known.height} {known.digest.hex()} was prepared in view {known.view}, so a lost member may"
                " have decided it and told a client that it is final: draft from this node, which keeps it",
            )

    def sign(self, file: RecoveryFile, key: SigningKey, now_ms: int, instead_of: bytes = b"") -> RecoveryFile:
        """Return `file` with this member's signature. Its promise is durable before that exists.

        Raise ConfigError as `require_signable` does, or `wrong_key` for another key than the member's.
        """
        self.require_signable(file, now_ms, instead_of)
        member = self._node.member
        [survivor] = [item for item in file.survivors if item.id == member]
        if key.public != survivor.voting_key:
            raise ConfigError("wrong_key", f"the ledger names another voting key for {member}")
        self._store.promise_recovery(RecoveryPromise(file.header.height, file.digest, file.view))
        kept = file.kept_message()
        signature = Countersignature(member, key.sign(file.message()), None if kept is None else key.sign(kept))
        return file.with_signature(signature)


def preferred(files: Sequence[RecoveryFile]) -> RecoveryFile:
    """Return the one of several survivors' drafts that all should sign: none of them knows of more than it keeps.

    That is the one from the highest block, of these the one that keeps the block prepared in the highest view, and
    of these the one in the highest view itself: below it a survivor has signed another recovery.
    """
    return max(
        files,
        key=lambda file: (
            file.base_height,
            -1 if file.kept is None else file.kept.certificate.view,
            file.view,
        ),
    )
