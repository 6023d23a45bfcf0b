"""The voting keys at hand, of which exactly one signs: the one that the ledger names for the height in work.

Invariant: a process signs with one key in one unbroken membership. Where the list comes to name another key for the
member, or names it again, this process signs nothing any more, and another one begins.

Why: at a node's start the others show it the newest vote that they have from it, and it judges that vote by the
key in the list that it starts from (consensus/README.md, 9.3). A disk image from before the list changed, put back,
would find that vote signed by a key that it does not know yet, pass it over, catch up across the change, and vote
again at heights at which it has voted. A process that begins on the new list is shown those votes again, and knows
them.
"""

from collections.abc import Callable, Mapping

from consensus.members import Members

Sign = Callable[[bytes], bytes]
SIGNATURE_SIZE = 64


class VotingKeys:
    """Signs for one member."""

    def __init__(
        self, member: str, founding_key: bytes, sign: Sign, further: Mapping[bytes, Sign], members: Members
    ) -> None:
        """`sign` signs with the key of the network definition, `further` with others, by their public keys.

        `members` is the list that decides the height which the node starts with.
        """
        self._member = member
        self._keys: dict[bytes, Sign] = {founding_key: sign, **further}
        self._listed = self._key_in(members)
        # A key that is not at hand is none of ours to the replica, whoever else signs: it then abstains.
        self._current = sign if self._listed is None else self._keys.get(self._listed, _nothing)

    @property
    def listed(self) -> bytes | None:
        """The member's key in the newest list; None: it is not in it."""
        return self._listed

    def adopt(self, members: Members) -> bool:
        """This list decides from now on; return whether another process must begin, and this one is silent.

        Call it just before the replica is given the head with that list.
        """
        before, self._listed = self._listed, self._key_in(members)
        if self._listed is None or self._listed == before:
            return False
        self._current = _nothing
        return True

    def sign(self, data: bytes) -> bytes:
        """Return the signature of the key in force."""
        return self._current(data)

    def signer(self, public: bytes) -> Sign | None:
        """Return what signs with this key, or None where it is not at hand."""
        return self._keys.get(public)

    def _key_in(self, members: Members) -> bytes | None:
        index = members.index(self._member)
        return None if index is None else members.key(index)


def _nothing(data: bytes) -> bytes:
    return bytes(SIGNATURE_SIZE)
