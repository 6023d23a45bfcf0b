"""The loads that `scripts/bench` knows by name: what is sent, to which network, beside what.

A case without a rate of its own is measured at a share of the peak that was found just before it.
"""

from typing import Literal

import msgspec

from node.config import Parameters
from scripts.localnet.workload import Shape

HALF = 0.5
"""Of the peak: what a network is run at by people who want to sleep."""
HOT_ACCOUNTS = 100
UNIQUE_ACCOUNTS = 10_000
"""More than twice a block's transactions: so no two of a block meet in an account."""
REQUESTS_PER_S_MIN = 20.0
"""A slow load goes in smaller requests, rather than seldom."""
MANY_BITS = 20
"""Of the state tree's buckets, for millions of keys (DESIGN §5)."""


class Place(msgspec.Struct, frozen=True):
    """The network that a case runs on; cases of one place share a network. `nodes` 0: as many as --nodes says.

    `delay_ms`: so much later everything arrives at another node, each way. `filled`: so many accounts are in the
    state before anything is measured.
    """

    nodes: int = 0
    delay_ms: int = 0
    filled: int = 0

    def parameters(self) -> Parameters:
        """The network's rules of blocks."""
        return Parameters(state_tree_bits=MANY_BITS) if self.filled else Parameters()


class LoadCase(msgspec.Struct, frozen=True):
    """One load. `accounts`: of all members together. `rate`: transactions a second; None: half the peak.

    `queries_per_s`: asked of the first node meanwhile. `down`: so many of the last nodes do not run.
    """

    name: str
    what: str
    calls: int = 1
    per_request: int = 50
    mode: Literal["each", "atomic"] = "each"
    uetr: bool = False
    reference_chars: int = 0
    accounts: int = UNIQUE_ACCOUNTS
    work: Literal["payments", "claims"] = "payments"
    rate: float | None = None
    queries_per_s: float = 0.0
    down: int = 0
    place: Place = Place()

    def shape(self, rate: float, seconds: float) -> Shape:
        """What is sent at that rate."""
        return Shape(
            rate=rate,
            seconds=seconds,
            calls=self.calls,
            transactions_per_request=max(1, min(self.per_request, round(rate / REQUESTS_PER_S_MIN))),
            mode=self.mode,
            uetr=self.uetr,
            reference_chars=self.reference_chars,
        )


def _bundles() -> list[LoadCase]:
    found = []
    for calls in (10, 100, 1_000):
        for mode in ("each", "atomic"):
            for uetr in (False, True):
                name = f"bundle{calls}{'-atomic' if mode == 'atomic' else ''}{'-uetr' if uetr else ''}"
                outcome = "all or nothing" if mode == "atomic" else "each its own outcome"
                found.append(
                    LoadCase(
                        name,
                        f"{calls} transfers a bundle, {outcome}{', a UETR each' if uetr else ''}, 100 accounts",
                        calls=calls,
                        per_request=max(1, 50 // calls),
                        mode="atomic" if mode == "atomic" else "each",
                        uetr=uetr,
                        accounts=HOT_ACCOUNTS,
                    )
                )
    return found


LOAD_CASES: dict[str, LoadCase] = {
    case.name: case
    for case in (
        LoadCase("single", "one transfer a transaction, 10,000 accounts, 50 a request"),
        LoadCase("hot", "the same among 100 accounts", accounts=HOT_ACCOUNTS),
        LoadCase("idle", "ten transactions a second, one by one", per_request=1, rate=10.0, accounts=HOT_ACCOUNTS),
        *_bundles(),
        LoadCase("claims", "claims from notice to payout, five calls all or nothing", calls=5, work="claims"),
        LoadCase(
            "queries",
            "1,000 balances a second asked of one node beside the load",
            rate=500.0,
            queries_per_s=1_000.0,
        ),
        LoadCase(
            "payload-1k", "1 KiB: six transfers with UETR and reference", calls=6, uetr=True, reference_chars=35
        ),
        LoadCase("one-down", "the last node does not run", down=1),
        *(
            LoadCase(f"nodes{count}", f"a network of {count} nodes", place=Place(nodes=count))
            for count in (4, 7, 10, 16)
        ),
        *(
            LoadCase(f"wan{delay}", f"{delay} ms between any two nodes, each way", place=Place(delay_ms=delay))
            for delay in (20, 80)
        ),
        LoadCase("accounts-1m", "a state of one million accounts", place=Place(filled=1_000_000)),
    )
}
GROUPS: dict[str, tuple[str, ...]] = {
    "bundles": tuple(case.name for case in _bundles()),
    "nodes": ("nodes4", "nodes7", "nodes10", "nodes16"),
    "wan": ("wan20", "wan80"),
}
"""Names for several cases at once."""
