"""Several versions of one contract in one engine: which runs, what another contract reaches, what a migration may
do.
"""

from typing import Any

import pytest

from contracts.engine import Active, Engine
from contracts.loader import load_source
from contracts.sdk import CallError, Contract
from contracts.testkit import CallFailed, World, reverts

SAFE_1 = """
from contracts.sdk import Context, Contract, Event, Map, call, invariant, query

class Safe(Contract):
    gold: Map[str, int] = Map()

    @call
    def put(self, ctx: Context, name: str, amount: int) -> None:
        self.gold[name] = (self.gold.get(name) or 0) + amount

    @query
    def held(self, name: str) -> int:
        return self.gold.get(name) or 0
"""
SAFE_2 = """
from contracts.versions_safe import Safe as Former
from contracts.sdk import Context, Contract, Event, Map, call, invariant, migration, query, require

class Moved(Event):
    name: str

class Safe(Contract):
    version = 2
    gold: Map[str, int] = Map()
    silver: Map[str, int] = Map()

    @migration
    def begin(self, ctx: Context) -> None:
        for name, amount in ctx.former(Former).gold.scan():
            MIGRATE

    @call
    def put(self, ctx: Context, amount: int, name: str) -> None:
        self.silver[name] = (self.silver.get(name) or 0) + amount

    @query
    def held(self, name: str) -> int:
        return self.silver.get(name) or 0

    @invariant
    def nothing_is_gold(self) -> bool:
        return not self.gold.scan(limit=None)
"""
MOVE = "self.silver[name] = amount\n            del self.gold[name]"
USER = """
from contracts.versions_safe import Safe
from contracts.sdk import Context, Contract, call

class User(Contract):
    uses = (Safe.put,)

    @call
    def give(self, ctx: Context, name: str) -> None:
        ctx.call(Safe.put, name, 7)
"""


def made(name: str, source: str) -> type[Contract]:
    """The contract that the source declares first."""
    module = load_source(f"contracts.{name}", source)
    found: Any = module.User if "class User" in source else module.Safe
    contract: type[Contract] = found
    return contract


Safe1 = made("versions_safe", SAFE_1)
Safe2 = made("versions_safe_2", SAFE_2.replace("MIGRATE", MOVE))
User = made("versions_user", USER)


def test_who_uses_a_contract_reaches_the_version_that_is_active() -> None:
    world = World((Safe1, User))
    world.as_("bank-a").call("user.give", name="a")
    world.upgrade(Safe2)
    assert world.query("safe.held", name="a") == 7
    # Its arguments have another order there, and still mean what the caller was written for.
    world.as_("bank-a").call("user.give", name="a")
    assert world.query("safe.held", name="a") == 14


def test_a_migration_that_leaves_an_invariant_broken_fails_the_test() -> None:
    world = World((Safe1,))
    world.as_("bank-a").call("safe.put", name="a", amount=1)
    with pytest.raises(AssertionError, match="nothing_is_gold"):
        world.upgrade(made("versions_safe_2b", SAFE_2.replace("MIGRATE", "self.silver[name] = amount")))


@pytest.mark.parametrize(
    ("does", "code"),
    [
        ("require(False, 'no_more')", "no_more"),
        ("ctx.emit(Moved(name))", "contract_fault"),
        ("ctx.former(Safe)", "contract_fault"),
        ("[0 for _ in range(200_000)]", "limit_exceeded"),
    ],
)
def test_what_a_migration_must_not_do(does: str, code: str) -> None:
    world = World((Safe1,))
    world.as_("bank-a").call("safe.put", name="a", amount=1)
    with pytest.raises(CallFailed) as failed:
        world.upgrade(made("versions_safe_2c", SAFE_2.replace("MIGRATE", does)))
    assert failed.value.outcome.code == code


def test_only_a_migration_reaches_the_former_version() -> None:
    put = "        self.silver[name] = (self"
    source = SAFE_2.replace("MIGRATE", MOVE).replace(put, "        ctx.former(Former)\n" + put)
    world = World((made("versions_safe_2d", source),))
    with reverts("contract_fault"):
        world.as_("bank-a").call("safe.put", name="a", amount=1)


def test_an_engine_runs_what_is_active_and_answers_for_what_no_longer_is() -> None:
    shipped = Engine((Safe1, User), (Safe2,))
    second = shipped.with_active([Active("safe", 2, True), Active("user", 1, True)])
    assert second.contracts == (Safe2, User)
    assert shipped.with_active([Active("safe", 2, True), Active("user", 1, True)]) is second
    assert second.contracts_hash() != shipped.contracts_hash() == Engine((Safe1, User)).contracts_hash()
    stopped = shipped.with_active([Active("safe", 1, False), Active("user", 1, True)])
    assert stopped.unmet_uses() == ["user uses Safe.put"]
    with pytest.raises(CallError, match="not active any more"):
        stopped.find("safe", "put", "call")
    assert [item.name for item in stopped.describe()] == ["user", "safe"]
    assert [item.calls for item in stopped.describe() if item.name == "safe"] == [()]


def test_a_version_is_shipped_once() -> None:
    with pytest.raises(TypeError, match="shipped twice"):
        Engine((Safe1,), (made("versions_safe_3", SAFE_1),))


def test_a_digest_tells_versions_and_what_they_import_apart() -> None:
    shipped = Engine((Safe1,), (Safe2,))
    digests = [shipped.source_digest("safe", version) for version in (1, 2)]
    assert None not in digests
    assert digests[0] != digests[1]
    assert shipped.source_digest("safe", 3) is None
