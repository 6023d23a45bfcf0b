"""The HTTP interface: `ApiServer` serves a `NodeService` on one address."""

from node.api.server import ApiLimits, ApiServer
from node.api.service import Backups, EventCursor, EventFilter, NodeService, Proofs, StoredBlock

__all__ = [
    "ApiLimits",
    "ApiServer",
    "Backups",
    "EventCursor",
    "EventFilter",
    "NodeService",
    "Proofs",
    "StoredBlock",
]
