"""Whether this node is ready, and why blocks are made or not: sentences from facts."""

from collections.abc import Callable

from consensus.status import Phase, ReplicaStatus
from node.client.answers import Diagnosis
from node.config import NetworkConfig
from node.peers import Transport
from node.runtime.clock import Clock

HEARD_MS_MAX = 3_000
"""A member whose last status is older is not there."""
STALL_MS_MAX = 6_000
"""Work that waits longer without a new block is a stall."""

_STEPS = {
    Phase.IDLE: "nothing waits to be decided",
    Phase.BUILD: "this node, the primary, builds a block",
    Phase.PROPOSAL: "the primary's proposal is waited for",
    Phase.CHECK: "this node executes the proposed block",
    Phase.PREPARE: "prepare votes are waited for",
    Phase.COMMIT: "commit votes are waited for",
    Phase.APPLY: "the decided block is being written",
    Phase.VIEW_CHANGE: "a change of the primary is under way",
    Phase.CATCH_UP: "this node fetches blocks that the others have decided",
}


class Health:
    """Judges the node from the replica's snapshot, its links and its clock."""

    def __init__(
        self,
        network: NetworkConfig,
        member: str,
        transport: Transport,
        clock: Clock,
        replica: Callable[[], ReplicaStatus],
    ) -> None:
        self._network = network
        self._member = member
        self._transport = transport
        self._clock = clock
        self._replica = replica
        self._moved_ms = clock.now_ms()
        self._failure: str | None = None

    def replica(self) -> ReplicaStatus:
        """The replica's snapshot."""
        return self._replica()

    def on_applied(self) -> None:
        """A block was applied just now."""
        self._moved_ms = self._clock.now_ms()

    def on_failure(self, sentence: str) -> None:
        """The node is stopping for this reason."""
        self._failure = sentence

    def ready(self) -> tuple[bool, list[str]]:
        """Whether the node follows the network and blocks can be made; else sentences that name who is missing."""
        sentences = self._problems(self._replica())
        return not sentences, sentences

    def why(self) -> Diagnosis:
        """Why blocks are made or not made, in plain sentences."""
        status = self._replica()
        sentences = self._problems(status)
        moving = not sentences
        idle_ms = self._clock.now_ms() - self._moved_ms
        sentences.append(
            f"Height {status.height}, view {status.view}, primary {status.primary}: {_STEPS[status.phase]}; "
            f"the last block was applied {_seconds(idle_ms)} ago."
        )
        if status.phase in (Phase.PREPARE, Phase.COMMIT, Phase.VIEW_CHANGE) and status.missing:
            sentences.append(f"Not heard in this step: {', '.join(status.missing)}.")
        if status.suspicion:
            sentences.append(f"The primary was last suspected because {status.suspicion}.")
        if status.refusal:
            sentences.append(f"The last proposal was refused: {status.refusal}.")
        if status.next_event:
            when = "" if status.next_event_in_ms is None else f" in {_seconds(status.next_event_in_ms)}"
            sentences.append(f"Next, by itself{when}: {status.next_event}.")
        return Diagnosis(
            moving=moving,
            sentences=tuple(sentences),
            missing=tuple(self._absent(status)),
            details={
                "height": status.height,
                "view": status.view,
                "primary": status.primary,
                "phase": status.phase.value,
                "quorum": status.quorum,
                "prepared_by": list(status.voted_prepare),
                "committed_by": list(status.voted_commit),
                "asking_for_view": dict(status.askers),
                "idle_ms": idle_ms,
            },
        )

    def _problems(self, status: ReplicaStatus) -> list[str]:
        sentences: list[str] = []
        if self._failure is not None:
            sentences.append(f"This node is stopping: {self._failure}.")
        absent = self._absent(status)
        validators = [validator.id for validator in self._network.validators]
        present = len(validators) - len(absent)
        if present < status.quorum:
            sentences.append(
                f"{present} of {len(validators)} members are here and {status.quorum} are needed: "
                f"missing {', '.join(f'{name} ({self._absence(name)})' for name in absent)}."
            )
        if status.abstaining:
            sentences.append(f"This node does not vote: {status.abstaining}.")
        ahead = [peer.height for peer in status.peers if peer.heard_ms_ago <= HEARD_MS_MAX]
        if ahead and max(ahead) > status.height + 2:
            sentences.append(f"This node is behind: it works on height {status.height}, others on {max(ahead)}.")
        idle_ms = self._clock.now_ms() - self._moved_ms
        if status.waiting and idle_ms > STALL_MS_MAX and not sentences:
            missing = f": missing {', '.join(status.missing)}" if status.missing else ""
            sentences.append(f"Work waits and no block was made for {_seconds(idle_ms)}{missing}.")
        return sentences

    def _absent(self, status: ReplicaStatus) -> list[str]:
        """The validators, other than this node, that were not heard lately."""
        heard = {peer.member for peer in status.peers if peer.heard_ms_ago <= HEARD_MS_MAX}
        connected = frozenset(self._transport.connected)
        return [
            validator.id
            for validator in self._network.validators
            if validator.id != self._member and (validator.id not in heard or validator.id not in connected)
        ]

    def _absence(self, name: str) -> str:
        return "connected but silent" if name in self._transport.connected else "not connected"


def _seconds(milliseconds: int) -> str:
    whole, rest = divmod(max(0, milliseconds), 1000)
    return f"{whole}.{rest // 100} s"
