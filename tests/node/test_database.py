"""LevelDB as the store opens it, where it takes a process of its own to see."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from node.store.database import MERGING_NICENESS

NICENESSES = """
import os, sys
from pathlib import Path
from node.store.database import LevelDatabase

for name in sys.argv[1:]:
    LevelDatabase(Path(name)).write([(b"key", b"value")])
print(*sorted(os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir("/proc/self/task")))
"""


FORBIDDEN = """
import errno, os, sys
from pathlib import Path
from node.store.database import LevelDatabase

def refused(increment):
    raise PermissionError(errno.EPERM, "Operation not permitted")

os.nice = refused
LevelDatabase(Path(sys.argv[1])).write([(b"key", b"value")])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux alone")
def test_tables_are_merged_at_low_priority_and_nothing_else_is(tmp_path: Path) -> None:
    names = [str(tmp_path / "one"), str(tmp_path / "two")]
    own = os.nice(0)
    for _ in range(2):
        command = [sys.executable, "-c", NICENESSES, *names]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        # One thread merges for both, new ones and those opened again.
        assert said == [str(own), str(min(19, own + MERGING_NICENESS))]


def test_a_sandbox_that_forbids_priorities_keeps_no_database_from_being_opened(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", FORBIDDEN, str(tmp_path / "data")], check=True)
