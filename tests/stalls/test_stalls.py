"""Every staged stall is told with its culprit: whole nodes, real parts, virtual time."""

import pytest

from node.diagnosis.facts import STALL_MS_MAX
from tests.stalls.scenes import SCENES, Scene, play
from tests.stalls.table import fault_of

FAST = ("two_killed", "cut_off_self", "wiped")
"""The others take their time: left out of the fast gate."""


@pytest.mark.parametrize(
    "scene",
    [pytest.param(scene, id=scene.name, marks=[] if scene.name in FAST else pytest.mark.slow) for scene in SCENES],
)
def test_why_names_the_culprit(scene: Scene) -> None:
    for answer in play(scene):
        assert fault_of(scene, answer.diagnosis) == "", (answer.asked, answer.diagnosis.sentences)
        # A change of the primary takes a moment and cures itself: readiness does not flicker for it.
        if not answer.diagnosis.moving and answer.diagnosis.since_ms > STALL_MS_MAX:
            assert not answer.ready
