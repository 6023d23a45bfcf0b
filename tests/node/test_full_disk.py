"""LevelDB on a disk that fills up to the last byte: whatever it was doing, all that it acknowledged is there."""

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.errors import StoreError
from node.store import LevelDatabase

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
ROOMY = 200


class SmallDisk:
    """A tmpfs at `place` whose size can be changed while files lie on it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        done = self._mount("size=1m")
        if done.returncode:
            pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")

    def _mount(self, options: str) -> subprocess.CompletedProcess[str]:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.place)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def resize(self, kib: int) -> None:
        """The disk holds so many KiB from now on."""
        assert self._mount(f"remount,size={kib}k").returncode == 0

    def unmount(self) -> None:
        """It is gone, with all that lay there."""
        subprocess.run(["umount", "--lazy", str(self.place)], check=False)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    mounted = SmallDisk(tmp_path / "disk")
    yield mounted
    mounted.unmount()


def test_whatever_finds_no_room_costs_nothing_acknowledged(disk: SmallDisk) -> None:
    """Log, flush and compaction meet the last byte in turn; then space is freed, and filled again."""
    chance = random.Random(2)
    known: dict[bytes, bytes] = {}
    for more_mib in (6, 18, 30):
        disk.resize(shutil.disk_usage(disk.place).used // 1024 + more_mib * 1024 + chance.randrange(1024))
        refused = filled_up(disk.place / "data", chance, known)
        assert refused.code == "disk_full"
        assert refused.exit_code == 3
        assert reopened(disk.place / "data") in ("opened", "disk_full")
        disk.resize(ROOMY * 1024)
        database = LevelDatabase(disk.place / "data")
        found = dict(database.scan(b"k", b"l"))
        database.close()
        assert found.items() >= known.items()
        known = found


def reopened(path: Path) -> str:
    """What comes of opening the database on the full disk."""
    try:
        LevelDatabase(path).close()
    except StoreError as error:
        return error.code
    return "opened"


def filled_up(path: Path, chance: random.Random, known: dict[bytes, bytes]) -> StoreError:
    """What the first failed write raised; `known` has all that was acknowledged."""
    try:
        database = LevelDatabase(path)
    except StoreError as error:
        return error
    try:
        while True:
            rows = {b"k%08d" % chance.randrange(4_000): chance.randbytes(3_000) for _ in range(20)}
            database.write(rows.items())
            known.update(rows)
    except StoreError as error:
        with pytest.raises(StoreError):
            database.write([(b"later", b"")])
        return error
    finally:
        database.close()
