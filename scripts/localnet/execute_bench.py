"""What executing a block costs, step by step: the shipped executor over the shipped store, in one process.

Each load settles a few blocks on a ledger of its own. Every block is executed once by `BlockRun` with a clock
between its steps, and once by the executor as every member does it before it votes; both must come to one state.
Signatures are not verified here: that is a figure of its own (`limits`).
"""

import gc
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import msgspec
from rich.console import Console

from consensus.messages import Certificate, VoteKind
from contracts import CONTRACTS, FURTHER
from contracts.engine import Engine
from contracts.membership import Membership
from node.config import MemberConfig, NetworkConfig, Parameters, PrincipalConfig
from node.executor import Executor
from node.executor.run import BlockRun, Rules
from node.keys import SigningKey
from node.ledger import Body, Call, KeySignature, Proposal, Transaction, content_root, merkle_root
from node.signatures import verify_many
from node.state import ExecutedBlock, ValueCache
from node.store import Store
from scripts.localnet.layout import member_names

T = TypeVar("T")

BLOCKS = 8
ACCOUNTS = 10_000
HOT_ACCOUNTS = 100
CLAIMS_PER_BLOCK = 200
CALLS_MAX = 1_000
START_MS = 1_700_000_000_000
CURRENCY = "USD"
MEMBERS = tuple(member_names(4))


class Steps(msgspec.Struct, frozen=True):
    """Microseconds; medians over the blocks.

    `decode`: bytes to typed transactions. `admit`: expiry, request id and key policy. `call`: the contract with its
    state reads and writes. `receipt`: request records, events and receipts. `write_set`: encoding what changed.
    `tree`: the state root. `roots`: the roots over transactions and receipts.
    """

    decode: float
    admit: float
    call: float
    receipt: float
    write_set: float
    tree: float
    roots: float


class Load(msgspec.Struct, frozen=True):
    """One load. `execute_us` is what `Executor.check` takes, `apply_us` the store's batch and the next view.

    `per_s` says how many transactions, or calls, one core replays a second: all but the signatures.
    """

    name: str
    transactions_per_block: int
    calls_per_block: int
    steps_us_per_transaction: Steps
    steps_us_per_call: Steps
    execute_us_per_call: float
    apply_us_per_call: float
    transactions_per_s: int
    calls_per_s: int


class ExecuteBench(msgspec.Struct, frozen=True):
    """All loads, beside what verifying one signature takes on this machine now."""

    blocks: int
    verify_us: float
    loads: tuple[Load, ...]


def measure(directory: Path, console: Console) -> ExecuteBench:
    """Run every load on a ledger of its own below the empty `directory`."""
    loads: list[Load] = []
    for name, work in LOADS.items():
        console.print(f"execute: {name}")
        bench = Bench(directory / name)
        try:
            loads.append(bench.load(name, work(bench)))
        finally:
            bench.close()
    return ExecuteBench(BLOCKS, round(_verify_us(), 1), tuple(loads))


class Bench:
    """A ledger of one node whose blocks are decided by decree."""

    def __init__(self, path: Path) -> None:
        """Genesis of a test network is applied in the new directory `path`."""
        self._network = _network()
        self._engine = Engine(CONTRACTS, FURTHER)
        self._rules = Rules(self._network.network_id, self._network.parameters, self._engine, Membership)
        self._executor = Executor(self._network, self._engine, Membership)
        self._store = Store(path, self._network.network_id, self._network.genesis_hash)
        self._store.initialise(self._executor.genesis(), never_voted=True)
        self._executor.open(self._store.snapshot())
        self._cache = ValueCache()
        self._requests = 0

    def close(self) -> None:
        """The directory is free."""
        self._store.close()

    def transaction(self, sender: str, calls: Sequence[Call]) -> bytes:
        """The bytes of a transaction of `sender` whose signature nobody verifies."""
        self._requests += 1
        body = Body(
            self._network.network_id,
            sender,
            f"bench-{self._requests}",
            START_MS + 3_600_000,
            "each",
            tuple(calls),
        )
        return Transaction.assemble(body, [KeySignature(_key(sender), bytes(64))]).data

    def settle(self, sender: str, calls: Sequence[Call]) -> None:
        """All `calls` are done, in as many blocks as they need; RuntimeError when one of them fails."""
        for start in range(0, len(calls), CALLS_MAX):
            executed = self._build([Transaction.decode(self.transaction(sender, calls[start : start + CALLS_MAX]))])
            self._apply(executed)
            [receipt] = [self._store.receipt(executed.height, 0)]
            codes = {call.code for call in receipt.calls}
            if codes != {"ok"}:
                raise RuntimeError(f"the benchmark's own calls failed: {codes}")

    def load(self, name: str, blocks: Iterator[list[bytes]]) -> Load:
        """What the blocks, of transactions' bytes, cost."""
        steps: list[tuple[float, ...]] = []
        execute_us: list[float] = []
        apply_us: list[float] = []
        transactions = calls = 0
        for data in blocks:
            built = self._build([Transaction.decode(item) for item in data])
            gc.collect()
            steps.append(self._step_by_step(built, data))
            checked, spent_us = _timed(partial(self._check, built))
            execute_us.append(spent_us)
            apply_us.append(_timed(partial(self._apply, checked))[1])
            transactions, calls = len(data), built.calls
        medians = [median(values) for values in zip(*steps, strict=True)]
        whole_us = medians[0] + median(execute_us) + median(apply_us)
        return Load(
            name=name,
            transactions_per_block=transactions,
            calls_per_block=calls,
            steps_us_per_transaction=Steps(*(round(value / transactions, 2) for value in medians)),
            steps_us_per_call=Steps(*(round(value / calls, 2) for value in medians)),
            execute_us_per_call=round(median(execute_us) / calls, 2),
            apply_us_per_call=round(median(apply_us) / calls, 2),
            transactions_per_s=round(transactions * 1e6 / whole_us),
            calls_per_s=round(calls * 1e6 / whole_us),
        )

    def _build(self, transactions: Sequence[Transaction]) -> ExecutedBlock:
        built = self._executor.build(START_MS, MEMBERS[0], transactions)
        if built is None or len(built.transactions) != len(transactions):
            raise RuntimeError("the benchmark's transactions do not fit into one block")
        return built

    def _check(self, block: ExecutedBlock) -> ExecutedBlock:
        proposal = Proposal(block.header, tuple(item.wire_id for item in block.transactions), ())
        return self._executor.check(proposal, block.transactions)

    def _apply(self, block: ExecutedBlock) -> None:
        certificate = Certificate(VoteKind.COMMIT, 0, block.height, block.digest, ((0, bytes(64)),))
        self._store.apply(block, certificate, start_view=0)
        self._executor.advance(block, self._store.snapshot())
        self._cache = self._cache.advance(block.writes)

    def _step_by_step(self, block: ExecutedBlock, data: Sequence[bytes]) -> tuple[float, ...]:
        """The microseconds of each step, as `Steps` names them."""
        header = block.header
        run = BlockRun(self._rules, self._executor.view, self._cache, header.height, header.time_ms)
        run.begin(lambda *_: False)
        transactions, decode = _timed(lambda: [Transaction.decode(item) for item in data])
        _, admit = _timed(lambda: [run.obstacle(item) for item in transactions])
        attempts, call = _timed(lambda: [run.attempt(item) for item in transactions])

        def accept() -> None:
            for transaction, attempt in zip(transactions, attempts, strict=True):
                run.accept(transaction, attempt)

        _, receipt = _timed(accept)
        writes, write_set = _timed(run.overlay.write_set)
        staged, tree = _timed(lambda: self._executor.tree.stage(writes.after))
        _, roots = _timed(lambda: (content_root(data, ()), merkle_root(run.receipts)))
        if staged.root != header.state_root:
            raise RuntimeError("the steps of a block do not come to the state of the whole")
        return decode, admit, call, receipt, write_set, tree, roots


def _single(bench: Bench) -> Iterator[list[bytes]]:
    """Blocks of 1,000 transactions of one transfer each among ACCOUNTS accounts."""
    owners = _accounts(bench, ACCOUNTS)
    accounts = list(owners)
    for block in range(BLOCKS):
        transfers = [_transfer(accounts, 1_000 * block + number) for number in range(1_000)]
        yield [bench.transaction(owners[item.args["debtor"]], [item]) for item in transfers]


def _bundles(with_uetr: bool) -> Callable[[Bench], Iterator[list[bytes]]]:
    """Blocks of four bundles of 1,000 transfers each among HOT_ACCOUNTS accounts."""

    def blocks(bench: Bench) -> Iterator[list[bytes]]:
        owners = _accounts(bench, HOT_ACCOUNTS)
        number = 0
        for _ in range(BLOCKS):
            bundles: list[bytes] = []
            for member in MEMBERS:
                accounts = [account for account, owner in owners.items() if owner == member]
                bundles.append(
                    bench.transaction(
                        member,
                        [_transfer(accounts, number + place, with_uetr=with_uetr) for place in range(CALLS_MAX)],
                    )
                )
                number += CALLS_MAX
            yield bundles

    return blocks


def _claims(bench: Bench) -> Iterator[list[bytes]]:
    """Blocks of CLAIMS_PER_BLOCK transactions: a claim each, from notice to payout in five calls."""
    insurer = MEMBERS[0]
    payees = list(_accounts(bench, HOT_ACCOUNTS))
    funds, product = "CLAIMS-FUNDS", "MOTOR"
    opening = {"account": funds, "owner": insurer, "currency": CURRENCY, "operators": ["@claims"]}
    terms = {"limit": 10**9, "deductible": 100, "coinsurance_bp": 1_000, "authority_limit": 10**9}
    days = {"waiting_days": 0, "notice_days": 0, "perils": ["fire"], "staff": []}
    policies = [
        {"policy": f"P-{number}", "product": product, "payee": payee, "inception_day": 1, "expiry_day": 50_000}
        for number, payee in enumerate(payees)
    ]
    bench.settle(
        insurer,
        [
            Call("settlement", "open_account", opening),
            Call("settlement", "issue", {"account": funds, "amount": 10**15}),
            Call(
                "claims",
                "create_product",
                {"product": product, "insurer": insurer, "account": funds, **terms, **days},
            ),
            *[Call("claims", "bind_policy", policy) for policy in policies],
        ],
    )
    for block in range(BLOCKS):
        numbers = range(block * CLAIMS_PER_BLOCK, (block + 1) * CLAIMS_PER_BLOCK)
        yield [bench.transaction(insurer, _claim(number, f"P-{number % len(payees)}")) for number in numbers]


def _claim(number: int, policy: str) -> list[Call]:
    claim, day = f"C-{number}", 100 + number
    steps: tuple[tuple[str, dict[str, Any]], ...] = (
        ("notify", {"policy": policy, "peril": "fire", "loss_day": day, "notice_day": day, "claimed": 50_000}),
        ("set_reserve", {"reserve": 60_000}),
        ("assess", {"assessed": 50_000}),
        ("approve", {}),
        ("payout", {"uetr": _uetr(number)}),
    )
    return [Call("claims", method, {"claim": claim, **args}) for method, args in steps]


LOADS: Mapping[str, Callable[[Bench], Iterator[list[bytes]]]] = {
    "single": _single,
    "bundles": _bundles(with_uetr=False),
    "bundles-uetr": _bundles(with_uetr=True),
    "claims": _claims,
}


def _accounts(bench: Bench, count: int) -> dict[str, str]:
    """Account -> owner: `count` funded accounts, the members' in turn."""
    owners = {f"ACCOUNT-{number:06d}": MEMBERS[number % len(MEMBERS)] for number in range(count)}
    for member in MEMBERS:
        own = [account for account, owner in owners.items() if owner == member]
        openings = [{"account": account, "owner": member, "currency": CURRENCY} for account in own]
        bench.settle(member, [Call("settlement", "open_account", opening) for opening in openings])
    funding = [Call("settlement", "issue", {"account": account, "amount": 10**12}) for account in owners]
    bench.settle(MEMBERS[0], funding)
    return owners


def _transfer(accounts: Sequence[str], number: int, *, with_uetr: bool = False) -> Call:
    debtor, creditor = accounts[number % len(accounts)], accounts[(number * 7 + 3) % len(accounts)]
    if debtor == creditor:
        creditor = accounts[(number + 1) % len(accounts)]
    args = {"debtor": debtor, "creditor": creditor, "amount": 1 + number % 100}
    return Call("settlement", "transfer", {**args, "uetr": _uetr(number)} if with_uetr else args)


def _uetr(number: int) -> str:
    return str(uuid.UUID(int=number * 0x9E3779B97F4A7C15 % 2**128, version=4))


def _key(principal: str) -> bytes:
    return principal.encode().ljust(32, b".")


def _network() -> NetworkConfig:
    return NetworkConfig(
        name="bench",
        members=tuple(
            MemberConfig(member, "validator", f"127.0.0.1:{7600 + index}", _key(member + "!"), _key(member + "?"))
            for index, member in enumerate(MEMBERS)
        ),
        principals=tuple(PrincipalConfig(member, (_key(member),), 1) for member in MEMBERS),
        parameters=Parameters(),
        contracts={"settlement": {"currencies": [{"code": CURRENCY, "exponent": 2, "issuer": MEMBERS[0]}]}},
    )


def _verify_us() -> float:
    key = SigningKey.generate()
    message = bytes(200)
    items = [(key.public, message, key.sign(message))] * 1_000
    return min(_timed(lambda: verify_many(items))[1] for _ in range(3)) * 0.001


def _timed(function: Callable[[], T]) -> tuple[T, float]:
    started_s = time.perf_counter()
    result = function()
    return result, (time.perf_counter() - started_s) * 1e6
