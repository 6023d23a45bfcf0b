"""State keys by the names that people use: contract, field, and the parts of the key as text. Pure."""

import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from contracts.sdk import Contract
from contracts.state_keys import Component, StateKeyError, encode_key
from contracts.storage import Item, Map
from node.errors import NotFound, RejectedTransaction
from node.executor.run import LEDGER

LEDGER_FIELDS: typing.Final[dict[str, tuple[type, ...]]] = {"request": (str, str), "schedule": (int, int)}
"""What the ledger itself keeps in the state: a request id by (sender, request id), a call by (at_ms, sequence)."""


def named_key(contracts: Sequence[type[Contract]], contract: str, field: str, parts: Sequence[str]) -> bytes:
    """Return the state key of `contract`'s `field` under `parts`, each read as the field's declared key wants it.

    Integers are written in digits, bytes in hex, booleans as true or false. Raise NotFound (unknown_contract,
    unknown_field), RejectedTransaction (invalid_arguments) for parts that are no key of that field.
    """
    types = _key_types(contracts, contract, field)
    if len(parts) != len(types):
        raise RejectedTransaction(
            "invalid_arguments", f"a key of {contract}.{field} has {len(types)} parts, not {len(parts)}"
        )
    values = [_component(type_, text) for type_, text in zip(types, parts, strict=True)]
    try:
        return encode_key((contract, field, *values))
    except StateKeyError as error:
        raise RejectedTransaction("invalid_arguments", str(error)) from error


def _key_types(contracts: Sequence[type[Contract]], contract: str, field: str) -> tuple[Any, ...]:
    if contract == LEDGER:
        if field in LEDGER_FIELDS:
            return LEDGER_FIELDS[field]
        raise NotFound("unknown_field", f"the ledger itself keeps: {', '.join(LEDGER_FIELDS)}")
    named = [item for item in contracts if item.name == contract]
    # Of several versions that one which keeps it: what a former one kept may be asked for as well.
    keeping = [item for item in named if isinstance(vars(item).get(field), Map | Item)]
    found = next(iter((*keeping, *named)), None)
    if found is None:
        names = ", ".join(item.name for item in contracts)
        raise NotFound("unknown_contract", f"{contract[:40]!r} is not a contract here; there are: {names}")
    declared = vars(found).get(field)
    if isinstance(declared, Item):
        return ()
    if not isinstance(declared, Map):
        fields = ", ".join(name for name, value in vars(found).items() if isinstance(value, Map | Item))
        raise NotFound("unknown_field", f"{contract} keeps no {field[:40]!r}; it keeps: {fields}")
    key = _plain(typing.get_args(typing.get_type_hints(found, include_extras=True)[field])[0])
    return tuple(_plain(part) for part in typing.get_args(key)) if typing.get_origin(key) is tuple else (key,)


def _plain(hint: Any) -> Any:
    """The type without what was annotated to it; a choice of texts is text."""
    while typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    return str if typing.get_origin(hint) is Literal else hint


def _component(type_: Any, text: str) -> Component:
    if type_ is int:
        if text.isascii() and text.isdigit() and len(text) <= 20:
            return int(text)
        raise RejectedTransaction("invalid_arguments", f"{text[:80]!r}: this part of the key is an integer")
    if type_ is bool:
        if text in ("true", "false"):
            return text == "true"
        raise RejectedTransaction("invalid_arguments", f"{text[:80]!r}: this part of the key is true or false")
    if type_ is bytes:
        try:
            return bytes.fromhex(text)
        except ValueError as error:
            raise RejectedTransaction("invalid_arguments", f"{text[:80]!r}: this part is bytes, in hex") from error
    return text
