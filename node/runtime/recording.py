"""The recording of a replica's inputs as bytes: written entry by entry, read by whoever replays it.

A recording is a row of parts. Each begins with an image of the replica (consensus.image), so each can be replayed
without the others, and ends where the next one begins, unless parts between them were dropped for space. An entry
is an input with its outcome: which effects the step had, and what was signed in it.

What never enters: the payload of a block (its length alone does), so no transaction, no wire id, no argument; the
words why nothing is signed, which may name a value of the state; and no key. Signatures enter, with the first 16
bytes of the hash of what they sign: so `sign` can be played back.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, TypeAlias, get_args

import msgspec

from consensus.codec import CodecError, decode, encode, unpack
from consensus.effects import (
    Applied,
    Effect,
    Head,
    Input,
    PayloadBuilt,
    PayloadChecked,
    Persist,
    Received,
    Synced,
    Tick,
    Withhold,
)
from consensus.image import IMAGE_SIZE_MAX, NOT_KEPT, stand_in
from consensus.members import Members, Validator
from consensus.messages import PAYLOAD_SIZE_MAX, Certificate, Digest, Height, Message, PrePrepare, View

ENTRY_SIZE_MAX: Final = IMAGE_SIZE_MAX + 64
_NAME_SIZE: Final = 16
_LENGTH_SIZE: Final = 4
_TICKS_SIZE_MAX: Final = 2 * 1200
_TIME_BIAS_MS: Final = 128

Length: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=PAYLOAD_SIZE_MAX)]
Place: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class _Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Encoded as a fixed-order array."""


class Outcome(_Part, frozen=True):
    """What a step came to: one mark an effect (None: the step raised), and (name, signature) of what it signed."""

    marks: bytes | None
    signed: tuple[tuple[bytes, bytes], ...] = ()


class Image(_Part, frozen=True, tag=1):
    """The replica as it is here. The first entry of a part, and the last one of the last part."""

    data: bytes


class Started(_Part, frozen=True, tag=2):
    """`Replica.start` was called."""

    outcome: Outcome


class Ticked(_Part, frozen=True, tag=3):
    """A tick."""

    now_ms: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    time_ms: int
    outcome: Outcome | None


class Ticks(_Part, frozen=True, tag=4):
    """Ticks without effects. Two bytes each: the milliseconds since the tick before on the monotonic clock, and
    128 + by how much more the wall clock went on.
    """

    steps: bytes


class Blob(_Part, frozen=True, tag=5):
    """A message or a list of members that later entries of this part name by its place among the blobs."""

    data: bytes


class Heard(_Part, frozen=True, tag=6):
    """A message came; of a proposal the payload's length is beside it."""

    peer: str
    message: Place
    payload: Length | None
    outcome: Outcome | None


class Built(_Part, frozen=True, tag=7):
    """PayloadBuilt."""

    height: Height
    view: View
    digest: Digest | None
    payload: Length | None
    outcome: Outcome | None


class Checked(_Part, frozen=True, tag=8):
    """PayloadChecked."""

    height: Height
    view: View
    digest: Digest
    valid: bool | None
    payload: Length | None
    reason: str
    outcome: Outcome | None


class Moved(_Part, frozen=True, tag=9):
    """Applied or Synced with the head's parts; the lists of members are places of blobs."""

    synced: bool
    height: Height
    digest: bytes
    certificate: Certificate | None
    start_view: View
    members: Place
    decided_by: Place | None
    resting: tuple[str, ...]
    outcome: Outcome | None


class Told(_Part, frozen=True, tag=10):
    """Any other input: its name and its fields, which are plain values."""

    name: str
    fields: bytes
    outcome: Outcome | None


Entry: TypeAlias = Image | Started | Ticked | Ticks | Blob | Heard | Built | Checked | Moved | Told

_EFFECTS: Final = {effect: place for place, effect in enumerate(get_args(Effect), 1)}
_TOLD: Final = {
    kind.__name__: kind
    for kind in get_args(Input)
    if kind not in (Tick, Received, PayloadBuilt, PayloadChecked, Applied, Synced)
}


def mark(effect: Effect) -> int:
    """One byte that says of which kind an effect is, and of which kind the message or record in it is."""
    if isinstance(effect, Persist):
        return _EFFECTS[Persist] << 4 | int(effect.record.__struct_config__.tag or 0)
    message = getattr(effect, "message", None)
    tag = message.__struct_config__.tag if message is not None else 0
    return (_EFFECTS.get(type(effect), 0) << 4 | int(tag or 0)) & 0xFF


def signed_name(message: bytes) -> bytes:
    """The name under which a signature over `message` is recorded."""
    return hashlib.sha256(message).digest()[:_NAME_SIZE]


class PartWriter:
    """One part in the making. `size` is its bytes so far; `first` the number of its first input."""

    def __init__(self, first: int, image: bytes) -> None:
        """The part begins with `image`."""
        self.first = first
        self.inputs = 0
        self._data = bytearray()
        self._blobs: dict[bytes, int] = {}
        self._ticks = bytearray()
        self._last_tick: tuple[int, int] | None = None
        self._write(Image(image))

    @property
    def size(self) -> int:
        """Bytes so far."""
        return len(self._data) + len(self._ticks)

    def start(self, outcome: Outcome) -> None:
        """The replica was started."""
        self._write(Started(outcome))
        self.inputs += 1

    def tick(self, tick: Tick, outcome: Outcome | None) -> None:
        """A tick; one without outcome that came in good time costs two bytes."""
        last, self._last_tick = self._last_tick, (tick.now_ms, tick.time_ms)
        self.inputs += 1
        if outcome is None and last is not None:
            passed_ms = tick.now_ms - last[0]
            bias_ms = tick.time_ms - last[1] - passed_ms + _TIME_BIAS_MS
            if 0 <= passed_ms < 256 and 0 <= bias_ms < 256:
                self._ticks += bytes((passed_ms, bias_ms))
                if len(self._ticks) >= _TICKS_SIZE_MAX:
                    self._flush_ticks()
                return
        self._write(Ticked(tick.now_ms, tick.time_ms, outcome))

    def take(self, given: Input, outcome: Outcome | None) -> None:
        """Any other input."""
        self.inputs += 1
        if isinstance(given, Received):
            message, payload = given.message, None
            if isinstance(message, PrePrepare):
                payload = len(message.payload)
                message = PrePrepare(message.vote, b"", message.parent)
            self._write(Heard(given.peer, self._blob(encode(message)), payload, outcome))
        elif isinstance(given, PayloadBuilt):
            self._write(Built(given.height, given.view, given.digest, _length(given.payload), outcome))
        elif isinstance(given, PayloadChecked):
            payload, reason = _length(given.payload), given.reason
            self._write(Checked(given.height, given.view, given.digest, given.valid, payload, reason, outcome))
        elif isinstance(given, Applied | Synced):
            self._move(given.head, isinstance(given, Synced), outcome)
        else:
            if isinstance(given, Withhold) and given.reason:
                given = Withhold(NOT_KEPT)
            self._write(Told(type(given).__name__, encode(msgspec.structs.astuple(given)), outcome))

    def content(self, last_image: bytes | None = None) -> bytes:
        """The part as it is now, and `last_image` behind it."""
        self._flush_ticks()
        closing = b"" if last_image is None else _framed(Image(last_image))
        return bytes(self._data) + closing

    def _move(self, head: Head, synced: bool, outcome: Outcome | None) -> None:
        members = self._blob(encode(head.members.validators))
        decided_by = None if head.decided_by is None else self._blob(encode(head.decided_by.validators))
        self._write(
            Moved(
                synced,
                head.height,
                head.digest,
                head.certificate,
                head.start_view,
                members,
                decided_by,
                head.resting,
                outcome,
            )
        )

    def _blob(self, data: bytes) -> int:
        place = self._blobs.get(data)
        if place is None:
            self._blobs[data] = place = len(self._blobs)
            self._write(Blob(data))
        return place

    def _flush_ticks(self) -> None:
        if self._ticks:
            steps, self._ticks = bytes(self._ticks), bytearray()
            self._data += _framed(Ticks(steps))

    def _write(self, entry: Entry) -> None:
        self._flush_ticks()
        self._data += _framed(entry)


def _framed(entry: Entry) -> bytes:
    data = encode(entry)
    return len(data).to_bytes(_LENGTH_SIZE, "big") + data


def _length(payload: bytes | None) -> int | None:
    return None if payload is None else len(payload)


class Step(msgspec.Struct, frozen=True):
    """One input of a recording as the replica got it; `given` None stands for the call of `start`."""

    given: Input | None
    outcome: Outcome


def read_part(data: bytes) -> Iterator[Image | Step]:
    """Yield the part's image, then its steps, and an image wherever one stands; in order, one at a time.

    Raise CodecError where the bytes are not those of a part.
    """
    blobs: list[bytes] = []
    tick: tuple[int, int] | None = None
    quiet = Outcome(b"")
    for entry in _entries(data):
        if isinstance(entry, Image):
            yield entry
        elif isinstance(entry, Blob):
            blobs.append(entry.data)
        elif isinstance(entry, Ticked):
            tick = (entry.now_ms, entry.time_ms)
            yield Step(Tick(*tick), entry.outcome or quiet)
        elif isinstance(entry, Ticks):
            if tick is None or len(entry.steps) % 2:
                raise CodecError("quiet ticks follow no tick")
            for passed_ms, bias_ms in zip(entry.steps[::2], entry.steps[1::2], strict=True):
                tick = (tick[0] + passed_ms, tick[1] + passed_ms + bias_ms - _TIME_BIAS_MS)
                yield Step(Tick(*tick), quiet)
        elif isinstance(entry, Started):
            yield Step(None, entry.outcome)
        else:
            yield Step(_input(entry, blobs), entry.outcome or quiet)


def _entries(data: bytes) -> Iterator[Entry]:
    place = 0
    while place < len(data):
        length = int.from_bytes(data[place : place + _LENGTH_SIZE], "big")
        place += _LENGTH_SIZE
        body = data[place : place + length]
        if len(body) < length:
            raise CodecError("the last entry is cut off")
        place += length
        yield decode(body, Entry, size_max=ENTRY_SIZE_MAX)  # type: ignore[arg-type]


def _input(entry: Heard | Built | Checked | Moved | Told, blobs: Sequence[bytes]) -> Input:
    if isinstance(entry, Heard):
        message: Message = decode(_at(blobs, entry.message), Message, size_max=ENTRY_SIZE_MAX)  # type: ignore[arg-type]
        if isinstance(message, PrePrepare):
            message = PrePrepare(message.vote, stand_in(entry.payload or 0), message.parent)
        return Received(entry.peer, message)
    if isinstance(entry, Built):
        return PayloadBuilt(entry.height, entry.view, entry.digest, _payload(entry.payload))
    if isinstance(entry, Checked):
        payload = _payload(entry.payload)
        return PayloadChecked(entry.height, entry.view, entry.digest, entry.valid, payload, entry.reason)
    if isinstance(entry, Moved):
        decided_by = None if entry.decided_by is None else _members(_at(blobs, entry.decided_by))
        members = _members(_at(blobs, entry.members))
        head = Head(
            entry.height, entry.digest, entry.certificate, entry.start_view, members, decided_by, entry.resting
        )
        return Synced(head) if entry.synced else Applied(head)
    kind: Any = _TOLD.get(entry.name)
    if kind is None:
        raise CodecError(f"an input named {entry.name[:40]!r} is not known to this version")
    fields = unpack(entry.fields, size_max=ENTRY_SIZE_MAX)
    names = kind.__struct_fields__
    if not isinstance(fields, tuple) or len(fields) != len(names):
        raise CodecError(f"a {entry.name} has other fields")
    try:
        told: Input = msgspec.convert(dict(zip(names, fields, strict=True)), kind, strict=True)
    except msgspec.ValidationError as error:
        raise CodecError(str(error)) from error
    return told


def _at(blobs: Sequence[bytes], place: int) -> bytes:
    if place >= len(blobs):
        raise CodecError("an entry names a blob that is not there")
    return blobs[place]


def _members(data: bytes) -> Members:
    try:
        return Members(decode(data, tuple[Validator, ...], size_max=ENTRY_SIZE_MAX))
    except ValueError as error:
        raise CodecError(str(error)) from error


def _payload(length: int | None) -> bytes | None:
    return None if length is None else stand_in(length)
