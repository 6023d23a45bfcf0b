"""What the calendar and the brakes in the state do to blocks, alike for who builds, checks and restarts."""

from pathlib import Path
from typing import Any

import pytest

from contracts import CONTRACTS
from contracts.brake import CONFIRM_MS
from contracts.engine import Engine
from node.executor.run import SCHEDULE, due_calls
from node.ledger import Call, sha256
from node.runtime.chain import resting_at
from node.runtime.notices import brakes_on
from node.runtime.notices import resting_at as rest_answers
from node.state import Overlay
from tests.contracts.test_brake import Standing
from tests.node.ledger_world import HOUR_MS, START_MS, Ledger, decoded, transfer


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "data")
    made.open_accounts("A", "B", funds=1_000)
    return made


def ask(what: str, ms: int = HOUR_MS) -> Call:
    return Call("brake", "ask", {"what": what, "until_ms": START_MS + ms, "reason": "fraud"})


def confirm(number: int) -> Call:
    return Call("brake", "confirm", {"brake": number})


def codes(receipts: list[Any]) -> list[list[str]]:
    return [[call.code for call in receipt.calls] for receipt in receipts]


def test_a_brake_holds_from_the_block_after_it_was_confirmed_and_settles_what_it_stops(ledger: Ledger) -> None:
    asked = ledger.transaction("bank-b", ask("account/A"))
    assert codes(ledger.settle(asked)) == [["ok"]]
    # In the block that confirms it, behind it, the payment still passes: the host reads brakes once a block.
    pulled = ledger.transaction("bank-c", confirm(1))
    paid = ledger.transaction("bank-a", transfer("A", "B", 10, 1))
    assert codes(ledger.settle(pulled, paid)) == [["ok"], ["ok"]]
    stopped = ledger.transaction("bank-a", transfer("A", "B", 10, 2))
    assert codes(ledger.settle(stopped)) == [["braked"]]
    # It is settled: its request id is used, and nothing of it waits for the brake's end.
    assert ledger.executor.obstacle(stopped, ledger.now_ms) == "already_final"
    assert (ledger.balance("A"), ledger.balance("B")) == (990, 1_010)


def test_an_atomic_transaction_with_a_stopped_call_does_nothing_and_in_another_mode_the_rest(
    ledger: Ledger,
) -> None:
    ledger.settle(ledger.transaction("bank-b", ask("account/A")))
    ledger.settle(ledger.transaction("bank-c", confirm(1)))
    say = Call("maintenance", "book", {"from_ms": START_MS + HOUR_MS, "until_ms": START_MS + 2 * HOUR_MS})
    calls = (say, transfer("A", "B", 10, 1))
    assert codes(ledger.settle(ledger.transaction("bank-a", *calls))) == [["reverted", "braked"]]
    assert codes(ledger.settle(ledger.transaction("bank-a", *calls, mode="each"))) == [["ok", "braked"]]


def test_a_builder_a_checker_and_a_restarted_node_come_to_the_same_block(tmp_path: Path) -> None:
    primary, backup = Ledger(tmp_path / "primary"), Ledger(tmp_path / "backup")
    primary.open_accounts("A", "B", funds=1_000)
    backup.follow_store(primary)
    steps: list[tuple[str, Call]] = [
        ("bank-b", ask("method/settlement.transfer")),
        ("bank-c", confirm(1)),
        ("bank-a", transfer("A", "B", 10, 1)),
        ("bank-b", ask("member/bank-a")),
        ("bank-c", confirm(2)),
        ("bank-a", primary.opening()),
        ("bank-d", Call("brake", "lift", {"brake": 1})),
    ]
    for place, (sender, call) in enumerate(steps):
        transactions = [primary.transaction(sender, call), primary.transaction("bank-b")]
        executed = primary.build(*transactions)
        assert executed is not None
        assert backup.executor.check(executed.proposal, decoded(executed.body)) == executed
        primary.decide(executed)
        backup.decide(executed)
        if place % 2:
            backup.close()
            backup = Ledger(tmp_path / "backup")
    assert backup.executor.head == primary.executor.head
    assert primary.balance("A") == 1_000


def test_a_brake_is_over_in_the_first_block_of_its_time_whatever_tidies_up(ledger: Ledger) -> None:
    ledger.settle(ledger.transaction("bank-b", ask("currency/USD")))
    ledger.settle(ledger.transaction("bank-c", confirm(1)))
    for time_ms, stopped in ((ledger.now_ms, ["USD"]), (START_MS + HOUR_MS - 1, ["USD"]), (START_MS + HOUR_MS, [])):
        assert [item.subject for item in brakes_on(ledger.store.snapshot(), time_ms)] == stopped
    ledger.now_ms = START_MS + HOUR_MS - 1_001
    last = ledger.build(ledger.transaction("bank-a", transfer("A", "B", 1, 1)), allow_empty=True)
    assert last is not None
    ledger.decide(last)
    assert ledger.balance("A") == 1_000
    ledger.now_ms = START_MS + HOUR_MS - 1_000
    executed = ledger.build(ledger.transaction("bank-a", transfer("A", "B", 1, 2)), **unexecuted(ledger))
    assert executed is not None
    assert executed.proposal.quarantined == (0,)
    ledger.decide(executed)
    assert ledger.balance("A") == 999


def unexecuted(ledger: Ledger) -> dict[str, Any]:
    """A builder that settles every scheduled call unexecuted."""
    keys = ledger.store.snapshot().scan(SCHEDULE, SCHEDULE + b"\xff")
    return {"allow_quarantine": True, "suspects": [sha256(b"hansa/scheduled" + key) for key, _ in keys]}


def test_a_scheduled_call_that_meets_a_brake_is_told_and_due_again_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ledger, "engine", Engine((*CONTRACTS, Standing)))
    ledger = Ledger(tmp_path / "data")
    ledger.open_accounts("A", "B", funds=1_000)
    operators = Call("settlement", "set_operators", {"account": "A", "operators": ["@standing"]})
    order = Call("standing", "order", {"at_ms": START_MS + HOUR_MS})
    ledger.settle(ledger.transaction("bank-a", operators, order))
    ledger.settle(ledger.transaction("bank-b", ask("account/A", 2 * HOUR_MS)))
    ledger.settle(ledger.transaction("bank-c", confirm(1)))
    ledger.now_ms = START_MS + CONFIRM_MS + HOUR_MS // 2
    ledger.settle(ledger.transaction("bank-b"))
    ledger.now_ms = START_MS + HOUR_MS
    assert codes(ledger.settle()) == [["braked"]]
    # Besides, what tidies up the brake comes on its way to that time.
    for until_ms, waiting in (
        (START_MS + 2 * HOUR_MS - 1, ["brake"]),
        (START_MS + 2 * HOUR_MS, ["brake", "standing"]),
    ):
        due = due_calls(Overlay(ledger.store.snapshot()), until_ms, 9)
        assert [call.contract for _, call in due] == waiting
    ledger.close()
    ledger = Ledger(tmp_path / "data")
    ledger.now_ms = START_MS + 2 * HOUR_MS
    # What tidies up the brake, and the payment.
    assert codes(ledger.settle()) == [["ok"], ["ok"]]
    assert (ledger.balance("A"), ledger.balance("B")) == (995, 1_005)
    assert ledger.executor.next_due_ms() is None


def test_who_rests_follows_from_the_head_alone(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "data")
    window = {"from_ms": START_MS + HOUR_MS, "until_ms": START_MS + 2 * HOUR_MS}
    ledger.settle(ledger.transaction("bank-b", Call("maintenance", "book", window)))
    seen = [(ledger.store.head.time_ms, resting_at(ledger.store.snapshot()))]
    for now_ms in (START_MS + HOUR_MS - 1_000, START_MS + 2 * HOUR_MS - 2_000, START_MS + 2 * HOUR_MS - 1_000):
        ledger.now_ms = now_ms
        ledger.settle(ledger.transaction("bank-a"))
        seen.append((ledger.store.head.time_ms - START_MS, resting_at(ledger.store.snapshot())))
        before = resting_at(ledger.store.snapshot())
        ledger.close()
        ledger = Ledger(tmp_path / "data")
        assert resting_at(ledger.store.snapshot()) == before
    assert [names for _, names in seen] == [(), ("bank-b",), ("bank-b",), ()]
    # It was so at that height, whatever the state says since.
    assert resting_at(ledger.store.snapshot().at(2)) == ("bank-b",)
    assert rest_answers(ledger.store.snapshot().at(2), ("bank-b",))[0].until_ms == START_MS + 2 * HOUR_MS
