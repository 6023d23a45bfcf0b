"""The plan of a long chain suits whoever signs and whoever executes, and leads to as many keys as were asked."""

from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from node.config import load_node
from node.ledger import Call
from node.verification import verify_directory
from scripts.localnet.chain_factory import Part, build, chain_plan
from scripts.localnet.chain_plan import ChainPlan, Size, parameters
from scripts.localnet.founding import found
from scripts.localnet.layout import Layout, TestnetError
from scripts.localnet.long_chain import plot
from tests.node.plain_rows import PlainRows

OWNERS = ("bank-a", "bank-b", "bank-b/desk")
ISSUERS = (("USD", "bank-a"), ("AUD", "bank-b"))
END_MS = 1_700_000_000_000
SMALL = Size(3_000, 1_000)
PORT = 19_800


def made_plan(size: Size = SMALL) -> ChainPlan:
    return ChainPlan(size, "testnet-0123", OWNERS, ISSUERS, END_MS)


def issuer_of(currency: str) -> str:
    return dict(ISSUERS)[currency]


@pytest.mark.parametrize("size", [SMALL, Size(1_000, 1_000), Size(2_999, 1_003)])
def test_every_payment_of_a_plan_has_what_it_needs(size: Size) -> None:
    plan = made_plan(size)
    owners: dict[str, str] = {}
    currencies: dict[str, str] = {}
    funded: set[str] = set()
    methods: Counter[str] = Counter()
    references: set[str] = set()
    for height in range(1, size.blocks + 1):
        for body in plan.bodies(height):
            [call] = body.calls
            methods[call.method] += 1
            args = call.args
            if call.method == "open_account":
                assert args["account"] not in owners
                assert body.sender == args["owner"]
                owners[args["account"]], currencies[args["account"]] = args["owner"], args["currency"]
            elif call.method == "issue":
                assert body.sender == issuer_of(currencies[args["account"]])
                funded.add(args["account"])
            else:
                assert {args["debtor"], args["creditor"]} <= funded
                assert args["debtor"] != args["creditor"]
                assert currencies[args["debtor"]] == currencies[args["creditor"]]
                assert body.sender == owners[args["debtor"]]
                references.update([args["uetr"]] if "uetr" in args else [])
    assert methods.total() == size.transactions
    assert methods["open_account"] == methods["issue"] == len(funded) == size.accounts
    assert set(owners.values()) == set(OWNERS)
    assert 2 * size.accounts + len(references) + size.keys // 10 >= size.keys


def test_block_times_ascend_to_the_end_and_keep_a_tenth_of_the_keys_as_request_ids() -> None:
    plan = made_plan()
    times = [plan.time_ms(height) for height in range(1, SMALL.blocks + 1)]
    assert times == sorted(set(times))
    assert times[-1] == END_MS
    retention_ms = parameters(SMALL).retention_ms
    remembered = [
        body
        for height in range(1, SMALL.blocks + 1)
        for body in plan.bodies(height)
        if body.expires_at_ms + retention_ms >= END_MS
    ]
    assert SMALL.keys // 10 <= len(remembered) <= SMALL.keys // 10 + 2 * SMALL.block_transactions


def test_payments_beyond_the_plan_are_transfers() -> None:
    plan = made_plan()
    for number in range(SMALL.transactions, SMALL.transactions + 3):
        sender, call = plan.payment(number)
        assert (sender in OWNERS, call.method) == (True, "transfer")
        assert isinstance(call, Call)


@pytest.mark.parametrize(("transactions", "keys"), [(999, 1_000), (5_000, 999)])
def test_a_chain_too_short_for_its_keys_is_refused(transactions: int, keys: int) -> None:
    with pytest.raises(ValueError, match="no fewer transactions than keys"):
        Size(transactions, keys)


def test_the_plot_has_a_line_for_each_part_and_its_longest_bar_for_the_slowest() -> None:
    parts = [
        Part(1_000, 500, 1.0, 100.0, 50.0, 150.0, 170.0, 3_000.0),
        Part(2_000, 900, 2.0, 200.0, 100.0, 300.0, 320.0, 4_000.0),
    ]
    head, first, second = plot(parts).splitlines()
    assert head.split() == ["transactions", "keys", "MB", "us", "each", "us", "CPU", "written"]
    assert first.split()[:2] == ["1,000", "500"]
    assert second.split()[5] == "4,000"
    assert (second.count("#"), second.count("+")) == (33, 17)
    assert first.count("#") == 17


@pytest.mark.slow
def test_a_chain_that_was_made_is_found_right_and_a_changed_byte_of_it_wrong(tmp_path: Path) -> None:
    size, layout = Size(1_000, 1_000), Layout(tmp_path / "net")
    member = found(layout, 4, PORT, parameters=parameters(size)).members[0]
    plan = chain_plan(layout, size)
    built = build(layout, member, plan, Console(quiet=True))
    assert (built.height, built.transactions, len(built.parts)) == (size.blocks, 1_000, 10)
    assert built.keys >= size.keys
    node = load_node(layout.node_file(member.id))
    report = verify_directory(node)
    assert (report.ok, report.first_error) == (True, None)
    assert (report.height, report.transactions, report.executed_from) == (size.blocks, 1_000, 1)

    with pytest.raises(TestnetError, match="do not fit block 21"):
        build(layout, member, plan, Console(quiet=True))

    database = PlainRows(node.data_dir)
    key = next(database.keys(b"b"))
    value = database.get(key)
    database.put(key, value[:-40] + bytes([value[-40] ^ 1]) + value[-39:])
    database.close()
    assert not verify_directory(node).ok
