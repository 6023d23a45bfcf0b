"""The file in which a transaction travels from who builds it to those who sign it, and back to be sent.

Invariant: what is signed is what is shown. Everything that a signer reads is made anew from the bytes that are
signed, never taken from the file; and a file whose other words differ from those bytes, or one of whose signatures
does not verify, is refused whole. A machine that signs needs neither network nor ledger for any of this.

The file is one JSON object (docs/keys.md). Its `policy` is what a node said of the sender when the transaction was
built. Offline nobody can prove it, and nothing rests on it: it names who may sign, and the ledger decides.
"""

import datetime
import json
import re
from collections import Counter
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from consensus.codec import CodecError, encode
from node.client.drafting import Signer
from node.errors import ConfigError, RejectedTransaction
from node.ledger import (
    SIGNATURES_MAX,
    TRANSACTION_SIZE_MAX,
    Body,
    Call,
    KeySignature,
    PrincipalName,
    Transaction,
    decode_body,
    transaction_id,
    transaction_signing_bytes,
)
from node.signatures import verify

FILE_SIZE_MAX: Final = 24 * 1024 * 1024
"""The largest body in hex (4 MiB) and in words, of which a byte may take seven characters."""
BODY_SIZE_MAX: Final = TRANSACTION_SIZE_MAX - 128 * SIGNATURES_MAX
"""What leaves room for all signatures that a transaction may carry."""
POLICY_KEYS_MAX: Final = 64
PERSON_KEYS_MAX: Final = 4_096

_HexKey: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_HexSignature: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{128}\Z")]


class PolicyKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A public key (hex) that may sign for the sender, and the principal who signs alone with it, if one does."""

    key: _HexKey
    name: PrincipalName | None = None

    @property
    def words(self) -> str:
        """The key as people name it."""
        return _shown(self.key) if self.name is None else f"{self.name} ({_shown(self.key)})"


class KnownPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The sender's policy as a node answered it after block `height`: any `threshold` of `keys` sign.

    Keys are distinct and enough: with one key twice, one signature would be shown as two. `persons` are the keys of
    those whom the sender's tiers may ask for besides.
    """

    threshold: Annotated[int, msgspec.Meta(ge=1, le=POLICY_KEYS_MAX)]
    keys: Annotated[tuple[PolicyKey, ...], msgspec.Meta(min_length=1, max_length=POLICY_KEYS_MAX)]
    height: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    persons: Annotated[tuple[PolicyKey, ...], msgspec.Meta(max_length=PERSON_KEYS_MAX)] = ()

    def __post_init__(self) -> None:
        """Raise ValueError where the keys repeat or never suffice."""
        distinct = len({item.key for item in self.keys})
        if distinct != len(self.keys):
            raise ValueError("one key stands twice in the policy")
        if self.threshold > distinct:
            raise ValueError(f"the policy wants {self.threshold} signatures of {distinct} keys")

    def key(self, public: bytes) -> PolicyKey | None:
        """The key of the policy with these 32 bytes, or None."""
        return next((item for item in self.keys if item.key == public.hex()), None)

    def person(self, public: bytes) -> PolicyKey | None:
        """The key with these 32 bytes of somebody whom a tier may ask for, or None."""
        return next((item for item in self.persons if item.key == public.hex()), None)

    def lacking(self, signers: tuple[bytes, ...]) -> tuple[int, tuple[PolicyKey, ...]]:
        """How many signatures are still wanted after those of `signers` (public keys), and who can give them."""
        signed = {public.hex() for public in signers}
        given = sum(item.key in signed for item in self.keys)
        return max(0, self.threshold - given), tuple(item for item in self.keys if item.key not in signed)


class _FileSignature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: _HexKey
    signature: _HexSignature


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON object as it lies on disk."""

    hansa_transaction: Literal[1]
    tx_id: _HexKey
    summary: tuple[str, ...]
    body: Annotated[str, msgspec.Meta(max_length=2 * BODY_SIZE_MAX)]
    policy: KnownPolicy
    signatures: Annotated[tuple[_FileSignature, ...], msgspec.Meta(max_length=SIGNATURES_MAX)]


class TransactionFile:
    """A transaction on its way to its signatures; those that it has verify."""

    __slots__ = ("body", "body_bytes", "policy", "signatures", "tx_id")

    def __init__(self, body: Body, policy: KnownPolicy, signatures: tuple[KeySignature, ...] = ()) -> None:
        """Raise RejectedTransaction where `body` has no canonical form or is too large."""
        try:
            self.body_bytes = encode(body)
            self.body = decode_body(self.body_bytes)
        except CodecError as error:
            raise RejectedTransaction("malformed_transaction", str(error)) from error
        if len(self.body_bytes) > BODY_SIZE_MAX:
            size = len(self.body_bytes)
            raise RejectedTransaction(
                "transaction_too_large", f"{size:,} bytes are more than the {BODY_SIZE_MAX:,} allowed"
            )
        self.policy = policy
        self.signatures = signatures
        self.tx_id = transaction_id(self.body_bytes)

    @property
    def signers(self) -> tuple[bytes, ...]:
        """The public keys that have signed."""
        return tuple(item.key for item in self.signatures)

    def signed_by(self, signer: Signer) -> "TransactionFile":
        """The same with one signature more.

        Raise RejectedTransaction: `signer_not_entitled` for a key outside the policy, `already_signed` for one that
        has signed, `bad_signature` where what the signer made is no signature of its key.
        """
        return self.with_signature(self.signature_of(signer))

    def signature_of(self, signer: Signer) -> KeySignature:
        """What `signed_by` would add, which it raises as."""
        self.require_wanted(signer.public)
        message = transaction_signing_bytes(self.body_bytes)
        signature = signer.sign(message)
        if not verify(signer.public, message, signature):
            raise RejectedTransaction(
                "bad_signature", "what the key made is no Ed25519 signature of its public key"
            )
        return KeySignature(signer.public, signature)

    def with_signature(self, signature: KeySignature) -> "TransactionFile":
        """The same with a signature that was made for it; raise as `require_wanted` does."""
        self.require_wanted(signature.key)
        return TransactionFile(self.body, self.policy, (*self.signatures, signature))

    def require_wanted(self, public: bytes) -> None:
        """Return when a signature of this key is one more towards policy or tiers; raise as `signed_by` does."""
        found = self.policy.key(public) or self.policy.person(public)
        if found is None:
            may = ", ".join(item.words for item in (*self.policy.keys, *self.policy.persons))
            raise RejectedTransaction(
                "signer_not_entitled",
                f"{_shown(public.hex())} is none of those that sign for {self.body.sender}: {may}",
            )
        if public in self.signers:
            raise RejectedTransaction("already_signed", f"{found.words} has signed this transaction already")
        if len(self.signatures) == SIGNATURES_MAX:
            raise RejectedTransaction(
                "already_signed", f"it carries {SIGNATURES_MAX} signatures, as many as it may"
            )

    def transaction(self) -> Transaction:
        """The transaction to be sent; raise RejectedTransaction (`policy_unsatisfied`) while nobody has signed."""
        if not self.signatures:
            raise RejectedTransaction("policy_unsatisfied", self.standing())
        return Transaction.assemble(self.body, self.signatures)

    def standing(self, policy: KnownPolicy | None = None) -> str:
        """Who has signed and who is missing, by the policy in the file or by a newer one."""
        policy = policy or self.policy
        wanted, others = policy.lacking(self.signers)
        given = [found.words for public in self.signers if (found := policy.key(public)) is not None]
        said = f"{len(given)} of {policy.threshold} signatures"
        said += f", by {', '.join(given)}" if given else ""
        persons = [item.words for public in self.signers if (item := policy.person(public)) is not None]
        said += f"; for its tiers: {', '.join(persons) or 'nobody yet'}" if policy.persons else ""
        if wanted == 0:
            return said
        among = "any of " if len(others) > wanted else ""
        return f"{said}; missing: {wanted} more, by {among}{', '.join(item.words for item in others)}"

    def summary(self) -> tuple[str, ...]:
        """What is signed, in words: every part of the body, one line a call. Nothing is left out for its length."""
        body = self.body
        return (
            f"{body.sender} on {body.network}, request {body.request_id}",
            f"valid until {_time(body.expires_at_ms)}",
            f"{_totals(body)}; {_MODES[body.mode]}",
            *(f"{place}. {call_words(call)}" for place, call in enumerate(body.calls, start=1)),
        )

    def encode(self) -> bytes:
        """The file's bytes."""
        signatures = tuple(_FileSignature(item.key.hex(), item.signature.hex()) for item in self.signatures)
        file = _File(1, self.tx_id.hex(), self.summary(), self.body_bytes.hex(), self.policy, signatures)
        return msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> "TransactionFile":
        """Return the transaction in a file's bytes.

        Raise ConfigError: `transaction_file_invalid` for what is no such file, `transaction_file_altered` for one
        whose parts contradict one another.
        """
        if len(data) > FILE_SIZE_MAX:
            raise ConfigError("transaction_file_invalid", f"it has more than {FILE_SIZE_MAX:,} bytes")
        try:
            file = msgspec.json.decode(data, type=_File, strict=True)
            body = decode_body(bytes.fromhex(file.body))
            # Of a field that stands twice, people read the first one and programs take the last.
            json.loads(data, object_pairs_hook=_fields)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise ConfigError("transaction_file_invalid", f"it is no transaction file: {error}") from error
        signatures = tuple(
            KeySignature(bytes.fromhex(item.key), bytes.fromhex(item.signature)) for item in file.signatures
        )
        found = cls(body, file.policy, signatures)
        message = transaction_signing_bytes(found.body_bytes)
        if found.tx_id.hex() != file.tx_id:
            raise _altered(f"it says tx_id {file.tx_id}, and what is to be signed is {found.tx_id.hex()}")
        if found.summary() != file.summary:
            raise _altered("its summary is not what is to be signed")
        if len({item.key for item in signatures}) != len(signatures):
            raise _altered("one key stands twice among its signatures")
        for item in signatures:
            if not verify(item.key, message, item.signature):
                raise _altered(f"the signature of {_shown(item.key.hex())} is not one of this content")
        return found


def _fields(pairs: list[tuple[str, Any]]) -> None:
    """Return when no name stands twice in one JSON object; raise ValueError."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a field stands there twice")


def _shown(key: str) -> str:
    """A public key (hex) by the digits it begins with, as `hansa keys list` shows it whole."""
    return f"key {key[:16]}…"


def _altered(what: str) -> ConfigError:
    return ConfigError("transaction_file_altered", what)


_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MODES: Final = {"atomic": "all of it or nothing", "each": "each call for itself"}


def _totals(body: Body) -> str:
    """How often each method is called, and the sum of its amounts, whatever they are of: a control sum."""
    counts = Counter(_method(call) for call in body.calls)
    sums: Counter[str] = Counter()
    for call in body.calls:
        amount = call.args.get("amount")
        if type(amount) is int:
            sums[_method(call)] += amount
    parts = [
        f"{count:,} × {name}" + (f" (amounts together {sums[name]:,})" if name in sums else "")
        for name, count in sorted(counts.items())
    ]
    return ", ".join(parts)


def call_words(call: Call) -> str:
    """A call in one line, so that no two calls read alike."""
    args = ", ".join(f"{_name(name)} = {_words(value)}" for name, value in sorted(call.args.items()))
    return f"{_method(call)}: {args}" if args else _method(call)


def _method(call: Call) -> str:
    return f"{_name(call.contract)}.{_name(call.method)}"


def _name(text: str) -> str:
    """A name as it is, if it is one; what only looks like names, signs and values stands in quotes."""
    return text if _NAME.fullmatch(text) else _words(text)


def _time(time_ms: int) -> str:
    try:
        moment = datetime.datetime.fromtimestamp(time_ms // 1000, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms after 1970"
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _words(value: Any) -> str:
    """A plain value so that no two values look alike: text in quotes, bytes as 0x…, integers as they are."""
    if isinstance(value, bytes):
        return f"0x{value.hex()}"
    if isinstance(value, str):
        return printable(json.dumps(value, ensure_ascii=False))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_words(name)}: {_words(item)}" for name, item in sorted(value.items())) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_words(item) for item in value)}]"
    return json.dumps(value)


def printable(text: str) -> str:
    """Return `text` without what a terminal obeys or hides: line ends, escapes, marks that turn the direction."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else _number(sign) for sign in text)


def _number(sign: str) -> str:
    """The sign's number, of a fixed length: else the digits of the text behind it would read as its own."""
    number = ord(sign)
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"
