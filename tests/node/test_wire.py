"""Frames and messages: whole whatever the chunks, canonical, and bounded before memory is taken."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.codec import encode
from consensus.messages import (
    PAYLOAD_SIZE_MAX,
    VALIDATORS_MAX,
    Certificate,
    KnownInstance,
    NewView,
    PrePrepare,
    Presence,
    Status,
    ViewChange,
    Vote,
    VoteKind,
)
from node.errors import InvalidFrame
from node.ledger import TRANSACTION_SIZE_MAX
from node.wire import (
    BATCH_BYTES_MAX,
    BATCH_COUNT_MAX,
    BLOCK_SIZE_MAX,
    BLOCKS_MAX,
    GREETING_AHEAD_MAX,
    GREETING_SIZE_MAX,
    IDS_MAX,
    Blocks,
    ConsensusMessage,
    Execution,
    FetchBlocks,
    FetchExecution,
    FetchManifest,
    FetchPayload,
    FetchTransactions,
    FrameDecoder,
    Hello,
    Manifest,
    PayloadReply,
    Ping,
    Pong,
    Refusal,
    TrafficClass,
    TransactionBatch,
    TransactionIds,
    Transactions,
    Welcome,
    WireMessage,
    decode_message,
    encode_frame,
    traffic_class,
)

HASH = b"h" * 32
VOTE = Vote(VoteKind.COMMIT, 2**63 - 1, 9, HASH, 3, b"s" * 64)
INSTANCE = b"i" * 16
HELLO = Hello(1, "trial-0123456789ab", HASH, "bank-a", HASH, INSTANCE)
MESSAGES: tuple[WireMessage, ...] = (
    HELLO,
    Welcome(1, "trial-0123456789ab", HASH, "bank-a", HASH, INSTANCE),
    Refusal("wrong_network", "this is another network ü"),
    Ping(0),
    Pong(2**32 - 1),
    ConsensusMessage(VOTE),
    ConsensusMessage(PrePrepare(VOTE, b"payload", None)),
    ConsensusMessage(Status(1, 2, HASH, 3, 0, b"s" * 64)),
    TransactionIds((HASH,)),
    FetchTransactions(1, (HASH, HASH)),
    FetchPayload(2, 3, HASH),
    FetchBlocks(3, 5, 5),
    TransactionBatch((b"one", b"two")),
    Transactions(1, ()),
    PayloadReply(2, None),
    PayloadReply(2, b"payload"),
    Blocks(3, (b"block",), 77, 1),
    FetchExecution(4, 9, 20_000),
    Execution(4, 1, 3, True, ((b"", b"receipt"), (b"key", b"value"), (b"gone", None))),
    FetchManifest(5),
    Manifest(5, ("hansa/contracts 1 python 3.11", "contracts.sdk 00ff")),
    ConsensusMessage(KnownInstance(None)),
    ConsensusMessage(Presence(INSTANCE, None, 3, b"s" * 64)),
)


def open_decoder() -> FrameDecoder:
    decoder = FrameDecoder()
    assert decoder.open() == []
    return decoder


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_went(message: WireMessage) -> None:
    frame = encode_frame(message)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    (payload,) = open_decoder().feed(frame)
    assert decode_message(payload) == message


@given(st.lists(st.sampled_from(MESSAGES), max_size=12), st.data())
def test_chunks_do_not_matter(messages: list[WireMessage], data: st.DataObject) -> None:
    stream = b"".join(encode_frame(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    decoder = open_decoder()
    payloads: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        payloads += decoder.feed(stream[start:end])
    assert [decode_message(payload) for payload in payloads] == messages


@given(st.binary(max_size=200), st.booleans(), st.integers(1, 50))
def test_garbage_ends_in_payloads_or_an_invalid_frame(garbage: bytes, is_open: bool, step: int) -> None:
    decoder = open_decoder() if is_open else FrameDecoder()
    try:
        for start in range(0, len(garbage), step):
            for payload in decoder.feed(garbage[start : start + step]):
                decode_message(payload)
    except InvalidFrame:
        return


@given(st.sampled_from(MESSAGES), st.data())
@settings(max_examples=300)
def test_a_changed_byte_is_another_message_or_an_invalid_frame(message: WireMessage, data: st.DataObject) -> None:
    payload = bytearray(encode_frame(message)[4:])
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert decode_message(bytes(payload)) != message
    except InvalidFrame:
        return


@given(st.binary(max_size=100))
def test_random_payloads_never_raise_anything_else(payload: bytes) -> None:
    for candidate in (payload, b"\x92\x06" + payload, b"\x93\x0e" + payload):
        try:
            assert encode_frame(decode_message(candidate))[4:] == candidate
        except InvalidFrame:
            continue


@pytest.mark.parametrize(
    ("first_bytes", "said"),
    [
        (b"\xff\xff\xff\xff", "a frame of 4294967295 bytes"),
        (b"\x00\x00\x00\x00", "a frame of 0 bytes"),
        (b"\x00\x00\x00\x01", "a frame of 1 bytes"),
        (b"\x00\x10\x00\x00\x92\x04", "its kind has at most"),  # a Ping of a mebibyte
        (b"\x00\x00\x00\x10\xc4\x04", "not a message"),  # no array
        (b"\x00\x00\x00\x10\x92\x63", "not a message"),  # an unknown tag
        (b"GET / HTTP/1.1\r\n", "a frame of"),
    ],
)
def test_a_bad_frame_is_refused_on_its_first_six_bytes(first_bytes: bytes, said: str) -> None:
    decoder = open_decoder()
    with pytest.raises(InvalidFrame, match=said):
        decoder.feed(first_bytes)
    with pytest.raises(InvalidFrame, match=said):
        decoder.feed(encode_frame(Ping(1)))


def test_frames_before_a_bad_one_are_delivered() -> None:
    decoder = open_decoder()
    assert len(decoder.feed(encode_frame(Ping(1)) * 2 + b"\xff" * 9)) == 2
    assert decoder.failure is not None
    with pytest.raises(InvalidFrame):
        decoder.feed(b"")


def test_only_a_small_greeting_comes_first() -> None:
    with pytest.raises(InvalidFrame, match="begins with a greeting"):
        FrameDecoder().feed(encode_frame(Ping(1)))
    with pytest.raises(InvalidFrame, match="are allowed here"):
        FrameDecoder().feed((GREETING_SIZE_MAX + 1).to_bytes(4, "big"))


def test_what_follows_the_greeting_waits_until_it_is_accepted() -> None:
    decoder = FrameDecoder()
    batch = TransactionBatch((b"t" * 10_000,))
    stream = encode_frame(HELLO) + encode_frame(batch) + encode_frame(Ping(1))
    assert [decode_message(payload) for payload in decoder.feed(stream)] == [HELLO]
    assert [decode_message(payload) for payload in decoder.open()] == [batch, Ping(1)]


def test_little_may_follow_an_unanswered_greeting() -> None:
    decoder = FrameDecoder()
    decoder.feed(encode_frame(HELLO))
    more = encode_frame(TransactionBatch((b"t" * (GREETING_AHEAD_MAX - 100),)))
    assert decoder.feed(more[:-1]) == []
    with pytest.raises(InvalidFrame, match="before the greeting"):
        decoder.feed(more)


def test_the_largest_messages_of_each_kind_fit() -> None:
    signatures = tuple((index, b"s" * 64) for index in range(VALIDATORS_MAX))
    certificate = Certificate(VoteKind.COMMIT, 2**62, 2**62, HASH, signatures)
    change = ViewChange(2**62, 2**62, certificate, certificate, 0, b"s" * 64)
    largest: tuple[WireMessage, ...] = (
        ConsensusMessage(PrePrepare(VOTE, b"p" * PAYLOAD_SIZE_MAX, certificate)),
        ConsensusMessage(NewView(2**62, 2**62, (change,) * VALIDATORS_MAX, 0, b"s" * 64)),
        TransactionIds((HASH,) * IDS_MAX),
        FetchTransactions(2**32 - 1, (HASH,) * IDS_MAX),
        TransactionBatch((b"t" * TRANSACTION_SIZE_MAX,) * 2),
        Transactions(1, (b"t" * (BATCH_BYTES_MAX // BATCH_COUNT_MAX),) * BATCH_COUNT_MAX),
        PayloadReply(1, b"p" * PAYLOAD_SIZE_MAX),
        Blocks(1, (b"b" * BLOCK_SIZE_MAX,), 2**62, 2**62),
        Blocks(1, (b"b",) * BLOCKS_MAX, 2**62, 2**62),
    )
    for message in largest:
        (payload,) = open_decoder().feed(encode_frame(message))
        assert decode_message(payload) == message


@pytest.mark.parametrize(
    "message",
    [
        TransactionIds((HASH,) * (IDS_MAX + 1)),
        TransactionIds((b"short",)),
        Blocks(1, (b"b",) * (BLOCKS_MAX + 1), 1, 1),
        FetchBlocks(1, 5, 4),
        FetchBlocks(1, 1, BLOCKS_MAX + 1),
        FetchBlocks(-1, 1, 1),
        Ping(2**32),
        Hello(1, "Trial", HASH, "bank-a", HASH, INSTANCE),
        Hello(1, "trial", HASH, "bank-a\n", HASH, INSTANCE),
        Refusal("code", "x" * 301),
    ],
)
def test_counts_and_fields_are_bounded(message: WireMessage) -> None:
    with pytest.raises(InvalidFrame):
        decode_message(encode(message))


def test_too_large_a_message_is_not_sent() -> None:
    with pytest.raises(ValueError, match="above its limit"):
        encode_frame(TransactionBatch((b"t" * TRANSACTION_SIZE_MAX,) * 3))


def test_votes_go_before_questions_and_questions_before_bulk() -> None:
    order = [traffic_class(message) for message in (ConsensusMessage(VOTE), FetchPayload(1, 1, HASH), MESSAGES[12])]
    assert order == sorted(order)
    assert order == [TrafficClass.CONSENSUS, TrafficClass.CONTROL, TrafficClass.BULK]
