"""One call in, one outcome out: arguments judged, failures undone, contracts reached only as declared."""

from types import GenericAlias, ModuleType
from typing import Any

import msgspec
import pytest

from consensus.codec import encode
from contracts import CONTRACTS
from contracts.engine import CallError, Engine, Environment, Outcome
from contracts.loader import load_source
from contracts.sdk import Contract, Event, Map, Value
from contracts.state_keys import encode_key
from contracts.testkit import MemoryState, World, reverts

VAULT = '''
from typing import Literal
from contracts.sdk import (
    Amount, Code, Context, Contract, Event, Item, Map, Value, call, genesis, invariant, query, replace, require,
    scheduled,
)

class Box(Value):
    owner: str
    content: int
    kind: Literal["small", "large"]
    labels: tuple[str, ...]

class Stored(Event):
    box: str
    content: int
    note: str | None
    topics = ("box/{box}", "note/{note}")

class Vault(Contract):
    """Boxes."""
    codes = (Code("box_not_found", "none"), Code("too_much", "full"), Code("no_second", "odd"))
    boxes: Map[str, Box] = Map(missing="box_not_found")
    total: Item[int] = Item()

    @genesis
    def create(self, ctx: Context, start: int = 0) -> None:
        self.total.set(start)

    @call
    def put(self, ctx: Context, box: str, content: Amount, labels: tuple[str, ...] = ()) -> int:
        """Put content into a box."""
        self.boxes[box] = Box(ctx.sender, content, "small", labels)
        self.total.set(self.total.read() + content)
        ctx.emit(Stored(box, content, None))
        require(content < 100, "too_much", "100 at most")
        return self.total.read()

    @call
    def put_later(self, ctx: Context, box: str, content: int, at_ms: int) -> None:
        ctx.schedule(at_ms, Vault.fill, box=box, content=content)

    @scheduled
    def fill(self, ctx: Context, box: str, content: int) -> None:
        require(ctx.sender == "@vault", "no_second")
        self.put(ctx, box, content)

    @call
    def take(self, ctx: Context, box: str) -> None:
        ctx.authorize(self.boxes[box].owner)
        self.total.set(self.total.read() - self.boxes[box].content)
        del self.boxes[box]

    @call
    def spoil(self, ctx: Context, box: str) -> None:
        self.boxes[box] = replace(self.boxes[box], content="text")

    @call
    def swell(self, ctx: Context, box: str) -> None:
        self.boxes[box] = replace(self.boxes[box], content=18446744073709551616)

    @call
    def divide(self, ctx: Context, by: int) -> None:
        self.total.set(10 // by)

    @call
    def reserved(self, ctx: Context) -> None:
        require(False, "ok")

    @query
    def show(self, box: str) -> Box:
        return self.boxes[box]

    @query
    def sneak(self) -> int:
        self.total.set(5)
        return 5

    @query
    def page(self, after: str | None = None, limit: int = 2) -> tuple[str, ...]:
        return tuple([key for key, _ in self.boxes.scan(after=after, limit=limit)])

    @invariant
    def adds_up(self) -> bool:
        return self.total.read() == sum(box.content for _, box in self.boxes.scan(limit=None))
'''

CLIENT = """
from contracts.sdk import Code, Context, Contract, Map, call, require
from contracts.vault import Vault

class Client(Contract):
    uses = (Vault.put,)
    codes = (Code("wanted", "asked for"),)
    seen: Map[str, int] = Map()

    @call
    def store(self, ctx: Context, box: str, content: int, fail: bool = False) -> None:
        self.seen[box] = ctx.call(Vault.put, box, content=content)
        require(not fail, "wanted")

    @call
    def steal(self, ctx: Context, box: str) -> None:
        ctx.call(Vault.take, box)

    @call
    def confuse(self, ctx: Context) -> None:
        ctx.call(Vault.put, box=5, content=1)
"""


@pytest.fixture(scope="module")
def modules() -> tuple[ModuleType, ModuleType]:
    return load_source("contracts.vault", VAULT), load_source("contracts.client", CLIENT)


@pytest.fixture
def world(modules: tuple[ModuleType, ModuleType]) -> World:
    return World((modules[0].Vault, modules[1].Client))


def test_a_call_writes_emits_and_counts(world: World) -> None:
    outcome = world.execute("bank-a", "vault.put", {"box": "a", "content": 5, "labels": ["x"]})
    assert outcome.code == "ok"
    assert outcome.operations > 0
    (event,) = outcome.events
    assert (event.contract, event.name, event.topics) == ("vault", "Stored", ("vault/box/a",))
    assert event.data == {"box": "a", "content": 5, "note": None}
    assert world.query("vault.show", box="a") == {"owner": "bank-a", "content": 5, "kind": "small", "labels": ["x"]}


@pytest.mark.parametrize(
    ("contract", "method", "args", "code"),
    [
        ("nothing", "put", {}, "unknown_contract"),
        ("vault", "nothing", {}, "unknown_method"),
        ("vault", "show", {"box": "a"}, "unknown_method"),
        ("vault", "create", {}, "unknown_method"),
        ("vault", "adds_up", {}, "unknown_method"),
        ("vault", "fill", {"box": "a", "content": 1}, "unknown_method"),
        ("vault", "put", {}, "invalid_arguments"),
        ("vault", "put", {"box": "a", "content": 1, "more": 1}, "invalid_arguments"),
        ("vault", "put", {"box": 1, "content": 1}, "invalid_arguments"),
        ("vault", "put", {"box": "a", "content": "1"}, "invalid_arguments"),
        ("vault", "put", {"box": "a", "content": True}, "invalid_arguments"),
        ("vault", "put", {"box": "a", "content": 1.0}, "invalid_arguments"),
        ("vault", "put", {"box": b"a", "content": 1}, "invalid_arguments"),
        ("vault", "put", {"box": None, "content": 1}, "invalid_arguments"),
        ("vault", "put", {"box": "a", "content": 1, "labels": [1]}, "invalid_arguments"),
    ],
)
def test_what_cannot_be_tried_is_named_alike_before_and_inside_a_block(
    world: World, contract: str, method: str, args: dict[str, Any], code: str
) -> None:
    with pytest.raises(CallError) as refused:
        world.engine.validate(contract, method, args)
    assert refused.value.code == code
    assert world.execute("bank-a", f"{contract}.{method}", args).code == code


def test_a_revert_undoes_writes_and_events_and_tells_its_detail(world: World) -> None:
    world.as_("bank-a").call("vault.put", box="a", content=5)
    before = dict(world.state.data)
    outcome = world.execute("bank-a", "vault.put", {"box": "a", "content": 100})
    assert outcome == Outcome("too_much", operations=outcome.operations, detail="100 at most")
    assert world.state.data == before


@pytest.mark.parametrize("method", ["spoil", "swell"])
def test_a_value_of_another_type_or_size_is_a_fault_when_it_is_put(world: World, method: str) -> None:
    world.as_("bank-a").call("vault.put", box="a", content=5)
    with reverts("contract_fault"):
        world.as_("bank-a").call(f"vault.{method}", box="a")


def test_an_exception_is_a_fault_with_a_reason_for_people(world: World) -> None:
    outcome = world.execute("bank-a", "vault.divide", {"by": 0})
    assert outcome.code == "contract_fault"
    assert "ZeroDivisionError" in outcome.detail


def test_a_contract_cannot_pass_a_reserved_word_off_as_its_code(world: World) -> None:
    with reverts("contract_fault"):
        world.as_("bank-a").call("vault.reserved")


def test_authority_is_the_same_principal_or_the_members_root(world: World) -> None:
    world.as_("bank-a/desk").call("vault.put", box="a", content=5)
    for stranger in ("bank-b", "bank", "bank-a/other", "bank-a/desk2"):
        with reverts("not_authorized"):
            world.as_(stranger).call("vault.take", box="a")
    world.as_("bank-a").call("vault.take", box="a")
    with reverts("box_not_found"):
        world.as_("bank-a").call("vault.take", box="a")


def test_another_contract_is_reached_as_the_contract_and_reverts_together(world: World) -> None:
    world.as_("bank-a").call("client.store", box="a", content=5)
    assert world.query("vault.show", box="a")["owner"] == "@client"
    with reverts("wanted"):
        world.as_("bank-a").call("client.store", box="b", content=5, fail=True)
    with reverts("too_much"):
        world.as_("bank-a").call("client.store", box="b", content=500)


def test_only_listed_methods_are_reached_and_their_arguments_are_judged(world: World) -> None:
    world.as_("bank-a").call("client.store", box="a", content=5)
    with reverts("contract_fault"):
        world.as_("bank-a").call("client.steal", box="a")
    with reverts("invalid_arguments"):
        world.as_("bank-a").call("client.confuse")


def test_a_scheduled_call_runs_in_the_first_block_whose_time_has_come(world: World) -> None:
    world.as_("bank-a").call("vault.put_later", box="a", content=5, at_ms=world.time_ms + 1_000)
    assert world.advance(500) == []
    (outcome,) = world.advance(501)
    assert outcome.code == "ok"
    assert world.query("vault.show", box="a")["owner"] == "@vault"
    assert world.advance(10_000) == []


def test_a_query_writes_nothing_and_pages_in_order(world: World) -> None:
    for box in ("b", "a", "c"):
        world.as_("bank-a").call("vault.put", box=box, content=1)
    assert world.query("vault.page") == ["a", "b"]
    assert world.query("vault.page", after="b") == ["c"]
    with pytest.raises(CallError, match=r"contract_fault.*writes nothing"):
        world.query("vault.sneak")
    with pytest.raises(CallError, match="invalid_arguments"):
        world.query("vault.show", name="a")
    with pytest.raises(CallError, match="unknown_method"):
        world.query("vault.put", box="a", content=1)


def test_the_test_kit_notices_a_broken_invariant(world: World) -> None:
    world.state.put(encode_key(("vault", "total")), 77)
    with pytest.raises(AssertionError, match=r"vault\.adds_up"):
        world.as_("bank-a").call("vault.put", box="a", content=1)


def test_genesis_arguments_are_judged(modules: tuple[ModuleType, ModuleType]) -> None:
    contracts = (modules[0].Vault,)
    for arguments, code in (
        ({"vault": {"start": "1"}}, "invalid_arguments"),
        ({"vault": {"other": 1}}, "invalid_arguments"),
        ({"other": {}}, "unknown_contract"),
    ):
        with pytest.raises(CallError, match=code):
            World(contracts, arguments)


class BrokenState(MemoryState):
    """A disk that fails."""

    def get(self, key: bytes, type_: Any) -> Any:
        raise OSError("disk")


def test_a_failing_disk_is_no_outcome(modules: tuple[ModuleType, ModuleType]) -> None:
    engine = Engine((modules[0].Vault,))
    env = Environment("n", 1, 1, "bank-a", b"", encode)
    with pytest.raises(OSError, match="disk"):
        engine.execute(BrokenState(), env, "vault", "take", {"box": "a"}, 1_000)


class CachedState(MemoryState):
    """A state that already has every value at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[bytes, Any] = {}

    def get(self, key: bytes, type_: Any) -> Any:
        if key not in self.values:
            self.values[key] = super().get(key, type_)
        return self.values[key]

    def put(self, key: bytes, value: object) -> None:
        super().put(key, value)
        self.values[key] = value


def test_charges_and_outcomes_do_not_depend_on_caches(modules: tuple[ModuleType, ModuleType]) -> None:
    engine = Engine((modules[0].Vault,))
    env = Environment("n", 1, 1, "bank-a", b"", encode)
    outcomes = []
    for state in (MemoryState(), CachedState()):
        engine.genesis(state, env, {})
        calls: list[tuple[str, dict[str, Any]]] = [
            ("put", {"box": "a", "content": 5}),
            ("put", {"box": "a", "content": 6}),
            ("take", {"box": "a"}),
        ]
        outcomes.append([engine.execute(state, env, "vault", name, args, 10_000) for name, args in calls])
    assert outcomes[0] == outcomes[1]


def test_the_description_carries_schemas_and_codes(world: World) -> None:
    vault = world.engine.describe()[0]
    put = next(item for item in vault.calls if item.name == "put")
    assert put.doc == "Put content into a box."
    assert put.arguments["required"] == ["box", "content"]
    assert put.arguments["properties"]["content"]["minimum"] == 1
    assert put.arguments["additionalProperties"] is False
    assert [item.name for item in vault.queries] == ["show", "sneak", "page"]
    assert "fill" not in [item.name for item in vault.calls]
    assert "not_authorized" in [item.code for item in vault.codes]
    msgspec.json.encode(world.engine.describe())


def test_the_contracts_hash_names_sources_versions_and_order() -> None:
    def digest(source: str) -> bytes:
        return Engine((load_source("contracts.vault", source).Vault,)).contracts_hash()

    original = digest(VAULT)
    assert digest(VAULT) == original
    assert digest(VAULT.replace("content < 100", "content < 101")) != original
    assert Engine(CONTRACTS).contracts_hash() != Engine(CONTRACTS[::-1]).contracts_hash()
    assert "contracts.settlement" in Engine(CONTRACTS).module_digests
    load_source("contracts.vault", VAULT)


def test_an_imported_module_that_is_no_contract_is_part_of_the_hash() -> None:
    load_source("contracts.rates", "RATE = 3\n")
    source = "from contracts.rates import RATE\nfrom contracts.sdk import Contract\nclass A(Contract):\n    pass\n"
    first = Engine((load_source("contracts.user", source).A,)).contracts_hash()
    load_source("contracts.rates", "RATE = 4\n")
    assert Engine((load_source("contracts.user", source).A,)).contracts_hash() != first


def test_declarations_that_cannot_work_are_refused_when_the_class_is_made() -> None:
    class Loose(msgspec.Struct):
        field: int

    class Node(Value):
        inner: "Node | None"

    for hint in (float, dict[str, int], list[int], Loose, Any, set[int]):
        with pytest.raises(TypeError):
            type("Bad", (Contract,), {"__annotations__": {"rows": GenericAlias(Map, (str, hint))}, "rows": Map()})

    class Elsewhere(Contract):
        pass

    class Lost(Event):
        name: str
        topics = ("name/{nobody}",)

    with pytest.raises(TypeError, match="topic"):
        Engine((Elsewhere,)).emitter(Elsewhere, Lost)
