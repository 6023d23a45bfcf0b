"""How much work on proofs each client may cause, so that none burns this node's processor or shuts out the others.

Invariant: in any time T a client causes at most SPARE_MS + T / EVERY of work, and what the answers exceeded that
were begun while something was left. What is remembered of clients is bounded: who was charged longest ago is
forgotten first.
"""

from collections import OrderedDict

from node.errors import Unavailable

SPARE_MS = 60_000
"""So much work a client that has not asked for long may cause at once."""
EVERY = 4
"""After that one part of so many: a quarter of a processor."""
CLIENTS_MAX = 10_000


class ProofBudget:
    """Milliseconds of work that are left to each client. `now_ms` is any one steady clock's."""

    def __init__(self, spare_ms: int = SPARE_MS) -> None:
        self._spare_ms = spare_ms
        self._clients: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """What was left, and when that was, by client; who was charged last stands last."""

    def require(self, client: str, now_ms: int) -> None:
        """Something is left to `client`; else raise Unavailable("proofs_spent") with the time to wait."""
        left_ms = self._left_ms(client, now_ms)
        if left_ms <= 0:
            raise Unavailable(
                "proofs_spent",
                f"the proofs asked for by {client} took more of this node's time than one client gets",
                retry_after_ms=(1 - left_ms) * EVERY,
            )

    def charge(self, client: str, work_ms: int, now_ms: int) -> None:
        """`client` has caused so much work."""
        self._clients[client] = (self._left_ms(client, now_ms) - work_ms, now_ms)
        self._clients.move_to_end(client)
        if len(self._clients) > CLIENTS_MAX:
            self._clients.popitem(last=False)

    def _left_ms(self, client: str, now_ms: int) -> int:
        left_ms, then_ms = self._clients.get(client, (self._spare_ms, now_ms))
        return min(self._spare_ms, left_ms + (now_ms - then_ms) // EVERY)
