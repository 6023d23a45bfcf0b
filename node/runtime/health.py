"""This node's health: gathers the facts, tells them to the other members, and answers whether and why.

The judgement itself is pure and lives in node/diagnosis; here is everything that has a clock, a link or a disk.
"""

import asyncio
from collections.abc import Callable

import structlog

from consensus.messages import Status
from consensus.status import Abstention, Phase, ReplicaStatus
from node.client.answers import Diagnosis
from node.config import NetworkConfig
from node.diagnosis import CAUSES, Facts, Link, Pause, diagnose, judge
from node.peers import Transport
from node.report import CONDITIONS_MAX, DETAIL_LENGTH_MAX, Condition, LinkReport, Report, printable
from node.runtime.clock import Clock
from node.runtime.clock_offsets import ClockOffsets
from node.runtime.reports import Reports
from node.runtime.roster import Roster

WATCH_INTERVAL_MS = 250
REPORT_INTERVAL_MS = 2_000
REPORT_PAUSE_MS = 500
"""Between two reports, however often something changes."""
UNTOLD = (Abstention.OBSERVER, Abstention.CONFIRMING)
"""Silence that is no news: an observer never votes, and every start begins with a moment of asking the others."""
PAUSED_MS_MIN = 3_000
"""A watch that comes so late means that the whole process stood still."""


class Health:
    """What this node knows of itself and of the others. Runs on the event loop; `watch` is its pulse."""

    def __init__(
        self,
        network: NetworkConfig,
        member: str,
        version: str,
        code_hashes: Callable[[], tuple[bytes, ...]],
        transport: Transport,
        clock: Clock,
        replica: Callable[[], ReplicaStatus],
        reports: Reports,
        waiting: Callable[[], int],
        waiting_max: int,
        disk_free: Callable[[], int | None],
        head_time_ms: int | None,
    ) -> None:
        """`code_hashes()` are this node's contracts hash and those that it had under versions before.

        `waiting()` transactions wait, at most `waiting_max`; `disk_free()` bytes were left a moment ago (None:
        unknown).

        The block at the head says that it was made at `head_time_ms`: a restart moves nothing. None: there is no
        block yet, and the time of genesis says nothing of when the network could have moved.
        """
        self._network = network
        self._member = member
        self._roles: dict[str, str] = {item.id: item.role for item in network.members}
        self._validators = tuple(validator.id for validator in network.validators)
        self._suspended: tuple[str, ...] = ()
        self._version = version
        self._code_hashes = code_hashes
        self._transport = transport
        self._clock = clock
        self._replica = replica
        self._reports = reports
        self._waiting = waiting
        self._waiting_max = waiting_max
        self._disk_free = disk_free
        self._started_ms = clock.now_ms()
        self._offsets = ClockOffsets()
        idle_ms = 0 if head_time_ms is None else max(0, clock.time_ms() - head_time_ms)
        self._moved_ms = clock.now_ms() - idle_ms
        self._waiting_since_ms: int | None = None
        self._step: tuple[Phase, int, int] | None = None
        self._step_since_ms = clock.now_ms()
        self._watched_ms: int | None = None
        self._pause: tuple[int, int] | None = None
        self._failure = ""
        self._conditions: dict[str, str] = {}
        self._abstention = Abstention.NONE
        self._abstains_since_ms = clock.now_ms()
        self._log = structlog.get_logger("health").bind(member=member)
        self._sequence = 0
        self._told: object = None
        self._report_due_ms = clock.now_ms()
        self._report_min_ms = clock.now_ms()

    # --- told by the runtime ---------------------------------------------------------------------------------

    def on_applied(self) -> None:
        """A block was applied just now."""
        self._moved_ms = self._clock.now_ms()
        self._waiting_since_ms = None

    def on_status(self, peer: str, status: Status) -> None:
        """`peer` sent its heartbeat over its own link: the time in it shows its clock."""
        round_trip_ms = next((info.round_trip_ms for info in self._transport.peers() if info.id == peer), None)
        self._offsets.note(peer, status.time_ms, self._clock.time_ms(), round_trip_ms)

    def on_connected(self, peer: str) -> None:
        """A link to `peer` is up: what its clock showed before counts no more, and it is told of us soon."""
        self._offsets.forget(peer)
        self._report_due_ms = self._report_min_ms

    def set_roster(self, roster: Roster) -> None:
        """The network has these members from now on; of this node it is told whether it was put out."""
        present = [*roster.present, *(item for item in roster.members if item.id == self._member)]
        self._roles = {item.id: item.role for item in present}
        self._validators = roster.validators
        self._suspended = tuple(name for name, standing in roster.standings.items() if standing == "suspended")
        standing = roster.standings.get(self._member, "active")
        said = {"removed": "by the members' vote", "suspended": "by the members' vote, or by a recovery without it"}
        for code, by_whom in said.items():
            self.set_condition(code, by_whom if standing == code else None)
        waits = "until the members have voted for it, and it has caught up"
        self.set_condition("not_admitted", waits if standing == "joining" else None)

    def set_condition(self, code: str, detail: str | None) -> None:
        """From now on the fact `code` holds of this node, with `detail` for people; None: it holds no more.

        `code` is one of the table of causes, such as `diverged` ("height 41: …"), `contracts_differ` (the modules'
        names), `key_twice` or `disk_failing`. The other members learn it with the next report.
        """
        if code not in CAUSES:
            raise ValueError(f"{code!r} is no cause")
        if detail is None:
            self._conditions.pop(code, None)
        else:
            self._conditions[code] = detail

    def on_failure(self, sentence: str, *, disk: bool = False) -> None:
        """The node is stopping for this reason: the other members are told at once, as its last word."""
        self._failure = sentence
        self.set_condition("disk_failing" if disk else "stopping", sentence)
        self._publish(self._facts())

    # --- the pulse -------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Look at clock and step for as long as the node runs, and report to the others."""
        while True:
            self._look()
            await asyncio.sleep(WATCH_INTERVAL_MS * 0.001)

    def _look(self) -> None:
        now_ms = self._clock.now_ms()
        if self._watched_ms is not None and now_ms - self._watched_ms >= PAUSED_MS_MIN:
            # What looks like silence of everybody else was this process standing still.
            self._pause = (now_ms - self._watched_ms, now_ms)
            self._waiting_since_ms = None
        self._watched_ms = now_ms
        facts = self._facts()
        self._tell_voting(facts.status, now_ms)
        change = (
            facts.status.asked,
            facts.status.abstention,
            self._transport.connected,
            tuple(self._conditions.items()),
        )
        if now_ms >= self._report_due_ms or (change != self._told and now_ms >= self._report_min_ms):
            self._told = change
            self._publish(facts)

    def _tell_voting(self, status: ReplicaStatus, now_ms: int) -> None:
        """The log says when this node stops voting, with each new reason, and when it votes again."""
        before, now = self._abstention, status.abstention
        if now == before or now in UNTOLD:
            return
        self._abstention = now
        if now == Abstention.NONE:
            abstained_ms = now_ms - self._abstains_since_ms
            self._log.info("votes again", height=status.height, before=before.value, abstained_ms=abstained_ms)
            return
        if before == Abstention.NONE:
            self._abstains_since_ms = now_ms
        self._log.warning(
            "abstains from voting",
            height=status.height,
            abstention=now.value,
            until=status.abstain_until if now == Abstention.UNTIL else None,
            reason=status.abstaining,
        )

    def _publish(self, facts: Facts) -> None:
        now_ms = self._clock.now_ms()
        self._report_due_ms = now_ms + REPORT_INTERVAL_MS
        self._report_min_ms = now_ms + REPORT_PAUSE_MS
        # Its own time makes the number grow over restarts too, as far as the clock is not set back.
        self._sequence = max(self._sequence + 1, self._clock.time_ms(), 0)
        self._reports.publish(self._report(facts))

    def _report(self, facts: Facts) -> Report:
        status = facts.status
        conditions = tuple(
            Condition(code, printable(text, DETAIL_LENGTH_MAX)) for code, text in facts.conditions.items()
        )
        return Report(
            network=self._network.network_id,
            member=self._member,
            sequence=self._sequence,
            time_ms=max(0, self._clock.time_ms()),
            version=printable(self._version),
            contracts_hash=self._code_hashes()[0],
            height=status.height,
            view=status.view,
            asked=status.asked,
            phase=status.phase.value,
            waits_for=status.missing,
            step_ms=facts.step_ms,
            idle_ms=facts.idle_ms,
            abstention=status.abstention.value,
            abstain_until=status.abstain_until,
            waiting=facts.waiting,
            disk_free_bytes=facts.disk_free_bytes,
            links=tuple(
                LinkReport(name, link.connected, link.silence_ms, printable(link.error), link.clock_offset_ms)
                for name, link in facts.links.items()
            ),
            conditions=conditions[:CONDITIONS_MAX],
        )

    # --- answers ---------------------------------------------------------------------------------------------

    def replica(self) -> ReplicaStatus:
        """The replica's snapshot."""
        return self._replica()

    def ready(self) -> tuple[bool, list[str]]:
        """Whether the node follows the network, votes, and blocks can be made; else sentences that name why not."""
        judged = judge(self._facts())
        return judged.ready, list(judged.reasons)

    def why(self) -> Diagnosis:
        """Why blocks are made or not made, in plain sentences from this node's facts and the others' reports."""
        return diagnose(self._facts())

    def clock_offsets(self) -> dict[str, int]:
        """How far the peers' clocks are from this node's, in milliseconds."""
        return dict(self._offsets.medians())

    # --- facts -----------------------------------------------------------------------------------------------

    def _facts(self) -> Facts:
        now_ms, status = self._clock.now_ms(), self._replica()
        self._note_step(status, now_ms)
        pause = None if self._pause is None else Pause(self._pause[0], now_ms - self._pause[1])
        return Facts(
            member=self._member,
            roles=self._roles,
            validators=self._validators,
            status=status,
            links=self._links(status),
            reports=self._reports.heard(),
            version=self._version,
            contracts_hash=self._code_hashes()[0],
            former_hashes=self._code_hashes()[1:],
            drift_ms=self._network.parameters.drift_ms,
            censorship_blocks=self._network.parameters.censorship_blocks,
            idle_ms=now_ms - self._moved_ms,
            waiting_ms=0 if self._waiting_since_ms is None else now_ms - self._waiting_since_ms,
            step_ms=now_ms - self._step_since_ms,
            waiting=self._waiting(),
            waiting_max=self._waiting_max,
            disk_free_bytes=self._disk_free(),
            suspended=self._suspended,
            conditions=dict(self._conditions),
            failure=self._failure,
            pause=pause,
            no_block=status.height <= 1,
            up_ms=now_ms - self._started_ms,
        )

    def _note_step(self, status: ReplicaStatus, now_ms: int) -> None:
        """Since when work waits and since when the replica is in its phase, as often as anybody looks."""
        if not status.waiting and status.phase in (Phase.IDLE, Phase.CATCH_UP):
            self._waiting_since_ms = None
        elif self._waiting_since_ms is None:
            self._waiting_since_ms = now_ms
        step = (status.phase, status.height, status.view)
        if step != self._step:
            self._step = step
            self._step_since_ms = now_ms

    def _links(self, status: ReplicaStatus) -> dict[str, Link]:
        """Every other member's link. It was heard when its status or its own report came last."""
        heard_ms_ago = {peer.member: peer.heard_ms_ago for peer in status.peers}
        for name, report_ms_ago in self._reports.direct_ages().items():
            heard_ms_ago[name] = min(report_ms_ago, heard_ms_ago.get(name, report_ms_ago))
        if self._pause is not None:
            # Nobody was silent while this process stood still: silence counts from when it woke.
            woke_ms_ago = self._clock.now_ms() - self._pause[1]
            heard_ms_ago = {name: min(ms_ago, woke_ms_ago) for name, ms_ago in heard_ms_ago.items()}
        offsets = self._offsets.medians()
        # A removed member is linked for a while yet, and none of those of whom there is something to tell.
        return {
            info.id: Link(
                connected=info.connected,
                silence_ms=heard_ms_ago.get(info.id),
                error=info.last_error,
                contracts_hash=info.contracts_hash,
                clock_offset_ms=offsets.get(info.id),
            )
            for info in self._transport.peers()
            if info.id in self._roles
        }
