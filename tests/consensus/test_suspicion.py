"""README 6: when another primary is asked for."""

import msgspec

from consensus.effects import Withhold
from consensus.messages import ViewChange
from consensus.pace import Pace

from .stage import Stage, said

A, B = b"block a", b"block b"


def asked(effects: list) -> list[int]:  # type: ignore[type-arg]
    """The views asked for among `effects`."""
    return [message.view for message in said(ViewChange, effects)]


def test_silence_while_work_waits_asks_for_the_next_view() -> None:
    """6.1"""
    stage = Stage(me=1)
    stage.work()
    assert not asked(stage.pass_time(1_900))
    assert asked(stage.pass_time(300)) == [1]
    assert stage.replica.status().suspicion == "no proposal from member-0"


def test_silence_while_nothing_waits_is_peace() -> None:
    """6.1"""
    stage = Stage(me=1)
    assert not asked(stage.pass_time(20_000, alive=(0, 2, 3)))


def test_a_proposal_that_is_not_decided_in_time_accuses_too() -> None:
    """6.1"""
    stage = Stage(me=1)
    stage.follow(A)
    assert asked(stage.pass_time(2_200, alive=(0, 2, 3))) == [1]


def test_the_primary_whose_proposal_finds_no_quorum_asks_too() -> None:
    """6.1"""
    stage = Stage(me=0)
    stage.work()
    stage.built(A)
    assert asked(stage.pass_time(2_200)) == [1]


def test_an_empty_block_that_is_overdue_is_work() -> None:
    """6.1"""
    stage = Stage(me=1, empty_block_interval_ms=3_000)
    assert not asked(stage.pass_time(6_700, alive=(0, 2, 3)))
    assert asked(stage.pass_time(500, alive=(0, 2, 3))) == [1]


def test_a_decision_restarts_the_clock() -> None:
    """6.1"""
    stage = Stage(me=1)
    stage.work()
    for number in range(4):
        assert not asked(stage.pass_time(1_500))
        assert not asked(stage.decide(b"block %d" % number))


def test_who_executes_accuses_nobody() -> None:
    """6.2"""
    stage = Stage(me=1)
    stage.work()
    effects = stage.receive(stage.pre_prepare(A))
    assert not asked(stage.pass_time(10_000))
    assert not asked(stage.checked(effects) + stage.pass_time(1_900))
    assert asked(stage.pass_time(300)) == [1]


def test_an_execution_without_end_is_no_excuse() -> None:
    """6.2"""
    stage = Stage(me=1)
    stage.receive(stage.pre_prepare(A))
    assert not asked(stage.pass_time(29_000))
    assert set(asked(stage.pass_time(4_000))) == {1}


def test_a_block_whose_bytes_nobody_sends_excuses_nobody() -> None:
    """6.2"""
    stage = Stage(me=1)
    stage.work()
    effects = stage.receive(stage.pre_prepare(A))
    views: list[int] = []
    for _ in range(10):
        # Each time the executor looks for the bytes for a second, finds none, and is asked again.
        effects = stage.pass_time(1_000) + stage.checked(effects, valid=None)
        views += asked(effects)
    assert views[:1] == [1]


def test_who_builds_accuses_nobody() -> None:
    """6.2"""
    stage = Stage(me=0)
    stage.work()
    assert not asked(stage.pass_time(10_000))


def test_missing_heartbeats_of_the_primary_accuse_it_while_idle() -> None:
    """6.3"""
    stage = Stage(me=1)
    stage.pass_time(1_000, alive=(0, 2, 3))
    assert not asked(stage.pass_time(1_900, alive=(2, 3)))
    assert asked(stage.pass_time(300, alive=(2, 3))) == [1]


def test_who_hears_nobody_accuses_nobody_while_idle() -> None:
    """6.3"""
    stage = Stage(me=1)
    stage.pass_time(1_000, alive=(0, 2, 3))
    assert not asked(stage.pass_time(20_000))
    assert not asked(stage.pass_time(20_000, alive=(3,)))


def test_time_outs_double_up_to_a_cap() -> None:
    """6.4"""
    stage = Stage(me=0, base_timeout_ms=1_000, timeout_cap_ms=4_000)
    assert [stage.config.timeout_ms(failed) for failed in range(5)] == [1_000, 2_000, 4_000, 4_000, 4_000]
    assert stage.config.timeout_ms(10**9) == 4_000
    assert stage.config.timeout_ms(-1) == 1_000
    stage.work()
    stage.built(None)
    stage.receive(stage.ask(2, 2), stage.ask(3, 2))
    stage.receive(stage.new_view(2, *(stage.ask(index, 2) for index in (1, 2, 3))))
    assert not asked(stage.pass_time(3_900))
    assert asked(stage.pass_time(300)) == [3]


def test_the_view_asked_for_does_not_grow_without_a_quorum() -> None:
    """6.5"""
    stage = Stage(n=7, me=1)
    stage.work()
    assert asked(stage.pass_time(2_200)) == [1]
    stage.receive(*(stage.ask(index, 1) for index in (2, 3, 4)))
    repeated = asked(stage.pass_time(60_000))
    assert set(repeated) == {1}


def test_a_quorum_that_asks_starts_the_clock_of_the_new_primary() -> None:
    """6.5"""
    stage = Stage(me=0, base_timeout_ms=1_000)
    stage.receive(stage.ask(2, 1), stage.ask(3, 1))
    assert stage.replica.status().missing == ("member-1",)
    assert 2 not in asked(stage.pass_time(1_900))
    assert 2 in asked(stage.pass_time(300))


def test_asks_for_higher_views_count_for_the_clock() -> None:
    """6.5"""
    stage = Stage(me=0, base_timeout_ms=1_000)
    stage.receive(stage.ask(2, 1), stage.ask(3, 2**60))
    assert stage.replica.status().asked == 1
    assert 2 in asked(stage.pass_time(2_200))


def test_f_plus_1_askers_are_followed_to_the_lowest_of_their_views() -> None:
    """6.6"""
    stage = Stage(n=7, me=0)
    assert not asked(stage.receive(stage.ask(2, 2**62), stage.ask(3, 2**62)))
    assert asked(stage.receive(stage.ask(4, 3))) == [3]


def test_one_asker_moves_nobody_however_high() -> None:
    """6.6"""
    for n in (2, 3, 4):
        stage = Stage(n=n, me=0)
        assert not asked(stage.receive(stage.ask(1, 2**63 - 1)))


def test_nobody_asks_beyond_the_last_view() -> None:
    """11.4"""
    stage = Stage(me=0)
    assert not asked(stage.receive(stage.ask(2, 2**63 - 1), stage.ask(3, 2**63 - 1)))


def test_a_view_change_on_a_wrong_or_unproven_state_is_not_counted() -> None:
    """5.1"""
    stage = Stage(me=0)
    stage.receive(stage.ask(3, 1))
    unproven = stage.prepared(A, 0, (0, 1))
    for bad in (
        msgspec.structs.replace(stage.ask(2, 1), signature=b"x" * 64),
        stage.ask(2, 1, unproven),
        stage.ask(2, 1, stage.prepared(A, 1)),
        stage.ask(2, 0),
        stage.ask(2, 1, decided=stage.prepared(A)),
    ):
        assert not asked(stage.receive(bad))
    assert stage.replica.status().askers == (("member-3", 1),)


def test_a_primary_that_passes_over_the_oldest_transaction_is_replaced() -> None:
    """6.7"""
    stage = Stage(me=1, passed_over_max=3)
    for passed_over in range(3):
        stage.work(passed_over=passed_over)
        assert not asked(stage.pass_time(200))
    stage.work(passed_over=3)
    assert asked(stage.pass_time(200)) == [1]


def test_what_an_earlier_primary_passed_over_is_not_held_against_the_next() -> None:
    """6.7"""
    stage = Stage(me=0, passed_over_max=3)
    stage.work(passed_over=7)
    stage.receive(stage.open(1))
    assert not asked(stage.pass_time(200))
    stage.work(passed_over=10)
    assert asked(stage.pass_time(200)) == [2]


def test_a_tick_that_jumped_restarts_the_clocks() -> None:
    """6.9"""
    stage = Stage(me=1)
    stage.work()
    stage.pass_time(1_500)
    assert not asked(stage.jump(3_600_000))
    assert not asked(stage.pass_time(1_900))
    assert asked(stage.pass_time(300)) == [1]


def test_a_paused_member_does_not_blame_the_primary_for_its_silence() -> None:
    """6.9"""
    stage = Stage(me=1)
    stage.pass_time(1_000, alive=(0, 2, 3))
    assert not asked(stage.jump(3_600_000))
    assert not asked(stage.pass_time(1_500, alive=(2, 3)))


def run_window(
    pace: Pace, now_ms: int, wait_ms: int, check_ms: int = 20, *, full: bool = True, blocks: int = 10
) -> bool:
    """A second of blocks, each of which is waited for and executed so long; return whether the primary is slow."""
    slow = False
    for block in range(blocks + 1):
        pace.decided(now_ms + block * 1_000 // blocks)
        slow = pace.tick(now_ms, wait_ms, full=full, waiting=True, checking=False)
        slow = pace.tick(now_ms, check_ms, full=full, waiting=False, checking=True) or slow
    return slow


def healthy(windows: int = 6) -> Pace:
    """A pace that knows windows in which a block is waited for 20 ms and executed for 20."""
    pace = Pace(1_000)
    for window in range(windows):
        assert not run_window(pace, window * 2_000, 20)
        pace.restart()
    return pace


def verdicts(
    pace: Pace, *waits_ms: int, check_ms: int = 20, full: bool = True, since_ms: int = 20_000
) -> list[bool]:
    """What each of some windows says, one after the other."""
    return [run_window(pace, since_ms + n * 1_000, ms, check_ms, full=full) for n, ms in enumerate(waits_ms)]


def test_a_primary_that_is_waited_for_twice_as_long_in_two_windows_is_slow() -> None:
    """6.8"""
    assert verdicts(healthy(), 70, 70, 70)[1:] == [True, True]
    assert not any(verdicts(healthy(), 35, 35, 35, 35))


def test_one_slow_window_proves_nothing() -> None:
    """6.8"""
    assert not any(verdicts(healthy(), 70, 20, 70, 20, 70))


def test_few_windows_prove_nothing() -> None:
    """6.8"""
    assert not any(verdicts(healthy(2), 70, 70))


def test_overload_raises_both_times_and_accuses_nobody() -> None:
    """6.8"""
    assert not any(verdicts(healthy(), 70, 70, 70, 70, check_ms=70))


def test_a_delay_that_is_small_beside_a_window_accuses_nobody() -> None:
    """6.8"""
    pace = Pace(1_000)
    for window in range(6):
        run_window(pace, window * 2_000, 2, 2)
        pace.restart()
    assert not any(verdicts(pace, 9, 9, 9, 9, check_ms=2))


def test_a_delay_that_is_small_beside_a_blocks_execution_accuses_nobody() -> None:
    """6.8: ticks sample the times: of a short wait beside long executions two windows differ by chance alone."""
    for late_ms, accused in ((60, False), (100, True)):
        pace = Pace(1_000)
        for window in range(6):
            run_window(pace, window * 2_000, 15, 250, blocks=3)
            pace.restart()
        assert any(verdicts(pace, *[late_ms] * 4, check_ms=250)) is accused


def test_without_a_full_queue_nobody_is_slow() -> None:
    """6.8"""
    assert not any(verdicts(healthy(), 70, 70, 70, 70, full=False))


def test_an_accusation_stands_until_the_primary_is_replaced() -> None:
    """6.8"""
    pace = healthy()
    assert verdicts(pace, 70, 70)[-1]
    assert pace.tick(22_500, 50, full=True, waiting=True, checking=False)
    pace.replaced()
    assert not pace.tick(22_550, 50, full=True, waiting=True, checking=False)


def test_an_accusation_that_nobody_shares_ends() -> None:
    """6.8"""
    pace = healthy()
    assert verdicts(pace, 70, 70)[-1]
    assert not pace.tick(26_000, 50, full=False, waiting=True, checking=False)


def test_the_bar_doubles_when_the_successor_is_no_better() -> None:
    """6.8"""
    for successor_ms, accused in ((70, False), (20, True)):
        pace = healthy()
        assert verdicts(pace, 70, 70)[-1]
        pace.replaced()
        assert not any(verdicts(pace, *[successor_ms] * 10, since_ms=30_000))
        assert any(verdicts(pace, 75, 75, 75, since_ms=50_000)) is accused


def test_a_slow_primary_is_asked_to_go() -> None:
    """6.8"""
    stage = Stage(me=1, base_timeout_ms=1_000)
    stage.work(full=True)
    for number in range(60):
        assert not asked(stage.pass_time(100) + stage.decide(b"%d" % number))
    seen: list[int] = []
    while not seen and stage.height < 80:
        stage.decide(b"%d" % stage.height)
        seen = asked(stage.pass_time(400))
    assert seen == [1]
    assert stage.replica.status().suspicion == "member-0 is slow"


def test_what_is_not_measured_while_nothing_may_be_signed_makes_nobody_slow() -> None:
    """6.8: an abstaining member measures no waits; taken for none at all, every later one would look long."""
    stage = Stage(me=1, base_timeout_ms=1_000)
    stage.work(full=True)
    stage.give(Withhold("its code differs"))
    for number in range(60):
        if number == 30:
            stage.give(Withhold(""))
        assert not asked(stage.pass_time(300, alive=(0, 2, 3)) + stage.decide(b"%d" % number))
