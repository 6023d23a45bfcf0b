"""What keeps each member from doing its part, judged from its links, its signed report and the others' reports."""

from collections.abc import Mapping

import msgspec

from consensus.status import Abstention, Phase
from node.diagnosis.causes import WEIGHT, Finding
from node.diagnosis.facts import BEHIND_BLOCKS_MAX, HEARD_MS_MAX, STARTING_MS_MAX, Facts
from node.diagnosis.wording import duration, names
from node.report import LinkReport, Report
from node.wording import counted

PROOF_MARGIN_MS = 1_000
"""A report proves that a member lives on when its reporter heard it so much later than we did."""
PAUSE_SHOWN_MS = 30_000
_ABSTENTIONS: Mapping[str, str] = {
    Abstention.KEY_TWICE: "key_twice",
    Abstention.OTHER_KEY: "other_key",
    Abstention.WITHHELD: "withheld",
    Abstention.LOST: "memory_lost",
    Abstention.UNTIL: "memory_lost",
    Abstention.CONFIRMING: "confirming",
}
_GONE = ("connection refused", "connect call failed", "errno 111", "the peer stops")
"""Its machine, or the node itself, has said so."""
_CLOSED = "lost: "
"""Its process has ended, or it has given the link up because it heard nothing of this node."""


class Standing(msgspec.Struct, frozen=True):
    """A member as it stands: heard here, heard by whom else, its clock against the members' middle, what is wrong.

    `findings` are ordered by weight. `votes`: its vote is to be had here. `awaited`: this node has just started and
    nothing has come from the member yet, so that nothing is known of it.
    """

    member: str
    heard: bool
    heard_by: tuple[str, ...]
    clock_off_ms: int | None
    findings: tuple[Finding, ...]
    awaited: bool = False

    @property
    def votes(self) -> bool:
        """Whether this node hears it and nothing silences it."""
        return self.heard and not any(finding.silences for finding in self.findings)


def standings(facts: Facts) -> dict[str, Standing]:
    """Every member's standing, in the members' order."""
    offsets = clock_offsets(facts)
    return {name: _standing(facts, name, offsets.get(name)) for name in facts.roles}


def clock_offsets(facts: Facts) -> dict[str, int]:
    """How far each member's clock is from the middle of all known clocks, this node's included, in ms.

    A member that this node does not hear itself is placed by the members that do.
    """
    direct = {name: link.clock_offset_ms for name, link in facts.links.items()}
    ours: dict[str, int] = {name: offset for name, offset in direct.items() if offset is not None}
    ours[facts.member] = 0
    for name in facts.roles:
        if name not in ours:
            seen = [
                ours[reporter] + link.clock_offset_ms
                for reporter, link in _links_to(facts, name).items()
                if reporter in ours and link.clock_offset_ms is not None
            ]
            placed = _placed(sorted(seen), (len(facts.validators) - 1) // 3)
            if placed is not None:
                ours[name] = placed
    middle = sorted(ours.values())
    # Of an even number the two in the middle; with two clocks alone nobody can say which one is right.
    low, high = middle[(len(middle) - 1) // 2], middle[len(middle) // 2]
    centre = (low + high) // 2 if high - low <= facts.drift_ms // 2 else 0
    return {name: offset - centre for name, offset in ours.items()}


def _placed(seen: list[int], liars: int) -> int | None:
    """Where an unheard clock stands at least, by one honest word: further off it may be, and nobody is accused."""
    if len(seen) <= liars:
        return None
    ahead, behind = seen[-1 - liars], seen[liars]
    return ahead if ahead > 0 else min(0, behind)


def _standing(facts: Facts, member: str, clock_off_ms: int | None) -> Standing:
    heard = facts.hears(member)
    found: list[Finding] = []
    if member == facts.member:
        found += _own(facts)
        report = None
    else:
        report = facts.fresh_report(member)
        found += _said(facts, member, report)
        found += _greeted(facts, member)
        explained = any(finding.silences for finding in found)
        if not heard and not _awaited(facts, member) and (report is not None or not explained):
            absence = _absence(facts, member)
            planned = member in facts.status.resting and absence.cause != "link_cut"
            # Where too many rest nobody is skipped, and then an absence is as bad as any.
            if member in facts.suspended and absence.cause != "link_cut":
                # Its vote would not count if it ran: to start it is no remedy for anything.
                found.append(Finding(member, "suspended", f"its node is not heard: {absence.detail}"))
            else:
                found.append(msgspec.structs.replace(absence, cause="in_window") if planned else absence)
        if member in facts.suspended and all(finding.cause != "suspended" for finding in found):
            found.append(Finding(member, "suspended"))
    if clock_off_ms is not None and abs(clock_off_ms) > facts.drift_ms // 2:
        found.append(Finding(member, "clock_off", _off(facts, member, clock_off_ms)))
    # One cause is told once, and what explains a withheld vote is told instead of it.
    unique = {finding.cause: finding for finding in reversed(found)}
    if not unique.keys().isdisjoint(("diverged", "contracts_differ", "disk_full")):
        unique.pop("withheld", None)
    if not unique.keys().isdisjoint(("disk_failing", "disk_full")):
        unique.pop("disk_low", None)
    ordered = sorted(unique.values(), key=lambda finding: WEIGHT[finding.cause])
    awaited = _starting(facts) and not heard and member != facts.member and _awaited(facts, member)
    return Standing(member, heard, _heard_by(facts, member), clock_off_ms, tuple(ordered), awaited)


def _off(facts: Facts, member: str, clock_off_ms: int) -> str:
    way = "ahead of" if clock_off_ms > 0 else "behind"
    apart_ms = (abs(clock_off_ms) + 50) // 100 * 100
    known = [name for name, link in facts.links.items() if link.clock_offset_ms is not None]
    if member != facts.member and known == [member]:
        return f"{duration(apart_ms)} {way} this node's; of two clocks nobody can tell which is right"
    return f"{duration(apart_ms)} {way} the other members'"


def _own(facts: Facts) -> list[Finding]:
    """What is wrong with this node."""
    me, status = facts.member, facts.status
    found = [Finding(me, code, detail) for code, detail in facts.conditions.items() if code in WEIGHT]
    if facts.failure and "disk_failing" not in facts.conditions:
        found.append(Finding(me, "stopping", facts.failure))
    found += _abstention(facts, me, status.abstention, status.abstain_until)
    if facts.waiting >= facts.waiting_max:
        found.append(Finding(me, "queue_full", f"{facts.waiting:,} transactions wait"))
    if facts.pause is not None and facts.pause.ago_ms <= PAUSE_SHOWN_MS:
        pause = f"for {duration(facts.pause.length_ms)}, {duration(facts.pause.ago_ms)} ago"
        found.append(Finding(me, "paused", pause))
    # Nobody alone can make this node look behind: the target is proven, or told by f + 1 members.
    target, head_height = status.catch_up_target, status.height - 1
    if target is not None and target > head_height + BEHIND_BLOCKS_MAX:
        found.append(Finding(me, "behind", f"at height {status.height}, others beyond {target}"))
    return found


def _said(facts: Facts, member: str, report: Report | None) -> list[Finding]:
    """What the member itself says is wrong with it; of an old report only what outlives its process."""
    heard = facts.reports.get(member)
    if heard is None:
        return []
    if report is None:
        lasting = ("disk_failing", "diverged", "stopping")
        old = f"by its last word {duration(heard.age_ms)} ago"
        return [
            Finding(member, item.code, f"{item.detail}, {old}" if item.detail else old)
            for item in heard.report.conditions
            if item.code in lasting
        ]
    found = [Finding(member, item.code, item.detail) for item in report.conditions if item.code in WEIGHT]
    found += _abstention(facts, member, report.abstention, report.abstain_until)
    if facts.code_of(report) != facts.contracts_hash and not any(f.cause == "contracts_differ" for f in found):
        found += _other_code(facts, member)
    if report.version != facts.version:
        found.append(Finding(member, "other_release", f"{report.version}, this node {facts.version}"))
    if report.phase == Phase.CATCH_UP and facts.hears(member):
        found.append(Finding(member, "behind", f"at height {report.height} of {facts.status.height}"))
    return found


def _abstention(facts: Facts, member: str, code: str, until: int) -> list[Finding]:
    cause = _ABSTENTIONS.get(code)
    if cause is None:
        return []
    detail = ""
    if code == Abstention.UNTIL:
        detail = f"it votes again above height {until}; {_decided(facts, member)}"
    elif code == Abstention.LOST:
        needed = min(facts.status.quorum, len(facts.validators) - 1)
        detail = f"it has to hear from {counted(needed, 'other member')} first which heights are decided"
    return [Finding(member, cause, detail)]


def _decided(facts: Facts, member: str) -> str:
    """How far the network is, as far as it is known here, in words about a member that waits for it to go on."""
    report = facts.fresh_report(member)
    own = max(facts.status.height - 1, facts.status.catch_up_target or 0)
    height = own if report is None else max(own, report.height - 1)
    return "no block is known to be decided" if height == 0 else f"the last one known to be decided is {height}"


def _other_code(facts: Facts, member: str) -> list[Finding]:
    """Whose code differs: the one that fewer members run, this node's in doubt."""
    report = facts.fresh_report(member)
    hashes = [facts.contracts_hash]
    hashes += [facts.code_of(r) for name in facts.validators if (r := facts.fresh_report(name)) is not None]
    if report is None or hashes.count(report.contracts_hash) >= hashes.count(facts.contracts_hash):
        return []
    return [Finding(member, "contracts_differ", f"contracts hash {report.contracts_hash.hex()[:12]}")]


def _greeted(facts: Facts, member: str) -> list[Finding]:
    """What the greeting or the handshake with the member, or the others', failed by."""
    link = facts.links.get(member)
    if link is None or link.connected:
        return []
    found: list[Finding] = []
    for code, cause in (
        ("wrong_network", "other_network"),
        ("wrong_version", "other_protocol"),
        ("not_a_member", "wrong_tls_key"),
        ("not that of a member", "wrong_tls_key"),
    ):
        if code in link.error:
            found.append(Finding(member, cause, link.error.rpartition(": ")[2]))
    return found


def _awaited(facts: Facts, member: str) -> bool:
    """Whether nothing has come yet of this node's first link to a member, and no other's link to it has failed.

    Of a node that has just started a failed attempt says nothing about a member that others hear: the two may have
    started together, and it is dialled again. Nor does a link that is up, or was closed, before its first word:
    both sides dial, and one of the two links is given up.
    """
    link = facts.links.get(member)
    if link is None or link.silence_ms is not None:
        return False
    if _starting(facts) and (link.connected or _CLOSED in link.error or _heard_by(facts, member)):
        return True
    if link.connected or link.error:
        return False
    return not any(told.error and not told.connected for told in _links_to(facts, member).values())


def _starting(facts: Facts) -> bool:
    return facts.up_ms is not None and facts.up_ms <= STARTING_MS_MAX


def _absence(facts: Facts, member: str) -> Finding:
    """Why this node does not hear the member."""
    link = facts.links.get(member)
    silence_ms = None if link is None else link.silence_ms
    since = "" if silence_ms is None else f"last heard {duration(silence_ms)} ago"
    still_heard = _heard_by(facts, member)
    if still_heard:
        return Finding(member, "link_cut", f"{names(still_heard)} {_hear(still_heard)} it")
    if link is not None and link.connected:
        return Finding(member, "member_silent", since or "not heard yet")
    # What another member says of its link is that member's word, and is told as such.
    errors = [] if link is None else [(link.error, "")]
    errors += [
        (item.error, f", by the word of {name}")
        for name, item in _links_to(facts, member).items()
        if not item.connected
    ]
    if link is not None and _CLOSED in link.error and _gave_up(facts, member):
        return Finding(member, "member_unreachable", f"it had ceased to hear this node; {since}")
    for error, whose in errors:
        if any(word in error.lower() for word in (*_GONE, _CLOSED)):
            how = "stopped in good order" if "the peer stops" in error else "connections refused or closed"
            return Finding(member, "member_down", "; ".join(part for part in (how + whose, since) if part))
    known = next((error.rpartition(": ")[2] + whose for error, whose in errors if error), "")
    return Finding(member, "member_unreachable", "; ".join(part for part in (known, since) if part))


def vanished(facts: Facts, member: str) -> bool:
    """Whether a member's connection was closed and nobody knows more: no machine has refused one since."""
    link = facts.links.get(member)
    if link is None or _CLOSED not in link.error:
        return False
    told = [item.error.lower() for item in _links_to(facts, member).values() if not item.connected]
    return not any(word in error for word in _GONE for error in told)


def _gave_up(facts: Facts, member: str) -> bool:
    """Whether the member, by its last word before it closed the connection, heard no more of this node."""
    heard = facts.reports.get(member)
    links = () if heard is None else heard.report.links
    silences = [link.silence_ms for link in links if link.member == facts.member]
    return any(silence_ms is not None and silence_ms > HEARD_MS_MAX for silence_ms in silences)


def _hear(members: tuple[str, ...]) -> str:
    return "hears" if len(members) == 1 else "hear"


def _links_to(facts: Facts, member: str) -> dict[str, LinkReport]:
    """What the other members with fresh reports say of their link to `member`."""
    return {
        name: link
        for name in facts.others
        if name != member and (report := facts.fresh_report(name)) is not None
        for link in report.links
        if link.member == member
    }


def _heard_by(facts: Facts, member: str) -> tuple[str, ...]:
    """The other members that certainly hear `member` now, or heard it well after this node did."""
    own = facts.links.get(member)
    own_silence_ms = None if own is None else own.silence_ms
    found: list[str] = []
    for reporter, link in _links_to(facts, member).items():
        if link.silence_ms is None or not link.connected:
            continue
        silence_ms = link.silence_ms + facts.reports[reporter].age_ms
        if facts.hears(member) or member == facts.member:
            proven = silence_ms <= 2 * HEARD_MS_MAX
        else:
            proven = own_silence_ms is None or silence_ms + PROOF_MARGIN_MS < own_silence_ms
        # A link that is up with fresh words in it: what is older may be the last breath of a dead member.
        if proven and link.silence_ms <= HEARD_MS_MAX:
            found.append(reporter)
    return tuple(found)
