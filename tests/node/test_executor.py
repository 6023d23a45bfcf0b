"""Blocks: what a builder makes, every member accepts; anything else is refused with its reason."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from node.errors import ConfigError, InvalidBlock, NotFound, RejectedTransaction, StoreError
from node.executor import Executor, NotBrief
from node.executor import queries as queries_module
from node.ledger import Call, Proposal, Transaction
from tests.node.ledger_world import BANKS, ENGINE, HOUR_MS, Ledger, decoded, key_of, network, transfer, with_header

DAY_MS = 24 * HOUR_MS


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "data")


def codes(receipt: Any) -> list[str]:
    return [call.code for call in receipt.calls]


def refusal(ledger: Ledger, proposal: Proposal, transactions: list[Transaction], **options: Any) -> InvalidBlock:
    with pytest.raises(InvalidBlock) as caught:
        ledger.executor.check(proposal, transactions, **options)
    return caught.value


# --- one way for builder, checker and replay -------------------------------------------------------------


def test_genesis_is_the_same_everywhere_and_names_the_first_validators(tmp_path: Path) -> None:
    one, other = Ledger(tmp_path / "one"), Ledger(tmp_path / "other")
    assert one.executor.head == other.executor.head
    assert one.executor.head.digest == one.network.genesis_hash
    assert one.executor.head.members == one.network.validators


def test_genesis_arguments_that_a_contract_refuses_are_the_operators_mistake() -> None:
    config = msgspec.structs.replace(network(), contracts={"settlement": {"currencies": [{"code": "usd"}]}})
    with pytest.raises(ConfigError, match="config_invalid"):
        Executor(config, ENGINE, Ledger.registry).genesis()


def test_a_backup_comes_to_the_same_block_and_a_restarted_one_too(tmp_path: Path) -> None:
    primary, backup = Ledger(tmp_path / "primary"), Ledger(tmp_path / "backup")
    primary.open_accounts("A", "B", funds=1_000)
    backup.follow_store(primary)
    for number in range(6):
        calls = [transfer("A", "B", 10, 10 * number + place) for place in range(5)]
        executed = primary.build(primary.transaction("bank-a", *calls), primary.transaction("bank-b"))
        assert executed is not None
        checked = backup.executor.check(executed.proposal, decoded(executed.body))
        assert checked == executed, "receipts, write set, tree, indexes: all of it"
        primary.decide(executed)
        backup.decide(checked)
        if number % 2:
            backup.close()
            backup = Ledger(tmp_path / "backup")
    assert backup.executor.head == primary.executor.head
    assert (backup.balance("A"), backup.balance("B")) == (700, 1_300)


def test_the_same_block_can_be_built_and_checked_again_on_the_same_head(ledger: Ledger) -> None:
    ledger.open_accounts("A", "B", funds=100)
    item = ledger.transaction("bank-a", transfer("A", "B", 60, 1))
    first = ledger.build(item)
    assert first is not None
    again = ledger.executor.check(first.proposal, [item])
    assert again == first
    assert ledger.balance("A") == 100, "nothing is changed before the block is applied"


def test_with_nothing_to_do_there_is_no_block_unless_one_is_wanted(ledger: Ledger) -> None:
    assert ledger.build() is None
    empty = ledger.build(allow_empty=True)
    assert empty is not None
    assert empty.header.state_root == ledger.executor.head.state_root
    ledger.follow(empty)


def test_time_goes_forward_even_when_the_clock_does_not(ledger: Ledger) -> None:
    ledger.settle(ledger.transaction("bank-a"))
    before = ledger.executor.head.time_ms
    ledger.now_ms = 5
    executed = ledger.executor.build(5, "bank-a", [], allow_empty=True)
    assert executed is not None
    assert executed.header.time_ms == before + 1


# --- modes and receipts ----------------------------------------------------------------------------------


def test_atomic_is_all_or_nothing_and_each_judges_every_call(ledger: Ledger) -> None:
    ledger.open_accounts("A", "B", funds=100)
    calls = (transfer("A", "B", 30, 1), transfer("A", "B", 1_000, 2), transfer("A", "B", 5, 3))
    [atomic] = ledger.settle(ledger.transaction("bank-a", *calls, mode="atomic"))
    assert codes(atomic) == ["reverted", "insufficient_funds", "reverted"]
    assert not any(call.events for call in atomic.calls)
    assert ledger.balance("B") == 100
    [each] = ledger.settle(ledger.transaction("bank-a", *calls, mode="each"))
    assert codes(each) == ["ok", "insufficient_funds", "ok"]
    assert ledger.balance("B") == 135


def test_unknown_names_in_a_block_are_outcomes_not_errors(ledger: Ledger) -> None:
    [receipt] = ledger.settle(
        ledger.transaction(
            "bank-a",
            Call("nothing", "x", {}),
            Call("settlement", "x", {}),
            Call("settlement", "transfer", {"a": 1}),
            mode="each",
        )
    )
    assert codes(receipt) == ["unknown_contract", "unknown_method", "invalid_arguments"]


# --- what no block may contain ---------------------------------------------------------------------------


def obstructed(ledger: Ledger, case: str) -> Transaction:
    first = ledger.transaction("bank-a", request="used")
    ledger.settle(first)
    now_ms = ledger.now_ms + 1_000
    return {
        "wrong_network": lambda: ledger.transaction("bank-a", network_id="other-0123456789ab"),
        "expired": lambda: ledger.transaction("bank-a", expires_at_ms=now_ms - 1),
        "expiry_too_far": lambda: ledger.transaction("bank-a", expires_at_ms=now_ms + DAY_MS + 1),
        "already_final": lambda: first,
        "request_conflict": lambda: ledger.transaction("bank-a", request="used"),
        "unknown_principal": lambda: ledger.transaction("bank-a/stranger"),
        "policy_unsatisfied": lambda: ledger.transaction("bank-a/desk", keys=[key_of("bank-a/desk", 1)]),
    }[case]()


@pytest.mark.parametrize(
    "case",
    [
        "wrong_network",
        "expired",
        "expiry_too_far",
        "already_final",
        "request_conflict",
        "unknown_principal",
        "policy_unsatisfied",
    ],
)
def test_what_no_block_may_contain_is_left_out_refused_and_not_admitted(ledger: Ledger, case: str) -> None:
    bad = obstructed(ledger, case)
    good = ledger.transaction("bank-b")
    built = ledger.build(bad, good)
    assert built is not None
    assert built.proposal.wire_ids == (good.wire_id,)
    forged = with_header(
        msgspec.structs.replace(built.proposal, wire_ids=(good.wire_id, bad.wire_id)),
        tx_root=ledger.tx_root(good, bad),
    )
    error = refusal(ledger, forged, [good, bad])
    assert (error.code, error.details["reason"]) == ("transaction_not_includable", case)
    assert ledger.executor.obstacle(bad, ledger.now_ms) == case
    if case == "already_final":
        assert ledger.executor.admission(bad, ledger.now_ms) == 1
        return
    with pytest.raises(RejectedTransaction) as caught:
        ledger.executor.admission(bad, ledger.now_ms)
    assert caught.value.code == case


def test_a_transaction_stands_only_once_in_a_block(ledger: Ledger) -> None:
    item = ledger.transaction("bank-a")
    built = ledger.build(item, item)
    assert built is not None
    assert len(built.tx_ids) == 1
    twice = msgspec.structs.replace(built.proposal, wire_ids=(item.wire_id,) * 2)
    forged = with_header(twice, tx_root=ledger.tx_root(item, item))
    assert refusal(ledger, forged, [item, item]).details["reason"] == "already_final"


def test_policies_ask_for_m_different_keys_of_n(ledger: Ledger) -> None:
    keys = [key_of("bank-a/desk", number) for number in range(3)]
    for good in (keys[:2], keys[1:], keys, [*keys[:2], key_of("bank-b")]):
        assert ledger.executor.admission(ledger.transaction("bank-a/desk", keys=good), ledger.now_ms) is None
    for bad in (keys[:1], [keys[0], key_of("bank-a")], [key_of("bank-a"), key_of("bank-b")]):
        with pytest.raises(RejectedTransaction, match="policy_unsatisfied"):
            ledger.executor.admission(ledger.transaction("bank-a/desk", keys=bad), ledger.now_ms)


def test_a_policy_changed_in_a_block_judges_the_next_transaction_of_the_same_block(ledger: Ledger) -> None:
    new_key = key_of("bank-a", 5)
    change = ledger.transaction(
        "bank-a", Call("membership", "set_policy", {"principal": "bank-a", "threshold": 1, "keys": (new_key,)})
    )
    old, new = ledger.transaction("bank-a"), ledger.transaction("bank-a", keys=[new_key])
    built = ledger.build(new, change, old, new)
    assert built is not None
    assert built.proposal.wire_ids == (change.wire_id, new.wire_id)
    ledger.follow(built)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (Call("nothing", "x", {}), "unknown_contract"),
        (Call("settlement", "x", {}), "unknown_method"),
        (Call("settlement", "transfer", {"debtor": 1}), "invalid_arguments"),
    ],
)
def test_calls_that_cannot_be_tried_are_named(ledger: Ledger, call: Call, code: str) -> None:
    with pytest.raises(RejectedTransaction) as caught:
        ledger.executor.validate_calls(ledger.transaction("bank-a", transfer("A", "B", 1, 1), call))
    assert (caught.value.code, caught.value.details["call"]) == (code, 1)


# --- request ids -----------------------------------------------------------------------------------------


def test_a_request_id_is_remembered_through_the_retention_and_then_free(tmp_path: Path) -> None:
    config = network(retention_ms=10_000, pruned_requests_max=2)
    primary, backup = Ledger(tmp_path / "primary", config), Ledger(tmp_path / "backup", config)
    expiries = [primary.now_ms + 5_000 + number for number in range(3)]
    used = [primary.transaction("bank-a", request=f"R-{n}", expires_at_ms=at) for n, at in enumerate(expiries)]
    primary.settle(*reversed(used))
    # The last block that must still know R-0, then the first one that forgets; at most two a block, oldest first.
    for time_ms, known in ((expiries[0] + 10_000, 3), (expiries[0] + 10_001, 2), (expiries[2] + 10_001, 0)):
        executed = primary.executor.build(time_ms, "bank-a", [], allow_empty=True)
        assert executed is not None
        primary.decide(executed)
        primary.now_ms = time_ms
        conflicts = [
            primary.executor.obstacle(primary.transaction("bank-a", request=f"R-{n}"), time_ms) is not None
            for n in range(3)
        ]
        assert conflicts == [False] * (3 - known) + [True] * known
    again = primary.transaction("bank-a", request="R-0")
    assert codes(primary.settle(again)[0]) == ["ok"]
    backup.follow_store(primary)
    assert backup.executor.head == primary.executor.head


def test_pruning_is_bounded_a_block(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, network(retention_ms=1_000, pruned_requests_max=2))
    ledger.settle(*[ledger.transaction("bank-a", expires_at_ms=ledger.now_ms + 5_000) for _ in range(5)])
    ledger.now_ms += DAY_MS
    removed = []
    for _ in range(4):
        executed = ledger.build(allow_empty=True)
        assert executed is not None
        removed.append(len(executed.requests_removed))
        ledger.decide(executed)
    assert removed == [2, 2, 1, 0]


def test_a_node_that_started_amid_a_backlog_forgets_the_same_requests(tmp_path: Path) -> None:
    """The running node looks from where it stopped, the started one from the beginning; some expire together."""
    ledger = Ledger(tmp_path, network(retention_ms=1_000, pruned_requests_max=2))
    expiries = [ledger.now_ms + at for at in (5_000, 5_000, 5_000, 6_000, 6_000)]
    ledger.settle(*[ledger.transaction("bank-a", expires_at_ms=at) for at in expiries])
    ledger.now_ms += DAY_MS
    forgotten = []
    for _ in range(4):
        executed = ledger.build(allow_empty=True)
        started = Executor(ledger.network, ENGINE, ledger.registry)
        started.open(ledger.store.snapshot())
        assert executed is not None
        checked = started.check(executed.proposal, [])
        assert checked.requests_removed == executed.requests_removed
        forgotten += [at - expiries[0] for at, _ in executed.requests_removed]
        ledger.decide(executed)
    assert forgotten == [0, 0, 0, 1_000, 1_000]


# --- headers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"network": "other"}, "wrong_network"),
        ({"height": 7}, "wrong_height"),
        ({"parent": bytes(32)}, "wrong_parent"),
        ({"time_ms": 1}, "time_not_after_parent"),
        ({"contracts_hash": bytes(32)}, "contracts_differ"),
        ({"tx_root": bytes(32)}, "block_content_differs"),
        ({"receipts_root": bytes(32)}, "receipts_differ"),
        ({"state_root": bytes(32)}, "state_differs"),
        ({"members_hash": bytes(32)}, "members_differ"),
    ],
)
def test_a_header_that_says_anything_else_is_refused(ledger: Ledger, fields: dict[str, Any], code: str) -> None:
    ledger.settle(ledger.transaction("bank-a"))
    built = ledger.build(ledger.transaction("bank-a"))
    assert built is not None
    assert refusal(ledger, with_header(built.proposal, **fields), decoded(built.body)).code == code


def test_other_bytes_than_the_proposal_names_are_refused(ledger: Ledger) -> None:
    item, other = ledger.transaction("bank-a"), ledger.transaction("bank-a")
    built = ledger.build(item)
    assert built is not None
    # More than a block may hold, too: what somebody sent under a block's name says nothing of the block.
    many = [item] * (ledger.network.parameters.block_transactions_max + 1)
    for transactions in ([], [other], [item, other], many):
        assert refusal(ledger, built.proposal, transactions).code == "block_content_differs"


def test_clock_and_proposer_are_judged_apart_and_on_first_proposals_only(ledger: Ledger) -> None:
    built = ledger.build(ledger.transaction("bank-a"))
    assert built is not None
    header, drift_ms = built.header, ledger.network.parameters.drift_ms
    for now_ms in (header.time_ms - drift_ms, header.time_ms + drift_ms):
        ledger.executor.judge_first(header, now_ms, "bank-a")
    with pytest.raises(InvalidBlock) as early:
        ledger.executor.judge_first(header, header.time_ms - drift_ms - 30, "bank-a")
    assert (early.value.code, early.value.details["wait_ms"]) == ("block_ahead_of_clock", 30)
    with pytest.raises(InvalidBlock, match="block_behind_clock"):
        ledger.executor.judge_first(header, header.time_ms + drift_ms + 1, "bank-a")
    with pytest.raises(InvalidBlock, match="wrong_proposer"):
        ledger.executor.judge_first(header, header.time_ms, "bank-b")
    ledger.executor.check(built.proposal, decoded(built.body))


# --- asking without changing -----------------------------------------------------------------------------


def test_a_dry_run_says_everything_and_changes_nothing(ledger: Ledger) -> None:
    ledger.open_accounts("A", "B", funds=100)
    item = ledger.transaction("bank-a", transfer("A", "B", 60, 1), transfer("A", "B", 60, 2), mode="each")
    first, second = (ledger.executor.dry_run(item, ledger.now_ms) for _ in range(2))
    assert first == second
    assert codes(first.receipt) == ["ok", "insufficient_funds"]
    assert first.details[1]
    assert len(first.writes.after) == 3
    assert ledger.balance("A") == 100
    assert ledger.settle(item)[0] == first.receipt
    with pytest.raises(RejectedTransaction, match="request_conflict"):
        ledger.executor.dry_run(item, ledger.now_ms)


def test_who_pays_twice_under_one_request_id_is_told_which_transaction_has_it(ledger: Ledger) -> None:
    """It said "use a new request_id", by which the payment would have been made twice."""
    ledger.open_accounts("A", "B", funds=100)
    paid = ledger.transaction("bank-a", transfer("A", "B", 60, 1), request="invoice-7")
    ledger.settle(paid)
    again = ledger.transaction(
        "bank-a", transfer("A", "B", 60, 1), request="invoice-7", expires_at_ms=ledger.now_ms + 60_000
    )
    with pytest.raises(RejectedTransaction, match="request_conflict") as refused:
        ledger.executor.admission(again, ledger.now_ms)
    assert refused.value.details == {"tx_id": paid.tx_id.hex()}
    assert paid.tx_id.hex() in refused.value.message
    assert "hansa tx show TX_ID" in refused.value.entry.action


def test_queries_answer_for_the_head_and_for_past_heights(ledger: Ledger) -> None:
    ledger.open_accounts("A", "B", funds=100)
    for number in range(3):
        ledger.settle(ledger.transaction("bank-a", transfer("A", "B", 10, number)))
    assert [ledger.balance("A", at=height) for height in (1, 2, 3, 4)] == [100, 90, 80, 70]
    with pytest.raises(RejectedTransaction) as missing:
        ledger.balance("A", at=0)
    assert missing.value.code == "query_refused"
    assert missing.value.details["reason"]
    # The contract's own sentence for the reason, as a refused call has it: it was the code alone.
    with pytest.raises(RejectedTransaction, match=r"brake_not_found\. [A-Z].+\."):
        ledger.executor.queries.answer(ledger.store.snapshot(), "brake", "brake", {"brake": 99})


@pytest.mark.parametrize(
    ("contract", "name", "args", "kind", "code"),
    [
        ("nothing", "balance", {}, NotFound, "unknown_contract"),
        ("settlement", "nothing", {}, NotFound, "unknown_method"),
        ("settlement", "transfer", {}, NotFound, "unknown_method"),
        ("settlement", "balance", {"account": 7}, RejectedTransaction, "invalid_arguments"),
    ],
)
def test_queries_that_cannot_be_asked(
    ledger: Ledger, contract: str, name: str, args: dict[str, Any], kind: type[Any], code: str
) -> None:
    with pytest.raises(kind) as caught:
        ledger.executor.queries.answer(ledger.store.snapshot(), contract, name, args)
    assert caught.value.code == code


def test_a_brief_answer_is_the_answer_and_what_takes_longer_is_not_answered_briefly(ledger: Ledger) -> None:
    """What reads rows or events, or runs on and on, would hold up the event loop that asks briefly."""
    ledger.open_accounts("A", "B", funds=100)
    view, queries = ledger.store.snapshot(), ledger.executor.queries
    for name, args in (("balance", {"account": "A"}), ("account", {"account": "B"})):
        assert queries.brief_answer(view, "settlement", name, args) == queries.answer(
            view, "settlement", name, args
        )
    for contract, name, args in (("membership", "members", {}), ("settlement", "statement", {"account": "A"})):
        queries.answer(view, contract, name, args)
        with pytest.raises(NotBrief):
            queries.brief_answer(view, contract, name, args)
    with pytest.raises(RejectedTransaction) as refused:
        queries.brief_answer(view, "settlement", "balance", {"account": "C"})
    assert refused.value.details["reason"] == "account_not_found"
    with pytest.raises(NotFound, match="unknown_method"):
        queries.brief_answer(view, "settlement", "transfer", {})


@pytest.mark.parametrize("operations", [0, 7])
def test_a_brief_answer_stays_within_its_operations(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, operations: int
) -> None:
    ledger.open_accounts("A", "B", funds=100)
    monkeypatch.setattr(queries_module, "BRIEF_OPERATIONS_MAX", operations)
    with pytest.raises(NotBrief):
        ledger.executor.queries.brief_answer(ledger.store.snapshot(), "settlement", "balance", {"account": "A"})


def test_a_failing_disk_is_never_an_outcome_of_a_call(ledger: Ledger) -> None:
    """Otherwise one member's broken disk would make it vote against, or propose, another state."""
    ledger.open_accounts("A", "B", funds=100)
    item = ledger.transaction("bank-a", transfer("A", "B", 10, 1))
    ledger.executor.open(ledger.store.snapshot())
    assert ledger.executor.admission(item, ledger.now_ms) is None
    ledger.close()
    with pytest.raises(StoreError):
        ledger.build(item)


def test_a_former_key_signs_in_its_successors_place_and_never_beside_it(ledger: Ledger) -> None:
    keys, new = [key_of("bank-a/desk", number) for number in range(3)], key_of("bank-a/desk", 7)
    rotation = {"principal": "bank-a/desk", "former": keys[0], "key": new, "overlap_ms": 60_000}
    ledger.settle(ledger.transaction("bank-a", Call("membership", "rotate_key", rotation)))
    until_ms = ledger.store.head.time_ms + 60_000

    def suffices(*signers: bytes) -> bool:
        return ledger.executor.obstacle(ledger.transaction("bank-a/desk", keys=signers), ledger.now_ms) is None

    assert suffices(keys[0], keys[1])
    assert suffices(new, keys[1])
    assert suffices(keys[0], new, keys[1])
    assert not suffices(keys[0], new)
    assert not suffices(keys[0])
    assert not suffices(new)
    # By the time of the block it ends, whether any call comes to end it or not.
    ledger.now_ms = until_ms - 1
    assert suffices(keys[0], keys[1])
    ledger.now_ms = until_ms
    assert not suffices(keys[0], keys[1])
    assert suffices(new, keys[1])


def test_a_limit_that_the_members_changed_holds_from_the_next_block_on(ledger: Ledger) -> None:
    def say(sender: str, method: str, **args: object) -> Transaction:
        return ledger.transaction(sender, Call("governance", method, args))

    expires_at_ms = ledger.now_ms + DAY_MS
    change = {"name": "block_transactions_max", "value": 10, "expires_at_ms": expires_at_ms}
    ledger.settle(say("bank-a", "propose_parameter", **change))
    votes = [say(bank, "vote", proposal=1, yes=True) for bank in BANKS[1:3]]
    # In the block that decides it the former limit holds.
    ledger.settle(*votes, *[ledger.transaction("bank-a") for _ in range(10)])
    assert ledger.executor.parameters.block_transactions_max == 10
    many = [ledger.transaction("bank-a") for _ in range(12)]
    built = ledger.build(*many)
    assert built is not None
    assert len(built.body.transactions) == 10
    # A node that starts now reads it from the state.
    started = Executor(ledger.network, ENGINE, ledger.registry)
    started.open(ledger.store.snapshot())
    assert started.parameters == ledger.executor.parameters
