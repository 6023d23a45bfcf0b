"""Whom a node links to follows the ledger's members and the time of its last block."""

from contracts.membership import Member
from node.config import MemberConfig, NetworkConfig
from node.runtime.roster import roster_of

UNTIL_MS = 1_000_000
NETWORK = NetworkConfig(
    "trial",
    tuple(
        MemberConfig(name, "validator", f"{name}:1", bytes([place]) * 32, bytes([100 + place]) * 32)
        for place, name in enumerate(("bank-a", "bank-b"), 1)
    ),
)
FORMER, NEW = NETWORK.members[1].tls_key, b"n" * 32
ROWS = (
    ("bank-a", Member(0, "validator", NETWORK.members[0].voting_key, NETWORK.members[0].tls_key)),
    (
        "bank-b",
        Member(
            1,
            "validator",
            NETWORK.members[1].voting_key,
            NEW,
            former_tls_key=FORMER,
            former_tls_until_ms=UNTIL_MS,
        ),
    ),
)


def test_a_former_key_of_links_ends_by_the_blocks_time_whether_a_call_comes_or_not() -> None:
    """Its scheduled call may be settled unexecuted: a stolen key would have proven the node for ever."""
    keys = [roster_of(NETWORK, ROWS, 9, UNTIL_MS + late_ms, "bank-a").members[1].tls_keys for late_ms in (-1, 0, 1)]
    assert keys == [(NEW, FORMER), (NEW,), (NEW,)]


def test_whom_the_ledger_does_not_know_yet_joins() -> None:
    roster = roster_of(NETWORK, ROWS[:1], 9, UNTIL_MS, "bank-b")
    assert [member.id for member in roster.present] == ["bank-a", "bank-b"]
    assert (roster.standings["bank-b"], roster.validators) == ("joining", ("bank-a",))
