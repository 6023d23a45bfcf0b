"""A ledger that was tampered with on disk is found out, and where: every kind of row, changed, removed, added."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from consensus.codec import decode, encode
from consensus.messages import Certificate, VoteKind, vote_bytes
from node.config import Retention
from node.errors import ConfigError
from node.ledger import (
    BlockBody,
    CallReceipt,
    HeadRecord,
    Receipt,
    merkle_root,
)
from node.store import LevelDatabase, layout
from node.store.layout import ReceiptsRecord, number
from node.verification import Depth, LedgerReport, verify_rows
from node.verification.own import LETTERS, MARKERS
from tests.node.archive_world import ArchivedLedger
from tests.node.ledger_world import BANKS, Ledger, transfer
from tests.node.plain_rows import PlainRows
from tests.node.signed_ledger import VOTING_KEYS, make_ledger
from tests.node.test_retention import pruned as prune_as_a_node_does


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A ledger of three blocks."""
    return make_ledger(tmp_path / "data")


def report(ledger: Ledger, *, quick: bool = False) -> LedgerReport:
    ledger.close()
    database = LevelDatabase(ledger.path)
    try:
        scratch = ledger.path.with_name("scratch")
        return verify_rows(
            database, ledger.network, scratch, lambda done, total: None, "quick" if quick else "whole"
        )
    finally:
        database.close()


def tampered(ledger: Ledger, change: Callable[[PlainRows], None], *, quick: bool = False) -> LedgerReport:
    ledger.close()
    db = PlainRows(ledger.path)
    change(db)
    db.close()
    return report(ledger, quick=quick)


def test_an_honest_ledger_is_right_from_genesis_to_head(ledger: Ledger) -> None:
    found = report(ledger)
    assert found.first_error is None
    assert (found.ok, found.height, found.blocks, found.transactions) == (True, 3, 3, 3)
    assert (found.first_block, found.executed_from, found.quick) == (1, 1, False)
    assert found.notes == ("every block was executed again, from genesis on",)
    database = LevelDatabase(ledger.path)
    by_rows = verify_rows(database, ledger.network, ledger.path.with_name("more"), lambda done, total: None, "rows")
    database.close()
    assert (by_rows.ok, by_rows.blocks, by_rows.executed_from) == (True, 3, None)


def test_every_kind_of_row_is_in_the_ledger_that_is_tampered_with(ledger: Ledger) -> None:
    """Else the table below would prove less than it says; and no kind of row is unknown to the verification."""
    letters = {key[:1] for key, _ in ledger.store.rows(b"", b"\xff")}
    assert letters == {bytes((letter,)) for letter in b"bcefghjmpqrstuvwx"}
    assert letters | {b"d", b"k", b"l", b"y"} == {bytes((letter,)) for letter in LETTERS}
    assert {value for name, value in vars(layout).items() if name.startswith("META_")} <= set(MARKERS)


@dataclasses.dataclass(frozen=True)
class Mutation:
    """What is done to the first row of a kind, or the row `key`, and a word of what verification says of it."""

    letter: str
    deed: str
    says: str
    quick: bool = False
    key: bytes | None = None
    value: bytes | None = None


MUTATIONS = (
    # A hash, a signature or a root is missed by nobody.
    Mutation("b", "change", "cannot be read", quick=True),
    Mutation("b", "remove", "block", quick=True),
    Mutation("h", "change", "genesis", quick=True),
    Mutation("h", "remove", "genesis", quick=True),
    Mutation("h", "remove", "after block 1 are missing", quick=True, key=b"h" + number(2)),
    Mutation("h", "remove", "last head record 2", quick=True, key=b"h" + number(3)),
    Mutation("h", "add", "above the head", quick=True, key=b"h" + number(4)),
    Mutation("r", "change", "block 1"),
    Mutation("r", "remove", "receipts are missing"),
    Mutation("r", "add", "block 4", key=b"r" + number(4)),
    Mutation("x", "change", "not found by its id"),
    Mutation("x", "remove", "not found by its id"),
    Mutation("x", "add", "does not hold", key=b"x" + bytes(32), value=layout.location(2, 0)),
    Mutation("e", "change", "not found under its topic"),
    Mutation("e", "remove", "not found under its topic"),
    Mutation("e", "add", "does not hold", key=layout.topic_prefix("nobody") + number(2), value=bytes(4)),
    Mutation("s", "change", "differs from its hash"),
    Mutation("s", "remove", "values are missing"),
    Mutation("s", "add", "differs from its hash", key=b"s\x02added"),
    Mutation("t", "change", "state tree", quick=True),
    Mutation("t", "remove", "state tree", quick=True),
    Mutation("t", "add", "state tree", quick=True, key=b"t" + bytes(32), value=bytes(32)),
    Mutation("t", "add", "no pair of hashes", quick=True, key=b"t" + bytes(4), value=bytes(32)),
    Mutation("d", "add", "parted buckets", key=b"d00", value=bytes(577)),
    Mutation("q", "change", "not marked to be forgotten"),
    Mutation("q", "remove", "not marked to be forgotten"),
    Mutation("q", "add", "belongs to no request", key=b"q" + number(1) + b"added", value=b""),
    Mutation("u", "change", "undo record", key=b"u" + number(2)),
    Mutation("u", "remove", "undo record", key=b"u" + number(2)),
    Mutation("u", "remove", "undo record", key=b"u" + number(3)),
    Mutation("u", "add", "undo record", key=b"u" + number(4)),
    # The header chain of pruned blocks, and changes of members, of which this ledger has none.
    Mutation("k", "add", "cannot be read", quick=True, key=b"k" + number(2)),
    Mutation("k", "add", "no decided block", key=b"k" + number(7)),
    Mutation("y", "add", "no pruned block", key=b"y" + number(2)),
    Mutation("l", "add", "index of members' changes", quick=True, key=b"l" + number(2), value=b""),
    Mutation("l", "add", "above the head", quick=True, key=b"l" + number(9), value=b""),
    # What this member has signed and taken.
    Mutation("c", "change", "record"),
    Mutation("c", "add", "record", key=b"c" + number(4) + b"2"),
    Mutation("w", "change", "cannot be read"),
    Mutation("w", "remove", "no decided block"),
    Mutation("w", "add", "no body", key=b"w" + number(5) + bytes(32), value=b""),
    Mutation("v", "change", "evidence"),
    Mutation("v", "add", "number 1 is missing", key=b"v" + number(7)),
    Mutation("p", "change", "transaction"),
    Mutation("p", "add", "cannot be read", key=b"p" + bytes(32)),
    Mutation("j", "change", "transaction"),
    Mutation("j", "add", "cannot be read", key=b"j" + bytes(32)),
    Mutation("g", "change", "list"),
    Mutation("g", "remove", "list"),
    Mutation("g", "add", "beyond their number", key=b"g" + number(1), value=bytes(32)),
    Mutation("f", "change", "ending"),
    Mutation("f", "add", "ending", key=b"f" + bytes(32)),
    # Markers.
    Mutation("m", "change", "data_format_unknown", quick=True, key=layout.META_FORMAT),
    Mutation("m", "remove", "format", quick=True, key=layout.META_FORMAT),
    Mutation("m", "change", "data_of_another_network", quick=True, key=layout.META_NETWORK),
    Mutation("m", "remove", "data_of_another_network", quick=True, key=layout.META_NETWORK),
    Mutation("m", "change", "above the head", quick=True, key=layout.META_HEAD, value=number(2)),
    Mutation("m", "change", "head is 9", quick=True, key=layout.META_HEAD, value=number(9)),
    Mutation("m", "remove", "no head", quick=True, key=layout.META_HEAD),
    Mutation("m", "add", "never voted", key=layout.META_NEVER_VOTED, value=b"1"),
    Mutation("m", "change", "beyond their number", key=layout.META_ENDINGS, value=number(0)),
    Mutation("m", "add", "divergence", key=layout.META_DIVERGED),
    Mutation("m", "add", "first block", quick=True, key=b"mfirst", value=number(9)),
    Mutation("m", "add", "no known kind", key=b"mystery"),
    Mutation("?", "add", "no known kind", key=b"zebra"),
    Mutation("?", "add", "no known kind", key=b"\x00"),
    Mutation("?", "add", "no known kind", key=b"a"),
)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda item: f"{item.letter}-{item.deed}-{item.says[:12]}")
def test_no_row_is_changed_removed_or_added_unseen(ledger: Ledger, mutation: Mutation) -> None:
    def change(db: PlainRows) -> None:
        key = mutation.key
        if key is None:
            letter = mutation.letter.encode()
            key = next(db.keys(letter, bytes((letter[0] + 1,))))
        old = db.get(key)
        assert (old is None) == (mutation.deed == "add")
        if mutation.deed == "remove":
            db.delete(key)
        elif mutation.value is not None:
            db.put(key, mutation.value)
        else:
            middle = len(old or b"") // 2
            db.put(key, (old or b"x")[:middle] + b"\x01" + (old or b"x")[middle:])

    for quick in (False, True)[: 1 + mutation.quick]:
        assert mutation.says in verdict(ledger, change if not quick else lambda db: None, quick=quick)


@pytest.mark.parametrize("deed", ["nothing", "changed", "removed", "added", "under another name"])
def test_the_records_of_parted_buckets_are_those_that_their_pairs_make(tmp_path: Path, deed: str) -> None:
    ledger = make_ledger(tmp_path / "data", accounts=700, state_tree_bits=4)

    def change(db: PlainRows) -> None:
        parted = list(db.keys(b"d", b"e"))
        assert len(parted) == 16
        record = db.get(parted[7])
        if deed == "changed":
            db.put(parted[7], record[:-1] + bytes((record[-1] ^ 1,)))
        if deed in ("removed", "under another name"):
            db.delete(parted[7])
        if deed in ("added", "under another name"):
            db.put(parted[7] + b"0", record)

    found = tampered(ledger, change)
    assert found.ok == (deed == "nothing")
    assert deed == "nothing" or "parted buckets" in (found.first_error or "")


def test_a_pruned_ledger_is_executed_from_a_past_state_with_parted_buckets(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path / "data", accounts=700, state_tree_bits=4)
    found = tampered(ledger, prune(ledger, 3))
    assert (found.first_error, found.executed_from) == (None, 3)


def verdict(ledger: Ledger, change: Callable[[PlainRows], None], *, quick: bool) -> str:
    """What the command would say of the ledger after `change`."""
    try:
        found = tampered(ledger, change, quick=quick)
    except ConfigError as error:
        return str(error)
    assert not found.ok
    assert found.remedy
    return found.first_error or ""


HARMLESS = (
    # A shorter history: queries of that height say history_pruned.
    (b"u" + number(1), "history is kept one block less far back"),
    # An own vote that is gone is shown to the node by its peers at its next start, and it abstains.
    (b"c", "a vote"),
    (layout.META_VOTED, "the marker of a vote"),
    # What is known of an accepted transaction besides the ledger: its fate is `unknown` afterwards.
    (b"p", "an accepted transaction"),
    (b"j", "an ended transaction"),
    (b"f", "an ending"),
    (b"v", "evidence"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("start", "what"), HARMLESS, ids=lambda item: item if isinstance(item, str) else "")
def test_what_follows_from_no_block_may_be_gone_without_a_trace(ledger: Ledger, start: bytes, what: str) -> None:
    """Nothing on the disk tells of these rows; each has its guard elsewhere, as the comments say."""

    def remove(db: PlainRows) -> None:
        db.delete(next(db.keys(start)))

    found = tampered(ledger, remove)
    assert found.first_error is None, what


def test_a_value_exchanged_for_another_is_found(ledger: Ledger) -> None:
    def change(db: PlainRows) -> None:
        key = next(key for key in db.keys(b"s", b"t") if b"ACC-1" in key)
        db.put(key, db.get(key).replace(b"bank-a", b"bank-b"))

    found = tampered(ledger, change)
    assert (found.ok, found.blocks) == (False, 3)
    assert found.first_error
    assert found.first_error.startswith("the state: ledger_differs: a value differs")
    assert found.entry
    assert found.entry.startswith("s ")


@pytest.mark.parametrize("quick", [False, True])
def test_a_certificate_too_small_is_found(ledger: Ledger, quick: bool) -> None:
    def change(db: PlainRows) -> None:
        head = decode(db.get(b"h" + number(2)), HeadRecord, size_max=10**6)
        assert head.certificate
        fewer = msgspec.structs.replace(head.certificate, signatures=head.certificate.signatures[:2])
        db.put(b"h" + number(2), encode(msgspec.structs.replace(head, certificate=fewer)))

    found = tampered(ledger, change, quick=quick)
    assert (found.ok, found.blocks, found.transactions) == (False, 1, 1)
    assert found.first_error
    assert found.first_error.startswith("block 2: ledger_differs: the certificate")


def test_receipts_that_three_members_certified_wrongly_are_found_by_executing(ledger: Ledger) -> None:
    """Every hash, root and signature is right; only whoever executes the block sees that it does something else."""

    def change(db: PlainRows) -> None:
        head = decode(db.get(b"h" + number(3)), HeadRecord, size_max=10**6)
        body = decode(db.get(layout.body_key(3, head.digest)), BlockBody, size_max=10**6)
        record = decode(db.get(b"r" + number(3)), ReceiptsRecord, size_max=10**6)
        receipt = decode(record.receipts[0], Receipt, size_max=10**6)
        false = encode(msgspec.structs.replace(receipt, calls=(CallReceipt("invented", ()),)))
        header = msgspec.structs.replace(body.header, receipts_root=merkle_root([false]))
        message = vote_bytes(header.network, VoteKind.COMMIT, 0, 3, header.digest)
        signatures = tuple((index, VOTING_KEYS[bank].sign(message)) for index, bank in enumerate(BANKS[:3]))
        certificate = Certificate(VoteKind.COMMIT, 0, 3, header.digest, signatures)
        db.delete(layout.body_key(3, head.digest))
        db.put(layout.body_key(3, header.digest), encode(msgspec.structs.replace(body, header=header)))
        db.put(
            b"h" + number(3), encode(msgspec.structs.replace(head, digest=header.digest, certificate=certificate))
        )
        db.put(b"r" + number(3), encode(ReceiptsRecord(0, (false,))))
        for key in db.keys(b"e", b"f"):
            if key.endswith(number(3)):
                db.delete(key)
        for key in db.keys(b"c", b"d"):
            db.delete(key)

    assert tampered(ledger, change, quick=True).ok
    found = report(ledger)
    assert (found.ok, found.blocks) == (False, 2)
    assert found.first_error
    assert found.first_error.startswith("block 3: receipts_differ")


def prune(ledger: Ledger, first: int, *, keep_undo: int = 0) -> Callable[[PlainRows], None]:
    """What is left where bodies below `first` were pruned and undo records up to `keep_undo`."""

    def change(db: PlainRows) -> None:
        for height in range(1, first):
            head = decode(db.get(b"h" + number(height)), HeadRecord, size_max=10**6)
            body = decode(db.get(layout.body_key(height, head.digest)), BlockBody, size_max=10**6)
            db.put(b"k" + number(height), encode(body.header))
            db.delete(layout.body_key(height, head.digest))
            db.delete(b"r" + number(height))
        for height in range(1, keep_undo + 1):
            db.delete(b"u" + number(height))
        db.put(layout.META_FIRST, number(first))

    return change


def test_a_pruned_ledger_is_executed_from_where_undoing_leads_to(ledger: Ledger) -> None:
    found = tampered(ledger, prune(ledger, 3))
    assert found.first_error is None
    assert (found.first_block, found.executed_from, found.blocks) == (3, 3, 1)
    assert "block 3 was executed again, on the state after block 2" in found.notes[0]
    assert found.notes[1] == (
        "of the blocks below 3, 2 are here as headers alone, for they were pruned: "
        "header and certificate were checked"
    )


@pytest.mark.parametrize("quick", [True, False])
def test_bodies_below_the_first_kept_block_are_counted_and_what_was_done_with_them_is_said(
    ledger: Ledger, quick: bool
) -> None:
    """It said that their bodies are not here, and counted them; quickly it counted all headers and said nothing."""

    def change(db: PlainRows) -> None:
        prune(ledger, 2)(db)
        db.put(layout.META_FIRST, number(3))

    found = tampered(ledger, change, quick=quick)
    assert found.first_error is None
    assert (found.first_block, found.blocks, found.transactions) == (3, 2, 2)
    below = "of the blocks below 3, 1 is here"
    how = " and contents" if quick else ", signatures, contents, receipts and indexes"
    assert (
        f"{below} whole, for it was put back from an archive or is held: header, certificate{how} were checked, "
        "and it was not executed"
    ) in found.notes
    assert f"{below} as a header alone, for it was pruned: header and certificate were checked" in found.notes


def test_without_undo_records_the_report_says_that_nothing_was_executed(ledger: Ledger) -> None:
    found = tampered(ledger, prune(ledger, 3, keep_undo=3))
    assert found.first_error is None
    assert (found.first_block, found.executed_from, found.blocks) == (3, None, 1)
    assert "block 3 was checked by header, certificate" in found.notes[0]
    assert "not executed" in found.notes[0]


def test_a_wrong_undo_record_of_a_pruned_ledger_is_found_by_the_root_it_leads_to(ledger: Ledger) -> None:
    def change(db: PlainRows) -> None:
        prune(ledger, 3)(db)
        undo = decode(db.get(b"u" + number(3)), layout.UndoRecord, size_max=10**6)
        (key, _), *rest = undo.before
        db.put(b"u" + number(3), encode(layout.UndoRecord(((key, encode("other")), *rest))))

    found = tampered(ledger, change)
    assert found.first_error
    assert "it does not lead back to the root of the block before" in found.first_error


@pytest.mark.slow
async def test_a_ledger_that_a_node_has_pruned_is_right_with_members_that_changed_and_blocks_that_are_held(
    tmp_path: Path,
) -> None:
    pruned = ArchivedLedger(tmp_path / "data")
    pruned.open_accounts("C-1", "C-2", "C-3", funds=1_000)
    for height in range(2, 31):
        pruned.settle(pruned.transaction("bank-a", transfer("C-1", "C-3" if height == 7 else "C-2", 1, height)))
    pruned.empty(10)
    policy = Retention(blocks=15, step_blocks=5, archive_dir=tmp_path / "archive", hold=("C-3",))
    await prune_as_a_node_does(pruned.store, policy)
    first = pruned.store.first_block
    pruned.close()
    depths: tuple[tuple[Depth, int | None], ...] = (("quick", None), ("rows", None), ("whole", first))
    for depth, executed_from in depths:
        database = LevelDatabase(pruned.path)
        scratch = tmp_path / depth
        found = verify_rows(database, pruned.network, scratch, lambda done, total: None, depth)
        database.close()
        assert found.first_error is None
        assert (found.first_block, found.executed_from) == (first, executed_from)
        assert found.blocks == 40 - first + 1 + 2
    assert first > 10


@pytest.mark.parametrize("letter", [b"h", b"k"])
def test_a_pruned_header_is_still_judged(ledger: Ledger, letter: bytes) -> None:
    def change(db: PlainRows) -> None:
        prune(ledger, 3)(db)
        db.delete(letter + number(2))

    found = tampered(ledger, change, quick=True)
    assert not found.ok


def test_a_damaged_file_of_the_database_is_an_answer_and_no_crash(ledger: Ledger) -> None:
    ledger.close()
    db = PlainRows(ledger.path)
    db.database.compact_range()
    db.close()
    file = max(ledger.path.glob("*.ldb"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 0xFF
    file.write_bytes(data)
    found = report(ledger)
    assert not found.ok
    assert found.first_error
    assert "store_corrupt" in found.first_error
    assert found.remedy
