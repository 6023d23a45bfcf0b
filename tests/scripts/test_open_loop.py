"""The load generator: requests leave when they are due, and count from then."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from consensus.codec import decode
from node.keys import SigningKey
from node.ledger import Body, Transaction
from scripts.localnet import sender
from scripts.localnet.figures import Percentiles
from scripts.localnet.open_loop import report
from scripts.localnet.sender import Answered, Part, Plan, Sender, read_answer, read_requests
from scripts.localnet.signing import Order, carry_out, http_get, http_post
from scripts.localnet.workload import ClaimWork, Payments, Questions, Seeds, Shape

FINAL = msgspec.json.encode({"results": [{"status": "final", "receipts": [{"code": "ok"}]}]})
REQUEST = http_post("/v1/transactions", b"body")
INTERVAL_S = 0.001


class Node:
    """An HTTP server that answers nobody before it has heard `together` requests, and then one at a time."""

    def __init__(self, together: int) -> None:
        self._together = together
        self.heard: list[bytes] = []
        self._enough = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer what comes on one connection."""
        try:
            while True:
                self.heard.append(await reader.readexactly(len(REQUEST)))
                if len(self.heard) >= self._together:
                    self._enough.set()
                await self._enough.wait()
                head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(FINAL)}\r\n\r\n"
                writer.write(head.encode() + FINAL)
        except asyncio.IncompleteReadError:
            writer.close()


async def _sent(node: Node, count: int, window: int = 0) -> list[Answered]:
    server = await asyncio.start_server(node.serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        plan = Plan(((host, port),), (), INTERVAL_S, 60.0, "", window=window, patience_s=30.0)
        requests = [(index, memoryview(REQUEST)) for index in range(count)]
        return await Sender(plan).run(requests, time.monotonic())


async def test_requests_leave_though_none_is_answered() -> None:
    # The node says nothing before it has heard all: a client that waits for answers would wait for ever.
    node = Node(together=20)
    answers = await _sent(node, 20)
    assert len(node.heard) == 20
    assert [answer.due_s for answer in answers] == [index * INTERVAL_S for index in range(20)]
    assert sum(answer.final for answer in answers) == sum(answer.calls_ok for answer in answers) == 20


async def test_waiting_for_a_connection_counts_as_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "CONNECTIONS_MAX", 1)
    answers = await _sent(Node(together=1), 10)
    # One after the other, yet each is counted from its due time and none was put off because of an earlier one.
    assert [answer.due_s for answer in answers] == [index * INTERVAL_S for index in range(10)]
    ends = [answer.answered_s for answer in answers]
    assert ends == sorted(ends)


async def test_a_window_keeps_so_many_under_way() -> None:
    node = Node(together=4)
    answers = await _sent(node, 12, window=4)
    assert sum(answer.final for answer in answers) == 12


async def test_a_node_that_is_not_there_refuses_everything() -> None:
    plan = Plan((("127.0.0.1", 1),), (), INTERVAL_S, 1.0, "", transactions_per_request=50)
    (answer,) = await Sender(plan).run([(0, memoryview(REQUEST))], time.monotonic())
    assert answer.refused == {"ConnectionRefusedError": 50}


def test_an_answer_tells_what_became_of_each_transaction() -> None:
    results = [
        {"status": "final", "receipts": [{"code": "ok"}, {"code": "insufficient_funds"}]},
        {"status": "pending"},
        {"status": "expired"},
        {"error": {"code": "mempool_full", "retryable": True, "details": {"retry_after_ms": 500}}},
    ]
    found = read_answer(207, msgspec.json.encode({"results": results}), 4)
    assert (found.final, found.pending, found.calls_ok, found.calls_failed) == (1, 1, 1, 1)
    assert found.refused == {"expired": 1, "mempool_full": 1}
    assert found.told_when == 1
    whole = read_answer(
        429, msgspec.json.encode({"error": {"code": "too_fast", "details": {"retry_after_ms": 9}}}), 50
    )
    assert (whole.refused, whole.told_when) == ({"429 too_fast": 50}, 50)
    assert read_answer(200, b'{"value":{"balance":5},"height":3}', 1).final == 1


def test_the_warm_up_does_not_count() -> None:
    shape = Shape(rate=10.0, seconds=4.0, transactions_per_request=10)
    answers = [Answered(0.0, 0.0, 1.5, 10, calls_ok=10), Answered(1.0, 1.0, 1.2, 10, calls_ok=10)]
    answers += [Answered(2.0, 2.1, 2.4, 9, refused={"full": 1}, calls_ok=9), Answered(3.0, 3.0, 0.0)]
    found = report(answers, shape, 1.0, 4.0)
    assert (found.sent, found.final, found.refused, found.without_fate) == (30, 19, {"full": 1}, 10)
    # Work done in the three seconds: what was due in the warm-up and answered after it is part of it.
    assert found.final_per_s == round(29 / 3, 1)
    assert found.latency_ms == Percentiles(200.0, 400.0, 400.0, 400.0)
    assert found.behind_ms == 100.0


def test_without_an_end_the_rate_is_taken_to_the_last_answer() -> None:
    shape = Shape(rate=10.0, seconds=2.0, transactions_per_request=10)
    assert report([Answered(0.0, 0.0, 0.1, 10), Answered(1.0, 1.0, 5.0, 10)], shape).final_per_s == 4.0
    assert report([Answered(0.0, 0.0, 0.1, 10), Answered(1.0, 1.0, 1.1, 10)], shape).final_per_s == 10.0


def _keys(*principals: str) -> dict[str, SigningKey]:
    return {principal: SigningKey(bytes([index]) * 32) for index, principal in enumerate(principals)}


def _bodies(transactions: Sequence[Transaction]) -> list[Body]:
    return [transaction.body for transaction in transactions]


def test_the_next_transactions_share_no_account() -> None:
    payments = Payments(("a", "b", "c", "d"), ("a", "b", "c", "d"), "tag", 100)
    shape = Shape(1.0, 1.0)
    made = [payments.transaction(n, shape, "net", _keys("a", "b", "c", "d"), 60_000) for n in range(400 // 2)]
    accounts = [
        account
        for body in _bodies(made)
        for call in body.calls
        for account in (call.args["debtor"], call.args["creditor"])
    ]
    assert len(set(accounts)) == len(accounts) == 400


def test_every_transfer_has_its_own_uetr() -> None:
    payments = Payments(("a", "b"), ("a", "b"), "tag", 50)
    shape = Shape(1.0, 1.0, calls=6, mode="atomic", uetr=True, reference_chars=35)
    made = [payments.transaction(n, shape, "net", _keys("a", "b"), 60_000) for n in range(5)]
    calls = [call for body in _bodies(made) for call in body.calls]
    assert len({call.args["uetr"] for call in calls}) == len(calls) == 30
    assert {len(call.args["reference"]) for call in calls} == {35}
    assert 900 <= len(made[0].data) <= 1_400


def test_a_claim_goes_from_notice_to_payout_in_one_transaction() -> None:
    work = ClaimWork("insurer", "tag")
    body = work.transaction(9, Shape(1.0, 1.0), "net", _keys("insurer"), 60_000).body
    assert [call.method for call in body.calls] == ["notify", "set_reserve", "assess", "approve", "payout"]
    assert body.mode == "atomic"


def test_processes_sign_their_parts_and_send_every_second(tmp_path: Path) -> None:
    seeds = Seeds("net", {"a": b"1" * 32, "b": b"2" * 32})
    shape = Shape(10.0, 1.0, transactions_per_request=2)
    payments = Payments(("a", "b"), ("a", "b"), "tag", 50)
    parts = tuple(
        carry_out(Order(payments, shape, seeds, first, 2, str(tmp_path / f"part-{first}"))) for first in (100, 104)
    )
    plan = Plan((("h", 1),), parts, 0.1, 1.0, "", first=1, stride=2)
    found = read_requests(plan)
    assert [index for index, _ in found] == [1, 3]
    ids = []
    for _, data in found:
        head, _, body = bytes(data).partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}".encode() in head
        ids += [
            Transaction.decode(item).body.request_id for item in decode(body, tuple[bytes, ...], size_max=10_000)
        ]
    assert ids == ["load-tag-102", "load-tag-103", "load-tag-106", "load-tag-107"]


def test_questions_are_whole_requests(tmp_path: Path) -> None:
    order = Order(
        Questions(("a",), 5), Shape(1.0, 1.0, transactions_per_request=1), Seeds("n", {}), 6, 1, str(tmp_path / "q")
    )
    part = carry_out(order)
    assert Path(part.path).read_bytes() == http_get("/v1/query/settlement/balance?account=L-a-1")
    assert part == Part(order.path, (len(http_get("/v1/query/settlement/balance?account=L-a-1")),))
