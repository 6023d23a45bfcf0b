"""Commands that back a running node up, and that make a data directory from a backup."""

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from node.cli.options import NODE_FILE, Directory, connect, directory_option, node_option, output_option
from node.cli.output import Output, message
from node.cli.verifying import rated_bar
from node.wording import counted

SNAPSHOT_BLOCKS = 10_000


@click.command()
@click.argument("target", type=click.Path(path_type=Path, file_okay=False))
@click.option("--snapshot", is_flag=True, help="Take a new snapshot in any case.")
@click.option(
    "--snapshot-blocks",
    type=click.IntRange(1),
    default=SNAPSHOT_BLOCKS,
    show_default=True,
    help="Take a new snapshot when the last one is that many blocks old.",
)
@click.option("--keys", is_flag=True, help="And the key files, encrypted as they are; their passphrase never.")
@node_option
@output_option
def backup(
    target: Path,
    snapshot: bool,
    snapshot_blocks: int,
    keys: bool,
    nodes: Sequence[str],
    directory: Directory,
    output: Output,
) -> int:
    """Back the running node up into TARGET: its state, its blocks, its configuration.

    The node goes on voting. Run it again on the same TARGET and only new blocks are added. Every file is proven by
    certificates and named with its SHA-256 in backup.json. Keys are left out unless asked for.
    """
    # Imported here: it loads more than most commands need.
    from node.backup import Backup

    directory.required()
    with connect(nodes, directory, patience_s=10.0) as client, rated_bar("backing up", "") as progress:
        node_file = directory.path / NODE_FILE
        work = Backup(node_file, client, target, telling(progress))
        report = work.run(snapshot=snapshot, snapshot_blocks=snapshot_blocks, keys=keys)
    if output.as_json:
        output.document(report)
        return 0
    held = f"{report.size_bytes:,} in {counted(report.files, 'file')}"
    output.facts(
        [
            ("backup", report.directory),
            ("blocks", f"{report.first} to {report.height}, {report.blocks} of them new"),
            ("snapshot", f"height {report.snapshot_height}{', new' if report.new_snapshot else ''}"),
            ("bytes", f"{held}, {report.added_bytes:,} of them new"),
            ("took", f"{report.took_ms:,} ms"),
        ]
    )
    for note in report.notes:
        output.text(note)
    return 0


def telling(progress: Callable[[int, int], None]) -> Callable[[str, int, int], None]:
    """Give a function of (what, done, total) that moves the bar, and tells in one line what has no measure.

    A line, for where no terminal is there is no bar either, and a busy node makes its snapshot for minutes.
    """
    told: set[str] = set()

    def on_progress(what: str, done: int, total: int) -> None:
        if not total and what not in told:
            told.add(what)
            message(f"hansa: {what}")
        progress(done, total)

    return on_progress


@click.command()
@click.argument("source", type=click.Path(path_type=Path, file_okay=False))
@directory_option
@output_option
def restore(source: Path, directory: Directory, output: Output) -> int:
    """Make a fresh data directory from the backup SOURCE, judged row by row.

    The directory's own configuration and keys are kept; what is missing is taken from the backup. The restored node
    has no memory of its votes, so it abstains until it has caught up with the others.
    """
    # Imported here: it loads the contracts, which takes longer than most commands.
    from node.backup import Restore

    with rated_bar("restoring", "") as progress:
        report = Restore(source, directory.path, lambda what, done, total: progress(done, total)).run()
    if output.as_json:
        output.document(report)
        return 0
    output.facts(
        [
            ("member", report.member),
            ("height", report.height),
            ("from the snapshot of", report.snapshot_height or None),
            ("blocks executed", report.executed),
            ("took", f"{report.took_ms:,} ms"),
        ]
    )
    for note in report.notes:
        output.text(note)
    return 0
