"""How rehearsals are drawn and judged: who can meet, when blocks must come and when they must not."""

import pytest

from scripts.localnet.faults import PAUSE_S_MAX, Fault, draw
from scripts.localnet.layout import member_names
from scripts.localnet.rehearsal import heal_times, judge, longest_stall
from scripts.localnet.situation import Change, Situation

MEMBERS = member_names(4)
A, B, C, D = MEMBERS


def situation(*faults: Fault) -> Change:
    """What can be expected of four members while these faults are in force."""
    found = Situation(MEMBERS, quorum=3)
    for fault in faults:
        found.begin(fault)
    return found.change(0.0, "test")


def gone(member: str) -> Fault:
    """A killed member."""
    return Fault("kill", 0, 1, member)


def test_a_seed_draws_the_same_schedule_again_and_others_draw_others() -> None:
    drawn = [draw(seed, MEMBERS) for seed in range(300)]
    assert drawn == [draw(seed, MEMBERS) for seed in range(300)]
    faults = [fault for schedule in drawn for fault in schedule.faults]
    assert {fault.kind for fault in faults} == {
        *("kill", "power cut", "pause", "wipe", "cut", "hole", "half-open", "flap", "isolate", "slow")
    }
    assert max(fault.lasts_s for fault in faults) <= PAUSE_S_MAX
    assert any(fault.lasts_s > PAUSE_S_MAX / 2 for fault in faults)


def test_no_schedule_wipes_more_than_f_or_hits_a_process_twice() -> None:
    for seed in range(300):
        faults = draw(seed, MEMBERS).faults
        assert sum(fault.kind == "wipe" for fault in faults) <= 1
        hit = [fault.member for fault in faults if fault.kind in ("kill", "pause", "wipe")]
        assert len(hit) == len(set(hit))


@pytest.mark.parametrize(
    ("faults", "able", "unable"),
    [
        ((), True, False),
        ((gone(A),), True, False),
        ((gone(A), gone(B)), False, True),
        ((Fault("power cut", 0, 1),), False, True),
        ((Fault("hole", 0, 1, A, B),), True, False),
        ((Fault("hole", 0, 1, A, B), Fault("cut", 0, 1, C, D)), False, False),
        ((Fault("half-open", 0, 1, A, B), gone(C)), False, False),
        ((Fault("isolate", 0, 1, A),), True, False),
        ((Fault("isolate", 0, 1, A), Fault("isolate", 0, 1, B)), False, True),
        ((Fault("slow", 0, 1, A, delay_ms=500), gone(B)), True, False),
        ((Fault("flap", 0, 1, A, B), gone(C)), False, False),
    ],
)
def test_who_can_meet(faults: tuple[Fault, ...], able: bool, unable: bool) -> None:
    change = situation(*faults)
    assert (change.able, change.unable) == (able, unable)


def test_a_wiped_member_counts_again_when_it_votes() -> None:
    found = Situation(MEMBERS, quorum=3)
    wipe = Fault("wipe", 0, 1, A)
    found.begin(wipe)
    found.begin(gone(B))
    found.end(wipe)
    assert not found.change(0.0, "").able
    found.votes_again(A)
    assert found.change(0.0, "").able


def test_blocks_without_a_quorum_and_missing_blocks_are_told() -> None:
    changes = [
        Change(0.0, True, False, "start"),
        Change(10.0, False, True, "two are gone"),
        Change(30.0, True, False, "one is back", heals=True),
    ]
    in_time = [(9.0, 1), (11.0, 2), (33.0, 3), (34.0, 4)]
    assert list(judge(changes, in_time, 10.0)) == []
    assert list(heal_times(changes, in_time)) == [3.0]
    assert longest_stall(changes, in_time) == 9.0
    [too_early] = judge(changes, [(5.0, 1), (20.0, 2), (31.0, 3)], 10.0)
    assert "block 2 came 10.0 s after the last quorum had fallen apart" in too_early
    [too_late] = judge(changes, [(5.0, 1), (45.0, 2)], 10.0)
    assert "no block within 10 s of: one is back (15.0 s)" in too_late
    [never] = judge(changes, [(5.0, 1)], 10.0)
    assert "one is back" in never
