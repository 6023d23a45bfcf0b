"""Four real processes: loaded, used, killed, restarted, wiped, and always in agreement again."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from node.client import call, draft, sign
from node.errors import HansaError
from node.keys import SigningKey
from tests.e2e.conftest import Bank, Testnet, agreed

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def in_agreement(testnet: Testnet) -> Iterator[None]:
    """Whatever a test does, afterwards all four nodes run and agree."""
    yield
    testnet.run("start")
    testnet.wait(agreed)


def test_the_sample_is_loaded_once_and_adds_up(testnet: Testnet) -> None:
    before = {row["height"] for row in testnet.members()}
    testnet.run("stop")
    again = testnet.up()
    assert again["figures"]["codes"].keys() == {"ok"}
    assert again["figures"]["without_fate"] == []
    assert {row["height"] for row in testnet.members()} == before
    found = testnet.document("audit")["audit"]
    assert found["problems"] == []
    assert sum(found["payouts"].values()) > 0


def test_a_transaction_is_final_with_one_receipt_everywhere(bank: Bank) -> None:
    before = bank.balance("T-2")
    payment = bank.payment("final-everywhere", amount=7)
    with bank.client("insurer-b") as client:
        fate = client.submit_and_wait(payment)
    assert fate.ok
    for answer in bank.fates([payment], list(bank.urls)):
        assert (answer.status, answer.height, answer.receipts) == ("final", fate.height, fate.receipts)
    assert [bank.balance("T-2", member) for member in bank.urls] == [before + 7] * 4


def test_the_same_transaction_a_hundred_times_through_a_view_change_has_one_effect(
    testnet: Testnet, bank: Bank
) -> None:
    before = bank.balance("T-2")
    payment = bank.payment("a-hundred-times", amount=11)
    victim = bank.primary()
    alive = bank.others(victim)
    for number in range(100):
        if number == 30:
            testnet.run("kill", victim)
        with bank.client(alive[number % 3]) as client:
            client.submit(payment)
    heights = {fate.height for fate in bank.fates([payment], alive)}
    assert len(heights) == 1
    assert [bank.balance("T-2", member) for member in alive] == [before + 11] * 3


@pytest.mark.parametrize("member", ["bank-a", "bank-b", "insurer-a", "insurer-b"])
def test_a_killed_node_loses_nothing_and_returns(testnet: Testnet, bank: Bank, member: str) -> None:
    alive = bank.others(member)
    accepted = []
    with bank.client(member) as client:
        for number in range(20):
            payment = bank.payment(f"before-{member}-{number}")
            client.submit(payment)
            accepted.append(payment)
    testnet.run("kill", member)
    after = bank.payment(f"after-{member}")
    with bank.client(*alive) as client:
        assert client.submit_and_wait(after).ok
    testnet.run("start", member)
    testnet.wait(agreed)
    assert all(fate.ok for fate in bank.fates([*accepted, after], [member, alive[0]]))


def test_the_primary_is_killed_and_the_others_go_on(testnet: Testnet, bank: Bank) -> None:
    victim = bank.primary()
    alive = bank.others(victim)
    testnet.run("kill", victim)
    with bank.client(*alive) as client:
        assert client.submit_and_wait(bank.payment("without-primary")).ok
    assert bank.primary() != victim


def test_without_quorum_nothing_is_decided_and_the_missing_are_named(testnet: Testnet, bank: Bank) -> None:
    testnet.run("kill", "bank-b")
    testnet.run("kill", "insurer-b")
    rows = testnet.wait(lambda rows: not any(row["ready"] for row in rows), timeout_s=60)
    assert [row["alive"] for row in rows] == [True, False, True, False]
    with bank.client("bank-a") as client:
        height = client.status().height
        reasons = " ".join(client.status().reasons)
        assert "bank-b" in reasons
        assert "insurer-b" in reasons
        waiting = bank.payment("without-quorum")
        client.submit(waiting)
        assert client.wait(waiting.tx_id.hex(), timeout_s=1.0).status == "pending"
        assert client.status().height == height
        testnet.run("start", "insurer-b")
        assert client.wait(waiting.tx_id.hex(), timeout_s=60.0).ok


def test_a_wiped_node_reaches_the_same_root_and_votes_again(testnet: Testnet, bank: Bank) -> None:
    testnet.run("wipe", "insurer-a")
    height = bank.height("bank-a")
    # It abstains until the others are past what it learnt, so the others have to go on.
    deadline = time.monotonic() + 60
    number = 0
    while not testnet.member("insurer-a")["ready"]:
        assert time.monotonic() < deadline
        number += 1
        with bank.client("bank-a") as client:
            assert client.submit_and_wait(bank.payment(f"wiped-{number}")).ok
    assert number > 0
    rows = testnet.wait(agreed)
    assert {row["height"] for row in rows} == {height + number}
    # Its vote is needed now.
    testnet.run("kill", "bank-b")
    with bank.client("insurer-a") as client:
        assert client.submit_and_wait(bank.payment("needs-the-wiped-vote")).ok


def test_verify_reads_a_whole_ledger_again(testnet: Testnet, bank: Bank) -> None:
    testnet.run("stop", "bank-b")
    report: dict[str, Any] = testnet.hansa_document("bank-b", "verify")
    assert report["ok"]
    assert report["first_error"] is None
    assert report["height"] == report["blocks"] == bank.height("bank-a")


def test_a_load_is_reported(testnet: Testnet) -> None:
    report = testnet.document("load", "--rate", "100", "--seconds", "2")
    assert report["final"] == report["sent"] == 200
    assert report["failed_calls"] == report["without_fate"] == 0
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p99"]


def test_a_refused_key_changes_nothing(bank: Bank) -> None:
    before = bank.balance("T-2")
    args = {"debtor": "T-1", "creditor": "T-2", "amount": 5}
    body = draft(bank.network, "bank-a", [call("settlement.transfer", args)])
    with bank.client() as client, pytest.raises(HansaError) as caught:
        client.submit(sign(body, [SigningKey.generate()]))
    assert caught.value.code == "policy_unsatisfied"
    assert bank.balance("T-2") == before
