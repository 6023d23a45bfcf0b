"""Transactions from intentions: bodies with safe defaults, signed by the keys at hand."""

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from consensus.codec import CodecError, encode
from node.errors import RejectedTransaction
from node.ledger import Body, Call, KeySignature, Transaction, transaction_signing_bytes

EXPIRES_IN_MS_DEFAULT = 10 * 60 * 1000


class Signer(Protocol):
    """What signs: `node.keys.SigningKey`, or a hardware module behind the same two names."""

    @property
    def public(self) -> bytes:
        """The public key (32 bytes)."""

    def sign(self, message: bytes, /) -> bytes:
        """The Ed25519 signature (64 bytes) of `message`."""


def call(method: str, args: Mapping[str, Any]) -> Call:
    """The call of `contract.method` with named plain arguments; bytes are given as bytes."""
    contract, dot, name = method.partition(".")
    if not dot:
        raise RejectedTransaction("unknown_method", f"{method!r} is not written as CONTRACT.METHOD")
    return Call(contract, name, dict(args))


def draft(
    network: str,
    sender: str,
    calls: Iterable[Call],
    *,
    request_id: str | None = None,
    expires_in_ms: int = EXPIRES_IN_MS_DEFAULT,
    mode: Literal["atomic", "each"] = "atomic",
) -> Body:
    """A body that expires `expires_in_ms` from now by this machine's clock.

    Without a `request_id` it gets a random one: then only sending the very same transaction again is safe, not
    making it anew. Give your own (an order's number) where a second attempt may be made from the beginning.
    """
    expires_at_ms = time.time_ns() // 1_000_000 + expires_in_ms
    return Body(network, sender, request_id or str(uuid.uuid4()), expires_at_ms, mode, tuple(calls))


def sign(body: Body, signers: Sequence[Signer]) -> Transaction:
    """The transaction of `body` with a signature of each signer; raise RejectedTransaction when it has no form."""
    try:
        message = transaction_signing_bytes(encode(body))
    except CodecError as error:
        raise RejectedTransaction("malformed_transaction", str(error)) from error
    return Transaction.assemble(body, [KeySignature(signer.public, signer.sign(message)) for signer in signers])


def countersign(transaction: Transaction, signers: Sequence[Signer]) -> Transaction:
    """The same transaction with further signatures: maker and checker sign one after the other."""
    message = transaction_signing_bytes(transaction.body_bytes)
    signatures = {signature.key: signature for signature in transaction.signatures}
    signatures |= {signer.public: KeySignature(signer.public, signer.sign(message)) for signer in signers}
    return Transaction.assemble(transaction.body, list(signatures.values()))
