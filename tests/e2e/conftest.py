"""A network of four real processes for the tests of this directory, driven as an operator drives it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from node.client import Client, Fate, call, draft, sign
from node.keys import SigningKey, find_passphrase, read_key_file
from node.ledger import Call, Transaction
from scripts.localnet.founding import key_file
from scripts.localnet.layout import API_PORT_OFFSET, ROOT, Layout

TRANSFERS = 60
"""How many of the sample's transfers the network starts with: enough to have money and claims move."""
TIMEOUT_S = 120
FUNDS = 1_000_000_00
"""What lies on T-1 at first, in cents."""


class Testnet:
    """The commands `scripts/testnet` and `hansa` on one network directory, each in a process of its own."""

    __test__ = False

    def __init__(self, directory: Path, base_port: int) -> None:
        self.directory = directory
        self.base_port = base_port

    def run(self, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """`scripts/testnet ARGUMENTS --dir DIR`; with `ok` it has to exit 0."""
        command = [sys.executable, "-P", "-m", "scripts.localnet.testnet", *arguments, "--dir", str(self.directory)]
        return self._run(command, ok)

    def hansa(self, member: str, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """`hansa ARGUMENTS` against the member's node, with its keys."""
        code = "import sys; from node.cli.main import main; sys.exit(main())"
        command = [sys.executable, "-P", "-c", code, *arguments, "--dir", str(self.directory / member)]
        return self._run(command, ok)

    def plain(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`hansa ARGUMENTS`, which needs no node's directory."""
        code = "import sys; from node.cli.main import main; sys.exit(main())"
        return self._run([sys.executable, "-P", "-c", code, *arguments], ok=True)

    def verifier(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`hansa-verify ARGUMENTS`, whatever it says."""
        return self._run([sys.executable, "-P", "-m", "hansa_verify", *arguments], ok=False)

    def document(self, *arguments: str) -> Any:
        """The JSON document that `scripts/testnet ARGUMENTS --json` prints."""
        return json.loads(self.run(*arguments, "--json").stdout)

    def hansa_document(self, member: str, *arguments: str, ok: bool = True) -> Any:
        """The JSON document that `hansa ARGUMENTS --json` prints."""
        return json.loads(self.hansa(member, *arguments, "--json", ok=ok).stdout)

    def up(self, *arguments: str) -> Any:
        """The network runs; what `up` reports."""
        command = ["up", "--detach", "--base-port", str(self.base_port), "--load", str(TRANSFERS), *arguments]
        return self.document(*command)

    def members(self) -> list[dict[str, Any]]:
        """The rows of `scripts/testnet status`."""
        rows: list[dict[str, Any]] = self.document("status")["members"]
        return rows

    def member(self, member: str) -> dict[str, Any]:
        """One row of `scripts/testnet status`."""
        return next(row for row in self.members() if row["id"] == member)

    def wait(
        self, condition: Callable[[list[dict[str, Any]]], bool], timeout_s: float = 30.0
    ) -> list[dict[str, Any]]:
        """The rows of `status` once `condition` holds of them; fail with them when it does not in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            rows = self.members()
            if condition(rows):
                return rows
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {json.dumps(rows, indent=1)}"

    def _run(self, command: Sequence[str], ok: bool) -> subprocess.CompletedProcess[str]:
        # This checkout's code, the verifier's too, whatever the environment has installed.
        paths = os.pathsep.join((str(ROOT), str(ROOT / "verifier")))
        environment = {**os.environ, "PYTHONPATH": paths}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment, check=False
        )
        if ok:
            assert done.returncode == 0, f"{command[-6:]} exited {done.returncode}:\n{done.stderr}\n{done.stdout}"
        return done


class Bank:
    """bank-a with an account of its own, talking to the nodes over HTTP."""

    def __init__(self, testnet: Testnet) -> None:
        layout = Layout(testnet.directory)
        network = layout.load()
        phrase = find_passphrase({}, layout.passphrase_file)
        self.key: SigningKey = read_key_file(key_file(layout, "bank-a"), phrase)[1]
        self.network = network.network
        self.urls = {member.id: member.api for member in network.members}

    def client(self, *members: str) -> Client:
        """A client of these members' nodes; of all, when none is named."""
        urls = [self.urls[member] for member in members or self.urls]
        return Client(urls, sender="bank-a", signers=[self.key], network=self.network)

    def signed(self, calls: Sequence[Call], request_id: str | None = None) -> Transaction:
        """A transaction of these calls, signed with bank-a's key."""
        return sign(draft(self.network, "bank-a", calls, request_id=request_id), [self.key])

    def payment(self, request_id: str, amount: int = 1) -> Transaction:
        """A signed transfer from T-1 to T-2."""
        args = {"debtor": "T-1", "creditor": "T-2", "amount": amount}
        return self.signed([call("settlement.transfer", args)], request_id)

    def balance(self, account: str, member: str = "bank-a") -> int:
        """What the member's node says is on the account."""
        with self.client(member) as client:
            value: int = client.query("settlement.balance", {"account": account}).value["balance"]
            return value

    def fates(self, transactions: Sequence[Transaction], members: Sequence[str]) -> list[Fate]:
        """The fate of each transaction at each member, waited for."""
        found: list[Fate] = []
        for member in members:
            with self.client(member) as client:
                found += [client.wait(transaction.tx_id.hex()) for transaction in transactions]
        return found

    def primary(self) -> str:
        """The primary of the height in work."""
        with self.client() as client:
            return client.status().primary

    def height(self, member: str) -> int:
        """The last applied height of the member's node."""
        with self.client(member) as client:
            return client.status().height

    def others(self, *members: str) -> list[str]:
        """All members but these."""
        return [member for member in self.urls if member not in members]


def agreed(rows: list[dict[str, Any]]) -> bool:
    """Whether all nodes live, are ready and stand at one height with one root."""
    return (
        all(row["alive"] and row["ready"] for row in rows)
        and len({(row["height"], row["state_root"]) for row in rows}) == 1
    )


@pytest.fixture(scope="session")
def base_port() -> int:
    """A port from which on this run's networks listen; several runs on one machine take different ones.

    All of them lie below 32,768: above, the kernel lends ports to outgoing connections, and a node that starts
    while its own is lent out finds it in use.
    """
    return 20_000 + os.getpid() % 60 * 2 * API_PORT_OFFSET


@pytest.fixture(scope="module")
def testnet(tmp_path_factory: pytest.TempPathFactory, base_port: int) -> Iterator[Testnet]:
    """Four running nodes with a small sample loaded; one network for the tests of a module, which leave it well."""
    directory = tmp_path_factory.mktemp("testnet")
    network = Testnet(directory / "net", base_port)
    try:
        network.up()
        yield network
    finally:
        network.run("down", ok=False)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def bank(testnet: Testnet) -> Bank:
    """bank-a, with FUNDS on T-1 and the empty account T-2."""
    bank = Bank(testnet)
    with bank.client() as client:
        for account in ("T-1", "T-2"):
            args = {"account": account, "owner": "bank-a", "currency": "USD"}
            assert client.call("settlement.open_account", args).ok
        assert client.call("settlement.issue", {"account": "T-1", "amount": FUNDS}).ok
    return bank
