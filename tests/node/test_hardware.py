"""Keys in a device sign transactions: against SoftHSM2, a real PKCS#11 library with a token on disk."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pkcs11
import pytest

from node.cli.main import main
from node.client.transaction_file import KnownPolicy, PolicyKey, TransactionFile
from node.errors import ConfigError
from node.hardware import TokenAddress, TokenKey
from node.ledger import Body, Call
from node.signatures import verify

LIBRARY = next(
    (
        path
        for path in (
            Path("/usr/lib/softhsm/libsofthsm2.so"),
            Path("/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"),
            Path("/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so"),
        )
        if path.exists()
    ),
    None,
)
needs_softhsm = pytest.mark.skipif(
    LIBRARY is None or shutil.which("softhsm2-util") is None,
    reason="SoftHSM2 is not installed (Debian: apt-get install softhsm2), so no device can be tried",
)
PIN = "123456"
ED25519 = bytes.fromhex("06032b6570")
ED448 = bytes.fromhex("06032b6571")


def make_keys(token: Any) -> None:
    """What the owner of a device does with its own tools: key pairs that can be used and not be read."""
    with token.open(user_pin=PIN, rw=True) as session:

        def pair(curve: bytes, label: str, id: bytes, private: bool = False) -> None:
            parameters = session.create_domain_parameters(
                pkcs11.KeyType.EC_EDWARDS, {pkcs11.Attribute.EC_PARAMS: curve}, local=True
            )
            parameters.generate_keypair(
                mechanism=pkcs11.Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
                store=True,
                label=label,
                id=id,
                public_template={pkcs11.Attribute.PRIVATE: private},
            )

        pair(ED25519, "anna", b"\x01")
        pair(ED25519, "twice", b"\x02")
        pair(ED25519, "twice", b"\x03")
        pair(ED448, "longer", b"\x04")
        pair(ED25519, "hidden", b"\x05", private=True)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a token `hansa` of SoftHSM2 and a file with its PIN."""
    directory = tmp_path_factory.mktemp("softhsm")
    (directory / "tokens").mkdir()
    configuration = directory / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {directory / 'tokens'}\nlog.level = ERROR\n")
    (directory / "pin").write_text(PIN + "\n")
    (directory / "pin").chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(configuration))
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", "hansa", "--pin", PIN, "--so-pin", "12345678"],
            check=True,
            capture_output=True,
        )
        make_keys(pkcs11.lib(str(LIBRARY)).get_token(token_label="hansa"))
        yield directory
        pkcs11.unload(str(LIBRARY))


def uri(name: str = "object=anna", more: str = "") -> str:
    return f"pkcs11:token=hansa;{name}?module-path={LIBRARY}{more}"


def once(pin: str) -> Callable[[], str]:
    """A person who types the PIN, once."""
    asked: list[str] = []

    def ask() -> str:
        assert not asked, "a PIN is asked for once"
        asked.append(pin)
        return pin

    return ask


def never() -> str:
    raise AssertionError("nobody is to be asked for a PIN")


@needs_softhsm
def test_a_device_signs_and_libsodium_agrees(device: Path) -> None:
    key = TokenKey(TokenAddress.parse(uri()), once(PIN))
    for message in (b"", b"hansa", bytes(100_000)):
        assert verify(key.public, message, key.sign(message))
    assert TokenKey(TokenAddress.parse(uri("id=%01")), never).public == key.public
    serial = pkcs11.lib(str(LIBRARY)).get_token(token_label="hansa").serial.decode()
    by_serial = f"pkcs11:serial={serial};object=anna?module-path={LIBRARY}"
    assert TokenKey(TokenAddress.parse(by_serial), never).public == key.public


@needs_softhsm
def test_a_public_key_that_wants_the_pin_is_found_with_one_question(device: Path) -> None:
    key = TokenKey(TokenAddress.parse(uri("object=hidden")), once(PIN))
    assert verify(key.public, b"m", key.sign(b"m"))


@needs_softhsm
@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("object=nobody", "token_key_not_found", "nobody in hansa"),
        ("object=twice", "token_key_not_found", "several"),
        ("object=longer", "token_key_not_found", "no Ed25519 key"),
        ("object=anna;id=%02", "token_key_not_found", "anna"),
    ],
)
def test_a_name_means_one_ed25519_key_or_none(device: Path, name: str, code: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        TokenKey(TokenAddress.parse(uri(name)), once(PIN))
    assert caught.value.code == code


@needs_softhsm
def test_a_wrong_pin_is_tried_once(device: Path) -> None:
    key = TokenKey(TokenAddress.parse(uri()), once("000000"))
    with pytest.raises(ConfigError, match="PinIncorrect") as caught:
        key.sign(b"m")
    assert caught.value.code == "token_refused"
    assert "000000" not in str(caught.value)


@needs_softhsm
@pytest.mark.parametrize(
    "address",
    [f"pkcs11:token=other;object=a?module-path={LIBRARY}", "pkcs11:token=a;object=a?module-path=/none.so"],
)
def test_what_is_not_there_is_told(device: Path, address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TokenKey(TokenAddress.parse(address), never)
    assert caught.value.code == "token_unreachable"
    assert len(caught.value.message) > 20


def test_without_the_package_the_failure_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(ConfigError) as caught:
        TokenKey(TokenAddress.parse("pkcs11:token=a;object=a?module-path=/none.so"), never)
    assert caught.value.code == "pkcs11_missing"
    assert "hansa[pkcs11]" in caught.value.entry.action


def test_a_name_is_read_as_rfc_7512_has_it() -> None:
    found = TokenAddress.parse(
        "pkcs11:token=My%20Token;serial=00%2f1;object=a%3Bb;id=%01%ff;type=private"
        "?module-path=/lib/x.so&pin-source=file:///run/pin"
    )
    assert found == TokenAddress(Path("/lib/x.so"), "My Token", b"00/1", "a;b", b"\x01\xff", Path("/run/pin"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pkcs11:", "module-path"),
        ("pkcs11:token=a?module-path=/x", "object"),
        ("pkcs11:object=a?module-path=/x", "token"),
        ("pkcs11:token=a;object=b", "module-path"),
        ("pkcs11:token=a;object=b;object=c?module-path=/x", "twice"),
        ("pkcs11:token=a;object=b;type=public?module-path=/x", "private"),
        ("pkcs11:token=a;object=b;slot-id=1?module-path=/x", "slot-id"),
        ("pkcs11:token=a;object=b?module-path=/x&pin-value=1234", "pin-source"),
        ("pkcs11:token=a;object=b?module-path=/x&pin-value=1234&pin-value=1234", "twice"),
        ("pkcs11:token=a;object=b?module-path=/x&pin-value:1234", "part 4"),
        ("PKCS11:token=a;object=b?module-path=/x&pin-value=1234", "pin-source"),
        ("pkcs11:token=a;object=b?module-path=/x&pin-source=%001234", "zero byte"),
        ("pkcs11:token=a;" + "x" * 5_000, "4096"),
    ],
)
def test_a_name_that_says_too_little_or_too_much_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        TokenAddress.parse(text)
    assert caught.value.code == "invalid_usage"
    assert "1234" not in caught.value.message


def test_a_pin_on_the_command_line_is_not_printed_however_the_scheme_is_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for scheme in ("pkcs11", "PKCS11"):
        assert main(["keys", "show", f"{scheme}:token=a;object=b?module-path=/x&pin-value=1234"]) == 2
        err = capsys.readouterr().err
        assert ("pin-source" in err, "1234" in err) == (True, False)


@needs_softhsm
def test_a_transaction_file_is_signed_by_a_device(
    device: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HANSA_PASSPHRASE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(["keys", "show", uri(), "--json"]) == 0
    public = json.loads(capsys.readouterr().out)["public_key"]
    expires_at_ms = time.time_ns() // 1_000_000 + 3_600_000
    body = Body("pilot", "bank-a", "r", expires_at_ms, "atomic", (Call("till", "pay", {"amount": 5}),))
    file = tmp_path / "pay.json"
    file.write_bytes(TransactionFile(body, KnownPolicy(1, (PolicyKey(public, "bank-a/anna"),), 1)).encode())

    assert main(["tx", "sign", str(file), "--yes", "--key", uri()]) == 2
    assert "pin_missing" in capsys.readouterr().err
    line = ["tx", "sign", str(file), "--yes", "--key", uri(more=f"&pin-source=file:{device / 'pin'}")]
    assert main(line) == 0, capsys.readouterr().err
    assert "1 of 1 signatures, by bank-a/anna" in capsys.readouterr().out
    signed = TransactionFile.decode(file.read_bytes())
    assert signed.signers == (bytes.fromhex(public),)

    assert main([*line[:-1], uri("id=%02", f"&pin-source={device / 'pin'}")]) == 1
    assert "signer_not_entitled" in capsys.readouterr().err
    os.chmod(device / "pin", 0o644)
    file.write_bytes(TransactionFile(body, signed.policy).encode())
    assert main(line) == 2
    assert "key_file_permissions" in capsys.readouterr().err
    os.chmod(device / "pin", 0o600)
