"""Signatures for simulated members: a keyed hash, so that a run is fast and has no randomness of its own."""

import hashlib
from collections.abc import Callable

from consensus.members import Members, Validator


class Signer:
    """Holds every member's secret; signs for one, verifies for all."""

    def __init__(self, n: int) -> None:
        self._secrets: dict[bytes, bytes] = {}
        validators = []
        for index in range(n):
            secret = hashlib.sha256(b"secret %d" % index).digest()
            key = hashlib.sha256(b"key %d" % index).digest()
            self._secrets[key] = secret
            validators.append(Validator(f"member-{index}", key))
        self.members = Members(tuple(validators))

    def sign_as(self, index: int) -> Callable[[bytes], bytes]:
        """The signing function of the member at `index`: 64 bytes from its secret and the data."""
        secret = self._secrets[self.members.key(index)]
        return lambda data: _mac(secret, data)

    def verify(self, key: bytes, data: bytes, signature: bytes) -> bool:
        """Whether `signature` is the one that the owner of `key` makes over `data`; a stranger's never is."""
        secret = self._secrets.get(key)
        return secret is not None and signature == _mac(secret, data)


def _mac(secret: bytes, data: bytes) -> bytes:
    first = hashlib.sha256(secret + data).digest()
    return first + hashlib.sha256(secret + first).digest()
