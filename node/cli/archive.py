"""`hansa archive`: what pruned blocks lie in, looked at, proven, asked and put back. No node has to run."""

import datetime
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from node.archive import (
    ArchiveReader,
    ArchiveShelf,
    give_back,
    import_archive,
    require_decided,
    require_no_gap,
    verify_archive,
)
from node.cli.options import Directory, anchor_option, directory_option, output_option, trusted_network
from node.cli.output import Output, message, progress_bar
from node.client.answers import BlockAnswer, Event, TransactionAnswer
from node.client.rendering import block_answer, content, outcomes
from node.errors import ConfigError, NotFound
from node.ledger import Transaction
from node.recovery import load_trusted
from node.store.reading import read_receipt
from node.store.stopped import open_stopped
from node.wording import agreeing, blocks_from, counted

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path, dir_okay=False)


class ListedArchive(msgspec.Struct, frozen=True):
    """A line of `hansa archive list`."""

    file: str
    first: int
    last: int
    size_bytes: int


class ArchiveContent(msgspec.Struct, frozen=True):
    """What a file says of itself; `hansa archive verify` proves it."""

    file: str
    network: str
    genesis_hash: str
    first: int
    last: int
    transactions: int
    size_bytes: int
    first_time_ms: int
    last_time_ms: int
    digest: str
    members: tuple[str, ...]
    member_changes: tuple[int, ...]


class VerifiedArchive(msgspec.Struct, frozen=True):
    """What was proven of one file."""

    file: str
    first: int
    last: int
    transactions: int
    digest: str


class FoundEvent(msgspec.Struct, frozen=True):
    """An event of a block in an archive."""

    height: int
    tx_id: str | None
    event: Event


@click.group()
def archive() -> None:
    """Look at archive files, prove them, ask them, put them back (docs/archive.md)."""


@archive.command("list")
@click.option("--archive-dir", type=click.Path(path_type=Path, file_okay=False), help="Default: node.toml's.")
@directory_option
@output_option
def list_(archive_dir: Path | None, directory: Directory, output: Output) -> None:
    """The archive files of a node."""
    where = archive_dir or directory.required().retention.archive_dir
    if where is None:
        raise ConfigError("invalid_usage", "node.toml names no [retention] archive_dir; use --archive-dir DIR")
    found = [
        ListedArchive(str(item.path), item.first, item.last, item.path.stat().st_size)
        for item in ArchiveShelf(where).files()
    ]
    if output.as_json:
        output.document({"archives": found})
    else:
        output.table(
            ["file", "first", "last", "bytes"], [[Path(i.file).name, i.first, i.last, i.size_bytes] for i in found]
        )


@archive.command()
@click.argument("file", type=FILE)
@output_option
def show(file: Path, output: Output) -> None:
    """What an archive file says of itself."""
    with ArchiveReader(file) as reader:
        last = reader.block(reader.last).block
        said = ArchiveContent(
            str(file),
            reader.head.network,
            reader.head.genesis_hash.hex(),
            reader.first,
            reader.last,
            reader.transactions,
            reader.size_bytes,
            reader.block(reader.first).block.body.header.time_ms,
            last.body.header.time_ms,
            last.certificate.digest.hex(),
            tuple(item.id for item in reader.head.validators),
            tuple(item.header.height for item in reader.head.changes),
        )
    if output.as_json:
        output.document(said)
        return
    output.facts(
        [
            ("network", said.network),
            ("genesis hash", said.genesis_hash),
            ("blocks", f"{said.first} to {said.last}"),
            ("from", _time(said.first_time_ms)),
            ("to", _time(said.last_time_ms)),
            ("transactions", said.transactions),
            ("bytes", said.size_bytes),
            ("digest of the last", said.digest),
            ("members at the first", ", ".join(said.members)),
            ("members changed at", ", ".join(map(str, said.member_changes)) or "no block before"),
        ]
    )


def network_option(command: F) -> F:
    """--network, as `network_file`."""
    return click.option(
        "--network", "network_file", type=FILE, help="The network's network.toml (default: the directory's)."
    )(command)


@archive.command()
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE…")
@network_option
@anchor_option
@directory_option
@output_option
def verify(
    files: Sequence[Path],
    network_file: Path | None,
    anchors: Sequence[Path],
    directory: Directory,
    output: Output,
) -> None:
    """Prove archive files by network.toml alone: certificates, hashes, receipts, signatures.

    Several files are proven in the order of their heights, each as the continuation of the one before it: no block
    may be missing between them.
    """
    network = trusted_network(network_file, directory, anchors)
    proven: list[VerifiedArchive] = []
    with _opened(files) as readers:
        reach = readers[0].last
        for reader in readers[1:]:
            require_no_gap(reach, reader)
            reach = max(reach, reader.last)
        before = None
        for reader in readers:
            with progress_bar(reader.path.name) as progress:
                if before is not None and before.last + 1 == reader.first:
                    proof = verify_archive(reader, network, before.members, progress, parent=before.digest)
                else:
                    proof = verify_archive(reader, network, progress=progress)
            before = proof
            proven.append(
                VerifiedArchive(str(reader.path), proof.first, proof.last, proof.transactions, proof.digest.hex())
            )
    if output.as_json:
        output.document({"ok": True, "network": network.network_id, "archives": proven})
        return
    output.table(
        ["file", "first", "last", "transactions", "digest of the last"],
        [[Path(i.file).name, i.first, i.last, i.transactions, i.digest] for i in proven],
    )
    output.text(f"Every block was certified by the members of {network.network_id} that its height had.")


@archive.command()
@click.argument("file", type=FILE)
@click.option("--block", "height", type=click.IntRange(min=1), help="The block at this height.")
@click.option("--tx", "tx_id", metavar="TX_ID", help="This transaction with its outcome.")
@click.option("--account", "topic", metavar="TOPIC", help="Every event under an account, a claim, a policy.")
@output_option
def query(file: Path, height: int | None, tx_id: str | None, topic: str | None, output: Output) -> None:
    """Ask an archive file; `hansa archive verify` says whether it may be believed."""
    if sum(item is not None for item in (height, tx_id, topic)) != 1:
        raise ConfigError("invalid_usage", "ask for one of --block, --tx and --account")
    with ArchiveReader(file) as reader:
        if height is not None:
            output.document(_block(reader, height))
        elif tx_id is not None:
            output.document(_transaction(reader, tx_id))
        elif topic is not None:
            with progress_bar("searching") as progress:
                found = list(_events(reader, topic, progress))
            if output.as_json:
                output.document({"events": found})
            else:
                output.table(
                    ["height", "event", "data", "transaction"],
                    [[i.height, f"{i.event.contract}.{i.event.name}", i.event.data, i.tx_id] for i in found],
                )


@archive.command("import")
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE…")
@click.option("--undo", is_flag=True, help="Take out again what was put back from these files.")
@directory_option
@output_option
def import_(files: Sequence[Path], undo: bool, directory: Directory, output: Output) -> None:
    """Put archived blocks back into the data directory of a stopped node, so that its queries find them again.

    Each is proven first and compared with the header that the node has kept. They stay when the node prunes. Blocks
    that the node has not reached cannot be put back: it fetches these from its peers when it runs.
    """
    node = directory.required()
    network = load_trusted(node)
    store = open_stopped(node, network)
    try:
        with _opened(files) as readers:
            done = []
            # Of all files first: none is put back of a call that has to be made again.
            for reader in () if undo else readers:
                require_decided(store, reader)
            for reader in readers:
                if undo:
                    done.append(give_back(store, reader))
                    continue
                with progress_bar(reader.path.name) as progress:
                    done.append(import_archive(store, network, reader, progress))
    finally:
        store.close()
    if output.as_json:
        output.document({"archives": done})
    else:
        for reader, report in zip(readers, done, strict=True):
            were = agreeing(report.blocks, "was", "were")
            rest = report.last - report.first + 1 - report.blocks
            others = f", {rest:,} {agreeing(rest, 'was', 'were')} {'not put back' if undo else 'here'} already"
            message(
                f"hansa: {reader.path.name} holds {blocks_from(report.first, report.last)}: "
                f"{counted(report.blocks, 'block')} {were} {'taken out again' if undo else 'put back'}"
                f"{others if rest else ''}"
            )


@contextmanager
def _opened(files: Sequence[Path]) -> Iterator[list[ArchiveReader]]:
    """Give the readers of all files, ascending by height."""
    readers: list[ArchiveReader] = []
    try:
        for file in files:
            readers.append(ArchiveReader(file))
        yield sorted(readers, key=lambda reader: (reader.first, reader.last))
    finally:
        for reader in readers:
            reader.close()


def _block(reader: ArchiveReader, height: int) -> BlockAnswer:
    item = reader.block(height)
    scheduled, receipts = item.receipts.scheduled, item.receipts.receipts
    return block_answer(
        item.block, tuple(read_receipt(receipts, height, place) for place in range(scheduled, len(receipts)))
    )


def _transaction(reader: ArchiveReader, tx_id: str) -> TransactionAnswer:
    if not re.fullmatch("[0-9a-f]{64}", tx_id):
        raise ConfigError("invalid_usage", f"{tx_id!r} is no transaction id: 64 lower-case hex digits")
    place = reader.locate(bytes.fromhex(tx_id))
    if place is None:
        raise NotFound("transaction_not_found", f"{reader.path} does not hold {tx_id}")
    height, position = place
    item = reader.block(height)
    receipt = read_receipt(item.receipts.receipts, height, position)
    transaction = Transaction.decode(item.block.body.transactions[position - item.receipts.scheduled])
    return TransactionAnswer(
        tx_id=tx_id, status="final", height=height, receipts=outcomes(receipt), content=content(transaction)
    )


def _events(reader: ArchiveReader, topic: str, progress: Callable[[int, int], None]) -> Iterator[FoundEvent]:
    """Yield the events under `topic`: all of it, or what stands behind a slash in it."""
    for item in reader.blocks():
        for position in range(len(item.receipts.receipts)):
            receipt = read_receipt(item.receipts.receipts, item.height, position)
            tx_id = None if position < item.receipts.scheduled else receipt.tx_id.hex()
            for call in outcomes(receipt):
                for event in call.events:
                    if any(name == topic or name.endswith(f"/{topic}") for name in event.topics):
                        yield FoundEvent(item.height, tx_id, event)
        progress(item.height - reader.first + 1, reader.last - reader.first + 1)


def _time(time_ms: int) -> str:
    return datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC).isoformat(timespec="seconds")
