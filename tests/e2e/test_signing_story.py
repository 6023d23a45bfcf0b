"""A member of one runs its node; a maker and a checker sign away from it, and the ledger judges."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.cli.main import main
from tests.node.mesh_kit import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
START_S = 60.0
RUN = "import sys; from node.cli.main import main; sys.exit(main())"


class Bank:
    """The directory of bank-a, the commands there, and its running node."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self._capsys = capsys
        self.api = f"127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def hansa(self, *arguments: str) -> tuple[int, Any, str]:
        code = main([*arguments, "--json"])
        captured = self._capsys.readouterr()
        return code, json.loads(captured.out or "null"), captured.err

    def done(self, *arguments: str) -> Any:
        code, document, err = self.hansa(*arguments)
        assert code == 0, err
        return document

    def found(self) -> None:
        """Keys, a network of one in which two of three sign for `bank-a/treasury`, and genesis."""
        here = ("--dir", str(self.path))
        made = self.done("init", "--member", "bank-a", *here, "--listen", f"127.0.0.1:{free_port()}")
        public = {key["kind"]: key["public_key"] for key in made["keys"]}
        people = {name: self._key(name) for name in ("anna", "ben", "carla")}
        policy = ", ".join(f'"{key}"' for key in people.values())
        lines = [
            '[network]\nname = "story"\n',
            f'[[members]]\nid = "bank-a"\nrole = "validator"\naddress = "127.0.0.1:{free_port()}"',
            f'voting_key = "{public["voting"]}"\ntls_key = "{public["tls"]}"\n',
            f'[[principals]]\nid = "bank-a"\nkeys = ["{public["principal"]}"]\nthreshold = 1\n',
            f'[[principals]]\nid = "bank-a/anna"\nkeys = ["{people["anna"]}"]\nthreshold = 1\n',
            f'[[principals]]\nid = "bank-a/treasury"\nkeys = [{policy}]\nthreshold = 2\n',
            '[contracts.settlement]\ncurrencies = [{code = "USD", exponent = 2, issuer = "bank-a"}]\n',
        ]
        (self.path / "agreed.toml").write_text("\n".join(lines))
        network = str(self.path / "agreed.toml")
        self.done("init", "--member", "bank-a", *here, "--network", network, "--api", self.api)

    def _key(self, name: str) -> str:
        made = self.done("keys", "new", "--principal", "bank-a/treasury", "--file", str(self.path / f"{name}.key"))
        return str(made["public_key"])

    def start(self) -> None:
        """The node answers and makes blocks."""
        with (self.path / "node.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", RUN, "run", "--dir", str(self.path)],
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        deadline = time.monotonic() + START_S
        while not self._ready():
            assert self._process.poll() is None, (self.path / "node.log").read_text()
            assert time.monotonic() < deadline, "the node does not become ready"
            time.sleep(0.05)

    def _ready(self) -> bool:
        try:
            return bool(self.get("/readyz"))
        except OSError:
            return False

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self.api}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def stop(self) -> None:
        """The node ended in good order."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            assert self._process.wait(START_S) == 0


@pytest.fixture
def bank(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Bank]:
    for name in ("HANSA_NODE", "HANSA_DIR", "HANSA_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HANSA_PASSPHRASE", "correct horse")
    monkeypatch.chdir(tmp_path)
    found = Bank(tmp_path, capsys)
    found.found()
    found.start()
    yield found
    found.stop()


def test_maker_and_checker_on_a_real_ledger(bank: Bank) -> None:
    node, file = ("--node", f"http://{bank.api}"), str(bank.path / "pay.json")
    call = ("settlement.open_account", "account=A-1", "owner=bank-a/treasury", "currency=USD")
    made = bank.done("tx", "build", *call, "--as", "bank-a/treasury", "--out", file, *node)
    assert (made["missing"], len(made["signers"])) == (2, 3)
    assert {signer["name"] for signer in made["signers"]} == {"bank-a/anna", None}
    sign = ("tx", "sign", file, "--network", str(bank.path / "agreed.toml"), "--yes", "--key")

    assert bank.done(*sign, str(bank.path / "anna.key"))["missing"] == 1
    code, document, err = bank.hansa("tx", "submit", "--signed", file, *node)
    assert (code, document["error"]["code"]) == (1, "policy_unsatisfied")
    assert "1 of 2 signatures, by bank-a/anna" in err
    code, document, _ = bank.hansa(*sign, str(bank.path / "keys" / "bank-a.key"))
    assert (code, document["error"]["code"]) == (1, "signer_not_entitled")
    assert bank.done(*sign, str(bank.path / "carla.key"))["missing"] == 0

    fate = bank.done("tx", "submit", "--signed", file, *node)
    assert (fate["status"], fate["tx_id"], fate["receipts"][0]["code"]) == ("final", made["tx_id"], "ok")
    shown = bank.done("tx", "show", fate["tx_id"], *node)["content"]
    signatures = json.loads(Path(file).read_text())["signatures"]
    assert set(shown["keys"]) == {item["key"] for item in signatures}
    unknown = ("tx", "build", *call, "--as", "bank-a/nobody", "--out", file + "2", *node)
    assert bank.hansa(*unknown)[1]["error"]["code"] == "unknown_principal"

    lines = dict(line.split() for line in bank.get("/metrics").splitlines() if line.startswith("hansa_"))
    for kind in ("voting", "tls"):
        assert 0 < float(lines[f"hansa_{kind}_key_age_seconds"]) < 600
