"""A member backed up, damaged, mended, lost and restored, by the commands that an operator types."""

import shutil
from pathlib import Path

import plyvel
import pytest

from tests.e2e.conftest import Bank, Testnet

pytestmark = pytest.mark.slow

VICTIM = "insurer-b"


def decide(bank: Bank, name: str, count: int) -> None:
    """So many payments are final, in a block each at least."""
    with bank.client("bank-a") as client:
        for number in range(count):
            assert client.submit_and_wait(bank.payment(f"{name}-{number}")).ok


def test_a_running_member_is_backed_up_and_its_damaged_data_mended_by_its_peers(
    testnet: Testnet, bank: Bank, tmp_path: Path
) -> None:
    first = testnet.hansa_document(VICTIM, "backup", str(tmp_path / "backup"))
    assert first["new_snapshot"]
    decide(bank, "backed-up", 3)
    testnet.wait(lambda rows: len({row["height"] for row in rows}) == 1)
    second = testnet.hansa_document(VICTIM, "backup", str(tmp_path / "backup"))
    assert second["height"] > first["height"]
    assert second["snapshot_height"] == first["snapshot_height"]
    archives = sorted(str(path) for path in (tmp_path / "backup" / "archives").iterdir())
    files = testnet.hansa_document(VICTIM, "verify", "--archive", *archives)["files"]
    assert [found["ok"] for found in files] == [True, True]

    testnet.run("stop", VICTIM)
    data = testnet.directory / VICTIM / "data"
    database = plyvel.DB(str(data))
    for letter in (b"b", b"r", b"s", b"x"):
        database.delete(next(database.iterator(start=letter, include_value=False)))
    database.close()
    assert not testnet.hansa_document(VICTIM, "verify", "--quick", ok=False)["ok"]
    mended = testnet.hansa_document(VICTIM, "repair")
    assert (mended["outcome"], mended["abstains"]) == ("repaired", False)
    assert testnet.hansa_document(VICTIM, "verify")["ok"]
    shutil.rmtree(mended["kept_at"])

    shutil.rmtree(data)
    restored = testnet.hansa_document(VICTIM, "restore", str(tmp_path / "backup"))
    assert restored["height"] == second["height"]
    assert any("abstains" in note for note in restored["notes"])
    testnet.run("start", VICTIM)
    assert "lost its memory" in testnet.hansa(VICTIM, "why").stdout
    decide(bank, "after", 4)
    testnet.wait(lambda rows: all(row["ready"] for row in rows) and len({row["state_root"] for row in rows}) == 1)
