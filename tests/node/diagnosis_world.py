"""Four members as a diagnosis sees them: facts of a network that is well, and how a test makes them worse."""

from typing import Any

import msgspec

from consensus.status import ReplicaStatus
from node.diagnosis import Facts, Heard, Link, diagnose
from node.report import LinkReport, Report
from tests.consensus.stage import NETWORK, Stage

CODE = b"\x01" * 32
NAMES = ("member-0", "member-1", "member-2", "member-3")
NOW = Link(connected=True, silence_ms=300, clock_offset_ms=2)


def quiet(me: int | None = 0) -> ReplicaStatus:
    """The snapshot of a replica that nothing waits for; everybody else was just heard."""
    stage = Stage(me=me)
    stage.receive(*(stage.status(index) for index in range(4) if index != me))
    return stage.replica.status()


def report(member: str, *, reaches: tuple[str, ...] = NAMES, **changes: Any) -> Report:
    """What `member` says when all is well and it hears `reaches`."""
    links = tuple(
        LinkReport(name, name in reaches, 300 if name in reaches else 9_000, "", 0)
        for name in NAMES
        if name != member
    )
    content = Report(
        network=NETWORK,
        member=member,
        sequence=1,
        time_ms=1,
        version="0.1.0",
        contracts_hash=CODE,
        height=1,
        view=0,
        asked=None,
        phase="idle",
        waits_for=(),
        step_ms=0,
        idle_ms=1_000,
        abstention="",
        abstain_until=0,
        waiting=0,
        disk_free_bytes=10**12,
        links=links,
        conditions=(),
    )
    return msgspec.structs.replace(content, **changes)


def facts(**changes: Any) -> Facts:
    """The facts of member-0 in a network that is well."""
    known = Facts(
        member="member-0",
        roles=dict.fromkeys(NAMES, "validator"),
        validators=NAMES,
        status=quiet(),
        links=dict.fromkeys(NAMES[1:], NOW),
        reports={name: Heard(report(name), 500) for name in NAMES[1:]},
        version="0.1.0",
        contracts_hash=CODE,
        drift_ms=5_000,
        censorship_blocks=20,
        idle_ms=2_000,
        waiting_ms=0,
        step_ms=100,
        waiting=0,
        waiting_max=100,
    )
    return msgspec.structs.replace(known, **changes)


def without(*gone: str, error: str = "lost: 10.0.0.9:1: the other side closed the connection") -> Facts:
    """The facts when `gone` are not heard by anybody."""
    here = tuple(name for name in NAMES if name not in gone)
    links = {
        name: Link(connected=False, silence_ms=9_000, error=error) if name in gone else NOW for name in NAMES[1:]
    }
    reports = {name: Heard(report(name, reaches=here), 500) for name in here if name != "member-0"}
    reports |= {name: Heard(report(name), 9_000) for name in gone}
    return facts(links=links, reports=reports)


def said(known: Facts, member: str, **changes: Any) -> Facts:
    """`known` with what `member` says changed."""
    heard = Heard(msgspec.structs.replace(known.reports[member].report, **changes), 500)
    return msgspec.structs.replace(known, reports={**known.reports, member: heard})


def replica(known: Facts, **changes: Any) -> Facts:
    """`known` with this node's own snapshot changed."""
    return msgspec.structs.replace(known, status=msgspec.structs.replace(known.status, **changes))


def culprits(known: Facts) -> list[tuple[str, str]]:
    return [(item.member, item.cause) for item in diagnose(known).culprits]
