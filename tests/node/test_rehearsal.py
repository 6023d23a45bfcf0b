"""The last blocks under another version: every outcome that differs, and nothing touched."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts import CONTRACTS
from contracts.sdk import Contract
from node.cli.main import main
from node.config import NodeConfig, dump_network, dump_node
from node.errors import ConfigError
from node.ledger import Call
from node.verification.rehearsal import Rehearsal, rehearse_directory
from tests.node.backup_world import World
from tests.node.ledger_world import HOUR_MS
from tests.node.lifecycle_world import FIRST, SECOND, TALLY_1, TALLY_2, Versions, tally
from tests.node.recovery_world import RecoveryWorld

ROOT = Path(__file__).parents[2]
STRICTER = SECOND.replace("def begin", "def refused").replace(
    "        known = self.counts.get(name)\n        self.counts[name]",
    '        require(name != "b", "not_b")\n        known = self.counts.get(name)\n        self.counts[name]',
)


class Rehearsed(Versions):
    """A ledger in a node's directory."""

    def __init__(self, home: Path) -> None:
        super().__init__(home / "data", TALLY_2)
        self.home = home
        (home / "network.toml").write_text(dump_network(self.network))
        places = (home / "data", home / "keys", home / "network.toml")
        self.node = NodeConfig("bank-a", *places, "127.0.0.1:1", "127.0.0.1:2")
        (home / "node.toml").write_text(dump_node(self.node))

    def rehearse(self, contract: type[Contract], last: int) -> Rehearsal:
        """What the command finds once the node has stopped; every file of the data is as it was."""
        self.close()
        before = {file.name: file.read_bytes() for file in (self.home / "data").iterdir()}
        found = rehearse_directory(self.node, contract, last)
        assert {file.name: file.read_bytes() for file in (self.home / "data").iterdir()} == before
        assert sorted(file.name for file in self.home.iterdir()) == ["data", "network.toml", "node.toml"]
        return found


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rehearsed]:
    monkeypatch.setattr("node.verification.rehearsal.CONTRACTS", (*CONTRACTS, TALLY_1))
    made = Rehearsed(tmp_path)
    yield made
    made.close()


def test_the_same_code_does_the_same(ledger: Rehearsed) -> None:
    for name in ("a", "b", "a"):
        ledger.add(name)
    ledger.propose("upgrade_contract", 2, 90)
    found = ledger.rehearse(tally("tally", FIRST + "\n# the same in other words\n"), 10)
    assert (found.same, found.first, found.last, found.transactions) == (True, 1, 4, 4)
    assert (found.before, found.version, found.begun) == (1, 1, "ok")


def test_what_a_brake_stopped_stays_stopped(ledger: Rehearsed) -> None:
    assert ledger.add() == ["ok"]
    ask = {"what": "method/tally.add", "until_ms": ledger.now_ms + HOUR_MS, "reason": "a fault"}
    assert ledger.run(("bank-a", Call("brake", "ask", ask))) == ["ok"]
    assert ledger.run(("bank-b", Call("brake", "confirm", {"brake": 1}))) == ["ok"]
    assert ledger.add() == ["braked"]
    assert ledger.run(("bank-b", Call("brake", "lift", {"brake": 1}))) == ["ok"]
    assert ledger.add() == ["ok"]
    found = ledger.rehearse(TALLY_1, 10)
    assert (found.same, found.receipts, found.last - found.first + 1) == (True, (), 6)


def test_a_recovery_block_does_what_it_did(tmp_path: Path) -> None:
    world = RecoveryWorld(tmp_path)
    [height] = world.apply(world.complete("bank-a", "bank-b"), "bank-a")
    world.grow("bank-a", 1)
    [settlement] = [item for item in CONTRACTS if item.name == "settlement"]
    found = rehearse_directory(world.node("bank-a"), settlement, 2)
    assert (found.same, found.first) == (True, height)


def test_a_restored_copy_says_how_few_blocks_it_can_take_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path)
    world.backup(snapshot=True)
    world.node.grow(2)
    world.backup()
    world.restore()
    world.node.ledger.close()
    assert main(["rehearse", "settlement@1", "--last", "1000", "--dir", str(world.restored)]) == 1
    assert "only 2 of the 5 blocks asked for can be taken back" in capsys.readouterr().err
    assert main(["rehearse", "settlement@1", "--last", "2", "--dir", str(world.restored), "--json"]) == 0
    said = capsys.readouterr()
    assert (json.loads(said.out)["asked"], said.err) == (2, "")
    # The whole chain is no short answer, however many were asked for.
    assert main(["rehearse", "settlement@1", "--last", "1000", "--dir", str(world.node.directory)]) == 0
    assert "only" not in capsys.readouterr().err


def test_every_value_and_every_receipt_that_differs_is_named(ledger: Rehearsed) -> None:
    for name in ("a", "b", "a", "b"):
        assert ledger.add(name) == ["ok"]
    found = ledger.rehearse(tally("tally_2_stricter", STRICTER), 2)
    assert (found.before, found.version, found.begun, found.first, found.last) == (1, 2, "ok", 3, 4)
    assert found.begun_operations > 0
    [refused] = found.receipts
    assert (refused.height, refused.contract, refused.method) == (4, "tally", "add")
    assert (refused.was, refused.would_be) == ("ok", "not_b")
    # Two were counted before and migrated; of what followed, "a" counts by twos and "b" is refused.
    assert [(value.key, value.is_now, value.would_be) for value in found.values] == [
        (("tally", "counts", "a"), 2, [3, "bank-a"]),
        (("tally", "counts", "b"), 2, [1, ""]),
    ]
    assert not found.same


def test_a_migration_that_fails_is_told_and_nothing_is_executed(ledger: Rehearsed) -> None:
    for _ in range(3):
        ledger.add("poison")
    found = ledger.rehearse(TALLY_2, 1)
    assert (found.begun, found.receipts, found.values, found.same) == ("poisoned", (), (), False)


def test_what_cannot_follow_or_has_changed_meanwhile_is_refused(ledger: Rehearsed) -> None:
    third = tally("tally_3", SECOND.replace("version = 2", "version = 3"))
    ledger.decide_change("upgrade_contract", 2, 6)
    ledger.grow(9)
    with pytest.raises(ConfigError, match="has changed with block 6"):
        ledger.rehearse(third, 8)


@pytest.mark.slow
def test_a_running_node_is_left_alone(ledger: Rehearsed) -> None:
    ledger.add()
    # In a process of its own, as an operator would: a process does not refuse itself the lock.
    code = "import sys; from node.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-P", "-c", code, "rehearse", "claims@1", "--dir", str(ledger.home)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert "in use by another process" in done.stderr


def test_the_command_takes_a_file_and_says_by_its_exit_code_that_something_differs(
    ledger: Rehearsed, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "a", "b"):
        ledger.add(name)
    ledger.close()
    same, other = ledger.home.parent / "same.py", ledger.home.parent / "stricter.py"
    same.write_text(FIRST)
    other.write_text(STRICTER)
    words = ["--last", "2", "--dir", str(ledger.home)]
    assert main(["rehearse", str(same), *words]) == 0
    capsys.readouterr()
    assert main(["rehearse", str(other), *words, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["receipts"][0]["would_be"], len(told["values"])) == ("not_b", 2)
    assert main(["rehearse", str(other), *words]) == 1
    text = capsys.readouterr().out
    assert "tally.add" in text
    assert "tally counts b" in text
    other.write_text("import os\n")
    assert main(["rehearse", str(other), *words]) == 2
    assert "is no contract" in capsys.readouterr().err
    assert main(["rehearse", "claims@9", *words]) == 2
