"""Ed25519 keys that never leave their device: a security module or smart card behind PKCS#11.

Invariant: no private key enters this process, and a PIN is tried once: devices lock after a few wrong ones.
What a device signs is not believed here: whoever asks for a signature has libsodium judge it (node.signatures).

A key is named as RFC 7512 has it: `pkcs11:token=hansa;object=anna?module-path=/usr/lib/softhsm/libsofthsm2.so`.
The package `python-pkcs11` speaks to the device's library. It is an extra (`pip install hansa[pkcs11]`) and is
loaded only where such a name is used.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, unquote_to_bytes

import msgspec

from node.errors import ConfigError

SCHEME: Final = "pkcs11:"
URI_LENGTH_MAX: Final = 4_096
PUBLIC_KEY_SIZE: Final = 32

_POINT_PREFIXES: Final = (b"", b"\x04\x20", b"\x03\x21\x00")
"""Before the 32 bytes of a public key: nothing, or the head of a DER octet or bit string. Devices differ in it."""


def names_device(key: str) -> bool:
    """Whether `key`, as somebody wrote it for a key, is the name of one in a device and not of a file."""
    return key[: len(SCHEME)].lower() == SCHEME


class TokenAddress(msgspec.Struct, frozen=True):
    """Where a key lies: the device's library, the token there by label or serial number, the key by label or id."""

    module: Path
    token: str | None = None
    serial: bytes | None = None
    object: str | None = None
    id: bytes | None = None
    pin_file: Path | None = None

    @classmethod
    def parse(cls, uri: str) -> "TokenAddress":
        """Return what an RFC 7512 URI names; raise ConfigError (`invalid_usage`) where a part is missing or odd.

        No failure quotes a value: somebody may have written a PIN among them.
        """
        if not names_device(uri) or len(uri) > URI_LENGTH_MAX:
            raise _misused(f"write pkcs11:token=…;object=…?module-path=…, at most {URI_LENGTH_MAX} characters")
        path, _, query = uri[len(SCHEME) :].partition("?")
        given: dict[str, str] = {}
        for place, part in enumerate(filter(None, (*path.split(";"), *query.split("&"))), start=1):
            name, equals, value = part.partition("=")
            if not equals:
                raise _misused(f"part {place} of it is no NAME=VALUE")
            if name in given:
                raise _misused(f"{name[:80]!r} stands there twice")
            if "\0" in unquote(value):
                raise _misused(f"{name[:80]!r} holds a zero byte, which no name has")
            given[name] = value
        if "pin-value" in given:
            raise _misused("a PIN on a command line is read by others: use pin-source=file:PATH, or type it")
        if given.pop("type", "private") != "private":
            raise _misused("type can only be private: it is to sign")
        unknown = sorted(set(given) - {"token", "serial", "object", "id", "module-path", "pin-source"})
        if unknown:
            raise _misused(f"{unknown[0][:80]!r} is not understood here")
        if (
            not given.get("module-path")
            or not {"token", "serial"} & set(given)
            or not {"object", "id"} & set(given)
        ):
            raise _misused("name the module-path, the token (or its serial) and the object (or its id)")
        source = (
            unquote(given["pin-source"]).removeprefix("file:").removeprefix("//") if "pin-source" in given else ""
        )
        return cls(
            module=Path(unquote(given["module-path"])),
            token=unquote(given["token"]) if "token" in given else None,
            serial=unquote_to_bytes(given["serial"]) if "serial" in given else None,
            object=unquote(given["object"]) if "object" in given else None,
            id=unquote_to_bytes(given["id"]) if "id" in given else None,
            pin_file=Path(source) if source else None,
        )


class TokenKey:
    """A key in a device: it signs like a SigningKey. `pin` is asked for when the device wants one, at most once."""

    def __init__(self, address: TokenAddress, pin: Callable[[], str]) -> None:
        """Read the public key, which most devices show without a PIN.

        Raise ConfigError: `pkcs11_missing`, `token_unreachable`, `token_key_not_found`, `token_refused`.
        """
        self._address = address
        self._ask = pin
        self._pin: str | None = None
        self._api = _api()
        self._token = self._find_token()
        found = self._read_public(None)
        if found is None:
            found = self._read_public(self._secret())
        if found is None:
            raise ConfigError("token_key_not_found", f"{self._named()}: there is no such Ed25519 public key")
        self.public = found

    def sign(self, message: bytes) -> bytes:
        """Return the device's signature (64 bytes) of `message`; raise ConfigError as the constructor does."""
        with self._session(self._secret()) as session:
            key = self._find(session, self._api.ObjectClass.PRIVATE_KEY)
            if key is None:
                raise ConfigError("token_key_not_found", f"{self._named()}: there is no such Ed25519 private key")
            signature: bytes = key.sign(message, mechanism=self._api.Mechanism.EDDSA)
        return signature

    def _secret(self) -> str:
        if self._pin is None:
            self._pin = self._ask()
        return self._pin

    def _named(self) -> str:
        address = self._address
        label = address.object if address.object is not None else f"id {(address.id or b'').hex()}"
        return f"{label} in {address.token or (address.serial or b'').decode(errors='replace')}"

    def _find_token(self) -> Any:
        address = self._address
        try:
            library = self._api.lib(str(address.module))
            return library.get_token(token_label=address.token, token_serial=address.serial)
        except (self._api.PKCS11Error, RuntimeError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise ConfigError("token_unreachable", f"{address.module}, {self._named()}: {reason}") from error

    @contextlib.contextmanager
    def _session(self, pin: str | None) -> Iterator[Any]:
        try:
            with self._token.open(user_pin=pin) as session:
                yield session
        except self._api.PKCS11Error as error:
            reason = str(error) or type(error).__name__
            raise ConfigError("token_refused", f"{self._named()}: {reason}") from error

    def _find(self, session: Any, class_: Any) -> Any:
        """The one Ed25519 key of that class, or None; raise ConfigError where the name fits several."""
        attribute = self._api.Attribute
        wanted = {attribute.CLASS: class_, attribute.KEY_TYPE: self._api.KeyType.EC_EDWARDS}
        if self._address.object is not None:
            wanted[attribute.LABEL] = self._address.object
        if self._address.id is not None:
            wanted[attribute.ID] = self._address.id
        # To the end: a search that is left open fails noisily when its session is closed.
        found = list(session.get_objects(wanted))
        if len(found) > 1:
            raise ConfigError("token_key_not_found", f"{self._named()}: several keys are called so")
        return found[0] if found else None

    def _read_public(self, pin: str | None) -> bytes | None:
        with self._session(pin) as session:
            key = self._find(session, self._api.ObjectClass.PUBLIC_KEY)
            return None if key is None else self._public_of(bytes(key[self._api.Attribute.EC_POINT]))

    def _public_of(self, point: bytes) -> bytes:
        for prefix in _POINT_PREFIXES:
            if point.startswith(prefix) and len(point) == len(prefix) + PUBLIC_KEY_SIZE:
                return point[len(prefix) :]
        raise ConfigError("token_key_not_found", f"{self._named()}: is no Ed25519 key ({len(point)} bytes)")


def _api() -> Any:
    """The package that speaks PKCS#11, loaded now."""
    try:
        return importlib.import_module("pkcs11")
    except ImportError as error:
        raise ConfigError("pkcs11_missing", f"python-pkcs11 cannot be loaded: {error}") from error


def _misused(what: str) -> ConfigError:
    return ConfigError("invalid_usage", f"this is no key in a device: {what}")
