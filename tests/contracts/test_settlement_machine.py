"""Settlement against a model of a few lines: any sequence of calls has the outcome and the balances it predicts.

The world checks settlement's own invariants (conservation, cover, holds) after every call.
"""

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from contracts.sdk import AMOUNT_MAX
from contracts.settlement import Settlement
from contracts.testkit import World

OWNERS = {"A": "bank-a", "B": "bank-b", "C": "bank-b/desk"}
ACCOUNT = st.sampled_from(sorted(OWNERS))
AMOUNT = st.integers(1, 60) | st.sampled_from([0, -1, AMOUNT_MAX, AMOUNT_MAX + 1])
SENDER = st.sampled_from(["bank-a", "bank-b", "bank-b/desk", "mint"])
NUMBER = st.none() | st.integers(1, 6)
HOLD = st.integers(1, 6)


def uetr(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def acts_for(sender: str, owner: str) -> bool:
    return sender == owner or owner.startswith(sender + "/")


class SettlementMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        currencies = [{"code": "EUR", "exponent": 2, "issuer": "mint"}]
        self.world = World((Settlement,), {"settlement": {"currencies": currencies}})
        for account, owner in OWNERS.items():
            self.world.as_(owner).call(Settlement.open_account, account=account, owner=owner, currency="EUR")
        self.balance = dict.fromkeys(OWNERS, 0)
        self.held = dict.fromkeys(OWNERS, 0)
        self.entries = dict.fromkeys(OWNERS, 0)
        self.issued = 0
        self.used: dict[int, tuple[Any, ...]] = {}
        self.holds: dict[int, dict[str, Any]] = {}

    def send(self, sender: str, method: Any, expected: str, args: dict[str, Any]) -> None:
        self.expire(self.world.time_ms + 1)
        outcome = self.world.execute(sender, method, args)
        assert outcome.code == expected, (outcome, args)

    def expire(self, now_ms: int) -> None:
        for hold in self.holds.values():
            if hold["at_ms"] <= now_ms:
                self.held[hold["debtor"]] -= hold["rest"]
                hold["rest"] = 0

    def move(self, debtor: str | None, creditor: str | None, amount: int) -> None:
        for account, change in ((debtor, -amount), (creditor, amount)):
            if account is not None:
                self.balance[account] += change
                self.entries[account] += 1

    def judge(self, checks: list[tuple[bool, str]]) -> str:
        return next((code for holds, code in checks if not holds), "ok")

    def amount_checks(self, amount: int) -> list[tuple[bool, str]]:
        return [(amount > 0, "amount_not_positive"), (amount <= AMOUNT_MAX, "amount_too_large")]

    @rule(sender=SENDER, account=ACCOUNT, amount=AMOUNT)
    def issue(self, sender: str, account: str, amount: int) -> None:
        code = self.judge(
            [
                *self.amount_checks(amount),
                (sender == "mint", "not_authorized"),
                (self.issued + amount <= AMOUNT_MAX, "supply_overflow"),
            ]
        )
        self.send(sender, Settlement.issue, code, {"account": account, "amount": amount})
        if code == "ok":
            self.issued += amount
            self.move(None, account, amount)

    @rule(sender=SENDER, debtor=ACCOUNT, creditor=ACCOUNT, amount=AMOUNT, number=NUMBER)
    def transfer(self, sender: str, debtor: str, creditor: str, amount: int, number: int | None) -> None:
        content = ("transfer", debtor, creditor, amount)
        self.expire(self.world.time_ms + 1)
        known = self.used.get(number) if number is not None else None
        checks = [*self.amount_checks(amount), (acts_for(sender, OWNERS[debtor]), "not_authorized")]
        if known is None:
            checks.append((debtor != creditor, "same_account"))
            checks.append((self.balance[debtor] - self.held[debtor] >= amount, "insufficient_funds"))
        else:
            checks.append((known == content, "uetr_conflict"))
        code = self.judge(checks)
        args: dict[str, Any] = {"debtor": debtor, "creditor": creditor, "amount": amount}
        if number is not None:
            args["uetr"] = uetr(number)
        self.send(sender, Settlement.transfer, code, args)
        if code == "ok" and known is None:
            self.move(debtor, creditor, amount)
            if number is not None:
                self.used[number] = content

    @rule(sender=SENDER, debtor=ACCOUNT, creditor=ACCOUNT, amount=AMOUNT, number=HOLD, ms=st.integers(2, 30))
    def hold(self, sender: str, debtor: str, creditor: str, amount: int, number: int, ms: int) -> None:
        at_ms = self.world.time_ms + ms
        content = ("hold", debtor, creditor, amount, at_ms)
        self.expire(self.world.time_ms + 1)
        known = self.used.get(number)
        checks = [*self.amount_checks(amount), (acts_for(sender, OWNERS[debtor]), "not_authorized")]
        if known is None:
            checks.append((debtor != creditor, "same_account"))
            checks.append((self.balance[debtor] - self.held[debtor] >= amount, "insufficient_funds"))
        else:
            checks.append((known == content, "uetr_conflict"))
        code = self.judge(checks)
        args = {
            "uetr": uetr(number),
            "debtor": debtor,
            "creditor": creditor,
            "amount": amount,
            "expires_at_ms": at_ms,
        }
        self.send(sender, Settlement.hold, code, args)
        if code == "ok" and known is None:
            self.held[debtor] += amount
            self.used[number] = content
            self.holds[number] = {"debtor": debtor, "creditor": creditor, "rest": amount, "at_ms": at_ms}

    @rule(sender=SENDER, number=HOLD, amount=AMOUNT, final=st.booleans())
    def capture(self, sender: str, number: int, amount: int, final: bool) -> None:
        self.expire(self.world.time_ms + 1)
        hold = self.holds.get(number)
        checks = [*self.amount_checks(amount), (hold is not None, "hold_not_found")]
        if hold is not None:
            checks.append((acts_for(sender, OWNERS[hold["creditor"]]), "not_authorized"))
            checks.append((hold["rest"] > 0, "hold_not_open"))
            checks.append((amount <= hold["rest"], "exceeds_hold"))
        code = self.judge(checks)
        self.send(sender, Settlement.capture, code, {"uetr": uetr(number), "amount": amount, "final": final})
        if code == "ok" and hold is not None:
            freed = hold["rest"] if final else amount
            self.held[hold["debtor"]] -= freed
            hold["rest"] -= freed
            self.move(hold["debtor"], hold["creditor"], amount)

    @rule(sender=SENDER, number=HOLD)
    def release(self, sender: str, number: int) -> None:
        self.expire(self.world.time_ms + 1)
        hold = self.holds.get(number)
        checks = [(hold is not None, "hold_not_found")]
        if hold is not None and not acts_for(sender, OWNERS[hold["creditor"]]):
            checks.append((acts_for(sender, OWNERS[hold["debtor"]]), "not_authorized"))
            checks.append((self.world.time_ms + 1 >= hold["at_ms"], "hold_not_expired"))
        if hold is not None:
            checks.append((hold["rest"] > 0, "hold_not_open"))
        code = self.judge(checks)
        self.send(sender, Settlement.release, code, {"uetr": uetr(number)})
        if code == "ok" and hold is not None:
            self.held[hold["debtor"]] -= hold["rest"]
            hold["rest"] = 0

    @rule(ms=st.integers(1, 40))
    def wait(self, ms: int) -> None:
        self.world.advance(ms)
        self.expire(self.world.time_ms)

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        for account in OWNERS:
            found = self.world.query(Settlement.account, account=account)
            expected = (self.balance[account], self.held[account], self.entries[account])
            assert (found["balance"], found["held"], found["entries"]) == expected
            statement = self.world.query(Settlement.statement, account=account, limit=500)
            assert statement["closing"] == self.balance[account]
            assert len(statement["entries"]) == self.entries[account]


TestSettlementMachine = SettlementMachine.TestCase
TestSettlementMachine.settings = settings(
    max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
