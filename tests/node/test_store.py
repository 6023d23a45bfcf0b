"""The store: what it promised to keep is there after it was opened again, and damage is never taken for data.

More than 500 lines because all promises of the one class are judged side by side.
"""

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import plyvel
import pytest
import zstandard

from consensus.amnesia import HEIGHT_MAX
from consensus.effects import (
    Memory,
    NewViewRecord,
    PreparedRecord,
    Record,
    ViewChangeRecord,
    VoteRecord,
)
from consensus.messages import Certificate, NewView, ViewChange, Vote, VoteEquivocation, VoteKind
from node.errors import ConfigError, HansaError, NotFound, StoreError
from node.ledger import Ending
from node.state import ExecutedBlock
from node.store import LevelDatabase, Store, layout, reading
from node.store.store import ENDINGS_MAX
from tests.node.ledger_world import Ledger, certificate, decoded, network, transfer
from tests.node.plain_rows import PlainRows

SIGNATURE = bytes(64)
BOMB = b"\x28\xb5\x2f\xfd\xe0" + (10**12).to_bytes(8, "little")
"""The beginning of a zstd frame that says how much memory it wants."""


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "data")


def reopened(ledger: Ledger) -> Ledger:
    ledger.close()
    return Ledger(ledger.path, ledger.network)


def vote(height: int, view: int, kind: VoteKind = VoteKind.PREPARE, digest: bytes = bytes(32)) -> VoteRecord:
    return VoteRecord(Vote(kind, view, height, digest, 0, SIGNATURE), False, None)


def prepared(height: int, view: int) -> PreparedRecord:
    return PreparedRecord(Certificate(VoteKind.PREPARE, view, height, bytes(32), ()))


def asked(height: int, view: int) -> ViewChangeRecord:
    return ViewChangeRecord(ViewChange(height, view, None, None, 0, SIGNATURE))


def block(ledger: Ledger, *numbers: int) -> ExecutedBlock:
    calls = [transfer("A", "B", 1, number) for number in numbers]
    executed = ledger.build(ledger.transaction("bank-a", *calls))
    assert executed is not None
    return executed


# --- opening ---------------------------------------------------------------------------------------------


def test_a_second_node_on_the_same_directory_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match="data_dir_in_use") as caught:
        Ledger(ledger.path, ledger.network)
    assert caught.value.exit_code == 2


def test_the_data_of_another_network_is_refused_and_left_alone(ledger: Ledger) -> None:
    ledger.settle(ledger.transaction("bank-a"))
    ledger.close()
    other = network("other")
    with pytest.raises(ConfigError, match="data_of_another_network"):
        Store(ledger.path, other.network_id, other.genesis_hash)
    assert Ledger(ledger.path, ledger.network).executor.head.height == 1


def test_an_unknown_format_is_refused(ledger: Ledger) -> None:
    ledger.close()
    with_raw(ledger.path, lambda db: db.put(b"mformat", b"99"))
    with pytest.raises(ConfigError, match="data_format_unknown"):
        Ledger(ledger.path, ledger.network)


def test_a_path_that_cannot_be_a_directory_is_the_operators_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="data_dir_unusable"):
        Ledger(tmp_path / "file" / "data")
    with pytest.raises(ConfigError, match="data_dir_unusable"):
        Ledger(tmp_path / "file")


def test_foreign_entries_are_not_taken_for_an_empty_store(tmp_path: Path) -> None:
    with_raw(tmp_path / "data", lambda db: db.put(b"hello", b"world"))
    with pytest.raises(StoreError, match="store_corrupt"):
        Ledger(tmp_path / "data")


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("compacted", [True, False], ids=["tables", "a log alone"])
@pytest.mark.parametrize("current", [None, b"", b"MANIF"], ids=["missing", "empty", "cut"])
def test_a_ledger_without_its_current_file_is_refused_and_not_wiped(
    ledger: Ledger, current: bytes | None, compacted: bool
) -> None:
    """LevelDB took the directory for a new one, deleted every table, and the node began at genesis."""
    ledger.settle(ledger.transaction("bank-a"))
    ledger.close()
    if compacted:
        with_raw(ledger.path, lambda db: db.database.compact_range())
    whole = (ledger.path / "CURRENT").read_bytes()
    if current is None:
        (ledger.path / "CURRENT").unlink()
    else:
        (ledger.path / "CURRENT").write_bytes(current)
    before = contents(ledger.path)
    with pytest.raises(StoreError, match=r"store_corrupt.*CURRENT is (missing|damaged)"):
        Ledger(ledger.path, ledger.network)
    assert contents(ledger.path) == before
    (ledger.path / "CURRENT").write_bytes(whole)
    assert Ledger(ledger.path, ledger.network).executor.head.height == 1


def test_a_crash_while_an_empty_database_was_made_is_no_damage(tmp_path: Path) -> None:
    """Then a first MANIFEST lies there without CURRENT, and nothing was ever written."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "MANIFEST-000001").write_bytes(b"begun")
    LevelDatabase(tmp_path / "data").close()


def with_raw(path: Path, change: "Callable[[PlainRows], object]") -> None:
    db = PlainRows(path)
    change(db)
    db.close()


# --- blocks ----------------------------------------------------------------------------------------------


def test_everything_of_a_block_is_there_after_a_restart(ledger: Ledger) -> None:
    ledger.open_accounts("A", "B", funds=100)
    executed = block(ledger, 1, 2)
    ledger.store.apply(executed, certificate(executed), start_view=3)
    again = reopened(ledger)
    head = again.store.head
    assert (head.height, head.digest, head.start_view) == (2, executed.digest, 3)
    assert head.certificate == certificate(executed)
    assert head.members == executed.members
    assert again.store.block(2).body == executed.body
    assert again.store.receipts(2).receipts == executed.receipts
    [tx_id] = executed.tx_ids
    assert again.store.locate(tx_id) == (2, 0)
    assert again.store.receipt(2, 0).tx_id == tx_id
    assert again.store.transaction(tx_id) == executed.body.transactions[0]
    assert again.executor.head.state_root == executed.header.state_root
    assert again.balance("B") == 102


def test_only_the_next_block_with_its_own_certificate_is_applied(ledger: Ledger) -> None:
    first, rival = block(ledger, 1), block(ledger, 2)
    with pytest.raises(ValueError, match="certificate"):
        ledger.store.apply(first, certificate(rival), 0)
    ledger.decide(first)
    for late in (first, rival):
        with pytest.raises(ValueError, match="does not follow"):
            ledger.store.apply(late, certificate(late), 0)
    assert ledger.store.head.digest == first.digest


def test_what_is_not_there_is_not_found(ledger: Ledger) -> None:
    ledger.settle(ledger.transaction("bank-a"))
    for height in (-1, 0, 2):
        with pytest.raises(NotFound, match="block_not_found"):
            ledger.store.block(height)
        with pytest.raises(NotFound, match="block_not_found"):
            ledger.store.receipts(height)
    assert ledger.store.locate(bytes(32)) is None
    assert ledger.store.transaction(bytes(32)) is None


def test_a_view_does_not_move_while_blocks_are_applied(ledger: Ledger) -> None:
    ledger.open_accounts("A", "B", funds=100)
    view = ledger.store.snapshot()
    ledger.decide(block(ledger, 1))
    query = ledger.executor.queries.answer
    assert query(view, "settlement", "balance", {"account": "B"})["balance"] == 100
    assert view.head.height == 1
    assert not view.events("settlement/account/B", 2, 9, 10)
    assert ledger.balance("B") == 101


def test_events_are_found_by_topic_in_their_order_and_within_bounds(ledger: Ledger) -> None:
    ledger.open_accounts("A", "B", "C", funds=100)
    for number in range(3):
        bundle = ledger.transaction(
            "bank-a", transfer("A", "B", 1, 10 * number), transfer("A", "B", 2, 10 * number + 1)
        )
        ledger.settle(bundle, ledger.transaction("bank-a", transfer("A", "C", 5, 10 * number + 2)))
    found = ledger.store.events("settlement/account/B", 2, 99, 100)
    assert [(height, event.data["amount"]) for height, event in found] == [
        (2, 1),
        (2, 2),
        (3, 1),
        (3, 2),
        (4, 1),
        (4, 2),
    ]
    assert ledger.store.events("settlement/account/B", 3, 3, 100) == found[2:4]
    assert ledger.store.events("settlement/account/B", 2, 99, 3) == found[:3]
    assert ledger.store.events("settlement/account/B", 2, 99, 0) == []
    assert len(ledger.store.events("settlement/account/C", 2, 99, 100)) == 3
    assert ledger.store.events("settlement/account/", 0, 99, 100) == []
    assert ledger.store.events("x" * 5_000, 0, 99, 100) == []


# --- the past --------------------------------------------------------------------------------------------


def test_past_states_are_complete(ledger: Ledger) -> None:
    ledger.open_accounts("A", "B", funds=100)
    states = []
    for number in range(5):
        if number == 2:
            ledger.open_accounts("X")
        ledger.decide(block(ledger, number))
        view = ledger.store.snapshot()
        states.append((view.head, dict(view.scan(b"", b"\xff"))))
    newest = ledger.store.snapshot()
    for head, state in states:
        past = newest.at(head.height)
        assert past.head == head
        assert dict(past.scan(b"", b"\xff")) == state
        assert {key: past.get(key) for key in states[-1][1]} == {key: state.get(key) for key in states[-1][1]}
    assert newest.at(0).head.digest == ledger.network.genesis_hash


def test_heights_beyond_history_are_refused_clearly(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "data", history_blocks=2)
    for _ in range(5):
        ledger.settle(ledger.transaction("bank-a"))
    view = ledger.store.snapshot()
    assert [view.at(height).head.height for height in (3, 4, 5)] == [3, 4, 5]
    with pytest.raises(NotFound, match="history_pruned"):
        view.at(2)
    for height in (-1, 6):
        with pytest.raises(NotFound, match="block_not_found"):
            view.at(height)


# --- consensus records -----------------------------------------------------------------------------------


def test_a_new_member_has_never_voted_until_its_first_record(ledger: Ledger) -> None:
    assert ledger.store.memory() == Memory(never_voted=True, voted=False, abstain_until=0, records=())
    ledger.store.put_records([vote(1, 0)])
    again = reopened(ledger)
    assert again.store.memory() == Memory(never_voted=False, voted=True, abstain_until=0, records=(vote(1, 0),))


def test_without_the_marker_an_empty_store_has_lost_its_memory(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "data", never_voted=False)
    assert not ledger.store.memory().never_voted
    assert not ledger.store.memory().voted


def test_records_come_back_in_order_and_the_highest_view_stands(ledger: Ledger) -> None:
    new_view = NewViewRecord(NewView(1, 2, (), 0, SIGNATURE))
    put: list[Record] = [
        vote(1, 0), prepared(1, 0), vote(1, 0, VoteKind.COMMIT), asked(1, 1), asked(1, 2), new_view, vote(1, 2),
        prepared(1, 2), asked(1, 1), prepared(1, 1),
    ]  # fmt: skip
    for record in put:
        ledger.store.put_records([record])
    expected = (vote(1, 0), vote(1, 0, VoteKind.COMMIT), asked(1, 2), new_view, vote(1, 2), prepared(1, 2))
    assert ledger.store.memory().records == expected
    assert reopened(ledger).store.memory().records == expected


def test_the_promise_to_abstain_only_grows(ledger: Ledger) -> None:
    ledger.store.put_records([], abstain_until=9)
    ledger.store.put_records([], abstain_until=4)
    memory = reopened(ledger).store.memory()
    assert memory.abstain_until == 9
    assert memory.never_voted, "a promise is no vote"


def test_a_voted_body_outlives_a_crash_and_only_the_decided_one_stays(ledger: Ledger) -> None:
    one, rival = block(ledger, 1), block(ledger, 2)
    for executed in (one, rival):
        ledger.store.put_records([vote(1, 0, digest=executed.digest)], {executed.digest: executed.body})
    again = reopened(ledger)
    assert again.store.body(1, one.digest) == one.body
    assert again.store.body(1, rival.digest) == rival.body
    again.follow(one)
    assert again.store.body(1, one.digest) == one.body
    assert again.store.body(1, rival.digest) is None
    assert again.store.memory().records == ()
    again = reopened(again)
    assert again.store.memory() == Memory(never_voted=False, voted=True, abstain_until=0, records=())
    again.store.put_records([vote(1, 9)], {rival.digest: rival.body})
    assert again.store.memory().records == (), "heights that are decided take no records"
    assert again.store.body(1, rival.digest) is None


def test_evidence_is_kept_once(ledger: Ledger) -> None:
    proof = VoteEquivocation(vote(1, 0).vote, vote(1, 0, digest=b"x" * 32).vote)
    other = VoteEquivocation(vote(2, 0).vote, vote(2, 0, digest=b"x" * 32).vote)
    assert [ledger.store.put_evidence("bank-b", item) for item in (proof, proof, other)] == [True, False, True]
    kept = [(record.member, record.evidence) for record in reopened(ledger).store.evidence()]
    assert kept == [("bank-b", proof), ("bank-b", other)]


# --- accepted transactions -------------------------------------------------------------------------------


def test_an_accepted_transaction_is_kept_until_it_is_final_or_ended(ledger: Ledger) -> None:
    items = [ledger.transaction("bank-a") for _ in range(3)]
    ledger.store.put_pending([(item.tx_id, item.data) for item in items])
    again = reopened(ledger)
    assert sorted(again.store.pending()) == sorted(item.data for item in items)
    again.settle(items[0])
    ending = Ending("expired", "expired", 1)
    again.store.end_pending({items[1].tx_id: ending})
    last = reopened(again)
    assert last.store.pending() == [items[2].data]
    assert last.store.ending(items[1].tx_id) == ending
    assert last.store.ending(items[2].tx_id) is None
    assert last.store.transaction(items[2].tx_id) == items[2].data


def test_endings_are_bounded(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ENDINGS_MAX == 100_000
    monkeypatch.setattr("node.store.store.ENDINGS_MAX", 3)
    names = [bytes((number,)) * 32 for number in range(5)]
    for name in names:
        ledger.store.end_pending({name: Ending("dropped", "request_conflict", 1)})
    assert [ledger.store.ending(name) is not None for name in names] == [False, False, True, True, True]


# --- damage ----------------------------------------------------------------------------------------------


def test_an_altered_block_is_noticed(ledger: Ledger) -> None:
    ledger.open_accounts("A", "B", funds=100)
    executed = block(ledger, 1)
    ledger.decide(executed)
    ledger.close()
    key = layout.body_key(executed.height, executed.digest)

    def alter(db: PlainRows) -> None:
        db.put(key, db.get(key).replace(b"UTC", b"UTC").replace(b"bank-a", b"bank-b", 1))

    with_raw(ledger.path, alter)
    with pytest.raises(StoreError, match="store_corrupt"):
        Ledger(ledger.path, ledger.network).store.block(2)


@pytest.mark.parametrize(
    "found",
    [b"", b"no frame at all", zstandard.compress(bytes(1000))[:-3], zstandard.compress(b"a") + b"more", BOMB],
    ids=["empty", "not compressed", "cut", "with a tail", "a terabyte"],
)
def test_what_is_not_compressed_as_it_was_written_is_damage(ledger: Ledger, found: bytes) -> None:
    executed = block(ledger, 1)
    ledger.decide(executed)
    ledger.close()
    with_raw(ledger.path, lambda db: db.database.put(b"r" + layout.number(1), found))
    again = reopened(ledger)
    with pytest.raises(StoreError, match="store_corrupt: a compressed row"):
        again.store.receipts(1)
    with pytest.raises(StoreError, match="store_corrupt: a compressed row"):
        list(again.store._database.scan(b"", b"\xff"))
    assert again.store.block(1).body == executed.body


def test_bodies_receipts_and_undo_records_take_less_room_than_they_say(ledger: Ledger) -> None:
    ledger.open_accounts("A", "B", funds=100)
    ledger.decide(block(ledger, *range(1, 60)))
    wanted = dict(ledger.store._database.scan(b"", b"\xff"))
    ledger.close()
    stored: dict[bytes, bytes] = {}
    with_raw(ledger.path, lambda db: stored.update(db.database.iterator()))
    assert {key for key, value in wanted.items() if stored[key] != value} == {
        key for key in wanted if key[:1] in (b"b", b"r", b"u")
    }
    for letter in b"bru":
        sizes = [(len(stored[key]), len(value)) for key, value in wanted.items() if key[0] == letter]
        small, large = max(sizes)
        assert 2 * small < large, chr(letter)


def test_a_header_is_read_without_the_transactions_of_its_block(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proof takes a hundred thousand headers: checking every block behind them would take an hour."""
    ledger.decide(block(ledger, 1, 2, 3))
    store, height = ledger.store, ledger.store.head.height
    wanted = store.block(height).body.header

    def checked(*_: object) -> bytes:
        raise AssertionError("the transactions were looked at")

    monkeypatch.setattr(reading, "content_root", checked)
    assert store.header(height) == wanted
    monkeypatch.undo()

    key = layout.body_key(height, store.head.digest)
    data = store._database.get(key)
    assert data is not None
    parent = wanted.parent
    for damaged in (data.replace(parent, bytes(32), 1), data[:40], b"\xc1", b"\x93\x91" + data[1:], b""):
        store._database.write([(key, damaged)])
        with pytest.raises(StoreError, match="store_corrupt: the header of block"):
            store.header(height)
    store._database.write([(key, None)])
    with pytest.raises(StoreError, match=r"store_corrupt: block .* is missing its header"):
        store.header(height)


def test_a_body_under_another_height_than_its_own_is_noticed(ledger: Ledger) -> None:
    executed = block(ledger, 1)
    ledger.decide(executed)
    database, digest = ledger.store._database, executed.digest
    database.write([(layout.body_key(9, digest), database.get(layout.body_key(1, digest)))])
    with pytest.raises(StoreError, match="differs from its hash"):
        ledger.store.body(9, digest)


def test_a_state_that_differs_from_the_head_is_noticed_at_start(ledger: Ledger) -> None:
    ledger.open_accounts("A", "B", funds=100)
    ledger.close()

    def alter(db: PlainRows) -> None:
        key = next(db.keys(b"t", b"u"))
        record = db.get(key)
        db.put(key, record[:-1] + bytes((record[-1] ^ 1,)))

    with_raw(ledger.path, alter)
    with pytest.raises(StoreError, match="corrupt_state_tree"):
        Ledger(ledger.path, ledger.network)


def test_flipped_bytes_in_the_files_are_an_error_or_harmless_and_never_other_data(ledger: Ledger) -> None:
    """Bit rot anywhere: the store refuses with a code, or what it answers is what was written."""
    ledger.open_accounts("A", "B", funds=100)
    for number in range(3):
        ledger.decide(block(ledger, number))
    ledger.close()
    whole = Ledger(ledger.path, ledger.network)
    expected = everything(whole)
    whole.close()
    refusals: list[str] = []
    files = [path for path in sorted(ledger.path.iterdir()) if path.suffix in (".ldb", ".log")]
    for path in files:
        data = path.read_bytes()
        for at in range(7, len(data), max(1, len(data) // 25)):
            path.write_bytes(data[:at] + bytes((data[at] ^ 0x20,)) + data[at + 1 :])
            copy = ledger.path.with_name("copy")
            shutil.copytree(ledger.path, copy)
            path.write_bytes(data)
            try:
                damaged = Ledger(copy, ledger.network)
                try:
                    assert everything(damaged) == expected
                finally:
                    damaged.close()
            except HansaError as error:
                refusals.append(error.code)
            shutil.rmtree(copy)
    assert len(refusals) > 10
    assert {*refusals} <= {"store_corrupt", "corrupt_state_tree"}


def everything(ledger: Ledger) -> object:
    view = ledger.store.snapshot()
    heights = range(1, view.head.height + 1)
    return (
        view.head,
        list(view.scan(b"", b"\xff")),
        [view.block(height) for height in heights],
        [view.receipts(height) for height in heights],
    )


# --- crashes ---------------------------------------------------------------------------------------------


def test_a_crash_at_any_byte_of_a_write_leaves_one_block_or_the_next(tmp_path: Path) -> None:
    """The log cut at every place that a power failure can leave: the head is h or h - 1 and all fits it."""
    ledger = Ledger(tmp_path / "data")
    ledger.open_accounts("A", "B", funds=100)
    ledger.close()
    ledger = Ledger(tmp_path / "data", ledger.network)
    journaled = ledger.transaction("bank-a", transfer("A", "B", 1, 1))
    ledger.store.put_pending([(journaled.tx_id, journaled.data)])
    [log] = ledger.path.glob("*.log")
    before = log.stat().st_size
    executed = ledger.build(journaled)
    assert executed is not None
    ledger.store.put_records([vote(2, 0, digest=executed.digest)], {executed.digest: executed.body})
    voted = log.stat().st_size
    ledger.decide(executed)
    ledger.close()
    data = log.read_bytes()
    outcomes = []
    for size in [*range(before, len(data), max(1, (len(data) - before) // 60)), voted, len(data)]:
        copy = tmp_path / "copy"
        shutil.copytree(ledger.path, copy)
        (copy / log.name).write_bytes(data[:size])
        crashed = Ledger(copy, ledger.network)  # opening compares the state's root with the head's
        height = crashed.store.head.height
        outcomes.append((size >= voted, height))
        assert crashed.balance("B") == 99 + height
        assert crashed.store.pending() == ([journaled.data] if height == 1 else [])
        assert (crashed.store.locate(journaled.tx_id) is not None) == (height == 2)
        if height == 1:
            assert bool(crashed.store.memory().records) == (size >= voted)
            assert (crashed.store.body(executed.height, executed.digest) is not None) == (size >= voted)
            crashed.follow(crashed_again(crashed, executed))
        assert crashed.store.head.digest == executed.digest
        crashed.close()
        shutil.rmtree(copy)
    assert {(False, 1), (True, 1), (True, 2)} == {*outcomes}


def crashed_again(crashed: Ledger, executed: ExecutedBlock) -> ExecutedBlock:
    """What the node does after the crash: the stored body, or one fetched, is executed again."""
    body = crashed.store.body(executed.height, executed.digest) or executed.body
    transactions = decoded(body)
    return crashed.executor.check(executed.proposal, transactions)


def test_after_a_refused_write_the_store_takes_no_other(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.open_accounts("A", "B", funds=100)
    first, second = block(ledger, 1), block(ledger, 2)
    full = plyvel.IOError(b"IO error: 000003.log: No space left on device")
    database = ledger.store._database
    assert isinstance(database, LevelDatabase)
    healthy = database._db

    class Full:
        def __getattr__(self, name: str) -> object:
            if name == "write_batch":
                raise full
            return getattr(healthy, name)

    monkeypatch.setattr(database, "_db", Full())
    with pytest.raises(StoreError, match="disk_full") as caught:
        ledger.store.apply(first, certificate(first), 0)
    assert caught.value.exit_code == 3
    monkeypatch.setattr(database, "_db", healthy)
    with pytest.raises(StoreError, match="disk_full"):
        ledger.store.apply(second, certificate(second), 0)
    assert ledger.store.head.height == 1
    again = reopened(ledger)
    assert again.store.head.height == 1
    again.follow(first)


def test_a_store_that_is_closed_waits_for_reads_in_other_threads_and_refuses_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LevelDB would free what they use: a node that was stopped while it made a proof died of it."""
    database = LevelDatabase(tmp_path / "data")
    database.write([(b"key%d" % number, b"value") for number in range(3)])
    snapshot = database.snapshot()
    rows = snapshot.scan(b"", b"z")
    assert next(rows) == (b"key0", b"value")
    entered, go_on = threading.Event(), threading.Event()
    read: Callable[..., bytes] = database._get

    def slow(key: bytes, verify_checksums: bool) -> bytes:
        entered.set()
        assert go_on.wait(60)
        return read(key, verify_checksums=verify_checksums)

    monkeypatch.setattr(database, "_get", slow)
    with ThreadPoolExecutor(2) as threads:
        reading = threads.submit(database.get, b"key1")
        assert entered.wait(60)
        closing = threads.submit(database.close)
        while database._gate.open:
            pass
        with pytest.raises(StoreError, match="store_closed"):
            snapshot.get(b"key2")
        with pytest.raises(StoreError, match="store_closed"):
            next(rows)
        with pytest.raises(StoreError, match="store_closed"):
            database.snapshot()
        assert not database._db.closed
        go_on.set()
        assert reading.result(60) == b"value"
        closing.result(60)
    assert database._db.closed
    database.close()


@pytest.mark.parametrize("ahead", [1, 2, 3, 100])
def test_rows_that_are_read_ahead_are_the_same_rows(tmp_path: Path, ahead: int) -> None:
    database = LevelDatabase(tmp_path / "data")
    rows: list[tuple[bytes, bytes | None]] = [(b"key%d" % number, b"value%d" % number) for number in range(7)]
    database.write([(b"a", b""), *rows, (b"z", b"")])
    snapshot = database.snapshot()
    database.write([(key, None) for key, _ in rows[:3]])
    for source, expected in ((snapshot, rows), (database, rows[3:])):
        assert list(source.scan(b"key", b"z", ahead=ahead)) == expected
        assert list(source.scan(b"key", b"z", reverse=True, ahead=ahead)) == expected[::-1]
        assert list(source.scan(b"x", b"y", ahead=ahead)) == []
    begun = snapshot.scan(b"key", b"z", ahead=ahead)
    taken = [next(begun) for _ in range(2)]
    database.close()

    def take_the_rest() -> None:
        for row in begun:
            taken.append(row)

    # What was read before it was closed may still come, and nothing after it.
    with pytest.raises(StoreError, match="store_closed"):
        take_the_rest()
    assert taken == rows[: len(taken)]
    assert len(taken) <= max(2, ahead + 1)


def test_a_closed_store_says_so(ledger: Ledger) -> None:
    view = ledger.store.snapshot()
    ledger.close()
    with pytest.raises(StoreError, match="store_closed"):
        view.get(b"x")
    with pytest.raises(StoreError, match="store_closed"):
        ledger.store.put_pending([(bytes(32), b"x")])


def test_a_promise_of_silence_names_its_key_and_is_never_taken_back(ledger: Ledger) -> None:
    """An older head, put back, names the first key again, a later one the second: each keeps its own promise."""
    first, second = bytes(31) + b"1", bytes(31) + b"2"
    # Of before there were other keys: then it was about the first one.
    ledger.store.put_records([], abstain_until=HEIGHT_MAX)
    ledger.store.begin_with_key(first)
    assert ledger.store.memory().abstain_until == HEIGHT_MAX
    ledger.store.begin_with_key(second)
    assert ledger.store.memory().abstain_until == 0
    ledger.store.put_records([], abstain_until=HEIGHT_MAX)
    assert ledger.store.memory().abstain_until == HEIGHT_MAX
    for key in (first, second, first):
        ledger.store.begin_with_key(key)
        assert ledger.store.memory().abstain_until == HEIGHT_MAX
    ledger.store.begin_with_key(bytes(32))
    assert ledger.store.memory().abstain_until == 0
    # What was promised for some heights holds whatever the key.
    ledger.store.put_records([], abstain_until=9)
    ledger.store.begin_with_key(bytes(31) + b"3")
    assert ledger.store.memory().abstain_until == 9


def test_a_member_is_believed_never_to_have_voted_at_genesis_alone(ledger: Ledger) -> None:
    ledger.store.begin_with_key(bytes(32))
    assert ledger.store.memory().never_voted
    ledger.settle(ledger.transaction("bank-a"))
    ledger.store.begin_with_key(bytes(32))
    memory = ledger.store.memory()
    assert (memory.never_voted, memory.voted) == (False, True)
