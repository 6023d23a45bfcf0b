"""Archive files that are judged together have to hold every block from the first to the last."""

from pathlib import Path

import pytest

from node.archive import archive_head, archived_blocks, write_archive
from node.cli.main import main
from node.config import dump_network
from node.verification import verify_archives
from tests.node.signed_ledger import make_ledger, signed_network


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One archive file for each of three blocks, and network.toml beside them."""
    base = tmp_path_factory.mktemp("gaps")
    ledger = make_ledger(base / "data")
    network, view = ledger.network, ledger.store.snapshot()
    (base / "network.toml").write_text(dump_network(network))
    written = []
    for height in (1, 2, 3):
        path = base / f"block-{height}"
        head = archive_head(view, network.network_id, network.genesis_hash, height)
        blocks = archived_blocks(view, height, height)
        write_archive(path, network.network_id, network.genesis_hash, blocks, head=head)
        written.append(path)
    ledger.close()
    return written


def judged(files: list[Path]) -> list[bool]:
    return [report.ok for report in verify_archives(files, signed_network(), lambda done, total: None)]


def test_a_gap_between_archives_is_refused_and_named(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    first, _, third = files
    reports = verify_archives([first, third], signed_network(), lambda done, total: None)
    assert [report.ok for report in reports] == [True, False]
    assert "block 2 is missing: block-3 does not follow" in (reports[1].first_error or "")
    network = str(first.with_name("network.toml"))
    assert main(["archive", "verify", str(first), str(third), "--network", network]) != 0
    assert "block 2 is missing" in capsys.readouterr().err
    command = ["verify", "--network", network, "--archive", str(first), str(third)]
    assert main(command) != 0
    assert "block 2 is missing" in "".join(capsys.readouterr())


def test_archives_without_a_gap_are_right_in_any_order_and_so_is_each_alone(files: list[Path]) -> None:
    network = str(files[0].with_name("network.toml"))
    assert judged(files[::-1]) == [True] * 3
    assert main(["archive", "verify", *map(str, files[::-1]), "--network", network]) == 0
    for file in files:
        assert judged([file]) == [True]
        assert main(["archive", "verify", str(file), "--network", network]) == 0
