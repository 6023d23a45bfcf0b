"""The recoveries that this member has signed, and whether its chain has come to their blocks (docs/recovery.md).

Invariants: who has signed a recovery votes only on a chain that has its block; a lost memory comes back with that
block once, however often the chain comes to it; no two recoveries that one member has signed begin in one epoch.
They stand in a file beside the database too (signed_file.py), for a database that is lost sets nobody free.
"""

from collections.abc import Sequence

import msgspec

from consensus.codec import encode
from node.store.database import Reader
from node.store.layout import META_RECOVERY, RecoveryPromise, number
from node.store.reading import read_head, stored

_Rows = list[tuple[bytes, bytes | None]]


def read_promises(reader: Reader) -> tuple[RecoveryPromise, ...]:
    """Return the recoveries that this member has signed, the one that holds last."""
    data = reader.get(META_RECOVERY)
    return () if data is None else stored(data, tuple[RecoveryPromise, ...], "recovery promises")


def owed(reader: Reader, head_height: int) -> RecoveryPromise | None:
    """Return the recovery that this member has signed and that its chain does not have: it must not vote."""
    promises = read_promises(reader)
    if not promises:
        return None
    last = promises[-1]
    if last.height > head_height:
        return last
    known = reader.get(b"h" + number(last.height))
    # Recoveries change the members, so a head record of that height is here even after a join.
    kept = known is not None and read_head(reader, last.height).digest == last.digest
    return None if kept else last


def promised(known: Sequence[RecoveryPromise], promise: RecoveryPromise) -> _Rows:
    """The rows by which `promise` is the one that holds; what its chain has passed, it has."""
    passed = any(item.digest == promise.digest and item.passed for item in known)
    others = [item for item in known if item.digest != promise.digest]
    return [(META_RECOVERY, encode((*others, msgspec.structs.replace(promise, passed=passed))))]


def lost(known: Sequence[RecoveryPromise], beside: Sequence[RecoveryPromise]) -> bool:
    """Whether the file beside the database holds a promise that the database does not `know`."""
    return not {item.digest for item in beside} <= {item.digest for item in known}


def restored(known: Sequence[RecoveryPromise], beside: Sequence[RecoveryPromise]) -> _Rows:
    """The rows by which the database knows those `beside` it again, of which the last one holds.

    All of them count as passed (forgetting.py): a database that has lost one does not know what came after it.
    """
    digests = [item.digest for item in beside]
    all_of_them = (*[item for item in known if item.digest not in digests], *beside)
    return [(META_RECOVERY, encode(tuple([msgspec.structs.replace(item, passed=True) for item in all_of_them])))]


def passed(known: tuple[RecoveryPromise, ...], height: int) -> _Rows:
    """The rows that note which promised recoveries a chain of `height` has passed, where that is news."""
    noted = tuple([msgspec.structs.replace(item, passed=item.passed or item.height <= height) for item in known])
    return [] if noted == known else [(META_RECOVERY, encode(noted))]
