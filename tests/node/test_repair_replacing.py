"""Between its two renames a repair may fail or be killed: the data directory is there again, one or the other."""

from pathlib import Path

import pytest

from node.executor import Executor
from node.repair.replacing import drop_stale, finish_replacing, replace
from node.runtime.opening import open_store
from node.signatures import verify
from node.store import LevelDatabase, layout
from tests.node.ledger_world import ENGINE, Ledger
from tests.node.test_repair import World, add, spoil, world

__all__ = ["world"]


class Killed(BaseException):
    """The process ends at once."""


def fail(monkeypatch: pytest.MonkeyPatch, failure: BaseException, *, at: int) -> None:
    """The rename of that number fails, and no other."""
    genuine, done = Path.rename, 0

    def rename(self: Path, target: Path) -> Path:
        nonlocal done
        done += 1
        if done == at:
            raise failure
        return genuine(self, target)

    monkeypatch.setattr(Path, "rename", rename)


def names(world: World) -> list[str]:
    return sorted(path.name for path in world.data.parent.iterdir())


@pytest.mark.parametrize(
    "at", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3]
)
def test_a_rename_that_fails_leaves_the_damaged_directory_in_its_place(
    world: World, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The node had no data directory then, and would have started without its votes."""
    world.change(spoil(b"b"))
    damaged = world.rows()
    with monkeypatch.context() as patch:
        fail(patch, OSError(5, "Input/output error"), at=at)
        report = world.repair()
    assert report.outcome == "not_repaired"
    assert "Input/output error" in str(report.reason)
    assert world.rows() == damaged
    assert names(world) == ["data"]


def test_a_repair_that_is_killed_between_its_renames_is_finished_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one said that there is no ledger, and told to start the node."""
    before = world.rows()
    world.change(spoil(b"b"))
    with monkeypatch.context() as patch:
        fail(patch, Killed(), at=3)
        with pytest.raises(Killed):
            world.repair()
    assert names(world) == ["data.damaged-1", "data.repaired-1"]
    report = world.repair()
    assert (report.outcome, report.height) == ("nothing_wrong", 3)
    assert world.rows() == before
    assert names(world) == ["data", "data.damaged-1"]


@pytest.mark.slow
def test_a_repair_that_is_killed_before_its_renames_leaves_a_copy_that_nobody_takes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.change(spoil(b"b"))
    with monkeypatch.context() as patch:
        fail(patch, Killed(), at=2)
        patch.setattr("node.repair.directory.drop_stale", lambda data: None)
        with pytest.raises(Killed):
            world.repair()
    assert names(world) == ["data", "data.repaired-1"]
    world.change(add(layout.META_VOTED, b"1"))
    assert finish_replacing(world.data) is None
    assert world.repair().outcome == "repaired"
    assert names(world) == ["data", "data.damaged-1"]


def test_only_the_copy_for_which_the_data_was_moved_away_takes_its_place(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert finish_replacing(data) is None
    assert finish_replacing(tmp_path / "nowhere" / "data") is None
    for name in ("data.damaged-1", "data.repaired-2", "data.repair", "data.repaired-x", "data.damaged-x"):
        (tmp_path / name).mkdir()
    assert finish_replacing(data) is None
    (tmp_path / "data.damaged-2").mkdir()
    assert finish_replacing(data) == tmp_path / "data.damaged-2"
    (data / "row").touch()
    copy = tmp_path / "data.repair"
    assert replace(data, copy) == tmp_path / "data.damaged-3"
    assert list(data.iterdir()) == []
    (tmp_path / "data.repaired-9").mkdir()
    drop_stale(data)
    assert not (tmp_path / "data.repaired-9").exists()
    assert (tmp_path / "data.damaged-3" / "row").exists()


def test_a_node_that_starts_after_it_finishes_it_and_keeps_its_votes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began with an empty directory, and hid the repaired one for good."""
    before = world.rows()
    world.change(spoil(b"b"))
    with monkeypatch.context() as patch:
        fail(patch, Killed(), at=3)
        with pytest.raises(Killed):
            world.repair()
    executor = Executor(world.network, ENGINE, Ledger.registry)
    database: list[LevelDatabase] = []

    def opened(path: Path) -> LevelDatabase:
        database.append(LevelDatabase(path))
        return database[0]

    store = open_store(world.node, world.network, executor, opened, verify, lambda path: None)
    assert (store.head.height, store.memory().voted) == (3, True)
    database[0].close()
    assert {key: value for key, value in world.rows().items() if key in before} == before
