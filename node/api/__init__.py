"""The HTTP interface: `ApiServer` serves a `NodeService` on one address."""

from node.api.server import ApiLimits, ApiServer
from node.api.service import EventCursor, EventFilter, NodeService, StoredBlock

__all__ = ["ApiLimits", "ApiServer", "EventCursor", "EventFilter", "NodeService", "StoredBlock"]
