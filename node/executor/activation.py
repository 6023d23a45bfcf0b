"""At the end of a block: what the members decided about a contract, once its height and readiness have come. Pure.

Invariants. What `Lifecycle.versions` says after a block executes the next one, so a change is whole in one block or
is not there at all: its migration runs here, within the operations of a block, and if it fails everything is as it
was and the proposal is void. A node that lacks the version, or has other bytes of it, does not come past this block
by guessing: it builds no such block, refuses one that is proposed, and applies a decided one only if it has the
version and comes to the certified roots.

Why not in a transaction: whatever stood behind it in the block would find the new state under the old code. And so
no receipt stands for it; `governance.announce` tells of it in the next block.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from contracts.engine import Active, CallError, Engine, Environment, Outcome, Scheduled, Session
from contracts.lifecycle import CORE, Founding, Lifecycle, Plan, Version
from contracts.sdk import Contract
from node.errors import InvalidBlock
from node.state import Overlay

GOVERNANCE, CARRY_OUT = "governance", "carry_out"
LIFECYCLE = "lifecycle"


class ActiveCode(NamedTuple):
    """What executes on a state: the rows that say it, the engine, and what of it this node does not have.

    `lacking` is not shipped here, or not with the bytes that were decided on; without what is `absent` no block can
    be executed at all.
    """

    rows: tuple[Version, ...]
    engine: Engine
    lacking: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


def founding(engine: Engine, arguments: Mapping[str, dict[str, Any]]) -> tuple[Engine, dict[str, dict[str, Any]]]:
    """Return the engine that makes genesis, and its arguments with every version that is active then.

    That is what `engine` begins with, but for the versions that the network definition names. Raise CallError for
    names that cannot be read, or are not shipped.
    """
    if LIFECYCLE not in [contract.name for contract in engine.contracts]:
        return engine, dict(arguments)
    given = arguments.get(LIFECYCLE, {})
    rows = {contract.name: contract.version for contract in engine.contracts}
    try:
        named = msgspec.convert(given.get("founding", ()), tuple[Founding, ...], strict=True)
    except msgspec.ValidationError as error:
        raise CallError("invalid_arguments", f"{LIFECYCLE}: founding: {error}") from error
    for item in named:
        core = item.contract in CORE and rows.get(item.contract) != item.version
        if core or (item.contract, item.version) not in engine.shipped:
            raise CallError("unknown_contract", f"no {item.contract} {item.version} to begin with is shipped")
        rows[item.contract] = item.version
    whole = [{"contract": name, "version": version} for name, version in rows.items()]
    filled = {**arguments, LIFECYCLE: {**given, "founding": whole}}
    return engine.with_active([Active(name, version, True) for name, version in rows.items()]), filled


def active_engine(engine: Engine, state: Overlay) -> Engine:
    """Return the engine that executes the block on `state`, made of what `engine` ships."""
    return _engine_of(engine, Lifecycle.read_versions(state))


def former_engine(engine: Engine, state: Overlay) -> Engine | None:
    """Return the engine before the last change of a contract; None: there was none."""
    rows = Lifecycle.read_previous(state)
    return _engine_of(engine, rows) if rows else None


def active_code(engine: Engine, state: Overlay, known: ActiveCode) -> ActiveCode:
    """Return what executes the block on `state`; `known`, what did the one before, where nothing has changed."""
    rows = Lifecycle.read_versions(state)
    if rows == known.rows:
        return known
    lacking: list[str] = []
    for row in rows:
        source = engine.source_digest(row.contract, row.version)
        if row.active and not _fits(row, source):
            how = "not here" if source is None else "other bytes here"
            lacking.append(f"{row.contract} {row.version} ({how})")
    absent = [
        f"{row.contract} {row.version}"
        for row in rows
        if row.active and (row.contract, row.version) not in engine.shipped
    ]
    return ActiveCode(rows, _engine_of(engine, rows), tuple(lacking), tuple(absent))


def carry_out(
    session: Session, engine: Engine, state: Overlay, env: Environment, operations: tuple[int, int], decided: bool
) -> tuple[Scheduled, ...]:
    """Make the first decided change that is due after the block of `env`, if any; return what is to be called
    later.

    `operations`: of one call, and of a migration. Raise InvalidBlock (`contract_not_here`) where the version that
    it needs is not shipped, or unless `decided` not with the bytes that were decided on.
    """
    before = Lifecycle.read_versions(state)
    for plan in Lifecycle.read_plans(state):
        if plan.target.at_height > env.height + 1:
            continue
        savepoint = state.savepoint()
        outcome = session.execute(env, GOVERNANCE, CARRY_OUT, {"proposal": plan.proposal}, operations[0])
        after = Lifecycle.read_versions(state)
        if outcome.code != "ok":
            continue
        if after != before:
            why_not = _begin(engine, state, env, plan, before, operations[1], decided)
            if why_not:
                state.rollback(savepoint)
                arguments = {"proposal": plan.proposal, **why_not}
                outcome = session.execute(env, GOVERNANCE, CARRY_OUT, arguments, operations[0])
        return outcome.scheduled
    return ()


def _begin(
    engine: Engine,
    state: Overlay,
    env: Environment,
    plan: Plan,
    before: Sequence[Version],
    operations_max: int,
    decided: bool,
) -> dict[str, Any]:
    """The state is that of the new version; or return why not, as `governance.carry_out` takes it."""
    name, version = plan.contract, plan.target.version
    rows = Lifecycle.read_versions(state)
    row = next(row for row in rows if row.contract == name)
    if row.active:
        source = engine.source_digest(name, version)
        if source is None or not (decided or _fits(row, source)):
            how = "not here" if source is None else "here with other bytes"
            raise InvalidBlock(
                "contract_not_here", f"block {env.height} makes {name} {version} active, which is {how}"
            )
    now = _engine_of(engine, rows)
    if unmet := now.unmet_uses():
        return {"unmet": unmet[0]}
    known = next((item.version for item in before if item.contract == name), 0)
    if not row.active or known == version:
        return {}
    code = _start(now, state, env, name, known, operations_max).code
    return {} if code == "ok" else {"failed": code}


def _start(engine: Engine, state: Overlay, env: Environment, name: str, known: int, operations_max: int) -> Outcome:
    """Run what the version that `engine` has active does to begin, `known` (0: none) having been there before."""
    return Session(engine, state).begin_version(env, name, "migration" if known else "genesis", operations_max)


def try_version(
    engine: Engine, state: Overlay, env: Environment, contract: type[Contract], operations_max: int
) -> Outcome:
    """Return what came of making `contract` active on `state`, as after the block of `env`, without any decision.

    What the contract was before is in force for the ledger's other rows. For rehearsals alone.
    """
    before = Lifecycle.read_versions(state)
    known = next((row.version for row in before if row.contract == contract.name), 0)
    changed = Version(contract.name, contract.version, b"", env.height + 1, True)
    rows = tuple(changed if row.contract == contract.name else row for row in before)
    state.put(Lifecycle.versions.prefix, rows if known else (*before, changed))
    now = active_engine(engine, state)
    if unmet := now.unmet_uses():
        return Outcome("unknown_contract", detail=f"{unmet[0]}, which is no active call")
    if known == contract.version:
        return Outcome("ok")
    return _start(now, state, env, contract.name, known, operations_max)


def _fits(row: Version, source: bytes | None) -> bool:
    """Whether `source` is what the ledger names; of what was founded it names no bytes."""
    return source is not None and row.source in (b"", source)


def _engine_of(engine: Engine, rows: Sequence[Version]) -> Engine:
    if not rows:
        return engine
    return engine.with_active([Active(row.contract, row.version, row.active) for row in rows])
