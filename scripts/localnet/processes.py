"""Starts, finds and ends node processes: only those that this test network started, told apart by their start time.

A pid alone may have been given to a stranger since; pid and start time (clock ticks since boot) together may not.
Linux only: reads /proc and uses pidfds, so that a signal never reaches another process.
"""

import contextlib
import errno
import os
import select
import signal
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_exit_codes: dict[int, int] = {}
"""Of the children that were reaped, by pid."""


class Usage(msgspec.Struct, frozen=True):
    """What a process has used since its start: CPU seconds, resident memory now and at its peak (MB), bytes that it
    had the disk write. With all that it started: of those that have ended, CPU seconds alone.

    `mapped_mb` of the resident memory are pages of files (tables of LevelDB, libraries), which the system takes
    back when somebody needs the room.
    """

    cpu_s: float
    rss_mb: float
    mapped_mb: float
    rss_peak_mb: float
    written_bytes: int


def start(command: Sequence[str], environment: Mapping[str, str], log_file: Path) -> tuple[int, int]:
    """Start `command` in a session of its own with its output appended to `log_file`; return (pid, start ticks)."""
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log_file), append, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    pid = os.posix_spawn(command[0], list(command), dict(environment), file_actions=files, setsid=True)
    _exit_codes.pop(pid, None)
    # Even a child that ended at once still has an entry (a zombie) until somebody waits for it.
    found = _stat(pid)
    if found is None:
        raise OSError(errno.ESRCH, f"process {pid} vanished")
    return pid, found[1]


def is_alive(pid: int | None, started_ticks: int | None) -> bool:
    """Whether the process that was started as (pid, ticks) still runs (a zombie does not)."""
    if pid is None:
        return False
    _reap(pid)
    found = _stat(pid)
    return found is not None and found[0] not in "ZX" and found[1] == started_ticks


def interrupt(pid: int | None, started_ticks: int | None) -> None:
    """The process (pid, ticks), if it runs, was asked to end (SIGTERM); nobody waits for it here."""
    tell(pid, started_ticks, signal.SIGTERM)


def end_on_sigterm() -> None:
    """SIGTERM ends this process as Ctrl-C does: what it has started ends with it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def tell(pid: int | None, started_ticks: int | None, number: signal.Signals) -> None:
    """The process (pid, ticks), if it runs, has been sent the signal; nobody waits for what it does."""
    _signal(pid, started_ticks, number, wait_s=0.0)


def end(pid: int | None, started_ticks: int | None, *, kill: bool, timeout_s: float = 20.0) -> bool:
    """The process (pid, ticks) has ended, by SIGKILL if `kill`, else by SIGTERM; False when it did not in time.

    A process that is not that one, or is gone, is left alone.
    """
    return _signal(pid, started_ticks, signal.SIGKILL if kill else signal.SIGTERM, wait_s=timeout_s)


def _signal(pid: int | None, started_ticks: int | None, number: signal.Signals, wait_s: float) -> bool:
    """Send the signal to that process alone; return whether it has ended within `wait_s`."""
    if pid is None:
        return True
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        # Checked after the handle is held: from now on the pid cannot come to mean somebody else.
        if not is_alive(pid, started_ticks):
            return True
        signal.pidfd_send_signal(handle, number)
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        ended = bool(poller.poll(wait_s * 1000))
        if ended:
            _reap(pid)
        return ended
    except ProcessLookupError:
        return True
    finally:
        os.close(handle)


def exit_code(pid: int | None, started_ticks: int | None) -> int | None:
    """The exit code of a child of ours that has ended (negative: by that signal); None: it runs, or nobody
    knows."""
    if pid is None or is_alive(pid, started_ticks):
        return None
    return _exit_codes.get(pid)


def usage(pid: int) -> Usage | None:
    """What the process and all that it started have used so far, or None when it is gone."""
    own = _own_usage(pid)
    if own is None:
        return None
    every = [own, *(found for child in _descendants(pid) if (found := _own_usage(child)) is not None)]
    return Usage(**{name: sum(getattr(item, name) for item in every) for name in Usage.__struct_fields__})


def _descendants(pid: int) -> list[int]:
    """What the process has started, directly or not, and runs now; each thread has a list of its own."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, file.read_text().split())
    return [*found, *(further for child in found for further in _descendants(child))]


def _own_usage(pid: int) -> Usage | None:
    try:
        fields = _after_name(Path(f"/proc/{pid}/stat").read_text())
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        written = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if "VmRSS" not in status:
        return None
    return Usage(
        # man 5 proc_pid_stat: utime and stime, cutime and cstime.
        cpu_s=sum(map(int, fields[11:15])) / TICKS_PER_SECOND,
        rss_mb=int(status["VmRSS"].split()[0]) / 1024,
        mapped_mb=int(status["RssFile"].split()[0]) / 1024,
        rss_peak_mb=int(status["VmHWM"].split()[0]) / 1024,
        written_bytes=int(written["write_bytes"]),
    )


def reset_peak(pid: int) -> None:
    """The peak of resident memory is what is used now, by the process and all that it started."""
    for each in (pid, *_descendants(pid)):
        with contextlib.suppress(OSError):
            Path(f"/proc/{each}/clear_refs").write_text("5")


def used_addresses(wanted: Iterable[str]) -> list[str]:
    """Those of the addresses ("host:port") that nothing can listen on now."""
    taken = []
    for address in wanted:
        host, _, port = address.rpartition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, int(port)))
            except OSError:
                taken.append(address)
    return taken


def _reap(pid: int) -> None:
    """Take the exit status of a child of ours that has ended, so that it does not stay a zombie."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
    if ended:
        _exit_codes[pid] = os.waitstatus_to_exitcode(status)


def _stat(pid: int) -> tuple[str, int] | None:
    """(state letter, start time in ticks) of a process, or None."""
    try:
        fields = _after_name(Path(f"/proc/{pid}/stat").read_text())
    except OSError:
        return None
    return fields[0], int(fields[19])


def _after_name(stat: str) -> list[str]:
    """The fields of /proc/PID/stat from the third (state) on; the second, a name, may hold spaces and brackets."""
    return stat[stat.rindex(")") + 2 :].split()
