"""A memory of votes that may have gaps is no memory: the one way in which a store gives it up.

Invariant: afterwards the store looks like that of a member without memory, which abstains until it has learnt from
the others (consensus/README.md, 9), and no recovery block that the chain comes to ends that. Whoever forgets does
not know how far the chain had come: what told it may be lost with the votes. So each recovery that this member has
signed counts as passed, whatever the store says; only one that it signs from now on gives it its vote back.
"""

from consensus.amnesia import HEIGHT_MAX
from node.store import promises
from node.store.database import Database
from node.store.layout import META_ABSTAIN, META_NEVER_VOTED, META_VOTED


def forget_votes(database: Database) -> None:
    """This member remembers no vote; one synced batch. StoreError where its promises cannot be read.

    An older promise to abstain goes too: its height may be over, and with it the member would count as one that
    knows what it signed since. What never signs again is kept, for no number of heights ends that.
    """
    rows: list[tuple[bytes, bytes | None]] = [(key, None) for key, _ in database.scan(b"c", b"d")]
    rows += [(META_NEVER_VOTED, None), (META_VOTED, None)]
    until = database.get(META_ABSTAIN) or b""
    if len(until) != 8 or int.from_bytes(until, "big") < HEIGHT_MAX:
        rows.append((META_ABSTAIN, None))
    database.write(rows + promises.passed(promises.read_promises(database), HEIGHT_MAX))
