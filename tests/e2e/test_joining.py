"""A fifth member joins four that run, and one of the four leaves: by commands, under load, nobody restarted."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.client import Client
from scripts.localnet.layout import ROOT, Layout
from tests.e2e.conftest import Bank, Testnet
from tests.e2e.load import Load, blocks_from, longest_gap_ms

pytestmark = pytest.mark.slow

NEWCOMER = "bank-z"
WAIT_S = 120.0


@contextmanager
def running(testnet: Testnet, member: str) -> Iterator[None]:
    """The member's node runs in a process of its own."""
    code = "import sys; from node.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-P", "-c", code, "run", "--dir", str(testnet.directory / member)]
    with (testnet.directory / member / "node.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)})
        try:
            yield
        finally:
            process.terminate()
            assert process.wait(60) == 0


def until_it_votes(url: str) -> None:
    deadline = time.monotonic() + WAIT_S
    with Client([url], patience_s=WAIT_S) as client:
        while not client.status().voting:
            assert time.monotonic() < deadline, client.why()


def test_a_fifth_member_joins_and_a_first_one_leaves_under_load(
    testnet: Testnet, bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pids = {row["id"]: row["pid"] for row in testnet.members()}
    listen, api = (f"127.0.0.1:{testnet.base_port + offset}" for offset in (50, 90))
    url, first = f"http://{api}", bank.height("bank-a")
    invitation = tmp_path / "invitation.toml"
    with Load(bank) as load:
        # What people do: five commands, and the invitation that any member prints.
        began = time.monotonic()
        invitation.write_text(testnet.hansa("bank-a", "invite").stdout)
        phrase = str(Layout(testnet.directory).passphrase_file)
        places = ("--listen", listen, "--api", api, "--passphrase-file", phrase)
        testnet.hansa(NEWCOMER, "init", "--member", NEWCOMER, "--join", str(invitation), *places)
        request = str(testnet.directory / NEWCOMER / "request.json")
        dry = testnet.hansa("bank-a", "propose", "add_member", NEWCOMER, "--request", request, "--dry-run")
        assert "absent -> active" in dry.stdout
        with running(testnet, NEWCOMER):
            testnet.hansa("bank-a", "propose", "add_member", NEWCOMER, "--request", request)
            testnet.hansa("bank-b", "vote", "1", "yes")
            testnet.hansa("insurer-a", "vote", "1", "yes")
            until_it_votes(url)
            joined_s = time.monotonic() - began
            assert {row["id"]: row["pid"] for row in testnet.members()} == pids
            # Of five, four decide: without one of the first four, the newcomer's vote is needed.
            testnet.run("stop", "insurer-b")
            with bank.client("bank-a", "bank-b", "insurer-a") as client:
                assert client.submit_and_wait(bank.payment("by-the-newcomer")).ok
            testnet.run("start", "insurer-b")
            testnet.wait(lambda rows: all(row["ready"] for row in rows), 60.0)
            # And one of the first leaves; its own vote is not needed.
            testnet.hansa("bank-b", "propose", "remove_member", "insurer-b")
            for voter in ("bank-a", "insurer-a", NEWCOMER):
                testnet.hansa(voter, "vote", "2", "yes")
            deadline = time.monotonic() + WAIT_S
            with Client([url]) as client:
                while (
                    client.query("governance.proposal", {"proposal": 2}).value["proposal"]["status"] != "effective"
                ):
                    assert time.monotonic() < deadline
            with bank.client("bank-a", "bank-b", "insurer-a") as client:
                assert client.submit_and_wait(bank.payment("without-the-first")).ok
            gap_ms = longest_gap_ms(blocks_from(url, first))
    assert load.paid > 0
    with capsys.disabled():
        print(f"\njoined after {joined_s:.1f} s; longest gap between blocks {gap_ms} ms; {load.paid} payments")
