"""The contracts for people and programs: what the ledger has, and what of it this node ships."""

from collections.abc import Sequence

import msgspec

from contracts.engine import ContractDescription, Engine
from contracts.engine import MethodDescription as Described
from contracts.lifecycle import Version
from node.client.answers import CodeDescription, ContractAnswer, MethodDescription, ShippedVersion


def describe(engine: Engine, rows: Sequence[Version]) -> tuple[ContractAnswer, ...]:
    """Return every contract that the ledger has or this node ships, the ledger's first, in its order.

    `rows` are the ledger's, `engine` made for them.
    """
    known = {item.name: item for item in engine.describe()}
    shipped: dict[str, list[int]] = {}
    for name, version in engine.shipped:
        shipped.setdefault(name, []).append(version)
    by_name = {row.contract: row for row in rows}
    names = dict.fromkeys((*by_name, *known, *shipped))
    return tuple(
        _answer(engine, name, known.get(name), by_name.get(name), sorted(shipped.get(name, []))) for name in names
    )


def _answer(
    engine: Engine, name: str, known: ContractDescription | None, row: Version | None, versions: Sequence[int]
) -> ContractAnswer:
    here = [ShippedVersion(version, _source(engine, name, version)) for version in versions]
    version = row.version if row is not None else known.version if known is not None else 0
    return ContractAnswer(
        name=name,
        version=version,
        doc="" if known is None else known.doc,
        calls=() if known is None else _methods(known.calls),
        queries=() if known is None else _methods(known.queries),
        codes=()
        if known is None
        else tuple(CodeDescription(**msgspec.structs.asdict(code)) for code in known.codes),
        source=_source(engine, name, version),
        active=known is not None if row is None else row.active,
        since=0 if row is None else row.since,
        shipped=tuple(here),
        uses=() if known is None else known.uses,
    )


def _methods(known: Sequence[Described]) -> tuple[MethodDescription, ...]:
    return tuple(MethodDescription(**msgspec.structs.asdict(method)) for method in known)


def _source(engine: Engine, name: str, version: int) -> str:
    found = engine.source_digest(name, version)
    return "" if found is None else found.hex()
