"""`hansa propose`, `vote` and `proposals`: the members change their network, and see first what that would do."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from node.cli import tiers, versions
from node.cli.acting import FAILED, act, as_option, event_data, exit_code, key_option, signed, tried
from node.cli.forecast import KINDS, Forecast, ListFacts, forecast, votes_needed
from node.cli.joining import Request, read_request
from node.cli.options import Directory, Duration, connect, node_option, output_option
from node.cli.output import Output, message
from node.cli.paging import numbered_rows, proposal_view
from node.client import Client, Fate
from node.errors import ConfigError, RejectedTransaction

KNOWN_S_MAX = 15.0
"""A node that has just started, or was named anew, has heard by then whom there is to hear."""
ASK_AGAIN_S = 0.2

anyway_option = click.option(
    "--anyway", is_flag=True, help="Also where the members that run now would not be a quorum after it."
)
METHODS = {
    "add_member": "propose_member",
    "change_parameter": "propose_parameter",
    "remove_tier": "propose_tier_removal",
    **dict.fromkeys(versions.KINDS, "propose_contract"),
}
OPTIONS = {"add_member": "--request FILE", "change_parameter": "--value NUMBER", "remove_tier": "--tier NAME"}


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("member", metavar="MEMBER|PARAMETER|CONTRACT")
@click.option("--value", type=int, help="For change_parameter.")
@click.option("--tier", metavar="NAME", help="For remove_tier: which of the member's own.")
@click.option("--voting-key", metavar="HEX", help="For rotate_voting_key: the public key of `hansa keys rotate`.")
@click.option("--tls-key", metavar="HEX", help="For rotate_tls_key: that of `hansa keys rotate --kind tls`.")
@click.option(
    "--overlap",
    type=Duration(),
    help="For rotate_tls_key: so long the former serves too (default 7d, at most 90d).",
)
@click.option("--role", type=click.Choice(["validator", "observer", "regulator"]), help="For change_role.")
@click.option(
    "--request",
    type=click.Path(path_type=Path, dir_okay=False),
    help="For add_member: what its `hansa init --join` wrote.",
)
@click.option("--version", type=int, help="For a contract: which one (default: the next; the asked node has it).")
@click.option(
    "--at-height", type=int, help="For a contract: not before this height (default: as soon as it can be)."
)
@click.option("--expires", type=Duration(), default="7d", show_default=True, help="At most 90d.")
@click.option("--reason", default="", help="For the other members, on the ledger.")
@click.option("--dry-run", is_flag=True, help="Show what it would do; propose nothing.")
@anyway_option
@as_option
@key_option
@node_option
@output_option
def propose(
    kind: str,
    member: str,
    value: int | None,
    tier: str | None,
    voting_key: str | None,
    tls_key: str | None,
    overlap: int | None,
    role: str | None,
    request: Path | None,
    version: int | None,
    at_height: int | None,
    expires: int,
    reason: str,
    dry_run: bool,
    anyway: bool,
    sender: str | None,
    keys: Sequence[Path],
    nodes: Sequence[str],
    directory: Directory,
    output: Output,
) -> int:
    """Propose a change of MEMBER, of a PARAMETER of the network, or of a CONTRACT, and vote for it by that.

    It takes effect after enough votes, as soon as the nodes of a quorum of the new list have said that they run.
    """
    own = {"add_member": request, "change_parameter": value, "remove_tier": tier}
    _require_fitting(kind, own, (version, at_height))
    given = {"voting_key": voting_key, "tls_key": tls_key}
    more = {"role": role, "tier": tier, "overlap_ms": overlap}
    method = METHODS.get(kind, "propose")
    named = {"member": member} if value is None else {"name": member, "value": value}
    args: dict[str, Any] = {
        **({} if kind in versions.KINDS else named),
        "expires_at_ms": time.time_ns() // 1_000_000 + expires,
        "reason": reason,
        **{name: option for name, option in more.items() if option is not None},
        **{name: _key(text) for name, text in given.items() if text is not None},
    }
    with connect(nodes, directory) as client:
        if method == "propose":
            args["kind"] = kind
        if request is not None:
            args.update(_newcomer(read_request(request, client.status().network, member)))
        expected = _forecast(client, kind, member, args.get("role"))
        if kind in versions.KINDS:
            target, changes = versions.contract_arguments(client, kind, member, version, at_height)
            args.update(target)
        else:
            changes = _changes(client, kind, args)
        if not output.as_json:
            _show_change(output, kind, member, changes, reason)
            _show_forecast(output, expected)
        _warn_of_users(client, kind, member)
        call = (client, f"governance.{method}", args, sender, keys, directory)
        if dry_run:
            # Who has no key at hand is told of a change that is refused here already.
            stops = "" if anyway else expected.refusal
            refused = stops or tried(client, signed(*call)).refusal
            if output.as_json:
                output.document({"changes": changes, "forecast": expected, "refusal": refused})
            return FAILED if refused else 0
        _require_quorum(expected, anyway)
        fate = act(client, signed(*call), output)
        if fate is not None and not output.as_json:
            number = event_data(fate, "Proposed")["proposal"]
            output.text(f"Proposal {number}. The others vote: hansa vote {number} yes")
        return exit_code(fate)


@click.command()
@click.argument("number", type=click.IntRange(min=1))
@click.argument("choice", type=click.Choice(["yes", "no"]))
@anyway_option
@as_option
@key_option
@node_option
@output_option
def vote(
    number: int,
    choice: str,
    anyway: bool,
    sender: str | None,
    keys: Sequence[Path],
    nodes: Sequence[str],
    directory: Directory,
    output: Output,
) -> int:
    """Vote on proposal NUMBER; until it is decided the vote may be changed."""
    with connect(nodes, directory) as client:
        view = proposal_view(client, number)
        expected = _forecast_of(client, view["proposal"])
        if not output.as_json:
            _show_proposal(output, view, expected)
            _show_forecast(output, expected)
        found = view["proposal"]
        _warn_of_users(client, found["kind"], found["subject"].removeprefix(versions.CONTRACT_SUBJECT))
        if choice == "yes":
            _require_quorum(expected, anyway)
        args = {"proposal": number, "yes": choice == "yes"}
        fate = act(client, signed(client, "governance.vote", args, sender, keys, directory), output)
        if fate is not None and came_too_late(fate, number):
            message(f"hansa: proposal {number} was over before the vote came: it does not count. Propose it again.")
            return FAILED
        if fate is not None and not output.as_json:
            now = client.query("governance.proposal", {"proposal": number}).value["proposal"]
            output.text(f"Voted {choice}. Proposal {number} is {_status(now)}.")
        return exit_code(fate)


@click.command()
@click.argument("number", required=False, type=click.IntRange(min=1))
@click.option("--all", "every", is_flag=True, help="Also those that have ended.")
@node_option
@output_option
def proposals(number: int | None, every: bool, nodes: Sequence[str], directory: Directory, output: Output) -> None:
    """Proposals that are voted on or wait; with NUMBER one of them, with before and after and its history."""
    with connect(nodes, directory) as client:
        if number is not None:
            view = proposal_view(client, number)
            expected = None
            if view["proposal"]["status"] in ("open", "waiting"):
                expected = _forecast_of(client, view["proposal"])
            if output.as_json:
                output.document({**view, "forecast": expected})
                return
            _show_proposal(output, view, expected)
            if expected is not None:
                _show_forecast(output, expected)
            return
        rows = numbered_rows(client, "governance.page" if every else "governance.pending")
    if output.as_json:
        output.document({"proposals": rows})
        return
    output.table(
        ["number", "status", "change", "of", "by", "yes", "no"],
        [
            [
                row["number"],
                row["proposal"]["status"],
                row["proposal"]["kind"],
                row["proposal"]["subject"],
                row["proposal"]["proposer"],
                ", ".join(row["yes"]),
                ", ".join(row["no"]),
            ]
            for row in rows
        ],
    )


def _require_fitting(kind: str, own: Mapping[str, object], of_contract: Sequence[object]) -> None:
    """Raise ConfigError unless each kind has the options that belong to it, and no other's."""
    for of, option in OPTIONS.items():
        if (own[of] is None) == (kind == of):
            raise ConfigError("invalid_usage", f"{of}, and nothing else, goes with {option}")
    if kind not in versions.KINDS and any(item is not None for item in of_contract):
        raise ConfigError("invalid_usage", "--version and --at-height go with a change of a contract")


def _forecast(client: Client, kind: str, member: str, role: str | None) -> Forecast:
    deadline = time.monotonic() + KNOWN_S_MAX
    while not (found := client.why()).known and time.monotonic() < deadline:
        time.sleep(ASK_AGAIN_S)
    return forecast(kind, member, client.members(), found.members, role)


def _forecast_of(client: Client, proposal: dict[str, Any]) -> Forecast:
    return _forecast(client, proposal["kind"], proposal["subject"], proposal["after"]["role"])


def _newcomer(request: Request) -> dict[str, Any]:
    """What a newcomer's request says, as arguments of its proposal."""
    return {
        "role": request.role,
        "address": request.address,
        "voting_key": bytes.fromhex(request.voting_key),
        "tls_key": bytes.fromhex(request.tls_key),
        "keys": [bytes.fromhex(key) for key in request.keys],
        "threshold": request.threshold,
    }


def _changes(client: Client, kind: str, args: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Of each field that would change: its name, what it is, what it would be."""
    if kind == "add_member":
        shown = [name for name in ("role", "address", "voting_key", "tls_key") if name in args]
        return [("standing", "absent", "active"), *((name, "", _text(args[name])) for name in shown)]
    if kind == "change_parameter":
        name = args["name"]
        now = {row["name"]: row["value"] for row in client.query("membership.block_limits").value}
        now["ready_blocks"] = client.query("governance.current_rules").value["ready_blocks"]
        return [(name, str(now.get(name, "")), str(args["value"]))]
    if kind == "remove_tier":
        # One that is not there is refused by the ledger.
        every = client.query("membership.tiers", {"member": args["member"]}).value
        found = [tiers.described(item) for item in every if item["name"] == args["tier"]]
        return [("tier", text, "none") for text in found]
    row = client.query("membership.member", {"member": args["member"]}).value
    standings = {"remove_member": "removed", "suspend_member": "suspended", "resume_member": "active"}
    after = {"standing": standings.get(kind, row["standing"])}
    after |= {name: _text(args[name]) for name in ("role", "voting_key", "tls_key") if name in args}
    return [(name, row[name], text) for name, text in after.items() if row[name] != text]


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _show_change(
    output: Output, kind: str, subject: str, changes: Sequence[tuple[str, str, str]], reason: str
) -> None:
    """What is proposed, before anybody is asked for it."""
    told = [(name, f"{before} -> {after}") for name, before, after in changes]
    output.facts([("change", f"{kind} {subject}"), *told, *([("reason", reason)] if reason else [])])


def _warn_of_users(client: Client, kind: str, contract: str) -> None:
    """On stderr, why the change of a contract could not take effect as things are now."""
    against = versions.stands_against(client.contracts(), kind, contract) if kind in versions.KINDS else ""
    if against:
        message(f"hansa: {against}: as things are, this change would end as void (use_not_active).")


def _require_quorum(expected: Forecast, anyway: bool) -> None:
    if expected.refusal and not anyway:
        raise RejectedTransaction("change_stops_network", expected.refusal)


def came_too_late(fate: Fate, number: int) -> bool:
    """Whether all that the vote did was to end the proposal, whose time is over."""
    told = [event for receipt in fate.receipts for event in receipt.events if event.name == "Moved"]
    return any((item.data["proposal"], item.data["status"]) == (number, "expired") for item in told)


def _status(proposal: dict[str, Any]) -> str:
    """How far it is, and where it ended without effect, why."""
    ended = f" ({proposal['ended_code']})" if proposal["ended_code"] else ""
    return f"{proposal['status']}{ended}"


def _show_proposal(output: Output, view: dict[str, Any], expected: Forecast | None) -> None:
    found = view["proposal"]
    yes = ", ".join(view["yes"]) or "nobody"
    if expected is not None and found["status"] == "open":
        yes += f" (of {votes_needed(found['kind'], expected.before, view['rules']['all_but_f'])} that it needs)"
    output.facts(
        [
            ("proposal", view["number"]),
            ("change", f"{found['kind']} {found['subject']}"),
            *(
                [
                    (name.replace("_", " "), found["after"][name])
                    for name in ("role", "address", "voting_key", "tls_key")
                ]
                if found["root"] is not None
                else []
            ),
            *[
                (name.replace("_", " "), f"{found['before'][name]} -> {found['after'][name]}")
                for name in found["before"]
                # A tier's standing reads like its member's: the tier is shown below.
                if found["before"][name] != found["after"][name] and found["tier"] is None
            ],
            *(versions.show_code(found["subject"], found["code"]) if found["code"] is not None else []),
            *([("tier", f"{tiers.described(found['tier'])} -> none")] if found["tier"] is not None else []),
            *([("reason", found["reason"])] if found["reason"] else []),
            ("proposed by", f"{found['proposer']} at height {found['proposed_height']}"),
            ("status", _status(found)),
            ("yes", yes),
            ("no", ", ".join(view["no"]) or "nobody"),
            ("ready", ", ".join(f"{row['member']} (block {row['height']})" for row in view["ready"]) or "nobody"),
        ]
    )
    output.table(
        ["height", "member", "what"], [[step["height"], step["member"], step["what"]] for step in view["history"]]
    )


def _show_forecast(output: Output, expected: Forecast) -> None:
    def row(name: str, facts: ListFacts) -> list[object]:
        return [name, len(facts.members), facts.f, facts.quorum, len(facts.up), ", ".join(facts.up)]

    output.table(
        ["", "validators", "may fail", "quorum", "run now", ""],
        [row("now", expected.before), row("after", expected.after)],
    )
    if expected.refusal:
        output.text(f"It would stop the network: {expected.refusal}.")


def _key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigError("invalid_usage", f"{text!r} is no public key: write 64 hex digits")
    return key
