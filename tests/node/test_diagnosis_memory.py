"""Members that lost their memory of earlier votes: who comes back by himself, and when nobody does any more."""

import msgspec
import pytest

from consensus.status import Abstention
from node.diagnosis import Facts, Heard, diagnose, judge
from tests.node.diagnosis_world import facts, replica, report, said, without

UNTIL = Abstention.UNTIL.value


def at(height: int, known: Facts) -> Facts:
    """`known`, with every member at work on `height`."""
    reports = {
        name: Heard(msgspec.structs.replace(heard.report, height=height), heard.age_ms)
        for name, heard in known.reports.items()
    }
    return replica(msgspec.structs.replace(known, reports=reports), height=height)


def forgot(known: Facts, *names: str, until: int = 35, abstention: str = UNTIL) -> Facts:
    for name in names:
        known = said(known, name, abstention=abstention, abstain_until=until)
    return known


def test_two_of_four_without_memory_are_told_as_what_never_heals() -> None:
    """It said that blocks go on as soon as one of them votes again, and that there was nothing to do."""
    known = forgot(at(34, facts()), "member-2", "member-3")
    answer = diagnose(known)
    assert answer.headline == (
        "No block can be made: member-2 and member-3 lost their memory of earlier votes, and too few members"
        " remember theirs: this does not heal by itself (2 remember and 3 are needed)."
        " 2 of 4 members vote and 3 are needed."
    )
    assert (answer.moving, answer.known, answer.next.what) == (False, True, "")
    assert not any("by itself" in text and text.startswith("Next") for text in answer.sentences)
    assert [item.cause for item in answer.culprits] == ["memory_gone", "memory_gone"]
    assert len(answer.operator) == 1
    assert "docs/recovery.md" in answer.operator[0]
    assert judge(known).reasons == (answer.headline,)


@pytest.mark.parametrize("code", [Abstention.UNTIL, Abstention.LOST])
def test_a_member_without_memory_says_the_same_of_itself(code: Abstention) -> None:
    known = forgot(at(34, facts()), "member-3")
    answer = diagnose(replica(known, abstention=code, abstain_until=35, abstaining="lost its memory"))
    assert answer.headline.startswith("No block can be made: this node (member-0) and member-3 lost their memory")
    assert "does not heal by itself" in answer.headline


def test_one_without_memory_comes_back_by_itself() -> None:
    answer = diagnose(forgot(at(34, facts()), "member-3"))
    assert answer.moving
    assert [item.cause for item in answer.culprits] == ["memory_lost"]
    assert "it votes again above height 35; the last one known to be decided is 33" in answer.headline


def test_the_last_word_of_one_that_is_down_counts_as_long_as_its_promise_does() -> None:
    gone = forgot(at(34, without("member-3")), "member-2", "member-3")
    gone = msgspec.structs.replace(
        gone, reports={**gone.reports, "member-3": Heard(gone.reports["member-3"].report, 60_000)}
    )
    answer = diagnose(gone)
    assert ("member-2", "memory_gone") in [(item.member, item.cause) for item in answer.culprits]
    assert answer.next.what == ""


def test_a_promise_that_the_network_has_passed_is_no_reason_to_despair() -> None:
    """Two restored members that still fetch blocks: the others are far beyond what the two promised."""
    known = at(50, facts())
    for name in ("member-2", "member-3"):
        known = said(known, name, abstention=UNTIL, abstain_until=35, height=20)
    answer = diagnose(known)
    assert {item.cause for item in answer.culprits} == {"memory_lost"}
    assert answer.next.what == "blocks go on as soon as 1 of member-2 and member-3 votes again"


def test_nothing_is_called_lost_for_ever_while_one_that_may_remember_was_never_heard() -> None:
    known = forgot(at(34, without("member-1")), "member-3")
    known = replica(known, abstention=Abstention.UNTIL, abstain_until=35)
    assert "memory_gone" in {item.cause for item in diagnose(known).culprits}
    reports = {name: heard for name, heard in known.reports.items() if name != "member-1"}
    answer = diagnose(msgspec.structs.replace(known, reports=reports))
    assert "memory_gone" not in {item.cause for item in answer.culprits}


def test_who_waits_for_blocks_is_not_named_as_the_one_who_brings_them() -> None:
    """With one member down and one without memory, "as soon as 1 of the two votes again" was half untrue."""
    answer = diagnose(forgot(at(34, without("member-3")), "member-2"))
    assert answer.next.what == "blocks go on as soon as member-3 votes again"
    assert "Start member-3." in answer.operator


def test_how_far_the_network_is_comes_from_who_knows_it() -> None:
    """A node that was behind told of its own height in work: "height 5 is in work" beside a promise of 34."""
    known = replica(at(34, facts()), height=5)
    text = diagnose(forgot(known, "member-3", until=34)).headline
    assert "it votes again above height 34; the last one known to be decided is 33" in text
    old = msgspec.structs.replace(known, reports={"member-3": Heard(report("member-3", height=5), 500)})
    known = replica(forgot(old, "member-3", until=34), catch_up_target=30)
    assert "the last one known to be decided is 30" in " ".join(diagnose(known).sentences)
