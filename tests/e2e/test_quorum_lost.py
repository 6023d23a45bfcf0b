"""A quorum is lost for good: two groups of survivors recover by commands, on real nodes that can reach one another.

Then a lost member comes back on an empty disk: it follows nobody until its operator says whom to trust.
"""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from node.client import Client
from tests.e2e.conftest import Bank, Testnet

pytestmark = pytest.mark.slow

OURS, THEIRS = ("bank-a", "bank-b"), ("insurer-a", "insurer-b")
WAIT_S = 90.0


def recover(testnet: Testnet, survivors: Sequence[str], where: Path, reason: str) -> Path:
    """The survivors have gone through the procedure of docs/recovery.md; returns the complete recovery file."""
    where.mkdir()
    named = [part for member in survivors for part in ("--survivor", member)]
    drafts = [where / f"draft-{member}.json" for member in survivors]
    for member, draft in zip(survivors, drafts, strict=True):
        options = (*named, "--reason", reason, "--accept-few", "--out", str(draft))
        testnet.hansa(member, "recovery", "draft", *options)
    first = survivors[0]
    said = json.loads(testnet.plain("recovery", "compare", *map(str, drafts), "--json").stdout)
    signed = []
    for member in survivors:
        copy = where / f"signed-{member}.json"
        shutil.copy(said["sign"], copy)
        testnet.hansa(member, "recovery", "sign", str(copy), "--yes")
        signed.append(copy)
    early = testnet.hansa(first, "recovery", "apply", str(signed[0]), ok=False)
    assert early.returncode == 2
    assert "recovery_incomplete" in early.stderr
    whole = where / "recovery.json"
    testnet.plain("recovery", "combine", *map(str, signed), "--out", str(whole))
    for member in survivors:
        testnet.hansa(member, "recovery", "apply", str(whole))
    return whole


def pay(bank: Bank, members: Sequence[str], request: str) -> str:
    """A payment is final at these members; its id."""
    with bank.client(*members) as client:
        payment = bank.payment(request)
        assert client.submit_and_wait(payment, timeout_s=WAIT_S).ok
    return payment.tx_id.hex()


def block_digest(bank: Bank, member: str, height: int) -> str:
    with bank.client(member) as client:
        digest: str = client.block(height).certificate.digest
        return digest


def until(url: str, condition: Any) -> Any:
    deadline = time.monotonic() + WAIT_S
    with Client([url], patience_s=WAIT_S) as client:
        while not (found := condition(client)):
            if time.monotonic() > deadline:
                pytest.fail(str(client.why()))
            time.sleep(0.1)
    return found


def test_two_groups_of_survivors_and_a_member_that_comes_back(
    testnet: Testnet, bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = pay(bank, OURS, "before")
    testnet.run("kill", THEIRS[0])
    testnet.run("kill", THEIRS[1])
    for member in OURS:
        testnet.run("stop", member)
    began = time.monotonic()
    ours = recover(testnet, OURS, tmp_path / "ours", "the insurers are lost")
    for member in OURS:
        testnet.run("start", member)
    mine = pay(bank, OURS, "after-on-our-chain")
    took_s = time.monotonic() - began
    theirs = recover(testnet, THEIRS, tmp_path / "theirs", "the banks are lost")
    for member in THEIRS:
        testnet.run("start", member)
    other = pay(bank, THEIRS, "after-on-their-chain")
    number, height = (json.loads(ours.read_bytes())[key] for key in ("number", "base_height"))
    assert block_digest(bank, "bank-a", height) == block_digest(bank, "insurer-a", height)
    assert block_digest(bank, "bank-a", height + 1) == number
    assert block_digest(bank, "insurer-a", height + 1) == json.loads(theirs.read_bytes())["number"]
    # All four can reach one another, and nobody goes over to the others.
    pay(bank, OURS, "still-ours")
    pay(bank, THEIRS, "still-theirs")
    assert block_digest(bank, "bank-b", height + 1) == number
    assert block_digest(bank, "insurer-b", height + 1) != number
    for member, paid in (("bank-b", mine), ("insurer-b", other)):
        with bank.client(member) as client:
            assert [client.wait(tx_id).status for tx_id in (before, paid)] == ["final", "final"]
    prove_and_verify(testnet, ours, theirs, mine, tmp_path)
    come_back(testnet, bank, ours, number)
    with capsys.disabled():
        print(f"\nrecovered, from the first command to a final payment, in {took_s:.1f} s")


def prove_and_verify(testnet: Testnet, ours: Path, theirs: Path, paid: str, where: Path) -> None:
    """A pack of our chain is accepted with our recovery file, and with no other; so is the whole ledger."""
    pack, genesis = where / "pack", str(testnet.directory / "network.toml")
    testnet.hansa("bank-a", "prove", "tx", paid, "--out", str(pack))
    judged = {
        name: testnet.verifier(str(pack), "--genesis", genesis, *anchors)
        for name, anchors in (
            ("ours", ("--anchor", str(ours))),
            ("theirs", ("--anchor", str(theirs))),
            ("none", ()),
        )
    }
    assert {name: done.returncode for name, done in judged.items()} == {"ours": 0, "theirs": 1, "none": 1}
    assert "get the recovery file" in judged["none"].stdout
    testnet.run("stop", "bank-b")
    whole = testnet.hansa_document("bank-b", "verify")
    assert whole["ok"], whole
    kept = testnet.directory / "bank-b" / "recoveries"
    kept.rename(where / "recoveries")
    without = testnet.hansa("bank-b", "verify", "--quick", ok=False)
    assert without.returncode == 3
    assert "get the recovery file" in without.stdout
    assert testnet.hansa("bank-b", "verify", "--quick", "--anchor", str(theirs), ok=False).returncode == 3
    testnet.hansa("bank-b", "verify", "--quick", "--anchor", str(ours))
    (where / "recoveries").rename(kept)
    testnet.run("start", "bank-b")


def come_back(testnet: Testnet, bank: Bank, ours: Path, number: str) -> None:
    """A lost member on an empty disk: it stops below the recovery, and goes on when its operator trusts it."""
    for member in THEIRS:
        testnet.run("stop", member)
    lost = THEIRS[0]
    refused = testnet.hansa(lost, "recovery", "apply", str(ours), ok=False)
    assert refused.returncode == 2
    assert "recovery_differs" in refused.stderr
    for name in ("data", "recoveries"):
        shutil.rmtree(testnet.directory / lost / name)
    testnet.run("start", lost)
    url = bank.urls[lost]
    until(url, lambda client: number in str(client.why()))
    testnet.run("stop", lost)
    testnet.hansa(lost, "recovery", "apply", str(ours))
    testnet.run("start", lost)
    final = pay(bank, OURS, "while-it-comes-back")
    until(url, lambda client: client.status().height >= json.loads(ours.read_bytes())["base_height"] + 2)
    testnet.hansa("bank-a", "propose", "resume_member", lost)
    testnet.hansa("bank-b", "vote", "1", "yes")
    until(url, lambda client: client.status().voting)
    with bank.client(lost) as client:
        assert client.wait(final).status == "final"
