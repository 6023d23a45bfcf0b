"""Routes that read: blocks, contracts, queries, members, and how the node is."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, QueryParameter

from consensus.codec import CodecError, check_plain, encode, unpack
from node.api.failures import failure_response
from node.api.service import NodeService
from node.api.submitting import media_type
from node.client import block_answer, error_body, plain_json
from node.client.answers import (
    BlockAnswer,
    ContractAnswer,
    Diagnosis,
    ErrorBody,
    EvidenceItem,
    MemberStatus,
    NodeStatus,
    QueryAnswer,
)
from node.client.arguments import arguments_from_json, arguments_from_text, find_method
from node.errors import RejectedTransaction, Unavailable

At = Annotated[
    int | None,
    QueryParameter(name="at", ge=0, le=2**53, description="Read the state after this height, not the head's."),
]


class Readiness(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether the node follows the network and blocks can be made; sentences say why not."""

    ready: bool
    reasons: tuple[str, ...] = ()
    error: ErrorBody | None = None


def ledger_routes(service: NodeService) -> list[HTTPRouteHandler]:
    """The handlers under /v1/blocks, /v1/contracts and /v1/query."""
    # Over 70 lines because each handler in it is documented for the page of operations.

    @get(
        "/blocks/{height:str}",
        summary="A block with its certificate and receipts",
        description="`height` is a number or `latest`. With `Accept: application/msgpack` the answer is the block"
        " and its certificate in the ledger's canonical bytes, for those who verify it.",
        tags=["ledger"],
        sync_to_thread=False,
        responses={200: ResponseSpec(BlockAnswer, description="The block", generate_examples=False)},
    )
    def block(request: Request[None, None, State], height: FromPath[str]) -> Response[bytes]:
        if height != "latest" and not (height.isascii() and height.isdigit() and len(height) <= 18):
            raise RejectedTransaction("malformed_request", "a height is a number, or `latest`")
        stored = service.block(None if height == "latest" else int(height))
        if "application/msgpack" in request.headers.get("accept", ""):
            return Response(encode(stored.block), media_type="application/msgpack")
        answer = block_answer(stored.block, stored.receipts)
        return Response(msgspec.json.encode(answer), media_type="application/json")

    @get("/contracts", summary="The active contracts with their schemas", tags=["ledger"], sync_to_thread=False)
    def contracts() -> tuple[ContractAnswer, ...]:
        return service.contracts()

    async def answer(contract: str, name: str, args: dict[str, Any], at: int | None) -> QueryAnswer:
        try:
            check_plain(args)
        except CodecError as error:
            raise RejectedTransaction("invalid_arguments", str(error)) from error
        found = await service.query(contract, name, args, at)
        return msgspec.structs.replace(found, value=plain_json(found.value))

    @get(
        "/query/{contract:str}/{name:str}",
        summary="Ask a contract, arguments in the address",
        description="Every other parameter is an argument, written as on the command line: integers in digits,"
        " bytes in hex, lists and objects as JSON.",
        tags=["ledger"],
    )
    async def query(
        request: Request[None, None, State], contract: FromPath[str], name: FromPath[str], at: At = None
    ) -> QueryAnswer:
        texts: dict[str, str] = {}
        for key, value in request.query_params.multi_items():
            if key == "at":
                continue
            if key in texts:
                raise RejectedTransaction("malformed_request", f"{key} is given twice")
            texts[key] = value
        method = find_method(service.contracts(), f"{contract}.{name}", query=True)
        return await answer(contract, name, arguments_from_text(method.arguments, texts), at)

    @post(
        "/query/{contract:str}/{name:str}",
        summary="Ask a contract, arguments in the body",
        description="The body is one object of named arguments, as JSON (bytes in hex) or MessagePack.",
        tags=["ledger"],
        status_code=200,
    )
    async def query_body(
        request: Request[None, None, State], contract: FromPath[str], name: FromPath[str], at: At = None
    ) -> QueryAnswer:
        body = await request.body()
        binary = media_type(request) == "msgpack"
        args = _object(body, binary)
        if not binary:
            method = find_method(service.contracts(), f"{contract}.{name}", query=True)
            args = arguments_from_json(method.arguments, args)
        return await answer(contract, name, args, at)

    return [block, contracts, query, query_body]


def node_routes(service: NodeService) -> list[HTTPRouteHandler]:
    """The handlers under /v1 that say how node and network are."""

    @get("/status", summary="Where this node stands", tags=["node"], sync_to_thread=False)
    def status() -> NodeStatus:
        return service.status()

    @get("/members", summary="The members as last heard", tags=["node"], sync_to_thread=False)
    def members() -> tuple[MemberStatus, ...]:
        return service.members()

    @get("/why", summary="Why blocks are made or not", tags=["node"], sync_to_thread=False)
    def why() -> Diagnosis:
        return service.why()

    @get("/evidence", summary="Proofs of misbehaviour", tags=["node"], sync_to_thread=False)
    def evidence() -> tuple[EvidenceItem, ...]:
        return service.evidence()

    @get(
        "/diagnostics",
        summary="What to send to somebody who looks into a fault",
        description="A zip with why, status, versions, parameters and a recording of the consensus inputs."
        " It holds no keys, no transactions and none of their arguments.",
        tags=["node"],
        media_type="application/zip",
    )
    async def diagnostics() -> Response[bytes]:
        bundle = await service.diagnostics()
        headers = {"content-disposition": 'attachment; filename="hansa-diagnostics.zip"'}
        return Response(bundle, media_type="application/zip", headers=headers)

    return [status, members, why, evidence, diagnostics]


def probe_routes(service: NodeService) -> list[HTTPRouteHandler]:
    """The handlers outside /v1 for supervisors and monitoring."""

    @get("/healthz", summary="Whether the process answers", tags=["probes"], sync_to_thread=False)
    def healthz() -> dict[str, bool]:
        return {"alive": True}

    @get(
        "/readyz",
        summary="Whether the node follows the network and blocks can be made",
        tags=["probes"],
        sync_to_thread=False,
        responses={
            200: ResponseSpec(Readiness, description="Ready", generate_examples=False),
            503: ResponseSpec(Readiness, description="Not ready, with reasons", generate_examples=False),
        },
    )
    def readyz() -> Response[bytes]:
        ready, reasons = service.ready()
        if ready:
            return Response(msgspec.json.encode(Readiness(True)), media_type="application/json")
        error = Unavailable("not_ready", "; ".join(reasons) or "the node does not say why")
        response = failure_response(error)
        response.content = msgspec.json.encode(Readiness(False, tuple(reasons), error_body(error)))
        return response

    @get("/metrics", summary="Counters for Prometheus", tags=["probes"], sync_to_thread=False)
    def metrics() -> Response[bytes]:
        return Response(service.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return [healthz, readyz, metrics]


def _object(body: bytes, binary: bool) -> dict[str, Any]:
    try:
        value = unpack(body, size_max=len(body)) if binary else msgspec.json.decode(body or b"{}")
    except (CodecError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RejectedTransaction("malformed_request", f"the body cannot be read: {error}") from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise RejectedTransaction("malformed_request", "the body is one object of named arguments")
    return value
