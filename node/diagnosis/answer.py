"""Puts the diagnosis together: one headline that names the culprit, then everything that an operator needs."""

from collections.abc import Sequence

import msgspec

from consensus.status import Abstention, Phase
from node.client.answers import Culprit, Diagnosis, MemberDiagnosis, NextEvent, StepStatus
from node.diagnosis.causes import Finding, action, clause, grouped
from node.diagnosis.facts import HEARD_MS_MAX, REPORT_MS_MAX, STALL_MS_MAX, Facts
from node.diagnosis.memory import beyond_healing, forgetful
from node.diagnosis.stall import asks_alone, holders_up, last_block, replaced, step_sentence, voted
from node.diagnosis.standing import Standing, standings, vanished
from node.diagnosis.wording import duration, names, sentence

_SELF_FATAL = (
    "stopping",
    "removed",
    "diverged",
    "disk_failing",
    "disk_full",
    "key_twice",
    "contracts_differ",
    "other_network",
)
SLOW_MS_MAX = 1_000
"""Work that waits longer for a block is worth a look at who holds it up."""
STILL_MS_MAX = 2_000
"""Work that waits longer is not moving, though it may be too early to call it a stall."""


class Judgement(msgspec.Struct, frozen=True):
    """What the facts amount to.

    `blocked`: too few votes are to be had. `unknown`: with those of members whose first word is still awaited, and
    this node's own, which comes within seconds of its start, there may be enough. `stalled`: enough are, and yet
    work waits; `still`: it has waited for a while, or another primary is asked for. `ready`: this node follows
    the network, does its part, and blocks can be made; else `reasons`. `findings` are all causes, by weight.
    """

    members: dict[str, Standing]
    findings: tuple[Finding, ...]
    voting: tuple[str, ...]
    blocked: bool
    unknown: bool
    stalled: bool
    still: bool
    headline: str
    reasons: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons


def judge(facts: Facts) -> Judgement:
    """Return what the facts amount to."""
    outside = _put_outside(facts)
    if outside:
        return _outside(facts, outside)
    members = beyond_healing(facts, _sides(facts, standings(facts)))
    voting = tuple(name for name in facts.validators if members[name].votes)
    blocked = len(voting) < facts.status.quorum
    awaited = [name for name in facts.validators if members[name].awaited]
    confirming = facts.member in facts.validators and _only_confirms(members[facts.member])
    unknown = blocked and len(voting) + len(awaited) + confirming >= facts.status.quorum
    alone = not blocked and asks_alone(facts)
    waiting_ms = 0 if alone else facts.waiting_ms
    stalled = not blocked and waiting_ms > STALL_MS_MAX
    findings = [finding for standing in members.values() for finding in standing.findings[:2]]
    changing = facts.status.phase is Phase.VIEW_CHANGE and not alone
    # Where votes lack, nobody else holds anything up.
    look = not blocked and (changing or waiting_ms > SLOW_MS_MAX)
    held_up = holders_up(facts, members) if look else []
    known = {(finding.member, finding.cause) for finding in findings}
    old = [] if blocked else replaced(facts)
    findings += [item for item in (*held_up, *old) if (item.member, item.cause) not in known]
    ordered = tuple(finding for group in grouped(findings) for finding in group)
    still = changing or waiting_ms > STILL_MS_MAX
    if unknown and not facts.failure:
        why = f"this node has just started{f' and awaits {names(awaited)}' if awaited else ''}"
        headline = f"It is not known yet whether blocks are made: {why}."
    else:
        headline = _headline(facts, members, ordered, held_up, voting, blocked, still)
    reasons = _reasons(facts, members, headline, blocked, stalled)
    return Judgement(members, ordered, voting, blocked, unknown, stalled, still, headline, reasons)


def _only_confirms(standing: Standing) -> bool:
    """Whether nothing silences it but that it has just started."""
    return {finding.cause for finding in standing.findings if finding.silences} == {"confirming"}


def _put_outside(facts: Facts) -> str:
    """By which condition the others have no links with this node, as they should; empty: by none."""
    if "removed" in facts.conditions:
        return "removed"
    alone = not any(facts.hears(name) for name in facts.others)
    return "not_admitted" if alone and "not_admitted" in facts.conditions else ""


def _outside(facts: Facts, cause: str) -> Judgement:
    """What a node can say that is none of the members': that it is one. It blames nobody for closed links."""
    found = standings(facts)
    own = found[facts.member]
    members = {
        name: standing if name == facts.member else msgspec.structs.replace(standing, findings=())
        for name, standing in found.items()
    }
    told = [finding for finding in own.findings if finding.cause == cause]
    headline = sentence(clause(told, facts.member))
    return Judgement(members, own.findings, (), False, False, False, False, headline, (headline,))


def diagnose(facts: Facts) -> Diagnosis:
    """Return the answer to why blocks are made or not made."""
    judged = judge(facts)
    status = facts.status
    fatal = [f for f in judged.members[facts.member].findings if f.cause in _SELF_FATAL]
    moving = not (judged.blocked or judged.still or fatal or _put_outside(facts))
    groups = grouped(judged.findings)
    sentences = [judged.headline]
    for group in groups:
        if clause(group, facts.member).lower() not in judged.headline.lower():
            sentences += _told(group, facts.member)
    sentences += [step_sentence(facts), *_old(facts)]
    next_event = _next(facts, judged)
    if next_event.what:
        when = "" if next_event.in_ms is None else f" in {duration(next_event.in_ms)}"
        sentences.append(f"Next, by itself{when}: {next_event.what}.")
    return Diagnosis(
        moving=moving,
        sentences=tuple(sentences),
        headline=judged.headline,
        known=not judged.unknown,
        since_ms=None if moving or judged.unknown else _since_ms(facts, judged),
        culprits=tuple(
            Culprit(member=item.member, cause=item.cause, sentence=sentence(clause([item], facts.member)))
            for item in judged.findings
        ),
        next=next_event,
        operator=tuple(
            dict.fromkeys([action(group, facts.member) for group in groups] + _last_resort(facts, judged))
        )
        or ("Nothing: wait.",),
        height=status.height,
        view=status.view,
        phase=status.phase.value,
        step=StepStatus(voted=voted(status), missing=status.missing),
        members=tuple(_member(facts, judged.members[name]) for name in facts.roles),
        missing=tuple(name for name in facts.validators if not judged.members[name].heard),
        details={
            "height": status.height,
            "view": status.view,
            "primary": status.primary,
            "phase": status.phase.value,
            "quorum": status.quorum,
            "voting": list(judged.voting),
            "prepared_by": list(status.voted_prepare),
            "committed_by": list(status.voted_commit),
            "asking_for_view": dict(status.askers),
            "idle_ms": facts.idle_ms,
            "waiting_ms": facts.waiting_ms,
            "waiting_transactions": facts.waiting,
        },
    )


def _last_resort(facts: Facts, judged: Judgement) -> list[str]:
    """What there is where those who are not heard never come back, and the others are too few without them."""
    heard = [name for name in facts.validators if judged.members[name].heard]
    cut_off = any(item.cause in ("isolated", "network_split") for item in judged.findings)
    if not judged.blocked or judged.unknown or cut_off or len(heard) >= facts.status.quorum:
        return []
    return ["Only if machines or disks are lost for good, so that no quorum comes back: docs/recovery.md."]


def _told(group: Sequence[Finding], me: str) -> list[str]:
    """One cause in sentences: one for all its members, or one for each where the details differ."""
    alike = len({finding.detail for finding in group}) == 1
    return [sentence(clause(findings, me)) for findings in ([group] if alike else [[item] for item in group])]


def _since_ms(facts: Facts, judged: Judgement) -> int:
    """For how long nothing has moved: work waits, or the member went away without which there is no quorum."""
    away = [name for name in facts.validators if name in facts.links and not judged.members[name].heard]
    silences = [facts.links[name].silence_ms for name in away]
    gone = sorted((ms for ms in silences if ms is not None), reverse=True)
    needed = len(facts.validators) - facts.status.quorum + 1
    if judged.blocked and len(gone) >= needed:
        return max(facts.waiting_ms, min(gone[needed - 1], facts.idle_ms))
    return facts.waiting_ms or facts.idle_ms


def _sides(facts: Facts, members: dict[str, Standing]) -> dict[str, Standing]:
    """Members that nobody here hears, seen together: is this node cut off, or the network split?

    Who refuses connections is down, for a cut cable refuses nothing. Whose connection was closed is down too,
    unless those of all others were closed at the same time: then what they have in common is this node's own link.
    """
    absent = [name for name in facts.validators if not members[name].heard]
    others = [name for name in facts.validators if name != facts.member]
    explained = {"member_silent", "member_unreachable", "clock_off", "other_release"}
    if len(others) > 1 and absent == others and _at_once(facts, members, others):
        explained.add("member_down")
    soft = [
        name
        for name in absent
        if members[name].findings and all(item.cause in explained for item in members[name].findings)
    ]
    if len(others) > 1 and absent == others and soft == others:
        alone = Finding(facts.member, "isolated", f"it hears none of {names(others)}")
        own = members[facts.member]
        members[facts.member] = msgspec.structs.replace(own, findings=(alone, *own.findings))
        for name in others:
            # Nothing is known of them that the one cut does not explain.
            members[name] = msgspec.structs.replace(members[name], findings=())
    elif len(soft) > 1 and len(soft) >= len(facts.validators) - facts.status.quorum + 1:
        here = [name for name in facts.validators if members[name].heard]
        for name in soft:
            split = Finding(name, "network_split", f"{names(here)} are on this side")
            if len(here) == 1:
                split = msgspec.structs.replace(split, detail=f"{names(here)} is on this side")
            rest = tuple(item for item in members[name].findings if item.cause == "clock_off")
            members[name] = msgspec.structs.replace(members[name], findings=(split, *rest))
    return members


def _at_once(facts: Facts, members: dict[str, Standing], others: Sequence[str]) -> bool:
    """Whether this node lost all `others` at one time, and no machine of theirs has refused a connection since."""
    links = [facts.links[name] for name in others if name in facts.links]
    known = [link.silence_ms for link in links if link.silence_ms is not None]
    if len(known) < len(others) or max(known) - min(known) > HEARD_MS_MAX:
        return False
    down = [name for name in others if any(item.cause == "member_down" for item in members[name].findings)]
    return all(vanished(facts, name) for name in down)


def _headline(
    facts: Facts,
    members: dict[str, Standing],
    findings: Sequence[Finding],
    held_up: Sequence[Finding],
    voting: Sequence[str],
    blocked: bool,
    unmoved: bool,
) -> str:
    me = facts.member
    own = members[me].findings
    if facts.failure:
        return sentence(clause([own[0]], me)) if own else sentence(f"this node ({me}) is stopping: {facts.failure}")
    tally = f"{len(voting)} of {len(facts.validators)} members vote and {facts.status.quorum} are needed"
    if any(finding.cause == "isolated" for finding in own):
        return sentence(clause([own[0]], me))
    if blocked:
        silent = [_first_silencing(members[name]) for name in facts.validators if not members[name].votes]
        told = "; ".join(
            clause(group, me, brief=True) for group in grouped([item for item in silent if item is not None])
        )
        told = told or f"this node has not reached {names([n for n in facts.validators if n not in voting])} yet"
        return f"No block can be made: {told}. {tally[:1].upper()}{tally[1:]}."
    fatal = [finding for finding in own if finding.cause in _SELF_FATAL]
    if fatal:
        return sentence(clause([fatal[0]], me))
    if unmoved:
        since = f"for {duration(max(facts.waiting_ms, 1))}" if facts.waiting_ms else "now"
        culprits = grouped([*held_up, *(f for f in findings if f.silences or f.cause == "clock_off")])
        if culprits:
            told = "; ".join(clause(group, me, brief=True) for group in culprits[:2])
            return f"No block {since}: {told}.{_change(facts)}"
        return f"No block {since}, and no member stands out: the step below says what is waited for."
    if asks_alone(facts):
        return f"{_alone(facts, members, findings)}{_margin(facts, voting)}"
    if own:
        return f"Blocks are made, but {clause([own[0]], me)}."
    if findings:
        told = "; ".join(clause(group, me, brief=True) for group in grouped(findings)[:2])
        return f"Blocks are made, but {told}.{_margin(facts, voting)}"
    if facts.status.phase is Phase.IDLE:
        return f"All is well: nothing waits; {last_block(facts)}."
    if facts.no_block:
        return "All is well: the first block is being made."
    return f"All is well: blocks are made; the last one was applied {duration(facts.idle_ms)} ago."


def _alone(facts: Facts, members: dict[str, Standing], findings: Sequence[Finding]) -> str:
    """Why this node alone asks for another primary, on a quiet day."""
    primary = facts.status.primary
    told = "; ".join(clause(group, facts.member, brief=True) for group in grouped(findings)[:2])
    what = "asks for another primary" if members[primary].heard else f"does not hear the primary, {primary}"
    return f"Nothing waits and the others go on, but this node alone {what}{': ' * bool(told)}{told}."


def _first_silencing(standing: Standing) -> Finding | None:
    return next((finding for finding in standing.findings if finding.silences), None)


def _change(facts: Facts) -> str:
    """How far the change of primary has come."""
    status = facts.status
    if status.phase is not Phase.VIEW_CHANGE or status.asked is None:
        return ""
    asking = voted(status)
    if len(asking) >= status.quorum:
        return f" View {status.asked} is asked for by a quorum; {names(status.missing)} has to open it."
    return f" View {status.asked} is asked for by {len(asking)} of the {status.quorum} that are needed."


def _margin(facts: Facts, voting: Sequence[str]) -> str:
    spare = len(voting) - facts.status.quorum
    if spare == 0:
        return " No further member may be away."
    return ""


def _reasons(
    facts: Facts, members: dict[str, Standing], headline: str, blocked: bool, stalled: bool
) -> tuple[str, ...]:
    """Why this node is not ready: it stops, stands aside, is behind, or no block can be made."""
    reasons: list[str] = []
    own = members[facts.member].findings
    if facts.failure or blocked or stalled or any(finding.cause == "isolated" for finding in own):
        reasons.append(headline)
    for finding in own:
        text = clause([finding], facts.member)
        told = bool(reasons) and text in headline
        if (finding.silences or finding.cause == "behind") and not told:
            reasons.append(sentence(text))
    if facts.status.abstaining and facts.status.abstention != Abstention.OBSERVER and not reasons:
        reasons.append(f"This node does not vote: {facts.status.abstaining}.")
    return tuple(reasons)


def _old(facts: Facts) -> list[str]:
    old = [(name, heard.age_ms) for name, heard in facts.reports.items() if heard.age_ms > REPORT_MS_MAX]
    if not old:
        return []
    return [f"Old reports: {names([f'{name} ({duration(age_ms)})' for name, age_ms in old])}."]


def _next(facts: Facts, judged: Judgement) -> NextEvent:
    status = facts.status
    outside = _put_outside(facts)
    if outside:
        return NextEvent(
            what="" if outside == "removed" else "the members vote, and this node is linked and follows"
        )
    if any(finding.cause == "isolated" for finding in judged.members[facts.member].findings):
        return NextEvent(what="this node dials the others again and again, and catches up when it reaches them")
    if judged.unknown:
        return NextEvent(what="the others are heard within seconds, or it is told why not")
    if judged.blocked:
        lacking = status.quorum - len(judged.voting)
        # Who has forgotten votes again after some blocks, and so cannot bring about the next one.
        silent = forgetful(facts)
        away = [name for name in facts.validators if name not in judged.voting and name not in silent]
        if lacking > len(away):
            return NextEvent()
        all_of_them = lacking == len(away)
        some = names(away) if all_of_them else f"{lacking} of {names(away)}"
        votes = "votes" if lacking == 1 else "vote"
        return NextEvent(what=f"blocks go on as soon as {some} {votes} again")
    if status.catch_up_target is not None and status.phase is Phase.CATCH_UP:
        return NextEvent(what=f"this node fetches blocks up to height {status.catch_up_target}", in_ms=0)
    if status.next_event:
        own = not status.next_event.startswith("ask")
        text = status.next_event if own else f"this node asks{status.next_event[3:]}"
        return NextEvent(what=text, in_ms=status.next_event_in_ms)
    if status.phase is Phase.VIEW_CHANGE and status.asked is not None:
        return NextEvent(what=f"view {status.asked} opens when {names(status.missing)} ask for it or open it")
    return NextEvent()


def _member(facts: Facts, standing: Standing) -> MemberDiagnosis:
    name = standing.member
    cause = standing.findings[0].cause if standing.findings else ""
    if name == facts.member:
        status = facts.status
        return MemberDiagnosis(
            id=name,
            role=facts.roles[name],
            reachable=True,
            reached_by=standing.heard_by,
            votes=standing.votes and name in facts.validators,
            height=status.height,
            view=status.view,
            phase=status.phase.value,
            version=facts.version,
            clock_offset_ms=0,
            disk_free_bytes=facts.disk_free_bytes,
            cause=cause,
        )
    heard, link = facts.reports.get(name), facts.links.get(name)
    peer = next((peer for peer in facts.status.peers if peer.member == name), None)
    report = None if heard is None else heard.report
    return MemberDiagnosis(
        id=name,
        role=facts.roles[name],
        reachable=standing.heard,
        reached_by=standing.heard_by,
        votes=standing.votes and name in facts.validators,
        height=peer.height if peer is not None else (None if report is None else report.height),
        view=peer.view if peer is not None else (None if report is None else report.view),
        phase="" if report is None else report.phase,
        version="" if report is None else report.version,
        clock_offset_ms=None if link is None else link.clock_offset_ms,
        report_age_ms=None if heard is None else heard.age_ms,
        report_old=heard is not None and not heard.fresh,
        disk_free_bytes=None if report is None else report.disk_free_bytes,
        link_error="" if link is None or link.connected else link.error,
        cause=cause,
    )
