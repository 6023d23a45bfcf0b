"""Puts the status snapshot together: what the height waits for, and who is missing."""

from consensus.context import Context
from consensus.height import HeightInWork
from consensus.messages import VoteKind
from consensus.status import Abstention, LastSuspicion, PeerStatus, Phase, ReplicaStatus


def report(
    context: Context,
    work: HeightInWork,
    next_event: tuple[str, int] | None,
    peers: tuple[PeerStatus, ...],
    catch_up_target: int | None,
) -> ReplicaStatus:
    """Return the snapshot of one moment."""
    members = work.members
    phase = _phase(context, work, catch_up_target)
    digest = work.proposal.vote.digest if work.proposal is not None else None
    prepares = work.book.voters(VoteKind.PREPARE, work.view, digest)
    commits = work.book.voters(VoteKind.COMMIT, work.view, digest)
    asked = work.pledge.asked
    event, event_ms = next_event if next_event is not None else _empty_block(context, work)
    return ReplicaStatus(
        member=context.config.member,
        height=work.height,
        view=work.view,
        head=work.head.digest,
        start_view=work.head.start_view,
        primary=members.id(work.primary(work.view)),
        phase=phase,
        digest=digest,
        prepared_view=work.pledge.prepared.view if work.pledge.prepared is not None else None,
        voted_prepare=_names(work, prepares),
        voted_commit=_names(work, commits),
        missing=_missing(work, phase, prepares, commits),
        quorum=members.quorum,
        asked=asked,
        askers=tuple((members.id(index), work.asks[index].view) for index in sorted(work.asks)),
        waiting=context.waiting,
        passed_over=context.passed_over,
        abstaining=_abstaining(context, work),
        abstain_until=context.amnesia.until,
        suspicion=context.suspicion,
        refusal=context.refusal,
        catch_up_target=catch_up_target,
        peers=peers,
        next_event=event,
        next_event_in_ms=max(0, event_ms - context.now_ms) if event_ms is not None else None,
        abstention=_abstention(context, work),
        last_suspicion=_last_suspicion(context),
        resting=_names(work, work.resting),
    )


def _phase(context: Context, work: HeightInWork, catch_up_target: int | None) -> Phase:
    proposal = work.proposal
    if work.decided:
        return Phase.APPLY
    if catch_up_target is not None:
        return Phase.CATCH_UP
    if work.changing:
        return Phase.VIEW_CHANGE
    if work.checks.running:
        return Phase.CHECK
    if context.building is not None:
        return Phase.BUILD
    if proposal is None:
        return Phase.PROPOSAL if context.waiting or work.required is not None else Phase.IDLE
    prepared = work.book.certificate(VoteKind.PREPARE, work.view, proposal.vote.digest)
    return Phase.COMMIT if prepared is not None else Phase.PREPARE


def _missing(
    work: HeightInWork, phase: Phase, prepares: tuple[int, ...], commits: tuple[int, ...]
) -> tuple[str, ...]:
    """Whose message the phase waits for."""
    everybody = range(work.members.n)
    asked = work.pledge.asked
    if phase == Phase.VIEW_CHANGE and asked is not None:
        if work.quorum_asks():
            return _names(work, (work.primary(asked),))
        return _names(
            work, tuple(index for index in everybody if index not in work.asks or work.asks[index].view < asked)
        )
    if phase == Phase.PROPOSAL:
        return _names(work, (work.primary(work.view),))
    if phase == Phase.PREPARE:
        return _names(work, tuple(index for index in everybody if index not in prepares))
    if phase == Phase.COMMIT:
        return _names(work, tuple(index for index in everybody if index not in commits))
    return ()


def _names(work: HeightInWork, indices: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(work.members.id(index) for index in indices)


def _abstaining(context: Context, work: HeightInWork) -> str:
    if work.me is None:
        return "an observer has no vote"
    if not context.key_is_ours:
        return "the member list names another voting key for this member"
    if context.withheld and not context.amnesia.stopped:
        return context.withheld
    return context.amnesia.why(work.height)


def _abstention(context: Context, work: HeightInWork) -> Abstention:
    if work.me is None:
        return Abstention.OBSERVER
    if not context.key_is_ours:
        return Abstention.OTHER_KEY
    if context.withheld and not context.amnesia.stopped:
        return Abstention.WITHHELD
    return context.amnesia.state(work.height)


def _last_suspicion(context: Context) -> LastSuspicion | None:
    if context.last_suspicion is None:
        return None
    primary, reason, at_ms = context.last_suspicion
    return LastSuspicion(primary, reason, max(0, context.now_ms - at_ms))


def _empty_block(context: Context, work: HeightInWork) -> tuple[str, int | None]:
    if work.outcome is None and not context.waiting and work.proposal is None and context.empty_due_ms is not None:
        return "an empty block", context.empty_due_ms
    return "", None
