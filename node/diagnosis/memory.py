"""Whether those who lost their memory of earlier votes will vote again, judged from how many still remember.

A member without that memory signs nothing up to the height that it has promised (README 9), and only blocks bring
the network beyond it. So where those who remember are fewer than a quorum, no block is ever made again by itself.
Invariant: this is said only where nothing that is unknown here could make it untrue. For as long as a member that
may remember was never heard, the network may be further than anybody here knows, and then the promise is past.
"""

from collections.abc import Mapping

import msgspec

from consensus.status import Abstention
from node.diagnosis.facts import Facts
from node.diagnosis.standing import Standing


def forgetful(facts: Facts) -> tuple[str, ...]:
    """The validators that cannot sign at the height in work, or ever again, by their own newest word."""
    height = _height_in_work(facts)
    return tuple(name for name in facts.validators if _silent_at(facts, name, height))


def beyond_healing(facts: Facts, members: Mapping[str, Standing]) -> dict[str, Standing]:
    """`members`, with `memory_gone` in place of `memory_lost` where those who remember are fewer than a quorum."""
    silent = forgetful(facts)
    rest = [name for name in facts.validators if name not in silent]
    unknown = any(name != facts.member and name not in facts.reports for name in rest)
    if unknown or len(rest) >= facts.status.quorum:
        return dict(members)
    return {name: _gone(standing, len(rest), facts.status.quorum) for name, standing in members.items()}


def _gone(standing: Standing, remember: int, quorum: int) -> Standing:
    detail = f"{remember} remember and {quorum} are needed"
    findings = tuple(
        msgspec.structs.replace(item, cause="memory_gone", detail=detail) if item.cause == "memory_lost" else item
        for item in standing.findings
    )
    return msgspec.structs.replace(standing, findings=findings)


def _height_in_work(facts: Facts) -> int:
    """The highest height in work that this node has heard of; whoever lies about it hides this finding alone."""
    status = facts.status
    told = [heard.report.height for heard in facts.reports.values()]
    return max(status.height, (status.catch_up_target or 0) + 1, *told, *(peer.height for peer in status.peers))


def _silent_at(facts: Facts, name: str, height: int) -> bool:
    """Whether the member's promise covers `height`; an old word counts, for the promise outlives the process."""
    if name == facts.member:
        code, until = str(facts.status.abstention), facts.status.abstain_until
    else:
        heard = facts.reports.get(name)
        if heard is None:
            return False
        code, until = heard.report.abstention, heard.report.abstain_until
    if code in (Abstention.LOST, Abstention.KEY_TWICE):
        return True
    return code == Abstention.UNTIL and until >= height
