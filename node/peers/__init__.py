"""Links to the other members: who is connected, and how messages get there and back.

`Transport` is what the rest of the node may know; `Peers` is the transport over TLS 1.3 with pinned keys.
"""

from node.peers.mesh import Peers
from node.peers.transport import PeerHandler, PeerInfo, Timing, Transport

__all__ = ["PeerHandler", "PeerInfo", "Peers", "Timing", "Transport"]
