"""An archive file gives back what was put in, proves it to a stranger, and hides no changed byte."""

import fcntl
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import pytest

from consensus.codec import encode
from consensus.members import Members
from consensus.messages import Certificate
from node.archive import (
    ArchivedBlock,
    ArchiveHead,
    ArchiveReader,
    ArchiveSummary,
    ArchiveWriter,
    archive_head,
    archived_block,
    archived_blocks,
    verify_archive,
    write_archive,
)
from node.archive.format import BLOCK_PLAIN_SIZE_MAX, BLOCK_ROW, MAGIC, TAIL, TAIL_SIZE
from node.archive.reader import PIECE_SIZE
from node.errors import ConfigError, NotFound, StoreError
from node.ledger import Header, sha256
from node.store import ReceiptsRecord
from tests.node.archive_world import ArchivedLedger, signed_network
from tests.node.ledger_world import network, transfer

BLOCKS = 6


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArchivedLedger]:
    """Six blocks: two accounts with money, then transfers, one block empty."""
    ledger = ArchivedLedger(tmp_path_factory.mktemp("archive") / "data")
    ledger.open_accounts("C-1", "C-2", funds=1_000)
    for number in range(2, BLOCKS + 1):
        calls = [transfer("C-1", "C-2", number, number)] if number != 4 else []
        items = [ledger.transaction("bank-a", *calls)] if calls else []
        executed = ledger.build(*items, allow_empty=True)
        assert executed is not None
        ledger.decide(executed)
    yield ledger
    ledger.close()


def head_of(ledger: ArchivedLedger, first: int = 1) -> ArchiveHead:
    return archive_head(ledger.store.snapshot(), ledger.network.network_id, ledger.network.genesis_hash, first)


def write(ledger: ArchivedLedger, path: Path, first: int = 1, last: int = BLOCKS) -> ArchiveSummary:
    blocks = archived_blocks(ledger.store.snapshot(), first, last)
    config = ledger.network
    return write_archive(path, config.network_id, config.genesis_hash, blocks, head=head_of(ledger, first))


def rewritten(
    ledger: ArchivedLedger,
    path: Path,
    change: Callable[[ArchivedBlock], ArchivedBlock],
    first: int = 1,
    head: ArchiveHead | None = None,
) -> ArchiveReader:
    """An archive, whole in itself, of what `change` makes of each block."""
    writer = ArchiveWriter(path, head or head_of(ledger, first))
    for item in archived_blocks(ledger.store.snapshot(), first, BLOCKS):
        writer.add(change(item))
    writer.finish()
    return ArchiveReader(path)


def test_an_archive_gives_back_every_block_and_proves_it(ledger: ArchivedLedger, tmp_path: Path) -> None:
    path = tmp_path / "a.hansa"
    summary = write(ledger, path)
    assert (summary.first, summary.last, summary.transactions) == (1, BLOCKS, BLOCKS - 1)
    assert summary.size_bytes == path.stat().st_size
    seen: list[tuple[int, int]] = []
    with ArchiveReader(path) as reader:
        for height in (BLOCKS, 1, 3):
            assert reader.block(height) == archived_block(ledger.store.snapshot(), height)
        proof = verify_archive(reader, ledger.network, progress=lambda done, total: seen.append((done, total)))
        for height in (0, BLOCKS + 1):
            with pytest.raises(NotFound, match="not_in_archive"):
                reader.block(height)
    assert seen == [(done, BLOCKS) for done in range(1, BLOCKS + 1)]
    assert (proof.digest, proof.transactions) == (ledger.store.head.digest, BLOCKS - 1)
    assert proof.members == ledger.store.head.members


def test_a_transaction_is_found_by_its_id_and_no_other_is(ledger: ArchivedLedger, tmp_path: Path) -> None:
    write(ledger, tmp_path / "a")
    with ArchiveReader(tmp_path / "a") as reader:
        for height in (1, 2, 5):
            receipts = reader.block(height).receipts
            tx_id = ledger.store.receipt(height, receipts.scheduled).tx_id
            assert reader.locate(tx_id) == (height, receipts.scheduled) == ledger.store.locate(tx_id)
        assert reader.locate(bytes(32)) is None
        assert reader.locate(b"\xff" * 32) is None


def test_a_later_archive_proves_itself_and_continues_the_one_before(ledger: ArchivedLedger, tmp_path: Path) -> None:
    write(ledger, tmp_path / "a", 1, 2)
    write(ledger, tmp_path / "b", 3, BLOCKS)
    with ArchiveReader(tmp_path / "a") as first, ArchiveReader(tmp_path / "b") as second:
        before = verify_archive(first, ledger.network)
        proof = verify_archive(second, ledger.network, before.members, parent=before.digest)
        assert proof.digest == ledger.store.head.digest
        verify_archive(second, ledger.network)
        with pytest.raises(StoreError, match=r"archive_refused: block 3 follows another block"):
            verify_archive(second, ledger.network, parent=bytes(32))
        strangers = Members(before.members.validators[:3])
        with pytest.raises(StoreError, match=r"archive_refused: block 3 was decided by other members"):
            verify_archive(second, ledger.network, strangers)


def test_an_archive_of_another_network_is_refused(ledger: ArchivedLedger, tmp_path: Path) -> None:
    write(ledger, tmp_path / "a")
    with (
        ArchiveReader(tmp_path / "a") as reader,
        pytest.raises(StoreError, match="archive_refused: the archive belongs to network archived-"),
    ):
        verify_archive(reader, signed_network("another"))


def test_members_that_cannot_sign_prove_nothing(ledger: ArchivedLedger, tmp_path: Path) -> None:
    """The network of the same name with other keys has another genesis hash; even with that one forged it fails."""
    strangers = network()
    head = msgspec.structs.replace(
        head_of(ledger),
        network=strangers.network_id,
        genesis_hash=strangers.genesis_hash,
        validators=strangers.validators.validators,
    )
    with (
        rewritten(ledger, tmp_path / "a", lambda item: item, head=head) as reader,
        pytest.raises(StoreError, match=r"archive_refused: block 1 belongs to network"),
    ):
        verify_archive(reader, strangers)


def other_header(item: ArchivedBlock, **changes: object) -> ArchivedBlock:
    body = item.block.body
    header: Header = msgspec.structs.replace(body.header, **changes)
    body = msgspec.structs.replace(body, header=header)
    certificate: Certificate = msgspec.structs.replace(item.block.certificate, digest=header.digest)
    return msgspec.structs.replace(
        item, block=msgspec.structs.replace(item.block, body=body, certificate=certificate)
    )


def other_certificate(item: ArchivedBlock, **changes: object) -> ArchivedBlock:
    certificate: Certificate = msgspec.structs.replace(item.block.certificate, **changes)
    return msgspec.structs.replace(item, block=msgspec.structs.replace(item.block, certificate=certificate))


def other_body(item: ArchivedBlock, **changes: object) -> ArchivedBlock:
    body = msgspec.structs.replace(item.block.body, **changes)
    return msgspec.structs.replace(item, block=msgspec.structs.replace(item.block, body=body))


FORGERIES: dict[str, tuple[Callable[[ArchivedBlock], ArchivedBlock], str]] = {
    "another outcome": (
        lambda item: msgspec.structs.replace(
            item,
            receipts=ReceiptsRecord(
                0, tuple(data.replace(b"\xa2ok", b"\xa2no") for data in item.receipts.receipts)
            ),
        ),
        "other receipts",
    ),
    "a transaction left out": (lambda item: other_body(item, transactions=()), "other transactions"),
    "a quarantine made up": (lambda item: other_body(item, quarantined=(0,)), "other transactions"),
    "another time": (lambda item: other_header(item, time_ms=1), "no certificate"),
    "another parent": (lambda item: other_header(item, parent=bytes(32)), "does not follow"),
    "too few signatures": (
        lambda item: other_certificate(item, signatures=item.block.certificate.signatures[:2]),
        "no certificate",
    ),
    "another view": (lambda item: other_certificate(item, view=1), "no certificate"),
    "a certificate of another height": (lambda item: other_certificate(item, height=9), "something else"),
    "members after it left out": (
        lambda item: msgspec.structs.replace(item, validators=item.validators[:3]),
        "members after block 3 are not those of its header",
    ),
    "one member twice": (
        lambda item: msgspec.structs.replace(item, validators=item.validators[:1] * 2),
        "no list",
    ),
    "one more scheduled call": (
        lambda item: msgspec.structs.replace(item, receipts=ReceiptsRecord(1, item.receipts.receipts)),
        "not one receipt for each transaction",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_block_is_refused_with_its_reason(ledger: ArchivedLedger, tmp_path: Path, name: str) -> None:
    change, reason = FORGERIES[name]
    with (
        rewritten(ledger, tmp_path / "a", lambda item: change(item) if item.height == 3 else item) as reader,
        pytest.raises(StoreError, match=f"archive_refused: .*block 3 .*{reason}|archive_refused: .*{reason}"),
    ):
        verify_archive(reader, ledger.network)


def test_a_head_that_hides_or_invents_a_change_of_members_is_refused(
    ledger: ArchivedLedger, tmp_path: Path
) -> None:
    head = head_of(ledger, 4)
    assert head.parent is not None
    fewer = msgspec.structs.replace(head, validators=head.validators[:3])
    no_parent = msgspec.structs.replace(head, parent=None)
    other_members = msgspec.structs.replace(
        head, parent=msgspec.structs.replace(head.parent, members_hash=bytes(32))
    )
    for number, (forged, reason) in enumerate(
        ((fewer, "decided by other members"), (no_parent, "is missing"), (other_members, "change of members below"))
    ):
        reader = rewritten(ledger, tmp_path / str(number), lambda item: item, 4, forged)
        with reader, pytest.raises(StoreError, match=f"archive_refused: .*{reason}"):
            verify_archive(reader, ledger.network)


def test_an_archive_after_changes_of_members_proves_them_from_genesis(tmp_path: Path) -> None:
    """Blocks 2 and 4 change the list; the file that begins with block 4 carries the first change in its head."""
    ledger = ArchivedLedger(tmp_path / "data")
    for height in range(1, BLOCKS + 1):
        if height == 2:
            ledger.appoint("bank-a", "bank-b", "bank-c", "bank-e")
        if height == 4:
            ledger.appoint("bank-e", "bank-c", "bank-b")
        ledger.settle(ledger.transaction("bank-a"))
    assert ledger.store.snapshot().member_changes() == (2, 4)
    for first in (1, 2, 3, 4, 5):
        write(ledger, tmp_path / str(first), first)
        with ArchiveReader(tmp_path / str(first)) as reader:
            assert [item.header.height for item in reader.head.changes] == [h for h in (2, 4) if h < first]
            assert verify_archive(reader, ledger.network).members == ledger.store.head.members
            for height in range(first, BLOCKS + 1):
                assert reader.block(height) == archived_block(ledger.store.snapshot(), height)
    head = head_of(ledger, 5)
    without = msgspec.structs.replace(head, changes=head.changes[1:])
    twice = msgspec.structs.replace(head, changes=head.changes * 2)
    for number, (forged, reason) in enumerate(
        ((without, "change of members at block 4 has no certificate"), (twice, "out of order"))
    ):
        reader = rewritten(ledger, tmp_path / f"forged {number}", lambda item: item, 5, forged)
        with reader, pytest.raises(StoreError, match=f"archive_refused: .*{reason}"):
            verify_archive(reader, ledger.network)
    ledger.close()


def test_every_changed_byte_is_noticed(ledger: ArchivedLedger, tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(ledger, path)
    data = path.read_bytes()
    draw = random.Random(7)
    parts = (range(24), range(len(data) - TAIL_SIZE, len(data)), range(len(data)))
    places = [place for part in parts for place in draw.sample(part, 24 if len(part) == 24 else 60)]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(StoreError, match="archive_damaged"), ArchiveReader(path) as reader:
            verify_archive(reader, ledger.network)


def test_a_file_cut_short_or_longer_is_no_archive(ledger: ArchivedLedger, tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(ledger, path)
    data = path.read_bytes()
    for changed in (b"", data[:40], data[:-1], data[: len(data) // 2], data + b"\0", b"\0" + data):
        path.write_bytes(changed)
        with pytest.raises(StoreError, match="archive_damaged"):
            ArchiveReader(path)
    with pytest.raises(ConfigError, match="archive_unreadable"):
        ArchiveReader(tmp_path / "absent")
    with pytest.raises(ConfigError, match="archive_unreadable"):
        ArchiveReader(tmp_path)


def test_a_block_that_inflates_without_end_costs_no_memory(ledger: ArchivedLedger, tmp_path: Path) -> None:
    """The index says how large a block is when inflated; more is never inflated, however well hashes fit."""
    path = tmp_path / "a"
    write(ledger, path)
    data = bytearray(path.read_bytes())
    tail_at = len(data) - TAIL_SIZE
    fields = list(TAIL.unpack(data[tail_at : tail_at + TAIL.size]))
    index, rows_end = fields[2], fields[3]
    offset, size, plain, digest = BLOCK_ROW.unpack_from(data, index)
    BLOCK_ROW.pack_into(data, index, offset, size, plain - 1, digest)
    fields[7] = sha256(bytes(data[index:rows_end]))
    tail = TAIL.pack(*fields)
    data[tail_at : tail_at + TAIL.size + 32] = tail + sha256(tail)
    path.write_bytes(data)
    with ArchiveReader(path) as reader, pytest.raises(StoreError, match=r"archive_damaged: .*block 1"):
        reader.block(1)
    assert struct.calcsize(">QII32s") == BLOCK_ROW.size


def with_tail(data: bytes, path: Path, **changes: int | bytes) -> None:
    """The file at `path` ends with the tail of the archive `data`, but for `changes`, and its hash is right."""
    names = ("first", "last", "index", "transactions", "lists", "lists_size")
    hashes = ("head_hash", "index_hash", "transactions_hash", "lists_hash")
    tail_at = len(data) - TAIL_SIZE
    fields = dict(zip((*names, *hashes), TAIL.unpack(data[tail_at : tail_at + TAIL.size]), strict=True)) | changes
    tail = TAIL.pack(*fields.values())
    with path.open("ab") as file:
        file.write(tail + sha256(tail) + MAGIC)


def test_a_block_of_holes_larger_than_any_block_is_not_read(ledger: ArchivedLedger, tmp_path: Path) -> None:
    """A file of gigabytes costs whoever sends it nothing; the memory of whoever opens it is not for free."""
    write(ledger, tmp_path / "a", last=1)
    data = (tmp_path / "a").read_bytes()
    tail_at = len(data) - TAIL_SIZE
    index, transactions, lists = TAIL.unpack(data[tail_at : tail_at + TAIL.size])[2:5]
    size, holed = BLOCK_PLAIN_SIZE_MAX + 1, tmp_path / "holed"
    row = BLOCK_ROW.pack(index, size, 10, bytes(32))
    holed.write_bytes(data[:index])
    os.truncate(holed, index + size)
    with holed.open("ab") as file:
        file.write(row + data[transactions:tail_at])
    with_tail(
        data,
        holed,
        index=index + size,
        transactions=transactions + size,
        lists=lists + size,
        index_hash=sha256(row),
    )
    with ArchiveReader(holed) as reader, pytest.raises(StoreError, match="block 1 points outside"):
        reader.block(1)


def test_an_index_of_holes_is_hashed_piece_by_piece(
    ledger: ArchivedLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(ledger, tmp_path / "a", last=1)
    data = (tmp_path / "a").read_bytes()
    tail_at = len(data) - TAIL_SIZE
    index, _, lists = TAIL.unpack(data[tail_at : tail_at + TAIL.size])[2:5]
    count, holed = 1_000_000, tmp_path / "holed"
    end = index + count * BLOCK_ROW.size
    holed.write_bytes(data[:index])
    os.truncate(holed, end)
    with holed.open("ab") as file:
        file.write(data[lists:tail_at])
    with_tail(data, holed, last=count, transactions=end, lists=end)
    asked: list[int] = []
    pread = os.pread

    def noting(file: int, size: int, offset: int) -> bytes:
        asked.append(size)
        return pread(file, size, offset)

    monkeypatch.setattr(os, "pread", noting)
    with ArchiveReader(holed) as reader, pytest.raises(StoreError, match="block index differs from its hash"):
        reader.check_layout()
    assert max(asked) == PIECE_SIZE


def test_a_pipe_in_the_place_of_an_archive_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"archive_unreadable: .*is not a file"):
        ArchiveReader(tmp_path / "pipe")


def test_two_writers_of_one_name_never_write_into_one_file(ledger: ArchivedLedger, tmp_path: Path) -> None:
    """Else the second would change what the first had verified, and whose blocks it had removed."""
    path, head, items = tmp_path / "a", head_of(ledger), list(archived_blocks(ledger.store.snapshot(), 1, BLOCKS))
    first = ArchiveWriter(path, head)
    first.add(items[0])
    with pytest.raises(StoreError, match="archive_failed"):
        ArchiveWriter(path, head)
    first.add(items[1])
    first.finish()
    with ArchiveReader(path) as reader:
        assert [item.height for item in reader.blocks()] == [1, 2]
    # Once it is finished, or was abandoned, the name is free.
    ArchiveWriter(path, head).abandon()
    second = ArchiveWriter(path, head)
    second.add(items[0])
    assert second.finish().last == 1


def test_a_writer_that_came_upon_a_file_just_finished_leaves_it_alone(
    ledger: ArchivedLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens the partial file, and before it has its lock the other one renames it."""
    path, head = tmp_path / "a", head_of(ledger)
    first = ArchiveWriter(path, head)
    first.add(next(archived_blocks(ledger.store.snapshot(), 1, 1)))
    lock = fcntl.flock

    def late(file: BinaryIO, operation: int) -> None:
        monkeypatch.undo()
        first.finish()
        path.with_name("a.partial").write_bytes(b"a third one's")
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(StoreError, match="archive_failed"):
        ArchiveWriter(path, head)
    with ArchiveReader(path) as reader:
        assert reader.block(1).height == 1


def test_an_archive_that_was_not_finished_leaves_the_old_one(ledger: ArchivedLedger, tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(ledger, path)
    before = path.read_bytes()

    def interrupted(height: int) -> None:
        if height == 3:
            raise KeyboardInterrupt

    blocks = archived_blocks(ledger.store.snapshot(), 1, BLOCKS)
    config = ledger.network
    with pytest.raises(KeyboardInterrupt):
        write_archive(path, config.network_id, config.genesis_hash, blocks, interrupted, head=head_of(ledger))
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a"]
    # A crash leaves the partial file; the next writer replaces it.
    path.with_name("a.partial").write_bytes(b"torn" * 100_000)
    write(ledger, path)
    assert path.read_bytes() == before


def test_blocks_must_be_a_run_of_this_network(ledger: ArchivedLedger, tmp_path: Path) -> None:
    writer = ArchiveWriter(tmp_path / "a", head_of(ledger, 2))
    with pytest.raises(ValueError, match="block 3 is not the next one"):
        writer.add(archived_block(ledger.store.snapshot(), 3))
    with pytest.raises(ValueError, match="at least one block"):
        writer.finish()
    writer.abandon()
    with pytest.raises(ValueError, match="another network"):
        write_archive(tmp_path / "a", "othernet-0", bytes(32), (), head=head_of(ledger))
    assert list(tmp_path.iterdir()) == []
    assert encode(head_of(ledger, 2).parent) == encode(ledger.store.header(1))
