"""Work for a network: phases of signed bundles, each call with the outcome that it must have.

Bundles of one phase may become final in any order; a phase begins when the one before it is final.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from node.ledger import Body, Call

BUNDLE_CALLS = 500


class ExpectedCall(msgspec.Struct, frozen=True):
    """A call and the code that its receipt must carry."""

    contract: str
    method: str
    args: dict[str, Any]
    code: str = "ok"


class Bundle(msgspec.Struct, frozen=True):
    """One transaction of `sender`; every call has its own outcome (mode `each`)."""

    sender: str
    request_id: str
    calls: tuple[ExpectedCall, ...]

    def body(self, network: str, expires_at_ms: int) -> Body:
        """What the sender signs."""
        calls = tuple(Call(call.contract, call.method, call.args) for call in self.calls)
        return Body(network, self.sender, self.request_id, expires_at_ms, "each", calls)


class Phase(msgspec.Struct, frozen=True):
    """Bundles without an order among them. `what` names them on the progress bar."""

    what: str
    bundles: tuple[Bundle, ...]

    @property
    def calls(self) -> int:
        """How many calls the phase makes."""
        return sum(len(bundle.calls) for bundle in self.bundles)


class Group(msgspec.Struct, frozen=True):
    """Calls of one sender that stand in one transaction, in this order."""

    sender: str
    calls: tuple[ExpectedCall, ...]


def bundles(groups: Iterable[Group], prefix: str, size: int = BUNDLE_CALLS) -> tuple[Bundle, ...]:
    """The groups as bundles of at most `size` calls of one sender, each sender's groups in order.

    Request ids are `<prefix>/<sender>/<number>`: the same input gives the same bundles.
    """
    by_sender: dict[str, list[Group]] = {}
    for group in groups:
        by_sender.setdefault(group.sender, []).append(group)
    queues = [list(_filled(sender, found, prefix, size)) for sender, found in by_sender.items()]
    return tuple(_in_turns(queues))


def _filled(sender: str, groups: list[Group], prefix: str, size: int) -> Iterator[Bundle]:
    calls: list[ExpectedCall] = []
    number = 0
    for group in groups:
        if calls and len(calls) + len(group.calls) > size:
            yield Bundle(sender, f"{prefix}/{sender}/{number:05d}", tuple(calls))
            calls, number = [], number + 1
        calls += group.calls
    if calls:
        yield Bundle(sender, f"{prefix}/{sender}/{number:05d}", tuple(calls))


def _in_turns(queues: list[list[Bundle]]) -> Iterator[Bundle]:
    """Every sender's bundles in turn, so that all members' work goes on side by side."""
    for place in range(max((len(queue) for queue in queues), default=0)):
        for queue in queues:
            if place < len(queue):
                yield queue[place]
