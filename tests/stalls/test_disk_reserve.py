"""A whole node at the reserve of its disk: it stands still, answers, refuses what is new, and goes on by itself."""

import pytest

from node.client import Submission
from node.errors import HansaError
from node.ledger import Transaction
from node.runtime.node import Node
from tests.stalls.stage import Stage

pytestmark = pytest.mark.slow

PLENTY = 40 * 10**9
SHORT = 180 * 10**6


def submitted(stage: Stage, member: str, payment: Transaction) -> Submission | HansaError:
    """What the member's node answers to a client."""
    process = stage.host(member).process
    assert process is not None
    assert process.door is not None
    service, answers = process.door.service, []

    async def ask() -> None:
        answers.extend(await service.submit([payment.data]))

    process.loop.call_soon(lambda: process.loop.create_task(ask()))
    stage.pass_time_until(lambda: bool(answers), 5_000)
    [answer] = answers
    return answer


def test_it_adds_nothing_to_its_disk_until_there_is_room() -> None:
    with Stage().playing() as stage:
        host, other = stage.host("bank-2"), stage.host("bank-1")
        host.disk_free = PLENTY
        stage.restart("bank-2", make=Node)
        stage.pass_time(4_000)
        known = stage._payment("known", "bank-1", "A-1")
        taken = submitted(stage, "bank-2", known)
        assert isinstance(taken, Submission)
        host.disk_free = SHORT
        stage.pass_time(2_500)

        height = host.height
        stage.pass_time(8_000)
        assert host.height == height, "it applies blocks at the reserve"
        assert other.height > height + 3, "the others do not go on"
        ready, reasons = stage.ready("bank-2")
        assert not ready
        assert any("180 MB free" in reason for reason in reasons)
        again = submitted(stage, "bank-2", known)
        assert isinstance(again, Submission), "what it has taken is answered as ever"
        assert again.duplicate
        refused = submitted(stage, "bank-2", stage._payment("new", "bank-1", "A-1"))
        assert isinstance(refused, HansaError)
        assert (refused.code, refused.entry.retryable) == ("disk_low", True)

        host.disk_free = PLENTY
        stage.pass_time_until(lambda: host.height >= other.height > height + 3, 10_000)
        stage.pass_time(3_000)
        assert stage.ready("bank-2") == (True, [])
        assert isinstance(submitted(stage, "bank-2", stage._payment("newer", "bank-1", "A-1")), Submission)


def test_a_node_that_is_told_to_stop_at_its_reserve_stops_at_once() -> None:
    with Stage().playing() as stage:
        host = stage.host("bank-2")
        host.disk_free = PLENTY
        stage.restart("bank-2", make=Node)
        stage.pass_time(4_000)
        host.disk_free = SHORT
        stage.pass_time(6_000)
        host.stop()
        stage.pass_time_until(lambda: not host.up, 3_000)
