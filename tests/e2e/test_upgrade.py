"""Three of four members install a release with another version of a contract and upgrade; the fourth is named."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from node.client import Client
from scripts.localnet.layout import ROOT, Layout
from tests.e2e.conftest import Bank, Testnet
from tests.e2e.load import until

pytestmark = pytest.mark.slow

UPGRADED, BEHIND = ("bank-a", "bank-b", "insurer-a"), "insurer-b"
FORMER = "from contracts.claims import Claims as Former\n"
CHANGES = (
    ("from contracts.sdk import (\n", FORMER + "from contracts.sdk import (\n"),
    ("    Event,\n    Map,\n", "    Event,\n    Item,\n    Map,\n    migration,\n"),
    ("    version = 1\n", "    version = 2\n"),
    (
        "    by_policy: Map[tuple[PolicyId, ClaimId], bool] = Map()\n",
        '''    by_policy: Map[tuple[PolicyId, ClaimId], bool] = Map()
    known: Item[int] = Item()

    @migration
    def count(self, ctx: Context) -> None:
        """The claims that are there already are counted."""
        self.known.set(len(ctx.former(Former).claims.scan()))

    @query
    def how_many(self) -> int:
        """How many claims there were when this version began."""
        return self.known.read()
''',
    ),
)


def release(directory: Path) -> Path:
    """A release in `directory` that ships version 2 of claims besides."""
    directory.mkdir()
    for package in ("consensus", "node"):
        (directory / package).symlink_to(ROOT / package)
    shutil.copytree(ROOT / "contracts", directory / "contracts", ignore=shutil.ignore_patterns("__pycache__"))
    source = (ROOT / "contracts" / "claims.py").read_text()
    for old, new in CHANGES:
        assert old in source
        source = source.replace(old, new, 1)
    (directory / "contracts" / "claims_2.py").write_text(source)
    named = directory / "contracts" / "__init__.py"
    text = named.read_text()
    further = "FURTHER: tuple[type[Contract], ...] = ()"
    assert further in text
    line = "from contracts.claims_2 import Claims as Claims2\nFURTHER: tuple[type[Contract], ...] = (Claims2,)"
    named.write_text(text.replace(further, line))
    return directory


@contextmanager
def running(testnet: Testnet, member: str, code: Path) -> Iterator[None]:
    """The member's node runs that release, in a process of its own; before, it was the network's."""
    testnet.run("stop", member)
    start = "import sys; from node.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-P", "-c", start, "run", "--dir", str(testnet.directory / member)]
    phrase = str(Layout(testnet.directory).passphrase_file)
    environment = {**os.environ, "PYTHONPATH": str(code), "HANSA_PASSPHRASE_FILE": phrase}
    with (testnet.directory / member / "node.log").open("ab") as log:
        process = subprocess.Popen(command, stderr=log, env=environment)
        try:
            yield
        finally:
            process.terminate()
            assert process.wait(60) == 0


def votes(bank: Bank, member: str) -> bool:
    with Client([bank.urls[member]]) as client:
        return client.status().voting


def until_it_votes(testnet: Testnet, bank: Bank, member: str) -> None:
    until(lambda: votes(bank, member), lambda: testnet.hansa(member, "why").stdout)


def claims(testnet: Testnet, member: str) -> dict[str, Any]:
    rows = testnet.hansa_document(member, "contracts")["contracts"]
    return next(row for row in rows if row["name"] == "claims")


def test_who_lacks_the_version_is_named_and_the_others_go_on(
    testnet: Testnet, bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = release(tmp_path / "release")
    with (
        running(testnet, UPGRADED[0], code),
        running(testnet, UPGRADED[1], code),
        running(testnet, UPGRADED[2], code),
    ):
        for member in UPGRADED:
            until_it_votes(testnet, bank, member)
        # A version that is only carried changes nothing: all four vote, with one hash.
        assert votes(bank, BEHIND)
        dry = testnet.hansa("bank-a", "propose", "upgrade_contract", "claims", "--dry-run").stdout
        assert "1 -> 2" in dry
        before = claims(testnet, "bank-a")
        assert [item["version"] for item in before["shipped"]] == [1, 2]
        refused = testnet.hansa(BEHIND, "propose", "upgrade_contract", "claims", ok=False)
        assert refused.returncode == 2
        assert "does not have claims 2" in refused.stderr
        began = time.monotonic()
        testnet.hansa("bank-a", "propose", "upgrade_contract", "claims", "--anyway")
        for voter in UPGRADED[1:]:
            testnet.hansa(voter, "vote", "1", "yes", "--anyway")
        with bank.client(*UPGRADED) as client:
            until(
                lambda: (
                    client.query("governance.proposal", {"proposal": 1}).value["proposal"]["status"] == "effective"
                ),
                lambda: testnet.hansa("bank-a", "proposals", "1").stdout,
            )
            after = claims(testnet, "bank-a")
            assert (after["version"], after["active"]) == (2, True)
            assert after["source"] == before["shipped"][1]["source"]
            made_at = after["since"] - 1
            assert client.query("claims.how_many").value > 0
            # The one that lacks it stays before the block that made the version active, and says so; so do the
            # others.
            until(
                lambda: "claims 2" in " ".join(client_why(bank, BEHIND)),
                lambda: testnet.hansa(BEHIND, "why").stdout,
            )
            assert not votes(bank, BEHIND)
            assert bank.height(BEHIND) == made_at - 1
            assert "claims 2" in testnet.hansa(BEHIND, "status").stdout
            until(lambda: all("claims 2" in said_by(bank, member) for member in UPGRADED))
            named_s, named_at = time.monotonic() - began, bank.height("bank-a")
            assert "claims 2" in testnet.hansa("bank-a", "why").stdout
            # Nothing is asked of the network meanwhile: heights tell whether another block had to come for that.
            assert named_at - made_at <= 1, "blocks went by before it was named"
            for number in range(5):
                assert client.submit_and_wait(bank.payment(f"without-it-{number}")).ok
        with running(testnet, BEHIND, code):
            until_it_votes(testnet, bank, BEHIND)
            until(lambda: bank.height(BEHIND) > made_at, lambda: testnet.hansa(BEHIND, "status").stdout)
            assert claims(testnet, BEHIND)["version"] == 2
            assert "claims 2" not in testnet.hansa("bank-a", "why").stdout
    with capsys.disabled():
        print(
            f"\nclaims 2 began with block {made_at + 1}; who lacked it stayed at {made_at - 1}, and all named it at"
            f" {named_at}, {named_s:.1f} s after the proposal"
        )


def said_by(bank: Bank, member: str) -> str:
    """What the member's node answers to `why`."""
    with Client([bank.urls[member]]) as client:
        return " ".join(client.why().sentences)


def client_why(bank: Bank, member: str) -> list[str]:
    """What the member's node says is wrong with it."""
    with Client([bank.urls[member]]) as client:
        return list(client.status().reasons)
