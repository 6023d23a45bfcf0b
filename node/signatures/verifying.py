"""Whether an Ed25519 signature verifies, as libsodium alone judges (through PyNaCl).

A second library would accept other edge cases, and that would split the ledger.
"""

from collections.abc import Iterable
from typing import TypeAlias

import nacl.bindings
import nacl.exceptions

PUBLIC_KEY_SIZE = 32
SIGNATURE_SIZE = 64

Signed: TypeAlias = tuple[bytes, bytes, bytes]
"""A public key, a message, and what is said to be its signature."""


def verify(key: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether libsodium accepts `signature` of `message` under the public `key`; never raise."""
    if len(key) != PUBLIC_KEY_SIZE or len(signature) != SIGNATURE_SIZE:
        return False
    try:
        nacl.bindings.crypto_sign_open(signature + message, key)
    except nacl.exceptions.BadSignatureError:
        return False
    return True


def verify_many(items: Iterable[Signed]) -> list[bool]:
    """Return the verdict of `verify` for each (key, message, signature), in order."""
    return [verify(key, message, signature) for key, message, signature in items]
