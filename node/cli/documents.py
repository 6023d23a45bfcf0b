"""`hansa docs`: documentation that is made from the code."""

from pathlib import Path

import click

from node.cli.options import output_option
from node.cli.output import Output
from node.diagnosis import CAUSES, cause_table
from node.errors import CATALOGUE


@click.group()
def docs() -> None:
    """Make documentation from the code."""


@docs.command()
@click.option("--output-file", type=click.Path(path_type=Path, dir_okay=False), help="Write there, not to stdout.")
@output_option
def errors(output: Output, output_file: Path | None) -> None:
    """The catalogue of error codes, as Markdown (docs/errors.md) or JSON."""
    if output.as_json:
        output.document(CATALOGUE)
    elif output_file is None:
        click.echo(error_page(), nl=False)
    else:
        output_file.write_text(error_page())


@docs.command()
@output_option
def causes(output: Output) -> None:
    """The causes that `hansa why` knows, as the table in docs/operations.md, or JSON."""
    if output.as_json:
        output.document(dict(CAUSES))
    else:
        click.echo(cause_table(), nl=False)


def error_page() -> str:
    """docs/errors.md: every code with its cause and what to do."""
    rows = "".join(
        f"| `{code}` | {_cell(entry.cause)} | {_cell(entry.action)} | {'yes' if entry.retryable else 'no'} |\n"
        for code, entry in sorted(CATALOGUE.items())
    )
    return (
        "# Error codes\n\n"
        "Made by `hansa docs errors` from `node/errors.py`; do not edit by hand.\n\n"
        'The API answers every failure with `{"error": {"code", "message", "action", "retryable", "details"}}`;\n'
        "the `hansa` command prints code, message and action on one line of stderr. *Retry*: the same request\n"
        "may succeed later. Reasons for which a contract refuses a call stand in receipts; `hansa contracts NAME`\n"
        "lists them.\n\n"
        "| Code | Cause | What to do | Retry |\n|---|---|---|---|\n" + rows
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
