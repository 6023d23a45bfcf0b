"""`scripts/stalls`: stages every stall, asks why, and prints cause and answer side by side."""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence

import msgspec
from rich.console import Console
from rich.table import Table

from node.client.answers import Diagnosis
from tests.stalls.scenes import SCENES, Answer, Scene, play


class Row(msgspec.Struct, frozen=True):
    """One answer. `fault` is "" when it named the culprits."""

    scene: str
    staged: str
    asked: str
    headline: str
    moving: bool
    ready: bool
    next: str
    operator: tuple[str, ...]
    fault: str
    diagnosis: Diagnosis


def row_of(answer: Answer) -> Row:
    """The row of an answer."""
    found = answer.diagnosis
    return Row(
        scene=answer.scene.name,
        staged=answer.scene.staged,
        asked=answer.asked,
        headline=found.headline,
        moving=found.moving,
        ready=answer.ready,
        next=found.next.what,
        operator=found.operator,
        fault=fault_of(answer.scene, found),
        diagnosis=found,
    )


def fault_of(scene: Scene, found: Diagnosis) -> str:
    """What is wrong with an answer to the scene; "" for a good one."""
    told = {(item.member, item.cause) for item in found.culprits}
    for member, cause in scene.culprits:
        if (member, cause) not in told:
            return f"{cause} of {member} is not among the culprits {sorted(told)}"
        if member not in found.headline:
            return f"the headline does not name {member}"
    strangers = {member for member, _ in told} - {member for member, _ in scene.culprits}
    if strangers:
        return f"{', '.join(sorted(strangers))} did nothing wrong: {sorted(told)}"
    if scene.moving is not None and found.moving != scene.moving:
        return f"moving is {found.moving}"
    return ""


def main(arguments: Sequence[str]) -> int:
    """Print the table; exit 1 when an answer misses its culprit."""
    parser = argparse.ArgumentParser(prog="scripts/stalls", description=__doc__)
    parser.add_argument("scenes", nargs="*", metavar="SCENE", help="only these (default: all)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON document")
    form.add_argument("--markdown", action="store_true", help="docs/stalls.md")
    given = parser.parse_args(arguments)
    unknown = set(given.scenes) - {scene.name for scene in SCENES}
    if unknown:
        parser.error(f"no such scene: {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in SCENES)}")
    started = time.monotonic()
    chosen = [scene for scene in SCENES if not given.scenes or scene.name in given.scenes]
    rows = [row_of(answer) for scene in chosen for answer in play(scene)]
    if given.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(rows)).decode() + "\n")
    elif given.markdown:
        sys.stdout.write(markdown(rows))
    else:
        _show(rows, time.monotonic() - started)
    return 1 if any(row.fault for row in rows) else 0


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a page of the documentation."""
    head = (
        "# Staged stalls, and what `hansa why` says\n\n"
        "Made by `scripts/stalls --markdown`: four whole nodes in virtual time, one thing broken at a time.\n\n"
        "| what was done | asked at | the first line of the answer |\n|---|---|---|\n"
    )
    return head + "".join(f"{line_of(row)}\n" for row in rows)


def line_of(row: Row) -> str:
    """The row as a line of the page's table."""
    return f"| {row.staged} | {row.asked} | {row.headline.replace('|', chr(92) + '|')} |"


def _show(rows: Sequence[Row], seconds: float) -> None:
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    table = Table("staged", "asked", "answer", "do", "", show_lines=True)
    for row in rows:
        verdict = f"[red]{row.fault}[/red]" if row.fault else "[green]right[/green]"
        table.add_row(row.staged, row.asked, row.headline, "\n".join(row.operator), verdict)
    console.print(table)
    wrong = sum(bool(row.fault) for row in rows)
    console.print(f"{len(rows)} answers, {wrong} wrong, {seconds:.1f} s")
