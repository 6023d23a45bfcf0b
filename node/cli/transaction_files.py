"""Transaction files as the commands read them: from disk, in words, with what the ledger says of who may sign."""

import os
import stat
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from node.client import Client
from node.client.transaction_file import FILE_SIZE_MAX, KnownPolicy, TransactionFile, printable
from node.errors import ConfigError, RejectedTransaction, Unavailable

T = TypeVar("T")

_PAGE: Final = 500
_PAGES_MAX: Final = 20
"""Names of signers are sought among so many pages of the member's principals; beyond them keys have no name."""


class _Principal(msgspec.Struct, frozen=True):
    """What is used here of a row of `membership.principals`; keys in hex."""

    id: str
    threshold: int
    keys: tuple[str, ...]
    tiers: tuple[str, ...] = ()


class _Group(msgspec.Struct, frozen=True):
    persons: tuple[str, ...]


class _Tier(msgspec.Struct, frozen=True):
    """What is used here of a row of `membership.tiers`."""

    name: str
    groups: tuple[_Group, ...]


class _StandIn(msgspec.Struct, frozen=True):
    delegate: str


class _StandInRow(msgspec.Struct, frozen=True):
    """What is used here of a row of `membership.stand_ins_of`."""

    person: str
    stand_in: _StandIn


def read_transaction_file(path: Path) -> TransactionFile:
    """The transaction in a file, whose parts agree and whose signatures verify; raise ConfigError otherwise."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as opened:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError("transaction_file_unreadable", f"{path}: is not a regular file")
            data = opened.read(FILE_SIZE_MAX + 1)
    except OSError as error:
        raise ConfigError("transaction_file_unreadable", f"{path}: {error.strerror or error}") from error
    try:
        return TransactionFile.decode(data)
    except (ConfigError, RejectedTransaction) as error:
        raise type(error)(error.code, f"{path}: {error.message}") from error


def shown_path(file: Path) -> str:
    """The path in signs that every terminal and program takes: a file's name, too, is another's choice."""
    return printable(os.fsencode(file).decode(errors="backslashreplace"))


def words_of(found: TransactionFile, file: Path) -> list[str]:
    """What a person reads before signing or sending it."""
    return [f"{shown_path(file)}: transaction {found.tx_id.hex()}", *found.summary(), found.standing()]


def known_policy(client: Client, sender: str) -> KnownPolicy:
    """The sender's policy in the state; a key is named by the principal of the member that signs alone with it."""
    try:
        answer = client.query("membership.principal", {"principal": sender})
    except RejectedTransaction as error:
        if error.details.get("reason") == "principal_not_found":
            raise RejectedTransaction("unknown_principal", f"{sender} is no principal of this network") from error
        raise
    found = _rows([answer.value])[0]
    rows = _principals(client, sender)
    names = _names(rows, sender)
    policy = {
        "threshold": found.threshold,
        "keys": [{"key": key, "name": names.get(key)} for key in found.keys],
        "height": answer.height,
        "persons": _persons(client, found, rows),
    }
    return _understood(policy, KnownPolicy)


def _persons(client: Client, sender: _Principal, rows: list[_Principal]) -> list[dict[str, str]]:
    """The keys of those whom the sender's tiers may ask for, and of their stand-ins."""
    if not sender.tiers:
        return []
    member = {"member": sender.id.partition("/")[0]}
    tiers = _understood(client.query("membership.tiers", member).value, list[_Tier])
    seated = {
        person for tier in tiers if tier.name in sender.tiers for group in tier.groups for person in group.persons
    }
    places = _understood(client.query("membership.stand_ins_of", member).value, list[_StandInRow])
    seated |= {row.stand_in.delegate for row in places if row.person in seated}
    return [{"key": key, "name": row.id} for row in rows if row.id in seated for key in row.keys]


def _names(rows: list[_Principal], sender: str) -> dict[str, str]:
    """The principals of the sender's member that sign alone with one key, by that key (hex)."""
    names: dict[str, str] = {}
    for row in rows:
        if len(row.keys) == 1 and row.id != sender:
            names.setdefault(row.keys[0], row.id)
    return names


def _principals(client: Client, sender: str) -> list[_Principal]:
    """All principals of the sender's member, as far as so many pages hold them."""
    found: list[_Principal] = []
    after: str | None = None
    for _ in range(_PAGES_MAX):
        args = {"member": sender.partition("/")[0], "after": after, "limit": _PAGE}
        rows = _rows(client.query("membership.principals", args).value)
        found += rows
        if len(rows) < _PAGE:
            break
        after = rows[-1].id
    return found


def _rows(value: object) -> list[_Principal]:
    return _understood(value, list[_Principal])


def _understood(value: object, type_: type[T]) -> T:
    """What the node said, as a typed value within its limits; raise Unavailable for anything else."""
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        raise Unavailable("unexpected_answer", f"the node's answer is not understood: {error}") from error
