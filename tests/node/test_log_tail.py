"""What a power cut may leave at the end of the log, and what no power cut leaves: opened, cut off, or refused."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from consensus.effects import VoteRecord
from consensus.messages import Vote, VoteKind
from node.errors import ConfigError, StoreError
from node.store import LevelDatabase, log_tail
from tests.node.ledger_world import Ledger

RECORDS = 40


class Written:
    """A database of which every write was acknowledged, as its directory lies there without a close."""

    def __init__(self, place: Path) -> None:
        self._live = place / "live"
        self._copies = place
        chance = random.Random(5)
        database = LevelDatabase(self._live)
        self.ends: list[int] = []
        for number in range(RECORDS):
            size = 700 if number % 10 else 34_000
            database.write([(b"k%06d" % number, chance.randbytes(size))])
            self.ends.append(log_of(self._live).stat().st_size)
        self.directory = place / "crashed"
        shutil.copytree(self._live, self.directory)
        database.close()
        self.data = log_of(self.directory).read_bytes()

    def found(self, data: bytes) -> tuple[int, bool]:
        """(records, whether memory counts as lost) of the database whose log holds `data`; opened twice."""
        copy = self._copies / "copy"
        shutil.copytree(self.directory, copy)
        try:
            log_of(copy).write_bytes(data)
            LevelDatabase(copy).close()
            database = LevelDatabase(copy)
            found = [key for key, _ in database.scan(b"k", b"l")]
            database.close()
            assert found == [b"k%06d" % number for number in range(len(found))]
            return len(found), log_tail.lost_memory(copy)
        finally:
            shutil.rmtree(copy)


def log_of(directory: Path) -> Path:
    [log] = log_tail.log_files(directory)
    return log


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(tmp_path_factory.mktemp("log"))


def test_a_last_write_cut_short_at_any_byte_is_as_if_it_had_never_begun(written: Written) -> None:
    for number in (RECORDS - 1, RECORDS - 10):  # a small record, and one that goes over two blocks
        begun, end = written.ends[number - 1], written.ends[number]
        for size in {begun + 1, begun + 6, begun + 7, end - 1, *range(begun, end, max(1, (end - begun) // 4))}:
            assert written.found(written.data[:size]) == (number, False)


def test_sectors_that_were_never_written_are_a_torn_write_and_cost_nothing_acknowledged(written: Written) -> None:
    """File systems extend a file first: the sectors that did not reach the disk read as zeros, in any order."""
    chance = random.Random(8)
    for number in (RECORDS - 1, RECORDS - 10):
        begun, end = written.ends[number - 1], written.ends[number]
        places = list(range(begun - begun % 512, end, 512))
        for at in [places[0], places[-1], *chance.sample(places, min(3, len(places)))]:
            data = bytearray(written.data[:end])
            for lost in {at, *chance.sample(places, len(places) // 3)}:
                first, last = max(lost, begun), min(lost + 512, end)
                data[first:last] = bytes(last - first)
            assert written.found(bytes(data)) == (number, False), at - begun


def test_a_tail_of_zeros_alone_is_no_write_at_all(written: Written) -> None:
    assert written.found(written.data + bytes(3)) == (RECORDS, False)
    assert written.found(written.data + bytes(40_000)) == (RECORDS, False)


def test_a_last_record_of_other_bytes_opens_and_the_member_forgets_what_it_voted(written: Written) -> None:
    """Nobody can tell whether it was acknowledged: what it may have held is given up aloud, never silently."""
    begun, end = written.ends[-2], written.ends[-1]
    chance = random.Random(3)
    for at in (begun, begun + 3, begun + 7, begun + 300):
        data = written.data[:at] + bytes(chance.choices(range(1, 256), k=end - at))
        assert written.found(data) == (RECORDS - 1, True)
    longer = bytearray(written.data)
    longer[begun + 5] ^= (
        0x10  # its length says that it goes beyond the end of the file, and its checksum knows better
    )
    assert written.found(bytes(longer)) == (RECORDS - 1, True)


@pytest.mark.slow
@pytest.mark.parametrize("back", [2, 9, 25])
def test_damage_before_the_last_record_is_refused_wherever_it_lies(written: Written, back: int) -> None:
    """LevelDB alone drops acknowledged records without a word when a length or a sector near the end is damaged."""
    begun = written.ends[RECORDS - 1 - back]

    def flipped(at: int, mask: int = 0x40) -> bytes:
        return written.data[:at] + bytes((written.data[at] ^ mask,)) + written.data[at + 1 :]

    def zeroed(count: int) -> bytes:
        return written.data[:begun] + bytes(count) + written.data[begun + count :]

    damaged = [flipped(begun + at) for at in (0, 4, 5, 6, 7, 200)] + [zeroed(count) for count in (7, 512, 690)]
    for data in damaged:
        with pytest.raises(StoreError, match="store_corrupt") as caught:
            written.found(data)
        assert caught.value.exit_code == 3


def test_a_hole_over_acknowledged_records_is_not_taken_for_the_unfinished_last_one(written: Written) -> None:
    """The last record is large: its later blocks are whole, so what lies before them was whole once."""
    begun, end = written.ends[RECORDS - 11], written.ends[RECORDS - 10]
    page = begun - begun % 4096 - 4096
    data = written.data[:page] + bytes(begun + 100 - page) + written.data[begun + 100 : end]
    with pytest.raises(StoreError, match="store_corrupt"):
        written.found(data)


def test_a_torn_list_of_files_is_mended_and_a_damaged_one_refused(written: Written, tmp_path: Path) -> None:
    def manifest(change: Callable[[bytes], bytes]) -> int:
        copy = tmp_path / "copy"
        shutil.copytree(written.directory, copy)
        try:
            file = log_tail.current_manifest(copy)
            assert file is not None
            file.write_bytes(change(file.read_bytes()))
            database = LevelDatabase(copy)
            found = len(list(database.scan(b"k", b"l")))
            database.close()
            return found
        finally:
            shutil.rmtree(copy)

    assert manifest(lambda data: data + bytes(600)) == RECORDS
    assert manifest(lambda data: data + data[:5]) == RECORDS
    for at in (4, 5, 12):
        with pytest.raises(StoreError, match="store_corrupt"):
            manifest(lambda data, at=at: data[:at] + bytes((data[at] ^ 0x11,)) + data[at + 1 :])  # type: ignore[misc]


def test_what_cannot_be_read_is_kept_and_the_member_abstains_after_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "data")
    for view in (0, 1):
        vote = VoteRecord(Vote(VoteKind.PREPARE, view, 1, bytes(32), 0, bytes(64)), False, None)
        ledger.store.put_records([vote])
    crashed = tmp_path / "crashed"
    shutil.copytree(ledger.path, crashed)
    ledger.close()
    log = log_of(crashed)
    data = log.read_bytes()
    damaged = data[:-30] + bytes(byte ^ 0x55 for byte in data[-30:])
    log.write_bytes(damaged)
    for _ in range(2):  # the second time nothing is wrong any more, and the memory stays lost
        again = Ledger(crashed, ledger.network)
        memory = again.store.memory()
        again.close()
        assert (memory.never_voted, memory.voted, memory.records) == (False, False, ())
    assert (crashed / log_tail.DAMAGED_TAIL).read_bytes()[-30:] == damaged[-30:]
    assert not log_tail.lost_memory(crashed)


def test_a_crash_between_the_cut_and_the_consequence_changes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "data")
    ledger.store.put_records([VoteRecord(Vote(VoteKind.PREPARE, 0, 1, bytes(32), 0, bytes(64)), False, None)])
    crashed = tmp_path / "crashed"
    shutil.copytree(ledger.path, crashed)
    ledger.close()
    log = log_of(crashed)
    data = log.read_bytes()
    log.write_bytes(data[:-20] + bytes(byte ^ 0x55 for byte in data[-20:]))
    LevelDatabase(crashed).close()  # the log is cut, and then the process dies
    again = Ledger(crashed, ledger.network)
    memory = again.store.memory()
    again.close()
    assert (memory.never_voted, memory.voted) == (False, False)


def test_a_log_that_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    database = LevelDatabase(tmp_path / "data")
    database.write([(b"k", b"v" * 100)])
    log = log_of(tmp_path / "data")
    with log.open("ab") as half:
        half.write(b"\x01\x02\x03\x04\x20\x00\x01half a record")
    size = log.stat().st_size
    with pytest.raises(ConfigError, match="data_dir_in_use"):
        LevelDatabase(tmp_path / "data")
    assert log.stat().st_size == size
    database.close()
