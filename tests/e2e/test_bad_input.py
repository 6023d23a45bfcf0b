"""Everything wrong that clients, peers and operators send to real nodes: a clear error, and nothing changes."""

import asyncio
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgpack
import pytest

from node.client import call, draft, sign
from node.errors import HansaError
from node.keys import SigningKey, tls_context
from node.ledger import Body, Call, KeySignature, Transaction, transaction_signing_bytes
from scripts.localnet.layout import ROOT, Layout
from tests.e2e.conftest import FUNDS, Bank, Testnet, agreed

pytestmark = pytest.mark.slow

ALL = ("bank-a", "bank-b", "insurer-a", "insurer-b")


@pytest.fixture(autouse=True)
def nothing_changes(testnet: Testnet, bank: Bank) -> Iterator[None]:
    """After every test the balances are as before and all nodes run and agree."""
    before = [bank.balance(account) for account in ("T-1", "T-2")]
    yield
    assert [bank.balance(account) for account in ("T-1", "T-2")] == before
    testnet.wait(agreed)


def pay(**changes: Any) -> Call:
    """A transfer from T-1 to T-2 that would be good without `changes`."""
    return call("settlement.transfer", {"debtor": "T-1", "creditor": "T-2", "amount": 1, **changes})


def refusal(bank: Bank, transaction: Transaction) -> str:
    """The code with which every node refuses the transaction."""
    codes = set()
    for member in ALL:
        with bank.client(member) as client, pytest.raises(HansaError) as caught:
            client.submit(transaction)
        codes.add(caught.value.code)
    [code] = codes
    return code


# --- calls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (call("settlment.transfer", {}), "unknown_contract"),
        (call("settlement.transferr", {}), "unknown_method"),
        (pay(colour="red"), "invalid_arguments"),
        (pay(amount="5"), "invalid_arguments"),
        (pay(debtor=7), "invalid_arguments"),
    ],
)
def test_a_call_that_cannot_be_tried_is_refused(bank: Bank, bad: Call, code: str) -> None:
    assert refusal(bank, bank.signed([bad])) == code


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (pay(amount=0), "amount_not_positive"),
        (pay(amount=-1), "amount_not_positive"),
        (pay(amount=2**63), "amount_too_large"),
        (pay(amount=FUNDS + 1), "insufficient_funds"),
        (pay(creditor="NOBODY"), "account_not_found"),
    ],
)
def test_a_call_that_fails_is_final_with_its_code_and_changes_nothing(bank: Bank, bad: Call, code: str) -> None:
    with bank.client() as client:
        fate = client.submit_and_wait(bank.signed([bad]))
    assert [receipt.code for receipt in fate.receipts] == [code]


# --- transactions ------------------------------------------------------------------------------------------


def test_a_wrong_key_is_refused(bank: Bank) -> None:
    body = draft(bank.network, "bank-a", [pay()])
    assert refusal(bank, sign(body, [SigningKey.generate()])) == "policy_unsatisfied"


def test_a_broken_signature_is_refused(bank: Bank) -> None:
    good = bank.signed([pay()])
    broken = KeySignature(good.signatures[0].key, bytes(64))
    assert refusal(bank, Transaction.assemble(good.body, [broken])) == "bad_signature"


def test_too_few_signatures_are_refused(bank: Bank) -> None:
    keys = sorted((SigningKey.generate() for _ in range(2)), key=lambda key: key.public)
    args = {"principal": "bank-a/four-eyes", "threshold": 2, "keys": [key.public for key in keys]}
    with bank.client() as client:
        assert client.submit_and_wait(bank.signed([call("membership.add_principal", args)])).ok
    body = draft(bank.network, "bank-a/four-eyes", [pay()])
    assert refusal(bank, sign(body, keys[:1])) == "policy_unsatisfied"


def test_an_expired_transaction_is_refused(bank: Bank) -> None:
    expired = Body(bank.network, "bank-a", "expired-1", int(time.time() * 1000) - 60_000, "atomic", (pay(),))
    assert refusal(bank, sign(expired, [bank.key])) == "expired"


def test_a_transaction_of_another_network_is_refused(bank: Bank) -> None:
    body = draft("testnet-000000000000", "bank-a", [pay()])
    assert refusal(bank, sign(body, [bank.key])) == "wrong_network"


def test_a_stranger_is_refused(bank: Bank) -> None:
    assert refusal(bank, sign(draft(bank.network, "bank-z", [pay()]), [bank.key])) == "unknown_principal"


def test_a_request_id_with_other_content_is_refused(bank: Bank) -> None:
    with bank.client() as client:
        client.submit_and_wait(bank.signed([pay(amount=0)], request_id="used-once"))
    assert refusal(bank, bank.signed([pay()], request_id="used-once")) == "request_conflict"


def test_bytes_in_another_form_are_refused(bank: Bank) -> None:
    good = bank.signed([pay()])
    body = msgpack.unpackb(good.body_bytes)
    # The same values with the arguments in another order: a different hash for the same payment.
    body[5][0][2] = dict(reversed(body[5][0][2].items()))
    other = msgpack.packb(body)
    assert other != good.body_bytes
    signature = bank.key.sign(transaction_signing_bytes(other))
    data = msgpack.packb([other, [[bank.key.public, signature]]])
    for bad in (data, good.data + b"\x00", b"\xc1", b"", b"\x92" * 40):
        with httpx.Client() as client:
            answer = client.post(
                bank.urls["bank-b"] + "/v1/transactions",
                content=msgpack.packb([bad]),
                headers={"content-type": "application/msgpack", "accept": "application/json"},
            )
        assert answer.status_code >= 400 or answer.json()["refused"] == 1
        assert "malformed_transaction" in answer.text


def test_a_request_of_100_mb_is_refused_without_being_read(testnet: Testnet, bank: Bank) -> None:
    before = max(memory_bytes(row["pid"]) for row in testnet.members())

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(1_000_000)

    for headers in ({"content-length": "100000000"}, {}):
        try:
            answer = httpx.post(bank.urls["bank-a"] + "/v1/transactions", content=chunks(), headers=headers)
            assert answer.status_code == 413
            assert set(answer.json()["error"]) == {"code", "message", "action", "retryable", "details"}
        except httpx.WriteError:
            pass  # the node may also have closed the connection before everything was sent
    after = max(memory_bytes(row["pid"]) for row in testnet.members())
    assert after - before < 50_000_000


def memory_bytes(pid: int) -> int:
    """The resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


# --- peers -------------------------------------------------------------------------------------------------


def peer_address(testnet: Testnet) -> tuple[str, int]:
    """Where bank-a listens for peers."""
    return "127.0.0.1", testnet.base_port


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100_000, b"\x16\x03\x01" + bytes(500)])
def test_garbage_on_the_peer_port_closes_that_connection_alone(
    testnet: Testnet, bank: Bank, garbage: bytes
) -> None:
    with socket.create_connection(peer_address(testnet), timeout=10) as connection:
        connection.sendall(garbage)
        try:
            while connection.recv(4096):
                pass
        except ConnectionResetError:
            pass


@pytest.mark.parametrize("frame", [b"\xff\xff\xff\xff" + bytes(64), bytes(4), b"\x00\x00\x00\x10" + bytes(16)])
async def test_a_strangers_certificate_gets_no_further_than_the_handshake(
    testnet: Testnet, bank: Bank, frame: bytes
) -> None:
    stranger = SigningKey.generate()
    member = Layout(testnet.directory).load().members[0]
    assert member.id == "bank-a"
    context = tls_context(stranger, server=False, pinned=[])
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    host, port = peer_address(testnet)
    try:
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        writer.write(frame)
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
    except (ssl.SSLError, ConnectionError):
        pass


# --- operators ---------------------------------------------------------------------------------------------


def run_node(directory: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`hansa run` on a directory that cannot run: what it says and its exit code."""
    code = "import sys; from node.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-P", "-c", code, "run", "--dir", str(directory)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **(environment or {})},
    )


@pytest.fixture
def copied(testnet: Testnet, bank: Bank, tmp_path: Path) -> Path:
    """A copy of bank-b's directory without data, as an operator would spoil it."""
    target = tmp_path / "bank-b"
    shutil.copytree(testnet.directory / "bank-b", target, ignore=shutil.ignore_patterns("data", "*.log"))
    return target


def refused(done: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    """The process said one clear sentence without a traceback."""
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in last


def change(path: Path, old: str, new: str) -> None:
    """The file says `new` where it said `old`."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("tls_key", "tls_keys", ("network.toml", "tls_key")),
        ('id = "bank-b"', 'id = "bank-a"', ("network.toml", "bank-a")),
        ("[[members]]", "[[members", ("network.toml", "line")),
        ('role = "validator"', 'role = "boss"', ("network.toml", "role")),
    ],
)
def test_a_broken_network_file_is_named(copied: Path, old: str, new: str, words: Sequence[str]) -> None:
    change(copied / "network.toml", old, new)
    refused(run_node(copied), 2, *words)


def test_a_network_without_validators_is_refused(copied: Path) -> None:
    text = (copied / "network.toml").read_text().replace('"validator"', '"observer"')
    (copied / "network.toml").write_text(text)
    refused(run_node(copied), 2, "validator")


def test_a_used_port_is_named(copied: Path, testnet: Testnet) -> None:
    refused(run_node(copied, passphrase_of(testnet)), 2, "port_in_use", str(testnet.base_port + 1))


def passphrase_of(testnet: Testnet) -> dict[str, str]:
    """The environment with which the test network's nodes run."""
    return {"HANSA_PASSPHRASE_FILE": str(Layout(testnet.directory).passphrase_file)}


def test_a_wrong_passphrase_is_refused(copied: Path) -> None:
    refused(run_node(copied, {"HANSA_PASSPHRASE": "not the passphrase"}), 2, "wrong_passphrase")


def test_a_second_node_on_the_same_data_directory_is_refused(testnet: Testnet) -> None:
    refused(run_node(testnet.directory / "bank-b", passphrase_of(testnet)), 2, "data_dir_in_use")


def test_the_data_of_another_network_is_refused(testnet: Testnet, bank: Bank, copied: Path) -> None:
    testnet.run("stop", "bank-b")
    try:
        shutil.copytree(testnet.directory / "bank-b" / "data", copied / "data")
    finally:
        testnet.run("start", "bank-b")
    change(copied / "network.toml", 'name = "testnet"', 'name = "othernet"')
    refused(run_node(copied, passphrase_of(testnet)), 2, "data_of_another_network")
