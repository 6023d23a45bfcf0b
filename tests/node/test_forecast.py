"""What a change would do is reckoned from who runs now, with the arithmetic of consensus."""

from contracts import governance
from node.cli.forecast import STRICT_KINDS, ListFacts, forecast, votes_needed
from node.client.answers import MemberDiagnosis, MemberStatus


def bank(place: int) -> str:
    return f"bank-{'abcdef'[place]}"


def member(name: str, standing: str = "active") -> MemberStatus:
    """A validator, but for "watch", which is an observer."""
    return MemberStatus(
        id=name,
        role="observer" if name == "watch" else "validator",
        address="",
        voting_key="",
        tls_key="",
        connected=True,
        standing=standing,
    )


def members(count: int, **standings: str) -> list[MemberStatus]:
    """So many validators and an observer; `standings` by member, with "_" for "-"."""
    names = [*[bank(place) for place in range(count)], "watch"]
    return [member(name, standings.get(name.replace("-", "_"), "active")) for name in names]


def heard(count: int, *down: str, suspended: str = "") -> list[MemberDiagnosis]:
    """What the asked node knows of them."""
    return [
        MemberDiagnosis(
            id=name,
            role="validator",
            reachable=name not in down,
            votes=name not in (*down, suspended),
            cause="member_down" if name in down else "suspended" if name == suspended else "",
        )
        for name in map(bank, range(count))
    ]


def test_removing_a_live_member_of_a_degraded_network_is_told_to_stop_it() -> None:
    found = forecast("remove_member", "bank-d", members(6), heard(6, "bank-e", "bank-f"))
    assert found.before.decides
    assert found.after == ListFacts(
        ("bank-a", "bank-b", "bank-c", "bank-e", "bank-f"),
        1,
        4,
        ("bank-a", "bank-b", "bank-c"),
        {"bank-e": "member_down", "bank-f": "member_down"},
    )
    assert found.refusal == (
        "after it 3 of 5 validators would run (bank-a, bank-b, bank-c) and 4 must agree on every block;"
        " down or silent: bank-e (member_down), bank-f (member_down)"
    )


def test_removing_a_dead_member_is_told_to_be_fine() -> None:
    found = forecast("remove_member", "bank-e", members(6), heard(6, "bank-e", "bank-f"))
    assert (found.after.quorum, found.refusal) == (4, "")


def test_who_comes_back_counts_once_its_node_is_heard() -> None:
    known = members(4, bank_d="suspended")
    back = forecast("resume_member", "bank-d", known, heard(4, "bank-c", suspended="bank-d"))
    assert (back.before.quorum, back.after.quorum, back.after.up) == (2, 3, ("bank-a", "bank-b", "bank-d"))
    assert not back.refusal
    away = forecast("resume_member", "bank-d", known, heard(4, "bank-c", "bank-d", suspended="bank-d"))
    assert "after it 2 of 4 validators would run" in away.refusal


def test_a_node_that_has_just_started_counts_as_running() -> None:
    known = heard(4, "bank-d")
    known[1] = MemberDiagnosis(id="bank-b", role="validator", reachable=True, votes=False, cause="confirming")
    found = forecast("rotate_tls_key", "bank-b", members(4), known)
    assert (found.refusal, found.before.up) == ("", ("bank-a", "bank-b", "bank-c"))


def test_observers_and_keys_change_no_arithmetic() -> None:
    for kind, member in (("remove_member", "watch"), ("rotate_voting_key", "bank-a")):
        found = forecast(kind, member, members(4), heard(4))
        assert found.before == found.after


def test_a_list_without_anybody_decides_nothing() -> None:
    found = forecast("remove_member", "bank-a", members(1), heard(1))
    assert found.after == ListFacts((), 0, 1, ())
    assert found.refusal


def test_a_newcomer_counts_because_it_says_first_that_it_runs() -> None:
    found = forecast("add_member", "bank-e", members(4), heard(4, "bank-d"), "validator")
    assert found.after == ListFacts(
        ("bank-a", "bank-b", "bank-c", "bank-d", "bank-e"),
        1,
        4,
        ("bank-a", "bank-b", "bank-c", "bank-e"),
        {"bank-d": "member_down"},
    )
    assert not found.refusal
    assert forecast("add_member", "bank-e", members(4), heard(4), "observer").after.members == found.before.members
    broken = forecast("add_member", "bank-e", members(4), heard(4, "bank-c", "bank-d"), "validator")
    assert "after it 3 of 5 validators would run" in broken.refusal


def test_a_role_brings_in_and_puts_out() -> None:
    out = forecast("change_role", "bank-b", members(4), heard(4), "observer")
    assert out.after.members == ("bank-a", "bank-c", "bank-d")
    watching = MemberDiagnosis(id="watch", role="observer", reachable=True, votes=False, cause="")
    came = forecast("change_role", "watch", members(4), [*heard(4), watching], "validator")
    assert (came.after.members[-1], came.after.up[-1]) == ("watch", "watch")
    away = forecast("change_role", "watch", members(4), heard(4), "validator")
    assert "watch" not in away.after.up


def test_the_votes_that_are_told_to_be_needed_are_those_that_the_contract_counts() -> None:
    assert STRICT_KINDS == governance.STRICT_KINDS
    for count in range(1, 20):
        names = tuple(f"bank-{number}" for number in range(count))
        now = forecast("remove_member", "nobody", [member(name) for name in names], []).before
        for kind, strict in (("remove_member", False), ("remove_tier", True), ("add_member", True)):
            assert votes_needed(kind, now, ["add_member"]) == governance.votes_needed(count, strict)
