"""`hansa tx build`, `tx sign`, `tx submit --signed`: maker and checker, and everything that they are refused."""

import asyncio
import io
import json
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from node.api import ApiServer
from node.cli.files import write_new
from node.cli.main import main
from node.client import QueryAnswer, Submission
from node.config import MemberConfig, NetworkConfig
from node.config.writing import dump_network
from node.errors import ConfigError, HansaError, RejectedTransaction
from node.keys import SigningKey, write_key_file
from node.ledger import Transaction
from tests.node.memory_node import NETWORK, MemoryNode

PHRASE = "correct horse"
NAMES = ("anna", "ben", "carla", "stranger")
SECRETS = {name: SigningKey(bytes([number]) * 32) for number, name in enumerate(NAMES, 1)}
ZERO = bytes(32)
DEPOSIT = ("build", "till.deposit", "account=a", "amount=1")


class Office(MemoryNode):
    """A MemoryNode on which two of three people sign for `bank-a/treasury`; Anna and Ben have names there."""

    def __init__(self) -> None:
        super().__init__(instant=True)
        self.named: tuple[str, ...] = ("anna", "ben")
        self.signers: tuple[str, ...] = ("anna", "ben", "carla")
        self.threshold = 2

    async def submit(self, transactions: Sequence[bytes]) -> list[Submission | HansaError]:
        return [self._entitled(data) or self._submit(data) for data in transactions]

    def _entitled(self, data: bytes) -> HansaError | None:
        transaction = Transaction.decode(data)
        keys = {SECRETS[name].public for name in self.signers}
        signed = sum(item.key in keys for item in transaction.signatures)
        if transaction.tx_id in self.raw or signed >= self.threshold:
            return None
        return RejectedTransaction("policy_unsatisfied", "the node's words")

    async def query(self, contract: str, name: str, args: dict[str, Any], at_height: int | None) -> QueryAnswer:
        if contract != "membership":
            return await super().query(contract, name, args, at_height)
        rows = [self._row("bank-a/treasury", self.threshold, *self.signers)]
        rows += [self._row(f"bank-a/{name}", 1, name) for name in self.named]
        if name == "principals":
            return self._answer(sorted(rows, key=lambda row: str(row["id"])))
        if args["principal"] != "bank-a/treasury":
            raise RejectedTransaction("query_refused", "nobody", reason="principal_not_found")
        return self._answer(rows[0])

    def _answer(self, value: Any) -> QueryAnswer:
        return QueryAnswer(value=value, height=len(self.blocks), state_root=ZERO.hex(), age_ms=5)

    @staticmethod
    def _row(id: str, threshold: int, *names: str) -> dict[str, Any]:
        return {"id": id, "threshold": threshold, "keys": [SECRETS[name].public.hex() for name in names]}


class Running:
    """An Office behind a real server, in a thread of its own."""

    def __init__(self) -> None:
        self.node = Office()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.server = ApiServer(self.node, "127.0.0.1", 0)
        asyncio.run_coroutine_threadsafe(self.server.start(), self.loop).result(10)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.server.stop(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    found = Running()
    yield found
    found.close()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key file of each person, at the least cost of a passphrase."""
    directory = tmp_path_factory.mktemp("keys")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nacl.pwhash.argon2id.OPSLIMIT_INTERACTIVE", 1)
        patch.setattr("nacl.pwhash.argon2id.MEMLIMIT_INTERACTIVE", 8_192)
        for name, key in SECRETS.items():
            path = directory / f"{name}.key"
            write_key_file(path, key, kind="principal", id="bank-a/treasury", passphrase=PHRASE)
        write_key_file(directory / "tls.key", SECRETS["anna"], kind="tls", id="bank-a", passphrase=PHRASE)
    return directory


class Desk:
    """The commands as people type them, in a directory with the file `pay.json`."""

    def __init__(self, keys: Path, running: Running, capsys: pytest.CaptureFixture[str], file: Path) -> None:
        self.node, self.url, self.keys, self.file = running.node, running.server.url, keys, file
        self._capsys = capsys

    def run(self, *arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = self._capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    def build(self, *more: str, request: str | None = None) -> Any:
        named = ["--request-id", request] if request else []
        code, out, err = self.run(
            "tx", "build", "till.deposit", "account=C-1", "amount=500", "--as", "bank-a/treasury",
            "--node", self.url, "--out", str(self.file), "--json", *named, *more,
        )  # fmt: skip
        assert code == 0, err
        return json.loads(out)

    def sign(self, name: str, *more: str) -> tuple[int, str, str]:
        """On a machine without a network: no node is named."""
        return self.run("tx", "sign", str(self.file), "--key", str(self.keys / f"{name}.key"), "--yes", *more)

    def submit(self, *more: str) -> tuple[int, str, str]:
        return self.run("tx", "submit", "--signed", str(self.file), "--node", self.url, *more)


@pytest.fixture
def office(
    keys: Path,
    running: Running,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Desk:
    for name in ("HANSA_NODE", "HANSA_DIR", "HANSA_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HANSA_PASSPHRASE", PHRASE)
    monkeypatch.chdir(tmp_path)
    return Desk(keys, running, capsys, tmp_path / "pay.json")


def test_maker_builds_and_signs_checker_signs_and_it_is_final(office: Desk) -> None:
    made = office.build(request="story-1")
    assert (made["network"], made["signed_by"], made["missing"]) == (NETWORK, [], 2)
    assert [signer["name"] for signer in made["signers"]] == ["bank-a/anna", "bank-a/ben", None]
    assert office.file.stat().st_mode & 0o777 == 0o600

    code, out, err = office.sign("anna")
    assert (code, "no --network" in err) == (0, True)
    assert f"transaction {made['tx_id']}" in out
    assert '1. till.deposit: account = "C-1", amount = 500' in out
    assert "1 of 2 signatures, by bank-a/anna" in out
    assert "missing: 1 more, by any of bank-a/ben" in out

    code, out, err = office.submit()
    assert (code, err.startswith("hansa: policy_unsatisfied: 1 of 2 signatures, by bank-a/anna")) == (1, True)
    assert "missing: 1 more, by any of bank-a/ben (key " in err

    code, out, err = office.sign("carla", "--json")
    assert code == 0, err
    assert json.loads(out)["missing"] == 0
    assert '1. till.deposit: account = "C-1", amount = 500' in err

    code, out, err = office.submit("--json")
    assert code == 0, err
    fate = json.loads(out)
    assert (fate["status"], fate["tx_id"], fate["receipts"][0]["code"]) == ("final", made["tx_id"], "ok")
    again = json.loads(office.submit("--json")[1])
    assert (again["tx_id"], again["height"]) == (fate["tx_id"], fate["height"])


def test_a_final_transaction_is_known_again_whatever_became_of_its_policy(office: Desk) -> None:
    office.build()
    office.sign("anna")
    office.sign("ben")
    first = json.loads(office.submit("--json")[1])
    office.node.threshold = 3
    try:
        code, out, _ = office.submit("--json")
    finally:
        office.node.threshold = 2
    assert (code, json.loads(out)) == (0, first)


def test_what_the_ledger_refused_is_no_success_when_it_is_sent_again(office: Desk) -> None:
    """`--no-wait` is told at once that it is final, and exited with 0."""
    named = ("--as", "bank-a/treasury", "--node", office.url, "--out", str(office.file))
    assert office.run("tx", "build", "till.deposit", "account=C-1", "amount=0", *named)[0] == 0
    office.sign("anna")
    office.sign("ben")
    assert office.submit()[0] == 1
    code, out, err = office.submit("--no-wait", "--json")
    assert (code, json.loads(out)["receipts"][0]["code"]) == (1, "amount_not_positive")
    assert "the ledger said no: amount_not_positive" in err


def test_who_is_missing_is_said_by_the_policy_as_it_is_now(office: Desk) -> None:
    """When Ben has left meanwhile, his signature is not among those that are counted."""
    office.build()
    office.sign("anna")
    office.sign("ben")
    office.node.signers = ("anna", "carla")
    try:
        code, _, err = office.submit()
    finally:
        office.node.signers = ("anna", "ben", "carla")
    assert code == 1
    assert "1 of 2 signatures, by bank-a/anna" in err
    assert "bank-a/ben" not in err


def test_nobody_has_signed(office: Desk) -> None:
    office.build()
    before = office.node.submissions
    code, _, err = office.submit()
    assert (code, office.node.submissions) == (1, before)
    assert "policy_unsatisfied: " in err
    assert "0 of 2 signatures; missing: 2 more, by any of bank-a/anna" in err


def network_file(directory: Path, name: str) -> tuple[Path, str]:
    """A network.toml and the id of the network that it defines."""
    keys = {kind: SigningKey.generate().public for kind in ("voting", "tls")}
    member = MemberConfig("bank-a", "validator", "127.0.0.1:7600", keys["voting"], keys["tls"])
    network = NetworkConfig(name, (member,))
    path = directory / f"{name}.toml"
    path.write_text(dump_network(network))
    return path, network.network_id


def test_another_networks_transaction_is_neither_signed_nor_sent(
    office: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, _ = network_file(tmp_path, "other")
    office.build()
    before = office.file.read_bytes()
    code, _, err = office.sign("anna", "--network", str(other))
    assert (code, "wrong_network" in err, NETWORK in err) == (1, True, True)
    assert office.file.read_bytes() == before

    own, network = network_file(tmp_path, "pilot")
    monkeypatch.setattr("node.client.blocking.Client.network", lambda client: network)
    office.file.unlink()
    office.build()
    code, _, err = office.sign("anna", "--network", str(own))
    assert (code, err) == (0, "")
    monkeypatch.undo()
    monkeypatch.setenv("HANSA_PASSPHRASE", PHRASE)
    code, _, err = office.submit()
    assert (code, "wrong_network" in err) == (1, True)


def test_what_has_expired_is_not_signed(office: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    office.build("--expires", "1h")
    before, built_ns = office.file.read_bytes(), time.time_ns()
    monkeypatch.setattr("node.cli.signing.time.time_ns", lambda: built_ns + 3_601 * 10**9)
    code, _, err = office.sign("anna")
    assert (code, "hansa: expired: " in err) == (1, True)
    assert office.file.read_bytes() == before


def test_nothing_is_signed_in_advance(office: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger takes a transaction in the day before its expiry, so a far one would be good for a later day."""
    office.build("--expires", "24h")
    before, built_ns = office.file.read_bytes(), time.time_ns()
    monkeypatch.setattr("node.cli.signing.time.time_ns", lambda: built_ns - 60 * 10**9)
    code, _, err = office.sign("anna")
    assert (code, "hansa: expiry_too_far: " in err) == (1, True)
    assert office.file.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "code", "error"),
    [("stranger", 1, "signer_not_entitled"), ("tls", 2, "wrong_key"), ("nobody", 2, "key_file_unreadable")],
)
def test_who_may_not_sign_is_told_before_the_passphrase(
    office: Desk, monkeypatch: pytest.MonkeyPatch, name: str, code: int, error: str
) -> None:
    office.build()
    before = office.file.read_bytes()
    monkeypatch.delenv("HANSA_PASSPHRASE")
    failed, _, err = office.sign(name)
    assert (failed, f"hansa: {error}: " in err) == (code, True)
    assert office.file.read_bytes() == before


def test_one_person_does_not_sign_twice(office: Desk) -> None:
    office.build()
    assert office.sign("anna")[0] == 0
    before = office.file.read_bytes()
    code, _, err = office.sign("anna")
    assert (code, "hansa: already_signed: bank-a/anna" in err) == (1, True)
    assert office.file.read_bytes() == before


def change(document: dict[str, Any]) -> None:
    document["summary"][3] = document["summary"][3].replace("500", "5")


def cut(document: dict[str, Any]) -> None:
    del document["policy"]


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (change, "transaction_file_altered"),
        (cut, "transaction_file_invalid"),
        (None, "transaction_file_invalid"),
    ],
)
def test_an_altered_or_endless_file_is_neither_signed_nor_sent(
    office: Desk, damage: Callable[[dict[str, Any]], None] | None, error: str
) -> None:
    office.build()
    if damage is None:
        with office.file.open("r+b") as file:
            file.truncate(10**12)  # sparse: a terabyte that takes no room
    else:
        document = json.loads(office.file.read_bytes())
        damage(document)
        office.file.write_text(json.dumps(document))
    for code, _, err in (office.sign("anna"), office.submit()):
        assert (code, f"hansa: {error}: {office.file}: " in err) == (2, True), err


def test_nothing_is_signed_that_nobody_confirmed(office: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    office.build()
    before = office.file.read_bytes()
    line = ("tx", "sign", str(office.file), "--key", str(office.keys / "anna.key"))
    code, out, err = office.run(*line)
    assert (code, "not_confirmed" in err, "till.deposit" in out) == (2, True, True)

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked: list[str] = []

    def answer(text: str, **options: Any) -> bool:
        asked.append(text)
        return len(asked) > 1

    monkeypatch.setattr("click.confirm", answer)
    code, _, err = office.run(*line)
    assert (code, "not_confirmed" in err, office.file.read_bytes() == before) == (2, True, True)
    assert office.run(*line)[0] == 0
    assert asked == ["Sign this?"] * 2


def test_what_another_signed_meanwhile_stays(office: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a share two people read the same file at once; the slower one must not undo the other's signature."""
    office.build()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

    def ben_is_faster(text: str, **options: Any) -> bool:
        assert office.sign("ben")[0] == 0
        return True

    monkeypatch.setattr("click.confirm", ben_is_faster)
    code, out, err = office.run("tx", "sign", str(office.file), "--key", str(office.keys / "anna.key"))
    assert (code, "2 of 2 signatures, by bank-a/ben" in out) == (0, True), err
    assert office.submit()[0] == 0


def test_another_transaction_that_was_put_there_meanwhile_gets_no_signature(
    office: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.build("--mode", "each")
    other = office.file.read_bytes()
    office.file.unlink()
    office.build()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

    def exchange(text: str, **options: Any) -> bool:
        office.file.write_bytes(other)
        return True

    monkeypatch.setattr("click.confirm", exchange)
    code, _, err = office.run("tx", "sign", str(office.file), "--key", str(office.keys / "anna.key"))
    assert (code, "hansa: transaction_file_altered: " in err) == (2, True), err
    assert office.file.read_bytes() == other


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"a\x1b[2K.json", "a\\u001b[2K.json"),
        (b"a\n1. till.pay.json", "a\\u000a1. till.pay.json"),
        (b"a\xff.json", "a\\xff.json"),
    ],
)
def test_a_files_name_can_neither_hide_nor_stop_what_is_signed(office: Desk, name: bytes, shown: str) -> None:
    office.file = office.file.parent / os.fsdecode(name)
    made = office.build()
    code, out, err = office.sign("anna", "--json")
    assert code == 0, err
    assert made["file"] == json.loads(out)["file"] == str(office.file.parent / shown)
    assert f"{office.file.parent / shown}: transaction {made['tx_id']}" in err


def test_a_terminal_that_lacks_signs_is_shown_their_numbers(office: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    office.build()
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="iso-8859-5"))
    line = ["tx", "sign", str(office.file), "--key", str(office.keys / "anna.key"), "--yes"]
    assert main(line) == 0
    assert rb"1 \xd7 till.deposit (amounts together 500)" in written.getvalue()


def test_a_node_that_answers_nonsense_of_a_policy_gets_no_file(
    office: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(office.node, "signers", ("anna", "anna"))
    line = ("tx", *DEPOSIT, "--as", "bank-a/treasury", "--node", office.url, "--out", str(office.file))
    code, _, err = office.run(*line)
    assert (code, "hansa: unexpected_answer: " in err, office.file.exists()) == (4, True, False)


def test_a_new_file_that_finds_no_room_leaves_no_half(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, before[1]))
    try:
        with pytest.raises(ConfigError, match="too large"):
            write_new(tmp_path / "x", b"more than four", "transaction_file_not_written")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_files_are_never_overwritten_and_never_half_written(
    office: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.build()
    before = office.file.read_bytes()
    line = ("tx", *DEPOSIT, "--as", "bank-a/treasury", "--node", office.url)
    code, _, err = office.run(*line, "--out", str(office.file))
    assert (code, "transaction_file_not_written" in err) == (2, True)
    assert office.file.read_bytes() == before

    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    office.file.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(office.file)
    office.file = link
    assert office.sign("anna")[0] == 0
    office.file = link.resolve()
    assert (link.is_symlink(), office.file.stat().st_mode & 0o777) == (True, 0o640)
    link.unlink()

    before = office.file.read_bytes()
    monkeypatch.setattr("node.cli.files.os.replace", full)
    code, _, err = office.sign("ben")
    assert (code, "transaction_file_not_written" in err) == (2, True)
    assert office.file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [office.file.name]


@pytest.mark.parametrize(
    ("arguments", "code", "error", "hint"),
    [
        ([*DEPOSIT, "--as", "bank-z", "--out", "x"], 1, "unknown_principal", "bank-z"),
        ([*DEPOSIT, "--as", "b", "--out", "x", "--expires", "25h"], 2, "invalid_usage", "24h"),
        (["build", "--as", "bank-a/treasury", "--out", "x"], 2, "invalid_usage", "--file"),
        (["submit", "--signed", "none"], 2, "transaction_file_unreadable", "none"),
        (["submit", "--signed", "."], 2, "invalid_usage", "directory"),
        (["submit", "--signed", "x", "--key", "y"], 2, "invalid_usage", "--key"),
        (["submit", "--signed", "x", "--expires", "1h"], 2, "invalid_usage", "--expires"),
        (["submit", "till.deposit", "--signed", "x"], 2, "invalid_usage", "CONTRACT.METHOD"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line(office: Desk, arguments: list[str], code: int, error: str, hint: str) -> None:
    failed, out, err = office.run("tx", *arguments, "--node", office.url)
    assert (failed, out, err.count("\n")) == (code, "", 1), err
    assert err.startswith(f"hansa: {error}: ")
    assert hint in err
