"""Routes of evidence packs: files that prove what the ledger says to somebody who has only network.toml."""

from typing import Annotated, Final

from litestar import Request, Response, get, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, QueryParameter

from consensus.codec import CodecError, unpack
from contracts.state_keys import KEY_SIZE_BYTES_MAX
from node.api.service import NodeService, Proofs
from node.api.submitting import media_type, tx_id_of
from node.errors import RejectedTransaction
from node.ledger import TRANSACTION_SIZE_MAX

KEY_PARTS_MAX: Final = 16

At = Annotated[
    int | None,
    QueryParameter(name="at", ge=0, le=2**53, description="Prove it after this height, not the head's."),
]
Checkpoint = Annotated[
    int | None,
    QueryParameter(ge=1, le=2**53, description="Put in the headers up to this height, whose digest is known."),
]
Height = Annotated[
    int, QueryParameter(name="from", ge=1, le=2**53, description="The state before the first entry.")
]
Until = Annotated[
    int | None, QueryParameter(name="to", ge=1, le=2**53, description="The state after the last entry (the head).")
]
KeyHex = Annotated[str | None, QueryParameter(description="The state key in hex; or give contract, field, part.")]
Contract = Annotated[str | None, QueryParameter(max_length=40, description="The contract, or `ledger`.")]
Field = Annotated[str | None, QueryParameter(max_length=40, description="What it keeps: `accounts`.")]
Parts = Annotated[
    list[str] | None, QueryParameter(name="part", description="A part of the key; again for the next one.")
]

_PACK = {
    200: ResponseSpec(bytes, description="The pack", media_type="application/msgpack", generate_examples=False)
}


def proof_routes(service: NodeService) -> list[HTTPRouteHandler]:
    """The handlers under /v1/proofs. Each answers with one evidence pack, to be written to a file as it is."""
    # Over 70 lines because each handler in it is documented for the page of operations.

    def proofs(request: Request[None, None, State]) -> Proofs:
        # Behind a proxy all clients are one: it is for the proxy then to tell them apart.
        return service.proofs.for_client(request.client.host if request.client else "unknown")

    @get(
        "/proofs/transaction/{tx_id:str}",
        summary="Prove a transaction and its outcome",
        description="The answer is an evidence pack: `hansa-verify` checks it with network.toml alone.",
        tags=["proofs"],
        responses=_PACK,
    )
    async def transaction(
        request: Request[None, None, State], tx_id: FromPath[str], checkpoint: Checkpoint = None
    ) -> Response[bytes]:
        return _pack(await proofs(request).transaction(tx_id_of(tx_id), checkpoint))

    @get(
        "/proofs/state",
        summary="Prove a value of the state, or its absence",
        description="The key is given in hex, or by contract, field and parts as on the command line. The pack's"
        " kind says whether there is a value: `state` or `absence`.",
        tags=["proofs"],
        responses=_PACK,
    )
    async def state(
        request: Request[None, None, State],
        key: KeyHex = None,
        contract: Contract = None,
        field: Field = None,
        part: Parts = None,
        at: At = None,
        checkpoint: Checkpoint = None,
    ) -> Response[bytes]:
        return _pack(await proofs(request).state(_key(service, key, contract, field, part), at, checkpoint))

    @get(
        "/proofs/statement/{account:str}",
        summary="Prove an account's entries between two heights, all of them",
        tags=["proofs"],
        responses=_PACK,
    )
    async def statement(
        request: Request[None, None, State],
        account: FromPath[str],
        first: Height,
        last: Until = None,
        checkpoint: Checkpoint = None,
    ) -> Response[bytes]:
        return _pack(await proofs(request).statement(account[:64], first, last, checkpoint))

    @get(
        "/proofs/not-executed/{tx_id:str}",
        summary="Prove that a transaction was not executed and never will be",
        description="Of one that this node accepted and that has ended since. From the first block after its expiry"
        " on, and until retention_ms later.",
        tags=["proofs"],
        responses=_PACK,
    )
    async def not_executed_by_id(
        request: Request[None, None, State], tx_id: FromPath[str], at: At = None, checkpoint: Checkpoint = None
    ) -> Response[bytes]:
        return _pack(await proofs(request).not_executed_by_id(tx_id_of(tx_id), at, checkpoint))

    @post(
        "/proofs/not-executed",
        summary="Prove that a transaction, sent along, was not executed and never will be",
        description="The body is the transaction as `bin` in MessagePack: signed, or its body alone.",
        tags=["proofs"],
        status_code=200,
        responses=_PACK,
    )
    async def not_executed(
        request: Request[None, None, State], at: At = None, checkpoint: Checkpoint = None
    ) -> Response[bytes]:
        if media_type(request) != "msgpack":
            raise RejectedTransaction("unsupported_media_type", "the transaction is sent as application/msgpack")
        try:
            data = unpack(await request.body(), size_max=TRANSACTION_SIZE_MAX + 16)
        except CodecError as error:
            raise RejectedTransaction("malformed_request", f"the body is {error}") from error
        if not isinstance(data, bytes):
            raise RejectedTransaction("malformed_request", "the body is one transaction as `bin`")
        return _pack(await proofs(request).not_executed(data, at, checkpoint))

    return [transaction, state, statement, not_executed_by_id, not_executed]


def _key(
    service: NodeService, key: str | None, contract: str | None, field: str | None, parts: list[str] | None
) -> bytes:
    """The state key that is meant: by its hex, or by names."""
    if key is not None and contract is None and field is None and parts is None:
        try:
            data = bytes.fromhex(key)
        except ValueError:
            data = b""
        if not 0 < len(data) <= KEY_SIZE_BYTES_MAX:
            raise RejectedTransaction(
                "malformed_request", f"a state key is 1 to {KEY_SIZE_BYTES_MAX} bytes, in hex"
            )
        return data
    if key is None and contract is not None and field is not None and len(parts or ()) <= KEY_PARTS_MAX:
        return service.proofs.key(contract, field, parts or ())
    raise RejectedTransaction("malformed_request", "give either key in hex, or contract and field with its parts")


def _pack(data: bytes) -> Response[bytes]:
    return Response(data, media_type="application/msgpack")
