"""Cuts the sample in `data/` from the full files: whole rows, byte for byte, under the original header."""

import argparse
import csv
import shutil
import sys
from pathlib import Path

TRANSFERS = 6_000
CLAIMS_EVERY = 20


def cut(source: Path, target: Path) -> dict[str, int]:
    """Write the sample of `source` under `target`; return file -> rows written.

    Transfers: the first 6,000 (they lie in the order of their days). Accounts: those that these name.
    Claims: every twentieth, so that all accident years and operational times are there.
    """
    payments, claims = target / "payments_amlsim", target / "claims_australia"
    payments.mkdir(parents=True, exist_ok=True)
    claims.mkdir(parents=True, exist_ok=True)

    header, rows = _lines(source / "payments_amlsim" / "transactions.csv")
    transfers = rows[:TRANSFERS]
    _write(payments / "transactions.csv", header, transfers)

    named = {node for line in transfers for node in next(csv.reader([line.decode("ascii")]))[:2]}
    header, rows = _lines(source / "payments_amlsim" / "nodes.csv")
    nodes = [line for line in rows if line.decode("ascii").split(",", 1)[0] in named]
    _write(payments / "nodes.csv", header, nodes)

    header, rows = _lines(source / "claims_australia_1989_1999" / "ausautoBI8999.csv")
    cut_claims = rows[::CLAIMS_EVERY]
    _write(claims / "claims.csv", header, cut_claims)

    shutil.copyfile(source / "payments_amlsim" / "LICENSE", payments / "LICENSE")
    shutil.copyfile(source / "claims_australia_1989_1999" / "DESCRIPTION", claims / "DESCRIPTION")
    return {"transactions.csv": len(transfers), "nodes.csv": len(nodes), "claims.csv": len(cut_claims)}


def _lines(path: Path) -> tuple[bytes, list[bytes]]:
    header, *rows = path.read_bytes().splitlines(keepends=True)
    return header, rows


def _write(path: Path, header: bytes, rows: list[bytes]) -> None:
    path.write_bytes(b"".join([header, *rows]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/cut-sample", description=__doc__)
    parser.add_argument("source", type=Path, help="directory with payments_amlsim/ and claims_australia_1989_1999/")
    parser.add_argument("--target", type=Path, default=Path(__file__).parents[2] / "data")
    arguments = parser.parse_args()
    try:
        written = cut(arguments.source, arguments.target)
    except OSError as error:
        sys.exit(f"cut-sample: {error}")
    for name, rows in written.items():
        print(f"{name}: {rows} rows")


if __name__ == "__main__":
    main()
