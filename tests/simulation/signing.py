"""Signatures for simulated members: a keyed hash, so that a run is fast and has no randomness of its own."""

import hashlib
from collections.abc import Callable

from consensus.members import Members, Validator


class Signer:
    """Holds every member's secret; signs for one, verifies for all.

    `members` is the list of genesis: the numbers 0 … n - 1 in their order. `others` more may join it, or observe.
    """

    def __init__(self, n: int, others: int = 0) -> None:
        self._made: dict[tuple[bytes, bytes], bytes] = {}  # (key, data) -> the signature that its owner made
        self._validators: dict[tuple[int, int], Validator] = {}
        self._everybody = tuple(self.validator(number, 0) for number in range(n + others))
        self.members = Members(self._everybody[:n])

    def name(self, number: int) -> str:
        """The id of the member that has `number`."""
        return self._everybody[number].id

    def validator(self, number: int, version: int) -> Validator:
        """The member `number` with its key; a rotation makes the next version of it."""
        known = self._validators.get((number, version))
        if known is None:
            key = hashlib.sha256(b"key %d %d" % (number, version)).digest()
            known = self._validators[(number, version)] = Validator(f"member-{number}", key)
        return known

    def sign_as(self, number: int, version: int = 0) -> Callable[[bytes], bytes]:
        """The signing function of the member `number`: 64 bytes from its secret and the data."""
        key = self.validator(number, version).voting_key
        secret = hashlib.sha256(b"secret %d %d" % (number, version)).digest()

        def sign(data: bytes) -> bytes:
            made = self._made[(key, data)] = hashlib.blake2b(data, key=secret, digest_size=64).digest()
            return made

        return sign

    def verify(self, key: bytes, data: bytes, signature: bytes) -> bool:
        """Whether the owner of `key` has made `signature` over `data`: looked up, which no forger can outwit."""
        return self._made.get((key, data)) == signature
