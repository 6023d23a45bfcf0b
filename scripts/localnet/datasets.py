"""The real data as it lies in its files: transfers, opening balances, claims. Exact: decimals become integer cents.

The sample in `data/` and the full files have the same columns, so one reader reads both.
"""

import csv
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


class DataError(ValueError):
    """A data file that cannot be read; the text names file, line and column."""


class Transfer(msgspec.Struct, frozen=True):
    """One transfer. `row` counts from 1; nodes are the data's account numbers; `day` is the data's day."""

    row: int
    source: int
    target: int
    cents: int
    day: int


class Claim(msgspec.Struct, frozen=True):
    """One settled claim. Days count from 1970-01-01; `cents` is the settled amount."""

    row: int
    accident_day: int
    report_day: int
    final_day: int
    injury: str
    injured: int
    legal: bool
    cents: int


def to_cents(text: str) -> int:
    """The decimal number in `text` as integer cents, halves rounded up; raise ValueError for anything else."""
    try:
        value = Decimal(text)
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is not a decimal number") from error
    if not value.is_finite():
        raise ValueError(f"{text!r} is not finite")
    return int((value * 100).quantize(Decimal(1), rounding=ROUND_HALF_UP))


def read_transfers(path: Path) -> list[Transfer]:
    """The transfers of an AMLSim `transactions.csv`, in its order."""
    return _read(path, ("sourceNodeId", "targetNodeId", "value", "time"), _transfer)


def read_openings(path: Path) -> dict[int, int]:
    """Node -> opening balance in cents, of an AMLSim `nodes.csv`."""
    return dict(_read(path, ("nodeid", "init_balance"), _opening))


def read_claims(path: Path) -> list[Claim]:
    """The claims of an `ausautoBI8999.csv`, in its order."""
    return _read(path, ("AccDate", "ReportDate", "FinDate", "InjType1", "InjNb", "Legal", "AggClaim"), _claim)


def _transfer(row: int, record: dict[str, str]) -> Transfer:
    return Transfer(
        row=row,
        source=_integer(record["sourceNodeId"]),
        target=_integer(record["targetNodeId"]),
        cents=to_cents(record["value"]),
        day=_integer(record["time"]),
    )


def _opening(row: int, record: dict[str, str]) -> tuple[int, int]:
    return _integer(record["nodeid"]), to_cents(record["init_balance"])


def _claim(row: int, record: dict[str, str]) -> Claim:
    return Claim(
        row=row,
        accident_day=_integer(record["AccDate"]),
        report_day=_integer(record["ReportDate"]),
        final_day=_integer(record["FinDate"]),
        injury=record["InjType1"],
        injured=_integer(record["InjNb"]),
        legal=record["Legal"] == "Yes",
        cents=to_cents(record["AggClaim"]),
    )


def _read(path: Path, columns: tuple[str, ...], build: Callable[[int, dict[str, str]], T]) -> list[T]:
    """What `build` makes of each (row, record) of the CSV file at `path`; raise DataError naming the bad row."""
    row = 0
    try:
        with path.open(newline="", encoding="ascii") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path}: the header lacks {', '.join(missing)}")
            values = []
            for row, record in enumerate(reader, start=1):
                if any(record[column] is None for column in columns):
                    raise ValueError("too few columns")
                values.append(build(row, record))
            return values
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not ASCII text") from error
    except DataError:
        raise
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}, row {row}: {error}") from error


def _integer(text: str) -> int:
    """The whole number in `text`; the claims' file writes its days as `8613.0`."""
    try:
        value = Decimal(text)
        whole = int(value)
    except (InvalidOperation, ValueError, OverflowError) as error:
        raise ValueError(f"{text!r} is not a whole number") from error
    if value != whole:
        raise ValueError(f"{text!r} is not a whole number")
    return whole
