"""Keys sign, rest encrypted, and make certificates that only those who pin them accept."""

import asyncio
import json
import os
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import ConfigError
from node.keys import (
    SigningKey,
    certificate,
    certificate_key,
    find_passphrase,
    key_fingerprint,
    key_made_ms,
    pin,
    read_key_file,
    read_key_info,
    tls_context,
    write_key_file,
)
from node.signatures import verify, verify_many

KEY = SigningKey(bytes(range(32)))
OLD_FILE = (
    b'{"hansa_key": 1, "kind": "principal", "id": "bank-a",'
    b' "public_key": "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8",'
    b' "kdf": {"name": "argon2id", "passes": 1, "memory_bytes": 8192, "salt": "5d915fb026dd923ed400f278dbf8b0ec"},'
    b' "box": "c71df8e7f01c2b4255662f8be26b42bdc8cf79c7ae1dcca5a408f7656d9e386a41538fba3963ab186dd383dbdfe0aa3f0c32'
    b'65c048d14c33ffdcbb5dcc6549639c5753b885a3b3441f56bd004ae2e999caf82908c0770951f0de393c97a957d1d070ea"}'
)


# --- signatures ---


def test_a_signature_is_that_of_rfc_8032() -> None:
    """Section 7.1, test 2."""
    key = SigningKey(bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
    assert key.public.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    signature = key.sign(b"\x72")
    assert signature.hex().startswith("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da")
    assert verify(key.public, b"\x72", signature)


@given(st.binary(max_size=100), st.integers(0, 95), st.integers(1, 255))
def test_a_changed_bit_is_noticed(message: bytes, place: int, change: int) -> None:
    together = bytearray(KEY.public + KEY.sign(message))
    together[place] ^= change
    assert not verify(bytes(together[:32]), message, bytes(together[32:]))
    assert not verify(KEY.public, message + b"x", KEY.sign(message))


@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=80))
def test_verify_never_raises(key: bytes, message: bytes, signature: bytes) -> None:
    assert verify(key, message, signature) is False


def test_many_verdicts_stand_in_order() -> None:
    good = (KEY.public, b"m", KEY.sign(b"m"))
    assert verify_many([good, (KEY.public, b"n", good[2]), good, (b"", b"", b"")]) == [True, False, True, False]
    assert verify_many(()) == []


def test_a_key_does_not_show_its_secret() -> None:
    assert KEY.seed.hex() not in repr(KEY)
    assert SigningKey.generate().public != SigningKey.generate().public
    with pytest.raises(ValueError, match="32 bytes"):
        SigningKey(b"short")


# --- key files ---


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("keys") / "voting.key"
    write_key_file(path, KEY, kind="voting", id="bank-a", passphrase="correct horse")
    return path.read_bytes()


@pytest.fixture
def key_file(tmp_path: Path, sealed: bytes) -> Path:
    path = tmp_path / "voting.key"
    path.write_bytes(sealed)
    path.chmod(0o600)
    return path


def test_a_key_comes_back_from_its_file(key_file: Path) -> None:
    info, key = read_key_file(key_file, "correct horse", kind="voting", id="bank-a")
    assert (info.kind, info.id, info.public_key) == ("voting", "bank-a", KEY.public)
    assert key.seed == KEY.seed
    assert read_key_info(key_file) == info
    assert KEY.seed.hex().encode() not in key_file.read_bytes()


def test_whoever_guesses_a_passphrase_pays_for_each_guess(key_file: Path) -> None:
    cost = json.loads(key_file.read_text())["kdf"]
    assert cost["memory_bytes"] >= 64 * 1024 * 1024
    assert cost["passes"] >= 2


def test_a_date_before_1970_is_a_date_all_the_same(tmp_path: Path) -> None:
    """What is told of such a file can be written into the next one."""
    path = tmp_path / "old.key"
    path.write_bytes(OLD_FILE)
    path.chmod(0o600)
    os.utime(path, ns=(0, -(10**18)))
    assert key_made_ms(path, read_key_info(path)) == 0


@pytest.mark.slow
def test_a_file_that_travels_costs_a_guess_more(tmp_path: Path) -> None:
    write_key_file(tmp_path / "x", KEY, kind="tls", id="bank-a", passphrase="p", travels=True)
    cost = json.loads((tmp_path / "x").read_text())["kdf"]
    assert (cost["memory_bytes"], cost["passes"]) == (256 * 1024 * 1024, 3)


def test_a_key_keeps_the_time_when_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nacl.pwhash.argon2id.MEMLIMIT_INTERACTIVE", 8_192)
    monkeypatch.setattr("node.keys.time.time_ns", lambda: 1_750_000_000_123_456_789)
    path = tmp_path / "a.key"
    write_key_file(path, KEY, kind="tls", id="bank-a", passphrase="p")
    assert read_key_info(path).created_at_ms == 1_750_000_000_123
    write_key_file(path, KEY, kind="tls", id="bank-a", passphrase="new", replace=True, created_at_ms=7)
    info, _ = read_key_file(path, "new")
    assert (info.created_at_ms, key_made_ms(path, info)) == (7, 7)


def test_a_file_from_before_that_was_kept_is_opened_and_has_its_own_date(tmp_path: Path) -> None:
    """Written by the release before: the box repeats kind and id only."""
    path = tmp_path / "old.key"
    path.write_bytes(OLD_FILE)
    path.chmod(0o600)
    os.utime(path, ns=(0, 1_700_000_000_000_000_000))
    info, key = read_key_file(path, "p", kind="principal", id="bank-a")
    assert (key.public, info.created_at_ms) == (KEY.public, None)
    assert key_made_ms(path, info) == 1_700_000_000_000


def test_a_wrong_passphrase_is_told(key_file: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        read_key_file(key_file, "wrong horse")
    assert raised.value.code == "wrong_passphrase"
    assert str(key_file) in raised.value.message


def test_another_key_than_wanted_is_refused_before_the_passphrase_is_tried(key_file: Path) -> None:
    for wanted in ({"kind": "tls"}, {"id": "bank-b"}):
        with pytest.raises(ConfigError, match="holds the voting key of bank-a") as raised:
            read_key_file(key_file, "wrong", **wanted)  # type: ignore[arg-type]
        assert raised.value.code == "wrong_key"


def test_a_key_file_is_private_and_complete_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tls.key"
    write_key_file(path, KEY, kind="tls", id="bank-a/treasury", passphrase="p")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["tls.key"]
    other = SigningKey.generate()
    with pytest.raises(ConfigError) as raised:
        write_key_file(path, other, kind="tls", id="bank-a", passphrase="p")
    assert raised.value.code == "key_file_exists"
    assert read_key_info(path).public_key == KEY.public
    write_key_file(path, other, kind="tls", id="bank-a", passphrase="new", replace=True)
    assert read_key_file(path, "new")[1].public == other.public
    assert os.listdir(path.parent) == ["tls.key"]
    with pytest.raises(ConfigError, match="passphrase_missing"):
        write_key_file(tmp_path / "x", KEY, kind="tls", id="bank-a", passphrase="")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660])
def test_a_key_that_others_can_read_is_refused(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)
    with pytest.raises(ConfigError) as raised:
        read_key_file(key_file, "correct horse")
    assert raised.value.code == "key_file_permissions"
    assert f"{mode:04o}" in raised.value.message


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: {**text, "public_key": SigningKey(b"x" * 32).public.hex()},
        lambda text: {**text, "id": "bank-b"},
        lambda text: {**text, "kind": "tls"},
        lambda text: {**text, "created_at_ms": text["created_at_ms"] + 1},
        lambda text: {**text, "created_at_ms": None},
        lambda text: {name: value for name, value in text.items() if name != "created_at_ms"},
    ],
)
def test_the_envelope_cannot_be_exchanged(key_file: Path, damage: Callable[[Any], Any]) -> None:
    key_file.write_text(json.dumps(damage(json.loads(key_file.read_text()))))
    with pytest.raises(ConfigError) as raised:
        read_key_file(key_file, "correct horse")
    assert raised.value.code == "key_file_invalid"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\xff\xfe",
        b"[" * 4000,
        b" " * 5000,
        b'{"hansa_key":2}',
    ],
)
def test_garbage_is_no_key_file(key_file: Path, content: bytes) -> None:
    key_file.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_key_file(key_file, "p")
    assert raised.value.code == "key_file_invalid"


@pytest.mark.parametrize(
    ("field", "value"), [("memory_bytes", 2**40), ("passes", 10**9), ("salt", "00"), ("name", "x")]
)
def test_a_hostile_cost_is_refused_before_it_is_paid(key_file: Path, field: str, value: object) -> None:
    envelope = json.loads(key_file.read_text())
    envelope["kdf"][field] = value
    key_file.write_text(json.dumps(envelope))
    with pytest.raises(ConfigError) as raised:
        read_key_file(key_file, "correct horse")
    assert raised.value.code == "key_file_invalid"
    assert field in raised.value.message


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError) as raised:
            read_key_info(path)
        assert raised.value.code == "key_file_unreadable"


def test_a_passphrase_comes_from_the_first_source_that_is_there(tmp_path: Path) -> None:
    named, own = tmp_path / "named", tmp_path / "own"
    for path, text in ((named, "named\n"), (own, "own\r\n")):
        path.write_text(text, newline="")
        path.chmod(0o640)
    both = {"HANSA_PASSPHRASE_FILE": str(named), "HANSA_PASSPHRASE": "variable"}
    assert find_passphrase(both, own, lambda: "typed") == "named"
    assert find_passphrase({"HANSA_PASSPHRASE": "variable"}, own, lambda: "typed") == "variable"
    assert find_passphrase({}, own, lambda: "typed") == "own"
    assert find_passphrase({}, None, lambda: "typed") == "typed"
    for prompt in (None, lambda: ""):
        with pytest.raises(ConfigError, match="passphrase_missing"):
            find_passphrase({}, None, prompt)
    own.chmod(0o644)
    with pytest.raises(ConfigError, match="key_file_permissions"):
        find_passphrase({}, own)
    named.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        find_passphrase(both)


# --- certificates ---


def test_a_certificate_is_the_same_each_time_and_names_its_key() -> None:
    der = certificate(KEY)
    assert der == certificate(KEY)
    assert certificate_key(der) == KEY.public
    assert key_fingerprint(KEY.public).encode() in der
    assert key_fingerprint(KEY.public) != key_fingerprint(SigningKey.generate().public)


@given(st.binary(max_size=300))
def test_what_is_no_certificate_has_no_key(der: bytes) -> None:
    assert certificate_key(der) is None
    assert certificate_key(certificate(KEY)[:-1] + der) in (None, KEY.public)


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[bytes | None, bytes | None]:
    """Both sides' view of the other's key, after a whole handshake in memory; SSLError where one side refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_side = server.wrap_bio(to_server, to_client, server_side=True)
    client_side = client.wrap_bio(to_client, to_server)
    for _ in range(4):
        for side in (client_side, server_side):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client_side.version() == "TLSv1.3"
    seen = [certificate_key(side.getpeercert(binary_form=True) or b"") for side in (server_side, client_side)]
    return seen[0], seen[1]


def test_who_is_pinned_passes_and_shows_the_key() -> None:
    other = SigningKey.generate()
    server = tls_context(KEY, server=True, pinned=[SigningKey.generate().public, other.public])
    client = tls_context(other, server=False, pinned=[KEY.public])
    assert handshake(server, client) == (other.public, KEY.public)


def test_who_is_not_pinned_is_refused_by_either_side_until_pinned() -> None:
    other = SigningKey.generate()
    pinning, blind = (tls_context(KEY, server=True, pinned=keys) for keys in ([other.public], []))
    trusting, wary = (tls_context(other, server=False, pinned=keys) for keys in ([KEY.public], []))
    for server, client in ((blind, trusting), (pinning, wary)):
        with pytest.raises(ssl.SSLError):
            handshake(server, client)
    pin(blind, [other.public])
    assert handshake(blind, trusting)[0] == other.public


def test_a_certificate_with_a_pinned_name_and_another_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    victim, thief = SigningKey.generate(), SigningKey.generate()
    server = tls_context(KEY, server=True, pinned=[victim.public])
    monkeypatch.setattr("node.keys.key_fingerprint", lambda key, real=key_fingerprint: real(victim.public))
    assert certificate_key(certificate(thief)) == thief.public
    client = tls_context(thief, server=False, pinned=[])
    pin(client, [KEY.public])
    client.verify_mode = ssl.CERT_NONE
    with pytest.raises(ssl.SSLError):
        handshake(server, client)


async def test_verifying_in_threads_gives_the_same_verdicts() -> None:
    items = [(KEY.public, bytes([i]), KEY.sign(bytes([i % 7]))) for i in range(20)]
    halves = await asyncio.gather(*(asyncio.to_thread(verify_many, items[start::2]) for start in (0, 1)))
    assert halves == [verify_many(items[0::2]), verify_many(items[1::2])]
    assert sum(map(sum, halves)) == 7
