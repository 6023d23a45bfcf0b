"""Each cause, told from facts: a real replica's snapshot, links and the other members' reports."""

from pathlib import Path

import msgspec
import pytest

from consensus.status import Abstention, LastSuspicion
from node.diagnosis import CAUSES, Heard, Link, Pause, cause_table, diagnose, judge
from node.diagnosis.causes import Finding, action, clause
from node.report import Condition, LinkReport
from tests.consensus.stage import Stage
from tests.node.diagnosis_world import NAMES, NOW, culprits, facts, quiet, replica, report, said, without


def test_a_quiet_network_is_well() -> None:
    answer = diagnose(facts())
    assert answer.headline == "All is well: nothing waits; the last block was applied 2.0 s ago."
    assert (answer.moving, answer.culprits, answer.since_ms) == (True, (), None)
    assert judge(facts()).ready


def test_without_a_block_none_is_called_the_last() -> None:
    answer = diagnose(facts(no_block=True))
    assert answer.headline == "All is well: nothing waits; no block has been made yet."
    assert not any("applied" in text for text in answer.sentences)


def test_a_network_of_one_member_is_well() -> None:
    alone = facts(roles={"member-0": "validator"}, validators=NAMES[:1], links={}, reports={})
    assert judge(replica(alone, quorum=1)).ready


def test_a_stall_counts_from_when_the_quorum_was_lost_whenever_work_came() -> None:
    known = without("member-2", "member-3")
    links = dict(known.links)
    links["member-3"] = Link(connected=False, silence_ms=1_600, error="connection refused")
    assert diagnose(msgspec.structs.replace(known, links=links, idle_ms=30_000)).since_ms == 1_600
    assert diagnose(msgspec.structs.replace(known, idle_ms=30_000, waiting_ms=4_000)).since_ms == 9_000


def test_details_that_differ_are_told_once_one_member_a_sentence() -> None:
    known = without("member-2", "member-3")
    links = dict(known.links)
    links["member-3"] = Link(connected=False, silence_ms=5_000, error="connection refused")
    answer = diagnose(msgspec.structs.replace(known, links=links))
    assert answer.sentences[1:3] == tuple(item.sentence for item in answer.culprits)
    assert not any("member-2 and member-3 are down" in text for text in answer.sentences[1:])


def test_a_link_that_was_never_up_is_not_called_cut_before_it_has_failed() -> None:
    known = facts(links={**facts().links, "member-3": Link(connected=False)})
    assert culprits(known) == []
    links = {name: Link(connected=False) for name in NAMES[1:]}
    assert diagnose(facts(links=links)).headline == (
        "No block can be made: this node has not reached member-1, member-2 and member-3 yet. "
        "1 of 4 members vote and 3 are needed."
    )
    answer = diagnose(facts(links=links, up_ms=300))
    assert answer.headline == (
        "It is not known yet whether blocks are made: "
        "this node has just started and awaits member-1, member-2 and member-3."
    )
    assert (answer.known, answer.moving, answer.since_ms) == (False, False, None)
    assert judge(facts(links=links, up_ms=300)).reasons == (answer.headline,)
    failed = Link(connected=False, error="127.0.0.1:9: no answer in time")
    assert culprits(facts(links={**facts().links, "member-3": failed})) == [("member-3", "link_cut")]


def test_two_of_four_are_down() -> None:
    known = without("member-2", "member-3")
    answer = diagnose(known)
    assert answer.headline == (
        "No block can be made: member-2 and member-3 are down"
        " (connections refused or closed; last heard 9.0 s ago)."
        " 2 of 4 members vote and 3 are needed."
    )
    assert not answer.moving
    assert answer.missing == ("member-2", "member-3")
    assert answer.operator == (
        "Start member-2 and member-3.",
        "Only if machines or disks are lost for good, so that no quorum comes back: docs/recovery.md.",
    )
    assert answer.next.what == "blocks go on as soon as 1 of member-2 and member-3 votes again"
    assert judge(known).reasons == (answer.headline,)


def test_one_of_four_is_down_and_blocks_are_made() -> None:
    known = without("member-3", error="closed: 10.0.0.9:1: the peer stops")
    answer = diagnose(known)
    assert answer.headline == (
        "Blocks are made, but member-3 is down (stopped in good order; last heard 9.0 s ago)."
        " No further member may be away."
    )
    assert answer.moving
    assert judge(known).ready


def test_who_is_away_in_its_window_is_not_called_for() -> None:
    known = without("member-3")
    resting = msgspec.structs.replace(known.status, resting=("member-3",))
    answer = diagnose(msgspec.structs.replace(known, status=resting))
    assert answer.headline == (
        "Blocks are made, but member-3 is away in its maintenance window"
        " (connections refused or closed; last heard 9.0 s ago). No further member may be away."
    )
    assert not any("Start" in line for line in answer.operator)
    # Its vote is missing all the same.
    two = without("member-2", "member-3")
    resting = msgspec.structs.replace(two.status, resting=("member-3",))
    answer = diagnose(msgspec.structs.replace(two, status=resting))
    assert not answer.moving
    assert [(item.member, item.cause) for item in answer.culprits] == [
        ("member-2", "member_down"),
        ("member-3", "in_window"),
    ]


def test_a_split_network_names_both_sides() -> None:
    known = without("member-2", "member-3", error="silent: 10.0.0.9:1: nothing came for 10 s")
    answer = diagnose(known)
    assert answer.headline.startswith(
        "No block can be made: the network is split: member-2 and member-3 are not reached from this side"
        " (member-0 and member-1 are on this side)."
    )
    assert culprits(known) == [("member-2", "network_split"), ("member-3", "network_split")]


def test_a_node_that_reaches_nobody_calls_itself_cut_off() -> None:
    known = without(*NAMES[1:], error="unreachable: no answer in time")
    answer = diagnose(known)
    assert answer.headline == (
        "This node (member-0) is cut off: its links to all other members are dead"
        " (it hears none of member-1, member-2 and member-3)."
    )
    assert answer.culprits[0].member == "member-0"
    assert not judge(known).ready


def test_a_node_whose_peers_all_refuse_connections_is_not_cut_off() -> None:
    known = without(*NAMES[1:], error="unreachable: [Errno 111] Connection refused")
    assert {cause for _, cause in culprits(known)} == {"member_down"}


def test_only_our_own_link_is_cut() -> None:
    known = without("member-3", error="silent: 10.0.0.9:1: nothing came for 10 s")
    known = msgspec.structs.replace(known, reports=facts().reports)
    assert diagnose(known).headline == (
        "Blocks are made, but only the link between this node and member-3 is cut"
        " (member-1 and member-2 hear it). No further member may be away."
    )


def test_what_one_member_says_of_an_absent_one_is_told_as_its_word_and_moves_no_clock() -> None:
    known = without("member-3", error="")
    lies = tuple(
        LinkReport(name, name != "member-3", 300, "it was expelled" if name == "member-3" else "", 10**9)
        for name in NAMES
        if name != "member-1"
    )
    known = said(known, "member-1", links=lies)
    assert culprits(known) == [("member-3", "member_unreachable")]
    assert "it was expelled, by the word of member-1" in diagnose(known).headline


def test_the_last_breath_of_a_dead_member_is_no_proof_of_its_life() -> None:
    known = without("member-3")
    # member-1 reported 5 s ago that it heard member-3 0.3 s before: that was before we lost it.
    old = {**known.reports, "member-1": Heard(report("member-1"), 5_000)}
    links = {**known.links, "member-3": msgspec.structs.replace(known.links["member-3"], silence_ms=5_600)}
    assert culprits(msgspec.structs.replace(known, reports=old, links=links)) == [("member-3", "member_down")]


def test_a_hanging_member_is_connected_and_silent() -> None:
    hanging = Link(connected=True, silence_ms=4_200)
    known = facts(links={**facts().links, "member-3": hanging})
    known = msgspec.structs.replace(
        known,
        reports={name: Heard(report(name, reaches=NAMES[:3]), 500) for name in NAMES[1:3]},
    )
    assert "member-3 is connected and says nothing (last heard 4.2 s ago)" in diagnose(known).headline


@pytest.mark.parametrize(
    ("offset_ms", "text"),
    [(60_000, "60.0 s ahead of the other members'"), (-60_000, "60.0 s behind the other members'")],
)
def test_another_members_clock_is_off(offset_ms: int, text: str) -> None:
    wrong = Link(connected=True, silence_ms=300, clock_offset_ms=offset_ms)
    known = facts(links={**facts().links, "member-2": wrong})
    shown = text.replace("60.0 s", "1 min 0 s")
    assert diagnose(known).headline == f"Blocks are made, but the clock of member-2 is wrong ({shown})."
    assert diagnose(known).operator == ("Correct the clock of member-2 (NTP); nothing needs a restart.",)


def test_our_own_clock_is_off_when_all_others_agree() -> None:
    known = facts(links=dict.fromkeys(NAMES[1:], Link(connected=True, silence_ms=300, clock_offset_ms=-60_000)))
    answer = diagnose(known)
    assert answer.headline == (
        "Blocks are made, but the clock of this node (member-0) is wrong (1 min 0 s ahead of the other members')."
    )
    assert culprits(known) == [("member-0", "clock_off")]


def test_one_lying_clock_moves_nobody_else() -> None:
    liar = Link(connected=True, silence_ms=300, clock_offset_ms=2**40)
    assert culprits(facts(links={**facts().links, "member-1": liar})) == [("member-1", "clock_off")]


def test_a_member_told_of_its_failing_disk_before_it_stopped() -> None:
    known = without("member-2", "member-3")
    last = Condition("disk_failing", "disk_full: No space left on device")
    reports = {**known.reports, "member-3": Heard(report("member-3", conditions=(last,)), 9_000)}
    answer = diagnose(msgspec.structs.replace(known, reports=reports))
    assert "the disk of member-3 fails (disk_full: No space left on device, by its last word 9.0 s ago)" in (
        answer.headline
    )
    assert "Free or repair the disk of member-3, then start its node: nothing decided is lost." in answer.operator


def test_this_nodes_disk_fails() -> None:
    answer = diagnose(facts(failure="disk_full: no space", conditions={"disk_failing": "disk_full: no space"}))
    assert answer.headline == "The disk of this node (member-0) fails (disk_full: no space)."
    assert not answer.moving


def test_this_nodes_disk_is_nearly_full() -> None:
    known = facts(disk_free_bytes=30_000_000, conditions={"disk_low": "30 MB free"})
    assert (
        diagnose(known).headline
        == "Blocks are made, but the disk of this node (member-0) is nearly full (30 MB free)."
    )
    assert judge(known).ready


def test_a_node_at_the_reserve_of_its_disk_says_that_it_stands_still_and_is_not_ready() -> None:
    detail = "30 MB free, 268 MB kept in reserve"
    known = facts(disk_free_bytes=30_000_000, conditions={"disk_full": detail, "disk_low": "30 MB free"})
    answer = diagnose(known)
    assert answer.headline == (
        f"This node (member-0) does not vote because its disk is full up to the reserve ({detail})."
    )
    assert not answer.moving
    assert "Free disk" in answer.operator[0]
    assert [reason for reason in judge(known).reasons if detail in reason]
    assert [culprit.cause for culprit in answer.culprits] == ["disk_full"]


def test_a_member_at_the_reserve_of_its_disk_is_named_by_its_report() -> None:
    known = said(facts(), "member-2", abstention="withheld", conditions=(Condition("disk_full", "30 MB free"),))
    assert (
        "member-2 does not vote because its disk is full up to the reserve (30 MB free)" in diagnose(known).headline
    )


def test_a_member_with_other_contract_code_is_named_with_its_module() -> None:
    known = said(
        facts(), "member-2", contracts_hash=b"\x02" * 32, conditions=(Condition("contracts_differ", "settlement"),)
    )
    assert "member-2 has other contract code and does not vote (settlement)" in diagnose(known).headline


def test_other_code_is_that_of_the_fewer() -> None:
    known = said(facts(), "member-2", contracts_hash=b"\x02" * 32)
    assert culprits(known) == [("member-2", "contracts_differ")]
    for name in NAMES[1:]:
        known = said(known, name, contracts_hash=b"\x02" * 32)
    assert culprits(known) == [], "the others agree: what differs is this node, and its executor says so"


def test_a_member_of_another_network_is_named() -> None:
    known = without("member-3", error="wrong_network: 10.0.0.9:1: network other-00 (00) meets stage-01")
    answer = diagnose(known)
    assert "member-3 runs another network (network other-00 (00) meets stage-01)" in answer.headline
    assert "network.toml" in answer.operator[0]


def test_a_wiped_member_abstains_while_another_is_down() -> None:
    known = said(without("member-3"), "member-2", abstention=Abstention.UNTIL.value, abstain_until=43)
    answer = diagnose(known)
    assert not answer.moving
    assert "member-3 is down" in answer.headline
    assert (
        "member-2 lost its memory of earlier votes and does not vote yet (it votes again above height 43;"
        " no block is known to be decided)" in answer.headline
    )
    assert "2 of 4 members vote and 3 are needed" in answer.headline


def test_a_wiped_member_that_has_just_started_does_not_say_that_nobody_votes() -> None:
    """It said "No block can be made: … 0 of 4 members vote" until the others had dialled it."""
    awaited = {name: Link(connected=False) for name in NAMES[1:]}
    known = replica(facts(links=awaited, reports={}, up_ms=2_000), abstention=Abstention.LOST, abstaining="lost")
    answer = diagnose(known)
    assert answer.headline.startswith("It is not known yet whether blocks are made")
    assert any("this node (member-0) lost its memory" in text.lower() for text in answer.sentences)
    assert not judge(known).ready
    # One that is heard, and two that are awaited, might be a quorum; with one of them down they are none.
    some = msgspec.structs.replace(known, links={**awaited, "member-1": NOW})
    assert not diagnose(some).known
    down = Link(connected=False, error="connection refused")
    gone = msgspec.structs.replace(known, links={**awaited, "member-1": down})
    assert "1 of 4 members vote" not in diagnose(gone).headline
    assert diagnose(gone).headline.startswith("No block can be made: member-1 is down")
    # Who does not come is not awaited for ever.
    late = msgspec.structs.replace(known, up_ms=10_001)
    assert diagnose(late).headline.startswith("No block can be made: this node (member-0) lost its memory")
    assert diagnose(late).known


def test_a_key_in_two_places_while_another_is_down() -> None:
    known = said(without("member-3"), "member-2", abstention=Abstention.KEY_TWICE.value)
    answer = diagnose(known)
    assert "the voting key of member-2 is in use in two places, so member-2 does not vote" in answer.headline
    assert "member-3 is down" in answer.headline


def test_a_diverged_member_while_another_is_down() -> None:
    condition = Condition("diverged", "height 41: transaction ab12, settlement accounts/ACC-1")
    known = said(without("member-3"), "member-2", conditions=(condition,))
    assert (
        "member-2 does not vote because its execution differs from the network's"
        " (height 41: transaction ab12, settlement accounts/ACC-1)" in diagnose(known).headline
    )


def test_this_node_has_diverged() -> None:
    known = facts(conditions={"diverged": "height 41"})
    answer = diagnose(known)
    assert answer.headline.startswith("This node (member-0) does not vote because its execution differs")
    assert not answer.moving
    assert not judge(known).ready


@pytest.mark.parametrize("condition", ["diverged", "contracts_differ"])
def test_a_node_that_executes_otherwise_accuses_no_primary(condition: str) -> None:
    known = replica(facts(waiting_ms=3_000), refusal="state_differs: block 41", primary="member-1")
    assert culprits(known) == [("member-1", "proposal_refused")]
    known = msgspec.structs.replace(known, conditions={condition: "height 41"})
    assert culprits(known) == [("member-0", condition)]


def test_the_change_of_a_silent_primary_is_told_with_who_asks() -> None:
    stage = Stage(me=2)
    stage.work()
    stage.pass_time(500)
    stage.receive(stage.status(1), stage.status(3))
    stage.pass_time(1_700)
    status = stage.replica.status()
    silent = Link(connected=True, silence_ms=2_200)
    known = facts(
        member="member-2",
        status=status,
        links={"member-0": silent, "member-1": NOW, "member-3": NOW},
        reports={name: Heard(report(name), 500) for name in ("member-1", "member-3")},
        waiting_ms=2_200,
    )
    answer = diagnose(known)
    assert answer.headline == (
        "No block for 2.2 s: member-0, the primary, is silent (last heard 2.2 s ago)."
        " View 1 is asked for by 1 of the 3 that are needed."
    )


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("member-1 passes over the oldest transaction", "primary_censoring"),
        ("member-1 is slow", "primary_slow"),
    ],
)
def test_a_bad_primary_is_remembered_after_it_was_replaced(reason: str, cause: str) -> None:
    known = replica(facts(), last_suspicion=LastSuspicion("member-1", reason, 4_000))
    assert culprits(known) == [("member-1", cause)]
    assert "replacement asked for 4.0 s ago" in diagnose(known).headline


def test_a_slow_executor_is_named() -> None:
    stage = Stage(me=1)
    stage.receive(stage.pre_prepare(b"block a"))
    known = facts(
        member="member-1",
        status=stage.replica.status(),
        links=dict.fromkeys(("member-0", "member-2", "member-3"), NOW),
        reports={},
        waiting_ms=7_000,
        step_ms=7_000,
    )
    answer = diagnose(known)
    assert (
        answer.headline
        == "No block for 7.0 s: this node (member-1) is still at work on a block (checking it for 7.0 s)."
    )
    assert not judge(known).ready


def test_a_paused_process_says_that_it_woke() -> None:
    known = facts(pause=Pause(length_ms=42_000, ago_ms=2_000))
    assert diagnose(known).headline == (
        "Blocks are made, but this node (member-0) stood still and woke a moment ago (for 42.0 s, 2.0 s ago)."
    )


def test_a_full_queue_is_told() -> None:
    known = facts(waiting=100)
    assert culprits(known) == [("member-0", "queue_full")]


def test_an_observer_is_ready_and_no_culprit() -> None:
    known = facts(member="auditor", roles={**dict.fromkeys(NAMES, "validator"), "auditor": "observer"})
    known = msgspec.structs.replace(known, status=quiet(me=None), links=dict.fromkeys(NAMES, NOW))
    assert judge(known).ready
    assert culprits(known) == []


def test_a_member_cannot_make_this_node_look_behind() -> None:
    stage = Stage(me=0)
    stage.receive(stage.status(1, height=10**9))
    assert judge(facts(status=stage.replica.status())).ready


def test_old_reports_are_marked() -> None:
    known = without("member-3")
    assert "Old reports: member-3 (9.0 s)." in diagnose(known).sentences
    assert [member.report_old for member in diagnose(known).members] == [False, False, False, True]


def test_every_cause_reads_for_one_member_and_for_two() -> None:
    for code in CAUSES:
        one = clause([Finding("bank-a", code)], "bank-x")
        two = clause([Finding("bank-a", code), Finding("bank-b", code)], "bank-x")
        assert "{" not in one + two
        assert "bank-a and bank-b" in two
        assert "{" not in action([Finding("bank-a", code)], "bank-a")


def test_the_operators_guide_shows_the_table_of_causes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    shown = page.partition("<!-- causes -->\n")[2].partition("<!-- end of causes -->")[0]
    assert shown == cause_table(), "print it anew: hansa docs causes"


def test_a_removed_member_says_that_it_is_one_and_blames_nobody() -> None:
    away = without(*NAMES[1:])
    known = msgspec.structs.replace(away, validators=NAMES[1:], conditions={"removed": "by the members' vote"})
    judged = judge(known)
    assert judged.headline == "This node (member-0) is no member any more (by the members' vote)."
    assert judged.reasons == (judged.headline,)
    assert not judged.ready
    answer = diagnose(known)
    assert not answer.moving
    assert [item.cause for item in answer.culprits] == ["removed"]
    assert answer.next.what == ""


def test_a_newcomer_that_waits_for_votes_tells_nobody_to_start_the_others() -> None:
    """It said that all members were down, and told its operator to start them."""
    waits = {"not_admitted": "until the members have voted for it"}
    known = msgspec.structs.replace(without(*NAMES[1:]), validators=NAMES[1:], conditions=waits)
    answer = diagnose(known)
    told = "This node (member-0) is about to join and has no vote yet (until the members have voted for it)."
    assert (answer.headline, answer.moving) == (told, False)
    assert [item.cause for item in answer.culprits] == ["not_admitted"]
    assert "hansa vote" in answer.operator[0]
    assert not any("start" in text.lower() for text in answer.operator)
    # Once it is linked it follows like anybody, and judges the others.
    linked = facts(validators=NAMES[1:], conditions=waits)
    assert "is about to join" in judge(linked).reasons[0]
    assert diagnose(linked).moving


def test_who_is_suspended_and_away_is_called_suspended_and_nobody_is_told_to_start_it() -> None:
    """After a recovery the members that were left out were called down, with "Start insurer-a and insurer-b"."""
    known = msgspec.structs.replace(
        without("member-2", "member-3"), validators=NAMES[:2], suspended=("member-2", "member-3")
    )
    answer = diagnose(replica(known, quorum=2))
    assert "member-2 and member-3 are suspended and have no vote" in answer.headline
    assert {item.cause for item in answer.culprits} == {"suspended"}
    assert not any("Start" in text for text in answer.operator)
    assert "resume_member" in answer.operator[0]
    # One whose node runs is told of by the ledger too, whatever it says itself.
    assert culprits(facts(validators=NAMES[:3], suspended=("member-3",))) == [("member-3", "suspended")]


def test_a_lost_quorum_is_told_of_the_way_out_and_a_cut_or_a_single_loss_is_not() -> None:
    assert "docs/recovery.md" in diagnose(without("member-2", "member-3")).operator[-1]
    assert "docs/recovery.md" not in " ".join(diagnose(without("member-3")).operator)
    split = diagnose(without("member-2", "member-3", error="silent: 10.0.0.9:1: nothing came for 10 s"))
    assert "docs/recovery.md" not in " ".join(split.operator)


def test_a_suspended_member_is_not_ready_and_says_so() -> None:
    known = facts(validators=NAMES[1:], conditions={"suspended": "by the members' vote"})
    assert "is suspended and has no vote" in judge(known).reasons[0]
