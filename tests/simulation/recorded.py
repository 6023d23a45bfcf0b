"""Simulated members whose replicas are recorded as a node records its own, for tests of image, recorder, replay."""

from collections.abc import Callable
from typing import Any

from consensus.effects import Effect, Input
from consensus.image import freeze
from consensus.replica import Replica
from node.runtime.bundle import FORMAT, Bundle, Manifest, PartEntry
from node.runtime.diagnostics import consensus_digest
from node.runtime.recorder import Recorder, Recording
from tests.simulation.world import World


class Recorded:
    """A replica with a recorder beside it, as the node's driver has them; it passes for the replica itself."""

    def __init__(self, recorder: Recorder, sign: Callable[[bytes], bytes], *arguments: Any) -> None:
        config, head, memory, verify, now_ms, time_ms = arguments
        self.recorder = recorder
        self.replica = Replica(config, head, memory, recorder.signing(sign), verify, now_ms, time_ms)
        self.verify = verify

    def __getattr__(self, name: str) -> Any:
        return getattr(self.replica, name)

    def start(self) -> list[Effect]:
        """Start it, recorded."""
        self.recorder.begin(lambda: freeze(self.replica))
        effects = self.replica.start()
        self.recorder.started(effects)
        return effects

    def step(self, given: Input) -> list[Effect]:
        """Step it, recorded."""
        effects = self.replica.step(given)
        self.recorder.stepped(given, effects)
        return effects


def record_world(
    seed: int, until: int, recording_bytes_max: int = 1 << 24, part_bytes_max: int = 1 << 16
) -> list[Recorded]:
    """Every life of every member of one simulated network, recorded; liars and doubled keys left out."""
    lives: list[Recorded] = []

    def make(config: Any, head: Any, memory: Any, sign: Any, *rest: Any) -> Any:
        life = Recorded(Recorder(recording_bytes_max, part_bytes_max), sign, config, head, memory, *rest)
        lives.append(life)
        return life

    outcome = World(seed, factory=make).run(until)
    assert outcome.failure is None, outcome.failure
    # Liars have methods of their replica replaced, of which no image can be made.
    return [life for life in lives if "own_vote_unknown" not in vars(life.replica._context)]


def bundle_of(recording: Recording, consensus: str | None = None) -> Bundle:
    """The bundle that would be read from a file with this recording."""
    parts = tuple(PartEntry(f"recording/{n:04}.bin", p.first, p.inputs) for n, p in enumerate(recording.parts))
    digest = consensus_digest() if consensus is None else consensus
    manifest = Manifest(FORMAT, 0, "m0", "net", "0", digest, recording.inputs, recording.failure, parts)
    return Bundle(manifest, {}, recording.parts)
