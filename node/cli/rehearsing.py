"""`hansa rehearse`: the last real blocks under another version of a contract, before anybody votes on it."""

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.options import Directory, directory_option, output_option
from node.cli.output import Output, message, shown
from node.cli.verifying import rated_bar
from node.errors import ConfigError
from node.wording import blocks_from, counted

if TYPE_CHECKING:
    from contracts.sdk import Contract
    from node.verification.rehearsal import Rehearsal

SHOWN_MAX = 20
WIDTH_MAX = 60
FAILED = 1


@click.command()
@click.argument("module", metavar="MODULE")
@click.option("--last", type=click.IntRange(min=1, max=10_000), default=1_000, show_default=True, metavar="N")
@directory_option
@output_option
def rehearse(module: str, last: int, directory: Directory, output: Output) -> int:
    """Execute the last N blocks of a stopped node's ledger with MODULE active, and show every outcome that differs.

    MODULE is a contract's source file, or a version that this release ships: claims@2. The data is not touched. For
    a node that is to run, stop it, copy its directory, start it again, and name the copy: a restored backup has no
    more than the blocks after its snapshot. Exits with 1 when a receipt or value differs, the version cannot
    begin, or fewer of the ledger's blocks can be taken back than were asked for.
    """
    # Imported here: it loads the contracts, which takes longer than most commands.
    from node.verification.rehearsal import rehearse_directory

    contract = _contract(module)
    with rated_bar("rehearsing", "blocks") as progress:
        found = rehearse_directory(directory.required(), contract, last, progress)
    if output.as_json:
        output.document(found)
    else:
        _show(output, found)
    if not found.whole:
        covered = found.last - found.first + 1
        message(
            f"hansa: only {covered:,} of the {found.asked:,} blocks asked for can be taken back: this directory has"
            f" none before block {found.first}. Copy the directory of a stopped node that has them, or ask for"
            f" --last {covered}"
        )
    return 0 if found.same and found.whole else FAILED


def _contract(module: str) -> "type[Contract]":
    """The contract of a source file, or the shipped one of a name and version."""
    from contracts import CONTRACTS, FURTHER

    name, at, version = module.partition("@")
    if at and version.isdigit():
        found = [item for item in (*CONTRACTS, *FURTHER) if (item.name, str(item.version)) == (name, version)]
        if not found:
            raise ConfigError("invalid_usage", f"this release ships no {name[:40]} {version[:10]}")
        return found[0]
    return _load(Path(module))


def _load(path: Path) -> "type[Contract]":
    """The one contract that the file declares, loaded as a release would load it."""
    from contracts.loader import load_source
    from contracts.sdk import Contract

    try:
        source = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("invalid_usage", f"{path}: {getattr(error, 'strerror', None) or error}") from error
    name = "contracts.rehearsed_" + re.sub(r"[^a-z0-9_]", "_", path.stem.lower())
    try:
        loaded = load_source(name, source)
    except Exception as error:  # the file is anybody's, and a declaration can fail in any way
        raise ConfigError("invalid_usage", f"{path} is no contract: {error}") from error
    found = [
        item
        for item in vars(loaded).values()
        if isinstance(item, type) and issubclass(item, Contract) and item.__module__ == name
    ]
    if len(found) != 1:
        raise ConfigError("invalid_usage", f"{path} declares {counted(len(found), 'contract')}, not one")
    return found[0]


def _show(output: Output, found: "Rehearsal") -> None:
    before = f"{found.before}" if found.before else "not active"
    output.facts(
        [
            ("contract", f"{found.contract}: {before} -> {found.version}"),
            ("begins", found.begun if found.begun == "ok" else f"{found.begun}: {found.begun_detail}"),
            ("operations of its migration", f"{found.begun_operations:,}"),
            ("blocks", f"{blocks_from(found.first, found.last)}, {counted(found.transactions, 'transaction')}"),
            ("receipts that differ", len(found.receipts)),
            ("state values that differ", len(found.values)),
        ]
    )
    if found.receipts:
        output.table(
            ["block", "transaction", "call", "was", "would be", ""],
            [
                [
                    row.height,
                    row.tx_id[:16],
                    f"{row.contract}.{row.method}",
                    row.was,
                    row.would_be if row.would_be != row.was else f"{row.would_be}, other events",
                    row.detail[:WIDTH_MAX],
                ]
                for row in found.receipts[:SHOWN_MAX]
            ],
        )
    if found.values:
        fields = Counter(".".join(str(part) for part in row.key[:2]) for row in found.values)
        output.table(["field", "values that differ"], [[name, count] for name, count in sorted(fields.items())])
        output.table(
            ["key", "is", "would be"],
            [
                [" ".join(str(part) for part in row.key), _short(row.is_now), _short(row.would_be)]
                for row in found.values[:SHOWN_MAX]
            ],
        )
    if max(len(found.receipts), len(found.values)) > SHOWN_MAX:
        output.text(f"The first {SHOWN_MAX} of each; --json has them all.")


def _short(value: object) -> str:
    text = "absent" if value is None else str(shown(value))
    return text if len(text) <= WIDTH_MAX else text[: WIDTH_MAX - 1] + "…"
