"""`hansa prove`: it writes only what the stand-alone verifier accepts for exactly what was asked."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hansa_verify
import pytest

from contracts.state_keys import encode_key
from node.api import ApiServer, Proofs
from node.cli.main import main
from node.client import Client, ContractAnswer, MethodDescription
from node.ledger import Ending
from tests.node.evidence_world import ProvableLedger
from tests.node.ledger_world import ENGINE, transfer
from tests.node.memory_node import MemoryNode


class ProvableNode(MemoryNode):
    """A memory node whose proofs are those of a real ledger: A pays B 1 … 9 cents in blocks 2 … 10."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ledger = ledger = ProvableLedger(path)
        ledger.open_accounts("A", "B", funds=1_000)
        self.paid = [ledger.transaction("bank-a", transfer("A", "B", amount, amount)) for amount in range(1, 10)]
        self.lost = ledger.transaction(
            "bank-a", transfer("A", "B", 77, 77), request="order-77", expires_at_ms=ledger.now_ms + 1_500
        )
        ledger.store.put_pending([(self.lost.tx_id, self.lost.data)])
        for item in self.paid:
            ledger.settle(item)
        ledger.store.end_pending({self.lost.tx_id: Ending("expired", "expired", 3)})
        self.forged: bytes | None = None

    @property
    def network(self) -> str:
        return self.ledger.network.network_id

    @property
    def proofs(self) -> Proofs:
        return self.ledger.proving

    def contracts(self) -> tuple[ContractAnswer, ...]:
        return tuple(
            ContractAnswer(
                name=item.name,
                version=item.version,
                doc=item.doc,
                calls=tuple(MethodDescription(name=m.name, doc=m.doc, arguments=m.arguments) for m in item.calls),
                queries=(),
            )
            for item in ENGINE.describe()
        )


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProvableNode]:
    made = ProvableNode(tmp_path_factory.mktemp("ledger"))
    yield made
    made.ledger.close()


@pytest.fixture(scope="module")
def url(node: ProvableNode) -> Iterator[str]:
    """Where a real server answers for the node, in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = ApiServer(node, "127.0.0.1", 0)
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
    yield server.url
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def hansa(
    node: ProvableNode,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """Runs `hansa prove` with the arguments against the node; returns (exit code, stdout, stderr)."""
    monkeypatch.setenv("HANSA_NODE", url)
    monkeypatch.delenv("HANSA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "network.toml").write_bytes(node.ledger.genesis)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(("prove", *arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


WRITE = ("--network", "network.toml", "--out", "pack")


@pytest.mark.slow
def test_each_kind_is_written_checked_and_told_in_words(hansa: Any, node: ProvableNode, tmp_path: Path) -> None:
    paid, lost = node.paid[2].tx_id.hex(), node.lost.tx_id.hex()
    (tmp_path / "lost.tx").write_bytes(node.lost.data)
    (tmp_path / "lost.body").write_bytes(node.lost.body_bytes)
    uetr = node.paid[0].body.calls[0].args["uetr"]
    rebuilt = [f"{name}={value}" for name, value in node.lost.body.calls[0].args.items()]
    expires = str(node.lost.body.expires_at_ms)
    again = ["--as", "bank-a", "--request-id", "order-77", "--expires-at-ms", expires]
    for place, (arguments, subject, said) in enumerate(
        (
            (["tx", paid], f"transaction:{paid}", "is final in block 4"),
            (["state", "settlement", "accounts", "A"], "state:", "the state holds"),
            (["state", "settlement", "accounts", "A", "--at", "3"], "state:", "After block 3"),
            (["absence", "settlement", "accounts", "C"], "absence:", "After block 10"),
            (["absence", "settlement", "movements", uetr, "--at", "1"], "absence:", "After block 1"),
            (["statement", "A", "--from", "2", "--to", "7"], "statement:A", "after block 7"),
            (["statement", "A", "--from", "1"], "statement:A", "after block 10"),
            (["not-executed", lost], f"not_executed:{lost}", "never will be"),
            (["not-executed", "lost.tx"], f"not_executed:{lost}", "never will be"),
            (["not-executed", "lost.body", "--at", "9"], f"not_executed:{lost}", "never will be"),
            (["not-executed", "settlement.transfer", *rebuilt, *again], f"not_executed:{lost}", "never will be"),
        )
    ):
        file = tmp_path / f"pack-{place}"
        code, out, err = hansa(*arguments, "--network", "network.toml", "--out", str(file))
        assert (code, said in out, "wrote" in err) == (0, True, True), (arguments, out, err)
        assert file.stat().st_mode & 0o777 == 0o600
        proof = hansa_verify.verify(file.read_bytes(), node.ledger.genesis)
        assert f"{proof.kind}:{proof.subject}".startswith(subject)


def test_programs_get_one_document(hansa: Any, node: ProvableNode) -> None:
    code, out, _ = hansa("statement", "B", "--from", "1", *WRITE, "--json")
    document = json.loads(out)
    assert (code, document["kind"], document["subject"], document["file"]) == (0, "statement", "B", "pack")
    assert document["proven"]
    assert document["assumed"]
    assert len(document["details"]) >= 9


def test_a_checkpoint_is_put_in_and_named(hansa: Any, node: ProvableNode, tmp_path: Path) -> None:
    digest = node.ledger.store.head_at(9).digest.hex()
    line = ("state", "settlement", "accounts", "A", "--at", "4")
    code, _, err = hansa(*line, "--checkpoint", "9", *WRITE)
    assert (code, f"--checkpoint 9:{digest}" in err) == (0, True)
    hansa_verify.verify((tmp_path / "pack").read_bytes(), node.ledger.genesis, f"9:{digest}")
    (tmp_path / "pack").unlink()
    assert hansa(*line, "--checkpoint", f"9:{digest}", *WRITE)[0] == 0
    (tmp_path / "pack").unlink()
    code, _, err = hansa(*line, "--checkpoint", f"9:{'0' * 64}", *WRITE)
    assert (code, "proof_refused" in err, (tmp_path / "pack").exists()) == (1, True, False)


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["tx", "0" * 64, *WRITE], 1, "transaction_not_found"),
        (["tx", "zz", *WRITE], 2, "malformed_request"),
        (["state", "settlement", "accounts", "C", *WRITE], 1, "no_value"),
        (["absence", "settlement", "accounts", "A", *WRITE], 1, "value_present"),
        (["state", "settlement", "acounts", "A", *WRITE], 1, "unknown_field"),
        (["state", "settlement", "accounts", *WRITE], 2, "invalid_arguments"),
        (["state", "settlement", "accounts", "A", "--at", "99", *WRITE], 1, "block_not_found"),
        (["state", "settlement", "accounts", "A", "--checkpoint", "soon", *WRITE], 2, "invalid_usage"),
        (["statement", "A", "--from", "22", "--to", "5", *WRITE], 2, "invalid_usage"),
        (["statement", "C", "--from", "5", *WRITE], 1, "account_not_found"),
        (["not-executed", *WRITE], 2, "invalid_usage"),
        (["not-executed", "no.file", *WRITE], 2, "invalid_usage"),
        (["not-executed", "network.toml", *WRITE], 1, "malformed_transaction"),
        (["not-executed", "0" * 64, *WRITE], 1, "transaction_not_kept"),
        (["not-executed", "--request-id", "R", *WRITE], 2, "invalid_usage"),
        (["statement", "A", "--from", "5", "--out", "pack"], 2, "invalid_usage"),
        (["statement", "A", "--from", "5", "--network", "network.toml"], 2, "invalid_usage"),
        (["statement", "A", "--from", "5", "--network", "none.toml", "--out", "pack"], 2, "config_unreadable"),
        (
            ["statement", "A", "--from", "5", "--network", "network.toml", "--out", "none/pack"],
            2,
            "proof_not_written",
        ),
        (
            ["statement", "A", "--from", "5", "--network", "network.toml", "--out", "network.toml"],
            2,
            "proof_not_written",
        ),
    ],
)
def test_every_failure_is_one_line_and_writes_nothing(
    hansa: Any, tmp_path: Path, arguments: list[str], code: int, error: str
) -> None:
    result, out, err = hansa(*arguments)
    assert (result, out) == (code, ""), err
    assert err.startswith(f"hansa: {error}: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "pack").exists()


def test_what_may_still_be_executed_and_what_was_executed_is_not_proven(
    hansa: Any, node: ProvableNode, tmp_path: Path
) -> None:
    waiting = node.ledger.transaction("bank-a", transfer("A", "B", 5, 500))
    (tmp_path / "waiting.tx").write_bytes(waiting.data)
    (tmp_path / "paid.tx").write_bytes(node.paid[0].data)
    for name, code, error in (("waiting.tx", 1, "not_expired_yet"), ("paid.tx", 1, "transaction_executed")):
        result, _, err = hansa("not-executed", name, *WRITE)
        assert (result, err.split(":")[1].strip()) == (code, error)


def test_where_the_contrary_is_proven_the_other_command_is_named(hansa: Any, node: ProvableNode) -> None:
    """Nobody lies and nothing is damaged: the question was the wrong one."""
    uetr = node.paid[0].body.calls[0].args["uetr"]
    for kind, height, said, other in (
        ("state", "1", "there is no value under", "`hansa prove absence`"),
        ("absence", "2", "there is a value under", "`hansa prove state`"),
    ):
        code, _, err = hansa(kind, "settlement", "movements", uetr, "--at", height, *WRITE)
        assert (code, f"{said} settlement movements {uetr} after block {height}" in err) == (1, True), err
        assert other in err


def test_a_contrary_answer_that_proves_nothing_is_not_believed(
    hansa: Any, node: ProvableNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that shows the absence of another key has not shown that this one has no value."""
    elsewhere = encode_key(("settlement", "accounts", "C"))
    of_another = asyncio.run(node.ledger.proving.state(elsewhere, None, None))
    for answer in (of_another, of_another[:-1] + bytes((of_another[-1] ^ 1,)), b"nonsense"):
        monkeypatch.setattr(Client, "prove_state", lambda *_, answer=answer, **__: answer)
        code, _, err = hansa("state", "settlement", "accounts", "A", *WRITE)
        assert (code, err.split(":")[1].strip()) == (1, "proof_refused")


def test_an_executed_transaction_is_told_with_what_its_calls_came_to(
    hansa: Any, tmp_path: Path, node: ProvableNode
) -> None:
    (tmp_path / "paid.tx").write_bytes(node.paid[0].data)
    _, _, err = hansa("not-executed", "paid.tx", *WRITE)
    assert "was executed in block 2; its calls came to: ok. " in err


def test_the_pack_of_another_network_is_not_written(hansa: Any, tmp_path: Path) -> None:
    other = (tmp_path / "network.toml").read_text().replace('"evidence"', '"elsewhere"')
    (tmp_path / "other.toml").write_text(other)
    code, _, err = hansa("state", "settlement", "accounts", "A", "--network", "other.toml", "--out", "pack")
    assert (code, "proof_refused" in err, (tmp_path / "pack").exists()) == (1, True, False)


@pytest.mark.slow
def test_the_auditors_command_accepts_what_was_written(hansa: Any, tmp_path: Path) -> None:
    assert hansa("statement", "A", "--from", "2", *WRITE)[0] == 0
    command = [sys.executable, hansa_verify.__file__, "pack", "--genesis", "network.toml"]
    accepted = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (accepted.returncode, "A" in accepted.stdout) == (0, True), accepted.stderr
