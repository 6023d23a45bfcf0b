"""No call above a tier's limit is executed without the tier's persons, each another one, at that moment.

The executor and the contracts are the real ones; who may what is predicted by a model of a few lines, which reads
nothing of the ledger's.

More than 500 lines because the model and the single cases share one network and its persons.
"""

import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from contracts.membership import Membership
from contracts.policies import FormerKey, Policy, suffices
from node.config import NetworkConfig, PrincipalConfig
from node.errors import RejectedTransaction
from node.executor import AheadView
from node.executor.run import unapproved, unsatisfied
from node.ledger import Body, Call, KeySignature, Receipt, Transaction
from node.mempool import Mempool
from node.state import ExecutedBlock, Overlay
from tests.node.ledger_world import HOUR_MS, Ledger, certificate, key_of, network, transfer

TREASURY = "bank-a/treasury"
OFFICERS = ("bank-a/anna", "bank-a/ben", "bank-a/cleo")
RISK = ("bank-a/ria", "bank-a/rob")
SPARE = ("bank-a/dora", "bank-a/emil")
PEOPLE = (*OFFICERS, *RISK, *SPARE)
LIMIT = 1_000


def config() -> NetworkConfig:
    found = network()
    people = tuple(PrincipalConfig(name, (key_of(name),), 1) for name in (TREASURY, *PEOPLE))
    return msgspec.structs.replace(found, principals=(*found.principals, *people))


def tier(officers: int = 2, **changes: Any) -> Call:
    args: dict[str, Any] = {
        "name": "large",
        "principal": TREASURY,
        "contract": "settlement",
        "argument": "amount",
        "over": LIMIT,
        "groups": [{"threshold": officers, "persons": list(OFFICERS)}, {"threshold": 1, "persons": list(RISK)}],
    }
    return Call("membership", "set_tier", {**args, **changes})


def founded(path: Path) -> Ledger:
    """A treasury with money, and a tier over it."""
    ledger = Ledger(path, config())
    ledger.open_accounts("B", funds=1)
    opening = Call("settlement", "open_account", {"account": "T", "owner": TREASURY, "currency": "USD"})
    issue = Call("settlement", "issue", {"account": "T", "amount": 10**9})
    assert (
        codes(ledger.settle(ledger.transaction(TREASURY, opening), ledger.transaction("bank-a", issue)))
        == ["ok"] * 2
    )
    assert codes(ledger.settle(ledger.transaction("bank-a", tier()))) == ["ok"]
    return ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = founded(tmp_path / "data")
    yield made
    made.close()


def codes(receipts: Sequence[Receipt]) -> list[str]:
    return [call.code for receipt in receipts for call in receipt.calls]


def pay(ledger: Ledger, *amounts: int) -> list[Call]:
    ledger.requests += 100
    return [transfer("T", "B", amount, ledger.requests + place) for place, amount in enumerate(amounts)]


def keys(*names: str) -> list[bytes]:
    return [key_of(name) for name in names]


def refused(
    ledger: Ledger, sender: str, calls: Sequence[Call], signers: Sequence[bytes], **options: Any
) -> str | None:
    """Why a node refuses the transaction, which no block then holds, or None; it is executed then."""
    transaction = ledger.transaction(sender, *calls, keys=signers, **options)
    reason = ledger.executor.obstacle(transaction, ledger.now_ms + 1_000)
    executed = ledger.build(transaction, allow_empty=True)
    assert executed is not None
    assert (reason is None) == (len(executed.transactions) == 1)
    ledger.decide(executed)
    return reason


def test_all_signatures_at_once_are_simply_included(ledger: Ledger) -> None:
    base = keys(TREASURY)
    for signers in (base, [*base, *keys("bank-a/anna", "bank-a/ben", "bank-a/cleo")], [*base, *keys(*RISK)]):
        assert refused(ledger, TREASURY, pay(ledger, LIMIT + 1), signers) == "approval_required"
    enough = keys("bank-a/anna", "bank-a/ben", "bank-a/rob")
    assert refused(ledger, TREASURY, pay(ledger, LIMIT + 1), enough) == "policy_unsatisfied"
    assert refused(ledger, TREASURY, pay(ledger, LIMIT + 1), [*base, *enough]) is None
    assert refused(ledger, TREASURY, pay(ledger, LIMIT), base) is None


@pytest.mark.parametrize("mode", ["atomic", "each"])
def test_amounts_of_one_transaction_add_up(ledger: Ledger, mode: str) -> None:
    base = keys(TREASURY)
    assert refused(ledger, TREASURY, pay(ledger, LIMIT, 1), base, mode=mode) == "approval_required"
    assert refused(ledger, TREASURY, pay(ledger, LIMIT - 1, 1), base, mode=mode) is None
    assert refused(ledger, TREASURY, pay(ledger, LIMIT + 1, -1), base, mode=mode) == "approval_required"


def test_the_root_acts_for_all_and_is_bound_by_all(ledger: Ledger) -> None:
    base = keys("bank-a")
    assert refused(ledger, "bank-a", pay(ledger, LIMIT + 1), base) == "approval_required"
    lifting = Call("membership", "remove_tier", {"name": "large"})
    for call in (
        lifting,
        tier(over=10**9),
        Call("membership", "set_policy", {"principal": "bank-a/ria", "threshold": 1, "keys": [b"x" * 32]}),
    ):
        assert refused(ledger, "bank-a", [call], base) == "approval_required"
        # Neither hidden in a bundle, nor together with what it would allow.
        assert refused(ledger, "bank-a", [*pay(ledger, 1), call, *pay(ledger, LIMIT + 1)], base) is not None
    # Nobody else is bound, and what does not touch the tier asks for nothing.
    assert refused(ledger, "bank-a", [ledger.opening("bank-a")], base) == "approval_required"  # any of settlement's
    adding = {"principal": "bank-a/new", "threshold": 1, "keys": [b"y" * 32]}
    assert refused(ledger, "bank-a", [Call("membership", "add_principal", adding)], base) is None
    signers = [*base, *keys("bank-a/anna", "bank-a/ben", "bank-a/ria")]
    assert refused(ledger, "bank-a", [lifting], signers) is None
    assert refused(ledger, TREASURY, pay(ledger, LIMIT + 1), keys(TREASURY)) is None


def test_a_tier_that_nobody_can_meet_goes_by_the_members_votes(ledger: Ledger) -> None:
    """Two of three officers lost their keys: each way out asked for the tier itself."""
    base, losses = keys("bank-a"), keys("bank-a/anna", "bank-a/ria")
    dead = tier(name="dead", principal="bank-a", contract="governance", argument="", over=0)
    assert refused(ledger, "bank-a", [dead], base) is None
    end = {"expires_at_ms": ledger.now_ms + HOUR_MS}
    leaving = Call("governance", "propose", {"kind": "suspend_member", "member": "bank-d", **end})
    removals = [
        Call("governance", "propose_tier_removal", {"member": "bank-a", "tier": name, **end})
        for name in ("large", "dead")
    ]
    for call in (leaving, Call("membership", "remove_tier", {"name": "large"})):
        assert refused(ledger, "bank-a", [call], [*base, *losses]) == "approval_required"
    # No tier looks at the way out; what goes with it in one transaction is judged as ever.
    assert refused(ledger, "bank-a", [removals[0], *pay(ledger, LIMIT + 1)], base) == "approval_required"
    assert refused(ledger, "bank-a", [removals[0], leaving], base) == "approval_required"
    assert refused(ledger, "bank-a", removals, base) is None
    for bank in ("bank-b", "bank-c"):
        assert refused(ledger, TREASURY, pay(ledger, LIMIT + 1), keys(TREASURY)) == "approval_required"
        votes = [Call("governance", "vote", {"proposal": number, "yes": True}) for number in (1, 2)]
        assert codes(ledger.settle(ledger.transaction(bank, *votes))) == ["ok"] * 2
    assert refused(ledger, TREASURY, pay(ledger, LIMIT + 1), keys(TREASURY)) is None
    assert refused(ledger, "bank-a", [Call("governance", "withdraw", {"proposal": 9})], base) is None


def test_the_refusal_names_the_tier(ledger: Ledger) -> None:
    transaction = ledger.transaction(TREASURY, *pay(ledger, LIMIT + 1))
    with pytest.raises(RejectedTransaction) as caught:
        ledger.executor.admission(transaction, ledger.now_ms)
    assert (caught.value.code, caught.value.details["tier"]) == ("approval_required", "large")


def test_every_node_comes_to_the_same_block(ledger: Ledger, tmp_path: Path) -> None:
    other = founded(tmp_path / "other")
    number, digest = request(ledger, LIMIT + 1)
    for name in ("bank-a/anna", "bank-a/ria", "bank-a/ben"):
        ledger.settle(ledger.transaction(name, approval(number, digest), keys=keys(name)))
    other.follow_store(ledger)
    assert other.executor.head.state_root == ledger.executor.head.state_root
    assert other.balance("B") == LIMIT + 2
    other.close()


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of whom it was judged whether a tier is open, each time that it was."""
    found: list[str] = []
    judge = Membership.unmet_tier

    def counting(state: Overlay, sender: str, *rest: Any) -> tuple[str | None, int]:
        found.append(sender)
        return judge(state, sender, *rest)

    monkeypatch.setattr(Membership, "unmet_tier", staticmethod(counting))
    return found


def waiting(ledger: Ledger, count: int, *signers: str) -> tuple[Mempool, list[Transaction]]:
    """A pool with payments above the limit, which ask for more than these signatures."""
    pool, made = Mempool(1_000, 10**7), []
    for _ in range(count):
        made.append(ledger.transaction(TREASURY, *pay(ledger, LIMIT + 1), keys=keys(TREASURY, *signers)))
        pool.add(made[-1], ledger.now_ms)
    return pool, made


def next_block(ledger: Ledger, pool: Mempool) -> list[Transaction]:
    """As a primary: looks for work, builds of the candidates and of a transaction of bank-b, and applies it."""
    pool.work(lambda item: ledger.executor.obstacle(item, ledger.now_ms) is None)
    sent = ledger.transaction("bank-b")
    executed = ledger.build(sent, *pool.candidates(100), allow_empty=True)
    assert executed is not None
    ledger.decide(executed)
    pool.applied(executed.height, executed.header.time_ms, executed.transactions, 100, 10**6)
    return [item for item in executed.transactions if item is not sent]


def test_what_leaves_a_tier_open_is_judged_once_and_not_each_block(ledger: Ledger, judged: list[str]) -> None:
    """With each block it was judged of 64 that wait, with all of their calls, for as long as they waited."""
    pool, made = waiting(ledger, 10)
    for _ in range(20):
        assert next_block(ledger, pool) == []
    assert len(judged) == len(made)
    # Nor does a look at what waits cost more, however often somebody looks.
    for _ in range(20):
        for item in made:
            assert ledger.executor.obstacle(item, ledger.now_ms) == "approval_required"
    assert len(judged) == len(made)


def test_a_builder_judges_once_what_was_not_looked_at_before(ledger: Ledger, judged: list[str]) -> None:
    _, made = waiting(ledger, 10)
    for _ in range(5):
        executed = ledger.build(ledger.transaction("bank-b"), *made)
        assert executed is not None
        assert len(executed.transactions) == 1
        ledger.decide(executed)
    # In the block in the making, and then on the head, where it stays true.
    assert len(judged) == 2 * len(made)


def test_it_is_judged_anew_when_a_policy_or_a_stand_in_has_changed(ledger: Ledger, judged: list[str]) -> None:
    pool, made = waiting(ledger, 1, "bank-a/anna", "bank-a/ben", "bank-a/dora")
    assert [next_block(ledger, pool) for _ in range(3)] == [[], [], []]
    assert len(judged) == 1
    begin_ms = ledger.now_ms + 60_000
    named = {"delegate": "bank-a/dora", "key": key_of("bank-a/dora"), "until_ms": begin_ms + HOUR_MS}
    standing = Call("membership", "stand_in", {**named, "from_ms": begin_ms})
    ledger.settle(ledger.transaction("bank-a/ria", standing, keys=keys("bank-a/ria")))
    assert [next_block(ledger, pool) for _ in range(3)] == [[], [], []]
    # By time alone: nothing is written when she begins to stand in.
    ledger.now_ms = begin_ms
    assert next_block(ledger, pool) == made
    # Once for each state and time, and once more in the block that has it.
    assert len(judged) == 4


def lifting(ledger: Ledger) -> ExecutedBlock:
    """The next block, in which the tier is removed."""
    signers = keys("bank-a", "bank-a/anna", "bank-a/ben", "bank-a/ria")
    call = Call("membership", "remove_tier", {"name": "large"})
    executed = ledger.build(ledger.transaction("bank-a", call, keys=signers))
    assert executed is not None
    return executed


def test_what_is_judged_on_a_block_before_the_head_is_not_taken_for_the_heads(ledger: Ledger) -> None:
    """A node that catches up executes ahead of what it shows: it went on refusing what nobody has to approve any
    more, and left it out of its blocks.
    """
    _, [payment] = waiting(ledger, 1)
    store, executor = ledger.store, ledger.executor
    base = store.snapshot()
    first = ledger.build(ledger.transaction("bank-b"))
    assert first is not None
    executor.advance(first, AheadView(base, [first], certificate(first)), shown=False)
    ahead = [first, lifting(ledger)]
    executor.advance(ahead[1], AheadView(base, ahead, certificate(ahead[1])), shown=False)
    verdicts = []
    for executed in ahead:
        store.apply(executed, certificate(executed), start_view=0)
        executor.show(store.snapshot(), executed.writes)
        verdicts.append(executor.obstacle(payment, ledger.now_ms))
    executor.settle(store.snapshot())
    verdicts.append(executor.obstacle(payment, ledger.now_ms))
    assert verdicts == ["approval_required", None, None]
    assert codes(ledger.settle(payment)) == ["ok"]


def test_what_is_judged_while_a_block_is_applied_is_not_taken_for_the_next_state(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Admission has a thread of its own: where nothing was known before, its late verdict came to the new state."""
    _, [payment] = waiting(ledger, 1)
    block, judge = [lifting(ledger)], Membership.unmet_tier

    def judging(*given: Any) -> tuple[str | None, int]:
        found = judge(*given)
        if block:
            ledger.decide(block.pop())
        return found

    monkeypatch.setattr(Membership, "unmet_tier", staticmethod(judging))
    assert ledger.executor.obstacle(payment, ledger.now_ms) == "approval_required"
    assert ledger.executor.obstacle(payment, ledger.now_ms) is None
    assert codes(ledger.settle(payment)) == ["ok"]


KEYS = st.sampled_from([bytes([number]) * 32 for number in range(6)])


@given(
    threshold=st.integers(1, 3),
    own=st.lists(KEYS, min_size=3, max_size=3, unique=True).map(sorted),
    former=st.lists(st.tuples(KEYS, st.integers(0, 2), st.integers(4, 6)), max_size=2),
    signers=st.lists(KEYS, min_size=1, unique=True),
)
def test_a_persons_signatures_suffice_exactly_where_a_senders_do(
    threshold: int, own: list[bytes], former: list[tuple[bytes, int, int]], signers: list[bytes]
) -> None:
    # The host judges every sender, by code without a meter; a tier's persons are judged by metered code.
    rotated = tuple(FormerKey(key, own[place], until_ms) for key, place, until_ms in former if key not in own)
    policy = Policy(threshold, tuple(own), rotated)
    body = Body("n", "bank-a", "r", 10, "atomic", (Call("a", "b", {}),))
    transaction = Transaction.assemble(body, [KeySignature(key, bytes(64)) for key in signers])
    assert suffices(policy, signers, 5) == (unsatisfied(Membership, policy, transaction, 5) is None)


def test_whoever_finds_a_persons_former_key_cannot_take_the_seat(ledger: Ledger) -> None:
    """It put a key of its own in the place of both while they overlapped, and the person was out."""
    anna, old, new, thief = OFFICERS[0], key_of(OFFICERS[0]), key_of("new"), key_of("thief")

    def obstacle(sender: str, signer: bytes, *calls: Call) -> str | None:
        return ledger.executor.obstacle(ledger.transaction(sender, *calls, keys=[signer]), ledger.now_ms)

    assert codes(ledger.settle(ledger.transaction(anna, rotation(anna, old, new), keys=[old]))) == ["ok"]
    [paying] = pay(ledger, 1)
    stealing = rotation(anna, new, thief, 0)
    dora = {"delegate": SPARE[0], "key": key_of(SPARE[0]), "until_ms": ledger.now_ms + HOUR_MS}
    assert obstacle(anna, old, paying) is None
    for calls in ([stealing], [paying, stealing], [Call("membership", "stand_in", dora)]):
        assert obstacle(anna, old, *calls) == "policy_unsatisfied"
        assert obstacle(anna, new, *calls) is None
    # The person ends the former key with the new one, whenever that is found out.
    ending = ledger.transaction(anna, rotation(anna, new, key_of("newer"), 0), keys=[new])
    assert codes(ledger.settle(ending)) == ["ok"]
    assert obstacle(anna, old, paying) == "policy_unsatisfied"


def rotation(person: str, former: bytes, key: bytes, overlap_ms: int = HOUR_MS) -> Call:
    return Call(
        "membership", "rotate_key", {"principal": person, "former": former, "key": key, "overlap_ms": overlap_ms}
    )


@pytest.mark.parametrize("when", ["in the overlap", "before the rotation"])
def test_a_persons_former_key_cannot_take_the_seat_by_a_request(ledger: Ledger, when: str) -> None:
    """With the word of one other person `approvals` rotated the new key away, in the person's name.

    A request that lay there before the rotation did so too: who sees the rotation coming knows the new key.
    """
    anna, ben, cleo = OFFICERS
    old, new, thief = key_of(anna), key_of("new"), key_of("thief")
    own = tier(name="own", principal=anna, over=0, argument="", groups=[{"threshold": 1, "persons": [ben, cleo]}])
    assert codes(ledger.settle(ledger.transaction("bank-a", own))) == ["ok"]
    opening = Call("settlement", "open_account", {"account": "ANNA", "owner": anna, "currency": "USD"})
    dora = {"delegate": SPARE[0], "key": key_of(SPARE[0]), "until_ms": ledger.now_ms + 10 * HOUR_MS}
    thefts = [rotation(anna, new, thief, 0), Call("membership", "stand_in", dora)]
    rotated = ledger.transaction(anna, rotation(anna, old, new), keys=[old])
    if when == "in the overlap":
        assert codes(ledger.settle(rotated)) == ["ok"]
        assert [asked(ledger, anna, old, opening, theft) for theft in thefts] == [(0, b"request_lapsed")] * 2
    else:
        laid = [asked(ledger, anna, old, opening, theft) for theft in thefts]
        assert all(number for number, _ in laid)
        assert codes(ledger.settle(rotated)) == ["ok"]
        for number, digest in laid:
            [receipt] = ledger.settle(ledger.transaction(ben, approval(number, digest)))
            assert codes([receipt]) == ["request_lapsed"]
    probe = ledger.transaction(anna, *pay(ledger, 1), keys=[thief])
    assert ledger.executor.obstacle(probe, ledger.now_ms) == "policy_unsatisfied"
    # Else the former key asks as the new one does; and the new one for its own seat too when it is the only one.
    assert asked(ledger, anna, old, opening)[0]
    ledger.now_ms += HOUR_MS
    number, digest = asked(ledger, anna, new, opening, thefts[1])
    [receipt] = ledger.settle(ledger.transaction(ben, approval(number, digest)))
    assert [event.name for event in receipt.calls[0].events][-2:] == ["StandInChanged", "Ended"]


def test_an_approval_by_a_former_key_and_one_by_its_successor_count_once(ledger: Ledger) -> None:
    anna, old, new = OFFICERS[0], key_of(OFFICERS[0]), key_of("new")
    assert codes(ledger.settle(ledger.transaction(anna, rotation(anna, old, new), keys=[old]))) == ["ok"]
    number, digest = request(ledger, LIMIT + 1)
    before = ledger.balance("B")
    for person, signer in ((anna, old), (anna, new), (RISK[0], key_of(RISK[0])), (anna, old)):
        said = ledger.transaction(person, approval(number, digest), keys=[signer])
        assert codes(ledger.settle(said)) == ["ok"]
        assert ledger.balance("B") == before
    said = ledger.transaction(OFFICERS[1], approval(number, digest))
    assert codes(ledger.settle(said)) == ["ok"]
    assert ledger.balance("B") == before + LIMIT + 1


def test_the_roots_former_key_can_undo_a_mistyped_one(ledger: Ledger) -> None:
    """Nobody else could: were it refused, the member would have lost its say with the end of the overlap."""
    former, *others = keys("bank-a")

    def rotated(old: bytes, new: bytes, signer: bytes) -> str | None:
        args = {"principal": "bank-a", "former": old, "key": new}
        signers = [signer, *others]
        call = Call("membership", "rotate_key", args)
        return refused(ledger, "bank-a", [call], signers)

    assert rotated(former, key_of("mistyped"), former) is None
    assert rotated(key_of("mistyped"), key_of("right"), former) is None


def approval(number: int, digest: bytes) -> Call:
    return Call("approvals", "approve", {"request": number, "digest": digest})


def request(ledger: Ledger, *amounts: int) -> tuple[int, bytes]:
    return asked(ledger, TREASURY, key_of(TREASURY), *pay(ledger, *amounts))


def asked(ledger: Ledger, sender: str, signer: bytes, *calls: Call) -> tuple[int, bytes]:
    """The number of a request of these calls and its digest; or 0, and why it is refused."""
    planned = [{"contract": call.contract, "method": call.method, "args": call.args} for call in calls]
    args = {"calls": planned, "expires_at_ms": ledger.now_ms + 24 * HOUR_MS}
    call = Call("approvals", "request", args)
    [receipt] = ledger.settle(ledger.transaction(sender, call, keys=[signer]))
    if receipt.calls[0].code != "ok":
        return 0, receipt.calls[0].code.encode()
    [event] = [event for event in receipt.calls[0].events if event.name == "Requested"]
    return event.data["request"], event.data["digest"]


class Person:
    """A principal that signs with one key, and a former one for a while."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = key_of(name)
        self.former: list[tuple[bytes, bytes, int]] = []

    def circle(self, now_ms: int) -> frozenset[bytes]:
        return frozenset([self.key, *(key for key, _, until_ms in self.former if now_ms < until_ms)])


class TierMachine(RuleBasedStateMachine):
    """Payments, requests, approvals, rotations, stand-ins and changes of the tier, by whoever holds which keys."""

    @initialize()
    def start(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.ledger = founded(Path(self.directory.name) / "data")
        self.people = {name: Person(name) for name in PEOPLE}
        self.officers: int | None = 2
        self.stand_ins: dict[str, tuple[str, int, bytes]] = {}
        self.requests: dict[int, dict[str, Any]] = {}
        self.fresh = 0
        self.waiting: list[Transaction] = []
        self.paid = self.ledger.balance("B")

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.directory.cleanup()

    # --- the model ---

    def satisfied(self, spoken: frozenset[str], now_ms: int) -> bool:
        """Whether some choice of speakers, no two of them alike, fills the groups."""
        if self.officers is None:
            return True
        choices = []
        for seat in (*OFFICERS, *RISK):
            speakers = [""]
            if seat in spoken:
                speakers.append(seat)
            elif seat in self.stand_ins:
                delegate, until_ms, key = self.stand_ins[seat]
                unseated = delegate not in (*OFFICERS, *RISK)
                alone = self.people[delegate].circle(now_ms) == {key}
                if delegate in spoken and now_ms < until_ms and unseated and alone:
                    speakers.append(delegate)
            choices.append(speakers)
        for chosen in product(*choices):
            if not self.distinct([name for name in chosen if name], now_ms):
                continue
            if sum(map(bool, chosen[:3])) >= self.officers and any(chosen[3:]):
                return True
        return False

    def distinct(self, names: Sequence[str], now_ms: int) -> bool:
        """Whether no key signs for two of them."""
        circles = [self.people[name].circle(now_ms) for name in names]
        return len(frozenset().union(*circles)) == sum(map(len, circles))

    def anothers(self, person: str, circle: frozenset[bytes], now_ms: int) -> bool:
        """Whether one of the keys is that of another person of the tier, or of who stands in for one."""
        if self.officers is None or person not in (*OFFICERS, *RISK):
            return False
        others = [name for name in (*OFFICERS, *RISK) if name != person]
        rows = [self.stand_ins[name] for name in others if name in self.stand_ins]
        others += [delegate for delegate, until_ms, _ in rows if now_ms < until_ms and delegate != person]
        return any(circle & self.people[name].circle(now_ms) for name in others)

    def speaking(self, signers: Sequence[bytes], now_ms: int) -> frozenset[str]:
        return frozenset(name for name, person in self.people.items() if person.circle(now_ms) & frozenset(signers))

    def send(self, sender: str, calls: Sequence[Call], signers: Sequence[bytes], may: bool) -> bool:
        """Whether the transaction was executed, which it must be where it may. One key of two persons may count for
        the one that is needed less; never for both.
        """
        alike = not self.distinct(PEOPLE, self.next_ms)
        reason = refused(self.ledger, sender, calls, signers)
        assert reason == "approval_required" or (reason is None and may)
        assert reason is None or not may or alike
        return reason is None

    @property
    def next_ms(self) -> int:
        return self.ledger.now_ms + 1_000

    def signatures(self, names: Sequence[str]) -> list[bytes]:
        return list(dict.fromkeys(self.people[name].key for name in names))

    # --- what happens ---

    @rule(
        sender=st.sampled_from([TREASURY, "bank-a"]),
        amounts=st.lists(st.sampled_from([1, LIMIT - 1, LIMIT, LIMIT + 1]), min_size=1, max_size=3),
        names=st.lists(st.sampled_from(PEOPLE), max_size=5, unique=True),
    )
    def pay_at_once(self, sender: str, amounts: list[int], names: list[str]) -> None:
        signers = [*keys(sender), *self.signatures(names)]
        may = sum(amounts) <= LIMIT or self.satisfied(self.speaking(signers, self.next_ms), self.next_ms)
        if self.send(sender, pay(self.ledger, *amounts), signers, may):
            self.paid += sum(amounts)
        assert self.ledger.balance("B") == self.paid

    @rule(amount=st.sampled_from([LIMIT, LIMIT + 1, 5 * LIMIT]))
    def ask(self, amount: int) -> None:
        number, digest = request(self.ledger, amount)
        if amount <= LIMIT or self.officers is None:
            assert digest == b"nothing_to_approve"
        elif number:
            self.requests[number] = {"amount": amount, "digest": digest, "words": {}}
        else:
            assert digest == b"too_many_requests"

    @rule(data=st.data(), name=st.sampled_from([*PEOPLE, TREASURY]))
    def approve(self, data: st.DataObject, name: str) -> None:
        if not self.requests:
            return
        number = data.draw(st.sampled_from(sorted(self.requests)))
        found, now_ms = self.requests[number], self.next_ms
        signers = keys(TREASURY) if name == TREASURY else self.signatures([name])
        call = approval(number, found["digest"])
        [receipt] = self.ledger.settle(self.ledger.transaction(name, call, keys=signers))
        if receipt.calls[0].code == "ok" and name != TREASURY:
            found["words"][name] = self.people[name].circle(now_ms)
        spoken = frozenset(who for who, said in found["words"].items() if said <= self.people[who].circle(now_ms))
        if self.ledger.balance("B") != self.paid:
            assert receipt.calls[0].code == "ok"
            assert self.satisfied(spoken, now_ms)
            self.paid += found["amount"]
            del self.requests[number]
        elif receipt.calls[0].code == "ok":
            assert not self.satisfied(spoken, now_ms) or not self.distinct(PEOPLE, now_ms)
        assert self.ledger.balance("B") == self.paid

    @rule(name=st.sampled_from(PEOPLE), overlap_ms=st.sampled_from([0, 5_000, HOUR_MS]))
    def rotate(self, name: str, overlap_ms: int) -> None:
        self.fresh += 1
        person, key, now_ms = self.people[name], key_of("fresh", self.fresh), self.next_ms
        args = {"principal": name, "former": person.key, "key": key, "overlap_ms": overlap_ms}
        seated = self.officers is not None and name in (*OFFICERS, *RISK)
        sender, signers = (name, [person.key]) if seated else ("bank-a", keys("bank-a"))
        assert refused(self.ledger, sender, [Call("membership", "rotate_key", args)], signers) is None
        former = [item for item in person.former if now_ms < item[2] and item[1] != person.key]
        if overlap_ms:
            former.append((person.key, key, now_ms + overlap_ms))
        if not self.anothers(name, frozenset((key, *[item[0] for item in former])), now_ms):
            person.key, person.former = key, former

    @rule(
        person=st.sampled_from((*OFFICERS, *RISK)),
        delegate=st.sampled_from((*SPARE, *RISK)),
        ms=st.sampled_from([4_000, HOUR_MS]),
    )
    def stand_in(self, person: str, delegate: str, ms: int) -> None:
        until_ms = self.next_ms + ms
        call = Call(
            "membership", "stand_in", {"delegate": delegate, "key": self.people[delegate].key, "until_ms": until_ms}
        )
        signers = self.signatures([person])
        [receipt] = self.ledger.settle(self.ledger.transaction(person, call, keys=signers))
        if receipt.calls[0].code == "ok":
            assert delegate in SPARE
            self.stand_ins[person] = (delegate, until_ms, self.people[delegate].key)

    @rule(person=st.sampled_from((*OFFICERS, *RISK)))
    def come_back(self, person: str) -> None:
        call = Call("membership", "end_stand_in", {"person": person})
        [receipt] = self.ledger.settle(self.ledger.transaction("bank-a", call, keys=keys("bank-a")))
        known = self.stand_ins.pop(person, None)
        assert receipt.calls[0].code == ("ok" if known else "stand_in_not_found")

    @rule(
        officers=st.sampled_from([None, 1, 2]),
        names=st.lists(st.sampled_from(PEOPLE), max_size=5, unique=True),
    )
    def change_tier(self, officers: int | None, names: list[str]) -> None:
        if officers is None and self.officers is None:
            return
        call = tier(officers) if officers else Call("membership", "remove_tier", {"name": "large"})
        signers = [*keys("bank-a"), *self.signatures(names)]
        may = self.satisfied(self.speaking(signers, self.next_ms), self.next_ms)
        now_ms = self.next_ms
        taken = self.send("bank-a", [call], signers, may)
        if taken and (not officers or self.distinct((*OFFICERS, *RISK), now_ms)):
            self.officers = officers

    @rule(
        person=st.sampled_from(PEOPLE),
        as_=st.none() | st.sampled_from(PEOPLE),
        names=st.lists(st.sampled_from(PEOPLE), max_size=5, unique=True),
    )
    def give_key(self, person: str, as_: str | None, names: list[str]) -> None:
        """The root gives somebody another key: a new one of its own, or one that somebody else has."""
        self.fresh += 1
        key = key_of("fresh", self.fresh) if as_ is None else self.people[as_].key
        signers = [*keys("bank-a"), *self.signatures(names)]
        seated = self.officers is not None and person in (*OFFICERS, *RISK)
        may = not seated or self.satisfied(self.speaking(signers, self.next_ms), self.next_ms)
        call = Call("membership", "set_policy", {"principal": person, "threshold": 1, "keys": [key]})
        refused_key = self.anothers(person, frozenset((key,)), self.next_ms)
        if self.send("bank-a", [call], signers, may) and not refused_key:
            self.people[person].key, self.people[person].former = key, []

    @rule(ms=st.sampled_from([3_000, 2 * HOUR_MS]))
    def time_passes(self, ms: int) -> None:
        self.ledger.now_ms += ms

    @rule(names=st.lists(st.sampled_from(PEOPLE), max_size=5, unique=True))
    def wait(self, names: list[str]) -> None:
        """A payment waits, and is looked at again and again."""
        signers = [*keys(TREASURY), *self.signatures(names)]
        until_ms = self.ledger.now_ms + 20 * HOUR_MS
        [call] = pay(self.ledger, LIMIT + 1)
        self.waiting.append(self.ledger.transaction(TREASURY, call, keys=signers, expires_at_ms=until_ms))

    @invariant()
    def what_is_known_of_tiers_is_what_is_found_by_who_knows_nothing(self) -> None:
        for item in self.waiting[-4:]:
            for ahead_ms in (1_000, 1, 4_999, HOUR_MS, 2_000):
                now_ms = self.ledger.now_ms + ahead_ms
                found = unapproved(Membership, Overlay(self.ledger.executor.view), item, now_ms)
                assert self.ledger.executor.obstacle(item, now_ms) in (found, "expired")


TestTierMachine = TierMachine.TestCase
TestTierMachine.settings = settings(
    max_examples=12,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
