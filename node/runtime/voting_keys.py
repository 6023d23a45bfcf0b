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
        self._current = sign if self._listed is None else self._keys.get(self._listed, _not_at_hand)

    @property
    def listed(self) -> bytes | None:
        """The member's key in the newest list; None: it is not in it."""
        return self._listed

    def adopt(self, members: Members) -> bool:
        """This list decides from now on; return whether another process must begin.

        Then the replica is given neither the head with that list nor anything else: a signature raises. Call it
        just before the replica would be given that head.
        """
        before, self._listed = self._listed, self._key_in(members)
        if self._listed is None or self._listed == before:
            return False
        self._current = _ended
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


def _not_at_hand(data: bytes) -> bytes:
    """Nobody's signature: the replica tries its key first, and abstains."""
    return bytes(SIGNATURE_SIZE)


def _ended(data: bytes) -> bytes:
    raise RuntimeError("a process whose member the list names anew was asked for a signature")
