"""Keys: signing, the encrypted files they rest in, and the certificates they make.

The only module that touches private keys. Whether a signature verifies, node.signatures says.

A key file is one JSON object, readable by its owner only. The seed is sealed by XSalsa20-Poly1305 under a key
that Argon2id derives from the passphrase. The cost of a new file is libsodium's INTERACTIVE (64 MiB, 2 passes,
about 0.15 s): a node opens its keys at every start, and a test network opens a dozen at once. A file that travels
costs whoever guesses more: MODERATE (256 MiB, 3 passes). When the key was made is sealed beside it; files that were
written before that was kept have only their own date.
"""

import contextlib
import datetime
import hashlib
import json
import os
import re
import secrets
import ssl
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
import nacl.bindings
import nacl.exceptions
import nacl.pwhash.argon2id
import nacl.secret
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from node.errors import ConfigError
from node.signatures import SIGNATURE_SIZE

SEED_SIZE = 32
KEY_FILE_SIZE_MAX = 4096
PASSPHRASE_SIZE_MAX = 1024
CERTIFICATE_SIZE_MAX = 4096

KeyKind: TypeAlias = Literal["voting", "tls", "principal"]


class SigningKey:
    """An Ed25519 private key. It is never shown: neither `repr` nor an error message contains it."""

    __slots__ = ("_secret", "public")

    def __init__(self, seed: bytes) -> None:
        """The key of `seed` (32 bytes from a secure source); raise ValueError for another length."""
        if len(seed) != SEED_SIZE:
            raise ValueError(f"a seed has {SEED_SIZE} bytes")
        self.public, self._secret = nacl.bindings.crypto_sign_seed_keypair(seed)

    @classmethod
    def generate(cls) -> "SigningKey":
        """Return a new key from the system's randomness."""
        return cls(secrets.token_bytes(SEED_SIZE))

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes that the key is made of."""
        return self._secret[:SEED_SIZE]

    def sign(self, message: bytes) -> bytes:
        """Return the signature (64 bytes) of `message`; the same for the same message."""
        return nacl.bindings.crypto_sign(message, self._secret)[:SIGNATURE_SIZE]

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.hex()})"


# --- key files -------------------------------------------------------------------------------------------

_HexKey: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_HexSalt: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
_TimeMs: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
_HexBox: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2}){40,200}\Z")]
_Id: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,31}(/[a-z][a-z0-9-]{0,31})?\Z")]

_ID = re.compile(r"[a-z][a-z0-9-]{0,31}(/[a-z][a-z0-9-]{0,31})?")


class _Kdf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Argon2id's cost, bounded: a hostile file must not take a node's memory or an hour of its time."""

    name: Literal["argon2id"]
    passes: Annotated[int, msgspec.Meta(ge=1, le=16)]
    memory_bytes: Annotated[int, msgspec.Meta(ge=8192, le=1024**3)]
    salt: _HexSalt


class _KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The envelope. What it says is repeated inside the box, so that it cannot be exchanged."""

    hansa_key: Literal[1]
    kind: KeyKind
    id: _Id
    public_key: _HexKey
    kdf: _Kdf
    box: _HexBox
    created_at_ms: _TimeMs | None = None


class KeyInfo(msgspec.Struct, frozen=True):
    """What a key file says without its passphrase: `kind`, the `id` it belongs to, the public key (32 bytes).

    `created_at_ms` is when the key was made (Unix milliseconds; None in files of before that was kept).
    """

    kind: KeyKind
    id: str
    public_key: bytes
    created_at_ms: int | None = None


def write_key_file(
    path: Path,
    key: SigningKey,
    *,
    kind: KeyKind,
    id: str,
    passphrase: str,
    replace: bool = False,
    created_at_ms: int | None = None,
    travels: bool = False,
) -> None:
    """Make `path` durably hold `key`, encrypted, with mode 0600; on any error nothing has changed there.

    `id` is the member or principal that the key belongs to; it was made at `created_at_ms` (None: now). An existing
    file is kept (ConfigError `key_file_exists`) unless `replace`, which is how a passphrase is changed. One that
    `travels` takes more memory and time to open (256 MiB, about a second).
    """
    if not _ID.fullmatch(id):
        raise ValueError(f"{id!r} is no member or principal")
    salt = secrets.token_bytes(nacl.pwhash.argon2id.SALTBYTES)
    made_at_ms = time.time_ns() // 1_000_000 if created_at_ms is None else created_at_ms
    cost = nacl.pwhash.argon2id
    passes = cost.OPSLIMIT_MODERATE if travels else cost.OPSLIMIT_INTERACTIVE
    memory = cost.MEMLIMIT_MODERATE if travels else cost.MEMLIMIT_INTERACTIVE
    kdf = _Kdf("argon2id", passes, memory, salt.hex())
    box = _box(kdf, passphrase).encrypt(_sealed_content(kind, id, made_at_ms, key.seed))
    envelope = _KeyFile(1, kind, id, key.public.hex(), kdf, bytes(box).hex(), made_at_ms)
    text = json.dumps(msgspec.to_builtins(envelope), indent=2) + "\n"
    try:
        _write_durably(path, text.encode(), replace=replace)
    except FileExistsError as error:
        raise ConfigError("key_file_exists", f"{path}: exists", path=str(path)) from error
    except OSError as error:
        raise ConfigError("key_file_unreadable", f"{path}: {error.strerror or error}", path=str(path)) from error


def read_key_file(
    path: Path, passphrase: str, *, kind: KeyKind | None = None, id: str | None = None
) -> tuple[KeyInfo, SigningKey]:
    """Return what the key file says and the key in it, which really belongs to its public key.

    Raise ConfigError: `key_file_unreadable`, `key_file_permissions`, `key_file_invalid`, `wrong_passphrase`, or
    `wrong_key` when another `kind` or `id` was asked for. Takes about 0.15 s, without the interpreter lock.
    """
    envelope = _read_envelope(path)
    info = _info(envelope)
    if kind not in (None, info.kind) or id not in (None, info.id):
        wanted = " ".join(part for part in (kind, "key of", id) if part)
        raise ConfigError(
            "wrong_key", f"{path}: holds the {info.kind} key of {info.id}, not a {wanted}", path=str(path)
        )
    try:
        content = _box(envelope.kdf, passphrase).decrypt(bytes.fromhex(envelope.box))
    except nacl.exceptions.CryptoError as error:
        raise ConfigError(
            "wrong_passphrase", f"{path}: does not open with this passphrase", path=str(path)
        ) from error
    key = SigningKey(content[-SEED_SIZE:]) if len(content) >= SEED_SIZE else None
    sealed = None if key is None else _sealed_content(info.kind, info.id, info.created_at_ms, key.seed)
    if key is None or key.public != info.public_key or content != sealed:
        raise ConfigError("key_file_invalid", f"{path}: what is sealed is not what the file says", path=str(path))
    return info, key


def read_key_info(path: Path) -> KeyInfo:
    """Return what the key file says about itself; nothing of it is proven before the passphrase opens it."""
    return _info(_read_envelope(path))


def key_made_ms(path: Path, info: KeyInfo) -> int:
    """Return when the key of this file was made (Unix milliseconds): by its record, else by the file's own date."""
    if info.created_at_ms is not None:
        return info.created_at_ms
    try:
        return max(0, path.stat().st_mtime_ns // 1_000_000)
    except OSError as error:
        raise ConfigError("key_file_unreadable", f"{path}: {error.strerror or error}", path=str(path)) from error


def find_passphrase(
    environment: Mapping[str, str], file: Path | None = None, prompt: Callable[[], str] | None = None
) -> str:
    """Return the passphrase of the key files, from the first source that is there.

    In order: the file that HANSA_PASSPHRASE_FILE names, HANSA_PASSPHRASE itself, `file` (from node.toml), `prompt`.
    Of a file, one line end at the end is left off. Raise ConfigError `passphrase_missing` where there is none.
    """
    named = environment.get("HANSA_PASSPHRASE_FILE")
    if named:
        return _read_passphrase_file(Path(named))
    if environment.get("HANSA_PASSPHRASE"):
        return environment["HANSA_PASSPHRASE"]
    if file is not None:
        return _read_passphrase_file(file)
    typed = prompt() if prompt is not None else ""
    if not typed:
        raise ConfigError("passphrase_missing", "the node's keys are encrypted and no passphrase was given")
    return typed


def _read_passphrase_file(path: Path) -> str:
    data = _read_private(path, PASSPHRASE_SIZE_MAX, forbidden_mode=stat.S_IRWXO)
    try:
        text = data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ConfigError("passphrase_missing", f"{path}: is not UTF-8 text", path=str(path)) from error
    if not text:
        raise ConfigError("passphrase_missing", f"{path}: is empty", path=str(path))
    return text


def _box(kdf: _Kdf, passphrase: str) -> nacl.secret.SecretBox:
    secret = passphrase.encode()
    if not 1 <= len(secret) <= PASSPHRASE_SIZE_MAX:
        raise ConfigError("passphrase_missing", f"a passphrase has 1 to {PASSPHRASE_SIZE_MAX} bytes")
    derived = nacl.pwhash.argon2id.kdf(
        nacl.secret.SecretBox.KEY_SIZE,
        secret,
        bytes.fromhex(kdf.salt),
        opslimit=kdf.passes,
        memlimit=kdf.memory_bytes,
    )
    return nacl.secret.SecretBox(derived)


def _sealed_content(kind: str, id: str, created_at_ms: int | None, seed: bytes) -> bytes:
    created = "" if created_at_ms is None else f"{created_at_ms}\n"
    return f"hansa/key\n{kind}\n{id}\n{created}".encode() + seed


def _info(envelope: _KeyFile) -> KeyInfo:
    return KeyInfo(envelope.kind, envelope.id, bytes.fromhex(envelope.public_key), envelope.created_at_ms)


def _read_envelope(path: Path) -> _KeyFile:
    data = _read_private(path, KEY_FILE_SIZE_MAX, forbidden_mode=stat.S_IRWXG | stat.S_IRWXO)
    try:
        return msgspec.json.decode(data, type=_KeyFile, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError("key_file_invalid", f"{path}: is no key file: {error}", path=str(path)) from error


def _read_private(path: Path, size_max: int, forbidden_mode: int) -> bytes:
    """Return the bytes of a regular file that others have no access to. The open file is judged, not the name."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError("key_file_unreadable", f"{path}: is not a regular file", path=str(path))
            if status.st_mode & forbidden_mode:
                mode = stat.S_IMODE(status.st_mode)
                raise ConfigError("key_file_permissions", f"{path}: has mode {mode:04o}, not 0600", path=str(path))
            data = file.read(size_max + 1)
    except OSError as error:
        raise ConfigError("key_file_unreadable", f"{path}: {error.strerror or error}", path=str(path)) from error
    if len(data) > size_max:
        raise ConfigError("key_file_invalid", f"{path}: is larger than {size_max} bytes", path=str(path))
    return data


def _write_durably(path: Path, data: bytes, *, replace: bool) -> None:
    """All of `data` is at `path` and on the disk, or nothing is. Raise FileExistsError unless `replace`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mkstemp gives mode 0600
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        if replace:
            os.replace(name, path)
        else:
            os.link(name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


# --- certificates ----------------------------------------------------------------------------------------
#
# The member list names TLS *keys*; OpenSSL trusts *certificates*, and Python offers no verify callback. So each
# node's certificate is signed by the node's own key but names an issuer of its own, `hansa-<fingerprint>-pin`,
# and whoever pins the key makes that issuer's certificate himself, from the public key alone: OpenSSL never
# checks a trust anchor's own signature, and does check the node's signature under the pinned key. A stranger's
# certificate fails inside the handshake, no authority exists, and nothing but the key must be handed around.

_VALID_FROM = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_VALID_UNTIL = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


def key_fingerprint(public_key: bytes) -> str:
    """Return the short name of a public key: the first 32 hex digits of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:32]


def certificate(key: SigningKey) -> bytes:
    """Return the DER certificate of `key`: signed by it, no authority, valid from 1970 to 9999, always the same."""
    private = Ed25519PrivateKey.from_private_bytes(key.seed)
    name = f"hansa-{key_fingerprint(key.public)}"
    return _certificate(name, f"{name}-pin", key.public, private, authority=False)


def trust_anchor(public_key: bytes) -> bytes:
    """Return the DER certificate that makes OpenSSL accept `certificate` of the key `public_key`, and only that."""
    name = f"hansa-{key_fingerprint(public_key)}-pin"
    return _certificate(name, name, public_key, Ed25519PrivateKey.generate(), authority=True)


def certificate_key(der: bytes) -> bytes | None:
    """Return the Ed25519 public key in a peer's DER certificate; None where there is none."""
    if len(der) > CERTIFICATE_SIZE_MAX:
        return None
    try:
        public = x509.load_der_x509_certificate(der).public_key()
    except Exception:  # the parser's own errors are many, and all mean: no certificate of ours
        return None
    return public.public_bytes_raw() if isinstance(public, Ed25519PublicKey) else None


def tls_context(key: SigningKey, *, server: bool, pinned: Iterable[bytes]) -> ssl.SSLContext:
    """Return a TLS 1.3 context that shows the certificate of `key` and demands one of the `pinned` keys.

    A context cannot forget: who was pinned once passes the handshake for as long as the context is used, so
    the caller compares the peer's key with the current members after each handshake.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    if server:
        context.num_tickets = 0  # a resumed session would skip the certificate
    _load_own_certificate(context, key)
    pin(context, pinned)
    return context


def pin(context: ssl.SSLContext, keys: Iterable[bytes]) -> None:
    """Make `context` accept the holders of these TLS public keys too, from its next handshake on."""
    for public_key in keys:
        context.load_verify_locations(cadata=trust_anchor(public_key))


def _load_own_certificate(context: ssl.SSLContext, key: SigningKey) -> None:
    """OpenSSL reads the key from a file only: it lies there encrypted under a random passphrase, for a moment."""
    password = secrets.token_hex(32).encode()
    private = Ed25519PrivateKey.from_private_bytes(key.seed)
    key_pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password),
    )
    certificate_pem = ssl.DER_cert_to_PEM_cert(certificate(key)).encode()
    with tempfile.NamedTemporaryFile(prefix="hansa-") as file:
        file.write(key_pem + certificate_pem)
        file.flush()
        context.load_cert_chain(file.name, password=password)


def _certificate(
    subject: str, issuer: str, public_key: bytes, signer: Ed25519PrivateKey, *, authority: bool
) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(Ed25519PublicKey.from_public_bytes(public_key))
        .serial_number(int.from_bytes(hashlib.sha256(subject.encode()).digest()[:16]) >> 1 | 1)
        .not_valid_before(_VALID_FROM)
        .not_valid_after(_VALID_UNTIL)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
    )
    return builder.sign(signer, None).public_bytes(serialization.Encoding.DER)
