"""What the height in work waits for while enough members are there: the step, and who holds it up."""

from consensus.status import Phase, ReplicaStatus
from consensus.suspicion import PASSES_OVER, SLOW
from node.diagnosis.causes import WEIGHT, Finding
from node.diagnosis.facts import HEARD_MS_MAX, STALL_MS_MAX, Facts
from node.diagnosis.standing import Standing
from node.diagnosis.wording import duration, names, sentence

BUSY_MS_MAX = 1_000
"""An execution or a write that takes longer is worth a sentence."""
VOTE_MS_MAX = 2_000
"""A vote that is waited for longer is late: statuses come twice a second."""
SUSPICION_SHOWN_MS = 60_000
OWN_FAULTS = frozenset({"diverged", "contracts_differ"})
"""A node of which these hold refuses what is right: that accuses nobody."""
UNDECIDED = "no decision in time under"
STEPS = {
    Phase.IDLE: "nothing waits to be decided",
    Phase.BUILD: "this node, the primary, builds a block",
    Phase.PROPOSAL: "the primary's proposal is waited for",
    Phase.CHECK: "this node executes the proposed block",
    Phase.PREPARE: "prepare votes are waited for",
    Phase.COMMIT: "commit votes are waited for",
    Phase.APPLY: "the decided block is being written",
    Phase.VIEW_CHANGE: "another primary is asked for",
    Phase.CATCH_UP: "this node fetches blocks that the others have decided",
}
_DOES = {
    Phase.BUILD: "building it for",
    Phase.CHECK: "checking it for",
    Phase.APPLY: "writing it for",
}
_BUSY = tuple(_DOES)


def voted(status: ReplicaStatus) -> tuple[str, ...]:
    """Who has done what the step waits for."""
    if status.phase == Phase.VIEW_CHANGE and status.asked is not None:
        return tuple(name for name, view in status.askers if view >= status.asked)
    if status.phase == Phase.PREPARE:
        return status.voted_prepare
    return status.voted_commit if status.phase in (Phase.COMMIT, Phase.APPLY) else ()


def step_sentence(facts: Facts) -> str:
    """Where the height in work stands, who has voted and who is missing."""
    status = facts.status
    text = f"Height {status.height}, view {status.view}, primary {status.primary}: {STEPS[status.phase]}"
    if status.phase == Phase.VIEW_CHANGE and status.asked is not None:
        text += f" (view {status.asked})"
    if status.phase in (Phase.PREPARE, Phase.COMMIT, Phase.VIEW_CHANGE):
        text += f"; heard: {names(voted(status))}; missing: {names(status.missing)}"
    return f"{text}. {sentence(last_block(facts))}"


def last_block(facts: Facts) -> str:
    """When the ledger last grew, as a clause."""
    if facts.no_block:
        return "no block has been made yet"
    return f"the last block was applied {duration(facts.idle_ms)} ago"


def asks_alone(facts: Facts) -> bool:
    """Whether this node asks for another primary though nothing waits here, and too few ask for anybody to follow.

    So it is when its own link to the primary is cut on a quiet day: the others hear the primary and see no reason.
    """
    status = facts.status
    if status.phase != Phase.VIEW_CHANGE or status.waiting:
        return False
    return len(voted(status)) <= (len(facts.validators) - 1) // 3


def holders_up(facts: Facts, standings: dict[str, Standing]) -> list[Finding]:
    """Who holds up the step in work, though nothing silences him; the weightiest first."""
    status = facts.status
    found: list[Finding] = []
    if status.phase in _BUSY and facts.step_ms > BUSY_MS_MAX:
        found.append(Finding(facts.member, "executor_slow", f"{_DOES[status.phase]} {duration(facts.step_ms)}"))
    found += [busy for name in facts.others if (busy := _busy(facts, name)) is not None]
    if status.phase == Phase.VIEW_CHANGE:
        found += _suspect(facts, standings)
        if facts.waiting_ms > STALL_MS_MAX:
            late = [name for name in status.missing if _expected(facts, standings, name)]
            found += [_waits(facts, name) for name in late if not _sees_no_reason(facts, name)]
    elif status.phase == Phase.PROPOSAL:
        found += _primary(facts, standings)
    elif status.phase in (Phase.PREPARE, Phase.COMMIT) and facts.step_ms > VOTE_MS_MAX:
        found += [_waits(facts, name) for name in status.missing if _expected(facts, standings, name)]
    odd = not OWN_FAULTS.isdisjoint(facts.conditions)
    if status.refusal and status.primary != facts.member and not odd:
        found.append(Finding(status.primary, "proposal_refused", status.refusal))
    return sorted(found, key=lambda finding: WEIGHT[finding.cause])


def replaced(facts: Facts) -> list[Finding]:
    """The primary that this node lately asked to be replaced, whatever has happened since."""
    last = facts.status.last_suspicion
    if last is None or last.ms_ago > SUSPICION_SHOWN_MS or facts.status.phase == Phase.VIEW_CHANGE:
        return []
    cause = _cause_of(last.reason)
    if cause is None or cause == "primary_silent":
        return []
    return [Finding(last.primary, cause, f"replacement asked for {duration(last.ms_ago)} ago: {last.reason}")]


def _suspect(facts: Facts, standings: dict[str, Standing]) -> list[Finding]:
    """The primary because of which another is asked for."""
    last = facts.status.last_suspicion
    if last is None:
        return []
    known = standings.get(last.primary)
    cause = _cause_of(last.reason)
    if cause is None or known is None or not known.votes or last.primary == facts.member:
        return []
    if cause == "primary_silent" and UNDECIDED in last.reason and _is_heard(facts, last.primary):
        # It has proposed: whose vote lacks is the better answer.
        return []
    detail = last.reason if cause != "primary_silent" else _proposes_nothing(facts, last.primary)
    return [Finding(last.primary, cause, detail)]


def _cause_of(reason: str) -> str | None:
    """The cause behind a suspicion's sentence; None where it names nobody's fault."""
    if reason.endswith(PASSES_OVER):
        return "primary_censoring"
    if reason.endswith(SLOW):
        return "primary_slow"
    silent = ("no proposal from", "no heartbeat from", UNDECIDED)
    return "primary_silent" if reason.startswith(silent) or "did not open view" in reason else None


def _primary(facts: Facts, standings: dict[str, Standing]) -> list[Finding]:
    """Why the primary has not proposed, as far as it is known."""
    name = facts.status.primary
    known = standings.get(name)
    if name == facts.member or known is None or not known.votes:
        return []
    if _busy(facts, name) is not None:
        return []
    if facts.status.passed_over > facts.censorship_blocks // 2:
        return [Finding(name, "primary_censoring", f"the oldest was left out {facts.status.passed_over} times")]
    return [Finding(name, "primary_silent", _proposes_nothing(facts, name))]


def _proposes_nothing(facts: Facts, name: str) -> str:
    return "it is alive and proposes nothing" if _is_heard(facts, name) else _heard(facts, name)


def _is_heard(facts: Facts, name: str) -> bool:
    link = facts.links.get(name)
    return link is not None and link.silence_ms is not None and link.silence_ms < HEARD_MS_MAX // 2


def _heard(facts: Facts, name: str) -> str:
    link = facts.links.get(name)
    if link is None or link.silence_ms is None:
        return "never heard"
    return f"last heard {duration(link.silence_ms)} ago"


def _expected(facts: Facts, standings: dict[str, Standing], name: str) -> bool:
    known = standings.get(name)
    return name != facts.member and known is not None and known.votes


def _sees_no_reason(facts: Facts, name: str) -> bool:
    """Whether nothing waits at a member, by its own word: then it need not ask for another primary."""
    report = facts.fresh_report(name)
    return report is not None and report.phase == Phase.IDLE and report.waiting == 0


def _waits(facts: Facts, name: str) -> Finding:
    """Why a member that is there has not voted, as far as it is known."""
    peer = next((peer for peer in facts.status.peers if peer.member == name), None)
    if peer is not None and peer.height == facts.status.height and peer.view != facts.status.view:
        return Finding(name, "other_view", f"view {peer.view}, this node {facts.status.view}")
    if peer is not None and peer.height < facts.status.height:
        return Finding(name, "behind", f"at height {peer.height} of {facts.status.height}")
    return Finding(name, "votes_missing", _heard(facts, name))


def _busy(facts: Facts, name: str) -> Finding | None:
    """That a validator's executor or disk is at work for long, by its own word."""
    report = facts.fresh_report(name)
    if report is None or name not in facts.validators or report.phase not in _BUSY or report.step_ms <= BUSY_MS_MAX:
        return None
    return Finding(name, "executor_slow", f"{_DOES[Phase(report.phase)]} {duration(report.step_ms)}")
