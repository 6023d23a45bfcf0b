"""Every staged stall is told with its culprit: whole nodes, real parts, virtual time."""

import re
from pathlib import Path

import pytest

from node.diagnosis.facts import STALL_MS_MAX
from node.runtime.node import Node
from tests.stalls.scenes import SCENES, Scene, play
from tests.stalls.stage import Stage
from tests.stalls.table import fault_of, line_of, row_of

ANEW = "scripts/stalls --markdown > docs/stalls.md"


def without_figures(text: str) -> str:
    """`text` without its times, heights and hashes: those move with every change of a time-out."""
    return re.sub(r"\b[0-9a-f]{12,}\b|(?<![\w-])\d[\d.]*(?: min \d+)?", "#", text)


PAGE = [
    without_figures(line)
    for line in (Path(__file__).parents[2] / "docs" / "stalls.md").read_text().splitlines()
    if line.startswith("|")
]
FAST = ("two_killed", "cut_off_self", "wiped")
"""The others take their time: left out of the fast gate."""

PRIMARY_CHANGES = ("primary_hangs", "primary_idles", "primary_slow")
"""Here a quorum is whole, and another primary is on its way."""


@pytest.mark.parametrize(
    "scene",
    [pytest.param(scene, id=scene.name, marks=[] if scene.name in FAST else pytest.mark.slow) for scene in SCENES],
)
def test_why_names_the_culprit(scene: Scene) -> None:
    for answer in play(scene):
        assert fault_of(scene, answer.diagnosis) == "", (answer.asked, answer.diagnosis.sentences)
        # A change of the primary takes a moment and cures itself: readiness does not flicker for it.
        settled = (answer.diagnosis.since_ms or 0) > STALL_MS_MAX or scene.name not in PRIMARY_CHANGES
        if not answer.diagnosis.moving and settled:
            assert not answer.ready
        assert without_figures(line_of(row_of(answer))) in PAGE, f"docs/stalls.md is old: {ANEW}"


def test_a_restart_does_not_make_the_last_block_younger() -> None:
    with Stage().playing() as stage:
        stage.stop_paying()
        stage.pass_time(20_000)
        before = stage.why("bank-2").details["idle_ms"]
        stage.restart("bank-2", make=Node)
        stage.pass_time(2_000)
        # Its time is that of its proposer, some milliseconds before it was applied here.
        assert before + 3_000 <= stage.why("bank-2").details["idle_ms"] <= before + 6_000


def test_the_list_of_members_shows_where_the_asked_node_stands() -> None:
    with Stage().playing() as stage:
        door = stage.host("bank-2").door
        assert door is not None
        rows = {row.id: (row.height, row.view) for row in door.service.members()}
        assert rows["bank-2"] == (door.service.status().height, door.service.status().view)


def test_the_page_of_stalls_shows_these_scenes() -> None:
    rows = [line.split(" | ")[:2] for line in PAGE[2:]]
    staged = [[f"| {without_figures(scene.staged)}", asked] for scene in SCENES for asked in scene.asked]
    assert rows == staged, ANEW
