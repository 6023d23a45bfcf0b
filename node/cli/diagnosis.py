"""How `hansa why` reads on a terminal, and what it can say where no node answers."""

import fcntl
import os
import shutil
import struct
from pathlib import Path

from rich.text import Text

from node.cli.output import Output
from node.client.answers import Culprit, Diagnosis, MemberDiagnosis
from node.config import NodeConfig
from node.diagnosis.wording import duration, size

CULPRITS_SHOWN_MAX = 8
DISK_FREE_BYTES_MIN = 64 * 1024 * 1024
"""With less a stopped node most likely stopped for it."""
_LOCK_RECORD = "hhqqi"  # struct flock: type, whence, start, length, pid


def show_diagnosis(output: Output, answer: Diagnosis) -> None:
    """One line that says it, then who, which step, what comes next and what to do."""
    if answer.moving:
        sign, style = ("ok", "green") if not answer.culprits else ("ok, but", "yellow")
    elif not answer.known:
        sign, style = "starting", "yellow"
    else:
        since = "" if answer.since_ms is None else f" for {duration(answer.since_ms)}"
        # Most headlines of a stall say it themselves.
        since = "" if since in answer.headline else since
        sign, style = f"not moving{since}", "red"
    output.styled(Text.assemble((f"{sign}: ", f"bold {style}"), (answer.headline or _first(answer), "bold")))
    told = [item for item in answer.culprits if item.sentence in answer.sentences[1:]]
    for culprit in told[:CULPRITS_SHOWN_MAX]:
        output.styled(Text(f"  {culprit.sentence}"))
    rest = [line for line in answer.sentences[1:] if all(line != item.sentence for item in answer.culprits)]
    output.facts(
        [
            *(("fact", line) for line in rest if not line.startswith("Next, by itself")),
            *((("next", _next(answer)),) if answer.next.what else ()),
            *(("do", line) for line in answer.operator),
        ]
    )
    if answer.members:
        output.table(
            ["member", "heard", "by", "votes", "height", "view", "clock", "report", "release", "cause"],
            [_row(member) for member in answer.members],
        )


def _first(answer: Diagnosis) -> str:
    return answer.sentences[0] if answer.sentences else "the node does not say why"


def _next(answer: Diagnosis) -> str:
    when = "" if answer.next.in_ms is None else f"in {duration(answer.next.in_ms)}: "
    return f"{when}{answer.next.what}"


def _row(member: MemberDiagnosis) -> list[object]:
    age = None if member.report_age_ms is None else duration(member.report_age_ms)
    offset = None if member.clock_offset_ms is None else f"{member.clock_offset_ms:+d} ms"
    return [
        member.id,
        member.reachable,
        len(member.reached_by),
        member.votes if member.role == "validator" else "observer",
        member.height,
        member.view,
        offset,
        f"{age}, old" if member.report_old else age,
        member.version or None,
        member.cause or None,
    ]


def absent_node(config: NodeConfig) -> Diagnosis:
    """What the directory of a node whose API does not answer shows: whether a process holds its data, its disk."""
    holder = _holder(config.data_dir / "LOCK")
    free = _free_bytes(config.data_dir)
    me = config.member
    if holder:
        cause, text = "member_silent", f"the process of this node ({me}) runs (pid {holder}) and does not answer"
        action = "It is paused, starting or overloaded: look at the process; stopping and starting it is safe."
    elif free is not None and free < DISK_FREE_BYTES_MIN:
        cause, text = "disk_failing", f"this node ({me}) does not run, and its disk is full ({size(free)} free)"
        action = f"Free disk under {config.data_dir}, then start it with `hansa run`: nothing decided is lost."
    else:
        cause, text = "member_down", f"this node ({me}) does not run"
        action = "Read node.log from its last line up, then start it with `hansa run`."
    sentence = f"{text[:1].upper()}{text[1:]}."
    return Diagnosis(
        moving=False,
        headline=sentence,
        sentences=(sentence,),
        culprits=(Culprit(member=me, cause=cause, sentence=sentence),),
        operator=(action, "Ask another member's node for the network: hansa why --node URL."),
        missing=(me,),
    )


def _holder(lock: Path) -> int:
    """The id of the process that holds the lock file; 0 where none does or nobody can tell."""
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except OSError:
        return 0
    try:
        wanted = struct.pack(_LOCK_RECORD, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(_LOCK_RECORD, fcntl.fcntl(descriptor, fcntl.F_GETLK, wanted))
        return int(pid) if kind != fcntl.F_UNLCK else 0
    except OSError:
        return 0
    finally:
        os.close(descriptor)


def _free_bytes(directory: Path) -> int | None:
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return None
