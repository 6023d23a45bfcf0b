"""Every kind of proposal by the command line on real nodes, carried out and refused."""

import json
import time
from pathlib import Path

import pytest

from scripts.localnet.layout import Layout
from tests.e2e.assembly import Assembly
from tests.e2e.conftest import Bank, Testnet
from tests.e2e.load import until
from tests.e2e.test_joining import running

pytestmark = pytest.mark.slow

NEWCOMER = "bank-z"
FOUNDERS = ("bank-a", "bank-b", "insurer-a", "insurer-b")
ALL = (*FOUNDERS, NEWCOMER)
EXPIRES = "5s"


@pytest.fixture
def assembly(testnet: Testnet, bank: Bank, capsys: pytest.CaptureFixture[str]) -> Assembly:
    return Assembly(testnet, bank, capsys)


def test_every_kind_of_proposal_is_carried_out_and_refused(
    testnet: Testnet, assembly: Assembly, tmp_path: Path
) -> None:
    says = assembly
    # Four are the fewest that this network allows.
    says.refused("too_few_validators", "bank-a", "propose", "suspend_member", "insurer-b")
    says.refused("too_few_validators", "bank-a", "propose", "change_role", "insurer-b", "--role", "observer")
    request = invited(testnet, says, tmp_path)
    with running(testnet, NEWCOMER):
        join = ("add_member", NEWCOMER, "--request", request)
        number = says.agreed(*join, by="bank-a", voters=("bank-b", "insurer-a"))
        says.refused("proposal_not_open", "insurer-b", "vote", number, "yes")
        says.refused("member_exists", "bank-a", "propose", *join)
        says.all_vote(*ALL)
        brief = says.proposed(
            "insurer-b", "change_parameter", "ready_blocks", "--value", "200", "--expires", EXPIRES
        )
        votes_are_counted(says)
        parameters_change(says)
        a_tier_goes(says, tmp_path)
        keys_rotate(testnet, says)
        it_is_suspended(says)
    it_comes_back(testnet, says)
    with running(testnet, NEWCOMER):
        roles_change(says)
        # Long ago it was over: no vote counts.
        until(lambda: time.time_ns() // 1_000_000 > says.found(brief)["expires_at_ms"])
        code, printed = says.say("bank-b", "vote", brief, "yes")
        assert code == 1
        assert "proposal_not_open" in printed or "was over before the vote came" in printed
        assert says.found(brief)["status"] == "expired"
        says.agreed("remove_member", NEWCOMER, by="bank-a", voters=FOUNDERS[1:3])
        says.refused("member_removed", "bank-a", "propose", "resume_member", NEWCOMER)
    assert says.effective == {
        "add_member",
        "remove_member",
        "suspend_member",
        "resume_member",
        "change_role",
        "rotate_voting_key",
        "rotate_tls_key",
        "change_parameter",
        "remove_tier",
    }


def invited(testnet: Testnet, says: Assembly, scratch: Path) -> str:
    """The newcomer's request: it has made its directory by an invitation."""
    invitation = scratch / "invitation.toml"
    invitation.write_text(says.done("bank-a", "invite"))
    listen, api = (f"127.0.0.1:{testnet.base_port + offset}" for offset in (50, 90))
    phrase = str(Layout(testnet.directory).passphrase_file)
    places = ("--listen", listen, "--api", api, "--passphrase-file", phrase)
    says.done(NEWCOMER, "init", "--member", NEWCOMER, "--join", str(invitation), *places)
    return str(testnet.directory / NEWCOMER / "request.json")


def votes_are_counted(says: Assembly) -> None:
    """Of five, four must agree; two that say no are enough to reject; only its proposer takes a proposal back."""
    number = says.proposed("bank-a", "suspend_member", NEWCOMER)
    says.refused("vote_unchanged", "bank-a", "vote", number, "yes")
    says.refused("expiry_out_of_range", "bank-a", "propose", "suspend_member", NEWCOMER, "--expires", "91d")
    for voter in ("bank-b", "insurer-a"):
        says.done(voter, "vote", number, "yes")
    assert says.found(number)["status"] == "open"
    for voter in ("insurer-b", "bank-b"):
        says.done(voter, "vote", number, "no")
    assert says.found(number)["status"] == "rejected"
    number = says.proposed("bank-a", "suspend_member", NEWCOMER)
    back = ("tx", "submit", "governance.withdraw", f"proposal={number}")
    says.refused("not_the_proposer", "bank-b", *back)
    says.done("bank-a", *back)
    assert says.found(number)["status"] == "withdrawn"
    says.refused("proposal_not_found", "bank-a", "tx", "submit", "governance.vote", "proposal=999", "yes=true")


def parameters_change(says: Assembly) -> None:
    limit = "block_transactions_max"
    says.refused("value_out_of_range", "bank-a", "propose", "change_parameter", limit, "--value", "9")
    says.refused("parameter_not_found", "bank-a", "propose", "change_parameter", "base_timeout_ms", "--value", "9")
    says.agreed("change_parameter", limit, "--value", "900", by="bank-a", voters=FOUNDERS[1:])
    assert "900" in says.done("bank-b", "query", "membership.block_limits")


def a_tier_goes(says: Assembly, scratch: Path) -> None:
    """Nobody has its persons' keys: no change of it comes through, and the members vote it away."""
    persons = [f"bank-a/{name}" for name in ("anna", "ben", "cleo")]
    people = [
        {"principal": person, "threshold": 1, "keys": [f"{number:02x}" * 32]}
        for number, person in enumerate(persons, 7)
    ]
    groups = [{"threshold": 2, "persons": persons}]
    tier = {"name": "keys", "principal": "bank-a", "contract": "membership", "groups": groups}
    calls = [*(("add_principal", args) for args in people), ("set_tier", tier)]
    file = scratch / "tier.jsonl"
    lines = [json.dumps({"call": f"membership.{method}", "args": args}) for method, args in calls]
    file.write_text("\n".join(lines))
    says.done("bank-a", "tx", "submit", "--file", str(file))
    removal = ("tx", "submit", "membership.remove_tier", "name=keys")
    says.refused("approval_required", "bank-a", *removal)
    change = ("remove_tier", "bank-a", "--tier", "keys")
    says.refused("not_its_own_tier", "bank-b", "propose", *change)
    number = says.agreed(*change, by="bank-a", voters=FOUNDERS[1:])
    shown = " ".join(says.done("bank-b", "proposals", number).split())
    assert f"bank-a, all of membership: 2 of {', '.join(persons)} -> none" in shown
    # It read as if the member itself went.
    assert "standing" not in shown
    # Nothing but the tier stood against it.
    says.refused("tier_not_found", "bank-a", *removal)


def keys_rotate(testnet: Testnet, says: Assembly) -> None:
    """A member's own new keys, which lie at its node, by the votes of the others."""
    made = {
        kind: json.loads(says.done("bank-b", "keys", "rotate", "--kind", kind, "--json"))["public_key"]
        for kind in ("voting", "tls")
    }
    testnet.run("stop", "bank-b")
    testnet.run("start", "bank-b")
    says.all_vote(*ALL)
    for kind, public in made.items():
        words = (f"rotate_{kind}_key", "bank-b", f"--{kind}-key", public)
        says.refused("not_its_own_key", "bank-a", "propose", *words)
        says.agreed(*words, by="bank-b", voters=("bank-a", "insurer-a", "insurer-b"))
        # Its node begins anew with the new key, and says whom it hears once it has heard.
        says.refused("nothing_to_change", "bank-b", "propose", *words)
    says.refused("key_in_use", "bank-b", "propose", "rotate_voting_key", "bank-b", "--voting-key", made["tls"])


def it_is_suspended(says: Assembly) -> None:
    says.refused("nothing_to_change", "bank-a", "propose", "resume_member", NEWCOMER)
    says.agreed("suspend_member", NEWCOMER, by="bank-a", voters=FOUNDERS[1:])
    until(lambda: "suspended" in says.say(NEWCOMER, "status")[1])
    says.refused("not_a_voter", NEWCOMER, "propose", "remove_member", "bank-a")


def it_comes_back(testnet: Testnet, says: Assembly) -> None:
    """With its node down and one of the four too, its return would stop the network: that is refused, and waits."""
    testnet.run("stop", "insurer-b")
    change = ("propose", "resume_member", NEWCOMER)
    until(lambda: says.say("bank-a", *change, "--dry-run")[0] == 1)
    says.refused("change_stops_network", "bank-a", *change)
    number = says.proposed("bank-a", *change[1:], "--anyway")
    for voter in ("bank-b", "insurer-a"):
        says.refused("change_stops_network", voter, "vote", number, "yes")
        says.done(voter, "vote", number, "yes", "--anyway")
    assert says.found(number)["status"] == "waiting"
    with running(testnet, NEWCOMER):
        says.becomes(number, "effective")
    testnet.run("start", "insurer-b")
    says.all_vote(*FOUNDERS)


def roles_change(says: Assembly) -> None:
    says.all_vote(*ALL)
    says.refused("nothing_to_change", "bank-a", "propose", "change_role", NEWCOMER, "--role", "validator")
    says.agreed("change_role", NEWCOMER, "--role", "observer", by=NEWCOMER, voters=FOUNDERS[:3])
    until(lambda: "(observer" in says.say(NEWCOMER, "status")[1])
    says.refused("not_a_voter", NEWCOMER, "propose", "change_role", NEWCOMER, "--role", "validator")
