"""A load is begun once; its transactions stay the same however often it is interrupted."""

from pathlib import Path

import msgspec
import pytest

from scripts.localnet.generator import Shape
from scripts.localnet.journal import Journal
from scripts.localnet.layout import TestnetError

FILES = (Path("transactions.csv"), Path("claims.csv"))


def test_an_interrupted_load_goes_on_with_the_same_expiry_and_size(tmp_path: Path) -> None:
    path = tmp_path / "loads.json"
    first = Journal(path).begin("sample", *FILES, 100, 0)
    assert Journal(path).begin("sample", *FILES, 900, 50) == first
    assert first.transfers_max == 100


def test_a_load_whose_transactions_have_expired_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loads.json"
    journal = Journal(path)
    journal.put(msgspec.structs.replace(journal.begin("sample", *FILES, None, 0), expires_at_ms=1))
    with pytest.raises(TestnetError, match="expired; start again"):
        Journal(path).begin("sample", *FILES, None, 0)


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    path = tmp_path / "loads.json"
    path.write_text("[]")
    with pytest.raises(TestnetError, match="damaged"):
        Journal(path)


@pytest.mark.parametrize(
    ("shape", "requests"), [(Shape(800, 60), 960), (Shape(10, 2, 500, 1), 20), (Shape(1, 0.1, 1, 1), 1)]
)
def test_a_run_has_as_many_requests_as_its_rate_asks_for(shape: Shape, requests: int) -> None:
    assert shape.requests == requests
