"""What a node answers: the types of every response, shared by the API, the Python client and the CLI.

Bytes (ids, hashes, keys) stand here as lower-case hex strings, times as Unix milliseconds, money in minor units.
A client accepts unknown fields, so that a newer node may say more. More than 500 lines because all answers stand in
one place.
"""

from typing import Any, Literal, TypeAlias

import msgspec

FateStatus: TypeAlias = Literal["pending", "final", "expired", "dropped", "unknown"]


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object; unknown fields are ignored when read."""


class ErrorBody(_Answer, frozen=True):
    """Why a request failed; `code` is one of the catalogue, `action` says what to do about it."""

    code: str
    message: str
    action: str
    retryable: bool
    details: dict[str, str | int | bool | None] = {}


class ErrorAnswer(_Answer, frozen=True):
    """The one shape of every failure."""

    error: ErrorBody


class Event(_Answer, frozen=True):
    """An event of a contract, as its receipt holds it; bytes in `data` are hex."""

    contract: str
    name: str
    topics: tuple[str, ...]
    data: dict[str, Any]


class CallOutcome(_Answer, frozen=True):
    """The outcome of one call: `ok`, or the stable reason for which it changed nothing."""

    code: str
    events: tuple[Event, ...] = ()


class Submission(_Answer, frozen=True):
    """The node took the transaction (or had it already: `duplicate`); its fate can be asked for from now on."""

    tx_id: str
    status: FateStatus = "pending"
    duplicate: bool = False


class Fate(_Answer, frozen=True):
    """What became of a transaction.

    `height` and `receipts` (one a call) are there when it is final. `code` is the reason when it was dropped,
    else None. `unknown`: this node neither holds it nor has it in its blocks.
    """

    tx_id: str
    status: FateStatus
    height: int | None = None
    receipts: tuple[CallOutcome, ...] = ()
    code: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it is final and every call succeeded."""
        return self.status == "final" and all(outcome.code == "ok" for outcome in self.receipts)


class CallContent(_Answer, frozen=True):
    """One call of a transaction."""

    contract: str
    method: str
    args: dict[str, Any]


class TransactionContent(_Answer, frozen=True):
    """What the sender signed, and with which keys (hex)."""

    wire_id: str
    network: str
    sender: str
    request_id: str
    expires_at_ms: int
    mode: Literal["atomic", "each"]
    calls: tuple[CallContent, ...]
    keys: tuple[str, ...]


class TransactionAnswer(Fate, frozen=True):
    """A transaction's fate with its content, where this node has it."""

    content: TransactionContent | None = None


class TransactionSummary(_Answer, frozen=True):
    """One line of a list. `calls` counts them; `failed` counts those whose code is not `ok`."""

    tx_id: str
    status: FateStatus
    sender: str
    request_id: str
    calls: int
    height: int | None = None
    failed: int = 0


class TransactionPage(_Answer, frozen=True):
    """Pending transactions first, then final ones from the newest block down.

    `before` continues the list with older ones; None: there are none.
    """

    transactions: tuple[TransactionSummary, ...]
    before: str | None = None


class SubmissionResult(_Answer, frozen=True, omit_defaults=True):
    """One outcome of a batch: a transaction's fate so far, or the error for which it was refused."""

    tx_id: str | None = None
    status: FateStatus | None = None
    duplicate: bool = False
    height: int | None = None
    receipts: tuple[CallOutcome, ...] = ()
    code: str | None = None
    error: ErrorBody | None = None


class BatchAnswer(_Answer, frozen=True):
    """The outcomes of a batch, in the order of its transactions."""

    accepted: int
    refused: int
    results: tuple[SubmissionResult, ...]


class QueryAnswer(_Answer, frozen=True):
    """A value read from the state after block `height`, whose root is `state_root`.

    `age_ms` is how long ago that block was made, by this node's clock; `value` is plain JSON, bytes as hex.
    `diverged_at` is the height at which this node's execution differs from the network's (None: it does not): the
    state is certified, but this node does not follow beyond it.
    """

    value: Any
    height: int
    state_root: str
    age_ms: int
    diverged_at: int | None = None


class HeaderAnswer(_Answer, frozen=True):
    """A block's header; its digest is what the certificate's votes sign."""

    network: str
    height: int
    parent: str
    time_ms: int
    proposer: str
    tx_root: str
    receipts_root: str
    state_root: str
    members_hash: str
    contracts_hash: str


class CertificateAnswer(_Answer, frozen=True):
    """A quorum of votes: `signatures` maps a member's index in the list of that height to its signature."""

    kind: Literal["prepare", "commit"]
    view: int
    height: int
    digest: str
    signatures: dict[str, str]


class BlockTransaction(_Answer, frozen=True):
    """A transaction in its block: what was signed, and the outcome of each call."""

    tx_id: str
    content: TransactionContent
    receipts: tuple[CallOutcome, ...]
    quarantined: bool = False


class BlockAnswer(_Answer, frozen=True):
    """A decided block with its certificate."""

    height: int
    digest: str
    header: HeaderAnswer
    certificate: CertificateAnswer
    transactions: tuple[BlockTransaction, ...]


class LedgerEvent(Event, frozen=True):
    """An event with its place in the ledger. `cursor` resumes a stream just after it.

    `tx_id` is None for an event of a scheduled call.
    """

    cursor: str
    height: int
    tx_id: str | None


class EventPage(_Answer, frozen=True):
    """Events in ledger order. `next` is the cursor to continue from, also when none matched.

    `complete`: there is nothing after `next` yet.
    """

    events: tuple[LedgerEvent, ...]
    next: str
    complete: bool


class PeerStatus(_Answer, frozen=True):
    """A peer as this node sees it; `height` is the last applied one that it told of, None before it spoke."""

    id: str
    connected: bool
    height: int | None = None


class DivergenceAnswer(_Answer, frozen=True):
    """The certified block that the node executes otherwise than the network, and what a peer's proof showed of it.

    `code` says which root differs. `tx_id`, `contract` and `method` name the first differing transaction (`exact`
    False: the one named is the last that may be it), `our_code` and `their_code` its outcomes where they differ,
    `key` a state key with the SHA-256 of its value here and there (None: absent). `compared_with` None: the proof
    is still being fetched.
    """

    height: int
    digest: str
    code: str
    since_time_ms: int
    sentence: str
    compared_with: str | None = None
    tx_id: str | None = None
    position: int | None = None
    contract: str | None = None
    method: str | None = None
    our_code: str | None = None
    their_code: str | None = None
    key: tuple[str | int | bool, ...] = ()
    our_value_hash: str | None = None
    their_value_hash: str | None = None
    differing_keys: int = 0
    exact: bool = False


class BackupStatus(_Answer, frozen=True):
    """What this node could be backed up with now.

    `first_block` is the first of the blocks up to `height` whose body is here. `snapshot_height` is that of the
    snapshot made for a backup (0: none), `making_height` that of the one being made (0: none is); `failed` says why
    the last one was not made. `size_bytes` is about what blocks, state and indexes take on the node's disk.
    """

    height: int
    first_block: int
    snapshot_height: int = 0
    making_height: int = 0
    failed: str = ""
    size_bytes: int = 0


class JoinStatus(_Answer, frozen=True):
    """How far a node is that joins from a snapshot: `step` is `asking`, `fetching` or `adopting`.

    `height` is that of the snapshot (0: none found yet). Bytes are those before compression. `peers` send chunks
    now; `refused` says why what a peer offered or sent was not taken.
    """

    step: str
    height: int = 0
    chunks: int = 0
    chunks_total: int = 0
    size_bytes: int = 0
    size_bytes_total: int = 0
    bytes_per_s: int = 0
    peers: tuple[str, ...] = ()
    refused: dict[str, str] = {}


class PeerAsked(_Answer, frozen=True):
    """A peer that was asked for the blocks `first` to `last`, `for_ms` ago."""

    id: str
    first: int
    last: int
    for_ms: int


class PeerLeftOut(_Answer, frozen=True):
    """A peer that is not asked for blocks now: why, and for how long."""

    id: str
    reason: str
    for_ms: int


class SyncStatus(_Answer, frozen=True):
    """How this node catches up with blocks that others have decided; while none is fetched, how it last did.

    `caught_up`: enough members were heard to know that nothing more is decided than stands here. `target` is what
    others have decided, `height` this node's own. The rates are those of the last ten seconds, `eta_ms` follows
    from them (None: unknown). `waited_ms` of `elapsed_ms` passed without a block at hand. `blocks`, `transactions`
    and `bytes` count since the start of the node, `held_bytes` are fetched and not yet applied. `lowest_served`
    (None: all is well) is the lowest height that any connected peer serves while none of them serves the next block
    any more.
    """

    running: bool
    caught_up: bool
    from_height: int
    height: int
    target: int
    blocks_per_s: float
    transactions_per_s: float
    eta_ms: int | None
    elapsed_ms: int
    waited_ms: int
    blocks: int
    transactions: int
    bytes: int
    held_bytes: int
    faults: int
    asked: tuple[PeerAsked, ...] = ()
    left_out: tuple[PeerLeftOut, ...] = ()
    problem: str | None = None
    lowest_served: int | None = None


class RestAnswer(_Answer, frozen=True):
    """A member in its maintenance window; `skipped`: its turns as primary are others' (not where too many rest)."""

    member: str
    until_ms: int
    skipped: bool


class BrakeAnswer(_Answer, frozen=True):
    """What an emergency brake stops: `scope` is account, currency, method or member."""

    scope: str
    subject: str
    until_ms: int


class NodeStatus(_Answer, frozen=True):
    """Where this node stands. `height`, `head` and `state_root` are those of the last applied block.

    `network_height` is what others have certainly decided, as far as this node has heard, and at least its own
    height: by a certificate, or by the word of more members than may lie. It is never this node's own state.
    `view` and `primary` are those of the height in work. `ready`: it follows the network and blocks can be made;
    `reasons` says in sentences why not. `diverged`: it executes a certified block otherwise than the network and
    stays at the block before. `joining`: it joins from a snapshot. From `first_block` on every block is here whole;
    of those below it most were pruned and only their headers are. `standing` is this member's on the ledger:
    active, suspended or removed. `resting` are the members in a maintenance window, `brakes` what is stopped.
    """

    member: str
    role: str
    network: str
    genesis_hash: str
    version: str
    height: int
    view: int
    primary: str
    head: str
    state_root: str
    head_time_ms: int
    ready: bool
    reasons: tuple[str, ...]
    voting: bool
    peers: tuple[PeerStatus, ...]
    pending_transactions: int
    pending_bytes: int
    diverged: DivergenceAnswer | None = None
    network_height: int = 0
    sync: SyncStatus | None = None
    joining: JoinStatus | None = None
    first_block: int = 1
    standing: str = "active"
    resting: tuple[RestAnswer, ...] = ()
    brakes: tuple[BrakeAnswer, ...] = ()


class MemberStatus(_Answer, frozen=True):
    """A member of the network, by the ledger and as last heard. `last_seen_ms` is the age of its last status."""

    id: str
    role: str
    address: str
    voting_key: str
    tls_key: str
    connected: bool
    height: int | None = None
    view: int | None = None
    clock_offset_ms: int | None = None
    last_seen_ms: int | None = None
    standing: str = "active"


class MethodDescription(_Answer, frozen=True):
    """A call or query of a contract; `arguments` is the JSON Schema of the object of its named arguments.

    In that schema a string with `contentEncoding` is bytes; in JSON they are written in hex.
    """

    name: str
    doc: str
    arguments: dict[str, Any]


class CodeDescription(_Answer, frozen=True):
    """A reason for which a contract refuses a call, and the ISO 20022 status reason that says the same, if any."""

    code: str
    meaning: str
    iso: str | None = None


class ShippedVersion(_Answer, frozen=True):
    """A version of a contract that the asked node has, and the digest of its sources there."""

    version: int
    source: str


class ContractAnswer(_Answer, frozen=True):
    """A contract with its calls, its queries and the reasons for which it refuses.

    `version` executes, or did last where the contract is not `active`, from height `since` on; `source` is the
    digest of its sources at the asked node (empty: it is not there), and `shipped` all versions that the node has.
    `uses` are the contracts that it calls.
    """

    name: str
    version: int
    doc: str
    calls: tuple[MethodDescription, ...]
    queries: tuple[MethodDescription, ...]
    codes: tuple[CodeDescription, ...] = ()
    source: str = ""
    active: bool = True
    since: int = 1
    shipped: tuple[ShippedVersion, ...] = ()
    uses: tuple[str, ...] = ()


class Culprit(_Answer, frozen=True):
    """A member that keeps blocks from being made, or would with the next failure. `cause` is a stable code."""

    member: str
    cause: str
    sentence: str


class NextEvent(_Answer, frozen=True):
    """What happens without anybody's help, and in how many milliseconds (None: nobody can know)."""

    what: str = ""
    in_ms: int | None = None


class StepStatus(_Answer, frozen=True):
    """Of the step that the height in work waits in: who has voted (or asked for the view), who is missing."""

    voted: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


class MemberDiagnosis(_Answer, frozen=True):
    """A member as its own signed report, its links and its clock show it; None: not known.

    `reachable`: this node hears it now. `reached_by` names the others that hear it. `votes`: its vote counts here.
    `clock_offset_ms` is its clock minus this node's. `report_age_ms` is the age of its last report; `report_old`
    says that it is too old to speak of now. `cause` is "" or what is wrong with it.
    """

    id: str
    role: str
    reachable: bool
    reached_by: tuple[str, ...] = ()
    votes: bool = False
    height: int | None = None
    view: int | None = None
    phase: str = ""
    version: str = ""
    clock_offset_ms: int | None = None
    report_age_ms: int | None = None
    report_old: bool = False
    disk_free_bytes: int | None = None
    link_error: str = ""
    cause: str = ""


class Diagnosis(_Answer, frozen=True):
    """Why blocks are made or not made, in plain sentences, the most important first: the `headline`.

    `known`: False while the node has just started and has not heard from enough others to tell; `moving` is False
    then too. `since_ms` is for how long nothing moves (None: it moves, or nobody knows). `culprits` are ordered by
    weight. `operator` says what can safely be done, one line each. `height`, `view`, `phase` and `step` are those
    of the height in work. `missing` names the members that are waited for; `details` holds the numbers behind the
    sentences.
    """

    moving: bool
    sentences: tuple[str, ...]
    headline: str = ""
    known: bool = True
    since_ms: int | None = None
    culprits: tuple[Culprit, ...] = ()
    next: NextEvent = NextEvent()
    operator: tuple[str, ...] = ()
    height: int = 0
    view: int = 0
    phase: str = ""
    step: StepStatus = StepStatus()
    members: tuple[MemberDiagnosis, ...] = ()
    missing: tuple[str, ...] = ()
    details: dict[str, Any] = {}


class EvidenceItem(_Answer, frozen=True):
    """Proof that `member` signed two different things for one slot, or that its key lives in two places.

    `kind` is `vote`, `new_view` or `two_instances` (then without height and view); `data` is its canonical bytes.
    """

    member: str
    kind: str
    height: int
    view: int
    data: str


class ChangedValue(_Answer, frozen=True):
    """A state key that a dry run would change. `before` and `after` are plain values; None: absent."""

    key: tuple[str | int | bool, ...]
    before: Any
    after: Any


class DryRun(_Answer, frozen=True):
    """What a transaction would do on the state after block `height`; nothing was changed.

    `details` has a sentence for each call that fails, for people; receipts on the ledger never hold such text.
    """

    tx_id: str
    height: int
    receipts: tuple[CallOutcome, ...]
    changes: tuple[ChangedValue, ...]
    details: tuple[str, ...] = ()
    operations: int = 0

    @property
    def refusal(self) -> str:
        """The code of the first call that fails; empty: none does."""
        return next((receipt.code for receipt in self.receipts if receipt.code != "ok"), "")
