"""The voting keys at hand, of which exactly one signs: the one that the ledger names for the height in work."""

from collections.abc import Callable, Mapping

from consensus.members import Members

Sign = Callable[[bytes], bytes]


class VotingKeys:
    """Signs for one member."""

    def __init__(self, member: str, founding_key: bytes, sign: Sign, further: Mapping[bytes, Sign]) -> None:
        """`sign` signs with the key of the network definition, `further` with others, by their public keys."""
        self._member = member
        self._keys: dict[bytes, Sign] = {founding_key: sign, **further}
        self._current = sign

    def adopt(self, members: Members) -> bool:
        """Sign with the key that this list names for the member; return whether it is at hand, or none is named.

        Call it just before the replica is given the head with that list: one key is right for each height.
        """
        index = members.index(self._member)
        if index is None:
            return True
        found = self._keys.get(members.key(index))
        self._current = self._current if found is None else found
        return found is not None

    def sign(self, data: bytes) -> bytes:
        """Return the signature of the key in force."""
        return self._current(data)

    def signer(self, public: bytes) -> Sign | None:
        """Return what signs with this key, or None where it is not at hand."""
        return self._keys.get(public)
