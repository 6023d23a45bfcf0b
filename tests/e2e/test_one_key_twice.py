"""A copied machine: one member's directory runs in two places, and both of them lose the vote, and say so."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from node.client import Client
from scripts.localnet.layout import API_PORT_OFFSET, ROOT
from tests.e2e.conftest import Bank, Testnet

pytestmark = pytest.mark.slow

TWICE = "bank-b"
WAIT_S = 60.0


@pytest.fixture
def testnet(tmp_path_factory: pytest.TempPathFactory, base_port: int) -> Iterator[Testnet]:
    """A network of its own: one of its keys never votes again."""
    directory = tmp_path_factory.mktemp("twice")
    network = Testnet(directory / "net", base_port + 40)
    try:
        network.up()
        yield network
    finally:
        network.run("down", ok=False)
        shutil.rmtree(directory, ignore_errors=True)


def copied(testnet: Testnet, directory: Path) -> str:
    """The stopped member's directory lies in `directory` as on another machine; return the URL of its API."""
    shutil.copytree(testnet.directory / TWICE, directory)
    listen, api = testnet.base_port + 8, testnet.base_port + 8 + API_PORT_OFFSET
    node_file = directory / "node.toml"
    lines = [
        f'listen = "127.0.0.1:{listen}"'
        if line.startswith("listen =")
        else f'api = "127.0.0.1:{api}"'
        if line.startswith("api =")
        else line
        for line in node_file.read_text().splitlines()
    ]
    node_file.write_text("\n".join(lines) + "\n")
    return f"http://127.0.0.1:{api}"


def wait_for_why(url: str, *words: str) -> str:
    """What the node says once it says all `words`."""
    deadline = time.monotonic() + WAIT_S
    told = ""
    while time.monotonic() < deadline:
        try:
            with Client([url], patience_s=1.0) as client:
                told = " ".join(client.why().sentences)
        except Exception as error:
            told = repr(error)
        if all(word in told for word in words):
            return told
        time.sleep(0.2)
    raise AssertionError(f"{url} does not say {words}: {told}")


def wait_for_proof(url: str) -> None:
    """The node holds the proof; the copy dials those who should dial it only after a while."""
    deadline = time.monotonic() + WAIT_S
    while [(item["kind"], item["member"]) for item in evidence(url)] != [("two_instances", TWICE)]:
        assert time.monotonic() < deadline, evidence(url)
        time.sleep(0.2)


def evidence(url: str) -> list[dict[str, Any]]:
    """The proofs that a node holds."""
    found: list[dict[str, Any]] = json.loads(httpx.get(f"{url}/v1/evidence").text)
    return found


def test_a_member_that_runs_twice_is_proven_to_and_the_others_go_on(testnet: Testnet, tmp_path: Path) -> None:
    bank = Bank(testnet)
    testnet.run("stop", TWICE)
    directory = tmp_path / "copy"
    copy_url = copied(testnet, directory)
    testnet.run("start", TWICE)
    code = "import sys; from node.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-P", "-c", code, "run", "--dir", str(directory)]
    with (directory / "copy.log").open("w") as log:
        copy = subprocess.Popen(command, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        for url in (bank.urls[TWICE], copy_url):
            wait_for_why(url, "in two places")
        for member in bank.others(TWICE):
            wait_for_why(bank.urls[member], TWICE, "in two places")
            wait_for_proof(bank.urls[member])
        with bank.client(*bank.others(TWICE)) as client:
            args = {"account": "TWICE", "owner": "bank-a", "currency": "USD"}
            assert client.call("settlement.open_account", args).ok
        # It is durable: a restart alone brings no vote back.
        testnet.run("kill", TWICE)
        copy.kill()
        copy.wait()
        testnet.run("start", TWICE)
        wait_for_why(bank.urls[TWICE], "in two places")
        with bank.client(TWICE) as client:
            assert not client.status().voting
    finally:
        copy.kill()
        copy.wait()


def test_killed_and_restarted_in_a_hurry_is_no_second_place(testnet: Testnet) -> None:
    bank = Bank(testnet)
    for _ in range(3):
        testnet.run("kill", TWICE)
        testnet.run("start", TWICE)
    testnet.wait(lambda rows: all(row["alive"] and row["ready"] for row in rows), timeout_s=WAIT_S)
    assert [evidence(url) for url in bank.urls.values()] == [[], [], [], []]
    with bank.client(TWICE) as client:
        assert client.status().voting
