"""A contract for people and programs: its documentation, and the JSON Schema of what its methods take."""

from typing import Any

import msgspec

from contracts.sdk import SDK_CODES, Code, Contract


class MethodDescription(msgspec.Struct, frozen=True):
    """One method for people and programs: its documentation and the JSON Schema of its arguments."""

    name: str
    doc: str
    arguments: dict[str, Any]


class ContractDescription(msgspec.Struct, frozen=True):
    """One contract for people and programs; `uses` are the names of the contracts that it calls."""

    name: str
    version: int
    doc: str
    calls: tuple[MethodDescription, ...]
    queries: tuple[MethodDescription, ...]
    codes: tuple[Code, ...]
    uses: tuple[str, ...] = ()


def describe_contract(
    contract: type[Contract], *, callable_too: bool, uses: tuple[str, ...] = ()
) -> ContractDescription:
    """Return the contract with its queries, and with its calls where they can be called."""
    return ContractDescription(
        name=contract.name,
        version=contract.version,
        doc=(contract.__doc__ or "").strip(),
        calls=_describe(contract, "call") if callable_too else (),
        queries=_describe(contract, "query"),
        codes=(*SDK_CODES, *contract.codes),
        uses=uses,
    )


def _describe(contract: type[Contract], kind: str) -> tuple[MethodDescription, ...]:
    return tuple(
        MethodDescription(method.name, method.doc, _schema(method.arguments))
        for method in contract.methods.values()
        if method.kind == kind
    )


def _schema(type_: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON Schema of an object, its reference to itself resolved at the top."""
    schema = _portable(msgspec.json.schema(type_))
    definitions: dict[str, Any] = schema.get("$defs", {})
    top: dict[str, Any] = definitions.pop(schema["$ref"].rpartition("/")[2], {})
    return {**top, "$defs": definitions} if definitions else top


def _portable(schema: Any) -> Any:
    """The schema with patterns as ECMAScript reads them: there `$` is the very end, and `\\Z` would be a letter."""
    if isinstance(schema, dict):
        return {
            name: item.replace("\\Z", "$") if name == "pattern" and isinstance(item, str) else _portable(item)
            for name, item in schema.items()
        }
    return [_portable(item) for item in schema] if isinstance(schema, list) else schema
