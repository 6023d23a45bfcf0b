"""`hansa archive`: an auditor asks and proves files without a node; a stopped node gets its blocks back."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from node.archive import (
    ArchivedBlock,
    ArchiveReader,
    ArchiveShelf,
    archived_block,
    import_archive,
)
from node.cli.main import main
from node.config import dump_network
from node.errors import NotFound, StoreError
from node.ledger import Proposal
from node.store import LevelDatabase
from node.store.layout import META_ADOPTING, number
from tests.node.archive_world import ArchivedLedger
from tests.node.ledger_world import decoded
from tests.node.test_archive import BLOCKS, ledger, write

__all__ = ["ledger"]


@pytest.fixture
def shelf(ledger: ArchivedLedger, tmp_path: Path) -> Path:
    """Two files of one ledger, and its network.toml."""
    places = ArchiveShelf(tmp_path)
    write(ledger, places.path_of(1, 2), 1, 2)
    write(ledger, places.path_of(3, BLOCKS), 3, BLOCKS)
    (tmp_path / "network.toml").write_text(dump_network(ledger.network))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    """The exit code and the JSON document of `hansa archive …`."""
    code = main(["archive", *map(str, arguments), "--json"])
    return code, msgspec.json.decode(capsys.readouterr().out)


def test_an_auditor_needs_the_file_and_the_definition_alone(
    ledger: ArchivedLedger, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, listed = run(capsys, "list", "--archive-dir", shelf)
    files = [item["file"] for item in listed["archives"]]
    assert (code, [(item["first"], item["last"]) for item in listed["archives"]]) == (0, [(1, 2), (3, BLOCKS)])
    code, proven = run(capsys, "verify", *reversed(files), "--network", shelf / "network.toml")
    assert (code, proven["ok"], proven["network"]) == (0, True, ledger.network.network_id)
    assert proven["archives"][1]["digest"] == ledger.store.head.digest.hex()
    code, said = run(capsys, "show", files[1])
    assert (code, said["first"], said["last"], said["members"][0]) == (0, 3, BLOCKS, "bank-a")
    code, block = run(capsys, "query", files[1], "--block", 5)
    [item] = block["transactions"]
    assert (code, block["height"], item["content"]["calls"][0]["method"]) == (0, 5, "transfer")
    code, found = run(capsys, "query", files[1], "--tx", item["tx_id"])
    assert (code, found["height"], found["receipts"][0]["code"]) == (0, 5, "ok")
    code, events = run(capsys, "query", files[1], "--account", "C-2")
    assert (code, [event["height"] for event in events["events"]]) == (0, [3, 5, 6])
    code, error = run(capsys, "query", files[0], "--tx", item["tx_id"])
    assert (code, error["error"]["code"]) == (1, "transaction_not_found")
    code, error = run(capsys, "query", files[0], "--block", 3)
    assert (code, error["error"]["code"]) == (1, "not_in_archive")
    assert "holds the blocks 1 to 2, not 3" in error["error"]["message"]
    assert "hansa archive list" in error["error"]["action"]
    code, error = run(capsys, "query", files[0])
    assert (code, error["error"]["code"]) == (2, "invalid_usage")
    data = bytearray(Path(files[1]).read_bytes())
    data[len(data) // 2] ^= 1
    Path(files[1]).write_bytes(data)
    code, error = run(capsys, "verify", *files, "--network", shelf / "network.toml")
    assert (code, error["error"]["code"]) == (3, "archive_damaged")


def test_archived_blocks_are_put_back_into_a_stopped_node(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "node"
    ledger = ArchivedLedger(directory / "data")
    ledger.open_accounts("C-1", "C-2", funds=1_000)
    ledger.empty(3)
    wanted = archived_block(ledger.store.snapshot(), 1)
    file = ArchiveShelf(tmp_path).path_of(1, 1)
    write(ledger, file, 1, 1)
    pruning = ledger.store.pruning()
    pruning.release(1)
    for removal in pruning.removals():
        pruning.remove(removal)
    (directory / "node.toml").write_text('member = "bank-a"\nlisten = "127.0.0.1:1"\napi = "127.0.0.1:2"\n')
    shutil.copy(shelf / "network.toml", directory / "network.toml")
    code, error = run(capsys, "import", file, "--dir", directory)
    assert (code, error["error"]["code"]) == (2, "data_dir_in_use")
    ledger.close()
    for blocks in (1, 0):
        code, report = run(capsys, "import", file, "--dir", directory)
        assert (code, report["archives"]) == (0, [{"first": 1, "last": 1, "blocks": blocks}])
    assert main(["archive", "import", str(file), "--dir", str(directory)]) == 0
    told = capsys.readouterr().err
    assert f"{file.name} holds block 1: 0 blocks were put back, 1 was here already" in told
    again = ArchivedLedger(ledger.path)
    assert archived_block(again.store.snapshot(), 1) == wanted
    again.close()
    # Of another past of the same network nothing is taken.
    code, error = run(capsys, "import", shelf / ArchiveShelf(shelf).path_of(1, 2).name, "--dir", directory)
    assert (code, error["error"]["code"]) == (3, "archive_refused")
    code, report = run(capsys, "import", file, "--undo", "--dir", directory)
    assert (code, report["archives"]) == (0, [{"first": 1, "last": 1, "blocks": 1}])
    again = ArchivedLedger(ledger.path)
    with pytest.raises(NotFound, match="block_pruned"):
        again.store.block(1)
    again.close()


def stopped(ledger: ArchivedLedger, shelf: Path, blocks: int) -> Path:
    """The directory of a stopped node that has decided only the first blocks of `ledger`."""
    directory = shelf / f"stopped at {blocks}"
    behind = ArchivedLedger(directory / "data")
    for height in range(1, blocks + 1):
        body = ledger.store.block(height).body
        transactions = decoded(body)
        wire_ids = tuple(item.wire_id for item in transactions)
        behind.decide(behind.executor.check(Proposal(body.header, wire_ids, body.quarantined), transactions))
    behind.close()
    (directory / "node.toml").write_text('member = "bank-a"\nlisten = "127.0.0.1:1"\napi = "127.0.0.1:2"\n')
    shutil.copy(shelf / "network.toml", directory / "network.toml")
    return directory


def test_nothing_is_put_back_into_a_directory_that_is_empty_or_half_a_snapshots(
    ledger: ArchivedLedger, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A crash while a snapshot is taken over leaves a head that is neither the old one nor the new one."""
    directory = stopped(ledger, shelf, 3)
    with contextlib.closing(LevelDatabase(directory / "data")) as database:
        database.write([(META_ADOPTING, b"begun")])
    files = [item.path for item in ArchiveShelf(shelf).files()]
    code, answer = run(capsys, "import", *files, "--dir", directory)
    assert (code, answer["error"]["code"], "snapshot" in answer["error"]["message"]) == (2, "ledger_not_here", True)
    shutil.rmtree(directory / "data")
    code, answer = run(capsys, "import", *files, "--dir", directory)
    assert (code, answer["error"]["code"]) == (2, "ledger_not_here")


@pytest.mark.parametrize(("blocks", "ends"), [(3, "ends at block 3: blocks 4 to 6"), (0, "has no block yet: ")])
def test_blocks_beyond_the_head_are_refused_with_what_to_do_and_nothing_is_put_back(
    ledger: ArchivedLedger, shelf: Path, capsys: pytest.CaptureFixture[str], blocks: int, ends: str
) -> None:
    """It said that one has to ask for a height up to the head, and had put back the files before that one."""
    directory = stopped(ledger, shelf, blocks)
    with contextlib.closing(LevelDatabase(directory / "data")) as database:
        before = list(database.snapshot().scan(b"", b"\xff"))
        pruned = [(key, None) for key, _ in before if key == b"r" + number(1)]
        database.write([*pruned, (b"mfirst", number(2))] if blocks else [])
        before = list(database.snapshot().scan(b"", b"\xff"))
    code, answer = run(capsys, "import", *[item.path for item in ArchiveShelf(shelf).files()], "--dir", directory)
    error = answer["error"]
    assert (code, error["code"]) == (2, "archive_ahead")
    assert "holds blocks" in error["message"]
    assert f"and this ledger {ends}" in error["message"]
    assert error["message"].endswith(" cannot be put back")
    assert "Start the node: it fetches what is missing" in error["action"]
    assert "`hansa restore`" in error["action"]
    with contextlib.closing(LevelDatabase(directory / "data")) as database:
        assert list(database.snapshot().scan(b"", b"\xff")) == before


def test_blocks_from_before_a_join_are_refused_with_where_they_can_be_asked_for(
    ledger: ArchivedLedger, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer was to ask an archive file: the very one that was to be put back."""
    directory = stopped(ledger, shelf, 3)
    with contextlib.closing(LevelDatabase(directory / "data")) as database:
        # As the snapshot of block 2 leaves it: the blocks before are nowhere, of the last one the head alone.
        gone = [b"h" + number(1), b"r" + number(1), b"r" + number(2)]
        database.write([*((key, None) for key in gone), (b"mfirst", number(3))])
    code, answer = run(capsys, "import", ArchiveShelf(shelf).path_of(1, 2), "--dir", directory)
    assert (code, answer["error"]["code"]) == (2, "archive_before_join")
    assert "of block 1 not even the header is here" in answer["error"]["message"]


class Swapped(ArchiveReader):
    """A file that somebody overwrites once it was verified: the same block, with other contents."""

    lie: Callable[[ArchivedBlock], ArchivedBlock] | None = None

    def block(self, height: int) -> ArchivedBlock:
        item = super().block(height)
        return item if self.lie is None else self.lie(item)


def other_transactions(item: ArchivedBlock) -> ArchivedBlock:
    body = item.block.body
    body = msgspec.structs.replace(body, transactions=tuple(reversed(body.transactions)) + body.transactions[:1])
    return msgspec.structs.replace(item, block=msgspec.structs.replace(item.block, body=body))


def other_receipts(item: ArchivedBlock) -> ArchivedBlock:
    receipts = item.receipts
    changed = receipts.receipts[0][:-1] + bytes((receipts.receipts[0][-1] ^ 1,))
    return msgspec.structs.replace(
        item, receipts=msgspec.structs.replace(receipts, receipts=(changed, *receipts.receipts[1:]))
    )


@pytest.mark.parametrize("lie", [other_transactions, other_receipts])
def test_a_file_that_is_changed_after_it_was_verified_puts_nothing_back(
    tmp_path: Path, lie: Callable[[ArchivedBlock], ArchivedBlock]
) -> None:
    ledger = ArchivedLedger(tmp_path / "data")
    ledger.open_accounts("C-1", "C-2", funds=1_000)
    ledger.empty(3)
    file = tmp_path / "file.hansa"
    write(ledger, file, 1, 1)
    pruning = ledger.store.pruning()
    pruning.release(1)
    for removal in list(pruning.removals()):
        pruning.remove(removal)
    with contextlib.closing(Swapped(file)) as reader:

        def overwrite(done: int, total: int) -> None:
            if 2 * done == total:
                reader.lie = lie

        with pytest.raises(StoreError, match="archive_refused"):
            import_archive(ledger.store, ledger.network, reader, overwrite)
        assert reader.lie is lie
    with pytest.raises(NotFound, match="block_pruned"):
        ledger.store.block(1)
    ledger.close()
