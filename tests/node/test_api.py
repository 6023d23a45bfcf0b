"""The API's promises about requests and answers, over real sockets."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx
import pytest
import pytest_asyncio

from consensus.codec import decode, encode
from node.api import ApiLimits, ApiServer
from node.api.marking import HEADER
from node.client import call, draft, sign
from node.errors import ConfigError
from node.keys import SigningKey
from node.ledger import CertifiedBlock, Transaction
from tests.node.memory_node import NETWORK, MemoryNode, as_json

KEY = SigningKey(bytes(range(32)))
MSGPACK = {"content-type": "application/msgpack"}


def deposit(amount: int = 100, request_id: str | None = None, network: str = NETWORK) -> Transaction:
    body = draft(
        network, "bank-a", [call("till.deposit", {"account": "A-1", "amount": amount})], request_id=request_id
    )
    return sign(body, [KEY])


@contextlib.asynccontextmanager
async def serving(node: MemoryNode) -> AsyncIterator[ApiServer]:
    limits = ApiLimits(request_bytes_max=1_000_000, streams_max=2, connections_max=20, heartbeat_s=0.05)
    running = ApiServer(node, "127.0.0.1", 0, limits=limits)
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def node() -> MemoryNode:
    return MemoryNode(capacity=50)


@pytest.fixture
async def server(node: MemoryNode) -> AsyncIterator[ApiServer]:
    async with serving(node) as running:
        yield running


@pytest.fixture
async def http(server: ApiServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, verify=False) as client:
        yield client


class Refusing(NamedTuple):
    """A node that is only asked what it refuses: it serves many tests, and stays as it was."""

    node: MemoryNode
    http: httpx.AsyncClient


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def refusing() -> AsyncIterator[Refusing]:
    node = MemoryNode(capacity=50)
    async with (
        serving(node) as server,
        httpx.AsyncClient(base_url=server.url, trust_env=False, verify=False) as client,
    ):
        yield Refusing(node, client)


def check_error(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    document = response.json()
    assert set(document) >= {"error"}
    error: dict[str, Any] = document["error"]
    assert set(error) == {"code", "message", "action", "retryable", "details"}
    assert error["code"] == code, error
    assert error["message"]
    assert error["action"]
    return error


# --- submitting ---


async def test_one_transaction_is_taken_in_every_spelling_and_has_one_effect(
    http: httpx.AsyncClient, node: MemoryNode
) -> None:
    transaction = deposit()
    data = transaction.data
    spellings: list[dict[str, Any]] = [
        {"content": encode(data), "headers": MSGPACK},
        {"json": {"transaction": data.hex()}},
        {"json": {"transaction": base64.b64encode(data).decode()}},
    ]
    for place, request in enumerate(spellings):
        response = await http.post("/v1/transactions", **request)
        assert response.status_code == 202
        assert response.json() == {
            "tx_id": transaction.tx_id.hex(),
            "status": "pending",
            "duplicate": place > 0,
        }
    node.make_block()
    assert node.balances == {"A-1": 100}
    again = await http.post("/v1/transactions", json={"transaction": data.hex()})
    assert (again.status_code, again.json()["status"]) == (202, "final")


async def test_a_batch_has_an_outcome_for_each_in_order(http: httpx.AsyncClient) -> None:
    good, other = deposit(1), deposit(2)
    stranger = deposit(3, network="elsewhere-1")
    batch = encode((good.data, stranger.data, b"garbage", other.data))
    response = await http.post("/v1/transactions", content=batch, headers=MSGPACK)
    assert response.status_code == 207
    answer = response.json()
    assert (answer["accepted"], answer["refused"]) == (2, 2)
    codes = [item.get("tx_id") or item["error"]["code"] for item in answer["results"]]
    assert codes == [good.tx_id.hex(), "wrong_network", "malformed_transaction", other.tx_id.hex()]
    all_good = await http.post("/v1/transactions", json={"transactions": [deposit(4).data.hex()]})
    assert all_good.status_code == 202
    assert all_good.json()["results"][0]["status"] == "pending"


async def test_waiting_answers_with_the_receipts_or_with_pending_in_time(
    http: httpx.AsyncClient, node: MemoryNode
) -> None:
    transaction = deposit(7)
    request = asyncio.create_task(
        http.post("/v1/transactions?wait=final&timeout_s=20", content=encode(transaction.data), headers=MSGPACK)
    )
    await node.taken.wait()
    node.make_block()
    response = await request
    assert response.status_code == 200
    fate = response.json()
    assert (fate["status"], fate["height"]) == ("final", 1)
    assert fate["receipts"][0]["code"] == "ok"
    assert fate["receipts"][0]["events"][0]["data"] == {"account": "A-1", "amount": 7, "proof": "01ff"}
    late = await http.post(
        "/v1/transactions?wait=final&timeout_s=0.01", content=encode((deposit(8).data,)), headers=MSGPACK
    )
    assert late.status_code == 202
    assert late.json()["results"][0]["status"] == "pending"


async def test_a_full_queue_says_when_to_come_again(http: httpx.AsyncClient, node: MemoryNode) -> None:
    node.capacity = 0
    response = await http.post("/v1/transactions", content=encode(deposit().data), headers=MSGPACK)
    error = check_error(response, 429, "queue_full")
    assert error["retryable"] is True
    assert error["details"]["retry_after_ms"] == 1500
    assert response.headers["retry-after"] == "2"


async def test_a_batch_that_finds_no_room_at_all_is_told_as_one_to_come_again(
    http: httpx.AsyncClient, node: MemoryNode
) -> None:
    node.capacity = 1
    first, second = deposit(1).data, deposit(2).data
    response = await http.post("/v1/transactions", content=encode((first, second)), headers=MSGPACK)
    assert response.status_code == 207, "one of them was taken"
    response = await http.post("/v1/transactions", content=encode((second, deposit(3).data)), headers=MSGPACK)
    check_error(response, 429, "queue_full")
    assert response.headers["retry-after"] == "2"


async def test_a_fate_can_be_asked_for_and_shows_what_was_signed(http: httpx.AsyncClient, node: MemoryNode) -> None:
    transaction = deposit(5, request_id="order-1")
    await http.post("/v1/transactions", json={"transaction": transaction.data.hex()})
    node.make_block()
    answer = (await http.get(f"/v1/transactions/{transaction.tx_id.hex()}")).json()
    assert answer["status"] == "final"
    assert answer["content"]["request_id"] == "order-1"
    assert answer["content"]["calls"][0] == {
        "contract": "till",
        "method": "deposit",
        "args": {"account": "A-1", "amount": 5},
    }
    check_error(await http.get(f"/v1/transactions/{'0' * 64}"), 404, "transaction_not_found")
    check_error(await http.get("/v1/transactions/zz"), 400, "malformed_request")
    listed = (await http.get("/v1/transactions?limit=1")).json()
    assert listed["transactions"][0]["tx_id"] == transaction.tx_id.hex()
    assert listed["before"] is None


async def test_a_dry_run_changes_nothing(http: httpx.AsyncClient, node: MemoryNode) -> None:
    response = await http.post("/v1/dry-run", content=encode(deposit(9).data), headers=MSGPACK)
    assert response.status_code == 200
    assert response.json()["changes"] == [{"key": ["till", "A-1"], "before": None, "after": 9}]
    assert not node.pending
    assert not node.balances


# --- every failure has one shape ---


@pytest.mark.parametrize(
    ("method", "path", "request_", "status", "code"),
    [
        ("GET", "/nowhere", {}, 404, "route_not_found"),
        ("GET", "/v1/nowhere", {}, 404, "route_not_found"),
        ("DELETE", "/v1/status", {}, 405, "method_not_allowed"),
        ("GET", "/v1/transactions?limit=0", {}, 400, "malformed_request"),
        ("GET", "/v1/transactions?limit=many", {}, 400, "malformed_request"),
        (
            "POST",
            "/v1/transactions?wait=soon",
            {"content": b"\xc4\x00", "headers": MSGPACK},
            400,
            "malformed_request",
        ),
        ("POST", "/v1/transactions", {"content": b"{", "headers": {}}, 400, "malformed_request"),
        ("POST", "/v1/transactions", {"json": {"transactions": []}}, 400, "malformed_request"),
        ("POST", "/v1/transactions", {"json": {"transactions": ["zz"]}}, 400, "malformed_request"),
        ("POST", "/v1/transactions", {"json": {"transaction": "92", "transactions": []}}, 400, "malformed_request"),
        ("POST", "/v1/transactions", {"json": {"transaction": "920"}}, 400, "malformed_request"),
        ("POST", "/v1/transactions", {"json": {"transaction": "92c0"}}, 400, "malformed_transaction"),
        ("POST", "/v1/transactions", {"content": b"\xc1", "headers": MSGPACK}, 400, "malformed_request"),
        ("POST", "/v1/transactions", {"content": b"\x91\x01", "headers": MSGPACK}, 400, "malformed_request"),
        ("POST", "/v1/transactions", {"content": b"\x91" * 9000, "headers": MSGPACK}, 400, "malformed_request"),
        (
            "POST",
            "/v1/transactions",
            {"content": encode((b"x",) * 5001), "headers": MSGPACK},
            413,
            "too_many_transactions",
        ),
        ("POST", "/v1/transactions", {"data": {"a": "b"}}, 415, "unsupported_media_type"),
        ("GET", "/v1/blocks/7", {}, 404, "block_not_found"),
        ("GET", "/v1/blocks/-1", {}, 400, "malformed_request"),
        ("GET", "/v1/query/tull/balance", {}, 404, "unknown_contract"),
        ("GET", "/v1/query/till/balanse", {}, 404, "unknown_method"),
        ("GET", "/v1/query/till/balance", {}, 400, "invalid_arguments"),
        ("GET", "/v1/query/till/balance?account=a&account=b", {}, 400, "malformed_request"),
        ("GET", "/v1/query/till/balance?account=a&at=-1", {}, 400, "malformed_request"),
        ("GET", "/v1/query/till/balance?account=a&at=9", {}, 404, "block_not_found"),
        ("POST", "/v1/query/till/echo", {"json": {"data": "xyz"}}, 400, "invalid_arguments"),
        ("POST", "/v1/query/till/echo", {"json": {"number": 1.5}}, 400, "invalid_arguments"),
        ("POST", "/v1/query/till/echo", {"json": [1]}, 400, "malformed_request"),
        ("POST", "/v1/query/till/echo", {"json": {"number": 2**80}}, 400, "invalid_arguments"),
        ("POST", "/v1/query/till/echo", {"content": b'{"number": "\xff"}'}, 400, "malformed_request"),
        ("POST", "/v1/query/till/echo", {"content": b"[" * 100_000}, 400, "malformed_request"),
        (
            "POST",
            "/v1/query/till/echo",
            {"content": b"\x81\xa1a\xcb" + bytes(8), "headers": MSGPACK},
            400,
            "invalid_arguments",
        ),
        ("POST", "/v1/transactions", {"content": b'{"transaction": "\xff"}'}, 400, "malformed_request"),
        ("GET", "/v1/query/till/echo?number=" + "9" * 5_000, {}, 400, "invalid_arguments"),
        ("GET", "/v1/query/till/echo?list=" + "[" * 3_000, {}, 400, "invalid_arguments"),
        ("GET", f"/v1/transactions/{'0' * 64}?wait=final&timeout_s=nan", {}, 400, "malformed_request"),
        ("GET", "/v1/transactions?before=x", {}, 400, "invalid_cursor"),
        ("GET", "/v1/events?after=x", {}, 400, "invalid_cursor"),
        ("GET", "/openapi", {}, 404, "route_not_found"),
        ("GET", "/schema", {}, 404, "route_not_found"),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_every_failure_has_the_one_shape(
    refusing: Refusing,
    method: str,
    path: str,
    request_: dict[str, Any],
    status: int,
    code: str,
) -> None:
    check_error(await refusing.http.request(method, path, **request_), status, code)
    assert not refusing.node.pending


async def test_a_bug_is_answered_without_its_inside(http: httpx.AsyncClient, node: MemoryNode) -> None:
    node.broken = True
    response = await http.post("/v1/transactions", content=encode(deposit().data), headers=MSGPACK)
    check_error(response, 500, "internal_error")
    assert "a bug of the node" not in response.text


async def test_bytes_that_are_no_http_get_the_shape_too(server: ApiServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert as_json(body)["error"]["code"] == "malformed_request"


# --- bounds ---


async def test_a_body_declared_too_large_is_refused_before_it_is_sent(server: ApiServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST /v1/transactions HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 1.5)
    assert head.startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_a_hundred_megabytes_are_refused_while_they_arrive(http: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(1_000_000)

    response = await http.post("/v1/transactions", content=endless(), headers=MSGPACK)
    error = check_error(response, 413, "body_too_large")
    assert error["details"] == {"limit_bytes": 1_000_000}
    assert (await http.get("/healthz")).status_code == 200


async def test_large_bodies_share_one_bound(server: ApiServer) -> None:
    writers = []
    for _ in range(4):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"POST /v1/transactions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n" + bytes(999_999)
        )
        await writer.drain()
        writers.append(writer)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST /v1/transactions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n" + bytes(999_999))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 503 ")
    for open_writer in [*writers, writer]:
        open_writer.close()


async def test_connections_are_bounded(server: ApiServer) -> None:
    streams = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(20)]
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"node_busy" in answer
    for _, open_writer in [*streams, (reader, writer)]:
        open_writer.close()


async def test_a_connection_that_never_completes_a_request_is_closed(node: MemoryNode) -> None:
    server = ApiServer(node, "127.0.0.1", 0, limits=ApiLimits(idle_timeout_s=1))
    await server.start()
    silent, silent_writer = await asyncio.open_connection("127.0.0.1", server.port)
    slow, slow_writer = await asyncio.open_connection("127.0.0.1", server.port)

    async def trickle() -> None:
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /healthz HTTP/1.1\r\nhost: " + b"x" * 100:
                slow_writer.write(bytes([byte]))
                await slow_writer.drain()
                await asyncio.sleep(0.05)

    trickling = asyncio.create_task(trickle())
    assert await asyncio.wait_for(silent.read(), 3) == b""
    # Closed while a byte lies there unread: the system tells the sender that it was reset.
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(slow.read(), 3) == b""
    assert not trickling.done(), "closed while bytes still came"
    trickling.cancel()
    for writer in (silent_writer, slow_writer):
        writer.close()
    await server.stop()


async def test_a_used_port_is_the_operators_error(server: ApiServer, node: MemoryNode) -> None:
    with pytest.raises(ConfigError) as caught:
        await ApiServer(node, "127.0.0.1", server.port).start()
    assert caught.value.code == "port_in_use"
    with pytest.raises(ConfigError) as caught:
        await ApiServer(node, "203.0.113.1", 0).start()
    assert caught.value.code == "cannot_listen"


# --- reading ---


async def test_a_query_reads_its_arguments_by_the_schema(http: httpx.AsyncClient, node: MemoryNode) -> None:
    expected = {"number": -5, "data": "00ff", "flag": True, "list": [1, 2]}
    by_address = await http.get("/v1/query/till/echo?number=-5&data=00ff&flag=true&list=[1,2]")
    assert by_address.json()["value"] == expected
    by_body = await http.post("/v1/query/till/echo", json=expected)
    assert by_body.json()["value"] == expected
    by_msgpack = await http.post(
        "/v1/query/till/echo", content=encode({**expected, "data": b"\x00\xff"}), headers=MSGPACK
    )
    assert by_msgpack.json()["value"] == expected
    assert {"value", "height", "state_root", "age_ms"} <= set(by_address.json())


async def test_a_block_comes_with_its_certificate_as_json_and_as_canonical_bytes(
    http: httpx.AsyncClient, node: MemoryNode
) -> None:
    await http.post("/v1/transactions", json={"transaction": deposit(3).data.hex()})
    node.make_block()
    block = (await http.get("/v1/blocks/latest")).json()
    assert block["height"] == 1
    assert block["certificate"]["digest"] == block["digest"]
    assert block["certificate"]["signatures"] == {"0": "00" * 64}
    assert block["transactions"][0]["receipts"][0]["code"] == "ok"
    raw = await http.get("/v1/blocks/1", headers={"accept": "application/msgpack"})
    assert decode(raw.content, CertifiedBlock, size_max=1_000_000).body.header.digest.hex() == block["digest"]


async def test_readiness_says_who_is_missing(http: httpx.AsyncClient, node: MemoryNode) -> None:
    assert (await http.get("/readyz")).json() == {"ready": True}
    node.reasons = ["bank-c has not been heard for 12 s."]
    response = await http.get("/readyz")
    check_error(response, 503, "not_ready")
    assert response.json()["ready"] is False
    assert response.json()["reasons"] == ["bank-c has not been heard for 12 s."]
    assert (await http.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/query/till/balance?account=A-1", "/v1/status", "/readyz", "/metrics", "/v1/no"]
)
async def test_every_answer_of_a_node_that_diverged_is_marked(
    http: httpx.AsyncClient, node: MemoryNode, path: str
) -> None:
    assert HEADER not in (await http.get(path)).headers
    node.diverged = 17
    assert (await http.get(path)).headers[HEADER] == "17"


async def test_what_the_node_says_of_itself(http: httpx.AsyncClient) -> None:
    status = (await http.get("/v1/status")).json()
    assert {"member", "network", "height", "view", "primary", "state_root", "ready", "peers"} <= set(status)
    assert status["peers"][0].keys() >= {"id", "connected", "height"}
    assert (await http.get("/v1/members")).json()[0]["id"] == "bank-a"
    assert (await http.get("/v1/why")).json()["moving"] is True
    bundle = await http.get("/v1/diagnostics")
    assert (bundle.content, bundle.headers["content-type"]) == (b"PK", "application/zip")
    assert (await http.get("/v1/evidence")).json()[0]["member"] == "bank-x"
    assert (await http.get("/v1/contracts")).json()[0]["calls"][0]["name"] == "deposit"
    metrics = await http.get("/metrics")
    assert metrics.text == "hansa_height 1\n"
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")


async def test_the_documents_are_complete_and_load_nothing_from_elsewhere(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.")
    for path in (
        "/v1/transactions",
        "/v1/query/{contract}/{name}",
        "/v1/query/till/balance",
        "/readyz",
        "/v1/events",
    ):
        assert path in document["paths"]
    for item in document["paths"].values():
        for operation in item.values():
            assert operation["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith(
                "ErrorAnswer"
            )
    references = {
        text.split('"')[0]
        for text in (await http.get("/openapi.json")).text.split('"$ref":"#/components/schemas/')[1:]
    }
    assert references <= set(document["components"]["schemas"])
    page = await http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text.replace("http-equiv", "")
    assert "<script" not in page.text
    assert "queue_full" in page.text
    assert "till.deposit" in page.text.replace("</code>", "")
