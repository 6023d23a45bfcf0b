"""Named arguments from JSON or from the command line, as a method's JSON Schema wants them.

JSON and shells know no bytes: both write them in hex, and the schema says where (`contentEncoding`).
Nothing else is coerced in JSON; from the command line, text becomes what the schema names.
Ranges and patterns are the contract engine's to judge.
"""

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from node.client.answers import ContractAnswer, MethodDescription
from node.errors import NotFound, RejectedTransaction

_REFERENCES_MAX = 32
_INTEGER = re.compile(r"-?[0-9]{1,20}")


def find_method(contracts: tuple[ContractAnswer, ...], name: str, *, query: bool) -> MethodDescription:
    """The call (or query) named `contract.method`; raise NotFound that lists what comes close to it."""
    contract_name, dot, method_name = name.partition(".")
    found = next((contract for contract in contracts if contract.name == contract_name), None)
    if found is None:
        known = [contract.name for contract in contracts]
        raise NotFound(
            "unknown_contract", f"{contract_name!r} is not a contract here; {_near(contract_name, known)}"
        )
    methods = found.queries if query else found.calls
    kind = "query" if query else "call"
    for method in methods:
        if dot and method.name == method_name:
            return method
    near = _near(method_name, [method.name for method in methods])
    raise NotFound("unknown_method", f"{contract_name!r} has no {kind} {method_name!r}; {near}")


def _near(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=3)
    if close:
        return f"did you mean {', '.join(close)}?"
    return f"there are: {', '.join(sorted(known)) or 'none'}"


def arguments_from_json(schema: Mapping[str, Any], args: Mapping[str, Any]) -> dict[str, Any]:
    """`args` with hex text turned into bytes wherever `schema` says bytes; raise `invalid_arguments` otherwise."""
    _check_names(schema, args)
    properties = _properties(schema)
    return {name: _from_json(schema, properties[name], value, name) for name, value in args.items()}


def arguments_from_text(schema: Mapping[str, Any], args: Mapping[str, str]) -> dict[str, Any]:
    """The values that NAME=VALUE texts mean: integers, hex bytes, true/false, null, JSON for lists and objects."""
    _check_names(schema, args)
    properties = _properties(schema)
    return {name: _from_text(schema, properties[name], text, name) for name, text in args.items()}


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties: Mapping[str, Any] = _resolve(schema, schema).get("properties", {})
    return properties


def _check_names(schema: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    properties = _properties(schema)
    for name in args:
        if name not in properties:
            raise _invalid(name, f"is not an argument; {_near(name, list(properties))}")
    missing = [name for name in _resolve(schema, schema).get("required", ()) if name not in args]
    if missing:
        raise _invalid(missing[0], "is missing")


def _resolve(root: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    for _ in range(_REFERENCES_MAX):
        reference = schema.get("$ref")
        if reference is None:
            return schema
        target: Any = root
        for part in str(reference).removeprefix("#/").split("/"):
            target = target[part]
        schema = target
    raise _invalid("schema", "refers to itself without end")


def _choices(root: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The alternatives of a schema, resolved: itself when it names none."""
    schema = _resolve(root, schema)
    branches = schema.get("anyOf") or schema.get("oneOf")
    if not branches:
        return [schema]
    return [choice for branch in branches for choice in _choices(root, branch)]


def _from_json(root: Mapping[str, Any], schema: Mapping[str, Any], value: Any, path: str) -> Any:
    if isinstance(value, float):
        raise _invalid(path, "must be an integer: fractions are written in minor units")
    choices = _choices(root, schema)
    if isinstance(value, str) and not any(_is_text(choice) for choice in choices):
        if any(_is_bytes(choice) for choice in choices):
            return _hex(value, path)
    elif isinstance(value, list):
        for choice in choices:
            if choice.get("type") == "array":
                return [
                    _from_json(root, _item_schema(choice, place), item, f"{path}[{place}]")
                    for place, item in enumerate(value)
                ]
    elif isinstance(value, dict):
        for choice in choices:
            if choice.get("type") == "object":
                known = choice.get("properties", {})
                other = choice.get("additionalProperties", {})
                rest = other if isinstance(other, dict) else {}
                return {
                    key: _from_json(root, known.get(key, rest), item, f"{path}.{key}")
                    for key, item in value.items()
                }
    return value


def _item_schema(array: Mapping[str, Any], place: int) -> Mapping[str, Any]:
    prefix = array.get("prefixItems", [])
    if place < len(prefix):
        item: Mapping[str, Any] = prefix[place]
        return item
    items = array.get("items", {})
    return items if isinstance(items, dict) else {}


def _is_bytes(choice: Mapping[str, Any]) -> bool:
    return choice.get("type") == "string" and "contentEncoding" in choice


def _is_text(choice: Mapping[str, Any]) -> bool:
    named = choice.get("type")
    if named is None:
        return all(isinstance(item, str) for item in choice["enum"]) if "enum" in choice else not choice
    return named == "string" and "contentEncoding" not in choice


def _from_text(root: Mapping[str, Any], schema: Mapping[str, Any], text: str, path: str) -> Any:
    choices = _choices(root, schema)
    types = {choice.get("type") for choice in choices}
    if "null" in types and text == "null":
        return None
    if "boolean" in types and text in ("true", "false"):
        return text == "true"
    if "integer" in types:
        if _INTEGER.fullmatch(text):
            return int(text)
        if types <= {"integer", "null"}:
            raise _invalid(path, f"must be an integer of at most 20 digits, not {text[:80]!r}")
    if types & {"array", "object"} and text[:1] in "[{":
        try:
            return _from_json(root, schema, json.loads(text), path)
        except (ValueError, RecursionError) as error:
            raise _invalid(path, f"is not JSON: {error}") from error
    if any(_is_text(choice) for choice in choices):
        return text
    if any(_is_bytes(choice) for choice in choices):
        return _hex(text, path)
    wanted = " or ".join(sorted(str(name) for name in types if name)) or "another type"
    raise _invalid(path, f"must be {wanted}, not {text[:80]!r}")


def _hex(text: str, path: str) -> bytes:
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise _invalid(path, "must be hex digits, two a byte") from None


def _invalid(name: str, what: str) -> RejectedTransaction:
    return RejectedTransaction("invalid_arguments", f"{name}: {what}", argument=name)
