"""Four real processes: a primary in its window is stopped and nobody waits for it; two stop one account."""

import pytest

from node.client import call
from tests.e2e.conftest import Bank, Testnet
from tests.e2e.load import Load, blocks_from, longest_gap_ms, until

pytestmark = pytest.mark.slow

WAIT_S = 60.0
PAID = 40
"""So many payments, one after the other, make as many blocks or so."""


def test_a_primary_stops_within_its_window_and_no_view_changes(
    testnet: Testnet, bank: Bank, capsys: pytest.CaptureFixture[str]
) -> None:
    resting = bank.primary()
    rest = bank.others(resting)
    with bank.client(*rest) as client, Load(bank, *rest) as load:

        def paid(count: int) -> None:
            wanted = load.paid + count
            until(lambda: load.paid >= wanted, lambda: (load.paid, client.why().sentences))

        paid(3)
        booked = testnet.hansa_document(resting, "maintenance", "book", "--for", "10m", "--reason", "new disks")
        [number] = [
            event["data"]["window"] for event in booked["receipts"][0]["events"] if event["name"] == "Booked"
        ]
        first = booked["height"]
        # Another one at the same time would leave two of four: it is told so.
        refused = testnet.hansa(rest[0], "maintenance", "book", "--for", "5m", ok=False)
        assert refused.returncode == 1
        assert "2 of 4 validators are left, and a quorum is 3" in refused.stderr
        testnet.hansa(resting, "maintenance", "move", str(number), "--for", "20m")
        assert "new disks" in testnet.hansa(rest[1], "maintenance", "list").stdout
        until(lambda: client.status().primary != resting, client.status)
        assert "its turn as primary is skipped" in testnet.hansa(rest[0], "status").stdout
        paid(5)
        testnet.run("stop", resting)
        paid(PAID)
        assert f"{resting} is in a maintenance window" in " ".join(client.why().sentences)
        testnet.run("start", resting)
        testnet.wait(lambda rows: all(row["ready"] for row in rows), WAIT_S)
        # It is back, and takes its turns again.
        testnet.hansa(resting, "maintenance", "cancel", str(number))
        until(lambda: client.status().primary == resting, client.status)
        paid(5)
        assert client.query("maintenance.calendar").value == []
        blocks = blocks_from(bank.urls[rest[0]], first)
    views = {block.certificate.view for block in blocks}
    assert len(views) == 1, "a view change was needed"
    proposers = [block.header.proposer for block in blocks]
    assert resting not in proposers[2:PAID]
    assert proposers[-1] == resting
    with capsys.disabled():
        print(f"\n{len(blocks)} blocks, longest gap {longest_gap_ms(blocks)} ms; {load.paid} payments")


def test_a_brake_by_two_members_stops_one_account_and_ends_by_itself(testnet: Testnet, bank: Bank) -> None:
    with bank.client() as client:
        for account in ("T-3", "T-4"):
            args = {"account": account, "owner": "bank-a", "currency": "USD"}
            assert client.call("settlement.open_account", args).ok
        assert client.call("settlement.issue", {"account": "T-3", "amount": 100}).ok

        def code(debtor: str, creditor: str) -> str:
            args = {"debtor": debtor, "creditor": creditor, "amount": 1}
            return client.submit_and_wait(bank.signed([call("settlement.transfer", args)])).receipts[0].code

        unknown = testnet.hansa("bank-b", "brake", "ask", "account", "T-99", "--reason", "fraud", ok=False)
        assert unknown.returncode == 1
        assert "account_not_found" in unknown.stderr
        ask = ("brake", "ask", "account", "T-1", "--for", "20s", "--reason", "fraud")
        asked = testnet.hansa_document("bank-b", *ask)
        number = str(asked["receipts"][0]["events"][0]["data"]["brake"])
        assert code("T-1", "T-2") == "ok"
        testnet.hansa("insurer-a", "brake", "confirm", number)
        assert [code("T-1", "T-2"), code("T-2", "T-1"), code("T-3", "T-4")] == ["braked", "braked", "ok"]
        assert "An emergency brake stops account T-1" in testnet.hansa("insurer-b", "status").stdout
        # One of the two lifts another one at once, while this one lasts.
        asked = testnet.hansa_document("insurer-a", "brake", "ask", "member", "bank-a", "--reason", "stolen key")
        other = str(asked["receipts"][0]["events"][0]["data"]["brake"])
        alone = testnet.hansa("insurer-a", "brake", "confirm", other, ok=False)
        assert (alone.returncode, "same_member" in alone.stderr) == (1, True)
        assert "Brake 2 is on" in testnet.hansa("bank-b", "brake", "confirm", other).stdout
        assert code("T-3", "T-4") == "braked"
        assert "Brake 2 is lifted" in testnet.hansa("bank-b", "brake", "lift", other).stdout
        until(lambda: client.query("brake.pulled").value == [], lambda: client.query("brake.page").value)
        assert code("T-1", "T-2") == "ok"
        rows = testnet.hansa_document("insurer-b", "brake", "list", "--all")["brakes"]
        told = [(row["brake"]["status"], row["brake"]["asker"], row["brake"]["confirmer"]) for row in rows]
        assert told == [("over", "bank-b", "insurer-a"), ("lifted", "insurer-a", "bank-b")]
        assert code("T-3", "T-4") == "ok"
        assert client.status().brakes == ()
