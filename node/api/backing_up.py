"""Routes that `hansa backup` uses: for the operator, like diagnostics, and not for applications."""

from typing import Annotated

from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter

from node.api.service import NodeService
from node.client.answers import BackupStatus

First = Annotated[int, QueryParameter(ge=1, le=2**53, description="The height of the first block wanted.")]


def backup_routes(service: NodeService) -> list[HTTPRouteHandler]:
    """The handlers under /v1/backup."""

    @get("/backup", summary="What this node could be backed up with", tags=["node"], sync_to_thread=False)
    def status() -> BackupStatus:
        return service.backups.status()

    @post(
        "/backup/snapshot",
        summary="Make a snapshot of the head for a backup",
        description="Made in the background, one at a time, into a directory beside the node's data.",
        tags=["node"],
        status_code=202,
        sync_to_thread=False,
    )
    def snapshot() -> BackupStatus:
        return service.backups.make_snapshot()

    @get(
        "/backup/blocks",
        summary="Some blocks with certificates and receipts, as archives hold them",
        tags=["node"],
        responses={200: ResponseSpec(bytes, media_type="application/msgpack", generate_examples=False)},
    )
    async def blocks(first: First) -> Response[bytes]:
        return Response(await service.backups.blocks(first), media_type="application/msgpack")

    return [status, snapshot, blocks]
