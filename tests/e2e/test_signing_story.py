"""A member of one runs its node; a maker and a checker sign away from it; it rotates a key; the ledger judges."""

import contextlib
import io
import json
import os
import shutil
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

    def __init__(self, path: Path) -> None:
        self.path = path
        self.api = f"127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def hansa(self, *arguments: str) -> tuple[int, Any, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*arguments, "--json"])
        return code, json.loads(out.getvalue() or "null"), err.getvalue()

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


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    path = tmp_path_factory.mktemp("bank")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HANSA_NODE", "HANSA_DIR", "HANSA_PASSPHRASE_FILE"):
            patch.delenv(name, raising=False)
        patch.setenv("HANSA_PASSPHRASE", "correct horse")
        patch.setattr("nacl.pwhash.argon2id.OPSLIMIT_INTERACTIVE", 1)
        patch.setattr("nacl.pwhash.argon2id.MEMLIMIT_INTERACTIVE", 8_192)
        patch.chdir(path)
        found = Bank(path)
        found.found()
        found.start()
        yield found
        found.stop()


def test_maker_and_checker_on_a_real_ledger(bank: Bank) -> None:
    node, file = ("--node", f"http://{bank.api}"), str(bank.path / "pay.json")
    call = ("settlement.open_account", "account=T-1", "owner=bank-a/treasury", "currency=USD")
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


def test_the_key_in_force_signs_without_being_named(bank: Bank) -> None:
    """After a rotation the former key's file was taken, and once its overlap was over everything was refused."""
    here, keys_dir = ("--dir", str(bank.path)), bank.path / "keys"
    submit = ("tx", "submit", *here)
    plain = keys_dir / "bank-a.key"
    former = bank.done("keys", "show", str(plain))["public_key"]

    def opened(account: str, *more: str) -> tuple[str, str, str]:
        """The outcome of a call; if it is final, who signed it; what people are told."""
        call = ("settlement.open_account", f"account={account}", "owner=bank-a", "currency=USD")
        code, document, err = bank.hansa(*submit, *call, *more)
        if code:
            return document["error"]["code"], "", err
        [signer] = bank.done("tx", "show", document["tx_id"], *here)["content"]["keys"]
        return document["receipts"][0]["code"], signer, err

    def rotated(before: str, after: str) -> None:
        rotation = ("principal=bank-a", f"former={before}", f"key={after}", "overlap_ms=86400000")
        bank.done(*submit, "membership.rotate_key", *rotation)

    second, third = (bank.done("keys", "rotate", "--kind", "principal", *here) for _ in range(2))
    new, newest, file = second["public_key"], third["public_key"], Path(third["file"])
    # The ledger does not know them yet.
    assert opened("A-1") == ("ok", former, "")
    rotated(former, new)
    assert opened("A-2") == ("ok", new, "")
    assert opened("A-3", "--key", str(plain)) == ("ok", former, "")
    # What was replaced twice ends at once.
    rotated(new, newest)
    assert opened("A-4") == ("ok", newest, "")
    assert opened("A-5", "--key", str(plain))[:2] == ("policy_unsatisfied", "")
    uses = {key["public_key"]: key["use"] for key in bank.done("keys", "list", *here)["keys"]}
    assert (uses[former], uses[new], uses[newest]) == ("none", "former", "in_force")

    # Offline, the policy in the transaction's file decides.
    pay = str(bank.path / "rotated.json")
    call = ("settlement.open_account", "account=A-6", "owner=bank-a", "currency=USD")
    bank.done("tx", "build", *call, "--as", "bank-a", "--out", pay, *here)
    sign = ("tx", "sign", pay, "--network", str(bank.path / "agreed.toml"), "--yes", *here)
    code, document, err = bank.hansa(*sign)
    assert (code, document["signed_by"]) == (0, [newest])
    assert f"of 3 keys of bank-a here, {file} is taken" in err
    bank.done("tx", "submit", "--signed", pay, *here)

    # Where the key in force lies elsewhere, one that serves yet is taken, and that is told.
    elsewhere = [bank.path / name for name in ("first", "second", "third")]
    file.rename(elsewhere[2])
    told = f"hansa: no key of bank-a here is in force; {second['file']} signs, while its overlap lasts\n"
    assert opened("A-7") == ("ok", new, told)
    # A single file is taken as it is, whatever its name.
    elsewhere[2].rename(file)
    plain.rename(elsewhere[0])
    Path(second["file"]).rename(elsewhere[1])
    assert opened("A-8") == ("ok", newest, "")
    elsewhere[0].rename(plain)


def test_a_second_signature_is_never_given_unasked(bank: Bank) -> None:
    """Two keys of a policy of two in one directory are two people's decisions, and each is named."""
    here, keys_dir = ("--dir", str(bank.path)), bank.path / "keys"
    files = [keys_dir / "bank-a.treasury.key", keys_dir / f"bank-a.treasury-{'0' * 16}.key"]
    for name, file in zip(("anna", "carla"), files, strict=True):
        shutil.copy(bank.path / f"{name}.key", file)
    call = ("settlement.open_account", "account=T-2", "owner=bank-a/treasury", "currency=USD")
    submit = ("tx", "submit", *call, "--as", "bank-a/treasury", *here)
    code, document, _ = bank.hansa(*submit)
    assert (code, document["error"]["code"]) == (1, "policy_unsatisfied")
    assert bank.done(*submit, "--key", str(files[0]), "--key", str(files[1]))["receipts"][0]["code"] == "ok"
    # A principal that the ledger does not know yet leaves the use of all others known.
    bank.done("keys", "new", "--principal", "bank-a/nobody", "--file", str(keys_dir / "bank-a.nobody.key"))
    uses = {(key["kind"], key["id"]): key["use"] for key in bank.done("keys", "list", *here)["keys"]}
    assert uses["principal", "bank-a/nobody"] == "none"
    assert uses["principal", "bank-a/treasury"] == uses["voting", "bank-a"] == "in_force"
