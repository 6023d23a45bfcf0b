"""What peers say to one another, as bytes: frames, typed messages and their limits; pure, without a socket.

A frame is the length of its payload (4 bytes, big-endian) and the payload: the canonical encoding of one
message, an array that starts with the message's tag. Length and tag stand in the first six bytes, so a frame
that is too large for its kind is refused before any more of it is kept.

A connection begins with `Hello` from the side that dialled and `Welcome` or `Refusal` from the other; nothing
else may be sent before. The obligation of whoever feeds a `FrameDecoder`: after an InvalidFrame, close the
connection; after the greeting was accepted, call `open()`.
"""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Annotated, Final, TypeAlias, cast, get_args

import msgspec

from consensus.codec import CodecError, decode, encode
from consensus.messages import PAYLOAD_SIZE_MAX, VALIDATORS_MAX, Digest, Height, Instance, Payload, Signature
from consensus.messages import Message as ConsensusContent
from node.config import BLOCK_BYTES_LIMIT
from node.errors import InvalidFrame
from node.ledger import TRANSACTION_SIZE_MAX, Hash, NetworkId
from node.report import REPORT_SIZE_MAX
from node.snapshot.manifest import CHUNK_FILE_BYTES_MAX, CHUNKS_MAX, MANIFEST_BYTES_MAX

PROTOCOL_VERSION: Final = 1
LENGTH_SIZE: Final = 4

BATCH_COUNT_MAX: Final = 5_000
"""Transactions in one message."""
BATCH_BYTES_MAX: Final = 2 * TRANSACTION_SIZE_MAX
"""Bytes of all transactions in one message together."""
IDS_MAX: Final = 10_000
"""Transaction ids in one message."""
BLOCKS_MAX: Final = 1_000
"""Blocks asked for, or served, in one message."""
BLOCK_SIZE_MAX: Final = BLOCK_BYTES_LIMIT + 1024 * 1024
"""Bytes of one encoded ledger.CertifiedBlock."""
BLOCKS_BYTES_MAX: Final = BLOCK_SIZE_MAX
"""Bytes of all blocks in one message together: one block of any allowed size always fits."""
ROWS_MAX: Final = 20_000
"""Receipts and written values of a block in one message."""
ROWS_TOTAL_MAX: Final = 2**32 - 1
SNAPSHOTS_KNOWN_MAX: Final = 64
"""Digests of snapshots in one question."""
MANIFEST_LINES_MAX: Final = 256
MANIFEST_LINE_LENGTH_MAX: Final = 200
REASON_LENGTH_MAX: Final = 300
GREETING_SIZE_MAX: Final = 2048
"""Bytes of a frame before the greeting was accepted."""
GREETING_AHEAD_MAX: Final = 512 * 1024
"""Bytes that may arrive behind a greeting before it was accepted."""

_FRAMING_SIZE: Final = 64 * 1024  # tags, lengths and small fields around the bulk of a message

MemberId: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]
Code: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,39}\Z")]
RequestNumber: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
TransactionBytes: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=TRANSACTION_SIZE_MAX)]
TransactionTuple: TypeAlias = Annotated[tuple[TransactionBytes, ...], msgspec.Meta(max_length=BATCH_COUNT_MAX)]
WireIds: TypeAlias = Annotated[tuple[Hash, ...], msgspec.Meta(max_length=IDS_MAX)]
RowNumber: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=ROWS_TOTAL_MAX)]
Row: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=BLOCKS_BYTES_MAX)]
ManifestLine: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[ -~]{1,200}\Z")]
BlockBytes: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=BLOCK_SIZE_MAX)]


class TrafficClass(IntEnum):
    """Which queue a message waits in; a lower number is always sent first."""

    CONSENSUS = 0
    CONTROL = 1
    BULK = 2


class _Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Encoded as a fixed-order array that starts with the tag."""


class _Introduction(_Wire, frozen=True):
    """Who speaks. Version, network and genesis must agree; another contracts hash limits voting, never sync.

    `instance` was drawn by this process at its start: two of one member are two processes, or one after a restart.
    """

    version: Annotated[int, msgspec.Meta(ge=0, lt=2**16)]
    network: NetworkId
    genesis_hash: Hash
    member: MemberId
    contracts_hash: Hash
    instance: Instance


class Hello(_Introduction, frozen=True, tag=1):
    """The first message of the side that dialled."""


class Welcome(_Introduction, frozen=True, tag=2):
    """The answer to a Hello that was accepted."""


class Refusal(_Wire, frozen=True, tag=3):
    """Instead of a Welcome, or at any time before closing: why this connection ends."""

    code: Code
    message: Annotated[str, msgspec.Meta(max_length=REASON_LENGTH_MAX)]


class Ping(_Wire, frozen=True, tag=4):
    """Asks for a Pong, to learn whether the other side still reads."""

    number: RequestNumber


class Pong(_Wire, frozen=True, tag=5):
    """The answer to the Ping of that number."""

    number: RequestNumber


class ConsensusMessage(_Wire, frozen=True, tag=6):
    """One message of the replica."""

    message: ConsensusContent


class TransactionIds(_Wire, frozen=True, tag=7):
    """Anti-entropy: transactions (wire ids) that wait in the sender's mempool."""

    wire_ids: WireIds


class FetchTransactions(_Wire, frozen=True, tag=8):
    """Asks for transactions by wire id; answered by Transactions with the same `request`."""

    request: RequestNumber
    wire_ids: WireIds


class FetchPayload(_Wire, frozen=True, tag=9):
    """Asks for the payload of the block `digest`; answered by PayloadReply with the same `request`."""

    request: RequestNumber
    height: Height
    digest: Digest


class FetchBlocks(_Wire, frozen=True, tag=10):
    """Asks for the decided blocks `first` … `last`; answered by Blocks with the same `request`."""

    request: RequestNumber
    first: Height
    last: Height


class TransactionBatch(_Wire, frozen=True, tag=11):
    """Gossip: transactions (bytes of ledger.SignedBody) that the sender has accepted."""

    transactions: TransactionTuple


class Transactions(_Wire, frozen=True, tag=12):
    """Those of the transactions asked for that the sender has, as many as fit, in the order asked."""

    request: RequestNumber
    transactions: TransactionTuple


class PayloadReply(_Wire, frozen=True, tag=13):
    """The payload asked for, or None where the sender does not have it."""

    request: RequestNumber
    payload: Payload | None


class Blocks(_Wire, frozen=True, tag=14):
    """Consecutive blocks (encoded ledger.CertifiedBlock) from `first` asked for on, as many as fit.

    `head` is the sender's head height, `first` the lowest height that it serves; no blocks means that it does not
    have the first one.
    """

    request: RequestNumber
    blocks: Annotated[tuple[BlockBytes, ...], msgspec.Meta(max_length=BLOCKS_MAX)]
    head: Height
    first: Height


class MemberReport(_Wire, frozen=True, tag=15):
    """What `member` says about itself (bytes of report.Report), under its voting key; any member may pass it on."""

    member: MemberId
    report: Annotated[bytes, msgspec.Meta(max_length=REPORT_SIZE_MAX)]
    signature: Signature


class FetchExecution(_Wire, frozen=True, tag=16):
    """Asks what the decided block `height` did, from its row `first` on; answered by Execution."""

    request: RequestNumber
    height: Height
    first: RowNumber


class Execution(_Wire, frozen=True, tag=17):
    """What a block did, row by row: `receipts` rows ("", encoded receipt), then (state key, value after or None).

    `rows` counts all of them (0: the sender does not have the block), `items` are as many as fit. `whole`: the
    written values are among them; of old blocks they are no longer kept.
    """

    request: RequestNumber
    receipts: RowNumber
    rows: RowNumber
    whole: bool
    items: Annotated[tuple[tuple[Row, Row | None], ...], msgspec.Meta(max_length=ROWS_MAX)]


class FetchManifest(_Wire, frozen=True, tag=18):
    """Asks which code decides outcomes at the receiver; answered by Manifest."""

    request: RequestNumber


class Manifest(_Wire, frozen=True, tag=19):
    """The lines whose digest is the sender's contracts hash: one for each contract and source that counts."""

    request: RequestNumber
    lines: Annotated[tuple[ManifestLine, ...], msgspec.Meta(max_length=MANIFEST_LINES_MAX)]


class FetchSnapshot(_Wire, frozen=True, tag=20):
    """Asks for the manifest of the newest snapshot that the receiver offers; answered by SnapshotOffer.

    `known` are digests of snapshots whose manifest the sender has: that of such a one need not be sent again.
    """

    request: RequestNumber
    known: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=SNAPSHOTS_KNOWN_MAX)]


class SnapshotOffer(_Wire, frozen=True, tag=21):
    """The newest snapshot that the sender has: its height, its digest, its encoded manifest (None: known already).

    Height 0: the sender offers none.
    """

    request: RequestNumber
    height: Height
    digest: Digest
    manifest: Annotated[bytes, msgspec.Meta(max_length=MANIFEST_BYTES_MAX)] | None


class FetchChunk(_Wire, frozen=True, tag=22):
    """Asks for one chunk of the snapshot `digest` of `height`; answered by Chunk with the same `request`."""

    request: RequestNumber
    height: Height
    digest: Digest
    index: Annotated[int, msgspec.Meta(ge=0, lt=CHUNKS_MAX)]


class Chunk(_Wire, frozen=True, tag=23):
    """The compressed chunk asked for; None where the sender does not have that snapshot (any more)."""

    request: RequestNumber
    data: Annotated[bytes, msgspec.Meta(max_length=CHUNK_FILE_BYTES_MAX)] | None


Request: TypeAlias = (
    FetchTransactions | FetchPayload | FetchBlocks | FetchExecution | FetchManifest | FetchSnapshot | FetchChunk
)
Reply: TypeAlias = Transactions | PayloadReply | Blocks | Execution | Manifest | SnapshotOffer | Chunk
REPLY_TYPES: Final[Mapping[type[Request], type[Reply]]] = MappingProxyType(
    {
        FetchTransactions: Transactions,
        FetchPayload: PayloadReply,
        FetchBlocks: Blocks,
        FetchExecution: Execution,
        FetchManifest: Manifest,
        FetchSnapshot: SnapshotOffer,
        FetchChunk: Chunk,
    }
)
"""Which reply answers which request."""
WireMessage: TypeAlias = (
    Hello
    | Welcome
    | Refusal
    | Ping
    | Pong
    | ConsensusMessage
    | TransactionIds
    | FetchTransactions
    | FetchPayload
    | FetchBlocks
    | TransactionBatch
    | Transactions
    | PayloadReply
    | Blocks
    | MemberReport
    | FetchExecution
    | Execution
    | FetchManifest
    | Manifest
    | FetchSnapshot
    | SnapshotOffer
    | FetchChunk
    | Chunk
)

# A new view carries a view change of every validator, each with two certificates of all validators.
_SIGNATURE_SIZE: Final = 64 + 8
_CONSENSUS_SIZE_MAX: Final = max(
    PAYLOAD_SIZE_MAX + VALIDATORS_MAX * _SIGNATURE_SIZE,
    VALIDATORS_MAX * 2 * VALIDATORS_MAX * _SIGNATURE_SIZE,
)
_IDS_SIZE_MAX: Final = IDS_MAX * 34
_BATCH_SIZE_MAX: Final = BATCH_BYTES_MAX + BATCH_COUNT_MAX * 5

_KINDS: Final[Mapping[type[WireMessage], tuple[TrafficClass, int]]] = MappingProxyType(
    {
        Hello: (TrafficClass.CONTROL, 0),
        Welcome: (TrafficClass.CONTROL, 0),
        Refusal: (TrafficClass.CONTROL, 0),
        Ping: (TrafficClass.CONTROL, 0),
        Pong: (TrafficClass.CONTROL, 0),
        ConsensusMessage: (TrafficClass.CONSENSUS, _CONSENSUS_SIZE_MAX),
        TransactionIds: (TrafficClass.BULK, _IDS_SIZE_MAX),
        FetchTransactions: (TrafficClass.CONTROL, _IDS_SIZE_MAX),
        FetchPayload: (TrafficClass.CONTROL, 0),
        FetchBlocks: (TrafficClass.CONTROL, 0),
        TransactionBatch: (TrafficClass.BULK, _BATCH_SIZE_MAX),
        Transactions: (TrafficClass.CONTROL, _BATCH_SIZE_MAX),  # a member waits for them to vote
        PayloadReply: (TrafficClass.CONTROL, PAYLOAD_SIZE_MAX),
        Blocks: (TrafficClass.BULK, BLOCKS_BYTES_MAX + BLOCKS_MAX * 5),
        MemberReport: (TrafficClass.BULK, REPORT_SIZE_MAX),
        FetchExecution: (TrafficClass.CONTROL, 0),
        Execution: (TrafficClass.BULK, BLOCKS_BYTES_MAX + ROWS_MAX * 11),
        FetchManifest: (TrafficClass.CONTROL, 0),
        Manifest: (TrafficClass.BULK, MANIFEST_LINES_MAX * (MANIFEST_LINE_LENGTH_MAX + 3)),
        FetchSnapshot: (TrafficClass.CONTROL, 0),
        SnapshotOffer: (TrafficClass.BULK, MANIFEST_BYTES_MAX),
        FetchChunk: (TrafficClass.CONTROL, 0),
        Chunk: (TrafficClass.BULK, CHUNK_FILE_BYTES_MAX),
    }
)
_GREETINGS: Final = (Hello, Welcome, Refusal)


def _tag(kind: type[WireMessage]) -> int:
    return cast(int, kind.__struct_config__.tag)


_KIND_BY_TAG: Final = MappingProxyType({_tag(kind): kind for kind in _KINDS})
_SIZE_MAX_BY_TAG: Final = MappingProxyType({_tag(kind): size + _FRAMING_SIZE for kind, (_, size) in _KINDS.items()})
_GREETING_TAGS: Final = tuple(_tag(kind) for kind in _GREETINGS)
FRAME_SIZE_MAX: Final = max(_SIZE_MAX_BY_TAG.values())


def traffic_class(message: WireMessage) -> TrafficClass:
    """Return the queue that `message` waits in."""
    return _KINDS[type(message)][0]


def encode_frame(message: WireMessage) -> bytes:
    """Return `message` as a frame; raise ValueError when no peer would accept its size."""
    payload = encode(message)
    size_max = _SIZE_MAX_BY_TAG[_tag(type(message))]
    if len(payload) > size_max:
        raise ValueError(f"{type(message).__name__} of {len(payload)} bytes is above its limit of {size_max}")
    return len(payload).to_bytes(LENGTH_SIZE, "big") + payload


def decode_message(payload: bytes) -> WireMessage:
    """Return the message in a frame's payload; raise InvalidFrame when it is not canonical or out of bounds."""
    kind = _KIND_BY_TAG.get(payload[1]) if len(payload) > 1 else None
    if kind is None:
        raise InvalidFrame("invalid_frame", "not a message of this protocol")
    try:
        message = decode(payload, kind, size_max=_SIZE_MAX_BY_TAG[payload[1]])
    except CodecError as error:
        raise InvalidFrame("invalid_frame", f"not a message: {error}") from error
    if isinstance(message, FetchBlocks) and not 0 <= message.last - message.first < BLOCKS_MAX:
        raise InvalidFrame("invalid_frame", f"blocks {message.first} to {message.last} are none or too many")
    return message


class FrameDecoder:
    """Cuts a byte stream into payloads. Keeps at most one unfinished frame, within the limit of its kind."""

    __slots__ = ("_buffer", "_greeted", "_open", "_wanted", "failure")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._wanted = 0
        self._greeted = False
        self._open = False
        self.failure: InvalidFrame | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads that `data` completes, in order; raise InvalidFrame for ever once a frame is bad.

        Payloads before a bad frame are returned first: then `failure` is set, and the next call raises it.
        Until `open()`, only a greeting is accepted, at most one is returned, and what follows it waits.
        """
        if self.failure is not None:
            raise self.failure
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._wanted:
                # A large frame comes in many pieces: it is joined once, when it is whole.
                return []
            data = bytes(self._buffer)
            self._buffer.clear()
        payloads: list[bytes] = []
        start = 0
        try:
            while (self._open or not self._greeted) and (end := self._frame_end(data, start)) is not None:
                payloads.append(data[start + LENGTH_SIZE : end])
                start = end
                self._greeted = True
            if not self._open and len(data) - start > GREETING_AHEAD_MAX:
                raise InvalidFrame("invalid_frame", "too much was sent before the greeting was answered")
            self._buffer += data[start:]
        except InvalidFrame as failure:
            self.failure = failure
            if not payloads:
                raise
        return payloads

    def open(self) -> list[bytes]:
        """Accept every kind of message from now on; return the payloads that already wait."""
        self._open = True
        self._wanted = 0
        return self.feed(b"")

    def _frame_end(self, data: bytes, start: int) -> int | None:
        """Where the frame at `start` ends; None while bytes of it are missing, and `_wanted` are needed to go on.

        Raise InvalidFrame on its first six bytes.
        """
        at_hand = len(data) - start
        self._wanted = 0
        if at_hand < LENGTH_SIZE:
            return None
        size = int.from_bytes(data[start : start + LENGTH_SIZE], "big")
        size_max = FRAME_SIZE_MAX if self._open else GREETING_SIZE_MAX
        if not 2 <= size <= size_max:
            raise InvalidFrame("invalid_frame", f"a frame of {size} bytes; 2 to {size_max} are allowed here")
        if at_hand < LENGTH_SIZE + 2:
            return None
        marker, tag = data[start + LENGTH_SIZE], data[start + LENGTH_SIZE + 1]
        if marker & 0xF0 != 0x90 or tag not in _SIZE_MAX_BY_TAG:  # a MessagePack array of fewer than 16
            raise InvalidFrame("invalid_frame", "not a message of this protocol")
        if not self._open and tag not in _GREETING_TAGS:
            raise InvalidFrame("invalid_frame", "a connection begins with a greeting")
        if size > _SIZE_MAX_BY_TAG[tag]:
            raise InvalidFrame(
                "invalid_frame", f"a frame of {size} bytes; its kind has at most {_SIZE_MAX_BY_TAG[tag]}"
            )
        if at_hand < LENGTH_SIZE + size:
            self._wanted = LENGTH_SIZE + size
            return None
        return start + LENGTH_SIZE + size


assert set(get_args(WireMessage)) == set(_KINDS), "every kind of message needs a class and a limit"
