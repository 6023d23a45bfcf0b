"""Whatever was damaged on disk is right again, proven; and where it cannot be, nothing has changed."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from consensus.amnesia import HEIGHT_MAX
from consensus.codec import decode
from node.archive import archive_head, archived_blocks, write_archive
from node.archive.shelf import ArchiveShelf
from node.cli.main import main
from node.config import NodeConfig, dump_network, dump_node
from node.errors import CATALOGUE, ConfigError, StoreError
from node.ledger import CertifiedBlock, HeadRecord
from node.repair import ArchiveSource, Repair, RepairReport
from node.repair.report import KIND_NAMES
from node.store import LevelDatabase, Store, layout
from node.store.layout import number
from node.verification import LedgerReport, verify_directory, verify_rows
from node.verification.own import LETTERS
from tests.node.plain_rows import PlainRows
from tests.node.signed_ledger import make_ledger

STATE_KEY = b"s"


class World:
    """A directory with a ledger of three blocks that was closed, and a whole copy of it that plays the peers."""

    name = "a peer"

    def __init__(self, base: Path, accounts: int = 2, **parameters: int) -> None:
        ledger = make_ledger(base / "node" / "data", accounts, **parameters)
        self.network = ledger.network
        ledger.close()
        self.data = ledger.path
        shutil.copytree(self.data, base / "whole")
        self.peer = Store(base / "whole", self.network.network_id, self.network.genesis_hash)
        self.node = NodeConfig("bank-a", self.data, base, base / "network.toml", "127.0.0.1:0", "127.0.0.1:0")
        self.answers = True

    def blocks(self, height: int) -> Sequence[CertifiedBlock]:
        """The whole copy's block, after a liar's."""
        lie = self.peer.block(height % 3 + 1)
        return [lie, self.peer.block(height)] if self.answers else [lie]

    def receipts(self, height: int) -> Sequence[tuple[bytes, ...]]:
        """The whole copy's receipts, after a liar's."""
        return [(b"lie",), self.peer.receipts(height).receipts] if self.answers else [(b"lie",)]

    def account(self) -> str:
        """What it is that failed."""
        return f"{self.name} had none that is right"

    def close(self) -> None:
        """Nothing was opened here."""

    def change(self, change: Callable[[PlainRows], None]) -> None:
        """Rows of the data directory are changed."""
        db = PlainRows(self.data)
        change(db)
        db.close()

    def rows(self) -> dict[bytes, bytes]:
        """All rows of the data directory."""
        db = PlainRows(self.data)
        try:
            return db.items()
        finally:
            db.close()

    def repair(self, *, join: bool = False) -> RepairReport:
        return Repair(self.node, self.network, [self], lambda what, done, total: None).run(join=join)

    def verify(self) -> LedgerReport:
        database = LevelDatabase(self.data)
        try:
            scratch = self.data.with_name("verify")
            return verify_rows(database, self.network, scratch, lambda done, total: None)
        finally:
            database.close()
            shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.peer.close()


def first(db: PlainRows, start: bytes) -> bytes:
    """The first row from `start` on; of bodies that of block 2."""
    if start == b"b":
        return layout.body_key(2, decode(db.get(b"h" + number(2)), HeadRecord, size_max=10**6).digest)
    key: bytes = next(db.keys(start))
    return key


def spoil(start: bytes) -> Callable[[PlainRows], None]:
    """The first row from `start` on has a byte more in its middle."""

    def change(db: PlainRows) -> None:
        key = first(db, start)
        value = db.get(key)
        db.put(key, value[: len(value) // 2] + b"\x01" + value[len(value) // 2 :])

    return change


def remove(start: bytes) -> Callable[[PlainRows], None]:
    return lambda db: db.delete(first(db, start))


def add(key: bytes, value: bytes = b"x") -> Callable[[PlainRows], None]:
    return lambda db: db.put(key, value)


def all_of(letter: bytes) -> Callable[[PlainRows], None]:
    """Every row of the kind is gone."""

    def change(db: PlainRows) -> None:
        for key in db.keys(letter, bytes((letter[0] + 1,))):
            db.delete(key)

    return change


# What is damaged, and whether exactly the rows that were there before come back.
DAMAGES: tuple[tuple[str, Callable[[PlainRows], None], bool], ...] = (
    ("a body changed", spoil(b"b"), True),
    ("all bodies lost", all_of(b"b"), False),
    ("a head record changed", spoil(b"h" + number(2)), True),
    ("a head record lost", remove(b"h" + number(1)), True),
    ("genesis lost", remove(b"h" + number(0)), True),
    ("a head record beyond", add(b"h" + number(4)), True),
    ("receipts changed", spoil(b"r"), True),
    ("all receipts lost", all_of(b"r"), True),
    ("receipts beyond", add(b"r" + number(9)), True),
    ("an index row changed", spoil(b"x"), True),
    ("both indexes lost", lambda db: (all_of(b"x")(db), all_of(b"e")(db))[0], True),
    ("an odd index row", add(b"x" + bytes(32), layout.location(1, 0)), True),
    ("an odd topic", add(layout.topic_prefix("nobody") + number(1), bytes(4)), True),
    ("a changed topic", spoil(b"e"), True),
    ("a value changed", spoil(STATE_KEY), True),
    ("all values lost", all_of(b"s"), True),
    ("an odd value", add(b"s\x02odd"), True),
    ("a bucket changed", spoil(b"t"), True),
    ("the tree lost", all_of(b"t"), True),
    ("the requests to forget lost", all_of(b"q"), True),
    ("an odd request", add(b"q" + number(1) + b"odd"), True),
    ("an undo record in the middle", remove(b"u" + number(2)), False),
    ("an odd undo record", add(b"u" + number(7)), True),
    ("a header of no block", add(b"k" + number(7)), True),
    ("a change of members that was none", add(b"l" + number(2), b""), True),
    ("a mark of a block in work", spoil(b"w"), False),
    ("the body of a block in work", lambda db: db.put(b"b" + first(db, b"w")[1:], b"x"), False),
    ("evidence changed", spoil(b"v"), False),
    ("a journaled transaction changed", spoil(b"p"), False),
    ("an ending changed", spoil(b"f"), False),
    ("an ended transaction changed", spoil(b"j"), False),
    ("a marker lost", remove(layout.META_FORMAT), True),
    ("an odd marker", add(b"mystery"), True),
    ("rows of no kind", add(b"zebra"), True),
)


@pytest.mark.slow
@pytest.mark.parametrize(("change", "same"), [item[1:] for item in DAMAGES], ids=[item[0] for item in DAMAGES])
def test_what_was_damaged_is_right_again(world: World, change: Callable[[PlainRows], None], same: bool) -> None:
    before = world.rows()
    world.change(change)
    damaged = world.rows()
    assert damaged != before
    report = world.repair()
    assert report.outcome == "repaired", report.reason
    assert report.did
    if same:
        assert world.rows() == before
    assert world.verify().first_error is None
    assert report.kept_at
    kept = PlainRows(report.kept_at)
    assert kept.items() == damaged
    kept.close()
    assert sorted(path.name for path in world.data.parent.iterdir()) == ["data", "data.damaged-1"]


@pytest.mark.parametrize(
    "change",
    [spoil(b"d"), all_of(b"d"), add(b"d70"), lambda db: (all_of(b"s")(db), add(b"d70")(db))[0]],
    ids=["changed", "lost", "odd", "and no values"],
)
def test_parted_buckets_of_the_state_tree_are_right_again(
    tmp_path: Path, change: Callable[[PlainRows], None]
) -> None:
    world = World(tmp_path, accounts=700, state_tree_bits=4)
    before = world.rows()
    world.change(change)
    assert world.repair().outcome == "repaired"
    assert world.rows() == before
    assert any(key[:1] == b"d" for key in before)
    world.peer.close()


def test_votes_are_kept_as_they_are_when_they_can_be_read(world: World) -> None:
    before = world.rows()
    world.change(spoil(b"b"))
    world.change(all_of(b"s"))
    report = world.repair()
    assert (report.outcome, report.abstains) == ("repaired", False)
    assert report.fetched == 1
    assert world.rows() == before
    assert "executing 3 blocks from genesis" in " ".join(report.did)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        spoil(b"c"),
        add(layout.META_NEVER_VOTED, b"1"),
        remove(b"h" + number(3)),
        add(layout.META_HEAD, number(1)),
    ],
    ids=["a record", "a contradiction", "the last block's record", "the head's height"],
)
def test_whoever_may_have_lost_votes_looks_like_one_without_memory(
    world: World, change: Callable[[PlainRows], None]
) -> None:
    world.change(change)
    report = world.repair()
    assert report.outcome == "repaired", report.reason
    assert report.abstains
    assert "abstains" in " ".join(report.did)
    store = Store(world.data, world.network.network_id, world.network.genesis_hash)
    memory = store.memory()
    store.close()
    assert (memory.never_voted, memory.voted, memory.abstain_until, memory.records) == (False, False, 0, ())
    assert world.verify().first_error is None


@pytest.mark.slow
def test_a_key_that_was_seen_twice_stays_silent_even_then(world: World) -> None:
    world.change(add(layout.META_ABSTAIN, number(HEIGHT_MAX)))
    world.change(spoil(b"c"))
    assert world.repair().abstains
    assert world.rows()[layout.META_ABSTAIN] == number(HEIGHT_MAX)


@pytest.mark.slow
@pytest.mark.parametrize("start", [b"b", b"r", b"h" + number(2)], ids=["body", "receipts", "head record"])
def test_nothing_changes_where_nobody_can_prove_what_is_missing(world: World, start: bytes) -> None:
    world.answers = False
    world.change(remove(start))
    before = world.rows()
    report = world.repair()
    assert (report.outcome, report.kept_at) == ("not_repaired", None)
    assert report.reason
    assert report.reason.startswith("repair_impossible: nobody gave")
    assert world.rows() == before
    assert [path.name for path in world.data.parent.iterdir()] == ["data"]


@pytest.mark.slow
def test_what_cannot_be_proven_is_fetched_anew_by_the_node_and_its_votes_go_on(world: World) -> None:
    world.answers = False
    votes = {key: value for key, value in world.rows().items() if key[:1] in (b"c", b"v", b"p")}
    world.change(remove(b"b"))
    report = world.repair(join=True)
    assert (report.outcome, report.height, report.abstains) == ("repaired", 0, True)
    rows = world.rows()
    assert {key: value for key, value in rows.items() if key[:1] in (b"c", b"v", b"p")} == votes
    assert rows[layout.META_VOTED] == b"1"
    assert not any(key[:1] in (b"h", b"s", b"b") for key in rows)
    store = Store(world.data, world.network.network_id, world.network.genesis_hash)
    assert not store.initialised
    store.close()


def test_a_directory_that_waits_for_its_ledger_is_not_called_damaged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verify said "the store holds no head", and a second repair gave the kept votes up."""
    monkeypatch.setattr("node.verification.directory.load_trusted", lambda node, anchors: world.network)
    world.answers = False
    world.change(remove(b"b"))
    told = world.repair(join=True).did
    assert not [sentence for sentence in told if sentence.startswith("rows made right again")]
    rows = world.rows()
    for deed in (lambda: verify_directory(world.node), world.repair):
        with pytest.raises(ConfigError, match="joins at its next start") as refused:
            deed()
        assert (refused.value.code, refused.value.exit_code) == ("ledger_not_here", 2)
    assert world.rows() == rows
    assert rows[layout.META_VOTED] == b"1"
    # With a row of the ledger in it, the missing head is damage.
    world.change(add(b"r" + number(1)))
    assert "holds no head" in str(world.verify().first_error)


def test_votes_that_were_given_up_are_not_said_to_be_kept(world: World) -> None:
    world.answers = False
    world.change(lambda db: (remove(b"b")(db), spoil(b"c")(db))[0])
    (world.data / "CURRENT").unlink()
    report = world.repair(join=True)
    assert report.abstains
    assert "its votes is kept" not in " ".join(report.did)


def test_votes_that_nobody_could_read_are_not_said_to_be_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy could not be opened at all: the sentence said that the votes are kept, and none was."""

    def refuse(copy: Path) -> None:
        for file in copy.iterdir():
            file.unlink()
        (copy / "CURRENT").write_text("nothing")
        raise StoreError("store_corrupt", "no table can be read")

    monkeypatch.setattr("node.repair.directory.salvage", refuse)
    (world.data / "CURRENT").unlink()
    report = world.repair(join=True)
    told = " ".join(report.did)
    assert (report.outcome, report.abstains) == ("repaired", True)
    assert "its votes is kept" not in told
    assert "consensus records could not be read: the node abstains" in told
    assert not any(key[:1] == b"c" or key == layout.META_VOTED for key in world.rows())


def test_a_directory_without_votes_is_not_said_to_remember_them(world: World) -> None:
    world.answers = False
    world.change(lambda db: (remove(b"b")(db), all_of(b"c")(db))[0])
    world.change(lambda db: db.delete(layout.META_VOTED))
    told = " ".join(world.repair(join=True).did)
    assert "its votes is kept" not in told
    assert "no record of its votes was here: the node abstains" in told


def test_a_repair_that_fails_says_what_to_do_next(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.answers = False
    world.change(remove(b"b"))
    report = world.repair()
    assert (report.outcome, report.remedy) == ("not_repaired", CATALOGUE["repair_impossible"].action)
    (world.node.network_file).write_text(dump_network(world.network))
    world.node.network_file.with_name("node.toml").write_text(dump_node(world.node))
    assert main(["repair", "--offline", "--dir", str(world.node.network_file.parent)]) == 3
    told = " ".join(capsys.readouterr().out.split())
    assert "what to do Start the other members and try again" in told


def test_the_kinds_of_rows_are_named_in_words(world: World) -> None:
    world.change(lambda db: (spoil(b"r")(db), spoil(b"x")(db), add(b"e" + bytes(12), bytes(4))(db))[0])
    told = world.repair().did
    assert "rows made right again (receipts): 1" in told
    assert "rows made right again (index of transactions): 1" in told
    assert "rows that belong to no block removed (index of events): 1" in told
    assert KIND_NAMES.keys() == {chr(letter) for letter in LETTERS}


def test_a_snapshot_that_is_being_taken_over_is_no_damage(world: World) -> None:
    world.change(lambda db: (add(layout.META_ADOPTING)(db), all_of(b"s")(db))[0])
    with pytest.raises(ConfigError, match="ledger_not_here: a snapshot is being taken over"):
        world.verify()


@pytest.mark.slow
def test_a_whole_directory_is_left_alone(world: World) -> None:
    report = world.repair()
    assert (report.outcome, report.height, report.did) == ("nothing_wrong", 3, ())
    assert [path.name for path in world.data.parent.iterdir()] == ["data"]


def test_a_damaged_table_is_read_as_far_as_it_goes_and_the_rest_is_fetched(world: World) -> None:
    db = PlainRows(world.data)
    db.database.compact_range()
    db.close()
    before = world.rows()
    file = max(world.data.glob("*.ldb"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 0xFF
    file.write_bytes(data)
    report = world.repair()
    assert report.outcome == "repaired", report.reason
    assert report.abstains
    assert "files of the database were damaged" in " ".join(report.did)
    assert world.verify().first_error is None
    after = world.rows()
    ledger = {key: value for key, value in before.items() if key[:1] in b"hrxestq"}
    assert {key: value for key, value in after.items() if key[:1] in b"hrxestq"} == ledger


def test_a_ledger_without_its_current_file_is_told_and_put_together_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both commands said that there was no ledger and to start the node, which then wiped it."""
    monkeypatch.setattr("node.verification.directory.load_trusted", lambda node, anchors: world.network)
    ledger = {key: value for key, value in world.rows().items() if key[:1] in b"bhrxestq"}
    (world.data / "CURRENT").unlink()
    told = verify_directory(world.node).first_error
    assert told
    assert "CURRENT is missing" in told
    report = world.repair()
    assert (report.outcome, report.height, report.abstains) == ("repaired", 3, True), report.reason
    assert "CURRENT is missing" in " ".join(report.did)
    assert {key: value for key, value in world.rows().items() if key[:1] in b"bhrxestq"} == ledger


def test_a_ledger_of_which_nothing_is_left_is_not_called_repaired(world: World) -> None:
    """The outcome was `repaired` at height 0, as if nothing had been lost."""
    db = PlainRows(world.data)
    db.database.compact_range()
    db.close()
    for file in (*world.data.glob("*.ldb"), *world.data.glob("*.log")):
        file.write_bytes(bytes(file.stat().st_size))
    report = world.repair()
    assert (report.outcome, report.height, report.abstains) == ("ledger_lost", 0, True), report.reason
    assert "the ledger that was here is lost" in " ".join(report.did)
    assert report.kept_at


def test_tables_that_the_manifest_does_not_name_are_not_written_over_through_the_copy(world: World) -> None:
    """LevelDB gives their numbers to its next tables: where the copy's were links, these were emptied."""
    world.answers = False
    world.change(spoil(b"r"))
    newest = max(int(file.stem.removeprefix("MANIFEST-")) for file in world.data.iterdir() if file.stem.isdigit())
    for leftover in range(newest + 1, newest + 30):
        (world.data / f"{leftover:06d}.ldb").write_bytes(b"what a broken restore left here")
    before = {file.name: file.read_bytes() for file in world.data.iterdir()}
    assert world.repair().outcome == "not_repaired"
    assert {file.name: file.read_bytes() for file in world.data.iterdir()} == before


@pytest.mark.slow
def test_archives_on_the_disk_give_what_no_peer_has(world: World, tmp_path: Path) -> None:
    view, network = world.peer.snapshot(), world.network
    (tmp_path / "archive").mkdir()
    path = ArchiveShelf(tmp_path / "archive").path_of(1, 3)
    head = archive_head(view, network.network_id, network.genesis_hash, 1)
    write_archive(path, network.network_id, network.genesis_hash, archived_blocks(view, 1, 3), head=head)
    world.answers = False
    before = world.rows()
    world.change(all_of(b"b"))
    world.change(all_of(b"r"))
    archives = ArchiveSource(tmp_path / "archive")
    report = Repair(world.node, network, [world, archives], lambda what, done, total: None).run()
    archives.close()
    assert report.outcome == "repaired", report.reason
    assert "archives on this disk" in " ".join(report.did)
    after = world.rows()
    assert {key: value for key, value in after.items() if key[:1] == b"r"} == {
        key: value for key, value in before.items() if key[:1] == b"r"
    }
    assert world.verify().first_error is None


@pytest.mark.slow
def test_a_node_that_runs_is_not_repaired(world: World) -> None:
    """Another process holds the data: LevelDB's lock is one between processes."""
    code = "import plyvel, sys; db = plyvel.DB(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(world.data)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        with pytest.raises(ConfigError, match="data_dir_in_use"):
            world.repair()
        process.communicate("")
