"""The work made of the data ends on the real contracts as the plain loops say."""

from pathlib import Path
from typing import Any

import pytest

from contracts import CONTRACTS
from contracts.engine import Engine, Environment, EventRecord
from contracts.testkit import MemoryState
from scripts.localnet.claims_book import ClaimsBook
from scripts.localnet.datasets import Claim, DataError, Transfer
from scripts.localnet.plan import ExpectedCall, Group, bundles
from scripts.localnet.replay import SAMPLE_CLAIMS, SAMPLE_PAYMENTS, Cast, data_name, make_replay
from scripts.localnet.transfers import Transfers

CAST = Cast(("bank-a", "bank-b", "insurer-a", "insurer-b"))


class Ledger:
    """The contracts on a state in memory, without transactions, blocks or a network."""

    def __init__(self) -> None:
        self._engine = Engine(CONTRACTS)
        self._state = MemoryState()
        principals = [
            {"id": name, "keys": [bytes([index]) * 32], "threshold": 1}
            for index, name in enumerate((*CAST.members, *CAST.staff))
        ]
        members = [
            {"id": name, "role": "validator", "voting_key": bytes([100 + i]) * 32, "tls_key": bytes([120 + i]) * 32}
            for i, name in enumerate(CAST.members)
        ]
        currencies = [{"code": code, "exponent": 2, "issuer": issuer} for code, issuer in CAST.issuers.items()]
        self._engine.genesis(
            self._state,
            self._environment("@genesis"),
            {
                "settlement": {"currencies": currencies},
                "membership": {"members": members, "principals": principals},
            },
        )

    def call(self, sender: str, call: ExpectedCall) -> str:
        outcome = self._engine.execute(
            self._state, self._environment(sender), call.contract, call.method, call.args, 100_000
        )
        return outcome.code

    def query(self, name: str, **args: str) -> Any:
        contract, _, method = name.partition(".")
        return self._engine.query(
            self._state, NoEvents(), self._environment("@query"), contract, method, args, 100_000
        )

    def broken_invariants(self) -> list[str]:
        return self._engine.check_invariants(self._state, self._environment("@check"))

    def _environment(self, sender: str) -> Environment:
        return Environment("test", 1, 1_700_000_000_000, sender, bytes(32), repr_bytes)


class NoEvents:
    def events(self, topic: str, from_height: int, to_height: int, limit: int) -> list[tuple[int, EventRecord]]:
        return []


def repr_bytes(value: object) -> bytes:
    return repr(value).encode()


def test_the_sample_ends_as_the_plain_loops_say() -> None:
    replay = make_replay(SAMPLE_PAYMENTS, SAMPLE_CLAIMS, CAST, transfers_max=900, singles=10)
    ledger = Ledger()
    for phase in replay.phases:
        for bundle in phase.bundles:
            assert len(bundle.calls) <= 500
            for call in bundle.calls:
                assert (call.method, call.args, ledger.call(bundle.sender, call)) == (
                    call.method,
                    call.args,
                    call.code,
                )
    for account, expected in replay.balances.items():
        assert ledger.query("settlement.balance", account=account)["balance"] == expected
    assert sum(replay.payouts.values()) > 0
    for product, expected in replay.payouts.items():
        assert ledger.query("claims.total", product=product)["paid"] == expected
    assert ledger.broken_invariants() == []


def test_the_whole_sample_is_as_large_as_promised() -> None:
    replay = make_replay(SAMPLE_PAYMENTS, SAMPLE_CLAIMS, CAST, transfers_max=None, singles=0)
    assert (replay.name, replay.transfers, replay.claims) == ("sample", 6000, 1102)
    ids = [bundle.request_id for phase in replay.phases for bundle in phase.bundles]
    assert len(set(ids)) == len(ids)


def test_opening_balances_cover_every_order_and_self_transfers_are_refused() -> None:
    rows = [Transfer(1, 1, 2, 500, 1), Transfer(2, 1, 1, 70, 1), Transfer(3, 2, 1, 30, 2)]
    transfers = Transfers(rows, {1: 100, 2: 9_900}, ("x", "y"), "C")
    book = transfers.expected()
    assert book.accounts == {"C-1": ("y", 500, 30), "C-2": ("x", 9_900, 10_370)}
    assert book.refused == 1
    assert book.funded == 10_400
    assert [group.calls[0].code for group in transfers.payments()] == ["ok", "same_account", "ok"]


@pytest.mark.parametrize(
    ("row", "injury", "lag", "cents", "expected"),
    [
        (1, "minor injury", 10, 1_000_05, (False, "", 450_04)),  # (1000.05 - 500.00) less 50.005, rounded up
        (2, "minor injury", 10, 1_000_05, (False, "", 5)),
        (1, "fatal injury", 10, 999_999_99, (False, "", 224_550_00)),
        (2, "minor injury", 10, 1_000_00, (False, "below_deductible", 0)),
        (1, "not recorded", 10, 5_000_00, (True, "peril_excluded", 0)),
        (1, "minor injury", 1_096, 5_000_00, (True, "late_notice", 0)),
        (1, "minor injury", 1_095, 5_000_00, (False, "", 4_050_00)),
    ],
)
def test_terms(row: int, injury: str, lag: int, cents: int, expected: tuple[bool, str, int]) -> None:
    claim = Claim(row, 8_000, 8_000 + lag, 9_999, injury, 1, True, cents)
    decision = ClaimsBook([claim], CAST.insurers, CAST.members, "C").decision(claim)
    assert (decision.denied_at_notice, decision.reason, decision.payable) == expected


def test_a_group_is_never_split_over_two_bundles() -> None:
    pair = Group("a", (ExpectedCall("c", "first", {}), ExpectedCall("c", "second", {})))
    other = Group("b/x", (ExpectedCall("c", "other", {}),))
    made = bundles([pair, pair, other, pair], "p/1", size=3)
    assert [(bundle.sender, bundle.request_id, len(bundle.calls)) for bundle in made] == [
        ("a", "p/1/a/00000", 2),
        ("b/x", "p/1/b/x/00000", 1),
        ("a", "p/1/a/00001", 2),
        ("a", "p/1/a/00002", 2),
    ]


def test_other_files_get_accounts_of_their_own(tmp_path: Path) -> None:
    payments, claims = tmp_path / "transactions.csv", tmp_path / "claims.csv"
    payments.write_text("x")
    claims.write_text("y")
    name, prefix = data_name(payments, claims)
    assert name.startswith("replay-")
    assert prefix == "R" + name.removeprefix("replay-")
    claims.write_text("z")
    assert data_name(payments, claims)[0] != name
    with pytest.raises(DataError, match="No such file"):
        data_name(payments, tmp_path / "missing")


@pytest.mark.parametrize(
    ("members", "insurers", "issuers"),
    [
        (("bank-a",), ("bank-a", "bank-a"), {"USD": "bank-a", "AUD": "bank-a"}),
        (("bank-a", "bank-b"), ("bank-a", "bank-b"), {"USD": "bank-a", "AUD": "bank-b"}),
        ((*CAST.members, "bank-c"), ("insurer-a", "insurer-b"), {"USD": "bank-a", "AUD": "bank-b"}),
    ],
)
def test_parts_in_small_and_large_networks(
    members: tuple[str, ...], insurers: tuple[str, str], issuers: dict[str, str]
) -> None:
    cast = Cast(members)
    assert cast.insurers == insurers
    assert cast.issuers == issuers
