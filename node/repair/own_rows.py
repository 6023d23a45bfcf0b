"""What a store keeps besides the ledger, after damage: readable rows stay as they are, others are given up.

Invariant: a consensus record is never changed. When one cannot be read, or may be missing, nobody knows any more
what this member signed: then all records and every marker of a vote go, which is how a member without memory looks,
and it abstains until it has learnt from the others (consensus/README.md, section 9). Two promises survive
that: what a signed recovery binds it to, by the database or by the file beside it (node/store/signed_file.py), and,
where its row can be read, never to sign again with a key that was seen in two places.
"""

import contextlib
import itertools

from node.config import NetworkConfig, NodeConfig
from node.errors import HansaError, StoreError
from node.ledger import BlockBody, HeadRecord
from node.repair.report import Journal
from node.signatures import verify
from node.store import Database, forget_votes, promises
from node.store.layout import META_ABSTAIN, META_ENDINGS, META_NEVER_VOTED, number
from node.store.reading import read_body
from node.store.signed_file import SignedFile
from node.verification.own import LETTERS, MARKERS, Own
from node.verification.report import Progress
from node.wording import agreeing, counted

ATTEMPTS_MAX = 100_000
"""Rows given up one by one; a store with more damage than this is not worth mending."""


def give_up_votes(database: Database, journal: Journal, why: str) -> None:
    """This member remembers no vote, and the report says so: it abstains until it has learnt enough."""
    forget_votes(database)
    journal.abstains = True
    journal.say(
        f"{why}: the node abstains from voting until it has caught up with the others, and says so in `why`"
    )


def mend_promises(database: Database, node: NodeConfig, network: NetworkConfig, journal: Journal) -> None:
    """Which recoveries this member has signed can be read: where it could not, it is what stands beside the data.

    Raise StoreError where nothing stands there: without it the member could vote on a chain that it has promised
    never to vote on again. What the database does not hold at all the node's next start takes from there.
    """
    try:
        promises.read_promises(database)
    except StoreError:
        signed = SignedFile(node.signed_file, network.network_id, network.genesis_hash).read()
        if not signed:
            raise
        database.write(promises.restored((), signed))
        give_up_votes(database, journal, "the note of the recoveries that this member signed was damaged")


def mend_own(
    database: Database,
    network: NetworkConfig,
    head: HeadRecord,
    voting_keys: dict[str, set[bytes]],
    journal: Journal,
) -> None:
    """Every row besides the ledger can be read and agrees with the others, or is gone."""
    _remove_unknown(database, journal)
    _mend_bodies(database, head, journal)
    for _ in range(ATTEMPTS_MAX):
        progress = Progress()
        progress.height = head.height
        first = database.get(b"mfirst")
        progress.first_block = 1 if first is None else int.from_bytes(first, "big")
        try:
            Own(database, network, verify, progress).check(head, voting_keys)
        except HansaError as error:
            _give_up(database, str(error.details.get("entry") or ""), progress.where, error, journal)
            continue
        return
    raise StoreError("store_corrupt", "too many rows are damaged")


def _give_up(database: Database, entry: str, where: str, error: HansaError, journal: Journal) -> None:
    """The row that the verification complained of is gone, and what hangs on it."""
    letter, _, rest = entry.partition(" ")
    key = letter.encode() + bytes.fromhex(rest)
    if where == "the consensus records" or key in (META_NEVER_VOTED, META_ABSTAIN) or letter == "c":
        give_up_votes(database, journal, f"a consensus record is damaged ({error.message})")
        return
    if letter == "v" or where == "the evidence":
        _renumber_evidence(database, key)
        journal.count("damaged evidence given up")
        return
    if (where == "the journal" and key == META_ENDINGS) or letter in ("g", "f", "j"):
        _forget_endings(database)
        journal.say("the list of transactions that ended without becoming final was damaged and is empty now")
        return
    if not key or database.get(key) is None:
        raise error
    database.write([(key, None)])
    journal.count_row("damaged rows given up", key)


def _remove_unknown(database: Database, journal: Journal) -> None:
    known = [bytes((letter,)) for letter in LETTERS]
    edges = [b"", *itertools.chain.from_iterable((letter, bytes((letter[0] + 1,))) for letter in known)]
    keys = []
    for start, end in zip(edges[::2], [*edges[1::2], b"\xff" * 64], strict=True):
        keys += [key for key, _ in database.scan(start, end)]
    keys += [key for key, _ in database.scan(b"m", b"n") if key not in MARKERS]
    if keys:
        database.write([(key, None) for key in keys])
        journal.say(f"{counted(len(keys), 'row')} of no known kind {agreeing(len(keys), 'was', 'were')} removed")


def _mend_bodies(database: Database, head: HeadRecord, journal: Journal) -> None:
    """Of the blocks in work, those that are not whole are gone: a member that voted for one has its body too."""
    gone: list[bytes] = []
    marked: set[bytes] = set()
    for key, value in database.scan(b"w", b"x"):
        body = None
        with contextlib.suppress(HansaError):
            body = _body(database, key) if len(key) == 41 and not value else None
        if body is None:
            gone.append(key)
        else:
            marked.add(key[1:])
    for key, _ in database.scan(b"b", b"c"):
        if key[1:] in marked:
            continue
        try:
            body = _body(database, key)
        except HansaError:
            body = None
        decided = body is not None and body.header.height <= head.height
        data = database.get(b"h" + key[1:9]) if decided else None
        if data is None or key[9:] not in data:
            gone.append(key)
    for key, _ in database.scan(b"k", b"l"):
        if database.get(b"h" + key[1:]) is None:
            gone.append(key)
    if gone:
        database.write([(key, None) for key in gone])
        rows = counted(len(gone), "row")
        removed = agreeing(len(gone), "was removed", "were removed")
        journal.say(f"{rows} of blocks that were not whole, or that nobody decided, {removed}")


def _body(database: Database, key: bytes) -> BlockBody | None:
    """The body of the block that a row of `b` or `w` names."""
    return read_body(database, int.from_bytes(key[1:9], "big"), key[9:])


def _renumber_evidence(database: Database, bad: bytes) -> None:
    """Evidence has numbers without a gap; where it had, only the `bad` row is given up."""
    rows = list(database.scan(b"v", b"w"))
    unbroken = all(key == b"v" + number(place) for place, (key, _) in enumerate(rows))
    kept = [value for key, value in rows if not (unbroken and key == bad)]
    database.write([(key, None) for key, _ in rows])
    database.write([(b"v" + number(place), value) for place, value in enumerate(kept)])


def _forget_endings(database: Database) -> None:
    keys = [key for letter in (b"g", b"f", b"j") for key, _ in database.scan(letter, bytes((letter[0] + 1,)))]
    database.write([*((key, None) for key in keys), (META_ENDINGS, None)])
