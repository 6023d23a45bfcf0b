"""Spreads transactions: batches out, unknown ones in, and what was lost is repaired.

The way of a transaction through the network, with its cost in a full mesh of n nodes:

- Who accepts it from a client pushes its body, batched, to every connected peer: n - 1 bodies in all.
- Who learns of it from a peer relays only its 32-byte name, only to peers that are not known to have it, and only
  if it still waits after RELAY_DELAY_S. In a full mesh everybody has the body by then, so nobody asks for it
  again, and whatever became final in the meantime is not named at all. In a mesh with gaps the name arrives and
  the body is fetched: one body a peer and transaction either way. Relaying bodies instead would cost
  (n - 1) * (n - 2) of them; a tree of eager links would save the delay but must be repaired when a link goes.
- Every REPAIR_INTERVAL_S, and on every connect, the names of transactions that wait for long are told to peers.
  That heals every loss (a full send queue, a partition, a node that was away).

Bytes are named by their hash before anything else is done with them, so a duplicate costs one hash. Only what the
intake accepted is told to others; whoever sends what can never be valid is muted and reported.
"""

from node.gossip.collaborators import Intake, Pool, Transport, Verdict, wire_id_of
from node.gossip.spread import Gossip, GossipStatus

__all__ = ["Gossip", "GossipStatus", "Intake", "Pool", "Transport", "Verdict", "wire_id_of"]
