"""The Python client against the real server: what it makes, what it raises, and how it outlives a node."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import httpx
import msgspec
import pytest

from node.api import ApiServer
from node.api.failures import failure_bytes, status_of
from node.client import AsyncClient, Client, Fate, Submission, call, countersign
from node.client.answers import DryRun
from node.client.failover import Attempts, EventLines, answer_failure, trusted
from node.errors import CATALOGUE, ConfigError, HansaError, NotFound, RejectedTransaction, Unavailable
from node.keys import SigningKey
from tests.node.memory_node import MemoryNode

T = TypeVar("T")
KEY = SigningKey(bytes(range(32)))
CHECKER = SigningKey(bytes(range(1, 33)))
DEPOSIT = {"account": "A-1", "amount": 5}


@pytest.fixture
async def node() -> MemoryNode:
    return MemoryNode(instant=True)


@pytest.fixture
async def server(node: MemoryNode) -> AsyncIterator[ApiServer]:
    running = ApiServer(node, "127.0.0.1", 0)
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def client(server: ApiServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.url, sender="bank-a", signers=[KEY], patience_s=0) as made:
        yield made


async def test_a_call_is_made_signed_submitted_and_final(client: AsyncClient, node: MemoryNode) -> None:
    fate = await client.call("till.deposit", DEPOSIT)
    assert fate.ok
    assert fate.height == 1
    assert fate.receipts[0].events[0].name == "Deposited"
    answer = await client.query("till.balance", {"account": "A-1"})
    assert (answer.value, answer.height) == (5, 1)
    assert (await client.fate(fate.tx_id)).content is not None
    assert (await client.block()).transactions[0].tx_id == fate.tx_id


def test_a_state_key_may_have_a_truth_value_in_it() -> None:
    """A contract may declare such keys; the client refused the whole answer of a dry run."""
    key = ["brake", "ended", "bank-a", True]
    sent = {"tx_id": "", "height": 1, "receipts": [], "changes": [{"key": key, "before": None, "after": [1]}]}
    assert msgspec.json.decode(msgspec.json.encode(sent), type=DryRun).changes[0].key == tuple(key)


async def test_a_failed_call_is_a_fate_and_not_an_exception(client: AsyncClient) -> None:
    fate = await client.call("till.deposit", {"account": "A-1", "amount": 0})
    assert (fate.status, fate.ok, fate.receipts[0].code) == ("final", False, "amount_not_positive")


async def test_the_synchronous_client_does_the_same(server: ApiServer, node: MemoryNode) -> None:
    def work() -> tuple[Fate, int, list[str]]:
        with Client(server.url, sender="bank-a", signers=[KEY], patience_s=0) as client:
            fate = client.call("till.deposit", {**DEPOSIT, "tags": [b"\x00"]}, request_id="order-1")
            again = client.call("till.deposit", {**DEPOSIT, "amount": 6})
            events = client.events("1:-1")
            amounts = [str(next(events).data["amount"]) for _ in range(2)]
            assert again.ok
            assert client.query("till.echo", {"data": b"\xff"}).value == {"data": "ff"}
            return fate, client.status().height, amounts

    fate, height, amounts = await asyncio.to_thread(work)
    assert fate.ok
    assert height == 2
    assert amounts == ["5", "6"]


async def test_the_same_transaction_again_has_one_effect(client: AsyncClient, node: MemoryNode) -> None:
    transaction = await client.transaction([call("till.deposit", DEPOSIT)], request_id="order-7")
    fates = [await client.submit_and_wait(transaction) for _ in range(3)]
    assert len({fate.tx_id for fate in fates}) == 1
    assert node.balances == {"A-1": 5}
    assert (await client.submit(transaction)).duplicate


async def test_every_transaction_of_a_batch_has_its_outcome(client: AsyncClient) -> None:
    good = await client.transaction([call("till.deposit", DEPOSIT)])
    results = await client.submit_many([good, b"garbage"])
    assert isinstance(results[0], Submission)
    assert isinstance(results[1], RejectedTransaction)
    assert results[1].code == "malformed_transaction"


async def test_two_may_sign_one_after_the_other(client: AsyncClient, node: MemoryNode) -> None:
    made = await client.transaction([call("till.deposit", DEPOSIT)])
    both = countersign(made, [CHECKER, KEY])
    assert both.tx_id == made.tx_id
    assert {signature.key for signature in both.signatures} == {KEY.public, CHECKER.public}
    assert (await client.submit_and_wait(both)).ok


async def test_errors_come_back_as_the_class_that_says_who_must_act(client: AsyncClient, node: MemoryNode) -> None:
    with pytest.raises(NotFound) as not_found:
        await client.fate("0" * 64)
    assert not_found.value.code == "transaction_not_found"
    with pytest.raises(NotFound) as unknown:
        await client.query("nothing.at_all")
    assert unknown.value.code == "unknown_contract"
    with pytest.raises(NotFound) as hostile:
        await client.query("till.balance/../../status?x")
    assert hostile.value.code in ("route_not_found", "unknown_method")
    with pytest.raises(RejectedTransaction) as refused:
        await client.submit(b"garbage")
    assert refused.value.code == "malformed_transaction"
    node.capacity = 0
    with pytest.raises(Unavailable) as full:
        await client.call("till.deposit", DEPOSIT)
    assert full.value.code == "queue_full"
    assert full.value.details["retry_after_ms"] == 1500
    node.broken = True
    with pytest.raises(HansaError) as bug:
        await client.submit(b"anything")
    assert bug.value.code == "internal_error"


async def test_a_dead_node_is_passed_over(server: ApiServer, node: MemoryNode) -> None:
    dead = ApiServer(node, "127.0.0.1", 0)
    await dead.start()
    dead_url = dead.url
    await dead.stop()
    async with AsyncClient([dead_url, server.url], sender="bank-a", signers=[KEY], patience_s=0) as client:
        assert (await client.call("till.deposit", DEPOSIT)).ok
    async with AsyncClient(dead_url, patience_s=0) as client:
        with pytest.raises(Unavailable) as caught:
            await client.status()
    assert caught.value.code == "node_unreachable"
    assert dead_url in caught.value.message


async def test_a_full_node_is_left_for_another(server: ApiServer, node: MemoryNode) -> None:
    full_node = MemoryNode(capacity=0)
    full = ApiServer(full_node, "127.0.0.1", 0)
    await full.start()
    try:
        async with AsyncClient([full.url, server.url], sender="bank-a", signers=[KEY], patience_s=0) as client:
            assert (await client.call("till.deposit", DEPOSIT)).ok
            assert (await client.call("till.deposit", DEPOSIT)).ok
    finally:
        await full.stop()
    assert full_node.submissions == 1, "the second call goes to the node that took the first"
    assert node.balances == {"A-1": 10}


async def test_an_event_stream_goes_on_at_another_node(server: ApiServer, node: MemoryNode) -> None:
    other = ApiServer(node, "127.0.0.1", 0)
    await other.start()
    async with AsyncClient([other.url, server.url], sender="bank-a", signers=[KEY]) as client:
        await client.call("till.deposit", {"account": "A-1", "amount": 1})
        events = client.events("0:-1")
        assert (await anext(events)).data["amount"] == 1
        await other.stop()
        async with AsyncClient(server.url, sender="bank-a", signers=[KEY]) as second:
            await second.call("till.deposit", {"account": "A-1", "amount": 2})
        assert (await asyncio.wait_for(anext(events), 5)).data["amount"] == 2


def test_attempts_try_each_node_once_then_pause_and_end_with_the_error() -> None:
    error = Unavailable("node_unreachable", "down")
    attempts = Attempts(["a", "b", "c"], 1, patience_s=10.0)
    tried = [attempts.url]
    pauses = []
    for _ in range(4):
        pauses.append(attempts.failed(error))
        tried.append(attempts.url)
    assert tried == ["b", "c", "a", "b", "c"]
    assert [pause > 0 for pause in pauses] == [False, False, True, False]
    impatient = Attempts(["a"], 0, patience_s=0)
    with pytest.raises(Unavailable):
        impatient.failed(error)


@pytest.mark.parametrize("url", ["", "bank-a:7600", "ftp://bank-a", "http://", "http://bank-a:notaport"])
def test_what_is_no_url_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Client(url)
    assert caught.value.code == "invalid_usage"


def test_a_stream_that_never_ends_an_event_is_cut() -> None:
    lines = EventLines(None)
    for _ in range(7):
        assert lines.feed("data: " + "x" * 1_000_000) is None
    with pytest.raises(Unavailable):
        lines.feed("data: " + "x" * 3_000_000)


async def foreign(answer: bytes) -> tuple[asyncio.Server, str]:
    """A server that answers every request with `answer`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0)
    return running, f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("status", "body", "check"),
    [
        (200, b"<html>a printer</html>", lambda error: error.code == "unexpected_answer"),
        (200, b'{"value": 1}', lambda error: error.code == "unexpected_answer"),
        (500, b"oops", lambda error: error.code == "unexpected_answer"),
        (
            400,
            b'{"error":{"code":"from_the_future","message":"M.","action":"Do A.","retryable":false,'
            b'"details":{"code":1,"self":2,"message":3}}}',
            lambda error: "from_the_future" in error.message and "Do A." in error.message,
        ),
    ],
)
async def test_strange_answers_are_errors_of_the_catalogue(
    status: int, body: bytes, check: Callable[[HansaError], bool]
) -> None:
    head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
    running, url = await foreign(head + body)
    async with running, AsyncClient(url, patience_s=0) as client:
        with pytest.raises(HansaError) as caught:
            await client.status()
    assert check(caught.value), caught.value
    assert caught.value.code in CATALOGUE


def test_every_refusal_for_now_is_tried_again_or_elsewhere() -> None:
    """429 says "later": a code that the client took for final would make it give up at once."""
    for code, entry in CATALOGUE.items():
        if entry.retryable and status_of(Unavailable(code, "")) == 429:
            response = httpx.Response(429, content=failure_bytes(Unavailable(code, "")))
            assert answer_failure(response)[1], code


def test_only_https_needs_the_public_authorities_and_nothing_goes_unverified() -> None:
    assert trusted(("http://127.0.0.1:7600", "HTTPS://node.bank-a.example")) is True
    plain = trusted(("http://127.0.0.1:7600", "http://https.example"))
    assert isinstance(plain, ssl.SSLContext)
    assert (plain.verify_mode, plain.check_hostname, plain.get_ca_certs()) == (ssl.CERT_REQUIRED, True, [])
