"""Each operation of the API as a value: the request it makes and the reading of its answer, without any network.

The synchronous and the asynchronous client perform the same operations, so they cannot differ.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import msgspec

from consensus.codec import encode
from node.client.answers import (
    BackupStatus,
    BatchAnswer,
    BlockAnswer,
    ContractAnswer,
    Diagnosis,
    DryRun,
    ErrorAnswer,
    ErrorBody,
    EventPage,
    EvidenceItem,
    Fate,
    MemberStatus,
    NodeStatus,
    QueryAnswer,
    Submission,
    SubmissionResult,
    TransactionAnswer,
    TransactionPage,
)
from node.errors import CATALOGUE, HansaError, NotFound, RejectedTransaction, Unavailable

T = TypeVar("T")

DIAGNOSTICS_WAIT_S = 50.0
PROOF_WAIT_S = 110.0
"""A past state is rebuilt with pauses, so that the node goes on making blocks."""

_MSGPACK = {"content-type": "application/msgpack"}


class Operation(msgspec.Struct, Generic[T], frozen=True):
    """A request below the node's URL. `read` turns a successful answer's body into its value.

    `wait_s` is how long the node may take on purpose, on top of the ordinary time-out.
    """

    method: str
    path: str
    read: Callable[[bytes], T]
    params: Mapping[str, str | Sequence[str]] = {}
    body: bytes | None = None
    headers: Mapping[str, str] = {}
    wait_s: float = 0.0


def reader(type_: type[T]) -> Callable[[bytes], T]:
    """A function that reads a JSON document as `type_`; it raises `unexpected_answer` when it is none."""
    decoder = msgspec.json.Decoder(type_)

    def read(data: bytes) -> T:
        try:
            return decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Unavailable("unexpected_answer", f"the node's answer is not understood: {error}") from error

    return read


_read_error = reader(ErrorAnswer)


def failure(status: int, data: bytes) -> HansaError:
    """The error that an unsuccessful answer says."""
    try:
        body = _read_error(data).error
    except Unavailable:
        return Unavailable("unexpected_answer", f"HTTP status {status} without an error that is understood")
    return error_of(body, status)


def error_of(body: ErrorBody, status: int = 400) -> HansaError:
    """The exception of an error body; its class says who must act."""
    if status in (404, 410):
        class_: type[HansaError] = NotFound
    elif status == 409:
        # The ledger said no, also where it will say yes later: no other node is to be asked.
        class_ = RejectedTransaction
    elif status in (429, 503) or body.retryable:
        class_ = Unavailable
    else:
        class_ = HansaError if status >= 500 else RejectedTransaction
    details = {f"{key}_" if key in ("self", "code", "message") else key: item for key, item in body.details.items()}
    if body.code in CATALOGUE:
        return class_(body.code, body.message, **details)
    # A newer node may know codes that this client does not.
    return class_("unexpected_answer", f"{body.code}: {body.message} {body.action}", **details)


def _result(item: SubmissionResult) -> Submission | HansaError:
    if item.error is not None:
        return error_of(item.error)
    if item.tx_id is None or item.status is None:
        raise Unavailable("unexpected_answer", "an outcome names neither a transaction nor an error")
    return Submission(tx_id=item.tx_id, status=item.status, duplicate=item.duplicate)


def _fate(item: SubmissionResult) -> Fate | HansaError:
    taken = _result(item)
    if isinstance(taken, HansaError):
        return taken
    return Fate(tx_id=taken.tx_id, status=taken.status, height=item.height, receipts=item.receipts, code=item.code)


_read_submission = reader(Submission)
_read_fate = reader(Fate)
_read_batch = reader(BatchAnswer)


def submit(transaction: bytes) -> Operation[Submission]:
    """Hand over one transaction."""
    return Operation("POST", "/v1/transactions", _read_submission, body=encode(transaction), headers=_MSGPACK)


def submit_and_wait(transaction: bytes, timeout_s: float) -> Operation[Fate]:
    """Hand over one transaction and wait until it is no longer pending."""
    return Operation(
        "POST",
        "/v1/transactions",
        _read_fate,
        params={"wait": "final", "timeout_s": str(timeout_s)},
        body=encode(transaction),
        headers=_MSGPACK,
        wait_s=timeout_s,
    )


def submit_many(transactions: Sequence[bytes]) -> Operation[list[Submission | HansaError]]:
    """Hand over many transactions; an outcome for each, in order; Unavailable when all are to come again."""
    return Operation(
        "POST",
        "/v1/transactions",
        lambda data: [_result(item) for item in _read_batch(data).results],
        body=encode(tuple(transactions)),
        headers=_MSGPACK,
    )


def submit_many_and_wait(transactions: Sequence[bytes], timeout_s: float) -> Operation[list[Fate | HansaError]]:
    """Hand over many transactions and wait for all of them; a fate or an error for each, in order."""
    return Operation(
        "POST",
        "/v1/transactions",
        lambda data: [_fate(item) for item in _read_batch(data).results],
        params={"wait": "final", "timeout_s": str(timeout_s)},
        body=encode(tuple(transactions)),
        headers=_MSGPACK,
        wait_s=timeout_s,
    )


def dry_run(transaction: bytes) -> Operation[DryRun]:
    """Ask what a transaction would do."""
    return Operation("POST", "/v1/dry-run", reader(DryRun), body=encode(transaction), headers=_MSGPACK)


def transaction(tx_id: str, wait_s: float | None) -> Operation[TransactionAnswer]:
    """Ask for a fate, or wait for it up to `wait_s`."""
    params = {} if wait_s is None else {"wait": "final", "timeout_s": str(wait_s)}
    return Operation(
        "GET",
        f"/v1/transactions/{quote(tx_id, safe='')}",
        reader(TransactionAnswer),
        params=params,
        wait_s=wait_s or 0.0,
    )


def transactions(limit: int, before: str | None) -> Operation[TransactionPage]:
    """List pending and recent transactions."""
    params = {"limit": str(limit)} | ({} if before is None else {"before": before})
    return Operation("GET", "/v1/transactions", reader(TransactionPage), params=params)


def query(name: str, args: Mapping[str, Any], at_height: int | None) -> Operation[QueryAnswer]:
    """Ask `contract.query`; arguments are plain values, bytes as bytes."""
    contract, _, method = name.partition(".")
    params = {} if at_height is None else {"at": str(at_height)}
    path = f"/v1/query/{quote(contract, safe='')}/{quote(method, safe='')}"
    return Operation("POST", path, reader(QueryAnswer), params=params, body=encode(dict(args)), headers=_MSGPACK)


def block(height: int | None) -> Operation[BlockAnswer]:
    """Fetch a block (None: the newest)."""
    return Operation("GET", f"/v1/blocks/{'latest' if height is None else height}", reader(BlockAnswer))


def events(after: str | None, contract: str | None, topic: str | None, limit: int) -> Operation[EventPage]:
    """Fetch one page of events."""
    return Operation(
        "GET", "/v1/events", reader(EventPage), params={**event_params(after, contract, topic), "limit": str(limit)}
    )


def event_params(after: str | None, contract: str | None, topic: str | None) -> dict[str, str]:
    """The parameters that select events."""
    given = {"after": after, "contract": contract, "topic": topic}
    return {name: value for name, value in given.items() if value is not None}


def status() -> Operation[NodeStatus]:
    """Ask where the node stands."""
    return Operation("GET", "/v1/status", reader(NodeStatus))


def members() -> Operation[tuple[MemberStatus, ...]]:
    """List the members as last heard."""
    return Operation("GET", "/v1/members", reader(tuple[MemberStatus, ...]))


def contracts() -> Operation[tuple[ContractAnswer, ...]]:
    """List the active contracts with their schemas."""
    return Operation("GET", "/v1/contracts", reader(tuple[ContractAnswer, ...]))


def why() -> Operation[Diagnosis]:
    """Ask why blocks are made or not."""
    return Operation("GET", "/v1/why", reader(Diagnosis))


def evidence() -> Operation[tuple[EvidenceItem, ...]]:
    """List proofs of misbehaviour."""
    return Operation("GET", "/v1/evidence", reader(tuple[EvidenceItem, ...]))


def backup_status() -> Operation[BackupStatus]:
    """Ask what the node could be backed up with."""
    return Operation("GET", "/v1/backup", reader(BackupStatus))


def make_backup_snapshot() -> Operation[BackupStatus]:
    """Have the node make a snapshot of its head for a backup."""
    return Operation("POST", "/v1/backup/snapshot", reader(BackupStatus))


def backup_blocks(first: int) -> Operation[bytes]:
    """Fetch some blocks from `first` on with certificates and receipts, as an archive holds them."""
    return Operation("GET", "/v1/backup/blocks", bytes, params={"first": str(first)}, wait_s=DIAGNOSTICS_WAIT_S)


def diagnostics() -> Operation[bytes]:
    """Fetch the diagnostics bundle, which takes the node a moment to make."""
    return Operation("GET", "/v1/diagnostics", bytes, wait_s=DIAGNOSTICS_WAIT_S)


def prove_transaction(tx_id: str, checkpoint: int | None) -> Operation[bytes]:
    """Fetch the evidence pack of a final transaction."""
    path = f"/v1/proofs/transaction/{quote(tx_id, safe='')}"
    return Operation("GET", path, bytes, params=_given(checkpoint=checkpoint), wait_s=PROOF_WAIT_S)


def prove_state(
    contract: str, field: str, parts: Sequence[str], at_height: int | None, checkpoint: int | None
) -> Operation[bytes]:
    """Fetch the evidence pack of a state key's value, or of its absence."""
    named = {"contract": contract, "field": field, "part": tuple(parts)}
    params = {**named, **_given(at=at_height, checkpoint=checkpoint)}
    return Operation("GET", "/v1/proofs/state", bytes, params=params, wait_s=PROOF_WAIT_S)


def prove_statement(
    account: str, from_height: int, to_height: int | None, checkpoint: int | None
) -> Operation[bytes]:
    """Fetch the evidence pack of an account's entries."""
    params = {"from": str(from_height), **_given(to=to_height, checkpoint=checkpoint)}
    path = f"/v1/proofs/statement/{quote(account, safe='')}"
    return Operation("GET", path, bytes, params=params, wait_s=PROOF_WAIT_S)


def prove_not_executed(transaction: str | bytes, at_height: int | None, checkpoint: int | None) -> Operation[bytes]:
    """Fetch the evidence pack of a transaction's non-execution: by its id, or with its bytes."""
    params = _given(at=at_height, checkpoint=checkpoint)
    path = "/v1/proofs/not-executed"
    if isinstance(transaction, str):
        path = f"{path}/{quote(transaction, safe='')}"
        return Operation("GET", path, bytes, params=params, wait_s=PROOF_WAIT_S)
    body = encode(transaction)
    return Operation("POST", path, bytes, params=params, body=body, headers=_MSGPACK, wait_s=PROOF_WAIT_S)


def _given(**numbers: int | None) -> dict[str, str]:
    """The parameters that have a value."""
    return {name: str(value) for name, value in numbers.items() if value is not None}
