"""`hansa recovery`: how the survivors of a lost quorum agree, sign offline, and go on (docs/recovery.md)."""

import time
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from node.cli.confirming import require_yes
from node.cli.files import replace_file, write_new
from node.cli.options import Directory, directory_option, output_option, passphrase
from node.cli.output import Output, message
from node.errors import ConfigError
from node.keys import SigningKey, read_key_file, read_key_info
from node.recovery import RecoveryFile, load_trusted, read_recovery_file

FILE = click.Path(path_type=Path, dir_okay=False)


class Standing(msgspec.Struct, frozen=True):
    """A recovery file for programs. `number` is the recovery block's digest, which people compare."""

    file: str
    number: str
    network: str
    height: int
    base_height: int
    base_digest: str
    kept: str
    survivors: tuple[str, ...]
    suspended: tuple[str, ...]
    signed: tuple[str, ...]
    missing: tuple[str, ...]


@click.group()
def recovery() -> None:
    """Go on when a quorum is lost for good: the survivors agree on the last block and sign how they go on.

    For the case in which waiting does not help: read docs/recovery.md first. Each command wants the node stopped.
    """


@recovery.command()
@click.option("--survivor", "survivors", multiple=True, required=True, metavar="MEMBER", help="Who goes on; again.")
@click.option("--reason", required=True, help="What happened, in a sentence that stays on the ledger for ever.")
@click.option(
    "--without-memory",
    multiple=True,
    metavar="MEMBER",
    help="A survivor whose disk was lost or put back: it does not know what it had signed. Again for others.",
)
@click.option("--accept-unseen", is_flag=True, help="Give up blocks that the lost members alone may have decided.")
@click.option("--accept-few", is_flag=True, help="Go on with fewer members than genesis lets any vote leave.")
@click.option(
    "--replaces",
    multiple=True,
    type=FILE,
    help="The file of a recovery that a survivor has signed and that will never be complete. Again for others.",
)
@click.option("--out", required=True, type=FILE, help="The new recovery file.")
@directory_option
@output_option
def draft(
    survivors: Sequence[str],
    reason: str,
    without_memory: Sequence[str],
    accept_unseen: bool,
    accept_few: bool,
    replaces: Sequence[Path],
    out: Path,
    directory: Directory,
    output: Output,
) -> None:
    """Write how this node would go on from its last certified block; signed by nobody yet, and binding nobody.

    Every survivor drafts; `hansa recovery compare` says which draft all of them sign.
    """
    # Imported here: it loads the contracts, which takes longer than most commands.
    from node.rescue import Survivor, Terms

    if not (reason.isascii() and reason.isprintable() and 1 <= len(reason) <= 400):
        raise ConfigError("invalid_usage", "--reason is one line of 1 to 400 printable ASCII characters")
    node = directory.required()
    with Survivor.opened(node, load_trusted(node)) as survivor:
        terms = Terms(
            tuple(survivors),
            reason,
            _now_ms(),
            tuple(without_memory),
            accept_unseen,
            accept_few,
            tuple(map(read_recovery_file, replaces)),
        )
        made = survivor.draft(terms)
    write_new(out, made.encode(), "recovery_not_written")
    _show(output, out, made, "next: hansa recovery compare, with the drafts of all survivors")


@recovery.command()
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE…")
@output_option
def compare(files: Sequence[Path], output: Output) -> None:
    """Say which of the survivors' drafts all of them should sign: it knows of every block that another knows of.

    A draft only claims its block. Whoever signs compares it with its own ledger: a false claim gets no signature.
    """
    from node.rescue import preferred

    found = [(path, read_recovery_file(path)) for path in files]
    if len({(file.network, file.genesis_hash) for _, file in found}) != 1:
        raise ConfigError("recovery_of_another_network", "the drafts are of several networks")
    histories = {file.base_height: file.base_digest for _, file in found}
    for path, file in found:
        if histories[file.base_height] != file.base_digest:
            raise ConfigError(
                "recovery_differs",
                f"{path}: the drafts have different certified blocks at height {file.base_height}",
            )
    best = preferred([file for _, file in found])
    [chosen, *_] = [path for path, file in found if file is best]
    if output.as_json:
        output.document({"sign": str(chosen), "drafts": [_standing(path, file) for path, file in found]})
        return
    output.table(
        ["draft", "last certified block", "digest", "prepared above", "in view"],
        [
            [
                path.name,
                file.base_height,
                file.base_digest.hex(),
                file.kept_digest.hex() or "-",
                "-" if file.kept is None else file.kept.certificate.view,
            ]
            for path, file in found
        ],
    )
    output.text(f"All survivors sign {chosen}: number {best.digest.hex()}")


@recovery.command()
@click.argument("file", type=FILE)
@output_option
def show(file: Path, output: Output) -> None:
    """Show what a recovery file says, and who has signed it."""
    _show(output, file, read_recovery_file(file), "")


@recovery.command()
@click.argument("file", type=FILE)
@click.option("--key", "key_file", type=FILE, help="The voting key (default: the node's).")
@click.option(
    "--instead-of",
    metavar="NUMBER",
    default="",
    help="You signed that recovery before, and it can never be complete: this one takes its place.",
)
@click.option("--yes", is_flag=True, help="Sign without asking; what is signed is shown all the same.")
@directory_option
@output_option
def sign(
    file: Path, key_file: Path | None, instead_of: str, yes: bool, directory: Directory, output: Output
) -> None:
    """Add this member's signature, after its own ledger has come to the very same block. Needs no network.

    From then on this node votes only on a chain that has the recovery block: there is no way back by itself.
    """
    from node.rescue import Survivor

    try:
        replaced = bytes.fromhex(instead_of)
    except ValueError as error:
        raise ConfigError("invalid_usage", "--instead-of is a recovery's number: 64 hex digits") from error
    node, found = directory.required(), read_recovery_file(file)
    for line in _said(found):
        click.echo(line, err=output.as_json)
    with Survivor.opened(node, load_trusted(node)) as survivor:
        # Said before anybody is asked for a passphrase.
        survivor.require_signable(found, _now_ms(), replaced)
        if not yes:
            require_yes("Sign this, for ever?")
        key = _voting_key(found, node.member, key_file, directory)
        signed = survivor.sign(found, key, _now_ms(), replaced)
    # Somebody else may have signed the file meanwhile, and that signature stays.
    latest = read_recovery_file(file)
    if latest.unsigned() != found.unsigned():
        raise ConfigError("recovery_file_altered", f"{file}: holds another recovery than the one that was shown")
    for signature in signed.signatures:
        latest = latest.with_signature(signature)
    replace_file(file, latest.encode(), "recovery_not_written")
    _show(output, file, latest, _next(latest))


@recovery.command()
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE…")
@click.option("--out", required=True, type=FILE, help="The new recovery file.")
@output_option
def combine(files: Sequence[Path], out: Path, output: Output) -> None:
    """Put together the signatures of copies of one recovery file that were signed in different places."""
    first, *others = [read_recovery_file(path) for path in files]
    for path, other in zip(files[1:], others, strict=True):
        if other.unsigned() != first.unsigned():
            raise ConfigError("recovery_differs", f"{path}: is another recovery than {files[0]}")
        for signature in other.signatures:
            first = first.with_signature(signature)
    write_new(out, first.encode(), "recovery_not_written")
    _show(output, out, first, _next(first))


@recovery.command()
@click.argument("file", type=FILE)
@directory_option
@output_option
def apply(file: Path, directory: Directory, output: Output) -> None:
    """Trust this recovery from now on; where the node stands at its block, go on from there.

    For survivors, and for every other node that is to follow them: an observer, or a member that comes back.
    Compare the number with a second member first: whoever trusts a recovery trusts those who signed it.
    """
    from node.rescue import apply_recovery

    node = directory.required()
    applied, height = apply_recovery(node, file)
    if output.as_json:
        output.document({**msgspec.to_builtins(_standing(file, applied)), "node_height": height})
        return
    for line in _said(applied):
        output.text(line)
    rest = "its blocks come from the other nodes" if height < applied.header.height else "start it: hansa run"
    output.text(f"trusted here; this node stands at block {height}: {rest}")


def _said(file: RecoveryFile) -> tuple[str, ...]:
    """What is signed, in words; and what whoever drafted it has accepted for all of them."""
    if not file.may_lose_blocks:
        return file.summary()
    return (
        *file.summary(),
        "given up with it: blocks that the members who do not go on with their memory may have decided, for they"
        " are a quorum",
    )


def _next(file: RecoveryFile) -> str:
    if file.missing:
        return f"next: hansa recovery sign, by {', '.join(file.missing)}"
    return "complete. next: hansa recovery apply, at every node; and give the file to everybody who verifies"


def _voting_key(file: RecoveryFile, member: str, key_file: Path | None, directory: Directory) -> SigningKey:
    """The key that the ledger names for the member now, opened: the node may have several, by rotations."""
    node = directory.required()
    wanted = next((item.voting_key for item in file.survivors if item.id == member), b"")
    found = [key_file] if key_file is not None else sorted(node.keys_dir.glob("voting*.key"))
    for path in found:
        if read_key_info(path).public_key == wanted:
            return read_key_file(path, passphrase(directory), kind="voting", id=member)[1]
    raise ConfigError("wrong_key", f"{member} votes with the key {wanted.hex()}, which is not among those here")


def _standing(path: Path, file: RecoveryFile) -> Standing:
    return Standing(
        str(path),
        file.digest.hex(),
        file.network,
        file.header.height,
        file.base_height,
        file.base_digest.hex(),
        file.kept_digest.hex(),
        tuple(item.id for item in file.survivors),
        file.left_out,
        tuple(item.member for item in file.signatures),
        file.missing,
    )


def _show(output: Output, path: Path, file: RecoveryFile, next_step: str) -> None:
    if output.as_json:
        output.document(_standing(path, file))
        return
    for line in _said(file):
        output.text(line)
    signed = ", ".join(item.member for item in file.signatures) or "nobody"
    output.text(f"signed by: {signed}; missing: {', '.join(file.missing) or 'nobody'}")
    if next_step:
        message(next_step)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
