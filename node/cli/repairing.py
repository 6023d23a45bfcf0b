"""The command that mends a stopped node's data directory."""

from pathlib import Path

import click

from node.cli.options import Directory, directory_option, output_option, passphrase
from node.cli.output import Output
from node.cli.verifying import rated_bar
from node.keys import SigningKey, read_key_file
from node.recovery import load_trusted


@click.command()
@click.option("--offline", is_flag=True, help="Ask no other member; mend what can be mended from this disk.")
@click.option(
    "--archives",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Look for missing blocks in the archive files here first (default: archive_dir in node.toml).",
)
@click.option(
    "--join",
    is_flag=True,
    help="When something cannot be mended: let the node fetch its ledger anew. Its votes are kept where readable.",
)
@directory_option
@output_option
def repair(offline: bool, archives: Path | None, join: bool, directory: Directory, output: Output) -> int:
    """Mend the stopped node's data directory: from itself, from archives, and from the other members.

    Everything is done in a copy, proven by certificates and judged before it takes the place of the damaged
    directory, which is kept beside it. When something cannot be proven, nothing is changed. Exits with 3 then.
    """
    # Imported here: it loads the contracts and the transport, which takes longer than most commands.
    from node.repair import ArchiveSource, BlockSource, PeerSource, Repair

    node = directory.required()
    network = load_trusted(node)

    def open_tls_key() -> SigningKey:
        return read_key_file(node.keys_dir / "tls.key", passphrase(directory), kind="tls", id=node.member)[1]

    shelf = archives or node.retention.archive_dir
    sources: list[BlockSource] = [] if shelf is None else [ArchiveSource(shelf)]
    if not offline:
        sources.append(PeerSource(node, network, open_tls_key))
    try:
        with rated_bar("repairing", "") as progress:
            report = Repair(node, network, sources, lambda what, done, total: progress(done, total)).run(join=join)
    finally:
        for source in sources:
            source.close()
    ok = report.outcome != "not_repaired"
    if output.as_json:
        output.document(report)
        return 0 if ok else 3
    output.facts(
        [
            ("outcome", report.outcome.replace("_", " ")),
            ("height", report.height),
            ("fetched", report.fetched),
            ("abstains", report.abstains),
            ("damaged data", report.kept_at),
            *((("reason", report.reason),) if report.reason else ()),
            *((("what to do", report.remedy),) if report.remedy else ()),
        ]
    )
    for sentence in report.did:
        output.text(sentence)
    if report.kept_at is not None:
        output.text(f"Start the node (hansa run); when it is well, delete {report.kept_at}.")
    return 0 if ok else 3
