"""`hansa recovery` as survivors type it, where one recovery takes the place of another."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from consensus.epochs import EPOCH_VIEWS
from node.cli.main import main
from node.config import dump_node
from node.keys import write_key_file
from node.recovery import RecoveryFile
from tests.node.evidence_world import VOTING
from tests.node.recovery_world import RecoveryWorld, altered

AB = ("bank-a", "bank-b")
Hansa = Callable[..., tuple[int, Any]]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecoveryWorld:
    made = RecoveryWorld(tmp_path)
    for bank in AB:
        node = made.node(bank)
        (tmp_path / bank / "node.toml").write_text(dump_node(node))
        write_key_file(node.keys_dir / "voting.key", VOTING[bank], kind="voting", id=bank, passphrase="open")
    monkeypatch.setenv("HANSA_PASSPHRASE", "open")
    return made


@pytest.fixture
def hansa(capsys: pytest.CaptureFixture[str]) -> Hansa:
    """Runs `hansa recovery …`; its exit code and what it said, the error's code where there is one."""

    def run(*words: object) -> tuple[int, Any]:
        code = main(["recovery", *map(str, words), "--json"])
        said = json.loads(capsys.readouterr().out)
        return code, said["error"]["code"] if "error" in said else said

    return run


def test_who_signs_is_told_that_the_draft_may_give_up_final_blocks(
    world: RecoveryWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only who drafts says --accept-unseen; the others signed it, and nothing told them."""
    for name, survivors, told in (("some", AB, False), ("one", AB[:1], True)):
        file = str(world.base / f"{name}.json")
        named = [word for bank in survivors for word in ("--survivor", bank)]
        terms = ("--reason", "a fire", "--accept-few", "--accept-unseen", "--out", file)
        assert main(["recovery", "draft", *named, *terms, "--dir", str(world.base / "bank-a")]) == 0
        capsys.readouterr()
        signs = ("recovery", "sign", file, "--yes", "--dir", str(world.base / "bank-b"))
        for words in (("recovery", "show", file), signs):
            main(list(words))
            assert ("given up with it: blocks that" in capsys.readouterr().out) is told


def test_a_strange_file_writes_nothing_over_the_screen_when_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence quotes a field of it."""
    file = tmp_path / "strange.json"
    file.write_bytes(json.dumps({"hansa_recovery": 1, "\x1b[2Jsigned by: everybody": 1}).encode())
    assert main(["recovery", "show", str(file)]) == 2
    said = capsys.readouterr().err
    assert "\\u001b[2Jsigned by" in said
    assert said.rstrip("\n").isprintable()


def elsewhere(file: RecoveryFile) -> bytes:
    """The same file for another network: nobody has signed it, so nothing in it contradicts that."""
    network = "other-000000000000"
    return altered(file, network=network, header=msgspec.structs.replace(file.header, network=network)).encode()


def test_a_recovery_that_replaces_another_is_signed_in_a_later_view_by_who_signed_both(
    world: RecoveryWorld, hansa: Hansa
) -> None:
    where = {bank: ("--dir", world.base / bank) for bank in AB}
    terms = ("--survivor", "bank-a", "--survivor", "bank-b", "--reason", "a fire", "--accept-few")
    first, blind, told = (world.base / f"{name}.json" for name in ("first", "blind", "told"))

    def draft(bank: str, out: Path, *options: object) -> tuple[int, Any]:
        return hansa("draft", *terms, *options, "--out", out, *where[bank])

    assert draft("bank-a", first)[0] == 0
    unsigned = first.read_bytes()
    code, said = hansa("sign", first, "--yes", *where["bank-a"])
    assert (code, said["signed"], said["missing"]) == (0, ["bank-a"], ["bank-b"])
    # bank-b knows nothing of the first one: what it drafts, bank-a has no vote left for.
    assert draft("bank-b", blind)[0] == 0
    assert hansa("sign", blind, "--yes", "--instead-of", said["number"], *where["bank-a"]) == (
        2,
        "recovery_signed_other",
    )
    for bad, error in (
        (b"{}", "recovery_file_invalid"),
        (unsigned.replace(b'"reason": "a fire"', b'"reason": "a flood"'), "recovery_file_altered"),
        (elsewhere(RecoveryFile.decode(unsigned)), "recovery_of_another_network"),
    ):
        (world.base / "bad.json").write_bytes(bad)
        assert draft("bank-b", told, "--replaces", world.base / "bad.json") == (2, error)
        assert not told.exists()
    # Whether it is signed makes no difference: a copy from before may be all that bank-b has.
    (world.base / "unsigned.json").write_bytes(unsigned)
    assert draft("bank-b", told, "--replaces", world.base / "unsigned.json", "--replaces", first)[0] == 0
    assert [RecoveryFile.decode(path.read_bytes()).view for path in (first, blind, told)] == [
        EPOCH_VIEWS,
        EPOCH_VIEWS,
        2 * EPOCH_VIEWS,
    ]
    assert hansa("compare", blind, told)[1]["sign"] == str(told)
    assert hansa("sign", told, "--yes", *where["bank-a"]) == (2, "recovery_signed_other")
    assert hansa("sign", told, "--yes", "--instead-of", said["number"], *where["bank-a"])[0] == 0
    assert hansa("sign", told, "--yes", *where["bank-b"])[1]["missing"] == []
    # bank-b had not signed the first one, and does not now.
    assert hansa("sign", first, "--yes", *where["bank-b"]) == (2, "recovery_signed_other")
    for bank in AB:
        code, said = hansa("apply", told, *where[bank])
        assert (code, said["node_height"], said["missing"]) == (0, 4, [])
