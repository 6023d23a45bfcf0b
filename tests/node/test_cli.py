"""The command `hansa`: what it prints, where, and how it exits."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from node.api import ApiServer
from node.cli.documents import error_page
from node.cli.main import main
from node.errors import CATALOGUE
from node.keys import SigningKey, write_key_file
from node.ledger import Transaction
from tests.node.memory_node import MemoryNode

PHRASE = "correct horse"


class Live:
    """A MemoryNode behind a real server, in a thread of its own."""

    def __init__(self) -> None:
        self.node = MemoryNode(instant=True)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.server = ApiServer(self.node, "127.0.0.1", 0)
        asyncio.run_coroutine_threadsafe(self.server.start(), self.loop).result(10)
        self.url = self.server.url

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.server.stop(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    running = Live()
    yield running
    running.close()


@pytest.fixture(scope="module", autouse=True)
def cheap_passphrases() -> Iterator[None]:
    """Key files are written and read at the least cost: what they must cost test_keys.py says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nacl.pwhash.argon2id.OPSLIMIT_INTERACTIVE", 1)
        patch.setattr("nacl.pwhash.argon2id.MEMLIMIT_INTERACTIVE", 8_192)
        yield


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "bank-a.key"
    write_key_file(path, SigningKey(bytes(range(32))), kind="principal", id="bank-a", passphrase=PHRASE)
    return path


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HANSA_NODE", "HANSA_DIR", "HANSA_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HANSA_PASSPHRASE", PHRASE)
    monkeypatch.chdir(tmp_path)


class Result:
    """What one command line did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def hansa(live: Live, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HANSA_NODE", live.url)

    def run(*arguments: str) -> Result:
        code = main(arguments)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Result(code, captured.out, captured.err)

    return run


# --- reading ---


def test_status_has_the_fields_that_scripts_rely_on(hansa: Any) -> None:
    result = hansa("status", "--json")
    assert result.code == 0
    assert result.err == ""
    assert {"member", "network", "height", "view", "primary", "state_root", "ready", "peers"} <= set(result.json)
    assert set(result.json["peers"][0]) == {"id", "connected", "height"}


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["status"], "bank-a (validator)"),
        (["why"], "Blocks are made."),
        (["members"], "bank-a"),
        (["contracts"], "Counts deposits."),
        (["contracts", "till"], "deposit"),
        (["contracts", "till.deposit"], "Add `amount` minor units"),
        (["query", "till.balance", "account=nobody"], "0"),
        (["query", "till.echo", "number=-3", "list=[1,2]"], "number"),
        (["events"], ""),
        (["tx", "list"], "transaction"),
        (["docs", "errors"], "queue_full"),
        (["--help"], "Exit codes"),
    ],
)
def test_people_get_text_and_programs_one_document(hansa: Any, arguments: list[str], shown: str) -> None:
    result = hansa(*arguments)
    assert result.code == 0
    assert shown in result.out
    assert result.err == ""
    if arguments != ["--help"]:
        assert hansa(*arguments, "--json").json is not None


def test_wrong_use_names_the_help_of_that_very_command(hansa: Any) -> None:
    """`hansa prove tx` pointed to `hansa tx --help`, which is another command."""
    result = hansa("prove", "tx")
    assert result.code == 2
    assert "Missing argument 'TX_ID' (hansa prove tx --help). " in result.err


def test_why_writes_the_bundle_to_a_new_file_of_its_owner(hansa: Any, tmp_path: Path) -> None:
    file = tmp_path / "bundle.zip"
    result = hansa("why", "--bundle", str(file), "--json")
    assert result.code == 0
    assert result.json["moving"] is True
    assert "wrote" in result.err
    assert file.read_bytes() == b"PK"
    assert file.stat().st_mode & 0o777 == 0o600
    again = hansa("why", "--bundle", str(file))
    assert again.code == 2
    assert "bundle_not_written" in again.err
    assert hansa("why", "--bundle", str(tmp_path / "none" / "bundle.zip")).code == 2


# --- submitting ---


def test_a_transaction_is_submitted_and_shown(hansa: Any, key_file: Path) -> None:
    result = hansa("tx", "submit", "till.deposit", "account=C-1", "amount=500", "--key", str(key_file), "--json")
    assert result.code == 0, result.err
    fate = result.json
    assert (fate["status"], fate["receipts"][0]["code"]) == ("final", "ok")
    assert fate["receipts"][0]["events"][0]["data"]["amount"] == 500
    shown = hansa("tx", "show", fate["tx_id"], "--json").json
    assert {"tx_id", "status", "height", "receipts"} <= set(shown)
    assert "C-1" in hansa("tx", "show", fate["tx_id"]).out
    block = hansa("block", "show", str(fate["height"]), "--json").json
    assert block["transactions"][0]["tx_id"] == fate["tx_id"]
    assert fate["tx_id"] in hansa("block", "show", "latest").out
    assert hansa("query", "till.balance", "account=C-1", "--json").json["value"] == 500
    events = hansa("events", "--topic", "till/account/C-1", "--json").json["events"]
    assert [event["tx_id"] for event in events] == [fate["tx_id"]]


def test_a_request_id_makes_a_second_attempt_harmless(hansa: Any, key_file: Path, live: Live) -> None:
    line = ["tx", "submit", "till.deposit", "account=R-1", "amount=1", "--key", str(key_file), "--json"]
    first = hansa(*line, "--no-wait", "--request-id", "order-1").json
    assert first["status"] in ("pending", "final")
    assert hansa("tx", "show", "--wait", first["tx_id"], "--json").json["content"]["request_id"] == "order-1"


def test_a_transaction_is_saved_before_it_is_sent_or_not_sent(
    hansa: Any, key_file: Path, live: Live, tmp_path: Path
) -> None:
    file = tmp_path / "saved.tx"
    line = ["tx", "submit", "till.deposit", "account=S-1", "amount=3", "--key", str(key_file), "--save", str(file)]
    sent = hansa(*line, "--json").json
    assert Transaction.decode(file.read_bytes()).tx_id.hex() == sent["tx_id"]
    before = live.node.submissions
    again = hansa(*line)
    assert (again.code, "transaction_not_saved" in again.err, live.node.submissions) == (2, True, before)


def test_what_the_ledger_refuses_exits_with_1(hansa: Any, key_file: Path) -> None:
    result = hansa("tx", "submit", "till.deposit", "account=C-1", "amount=0", "--key", str(key_file), "--json")
    assert result.code == 1
    assert result.json["receipts"][0]["code"] == "amount_not_positive"
    assert result.err == "hansa: the ledger said no: amount_not_positive. An amount is more than nothing.\n"


def test_a_file_of_calls_is_one_transaction(hansa: Any, key_file: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls.jsonl"
    lines = [{"call": "till.deposit", "args": {"account": "F-1", "amount": n, "proof": "00ff"}} for n in (1, 2, 3)]
    calls.write_text("\n\n".join(json.dumps(line) for line in lines))
    result = hansa("tx", "submit", "--file", str(calls), "--mode", "each", "--key", str(key_file), "--json")
    assert result.code == 0, result.err
    assert [receipt["code"] for receipt in result.json["receipts"]] == ["ok"] * 3
    calls.write_text(calls.read_text() + '\n{"call": "till.deposit", "args": {"account": "F-1"}}')
    broken = hansa("tx", "submit", "--file", str(calls), "--key", str(key_file))
    assert broken.code == 2
    assert "line 6" in broken.err
    assert "amount" in broken.err


def test_a_dry_run_shows_the_change_and_makes_none(hansa: Any, key_file: Path) -> None:
    line = ["tx", "submit", "till.deposit", "account=D-1", "amount=9", "--key", str(key_file), "--dry-run"]
    assert hansa(*line, "--json").json["changes"] == [{"key": ["till", "D-1"], "before": None, "after": 9}]
    assert "nothing was changed" in hansa(*line).out
    assert hansa("query", "till.balance", "account=D-1", "--json").json["value"] == 0


# --- failures ---


@pytest.mark.parametrize(
    ("arguments", "code", "error", "hint"),
    [
        (["query", "tull.balance"], 2, "unknown_contract", "did you mean till?"),
        (["query", "till.balanse"], 2, "unknown_method", "did you mean balance?"),
        (["query", "till"], 2, "unknown_method", "balance"),
        (["query", "till.balance", "acount=1"], 2, "invalid_arguments", "did you mean account?"),
        (["query", "till.balance"], 2, "invalid_arguments", "account: is missing"),
        (["query", "till.echo", "number=1.5"], 2, "invalid_arguments", "must be an integer"),
        (["query", "till.echo", "flag=maybe"], 2, "invalid_arguments", "must be boolean"),
        (["query", "till.echo", "data=xyz"], 2, "invalid_arguments", "must be hex"),
        (["query", "till.echo", "number"], 2, "invalid_usage", "NAME=VALUE"),
        (["query", "till.echo", "number=1", "number=2"], 2, "invalid_usage", "twice"),
        (["query", "till.balance", "account=a", "--at", "99"], 1, "block_not_found", ""),
        (["contracts", "tull"], 2, "unknown_contract", "did you mean till?"),
        (["block", "show", "first"], 2, "invalid_usage", "latest"),
        (["tx", "show", "0" * 64], 1, "transaction_not_found", ""),
        (["tx", "submit"], 2, "invalid_usage", "--file"),
        (["tx", "submit", "till.deposit", "account=a", "amount=1"], 2, "invalid_usage", "--key"),
        (["tx", "submit", "till.deposit", "account=a", "amount=1", "--expires", "2d"], 2, "invalid_usage", "24h"),
        (["tx", "submit", "till.deposit", "--expires", "soon"], 2, "invalid_usage", "10m"),
        (["tx", "submit", "--file", "none.jsonl"], 2, "invalid_usage", "none.jsonl"),
        (["tx", "submit", "till.deposit", "account=a", "amount=1", "--key", "none"], 2, "key_file_unreadable", ""),
        (["nonsense"], 2, "invalid_usage", "nonsense"),
        (["status", "--dir", "none"], 2, "config_unreadable", "none"),
        (["status", "--node", "bank-a"], 2, "invalid_usage", "http://"),
        (["status", "--node", "http://127.0.0.1:1"], 4, "node_unreachable", "http://127.0.0.1:1"),
        (["run", "--dir", "none"], 2, "config_unreadable", "none"),
    ],
)
def test_every_failure_is_one_line_with_its_exit_code(
    hansa: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, error: str, hint: str
) -> None:
    if "--dir" in arguments:
        monkeypatch.delenv("HANSA_NODE")
    result = hansa(*arguments)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith(f"hansa: {error}: ")
    assert result.err.count("\n") == 1
    assert hint in result.err
    if arguments[0] != "run":
        document = hansa(*arguments, "--json").json
        assert document["error"]["code"] == error


def test_a_bug_is_one_line_and_exit_70(hansa: Any, live: Live, key_file: Path) -> None:
    live.node.broken = True
    try:
        with capture_logs():  # The node's log: it is in this process too.
            result = hansa("tx", "submit", "till.deposit", "account=a", "amount=1", "--key", str(key_file))
    finally:
        live.node.broken = False
    assert result.code == 70
    assert result.err.startswith("hansa: internal_error: ")


def test_what_is_not_final_in_time_has_an_exit_code_of_its_own(hansa: Any, live: Live, key_file: Path) -> None:
    """It was 4, "no node could be reached", though the node had taken the transaction."""
    live.node.instant = False
    try:
        line = ["tx", "submit", "till.deposit", "account=P-1", "amount=1", "--key", str(key_file)]
        late = hansa(*line, "--timeout", "50ms", "--json")
        waited = hansa("tx", "show", late.json["tx_id"], "--wait", "--timeout", "50ms")
        shown = hansa("tx", "show", late.json["tx_id"])
    finally:
        live.node.instant = True
        live.loop.call_soon_threadsafe(live.node.make_block)
    assert (late.code, late.json["status"]) == (5, "pending")
    assert late.err.startswith("hansa: not_final_in_time: ")
    assert (waited.code, shown.code) == (5, 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that refuses every write")
def test_output_that_cannot_be_written_is_one_line(live: Live) -> None:
    """It was an internal error, "a bug in Hansa", with what is left over reported once more at the end."""
    command = "import sys; from node.cli.main import main; sys.exit(main())"
    for arguments in (["status", "--node", live.url], ["status", "--node", live.url, "--json"], ["docs", "causes"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-P", "-c", command, *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                check=False,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
        assert done.returncode == 3, done.stderr
        assert done.stderr.startswith("hansa: output_not_written: cannot write output: No space left on device. ")
        assert done.stderr.count("\n") == 1


def test_a_wrong_passphrase_is_told_apart(hansa: Any, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANSA_PASSPHRASE", "wrong")
    result = hansa("tx", "submit", "till.deposit", "account=a", "amount=1", "--key", str(key_file))
    assert result.code == 2
    assert "wrong_passphrase" in result.err


def test_without_a_node_the_message_says_how_to_name_one(hansa: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HANSA_NODE")
    result = hansa("status")
    assert result.code == 2
    assert "--node URL" in result.err


# --- the operator's machine ---


def write_network(path: Path, tables: list[str]) -> None:
    path.write_text('[network]\nname = "pilot"\n\n' + "\n\n".join(tables) + "\n")


def test_init_makes_keys_then_joins_and_never_overwrites(hansa: Any, tmp_path: Path) -> None:
    directory, network = tmp_path / "bank-a", tmp_path / "network.toml"
    first = hansa("init", "--member", "bank-a", "--dir", str(directory), "--listen", "127.0.0.1:7601")
    assert first.code == 0, first.err
    assert (directory / "keys" / "voting.key").stat().st_mode & 0o777 == 0o600
    write_network(network, [first.out[first.out.index("[[members]]") :]])
    before = {path: path.read_bytes() for path in directory.rglob("*.key")}
    line = ["init", "--member", "bank-a", "--network", str(network), "--dir", str(directory), "--json"]
    joined = hansa(*line, "--api", "127.0.0.1:1")
    assert joined.code == 0, joined.err
    assert joined.json["may_vote"] is True
    assert joined.json["network"].startswith("pilot-")
    assert {path: path.read_bytes() for path in directory.rglob("*.key")} == before
    again = hansa(*line)
    assert again.code == 0, again.err
    assert again.json["network"] == joined.json["network"]
    listed = hansa("keys", "list", "--dir", str(directory), "--json").json["keys"]
    assert {(key["kind"], key["id"]) for key in listed} == {
        ("voting", "bank-a"),
        ("tls", "bank-a"),
        ("principal", "bank-a"),
    }
    shown = hansa("keys", "show", listed[0]["file"], "--json").json
    assert shown["public_key"] == listed[0]["public_key"]


def test_a_wiped_data_directory_is_never_given_a_vote_again(hansa: Any, tmp_path: Path) -> None:
    directory, network = tmp_path / "bank-a", tmp_path / "network.toml"
    made = hansa("init", "--member", "bank-a", "--dir", str(directory), "--listen", "127.0.0.1:7601")
    write_network(network, [made.out[made.out.index("[[members]]") :]])
    line = ["init", "--member", "bank-a", "--network", str(network), "--dir", str(directory), "--json"]
    assert hansa(*line).json["may_vote"] is True
    for path in sorted((directory / "data").rglob("*"), reverse=True):
        path.unlink()
    (directory / "data").rmdir()
    assert hansa(*line).json["may_vote"] is False
    assert not (directory / "data").exists()


def test_verify_reads_a_directory_and_says_when_there_is_none(hansa: Any, tmp_path: Path) -> None:
    directory, network = tmp_path / "bank-a", tmp_path / "network.toml"
    made = hansa("init", "--member", "bank-a", "--dir", str(directory), "--listen", "127.0.0.1:7601")
    write_network(network, [made.out[made.out.index("[[members]]") :]])
    assert hansa("init", "--member", "bank-a", "--network", str(network), "--dir", str(directory)).code == 0
    verified = hansa("verify", "--dir", str(directory), "--json")
    assert verified.code == 0, verified.err
    wanted = {"ok": True, "height": 0, "blocks": 0, "transactions": 0, "first_error": None, "quick": False}
    assert verified.json.items() >= wanted.items()
    assert hansa("verify", "--dir", str(directory), "--quick", "--json").json["quick"]
    (directory / "data").rename(tmp_path / "elsewhere")
    missing = hansa("verify", "--dir", str(directory))
    assert (missing.code, "data_dir_unusable" in missing.err) == (2, True)


def test_init_refuses_foreign_keys_and_another_network(hansa: Any, tmp_path: Path) -> None:
    networks = {}
    for name in ("one", "two"):
        made = hansa("init", "--member", "bank-a", "--dir", str(tmp_path / name), "--listen", "127.0.0.1:7601")
        networks[name] = tmp_path / f"{name}.toml"
        write_network(networks[name], [made.out[made.out.index("[[members]]") :]])
    line = ["init", "--member", "bank-a", "--dir", str(tmp_path / "one"), "--network"]
    foreign = hansa(*line, str(networks["two"]))
    assert (foreign.code, "wrong_key" in foreign.err) == (2, True)
    assert hansa(*line, str(networks["one"])).code == 0
    renamed = tmp_path / "renamed.toml"
    renamed.write_text(networks["one"].read_text().replace('"pilot"', '"other"'))
    other = hansa(*line, str(renamed))
    assert (other.code, "data_of_another_network" in other.err) == (2, True)
    unknown = hansa("init", "--member", "bank-z", "--dir", str(tmp_path / "one"), "--network", str(networks["one"]))
    assert unknown.code == 2
    empty = hansa("init", "--member", "bank-a", "--dir", str(tmp_path / "new"), "--network", str(networks["one"]))
    assert (empty.code, "without --network" in empty.err) == (2, True)


def test_the_node_is_found_by_its_directory(
    hansa: Any, live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key_file: Path
) -> None:
    monkeypatch.delenv("HANSA_NODE")
    address = live.url.removeprefix("http://")
    (tmp_path / "node.toml").write_text(f'member = "bank-a"\nlisten = "127.0.0.1:1"\napi = "{address}"\n')
    assert hansa("status", "--json").json["member"] == "bank-a"
    (tmp_path / "keys").mkdir()
    key = tmp_path / "keys" / "bank-a.key"
    key.write_bytes(key_file.read_bytes())
    key.chmod(0o600)
    result = hansa("tx", "submit", "till.deposit", "account=N-1", "amount=1", "--dir", str(tmp_path), "--json")
    assert result.json["status"] == "final"


def test_the_error_page_is_the_catalogues() -> None:
    committed = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
    assert committed == error_page(), "run: hansa docs errors --output-file docs/errors.md"
    assert all(f"`{code}`" in committed for code in CATALOGUE)
