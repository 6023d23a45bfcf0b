"""Routes of transactions: submit one or many, ask for a fate, list, and run without effect."""

import asyncio
import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal

import msgspec
from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, QueryParameter

from consensus.codec import CodecError, unpack
from node.api.failures import failure_response, status_of
from node.api.service import NodeService
from node.client import content, error_body
from node.client.answers import (
    BatchAnswer,
    DryRun,
    Fate,
    Submission,
    SubmissionResult,
    TransactionAnswer,
    TransactionPage,
)
from node.errors import HansaError, NotFound, RejectedTransaction
from node.ledger import Transaction

BATCH_TRANSACTIONS_MAX: Final = 5_000
WAIT_S_MAX: Final = 60.0
PAGE_TRANSACTIONS_MAX: Final = 1_000

_TX_ID = re.compile(r"[0-9a-f]{64}")

Seconds = Annotated[float, QueryParameter(ge=0, le=WAIT_S_MAX, description="How long `wait` may take, in seconds.")]
Wait = Annotated[
    Literal["final"] | None, QueryParameter(description="`final`: answer when it is no longer pending.")
]


class _JsonBody(msgspec.Struct, forbid_unknown_fields=True):
    transaction: str | None = None
    transactions: list[str] | None = None


_json_body = msgspec.json.Decoder(_JsonBody)


def tx_id_of(text: str) -> bytes:
    """The 32 bytes of a transaction id as written in an address."""
    if not _TX_ID.fullmatch(text):
        raise RejectedTransaction("malformed_request", "a transaction id is 64 lower-case hex digits")
    return bytes.fromhex(text)


def media_type(request: Request[None, None, State]) -> str:
    """`json` or `msgpack`, by the Content-Type; raise `unsupported_media_type` for another."""
    name = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if name == "application/json":
        return "json"
    if name in ("application/msgpack", "application/vnd.msgpack", "application/x-msgpack"):
        return "msgpack"
    raise RejectedTransaction("unsupported_media_type", f"{name[:80]} is not understood here")


def submitting_routes(service: NodeService) -> list[HTTPRouteHandler]:
    """The handlers under /v1/transactions and /v1/dry-run. Long: they are closures over the service."""
    # Over 70 lines because each handler in it is documented for the page of operations.

    @post(
        "/transactions",
        summary="Submit one transaction or many",
        description="One: 202 and its id (200 and its fate with `wait=final`), or the error. Many: an outcome for"
        " each, in order; 202 when all were taken (200 when all are final), 207 when at least one was refused,"
        " 429 when there was room for none: the request is to come again as it is, and nothing is said of"
        " any one of them, which may be known here all the same."
        " Sending the same transaction again is safe: it has one effect.",
        tags=["transactions"],
        responses={
            200: ResponseSpec(Fate | BatchAnswer, description="Final, by `wait=final`", generate_examples=False),
            202: ResponseSpec(Submission | BatchAnswer, description="Taken", generate_examples=False),
            207: ResponseSpec(BatchAnswer, description="Some refused", generate_examples=False),
        },
    )
    async def submit(
        request: Request[None, None, State], wait: Wait = None, timeout_s: Seconds = 10.0
    ) -> Response[bytes]:
        transactions, many = _transactions(await request.body(), media_type(request))
        results = await service.submit(transactions)
        crowded_out = [item for item in results if isinstance(item, HansaError) and status_of(item) == 429]
        if len(crowded_out) == len(results):
            # Nothing new was taken for want of room: the whole request is to come again later.
            return failure_response(crowded_out[0])
        deadline = asyncio.get_running_loop().time() + timeout_s if wait else None
        if many:
            return await _batch_answer(service, results, deadline)
        result = results[0]
        if isinstance(result, HansaError):
            raise result
        if deadline is None:
            return _json(result, 202)
        fate = await service.wait_final(bytes.fromhex(result.tx_id), timeout_s)
        return _json(fate, 202 if fate.status == "pending" else 200)

    @get("/transactions/{tx_id:str}", summary="A transaction's fate and content", tags=["transactions"])
    async def transaction(tx_id: FromPath[str], wait: Wait = None, timeout_s: Seconds = 10.0) -> TransactionAnswer:
        key = tx_id_of(tx_id)
        fate = await service.wait_final(key, timeout_s) if wait else service.fate(key)
        if fate.status == "unknown":
            raise await service.missing(key)
        data = service.transaction(key)
        return TransactionAnswer(
            tx_id=fate.tx_id,
            status=fate.status,
            height=fate.height,
            receipts=fate.receipts,
            code=fate.code,
            content=None if data is None else content(Transaction.decode(data)),
        )

    @get("/transactions", summary="Pending and recent transactions", tags=["transactions"], sync_to_thread=False)
    def transactions_page(
        limit: Annotated[int, QueryParameter(ge=1, le=PAGE_TRANSACTIONS_MAX)] = 50,
        before: Annotated[
            str | None, QueryParameter(max_length=200, description="`before` of an earlier page.")
        ] = None,
    ) -> TransactionPage:
        return service.transactions(limit, before)

    @post(
        "/dry-run",
        summary="What a transaction would do",
        description="The body is one signed transaction, as for /v1/transactions. Nothing is changed or passed on.",
        tags=["transactions"],
        status_code=200,
    )
    async def dry_run(request: Request[None, None, State]) -> DryRun:
        transactions, _ = _transactions(await request.body(), media_type(request))
        if len(transactions) != 1:
            raise RejectedTransaction("malformed_request", "a dry run takes exactly one transaction")
        return await service.dry_run(transactions[0])

    return [submit, transaction, transactions_page, dry_run]


async def _batch_answer(
    service: NodeService, results: Sequence[Submission | HansaError], deadline: float | None
) -> Response[bytes]:
    """All outcomes in order; with a deadline, those taken are waited for together until then."""
    fates: Iterator[Fate | NotFound] = iter(())
    if deadline is not None:
        taken = [bytes.fromhex(result.tx_id) for result in results if isinstance(result, Submission)]
        fates = iter(await service.wait_all(taken, max(0.0, deadline - asyncio.get_running_loop().time())))
    answers: list[SubmissionResult] = []
    refused = pending = 0
    for result in results:
        if isinstance(result, HansaError):
            refused += 1
            answers.append(SubmissionResult(error=error_body(result)))
            continue
        fate = result if deadline is None else next(fates)
        if isinstance(fate, NotFound):
            # Final so long ago that its receipts are gone here.
            error = error_body(fate)
            answers.append(SubmissionResult(tx_id=result.tx_id, status=result.status, duplicate=True, error=error))
        elif isinstance(fate, Submission):
            pending += 1
            answers.append(SubmissionResult(tx_id=result.tx_id, status=result.status, duplicate=result.duplicate))
        else:
            pending += fate.status == "pending"
            answers.append(
                SubmissionResult(
                    tx_id=fate.tx_id,
                    status=fate.status,
                    duplicate=result.duplicate,
                    height=fate.height,
                    receipts=fate.receipts,
                    code=fate.code,
                )
            )
    answer = BatchAnswer(accepted=len(answers) - refused, refused=refused, results=tuple(answers))
    return _json(answer, 207 if refused else 202 if pending else 200)


def _json(answer: msgspec.Struct, status: int) -> Response[bytes]:
    return Response(msgspec.json.encode(answer), status_code=status, media_type="application/json")


def _transactions(body: bytes, media: str) -> tuple[list[bytes], bool]:
    """The raw transactions of a body, and whether they came as a list."""
    if media == "msgpack":
        transactions, many = _from_msgpack(body)
    else:
        transactions, many = _from_json(body)
    if not transactions:
        raise RejectedTransaction("malformed_request", "the list of transactions is empty")
    if len(transactions) > BATCH_TRANSACTIONS_MAX:
        raise RejectedTransaction(
            "too_many_transactions",
            f"{len(transactions)} transactions in one request; {BATCH_TRANSACTIONS_MAX} are allowed",
            limit=BATCH_TRANSACTIONS_MAX,
        )
    return transactions, many


def _from_msgpack(body: bytes) -> tuple[list[bytes], bool]:
    try:
        value = unpack(body, size_max=len(body))
    except CodecError as error:
        raise RejectedTransaction("malformed_request", f"the body is {error}") from error
    if isinstance(value, bytes):
        return [value], False
    if isinstance(value, tuple) and all(isinstance(item, bytes) for item in value):
        return list(value), True
    raise RejectedTransaction(
        "malformed_request", "a MessagePack body is one transaction as `bin`, or an array of them"
    )


def _from_json(body: bytes) -> tuple[list[bytes], bool]:
    try:
        value = _json_body.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RejectedTransaction("malformed_request", f"the body is not the documented JSON: {error}") from error
    if value.transaction is not None and value.transactions is None:
        return [_text_bytes(value.transaction)], False
    if value.transactions is not None and value.transaction is None:
        return [_text_bytes(text) for text in value.transactions], True
    raise RejectedTransaction("malformed_request", 'a JSON body has either "transaction" or "transactions"')


def _text_bytes(text: str) -> bytes:
    """Hex or base64. A transaction starts with byte 0x92, so `92…` is hex and `k…` is base64: never both."""
    try:
        if text.startswith("92"):
            return bytes.fromhex(text)
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise RejectedTransaction("malformed_request", "a transaction is written in hex or base64") from None
