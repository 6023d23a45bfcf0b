"""A ledger in memory for testing contracts: the real engine, the real rules, no node.

    world = World((Settlement,), genesis={...})
    world.as_("bank-a").call(Settlement.transfer, debtor="A", creditor="B", amount=5)
    with reverts("insufficient_funds"):
        world.as_("bank-a").call(Settlement.transfer, debtor="A", creditor="B", amount=10**12)

Every call is a block of its own. After each one, all invariants are checked. Values go through their bytes on
every write and every read, so nothing that a node would refuse passes here.
"""

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import msgspec

from contracts.brake import Brake, stopped_at
from contracts.engine import Engine, Environment, EventRecord, Outcome, Scheduled, Session
from contracts.sdk import NO_BRAKES, SDK_CODES, Brakes, Contract
from contracts.storage import WrongType

T = TypeVar("T")

START_MS: Final = 1_700_000_000_000
OPERATIONS_MAX: Final = 100_000

_encode: Final = msgspec.msgpack.Encoder(order="sorted").encode


class CallFailed(AssertionError):
    """A call of the world did not end `ok`; `outcome` says how."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        super().__init__(f"{outcome.code}: {outcome.detail}" if outcome.detail else outcome.code)


class MemoryState:
    """State as encoded bytes in order, with savepoints."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []
        self._undo: list[tuple[bytes, bytes | None]] = []

    def get(self, key: bytes, type_: type[T]) -> T | None:
        """Return the value under `key`, decoded anew."""
        data = self.data.get(key)
        return None if data is None else _decode(data, type_)

    def put(self, key: bytes, value: object) -> None:
        """Set the value under `key`."""
        self._undo.append((key, self.data.get(key)))
        self._set(key, _encode(value))

    def delete(self, key: bytes) -> None:
        """Remove `key`."""
        self._undo.append((key, self.data.get(key)))
        self._set(key, None)

    def scan(self, start: bytes, end: bytes, type_: type[T], limit: int) -> list[tuple[bytes, T]]:
        """Return up to `limit` pairs with start <= key < end, ascending."""
        low = bisect.bisect_left(self._keys, start)
        high = bisect.bisect_left(self._keys, end)
        return [(key, _decode(self.data[key], type_)) for key in self._keys[low : min(high, low + limit)]]

    def savepoint(self) -> int:
        """Return a mark for `rollback`."""
        return len(self._undo)

    def rollback(self, savepoint: int) -> None:
        """Undo every write since the mark."""
        while len(self._undo) > savepoint:
            self._set(*self._undo.pop())

    def _set(self, key: bytes, data: bytes | None) -> None:
        position = bisect.bisect_left(self._keys, key)
        present = position < len(self._keys) and self._keys[position] == key
        if data is None:
            if present:
                del self._keys[position]
                del self.data[key]
            return
        if not present:
            self._keys.insert(position, key)
        self.data[key] = data


def _decode(data: bytes, type_: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(data, type=type_, strict=True)
    except msgspec.ValidationError as error:
        raise WrongType(str(error)) from error


class World:
    """A network of one: contracts, their state, time, and the events so far."""

    def __init__(
        self,
        contracts: Sequence[type[Contract]],
        genesis: Mapping[str, dict[str, Any]] | None = None,
        *,
        operations_max: int = OPERATIONS_MAX,
        network: str = "testkit",
    ) -> None:
        self.engine = Engine(contracts)
        self.state = MemoryState()
        self.time_ms = START_MS
        self.height = 0
        self.network = network
        self.operations_max = operations_max
        self.log: list[tuple[int, EventRecord]] = []
        self.due: list[tuple[int, int, Scheduled]] = []
        self._scheduled = 0
        self._brakes: Brakes = NO_BRAKES
        self.engine.genesis(self.state, self._environment("@genesis"), genesis or {})
        self._check()

    def as_(self, principal: str) -> "Actor":
        """Return who calls as `principal`."""
        return Actor(self, principal)

    def query(self, method: Callable[..., Any] | str, /, **args: Any) -> Any:
        """Return the answer of a query (a method, or its name "settlement.balance") as plain values."""
        contract, name = self._name(method)
        env = self._environment("@query")
        return self.engine.query(self.state, self, env, contract, name, args, self.operations_max)

    def advance(self, ms: int) -> list[Outcome]:
        """Let `ms` milliseconds pass and run, in a new block, the scheduled calls whose time has come."""
        return self._block(ms)

    def execute(self, sender: str, method: Callable[..., Any] | str, args: dict[str, Any]) -> Outcome:
        """Return the outcome of a call in a new block, whatever its code; invariants hold afterwards."""
        self._block(1)
        return self._run(sender, *self._name(method), args)

    def upgrade(self, contract: type[Contract]) -> None:
        """`contract` is active in the place of the version before, after its migration; CallFailed if that
        fails.
        """
        former = self.engine.contracts
        active = [contract if item.name == contract.name else item for item in former]
        self.engine = Engine(active, former)
        session = Session(self.engine, self.state)
        outcome = session.begin_version(
            self._environment("@governance"), contract.name, "migration", self.operations_max
        )
        if outcome.code != "ok":
            raise CallFailed(outcome)
        self._check()

    def events(self, topic: str, from_height: int, to_height: int, limit: int) -> list[tuple[int, EventRecord]]:
        """Return up to `limit` (height, event) with `topic`, as a node's index does."""
        found = [
            (height, event)
            for height, event in self.log
            if topic in event.topics and from_height <= height <= to_height
        ]
        return found[:limit]

    def _block(self, ms: int) -> list[Outcome]:
        self.height += 1
        self.time_ms += ms
        # As a node does it: what holds in a block are the brakes in the state before it.
        self._brakes = stopped_at(Brake.read_on(self.state), self.time_ms)
        due = sorted(item for item in self.due if item[0] <= self.time_ms)
        self.due = [item for item in self.due if item[0] > self.time_ms]
        outcomes = [self._run(f"@{item.contract}", item.contract, item.method, item.args) for _, _, item in due]
        for outcome, (_, _, item) in zip(outcomes, due, strict=True):
            if outcome.code == "braked" and self._brakes:
                self._scheduled += 1
                self.due.append((min(self._brakes.values()), self._scheduled, item))
        return outcomes

    def _run(self, sender: str, contract: str, method: str, args: dict[str, Any]) -> Outcome:
        before = dict(self.state.data)
        outcome = self.engine.execute(
            self.state, self._environment(sender), contract, method, args, self.operations_max
        )
        if outcome.code == "ok":
            self.log.extend((self.height, event) for event in outcome.events)
            for item in outcome.scheduled:
                self._scheduled += 1
                self.due.append((item.at_ms, self._scheduled, item))
        else:
            assert self.state.data == before, f"{contract}.{method} failed but left writes behind"
            self._check_code(contract, outcome.code)
        self._check()
        return outcome

    def _check(self) -> None:
        broken = self.engine.check_invariants(self.state, self._environment("@invariant"))
        assert not broken, f"broken invariants: {', '.join(broken)}"

    def _check_code(self, contract: str, code: str) -> None:
        known = [item.code for active in self.engine.contracts for item in (*SDK_CODES, *active.codes)]
        known += ["contract_fault", "limit_exceeded", "unknown_contract", "unknown_method", "invalid_arguments"]
        assert code in known, f"{contract} answered {code!r}, which no contract declares in `codes`"

    def _environment(self, sender: str) -> Environment:
        tx_id = self.height.to_bytes(32, "big")
        return Environment(self.network, self.height, self.time_ms, sender, tx_id, _encode, self._brakes)

    def _name(self, method: Callable[..., Any] | str) -> tuple[str, str]:
        if isinstance(method, str):
            contract, _, name = method.partition(".")
            return contract, name
        for active in self.engine.contracts:
            for declared in active.methods.values():
                if declared.function is method:
                    return active.name, declared.name
        raise AssertionError(f"{method!r} is no method of this world's contracts")


class Actor:
    """A principal who calls."""

    def __init__(self, world: World, principal: str) -> None:
        self.world = world
        self.principal = principal

    def call(self, method: Callable[..., Any] | str, /, **args: Any) -> tuple[EventRecord, ...]:
        """Return the events of the call, in a new block; raise CallFailed when its outcome is not `ok`."""
        outcome = self.world.execute(self.principal, method, args)
        if outcome.code != "ok":
            raise CallFailed(outcome)
        return outcome.events


@contextmanager
def reverts(code: str) -> Iterator[None]:
    """Pass when the block's call ends with `code`; fail when it ends otherwise or succeeds."""
    try:
        yield
    except CallFailed as failed:
        if failed.outcome.code != code:
            raise AssertionError(f"expected {code}, got {failed}") from failed
    else:
        raise AssertionError(f"expected {code}, but the call succeeded")
