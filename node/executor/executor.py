"""Build, check and replay blocks, admit transactions, answer queries: everything that executes contracts. Pure.

`build` and `check` go one way, in `BlockRun`, and each transaction is executed once. The executor stands on the
state of one head; `advance` moves it on after the store has applied a block. Build, check and advance must not
overlap; admission, dry runs and queries may run beside them in other threads.

More than 500 lines because the one way that builder, checker and replay go is read in one place.
"""

from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec

from consensus.codec import decode_own, encode
from consensus.effects import BlockStanding
from contracts.engine import CallError, Engine, Environment, Revert
from node.config import PROPOSER, NetworkConfig, Parameters, Recovery
from node.errors import ConfigError, InvalidBlock, RejectedTransaction, StoreError
from node.executor.activation import ActiveCode, active_code, former_engine, founding
from node.executor.admission import Admission
from node.executor.difference import RECEIPT_SIZE_MAX, Claim, Difference, TracedRun, find_difference, verify_claim
from node.executor.empty_view import EmptyView
from node.executor.queries import Queries
from node.executor.run import BlockRun, Registry, Rules
from node.executor.tier_verdicts import TierVerdicts
from node.ledger import (
    BlockBody,
    Header,
    HeadRecord,
    Proposal,
    Receipt,
    Transaction,
    content_root,
    members_hash,
    merkle_root,
    request_conflict,
)
from node.state import ExecutedBlock, LedgerView, Overlay, ValueCache, WriteSet
from node.state_tree import StateTree


class DryRun(msgspec.Struct, frozen=True):
    """What a transaction would do on the head: its receipt, a sentence for each failed call, its state changes."""

    receipt: Receipt
    details: tuple[str, ...]
    operations: int
    writes: WriteSet


class Executor:
    """The rules of the ledger over the state of one head."""

    def __init__(self, network: NetworkConfig, engine: Engine, registry: Registry) -> None:
        """`registry` reads policies and validators from a state. Before `open` only `genesis` works.

        `engine` is all that this release ships; which of it executes, the state of each head says.
        """
        self._network = network
        self._shipped = engine
        self._registry = registry
        self._rules = Rules(network.network_id, network.parameters, engine, registry)
        self._contracts_hash = engine.contracts_hash()
        self._code = ActiveCode((), engine)
        self._ruled_since = b""
        """The digest of the block since which the rules hold."""
        self.queries = Queries(network.network_id, engine)
        self._cache = ValueCache()
        self._tiers = TierVerdicts(registry)
        # What was forgotten before lies there as graves, over which LevelDB would walk at every block.
        self._requests_from_ms = 0
        self._tree: StateTree | None = None
        self._view: LedgerView | None = None
        self._admission: Admission | None = None

    # --- standing on a head ------------------------------------------------------------------------------

    def genesis(self) -> ExecutedBlock:
        """Return height 0: the state that the network definition makes; ConfigError when contracts refuse it."""
        network = self._network
        base = EmptyView()
        env = Environment(network.network_id, 0, 0, "@genesis", network.genesis_hash, encode)
        try:
            engine, arguments = founding(self._shipped, network.genesis_arguments)
            run = BlockRun(msgspec.structs.replace(self._rules, engine=engine), base, None, 0, 0)
            engine.genesis(run.overlay, env, arguments)
        except (CallError, Revert) as error:
            raise ConfigError("config_invalid", f"the contracts refuse the network definition: {error}") from error
        tree = StateTree(network.parameters.state_tree_bits, base.bucket)
        return self._finish(run, (), tree, bytes(32), "", network.genesis_hash, engine.contracts_hash())

    def open(self, view: LedgerView) -> None:
        """Stand on `view`; the tree is rebuilt from its pairs. StoreError when its root is not the head's."""
        # Read through the attribute: the same tree goes on over later views.
        self._view = view
        self._take_rules(view)
        self._tiers = TierVerdicts(self._registry)
        self._admission = Admission(self._rules, view, self._tiers)
        self._requests_from_ms = 0
        self._tree = StateTree(self._rules.parameters.state_tree_bits, self._read_bucket, view.pairs())
        self._cache = ValueCache(lacks=self._tree.lacks)
        if self._tree.root != view.head.state_root:
            raise StoreError(
                "corrupt_state_tree", f"the state's root differs from that of block {view.head.height}"
            )

    def advance(self, executed: ExecutedBlock, view: LedgerView, *, shown: bool = True) -> None:
        """Stand on `view`, in which `executed`, built or checked on the present head, is applied.

        Unless it is `shown`, transactions go on being admitted and tried on the view before.
        """
        if view.head.digest != executed.digest:
            raise ValueError(f"the view's head is not block {executed.height}")
        cache = self._cache.advance(executed.writes)
        self._opened_tree().commit(executed.tree)
        self._view = view
        self._take_rules(view)
        self._tiers = self._tiers.after(executed.writes)
        if shown:
            self._admission = Admission(self._rules, view, self._tiers)
        self._cache = cache
        if executed.requests_removed:
            self._requests_from_ms = executed.requests_removed[-1][0]

    def _take_rules(self, view: LedgerView) -> None:
        """The next block is executed by the contracts that the members have activated, within limits and brakes."""
        if view.head.digest == self._ruled_since:
            return
        state = Overlay(view)
        code = active_code(self._shipped, state, self._code)
        if code is not self._code:
            self._code = code
            self._rules = msgspec.structs.replace(self._rules, engine=code.engine)
            self._contracts_hash = code.engine.contracts_hash()
        self._rules = self._rules.after(state)
        self._ruled_since = view.head.digest

    def show(self, view: LedgerView, writes: WriteSet) -> None:
        """Transactions are admitted and tried on `view`: the state shown so far, after `writes`.

        It may be the state of a block before the head: what is known of tiers there is kept apart from what is
        known of them at the head. Or that of the block to which `advance` moves next, while nothing is executed.
        """
        if view.head.height > self.head.height:
            self._take_rules(view)
        tiers = self._opened_admission().tiers.after(writes)
        self._admission = Admission(self._rules, view, tiers)

    def settle(self, view: LedgerView) -> None:
        """Stand on `view`, which shows the present head from elsewhere; ValueError when it shows another one."""
        if view.head.digest != self.head.digest:
            raise ValueError(f"the view's head is not block {self.head.height}")
        self._view = view
        self._admission = Admission(self._rules, view, self._tiers)

    @property
    def parameters(self) -> Parameters:
        """The network's parameters as they hold for the next block."""
        return self._rules.parameters

    @property
    def head(self) -> HeadRecord:
        """The head that blocks are built on."""
        return self._opened_view().head

    @property
    def view(self) -> LedgerView:
        """The state of the head; stays readable while further blocks are applied."""
        return self._opened_view()

    @property
    def tree(self) -> StateTree:
        """The state tree of the head; it moves on with `advance`, so whoever keeps it takes a copy."""
        return self._opened_tree()

    @property
    def engine(self) -> Engine:
        """The contracts that execute the next block, and what is shipped besides."""
        return self._rules.engine

    @property
    def contracts_hash(self) -> bytes:
        """The digest of the code with which this node would execute the next block."""
        return self._contracts_hash

    @property
    def former_contracts_hash(self) -> bytes:
        """What `contracts_hash` was before the last change of a contract; as it is where there was none."""
        found = former_engine(self._shipped, Overlay(self._opened_view()))
        return self._contracts_hash if found is None else found.contracts_hash()

    @property
    def lacking(self) -> tuple[str, ...]:
        """The versions that the ledger has active and that are not here, or here with other bytes."""
        return self._code.lacking

    def next_due_ms(self) -> int | None:
        """Return the time of the earliest scheduled call: from then on there is a block to build."""
        return self._opened_admission().next_due_ms

    # --- blocks ------------------------------------------------------------------------------------------

    def build(
        self,
        now_ms: int,
        proposer: str,
        candidates: Iterable[Transaction],
        *,
        halvings: int = 0,
        allow_empty: bool = False,
        allow_quarantine: bool = False,
        suspects: Collection[bytes] = (),
        enough: Callable[[], bool] = lambda: False,
    ) -> ExecutedBlock | None:
        """Return the next block with as many of the (verified) `candidates`, in order, as fit; None when empty.

        Its limits are divided by 2 ** `halvings`; its first transaction always fits. Candidates that no block may
        contain are left out. Before each `enough()` is asked, which ends the block unless it has none yet; for the
        first time when the scheduled calls are done. `suspects` (wire ids, or ids of scheduled calls) are settled
        unexecuted where `allow_quarantine`.
        """
        head, parameters = self.head, self._rules.parameters
        if self._code.lacking:
            return None
        run = self._block_run(head.height + 1, max(now_ms, head.time_ms + 1))
        run.begin(lambda _, tx_id: allow_quarantine and tx_id in suspects)
        chosen: list[Transaction] = []
        operations_max = max(1, parameters.block_operations_max >> halvings)
        for transaction in candidates:
            if run.transactions >= max(1, parameters.block_transactions_max >> halvings):
                break
            if enough() and chosen:
                break
            if not fits(run, transaction, parameters.block_calls_max, parameters.block_bytes_max, halvings):
                continue
            if self._tiers.leaves_open(transaction, run.time_ms):
                continue
            reason = run.obstacle(transaction)
            if reason is not None:
                if reason == "approval_required":
                    # Not judged again for the next block, unless by then it may have become another.
                    self._tiers.open_tier(Overlay(self._opened_view()), transaction, run.time_ms)
                continue
            if allow_quarantine and transaction.wire_id in suspects:
                run.accept(transaction, run.quarantine(transaction))
                chosen.append(transaction)
                continue
            savepoint = run.overlay.savepoint()
            attempt = run.attempt(transaction)
            if chosen and run.operations + attempt.operations > operations_max:
                run.overlay.rollback(savepoint)
                break
            run.accept(transaction, attempt)
            chosen.append(transaction)
            if run.operations >= operations_max:
                break
        if not run.tx_ids and not allow_empty:
            return None
        try:
            run.end()
        except InvalidBlock:
            return None  # it takes a contract that is not here: others build this block
        return self._finish(run, chosen, self._opened_tree(), head.digest, proposer)

    def recover(self, recovery: Recovery, time_ms: int) -> ExecutedBlock:
        """Return the recovery block on the head: equal at all who have the head, the code and what was signed.

        `height` and `digest` of `recovery` are not looked at: this is how they come to be. Raise InvalidBlock where
        the members' contract refuses it.
        """
        head = self.head
        run = self._block_run(head.height + 1, time_ms)
        run.recover(recovery)
        return self._finish(run, (), self._opened_tree(), head.digest, PROPOSER)

    def room(self, executed: ExecutedBlock) -> tuple[int, int]:
        """Return (calls, bytes) for which the block had room; none once half of its other limits was used.

        Only what certainly fitted may be held against a proposer.
        """
        parameters = self._rules.parameters
        if (
            2 * executed.operations > parameters.block_operations_max
            or 2 * len(executed.body.transactions) > parameters.block_transactions_max
        ):
            return 0, 0
        return parameters.block_calls_max - executed.calls, parameters.block_bytes_max - executed.size_bytes

    def judge_first(self, header: Header, now_ms: int, expected_proposer: str) -> None:
        """Return when clock and proposer suit a first proposal that arrived at `now_ms`; raise InvalidBlock.

        `block_ahead_of_clock` passes with time: its detail `wait_ms` says when the block may be judged again.
        """
        drift_ms = self._rules.parameters.drift_ms
        if header.proposer != expected_proposer:
            raise InvalidBlock(
                "wrong_proposer", f"{header.proposer!r} proposed in the turn of {expected_proposer!r}"
            )
        if header.time_ms > now_ms + drift_ms:
            wait_ms = header.time_ms - now_ms - drift_ms
            raise InvalidBlock("block_ahead_of_clock", f"the block is {wait_ms} ms too early", wait_ms=wait_ms)
        if header.time_ms < now_ms - drift_ms:
            raise InvalidBlock("block_behind_clock", f"the block is {now_ms - header.time_ms} ms old")

    def check(
        self,
        proposal: Proposal,
        transactions: Sequence[Transaction],
        *,
        allow_quarantine: bool = True,
        standing: BlockStanding = BlockStanding.PROPOSED,
    ) -> ExecutedBlock:
        """Return the executed block when `proposal` is what the rules make of its (verified) `transactions`.

        Raise InvalidBlock otherwise. No clock is judged: that is `judge_first`, for first proposals alone. Decided
        blocks are replayed with `allow_quarantine`, for a certificate says that its height needed it.
        """
        header = proposal.header
        run = self._block_run(header.height, header.time_ms)
        executed = self._run(run, proposal, transactions, allow_quarantine, standing)
        for code, ours, theirs in (
            ("receipts_differ", executed.header.receipts_root, header.receipts_root),
            ("state_differs", executed.header.state_root, header.state_root),
            ("members_differ", executed.header.members_hash, header.members_hash),
        ):
            if ours != theirs:
                raise InvalidBlock(code, f"block {header.height}: {ours.hex()} here, {theirs.hex()} in the header")
        return executed

    def compare(self, body: BlockBody, transactions: Sequence[Transaction], claim: Claim) -> Difference:
        """Return where this node's execution of the certified block on the head parts from what it proves to do.

        `claim` may come from a liar: raise InvalidFrame("bad_proof") unless it has exactly the header's roots.
        """
        wire_ids = tuple(transaction.wire_id for transaction in transactions)
        proposal = Proposal(body.header, wire_ids, body.quarantined)
        verify_claim(body.header, claim, lambda writes: self._opened_tree().stage(writes).root)
        run = TracedRun(self._rules, self._opened_view(), body.header.height, body.header.time_ms)
        executed = self._run(run, proposal, transactions, allow_quarantine=True, standing=BlockStanding.DECIDED)
        return find_difference(self._opened_view(), run, executed, transactions, claim)

    def _block_run(self, height: int, time_ms: int) -> BlockRun:
        return BlockRun(self._rules, self._opened_view(), self._cache, height, time_ms, self._requests_from_ms)

    def _run(
        self,
        run: BlockRun,
        proposal: Proposal,
        transactions: Sequence[Transaction],
        allow_quarantine: bool,
        standing: BlockStanding,
    ) -> ExecutedBlock:
        """Return what execution makes of the block; raise InvalidBlock where the rules forbid it."""
        header, parameters = proposal.header, self._rules.parameters
        self._check_header(proposal, transactions, self.head, standing)
        quarantined = proposal.quarantined
        if quarantined and not allow_quarantine:
            raise InvalidBlock("quarantine_refused", "fewer than two views have failed at this height")
        if header.proposer == PROPOSER:
            run.recover(self._recovery_of(proposal, standing))
        else:
            run.begin(lambda position, _: position in quarantined)
        for index, transaction in enumerate(transactions):
            if not fits(run, transaction, parameters.block_calls_max, parameters.block_bytes_max, 0):
                raise InvalidBlock("block_too_large", f"transaction {index} exceeds the block's calls or bytes")
            reason = run.obstacle(transaction)
            if reason is not None:
                raise InvalidBlock(
                    "transaction_not_includable",
                    f"transaction {transaction.tx_id.hex()}: {reason}",
                    tx_id=transaction.tx_id.hex(),
                    reason=reason,
                )
            if len(run.tx_ids) in quarantined:
                run.accept(transaction, run.quarantine(transaction))
                continue
            attempt = run.attempt(transaction)
            if index and run.operations + attempt.operations > parameters.block_operations_max:
                raise InvalidBlock("block_too_large", f"transaction {index} exceeds the block's operations")
            run.accept(transaction, attempt)
        if tuple(run.quarantined) != quarantined:
            raise InvalidBlock("quarantine_refused", "a quarantined position is out of order or names nothing")
        if header.proposer != PROPOSER:
            run.end(standing is BlockStanding.DECIDED)
        return self._finish(
            run,
            transactions,
            self._opened_tree(),
            header.parent,
            header.proposer,
            code=header.contracts_hash,
            tx_root=header.tx_root,  # what these transactions have: `_check_header` has seen to it
        )

    def _recovery_of(self, proposal: Proposal, standing: BlockStanding) -> Recovery:
        """The trusted recovery that a decided block performs; raise InvalidBlock where there is none."""
        header = proposal.header
        found = self._network.recoveries.of_block(header.height, header.digest)
        if found is None or standing is not BlockStanding.DECIDED or proposal.wire_ids or proposal.quarantined:
            raise InvalidBlock(
                "recovery_refused", f"block {header.height} is not the recovery block of a recovery trusted here"
            )
        return found

    def _check_header(
        self, proposal: Proposal, transactions: Sequence[Transaction], head: HeadRecord, standing: BlockStanding
    ) -> None:
        """Raise InvalidBlock for what can be refused without executing anything."""
        header, parameters = proposal.header, self._rules.parameters
        if header.network != self._rules.network:
            raise InvalidBlock("wrong_network", f"the block belongs to {header.network!r}")
        if header.height != head.height + 1:
            raise InvalidBlock("wrong_height", f"block {header.height} on the head {head.height}")
        if header.parent != head.digest:
            raise InvalidBlock("wrong_parent", f"block {header.height} stands on {header.parent.hex()}")
        if header.time_ms <= head.time_ms:
            raise InvalidBlock("time_not_after_parent", f"{header.time_ms} after {head.time_ms}")
        self._check_code(header, standing)
        if tuple(transaction.wire_id for transaction in transactions) != proposal.wire_ids:
            raise InvalidBlock("block_content_differs", "the transactions are not those of the proposal")
        data = [transaction.data for transaction in transactions]
        if content_root(data, proposal.quarantined) != header.tx_root:
            raise InvalidBlock("block_content_differs", "the transactions do not have the header's tx_root")
        # Last, for it is said of the block itself then, and not of what somebody sent under its name.
        if len(transactions) > parameters.block_transactions_max:
            raise InvalidBlock("block_too_large", f"{len(transactions)} transactions in a block")

    def _check_code(self, header: Header, standing: BlockStanding) -> None:
        """Raise InvalidBlock where this node's code has no say on a block of that standing, or cannot execute it.

        What a quorum has prepared may be decided somewhere, so nothing else may come at its height: whoever runs
        other code by now, and comes to the same roots, goes on with it. But where the ledger names versions that
        are not here, or other bytes of them, this node has no say before the decision.
        """
        code = self._code
        if code.absent:
            raise InvalidBlock("contract_not_here", f"block {header.height} needs {', '.join(code.absent)}")
        differs = header.contracts_hash != self._contracts_hash
        if (code.lacking and standing < BlockStanding.DECIDED) or (differs and standing < BlockStanding.PREPARED):
            raise InvalidBlock("contracts_differ", f"contracts {header.contracts_hash.hex()} made the block")

    def _finish(
        self,
        run: BlockRun,
        transactions: Sequence[Transaction],
        tree: StateTree,
        parent: bytes,
        proposer: str,
        digest: bytes | None = None,
        code: bytes | None = None,
        tx_root: bytes | None = None,
    ) -> ExecutedBlock:
        """Return the block that `run` has come to; digest, contracts hash and tx_root are its own unless given."""
        members = run.members()
        writes = run.overlay.write_set()
        staged = tree.stage(writes.after)
        data = tuple([transaction.data for transaction in transactions])
        header = Header(
            network=self._rules.network,
            height=run.height,
            parent=parent,
            time_ms=run.time_ms,
            proposer=proposer,
            tx_root=content_root(data, run.quarantined) if tx_root is None else tx_root,
            receipts_root=merkle_root(run.receipts),
            state_root=staged.root,
            members_hash=members_hash(members),
            contracts_hash=self._contracts_hash if code is None else code,
        )
        quarantined = tuple(run.quarantined)
        return ExecutedBlock(
            digest=header.digest if digest is None else digest,
            body=BlockBody(header, data, quarantined),
            transactions=tuple(transactions),
            proposal=Proposal(header, tuple([transaction.wire_id for transaction in transactions]), quarantined),
            receipts=tuple(run.receipts),
            tx_ids=tuple(run.tx_ids),
            topics=run.topics,
            requests_added=tuple(run.requests_added),
            requests_removed=run.requests_removed,
            writes=writes,
            tree=staged,
            members=members,
            calls=run.calls,
            size_bytes=run.size_bytes,
            operations=run.operations,
        )

    # --- single transactions and queries -----------------------------------------------------------------

    def obstacle(self, transaction: Transaction, now_ms: int) -> str | None:
        """Return why the next block could not contain the (verified) transaction, or None.

        `already_final`, or a code of `admission`.
        """
        return self._opened_admission().obstacle(transaction, now_ms)

    def admission(self, transaction: Transaction, now_ms: int) -> int | None:
        """Return None when the (verified) transaction may wait for a block, or the height at which it is final.

        Raise RejectedTransaction for the first of: wrong_network, expired, expiry_too_far,
        request_conflict, unknown_principal, policy_unsatisfied, approval_required. A final
        transaction is recognised even after it expired. Its calls are not judged: a wrong one is an outcome in the
        receipt (see `validate_calls`).
        """
        return self._opened_admission().admit(transaction, now_ms)

    def validate_calls(self, transaction: Transaction) -> None:
        """Return when every call names a method and fits its arguments.

        Raise RejectedTransaction for the first that does not: unknown_contract, unknown_method, invalid_arguments.
        A node does this for its own clients, who can then mend the call; it decides nothing about blocks.
        """
        for index, call in enumerate(transaction.body.calls):
            try:
                self._rules.engine.validate(call.contract, call.method, call.args)
            except CallError as error:
                raise RejectedTransaction(error.code, f"call {index}: {error.message}", call=index) from error

    def dry_run(self, transaction: Transaction, now_ms: int) -> DryRun:
        """Return what the transaction would do in the next block; nothing is changed. Raises as `admission`."""
        if self.admission(transaction, now_ms) is not None:
            raise request_conflict(transaction.body.request_id, transaction.tx_id)
        self.validate_calls(transaction)
        view = self._opened_admission().view
        run = BlockRun(self._rules, view, None, view.head.height + 1, max(now_ms, view.head.time_ms + 1))
        attempt = run.attempt(transaction)
        receipt = decode_own(attempt.receipt(transaction.tx_id), Receipt, size_max=RECEIPT_SIZE_MAX)
        return DryRun(receipt, attempt.details, attempt.operations, run.overlay.write_set())

    # --- what must be open -------------------------------------------------------------------------------

    def _read_bucket(self, name: str) -> bytes | None:
        return self._opened_view().bucket(name)

    def _opened_view(self) -> LedgerView:
        if self._view is None:
            raise ValueError("the executor stands on no head yet")
        return self._view

    def _opened_tree(self) -> StateTree:
        if self._tree is None:
            raise ValueError("the executor stands on no head yet")
        return self._tree

    def _opened_admission(self) -> Admission:
        if self._admission is None:
            raise ValueError("the executor stands on no head yet")
        return self._admission


def fits(run: BlockRun, transaction: Transaction, calls_max: int, bytes_max: int, halvings: int) -> bool:
    """Whether the block has room for the transaction's calls and bytes; a block's first one always fits."""
    if not run.transactions:
        return True
    calls = run.calls + len(transaction.body.calls)
    size_bytes = run.size_bytes + len(transaction.data)
    return calls <= calls_max >> halvings and size_bytes <= bytes_max >> halvings
