"""Catch-up: decided blocks and proposed payloads that this node lacks, fetched from peers and proven before use.

Nothing here trusts a peer. A block counts only with a quorum of commit signatures by the members of its height,
on top of this node's own head; a peer's word about its head only says whom to ask.
"""

from node.sync.catch_up import CatchUp, Chain
from node.sync.collaborators import Transport
from node.sync.executions import fetch_execution
from node.sync.payloads import fetch_payload
from node.sync.progress import PeerAside, PeerAtWork, Progress
from node.sync.server import Archive, BlockServer
from node.sync.snapshot_server import SnapshotServer
from node.sync.stretch import ReadyBlock

__all__ = [
    "Archive",
    "BlockServer",
    "CatchUp",
    "Chain",
    "PeerAside",
    "PeerAtWork",
    "Progress",
    "ReadyBlock",
    "SnapshotServer",
    "Transport",
    "fetch_execution",
    "fetch_payload",
]
