"""The recorder that is always on: the last inputs of this node's replica, in bounded memory.

What it keeps when space ends: the part in which the height in work began, the one behind it, and the newest parts.
So of a stall of days there is its beginning and its latest hours, and what lies between is dropped. It costs some
microseconds an input and an image of the replica, about a millisecond, for every part. It never stops the node: a
fault in it ends the recording, and the bundle says so.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog

from consensus.effects import Applied, Effect, Input, Synced, Tick
from node.runtime.recording import Outcome, PartWriter, mark, signed_name

RECORDING_BYTES_MAX: Final = 4 * 1024 * 1024
PART_BYTES_MAX: Final = 256 * 1024
STALL_PARTS_KEPT: Final = 2
"""How many parts from the beginning of the height in work on outlast the others."""


class RecordedPart(msgspec.Struct, frozen=True):
    """A part of the recording: the number of its first input since the start, how many it has, and its bytes."""

    first: int
    inputs: int
    data: bytes


class Recording(msgspec.Struct, frozen=True):
    """All that is kept, in order. `failure` is empty or says why the recorder stopped by itself."""

    parts: tuple[RecordedPart, ...]
    inputs: int
    failure: str


class Recorder:
    """Keeps what the driver tells it. Every method is called on the event loop's thread and never raises."""

    def __init__(
        self, recording_bytes_max: int = RECORDING_BYTES_MAX, part_bytes_max: int = PART_BYTES_MAX
    ) -> None:
        """Nothing is recorded before `begin`. The newest part is kept beside `recording_bytes_max`."""
        self._bytes_max = recording_bytes_max
        self._part_bytes_max = part_bytes_max
        self._freeze: Callable[[], bytes] | None = None
        self._part: PartWriter | None = None
        self._part_limit = part_bytes_max
        self._kept: list[RecordedPart] = []
        self._kept_bytes = 0
        # The number of the first input of the part in which the height in work began.
        self._height_began = 0
        self._signed: list[tuple[bytes, bytes]] = []
        self._failure = ""

    def signing(self, sign: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        """`sign`, with every signature noted."""

        def noted(message: bytes) -> bytes:
            signature = sign(message)
            self._signed.append((message, signature))
            return signature

        return noted

    def begin(self, freeze: Callable[[], bytes]) -> None:
        """The replica is about to start; `freeze` gives its image between two steps."""
        self._freeze = freeze
        self._guarded(self._begin_part, 0)

    def started(self, effects: Sequence[Effect]) -> None:
        """`Replica.start` gave these effects."""
        self._guarded(self._note, None, effects)

    def stepped(self, given: Input, effects: Sequence[Effect] | None) -> None:
        """The step with `given` gave these effects; None: it raised."""
        self._guarded(self._note, given, effects)

    def recording(self) -> Recording:
        """What is kept now, the image of this moment at its end."""
        parts, inputs = list(self._kept), 0
        if self._part is not None:
            self._guarded(self._append_open_part, parts)
            inputs = self._part.first + self._part.inputs
        return Recording(tuple(parts), inputs, self._failure)

    # --- the work, which may fail --------------------------------------------------------------------------

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        if self._failure:
            self._signed.clear()
            return
        try:
            work(*arguments)
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}"
            structlog.get_logger("recorder").error("the recorder stopped; the node goes on", reason=self._failure)

    def _begin_part(self, first: int) -> None:
        assert self._freeze is not None
        image = self._freeze()
        self._part = PartWriter(first, image)
        # An image of many members in a stall is large: parts grow with it, or there would be images only.
        self._part_limit = max(self._part_bytes_max, 4 * len(image))

    def _note(self, given: Input | None, effects: Sequence[Effect] | None) -> None:
        part = self._part
        if part is None:
            return
        outcome = None
        if effects or self._signed or effects is None or given is None:
            marks = None if effects is None else bytes(map(mark, effects))
            outcome = Outcome(marks, tuple((signed_name(message), made) for message, made in self._signed))
            self._signed.clear()
        if given is None:
            part.start(outcome or Outcome(b""))
        elif isinstance(given, Tick):
            part.tick(given, outcome)
        else:
            part.take(given, outcome)
            if isinstance(given, Applied | Synced):
                self._height_began = part.first
        if part.size >= self._part_limit:
            self._close_part(part)

    def _close_part(self, part: PartWriter) -> None:
        self._kept.append(RecordedPart(part.first, part.inputs, part.content()))
        self._kept_bytes += len(self._kept[-1].data)
        self._begin_part(part.first + part.inputs)
        while self._kept_bytes > self._bytes_max and (dropped := self._next_to_drop()) is not None:
            self._kept_bytes -= len(self._kept.pop(dropped).data)

    def _next_to_drop(self) -> int | None:
        """The oldest part that is not at the beginning of the height in work; None: nothing may go."""
        since = [place for place, part in enumerate(self._kept) if part.first >= self._height_began]
        spared = since[:STALL_PARTS_KEPT]
        return next((place for place in range(len(self._kept)) if place not in spared), None)

    def _append_open_part(self, parts: list[RecordedPart]) -> None:
        assert self._part is not None
        assert self._freeze is not None
        parts.append(RecordedPart(self._part.first, self._part.inputs, self._part.content(self._freeze())))
