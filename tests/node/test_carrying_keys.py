"""`hansa keys list|export|import`: how old keys are, and how they go to another place."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from node.cli.main import main
from node.config import MemberConfig, NetworkConfig, NodeConfig, dump_network, dump_node
from node.keys import SigningKey, read_key_file, read_key_info, write_key_file
from node.runtime.metrics import Metrics

PHRASE, EXPORT_PHRASE = "correct horse", "battery staple"
DAY_MS = 86_400_000


class Place:
    """A directory with a member's keys, and the commands there."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self.export_phrase = path / "export-passphrase"
        self.export_phrase.write_text(EXPORT_PHRASE + "\n")
        self.export_phrase.chmod(0o600)
        self._capsys = capsys

    def hansa(self, *arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = self._capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    def key(self, name: str, kind: Any, id: str, age_ms: int = 0) -> SigningKey:
        """A key file in `keys/` that was made so long ago."""
        key = SigningKey.generate()
        made_ms = time.time_ns() // 1_000_000 - age_ms
        path = self.path / "keys" / name
        write_key_file(path, key, kind=kind, id=id, passphrase=PHRASE, created_at_ms=made_ms)
        return key

    def exports(self, name: str, out: Path) -> tuple[int, str, str]:
        phrase = ("--export-passphrase-file", str(self.export_phrase))
        return self.hansa("keys", "export", str(self.path / "keys" / name), "--out", str(out), *phrase)

    def imports(self, file: Path, directory: Path, *more: str) -> tuple[int, str, str]:
        phrase = ("--export-passphrase-file", str(self.export_phrase))
        return self.hansa("keys", "import", str(file), "--dir", str(directory), *phrase, *more)


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in ("HANSA_DIR", "HANSA_PASSPHRASE_FILE"):
        monkeypatch.delenv(name, raising=False)
    for cost in ("INTERACTIVE", "MODERATE"):
        monkeypatch.setattr(f"nacl.pwhash.argon2id.OPSLIMIT_{cost}", 1)
        monkeypatch.setattr(f"nacl.pwhash.argon2id.MEMLIMIT_{cost}", 8_192)
    monkeypatch.setenv("HANSA_PASSPHRASE", PHRASE)
    monkeypatch.chdir(tmp_path)
    here = tmp_path / "here"
    here.mkdir()
    return Place(here, capsys)


def test_the_list_says_whose_keys_these_are_how_old_and_how_kept(place: Place) -> None:
    code, _, err = place.hansa("keys", "list", "--dir", str(place.path))
    assert (code, "key_file_unreadable" in err) == (2, True)
    place.key("voting.key", "voting", "bank-a", 40 * DAY_MS)
    place.key("tls.key", "tls", "bank-a", DAY_MS + 5)
    place.key("bank-a.treasury.key", "principal", "bank-a/treasury", 90 * 60_000)
    code, out, err = place.hansa("keys", "list", "--dir", str(place.path))
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines() if "bank-a" in line}
    assert [" ".join(rows[kind].split()[1:5]) for kind in ("voting", "tls", "principal")] == [
        "bank-a 40 days yes",
        "bank-a 1 day yes",
        "bank-a/treasury 1 hour yes",
    ]


def test_the_list_of_a_node_that_does_not_answer_says_that_the_use_is_not_known(place: Place) -> None:
    place.key("voting.key", "voting", "bank-a")
    paths = (Path("data"), Path("keys"), Path("network.toml"))
    (place.path / "node.toml").write_text(dump_node(NodeConfig("bank-a", *paths, "127.0.0.1:1", "127.0.0.1:2")))
    code, out, err = place.hansa("keys", "list", "--json", "--dir", str(place.path))
    assert (code, json.loads(out)["keys"][0]["use"]) == (0, None)
    assert "which of them are in force is not known: node_unreachable" in err


def test_an_older_file_tells_at_least_its_own_date(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.key("tls.key", "tls", "bank-a")
    path = place.path / "keys" / "tls.key"
    document = json.loads(path.read_text())
    del document["created_at_ms"]
    path.write_text(json.dumps(document))
    long_ago_ns = time.time_ns() - 3 * DAY_MS * 1_000_000
    os.utime(path, ns=(long_ago_ns, long_ago_ns))
    assert "at least 3 days" in place.hansa("keys", "list", "--dir", str(place.path))[1]
    shown = json.loads(place.hansa("keys", "show", str(path), "--json")[1])
    assert (shown["created_from"], shown["encrypted"]) == ("file", True)
    assert abs(shown["created_at_ms"] - long_ago_ns // 1_000_000) <= 1


def test_a_metric_shows_the_age_of_the_key_in_force() -> None:
    """It was that of the first key for ever, however often it was rotated."""
    now_ms, in_force = [10_000], [b"first"]
    metrics, made_ms = Metrics(), {b"first": 4_000, b"next": 20_000}
    metrics.key_age("voting", lambda: made_ms.get(in_force[0]), lambda: now_ms[0])
    assert "hansa_voting_key_age_seconds 6.0" in metrics.text().decode()
    now_ms[0] = 25_000
    assert "hansa_voting_key_age_seconds 21.0" in metrics.text().decode()
    in_force[0] = b"next"
    assert "hansa_voting_key_age_seconds 5.0" in metrics.text().decode()
    in_force[0] = b"not at hand"
    assert "hansa_voting_key_age_seconds NaN" in metrics.text().decode()


def agreed_network(place: Place, path: Path) -> None:
    """A network.toml that names the voting and the TLS key of `place`."""
    voting, tls = (read_key_info(place.path / "keys" / f"{kind}.key").public_key for kind in ("voting", "tls"))
    path.write_text(
        dump_network(NetworkConfig("pilot", (MemberConfig("bank-a", "validator", "h:1", voting, tls),)))
    )


@pytest.mark.parametrize("kind", ["voting", "tls"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_rotated_key_is_imported_beside_the_one_that_network_toml_names(
    place: Place, tmp_path: Path, kind: Any, order: int
) -> None:
    """It was refused as existing, or took the place of the first one, and the node did not start."""
    for name in ("voting", "tls"):
        place.key(f"{name}.key", name, "bank-a")
    first = read_key_info(place.path / "keys" / f"{kind}.key").public_key
    later = place.key("later.key", kind, "bank-a").public
    network, there = tmp_path / "agreed.toml", tmp_path / "there"
    agreed_network(place, network)
    for name in (f"{kind}.key", "later.key")[::order]:
        assert place.exports(name, tmp_path / name)[0] == 0
        assert place.imports(tmp_path / name, there, "--network", str(network))[0] == 0
    assert read_key_info(there / "keys" / f"{kind}.key").public_key == first
    assert read_key_info(there / "keys" / f"{kind}-{later.hex()[:16]}.key").public_key == later
    # Again is never over what lies there; and a node's own network.toml says the same.
    assert "key_file_exists" in place.imports(tmp_path / "later.key", there, "--network", str(network))[2]
    made = tmp_path / "made"
    made.mkdir()
    (made / "network.toml").write_bytes(network.read_bytes())
    paths = (made / "data", made / "keys", made / "network.toml")
    (made / "node.toml").write_text(dump_node(NodeConfig("bank-a", *paths, "127.0.0.1:1", "127.0.0.1:2")))
    assert place.imports(tmp_path / "later.key", made)[0] == 0
    assert os.listdir(made / "keys") == [f"{kind}-{later.hex()[:16]}.key"]


def test_a_principals_rotated_key_is_imported_beside_its_first_one(place: Place, tmp_path: Path) -> None:
    place.key("bank-a.treasury.key", "principal", "bank-a/treasury")
    later = place.key("later.key", "principal", "bank-a/treasury").public
    for name in ("bank-a.treasury.key", "later.key"):
        assert place.exports(name, tmp_path / name)[0] == 0
        assert place.imports(tmp_path / name, tmp_path / "there")[0] == 0
    names = ["bank-a.treasury.key", f"bank-a.treasury-{later.hex()[:16]}.key"]
    assert sorted(os.listdir(tmp_path / "there" / "keys")) == sorted(names)


def test_a_key_goes_to_another_place_and_keeps_its_age(place: Place, tmp_path: Path) -> None:
    key = place.key("bank-a.treasury.key", "principal", "bank-a/treasury", 40 * DAY_MS)
    before = (place.path / "keys" / "bank-a.treasury.key").read_bytes()
    parcel, there = tmp_path / "parcel", tmp_path / "there"
    code, out, err = place.exports("bank-a.treasury.key", parcel)
    assert (code, "40 days" in out, err) == (0, True, "")
    assert parcel.stat().st_mode & 0o777 == 0o600
    assert read_key_file(parcel, EXPORT_PHRASE)[1].public == key.public
    assert PHRASE.encode() not in parcel.read_bytes()
    code, out, err = place.imports(parcel, there)
    assert (code, "40 days" in out, err) == (0, True, "")
    info, again = read_key_file(there / "keys" / "bank-a.treasury.key", PHRASE)
    assert (again.seed, info.id) == (key.seed, "bank-a/treasury")
    assert (place.path / "keys" / "bank-a.treasury.key").read_bytes() == before


def test_nothing_is_ever_overwritten(place: Place, tmp_path: Path) -> None:
    place.key("tls.key", "tls", "bank-a")
    parcel, there = tmp_path / "parcel", tmp_path / "there"
    parcel.write_bytes(b"mine")
    code, _, err = place.exports("tls.key", parcel)
    assert (code, "key_file_exists" in err, parcel.read_bytes()) == (2, True, b"mine")
    parcel.unlink()
    assert place.exports("tls.key", parcel)[0] == 0
    assert place.imports(parcel, there)[0] == 0
    before = (there / "keys" / "tls.key").read_bytes()
    code, _, err = place.imports(parcel, there)
    assert (code, "key_file_exists" in err) == (2, True)
    assert (there / "keys" / "tls.key").read_bytes() == before


def test_an_imported_voting_key_has_no_right_from_genesis(place: Place, tmp_path: Path) -> None:
    """A mark of an unused key that was moved away must not pass to the one that comes: it may have voted."""
    place.key("voting.key", "voting", "bank-a")
    parcel, there = tmp_path / "parcel", tmp_path / "there"
    assert place.exports("voting.key", parcel)[0] == 0
    assert place.hansa("init", "--member", "bank-a", "--dir", str(there))[0] == 0
    assert (there / "keys" / "voting.unused").exists()
    (there / "keys" / "voting.key").rename(tmp_path / "moved-away")
    code, _, err = place.imports(parcel, there)
    assert (code, "never run two nodes with it" in err) == (0, True)
    assert sorted(os.listdir(there / "keys")) == ["bank-a.key", "tls.key", "voting.key"]


def test_the_mark_of_an_unused_key_gives_no_right_to_one_that_was_copied_over_it(
    place: Place, tmp_path: Path
) -> None:
    """Without `keys import` nobody takes the mark away: it must speak of the key that was made here alone."""
    directory, network = tmp_path / "fresh", tmp_path / "agreed.toml"
    line = ("init", "--member", "bank-a", "--dir", str(directory), "--listen", "127.0.0.1:1")
    assert place.hansa(*line)[0] == 0
    mark = directory / "keys" / "voting.unused"
    used = SigningKey.generate()
    for name, key in (("voting.key", used), ("tls.key", SigningKey.generate())):
        path = directory / "keys" / name
        path.unlink()
        write_key_file(path, key, kind=name.removesuffix(".key"), id="bank-a", passphrase=PHRASE)  # type: ignore[arg-type]
    tls = read_key_info(directory / "keys" / "tls.key").public_key.hex()
    network.write_text(
        '[network]\nname = "pilot"\n[[members]]\nid = "bank-a"\nrole = "validator"\naddress = "127.0.0.1:1"\n'
        f'voting_key = "{used.public.hex()}"\ntls_key = "{tls}"\n'
    )
    joined = json.loads(place.hansa(*line, "--network", str(network), "--json")[1])
    assert (joined["may_vote"], mark.exists(), (directory / "data").exists()) == (False, True, False)


def test_a_foreign_a_damaged_and_a_wrongly_opened_key_are_refused(place: Place, tmp_path: Path) -> None:
    place.key("tls.key", "tls", "bank-a")
    parcel, there = tmp_path / "parcel", tmp_path / "there"
    assert place.exports("tls.key", parcel)[0] == 0
    there.mkdir()
    paths = (Path("data"), Path("keys"), Path("network.toml"))
    (there / "node.toml").write_text(dump_node(NodeConfig("bank-b", *paths, "127.0.0.1:1", "127.0.0.1:2")))
    code, _, err = place.imports(parcel, there)
    assert (code, "wrong_key" in err, (there / "keys").exists()) == (2, True, False)
    place.export_phrase.write_text("something else")
    code, _, err = place.imports(parcel, tmp_path / "else")
    assert (code, "wrong_passphrase" in err, (tmp_path / "else").exists()) == (2, True, False)
    parcel.write_bytes(parcel.read_bytes()[:-9])
    assert "key_file_invalid" in place.imports(parcel, tmp_path / "else")[2]


def test_without_a_terminal_or_a_file_no_export_passphrase_is_made_up(place: Place, tmp_path: Path) -> None:
    place.key("tls.key", "tls", "bank-a")
    code, _, err = place.hansa("keys", "export", str(place.path / "keys" / "tls.key"), "--out", str(tmp_path / "x"))
    assert (code, "export_passphrase_missing" in err, "--export-passphrase-file" in err) == (2, True, True)
    assert not (tmp_path / "x").exists()


def test_a_stick_that_is_not_there_gets_no_key_on_this_machine_instead(place: Place, tmp_path: Path) -> None:
    place.key("tls.key", "tls", "bank-a")
    code, _, err = place.exports("tls.key", tmp_path / "stick" / "tls.export")
    assert (code, "there is no such directory" in err, (tmp_path / "stick").exists()) == (2, True, False)


def test_an_import_may_name_its_own_file(place: Place, tmp_path: Path) -> None:
    place.key("bank-a.key", "principal", "bank-a")
    assert place.exports("bank-a.key", tmp_path / "parcel")[0] == 0
    assert place.imports(tmp_path / "parcel", tmp_path, "--out", str(tmp_path / "anna.key"))[0] == 0
    assert read_key_info(tmp_path / "anna.key").id == "bank-a"
