"""Cutting in a process of its own, at the lowest priority and with rests.

Why: to cut a row costs some twenty microseconds of interpreter time, and all members make a snapshot at the same
height. In a thread of the node that time would be missing from its blocks and hold the interpreter lock, and a
priority could not be lowered: a thread that is put off while it holds the lock holds up the votes with it.

The process reads and writes in the snapshot's directory alone, and ends when the node does: the node's end of a
pipe closes with it, however it ends. Why it failed it says over another pipe, for its disk may be full. Whether a
snapshot is finished, the node says: it gives it its final name.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from node.errors import CATALOGUE, StoreError
from node.signatures.apart import without_secrets
from node.snapshot.cutting import SnapshotTooLarge, Steps, cut
from node.snapshot.folder import SnapshotFolder

POLL_S = 0.01
"""So long a step waits for the process; whoever runs the steps gently rests after it."""
LOWEST_PRIORITY = 19
REST = 9
"""After a step it rests so many times as long as the step took, waiting for a processor included: so it works a
tenth of the time on an idle machine, and less while the nodes are busy. Why not by its priority alone: it would
fill every gap that they leave, and who wakes waits for who runs.
"""
TOLD: Final = 3
"""The exit code of a process that has said why it failed."""
FAILURE_BYTES_MAX: Final = 4096
"""More is not read of what it says. A pipe holds as much without a reader."""
TOO_LARGE = ""
"""In the place of an error's code: the format has no room."""


class _Failure(msgspec.Struct, frozen=True):
    """Why no snapshot can be made of what was set aside."""

    code: str
    message: str


def cut_apart(folder: SnapshotFolder) -> Steps:
    """As `cut`, by another process; a step does little more than to ask whether that has ended.

    Raise what it raises, and StoreError("snapshot_not_cut") when the process ends without a word. It is gone when
    the generator is closed.
    """
    command = [sys.executable, "-P", "-m", "node.snapshot", str(folder.path.resolve())]
    try:
        # In a session of its own: what an operator types is for the node, and Linux shares out time by session.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=without_secrets(os.environ),
            start_new_session=True,
        )
    except OSError as error:
        raise StoreError("snapshot_not_cut", f"no process can be started: {error.strerror}") from error
    with process:
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_S)
                yield
            assert process.stdout is not None
            said = process.stdout.read(FAILURE_BYTES_MAX)
        finally:
            process.kill()
    if process.returncode == TOLD:
        raise _failure(said)
    if process.returncode:
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        raise StoreError("snapshot_not_cut", f"the process that cut it ended by {how}")


def _failure(said: bytes) -> Exception:
    try:
        failure = msgspec.json.decode(said, type=_Failure)
    except msgspec.MsgspecError as error:
        return StoreError("snapshot_not_cut", f"the process that cut it failed, and why cannot be read: {error}")
    if failure.code == TOO_LARGE:
        return SnapshotTooLarge(failure.message)
    return StoreError(failure.code if failure.code in CATALOGUE else "snapshot_not_cut", failure.message)


def run(directory: str, node: int) -> int:
    """Cut what lies in `directory`; return the exit code, or end when `node` (a handle of its pipe) closes."""
    _step_back()
    threading.Thread(target=_end_with, args=(node,), name="end with the node", daemon=True).start()
    began_s = time.perf_counter()
    try:
        for _ in cut(SnapshotFolder(Path(directory))):
            time.sleep(REST * (time.perf_counter() - began_s))
            began_s = time.perf_counter()
    except StoreError as error:
        failure = _Failure(error.code, error.message)
    except SnapshotTooLarge as error:
        failure = _Failure(TOO_LARGE, str(error))
    else:
        return 0
    sys.stdout.buffer.write(msgspec.json.encode(failure))
    return TOLD


def _end_with(node: int) -> None:
    while os.read(node, 1):
        pass
    os._exit(1)


def _step_back() -> None:
    """Everybody else on this machine comes first."""
    os.nice(LOWEST_PRIORITY)
    # Where sessions share the processors, a process's own priority counts within its session only. That session is
    # lowered when it is this process's own: lowering another would last, for all that run in it.
    if os.getsid(0) != os.getpid():
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(LOWEST_PRIORITY))
