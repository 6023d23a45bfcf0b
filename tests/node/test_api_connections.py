"""What one connection may send: the parser has no limits of its own, so each is tried here on a real socket."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from node.api import ApiLimits, ApiServer
from node.api.connections import HEAD_BYTES_MAX, PIPELINED_MAX
from tests.node.memory_node import MemoryNode, as_json

CHUNKED = b"POST /v1/transactions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
ASK = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
PIECE_BYTES = 1024


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    running = ApiServer(MemoryNode(capacity=50), "127.0.0.1", 0, limits=ApiLimits(request_bytes_max=1_000_000))
    await running.start()
    yield running
    await running.stop()


def fields() -> Iterator[bytes]:
    number = 0
    while True:
        yield b"x-%d: 1\r\n" % number
        number += 1


def same(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


async def _sent_until_closed(server: ApiServer, start: bytes, pieces: Iterator[bytes]) -> tuple[bytes, int]:
    """What is answered to `start` and then pieces without end, and how many bytes were sent before the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    answer = asyncio.create_task(reader.read())
    writer.write(start)
    sent = len(start)
    try:
        while not answer.done():
            piece = b"".join(next(pieces) for _ in range(16))
            writer.write(piece)
            sent += len(piece)
            await writer.drain()
            # Time for the answer; what is in flight is no more than a few pieces then.
            await asyncio.sleep(0)
    except ConnectionError:
        pass
    try:
        return await answer, sent
    except ConnectionError:
        return b"", sent
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("start", "pieces"),
    [
        (b"GET /", same(b"x" * PIECE_BYTES)),
        (b"GET / HTTP/1.1\r\nhost: ", same(b"x" * PIECE_BYTES)),
        (b"GET / HTTP/1.1\r\n", same(b"x" * PIECE_BYTES)),
        (b"GET / HTTP/1.1\r\n", fields()),
        (CHUNKED + b"0\r\nx: ", same(b"x" * PIECE_BYTES)),
        (CHUNKED + b"0\r\n", fields()),
        (CHUNKED + b"1;x=", same(b"x" * PIECE_BYTES)),
    ],
    ids=["address", "value", "name", "fields", "trailing value", "trailing fields", "chunk extension"],
)
async def test_nothing_that_a_request_is_made_of_goes_on_for_ever(
    server: ApiServer, start: bytes, pieces: Iterator[bytes]
) -> None:
    _, sent = await asyncio.wait_for(_sent_until_closed(server, start, pieces), 30)
    # Beyond the bound there is what the sockets hold on both sides.
    assert sent < HEAD_BYTES_MAX + 16 * 1024 * 1024
    _, writer = await _answered(server, ASK)
    writer.close()


async def _answered(server: ApiServer, request: bytes) -> tuple[bytes, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    return head + await reader.readexactly(length), writer


async def test_a_head_that_is_too_large_is_told_so(server: ApiServer) -> None:
    answer, writer = await _answered(server, b"GET /healthz HTTP/1.1\r\nx: " + b"x" * HEAD_BYTES_MAX + b"\r\n\r\n")
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert as_json(body)["error"]["code"] == "malformed_request"
    assert "32768 bytes" in as_json(body)["error"]["message"]


async def test_a_large_head_and_the_body_behind_it_are_taken_in_one_piece(server: ApiServer) -> None:
    body = b"[" + b" " * 500_000 + b"]"
    head = b"POST /v1/query/till/balance HTTP/1.1\r\nhost: x\r\nx: %s\r\ncontent-length: %d\r\n\r\n" % (
        b"x" * 30_000,
        len(body),
    )
    answer, writer = await _answered(server, head + body)
    writer.close()
    assert b"one object of named arguments" in answer


async def test_requests_sent_ahead_are_answered_in_order_and_are_bounded(server: ApiServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(ASK + ASK.replace(b"healthz", b"nowhere") + ASK)
    heads = []
    for _ in range(3):
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        heads.append(head[:12])
        await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))
    assert heads == [b"HTTP/1.1 200", b"HTTP/1.1 404", b"HTTP/1.1 200"]
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(ASK * (PIPELINED_MAX + 10))
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert f"at most {PIPELINED_MAX} requests".encode() in answer
    assert answer.count(b"HTTP/1.1 200") < PIPELINED_MAX


async def test_an_upgrade_is_not_made_and_the_request_is_answered(server: ApiServer) -> None:
    """Java's client asks for HTTP/2 this way with its first request, body and all."""
    body = b'{"account": "A-1"}'
    asked = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
    head = b"POST /v1/query/till/balance HTTP/1.1\r\nhost: x\r\n" + asked
    answer, writer = await _answered(server, head + b"content-length: %d\r\n\r\n" % len(body) + body)
    assert not answer.startswith(b"HTTP/1.1 101")
    assert b'"value"' in answer or b'"error"' in answer
    writer.close()
    answer, writer = await _answered(
        server, ASK.replace(b"host: x\r\n", b"host: x\r\nupgrade: h2c\r\nconnection: upgrade\r\n")
    )
    assert answer.startswith(b"HTTP/1.1 200")
    writer.close()
