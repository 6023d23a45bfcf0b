"""A payment above a tier's limit, by the command line on a live network: refused, requested, approved, executed."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from node.cli.main import main
from node.config import PrincipalConfig
from node.keys import SigningKey, read_key_info, write_key_file
from tests.node.test_governing_live import PASSPHRASE, GovernedNetwork, printed

pytestmark = pytest.mark.slow

TREASURY = "bank-a/treasury"
PEOPLE = ("anna", "ben", "cleo", "ria", "rob", "dora")
GROUPS = [
    {"threshold": 2, "persons": ["bank-a/anna", "bank-a/ben", "bank-a/cleo"]},
    {"threshold": 1, "persons": ["bank-a/ria", "bank-a/rob"]},
]
TIER = ("name=large", f"principal={TREASURY}", "contract=settlement", "argument=amount", "over=1000000")
PAYMENT = ("settlement.transfer", "debtor=T-1", "creditor=B-1", "amount=1000001")


class TieredNetwork(GovernedNetwork):
    """bank-a has a treasury and people, each with a key; nothing costs to open these."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        names = (TREASURY, *(f"bank-a/{name}" for name in PEOPLE))
        found = {name: SigningKey.generate() for name in names}
        added = tuple(PrincipalConfig(name, (key.public,), 1) for name, key in found.items())
        currencies = [{"code": "EUR", "exponent": 2, "issuer": "bank-b"}]
        self.network = msgspec.structs.replace(
            self.network,
            principals=(*self.network.principals, *added),
            contracts={**self.network.contracts, "settlement": {"currencies": currencies}},
        )
        for name, key in found.items():
            write_key_file(self.key_file(name), key, kind="principal", id=name, passphrase=PASSPHRASE)

    def key_file(self, principal: str) -> Path:
        """Where its key lies."""
        return self._roots / f"{principal.replace('/', '.')}.key"

    async def act_as(self, principal: str, *arguments: str) -> int:
        """The exit code of a command line of the principal, at one and the same node."""
        return await self.run("bank-a", *arguments, "--as", principal, "--key", str(self.key_file(principal)))

    async def sign(self, file: Path, principal: str) -> None:
        """The principal has signed the transaction in the file, without a node."""
        words = ["tx", "sign", str(file), "--yes", "--key", str(self.key_file(principal)), "--json"]
        assert await asyncio.to_thread(main, words) == 0

    async def done_as(self, principal: str, *arguments: str) -> None:
        """The command line did what it says."""
        assert await self.act_as(principal, *arguments) == 0, (principal, arguments)


@pytest_asyncio.fixture
async def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TieredNetwork]:
    monkeypatch.setenv("HANSA_PASSPHRASE", PASSPHRASE)
    monkeypatch.setattr("nacl.pwhash.argon2id.OPSLIMIT_INTERACTIVE", 1)
    monkeypatch.setattr("nacl.pwhash.argon2id.MEMLIMIT_INTERACTIVE", 8_192)
    network = TieredNetwork(tmp_path)
    await network.start_all()
    yield network
    await network.stop()


async def prepare(live: TieredNetwork) -> None:
    """Money on the treasury's account, and the tier over it."""
    submit = ("tx", "submit")
    await live.done_as(
        TREASURY, *submit, "settlement.open_account", "account=T-1", f"owner={TREASURY}", "currency=EUR"
    )
    await live.done_as("bank-b", *submit, "settlement.open_account", "account=B-1", "owner=bank-b", "currency=EUR")
    await live.done_as("bank-b", *submit, "settlement.issue", "account=T-1", "amount=50000000")
    await live.done_as("bank-a", *submit, "membership.set_tier", *TIER, f"groups={json.dumps(GROUPS)}")


async def received(live: TieredNetwork) -> int:
    """What bank-b has by the node that was waited for: others apply the block when they come to it."""
    async with live.client("bank-a") as client:
        return int((await client.query("settlement.balance", {"account": "B-1"})).value["balance"])


async def test_a_large_payment_is_requested_and_approved(
    live: TieredNetwork, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    await prepare(live)
    capsys.readouterr()
    assert await live.act_as(TREASURY, "tx", "submit", *PAYMENT) == 1
    error = printed(capsys)["error"]
    assert (error["code"], error["details"]["tier"]) == ("approval_required", "large")
    assert "large: 2 of bank-a/anna, bank-a/ben, bank-a/cleo and 1 of bank-a/ria, bank-a/rob" in error["message"]
    command = (
        "hansa approvals request settlement.transfer debtor=T-1 creditor=B-1 amount=1000001 --as bank-a/treasury"
    )
    assert command in error["message"]

    await live.done_as(TREASURY, "approvals", "request", *PAYMENT, "--note", "invoice 7")
    capsys.readouterr()
    assert await live.act_as("bank-a/anna", "approvals", "approve", "1") == 2
    assert printed(capsys)["error"]["code"] == "not_confirmed"
    await live.done_as("bank-a/anna", "approvals", "approve", "1", "--yes")
    capsys.readouterr()
    assert await live.act_as("bank-a/anna", "approvals", "approve", "1", "--yes") == 1
    assert printed(capsys)["error"]["code"] == "approved_already"
    assert await live.act_as("bank-a/dora", "approvals", "approve", "1", "--yes") == 1
    assert "not_entitled" in capsys.readouterr().err
    # Ben is away: from now on dora speaks for him.
    async with live.client("bank-a") as client:
        time_ms = (await client.block()).header.time_ms
    public = read_key_info(live.key_file("bank-a/dora")).public_key.hex()
    away = ("delegate=bank-a/dora", f"key={public}", f"until_ms={time_ms + 3_600_000}")
    await live.done_as("bank-a/ben", "tx", "submit", "membership.stand_in", *away)
    await live.done_as("bank-a/dora", "approvals", "approve", "1", "--yes")
    capsys.readouterr()
    assert await live.run("bank-a", "approvals", "list") == 0
    [row] = printed(capsys)["requests"]
    assert (row["requester"], row["approved_by"]) == (TREASURY, ["bank-a/anna", "bank-a/dora"])
    assert await live.run("bank-a", "approvals", "show", "1") == 0
    shown = printed(capsys)
    officers, risk = shown["progress"]["tiers"][0]["groups"]
    assert [seat["by"] for seat in officers["seats"]] == ["bank-a/anna", "bank-a/dora", ""]
    assert [seat["by"] for seat in risk["seats"]] == ["", ""]
    assert await received(live) == 0
    await live.done_as("bank-a/rob", "approvals", "approve", "1", "--yes")
    assert await received(live) == 1_000_001
    capsys.readouterr()
    assert await live.run("bank-a", "approvals", "show", "1") == 0
    ending = printed(capsys)
    assert ending["status"] == "executed"
    assert await live.run("bank-a", "tx", "show", ending["ending"]["tx_id"]) == 0
    [receipt] = printed(capsys)["receipts"]
    assert [event["name"] for event in receipt["events"]] == ["Approved", "Moved", "Ended"]

    # Another is rejected, a third withdrawn.
    for way, who in (("reject", "bank-a/ria"), ("withdraw", TREASURY)):
        number = "2" if way == "reject" else "3"
        await live.done_as(TREASURY, "approvals", "request", *PAYMENT)
        await live.done_as(who, "approvals", way, number, *(["--yes"] if way == "reject" else []))
    assert await live.act_as("bank-a/cleo", "approvals", "approve", "2", "--yes") == 1
    assert "request_ended" in capsys.readouterr().err
    assert await received(live) == 1_000_001

    # What has expired by the node's clock is told so before any block is, and nothing is sent to it.
    await live.done_as(TREASURY, "approvals", "request", *PAYMENT, "--expires", "1s")
    await asyncio.sleep(1)
    capsys.readouterr()
    for way in ("approve", "reject"):
        assert await live.act_as("bank-a/cleo", "approvals", way, "4", "--yes") == 1
        error = printed(capsys)["error"]
        assert (error["code"], error["message"]) == ("request_ended", "request 4 is expired")
    assert await live.run("bank-a", "approvals", "show", "4") == 0
    assert printed(capsys)["status"] == "expired"

    # All signatures at once, made away from the network.
    file = tmp_path / "pay.json"
    assert await live.run("bank-a", "tx", "build", *PAYMENT, "--as", TREASURY, "--out", str(file)) == 0
    for name in (TREASURY, "bank-a/anna", "bank-a/cleo"):
        await live.sign(file, name)
    capsys.readouterr()
    assert await live.run("bank-a", "tx", "submit", "--signed", str(file)) == 1
    assert "large: 2 of bank-a/anna" in printed(capsys)["error"]["message"]
    await live.sign(file, "bank-a/ria")
    assert await live.run("bank-a", "tx", "submit", "--signed", str(file)) == 0
    assert await received(live) == 2_000_002

    # Where a changed tier asks for nobody more, the next word makes the calls run: also one that stood there.
    await live.done_as(TREASURY, "approvals", "request", *PAYMENT)
    for name in ("anna", "ria"):
        await live.done_as(f"bank-a/{name}", "approvals", "approve", "5", "--yes")
    one_of_each = json.dumps([{**group, "threshold": 1} for group in GROUPS])
    loosened = ("membership.set_tier", *TIER, f"groups={one_of_each}")
    await live.done_as("bank-a", "approvals", "request", *loosened)
    for name in ("anna", "cleo", "ria"):
        await live.done_as(f"bank-a/{name}", "approvals", "approve", "6", "--yes")
    assert await received(live) == 2_000_002
    await live.done_as("bank-a/anna", "approvals", "approve", "5", "--yes")
    assert await received(live) == 3_000_003

    # What a brake stops is told with the brake, also where the call was an approved one.
    await live.done_as(TREASURY, "approvals", "request", *PAYMENT)
    await live.done_as("bank-a/anna", "approvals", "approve", "7", "--yes")
    await live.done_as("bank-a", "brake", "ask", "method", "settlement.transfer", "--reason", "case 4711")
    await live.done_as("bank-b", "brake", "confirm", "1")
    capsys.readouterr()
    for who, words in (
        (TREASURY, ("tx", "submit", *PAYMENT[:-1], "amount=1")),
        ("bank-a/ria", ("approvals", "approve", "7", "--yes")),
    ):
        assert await live.act_as(who, *words) == 1
        told = capsys.readouterr().err
        assert "brake 1 stops method settlement.transfer until 20" in told
        assert "case 4711" in told
