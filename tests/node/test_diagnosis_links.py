"""Whose fault a dead link is: a member's, the line's, or this node's own."""

from typing import Any

import msgspec

from consensus.status import Abstention, Phase
from node.diagnosis import Facts, Heard, Link, diagnose, judge
from node.report import LinkReport
from tests.node.diagnosis_world import NAMES, NOW, culprits, facts, quiet, replica, report, said, without

CLOSED = "lost: 10.0.0.9:1: the other side closed the connection"


def test_a_node_whose_peers_all_close_at_one_time_is_cut_off() -> None:
    known = without(*NAMES[1:], error=CLOSED)
    assert culprits(known) == [("member-0", "isolated")]
    refused = Link(connected=False, silence_ms=9_000, error="unreachable: [Errno 111] Connection refused")
    one_refuses = msgspec.structs.replace(known, links={**known.links, "member-3": refused})
    assert {cause for _, cause in culprits(one_refuses)} == {"member_down"}, "its machine answers: no link is cut"
    earlier = msgspec.structs.replace(refused, error=CLOSED, silence_ms=60_000)
    one_earlier = msgspec.structs.replace(known, links={**known.links, "member-3": earlier})
    assert {cause for _, cause in culprits(one_earlier)} == {"member_down"}, "they did not go at one time"


def test_a_member_that_closed_because_it_heard_nothing_of_this_node_is_not_called_down() -> None:
    known = without("member-3", error=CLOSED)
    unheard = tuple(LinkReport(name, True, 8_000 if name == "member-0" else 300, "", 0) for name in NAMES[:3])
    last = Heard(report("member-3", links=unheard), 9_000)
    known = msgspec.structs.replace(known, reports={**known.reports, "member-3": last})
    assert culprits(known) == [("member-3", "member_unreachable")]
    assert "it had ceased to hear this node; last heard 9.0 s ago" in diagnose(known).headline


def quiet_change(**changes: Any) -> Facts:
    """member-2 asks for view 1 on a quiet day; it alone does not hear the primary, member-0."""
    status = msgspec.structs.replace(
        quiet(me=2),
        phase=Phase.VIEW_CHANGE,
        asked=1,
        askers=(("member-2", 1),),
        missing=("member-0", "member-1", "member-3"),
    )
    gone = Link(connected=False, silence_ms=15_800, error="unreachable: no answer in time")
    here = dict.fromkeys(("member-1", "member-3"), NOW)
    known = facts(member="member-2", status=status, links={"member-0": gone, **here}, waiting_ms=15_800)
    return msgspec.structs.replace(
        known, reports={name: Heard(report(name), 500) for name in here}, idle_ms=20_000, **changes
    )


def test_a_member_that_alone_does_not_hear_the_primary_of_a_quiet_network_blames_its_link() -> None:
    answer = diagnose(quiet_change())
    assert answer.headline == (
        "Nothing waits and the others go on, but this node alone does not hear the primary, member-0:"
        " only the link between this node and member-0 is cut (member-1 and member-3 hear it)."
        " No further member may be away."
    )
    assert (answer.moving, answer.since_ms) == (True, None)
    assert [(item.member, item.cause) for item in answer.culprits] == [("member-0", "link_cut")]
    assert judge(quiet_change()).ready


def test_who_sees_no_reason_for_another_primary_is_not_blamed_and_who_does_is() -> None:
    known = replica(quiet_change(), waiting=True)
    assert culprits(known) == [("member-0", "link_cut")], "work waits at this node alone"
    known = said(known, "member-1", phase="proposal", waiting=1)
    assert culprits(known) == [("member-0", "link_cut"), ("member-1", "votes_missing")]
    assert not diagnose(known).moving


def test_a_node_that_has_just_started_calls_no_link_cut_that_it_dials_again() -> None:
    """The members had started together: each one's first attempt was refused, and the next one a second away."""
    refused = Link(connected=False, error="unreachable: [Errno 111] Connection refused")
    links = {"member-1": NOW, "member-2": refused, "member-3": refused}
    starting = facts(links=links, up_ms=900)
    answer = diagnose(starting)
    assert (answer.known, answer.culprits) == (False, ())
    assert answer.headline == (
        "It is not known yet whether blocks are made: this node has just started and awaits member-2 and member-3."
    )
    late = diagnose(msgspec.structs.replace(starting, up_ms=10_001))
    assert late.headline.startswith("No block can be made: only the link between this node and member-2")


def test_a_node_that_has_just_started_awaits_the_first_word_on_a_link_that_is_up() -> None:
    links = dict.fromkeys(NAMES[1:], Link(connected=True))
    alone = facts(links=links, reports={}, up_ms=300)
    assert (diagnose(alone).known, diagnose(alone).culprits) == (False, ())
    late = diagnose(msgspec.structs.replace(alone, up_ms=10_001))
    assert (late.known, [item.cause for item in late.culprits]) == (True, ["isolated"])


def test_a_node_that_was_named_anew_calls_nobody_down_whose_link_was_given_up_before_its_first_word() -> None:
    """With a new voting key it begins anew: both sides dial, and one link is closed. It said "member_down"."""
    given_up = Link(connected=False, error=CLOSED)
    links = {"member-1": NOW, "member-2": given_up, "member-3": given_up}
    starting = facts(links=links, reports={}, up_ms=900)
    assert (diagnose(starting).known, diagnose(starting).culprits) == (False, ())
    late = diagnose(msgspec.structs.replace(starting, up_ms=10_001))
    assert [item.cause for item in late.culprits] == ["member_down", "member_down"]


def test_a_node_counts_its_own_vote_among_those_that_come_at_its_start() -> None:
    """It waited for one member more than a quorum needs, or said that the network stands still."""
    refused = Link(connected=False, error="unreachable: [Errno 111] Connection refused")
    links = {"member-1": NOW, "member-2": Link(connected=True), "member-3": refused}
    reports = {"member-1": Heard(report("member-1", reaches=NAMES[:3]), 300)}
    confirming = msgspec.structs.replace(quiet(), abstention=Abstention.CONFIRMING)
    starting = facts(links=links, reports=reports, status=confirming, up_ms=900)
    answer = diagnose(starting)
    assert not answer.known
    assert answer.headline.endswith("this node has just started and awaits member-2.")
    heard = msgspec.structs.replace(starting, links={**links, "member-2": NOW})
    assert diagnose(heard).headline.endswith("this node has just started.")
