"""The one table of causes: a stable code, how it reads, what to do. `hansa docs causes` prints it.

A clause is written for one member or for several: {who} is "bank-c", "bank-c and bank-d" or "this node (bank-a)",
{is}, {has}, {does} and {its} follow it. {detail} is what is known beside it; of other members it stands in
parentheses behind the clause.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from node.diagnosis.wording import names


class Cause(msgspec.Struct, frozen=True):
    """Why a member, or the whole network, does not do its part.

    `clause` and `action` are patterns. `silences`: the vote of a member of which this is true is not to be had.
    """

    clause: str
    action: str
    silences: bool = False


_CAUSES: dict[str, Cause] = {
    # In the order of their weight: the first that is true of a member is the one that is told.
    "stopping": Cause(
        "{who} {is} stopping",
        "Read node.log of {who} from its last line up, mend what it names, start it again.",
        silences=True,
    ),
    "removed": Cause(
        "{who} {is} no member any more",
        "Nothing is to be mended at {who}: it answers reads from what it has and votes no more. `hansa proposals`"
        " names the proposal and who voted for it.",
        silences=True,
    ),
    "suspended": Cause(
        "{who} {is} suspended and {has} no vote",
        "Let the node of {who} run and follow; an active member's `hansa propose resume_member` and the others'"
        " votes bring its vote back (docs/recovery.md, step 9, where a recovery suspended it).",
        silences=True,
    ),
    "not_admitted": Cause(
        "{who} {is} about to join and {has} no vote yet",
        "Let {who} run and wait. A member's `hansa propose add_member` and the others' `hansa vote` let it in;"
        " `hansa proposals` at one of them shows who has voted and whose readiness lacks.",
        silences=True,
    ),
    "diverged": Cause(
        "{who} {does} not vote because {its} execution differs from the network's",
        "Keep a copy of data/ of {who} for whoever looks into it; install the release that the others run and start"
        " it: it executes the block again and votes if it agrees. If not, wipe data/: it fetches everything again.",
        silences=True,
    ),
    "key_twice": Cause(
        "the voting key of {who} is in use in two places, so {who} {does} not vote",
        "Find and stop the other process that runs with the key of {who} (a copied machine, a restored image)."
        " This key never votes again: rotate it.",
        silences=True,
    ),
    "disk_failing": Cause(
        "the disk of {who} {fails}",
        "Free or repair the disk of {who}, then start its node: nothing decided is lost.",
        silences=True,
    ),
    "disk_full": Cause(
        "{who} {does} not vote because {its} disk is full up to the reserve",
        "Free disk at {who}: it goes on by itself then, and nothing is lost. Nothing needs a restart.",
        silences=True,
    ),
    "other_network": Cause(
        "{who} {runs} another network",
        "Compare network.toml of {who} with that of the other members, file by file; give it the agreed one and a"
        " directory of its own.",
        silences=True,
    ),
    "other_protocol": Cause(
        "{who} {speaks} another version of the protocol",
        "Install the same release at {who} as at the other members.",
        silences=True,
    ),
    "wrong_tls_key": Cause(
        "{who} {shows} a TLS key that is not the member's",
        "Put the right key file back into keys/ of {who} (tls.key; after a rotation the new tls-….key beside it),"
        " or look for a proxy that terminates TLS on the way.",
        silences=True,
    ),
    "tls_key_missing": Cause(
        "{who} {has} no file with the TLS key that the ledger names",
        "Put the file back into keys/ of {who} (`hansa keys list` shows what is there) and restart it before the"
        " overlap with the former key ends: then nobody links to {who} any more.",
    ),
    "isolated": Cause(
        "{who} {is} cut off: {its} links to all other members are dead",
        "Check cable, firewall and the address in `listen` on the machine of {who}; the other members may be well.",
        silences=True,
    ),
    "network_split": Cause(
        "the network is split: {who} {is} not reached from this side",
        "Mend the network between the two sides. Do not restart anything: both sides keep what they have.",
        silences=True,
    ),
    "member_down": Cause("{who} {is} down", "Start {who}.", silences=True),
    "in_window": Cause(
        "{who} {is} away in {its} maintenance window",
        "Nothing: the turns of {who} as primary are skipped. The vote is missing until the node is started again.",
        silences=True,
    ),
    "member_silent": Cause(
        "{who} {is} connected and {says} nothing",
        "Look at the machine of {who}: is the process paused, swapping or without CPU? Restarting it is safe.",
        silences=True,
    ),
    "member_unreachable": Cause(
        "{who} {does} not answer: hung, switched off or cut off",
        "Check the machine of {who} and its network; restarting its node is safe.",
        silences=True,
    ),
    "link_cut": Cause(
        "only the link between this node and {who} is cut",
        "Check firewall and route between this node's machine and that of {who}; both may go on running.",
        silences=True,
    ),
    "other_key": Cause(
        "{who} {signs} with a key that is not the one in the member list",
        "Put the right key file back into keys/ of {who} (voting.key; after a rotation the new voting-….key beside"
        " it) and restart it.",
        silences=True,
    ),
    "contracts_differ": Cause(
        "{who} {has} other contract code and {does} not vote",
        "Install the same release at {who} as at the other members and start it again.",
        silences=True,
    ),
    "withheld": Cause(
        "{who} {does} not vote because {its} own checks forbid it",
        "Read node.log of {who}: it says why: what differs at which block, or which signed recovery waits for"
        " `hansa recovery apply`.",
        silences=True,
    ),
    "memory_gone": Cause(
        "{who} lost {its} memory of earlier votes, and too few members remember theirs: this does not heal by"
        " itself",
        "Change nothing: restarting, wiping or restoring brings no vote back, and what is final stays final. Keep"
        " every data/ as it is, and let the members that remember go on together: docs/recovery.md.",
        silences=True,
    ),
    "memory_lost": Cause(
        "{who} lost {its} memory of earlier votes and {does} not vote yet",
        "Nothing at {who}: the vote comes back by itself when the others have made a few more blocks, which takes a"
        " quorum of members that remember. Do not wipe or restore another member before it is back.",
        silences=True,
    ),
    "confirming": Cause(
        "{who} has just started and {does} not vote yet",
        "Nothing: it votes within seconds.",
        silences=True,
    ),
    "clock_off": Cause(
        "the clock of {who} is wrong",
        "Correct the clock of {who} (NTP); nothing needs a restart.",
    ),
    "primary_silent": Cause(
        "{who}, the primary, {is} silent",
        "Nothing: the others replace it. If it stays silent, look at the machine of {who}.",
    ),
    "primary_censoring": Cause(
        "{who}, the primary, leaves waiting transactions out",
        "Nothing: the others replace it. Ask the operator of {who} why its blocks leave transactions out.",
    ),
    "primary_slow": Cause(
        "{who}, the primary, is slow",
        "Nothing: the others replace it. Look at CPU, disk and network of {who}.",
    ),
    "proposal_refused": Cause(
        "the proposal of {who} was refused",
        "Nothing: the others replace the primary. Keep node.log of {who} if it comes again.",
    ),
    "executor_slow": Cause(
        "{who} {is} still at work on a block",
        "Wait. If it stays so, give {who} more CPU or look for the transaction named in its node.log.",
    ),
    "other_history": Cause(
        "{who} {is} shown another history than {its} own, and does not follow it",
        "Restart or wipe nothing. Either the network was recovered while {who} was away: get the recovery file from"
        " another member, compare its number with a second one, and run `hansa recovery apply`; or others went on"
        " without the members that {who} goes on with: docs/recovery.md.",
    ),
    "joining": Cause(
        "{who} {joins} from a snapshot",
        "Nothing: wait. `hansa status` shows how far it is.",
    ),
    "no_snapshot": Cause(
        "{who} {has} found no snapshot that saves blocks and {executes} every one",
        "Wait, it may take long; or see to it that a member offers a snapshot (`snapshot_blocks` in network.toml,"
        " `keep` under [snapshots] in its node.toml): it is asked for again every minute.",
    ),
    "behind": Cause("{who} {is} behind and {fetches} blocks", "Nothing: wait."),
    "blocks_pruned": Cause(
        "{who} {is} behind and no member that it reaches serves the blocks that it lacks",
        "Connect {who} to a member that keeps all blocks, or let it join from a snapshot.",
    ),
    "other_view": Cause("{who} {is} in another view", "Nothing: wait; views find one another by themselves."),
    "votes_missing": Cause(
        "{who} {is} there, but {its} vote has not come",
        "Wait; if it stays so, read node.log of {who}.",
    ),
    "paused": Cause(
        "{who} stood still and woke a moment ago",
        "Nothing: wait. If it comes again, look for suspended or overcommitted machines at {who}.",
    ),
    "disk_low": Cause("the disk of {who} is nearly full", "Free disk at {who} before its node stops voting."),
    "queue_full": Cause(
        "the queue of {who} is full",
        "Send more slowly (clients are told to wait), or raise mempool_transactions_max in node.toml of {who}.",
    ),
    "other_release": Cause(
        "{who} {runs} another release",
        "Install the same release at all members when it suits.",
    ),
}
CAUSES: Final[Mapping[str, Cause]] = MappingProxyType(_CAUSES)
WEIGHT: Final[Mapping[str, int]] = MappingProxyType({code: place for place, code in enumerate(_CAUSES)})

_SINGULAR: Final = MappingProxyType(
    {"is": "is", "has": "has", "does": "does", "its": "its"}
    | {verb: verb for verb in ("runs", "speaks", "shows", "says", "signs", "fetches", "fails", "joins")}
    | {"executes": "executes"}
)
_PLURAL: Final = MappingProxyType(
    {"is": "are", "has": "have", "does": "do", "its": "their", "runs": "run", "speaks": "speak", "shows": "show"}
    | {"says": "say", "signs": "sign", "fetches": "fetch", "fails": "fail", "joins": "join"}
    | {"executes": "execute"}
)


class Finding(msgspec.Struct, frozen=True):
    """That `cause` is true of `member`; `detail` is what is known beside it."""

    member: str
    cause: str
    detail: str = ""

    @property
    def silences(self) -> bool:
        """Whether the member's vote is not to be had."""
        return CAUSES[self.cause].silences


def clause(findings: Sequence[Finding], me: str, *, brief: bool = False) -> str:
    """The one cause of `findings` as a clause about all their members; `me` reads "this node (…)".

    `brief` leaves out details that are not the same for all of them.
    """
    pattern = CAUSES[findings[0].cause].clause
    details = list(dict.fromkeys(finding.detail for finding in findings if finding.detail))
    if len(details) > 1 and brief:
        details = []
    elif len(details) > 1:
        details = [f"{finding.member}: {finding.detail}" for finding in findings if finding.detail]
    text = pattern.format(who=_who(findings, me), **(_SINGULAR if len(findings) == 1 else _PLURAL))
    return f"{text} ({'; '.join(details)})" if details else text


def action(findings: Sequence[Finding], me: str) -> str:
    """What an operator can safely do about the one cause of `findings`."""
    return CAUSES[findings[0].cause].action.format(who=_who(findings, me))


def grouped(findings: Sequence[Finding]) -> list[list[Finding]]:
    """`findings` by cause, the weightiest first."""
    groups: dict[str, list[Finding]] = {}
    for finding in sorted(findings, key=lambda finding: WEIGHT[finding.cause]):
        groups.setdefault(finding.cause, []).append(finding)
    return list(groups.values())


def cause_table() -> str:
    """The table of causes as Markdown."""
    rows = [f"| `{code}` | {_shown(cause.clause)} | {_shown(cause.action)} |\n" for code, cause in CAUSES.items()]
    return "| cause | what it says | what to do |\n|---|---|---|\n" + "".join(rows)


def _shown(pattern: str) -> str:
    return pattern.format(who="MEMBER", **_SINGULAR).replace("|", "\\|")


def _who(findings: Sequence[Finding], me: str) -> str:
    members = [finding.member for finding in findings]
    return names([f"this node ({me})" if member == me else member for member in members])
